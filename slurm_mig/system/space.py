"""Whether a file system has room, and how its lack is told from other errors."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NoSpace
from slurm_mig.system.causes import FULL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


#: A file system with less free, bytes or files, is as good as full: a hook needs some of both.
LEAST_BYTES: Final = 256 << 10
LEAST_FILES: Final = 16


@contextmanager
def waiting_for_room() -> Iterator[None]:
    """Around what is written for one job: NoSpace where the file system is full.

    The job can wait for room. A node fault would drain every node whose /run somebody fills,
    or whose /dev/shm: that is for users to write to.
    """
    try:
        yield
    except NodeFault as fault:
        if isinstance(fault.__cause__, OSError) and fault.__cause__.errno in FULL:
            raise NoSpace(fault.cause, remedy=fault.remedy) from fault
        raise


def lacking(path: Path) -> str:
    """What is left on the file system of a path, where that is too little; empty where it is not.

    Counted as for root, who has the reserve. Some file systems count no files.
    """
    try:
        found = os.statvfs(path)
    except OSError:
        return ""
    if (free := found.f_bfree * found.f_frsize) < LEAST_BYTES:
        return f"{free // 1024} KiB free"
    if found.f_files and found.f_ffree < LEAST_FILES:
        return f"room for {found.f_ffree} files"
    return ""
