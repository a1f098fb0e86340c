"""One lock per GPU: exclusive, bounded, root's alone, and its holder is named."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import LockTimeout, NodeFault
from slurm_mig.state.locks import Locks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


HOLD = """
import sys
from pathlib import Path
from slurm_mig.state.locks import Locks
with Locks(Path(sys.argv[1]), 10).hold(sys.argv[2:], "carve 3g.40gb:1 for job 7"):
    print("held", flush=True)
    sys.stdin.read()
"""

Holder = Callable[[list[str]], subprocess.Popen[str]]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """Start another process that holds locks until its input ends."""
    started: list[subprocess.Popen[str]] = []

    def start(gpus: list[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "locks"), *gpus]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.communicate(timeout=30)


def test_a_timeout_names_the_holder(tmp_path: Path, holder: Holder) -> None:
    """Pid, what it does and since when; after the deadline, not long after."""
    process = holder(["GPU-a"])
    started = time.monotonic()
    with (
        pytest.raises(LockTimeout) as caught,
        Locks(tmp_path / "locks", 0.3).hold(["GPU-a"], "release"),
    ):
        pytest.fail("two holders")
    assert 0.3 <= time.monotonic() - started < 5
    pattern = rf"GPU-a: .* held by pid {process.pid} \(carve 3g.40gb:1 for job 7\) since \d{{4}}-"
    assert re.match(pattern, str(caught.value))


def test_other_gpus_are_free(tmp_path: Path, holder: Holder) -> None:
    """GPUs carve in parallel."""
    holder(["GPU-a"])
    with Locks(tmp_path / "locks", 0.3).hold(["GPU-b"], "release"):
        pass


def test_what_was_taken_is_let_go_when_a_later_one_times_out(
    tmp_path: Path, holder: Holder
) -> None:
    """Otherwise a refused whole-node job would hold every other GPU."""
    holder(["GPU-b"])
    locks = Locks(tmp_path / "locks", 0.2)
    with pytest.raises(LockTimeout), locks.hold(["GPU-a", "GPU-b"], "x"):
        pass
    with locks.hold(["GPU-a"], "x"):
        pass


def test_a_killed_holder_frees_its_lock(tmp_path: Path, holder: Holder) -> None:
    """The kernel does; its note stays behind and misleads nobody."""
    process = holder(["GPU-a"])
    process.kill()
    process.wait(30)
    with Locks(tmp_path / "locks", 5).hold(["GPU-a"], "x"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "locks/GPU-a.holder").read_text()


def test_a_note_half_written_goes(tmp_path: Path) -> None:
    """Of a holder that died over it; the next one of the same GPU takes it away."""
    locks = Locks(tmp_path / "locks", 1)
    with locks.hold(["GPU-a"], "x"):
        (tmp_path / "locks/.GPU-b.holder.123").touch()
    with locks.hold(["GPU-b"], "x"):
        assert not (tmp_path / "locks/.GPU-b.holder.123").exists()


def test_released_on_the_way_out_of_an_error(tmp_path: Path) -> None:
    """And the note is gone."""
    locks = Locks(tmp_path / "locks", 1)
    with pytest.raises(ZeroDivisionError), locks.hold(["GPU-a"], "x"):
        raise ZeroDivisionError
    assert not (tmp_path / "locks/GPU-a.holder").exists()
    with locks.hold(["GPU-a"], "x"):
        pass


def test_two_orders_do_not_deadlock(tmp_path: Path) -> None:
    """Whoever names them how: both finish."""
    locks = Locks(tmp_path / "locks", 20)
    first, finished = threading.Barrier(2), []

    def work(gpus: list[str]) -> None:
        first.wait()
        for _ in range(5):
            with locks.hold(gpus, "x"):
                finished.append(1)

    threads = [threading.Thread(target=work, args=(g,)) for g in (["a", "b"], ["b", "a"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(finished) == 10


def test_only_root_can_get_at_it(tmp_path: Path) -> None:
    """0600 in 0700: a user can neither hold nor replace a lock (facts/design.md#carving)."""
    with Locks(tmp_path / "locks", 1).hold(["GPU-a"], "x"):
        pass
    assert stat.S_IMODE((tmp_path / "locks").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "locks/GPU-a.lock").stat().st_mode) == 0o600


def test_a_directory_others_write_to_is_refused(tmp_path: Path) -> None:
    """Before any lock is taken in it."""
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks").chmod(0o777)
    with pytest.raises(NodeFault), Locks(tmp_path / "locks", 1).hold(["GPU-a"], "x"):
        pass


def test_a_run_directory_others_write_to_is_refused(tmp_path: Path) -> None:
    """They could put their own directory in the place of the locks."""
    tmp_path.chmod(0o777)
    with pytest.raises(NodeFault), Locks(tmp_path / "locks", 1).hold(["GPU-a"], "x"):
        pass
    assert not (tmp_path / "locks").exists()


def test_a_holder_that_left_no_note(tmp_path: Path, holder: Holder) -> None:
    """Between taking a lock and writing the note there is a moment."""
    holder(["GPU-a"])
    (tmp_path / "locks/GPU-a.holder").unlink()
    with (
        pytest.raises(LockTimeout, match="left no note"),
        Locks(tmp_path / "locks", 0.1).hold(["GPU-a"], "x"),
    ):
        pass
