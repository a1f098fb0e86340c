"""A static layout of a GPU: as found, as declared, how the two differ, what to make. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm_mig.errors import BadRequest, DriverFault, NoRoom
from slurm_mig.mig.driver import COMPUTE_SLICES
from slurm_mig.mig.plan import Slot, plan, plan_at, wanted_instances
from slurm_mig.mig.request import Item, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.mig.geometry import Geometry, GpuProfile
    from slurm_mig.mig.profile import Profile


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """A GPU instance that is there or is to be; `compute` has the slices of what is in it."""

    slot: Slot
    compute: tuple[int, ...]

    @property
    def row(self) -> GpuProfile:
        """Its row of the profile table."""
        return self.slot.row

    @property
    def full(self) -> bool:
        """Whether one compute instance fills it."""
        return self.compute == (self.row.slices,)

    @property
    def kind(self) -> tuple[int, tuple[int, ...]]:
        """What it is, wherever it is: profile id, and slices in it."""
        return self.row.profile_id, tuple(sorted(self.compute))

    @property
    def key(self) -> tuple[int, tuple[int, tuple[int, ...]]]:
        """What it is and where."""
        return self.slot.placement.start, self.kind

    def __str__(self) -> str:
        return f"{self.slot}{self.inside}"

    @property
    def inside(self) -> str:
        """What is in it, unless that is one compute instance that fills it."""
        if self.full:
            return ""
        return f" with {'+'.join(f'{slices}c' for slices in self.compute) or 'nothing'} in it"


@dataclass(frozen=True, slots=True)
class DeclaredInstance:
    """An instance as a file declares it: `start` None leaves it open, `compute` None fills it."""

    profile: Profile
    start: int | None = None
    compute: tuple[int, ...] | None = None

    def resolved(self, geometry: Geometry) -> tuple[GpuProfile, tuple[int, ...]]:
        """Table row and slices inside; ProfileNotOffered, BadRequest for what cannot be."""
        row = geometry.resolve(self.profile)
        compute = (row.slices,) if self.compute is None else self.compute
        if sum(compute) > row.slices:
            raise BadRequest(
                f"{row.name} has {row.slices} compute slices, not {sum(compute)}: "
                f"compute = {[*compute]}"
            )
        return row, compute


@dataclass(frozen=True, slots=True)
class Declared:
    """The layout of one GPU: with `mig` off there are no pieces."""

    mig: bool
    pieces: tuple[DeclaredInstance, ...] = ()


def built(found: GpuInstance, geometry: Geometry) -> PlacedInstance:
    """An instance of the hardware; DriverFault for a compute profile that nobody knows."""
    row = geometry.by_id(found.profile_id)
    unknown = [item.profile_id for item in found.compute if item.profile_id not in COMPUTE_SLICES]
    if unknown:
        raise DriverFault(
            f"GPU instance {found.gi_id} has a compute instance of profile id {unknown[0]}",
            remedy="this driver has one that slurm-mig does not know",
        )
    slices = tuple(COMPUTE_SLICES[item.profile_id] for item in found.compute)
    return PlacedInstance(Slot(row, found.placement), slices)


def differences(
    gpu: Gpu, declared: Declared, there: Sequence[PlacedInstance], geometry: Geometry
) -> list[str]:
    """What is not as declared, one line each; empty when all is.

    Where the file names places they count; else only how many there are of each kind.
    """
    lines = []
    if gpu.mig_mode != declared.mig:
        lines.append(f"MIG mode is {_mode(gpu.mig_mode)}, declared {_mode(declared.mig)}")
    placed = [piece for piece in declared.pieces if piece.start is not None]
    if placed:
        wanted = {item.key: item for item in target(declared, geometry, [])}
        seen = {item.key: item for item in there}
        lines += [f"{item} is missing" for key, item in wanted.items() if key not in seen]
        lines += [f"{item} is not declared" for key, item in seen.items() if key not in wanted]
        return lines
    names: dict[tuple[int, tuple[int, ...]], str] = {}
    counts: Counter[tuple[int, tuple[int, ...]]] = Counter()
    for piece in declared.pieces:
        row, compute = piece.resolved(geometry)
        example = PlacedInstance(Slot(row, row.placements[0]), compute)
        counts[example.kind] += 1
        names[example.kind] = f"{row.name}{example.inside}"
    found = Counter(item.kind for item in there)
    names |= {item.kind: f"{item.row.name}{item.inside}" for item in there}
    lines += [
        f"{name}: {found[kind]} there, {counts[kind]} declared"
        for kind, name in names.items()
        if found[kind] != counts[kind]
    ]
    return lines


def _mode(mode: bool | None) -> str:  # noqa: FBT001
    return "on" if mode else "off"


def target(
    declared: Declared, geometry: Geometry, there: Sequence[PlacedInstance]
) -> list[PlacedInstance]:
    """Every instance of the layout with its place: as declared, or by the planner.

    Counts keep what is there already and fits. Raises ProfileNotOffered or NoRoom for a
    layout that cannot be, BadRequest for too many compute slices.
    """
    if any(piece.start is not None for piece in declared.pieces):
        return _placed_target(declared, geometry)
    wanted = [piece.resolved(geometry) for piece in declared.pieces]
    kept: list[PlacedInstance] = []
    left = list(there)
    missing = []
    for row, compute in wanted:
        kind = (row.profile_id, tuple(sorted(compute)))
        match = next((item for item in left if item.kind == kind), None)
        if match is None:
            missing.append((row, compute))
        else:
            left.remove(match)
            kept.append(match)
    try:
        return [*kept, *_planned(missing, geometry, kept)]
    except NoRoom:
        # What is kept is in the way: from an empty GPU it may go.
        return _planned(wanted, geometry, [])


def _placed_target(declared: Declared, geometry: Geometry) -> list[PlacedInstance]:
    made: list[PlacedInstance] = []
    for piece in declared.pieces:
        row, compute = piece.resolved(geometry)
        request = Request((Item(row.name, 1, row.profile_id),))
        present = [item.slot for item in made]
        (slot,) = plan_at(request, piece.start or 0, geometry, present).slots
        made.append(PlacedInstance(slot, compute))
    return made


def _planned(
    wanted: Sequence[tuple[GpuProfile, tuple[int, ...]]],
    geometry: Geometry,
    kept: Sequence[PlacedInstance],
) -> list[PlacedInstance]:
    if not wanted:
        return []
    counts = Counter(row.name for row, _ in wanted)
    request = Request(tuple(Item(name, count) for name, count in counts.items()))
    rows = [row for row, _ in wanted_instances(request, geometry)]
    slots = list(plan(request, geometry, [item.slot for item in kept]).slots)
    insides = list(wanted)
    made = []
    for row, slot in zip(rows, slots, strict=True):
        match = next(item for item in insides if item[0] == row)
        insides.remove(match)
        made.append(PlacedInstance(slot, match[1]))
    return made
