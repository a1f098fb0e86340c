"""Which instance of the hardware a record means: one rule, for whoever looks or acts. Pure.

MIG instances carry no label, and the ids and the MIG UUID of one place are always the
same (facts/mig.md#ids): none of them alone tells whose an instance is. So all that a record
has is compared: profile id, place, GPU instance id, compute instance id, MIG UUID, and
whether the compute instance has the size that its owner was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.mig.allocation import Instance
from slurm_mig.mig.driver import COMPUTE_SLICES, FILLS_DOUBLE_MEMORY
from slurm_mig.values import replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import ComputeInstance, GpuInstance
    from slurm_mig.mig.profile import Profile


def find(item: Instance, seen: Iterable[GpuInstance]) -> GpuInstance | None:
    """The GPU instance that a record means, if it is still that one.

    A planned item has no ids yet, and is known by profile and place: nobody else could
    have been there while it was carved. One whose compute instance is gone is still its own,
    for it has to go with its record; one that has another compute instance is not: somebody
    else made that, and may be at work on it.
    """
    return next((found for found in seen if _means(item, found)), None)


def _means(item: Instance, found: GpuInstance) -> bool:
    if (found.profile_id, found.placement) != (item.profile_id, item.placement):
        return False
    if item.gi_id not in (None, found.gi_id):
        return False
    return item.uuid is None or not found.compute or own_compute(item, found) is not None


def own_compute(item: Instance, found: GpuInstance) -> ComputeInstance | None:
    """The compute instance of `found` that an item with ids was given; None if it has gone."""
    return next((one for one in found.compute if is_own(item, one, found)), None)


def is_own(item: Instance, one: ComputeInstance, found: GpuInstance) -> bool:
    """Whether a compute instance of `found` is what an item was given: its ids, and its size."""
    if (one.ci_id, one.uuid) != (item.ci_id, item.uuid):
        return False
    if item.compute_slices is not None:
        return COMPUTE_SLICES.get(one.profile_id) == item.compute_slices
    # The list may for a moment lack the profile that fills a double-memory 1g.
    return found.fills is None or one.profile_id in (found.fills, FILLS_DOUBLE_MEMORY)


def owner(records: Iterable[Allocation], found: GpuInstance) -> Allocation | None:
    """Of open records of one GPU the one that means this instance; None for a foreign one."""
    for record in records:
        if any(find(item, [found]) for item in record.present):
            return record
    return None


def as_found(found: GpuInstance, name: Profile) -> Instance:
    """What a record has to say of an instance, with the first of its compute instances.

    One whose size no profile's name can tell is left out: it is known by its GPU instance.
    """
    place = found.placement
    plain = Instance(str(name), found.profile_id, place.start, place.size, found.gi_id)
    if not found.compute:
        return plain
    first = found.compute[0]
    whole = replace(plain, ci_id=first.ci_id, uuid=first.uuid)
    if is_own(whole, first, found):
        return whole
    slices = COMPUTE_SLICES.get(first.profile_id, name.gpu_slices)
    if slices >= name.gpu_slices:
        return plain
    return replace(whole, profile=str(replace(name, compute_slices=slices)))


def strangers(items: Sequence[Instance], seen: Iterable[GpuInstance]) -> list[GpuInstance]:
    """Instances that none of the items means."""
    return [found for found in seen if not any(find(item, [found]) for item in items)]
