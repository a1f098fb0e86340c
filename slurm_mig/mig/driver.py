"""What the transaction needs of a GPU driver: a protocol and its values. Pure.

`nvml.py` fulfils it over pynvml. Handles never leave the adapter: a handle goes
stale when another process destroys an instance (facts/mig.md#bugs), so instances
are named by GPU UUID and id, and looked up again for every operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from contextlib import AbstractContextManager

    from slurm_mig.errors import SlurmMigError
    from slurm_mig.mig.geometry import Geometry, GpuProfile, Placement


#: Profile id of the compute instance that is the whole of a double-memory 1g (facts/mig.md#ids).
FILLS_DOUBLE_MEMORY: Final = 7

#: Slices by a compute instance's profile id (facts/mig.md#ids).
COMPUTE_SLICES: Final = {0: 1, 1: 2, 2: 3, 3: 4, 4: 7, 5: 8, 6: 6, FILLS_DOUBLE_MEMORY: 1}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU as the driver reports it.

    `index` is NVML's, `minor` that of /dev/nvidia<minor>; they may differ.
    `mig_mode` and `mig_pending` are None on a GPU without MIG. `resetless`:
    MIG mode switches without a GPU reset (Hopper and later, facts/mig.md#mode).
    """

    uuid: str
    index: int
    minor: int
    name: str
    resetless: bool
    mig_mode: bool | None
    mig_pending: bool | None

    @property
    def mig_capable(self) -> bool:
        """Whether the GPU knows MIG at all."""
        return self.mig_mode is not None

    def __str__(self) -> str:
        return f"GPU {self.minor} ({self.uuid})"


@dataclass(frozen=True, slots=True)
class ComputeInstance:
    """A compute instance that exists, with the UUID of its MIG device."""

    ci_id: int
    profile_id: int
    uuid: str


@dataclass(frozen=True, slots=True)
class GpuInstance:
    """A GPU instance that exists, whether or not it has compute instances.

    `fills` is the profile id of the compute instance that would have all of it; None where
    the driver does not say.
    """

    gi_id: int
    profile_id: int
    placement: Placement
    compute: tuple[ComputeInstance, ...]
    fills: int | None = None


class Driver(Protocol):
    """Operations on GPUs; each may raise DriverFault, GpuLost, InstanceBusy, NotPermitted."""

    def gpus(self) -> Sequence[Gpu]:
        """All GPUs, by device minor; raises when one of them does not answer."""

    def survey(
        self, minors: Collection[int] | None = None
    ) -> tuple[Sequence[Gpu], Sequence[SlurmMigError]]:
        """GPUs that answer, by device minor, and a fault for each that does not.

        With `minors` only those, and what was met on the way to them.
        """

    def believing(self, uuid: str) -> AbstractContextManager[None]:
        """Ask once what instances a GPU has, and again after each change made from here.

        For who holds its lock.
        """

    def gpu(self, uuid: str) -> Gpu:
        """One GPU, whatever the others do; GpuLost when it is not there."""

    def driver_version(self) -> str:
        """Version of the kernel driver, as NVML prints it."""

    def memory_mib(self, gpu: Gpu) -> int | None:
        """Memory of the whole GPU; None where the driver does not say."""

    def geometry(self, gpu: Gpu) -> Geometry:
        """The profile table with placements; works with MIG mode off."""

    def offered(self, gpu: Gpu) -> Sequence[GpuProfile]:
        """The profile table for everybody: rows without placements where only root is told."""

    def instances(self, gpu: Gpu) -> Sequence[GpuInstance]:
        """Every GPU instance, listed per profile, so that one without CI shows too."""

    def instance(self, gpu: Gpu, gi_id: int) -> GpuInstance | None:
        """A GPU instance by its id, None when there is none: the second opinion on a list."""

    def compute_instance(self, gpu: Gpu, gi_id: int, ci_id: int) -> ComputeInstance | None:
        """A compute instance by its id, None when there is none; the same for one of these."""

    def remaining(self, gpu: Gpu, profile_id: int) -> int | None:
        """How many more of a profile the driver says fit; None while MIG mode is off."""

    def create_gpu_instance(self, gpu: Gpu, profile_id: int, placement: Placement) -> GpuInstance:
        """Make a GPU instance exactly there; NoRoom when the driver has none."""

    def create_compute_instance(
        self, gpu: Gpu, gi_id: int, slices: int | None = None
    ) -> ComputeInstance:
        """Make a compute instance of so many slices, or the one that fills the GPU instance.

        ProfileNotOffered when the driver has none of that size.
        """

    def destroy_compute_instance(self, gpu: Gpu, gi_id: int, ci_id: int) -> None:
        """Destroy it; no error when it is gone already."""

    def destroy_gpu_instance(self, gpu: Gpu, gi_id: int) -> None:
        """Destroy it; no error when it is gone already."""

    def set_mig_mode(self, gpu: Gpu, *, on: bool) -> Gpu:
        """Ask for MIG mode; returns the GPU with the mode read back."""

    def persistence(self, gpu: Gpu) -> bool | None:
        """Whether the driver keeps the GPU's state without clients; None where it cannot say."""

    def processes(self, gpu: Gpu) -> Sequence[tuple[int, int | None]]:
        """Compute processes as (pid, GPU instance id or None for the whole GPU)."""

    def close(self) -> None:
        """End the NVML session."""
