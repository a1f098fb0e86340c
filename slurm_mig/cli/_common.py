"""What the verbs share: options, opening the node, tables, JSON."""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.config import Config, load, locate
from slurm_mig.errors import ConfigFault, NotPermitted, SlurmFault, UsageFault
from slurm_mig.mig.allocation import Owner
from slurm_mig.node.node import Node
from slurm_mig.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurm_mig.errors import SlurmMigError
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.slurm.protocol import Slurm

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)


#: As with nvidia-smi: `-i` names a GPU, and without it a command means all of them.
gpu_option: Callable[[Any], Any] = click.option(
    "-i", "--gpu", "gpu", default="all", help="Device minor or UUID; all GPUs if not given."
)

dry_run_option: Callable[[Any], Any] = click.option(
    "--dry-run", is_flag=True, help="Only say what would be done."
)


#: Seconds since the epoch that are taken for such: of the years 2001 to 5138.
FIRST_SECOND: Final = 10**9
LAST_SECOND: Final = 10**11

#: A number that is no date in ISO 8601's basic format.
_SECONDS: Final = re.compile(r"(?![0-9]{8}\Z)[0-9]+(\.[0-9]+)?")


@contextmanager
def open_node(*, look: bool = False) -> Iterator[Node]:
    """This node, from the configuration the command line names; `look`: nothing is made there."""
    config = load(click.get_current_context().obj)
    use_descriptions(config)
    check_models(config)
    node = Node(config, look=look)
    try:
        yield node
    finally:
        node.close()


def use_descriptions(config: Config | None = None) -> None:
    """Let the site's own descriptions of GPUs stand beside the catalogue.

    Verbs that need no node give no `config`: where only root may read it, they do without, and
    the default place is meant. One that can be read has to be right.
    """
    from slurm_mig.mig import catalog

    if config is None:
        named = click.get_current_context().obj
        try:
            config = load(named)
        except ConfigFault:
            if named is not None or os.access(locate(named, os.environ), os.R_OK):
                raise
            config = Config()
    catalog.use(config.descriptions)


def slurm_of(node: Node) -> Slurm:
    """The client that the configuration wants; `auto` says in one line why it is not pyslurm."""
    wanted = node.config.slurm_client
    if wanted == "commands":
        return node.slurm
    from slurm_mig.slurm import pyslurm_client

    if wanted == "auto" and not pyslurm_client.installed():
        return node.slurm
    reason = pyslurm_client.why_not(node.slurm, node.config.slurm_timeout)
    if not reason:
        return pyslurm_client.LibraryClient(node.slurm)
    if wanted == "pyslurm":
        raise SlurmFault(
            f"pyslurm does not serve: {reason}",
            remedy='set `client` in the [slurm] table of the config to "auto"',
        )
    click.echo(f"slurm-mig: Slurm's commands are used, not pyslurm: {reason}", err=True)
    return node.slurm


def administrator() -> Owner:
    """The owner of what an administrator makes; sudo's caller, where there is one."""
    return Owner(
        job_id=None,
        uid=int(os.environ.get("SUDO_UID") or os.getuid()),
        user=os.environ.get("SUDO_USER") or "root",
    )


def check_models(config: Config) -> None:
    """ConfigFault for a policy of a GPU model that does not exist.

    Here and not where the file is read: the catalogue would cost every hook.
    """
    if not config.whole_models:
        return
    import difflib

    from slurm_mig.mig import catalog

    known = [name for product in catalog.products() for name in product.names]
    for name in config.whole_models:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, 3))
            raise ConfigFault(
                f"config {config.source}: [whole_gpus] models: no GPU is called {name!r}",
                remedy=f"did you mean {close}?" if close else "see `slurm-mig gpus --supported`",
            )


def check_minors(node: Node, gpus: Sequence[Gpu]) -> list[SlurmMigError]:
    """A fault for each list of the [gpus] table that names a GPU which is not there."""
    here = {gpu.minor for gpu in gpus}
    faults: list[SlurmMigError] = []
    for key, minors in (("managed", node.config.managed), ("order", node.config.order)):
        if missing := [str(minor) for minor in minors or () if minor not in here]:
            faults.append(
                ConfigFault(
                    f"config {node.config.source}: [gpus] {key} names {', '.join(missing)}; "
                    f"device minors here: {', '.join(map(str, sorted(here))) or 'none'}",
                    remedy="correct it, or see dmesg if a GPU fell off the bus",
                )
            )
    return faults


def survey(node: Node) -> tuple[Sequence[Gpu], list[SlurmMigError]]:
    """GPUs that answer, and what is wrong with the others or with the list of them."""
    gpus, faults = node.driver.survey()
    # A lost GPU has no minor: it may well be the one that the configuration means.
    return gpus, [*faults] or check_minors(node, gpus)


def root_to_read(node: Node) -> None:
    """NotPermitted for other users, before a ledger of their own is made at its place."""
    if os.geteuid() != 0:
        raise NotPermitted(f"root needed to read {node.config.ledger}")


def choose_gpus(node: Node, text: str) -> tuple[list[Gpu], Sequence[SlurmMigError]]:
    """One GPU by device minor or UUID, or `all` that know MIG; UsageFault names what there is.

    Beside them the faults of those that are meant and do not answer: a lost GPU
    stops no work on the others.
    """
    answering, faults = node.driver.survey()
    gpus = [gpu for gpu in answering if gpu.mig_capable]
    if text == "all" and (gpus or faults):
        return gpus, faults
    chosen = [gpu for gpu in gpus if text in (str(gpu.minor), gpu.uuid)]
    if not chosen:
        if faults and could_be_lost(text, answering, faults):
            raise faults[0]
        known = ", ".join(str(gpu.minor) for gpu in gpus) or "none"
        raise UsageFault(f"no MIG-capable GPU {text!r}; device minors here: {known}")
    return chosen, ()


def could_be_lost(text: str, answering: Sequence[Gpu], faults: Sequence[SlurmMigError]) -> bool:
    """Whether a minor or UUID may be that of a GPU which does not answer."""
    if any(text == str(gpu.minor) for gpu in answering):
        return False
    minors = map(str, range(len(answering) + len(faults)))
    return text.startswith("GPU-") or text in minors


def print_json(data: object) -> None:
    """JSON for programs: stable keys, one document."""
    click.echo(json.dumps(data, indent=2))


def print_json_rows(rows: Iterable[object]) -> None:
    """As `print_json` of a list, of which only one row at a time need be in memory."""
    empty = True
    for row in rows:
        text = json.dumps(row, indent=2).replace("\n", "\n  ")
        click.echo(f"[\n  {text}" if empty else f",\n  {text}", nl=False)
        empty = False
    click.echo("[]" if empty else "\n]")


class Columns:
    """Columns padded to their widest cell, numbers to the right, learnt row by row."""

    def __init__(self, headers: Sequence[str]) -> None:
        self._headers = headers
        self._widths = [len(header) for header in headers]
        self._right = [True] * len(headers)
        self._empty = True

    def learn(self, cells: Sequence[str]) -> None:
        """Make room for a row."""
        self._empty = False
        for place, text in enumerate(cells):
            self._widths[place] = max(self._widths[place], len(text))
            self._right[place] = self._right[place] and text.replace(".", "").isdigit()

    def show(self, rows: Iterable[Sequence[str]]) -> None:
        """Print the headers and the rows that were learnt."""
        for line in chain([self._headers], rows):
            padded = [
                text.rjust(width) if right and not self._empty else text.ljust(width)
                for text, width, right in zip(line, self._widths, self._right, strict=True)
            ]
            click.echo("  ".join(padded).rstrip())


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns padded to their widest cell; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    columns = Columns(headers)
    for row in cells:
        columns.learn(row)
    columns.show(cells)


def cell(value: object) -> str:
    """A value as one word or phrase of a line; `?` for what is unknown or unprintable."""
    if value is None:
        return "?"
    # A job or user name must not move the cursor or forge a row.
    return shown(str(value))


def folded(text: str, indent: int) -> str:
    """A line as several of at most 80 columns, the further ones indented."""
    import textwrap

    return textwrap.fill(
        text, 80, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def age(seconds: float) -> str:
    """A duration for people: `26:03:09`, in hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def when(seconds: float | None) -> str:
    """A time for people: local, to the second."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def parse_time(text: str) -> float:
    """Seconds since the epoch from `2026-03-01`, `2026-03-01T12:00` (local) or such a number.

    Eight digits are a date, `20260301`: as seconds they would be a day of 1970, and a
    question about it has an empty answer.
    """
    try:
        number = _SECONDS.fullmatch(text)
        seconds = float(text) if number else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
        number = None
    if not (FIRST_SECOND if number else 0) <= seconds <= LAST_SECOND:
        raise UsageFault(
            f"time {text!r}: write 2026-03-01, 2026-03-01T12:30 (years 1970 to 5137) or seconds "
            f"since the epoch ({FIRST_SECOND} to {LAST_SECOND})"
        )
    return seconds
