"""C structures of nvml.h that the simulated library reads and writes (LP64).

Sizes and order: facts/mig.md#api, checked there against the compiled header.
"""

from __future__ import annotations

from ctypes import Structure, c_char, c_uint, c_ulonglong, c_void_p
from typing import Final

NAME_BUFFER: Final = 96

#: An opaque handle.
Pointer = c_void_p


class Placement(Structure):
    """nvmlGpuInstancePlacement_t and nvmlComputeInstancePlacement_t, 8 bytes."""

    _fields_ = (("start", c_uint), ("size", c_uint))


_GI_COUNTS = (
    ("id", c_uint),
    ("isP2pSupported", c_uint),
    ("sliceCount", c_uint),
    ("instanceCount", c_uint),
    ("multiprocessorCount", c_uint),
    ("copyEngineCount", c_uint),
    ("decoderCount", c_uint),
    ("encoderCount", c_uint),
    ("jpegCount", c_uint),
    ("ofaCount", c_uint),
)


class GpuInstanceProfileInfo(Structure):
    """nvmlGpuInstanceProfileInfo_t, 48 bytes."""

    _fields_ = (*_GI_COUNTS, ("memorySizeMB", c_ulonglong))


class GpuInstanceProfileInfoV2(Structure):
    """nvmlGpuInstanceProfileInfo_v2_t, 152 bytes."""

    _fields_ = (
        ("version", c_uint),
        *_GI_COUNTS,
        ("memorySizeMB", c_ulonglong),
        ("name", c_char * NAME_BUFFER),
    )


class GpuInstanceInfo(Structure):
    """nvmlGpuInstanceInfo_t, 24 bytes."""

    _fields_ = (
        ("device", c_void_p),
        ("id", c_uint),
        ("profileId", c_uint),
        ("placement", Placement),
    )


_CI_COUNTS = (
    ("id", c_uint),
    ("sliceCount", c_uint),
    ("instanceCount", c_uint),
    ("multiprocessorCount", c_uint),
    ("sharedCopyEngineCount", c_uint),
    ("sharedDecoderCount", c_uint),
    ("sharedEncoderCount", c_uint),
    ("sharedJpegCount", c_uint),
    ("sharedOfaCount", c_uint),
)


class ComputeInstanceProfileInfo(Structure):
    """nvmlComputeInstanceProfileInfo_t, 36 bytes."""

    _fields_ = _CI_COUNTS


class ComputeInstanceProfileInfoV2(Structure):
    """nvmlComputeInstanceProfileInfo_v2_t, 136 bytes."""

    _fields_ = (("version", c_uint), *_CI_COUNTS, ("name", c_char * NAME_BUFFER))


class ComputeInstanceInfo(Structure):
    """nvmlComputeInstanceInfo_t, 32 bytes."""

    _fields_ = (
        ("device", c_void_p),
        ("gpuInstance", c_void_p),
        ("id", c_uint),
        ("profileId", c_uint),
        ("placement", Placement),
    )


class ProcessInfo(Structure):
    """nvmlProcessInfo_t, 24 bytes."""

    _fields_ = (
        ("pid", c_uint),
        ("usedGpuMemory", c_ulonglong),
        ("gpuInstanceId", c_uint),
        ("computeInstanceId", c_uint),
    )


class Attributes(Structure):
    """nvmlDeviceAttributes_t, 40 bytes."""

    _fields_ = (
        ("multiprocessorCount", c_uint),
        ("sharedCopyEngineCount", c_uint),
        ("sharedDecoderCount", c_uint),
        ("sharedEncoderCount", c_uint),
        ("sharedJpegCount", c_uint),
        ("sharedOfaCount", c_uint),
        ("gpuInstanceSliceCount", c_uint),
        ("computeInstanceSliceCount", c_uint),
        ("memorySizeMB", c_ulonglong),
    )


class Memory(Structure):
    """nvmlMemory_t, 24 bytes."""

    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class MemoryV2(Structure):
    """nvmlMemory_v2_t, 40 bytes."""

    _fields_ = (
        ("version", c_uint),
        ("total", c_ulonglong),
        ("reserved", c_ulonglong),
        ("free", c_ulonglong),
        ("used", c_ulonglong),
    )


class PciInfo(Structure):
    """nvmlPciInfo_t (v3), 68 bytes."""

    _fields_ = (
        ("busIdLegacy", c_char * 16),
        ("domain", c_uint),
        ("bus", c_uint),
        ("device", c_uint),
        ("pciDeviceId", c_uint),
        ("pciSubSystemId", c_uint),
        ("busId", c_char * 32),
    )
