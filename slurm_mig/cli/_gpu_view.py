"""One GPU with what is on it, as a value that verbs print."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from slurm_mig.cli._instances import owner_of
from slurm_mig.mig.allocation import ACTIVE, QUARANTINED
from slurm_mig.mig.plan import Slot, fitting

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.node.node import Node


def describe(node: Node, gpu: Gpu) -> dict[str, Any]:
    """A GPU with its instances and what still fits, as plain data."""
    geometry = node.driver.geometry(gpu)
    found = node.driver.instances(gpu)
    present = [Slot(geometry.by_id(item.profile_id), item.placement) for item in found]
    return {
        "gpu": gpu.minor,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "mig_mode": gpu.mig_mode,
        "mig_pending": gpu.mig_pending,
        "managed": node.managed(gpu),
        "retired": asdict(mark) if (mark := node.retired.get(gpu.uuid)) else None,
        "units": geometry.units,
        "instances": [
            _instance(str(slot.row.name), item)
            | _of_record(node, gpu, owner_of(node, gpu, item), item)
            for slot, item in zip(present, found, strict=True)
        ],
        "whole": [
            _of_record(node, gpu, record)
            for record in node.ledger.open_on(gpu.uuid)
            if record.whole
        ],
        "free": fitting(geometry, present),
    }


def _instance(profile: str, item: GpuInstance) -> dict[str, Any]:
    return {
        "profile": profile,
        "start": item.placement.start,
        "size": item.placement.size,
        "gi_id": item.gi_id,
        "uuid": item.compute[0].uuid if item.compute else None,
        "uuids": [compute.uuid for compute in item.compute],
    }


def _of_record(
    node: Node, gpu: Gpu, record: Allocation | None, item: GpuInstance | None = None
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "phase": record.phase if record else "foreign",
        "job_id": record.owner.job_id if record else None,
        "restart": record.owner.restart if record else None,
        "user": record.owner.user if record else None,
        "uid": record.owner.uid if record else None,
        "since": record.created if record else None,
        "reason": record.reason if record and record.phase != ACTIVE else "",
    }
    if record and record.phase == QUARANTINED:
        # The reason is of the last teardown; who holds it may be somebody else by now.
        holders = node.stuck.holders(gpu, item)
        since = node.ledger.first(record, QUARANTINED)
        facts["stuck_since"] = since.at
        facts["stuck_for"] = since.age(node.ledger.now())
        facts["held_now"] = holders.text()
        facts["holders"] = [holder.to_dict() for holder in holders.nearest]
    return facts
