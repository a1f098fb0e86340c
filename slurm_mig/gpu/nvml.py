"""The Driver over pynvml, and the only module that imports pynvml.

Every NVMLError becomes a fault that says which GPU, which call, what NVML
answered and what to do. Reading ids back is the rule: nothing is computed from
placements (facts/mig.md#ids). Handles are fetched anew for each operation, but for those of a GPU
whose lock is held (`believing`).
"""

from __future__ import annotations

from contextlib import contextmanager
from ctypes import byref, c_uint
from typing import TYPE_CHECKING, Any, Final

import pynvml  # noqa: TID251  # this is the adapter

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
from slurm_mig.gpu.tables import ComputeRow, Memory
from slurm_mig.mig.driver import ComputeInstance, Gpu, GpuInstance
from slurm_mig.mig.geometry import Engines, Geometry, GpuProfile, Placement
from slurm_mig.mig.profile import ATTRIBUTES, Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from slurm_mig.gpu.tables import Tables

#: nvml.h: a GPU holds at most this many GPU instances, each at most this many CIs.
MAX_LISTED: Final = 15

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
    pynvml.NVML_ERROR_GPU_NOT_FOUND: (GpuLost, "see dmesg for Xid errors; the node needs a reboot"),
    pynvml.NVML_ERROR_IN_USE: (InstanceBusy, "see what holds it with `slurm-mig status`"),
    pynvml.NVML_ERROR_NOT_SUPPORTED: (DriverFault, "look at its MIG mode with `slurm-mig gpus`"),
}

#: What holds for every other code, also for those that the binding has no name for.
_OTHERWISE: Final = (
    DriverFault,
    "see dmesg for NVRM and Xid lines; if it comes again, reset the GPU or reboot the node",
)

#: What NVML says of an instance that another process has destroyed (facts/mig.md#calls, #bugs).
_DEAD: Final = (
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_NotFound,
    pynvml.NVMLError_NotSupported,
)

#: How often instances are listed anew when one of them went while it was read.
LOOKS: Final = 3


class _Believed:
    """What was read of a GPU whose lock is held: its handle, its instances."""

    def __init__(self) -> None:
        self.device: object | None = None
        self.instances: list[GpuInstance] | None = None

    def agrees(self, gi_id: int, found: GpuInstance | None) -> bool:
        """Whether the list shows of that id what was found by it."""
        return next((item for item in self.instances or () if item.gi_id == gi_id), None) == found


class _Session:
    """One NVML session: what is asked there, and what its refusals mean."""

    def __init__(self, library: object | None, tell: Callable[[str], None] | None) -> None:
        if pynvml._nvmlLib_refcount > 0:  # noqa: SLF001  # pynvml has no public question for it
            raise DriverFault("this process has an NVML session already; close it first")
        # pynvml keeps one library a process, and remembers function pointers of the last one.
        pynvml.nvmlLib = library
        pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001
        self._tell = tell
        self._call("start NVML", pynvml.nvmlInit)

    def close(self) -> None:
        """End the NVML session."""
        self._call("end NVML", pynvml.nvmlShutdown)

    def driver_version(self) -> str:
        """Version of the kernel driver, as NVML prints it."""
        return str(self._call("read driver version", pynvml.nvmlSystemGetDriverVersion))

    def _call(self, action: str, function: Any, *arguments: object, gpu: str | None = None) -> Any:
        """Ask NVML; what it refuses is a fault that says which call of which GPU."""
        try:
            return self._ask(action, function, *arguments, gpu=gpu)
        except pynvml.NVMLError as problem:
            raise _fault(problem, action, gpu) from problem

    def _ask(self, action: str, function: Any, *arguments: object, gpu: str | None = None) -> Any:
        """The same for callers who know what a refusal means."""
        if self._tell is None:
            return function(*arguments)
        about = f"{gpu or 'NVML'}: {action} ({function.__name__})"
        self._tell(about)
        try:
            return function(*arguments)
        finally:
            self._tell(f"what follows {about}")

    def _by_uuid(self, uuid: str, where: str) -> object:
        try:
            device: object = self._ask(
                "open GPU", pynvml.nvmlDeviceGetHandleByUUID, uuid, gpu=where
            )
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument) as problem:
            raise GpuLost(
                f"open GPU: the driver knows no GPU of that UUID (NVML error {problem.value})",
                remedy="it fell off the bus (see dmesg) or was replaced",
                gpu=where,
            ) from None
        except pynvml.NVMLError as problem:
            raise _fault(problem, "open GPU", where) from problem
        return device

    def _mig_mode(self, device: object, uuid: str) -> tuple[int, int] | None:
        # Asked again before it is believed: a GPU that seems to have no MIG is left alone, also
        # with instances on it.
        for _ in range(2):
            try:
                function = pynvml.nvmlDeviceGetMigMode
                current, pending = self._ask("read MIG mode", function, device, gpu=uuid)
            except pynvml.NVMLError_NotSupported:
                continue
            except pynvml.NVMLError as problem:
                raise _fault(problem, "read MIG mode", uuid) from problem
            return current, pending
        return None

    def _minor(self, device: object, where: str) -> int:
        function = pynvml.nvmlDeviceGetMinorNumber
        return int(self._call("read minor", function, device, gpu=where))


class NvmlDriver(_Session):
    """One NVML session. `library` replaces what pynvml would load, when given.

    `tell` hears what is asked of the driver before it is asked, so that somebody else can
    say what this process hangs in.
    """

    def __init__(
        self,
        library: object | None = None,
        tell: Callable[[str], None] | None = None,
        kept: Tables | None = None,
    ) -> None:
        """`kept` has profile tables of earlier sessions, and takes those of this one."""
        super().__init__(library, tell)
        self._memory = Memory(kept)
        self._tables, self._ci_tables = self._memory.geometries, self._memory.compute
        #: What never changes in a session, by UUID: name, minor, index and the like.
        self._facts: dict[str, dict[str, Any]] = {}
        #: What is believed of GPUs whose lock is held (`believing`), by UUID.
        self._believed: dict[str, _Believed] = {}

    def close(self) -> None:
        """End the NVML session, and keep what it has read of profile tables."""
        self._memory.keep()
        super().close()

    # -- GPUs ----------------------------------------------------------------

    def gpus(self) -> list[Gpu]:
        """All GPUs by device minor; raises when one of them does not answer."""
        found, faults = self.survey()
        if faults:
            raise faults[0]
        return found

    def survey(
        self, minors: Collection[int] | None = None
    ) -> tuple[list[Gpu], list[SlurmMigError]]:
        """GPUs that answer, by device minor, and a fault for each that does not.

        With `minors` only those, and what was met on the way to them.
        """
        found: list[Gpu] = []
        faults: list[SlurmMigError] = []
        count = self._call("count GPUs", pynvml.nvmlDeviceGetCount)
        # Mostly NVML counts as the kernel does: then none is asked in vain.
        for index in sorted(range(count), key=lambda index: index not in (minors or ())):
            where = f"GPU with NVML index {index}"
            try:
                device = self._call("open GPU", pynvml.nvmlDeviceGetHandleByIndex, index, gpu=where)
                minor = self._minor(device, where)
                if minors is None or minor in minors:
                    found.append(self._describe(device, where, minor=minor))
            except SlurmMigError as fault:
                faults.append(fault)
            if minors is not None and len(found) == len({*minors}):
                break
        return sorted(found, key=lambda gpu: gpu.minor), faults

    def gpu(self, uuid: str) -> Gpu:
        """One GPU, whatever the others do; GpuLost when it is not there."""
        return self._describe(self._by_uuid(uuid, uuid), uuid, uuid)

    @contextmanager
    def believing(self, uuid: str) -> Iterator[None]:
        """Ask once what instances a GPU has, and again after each change that is made from here.

        For who holds its lock: no other hook changes anything there. A second opinion that
        differs (`instance`) ends it, too.
        """
        self._believed[uuid] = _Believed()
        try:
            yield
        finally:
            self._believed.pop(uuid, None)

    def _doubt(self, gpu: Gpu) -> None:
        if gpu.uuid in self._believed:
            self._believed[gpu.uuid] = _Believed()

    def _describe(
        self, device: object, where: str, uuid: str = "", minor: int | None = None
    ) -> Gpu:
        uuid = uuid or str(self._call("read UUID", pynvml.nvmlDeviceGetUUID, device, gpu=where))
        mode = self._mig_mode(device, uuid)
        if uuid not in self._facts:
            self._facts[uuid] = self._read_facts(device, uuid, minor)
        return Gpu(
            uuid=uuid,
            mig_mode=None if mode is None else bool(mode[0]),
            mig_pending=None if mode is None else bool(mode[1]),
            **self._facts[uuid],
        )

    def _read_facts(self, device: object, uuid: str, minor: int | None) -> dict[str, Any]:
        function = pynvml.nvmlDeviceGetArchitecture
        architecture = self._call("read architecture", function, device, gpu=uuid)
        return {
            "index": self._call("read index", pynvml.nvmlDeviceGetIndex, device, gpu=uuid),
            "minor": self._minor(device, uuid) if minor is None else minor,
            "name": str(self._call("read name", pynvml.nvmlDeviceGetName, device, gpu=uuid)),
            "resetless": architecture >= pynvml.NVML_DEVICE_ARCH_HOPPER,
        }

    def set_mig_mode(self, gpu: Gpu, *, on: bool) -> Gpu:
        """Ask for MIG mode and read it back; the call's own success proves nothing.

        nvmlDeviceSetMigMode succeeds while its activation status carries the
        outcome, and the mode may still read as before (facts/mig.md#mode).
        """
        action = f"switch MIG mode {'on' if on else 'off'}"
        device = self._device(gpu)
        self._doubt(gpu)
        status = self._call(action, pynvml.nvmlDeviceSetMigMode, device, int(on), gpu=str(gpu))
        now = self._describe(device, str(gpu), gpu.uuid)
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
        found = self._call("list processes", function, self._device(gpu), gpu=str(gpu))
        return [
            (
                entry.pid,
                None if entry.gpuInstanceId in (*_NOT_AVAILABLE, None) else entry.gpuInstanceId,
            )
            for entry in found
        ]

    def _device(self, gpu: Gpu) -> object:
        believed = self._believed.get(gpu.uuid)
        if believed is None:
            return self._by_uuid(gpu.uuid, str(gpu))
        if believed.device is None:
            believed.device = self._by_uuid(gpu.uuid, str(gpu))
        return believed.device

    # -- profile table -------------------------------------------------------

    def memory_mib(self, gpu: Gpu) -> int | None:
        """Memory of the whole GPU in MiB; None where the driver does not say."""
        try:
            info = self._ask(
                "read memory size", pynvml.nvmlDeviceGetMemoryInfo, self._device(gpu), gpu=str(gpu)
            )
        except pynvml.NVMLError:
            return None
        return int(info.total) >> 20

    def geometry(self, gpu: Gpu) -> Geometry:
        """The profile table with placements, read once a session; works with MIG mode off."""
        if not self._memory.has(gpu.uuid, self.driver_version):
            device = self._device(gpu)
            rows = tuple(self._rows(device, gpu))
            if not rows:
                raise DriverFault(
                    "the driver lists no MIG profile for it", remedy=_OTHERWISE[1], gpu=str(gpu)
                )
            self._tables[gpu.uuid] = Geometry(tuple(sorted(rows, key=_table_order)))
            self._memory.unkept.add(gpu.uuid)
        return self._tables[gpu.uuid]

    def offered(self, gpu: Gpu) -> Sequence[GpuProfile]:
        """The profile table as far as the caller may read it.

        In MIG mode placements may be told to root alone (facts/mig.md#calls); rows have none then.
        """
        try:
            return self.geometry(gpu).profiles
        except NotPermitted:
            rows = self._rows(self._device(gpu), gpu, placed=False)
            return sorted(rows, key=_table_order)

    def _rows(self, device: object, gpu: Gpu, *, placed: bool = True) -> Iterator[GpuProfile]:
        for enum in range(LAST_ENUM):
            try:
                info = self._profile_info(device, enum, gpu)
            except pynvml.NVMLError_InvalidArgument:
                # Past the last one this driver knows. The binding's own count is no guide: an
                # older binding would hide the profiles of newer GPUs.
                return
            if info is None:
                continue
            places = self._placements(device, info.id, gpu) if placed else ()
            # A profile without a legal placement cannot be made: leave it out.
            if places or not placed:
                yield _row(info, self._name(device, info, enum, gpu), places)

    def _profile_info(self, device: object, enum: int, gpu: Gpu) -> Any:  # ctypes struct
        """The row, None where this GPU has no such profile; InvalidArgument past the last one.

        A "no" is asked for twice: a profile that is missing would hide its instances, and an
        end that is none all that follow.
        """
        past = 0
        for _ in range(2):
            try:
                return self._profile_row(device, enum, gpu)
            except pynvml.NVMLError_NotSupported:
                pass
            except pynvml.NVMLError_InvalidArgument as end:
                past, last = past + 1, end
        if past == 2:  # both times
            raise last
        return None

    def _profile_row(self, device: object, enum: int, gpu: Gpu) -> Any:  # ctypes struct
        """Version 2 of the call carries the name; drivers before it only know version 1."""
        function, action = pynvml.nvmlDeviceGetGpuInstanceProfileInfo, "read MIG profiles"
        for version in (2, 1):
            try:
                return self._ask(action, function, device, enum, version, gpu=str(gpu))
            except pynvml.NVMLError_FunctionNotFound:
                continue
            except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument):
                raise
            except pynvml.NVMLError as problem:
                raise _fault(problem, action, str(gpu)) from problem
        raise DriverFault(
            "this driver has no MIG profile calls",
            remedy="install a driver that knows MIG (R450 or later)",
            gpu=str(gpu),
        )

    def _placements(self, device: object, profile_id: int, gpu: Gpu) -> tuple[Placement, ...]:
        function = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
        count = c_uint(0)
        action = f"read placements of profile id {profile_id}"
        self._call(action, function, device, profile_id, None, byref(count), gpu=str(gpu))
        array = (pynvml.c_nvmlGpuInstancePlacement_t * max(count.value, 1))()
        self._call(action, function, device, profile_id, array, byref(count), gpu=str(gpu))
        return tuple(Placement(item.start, item.size) for item in array[: count.value])

    def _name(self, device: object, info: Any, enum: int, gpu: Gpu) -> Profile:
        text = getattr(info, "name", b"")
        text = text.decode() if isinstance(text, bytes) else text
        if text:
            return Profile.parse(text.removeprefix("MIG "))
        total = self._call(
            "read memory size", pynvml.nvmlDeviceGetMemoryInfo, device, gpu=str(gpu)
        ).total
        return Profile(
            info.sliceCount,
            nominal_gb(info.memorySizeMB, total),
            _ATTRIBUTE_OF_ENUM.get(enum, ""),
        )

    def remaining(self, gpu: Gpu, profile_id: int) -> int | None:
        """How many more of a profile the driver says fit; None where it does not say.

        Without MIG mode 580.159.04 counts the empty GPU, as nvidia-smi shows it; the header
        has NOT_SUPPORTED for that.
        """
        function, action = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity, "read capacity"
        try:
            return int(self._ask(action, function, self._device(gpu), profile_id, gpu=str(gpu)))
        except pynvml.NVMLError_NotSupported:
            return None
        except pynvml.NVMLError as problem:
            raise _fault(problem, action, str(gpu)) from problem

    # -- instances -----------------------------------------------------------

    def instances(self, gpu: Gpu) -> list[GpuInstance]:
        """Every GPU instance by placement, listed per profile; none while MIG mode is off.

        A GPU instance without a compute instance has no MIG device, so walking
        MIG devices would miss it (facts/mig.md#bugs). An instance that another process
        destroys while it is read leaves a dead handle: then the list is read again.
        """
        if not gpu.mig_mode:
            return []
        believed = self._believed.get(gpu.uuid)
        if believed is None:
            return self._look(gpu)
        if believed.instances is None:
            believed.instances = self._look(gpu)
        return list(believed.instances)

    def _look(self, gpu: Gpu) -> list[GpuInstance]:
        for looks_left in reversed(range(LOOKS)):
            try:
                return sorted(self._listed(gpu), key=lambda item: item.placement)
            except DriverFault as fault:
                if not looks_left or not isinstance(fault.__cause__, _DEAD):
                    raise
        raise AssertionError  # the last look returns or raises

    def _listed(self, gpu: Gpu) -> list[GpuInstance]:
        device = self._device(gpu)
        rows = self.geometry(gpu).profiles
        try:
            handles = [one for row in rows for one in self._handles(device, row.profile_id, gpu)]
        except DriverFault as fault:
            # Switched off since the mode was read, and with it all instances went.
            off = isinstance(fault.__cause__, pynvml.NVMLError_NotSupported)
            if off and not (self._mig_mode(device, gpu.uuid) or (0, 0))[0]:
                return []
            raise
        return [self._read_instance(handle, gpu) for handle in handles]

    def instance(self, gpu: Gpu, gi_id: int) -> GpuInstance | None:
        """A GPU instance by its id, None when the driver knows none of that id.

        The second opinion on what a list does not show.
        """
        handle = self._open(gpu, gi_id)
        found = None if handle is None else self._read_instance(handle, gpu)
        believed = self._believed.get(gpu.uuid)
        if believed and believed.instances is not None and not believed.agrees(gi_id, found):
            self._doubt(gpu)
        return found

    def compute_instance(self, gpu: Gpu, gi_id: int, ci_id: int) -> ComputeInstance | None:
        """A compute instance by its id, None when the driver knows none of that id."""
        owner = self._open(gpu, gi_id)
        handle = None if owner is None else self._open_compute(owner, ci_id, gpu)
        return None if handle is None else self._read_compute(handle, gpu)

    def _handles(self, device: object, profile_id: int, gpu: Gpu) -> list[Any]:
        # Sized by the hardware's limit: A30 reports a wrong instanceCount (facts/mig.md#bugs).
        array = (pynvml.c_nvmlGpuInstance_t * MAX_LISTED)()
        count = c_uint(MAX_LISTED)
        function = pynvml.nvmlDeviceGetGpuInstances
        self._call(
            "list instances", function, device, profile_id, array, byref(count), gpu=str(gpu)
        )
        return list(array[: count.value])

    def _read_instance(self, handle: Any, gpu: Gpu) -> GpuInstance:
        info = self._call("read instance", pynvml.nvmlGpuInstanceGetInfo, handle, gpu=str(gpu))
        return GpuInstance(
            gi_id=info.id,
            profile_id=info.profileId,
            placement=Placement(info.placement.start, info.placement.size),
            compute=tuple(self._compute_instances(handle, info.profileId, gpu)),
            fills=self._fills(handle, info.profileId, gpu),
        )

    def _fills(self, handle: Any, profile_id: int, gpu: Gpu) -> int | None:
        slices = {row.slices for row in self.geometry(gpu).profiles if row.profile_id == profile_id}
        rows = self._ci_profiles(handle, profile_id, gpu)
        whole = [row for row in rows if row.slices in slices]
        return max(whole, key=_size).profile_id if whole else None

    def _compute_instances(
        self, handle: Any, profile_id: int, gpu: Gpu
    ) -> Iterator[ComputeInstance]:
        function = pynvml.nvmlGpuInstanceGetComputeInstances
        for profile in self._ci_profiles(handle, profile_id, gpu):
            array = (pynvml.c_nvmlComputeInstance_t * MAX_LISTED)()
            count = c_uint(MAX_LISTED)
            self._call(
                "list compute instances",
                function,
                handle,
                profile.profile_id,
                array,
                byref(count),
                gpu=str(gpu),
            )
            for item in array[: count.value]:
                yield self._read_compute(item, gpu)

    def _read_compute(self, handle: Any, gpu: Gpu) -> ComputeInstance:
        info = self._call(
            "read compute instance", pynvml.nvmlComputeInstanceGetInfo, handle, gpu=str(gpu)
        )
        # The info carries the MIG device's handle: no walk over all MIG devices.
        uuid = self._call("read MIG UUID", pynvml.nvmlDeviceGetUUID, info.device, gpu=str(gpu))
        return ComputeInstance(info.id, info.profileId, str(uuid))

    def _ci_profiles(self, handle: Any, profile_id: int, gpu: Gpu) -> tuple[ComputeRow, ...]:
        """Compute-instance profiles of a GPU instance of that profile, read once a session."""
        key = (gpu.uuid, profile_id)
        if key in self._ci_tables:
            return self._ci_tables[key]
        rows = tuple(self._ci_rows(handle, gpu))
        # Kept only when whole: that of an instance which went meanwhile ends too early.
        slices = {row.slices for row in self.geometry(gpu).profiles if row.profile_id == profile_id}
        if slices & {row.slices for row in rows}:
            self._ci_tables[key] = rows
            self._memory.unkept.add(gpu.uuid)
        return rows

    def _ci_rows(self, handle: Any, gpu: Gpu) -> Iterator[ComputeRow]:
        for enum in range(LAST_ENUM):
            try:
                info = self._ci_row(handle, enum, gpu)
            except pynvml.NVMLError_InvalidArgument:
                return
            if info is not None:
                yield ComputeRow(info.id, info.sliceCount, _known(info.multiprocessorCount))

    def _ci_row(self, handle: Any, enum: int, gpu: Gpu) -> Any:  # ctypes struct
        """As `_profile_info`: a profile that is missing would hide its compute instances."""
        function = pynvml.nvmlGpuInstanceGetComputeInstanceProfileInfo
        shared, action = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED, "read compute profiles"
        refused = None
        for _ in range(2):
            try:
                return self._ask(action, function, handle, enum, shared, 1, gpu=str(gpu))
            except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_InvalidArgument) as problem:
                refused = problem
            except pynvml.NVMLError as problem:
                raise _fault(problem, action, str(gpu)) from problem
        if isinstance(refused, pynvml.NVMLError_InvalidArgument):
            raise refused
        return None

    def create_gpu_instance(self, gpu: Gpu, profile_id: int, placement: Placement) -> GpuInstance:
        """Make a GPU instance exactly there; NoRoom when the driver has none."""
        place = pynvml.c_nvmlGpuInstancePlacement_t(placement.start, placement.size)
        device = self._device(gpu)
        self._doubt(gpu)
        function = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement
        action = f"create instance of profile id {profile_id} at {placement}"
        try:
            handle = self._ask(action, function, device, profile_id, byref(place), gpu=str(gpu))
        except pynvml.NVMLError_InsufficientResources as problem:
            # Here alone it means what it says: the place is taken, or the engines are.
            raise NoRoom(
                f"{action}: {_told(problem)}",
                remedy="if nothing is listed there, an instance is stuck: reset the GPU when idle",
                gpu=str(gpu),
            ) from problem
        except pynvml.NVMLError as problem:
            raise _fault(problem, action, str(gpu)) from problem
        return self._read_instance(handle, gpu)

    def create_compute_instance(
        self, gpu: Gpu, gi_id: int, slices: int | None = None
    ) -> ComputeInstance:
        """Make a compute instance of so many slices, or the one that fills the GPU instance.

        That one is the profile with all its slices and, among those, most SMs: the
        whole of a double-memory 1g is a profile of its own (facts/mig.md#ids).
        Raises ProfileNotOffered when the driver has none with that many slices,
        DriverFault when it has none that fills the GPU instance.
        """
        owner = self._open(gpu, gi_id)
        if owner is None:
            raise DriverFault(
                f"create compute instance: GPU instance {gi_id} is gone",
                remedy="something else destroys instances: see `slurm-mig status`",
                gpu=str(gpu),
            )
        info = self._call("read instance", pynvml.nvmlGpuInstanceGetInfo, owner, gpu=str(gpu))
        offered = self._ci_profiles(owner, info.profileId, gpu)
        # A job must not get less than it pays for because the driver hides a profile.
        wanted = slices or self.geometry(gpu).by_id(info.profileId).slices
        fitting = [row for row in offered if row.slices == wanted]
        if not fitting:
            kind = DriverFault if slices is None else ProfileNotOffered
            sizes = ", ".join(f"{row.slices}c" for row in offered) or "none"
            raise kind(
                f"no compute instance of {wanted} slices here; offered: {sizes}",
                remedy=_OTHERWISE[1] if slices is None else "",
                gpu=str(gpu),
            )
        chosen = max(fitting, key=_size)
        self._doubt(gpu)
        handle = self._call(
            f"create compute instance in GPU instance {gi_id}",
            pynvml.nvmlGpuInstanceCreateComputeInstance,
            owner,
            chosen.profile_id,
            gpu=str(gpu),
        )
        return self._read_compute(handle, gpu)

    def destroy_compute_instance(self, gpu: Gpu, gi_id: int, ci_id: int) -> None:
        """Destroy it; no error when it is gone already."""

        def find() -> Any:  # ctypes pointer
            owner = self._open(gpu, gi_id)
            return None if owner is None else self._open_compute(owner, ci_id, gpu)

        action = f"destroy compute instance {ci_id} of GPU instance {gi_id}"
        self._destroy(action, pynvml.nvmlComputeInstanceDestroy, find, gpu)

    def destroy_gpu_instance(self, gpu: Gpu, gi_id: int) -> None:
        """Destroy it; no error when it is gone already."""
        action = f"destroy GPU instance {gi_id}"
        self._destroy(action, pynvml.nvmlGpuInstanceDestroy, lambda: self._open(gpu, gi_id), gpu)

    def _destroy(self, action: str, function: Any, find: Callable[[], Any], gpu: Gpu) -> None:
        handle = find()
        if handle is None:
            return
        self._doubt(gpu)
        try:
            self._ask(action, function, handle, gpu=str(gpu))
        except pynvml.NVMLError as problem:
            # Another process was faster: nothing has that id any more.
            if not (isinstance(problem, _DEAD) and find() is None):
                raise _fault(problem, action, str(gpu)) from problem

    def _open(self, gpu: Gpu, gi_id: int) -> Any:  # ctypes pointer
        """A fresh handle, or None: NOT_FOUND is gone, NOT_SUPPORTED is MIG mode off."""
        action, function = f"open GPU instance {gi_id}", pynvml.nvmlDeviceGetGpuInstanceById
        try:
            return self._ask(action, function, self._device(gpu), gi_id, gpu=str(gpu))
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_NotSupported):
            return None
        except pynvml.NVMLError as problem:
            raise _fault(problem, action, str(gpu)) from problem

    def _open_compute(self, owner: Any, ci_id: int, gpu: Gpu) -> Any:  # ctypes pointer
        action = f"open compute instance {ci_id}"
        function = pynvml.nvmlGpuInstanceGetComputeInstanceById
        try:
            return self._ask(action, function, owner, ci_id, gpu=str(gpu))
        except pynvml.NVMLError_NotFound:
            return None
        except pynvml.NVMLError as problem:
            raise _fault(problem, action, str(gpu)) from problem


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
    return row.slices, row.name.memory_gb, ATTRIBUTES.index(row.name.attribute)


def _size(row: ComputeRow) -> tuple[int, int]:
    """Of compute profiles with as many slices the larger one, by its SMs."""
    return row.multiprocessors or 0, row.profile_id


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


def _fault(problem: Any, action: str, gpu: str | None) -> SlurmMigError:
    kind, advice = _ADVICE.get(problem.value, _OTHERWISE)
    return kind(f"{action}: {_told(problem)}", remedy=advice, gpu=gpu)


def _told(problem: Any) -> str:  # an NVMLError
    return f"{problem} (NVML error {problem.value})"
