"""`slurm-mig destroy`: remove one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slurm_mig.cli._instances import check_free, owner_of, report, show, would_destroy
from slurm_mig.cli._node import administrator, could_be_lost, open_node
from slurm_mig.cli._options import dry_run_option, json_option
from slurm_mig.cli._print import working
from slurm_mig.errors import Held, UsageFault
from slurm_mig.node.node import require_root
from slurm_mig.transaction import by_hand, release

if TYPE_CHECKING:
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.node.node import Node


@click.command()
@click.argument("uuid", metavar="MIG-UUID|GPU:GI")
@click.option("--force", is_flag=True, help="Also take a slice from a job that holds it.")
@click.option("--foreign", is_flag=True, help="Also destroy an instance that is in no record.")
@dry_run_option
@json_option
def command(
    uuid: str,
    force: bool,
    foreign: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Destroy one instance by its MIG UUID, or by GPU minor and GPU instance id (0:9)."""
    require_root()
    with open_node(look=dry_run) as node, working("taking down"):
        gpu, found = _find(node, uuid)
        record = owner_of(node, gpu, found)
        if record is None:
            if not foreign:
                raise Held(
                    f"{uuid} on GPU {gpu.minor} is in no record of slurm-mig's",
                    remedy="add --foreign if nothing else manages it",
                )
        else:
            check_free(record, force=force)
        if dry_run:
            shown = [would_destroy(node, gpu, record or found)]
        else:
            record = record or by_hand.adopt(node.bench(), administrator(), gpu, found)
            ended = release.release(node.bench(), record, "by an administrator")
    if dry_run:
        show(shown, as_json=as_json)
    else:
        report([ended], as_json=as_json)


def _find(node: Node, text: str) -> tuple[Gpu, GpuInstance]:
    gpus, faults = node.driver.survey()
    for gpu in gpus:
        for found in node.driver.instances(gpu):
            uuids = [compute.uuid for compute in found.compute]
            if text in uuids or text == f"{gpu.minor}:{found.gi_id}":
                return gpu, found
    if faults and (text.startswith("MIG-") or could_be_lost(text.partition(":")[0], gpus, faults)):
        raise faults[0]
    raise UsageFault(f"no instance {text!r} here", remedy="see `slurm-mig status`")
