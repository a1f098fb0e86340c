"""Directories and files that root relies on."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.cli.generate import write_all
from slurm_mig.errors import NodeFault, NotPermitted
from slurm_mig.system import boot, replace, trust

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root


def test_a_new_directory_has_exactly_its_mode(tmp_path: Path) -> None:
    """Whatever the umask."""
    old = os.umask(0o077)
    try:
        made = trust.private_directory(tmp_path / "a/b", 0o755)
    finally:
        os.umask(old)
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o500])
def test_one_that_was_there_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    """It is the site's, whatever else is in it; `doctor` says when it is wider than ours."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    trust.private_directory(tmp_path / "a", 0o700)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_one_for_users_that_shuts_them_out(tmp_path: Path) -> None:
    """Their tasks would find no file there, and blame a Prolog that did its work."""
    (tmp_path / "a").mkdir(mode=0o700)
    with pytest.raises(NodeFault, match=f"{tmp_path}/a has mode 0700, .*chmod 0755 {tmp_path}/a"):
        trust.public_directory(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    old = os.umask(0o077)
    try:
        trust.public_directory(tmp_path / "b")
    finally:
        assert os.umask(old) == 0o077
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o755


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_one_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """It may hold somebody's traps by now; narrowing it would hide that."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    with pytest.raises(NodeFault, match="not writable by others"):
        trust.private_directory(tmp_path / "a", 0o700)


def test_one_of_another_owner_is_refused(tmp_path: Path) -> None:
    """Its owner could replace anything in it."""
    (tmp_path / "a").mkdir()
    os.chown(tmp_path / "a", 64001, 64001)
    with pytest.raises(NodeFault, match="owned by uid 64001"):
        trust.private_directory(tmp_path / "a", 0o700)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """Even to a good directory."""
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("real")
    with pytest.raises(NodeFault, match=str(tmp_path / "a")):
        trust.private_directory(tmp_path / "a", 0o700)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    """Named."""
    (tmp_path / "a").touch()
    with pytest.raises(NodeFault, match=str(tmp_path / "a")):
        trust.private_directory(tmp_path / "a", 0o700)


def test_without_rights(public_tmp: Path) -> None:
    """NotPermitted, not a broken node."""
    pid = os.fork()
    if pid == 0:
        os.setuid(64001)
        try:
            trust.private_directory(public_tmp / "a", 0o700)
        except NotPermitted:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_replaced_file_is_complete_and_owned(tmp_path: Path) -> None:
    """Mode and owner are right from the first moment its name exists; no rest is left."""
    path = tmp_path / "f"
    replace.replace_file(path, "one", mode=0o400)
    replace.replace_file(path, "two", mode=0o640)
    status = path.stat()
    assert path.read_text() == "two"
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, 0)
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    """It is removed; what it points to stays as it is."""
    (tmp_path / "victim").write_text("v")
    (tmp_path / f".f.{os.getpid()}").symlink_to("victim")
    replace.replace_file(tmp_path / "f", "new", mode=0o600)
    assert (tmp_path / "victim").read_text() == "v"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


#: What may stand under a name that a file is to have, and the words for it.
STRANGE: dict[str, Callable[[Path], object]] = {
    "a directory": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "a symbolic link": lambda path: path.symlink_to("victim"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize(
    "write",
    [
        lambda path: replace.replace_file(path, "new", mode=0o600),
        lambda path: replace.write_output(path, b"new"),
        lambda path: write_all(path.parent, {"a": "new", "f": "new"}),
    ],
    ids=["replace_file", "write_output", "generate"],
)
def test_only_a_regular_file_is_replaced(
    tmp_path: Path, kind: str, write: Callable[[Path], None]
) -> None:
    """A rename would take /dev/null away, or the link that /dev/stdout is."""
    (tmp_path / "victim").write_text("v")
    STRANGE[kind](tmp_path / "f")
    before = (tmp_path / "f").lstat()
    with pytest.raises(NodeFault, match=f"write {tmp_path}/f: it is {kind}, .*left as it is"):
        write(tmp_path / "f")
    after = (tmp_path / "f").lstat()
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert (tmp_path / "victim").read_text() == "v"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "victim"]


def test_an_output_has_the_mode_of_what_it_replaces(tmp_path: Path) -> None:
    """A picture of who held what stays closed where it was; a new one obeys the umask."""
    old = os.umask(0o027)
    try:
        replace.write_output(tmp_path / "f", "one")
        assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
        (tmp_path / "f").chmod(0o604)
        replace.write_output(tmp_path / "f", b"two")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o604
    assert (tmp_path / "f").read_text() == "two"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Named with the reason."""
    with pytest.raises(NodeFault, match="write .*/none/f: No such file"):
        replace.replace_file(tmp_path / "none/f", "x", mode=0o600)


def test_a_full_disk_keeps_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every further try would leave one more, where there is no room for any."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(NodeFault, match="write .*/f: No space left"):
        replace.replace_file(tmp_path / "f", "new", mode=0o600)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"f": "old"}


def test_a_deadline_keeps_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the writing takes the half-written file along, and goes on itself."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fchmod", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace.replace_file(tmp_path / "f", "new", mode=0o600)
    assert list(tmp_path.iterdir()) == []


# -- every step of a path ---------------------------------------------------------


def foul(path: Path, how: str) -> None:
    """Let a user put something in the place of what lies below."""
    if how == "owner":
        os.chown(path, 64001, 0)
    else:
        path.chmod(int(how, 8))


@pytest.mark.parametrize("how", ["owner", "0775", "0757", "0777"])
@pytest.mark.parametrize("bad", ["a", "a/b", "a/b/c"])
def test_any_step_that_a_user_controls_is_named(tmp_path: Path, how: str, bad: str) -> None:
    """With its owner, its mode and what is wanted; and nothing is made below it."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    foul(tmp_path / bad, how)
    with pytest.raises(NodeFault) as caught, trust.trusted(tmp_path / "a/b/c"):
        pass
    mode = "0755" if how == "owner" else how
    owner = 64001 if how == "owner" else 0
    assert f"{tmp_path / bad} " in f"{caught.value.cause} "
    assert f"is owned by uid {owner} with mode {mode}" in caught.value.cause
    assert "must" in caught.value.remedy
    with pytest.raises(NodeFault, match=str(tmp_path / bad)):
        trust.private_directory(tmp_path / "a/b/c/d/e", 0o700)
    assert not (tmp_path / "a/b/c/d").exists()


def test_a_sticky_directory_of_roots_is_a_fine_step(tmp_path: Path) -> None:
    """As /tmp: others cannot move root's entries there. But it is no place of our own."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o1777)
    trust.private_directory(tmp_path / "a/b", 0o700)
    with pytest.raises(NodeFault, match="not writable by others"):
        trust.private_directory(tmp_path / "a", 0o700)
    os.chown(tmp_path / "a", 64001, 64001)
    with pytest.raises(NodeFault, match="owned by uid 64001"):
        trust.private_directory(tmp_path / "a/b", 0o700)


def test_links_of_roots_are_followed_and_their_way_is_checked(tmp_path: Path) -> None:
    """/var/run is one on many systems; relative and absolute, one through another."""
    (tmp_path / "real/x").mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    with trust.trusted(tmp_path / "two/x/../x") as found:
        assert os.fstat(found).st_ino == (tmp_path / "real/x").stat().st_ino
    (tmp_path / "real").chmod(0o777)
    with pytest.raises(NodeFault, match=f"{tmp_path}/real on the way to {tmp_path}/two/x"):
        trust.private_directory(tmp_path / "two/x/y", 0o700)


def test_a_users_link_is_not_followed(tmp_path: Path) -> None:
    """He could let it lead elsewhere between two looks."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    os.chown(tmp_path / "link", 64001, 64001, follow_symlinks=False)
    with pytest.raises(NodeFault, match="link must be owned by root"):
        trust.private_directory(tmp_path / "link/x", 0o700)


def test_links_that_lead_in_circles(tmp_path: Path) -> None:
    """End as they do in the kernel."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(NodeFault, match="Too many levels of symbolic links"):
        trust.private_directory(tmp_path / "a/x", 0o700)


def test_parents_are_made_closed_whatever_the_umask(tmp_path: Path) -> None:
    """0755: with a umask of 0 they would be everybody's, with 077 nobody's."""
    for umask in (0, 0o077):
        old = os.umask(umask)
        try:
            trust.private_directory(tmp_path / f"{umask}/b/c", 0o700)
        finally:
            os.umask(old)
        for name in (f"{umask}", f"{umask}/b"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o755


def test_two_threads_leave_the_umask_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sets it aside while the other has, and is the last to bring it back."""
    make, entered, ended = os.mkdir, threading.Event(), threading.Event()
    second = threading.Thread(target=trust.private_directory, args=(tmp_path / "b", 0o700))

    def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
        if name == "a":
            second.start()
            entered.wait(0.5)
        else:
            entered.set()
            ended.wait(5)
        make(name, mode, dir_fd=dir_fd)

    old = os.umask(0o022)
    monkeypatch.setattr(os, "mkdir", mkdir)
    try:
        trust.private_directory(tmp_path / "a", 0o700)
        ended.set()
        second.join()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(old)


def test_descriptors_are_not_leaked(tmp_path: Path) -> None:
    """Whichever way the walk ends."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad").chmod(0o777)
    (tmp_path / "link").symlink_to("bad")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("fine/x", "bad/x", "link/x", "link"):
        with suppress(NodeFault):
            trust.private_directory(tmp_path / path, 0o700)
    with pytest.raises(FileNotFoundError), trust.trusted(tmp_path / "none/x"):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# -- files ------------------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "owner", "0666", "big"])
def test_only_a_file_of_ones_own_is_read(tmp_path: Path, kind: str) -> None:
    """No waiting for a FIFO's writer, no following, no filling of the memory."""
    path = tmp_path / "f"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        (tmp_path / "real").write_text("x")
        path.symlink_to("real") if kind == "link" else path.write_text("x")
    if kind == "owner":
        os.chown(path, 64001, 64001)
    elif kind == "0666":
        path.chmod(0o666)
    elif kind == "big":
        os.truncate(path, 1 << 40)
        assert len(trust.read_own(path)) == trust.LONGEST_FILE
        return
    with pytest.raises(NodeFault, match=str(path)):
        trust.read_own(path)


def test_own_files(tmp_path: Path) -> None:
    """Any bytes; one that another hook has just removed is empty."""
    (tmp_path / "f").write_bytes(b"a\xffb")
    assert trust.read_own(tmp_path / "f") == "a\ufffdb"
    assert trust.read_own(tmp_path / "gone") == ""


def test_a_second_name_is_no_fault(tmp_path: Path) -> None:
    """Where fs.protected_hardlinks is 0 a user can make one: he must not drain the node by it."""
    (tmp_path / "f").write_text("x")
    os.link(tmp_path / "f", tmp_path / "second")
    assert trust.read_own(tmp_path / "f") == "x"


def test_boot_ids(tmp_path: Path) -> None:
    """The kernel's, or a fault that says which file is missing."""
    assert len(boot.boot_id(Path("/proc/sys/kernel/random/boot_id"))) == 36
    with pytest.raises(NodeFault, match="boot id"):
        boot.boot_id(tmp_path / "none")


def test_what_killed_processes_left_half_written(tmp_path: Path) -> None:
    """Only names that `replace_file` gives, and only of processes that are gone."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    gone = tmp_path / f".7.0.{pid}"
    kept = [tmp_path / name for name in (f".7.0.{os.getpid()}", "7.0", f"7.0.{pid}", ".7.x")]
    for path in (gone, *kept):
        path.write_text("")
    assert replace.remove_abandoned(tmp_path) == [gone]
    assert all(path.exists() for path in kept)
    assert replace.remove_abandoned(tmp_path / "none") == []
