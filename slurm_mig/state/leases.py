"""Where a job's steps write down which slices they took: root's, and the job's user's to write.

A directory on a file system of its own below the run directory, as systemd mounts one for each
user below /run/user: the user can fill this one, and nothing else. All files in it are made
beforehand and are root's, with an access list: the user can lock and write them, but neither
remove nor replace one, nor can what removes a user's files (RemoveIPC, epilogs of sites). So
a file that is empty was never used, and one that is not there is a fault.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from slurm_mig.system.causes import out_of_order
from slurm_mig.system.replace import grant
from slurm_mig.system.trust import public_directory

#: Steps that can share a slice at one moment (srun --overlap); without that it is one.
STEPS: Final = 4

#: What /proc/self/mounts calls them.
SOURCE: Final = "slurm-mig"
PROC_MOUNTS: Final = Path("/proc/self/mounts")

#: mount(2): MS_NOSUID, MS_NODEV, MS_NOEXEC. umount(2): MNT_DETACH, UMOUNT_NOFOLLOW.
_MOUNT: Final = 2 | 4 | 8
_UMOUNT: Final = 2 | 8

#: What a container says in which nobody may mount, and a kernel without access lists.
_IMPOSSIBLE: Final = (errno.EPERM, errno.EACCES, errno.ENODEV, errno.ENOTSUP)


def make(path: Path, uid: int, slices: int) -> bool:
    """Make the leases of a run with so many slices, or complete those that a killed hook began.

    False where this node can have none. NodeFault for all other trouble.
    """
    public_directory(path.parent)
    begun = path.is_mount()
    steps = STEPS * slices
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if not begun:
            # A page holds the tasks of a step; twice that, for steps of very many tasks.
            room = 2 * steps * os.sysconf("SC_PAGE_SIZE")
            _call("mount", SOURCE.encode(), path, b"tmpfs", _MOUNT, b"size=%d,mode=0700" % room)
        for name in ("lock", *(f"step.{number}" for number in range(steps))):
            _file(path / name, uid)
        # Last: the user comes in when all is there.
        grant(path, uid, 0o5)
    except OSError as problem:
        if not begun:
            remove(path)
        if problem.errno in _IMPOSSIBLE:
            return False
        raise out_of_order(problem, f"make {path}") from problem
    return True


def remove(path: Path) -> None:
    """Take the leases of a run away, whoever still has one of the files open."""
    with suppress(OSError):
        _call("umount2", path, _UMOUNT)
    with suppress(OSError):
        path.rmdir()


def remove_below(root: Path) -> None:
    """Take away the leases of all runs below a directory that is to be deleted."""
    for line in PROC_MOUNTS.read_text("utf-8").splitlines():
        source, place = line.split()[:2]
        if source == SOURCE and Path(place).is_relative_to(root):
            remove(Path(place))


def _file(path: Path, uid: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        grant(descriptor, uid, 0o6)
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: Path | bytes | int) -> None:
    """A function of the C library; OSError when it fails."""
    import ctypes

    plain = [os.fsencode(item) if isinstance(item, os.PathLike) else item for item in arguments]
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*plain):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
