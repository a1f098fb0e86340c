"""Instances by their ids, for the verbs that end them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._print import print_json
from slurm_mig.errors import Held, Unresolved
from slurm_mig.mig.allocation import QUARANTINED
from slurm_mig.mig.driver import GpuInstance
from slurm_mig.transaction import recognise

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.node.node import Node


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
    if record.owner.is_job and record.phase != QUARANTINED and not force:
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
