"""Who waits for a GPU is served in the order it came, whoever of the others dies."""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slurm_mig.errors import Crowded, LockTimeout, NodeFault
from slurm_mig.slurm.commands import CommandClient
from slurm_mig.state import locks as locks_module
from slurm_mig.state.locks import Locks
from slurm_mig.state.turns import Turn
from slurm_mig.system.held import AskedUnderLock, ask_freely

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

#: Says `in` once it has its place, `held` with the lock, and leaves when it is told.
WAITER = """
import sys, time
from pathlib import Path
from slurm_mig.state import locks
from slurm_mig.state import turns
root, name = Path(sys.argv[1]), sys.argv[2]
take = turns.Turn._take
def told(self):
    take(self)
    print("in", flush=True)
turns.Turn._take = told
with locks.Locks(root, float(sys.argv[3])).hold(["g"], name):
    print("held", time.monotonic(), flush=True)
    sys.stdin.readline()
"""


class Waiter:
    """A process that queues for the lock `g`."""

    def __init__(self, root: Path, name: str, patience: float = 60) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(root), name, str(patience)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._line() == "in"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def held(self) -> float:
        """Wait until it has the lock; when that was."""
        word, _, at = self._line().partition(" ")
        assert word == "held"
        return float(at)

    def leave(self) -> float:
        assert self.process.stdin is not None
        at = time.monotonic()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.process.wait(60)
        return at

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)

    def end(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[list[Waiter]]:
    """Ten in a row: the first has the lock."""
    root = tmp_path / "locks"
    made: list[Waiter] = []
    try:
        made += (Waiter(root, f"w{number}") for number in range(10))
        yield made
    finally:
        for waiter in made:
            waiter.end()


def test_in_the_order_they_came(queue: list[Waiter]) -> None:
    """And handed over without a pause: no poll in between."""
    queue[0].held()
    for now, following in itertools.pairwise(queue):
        now.leave()
        following.held()
    queue[-1].leave()


@pytest.mark.parametrize("dead", [(0,), (1,), (4, 5, 6), (0, 1, 9), (8,), (0, 2, 4, 6, 8)])
def test_the_dead_are_passed_over(
    queue: list[Waiter], dead: tuple[int, ...], tmp_path: Path
) -> None:
    """Kill -9 of the holder and of waiters, in any position."""
    queue[0].held()
    for place in sorted(dead, reverse=True):
        queue[place].kill()
    living = [waiter for place, waiter in enumerate(queue) if place not in dead]
    for waiter in living:
        if waiter is not queue[0]:
            waiter.held()
        waiter.leave()
    # What the last dead left goes with the next who comes.
    with Locks(tmp_path / "locks", 5).hold(["g"], "x"):
        pass
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["g.lock"]


def test_the_time_of_a_hand_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No pause between two holders: it was 10 ms in the median when the lock was polled for."""
    locks, taken = [Locks(tmp_path / "locks", 60) for _ in range(2)], []
    gate = threading.Barrier(2)
    ends: list[float] = []

    def work(own: Locks) -> None:
        gate.wait()
        for _ in range(50):
            with own.hold(["g"], "x"):
                taken.append(time.monotonic())
                # The other has its place by now, or is about to take it.
                time.sleep(0.002)
                ends.append(time.monotonic())

    threads = [threading.Thread(target=work, args=(own,)) for own in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gaps = sorted(later - end for end, later in zip(ends, taken[1:], strict=False))
    middle = statistics.median(gaps) * 1000
    with capsys.disabled():
        print(f"\nhand-over of a lock: {middle:.2f} ms in the median of {len(gaps)}")
    assert middle < 10


class Served:
    """A place behind holders that each keep the lock for so many seconds of a clock of its own."""

    def __init__(self, *each: float) -> None:
        self.ends = list(itertools.accumulate(each))
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        # Never less: the clock goes on while a hook looks.
        self.now = max(self.now, min(self.now + max(seconds, 0.001), self.ends[-1]))
        return self.now >= self.ends[-1]

    def first(self) -> int:
        return sum(self.now >= end for end in self.ends)

    def before(self) -> int:
        return len(self.ends) - self.first()


def waited(turn: Served, monkeypatch: pytest.MonkeyPatch, patience: float) -> float:
    """When the last in that queue had the lock."""
    monkeypatch.setattr(locks_module, "time", turn)
    monkeypatch.setattr(locks_module, "_taken", lambda *_: True)
    Locks(Path("/nowhere"), patience)._acquire(Mock(), turn, "g", None)  # type: ignore[arg-type]
    return turn.now


def test_patience_is_measured_by_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds the lock for less than the patience, all together for thirty times as long."""
    assert waited(Served(*[9.0] * 30), monkeypatch, 10) == 270


@pytest.mark.parametrize(("each", "at"), [((11.0,), 10), ((9.0, 9.0, 11.0, 9.0), 28)])
def test_one_holder_among_many_hangs(
    each: tuple[float, ...], at: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the patience counts from when that one came, not from when we did."""
    turn = Served(*each)
    with pytest.raises(LockTimeout, match=r"not free within 1\d"):
        waited(turn, monkeypatch, 10)
    assert at <= turn.now <= at + locks_module.LOOK_EVERY


def test_each_holder_gives_another_sign(tmp_path: Path) -> None:
    """By which progress is seen; also of two that come right one after the other."""
    locks, signs = Locks(tmp_path / "locks", 5), []
    for _ in range(20):
        with locks.hold(["g"], "x"):
            signs.append(locks._sign("g", Turn(tmp_path / "locks", "g")))
    assert len(set(signs)) == 20


def test_the_same_holder_for_too_long(tmp_path: Path, queue: list[Waiter]) -> None:
    """Then every waiter gives up, also one that is not next, with the holder's name."""
    queue[0].held()
    with (
        pytest.raises(LockTimeout, match=rf"pid {queue[0].process.pid} \(w0\)"),
        Locks(tmp_path / "locks", 0.5).hold(["g"], "x"),
    ):
        pass


def test_the_queue_is_longer_than_the_hook_lives(tmp_path: Path, queue: list[Waiter]) -> None:
    """Nobody hangs: so it is no fault of the node's, and says how many are before it."""
    queue[0].held()
    late = Locks(tmp_path / "locks", 60, until=time.monotonic() + 0.5)
    with pytest.raises(Crowded, match="10 others are still before this one"), late.hold(["g"], "x"):
        pass


def test_without_a_ticket_the_lock_is_had_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full /run takes the place in the order, and the note; the work goes on."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    root = tmp_path / "locks"
    with Locks(root, 5).hold(["g"], "x"):
        pass
    monkeypatch.setattr(os, "mkfifo", full)
    monkeypatch.setattr("slurm_mig.state.locks.replace_file", full)
    with (
        Locks(root, 5).hold(["g"], "x"),
        pytest.raises(LockTimeout, match="left no note"),
        Locks(root, 0.1).hold(["g"], "y"),
    ):
        pass
    assert [path.name for path in root.iterdir()] == ["g.lock"]


def test_what_others_left_in_the_directory(tmp_path: Path) -> None:
    """Directories, files, odd numbers and notes that are none: nothing stops, nothing is lost."""
    root = tmp_path / "locks"
    with Locks(root, 1).hold(["g"], "x"):
        pass
    (root / "g.turn.5").mkdir()
    (root / "g.turn.7").touch()
    for name in (
        "g.turn.",
        "g.turn.x",
        "g.turn.²",
        "g.turn.-1",
        "gg.turn.1",
        ".g.x.y",
        "odd.holder",
    ):
        (root / name).touch()
    (root / "g.holder").write_text('{"pid": 1, "since": "yesterday"}')
    with Locks(root, 1).hold(["g"], "x"), pytest.raises(LockTimeout):
        (root / "g.holder").write_text("[]")
        with Locks(root, 0.1).hold(["g"], "y"):
            pass
    assert (root / "g.turn.5").is_dir()


def test_a_lock_that_cannot_be_opened(tmp_path: Path) -> None:
    """It names the file and what to do."""
    root = tmp_path / "locks"
    root.mkdir(mode=0o700)
    (root / "g.lock").mkdir()
    with (
        pytest.raises(NodeFault, match=r"lock .*g\.lock: .*; .*namei"),
        Locks(root, 1).hold(["g"], "x"),
    ):
        pass


# -- nothing is asked under a lock ------------------------------------------------------------


def test_no_question_under_a_lock(tmp_path: Path) -> None:
    """Whatever asks Slurm: it is a bug, and says where."""
    locks = Locks(tmp_path / "locks", 1)
    client = CommandClient(tmp_path, 1)
    with (
        locks.hold(["GPU-a"], "carve"),
        pytest.raises(AskedUnderLock, match="squeue: asked while holding GPU-a"),
    ):
        client.live_jobs("n1")
    ask_freely("squeue")
    with locks.hold(["drain"], "drain", ask=True):
        ask_freely("squeue")


# -- any course of events ---------------------------------------------------------------------


class _Place:
    """A place in the queue, and the end of its process: the kernel closes what it had open."""

    def __init__(self, directory: Path) -> None:
        self.turn = Turn(directory, "g")

    def come(self) -> Self:
        self.turn.__enter__()
        return self

    def die(self) -> None:
        os.close(self.turn._ticket)
        self.turn._ticket = -1

    def leave(self) -> None:
        self.turn.__exit__()


class QueueMachine(RuleBasedStateMachine):
    """Come, leave, give up and die in any order: the first of the living is served, no other."""

    @initialize()
    def start(self) -> None:
        import tempfile

        self._space = tempfile.TemporaryDirectory()
        self.root = Path(self._space.name)
        self.living: list[_Place] = []

    @rule()
    def come(self) -> None:
        self.living.append(_Place(self.root).come())

    @precondition(lambda self: self.living)
    @rule(at=st.integers(0, 100))
    def leave(self, at: int) -> None:
        """The holder is done, or a waiter gives up."""
        self.living.pop(at % len(self.living)).leave()

    @precondition(lambda self: self.living)
    @rule(at=st.integers(0, 100))
    def die(self, at: int) -> None:
        self.living.pop(at % len(self.living)).die()

    @precondition(lambda self: self.living)
    @rule()
    def serve(self) -> None:
        """Who is first tidies up: no ticket of the dead is before it any more."""
        self.living[0].turn.tidy()
        assert self.living[0].turn.before() == 0

    @invariant()
    def one_is_served(self) -> None:
        served = [place for place in getattr(self, "living", []) if place.turn.wait(0)]
        assert served == getattr(self, "living", [])[:1]

    def teardown(self) -> None:
        for place in getattr(self, "living", []):
            place.leave()
        if hasattr(self, "_space"):
            self._space.cleanup()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_all_at_once(tmp_path: Path) -> None:
    """Threads that come and go as they like, some without a word: never two at once."""
    root, inside, most = tmp_path / "locks", [0], [0]
    chance = random.Random(7)

    def work(pauses: list[float]) -> None:
        for pause in pauses:
            with Locks(root, 60).hold(["g"], "x"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(pause)
                inside[0] -= 1

    threads = [
        threading.Thread(target=work, args=([chance.random() / 500 for _ in range(15)],))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert (most, inside) == ([1], [0])


def test_who_gives_way_lets_the_whole_queue_go_first(tmp_path: Path) -> None:
    """And of several one at a time: who comes meanwhile finds one of them before itself."""
    locks = Locks(tmp_path / "locks", 20)
    order: list[str] = []

    def late(name: str) -> None:
        with locks.giving_way("g"), Locks(tmp_path / "locks", 20).hold(["g"], name):
            order.append(name)

    with locks.hold(["g"], "first"):
        others = [threading.Thread(target=late, args=(f"late {n}",)) for n in range(3)]
        for thread in others:
            thread.start()
        with Turn(tmp_path / "locks", "g") as second:
            while len(list((tmp_path / "locks").glob("g.late.turn.*"))) < 3:
                time.sleep(0.01)
            assert len(list((tmp_path / "locks").glob("g.turn.*"))) == 2
            assert not second.wait(0)
            order.append("second")
    for thread in others:
        thread.join(20)
    assert order[0] == "second"
    assert sorted(order[1:]) == ["late 0", "late 1", "late 2"]


def test_who_gives_way_does_so_for_half_the_patience(tmp_path: Path) -> None:
    """A node that is never idle must not keep what has ended for ever."""
    locks = Locks(tmp_path / "locks", 0.4)
    with locks.hold(["g"], "x"):
        began = time.monotonic()
        with locks.giving_way("g"):
            assert 0.2 <= time.monotonic() - began < 5
