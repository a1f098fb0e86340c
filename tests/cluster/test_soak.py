"""The soak itself: its plan is the seed's, its checks find what is wrong, a small one passes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Instance, Owner
from tests.cluster.accounted import MISSING
from tests.cluster.soak_checks import (
    REPEATED,
    Drain,
    Injected,
    Run,
    Seen,
    Start,
    Verdict,
    causes,
    compare,
)
from tests.cluster.soak_plan import GENTLE, MISCHIEF, SHAPES, TROUBLE, Act, Submit, plan
from tests.cluster.soak_trouble import JUMP, Trouble, without_jump

RUN = Run(7, 0, "n1", "alice", "COMPLETED", 1000.0, 1010.0, {"3g.40gb": 1})
RECORD = Allocation(
    owner=Owner(7, 0, uid=64001, user="alice"),
    node="n1",
    gpu_uuid="GPU-0",
    gpu_minor=0,
    gpu_name="x",
    boot_id="b",
    request="3g.40gb:1",
    phase=phases.RELEASED,
    instances=(Instance("3g.40gb", 9, 0, 4, 1, 0, "MIG-1"),),
    reason="the job ended",
    created=1000.2,
    ended=1010.4,
    number=1,
)
SEEN = Seen(7, 0, "n1", "MIG-1", 1001.0, 1009.0)
REFUSED = replace(RECORD, phase=phases.REFUSED, instances=(), number=2)
CTLD = Injected("slurmctld-kill", "*", 1005.0, 1012.0)


def judge(
    *records: Allocation,
    runs: tuple[Run, ...] = (RUN,),
    seen: tuple[Seen, ...] = (),
    starts: tuple[Start, ...] = (),
    injected: tuple[Injected, ...] = (),
) -> Verdict:
    active = frozenset(item.number for item in records if item.uuids)
    return compare(runs, records, active, starts, seen, injected)


def test_the_same_seed_is_the_same_plan() -> None:
    """And another one another; each mischief and, in the long run, each shape is in it."""
    assert plan(7, 300) == plan(7, 300)
    assert plan(7, 300) != plan(8, 300)
    steps = plan(7, 300)
    assert sum(step.jobs for step in steps if isinstance(step, Submit)) >= 300
    assert {step.kind for step in steps if isinstance(step, Act)} == set(MISCHIEF)
    assert {step.shape for step in steps if isinstance(step, Submit)} == set(SHAPES)


def test_a_plan_of_trouble() -> None:
    """All of it, and beside it what drains no node; the plan without is what it was."""
    steps = plan(7, 200, trouble=True)
    assert steps == plan(7, 200, trouble=True)
    assert {step.kind for step in steps if isinstance(step, Act)} == {*TROUBLE, *GENTLE}
    jobs = [step for step in steps if isinstance(step, Submit)]
    assert jobs == [step for step in plan(7, 200) if isinstance(step, Submit)]


def test_trouble_and_its_end(tmp_path: Path) -> None:
    """A hook starts with it and without it again; a time of a clock that jumped is told apart."""
    trouble = Trouble(tmp_path, ["n1"])
    (tmp_path / "nodes/n1").mkdir(parents=True)
    act = Act("clock-jump", 0.2, "n1", "*", 0, "", 2.0)
    slow = replace(act, kind="slow-disk")
    assert (trouble.begin(act), trouble.begin(act), trouble.begin(slow)) == (True, False, True)
    hook = f"{trouble.line()}; {sys.executable} -c 'import time; print(time.time())'"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{hook}; echo $BAD_DISK_SYNC"], env={"SLURMD_NODENAME": "n1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, slowness = done.stdout.split()
    began = time.time()
    assert abs(float(told) - JUMP - began) < 60
    assert (abs(without_jump(float(told), began) - began) < 60, slowness) == (True, "0.5")
    assert without_jump(began - JUMP, began) == without_jump(began, began) == began
    trouble.end(act)
    trouble.end(slow)
    assert (tmp_path / "nodes/n1/trouble").read_text() == ""


def test_trouble_excuses_no_drain() -> None:
    """Nor a slice that went before its job's end, unless the job was refused."""
    mischief = [Injected(kind, "n1", 1000.0, 1030.0) for kind in TROUBLE]
    for reason in ("Prolog error", "slurm-mig: write /run/slurm-mig/jobs/7.0: No space left"):
        assert causes([Drain("n1", "drained", reason, 1010.0)], mischief) == [None]
    early = replace(RECORD, ended=1000.5, reason="rolled back")
    assert judge(early, REFUSED, injected=tuple(mischief)).violations == []
    assert judge(early, REFUSED).violations != []
    assert judge(replace(early, reason="x"), injected=tuple(mischief)).violations != []


def test_a_row_that_is_equal() -> None:
    """Profiles, user, time and what the script saw agree."""
    found = judge(RECORD, seen=(SEEN,))
    assert (found.rows, found.violations) == (Counter({"slices, equal": 1}), [])


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (replace(RECORD, ended=1004.0), "slices went"),
        (replace(RECORD, instances=(Instance("1g.10gb", 19, 0, 1, 7, 0, "MIG-1"),)), "carved"),
        (replace(RECORD, owner=replace(RECORD.owner, user="bob")), "Slurm knows no such run"),
        (replace(RECORD, owner=replace(RECORD.owner, job_id=8)), "Slurm knows no such run"),
        (replace(RECORD, created=5000.0, ended=5001.0), "Slurm knows no such run"),
    ],
)
def test_a_row_that_is_not(record: Allocation, says: str) -> None:
    """Each kind of difference is named."""
    assert any(says in text for text in judge(record).violations)


def test_slices_that_went_with_their_epilog() -> None:
    """Slurm's end of a run can be later, with a slower component; without its Epilog none goes."""
    early = replace(RECORD, ended=1004.0)
    epilog = Start("epilog", "n1", 7, 0, 1003.5)
    assert judge(early, starts=(epilog,)).violations == []
    assert judge(early, starts=(replace(epilog, at=1005.0),)).violations != []
    assert judge(early, starts=(replace(epilog, at=999.0),)).violations != []
    assert judge(early, starts=(replace(epilog, node="n2"),)).violations != []
    assert judge(early, starts=(replace(epilog, hook="prolog"),)).violations != []


def test_a_slice_used_twice() -> None:
    """Two records of one GPU with common units at one time; one after the other is fine."""
    other = replace(RECORD, owner=Owner(8, user="bob"), number=2, created=1005.0, ended=1020.0)
    runs = (RUN, replace(RUN, job=8, user="bob", end=1019.0))
    assert any("overlap" in text for text in judge(RECORD, other, runs=runs).violations)
    beside = replace(other, instances=(replace(other.instances[0], start=4),))
    assert judge(RECORD, beside, runs=runs).violations == []
    after = replace(other, created=1011.0)
    assert judge(RECORD, after, runs=runs).violations == []


@pytest.mark.parametrize(
    "seen",
    [
        replace(SEEN, visible="MIG-2"),
        replace(SEEN, begin=900.0),
        replace(SEEN, end=1011.0),
        replace(SEEN, visible="0"),
    ],
)
def test_a_script_that_saw_what_it_had_not(seen: Seen) -> None:
    """Another's slice, none of that time, one that went too early, a GPU."""
    assert judge(RECORD, seen=(seen,)).violations != []


def test_a_run_without_a_record() -> None:
    """Fine where no Prolog was started; not where one ran, nor where the script did."""
    assert judge().violations == []
    start = Start("prolog", "n1", 7, 0, 1000.1)
    assert judge(starts=(start,)).violations != []
    assert judge(seen=(SEEN,)).violations != []
    # That of a job which was forgotten, and whose number this run was given.
    forgotten = judge(seen=(replace(SEEN, visible=""),), injected=(CTLD,))
    assert forgotten.violations == []
    killed = Injected("kill-hook", "n1", 1000.0, 1030.0)
    assert judge(starts=(start,), injected=(killed,)).violations == []
    whole = replace(RUN, profiles={}, gpus=1)
    assert judge(runs=(whole,), starts=(start,)).violations == []
    assert judge(runs=(whole,), starts=(replace(start, gpus="0"),)).violations != []
    elsewhere = replace(killed, node="n2")
    assert judge(starts=(start,), injected=(elsewhere,)).violations != []


def test_refusals() -> None:
    """One for a run; together with slices it is a contradiction."""
    assert judge(REFUSED).violations == []
    assert judge(REFUSED, replace(REFUSED, number=3)).violations != []
    assert judge(RECORD, REFUSED).violations != []


def test_what_a_killed_slurmctld_forgets() -> None:
    """Only what it cannot have saved is excused."""
    assert judge(RECORD, runs=(), injected=(CTLD,)).violations == []
    long_ago = replace(CTLD, since=2000.0, until=2010.0)
    assert judge(RECORD, runs=(), injected=(long_ago,)).violations != []
    revived = replace(RUN, end=1300.0)
    assert judge(RECORD, runs=(revived,), injected=(CTLD,)).violations == []
    assert judge(RECORD, runs=(revived,)).violations != []
    other = replace(RECORD, instances=(Instance("1g.10gb", 19, 0, 1, 7, 0, "MIG-1"),))
    assert judge(other, injected=(CTLD,)).violations == []
    assert judge(other, RECORD, injected=(CTLD,)).rows["slices, equal"] == 1
    assert judge(other, injected=(long_ago,)).violations != []


@pytest.mark.parametrize(
    ("reason", "kind", "explained"),
    [
        ("Prolog error", "hang", True),
        ("Prolog error", "kill-at-call", True),
        ("Prolog error", REPEATED, True),
        ("Prolog error", "driver-error", False),
        ("Epilog error", REPEATED, False),
        ("slurm-mig: job 7: GPU 0: create: Unknown Error", "driver-error", True),
        ("slurm-mig: job 7: GPU 0: create: Unknown Error", "slurmd-kill", False),
        ("slurm-mig: internal error: KeyError", "driver-error", False),
        ("slurm-mig: job 7: GPU-0: lock not free within 7 s", "hang", True),
        ("slurm-mig: job 7: epilog killed by SIGKILL in what follows", "kill-at-call", True),
        ("slurm-mig: job 7: prolog ended by SIGTERM in carve", "hang", True),
        ("slurm-mig: job 7: prolog not done within 300 s, in carve", "hang", True),
        ("Kill task failed", "hang", False),
    ],
)
def test_drains_and_their_causes(reason: str, kind: str, explained: bool) -> None:
    """A drain is explained by a mischief that can lead to it, there and then."""
    drain = Drain("n1", "drained", reason, 1010.0)
    mischief = Injected(kind, "n1", 1000.0, 1030.0)
    assert (causes([drain], [mischief]) == [kind]) is explained
    assert causes([drain], [replace(mischief, node="n2")]) == [None]
    assert causes([drain], [replace(mischief, until=1005.0)]) == [None]


def test_a_drain_told_twice() -> None:
    """Resumed before slurmd told of the failed hook, too; not any other node, nor much later."""
    ours = Drain("n1", "draining", "slurm-mig: job 7: GPU 0: create: Unknown Error", 1010.0)
    theirs = Drain("n1", "drained", "Epilog error", 1012.0)
    mischief = [Injected("driver-error", "n1", 1000.0, 1030.0)]
    assert all(causes([ours, theirs], mischief))
    assert causes([ours, replace(theirs, at=1020.0)], mischief)[1] is None
    assert causes([ours, replace(theirs, node="n2")], mischief)[1] is None
    assert causes([ours, theirs], [])[1] is None


def test_a_drain_that_comes_back() -> None:
    """A killed slurmctld may not have saved that the node was resumed."""
    drains = [Drain("n1", "drained", "Prolog error", at) for at in (1010.0, 1200.0)]
    injected = [Injected("hang", "n1", 1000.0, 1020.0)]
    assert causes(drains, injected)[1] is None
    assert causes(drains, [*injected, replace(CTLD, since=1195.0, until=1210.0)])[1] is not None


@pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here")
def test_a_small_soak() -> None:
    """A few dozen jobs with all kinds of mischief but those that take long; nothing is left."""
    options = ["--jobs=40", "--seed=5", "--timeout=60", "--drain=20"]
    options += ["--without=slurmd-away", "--without=hang"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.soak", *options],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=220,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout
    assert "nodes drained for a user's fault: 0" in done.stdout
