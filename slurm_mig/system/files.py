"""Directories and files that root relies on: who owns them, who may write there.

Hooks run as root on paths that a user may try to get at. A path is trusted when root
owns every directory on the way to it and nobody else may write there, or only make
names of his own (a sticky directory such as /tmp). It is walked from / by descriptors,
so that what was checked is what is used; files are replaced, never edited.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NoSpace, NotPermitted
from slurm_mig.system.causes import FULL, out_of_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Symbolic links on the way to one path, as the kernel allows (path_resolution(7)).
MAX_LINKS: Final = 40

#: More than any file of ours has, in bytes: reading never fills the memory.
LONGEST: Final = 1 << 20

#: A file system with less free, bytes or files, is as good as full: a hook needs some of both.
LEAST_BYTES: Final = 256 << 10
LEAST_FILES: Final = 16

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH

#: setfacl(1)'s attribute and its layout (linux/posix_acl_xattr.h): version, then tag, rights, id.
_ACL: Final = "system.posix_acl_access"
_ACL_VERSION: Final = struct.pack("<I", 2)
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20

#: Where sites put Slurm's commands.
SEARCH: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin")


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
        remedy=f"{wanted}: else a user could put something of his own in its place",
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
    umask = os.umask(0)
    try:
        with suppress(FileExistsError):
            os.mkdir(name, mode, dir_fd=parent)
    finally:
        os.umask(umask)


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
            return file.read(LONGEST).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def check_own(descriptor: int, path: Path) -> None:
    """NodeFault unless it is a regular file of the caller's that he alone can write."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise NodeFault(f"{path} is not a regular file", remedy="remove what was put in its place")
    _check_owner(descriptor, path)


def _name_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def user_directory(path: Path, uid: int, gid: int, *names: str) -> None:
    """Make a directory of a user's own, 0700, with empty files of these names in it.

    One that is his already is left, and one of another's: who uses it looks at that.
    NodeFault where it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        if path.lstat().st_uid != os.geteuid():
            return
        # Root's own is one that a killed hook has begun. His before there is something in it:
        # an empty one of root's goes with `remove_as_owner`, too.
        os.chown(path, uid, gid, follow_symlinks=False)
        for name in names:
            with suppress(FileExistsError):
                descriptor = os.open(path / name, flags, 0o600)
                os.fchown(descriptor, uid, gid)
                os.close(descriptor)
    except OSError as problem:
        raise out_of_order(problem, f"make {problem.filename or path}") from problem


def remove_as_owner(path: Path) -> None:
    """See to it that what a user made there goes; neither waits for it nor fails.

    The user can have made anything of it: a link, a million files, a tree deeper than
    the stack. So rm(1) removes it, with no more rights than he has, in a process of
    its own. What root owns is not his, and stays, but for an empty directory.
    """
    try:
        status = path.lstat()
    except OSError:
        return
    if status.st_uid == 0:
        with suppress(OSError):
            path.rmdir()
        return

    def as_owner() -> None:
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
        os.chdir("/")
        os.execv(  # noqa: S606  # no shell is the point
            "/bin/rm",
            ["rm", "-rf", "--one-file-system", "--", str(path)],
        )

    def remove() -> None:
        child = os.fork()
        if child == 0:
            as_owner()
        os.waitpid(child, 0)
        # Where its parent is root's alone he can empty it, but not remove it.
        with suppress(OSError):
            path.rmdir()

    detach(remove)


def detach(work: Callable[[], object]) -> None:
    """Run `work` in a process of its own that Slurm neither waits for nor kills.

    Slurm waits until every holder of a hook's output is gone, and kills the
    hook's process group when it ends (facts/slurm.md#failures): so new session, no
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
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE:
        raise NodeFault(
            f"{path} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
            remedy=f"it must be owned by uid {os.geteuid()} and not writable by others",
        )


def replace_file(
    path: Path, content: str | bytes, *, mode: int, reader: tuple[int, int] | None = None
) -> None:
    """Write a file under its final name in one step, with its owner and mode.

    The name never shows a half-written file, and never one with the wrong owner.
    `reader`: a user (uid, gid) who may read it, too; he does not become its owner.
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
    umask = os.umask(0)
    os.umask(umask)
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

    As its owner he could also fill the file system with it, and so the node's hooks would
    fail. Where there are no access lists he owns it all the same.
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


def boot_id(path: Path) -> str:
    """The kernel's id of this boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    try:
        return path.read_text("ascii").strip()
    except OSError as problem:
        raise out_of_order(problem, f"read boot id from {path}") from problem
