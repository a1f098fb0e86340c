"""The simulated libnvidia-ml.so.1: C functions over the state of a `Machine`.

`Library()` stands where pynvml keeps the result of `CDLL("libnvidia-ml.so.1")`.
Every function is a real C function pointer (ctypes callback): pynvml passes its
own structs, pointers and integers, and finds the answers in them.

Which call needs root and which code it answers: facts/mig.md#calls. Numbers that
were never published are answered as NVML_VALUE_NOT_AVAILABLE.
"""

from __future__ import annotations

import os
import re
import time
import traceback
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_int,
    c_uint,
    c_void_p,
    cast,
    create_string_buffer,
    memmove,
    sizeof,
)
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator import abi, codes, faults
from slurm_mig.simulator.board import sorted_devices
from slurm_mig.simulator.codes import Refused
from slurm_mig.simulator.machine import OPERATIONS, Machine
from slurm_mig.simulator.signatures import UNTOLD, python_type, words_of
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from slurm_mig.mig.geometry import GpuProfile
    from slurm_mig.simulator.board import Board, CiProfile, SimCompute, SimInstance

_ARCHITECTURES: Final = {"Ampere": 7, "Hopper": 9, "Blackwell": 10}
#: Profile enums and ids that driver 580.159.04 knows, read on an H100: past the last enum and
#: for any other id it answers INVALID_ARGUMENT, and for an id of other GPUs NOT_FOUND.
_GI_ENUM_COUNT: Final = 17
_KNOWN_IDS: Final = frozenset(
    (0, 5, 6, 9, 10, 14, 15, 19, 20, 21, 32, 35, 38, 47, 48, 64, 65, 66, 67)
)
#: Ids of other GPUs from here on have no placement there; those below are refused.
_VARIANT_IDS: Final = 32
_CI_ENUM_COUNT: Final = 9
MESSAGES: Final = {
    codes.SUCCESS: b"Success",
    codes.UNINITIALIZED: b"Uninitialized",
    codes.INVALID_ARGUMENT: b"Invalid Argument",
    codes.NOT_SUPPORTED: b"Not Supported",
    codes.NO_PERMISSION: b"Insufficient Permissions",
    codes.NOT_FOUND: b"Not Found",
    codes.INSUFFICIENT_SIZE: b"Insufficient Size",
    codes.DRIVER_NOT_LOADED: b"Driver Not Loaded",
    codes.GPU_IS_LOST: b"GPU is lost",
    codes.RESET_REQUIRED: b"GPU requires restart",
    codes.IN_USE: b"In use by another client",
    codes.INSUFFICIENT_RESOURCES: b"Insufficient Resources",
    codes.ARGUMENT_VERSION_MISMATCH: b"Argument version mismatch",
    codes.UNKNOWN: b"Unknown Error",
}
#: What several functions share. Simulated processes compute, without MPS.
_METHODS: Final = {
    "nvmlInit_v2": "init",
    "nvmlInitWithFlags": "init",
    "nvmlDeviceGetGraphicsRunningProcesses_v3": "no_processes",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": "no_processes",
    **dict.fromkeys(UNTOLD, "untold"),
}
_LATENCY_OF: Final = {call: name for name, calls in OPERATIONS.items() for call in calls}


@dataclass(frozen=True, slots=True)
class Handle:
    """What an opaque pointer stands for; serials tell a dead instance from its heir."""

    gpu: int
    gi_id: int | None = None
    gi_serial: int = 0
    ci_id: int | None = None
    ci_serial: int = 0


class Library:
    """One process's view of the machine, as `CDLL` would give it."""

    def __init__(self, root: Path) -> None:
        self._machine = Machine(root)
        # Here, for no exception gets out of a C function.
        self._machine.check()
        self._handles: list[Handle] = []
        self._places: dict[Handle, int] = {}
        self._sessions = 0
        self._pointers: dict[str, Any] = {}
        # nvmlErrorString hands out addresses: the texts must stay where they are.
        self._texts = {code: create_string_buffer(text) for code, text in MESSAGES.items()}

    def __getattr__(self, name: str) -> Any:  # a C function pointer
        """The C function of that name; AttributeError for one this library lacks."""
        if name not in self._pointers:
            kinds = [python_type(word) for word in words_of(name)]
            result = c_void_p if name == "nvmlErrorString" else c_int
            prototype = CFUNCTYPE(result, *kinds)
            self._pointers[name] = prototype(self._guarded(name))
        return self._pointers[name]

    def _guarded(self, name: str) -> Callable[..., int]:
        function: Callable[..., int] = getattr(self, f"_{_METHODS.get(name, name)}")
        if name in ("nvmlErrorString", "nvmlShutdown"):
            return function

        def call(*arguments: Any) -> int:
            effects = self._machine.faults.effects(name)
            faults.act_before(effects)
            for index in faults.lost(effects):
                self._machine.lose(index)
            if delay := self._machine.latency_ms.get(_LATENCY_OF.get(name, "")):
                time.sleep(delay / 1000)
            try:
                code = self._answer(name, function, arguments, effects)
            except Refused as refusal:
                code = refusal.code
            except Exception:  # noqa: BLE001  # ctypes would turn an exception into SUCCESS
                traceback.print_exc()
                code = codes.UNKNOWN
            faults.act_after(effects)
            return code

        return call

    def _answer(
        self,
        name: str,
        function: Callable[..., int | None],
        arguments: Sequence[Any],
        effects: list[str],
    ) -> int:
        forced = faults.code_of(effects, "error")
        if forced is not None:
            return forced
        if self._sessions == 0 and not name.startswith("nvmlInit"):
            return codes.UNINITIALIZED
        activation = faults.code_of(effects, "activation")
        if activation is not None and name == "nvmlDeviceSetMigMode":
            _write_uint(arguments[-1], activation)
            return codes.SUCCESS
        if "lie" in effects:
            return codes.SUCCESS
        return function(*arguments) or codes.SUCCESS

    # -- session -------------------------------------------------------------

    def _init(self, *_flags: int) -> None:
        self._sessions += 1

    def _nvmlShutdown(self) -> int:
        if self._sessions == 0:
            return codes.UNINITIALIZED
        self._sessions -= 1
        return codes.SUCCESS

    def _nvmlErrorString(self, code: int) -> int:
        text = self._texts.get(code, self._texts[codes.UNKNOWN])
        return cast(text, c_void_p).value or 0

    def _nvmlSystemGetDriverVersion(self, out: int, size: int) -> None:
        _write_text(out, size, self._machine.driver)

    def _nvmlSystemGetNVMLVersion(self, out: int, size: int) -> None:
        _write_text(out, size, f"13.{self._machine.driver}")

    def _untold(self, *arguments: Any) -> int:
        if len(arguments) > 1:  # the first is a device
            self._live(self._handle(arguments[0]).gpu)
        return codes.NOT_SUPPORTED

    # -- devices -------------------------------------------------------------

    def _nvmlDeviceGetCount_v2(self, out: int) -> None:
        _write_uint(out, len(self._machine.gpus))

    def _nvmlDeviceGetHandleByIndex_v2(self, index: int, out: int) -> None:
        if index >= len(self._machine.gpus):
            raise Refused(codes.INVALID_ARGUMENT)
        self._live(index)
        self._write_handle(out, Handle(index))

    def _nvmlDeviceGetHandleByUUID(self, text: bytes, out: int) -> None:
        wanted = text.decode("ascii", "replace")
        for index, facts in enumerate(self._machine.gpus):
            if facts["uuid"] == wanted:
                self._live(index)
                return self._write_handle(out, Handle(index))
            board = self._machine.board(index)
            for gi, ci in sorted_devices(board):
                if board.mig_uuid(gi, ci) == wanted:
                    return self._write_handle(out, _mig_handle(index, gi, ci))
        raise Refused(codes.NOT_FOUND)

    def _nvmlDeviceGetHandleByPciBusId_v2(self, text: bytes, out: int) -> None:
        index = _at_bus_id(text.decode("ascii", "replace"))
        if index not in range(len(self._machine.gpus)):
            raise Refused(codes.NOT_FOUND)
        return self._write_handle(out, Handle(index))

    def _nvmlDeviceGetName(self, device: int, out: int, size: int) -> None:
        handle = self._handle(device)
        name = self._machine.gpus[handle.gpu]["name"]
        if handle.gi_id is not None:
            board, instance, _ = self._mig(device)
            name = f"{name} MIG {board.row(instance.profile_id).name}"
        _write_text(out, size, name)

    def _nvmlDeviceGetUUID(self, device: int, out: int, size: int) -> None:
        handle = self._handle(device)
        if handle.ci_id is None:
            return _write_text(out, size, self._machine.gpus[handle.gpu]["uuid"])
        board, instance, compute = self._mig(device)
        return _write_text(out, size, board.mig_uuid(instance, compute))

    def _nvmlDeviceGetIndex(self, device: int, out: int) -> None:
        _write_uint(out, self._gpu(device))

    def _nvmlDeviceGetMinorNumber(self, device: int, out: int) -> None:
        _write_uint(out, self._machine.gpus[self._gpu(device)]["minor"])

    def _nvmlDeviceGetArchitecture(self, device: int, out: int) -> None:
        _write_uint(out, _ARCHITECTURES[self._machine.gpus[self._gpu(device)]["architecture"]])

    def _nvmlDeviceGetCudaComputeCapability(self, device: int, major: int, minor: int) -> None:
        text = self._machine.gpus[self._gpu(device)]["compute_capability"]
        for out, part in zip((major, minor), text.split("."), strict=True):
            _write_uint(out, int(part))

    def _nvmlDeviceGetPciInfo_v3(self, device: int, out: int) -> None:
        index = self._gpu(device)
        info = abi.PciInfo(
            busIdLegacy=_bus_id(index)[4:].encode(),
            bus=index + 1,
            pciDeviceId=self._machine.gpus[index]["pci_device_id"],
            busId=_bus_id(index).encode(),
        )
        _write_struct(out, info)

    def _nvmlDeviceGetMemoryInfo(self, device: int, out: int) -> None:
        size = self._memory(device)
        _write_struct(out, abi.Memory(size, size, 0))

    def _nvmlDeviceGetMemoryInfo_v2(self, device: int, out: int) -> None:
        _check_version(out, abi.MemoryV2)
        size = self._memory(device)
        _write_struct(out, abi.MemoryV2(_read_uint(out), size, 0, size, 0))

    def _memory(self, device: int) -> int:
        """Bytes of a GPU or MIG device; what its processes use of it is not simulated."""
        handle = self._handle(device)
        if handle.gi_id is None:
            return _bytes(self._machine.gpus[handle.gpu]["total_memory_mib"])
        board, instance, _ = self._mig(device)
        return _bytes(board.row(instance.profile_id).memory_mib)

    def _nvmlDeviceGetBAR1MemoryInfo(self, device: int, out: int) -> None:
        handle = self._handle(device)
        size = _assumed_bar1(_bytes(self._machine.gpus[handle.gpu]["total_memory_mib"]))
        if handle.gi_id is not None:
            board, instance, _ = self._mig(device)
            size = size * instance.size // board.geometry.units
        _write_struct(out, abi.Memory(size, size, 0))

    def _nvmlDeviceGetAttributes_v2(self, device: int, out: int) -> None:
        if self._handle(device).gi_id is None:
            raise Refused(codes.NOT_SUPPORTED)
        board, instance, compute = self._mig(device)
        row = board.row(instance.profile_id)
        ci = board.ci_profiles(instance)[compute.profile_id]
        decoders, encoders, jpeg, ofa = row.engines.as_tuple()
        attributes = abi.Attributes(
            _or_na(ci.multiprocessors),
            *map(_or_na, (row.copy_engines, decoders, encoders, jpeg, ofa)),
            row.slices,
            ci.slices,
            codes.NOT_AVAILABLE_64 if row.memory_mib is None else row.memory_mib,
        )
        _write_struct(out, attributes)

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, device: int, count: int, out: int) -> int:
        handle = self._handle(device)
        found = [
            (pid, gi, ci) for pid, gi, ci in self._clients(handle.gpu) if handle.gi_id in (None, gi)
        ]
        room = _read_uint(count)
        _write_uint(count, len(found))
        if room < len(found):
            return codes.INSUFFICIENT_SIZE
        for place, (pid, gi, ci) in enumerate(found):
            nobody = codes.NOT_AVAILABLE_32
            info = abi.ProcessInfo(
                pid, 0, nobody if gi is None else gi, nobody if ci is None else ci
            )
            _write_struct(out + place * sizeof(abi.ProcessInfo), info)
        return codes.SUCCESS

    def _no_processes(self, device: int, count: int, _out: int) -> None:
        self._handle(device)
        _write_uint(count, 0)

    # -- MIG mode and devices ------------------------------------------------

    def _nvmlDeviceGetMigMode(self, device: int, current: int, pending: int) -> None:
        board = self._live(self._gpu(device))
        _write_uint(current, int(board.mig_current))
        _write_uint(pending, int(board.mig_pending))

    def _nvmlDeviceGetPersistenceMode(self, device: int, mode: int) -> None:
        self._live(self._gpu(device))
        _write_uint(mode, int(self._machine.tree.persistence))

    def _nvmlDeviceSetMigMode(self, device: int, mode: int, status: int) -> None:
        self._root()
        if mode not in (0, 1):
            raise Refused(codes.INVALID_ARGUMENT)
        index = self._gpu(device)
        self._live(index)
        busy = any(True for _ in self._clients(index))
        with self._machine.change(index) as board:
            _write_uint(status, board.set_mode(bool(mode), busy=busy))

    def _nvmlDeviceGetMaxMigDeviceCount(self, device: int, out: int) -> None:
        board = self._live(self._gpu(device))
        limit = min(board.geometry.units, max(row.slices for row in board.geometry.profiles))
        _write_uint(out, limit if board.mig_current else 0)

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, device: int, place: int, out: int) -> None:
        index = self._gpu(device)
        devices = sorted_devices(self._live(index))
        if place >= len(devices):
            raise Refused(codes.NOT_FOUND)
        self._write_handle(out, _mig_handle(index, *devices[place]))

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: int, out: int) -> None:
        self._mig(device)
        self._write_handle(out, Handle(self._handle(device).gpu))

    def _nvmlDeviceIsMigDeviceHandle(self, device: int, out: int) -> None:
        _write_uint(out, int(self._handle(device).ci_id is not None))

    def _nvmlDeviceGetGpuInstanceId(self, device: int, out: int) -> None:
        _write_uint(out, self._mig(device)[1].gi_id)

    def _nvmlDeviceGetComputeInstanceId(self, device: int, out: int) -> None:
        _write_uint(out, self._mig(device)[2].ci_id)

    # -- GPU instances -------------------------------------------------------

    def _nvmlDeviceGetGpuInstanceProfileInfo(self, device: int, enum: int, out: int) -> None:
        row = self._profile(device, enum)
        _write_struct(out, _fill_gi_profile(abi.GpuInstanceProfileInfo(), row))

    def _nvmlDeviceGetGpuInstanceProfileInfoV(self, device: int, enum: int, out: int) -> None:
        _check_version(out, abi.GpuInstanceProfileInfoV2)
        self._write_gi_profile_v2(out, self._profile(device, enum))

    def _nvmlDeviceGetGpuInstanceProfileInfoByIdV(self, device: int, ident: int, out: int) -> None:
        _check_version(out, abi.GpuInstanceProfileInfoV2)
        board = self._live(self._gpu(device))
        if _elsewhere(board, ident):
            raise Refused(codes.NOT_FOUND)
        self._write_gi_profile_v2(out, board.row(ident))

    @staticmethod
    def _write_gi_profile_v2(out: int, row: GpuProfile) -> None:
        # The driver leaves no version in its answer (seen on an H100, 580.159.04).
        info = abi.GpuInstanceProfileInfoV2(name=f"MIG {row.name}".encode())
        _write_struct(out, _fill_gi_profile(info, row))

    def _profile(self, device: int, enum: int) -> GpuProfile:
        if enum >= _GI_ENUM_COUNT:
            raise Refused(codes.INVALID_ARGUMENT)
        index = self._gpu(device)
        board = self._live(index)
        for value, profile_id in self._machine.gpus[index]["enums"]:
            if value == enum:
                return board.row(profile_id)
        raise Refused(codes.NOT_SUPPORTED)

    def _nvmlDeviceGetGpuInstancePossiblePlacements_v2(
        self, device: int, profile_id: int, out: int | None, count: int
    ) -> int:
        board = self._seen(self._gpu(device))
        rows = [] if _without_place(board, profile_id) else [board.row(profile_id)]
        places = [
            abi.Placement(place.start, place.size) for row in rows for place in row.placements
        ]
        if out is None:
            _write_uint(count, len(places))
            return codes.SUCCESS
        return _write_array(out, count, places)

    def _nvmlDeviceGetGpuInstanceRemainingCapacity(
        self, device: int, profile_id: int, out: int
    ) -> None:
        board = self._seen(self._gpu(device))
        none = _without_place(board, profile_id)
        _write_uint(out, 0 if none else board.capacity(profile_id))

    def _nvmlDeviceCreateGpuInstance(self, device: int, profile_id: int, out: int) -> None:
        self._create(device, profile_id, None, out)

    def _nvmlDeviceCreateGpuInstanceWithPlacement(
        self, device: int, profile_id: int, place: int, out: int
    ) -> None:
        wanted = cast(place, POINTER(abi.Placement)).contents
        self._create(device, profile_id, Placement(wanted.start, wanted.size), out)

    def _create(self, device: int, profile_id: int, wanted: Placement | None, out: int) -> None:
        self._root()
        index = self._gpu(device)
        self._live(index)
        busy = any(gi is None for _, gi, _ in self._clients(index))
        with self._machine.change(index) as board:
            made = board.create(profile_id, wanted, busy=busy)
        self._write_handle(out, Handle(index, made.gi_id, made.serial))

    def _nvmlDeviceGetGpuInstances(self, device: int, profile_id: int, out: int, count: int) -> int:
        index = self._gpu(device)
        board = self._seen(index)
        if not _elsewhere(board, profile_id):
            board.row(profile_id)
        found = [
            c_void_p(self._intern(Handle(index, item.gi_id, item.serial)))
            for item in board.instances
            if item.profile_id == profile_id
        ]
        # The header asks for an array of the profile's instanceCount; no size is passed.
        _write_uint(count, len(found))
        for place, pointer in enumerate(found):
            _write_struct(out + place * sizeof(c_void_p), pointer)
        return codes.SUCCESS

    def _nvmlDeviceGetGpuInstanceById(self, device: int, gi_id: int, out: int) -> None:
        index = self._gpu(device)
        item = self._seen(index).instance(gi_id)
        self._write_handle(out, Handle(index, item.gi_id, item.serial))

    def _nvmlGpuInstanceGetInfo(self, instance: int, out: int) -> None:
        handle, _, item = self._instance(instance)
        info = abi.GpuInstanceInfo(
            self._intern(Handle(handle.gpu)),
            item.gi_id,
            item.profile_id,
            abi.Placement(item.start, item.size),
        )
        _write_struct(out, info)

    def _nvmlGpuInstanceDestroy(self, instance: int) -> None:
        self._root()
        handle, _, _ = self._instance(instance)
        with self._machine.change(handle.gpu) as board:
            item = _find_instance(board, handle)
            busy = any(gi == item.gi_id for _, gi, _ in self._clients(handle.gpu))
            board.destroy(item.gi_id, busy=busy)

    # -- compute instances ---------------------------------------------------

    def _nvmlGpuInstanceGetComputeInstanceProfileInfo(
        self, instance: int, enum: int, engine: int, out: int
    ) -> None:
        row, profile = self._ci_profile(instance, enum, engine)
        _write_struct(out, _fill_ci_profile(abi.ComputeInstanceProfileInfo(), row, profile))

    def _nvmlGpuInstanceGetComputeInstanceProfileInfoV(
        self, instance: int, enum: int, engine: int, out: int
    ) -> None:
        _check_version(out, abi.ComputeInstanceProfileInfoV2)
        row, profile = self._ci_profile(instance, enum, engine)
        whole = profile.slices == row.slices
        name = str(row.name) if whole else f"{profile.slices}c.{row.name}"
        info = abi.ComputeInstanceProfileInfoV2(
            version=_read_uint(out), name=f"MIG {name}".encode()
        )
        _write_struct(out, _fill_ci_profile(info, row, profile))

    def _ci_profile(self, instance: int, enum: int, engine: int) -> tuple[GpuProfile, CiProfile]:
        if enum >= _CI_ENUM_COUNT or engine != 0:
            raise Refused(codes.INVALID_ARGUMENT)
        _, board, item = self._instance(instance)
        profile = board.ci_profiles(item).get(enum)
        if profile is None:
            raise Refused(codes.NOT_SUPPORTED)
        return board.row(item.profile_id), profile

    def _nvmlGpuInstanceGetComputeInstanceRemainingCapacity(
        self, instance: int, profile_id: int, out: int
    ) -> None:
        self._root()
        _, board, item = self._instance(instance)
        _write_uint(out, board.ci_capacity(item, profile_id))

    def _nvmlGpuInstanceCreateComputeInstance(
        self, instance: int, profile_id: int, out: int
    ) -> None:
        self._root()
        handle, _, _ = self._instance(instance)
        with self._machine.change(handle.gpu) as board:
            owner = _find_instance(board, handle)
            made = board.create_compute(owner, profile_id)
        self._write_handle(out, _mig_handle(handle.gpu, owner, made))

    def _nvmlGpuInstanceGetComputeInstances(
        self, instance: int, profile_id: int, out: int, count: int
    ) -> None:
        self._root()
        handle, _, item = self._instance(instance)
        found = [ci for ci in item.compute if ci.profile_id == profile_id]
        _write_uint(count, len(found))
        for place, ci in enumerate(found):
            pointer = c_void_p(self._intern(_mig_handle(handle.gpu, item, ci)))
            _write_struct(out + place * sizeof(c_void_p), pointer)

    def _nvmlGpuInstanceGetComputeInstanceById(self, instance: int, ci_id: int, out: int) -> None:
        self._root()
        handle, board, item = self._instance(instance)
        self._write_handle(out, _mig_handle(handle.gpu, item, board.compute(item, ci_id)))

    def _nvmlComputeInstanceGetInfo_v2(self, compute: int, out: int) -> None:
        handle = self._handle(compute)
        _, instance, item = self._mig(compute)
        info = abi.ComputeInstanceInfo(
            self._intern(handle),
            self._intern(Handle(handle.gpu, instance.gi_id, instance.serial)),
            item.ci_id,
            item.profile_id,
            abi.Placement(item.start, item.size),
        )
        _write_struct(out, info)

    def _nvmlComputeInstanceDestroy(self, compute: int) -> None:
        self._root()
        handle = self._handle(compute)
        self._mig(compute)
        with self._machine.change(handle.gpu) as board:
            instance = _find_instance(board, handle)
            item = _find_compute(instance, handle)
            ids = (instance.gi_id, item.ci_id)
            busy = any((gi, ci) == ids for _, gi, ci in self._clients(handle.gpu))
            board.destroy_compute(instance, item.ci_id, busy=busy)

    # -- handles and rights --------------------------------------------------

    def _intern(self, handle: Handle) -> int:
        place = self._places.setdefault(handle, len(self._handles))
        if place == len(self._handles):
            self._handles.append(handle)
        return 0x1000 + 16 * place

    def _write_handle(self, out: int, handle: Handle) -> None:
        _write_struct(out, c_void_p(self._intern(handle)))

    def _handle(self, pointer: int | None) -> Handle:
        place, rest = divmod((pointer or 0) - 0x1000, 16)
        if rest or not 0 <= place < len(self._handles):
            raise Refused(codes.INVALID_ARGUMENT)
        return self._handles[place]

    def _gpu(self, device: int) -> int:
        """Index of a physical GPU's handle; a MIG device is not one."""
        handle = self._handle(device)
        if handle.gi_id is not None:
            raise Refused(codes.INVALID_ARGUMENT)
        return handle.gpu

    def _live(self, index: int) -> Board:
        board = self._machine.board(index)
        if board.lost:
            raise Refused(codes.GPU_IS_LOST)
        return board

    def _seen(self, index: int) -> Board:
        """For reading what is and what fits: root in MIG mode, anybody else without it.

        Without MIG mode an H100 (580.159.04) answers as if it were empty: capacities in full,
        no instance. The header's NOT_SUPPORTED was not seen there.
        """
        board = self._live(index)
        if board.mig_current:
            self._root()
        return board

    def _instance(self, pointer: int) -> tuple[Handle, Board, SimInstance]:
        """A GPU instance by handle; INVALID_ARGUMENT once it is dead."""
        handle = self._handle(pointer)
        board = self._live(handle.gpu)
        return handle, board, _find_instance(board, handle)

    def _mig(self, pointer: int) -> tuple[Board, SimInstance, SimCompute]:
        """A MIG device or compute instance by handle; INVALID_ARGUMENT once it is dead."""
        handle, board, item = self._instance(pointer)
        return board, item, _find_compute(item, handle)

    def _clients(self, index: int) -> Iterator[tuple[int, int | None, int | None]]:
        """(pid, GI id, CI id) of processes on a GPU; ids None on the whole GPU."""
        board = self._machine.board(index)
        devices = {board.mig_uuid(gi, ci): (gi.gi_id, ci.ci_id) for gi, ci in sorted_devices(board)}
        for pid, uuid in self._machine.holders():
            if uuid == board.uuid:
                yield pid, None, None
            elif uuid in devices:
                yield (pid, *devices[uuid])

    @staticmethod
    def _root() -> None:
        if os.geteuid() != 0:
            raise Refused(codes.NO_PERMISSION)


def _elsewhere(board: Board, profile_id: int) -> bool:
    """Whether the driver knows the profile, but this GPU has none of it."""
    own = {row.profile_id for row in board.geometry.profiles}
    return profile_id in _KNOWN_IDS - own


def _without_place(board: Board, profile_id: int) -> bool:
    """Whether a profile of other GPUs has no room here, ever; NOT_SUPPORTED for some of them."""
    if _elsewhere(board, profile_id) and profile_id < _VARIANT_IDS:
        raise Refused(codes.NOT_SUPPORTED)
    return _elsewhere(board, profile_id)


def _find_instance(board: Board, handle: Handle) -> SimInstance:
    for item in board.instances:
        if (item.gi_id, item.serial) == (handle.gi_id, handle.gi_serial):
            return item
    raise Refused(codes.INVALID_ARGUMENT)


def _find_compute(item: SimInstance, handle: Handle) -> SimCompute:
    for compute in item.compute:
        if (compute.ci_id, compute.serial) == (handle.ci_id, handle.ci_serial):
            return compute
    raise Refused(codes.INVALID_ARGUMENT)


def _mig_handle(gpu: int, instance: SimInstance, compute: SimCompute) -> Handle:
    return Handle(gpu, instance.gi_id, instance.serial, compute.ci_id, compute.serial)


def _bus_id(index: int) -> str:
    return f"00000000:{index + 1:02X}:00.0"


def _at_bus_id(text: str) -> int:
    """The index at an address in one of the forms of nvml.h; -1 where no GPU of ours would be."""
    found = re.fullmatch(
        r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?", text, re.IGNORECASE
    )
    # Without a domain the function has to be there.
    if found is None or not (found[1] or found[4]):
        raise Refused(codes.INVALID_ARGUMENT)
    domain, bus, device, function = (int(word or "0", 16) for word in found.groups())
    return -1 if domain or device or function else bus - 1


def _bytes(mib: int | None) -> int:
    if mib is None:
        raise Refused(codes.NOT_SUPPORTED)
    return mib << 20


def _assumed_bar1(memory: int) -> int:
    """Assumed: a power of two that all memory fits into, of which a slice has its share.

    nvitop stops at a MIG device without an answer.
    """
    return 1 << (memory - 1).bit_length()


def _or_na(value: int | None) -> int:
    return codes.NOT_AVAILABLE_32 if value is None else value


def _fill_gi_profile(info: Any, row: GpuProfile) -> Any:  # v1 or v2
    info.id = row.profile_id
    info.isP2pSupported = int(row.p2p)
    info.sliceCount = row.slices
    info.instanceCount = row.max_instances
    info.multiprocessorCount = _or_na(row.multiprocessors)
    info.copyEngineCount = _or_na(row.copy_engines)
    info.decoderCount = _or_na(row.engines.decoders)
    info.encoderCount = _or_na(row.engines.encoders)
    info.jpegCount = _or_na(row.engines.jpeg)
    info.ofaCount = _or_na(row.engines.ofa)
    info.memorySizeMB = codes.NOT_AVAILABLE_64 if row.memory_mib is None else row.memory_mib
    return info


def _fill_ci_profile(info: Any, row: GpuProfile, profile: CiProfile) -> Any:
    info.id = profile.profile_id
    info.sliceCount = profile.slices
    info.instanceCount = profile.count
    info.multiprocessorCount = _or_na(profile.multiprocessors)
    info.sharedCopyEngineCount = _or_na(row.copy_engines)
    info.sharedDecoderCount = _or_na(row.engines.decoders)
    info.sharedEncoderCount = _or_na(row.engines.encoders)
    info.sharedJpegCount = _or_na(row.engines.jpeg)
    info.sharedOfaCount = _or_na(row.engines.ofa)
    return info


def _check_version(out: int, layout: type[Any]) -> None:
    # The version word is the struct's size and a number in the top byte (nvml.h).
    if _read_uint(out) != sizeof(layout) | 2 << 24:
        raise Refused(codes.ARGUMENT_VERSION_MISMATCH)


def _read_uint(address: int) -> int:
    return int(cast(address, POINTER(c_uint)).contents.value)


def _write_uint(address: int, value: int) -> None:
    cast(address, POINTER(c_uint)).contents.value = value


def _write_struct(address: int, value: Any) -> None:  # any ctypes value
    memmove(address, (type(value) * 1)(value), sizeof(value))


def _write_array(address: int, count: int, values: Sequence[Any]) -> int:
    room = _read_uint(count)
    _write_uint(count, len(values))
    if room < len(values):
        return codes.INSUFFICIENT_SIZE
    for place, value in enumerate(values):
        _write_struct(address + place * sizeof(value), value)
    return codes.SUCCESS


def _write_text(address: int, size: int, text: str) -> None:
    data = create_string_buffer(text.encode())
    if sizeof(data) > size:
        raise Refused(codes.INSUFFICIENT_SIZE)
    memmove(address, data, sizeof(data))
