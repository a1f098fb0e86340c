"""`slurm-mig reconcile`: bring ledger, hardware and Slurm to one truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slurm_mig.cli._common import json_option, open_node, print_json, slurm_of
from slurm_mig.errors import LockTimeout, SlurmFault, Unresolved
from slurm_mig.node import require_root

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.node import Node


@click.command()
@click.option(
    "--no-slurm", is_flag=True, help="Do not ask Slurm which jobs live; leave active slices alone."
)
@json_option
def command(no_slurm: bool, as_json: bool) -> None:  # noqa: FBT001
    """Close what a reboot or a killed hook left. Instances in no record are only listed."""
    require_root()
    with open_node() as node:
        live, silence = (None, "") if no_slurm else _asker(node)
        found = node.allocator().reconcile(live)
        fenced = "" if no_slurm else _fence(node)
    if fenced:
        found.done.append(fenced)
    left = [*found.left, *([silence] if silence else [])]
    if as_json:
        print_json({"done": found.done, "left": left, "foreign": found.foreign})
    else:
        for title, lines in (("done", found.done), ("foreign", found.foreign), ("left", left)):
            for line in lines:
                click.echo(f"{title}: {line}")
        if not (found.done or left or found.foreign):
            click.echo("ledger and hardware agree")
    if left:
        raise Unresolved(f"{len(left)} left, see the output")


def _fence(node: Node) -> str:
    """Drain for stuck slices, or take that back; a silent Slurm is told of by `_asker`."""
    try:
        return node.fence().settle()
    except (SlurmFault, LockTimeout) as fault:
        return f"neither drained nor resumed for stuck slices: {fault.cause}"


def _asker(node: Node) -> tuple[Callable[[], frozenset[int]] | None, str]:
    """How to ask Slurm for this node's jobs; None and why, when it does not answer."""
    slurm = slurm_of(node)
    try:
        slurm.live_jobs(node.name)
    except SlurmFault as fault:
        return None, f"slices of jobs were left alone, for Slurm does not answer: {fault}"
    return lambda: slurm.live_jobs(node.name), ""
