"""What the verbs share: options, opening the node, tables, JSON."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.allocation import Owner
from slurm_mig.config import load
from slurm_mig.errors import SlurmFault, UsageFault
from slurm_mig.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurm_mig.driver import Gpu
    from slurm_mig.slurm import Slurm

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)


#: As with nvidia-smi: `-i` names a GPU, and without it a command means all of them.
gpu_option: Callable[[Any], Any] = click.option(
    "-i", "--gpu", "gpu", default="all", help="Device minor or UUID; all GPUs if not given."
)


@contextmanager
def open_node() -> Iterator[Node]:
    """This node, from the configuration the command line names."""
    node = Node(load(click.get_current_context().obj))
    try:
        yield node
    finally:
        node.close()


def slurm_of(node: Node) -> Slurm:
    """The client that the configuration wants; `auto` says in one line why it is not pyslurm."""
    wanted = node.config.slurm_client
    if wanted == "commands":
        return node.slurm
    from slurm_mig import slurm_library

    if wanted == "auto" and not slurm_library.installed():
        return node.slurm
    reason = slurm_library.why_not(node.slurm, node.config.slurm_timeout)
    if not reason:
        return slurm_library.LibraryClient(node.slurm)
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


def choose_gpus(node: Node, text: str) -> list[Gpu]:
    """One GPU by device minor or UUID, or `all` that know MIG; UsageFault names what there is."""
    gpus = [gpu for gpu in node.driver.gpus() if gpu.mig_capable]
    chosen = [gpu for gpu in gpus if text in ("all", str(gpu.minor), gpu.uuid)]
    if not chosen:
        known = ", ".join(str(gpu.minor) for gpu in gpus) or "none"
        raise UsageFault(f"no MIG-capable GPU {text!r}; device minors here: {known}")
    return chosen


def print_json(data: object) -> None:
    """JSON for programs: stable keys, one document."""
    click.echo(json.dumps(data, indent=2))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns padded to their widest cell; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    right = [
        bool(cells) and all(row[place].replace(".", "").isdigit() for row in cells)
        for place in range(len(headers))
    ]
    for line in [list(headers), *cells]:
        padded = [
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(line, widths, right, strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "?"
    # A job or user name must not move the cursor or forge a row.
    return "".join(char if char.isprintable() else "?" for char in str(value))


def when(seconds: float | None) -> str:
    """A time for people: local, to the second."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def parse_time(text: str) -> float:
    """Seconds since the epoch from `2026-03-01`, `2026-03-01T12:00` (local) or a number."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise UsageFault(
            f"time {text!r}: write 2026-03-01, 2026-03-01T12:30 or seconds since the epoch"
        ) from None
