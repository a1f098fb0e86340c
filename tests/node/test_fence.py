"""What is set aside: counted, and past a threshold the node is drained and resumed by us alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import LockTimeout, SlurmFault
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import GONE, Allocation, Instance, Owner
from slurm_mig.node.fence import Fence, numbers, stuck_records, stuck_words
from slurm_mig.slurm.protocol import LONGEST_REASON, NodeFacts, drain_reason
from slurm_mig.slurm.protocol import STUCK as REASON
from slurm_mig.state.ledger import Ledger
from slurm_mig.state.locks import Locks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class FakeSlurm:
    """slurmctld's view of one node, and whether it answers."""

    state: frozenset[str] = frozenset({"IDLE"})
    reason: str = ""
    silent: bool = False
    asked: list[str] = field(default_factory=list)

    def _ask(self, what: str) -> None:
        if self.silent:
            raise SlurmFault("Unable to contact slurm controller")
        self.asked.append(what)

    def node(self, name: str) -> NodeFacts:
        self._ask("node")
        return NodeFacts(name, self.state, self.reason, {})

    def drain(self, node: str, reason: str) -> None:
        self._ask("drain")
        self.state, self.reason = frozenset({"IDLE", "DRAIN"}), reason

    def undrain(self, node: str) -> None:
        self._ask("undrain")
        self.state, self.reason = frozenset({"IDLE"}), ""


class Ward:
    """A ledger with a clock that is set by hand, and a fence over it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0
        #: What the wall clock is ahead of the boot's own.
        self.step = 1.7e9
        self.boot = "boot"
        self.ledger = self.opened()
        self.locks = Locks(root / "run/locks", 0.2)
        self.slurm = FakeSlurm()
        self.mark = root / "state/drained"

    def opened(self) -> Ledger:
        return Ledger(
            self.root / "state/ledger.db",
            clock=lambda: self.now + self.step,
            boot=self.boot,
            uptime=lambda: self.now,
        )

    def reboot(self, uptime: float) -> None:
        self.ledger.close()
        self.boot, self.step, self.now = "another", self.step + self.now, uptime
        self.ledger = self.opened()

    def settle(self, slices: int = 2, after: float = 60) -> str:
        fence = Fence(
            self.ledger, self.slurm, self.locks, node="n1", mark=self.mark,  # type: ignore[arg-type]
            slices=slices, after=after,
        )  # fmt: skip
        return fence.settle()

    def stick(self, job: int, gpu: int = 0, count: int = 1, text: str = "") -> Allocation:
        instances = tuple(
            Instance("1g.10gb", 19, start, 1, 7 + start, 0, f"MIG-{job}-{start}")
            for start in range(count)
        )
        made = Allocation(
            Owner(job, uid=64001), "n1", f"GPU-{gpu}", gpu, "H100", "boot", "1g.10gb:1",
            phases.RELEASING, instances,
        )  # fmt: skip
        record = self.ledger.add(made, phases.PLANNED)
        reason = text or f"1g.10gb@0 still there, used by pid {job} of alice (python train.py)"
        return self.ledger.move(record, phases.QUARANTINED, reason)

    def free(self, record: Allocation) -> None:
        self.ledger.finish(record.moved(phases.RELEASING), phases.RELEASED)


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    made = Ward(tmp_path)
    yield made
    made.ledger.close()


# -- numbers ------------------------------------------------------------------------


def test_counted_per_gpu_with_the_oldest_age(ward: Ward) -> None:
    """Slices, not records; since when they are stuck, not since when they were made."""
    assert numbers(stuck_records(ward.ledger), ward.ledger.now()) == []
    first = ward.stick(5, count=2)
    ward.now += 100
    ward.stick(6)
    ward.stick(7, gpu=1)
    ward.now += 10
    assert numbers(stuck_records(ward.ledger), ward.ledger.now()) == [
        {"gpu": 0, "uuid": "GPU-0", "slices": 3, "oldest": 110.0},
        {"gpu": 1, "uuid": "GPU-1", "slices": 1, "oldest": 10.0},
    ]
    ward.free(first)
    assert [row["slices"] for row in numbers(stuck_records(ward.ledger), ward.ledger.now())] == [
        1,
        1,
    ]


def test_a_retry_does_not_make_it_younger(ward: Ward) -> None:
    """Reconcile tries again and sets it aside anew."""
    record = ward.stick(5)
    ward.now += 100
    again = ward.ledger.move(record, phases.RELEASING)
    ward.ledger.move(again, phases.QUARANTINED)
    (found,) = stuck_records(ward.ledger)
    assert found.since.age(ward.ledger.now()) == 100


def test_what_is_gone_is_not_stuck(ward: Ward) -> None:
    """And a GPU whose MIG mode stays off counts as one."""
    record = ward.stick(5, count=2)
    assert (
        replace(stuck_records(ward.ledger)[0], record=record.without(record.instances[:1])).slices
        == 1
    )
    assert record.without(record.instances[:1]).instances[0].gi_id == GONE
    assert replace(stuck_records(ward.ledger)[0], record=replace(record, instances=())).slices == 1


# -- drain --------------------------------------------------------------------------


def test_drained_past_the_threshold_and_resumed_after_it(ward: Ward) -> None:
    """The reason names who it is; each is done once."""
    first = ward.stick(5)
    ward.now += 100
    assert ward.settle() == ""
    second = ward.stick(6)
    assert ward.settle() == ""
    ward.now += 60
    assert ward.settle().startswith(f"drained: {REASON}GPU 0 1g.10gb@0 still there, used by pid 5 ")
    assert "pid 6 of alice (python train.py)" in ward.slurm.reason
    assert ward.settle() == ""
    ward.free(second)
    assert ward.settle() == "resumed: its slices are no longer stuck"
    assert (set(ward.slurm.state), ward.slurm.reason) == ({"IDLE"}, "")
    assert ward.settle() == ""
    assert ward.slurm.asked == ["node", "drain", "node", "node", "undrain"]
    ward.free(first)


@pytest.mark.parametrize("step", [-1e6, 1e6])
def test_a_step_of_the_clock_drains_neither_early_nor_late(ward: Ward, step: float) -> None:
    """Set back, the wall clock would never drain for days; put forward, it would at once."""
    ward.stick(5)
    ward.step += step
    ward.now += 59
    assert ward.settle(slices=1) == ""
    assert [row["oldest"] for row in numbers(stuck_records(ward.ledger), ward.ledger.now())] == [59]
    ward.now += 1
    assert ward.settle(slices=1).startswith("drained")


@pytest.mark.parametrize("step", [-1e6, 0, 1e6])
def test_of_another_boot_only_this_one_counts(ward: Ward, step: float) -> None:
    """How long the machine was off no clock of it tells: it is stuck since the boot for certain."""
    ward.stick(5)
    ward.reboot(uptime=59)
    ward.step += step
    assert ward.settle(slices=1) == ""
    ward.now += 1
    assert ward.settle(slices=1).startswith("drained")


def test_set_aside_by_an_earlier_release(ward: Ward) -> None:
    """It put down the wall clock alone; set back, that makes no negative age."""
    ward.stick(5)
    with ward.ledger._guarded("write"):
        ward.ledger._db.execute("DROP TRIGGER event_no_update")
        ward.ledger._db.execute(
            "UPDATE event SET detail = json_remove(detail, '$.boot', '$.uptime')"
        )
    ward.step -= 100
    assert [row["oldest"] for row in numbers(stuck_records(ward.ledger), ward.ledger.now())] == [0]
    assert ward.settle(slices=1) == ""
    ward.step += 160
    assert ward.settle(slices=1).startswith("drained")


def test_never_without_a_threshold(ward: Ward) -> None:
    """The default: nobody drains a node by leaving processes behind, and Slurm is not asked."""
    for job in range(20):
        ward.stick(job)
    ward.now += 1e6
    assert ward.settle(slices=0) == ""
    assert ward.slurm.asked == []


def test_the_threshold_taken_back(ward: Ward) -> None:
    """The configuration says never now: our drain goes."""
    ward.stick(5)
    ward.settle(slices=1, after=0)
    assert ward.settle(slices=0).startswith("resumed")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"IDLE", "DRAIN"}, "fan broken"),
        ({"IDLE", "DRAIN"}, "slurm-mig: job 7: ledger cannot be written"),
        ({"IDLE", "DRAIN"}, ""),
        ({"DOWN"}, "Not responding"),
        ({"IDLE", "FAIL"}, "to be looked at"),
    ],
)
def test_another_reason_is_left_as_it_is(ward: Ward, state: set[str], reason: str) -> None:
    """An administrator's, another tool's, our own for another cause; until it has gone."""
    ward.slurm.state, ward.slurm.reason = frozenset(state), reason
    ward.stick(5)
    assert "not drained for stuck slices: it is" in ward.settle(slices=1, after=0)
    assert (set(ward.slurm.state), ward.slurm.reason) == (state, reason)
    ward.slurm.state, ward.slurm.reason = frozenset({"IDLE"}), ""
    assert ward.settle(slices=1, after=0).startswith("drained")


@pytest.mark.parametrize(
    "now",
    [
        "fan broken",
        "{}, and the fan is broken",
        "slurm-mig: job 7: ledger cannot be written",
    ],
)
def test_a_reason_that_was_changed_is_no_longer_ours(ward: Ward, now: str) -> None:
    """An administrator who drained on top keeps the node drained; we let go of it for good."""
    record = ward.stick(5)
    ward.settle(slices=1, after=0)
    ward.slurm.reason = now.format(ward.slurm.reason)
    ward.free(record)
    assert "no longer drained by slurm-mig, but by" in ward.settle(slices=1)
    assert "DRAIN" in ward.slurm.state
    assert ward.settle(slices=1) == ""
    assert "undrain" not in ward.slurm.asked


def test_resumed_by_hand(ward: Ward) -> None:
    """The administrator's word: not drained again for the same, nor resumed twice."""
    record = ward.stick(5)
    ward.settle(slices=1, after=0)
    ward.slurm.state, ward.slurm.reason = frozenset({"IDLE"}), ""
    assert ward.settle(slices=1, after=0) == ""
    assert ward.slurm.reason == ""
    ward.free(record)
    assert ward.settle(slices=1) == ""
    assert "undrain" not in ward.slurm.asked
    ward.stick(6)
    assert ward.settle(slices=1, after=0).startswith("drained")


@pytest.mark.parametrize("when", ["drain", "resume"])
def test_a_silent_slurmctld(ward: Ward, when: str) -> None:
    """Nothing is taken for done; the next one tries again."""
    record = ward.stick(5)
    if when == "resume":
        ward.settle(slices=1, after=0)
        ward.free(record)
    ward.slurm.silent = True
    for _ in range(2):
        with pytest.raises(SlurmFault):
            ward.settle(slices=1, after=0)
    ward.slurm.silent = False
    assert ward.settle(slices=1, after=0).startswith("drained" if when == "drain" else "resumed")


def test_a_hook_that_died_between_drain_and_mark(ward: Ward) -> None:
    """The next one knows it by its first words, and will resume it."""
    record = ward.stick(5)
    ward.settle(slices=1, after=0)
    ward.mark.unlink()
    assert ward.settle(slices=1, after=0) == ""
    ward.free(record)
    assert ward.settle(slices=1).startswith("resumed")


def test_a_hook_that_died_in_the_drain_itself(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it held is free before the next hook comes: its drain is taken back all the same."""
    record = ward.stick(5)
    drain = FakeSlurm.drain

    def killed(slurm: FakeSlurm, node: str, reason: str) -> None:
        drain(slurm, node, reason)
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeSlurm, "drain", killed)
    with pytest.raises(KeyboardInterrupt):
        ward.settle(slices=1, after=0)
    monkeypatch.undo()
    ward.free(record)
    assert ward.settle(slices=1, after=0).startswith("resumed")
    assert (ward.slurm.reason, ward.mark.exists()) == ("", False)


def test_a_hook_that_died_before_the_drain(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark alone is no drain: the next hook sets it."""
    ward.stick(5)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeSlurm, "drain", killed)
    with pytest.raises(KeyboardInterrupt):
        ward.settle(slices=1, after=0)
    monkeypatch.undo()
    assert ward.settle(slices=1, after=0).startswith("drained")
    assert ward.slurm.reason == ward.mark.read_text()


@pytest.mark.parametrize("theirs", ["", "fan broken"])
def test_a_mark_that_a_power_cut_emptied(ward: Ward, theirs: str) -> None:
    """The drain is known as ours by its first words; another's stays."""
    record = ward.stick(5)
    ward.settle(slices=1, after=0)
    ward.mark.write_text("")
    ward.slurm.reason = theirs or ward.slurm.reason
    ward.free(record)
    done = ward.settle(slices=1, after=0)
    assert done.startswith("no longer drained by slurm-mig" if theirs else "resumed")
    assert not ward.mark.exists()


def test_a_drain_of_somebody_elses_in_between(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set between our look and our drain it is kept, and never taken for ours."""
    record = ward.stick(5)

    def too_late(slurm: FakeSlurm, _node: str, _reason: str) -> None:
        slurm.state, slurm.reason = frozenset({"IDLE", "DRAIN"}), "slurm-mig: GPU 1 is lost"

    monkeypatch.setattr(FakeSlurm, "drain", too_late)
    assert ward.settle(slices=1, after=0).startswith("not drained for stuck slices: it was just")
    ward.free(record)
    assert ward.settle(slices=1, after=0) == ""
    assert ward.slurm.reason == "slurm-mig: GPU 1 is lost"


@pytest.mark.parametrize("content", [b"\0" * 30, b"\xff\xfe"])
def test_a_damaged_mark(ward: Ward, content: bytes) -> None:
    """It says nothing: the node is drained as if it were not there, and resumed in the end."""
    record = ward.stick(5)
    ward.mark.write_bytes(content)
    assert ward.settle(slices=1, after=0).startswith("drained")
    ward.free(record)
    assert ward.settle(slices=1, after=0).startswith("resumed")


def test_a_mark_with_a_damaged_end(ward: Ward) -> None:
    """It is no word for word proof, so the drain stays; and no hook fails over it."""
    record = ward.stick(5)
    ward.settle(slices=1, after=0)
    ward.mark.write_bytes(REASON.encode() + b"\xff\xfe")
    ward.free(record)
    assert ward.settle(slices=1, after=0).startswith("no longer drained by slurm-mig")
    assert ("DRAIN" in ward.slurm.state, ward.mark.exists()) == (True, False)


def test_a_reason_that_outlives_its_drain(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm 24.11 keeps it when a node is resumed: the next stuck slices drain all the same."""

    def undrain(slurm: FakeSlurm, _node: str) -> None:
        slurm.state = frozenset({"IDLE"})

    monkeypatch.setattr(FakeSlurm, "undrain", undrain)
    for job in (5, 6):
        record = ward.stick(job)
        assert ward.settle(slices=1, after=0).startswith("drained")
        assert f"pid {job} of alice" in ward.slurm.reason
        ward.free(record)
        assert ward.settle(slices=1, after=0).startswith("resumed")
    ward.stick(7)
    ward.slurm.state, ward.slurm.reason = frozenset({"DOWN"}), "Not responding"
    assert ward.settle(slices=1, after=0).startswith("not drained for stuck slices: it is DOWN")


def test_one_at_a_time(ward: Ward) -> None:
    """Two hooks with different views of the ledger do not undo each other's work."""
    ward.stick(5)
    pid = os.fork()
    if pid == 0:
        with ward.locks.hold(["drain"], "test"):
            os.kill(os.getpid(), 19)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        with pytest.raises(LockTimeout):
            ward.settle(slices=1, after=0)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert ward.settle(slices=1, after=0).startswith("drained")


def test_the_reason_is_one_line_that_slurm_keeps(ward: Ward) -> None:
    """Short enough, printable, and without quotation marks, which scontrol takes for its own."""
    ward.stick(5, text='x still there, used by pid 5 (a "b"\n\x1b[1m [root@2026-01-01] c"')
    found = stuck_records(ward.ledger)
    reason = drain_reason(stuck_words(found), REASON)
    assert reason.startswith("slurm-mig: stuck slices: GPU 0 x still there, used by pid 5 (a 'b'")
    assert all(" " <= char <= "~" and char != '"' for char in reason)
    assert len(drain_reason(stuck_words(found * 50), REASON)) <= LONGEST_REASON
