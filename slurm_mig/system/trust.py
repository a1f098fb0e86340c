"""Paths that only root can change, and directories that are one's own."""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NotPermitted
from slurm_mig.system.causes import out_of_order

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Symbolic links on the way to one path, as the kernel allows (path_resolution(7)).
MAX_LINKS: Final = 40

#: More than any file of ours has, in bytes: reading never fills the memory.
LONGEST_FILE: Final = 1 << 20
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_UMASK: Final = threading.Lock()


@contextmanager
def trusted(path: Path, *, make: bool = False) -> Iterator[int]:
    """What stands at `path`, as a descriptor (O_PATH), with every step from / on checked.

    Each directory and file must be owned by root (or the caller) and not be writable by
    others, unless it is a sticky directory of root's; links must be root's, and lead
    along such steps. `make`: directories that are missing are made, 0755. Raises
    NodeFault naming the first step that is not so, OSError for one that is not there.
    """
    descriptor = _walk(path, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(path: Path, *, make: bool) -> int:
    names, links = [*reversed(path.absolute().parts)], 0
    here = os.open("/", _LOOK)
    try:
        while names:
            step = _step(here, names.pop(), make=make)
            status = os.fstat(step)
            if stat.S_ISLNK(status.st_mode):
                links += 1
                names += _target(step, status, path, links)
                continue
            os.close(here)
            here = step
            _check_step(here, status, path)
    except BaseException:
        os.close(here)
        raise
    return here


def _step(here: int, name: str, *, make: bool) -> int:
    try:
        return _look(here, name)
    except FileNotFoundError:
        if not make:
            raise
    # Another hook may make it at this very moment.
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=here)
        # Whatever the umask: users have to get through to what is theirs.
        os.chmod(name, 0o755, dir_fd=here)  # noqa: S103  # it holds nothing secret
    return _look(here, name)


def _look(here: int, name: str) -> int:
    try:
        # As a directory: an automounter does not mount for a mere look (open(2), O_PATH).
        return os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=here)
    except NotADirectoryError:
        return os.open(name, _LOOK, dir_fd=here)


def _target(link: int, status: os.stat_result, path: Path, links: int) -> list[str]:
    """Steps that a link stands for, the first one last; closes it."""
    try:
        if status.st_uid not in (0, os.geteuid()):
            raise _untrusted(link, status, path, "that link must be owned by root")
        if links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return [*reversed(PurePosixPath(os.readlink("", dir_fd=link)).parts)]
    finally:
        os.close(link)


def _check_step(here: int, status: os.stat_result, path: Path) -> None:
    """Sticky: others may make names of their own there, but not move or remove root's."""
    if status.st_uid not in (0, os.geteuid()):
        raise _untrusted(here, status, path, "it must be owned by root")
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and not status.st_uid
    if status.st_mode & _OTHERS_WRITE and not sticky:
        raise _untrusted(here, status, path, "it must not be writable by group or others")


def _untrusted(here: int, status: os.stat_result, path: Path, wanted: str) -> NodeFault:
    where = _name_of(here)
    mode = stat.S_IMODE(status.st_mode)
    on_the_way = "" if where == str(path) else f" on the way to {path}"
    return NodeFault(
        f"{where}{on_the_way} is owned by uid {status.st_uid} with mode {mode:04o}",
        remedy=f"{wanted}: else a user could put something else in its place",
    )


def private_directory(path: Path, mode: int) -> Path:
    """Make a directory with exactly `mode`, or accept the one there, as it is, if it is safe.

    Safe: a real directory, owned by the caller, not writable by group or others, and
    nobody else can put another one in its place (see `trusted`). One that was there keeps
    its mode: the configuration may name a directory of the site's. Raises NotPermitted
    when it cannot be made, NodeFault when it is not safe.
    """
    try:
        with trusted(path.parent, make=True) as parent:
            _make_directory(path.name, mode, parent)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            descriptor = os.open(path.name, flags, dir_fd=parent)
    except PermissionError as problem:
        raise NotPermitted(
            f"directory {path}: {problem.strerror}", remedy="run as root"
        ) from problem
    except OSError as problem:
        raise out_of_order(problem, f"directory {path}") from problem
    try:
        _check_owner(descriptor, path)
    finally:
        os.close(descriptor)
    return path


def public_directory(path: Path) -> Path:
    """A `private_directory` that every user can look into, 0755 if it has to be made.

    NodeFault where one is there that shuts users out: their tasks would not find their files.
    """
    private_directory(path, 0o755)
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o005 != 0o005:
        raise NodeFault(
            f"{path} has mode {mode:04o}, and users have to find their files in it",
            remedy=f"chmod 0755 {path}, or name a directory that does not exist yet",
        )
    return path


def _make_directory(name: str, mode: int, parent: int) -> None:
    """In one step: another hook may look at its mode at once, or this one be killed."""
    with without_umask(), suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)


@contextmanager
def without_umask() -> Iterator[int]:
    """The umask set aside, and what it was.

    It is the process's: two threads that set it aside at once would leave it at 0, and every
    file from then on open to all.
    """
    with _UMASK:
        before = os.umask(0)
        try:
            yield before
        finally:
            os.umask(before)


def below(directory: Path, beginning: str = "") -> list[Path]:
    """What a directory has whose name begins so, sorted; none where it is none, or shut.

    `Path.glob` builds a regular expression for each look: a millisecond, of which hooks had many.
    """
    try:
        names = os.listdir(directory)  # noqa: PTH208  # names only
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [directory / name for name in sorted(names) if name.startswith(beginning)]


def read_trusted(path: Path) -> bytes:
    """A file that only root can have written, wherever links of root's lead to.

    Raises NodeFault where somebody else could have, OSError where it cannot be read.
    """
    with trusted(path) as found:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise NodeFault(f"{path} is not a regular file")
        # By the descriptor: the name could mean another file by now.
        with open(f"/proc/self/fd/{found}", "rb") as file:  # noqa: PTH123
            return file.read()


def read_own(path: Path) -> str:
    """A small file of the caller's own: no link, no FIFO, not endless; empty if it has gone.

    Raises NodeFault for anything else. Its directory has been checked (`trusted`).
    """
    # O_NONBLOCK: a FIFO would keep a hook waiting for a writer for ever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return ""
    except OSError as problem:
        raise out_of_order(problem, f"read {path}") from problem
    try:
        check_own(descriptor, path)
        with open(descriptor, "rb", closefd=False) as file:  # not a name
            return file.read(LONGEST_FILE).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def check_own(descriptor: int, path: Path) -> None:
    """NodeFault unless it is a regular file of the caller's that nobody else can write."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise NodeFault(f"{path} is not a regular file", remedy="remove what was put in its place")
    _check_owner(descriptor, path)


def _name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def user_directory(path: Path, uid: int, gid: int, *names: str) -> None:
    """Make a directory of a user's own, 0700, with empty files of these names in it.

    One that is the user's already is left, and one of another's: whoever uses it looks at that.
    NodeFault where it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if path.lstat().st_uid != os.geteuid():
            return
        # Root's own is one that a killed hook has begun. It is the user's before it has content:
        # an empty one of root's goes with `remove_as_owner`, too.
        os.chown(path, uid, gid, follow_symlinks=False)
        for name in names:
            with suppress(FileExistsError):
                descriptor = os.open(path / name, flags, 0o600)
                os.fchown(descriptor, uid, gid)
                os.close(descriptor)
    except OSError as problem:
        raise out_of_order(problem, f"make {problem.filename or path}") from problem


def _check_owner(descriptor: int, path: Path) -> None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        raise NodeFault(
            f"{path} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
            remedy=f"it must be owned by uid {os.geteuid()} and not writable by others",
        )
