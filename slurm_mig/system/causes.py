"""What the system's own errors mean for who has to mend them: one remedy for each cause. Pure.

A full disk, one that was made read-only, and one that fails all end in an OSError; but who
treats one as the other loses data. Numbers: errno(3), and sqlite.org/rescode.html.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from slurm_mig.errors import NodeFault

_FULL: Final = "the file system is full, of data or of files (df, df -i): make room there"
_READ_ONLY: Final = (
    "it is read-only, which the kernel also does after errors (dmesg): mend the disk, and mount "
    "it for writing again"
)
_BROKEN: Final = "the disk or its controller fails (dmesg, smartctl): put the state elsewhere"
_KEPT_OUT: Final = (
    "root itself is kept out: by root_squash of a file server, chattr +i, or a security module "
    "(lsattr, dmesg)"
)
_SERVER: Final = "a file server does not answer or has lost it: keep this on a local disk"
_ODD_PATH: Final = "something on that path is not what it has to be: see `namei -l` for it"
_MEMORY: Final = "the machine is out of memory (dmesg): free some"
_FILES: Final = "too many files are open (ulimit -n, fs.file-max): raise the limit"
_DEVICE: Final = "the device behind it is not there: see dmesg, and whether its module is loaded"
_BUSY: Final = "something else uses it: see `fuser -v` for what, and try again"

#: Nothing is broken: it works again as soon as somebody has made room.
FULL: Final = (errno.ENOSPC, errno.EDQUOT)

_REMEDIES: Final[dict[int, str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "root's quota there is used up (quota, xfs_quota, lfs quota): raise it",
    errno.EROFS: _READ_ONLY,
    errno.EIO: _BROKEN,
    errno.EACCES: _KEPT_OUT,
    errno.EPERM: _KEPT_OUT,
    errno.ENOENT: "it was removed, or never made: `slurm-mig doctor` says what is missing",
    errno.ENOTDIR: _ODD_PATH,
    errno.EISDIR: _ODD_PATH,
    errno.ELOOP: _ODD_PATH,
    errno.ENAMETOOLONG: _ODD_PATH,
    errno.ENOTEMPTY: _ODD_PATH,
    errno.EXDEV: _ODD_PATH,
    errno.ESTALE: _SERVER,
    errno.ETIMEDOUT: _SERVER,
    errno.EHOSTDOWN: _SERVER,
    errno.EREMOTEIO: _SERVER,
    errno.ENOTCONN: _SERVER,
    errno.ENOLCK: _SERVER,
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: "no process can be started or no memory is left for it (ulimit -u, pids.max)",
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENODEV: _DEVICE,
    errno.ENXIO: _DEVICE,
    errno.EBUSY: _BUSY,
    errno.ETXTBSY: _BUSY,
    errno.ENOEXEC: "it is no program for this machine, or empty: install it again",
}


def remedy(number: int | None) -> str:
    """What to do about an errno; empty where nothing is known that helps."""
    found = _REMEDIES.get(number or 0, "")
    if found is _KEPT_OUT and os.geteuid() != 0:
        return "its owner or root decides who may: see `namei -l` for it"
    return found


def told(problem: OSError) -> str:
    """An OSError as people read it: the system's words, without Python's brackets."""
    return problem.strerror or str(problem) or type(problem).__name__


def out_of_order(
    problem: OSError, action: str, kind: type[NodeFault] = NodeFault, otherwise: str = ""
) -> NodeFault:
    """The fault for an OSError in `action`; `otherwise`: the remedy where its cause has none."""
    return kind(f"{action}: {told(problem)}", remedy=remedy(problem.errno) or otherwise)


def unnamed(problem: BaseException) -> NodeFault | None:
    """The fault for what no module has caught, but a machine really does; None for a bug."""
    if isinstance(problem, OSError):
        named = problem.filename
        return out_of_order(problem, "work" if named is None else os.fsdecode(str(named)))
    if isinstance(problem, MemoryError):
        return NodeFault("out of memory", remedy=_MEMORY)
    if isinstance(problem, ImportError):
        return NodeFault(
            f"a part of this program cannot be loaded: {problem}",
            remedy="its installation is damaged, or was changed at this moment: install it again",
        )
    return None


# -- SQLite ----------------------------------------------------------------------------------

_LOCKED_FILE: Final = (
    "leave the file where it is: another process keeps it locked (`fuser -v` names it), a shell, "
    "a backup or a stopped hook; end that, and all goes on"
)
_DAMAGED: Final = (
    "the file is damaged, the slices are not: put a backup in its place or move it aside "
    '(docs/troubleshooting.md, "The ledger"), then `slurm-mig reconcile --accept-older-ledger` '
    "puts on record what running jobs have"
)

_SQLITE: Final[dict[int, str]] = {
    3: _KEPT_OUT,  # SQLITE_PERM
    5: _LOCKED_FILE,  # SQLITE_BUSY
    6: _LOCKED_FILE,  # SQLITE_LOCKED
    7: _MEMORY,  # SQLITE_NOMEM
    8: _READ_ONLY,  # SQLITE_READONLY
    10: "the disk fails (dmesg), or root's quota there is used up (quota)",  # SQLITE_IOERR
    11: _DAMAGED,  # SQLITE_CORRUPT
    13: _FULL,  # SQLITE_FULL
    14: "it, or its directory, is missing or cannot be opened: see `namei -l` for its path",
    15: _LOCKED_FILE,  # SQLITE_PROTOCOL: locks in the WAL's index that do not come free
    26: _DAMAGED,  # SQLITE_NOTADB
}
#: SQLITE_READONLY_DIRECTORY, _DBMOVED: the file is not where it was opened, or its directory is.
_MOVED: Final = {4 << 8 | 8: "it was moved or replaced while it was open: try again"}


def ledger_remedy(problem: BaseException) -> str:
    """What to do about an error of SQLite's, or of the file system, with the ledger."""
    if isinstance(problem, OSError):
        return remedy(problem.errno)
    code = getattr(problem, "sqlite_errorcode", None)
    if code is None:
        # Without a code it comes from Python: the file has what this program never wrote.
        return _DAMAGED
    # Extended codes keep the plain one in their low byte.
    return _MOVED.get(code) or _SQLITE.get(code & 0xFF, _DAMAGED)
