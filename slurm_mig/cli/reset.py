"""`slurm-mig reset`: empty a GPU."""

from __future__ import annotations

import click

from slurm_mig.cli._common import (
    administrator,
    choose_gpus,
    dry_run_option,
    gpu_option,
    json_option,
    open_node,
)
from slurm_mig.cli.destroy import check_free, report, show, would_destroy
from slurm_mig.errors import Held
from slurm_mig.node import require_root


@click.command()
@gpu_option
@click.option("--force", is_flag=True, help="Also take slices from jobs that hold them.")
@click.option("--foreign", is_flag=True, help="Also destroy instances that are in no record.")
@dry_run_option
@json_option
def command(
    gpu: str,
    force: bool,  # noqa: FBT001
    foreign: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Destroy every instance of GPUs; MIG mode stays. Nothing is touched if any is held."""
    require_root()
    with open_node(look=dry_run) as node:
        gpus, faults = choose_gpus(node, gpu)
        strange = [(one, item) for one in gpus for item in node.allocator().foreign_instances(one)]
        if strange and not foreign:
            where = ", ".join(f"{one.minor}:{item.gi_id}" for one, item in strange)
            raise Held(
                f"instances {where} are in no record of slurm-mig's",
                remedy="add --foreign if nothing else manages them",
            )
        held = [(one, record) for one in gpus for record in node.ledger.open_on(one.uuid)]
        for _, record in held:
            check_free(record, force=force)
        if dry_run:
            shown = [would_destroy(node, one, record) for one, record in held]
            shown += [would_destroy(node, one, item) for one, item in strange]
        else:
            records = [record for _, record in held]
            records += [node.allocator().adopt(administrator(), *pair) for pair in strange]
            ended = [node.allocator().release(record, "by an administrator") for record in records]
    if dry_run:
        show(shown, as_json=as_json)
    else:
        report(ended, as_json=as_json)
    for fault in faults:
        raise fault
