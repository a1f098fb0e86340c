"""Who was refused goes again when a start would succeed: by every event, once, and never before."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.mig.allocation import Owner
from slurm_mig.mig.request import Request, from_stamp
from slurm_mig.node import gate
from slurm_mig.state.waiting import Waiting, WaitingJobs
from slurm_mig.transaction import carve, release
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.node.node import Node
    from tests.kit.site import Site

pytestmark = pytest.mark.root

SMALL, LARGE = "slurm-mig=1,1g.10gb/19/4:1", "slurm-mig=1,3g.40gb/9/14:1"
NOW = 1_000_000.0


class Desk:
    """A slurmctld that says of every job what it is told to, and notes who is called."""

    def __init__(self) -> None:
        self.state, self.rule = "PENDING", "CR_CPU"
        self.moved = 0.0
        self.called: list[tuple[str, int]] = []
        self.begins: dict[str, float] = {}

    def begin(self, reference: str) -> tuple[str, float]:
        return self.state, self.begins.get(reference, NOW + 100) + self.moved

    def selection(self) -> str:
        return self.rule

    def start_after(self, reference: str, seconds: int) -> None:
        self.called.append((reference, seconds))


@pytest.fixture
def desk(node: Node) -> Desk:
    found = Desk()
    node.__dict__["slurm"] = found
    return found


def refused(
    node: Node, job: int, stamp: str = LARGE, earliest: float = NOW - 1, latest: float = NOW + 100
) -> None:
    node.waiting.put(Waiting(job, str(job), stamp, NOW - 50 + job, earliest, latest))


def give(node: Node, job: int, stamp: str, gpu: int = 0) -> None:
    request = from_stamp(stamp)
    assert isinstance(request, Request)
    owner = Owner(job, uid=64001, gid=64001)
    carve.allocate(node.bench(), owner, request, node.driver.gpus()[gpu])


def end(node: Node, job: int) -> None:
    records = node.ledger.open_of_job(job)
    release.release_all(node.bench(), records, "the job ended", over=True)


def spoil(node: Node) -> None:
    """GPU 0 with a small slice in each half, and shards for a large one; GPU 1 empty."""
    for job in range(1, 8):
        give(node, job, SMALL)
    by_start = {node.ledger.open_of_job(job)[0].instances[0].start: job for job in range(1, 8)}
    for start, job in by_start.items():
        if start not in {0, 4}:
            end(node, job)


def test_not_before_slurms_own_gpu_has_a_place(node: Node, desk: Desk) -> None:
    """GPU 1 is empty, but Slurm would take GPU 0, as it did when the job was refused."""
    spoil(node)
    refused(node, 90)
    assert gate.look(node, NOW) == []
    left = next(iter(record.owner.job_id for record in node.ledger.all_open()))
    assert left is not None
    end(node, left)
    assert gate.look(node, NOW) == ["job 90: brought forward, 3g.40gb:1 has room"]
    assert desk.called == [("90", 0)]
    assert gate.look(node, NOW) == [], "once is enough"


def test_least_loaded_is_another_gpu(node: Node, desk: Desk) -> None:
    """The same GPUs under LL_SHARED_GRES: Slurm takes the empty one."""
    desk.rule = "CR_CPU,LL_SHARED_GRES"
    spoil(node)
    refused(node, 90)
    assert gate.look(node, NOW)
    assert desk.called == [("90", 0)]


def test_no_shards_left_is_no_room_either(node: Node, desk: Desk) -> None:
    """Slurm would not start it, and then start it into whatever is left by the next end."""
    for gpu in (0, 1):
        for job in (1, 2):
            give(node, 10 * gpu + job, LARGE, gpu)
    refused(node, 90, "slurm-mig=1,4g.40gb/5/16:1")
    assert gate.look(node, NOW) == []
    assert node.waiting.any()


def test_who_waits_longest_goes_first_and_alone(node: Node, desk: Desk) -> None:
    """Room for one: the other one would be refused again."""
    for job in (1, 2, 3):
        give(node, job, LARGE, gpu=(job - 1) // 2)
    for job in (92, 91):
        refused(node, job)
    assert gate.look(node, NOW)
    assert desk.called == [("91", 0)]
    assert gate.look(node, NOW + gate.KEPT - 1) == [], "its place is kept until it has come"
    assert gate.look(node, NOW + gate.KEPT + 1), "but not for ever"
    assert desk.called[-1] == ("92", 0)


def test_not_before_a_restart_is_safe(node: Node, desk: Desk) -> None:
    """22.05 would start it without a Prolog while its credential lives."""
    refused(node, 90, earliest=NOW + 5)
    assert gate.look(node, NOW) == []
    assert gate.look(node, NOW + 6)


def test_what_its_user_moved_stays_there(node: Node, desk: Desk) -> None:
    """A begin time that is not ours is somebody's wish."""
    refused(node, 90)
    desk.moved = 3600
    assert gate.look(node, NOW) == []
    assert desk.called == []
    assert not node.waiting.any()


@pytest.mark.parametrize("state", ["", "RUNNING", "CANCELLED"])
def test_who_no_longer_waits_is_forgotten(node: Node, desk: Desk, state: str) -> None:
    refused(node, 90)
    desk.state = state
    assert gate.look(node, NOW) == []
    assert not node.waiting.any()


def test_what_nobody_can_tell_any_more(node: Node, desk: Desk) -> None:
    """Its time has come without us, its file is not ours, or its Epilog's child died."""
    refused(node, 90, latest=NOW - 1)
    refused(node, 91, stamp="slurm-mig=9,?")
    gate.look(node, NOW)
    assert not node.waiting.any()
    refused(node, 92, earliest=0.0, latest=0.0)
    assert gate.look(node, NOW) == []
    assert gate.look(node, NOW + gate.FORGOTTEN + 100)
    assert desk.called == [("92", 0)]


def test_a_silent_slurmctld_costs_nobody_a_place(node: Node, desk: Desk) -> None:
    """The next event asks again."""

    def silent(reference: str, seconds: int) -> None:
        raise SlurmFault("no answer")

    refused(node, 90)
    desk.start_after = silent  # type: ignore[method-assign]
    with pytest.raises(SlurmFault):
        gate.look(node, NOW)
    assert [item.called for item in node.waiting.all()] == [0.0]


def test_where_nobody_waits_nothing_is_asked(node: Node) -> None:
    """Every Epilog comes by here."""
    assert gate.look(node, NOW) == []
    assert not (node.config.state / "gate.lock").exists()


def test_one_behind_the_other_and_no_third(tmp_path: Path) -> None:
    """Who comes third is seen by the second: it has not begun to look."""
    script = (
        "import sys, time; from pathlib import Path; from slurm_mig.node.gate import alone\n"
        f"with alone(Path({str(tmp_path / 'lock')!r})) as mine:\n"
        "    print(mine, flush=True); time.sleep(float(sys.argv[1]) if mine else 0)\n"
    )

    def start(seconds: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, seconds], stdout=subprocess.PIPE, text=True
        )

    first = start("1.5")
    assert first.stdout is not None
    assert first.stdout.readline() == "True\n"
    second = start("0")
    until = time.monotonic() + 10
    while _flocks(tmp_path / "lock.next") < 1:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert start("0").communicate()[0] == "False\n"
    assert second.communicate()[0] == "True\n"
    first.communicate()


def _flocks(path: Path) -> int:
    """Locks that are held on a file, as the kernel counts them."""
    if not path.exists():
        return 0
    inode = f":{path.stat().st_ino} "
    return sum(inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_prolog_writes_down_who_waits(make_site: Callable[..., Site]) -> None:
    """For want of room, of one node, and only where it goes back into the queue."""
    site = make_site(H100)
    binaries = site.root / "bin"
    binaries.mkdir()
    line = f"{90:<20}{90:<40}{1:<4}{1:<4}{0:<8}{'RUNNING':<20}{'':<1000}N/A"
    (binaries / "squeue").write_text(f"#!/bin/sh\necho '{line}'\n")
    for name in ("scontrol", "scancel"):
        (binaries / name).write_text("#!/bin/sh\nexit 0\n")
    for path in binaries.iterdir():
        path.chmod(0o755)
    for job in (1, 2):
        assert site.prolog(job, LARGE).returncode == 0
    assert site.prolog(90, LARGE).returncode == 0
    waiting = WaitingJobs(site.root / "state/waiting")
    (item,) = waiting.all()
    assert (item.job, item.reference, item.stamp) == (90, "90", LARGE)
    assert (item.earliest, item.latest, item.called) == (0, 0, 0)
    waiting.remove(90)
    assert site.prolog(90, LARGE, SLURM_JOB_NODELIST="n[1-2]").returncode == 0
    assert not waiting.any()
