"""What fits is told to Slurm in step, errs to the safe side, and fails no hook."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.mig.allocation import Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.mig.request import Request, from_stamp
from slurm_mig.node import publish, watch
from slurm_mig.node.gate import alone
from slurm_mig.node.publish import Publisher, counts_in, with_fits
from slurm_mig.packing.foresight import GpuState
from slurm_mig.packing.states import CLOSED
from slurm_mig.slurm.protocol import NodeFacts, Pending
from slurm_mig.transaction import carve, release
from slurm_mig.values import replace
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurm_mig.node.node import Node
    from slurm_mig.slurm.protocol import Slurm
    from tests.kit.site import Site

pytestmark = pytest.mark.root

SMALL, LARGE = "1g.10gb/19/4:1", "3g.40gb/9/14:1"
FULL = (
    "gpu:h100:2,shard:h100:62,mig:1g.10gb:14,mig:3g.40gb:4,other:7,"
    "fit:1g.10gb:14,fit:3g.40gb:4,fit:4g.40gb:2,fit:start:16,fit:rest:64"
)
NOW = 6_000_000.0


class Desk:
    """A slurmctld with this node, another one, and what is asked of it."""

    def __init__(self) -> None:
        self.gres, self.extra, self.rule = FULL, "", "CR_CPU"
        self.version_is, self.preempt = (24, 11), "preempt/none"
        self.waiting: list[Pending] = []
        self.comments: dict[str, str] = {}
        self.others = [NodeFacts("n2", frozenset({"IDLE"}), "", {}, gres_text="gpu:1")]
        self.asked: list[tuple[str, ...]] = []
        self.silent = self.dies = False

    def node(self, name: str) -> NodeFacts:
        self._answer("node")
        return NodeFacts(
            name, frozenset({"IDLE"}), "", {}, gres_text=self.gres, extra=self.extra,
            partitions=frozenset({"all"}),
        )  # fmt: skip

    def nodes(self) -> list[NodeFacts]:
        return [self.node("n1"), *self.others]

    def version(self) -> tuple[int, int]:
        return self.version_is

    def configuration(self) -> dict[str, str]:
        return {"selecttypeparameters": self.rule, "preempttype": self.preempt}

    def pending(self) -> list[Pending]:
        return self.waiting

    def comment_of(self, reference: str) -> str:
        return self.comments.get(reference, "")

    def release(self, job_id: int) -> None:
        self._answer("release", str(job_id))

    def set_gres(self, node: str, text: str) -> None:
        self._answer("set_gres", node)
        # slurmctld drains a node that registers with another sum while jobs hold some of it.
        assert sum(counts_in(text).values()) == sum(counts_in(FULL).values())
        self.gres = text
        if self.dies:
            raise SystemExit

    def set_extra(self, node: str, text: str) -> None:
        self._answer("set_extra", node, text)

    def _answer(self, *words: str) -> None:
        if self.silent:
            raise SlurmFault("no answer")
        self.asked.append(words)

    def fits(self) -> dict[str, int]:
        return {kind: count for kind, count in counts_in(self.gres).items() if kind != "rest"}

    def updates(self) -> int:
        return sum(words[0] == "set_gres" for words in self.asked)


@pytest.fixture
def desk(node: Node) -> Desk:
    found = Desk()
    node.__dict__["slurm"] = found
    node.config = replace(node.config, ahead=2)
    return found


def publisher(node: Node, desk: Desk) -> Publisher:
    made = Publisher(node)
    made._slurm = desk  # type: ignore[assignment]
    return made


def give(node: Node, job: int, items: str, gpu: int = 0, fit: str = "") -> None:
    request = from_stamp(f"slurm-mig=1,{items}{f',fit/{fit}' if fit else ''}")
    assert isinstance(request, Request)
    node.files.fit = request.counted
    owner = Owner(job, uid=64001, gid=64001)
    carve.allocate(node.bench(), owner, request, node.driver.gpus()[gpu])


def end(node: Node, job: int) -> None:
    records = node.ledger.open_of_job(job)
    release.release_all(node.bench(), records, "the job ended", over=True)
    node.files.withdraw(job)


def test_only_fit_is_replaced() -> None:
    """What an update leaves out would be 0, and what others have written is theirs."""
    assert with_fits("gpu:2,mig:fit:3,fit:a:1,fit:b:2,x", {"a": 7}) == (
        "gpu:2,mig:fit:3,fit:a:7,fit:b:2,x"
    )


def test_counts_that_slurm_writes_in_thousands() -> None:
    """It does where they are whole ones: 1K is 1024."""
    assert counts_in("fit:a:1K,mig:b:3,fit:rest:2") == {"a": 1024, "rest": 2}


def test_without_a_count_that_balances_the_others_nothing_is_published(
    node: Node, desk: Desk
) -> None:
    """A slurm.conf of before: the node would be drained at slurmd's next registration."""
    desk.gres = FULL.removesuffix(",fit:rest:64")
    (told,) = publisher(node, desk).look(NOW)
    assert "fit:rest" in told
    publisher(node, desk).switch(on=False)
    assert desk.updates() == 0


def test_a_hook_after_an_upgrade_publishes_nothing_that_drains_its_node(
    node: Node, desk: Desk
) -> None:
    """What was written last is of a release without `rest`, and the next look is to come."""
    publisher(node, desk).look(NOW)
    desk.gres, before = FULL.removesuffix(",fit:rest:64"), desk.updates()
    give(node, 1, LARGE, fit="3g.40gb")
    publisher(node, desk).in_step()
    assert desk.updates() == before
    assert not publisher(node, desk).known


def test_in_use_and_what_would_succeed(node: Node, desk: Desk) -> None:
    """By Slurm's own pick; a job without `fit` takes room, and is not counted as in use."""
    mine = publisher(node, desk)
    mine.look(NOW)
    assert desk.fits() == {"1g.10gb": 14, "3g.40gb": 4, "4g.40gb": 2, "start": 2}
    give(node, 1, LARGE, fit="3g.40gb")
    mine.look(NOW)
    assert desk.fits() == {"1g.10gb": 11, "3g.40gb": 4, "4g.40gb": 2, "start": 3}
    give(node, 2, LARGE)
    mine.look(NOW)
    assert desk.fits()["3g.40gb"] == 1 + 2
    assert desk.fits()["start"] == 1 + 2
    assert "other:7" in desk.gres
    assert "mig:3g.40gb:4" in desk.gres


def test_a_gpu_without_a_place_stops_the_count(node: Node, desk: Desk) -> None:
    """Slurm would go on sending to GPU 0, whose halves are both begun, though GPU 1 is empty."""
    for job in range(1, 8):
        give(node, job, SMALL, fit="1g.10gb")
    starts = {node.ledger.open_of_job(job)[0].instances[0].start: job for job in range(1, 8)}
    for start, job in starts.items():
        if start not in {0, 4}:
            end(node, job)
    mine = publisher(node, desk)
    mine.look(NOW)
    assert desk.fits()["3g.40gb"] == 0
    desk.rule = "CR_CPU,LL_SHARED_GRES"
    mine.look(NOW)
    assert desk.fits()["3g.40gb"] >= 1


def test_what_is_in_use_and_has_no_place_is_0(node: Node, desk: Desk) -> None:
    """Published as in use, who waited for it had a reservation, and all behind it waited, too."""
    mine = publisher(node, desk)
    for job in range(1, 5):
        give(node, job, LARGE, gpu=(job - 1) // 2, fit="3g.40gb")
    mine.look(NOW)
    assert desk.fits() == {"1g.10gb": 0, "3g.40gb": 0, "4g.40gb": 0, "start": 6}
    # Slurm preempts nobody for what is not counted at all.
    desk.preempt = "preempt/partition_prio"
    mine.look(NOW)
    assert desk.fits()["3g.40gb"] == 4
    end(node, 4)
    mine.look(NOW)
    assert desk.fits()["3g.40gb"] == 3 + 1


def test_what_no_record_names_is_in_the_way(site: Site, node: Node, desk: Desk) -> None:
    with site.machine.change(0) as board:
        for start in (3, 4):
            board.create(19, Placement(start, 1), busy=False)
    publisher(node, desk).look(NOW)
    assert desk.fits()["4g.40gb"] == 0


def test_hooks_write_on_change_only(node: Node, desk: Desk) -> None:
    mine = publisher(node, desk)
    assert mine.in_step() == ""
    assert desk.updates() == 1, "the first hook of a boot looks"
    asked = len(desk.asked)
    mine.in_step()
    assert len(desk.asked) == asked, "nothing has changed, nothing is asked"
    give(node, 1, LARGE, fit="3g.40gb")
    mine.in_step()
    assert desk.updates() == 2
    desk.gres = FULL
    mine.in_step()
    assert desk.gres == FULL, "a registration is seen at the next look"
    mine.in_step(again=True)
    assert desk.gres != FULL, "or when a job was refused"


def test_a_silent_slurmctld_stops_no_hook(node: Node, desk: Desk) -> None:
    """One waits for it, and for half a minute the others do without."""
    mine = publisher(node, desk)
    mine.look(NOW)
    give(node, 1, LARGE, fit="3g.40gb")
    desk.silent = True
    assert "no answer" in mine.in_step()
    desk.silent = False
    before = list(desk.asked)
    assert mine.in_step() == ""
    assert desk.asked == before
    mine.look()
    assert desk.fits()["start"] == 3


def test_a_burst_is_sent_together(node: Node, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurmctld takes its locks for each update."""
    later: list[float] = []
    monkeypatch.setattr(publish, "look_later", lambda _, seconds: later.append(seconds))
    monkeypatch.setattr(publish, "BURST", 2)
    mine = publisher(node, desk)
    mine.look()
    for job in range(1, 5):
        give(node, job, SMALL, fit="1g.10gb")
        mine.in_step()
    assert desk.updates() == 2
    assert later == [1.0] * 3


def test_a_publisher_dies_when_slurm_has_it(node: Node, desk: Desk) -> None:
    """What it wrote is nowhere on record: the next hook writes, though all is as it was before."""
    mine = publisher(node, desk)
    give(node, 1, LARGE, fit="3g.40gb")
    mine.look(NOW)
    before = desk.gres
    give(node, 2, LARGE, fit="3g.40gb")
    desk.dies = True
    with pytest.raises(SystemExit):
        mine.in_step()
    assert desk.gres != before
    desk.dies = False
    end(node, 2)
    mine.in_step()
    assert desk.gres == before


def test_switching_off_that_dies_is_ended_by_a_look(node: Node, desk: Desk) -> None:
    """Else counts that nobody raises any more would keep jobs waiting for ever."""
    mine = publisher(node, desk)
    give(node, 1, LARGE, fit="3g.40gb")
    mine.look(NOW)
    desk.silent = True
    with pytest.raises(SlurmFault):
        mine.switch(on=False)
    desk.silent = False
    assert desk.fits()["start"] < 16
    mine.look(NOW)
    assert set(desk.fits().values()) == {16}


def test_off_and_on(node: Node, desk: Desk) -> None:
    """Off: counts that stop nothing, and no hook lowers them again."""
    mine = publisher(node, desk)
    give(node, 1, LARGE, fit="3g.40gb")
    mine.look(NOW)
    mine.switch(on=False)
    assert set(desk.fits().values()) == {16}
    give(node, 2, LARGE, fit="3g.40gb")
    assert mine.in_step() == ""
    assert mine.look(NOW) == []
    assert set(desk.fits().values()) == {16}
    mine.switch(on=True)
    assert desk.fits()["start"] == 2 + 2


def test_where_slurm_counts_no_fit(node: Node, desk: Desk) -> None:
    """A site that took it out of slurm.conf: hooks ask nothing any more."""
    mine = publisher(node, desk)
    mine.look(NOW)
    assert mine.known
    desk.gres = "gpu:h100:2"
    mine.look(NOW)
    assert (desk.gres, mine.known) == ("gpu:h100:2", False)


def test_every_node_has_mig_in_its_extra(node: Node, desk: Desk) -> None:
    """One that lacks it would have jobs held; what the site wrote there stays."""
    desk.extra = '{"zone":"a"}'
    publisher(node, desk).look(NOW)
    told = [words for words in desk.asked if words[0] == "set_extra"]
    assert told == [
        ("set_extra", "n1", '{"zone":"a","mig":1}'),
        ("set_extra", "n2", '{"mig":1}'),
    ]
    desk.asked.clear()
    desk.version_is = (22, 5)
    publisher(node, desk).look(NOW)
    assert not [words for words in desk.asked if words[0] == "set_extra"]
    assert "no JSON" in publish.give_extra(_new(desk), "n3", "zone a")[0]
    assert publish.give_extra(_new(desk), "n3", '{"mig":1,"x":2}') == []


def _new(desk: Desk) -> Slurm:
    desk.version_is = (26, 5)
    return desk  # type: ignore[return-value]


def _job(job: int, reason: str, wants: str, since: float = NOW - 500) -> Pending:
    return Pending(job, reason, since, "all", wants)


def test_who_is_held_is_let_go(node: Node, desk: Desk) -> None:
    """Only those that job_submit.lua has counted, and that hold what their stamp says."""
    three = "gres/mig:3g.40gb:1,gres/shard:14,gres/fit:3g.40gb:1,gres/fit:start:1"
    stamp = f"slurm-mig=1,{LARGE},fit/3g.40gb"
    desk.waiting = [
        _job(5, "BadConstraints", three), _job(6, "JobHeldAdmin", three),
        _job(7, "BadConstraints", three), _job(8, "BadConstraints", "gres/mig:3g.40gb:1"),
        _job(9, "BadConstraints", three), _job(10, "BadConstraints", three),
    ]  # fmt: skip
    desk.comments = {
        "5": f"mine {stamp}", "6": stamp, "7": "not stamped", "8": stamp,
        "9": f"slurm-mig=1,{LARGE}", "10": "slurm-mig=9,x",
    }  # fmt: skip
    done = publisher(node, desk).look(NOW)
    assert [words for words in desk.asked if words[0] == "release"] == [("release", "5")]
    assert any("job 5 was held" in line for line in done)


def test_what_a_job_waits_for() -> None:
    """Its own count; all of a GPU, which has none; of several profiles nobody knows."""
    words = (
        "gres/mig:3g.40gb:1,gres/fit:3g.40gb:1,gres/fit:start:1",
        "gres/mig:7g.80gb:1,gres/shard:h100:31,gres/fit:start:1",
        "gres/mig:3g.40gb:1,gres/mig:1g.10gb:1,gres/fit:start:1",
        "gres/mig:3g.40gb:1",
    )
    assert [watch.wants(_job(1, "x", told)) for told in words] == ["3g.40gb", "whole", "", ""]


def test_nodes_take_turns() -> None:
    """Those that publish and answer; while nobody knows how many, everybody does it."""
    facts = [
        NodeFacts(name, frozenset({state}), "", {}, gres_text=gres)
        for name, state, gres in (
            ("n3", "IDLE", "fit:start:1"), ("n1", "DOWN", "fit:start:1"),
            ("n2", "MIXED", "fit:start:1"), ("n0", "IDLE", "gpu:1"),
        )
    ]  # fmt: skip
    assert watch.turn_of(facts, "n2") == (0, 2)
    assert watch.turn_of(facts, "n3") == (1, 2)
    minutes = [watch.TURN * number for number in range(4)]
    assert [watch.has_turn((0, 2), at) for at in minutes] == [True, False, True, False]
    assert watch.has_turn((0, 0), 61)


def test_one_node_cares_for_a_job_that_waits_long() -> None:
    """And after a while the next one; neither too early nor for what waits for other things."""
    facts = NodeFacts("n1", frozenset(), "", {}, partitions=frozenset({"all"}))
    jobs = [
        _job(1, "Constraints", "x"), _job(2, "Resources", "x"), _job(3, "Dependency", "x"),
        _job(4, "Priority", "x", since=NOW - 10), Pending(5, "Priority", NOW - 500, "b", "x"),
    ]  # fmt: skip
    here = {job.job_id for job in watch.who_waits_long(jobs, facts, (0, 2), NOW, 100)}
    there = {job.job_id for job in watch.who_waits_long(jobs, facts, (1, 2), NOW, 100)}
    assert here | there == {1, 2}
    assert not here & there
    later = {job.job_id for job in watch.who_waits_long(jobs, facts, (0, 2), NOW + 400, 100)}
    assert later - {4} == there


def test_a_gpu_is_kept_for_who_waits_long(make_site: Callable[..., Site]) -> None:
    """Small ones stop where Slurm would put them onto it; who waits does not."""
    site = make_site(H100, H100, config="[publish]\nhold_back = 100\n")
    node = site.node()
    desk = Desk()
    node.__dict__["slurm"] = desk
    mine = publisher(node, desk)
    for job, gpu in ((1, 0), (2, 1), (3, 0), (4, 0)):
        give(node, job, SMALL, gpu, fit="1g.10gb")
    desk.waiting = [_job(90, "Resources", "gres/mig:7g.80gb:1,gres/shard:h100:31,gres/fit:start:1")]
    assert any("GPU index 1 is kept" in line for line in mine.look(NOW))
    # Four more on GPU 0, and none on GPU 1.
    assert desk.fits()["1g.10gb"] == 4 + 4
    end(node, 2)
    mine.in_step()
    assert desk.fits()["1g.10gb"] == 3 + 4, "still kept: who waits has not started"
    desk.waiting = []
    assert any("no GPU is kept" in line for line in mine.look(NOW))
    assert desk.fits()["1g.10gb"] == 3 + 11
    node.close()


def test_which_gpu_is_kept() -> None:
    """The emptiest that can be carved, of equals the last; one that is kept already stays."""
    gpus = [GpuState(None, 0, used, 31) for used in (20, 8, 8)]  # type: ignore[arg-type]
    gpus.append(GpuState(None, CLOSED, 0, 31))  # type: ignore[arg-type]
    assert watch.gpu_to_keep(gpus, -1) == 2
    assert watch.gpu_to_keep(gpus, 0) == 0
    assert watch.gpu_to_keep(gpus, 3) == 2
    assert watch.gpu_to_keep([], -1) == -1


def test_what_an_epilog_put_off_is_in_nobodys_way(node: Node, desk: Desk) -> None:
    """The next Prolog takes it down at its entrance; Slurm counts nothing for it any more."""
    mine = publisher(node, desk)
    give(node, 1, LARGE, fit="3g.40gb")
    mine.look(NOW)
    assert desk.fits()["start"] == 1 + 2
    release.put_off(node.bench(), node.ledger.open_of_job(1))
    mine.look(NOW)
    assert desk.fits() == {"1g.10gb": 14, "3g.40gb": 4, "4g.40gb": 2, "start": 2}


def test_while_an_epilog_has_not_returned(site: Site, node: Node, desk: Desk) -> None:
    """Slurm still counts its job, and would take GPU 1 for a 3g, which has no place there."""
    with site.machine.change(1) as board:
        board.set_mode(True, busy=False)
        for start in (3, 4):
            board.create(19, Placement(start, 1), busy=False)
    mine = publisher(node, desk)
    give(node, 1, "4g.40gb/5/16:1", fit="4g.40gb")
    give(node, 2, SMALL, fit="1g.10gb")
    release.put_off(node.bench(), node.ledger.open_of_job(1))
    mine.look(NOW)
    assert desk.fits()["3g.40gb"] == 0
    end(node, 1)
    mine.in_step()
    assert desk.fits()["3g.40gb"] == 1


def test_what_slurm_does_not_start_is_not_refused(node: Node, desk: Desk) -> None:
    """No shard is free until the Epilog returns: a count for afterwards does no harm."""
    mine = publisher(node, desk)
    for job, gpu in ((1, 0), (2, 1)):
        give(node, job, "7g.80gb/0/31:1", gpu, fit="start")
    mine.look(NOW)
    assert desk.fits() == {"1g.10gb": 0, "3g.40gb": 0, "4g.40gb": 0, "start": 2 + 2}
    for job in (1, 2):
        release.put_off(node.bench(), node.ledger.open_of_job(job))
        node.files.withdraw(job)
    mine.in_step()
    assert desk.fits() == {"1g.10gb": 14, "3g.40gb": 4, "4g.40gb": 2, "start": 2}


def test_the_third_hook_waits_until_the_second_has_told(tmp_path: Path) -> None:
    """An Epilog's end frees what it held: Slurm has to know first what fits then."""
    lock, order = tmp_path / "publish.lock", []
    inside, go = threading.Event(), threading.Event()

    def hook(name: str) -> None:
        with alone(lock, wait=True):
            if name == "first":
                inside.set()
                go.wait(10)
            order.append(name)

    hooks = [threading.Thread(target=hook, args=(name,)) for name in ("first", "second", "third")]
    hooks[0].start()
    inside.wait(10)
    for one in hooks[1:]:
        one.start()
    hooks[2].join(0.2)
    assert hooks[2].is_alive()
    go.set()
    for one in hooks:
        one.join(10)
    assert sorted(order) == ["first", "second", "third"]
