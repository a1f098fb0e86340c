"""`slurm-mig destroy`: remove one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._common import (
    administrator,
    could_be_lost,
    dry_run_option,
    json_option,
    open_node,
    print_json,
)
from slurm_mig.errors import Held, Unresolved, UsageFault
from slurm_mig.mig.allocation import QUARANTINED
from slurm_mig.mig.driver import GpuInstance
from slurm_mig.node.node import require_root
from slurm_mig.transaction import recognise

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.node.node import Node


@click.command()
@click.argument("uuid", metavar="MIG-UUID|GPU:GI")
@click.option("--force", is_flag=True, help="Also take a slice from a job that holds it.")
@click.option("--foreign", is_flag=True, help="Also destroy an instance that is in no record.")
@dry_run_option
@json_option
def command(
    uuid: str,
    force: bool,  # noqa: FBT001
    foreign: bool,  # noqa: FBT001
    dry_run: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Destroy one instance by its MIG UUID, or by GPU minor and GPU instance id (0:9)."""
    require_root()
    with open_node(look=dry_run) as node:
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
            record = record or node.allocator().adopt(administrator(), gpu, found)
            ended = node.allocator().release(record, "by an administrator")
    if dry_run:
        show(shown, as_json=as_json)
    else:
        report([ended], as_json=as_json)


def would_destroy(node: Node, gpu: Gpu, what: Allocation | GpuInstance) -> dict[str, Any]:
    """What a dry run says of a record, all of which goes, or of an instance in none."""
    if isinstance(what, GpuInstance):
        name = node.driver.geometry(gpu).by_id(what.profile_id).name
        return {
            "gpu": gpu.minor,
            "made": f"{name}@{what.placement.start}",
            "owner": "in no record",
            "job": None,
        }
    owner = f"{what.owner} of user {what.owner.user}"
    return {"gpu": gpu.minor, "made": what.made, "owner": owner, "job": what.owner.job_id}


def show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print what a dry run found."""
    if as_json:
        print_json({"dry_run": True, "would_destroy": found})
        return
    for item in found:
        click.echo(f"GPU {item['gpu']}: {item['made']} would be destroyed ({item['owner']})")
    if not found:
        click.echo("there is nothing to destroy")


def owner_of(node: Node, gpu: Gpu, found: GpuInstance) -> Allocation | None:
    """The open record that names an instance."""
    return recognise.owner(node.ledger.open_on(gpu.uuid), found)


def check_free(record: Allocation, *, force: bool) -> None:
    """Held when a job has the record, unless forced."""
    if record.owner.job_id is not None and record.phase != QUARANTINED and not force:
        raise Held(
            f"{record.owner} of user {record.owner.user} holds it",
            remedy="cancel the job, or take it away with --force",
        )


def report(records: list[Allocation], *, as_json: bool) -> None:
    """Print what became of records; Unresolved when something still stands."""
    if as_json:
        print_json([record.to_dict() for record in records])
    else:
        for record in records:
            click.echo(f"GPU {record.gpu_minor}: {record.made}: {record.phase}, {record.reason}")
    stuck = [record for record in records if record.phase == QUARANTINED]
    if stuck:
        raise Unresolved(f"{len(stuck)} could not be destroyed: {stuck[0].reason}")


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
