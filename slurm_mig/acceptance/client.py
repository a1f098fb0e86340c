"""A program that computes on one device for as long as somebody keeps its standard input open.

It takes a user's rights first. Where there is a driver it makes a CUDA context by libcuda,
which comes with the driver; on simulated hardware it does what such a process does to nodes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SlurmMigError
from slurm_mig.node.node import SIMULATOR
from slurm_mig.simulator.client import devices, open_devices
from slurm_mig.simulator.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

#: What it says: it computes, it may not, or nothing can be tried.
WORKS: Final = "works"
REFUSED: Final = "refused"
NO_CUDA: Final = "no libcuda.so.1 here"


def main() -> None:
    """Arguments: library, UUID, uid."""
    library, uuid, uid = sys.argv[1:]
    use = _simulated(library, uuid) if library.startswith(SIMULATOR) else _cuda()
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
    sys.stdout.write(f"{use()}\n")
    sys.stdout.flush()
    sys.stdin.read()


def _simulated(library: str, uuid: str) -> Callable[[], str]:
    machine = Machine(Path(library.removeprefix(SIMULATOR)))
    # What is imported late has to be by now: the user may not reach this Python's files.
    list(devices(machine))

    def use() -> str:
        try:
            open_devices(machine, uuid)
            machine.hold(os.getpid(), uuid)
        except SlurmMigError:
            return REFUSED
        return WORKS

    return use


def _cuda() -> Callable[[], str]:
    try:
        # Loaded with root's rights: the program of a user need not find it.
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return lambda: NO_CUDA

    def use() -> str:
        device, context = ctypes.c_int(), ctypes.c_void_p()
        for code in (
            cuda.cuInit(0),
            cuda.cuDeviceGet(ctypes.byref(device), 0),
            cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device),
        ):
            if code:
                return REFUSED
        return WORKS

    return use


if __name__ == "__main__":
    main()
