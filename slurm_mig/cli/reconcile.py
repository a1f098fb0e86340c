"""`slurm-mig reconcile`: bring ledger, hardware and Slurm to one truth."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from slurm_mig.cli._boot import boot
from slurm_mig.cli._node import administrator, open_node, slurm_of
from slurm_mig.cli._options import dry_run_option, json_option
from slurm_mig.cli._print import print_json, working
from slurm_mig.errors import LockTimeout, SlurmFault, Unresolved, UsageFault
from slurm_mig.node.boot import WAIT
from slurm_mig.node.node import require_root
from slurm_mig.slurm.ghosts import line
from slurm_mig.transaction import reconcile

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.node.node import Node
    from slurm_mig.slurm.protocol import Slurm


@click.command()
@click.option(
    "--no-slurm", is_flag=True, help="Do not ask Slurm which jobs live; leave active slices alone."
)
@click.option(
    "--boot",
    "at_boot",
    is_flag=True,
    help="Before slurmd starts: compare the GPUs with the configuration, have MIG mode on, remove "
    "left-overs; Slurm is only told, never asked for jobs.",
)
@click.option(
    "--wait",
    type=click.IntRange(0, 3600),
    help=f"With --boot: seconds to wait for the GPUs to be as configured.  [default: {WAIT:.0f}]",
)
@click.option(
    "--node", "name", help="Slurm's name of this node; by its records, or its host's, if not set."
)
@click.option(
    "--accept-older-ledger",
    "accept",
    is_flag=True,
    help="The ledger was set back or lost: put on record again what this boot's marks name.",
)
@dry_run_option
@json_option
def command(
    no_slurm: bool,
    at_boot: bool,
    wait: int | None,
    name: str | None,
    accept: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Close what a reboot or a killed hook left. Instances in no record are only listed."""
    if not at_boot and wait is not None:
        raise UsageFault("--wait goes with --boot")
    if at_boot and dry_run:
        raise UsageFault(
            "--boot and --dry-run exclude each other; --dry-run alone says what is left"
        )
    if accept and (at_boot or dry_run or no_slurm):
        raise UsageFault("--accept-older-ledger asks Slurm, and goes with none of these options")
    require_root()
    if name:
        # Paths with %n and Slurm's own commands take it from there, too.
        os.environ["SLURMD_NODENAME"] = name
    if at_boot:
        boot(WAIT if wait is None else wait, as_json=as_json)
    else:
        _reconcile(no_slurm=no_slurm, accept=accept, dry_run=dry_run, as_json=as_json)


def _reconcile(*, no_slurm: bool, accept: bool, dry_run: bool, as_json: bool) -> None:
    with open_node(look=dry_run) as node, working("comparing ledger, hardware and Slurm"):
        # Slurm is asked first: whose job lives decides what is put on record.
        slurm = None if no_slurm else slurm_of(node)
        rebuilt = node.accept_ledger(node.live_jobs(slurm), administrator().user) if accept else []
        live, silence = (None, "") if slurm is None else _asker(node, slurm)
        bench = node.bench()
        found = reconcile.foresee(bench, live) if dry_run else reconcile.reconcile(bench, live)
        # Under a name that is not proven another node would be drained.
        gone: tuple[list[str], list[str]] = ([], [])
        if slurm is not None and live is not None:
            gone = _ghosts(node, slurm, look=dry_run)
        fenced = "" if no_slurm or dry_run or silence else _fence(node)
    found.done = [*rebuilt, *found.done, *gone[0], *([fenced] if fenced else [])]
    left = [*found.left, *([silence] if silence else []), *gone[1]]
    if as_json:
        print_json({"done": found.done, "left": left, "foreign": found.foreign})
    else:
        word = "would be done" if dry_run else "done"
        for title, lines in ((word, found.done), ("foreign", found.foreign), ("left", left)):
            for text in lines:
                click.echo(f"{title}: {text}")
        if not (found.done or left or found.foreign):
            click.echo("ledger and hardware agree")
    if left:
        raise Unresolved(f"{len(left)} left, see the output")


def _ghosts(node: Node, slurm: Slurm, *, look: bool) -> tuple[list[str], list[str]]:
    """Jobs of Slurm's that ended with an earlier boot: those started again and those left.

    `look`: none is started. Where Slurm falls silent by now nothing is said of the others.
    """
    done: list[str] = []
    left: list[str] = []
    with suppress(SlurmFault):
        for ghost in node.ghosts(slurm, time.sleep):
            if not look and node.start_again(ghost):
                done.append(f"job {ghost.job_id}: requeued, for it ended with an earlier boot")
            else:
                left.append(line(ghost.job_id))
    return done, left


def _fence(node: Node) -> str:
    """Drain for stuck slices, or take that back; a silent Slurm is told of by `_asker`."""
    try:
        return node.fence().settle()
    except (SlurmFault, LockTimeout) as fault:
        return f"neither drained nor resumed for stuck slices: {fault.cause}"


def _asker(node: Node, slurm: Slurm) -> tuple[Callable[[], frozenset[int]] | None, str]:
    """How to ask Slurm for this node's jobs; None and why, when it does not answer."""
    try:
        node.live_jobs(slurm)
    except SlurmFault as fault:
        return None, f"slices of jobs were left alone, for Slurm does not say who lives: {fault}"
    return lambda: node.live_jobs(slurm), ""
