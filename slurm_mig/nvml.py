"""The Driver over pynvml, and the only module that imports pynvml.

Every NVMLError becomes a fault that says which GPU, which call, what NVML
answered and what to do. Reading ids back is the rule: nothing is computed from
placements (mig-facts.md a). Handles are fetched anew for each operation.
"""

from __future__ import annotations

from ctypes import byref, c_uint
from typing import TYPE_CHECKING, Any, Final

import pynvml  # noqa: TID251  # this is the adapter

from slurm_mig.driver import ComputeInstance, Gpu, GpuInstance
from slurm_mig.errors import (
    DriverFault,
    DriverMissing,
    GpuLost,
    InstanceBusy,
    NoRoom,
    NotPermitted,
    ProfileNotOffered,
    SlurmMigError,
)
from slurm_mig.geometry import Engines, Geometry, GpuProfile, Placement
from slurm_mig.profile import ATTRIBUTES, Profile

if TYPE_CHECKING:
    from collections.abc import Iterator

#: nvml.h: a GPU holds at most this many GPU instances, each at most this many CIs.
MAX_INSTANCES: Final = 15

#: Bound for enumerations that end with INVALID_ARGUMENT (18 profiles in nvml.h of API 13).
LAST_ENUM: Final = 64

_NOT_AVAILABLE: Final = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)

#: Attribute of each NVML_GPU_INSTANCE_PROFILE_* value, for drivers that give no name.
_ATTRIBUTE_OF_ENUM: Final = {
    pynvml.NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1: "+me",
    pynvml.NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1: "+me",
    10: "+gfx",
    11: "+gfx",
    12: "+gfx",
    13: "-me",
    14: "-me",
    15: "+me.all",
    16: "+me.all",
    17: "+gfx",
}

_ADVICE: Final[dict[int, tuple[type[SlurmMigError], str]]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        DriverMissing,
        "install the NVIDIA driver, or set `library` in the [driver] table of the config",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (DriverMissing, "load the NVIDIA kernel module"),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        DriverMissing,
        "library and kernel module differ in version: reload the module or reboot",
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (NotPermitted, "run as root"),
    pynvml.NVML_ERROR_GPU_IS_LOST: (GpuLost, "see dmesg for Xid errors; the node needs a reboot"),
    pynvml.NVML_ERROR_RESET_REQUIRED: (DriverFault, "reset the GPU (nvidia-smi --gpu-reset)"),
    pynvml.NVML_ERROR_IN_USE: (InstanceBusy, "see what holds it with `slurm-mig status`"),
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES: (NoRoom, ""),
}


class NvmlDriver:
    """One NVML session. `library` replaces what pynvml would load, when given."""

    def __init__(self, library: object | None = None) -> None:
        if pynvml._nvmlLib_refcount > 0:  # noqa: SLF001  # pynvml has no public question for it
            raise DriverFault("this process has an NVML session already; close it first")
        # pynvml keeps one library a process, and remembers function pointers of the last one.
        pynvml.nvmlLib = library
        pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001
        self._tables: dict[str, Geometry] = {}
        _call("start NVML", pynvml.nvmlInit)

    def close(self) -> None:
        """End the NVML session."""
        _call("end NVML", pynvml.nvmlShutdown)

    def driver_version(self) -> str:
        """Version of the kernel driver, as NVML prints it."""
        return str(_call("read driver version", pynvml.nvmlSystemGetDriverVersion))

    # -- GPUs ----------------------------------------------------------------

    def gpus(self) -> list[Gpu]:
        """All GPUs by device minor; raises when one of them does not answer."""
        found, faults = self.survey()
        if faults:
            raise faults[0]
        return found

    def survey(self) -> tuple[list[Gpu], list[SlurmMigError]]:
        """GPUs that answer, by device minor, and a fault for each that does not."""
        found: list[Gpu] = []
        faults: list[SlurmMigError] = []
        for index in range(_call("count GPUs", pynvml.nvmlDeviceGetCount)):
            where = f"GPU with NVML index {index}"
            try:
                device = _call("open GPU", pynvml.nvmlDeviceGetHandleByIndex, index, gpu=where)
                found.append(self._describe(device, where))
            except SlurmMigError as fault:
                faults.append(fault)
        return sorted(found, key=lambda gpu: gpu.minor), faults

    def gpu(self, uuid: str) -> Gpu:
        """One GPU, whatever the others do; GpuLost when it is not there."""
        try:
            device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):
            raise GpuLost(
                "the driver knows no GPU of that UUID",
                remedy="it fell off the bus (see dmesg) or was replaced",
                gpu=uuid,
            ) from None
        except pynvml.NVMLError as problem:
            raise _fault(problem, "open GPU", uuid) from problem
        return self._describe(device, uuid)

    def _describe(self, device: object, where: str) -> Gpu:
        uuid = str(_call("read UUID", pynvml.nvmlDeviceGetUUID, device, gpu=where))
        architecture = _call(
            "read architecture", pynvml.nvmlDeviceGetArchitecture, device, gpu=uuid
        )
        mode = self._mig_mode(device, uuid)
        return Gpu(
            uuid=uuid,
            index=_call("read index", pynvml.nvmlDeviceGetIndex, device, gpu=uuid),
            minor=_call("read minor", pynvml.nvmlDeviceGetMinorNumber, device, gpu=uuid),
            name=str(_call("read name", pynvml.nvmlDeviceGetName, device, gpu=uuid)),
            resetless=architecture >= pynvml.NVML_DEVICE_ARCH_HOPPER,
            mig_mode=None if mode is None else bool(mode[0]),
            mig_pending=None if mode is None else bool(mode[1]),
        )

    def _mig_mode(self, device: object, uuid: str) -> tuple[int, int] | None:
        try:
            current, pending = pynvml.nvmlDeviceGetMigMode(device)
        except pynvml.NVMLError_NotSupported:
            return None
        except pynvml.NVMLError as problem:
            raise _fault(problem, "read MIG mode", uuid) from problem
        return current, pending

    def set_mig_mode(self, gpu: Gpu, *, on: bool) -> Gpu:
        """Ask for MIG mode and read it back; the call's own success proves nothing.

        nvmlDeviceSetMigMode succeeds while its activation status carries the
        outcome, and the mode may still read as before (mig-facts.md b).
        """
        action = f"switch MIG mode {'on' if on else 'off'}"
        device = self._device(gpu)
        status = _call(action, pynvml.nvmlDeviceSetMigMode, device, int(on), gpu=str(gpu))
        now = self._describe(device, str(gpu))
        if status != pynvml.NVML_SUCCESS and now.mig_mode != on:
            raise _fault(pynvml.NVMLError(status), action, str(gpu))
        return now

    def persistence(self, gpu: Gpu) -> bool | None:
        """Whether the driver keeps the GPU's state without clients; None where it cannot say."""
        try:
            return bool(pynvml.nvmlDeviceGetPersistenceMode(self._device(gpu)))
        except pynvml.NVMLError_NotSupported:
            return None
        except pynvml.NVMLError as problem:
            raise _fault(problem, "read persistence mode", str(gpu)) from problem

    def processes(self, gpu: Gpu) -> list[tuple[int, int | None]]:
        """Compute processes as (pid, GPU instance id or None for the whole GPU)."""
        function = pynvml.nvmlDeviceGetComputeRunningProcesses
        found = _call("list processes", function, self._device(gpu), gpu=str(gpu))
        return [
            (
                entry.pid,
                None if entry.gpuInstanceId in (*_NOT_AVAILABLE, None) else entry.gpuInstanceId,
            )
            for entry in found
        ]

    def _device(self, gpu: Gpu) -> object:
        handle: object = _call("open GPU", pynvml.nvmlDeviceGetHandleByUUID, gpu.uuid, gpu=str(gpu))
        return handle

    # -- profile table -------------------------------------------------------

    def geometry(self, gpu: Gpu) -> Geometry:
        """The profile table with placements, read once a session; works with MIG mode off."""
        if gpu.uuid not in self._tables:
            device = self._device(gpu)
            rows = tuple(self._rows(device, gpu))
            if not rows:
                raise DriverFault("the driver lists no MIG profile for it", gpu=str(gpu))
            self._tables[gpu.uuid] = Geometry(tuple(sorted(rows, key=_table_order)))
        return self._tables[gpu.uuid]

    def _rows(self, device: object, gpu: Gpu) -> Iterator[GpuProfile]:
        for enum in range(LAST_ENUM):
            try:
                info = self._profile_info(device, enum, gpu)
            except pynvml.NVMLError_InvalidArgument:
                # Past the last one this driver knows. The binding's own count is no guide: an
                # older binding would hide the profiles of newer GPUs.
                return
            if info is None:
                continue
            places = self._placements(device, info.id, gpu)
            # A profile without a legal placement cannot be made: leave it out.
            if places:
                yield _row(info, self._name(device, info, enum, gpu), places)

    @staticmethod
    def _profile_info(device: object, enum: int, gpu: Gpu) -> Any:  # ctypes struct
        """Version 2 of the call carries the name; drivers before it only know version 1."""
        for version in (2, 1):
            try:
                return pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, enum, version)
            except pynvml.NVMLError_FunctionNotFound:
                continue
            except pynvml.NVMLError_NotSupported:
                return None
            except pynvml.NVMLError_InvalidArgument:
                raise
            except pynvml.NVMLError as problem:
                raise _fault(problem, "read MIG profiles", str(gpu)) from problem
        raise DriverFault("this driver has no MIG profile calls", gpu=str(gpu))

    @staticmethod
    def _placements(device: object, profile_id: int, gpu: Gpu) -> tuple[Placement, ...]:
        function = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
        count = c_uint(0)
        action = f"read placements of profile id {profile_id}"
        _call(action, function, device, profile_id, None, byref(count), gpu=str(gpu))
        array = (pynvml.c_nvmlGpuInstancePlacement_t * max(count.value, 1))()
        _call(action, function, device, profile_id, array, byref(count), gpu=str(gpu))
        return tuple(Placement(item.start, item.size) for item in array[: count.value])

    @staticmethod
    def _name(device: object, info: Any, enum: int, gpu: Gpu) -> Profile:
        text = getattr(info, "name", b"")
        text = text.decode() if isinstance(text, bytes) else text
        if text:
            return Profile.parse(text.removeprefix("MIG "))
        total = _call(
            "read memory size", pynvml.nvmlDeviceGetMemoryInfo, device, gpu=str(gpu)
        ).total
        return Profile(
            info.sliceCount,
            nominal_gb(info.memorySizeMB, total),
            _ATTRIBUTE_OF_ENUM.get(enum, ""),
        )

    def remaining(self, gpu: Gpu, profile_id: int) -> int | None:
        """How many more of a profile the driver says fit; None while MIG mode is off."""
        if not gpu.mig_mode:
            return None
        function = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
        return int(_call("read capacity", function, self._device(gpu), profile_id, gpu=str(gpu)))

    # -- instances -----------------------------------------------------------

    def instances(self, gpu: Gpu) -> list[GpuInstance]:
        """Every GPU instance by placement, listed per profile; none while MIG mode is off.

        A GPU instance without a compute instance has no MIG device, so walking
        MIG devices would miss it (mig-facts.md h).
        """
        if not gpu.mig_mode:
            return []
        device = self._device(gpu)
        found = [
            self._read_instance(handle, gpu)
            for row in self.geometry(gpu).profiles
            for handle in self._handles(device, row.profile_id, gpu)
        ]
        return sorted(found, key=lambda item: item.placement)

    @staticmethod
    def _handles(device: object, profile_id: int, gpu: Gpu) -> list[Any]:
        # Sized by the hardware's limit: A30 reports a wrong instanceCount (mig-facts.md h).
        array = (pynvml.c_nvmlGpuInstance_t * MAX_INSTANCES)()
        count = c_uint(MAX_INSTANCES)
        function = pynvml.nvmlDeviceGetGpuInstances
        _call("list instances", function, device, profile_id, array, byref(count), gpu=str(gpu))
        return list(array[: count.value])

    def _read_instance(self, handle: Any, gpu: Gpu) -> GpuInstance:
        info = _call("read instance", pynvml.nvmlGpuInstanceGetInfo, handle, gpu=str(gpu))
        return GpuInstance(
            gi_id=info.id,
            profile_id=info.profileId,
            placement=Placement(info.placement.start, info.placement.size),
            compute=tuple(self._compute_instances(handle, gpu)),
        )

    def _compute_instances(self, handle: Any, gpu: Gpu) -> Iterator[ComputeInstance]:
        function = pynvml.nvmlGpuInstanceGetComputeInstances
        for profile in self._ci_profiles(handle, gpu):
            array = (pynvml.c_nvmlComputeInstance_t * MAX_INSTANCES)()
            count = c_uint(MAX_INSTANCES)
            _call(
                "list compute instances",
                function,
                handle,
                profile.id,
                array,
                byref(count),
                gpu=str(gpu),
            )
            for item in array[: count.value]:
                yield self._read_compute(item, gpu)

    @staticmethod
    def _read_compute(handle: Any, gpu: Gpu) -> ComputeInstance:
        info = _call(
            "read compute instance", pynvml.nvmlComputeInstanceGetInfo, handle, gpu=str(gpu)
        )
        # The info carries the MIG device's handle: no walk over all MIG devices.
        uuid = _call("read MIG UUID", pynvml.nvmlDeviceGetUUID, info.device, gpu=str(gpu))
        return ComputeInstance(info.id, info.profileId, str(uuid))

    @staticmethod
    def _ci_profiles(handle: Any, gpu: Gpu) -> Iterator[Any]:
        function = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
        shared = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
        for enum in range(LAST_ENUM):
            try:
                yield function(handle, enum, shared, 1)
            except pynvml.NVMLError_NotSupported:
                continue
            except pynvml.NVMLError_InvalidArgument:
                return
            except pynvml.NVMLError as problem:
                raise _fault(problem, "read compute profiles", str(gpu)) from problem

    def create_gpu_instance(self, gpu: Gpu, profile_id: int, placement: Placement) -> GpuInstance:
        """Make a GPU instance exactly there; NoRoom when the driver has none."""
        place = pynvml.c_nvmlGpuInstancePlacement_t(placement.start, placement.size)
        handle = _call(
            f"create instance of profile id {profile_id} at {placement}",
            pynvml.nvmlDeviceCreateGpuInstanceWithPlacement,
            self._device(gpu),
            profile_id,
            byref(place),
            gpu=str(gpu),
        )
        return self._read_instance(handle, gpu)

    def create_compute_instance(
        self, gpu: Gpu, gi_id: int, slices: int | None = None
    ) -> ComputeInstance:
        """Make a compute instance of so many slices, or the one that fills the GPU instance.

        That one is the profile with most slices and, among those, most SMs: the
        whole of a double-memory 1g is a profile of its own (mig-facts.md a).
        Raises ProfileNotOffered when the driver has none with that many slices.
        """
        owner = self._open(gpu, gi_id)
        if owner is None:
            raise DriverFault(
                f"create compute instance: GPU instance {gi_id} is gone", gpu=str(gpu)
            )
        offered = list(self._ci_profiles(owner, gpu))
        fitting = [info for info in offered if slices in (None, info.sliceCount)]
        if not fitting:
            sizes = ", ".join(f"{info.sliceCount}c" for info in offered)
            raise ProfileNotOffered(
                f"no compute instance of {slices} slices here; offered: {sizes}", gpu=str(gpu)
            )
        chosen = max(
            fitting,
            key=lambda info: (info.sliceCount, _known(info.multiprocessorCount) or 0, info.id),
        )
        handle = _call(
            f"create compute instance in GPU instance {gi_id}",
            pynvml.nvmlGpuInstanceCreateComputeInstance,
            owner,
            chosen.id,
            gpu=str(gpu),
        )
        return self._read_compute(handle, gpu)

    def destroy_compute_instance(self, gpu: Gpu, gi_id: int, ci_id: int) -> None:
        """Destroy it; no error when it is gone already."""
        owner = self._open(gpu, gi_id)
        if owner is None:
            return
        action = f"destroy compute instance {ci_id} of GPU instance {gi_id}"
        try:
            handle = pynvml.nvmlGpuInstanceGetComputeInstanceById(owner, ci_id)
        except pynvml.NVMLError_NotFound:
            return
        except pynvml.NVMLError as problem:
            raise _fault(problem, action, str(gpu)) from problem
        _call(action, pynvml.nvmlComputeInstanceDestroy, handle, gpu=str(gpu))

    def destroy_gpu_instance(self, gpu: Gpu, gi_id: int) -> None:
        """Destroy it; no error when it is gone already."""
        handle = self._open(gpu, gi_id)
        if handle is not None:
            action = f"destroy GPU instance {gi_id}"
            _call(action, pynvml.nvmlGpuInstanceDestroy, handle, gpu=str(gpu))

    def _open(self, gpu: Gpu, gi_id: int) -> Any:  # ctypes pointer
        """A fresh handle, or None: NOT_FOUND is gone, NOT_SUPPORTED is MIG mode off."""
        try:
            return pynvml.nvmlDeviceGetGpuInstanceById(self._device(gpu), gi_id)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_NotSupported):
            return None
        except pynvml.NVMLError as problem:
            raise _fault(problem, f"open GPU instance {gi_id}", str(gpu)) from problem


def nominal_gb(memory_mib: int, total_bytes: int) -> int:
    """The GB number in a profile's name, for drivers that give no name.

    The driver names a profile by its share of the GPU's memory in eighths, times
    the GPU's whole GiB, not by the instance's own size (H200: 16.0 GiB is 18gb).
    `memory_mib` in MiB, `total_bytes` in bytes.
    """
    eighths = -(-(memory_mib << 20) * 8 // total_bytes)
    total_gib = -(-total_bytes // (1 << 30))
    # Half a GB goes up, as in C; Python's round() would take 70.5 down.
    return (eighths * total_gib + 4) // 8


def _table_order(row: GpuProfile) -> tuple[int, int, int]:
    """As `nvidia-smi mig -lgip` prints: by slices, then memory, then attribute."""
    return row.slices, row.size, ATTRIBUTES.index(row.name.attribute)


def _row(info: Any, name: Profile, places: tuple[Placement, ...]) -> GpuProfile:
    return GpuProfile(
        profile_id=info.id,
        name=name,
        slices=info.sliceCount,
        placements=places,
        max_instances=info.instanceCount,
        memory_mib=_known(info.memorySizeMB),
        multiprocessors=_known(info.multiprocessorCount),
        copy_engines=_known(info.copyEngineCount),
        engines=Engines(
            _known(info.decoderCount),
            _known(info.encoderCount),
            _known(info.jpegCount),
            _known(info.ofaCount),
        ),
        p2p=bool(info.isP2pSupported),
    )


def _known(value: int) -> int | None:
    return None if value in _NOT_AVAILABLE else value


def _call(action: str, function: Any, *arguments: object, gpu: str | None = None) -> Any:
    try:
        return function(*arguments)
    except pynvml.NVMLError as problem:
        raise _fault(problem, action, gpu) from problem


def _fault(problem: Any, action: str, gpu: str | None) -> SlurmMigError:
    kind, advice = _ADVICE.get(problem.value, (DriverFault, ""))
    return kind(f"{action}: {problem} (NVML error {problem.value})", remedy=advice, gpu=gpu)
