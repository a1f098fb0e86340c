"""A disk that is slow, or fails, or a clock that jumped, for the hooks of one test: see bad_*.c."""

from __future__ import annotations

import errno
import functools
import subprocess
import tempfile
from pathlib import Path

_KEPT = tempfile.TemporaryDirectory(prefix="slurm-mig-bad-disk-")


@functools.cache
def library(name: str = "bad_disk") -> str:
    """The library to be put in LD_PRELOAD; made once for a run of the tests."""
    source, target = Path(__file__).with_name(f"{name}.c"), Path(_KEPT.name) / f"{name}.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(target), str(source), "-ldl"]
    subprocess.run(command, check=True)
    Path(_KEPT.name).chmod(0o755)
    return str(target)


def slow(seconds: float) -> dict[str, str]:
    """Environment in which each forced write takes so much longer."""
    return {"LD_PRELOAD": library(), "BAD_DISK_SYNC": str(seconds)}


def counted(path: Path) -> dict[str, str]:
    """Environment in which each forced write is noted in a file."""
    return {"LD_PRELOAD": library(), "BAD_DISK_COUNT": str(path)}


def failing(name: str, part: str, *calls: str) -> dict[str, str]:
    """Environment in which these calls fail, with `ENOSPC` say, where `part` is in the path."""
    return {
        "LD_PRELOAD": library(),
        "BAD_DISK_ERRNO": str(getattr(errno, name)),
        "BAD_DISK_CALLS": f",{','.join(calls)},",
        "BAD_DISK_PATH": part,
    }
