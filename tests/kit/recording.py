"""What a driver answers to every call that only reads: of a real GPU, to hold the simulator to it.

`python -m tests.kit.recording FILE` on a machine with a GPU in its usual state: MIG mode
off, nothing running. Answers that are that machine's alone are left out: UUID, bus address,
memory in use, whether the driver stays loaded.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pynvml  # noqa: TID251  # the library is asked below our own driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Past what any driver knows of each.
ENUMS = 24
IDS = 70

NOBODY = "00000000-0000-0000-0000-000000000000"

#: An answer: what came, or the code of the refusal.
Answer = dict[str, Any] | list[Any] | int | str


def answers() -> dict[str, Answer]:
    """Every question with its answer, of the first GPU."""
    found = {"before a session": _ask(pynvml.nvmlDeviceGetCount)}
    pynvml.nvmlInit()
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        found |= {name: _ask(*call) for name, call in _questions(device)}
    finally:
        pynvml.nvmlShutdown()
    return found | {"after a session": _ask(pynvml.nvmlDeviceGetCount)}


def _ask(function: Callable[..., Any], *arguments: Any) -> Answer:
    try:
        answer: Answer = _plain(function(*arguments))
    except pynvml.NVMLError as refusal:
        return f"refused: {refusal.value}"
    return answer


def _plain(value: Any) -> Any:
    if isinstance(value, ctypes.Structure):
        return {name: _plain(getattr(value, name)) for name, *_ in value._fields_}
    if isinstance(value, ctypes._SimpleCData):
        return value.value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _questions(device: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield from _of_the_machine()
    yield from _of_the_gpu(device)
    for enum in range(ENUMS):
        info = pynvml.nvmlDeviceGetGpuInstanceProfileInfo
        yield f"profile {enum}, version 1", (info, device, enum, 1)
        yield f"profile {enum}, version 2", (info, device, enum, 2)
    for ident in range(IDS):
        yield f"profile id {ident}", (_by_id, device, ident)
        yield f"placements of {ident}", (_placements, device, ident)
        yield f"instances of {ident}", (_instances, device, ident)
        capacity = pynvml.nvmlDeviceGetGpuInstanceRemainingCapacity
        yield f"capacity for {ident}", (capacity, device, ident)


def _of_the_machine() -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield "driver", (pynvml.nvmlSystemGetDriverVersion,)
    yield "library", (pynvml.nvmlSystemGetNVMLVersion,)
    yield "an index too far", (lambda: pynvml.nvmlDeviceGetHandleByIndex(99),)
    for text in (f"GPU-{NOBODY}", f"MIG-{NOBODY}", "hello"):
        yield f"a UUID {text}", (pynvml.nvmlDeviceGetHandleByUUID, text)
    yield "a bus address", (pynvml.nvmlDeviceGetHandleByPciBusId, "0000:ff:00.0")


def _of_the_gpu(device: Any) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for name in (
        "Name",
        "MinorNumber",
        "Architecture",
        "CudaComputeCapability",
        "MigMode",
        "MaxMigDeviceCount",
        "GpuInstanceId",
        "ComputeInstanceId",
        "Attributes_v2",
        "ComputeRunningProcesses",
        "DeviceHandleFromMigDeviceHandle",
    ):
        yield name, (getattr(pynvml, f"nvmlDeviceGet{name}"), device)
    yield "memory", (lambda: pynvml.nvmlDeviceGetMemoryInfo(device).total,)
    yield "is a MIG device", (_is_mig, device)
    for place in (0, 99):
        yield f"MIG device {place}", (pynvml.nvmlDeviceGetMigDeviceHandleByIndex, device, place)
    for ident in (0, 1, 99):
        yield f"instance {ident}", (pynvml.nvmlDeviceGetGpuInstanceById, device, ident)


def _call(name: str, *arguments: Any) -> None:
    pynvml._nvmlCheckReturn(pynvml._nvmlGetFunctionPointer(name)(*arguments))


def _is_mig(device: Any) -> int:
    answer = ctypes.c_uint()
    _call("nvmlDeviceIsMigDeviceHandle", device, ctypes.byref(answer))
    return answer.value


def _by_id(device: Any, ident: int) -> Any:
    info = pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
    info.version = pynvml.nvmlGpuInstanceProfileInfo_v2
    _call("nvmlDeviceGetGpuInstanceProfileInfoByIdV", device, ident, ctypes.byref(info))
    return info


def _placements(device: Any, ident: int) -> list[Any]:
    count = ctypes.c_uint(16)
    array = (pynvml.c_nvmlGpuInstancePlacement_t * 16)()
    call = pynvml.nvmlDeviceGetGpuInstancePossiblePlacements
    call(device, ident, array, ctypes.byref(count))
    return list(array[: count.value])


def _instances(device: Any, ident: int) -> int:
    count = ctypes.c_uint(16)
    array = (pynvml.c_nvmlGpuInstance_t * 16)()
    pynvml.nvmlDeviceGetGpuInstances(device, ident, array, ctypes.byref(count))
    return count.value


if __name__ == "__main__":
    rows = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in answers().items()]
    Path(sys.argv[1]).write_text("{{\n{}\n}}\n".format(",\n".join(rows)))
