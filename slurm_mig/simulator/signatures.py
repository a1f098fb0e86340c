"""Every function that the simulated library has, with its arguments, once for Python and for C.

A word for each argument:

    h        a handle, or a pointer that is passed on without being looked at
    u, s     an unsigned int, a C string
    U, H     where an unsigned int, or a handle, is written to
    T        where a text is written to; the next argument is its size
    C        a count, read and written; behind an array its room
    NAME     a structure of abi.py, read and written
    NAME[]   an array that is written to, or NULL; its count is beside it
"""

from __future__ import annotations

from ctypes import c_char_p, c_uint, c_void_p
from typing import Any, Final

SIGNATURES: Final[dict[str, str]] = {
    "nvmlInit_v2": "",
    "nvmlInitWithFlags": "u",
    "nvmlShutdown": "",
    "nvmlErrorString": "u",
    "nvmlSystemGetDriverVersion": "T u",
    "nvmlSystemGetNVMLVersion": "T u",
    "nvmlDeviceGetCount_v2": "U",
    "nvmlDeviceGetHandleByIndex_v2": "u H",
    "nvmlDeviceGetHandleByUUID": "s H",
    "nvmlDeviceGetHandleByPciBusId_v2": "s H",
    "nvmlDeviceGetName": "h T u",
    "nvmlDeviceGetUUID": "h T u",
    "nvmlDeviceGetIndex": "h U",
    "nvmlDeviceGetMinorNumber": "h U",
    "nvmlDeviceGetArchitecture": "h U",
    "nvmlDeviceGetCudaComputeCapability": "h U U",
    "nvmlDeviceGetPciInfo_v3": "h PciInfo",
    "nvmlDeviceGetMemoryInfo": "h Memory",
    "nvmlDeviceGetMemoryInfo_v2": "h MemoryV2",
    "nvmlDeviceGetBAR1MemoryInfo": "h Memory",
    "nvmlDeviceGetAttributes_v2": "h Attributes",
    "nvmlDeviceGetComputeRunningProcesses_v3": "h C ProcessInfo[]",
    "nvmlDeviceGetGraphicsRunningProcesses_v3": "h C ProcessInfo[]",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": "h C ProcessInfo[]",
    "nvmlDeviceGetMigMode": "h U U",
    "nvmlDeviceGetPersistenceMode": "h U",
    "nvmlDeviceSetMigMode": "h u U",
    "nvmlDeviceGetMaxMigDeviceCount": "h U",
    "nvmlDeviceGetMigDeviceHandleByIndex": "h u H",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": "h H",
    "nvmlDeviceIsMigDeviceHandle": "h U",
    "nvmlDeviceGetGpuInstanceId": "h U",
    "nvmlDeviceGetComputeInstanceId": "h U",
    "nvmlDeviceGetGpuInstanceProfileInfo": "h u GpuInstanceProfileInfo",
    "nvmlDeviceGetGpuInstanceProfileInfoV": "h u GpuInstanceProfileInfoV2",
    "nvmlDeviceGetGpuInstanceProfileInfoByIdV": "h u GpuInstanceProfileInfoV2",
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2": "h u Placement[] C",
    "nvmlDeviceGetGpuInstanceRemainingCapacity": "h u U",
    "nvmlDeviceCreateGpuInstance": "h u H",
    "nvmlDeviceCreateGpuInstanceWithPlacement": "h u Placement H",
    "nvmlDeviceGetGpuInstances": "h u Pointer[] C",
    "nvmlDeviceGetGpuInstanceById": "h u H",
    "nvmlGpuInstanceGetInfo": "h GpuInstanceInfo",
    "nvmlGpuInstanceDestroy": "h",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo": "h u u ComputeInstanceProfileInfo",
    "nvmlGpuInstanceGetComputeInstanceProfileInfoV": "h u u ComputeInstanceProfileInfoV2",
    "nvmlGpuInstanceGetComputeInstanceRemainingCapacity": "h u U",
    "nvmlGpuInstanceCreateComputeInstance": "h u H",
    "nvmlGpuInstanceGetComputeInstances": "h u Pointer[] C",
    "nvmlGpuInstanceGetComputeInstanceById": "h u H",
    "nvmlComputeInstanceGetInfo_v2": "h ComputeInstanceInfo",
    "nvmlComputeInstanceDestroy": "h",
}

#: What people's tools ask of a device and nobody has told us: NOT_SUPPORTED, as from a driver
#: that does not know it. They show that as such, and stop where the function is not there.
UNTOLD: Final[dict[str, str]] = {
    "nvmlDeviceGetClockInfo": "h u h",
    "nvmlDeviceGetComputeMode": "h h",
    "nvmlDeviceGetConfComputeMemSizeInfo": "h h",
    "nvmlDeviceGetDecoderUtilization": "h h h",
    "nvmlDeviceGetDisplayActive": "h h",
    "nvmlDeviceGetDisplayMode": "h h",
    "nvmlDeviceGetDriverModel_v2": "h h h",
    "nvmlDeviceGetEncoderUtilization": "h h h",
    "nvmlDeviceGetEnforcedPowerLimit": "h h",
    "nvmlDeviceGetFanSpeed": "h h",
    "nvmlDeviceGetFieldValues": "h u h",
    "nvmlDeviceGetMaxClockInfo": "h u h",
    "nvmlDeviceGetPcieThroughput": "h u h",
    "nvmlDeviceGetPerformanceState": "h h",
    "nvmlDeviceGetPowerManagementLimit": "h h",
    "nvmlDeviceGetPowerUsage": "h h",
    "nvmlDeviceGetProcessUtilization": "h h h h",
    "nvmlDeviceGetRunningProcessDetailList": "h h",
    "nvmlDeviceGetSerial": "h h u",
    "nvmlDeviceGetTemperature": "h u h",
    "nvmlDeviceGetTemperatureV": "h h",
    "nvmlDeviceGetTotalEccErrors": "h u u h",
    "nvmlDeviceGetTotalEnergyConsumption": "h h",
    "nvmlDeviceGetUtilizationRates": "h h",
    "nvmlSystemGetCudaDriverVersion": "U",
}


def words_of(name: str) -> list[str]:
    """Words of a function's arguments; AttributeError for one that this library lacks."""
    text = SIGNATURES.get(name, UNTOLD.get(name))
    if text is None:
        raise AttributeError(name)
    return text.split()


def python_type(word: str) -> Any:
    """How ctypes passes an argument."""
    return {"u": c_uint, "s": c_char_p}.get(word, c_void_p)
