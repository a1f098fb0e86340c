"""`slurm-mig reset`: empty a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slurm_mig.cli._instances import check_free, report, show, would_destroy
from slurm_mig.cli._node import administrator, choose_gpus, open_node
from slurm_mig.cli._options import dry_run_option, gpu_option, json_option
from slurm_mig.cli._print import working
from slurm_mig.errors import Held, SlurmFault
from slurm_mig.mig.allocation import QUARANTINED
from slurm_mig.node.node import require_root
from slurm_mig.transaction import by_hand, release, whereabouts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.node.node import Node


def _check_jobs(node: Node, records: Sequence[Allocation]) -> None:
    """Held while a job has one of them: the record alone does not know that its job has ended.

    Where the hooks were taken out of slurm.conf no Epilog came to say so; Slurm is asked then.
    """
    taken = [item for item in records if item.owner.job_id and item.phase != QUARANTINED]
    if not taken:
        return
    try:
        live = node.live_jobs()
    except SlurmFault as fault:
        raise Held(
            f"{taken[0].owner} of user {taken[0].owner.user} holds it, or did: "
            f"Slurm does not say who lives: {fault.cause}",
            remedy="ask again when slurmctld answers, or take it away with --force",
        ) from fault
    for record in taken:
        if record.owner.job_id in live:
            check_free(record, force=False)


@click.command()
@gpu_option
@click.option("--force", is_flag=True, help="Also take slices from jobs that hold them.")
@click.option("--foreign", is_flag=True, help="Also destroy instances that are in no record.")
@dry_run_option
@json_option
def command(
    gpu: str,
    force: bool,
    foreign: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Destroy every instance of GPUs; MIG mode stays. Nothing is touched if any is held."""
    require_root()
    with open_node(look=dry_run) as node, working("taking down"):
        gpus, faults = choose_gpus(node, gpu)
        strange = [
            (one, item) for one in gpus for item in whereabouts.foreign_instances(node.bench(), one)
        ]
        if strange and not foreign:
            where = ", ".join(f"{one.minor}:{item.gi_id}" for one, item in strange)
            raise Held(
                f"instances {where} are in no record of slurm-mig's",
                remedy="add --foreign if nothing else manages them",
            )
        held = [(one, record) for one in gpus for record in node.ledger.open_on(one.uuid)]
        if not force:
            _check_jobs(node, [record for _, record in held])
        if dry_run:
            shown = [would_destroy(node, one, record) for one, record in held]
            shown += [would_destroy(node, one, item) for one, item in strange]
        else:
            records = [record for _, record in held]
            records += [by_hand.adopt(node.bench(), administrator(), *pair) for pair in strange]
            ended = [
                release.release(node.bench(), record, "by an administrator") for record in records
            ]
    if dry_run:
        show(shown, as_json=as_json)
    else:
        report(ended, as_json=as_json)
    for fault in faults:
        raise fault
