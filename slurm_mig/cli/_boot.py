"""What `reconcile --boot` does: bring up, report, and keep a wrong node out of service."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from slurm_mig.cli._node import open_node
from slurm_mig.cli._print import print_json
from slurm_mig.errors import NodeFault, SlurmFault
from slurm_mig.node.boot import bring_up, keep_out, let_in
from slurm_mig.node.node import Node
from slurm_mig.settings import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.node.boot import Boot


def boot(wait: float, *, as_json: bool) -> None:
    """Every fault is also the node's drain reason, as far as Slurm can be told."""
    # Until the configuration is read, the defaults have to do for setting a drain reason.
    node = Node(Config())
    try:
        with open_node() as node:
            found = bring_up(node, wait)
            report(found, as_json=as_json)
            found.check()
            _tell(lambda: _let_in(node))
    except NodeFault as fault:
        reason = fault
        _tell(lambda: keep_out(node, reason))
        raise


def report(found: Boot, *, as_json: bool) -> None:
    """What was found, as lines or as JSON."""
    lines = asdict(found)
    if as_json:
        print_json(lines)
        return
    for title, kind in (("mismatch", "mismatches"), *((name, name) for name in list(lines)[:3])):
        for line in lines[kind]:
            click.echo(f"{title}: {line}")
    if not any(lines.values()):
        click.echo("hardware, configuration and ledger agree")


def _let_in(node: Node) -> None:
    if let_in(node):
        click.echo("slurm-mig: the drain of an earlier boot is taken back", err=True)


def _tell(speak: Callable[[], object]) -> None:
    """Slurm may well be down: that is a line, and changes nothing."""
    try:
        speak()
    except SlurmFault as fault:
        click.echo(f"slurm-mig: Slurm was not told: {fault}", err=True)
