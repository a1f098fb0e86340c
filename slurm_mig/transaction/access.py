"""Whose the device nodes of a slice are: closed, given to the job's user, taken away."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from slurm_mig.errors import NodeFault
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.recognise import find
from slurm_mig.transaction.whereabouts import unclaimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation, Instance
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.transaction.workbench import Workbench


def close_nodes(bench: Workbench, record: Allocation) -> None:
    """Let only the job's user in. An administrator's instance stays as the driver has it."""
    if not record.owner.is_job:
        return
    for item in record.instances:
        if item.gi_id is not None and item.ci_id is not None:
            bench.capabilities.close(
                record.gpu_minor, item.gi_id, item.ci_id, record.owner.uid, record.owner.gid
            )


def shut(bench: Workbench, records: Sequence[Allocation]) -> None:
    """Close what ended jobs have to their users, before anything is waited for.

    Without the GPU's lock: the nodes of a record that is active and of this boot are its
    own, and another's that has their numbers by now is left as it is. What fails here is
    tried again, and told, under the lock.
    """
    for record in records:
        if record.phase != phases.ACTIVE or record.boot_id != bench.boot_id:
            continue
        for item in unclaimed(bench, record).present:
            if item.gi_id is not None and item.ci_id is not None and record.owner.uid:
                with suppress(NodeFault):
                    bench.capabilities.revoke(
                        record.gpu_minor, item.gi_id, item.ci_id, owned_by=record.owner.uid
                    )


def open_again(bench: Workbench, record: Allocation) -> None:
    """Under the lock: give back what `shut` may have closed of a later job's.

    Between its look at the ledger and its closing another hook can have closed the record
    as lost, and carved the place anew for another job of the same user.
    """
    for other in bench.ledger.open_on(record.gpu_uuid):
        same = other.owner.uid == record.owner.uid and other.number > record.number
        if same and other.phase == phases.ACTIVE:
            close_nodes(bench, other)


def take_from_user(bench: Workbench, record: Allocation, seen: Sequence[GpuInstance]) -> None:
    """Close an ended job's instances to its user: nothing new starts on what resists."""
    if not record.owner.is_job:
        return
    for item in record.instances:
        if item.gi_id is not None and item.ci_id is not None and find(item, seen):
            bench.capabilities.revoke(record.gpu_minor, item.gi_id, item.ci_id)


def remove_nodes(bench: Workbench, record: Allocation, items: Sequence[Instance], gpu: Gpu) -> None:
    """Take away the nodes of instances that are gone.

    The ids may be another instance's by now, made by hand: of its nodes only those
    that still are the job's user's go.
    """
    taken = {found.gi_id for found in bench.driver.instances(gpu)}
    for item in items:
        if item.gi_id is None or item.ci_id is None:
            continue
        ids = record.gpu_minor, item.gi_id, item.ci_id
        if item.gi_id not in taken:
            bench.capabilities.remove(*ids)
        elif record.owner.uid:
            bench.capabilities.remove(*ids, owned_by=record.owner.uid)
    # A hook that died before it wrote the ids down left nodes that no record names.
    bench.capabilities.remove_stale(record.gpu_minor)
