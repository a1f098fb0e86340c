"""One simulated GPU: its MIG state and the rules by which hardware refuses.

Rules and ids: facts/mig.md#ids, #mode, #calls (codes), #slices (placements).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator.codes import (
    IN_USE,
    INSUFFICIENT_RESOURCES,
    INVALID_ARGUMENT,
    NOT_FOUND,
    NOT_SUPPORTED,
    Refused,
)
from slurm_mig.values import asdict, dataclass, field

if TYPE_CHECKING:
    from slurm_mig.mig.geometry import Geometry, GpuProfile

MAX_GPU_INSTANCES: Final = 8
MAX_COMPUTE_INSTANCES: Final = 8
#: Largest GPU instance id (facts/mig.md#ids).
MAX_ID: Final = 14

#: NVML enum of compute-instance profiles by slice count; 7 is 1_SLICE_REV1.
CI_ENUM_BY_SLICES: Final = {1: 0, 2: 1, 3: 2, 4: 3, 8: 5, 6: 6, 7: 4}
CI_ENUM_REV1: Final = 7

#: Start units in the order the driver's default was seen to fill them (facts/mig.md#ids).
DEFAULT_ORDER_OF_SEVEN: Final = {1: (6, 4, 5, 0, 1, 2, 3), 2: (4, 0, 2), 4: (4, 0), 8: (0,)}


@dataclass(slots=True)
class SimCompute:
    """A compute instance; `start` and `size` in compute slices of its GPU instance."""

    ci_id: int
    profile_id: int
    start: int
    size: int
    serial: int


@dataclass(slots=True)
class SimInstance:
    """A GPU instance; `serial` tells a recreated one from a dead handle's."""

    gi_id: int
    profile_id: int
    start: int
    size: int
    serial: int
    compute: list[SimCompute] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CiProfile:
    """A compute-instance profile of a GPU instance."""

    profile_id: int
    slices: int
    count: int
    multiprocessors: int | None


@dataclass(slots=True)
class Board:
    """State of one GPU. `busy_gpu` tells whether processes use the GPU as a whole."""

    geometry: Geometry
    uuid: str
    mirrored: bool
    resetless: bool
    mig_current: bool = False
    mig_pending: bool = False
    lost: bool = False
    serial: int = 0
    instances: list[SimInstance] = field(default_factory=list)

    # -- state file ----------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """What the state file keeps: everything but the fixed facts of the board."""
        keep = ("mig_current", "mig_pending", "lost", "serial")
        data = {name: getattr(self, name) for name in keep}
        return data | {"instances": [asdict(item) for item in self.instances]}

    def load(self, data: dict[str, Any]) -> None:
        """The inverse of `to_dict`."""
        for name in ("mig_current", "mig_pending", "lost", "serial"):
            setattr(self, name, data[name])
        self.instances = [
            SimInstance(**row | {"compute": [SimCompute(**item) for item in row["compute"]]})
            for row in data["instances"]
        ]

    # -- identity ------------------------------------------------------------

    def gi_id(self, placement: Placement) -> int:
        """The id the hardware gives: a binary tree over memory, in one of two orders."""
        parts, rest = divmod(self.geometry.units, placement.size)
        if rest or parts & (parts - 1):
            # No tree of halves: nobody knows the ids of such a GPU, so the lowest that is free.
            taken = {item.gi_id for item in self.instances}
            return next(number for number in range(1, MAX_ID + 1) if number not in taken)
        index = placement.start // placement.size
        if self.mirrored and parts > 1:
            index ^= parts // 2
        return parts - 1 + index

    def mig_uuid(self, instance: SimInstance, compute: SimCompute) -> str:
        """Same GPU, GI id and engine give the same UUID, version 5 (facts/mig.md#ids)."""
        # Not by Python's uuid, whose loading would count as a hook's.
        from _sha1 import sha1  # type: ignore[import-not-found]

        root = bytes.fromhex(self.uuid.removeprefix("GPU-").replace("-", ""))
        name = f"{instance.gi_id}/{instance.start + compute.start}"
        made = bytearray(sha1(root + name.encode()).digest()[:16])
        made[6], made[8] = made[6] & 0x0F | 0x50, made[8] & 0x3F | 0x80
        text = made.hex()
        parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        return f"MIG-{'-'.join(parts)}"

    # -- GPU instances -------------------------------------------------------

    def row(self, profile_id: int) -> GpuProfile:
        """The profile row; the driver answers an id it lacks with INVALID_ARGUMENT."""
        for row in self.geometry.profiles:
            if row.profile_id == profile_id:
                return row
        raise Refused(INVALID_ARGUMENT)

    def occupied(self) -> int:
        """Bit set of taken units."""
        mask = 0
        for item in self.instances:
            mask |= Placement(item.start, item.size).mask
        return mask

    def instance(self, gi_id: int) -> SimInstance:
        """The instance with that id, NOT_FOUND else."""
        for item in self.instances:
            if item.gi_id == gi_id:
                return item
        raise Refused(NOT_FOUND)

    def capacity(self, profile_id: int) -> int:
        """How many more instances of a profile fit, placed one after another."""
        row = self.row(profile_id)
        rows = [self.row(item.profile_id) for item in self.instances]
        occupied, count = self.occupied(), 0
        # Taken from the top: 1g-double and 2g cannot be counted by free units alone.
        for place in sorted(row.placements, reverse=True):
            if place.mask & occupied or not self._engines_allow([*rows, row]):
                continue
            occupied |= place.mask
            rows.append(row)
            count += 1
        return min(count, MAX_GPU_INSTANCES - len(self.instances))

    def _engines_allow(self, rows: list[GpuProfile]) -> bool:
        return self.geometry.media_left(rows) and self.geometry.counts_left(rows)

    def create(self, profile_id: int, wanted: Placement | None, *, busy: bool) -> SimInstance:
        """Create a GPU instance; `busy`: something uses the unpartitioned GPU."""
        if not self.mig_current:
            raise Refused(NOT_SUPPORTED)
        row = self.row(profile_id)
        if wanted is not None and wanted not in row.placements:
            raise Refused(INVALID_ARGUMENT)
        if busy and not self.instances:
            # Creating the first instance is when the driver really partitions.
            raise Refused(IN_USE)
        rows = [self.row(item.profile_id) for item in self.instances]
        if len(rows) >= MAX_GPU_INSTANCES or not self._engines_allow([*rows, row]):
            raise Refused(INSUFFICIENT_RESOURCES)
        return self._add(row, wanted or self._default(row))

    def _default(self, row: GpuProfile) -> Placement:
        order = DEFAULT_ORDER_OF_SEVEN.get(row.size, ()) if self.geometry.units == 8 else ()
        if row.size == 2 and row.slices == 1:
            order = (6, 4, 0, 2)
        places = {place.start: place for place in row.placements}
        for start in order or sorted(places):
            if start in places and not places[start].mask & self.occupied():
                return places[start]
        raise Refused(INSUFFICIENT_RESOURCES)

    def _add(self, row: GpuProfile, place: Placement) -> SimInstance:
        if place.mask & self.occupied():
            raise Refused(INSUFFICIENT_RESOURCES)
        self.serial += 1
        made = SimInstance(self.gi_id(place), row.profile_id, place.start, place.size, self.serial)
        self.instances.append(made)
        return made

    def destroy(self, gi_id: int, *, busy: bool) -> None:
        """Destroy a GPU instance that has no compute instance and no client."""
        item = self.instance(gi_id)
        if item.compute or busy:
            raise Refused(IN_USE)
        self.instances.remove(item)

    # -- compute instances ---------------------------------------------------

    def ci_profiles(self, instance: SimInstance) -> dict[int, CiProfile]:
        """Compute-instance profiles by NVML enum (equal to the id; facts/mig.md#ids).

        SM counts of compute instances smaller than their GPU instance were not
        published: None.
        """
        row = self.row(instance.profile_id)
        found = {
            enum: CiProfile(
                enum,
                slices,
                row.slices // slices,
                row.multiprocessors if slices == row.slices else None,
            )
            for slices, enum in self._ci_enums().items()
            if slices <= row.slices
            and row.slices in self._slice_counts()
            and slices in self._slice_counts()
        }
        if row.slices == 1 and row.size > self._smallest():
            # The whole of a double-memory instance is REV1; plain 1c leaves SMs unused.
            found[CI_ENUM_REV1] = CiProfile(CI_ENUM_REV1, 1, 1, row.multiprocessors)
            found[0] = CiProfile(0, 1, 1, None)
        return found

    def _ci_enums(self) -> dict[int, int]:
        """Slices -> NVML enum; for a count that no GPU had so far an enum of one not here."""
        here = self._slice_counts()
        free = [enum for slices, enum in CI_ENUM_BY_SLICES.items() if slices not in here]
        new = sorted(here - CI_ENUM_BY_SLICES.keys())
        return CI_ENUM_BY_SLICES | dict(zip(new, free, strict=False))

    def _slice_counts(self) -> set[int]:
        return {row.slices for row in self.geometry.profiles}

    def _smallest(self) -> int:
        return min(row.size for row in self.geometry.profiles)

    def ci_capacity(self, instance: SimInstance, profile_id: int) -> int:
        """How many more compute instances of a profile fit into the GPU instance."""
        profile = self._ci_profile(instance, profile_id)
        row = self.row(instance.profile_id)
        if profile.profile_id == CI_ENUM_REV1:
            return 0 if instance.compute else 1
        free = row.slices - sum(item.size for item in instance.compute)
        return min(free // profile.slices, MAX_COMPUTE_INSTANCES - len(instance.compute))

    def _ci_profile(self, instance: SimInstance, profile_id: int) -> CiProfile:
        profile = self.ci_profiles(instance).get(profile_id)
        if profile is None:
            raise Refused(NOT_SUPPORTED)
        return profile

    def create_compute(self, instance: SimInstance, profile_id: int) -> SimCompute:
        """Create a compute instance in the lowest free slices; its id is the lowest free."""
        profile = self._ci_profile(instance, profile_id)
        if self.ci_capacity(instance, profile_id) < 1:
            raise Refused(INSUFFICIENT_RESOURCES)
        slices = self.row(instance.profile_id).slices
        taken = {
            unit for item in instance.compute for unit in range(item.start, item.start + item.size)
        }
        for start in range(slices - profile.slices + 1):
            if not taken & set(range(start, start + profile.slices)):
                break
        else:
            raise Refused(INSUFFICIENT_RESOURCES)
        ids = {item.ci_id for item in instance.compute}
        ci_id = next(number for number in range(MAX_COMPUTE_INSTANCES) if number not in ids)
        self.serial += 1
        made = SimCompute(ci_id, profile_id, start, profile.slices, self.serial)
        instance.compute.append(made)
        return made

    def compute(self, instance: SimInstance, ci_id: int) -> SimCompute:
        """The compute instance with that id, NOT_FOUND else."""
        for item in instance.compute:
            if item.ci_id == ci_id:
                return item
        raise Refused(NOT_FOUND)

    def destroy_compute(self, instance: SimInstance, ci_id: int, *, busy: bool) -> None:
        """Destroy a compute instance that no client uses."""
        item = self.compute(instance, ci_id)
        if busy:
            raise Refused(IN_USE)
        instance.compute.remove(item)

    # -- MIG mode ------------------------------------------------------------

    def set_mode(self, on: bool, *, busy: bool) -> int:  # noqa: FBT001  # NVML's own argument
        """Switch MIG mode; returns the activation status, which is not an error."""
        if not on and self.instances:
            return IN_USE
        self.mig_pending = on
        if busy and on != self.mig_current:
            # Ampere keeps the wish until a reset; later parts keep nothing.
            self.mig_pending = on if not self.resetless else self.mig_current
            return IN_USE
        self.mig_current = on
        return 0

    def restart(self, *, power: bool) -> None:
        """Driver unload, or reboot when `power`: instances go; the mode may stay.

        Ampere keeps MIG mode in its InfoROM; on Hopper and later it lives as
        long as the driver stays loaded.
        """
        self.instances.clear()
        if self.resetless:
            self.mig_pending = False
        self.mig_current = self.mig_pending
        if power:
            self.lost = False


def sorted_devices(board: Board) -> list[tuple[SimInstance, SimCompute]]:
    """MIG devices in the order of their index: ascending GI id, then CI id."""
    return [
        (item, compute)
        for item in sorted(board.instances, key=lambda gi: gi.gi_id)
        for compute in sorted(item.compute, key=lambda ci: ci.ci_id)
    ]
