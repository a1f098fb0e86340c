"""`slurm-mig reset`: empty a GPU."""

from __future__ import annotations

import click

from slurm_mig.cli._common import administrator, choose_gpus, json_option, open_node
from slurm_mig.cli.destroy import check_free, report
from slurm_mig.errors import Held
from slurm_mig.node import require_root


@click.command()
@click.option("--gpu", "minor", required=True, help="Device minor, UUID, or all.")
@click.option("--force", is_flag=True, help="Also take slices from jobs that hold them.")
@click.option("--foreign", is_flag=True, help="Also destroy instances that are in no record.")
@json_option
def command(minor: str, force: bool, foreign: bool, as_json: bool) -> None:  # noqa: FBT001
    """Destroy every instance of a GPU; MIG mode stays. Nothing is touched if any is held."""
    require_root()
    with open_node() as node:
        gpus = choose_gpus(node, minor)
        strange = [(gpu, item) for gpu in gpus for item in node.allocator().foreign_instances(gpu)]
        if strange and not foreign:
            where = ", ".join(f"{gpu.minor}:{item.gi_id}" for gpu, item in strange)
            raise Held(
                f"instances {where} are in no record of slurm-mig's",
                remedy="add --foreign if nothing else manages them",
            )
        records = [record for gpu in gpus for record in node.ledger.open_on(gpu.uuid)]
        for record in records:
            check_free(record, force=force)
        records += [node.allocator().adopt(administrator(), gpu, item) for gpu, item in strange]
        ended = [node.allocator().release(record, "by an administrator") for record in records]
    report(ended, as_json=as_json)
