"""Directories and files that root relies on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from slurm_mig import files
from slurm_mig.errors import NodeFault, NotPermitted

pytestmark = pytest.mark.root


def test_a_new_directory_has_exactly_its_mode(tmp_path: Path) -> None:
    """Whatever the umask."""
    old = os.umask(0o077)
    try:
        made = files.private_directory(tmp_path / "a/b", 0o755)
    finally:
        os.umask(old)
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


def test_an_old_one_is_narrowed(tmp_path: Path) -> None:
    """0755 from a first version becomes 0700."""
    (tmp_path / "a").mkdir(mode=0o755)
    files.private_directory(tmp_path / "a", 0o700)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_one_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """It may hold somebody's traps by now; narrowing it would hide that."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(mode)
    with pytest.raises(NodeFault, match="not writable by others"):
        files.private_directory(tmp_path / "a", 0o700)


def test_one_of_another_owner_is_refused(tmp_path: Path) -> None:
    """Its owner could replace anything in it."""
    (tmp_path / "a").mkdir()
    os.chown(tmp_path / "a", 64001, 64001)
    with pytest.raises(NodeFault, match="owned by uid 64001"):
        files.private_directory(tmp_path / "a", 0o700)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    """Even to a good directory."""
    (tmp_path / "real").mkdir()
    (tmp_path / "a").symlink_to("real")
    with pytest.raises(NodeFault, match=str(tmp_path / "a")):
        files.private_directory(tmp_path / "a", 0o700)


def test_a_file_in_its_place(tmp_path: Path) -> None:
    """Named."""
    (tmp_path / "a").touch()
    with pytest.raises(NodeFault, match=str(tmp_path / "a")):
        files.private_directory(tmp_path / "a", 0o700)


def test_without_rights(public_tmp: Path) -> None:
    """NotPermitted, not a broken node."""
    pid = os.fork()
    if pid == 0:
        os.setuid(64001)
        try:
            files.private_directory(public_tmp / "a", 0o700)
        except NotPermitted:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_replaced_file_is_complete_and_owned(tmp_path: Path) -> None:
    """Mode and owner are right from the first moment its name exists; no rest is left."""
    path = tmp_path / "f"
    files.replace_file(path, "one", mode=0o400, uid=64001, gid=64001)
    files.replace_file(path, "two", mode=0o400, uid=64001, gid=64001)
    status = path.stat()
    assert path.read_text() == "two"
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o400, 64001, 64001)
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    """It is removed; what it points to stays as it is."""
    (tmp_path / "victim").write_text("v")
    (tmp_path / f".f.{os.getpid()}").symlink_to("victim")
    files.replace_file(tmp_path / "f", "new", mode=0o600)
    assert (tmp_path / "victim").read_text() == "v"


def test_a_link_at_the_final_name_is_replaced(tmp_path: Path) -> None:
    """Not written through."""
    (tmp_path / "victim").write_text("v")
    (tmp_path / "f").symlink_to("victim")
    files.replace_file(tmp_path / "f", "new", mode=0o600)
    assert (tmp_path / "victim").read_text() == "v"
    assert not (tmp_path / "f").is_symlink()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """Named with the reason."""
    with pytest.raises(NodeFault, match="write .*/none/f: No such file"):
        files.replace_file(tmp_path / "none/f", "x", mode=0o600)


def test_boot_ids(tmp_path: Path) -> None:
    """The kernel's, or a fault that says which file is missing."""
    assert len(files.boot_id(Path("/proc/sys/kernel/random/boot_id"))) == 36
    with pytest.raises(NodeFault, match="boot id"):
        files.boot_id(tmp_path / "none")


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
    assert files.remove_abandoned(tmp_path) == [gone]
    assert all(path.exists() for path in kept)
    assert files.remove_abandoned(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("cpu 1 2\nbtime 1790000000\n", 1.79e9), ("cpu 1\n", 0), ("btime\n", 0), ("btime x", 0)],
)
def test_when_the_kernel_booted(tmp_path: Path, text: str, seconds: float) -> None:
    """From /proc/stat; 0, before which nothing was, where it does not say."""
    (tmp_path / "stat").write_text(text)
    assert files.boot_time(tmp_path / "stat") == seconds
    assert files.boot_time(tmp_path / "none") == 0
    assert files.boot_time(Path("/proc/stat")) > 1e9
