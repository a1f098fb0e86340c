"""Leases of steps: what the job's user can do there, and what nobody can."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import NodeFault
from slurm_mig.mig.allocation import Owner
from slurm_mig.state import leases
from slurm_mig.state.run_files import RunFiles
from tests.kit.users import ALICE, BOB, as_user, opened_by

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

OWNER = Owner(7, uid=ALICE, gid=ALICE)


@pytest.fixture
def run(public_tmp: Path) -> RunFiles:
    return RunFiles(public_tmp / "run")


@pytest.fixture
def path(run: RunFiles) -> Path:
    """The leases of a job with two slices."""
    run.mark(OWNER)
    return Path(run.make_leases(OWNER, 2, "/nowhere"))


def test_they_are_in_the_run_directory(run: RunFiles, path: Path, public_tmp: Path) -> None:
    """Root's, complete before the first step; a Prolog that runs twice leaves what is there."""
    assert path == public_tmp / "run/leases/7.0"
    assert run.leases(OWNER) == str(path)
    names = {"lock", *(f"step.{number}" for number in range(8))}
    assert {item.name for item in path.iterdir()} == names
    assert {item.stat().st_uid for item in (path, *path.iterdir())} == {0}
    (path / "step.0").write_text("step 0\nhas 1\n")
    assert run.make_leases(OWNER, 2, "/nowhere") == str(path)
    assert (path / "step.0").read_text() == "step 0\nhas 1\n"


@pytest.mark.parametrize("kind", ["remove", "rename", "replace", "link", "directory", "chmod"])
def test_its_user_cannot_take_them_away(path: Path, kind: str) -> None:
    """What is not there says nothing, so nothing can be made not to be there."""
    attacks: dict[str, Callable[[], object]] = {
        "remove": (path / "step.0").unlink,
        "rename": lambda: (path / "step.0").rename(path / "step.1"),
        "replace": lambda: (path / "new").write_text(""),
        "link": lambda: (path / "step.9").symlink_to("/etc/passwd"),
        "directory": lambda: path.rename(path.with_name("x")),
        "chmod": lambda: (path / "lock").chmod(0o666),
    }
    before = sorted((item.name, item.stat().st_ino) for item in path.iterdir())
    assert isinstance(as_user(ALICE, attacks[kind]), OSError)
    assert sorted((item.name, item.stat().st_ino) for item in path.iterdir()) == before


def test_its_user_writes_there_and_nobody_else(path: Path) -> None:
    """Who can open a lock for reading can hold it, so others cannot even do that."""
    assert as_user(ALICE, lambda: (path / "step.0").write_text("step 0\n")) == 7
    assert opened_by(ALICE, path / "lock")
    for item in (path / "lock", path / "step.0"):
        assert not opened_by(BOB, item)
    assert isinstance(as_user(BOB, lambda: list(path.iterdir())), OSError)


def test_its_user_fills_them(run: RunFiles, path: Path) -> None:
    """That is all that gets full: hooks write beside it, and other jobs get theirs."""

    def fill() -> None:
        with (path / "step.0").open("wb") as file:
            for _ in range(1 << 14):
                file.write(bytes(1 << 16))

    full = as_user(ALICE, fill)
    assert isinstance(full, OSError)
    assert full.errno == errno.ENOSPC
    assert sum(item.stat().st_blocks for item in path.iterdir()) * 512 <= 1 << 20
    other = Owner(8, uid=BOB, gid=BOB)
    made = Path(run.make_leases(other, 2, "/nowhere"))
    assert as_user(BOB, lambda: (made / "step.0").write_text("step 0\n")) == 7
    run.publish(other, "x")


def test_they_go_with_the_job_while_they_are_held(run: RunFiles, path: Path) -> None:
    """No hook waits for a lock that the user holds for ever, nor for one who stands in there."""
    ready, told = os.pipe()
    held = os.fork()
    if not held:
        import fcntl

        os.setgroups([])
        os.setgid(ALICE)
        os.setuid(ALICE)
        os.chdir(path)
        with (path / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.write(told, b"x")
            time.sleep(100)
        os._exit(0)
    try:
        os.read(ready, 1)
        began = time.monotonic()
        run.withdraw(7)
        assert time.monotonic() - began < 1
        assert not path.exists()
        assert run.jobs() == set()
    finally:
        os.kill(held, 9)
        os.waitpid(held, 0)
        os.close(ready)
        os.close(told)


def test_what_a_killed_hook_left(run: RunFiles, path: Path, public_tmp: Path) -> None:
    """A directory without a mount, a mount without files, leases without a mark: all go."""
    for name in ("8.0", "9.0"):
        (path.parent / name).mkdir()
    leases._call("mount", leases.SOURCE.encode(), path.parent / "9.0", b"tmpfs", 0, b"size=4k")
    assert run.jobs() == {7, 8, 9}
    (public_tmp / "run/jobs/7.0").unlink()
    run.withdraw_listed([file for file in run.runs() if file.job != 8])
    run.withdraw(8)
    assert list(path.parent.iterdir()) == []


def test_one_that_was_begun_is_completed(run: RunFiles, public_tmp: Path) -> None:
    """The hook died between the mount and the files."""
    half = public_tmp / "run/leases/7.0"
    half.mkdir(parents=True)
    leases._call("mount", leases.SOURCE.encode(), half, b"tmpfs", 0, b"size=64k")
    path = Path(run.make_leases(OWNER, 2, "/nowhere"))
    assert len(list(path.iterdir())) == 9
    assert as_user(ALICE, lambda: (path / "step.7").write_text("step 0\n")) == 7


def test_where_nobody_may_mount(
    run: RunFiles, public_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container without that right: at the place that the configuration names."""

    def refused(name: str, *_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(leases, "_call", refused)
    place = public_tmp / "leases-7.0-x"
    assert run.make_leases(OWNER, 2, str(place)) == str(place) == run.leases(OWNER)
    assert (place / "lock").stat().st_uid == ALICE
    assert list((public_tmp / "run/leases").iterdir()) == []


def test_a_node_that_cannot_make_them(
    run: RunFiles, public_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the node's fault, and nothing is left."""

    def refused(name: str, *_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(leases, "_call", refused)
    with pytest.raises(NodeFault, match=r"leases/7\.0: Cannot allocate memory"):
        run.make_leases(OWNER, 2, "/nowhere")
    assert list((public_tmp / "run/leases").iterdir()) == []


def test_the_call_says_what_is_wrong(tmp_path: Path) -> None:
    """By the C library's own number."""
    with pytest.raises(OSError, match="Invalid argument"):
        leases._call("umount2", tmp_path, leases._UMOUNT)
    assert ctypes.get_errno() in (0, errno.EINVAL)
