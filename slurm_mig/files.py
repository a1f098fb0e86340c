"""Directories and files that root relies on: who owns them, who may write there.

Hooks run as root on paths that a user may try to get at. A path is trusted when
root owns it and nobody else may write to it; files are replaced, never edited.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Callable

#: Where sites put Slurm's commands.
SEARCH: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin")


def private_directory(path: Path, mode: int) -> Path:
    """Make a directory with exactly `mode`, or accept the one there if it is safe.

    Safe: a real directory, owned by the caller, not writable by group or others.
    Raises NotPermitted when it cannot be made, NodeFault when it is not safe.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.mkdir(mode=mode, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except PermissionError as problem:
        raise NotPermitted(
            f"directory {path}: {problem.strerror}", remedy="run as root"
        ) from problem
    except OSError as problem:
        raise NodeFault(f"directory {path}: {problem.strerror}") from problem
    try:
        _check_owner(descriptor, path)
        # The umask may have narrowed mkdir's mode; a wider one from before is narrowed here.
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)
    return path


def remove_as_owner(path: Path) -> None:
    """See to it that what a user made there goes; neither waits for it nor fails.

    The user can have made anything of it: a link, a million files, a tree deeper than
    the stack. So rm(1) removes it, with no more rights than he has, in a process of
    its own. What root owns is not his, and stays.
    """
    try:
        status = path.lstat()
    except OSError:
        return
    if status.st_uid == 0:
        return

    def remove() -> None:
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
        os.chdir("/")
        os.execv(  # noqa: S606  # no shell is the point
            "/bin/rm",
            ["rm", "-rf", "--one-file-system", "--", str(path)],
        )

    detach(remove)


def detach(work: Callable[[], object]) -> None:
    """Run `work` in a process of its own that Slurm neither waits for nor kills.

    Slurm waits until every holder of a hook's output is gone, and kills the
    hook's process group when it ends (slurm-facts.md 3, 9): so new session, no
    inherited descriptors, and the parent returns only when that is done.
    """
    ready, done = os.pipe()
    if os.fork():
        os.close(done)
        os.read(ready, 1)
        os.close(ready)
        os.wait()
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.closerange(3, done)
        os.closerange(done + 1, 1 << 16)
        os.close(done)
        work()
    finally:
        os._exit(0)


def find_program(name: str, directory: Path | None) -> Path | None:
    """A program of Slurm's in `directory`, or where sites put them; a hook has no PATH."""
    places = [directory] if directory else [Path(place) for place in SEARCH]
    return next((place / name for place in places if (place / name).is_file()), None)


def _check_owner(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise NodeFault(
            f"{path} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
            remedy=f"it must be owned by uid {os.geteuid()} and not writable by others",
        )


def replace_file(path: Path, text: str, *, mode: int, uid: int = 0, gid: int = 0) -> None:
    """Write a file under its final name in one step, with its owner and mode.

    The name never shows a half-written file, and never one with the wrong owner.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fresh.unlink(missing_ok=True)
    try:
        descriptor = os.open(fresh, flags, 0o600)
        try:
            os.write(descriptor, text.encode("utf-8", "replace"))
            if os.geteuid() == 0:
                os.fchown(descriptor, uid, gid)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)
        fresh.replace(path)
    except OSError as problem:
        raise NodeFault(f"write {path}: {problem.strerror}") from problem


def remove_abandoned(directory: Path) -> list[Path]:
    """Remove what `replace_file` left in a directory when its process was killed in it."""
    left = []
    for path in directory.glob(".*.*"):
        pid = path.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)
            left.append(path)
    return left


def boot_time(path: Path) -> float:
    """When the kernel booted, in seconds since the epoch (proc(5), /proc/stat, btime).

    0 where it does not say: then nothing is older.
    """
    try:
        lines = path.read_text("ascii").splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)
    except (OSError, ValueError, IndexError):
        return 0.0


def boot_id(path: Path) -> str:
    """The kernel's id of this boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    try:
        return path.read_text("ascii").strip()
    except OSError as problem:
        raise NodeFault(f"read boot id from {path}: {problem.strerror}") from problem
