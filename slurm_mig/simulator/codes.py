"""NVML return codes and the exception that carries one inside the simulator.

Numbers: nvml.h, nvmlReturn_t (facts/mig.md#calls).
"""

from __future__ import annotations

from typing import Final

SUCCESS: Final = 0
UNINITIALIZED: Final = 1
INVALID_ARGUMENT: Final = 2
NOT_SUPPORTED: Final = 3
NO_PERMISSION: Final = 4
NOT_FOUND: Final = 6
INSUFFICIENT_SIZE: Final = 7
DRIVER_NOT_LOADED: Final = 9
GPU_IS_LOST: Final = 15
RESET_REQUIRED: Final = 16
IN_USE: Final = 19
INSUFFICIENT_RESOURCES: Final = 23
ARGUMENT_VERSION_MISMATCH: Final = 25
UNKNOWN: Final = 999

#: Codes by the name used in fault rules.
BY_NAME: Final[dict[str, int]] = {
    name: value for name, value in list(globals().items()) if isinstance(value, int)
}

#: nvml.h NVML_VALUE_NOT_AVAILABLE, -1 in the width of the field.
NOT_AVAILABLE_32: Final = 0xFFFFFFFF
NOT_AVAILABLE_64: Final = 0xFFFFFFFFFFFFFFFF


class Refused(Exception):
    """The simulated driver answers with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
