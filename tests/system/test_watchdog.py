"""Watched work: it ends, is ended, or is left behind; and nobody waits for it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.system import watchdog
from slurm_mig.system.watchdog import Ended, Note, watched
from tests.kit.ways import is_gone

if TYPE_CHECKING:
    from collections.abc import Callable


class Watcher:
    """A process that watches some work: signals are changed there, not in pytest."""

    def __init__(
        self, path: Path, work: Callable[[Callable[[str], None]], int], deadline: float = 30.0
    ) -> None:
        self.path = path
        self.ready, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.ready)
                os.set_inheritable(ready, True)
                path.write_bytes(pickle.dumps(watched(work, deadline)))
            finally:
                os._exit(0)
        os.close(ready)

    def wait(self) -> Ended:
        """How it ended, once the watcher is gone."""
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0
        ended = pickle.loads(self.path.read_bytes())
        assert isinstance(ended, Ended)
        return ended

    def held(self) -> bool:
        """Whether anybody still holds what the watcher had open."""
        os.set_blocking(self.ready, False)
        try:
            return os.read(self.ready, 1) != b""
        except BlockingIOError:
            return True


def begun(path: Path, tell: Callable[[str], None]) -> int:
    """Say it, write our pid down, and hang."""
    tell("a call that hangs")
    (path / "fresh").write_text(str(os.getpid()))
    (path / "fresh").rename(path / "pid")
    time.sleep(60)
    return 0


def worker(path: Path) -> int:
    """The pid of who hangs."""
    until = time.monotonic() + 20
    while not (path / "pid").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return int((path / "pid").read_text())


def gone(pid: int) -> bool:
    """Whether a process dies within a moment."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if is_gone(pid):
            return True
        time.sleep(0.01)
    return False


def test_exit_code_and_output_pass_through(tmp_path: Path) -> None:
    """As if there were one process only."""

    def work(tell: Callable[[str], None]) -> int:
        tell("x" * 1000)
        os.write(1, b"to stdout\n")
        os.write(2, b"to stderr\n")
        return 7

    ended = Watcher(tmp_path / "ended", work).wait()
    assert (ended.code, ended.killed, ended.by, ended.stuck) == (7, None, None, None)
    assert sorted(ended.output.splitlines()) == ["to stderr", "to stdout"]
    assert ended.doing == "x" * watchdog.NOTE


def test_an_exception_is_not_success(tmp_path: Path) -> None:
    """Also one that nobody foresaw."""

    def work(_tell: Callable[[str], None]) -> int:
        raise SystemExit(0)

    assert Watcher(tmp_path / "ended", work).wait().code == 1


def test_the_deadline_ends_it(tmp_path: Path) -> None:
    """Killed, gone, and said what it was doing."""
    watcher = Watcher(tmp_path / "ended", lambda tell: begun(tmp_path, tell), deadline=0.5)
    started = time.monotonic()
    pid = worker(tmp_path)
    ended = watcher.wait()
    assert (ended.code, ended.killed, ended.by, ended.stuck) == (None, None, None, None)
    assert ended.doing == "a call that hangs"
    assert time.monotonic() - started < 10
    assert gone(pid)


def test_what_cannot_be_killed_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an uninterruptible call even SIGKILL waits: named, and nothing of ours in its hands."""
    monkeypatch.setattr(watchdog, "_kill", lambda _child: None)
    monkeypatch.setattr(watchdog, "REAP", 0.1)
    monkeypatch.setattr(watchdog, "_die_with", lambda _parent: None)
    watcher = Watcher(tmp_path / "ended", lambda tell: begun(tmp_path, tell), deadline=0.3)
    pid = worker(tmp_path)
    try:
        assert watcher.wait().stuck == pid
        assert not watcher.held()
        assert not gone_now(pid)
        assert os.getsid(pid) == pid
    finally:
        os.kill(pid, signal.SIGKILL)


def gone_now(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", watchdog.ENDINGS)
def test_a_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """And the watcher goes on to say so."""
    watcher = Watcher(tmp_path / "ended", lambda tell: begun(tmp_path, tell))
    pid = worker(tmp_path)
    os.kill(watcher.pid, number)
    ended = watcher.wait()
    assert (ended.code, ended.by, ended.doing) == (None, number, "a call that hangs")
    assert gone(pid)


def test_a_signal_beside_success_is_no_success(tmp_path: Path) -> None:
    """Slurm has given the hook up, whatever it still managed to do."""

    def work(_tell: Callable[[str], None]) -> int:
        os.kill(os.getppid(), signal.SIGTERM)
        return 0

    ended = Watcher(tmp_path / "ended", work).wait()
    assert (ended.code, ended.by) == (None, signal.SIGTERM)


def test_a_signal_afterwards_is_no_success_either(tmp_path: Path) -> None:
    """It has its default effect again: the process cannot go on to exit with 0."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            watched(lambda _tell: 0, 30)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


def test_it_dies_with_its_watcher(tmp_path: Path) -> None:
    """Slurm's SIGKILL leaves nobody who goes on carving."""
    watcher = Watcher(tmp_path / "ended", lambda tell: begun(tmp_path, tell))
    pid = worker(tmp_path)
    os.kill(watcher.pid, signal.SIGKILL)
    os.waitpid(watcher.pid, 0)
    assert gone(pid)


def test_a_watcher_that_is_dead_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can die before the kernel knows that somebody wants to follow it."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            watchdog._die_with(os.getppid() + 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_by_somebody_else(tmp_path: Path) -> None:
    """The kernel out of memory, say."""
    watcher = Watcher(tmp_path / "ended", lambda tell: begun(tmp_path, tell))
    os.kill(worker(tmp_path), signal.SIGKILL)
    ended = watcher.wait()
    assert (ended.code, ended.killed, ended.doing) == (None, 9, "a call that hangs")


def test_only_the_teller_tells() -> None:
    """A detached child has closed the note: its number may be the ledger's by then."""
    note = Note()
    note.teller = os.getpid() + 1
    note.tell("nothing")
    assert note.read() == ""
    note.teller = os.getpid()
    note.tell("long\u2026")
    note.tell("s")
    assert note.read() == "s"
    os.close(note.file)
