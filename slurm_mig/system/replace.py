"""Files written in one step, with no one else's put in their place."""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from slurm_mig.errors import NodeFault
from slurm_mig.system.causes import out_of_order
from slurm_mig.system.trust import without_umask

#: setfacl(1)'s attribute and its layout (linux/posix_acl_xattr.h): version, then tag, rights, id.
_ACL: Final = "system.posix_acl_access"
_ACL_VERSION: Final = struct.pack("<I", 2)
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20


def replace_file(
    path: Path, content: str | bytes, *, mode: int, reader: tuple[int, int] | None = None
) -> None:
    """Write a file under its final name in one step, with its owner and mode.

    The name never shows a half-written file, and never one with the wrong owner.
    `reader`: a user (uid, gid) who may read it, too; they do not become its owner.
    NodeFault where it cannot be written, or where something else than a regular file stands;
    nothing is left then, least of all on a full disk.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    check_replaceable(path)
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, flags, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a name
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            if reader is not None and os.geteuid() == 0:
                _let_read(descriptor, *reader)
        fresh.replace(path)
    except BaseException as problem:
        with suppress(OSError):
            fresh.unlink()
        if isinstance(problem, OSError):
            raise out_of_order(problem, f"write {path}") from problem
        raise


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that somebody named on a command line, as `replace_file` does.

    A new one gets the mode that the umask leaves, an old one keeps its own.
    """
    with without_umask() as umask:
        pass
    status = check_replaceable(path)
    mode = 0o666 & ~umask if status is None else stat.S_IMODE(status.st_mode)
    replace_file(path, content, mode=mode)


def check_replaceable(path: Path) -> os.stat_result | None:
    """NodeFault unless a file may be renamed to this name: a regular one or nothing is there.

    A rename takes away whatever stands under the name: /dev/null, or /dev/stdout, which is a
    link, would be an ordinary file for the whole machine from then on. Returns what is there.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise out_of_order(problem, f"write {path}") from problem
    if stat.S_ISREG(status.st_mode):
        return status
    raise NodeFault(
        f"write {path}: it is {_kind(status.st_mode)}, not a regular file, and was left as it is",
        remedy="name a regular file, or a name that does not exist yet",
    )


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def _let_read(descriptor: int, uid: int, gid: int) -> None:
    """Let a user read a file of root's.

    As its owner they could also fill the file system with it, and so the node's hooks would
    fail. Where there are no access lists they own it all the same.
    """
    try:
        grant(descriptor, uid, 0o4)
    except OSError as problem:
        if problem.errno != errno.ENOTSUP:
            raise
        os.fchown(descriptor, uid, gid)


def grant(place: int | Path, uid: int, rights: int) -> None:
    """Give one user rights to a file or directory of root's, and nobody else but root any.

    As setfacl(1) does. OSError, ENOTSUP where there are no access lists.
    """
    own = rights | 0o4
    entries = ((_OWNER, own, -1), (_USER, rights, uid), (_GROUP, 0, -1), (_MASK, rights, -1))
    packed = b"".join(
        struct.pack("<HHI", tag, right, number & 0xFFFFFFFF)
        for tag, right, number in (*entries, (_OTHER, 0, -1))
    )
    os.setxattr(place, _ACL, _ACL_VERSION + packed)


def remove_abandoned(directory: Path) -> list[Path]:
    """Remove what `replace_file` left in a directory when its process was killed in it."""
    left = []
    for path in directory.glob(".*.*"):
        pid = path.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            # What somebody made a directory of such a name is not ours, and no reason to stop.
            with suppress(OSError):
                path.unlink()
                left.append(path)
    return left
