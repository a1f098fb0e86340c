"""What fits on a GPU: placements, occupied units, layouts. Pure; no I/O.

Nothing here knows about seven slices. A GPU is a row of placement units (8 on
A100 to B300, 4 on A30, 12 on RTX PRO 6000; NVML's nvmlGpuInstancePlacement_t),
a profile may start at certain units and covers some, and two instances must not
overlap (facts/mig.md#slices). The one further limit is media: the engines of all
instances together cannot exceed those of the whole GPU, which is what makes
`+me` one per GPU and leaves only `-me` beside `+me.all`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import ProfileNotOffered
from slurm_mig.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slurm_mig.mig.profile import Profile


#: In place of a driver's id that nobody has published: good for counting, not for carving.
UNKNOWN_ID: Final = -1


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """`size` placement units from `start` (nvmlGpuInstancePlacement_t; both in units)."""

    start: int
    size: int

    @property
    def mask(self) -> int:
        """The covered units as a bit set, unit 0 in bit 0."""
        return ((1 << self.size) - 1) << self.start

    @property
    def end(self) -> int:
        """The first unit behind the placement."""
        return self.start + self.size

    def __str__(self) -> str:
        return f"{self.start}:{self.size}"


@dataclass(frozen=True, slots=True)
class Engines:
    """Media engines of an instance; None where the number is not known."""

    decoders: int | None = 0
    encoders: int | None = 0
    jpeg: int | None = 0
    ofa: int | None = 0

    def as_tuple(self) -> tuple[int | None, ...]:
        """Decoders, encoders, JPEG, OFA."""
        return (self.decoders, self.encoders, self.jpeg, self.ofa)


@dataclass(frozen=True, slots=True)
class GpuProfile:
    """One row of a GPU's profile table.

    `profile_id` is the driver's id (nvidia-smi prints it; 19, 14, 9...), not the
    NVML enum. `memory_mib` is in MiB, `slices` counts compute slices; None marks
    a number that nobody has published (facts/mig.md).
    """

    profile_id: int
    name: Profile
    slices: int
    placements: tuple[Placement, ...]
    max_instances: int
    memory_mib: int | None = None
    multiprocessors: int | None = None
    copy_engines: int | None = None
    engines: Engines = field(default_factory=Engines)
    p2p: bool = False

    @property
    def size(self) -> int:
        """Placement units that one instance covers (the same at every start)."""
        return self.placements[0].size

    def free(self, occupied: int) -> Iterator[Placement]:
        """Legal placements that touch none of the `occupied` units."""
        return (place for place in self.placements if not place.mask & occupied)


@dataclass(frozen=True)
class Geometry:
    """All profiles of one GPU, in the order of the driver's table."""

    profiles: tuple[GpuProfile, ...]

    def __post_init__(self) -> None:
        if not self.profiles or any(not row.placements for row in self.profiles):
            raise ProfileNotOffered("a geometry needs profiles, each with a placement")

    @cached_property
    def units(self) -> int:
        """Placement units of the GPU: 8, 4, 12, 2..., read off the placements."""
        return max(place.end for row in self.profiles for place in row.placements)

    @cached_property
    def whole(self) -> GpuProfile:
        """The profile with most units and engines: the whole GPU as one instance."""
        return max(self.profiles, key=lambda row: (row.size, row.slices, -row.profile_id))

    @cached_property
    def classes(self) -> tuple[tuple[Placement, ...], ...]:
        """Distinct sets of placements, small first.

        `1g.10gb` and `1g.10gb+me` share a class: for packing they are one thing.
        """
        distinct = {tuple(sorted(row.placements)) for row in self.profiles}
        return tuple(sorted(distinct, key=lambda places: (places[0].size, -len(places), places)))

    @cached_property
    def _left(self) -> dict[int, tuple[int, int]]:
        return {}

    def left(self, occupied: int) -> tuple[int, int]:
        """Classes that still have a free placement, and free placements over all classes."""
        found = self._left.get(occupied)
        if found is None:
            free = [sum(not mask & occupied for mask in masks) for masks in self._class_masks]
            found = self._left[occupied] = (sum(count > 0 for count in free), sum(free))
        return found

    @cached_property
    def _class_masks(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(place.mask for place in places) for places in self.classes)

    @cached_property
    def layout_bits(self) -> dict[tuple[int, Placement], int]:
        """A bit for each (class, placement): a layout is their sum, 0 the empty GPU."""
        pairs = [(n, place) for n, places in enumerate(self.classes) for place in places]
        return {pair: 1 << bit for bit, pair in enumerate(pairs)}

    @cached_property
    def _class_numbers(self) -> dict[int, int]:
        return {}

    def class_of(self, row: GpuProfile) -> int:
        """Index of the row's placement class in `classes`."""
        found = self._class_numbers.get(id(row))
        if found is None:
            found = self.classes.index(tuple(sorted(row.placements)))
            if any(row is known for known in self.profiles):
                self._class_numbers[id(row)] = found
        return found

    def by_id(self, profile_id: int) -> GpuProfile:
        """The row with that driver id; ProfileNotOffered names the ids there are."""
        for row in self.profiles:
            if row.profile_id == profile_id:
                return row
        known = ", ".join(f"{row.profile_id} ({row.name})" for row in self.profiles)
        raise ProfileNotOffered(f"profile id {profile_id} is not offered here; offered: {known}")

    def by_name(self, name: Profile) -> GpuProfile:
        """The row of exactly that name; ProfileNotOffered lists the names there are."""
        for row in self.profiles:
            if row.name == name:
                return row
        known = ", ".join(str(row.name) for row in self.profiles)
        raise ProfileNotOffered(f"profile {name} is not offered here; offered: {known}")

    def resolve(self, name: Profile, profile_id: int | None = None) -> GpuProfile:
        """The row that a request means, though this driver may print another name.

        Drivers round memory differently (3g.39gb and 3g.40gb; GB300 35 and 31).
        The same slices and attribute under the requested id, or with memory
        within an eighth, is the same profile; true neighbours differ by half
        (facts/mig.md#bugs).
        """
        wanted = name.gpu_instance
        for row in self.profiles:
            if row.name == wanted:
                return row
        alike = [row for row in self.profiles if _differ_in_memory_only(row.name, wanted)]
        near = [row for row in alike if row.profile_id == profile_id] or [
            row for row in alike if row.name.alike(wanted)
        ]
        return near[0] if len(near) == 1 else self.by_name(wanted)

    def find(self, text: str) -> GpuProfile:
        """A row by what an admin types: a name, with or without `c` part, or an id."""
        from slurm_mig.mig.profile import Profile

        # Python does not even read a number of thousands of digits.
        if text.isascii() and text.isdigit() and len(text) < 10:
            return self.by_id(int(text))
        return self.by_name(Profile.parse(text).gpu_instance)

    def media_left(self, rows: Iterable[GpuProfile]) -> bool:
        """Whether the media engines of these instances exist at the same time.

        A number that is not known constrains nothing: the driver decides then.
        """
        total = self.whole.engines.as_tuple()
        used = [0] * len(total)
        for row in rows:
            for kind, count in enumerate(row.engines.as_tuple()):
                used[kind] += count or 0
        return all(limit is None or use <= limit for use, limit in zip(used, total, strict=True))

    def counts_left(self, rows: Sequence[GpuProfile]) -> bool:
        """Whether no profile occurs more often than the driver's total for it.

        Only attribute profiles are bound by it: plain totals follow from the
        placements, and A30 is known to report a wrong total (facts/mig.md#bugs).
        """
        return all(
            sum(other.profile_id == row.profile_id for other in rows) <= row.max_instances
            for row in rows
            if row.name.attribute
        )


def _differ_in_memory_only(left: Profile, right: Profile) -> bool:
    return (left.gpu_slices, left.attribute) == (right.gpu_slices, right.attribute)


def layouts(geometry: Geometry) -> frozenset[tuple[tuple[int, Placement], ...]]:
    """Every placed state of an empty-to-full GPU, as sorted (class, placement) pairs.

    723 on A100/H100, 26 on A30 (facts/packing.md#weights); the empty state included.
    """
    states: set[tuple[tuple[int, Placement], ...]] = set()
    _extend(geometry, (), 0, 0, states)
    return frozenset(states)


def _extend(
    geometry: Geometry,
    placed: tuple[tuple[int, Placement], ...],
    occupied: int,
    unit: int,
    states: set[tuple[tuple[int, Placement], ...]],
) -> None:
    """Depth first over units: leave `unit` free, or start some class there."""
    if unit == geometry.units:
        states.add(placed)
        return
    _extend(geometry, placed, occupied, unit + 1, states)
    for number, places in enumerate(geometry.classes):
        for place in places:
            if place.start == unit and not place.mask & occupied:
                grown = (*placed, (number, place))
                _extend(geometry, grown, occupied | place.mask, unit + 1, states)


def feasible_multisets(geometry: Geometry) -> frozenset[tuple[int, ...]]:
    """Instance counts per class that have a layout; 78 on A100/H100, 10 on A30."""
    counts = set()
    for state in layouts(geometry):
        row = [0] * len(geometry.classes)
        for number, _ in state:
            row[number] += 1
        counts.add(tuple(row))
    return frozenset(counts)
