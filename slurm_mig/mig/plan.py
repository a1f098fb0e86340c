"""Request + what is on the GPU -> Plan. Deterministic, pure, explains itself.

Policy `fits` (facts/packing.md#slots): of all legal placements take the one after which
most profiles can still start, then the one with most placements left, then the
highest slots. The driver's own default is never used: it strands large profiles.
A site may choose another (packing/policies.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import NoRoom, ProfileNotOffered
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from slurm_mig.mig.geometry import Geometry, GpuProfile, Placement
    from slurm_mig.mig.request import Request

    #: How good a choice is: by the units occupied after it and its places, in the order of the
    #: rows. The largest is taken, of equals the first.
    Rank = Callable[[int, tuple[Placement, ...]], Any]
    #: Makes the rank for a GPU, the rows to place there, and what is there already.
    Policy = Callable[[Geometry, Sequence[GpuProfile], Sequence["Slot"]], Rank]


@dataclass(frozen=True, slots=True)
class Slot:
    """One GPU instance to be made: which row of the table, where, and what is in it.

    `compute` has the slices of each compute instance; empty means one that fills it.
    """

    row: GpuProfile
    placement: Placement
    compute: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.row.name}@{self.placement.start}"


@dataclass(frozen=True, slots=True, order=True)
class Score:
    """How good a choice is; larger is better, compared field by field.

    `profiles_left`: placement classes that still have a free placement;
    `placements_left`: free placements over all classes; `starts`: chosen start
    units, so that ties go to the highest slots.
    """

    profiles_left: int
    placements_left: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The slots to carve, in the order of the request, and why these."""

    slots: tuple[Slot, ...]
    score: Score
    considered: int

    def __str__(self) -> str:
        made = ", ".join(str(slot) for slot in self.slots)
        return (
            f"{made} (best of {self.considered}: leaves {self.score.profiles_left} profiles, "
            f"{self.score.placements_left} placements)"
        )


def fits(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
    """The policy that keeps as much as possible startable."""
    del rows, present

    def rank(occupied: int, places: tuple[Placement, ...]) -> tuple[tuple[int, int], list[int]]:
        return geometry.left(occupied), sorted((place.start for place in places), reverse=True)

    return rank


def sparing(leaving: Sequence[Slot]) -> Policy:
    """As `fits`; of places that leave as much the one for which least of `leaving` has to go."""
    busy = occupied_units(leaving)

    def policy(geometry: Geometry, rows: Sequence[GpuProfile], present: Sequence[Slot]) -> Rank:
        del rows, present

        def rank(
            occupied: int, places: tuple[Placement, ...]
        ) -> tuple[tuple[int, int], int, list[int]]:
            wanted = sum((place.mask & busy).bit_count() for place in places)
            starts = sorted((place.start for place in places), reverse=True)
            return geometry.left(occupied), -wanted, starts

        return rank

    return policy


def in_the_way(
    geometry: Geometry,
    chosen: Sequence[Slot],
    staying: Sequence[Slot],
    going: Mapping[int, Sequence[Slot]],
) -> list[int]:
    """Which of the `going`, by number, have to be gone before the chosen slots can be made."""
    units = occupied_units(chosen)
    first = [number for number, slots in going.items() if occupied_units(slots) & units]
    beside = [slot for number, slots in going.items() if number not in first for slot in slots]
    rows = [slot.row for slot in (*chosen, *staying, *beside)]
    return first if _engines_allow(geometry, rows) else list(going)


def plan(
    request: Request, geometry: Geometry, present: Sequence[Slot], policy: Policy = fits
) -> Plan:
    """Choose placements for the whole request on one GPU, or for none of it.

    `present` are the instances that exist there, ours and foreign alike. Raises
    ProfileNotOffered, or NoRoom with what is taken and what would still fit.
    """
    wanted = wanted_instances(request, geometry)
    rows = [row for row, _ in wanted]
    places, considered = None, 0
    if _engines_allow(geometry, [*(slot.row for slot in present), *rows]):
        rank = policy(geometry, rows, present)
        places, considered = choose(rows, occupied_units(present), rank)
    if places is None:
        raise NoRoom(_why_not(request, geometry, present))
    slots = tuple(
        Slot(row, place, compute) for place, (row, compute) in zip(places, wanted, strict=True)
    )
    return Plan(slots, score_of(geometry, (*present, *slots), slots), considered)


def choose(
    rows: Sequence[GpuProfile], occupied: int, rank: Rank
) -> tuple[tuple[Placement, ...] | None, int]:
    """The places that rank highest, in the order of the rows, and of how many; None of none.

    Media engines are the caller's to look at: they do not depend on the places.
    """
    best: tuple[Placement, ...] | None = None
    highest: Any = None
    considered = 0
    for places, after in candidates(rows, occupied):
        considered += 1
        score = rank(after, places)
        if best is None or score > highest:
            best, highest = places, score
    return best, considered


def plan_at(request: Request, start: int, geometry: Geometry, present: Sequence[Slot]) -> Plan:
    """The plan that puts a single GPU instance at a start an administrator named.

    Raises ProfileNotOffered for a start the profile does not have, NoRoom for a
    taken one.
    """
    ((row, compute),) = wanted_instances(request, geometry)
    places = [place for place in row.placements if place.start == start]
    if not places:
        starts = ", ".join(str(place.start) for place in row.placements)
        raise ProfileNotOffered(f"{row.name} cannot start at {start}; it can at {starts}")
    slot = Slot(row, places[0], compute)
    rows = [*(item.row for item in present), row]
    if slot.placement.mask & occupied_units(present) or not _engines_allow(geometry, rows):
        raise NoRoom(f"{slot} is not free: taken {_taken(present)}")
    return Plan((slot,), score_of(geometry, (*present, slot), (slot,)), 1)


def wanted_instances(
    request: Request, geometry: Geometry
) -> list[tuple[GpuProfile, tuple[int, ...]]]:
    """The request as GPU instances: table row, and slices of the compute instances in it.

    Compute instances smaller than their GPU instance fill one after the other.
    Raises ProfileNotOffered for a profile that the table does not have.
    """
    wanted: list[tuple[GpuProfile, tuple[int, ...]]] = []
    for item in request.items:
        row = geometry.resolve(item.profile, item.profile_id)
        left, slices = item.count, item.profile.compute_slices
        while left > 0:
            inside = min(left, item.profile.per_gpu_instance)
            wanted.append((row, () if slices is None else (slices,) * inside))
            left -= inside
    return wanted


def occupied_units(present: Sequence[Slot]) -> int:
    """Bit set of the units that the instances cover."""
    mask = 0
    for slot in present:
        mask |= slot.placement.mask
    return mask


def score_of(geometry: Geometry, present: Sequence[Slot], chosen: Sequence[Slot]) -> Score:
    """Score a GPU that holds `present`, of which `chosen` are new."""
    starts = tuple(sorted((slot.placement.start for slot in chosen), reverse=True))
    return Score(*geometry.left(occupied_units(present)), starts)


def fitting(geometry: Geometry, present: Sequence[Slot]) -> dict[str, int]:
    """For each profile, how many more instances of it alone could be made now."""
    return {str(row.name): _room(row, geometry, present) for row in geometry.profiles}


def _room(row: GpuProfile, geometry: Geometry, present: Sequence[Slot]) -> int:
    """As many as units, engines and counts allow; placements of equal size, so lowest first."""
    rows = [slot.row for slot in present]
    taken = occupied_units(present)
    found = 0
    for place in sorted(row.placements):
        if not place.mask & taken and _engines_allow(geometry, [*rows, row]):
            rows.append(row)
            taken |= place.mask
            found += 1
    return found


def _engines_allow(geometry: Geometry, rows: Sequence[GpuProfile]) -> bool:
    return geometry.media_left(rows) and geometry.counts_left(rows)


def candidates(
    rows: Sequence[GpuProfile], occupied: int
) -> Iterator[tuple[tuple[Placement, ...], int]]:
    """Every legal choice of places, in the order of the rows, with the units occupied after it."""
    if len(rows) == 1:
        for place in rows[0].placements:
            mask = place.mask
            if not mask & occupied:
                yield (place,), occupied | mask
    else:
        yield from _place(rows, occupied, ())


def _place(
    rows: Sequence[GpuProfile], occupied: int, chosen: tuple[Placement, ...]
) -> Iterator[tuple[tuple[Placement, ...], int]]:
    depth = len(chosen)
    if depth == len(rows):
        yield chosen, occupied
        return
    row = rows[depth]
    # Equal instances in ascending order only: their permutations are one layout.
    floor = chosen[-1].start if chosen and rows[depth - 1] == row else -1
    for place in row.free(occupied):
        if place.start > floor:
            yield from _place(rows, occupied | place.mask, (*chosen, place))


def _why_not(request: Request, geometry: Geometry, present: Sequence[Slot]) -> str:
    room = fitting(geometry, present)
    could = " or ".join(f"{name} x{count}" for name, count in room.items() if count) or "nothing"
    return f"no placement for {request}: taken {_taken(present)}; room for {could}"


def _taken(present: Sequence[Slot]) -> str:
    ordered = sorted(present, key=lambda slot: slot.placement)
    return ", ".join(str(slot) for slot in ordered) or "nothing"
