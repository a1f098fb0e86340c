"""Opening the node for a verb: its adapters, its GPUs, and who may."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from slurm_mig.config import load, locate
from slurm_mig.errors import ConfigFault, NotPermitted, SlurmFault, SlurmMigError, UsageFault
from slurm_mig.mig.allocation import Owner
from slurm_mig.node.node import Node
from slurm_mig.settings import Config

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slurm_mig.mig.driver import Gpu
    from slurm_mig.slurm.protocol import Slurm


@contextmanager
def open_node(*, look: bool = False) -> Iterator[Node]:
    """This node, from the configuration the command line names; `look`: nothing is made there."""
    config = load(click.get_current_context().obj)
    use_descriptions(config)
    check_models(config)
    node = Node(config, look=look)
    try:
        yield node
        if not look and os.geteuid() == 0:
            tell_who_waits(node)
    finally:
        node.close()


def tell_who_waits(node: Node) -> None:
    """Tell Slurm what there is room for now: whatever was done may have made it, or taken it.

    A Slurm that does not answer changes nothing of what was done.
    """
    lines = []
    try:
        if (node.config.run / "published").exists():
            from slurm_mig.node.publish import Publisher

            lines.append(Publisher(node).in_step())
        if node.waiting.any():
            from slurm_mig.node.gate import look

            lines += look(node)
    except SlurmMigError as fault:
        lines.append(f"who waits for room goes on waiting: {fault}")
    for line in filter(None, lines):
        click.echo(f"slurm-mig: {line}", err=True)


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


def tell_longer(names: Iterable[str]) -> None:
    """Say of a GPU's name that it begins others, too: whoever shortened one means another GPU."""
    from slurm_mig.mig import catalog

    for name in dict.fromkeys(names):
        if others := catalog.longer(name):
            product = catalog.find(name)
            click.echo(
                f"slurm-mig: {name!r} is taken for {product.key}, the GPU with exactly this name; "
                f"others that begin so: {', '.join(others)}",
                err=True,
            )


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
    from slurm_mig.node.node import minors_not_there

    return [
        ConfigFault(
            f"config {node.config.source}: {text}",
            remedy="correct it, or see dmesg if a GPU fell off the bus",
        )
        for text in minors_not_there(node.config, {gpu.minor for gpu in gpus})
    ]


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
