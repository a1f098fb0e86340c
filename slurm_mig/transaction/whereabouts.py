"""What of a record is still there, by the driver's list and by its own ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.recognise import find, is_own, own_compute, strangers
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slurm_mig.mig.allocation import Allocation, Instance
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.transaction.workbench import Workbench


@dataclass(frozen=True, slots=True)
class StillThere:
    """Something of a record that could not be taken down, and why; None for the GPU's MIG mode."""

    found: GpuInstance | None
    cause: str

    @property
    def gi_id(self) -> int | None:
        """Id of the GPU instance."""
        return None if self.found is None else self.found.gi_id


def unclaimed(bench: Workbench, record: Allocation) -> Allocation:
    """The record without places that went on to another one: its own slices there are gone.

    Ids and MIG UUID in one place are always the same (facts/mig.md#ids): without this a
    record that could not be closed would take the next job's slice for its own.
    """
    claimed = {
        (item.profile_id, item.placement)
        for other in bench.ledger.open_on(record.gpu_uuid)
        if other.number != record.number
        and (other.number > record.number or other.phase == phases.ACTIVE)
        for item in other.present
    }
    lost = [item for item in record.present if (item.profile_id, item.placement) in claimed]
    return record.without(lost) if lost else record


def gone_of(
    bench: Workbench, record: Allocation, gpu: Gpu, seen: Sequence[GpuInstance]
) -> list[Instance]:
    """What of a record neither the driver's list nor its own id shows."""
    return [
        item
        for item in record.present
        if find(item, seen) is None and known(bench, item, gpu) is None
    ]


def seen_after(
    bench: Workbench, causes: Mapping[Instance, str | None], gpu: Gpu
) -> list[StillThere]:
    """What exists still, by the list or by its own id."""
    seen = bench.driver.instances(gpu)
    held: dict[int, StillThere] = {}
    for item, cause in causes.items():
        found = find(item, seen) or known(bench, item, gpu)
        if found is not None:
            why = cause or "the driver said it was destroyed"
            held.setdefault(found.gi_id, StillThere(found, why))
    return list(held.values())


def still_there(bench: Workbench, record: Allocation, gpu: Gpu) -> list[StillThere]:
    """What of a record the driver lists now; for MIG mode the GPU itself."""
    seen, record = bench.driver.instances(gpu), unclaimed(bench, record)
    found = {each.gi_id: each for item in record.present if (each := find(item, seen))}
    if record.request == phases.WHOLE_MIG_OFF:
        return [StillThere(None, "")]
    return [StillThere(each, "") for each in found.values()]


def known(bench: Workbench, item: Instance, gpu: Gpu) -> GpuInstance | None:
    """An item's GPU instance asked for by its own id, where the list lacks it."""
    if item.gi_id is None:
        return None
    found = bench.driver.instance(gpu, item.gi_id)
    return found if found is not None and find(item, [found]) else None


def missing_of(bench: Workbench, record: Allocation, gpu: Gpu) -> list[Instance]:
    """Those that do not exist: gone is only what neither the list nor its own id shows."""
    seen = bench.driver.instances(gpu)
    return [
        item
        for item in record.instances
        if not _usable(bench, item, find(item, seen) or known(bench, item, gpu), gpu)
    ]


def _usable(bench: Workbench, item: Instance, found: GpuInstance | None, gpu: Gpu) -> bool:
    """Whether the compute instance that a job was given is still in there.

    One that the list does not show is asked for by its id: a driver that hides a
    profile for a moment must cost no living job its slice.
    """
    if found is None or item.uuid is None or own_compute(item, found) is not None:
        return found is not None
    if item.ci_id is None:
        return False
    hidden = bench.driver.compute_instance(gpu, found.gi_id, item.ci_id)
    return hidden is not None and is_own(item, hidden, found)


def foreign_texts(bench: Workbench, gpu: Gpu) -> Iterator[str]:
    """A sentence for each instance that is in no record."""
    geometry = bench.driver.geometry(gpu)
    for found in foreign_instances(bench, gpu):
        name = geometry.by_id(found.profile_id).name
        yield f"GPU instance {found.gi_id} ({name}@{found.placement.start}) is in no record"


def foreign_instances(bench: Workbench, gpu: Gpu) -> Sequence[GpuInstance]:
    """Instances on a GPU that no open record names."""
    known = [item for record in bench.ledger.open_on(gpu.uuid) for item in record.present]
    return strangers(known, bench.driver.instances(gpu))


def name_of(record: Allocation) -> str:
    """A record as reports name it."""
    return f"{record.owner} on GPU {record.gpu_minor} ({record.made})"
