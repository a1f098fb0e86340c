"""Slot policies: where on a GPU a request goes. All but `fits` are for comparison, or learned.

Each is a function as `mig/plan.py` wants it: geometry, rows, what is there -> rank of a choice.
What they are worth: facts/packing.md#slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slurm_mig.errors import UsageFault
from slurm_mig.mig.plan import fits
from slurm_mig.settings import LEARNED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurm_mig.mig.geometry import Geometry, GpuProfile, Placement
    from slurm_mig.mig.plan import Policy, Rank, Slot


def first_fit(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
    """The lowest slots."""
    del geometry, rows, present
    return lambda occupied, places: [-place.start for place in places]  # noqa: ARG005


def last_fit(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
    """The highest slots."""
    del geometry, rows, present
    return lambda occupied, places: [place.start for place in places]  # noqa: ARG005


def best_fit(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
    """As a buddy allocator: in the smallest free aligned block, of equals the highest."""
    del rows, present
    units = geometry.units

    def rank(occupied: int, places: tuple[Placement, ...]) -> tuple[int, list[int]]:
        before = occupied & ~_union(places)
        blocks = sum(_block(place, before, units) for place in places)
        return -blocks, [place.start for place in places]

    return rank


def _union(places: Iterable[Placement]) -> int:
    mask = 0
    for place in places:
        mask |= place.mask
    return mask


def _block(place: Placement, occupied: int, units: int) -> int:
    """Units of the largest free block around a place that starts at a multiple of its size."""
    found, size = place.size, 1
    while size < 2 * units:
        first = place.start // size * size
        mask = ((1 << min(size, units - first)) - 1) << first
        if mask & place.mask == place.mask and not mask & occupied:
            found = max(found, mask.bit_count())
        size *= 2
    return found


def driver(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
    """What the driver does when it is left the choice, as far as its published outputs tell.

    The upper half first, there the highest pair of units, in a pair the lower one; then the
    lower half, upwards. Only GPUs of eight units were seen doing it.
    """
    del rows, present
    half = geometry.units // 2

    def order(start: int) -> tuple[int, int]:
        pair = start // 2 * 2
        return (1, pair * half - start) if start >= half else (0, -start)

    return lambda occupied, places: [order(place.start) for place in places]  # noqa: ARG005


def mfi(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
    """Minimum fragmentation increment (arXiv 2511.18906), our reading of its abstract.

    Fragmentation: over all profiles that the free units would hold, the units of each of their
    places that something touches. The choice after which that is least, of equals the lowest.
    """
    del rows, present

    def rank(occupied: int, places: tuple[Placement, ...]) -> tuple[int, list[int]]:
        free = geometry.units - occupied.bit_count()
        broken = sum(
            place.size
            for row in geometry.classes
            for place in row
            if place.size <= free and place.mask & occupied
        )
        return -broken, [-place.start for place in places]

    return rank


NAMED: Final[dict[str, Policy]] = {
    "fits": fits,
    "first-fit": first_fit,
    "last-fit": last_fit,
    "best-fit": best_fit,
    "driver": driver,
    "mfi": mfi,
}


class Learned:
    """Tables of `slurm-mig learn`, by the places that a GPU's profiles have; `fits` elsewhere."""

    def __init__(self, tables: Mapping[Any, dict[int, float]]) -> None:
        self._tables = tables

    def serves(self, geometry: Geometry) -> bool:
        """Whether there is a table for GPUs of this geometry."""
        return geometry.classes in self._tables

    def __call__(
        self, geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]
    ) -> Rank:
        """The choice whose layout is worth most; of equals as `fits`."""
        values = self._tables.get(geometry.classes)
        if values is None:
            return fits(geometry, rows, present)
        bits = geometry.layout_bits
        there = sum(bits[geometry.class_of(slot.row), slot.placement] for slot in present)
        numbers = [geometry.class_of(row) for row in rows]
        keeps = fits(geometry, rows, present)

        def rank(occupied: int, places: tuple[Placement, ...]) -> tuple[float, Any]:
            added = sum(bits[key] for key in zip(numbers, places, strict=True))
            # A layout that the table does not have is worth least: `fits` decides among such.
            return values.get(there + added, float("-inf")), keeps(occupied, places)

        return rank


def named(text: str, *, trust: bool = False) -> Policy:
    """The policy of that name; UsageFault lists them, and for a table that cannot be used.

    `trust`: the table must be one that only root can have written.
    """
    if text.startswith(LEARNED):
        from pathlib import Path

        from slurm_mig.packing.tables import read

        return Learned(read(Path(text.removeprefix(LEARNED)), trust=trust))
    if text not in NAMED:
        raise UsageFault(f"policy {text!r}: one of {', '.join(NAMED)} or {LEARNED}FILE")
    return NAMED[text]


class Unused(NamedTuple):
    """Why hooks do not go by the table of a policy: what is wrong, models it does not have."""

    fault: str = ""
    lacks: tuple[str, ...] = ()


def unused(policy: str, geometries: Mapping[str, Geometry]) -> Unused:
    """Of this policy on GPUs of these models; nothing is wrong with one that is no table."""
    try:
        used = named(policy, trust=True)
    except UsageFault as fault:
        return Unused(f"{fault.cause}; {fault.remedy}")
    if not isinstance(used, Learned):
        return Unused()
    return Unused(
        lacks=tuple(name for name in sorted(geometries) if not used.serves(geometries[name]))
    )
