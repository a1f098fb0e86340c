"""Replayed jobs: nobody has what another has, nothing is lost, and the retry rules hold."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.errors import UsageFault
from slurm_mig.packing import jobs
from slurm_mig.packing.foresight import ChoiceRule
from slurm_mig.packing.replay import Retry
from slurm_mig.packing.setups import (
    Setup,
    best_static,
    course,
    figures,
    holds,
    parse_layout,
    prices,
    run,
    workload,
)
from tests.kit.workloads import H100, MIXES, by_chance

if TYPE_CHECKING:
    from pathlib import Path

ALL = [(rule, retry) for rule in ChoiceRule for retry in Retry]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(MIXES)),
    st.sampled_from(ALL),
    st.floats(0.3, 1.1),
    st.integers(0, 10**6),
)
def test_every_job_runs_once_and_no_gpu_is_overfull(
    mix: str, how: tuple[ChoiceRule, Retry], load: float, seed: int
) -> None:
    """At each moment the jobs that run have a layout: by units no GPU-second is given twice."""
    rule, retry = how
    work = by_chance(mix, load, 2, 120, seed)
    ran = run(Setup("", choice=rule, retry=retry), work, 1, 2)
    if ran.outcome.livelock:
        assert retry is Retry.BLIND
        return
    events = []
    for number, start in enumerate(ran.outcome.start):
        assert start >= work.jobs.submit[number]
        size = H100.find(str(work.wanted[work.jobs.kind[number]])).size
        events += [(start, 1, size), (start + work.jobs.run[number], 0, -size)]
    busy = 0
    for _, _, change in sorted(events):
        busy += change
        assert 0 <= busy <= 2 * H100.units
    if retry in (Retry.GATE, Retry.PUBLISH):
        assert max(ran.outcome.refused) <= 1
    if retry is Retry.AWARE:
        assert not any(ran.outcome.refused)


@pytest.mark.parametrize("rule", ChoiceRule)
@pytest.mark.parametrize("mix", MIXES)
def test_with_publishing_nothing_is_refused(rule: ChoiceRule, mix: str) -> None:
    """Whoever chooses the GPU: what Slurm is told is what it starts. One node of 8, load 1.1."""
    work = by_chance(mix, 1.1, 8, 600, 7)
    assert not any(run(Setup("", choice=rule, retry=Retry.PUBLISH), work, 1, 8).outcome.refused)


def test_a_false_accept_never_ends_without_a_gate_and_does_with_it() -> None:
    """Memory weights let an eighth 1g onto a GPU that has seven places."""
    job = jobs.Job(0.0, jobs.Wanted((("1g.10gb", 1),)), 100 * 3600.0, 100 * 3600.0)
    work = workload([job] * 8, H100, Counter())
    blind = run(Setup("", "memory", "first-fit", retry=Retry.BLIND), work, 1, 1)
    gate = run(Setup("", "memory", "first-fit", retry=Retry.GATE), work, 1, 1)
    assert blind.outcome.livelock
    assert not gate.outcome.livelock
    assert max(gate.outcome.refused) <= 1


def test_figures_have_the_keys_that_programs_read() -> None:
    found = figures(run(Setup("x", retry=Retry.GATE), by_chance("uniform", 0.8, 2, 200, 1), 1, 2))
    assert {
        "requeues_per_1000",
        "requeued_percent",
        "over_5_percent",
        "utilisation",
        "mean_wait_s",
        "p95_wait_s",
        "makespan_h",
        "livelock",
        "waits",
    } <= set(found)
    assert 0 < found["utilisation"] <= 1
    assert sum(item["jobs"] for item in found["waits"].values()) == 200
    json.dumps(found)


def test_the_course_adds_up_to_the_figures() -> None:
    ran = run(Setup("x", retry=Retry.AWARE), by_chance("uniform", 0.8, 2, 200, 1), 1, 2)
    found = course(ran)
    assert sum(found.used) / len(found.used) == pytest.approx(figures(ran)["utilisation"])


def test_a_static_layout_serves_with_equal_or_larger_slices() -> None:
    """And a layout that no GPU holds, or that leaves somebody out, is refused."""
    work = by_chance("uniform", 0.5, 8, 300, 1)
    layout = best_static(work, 1, 8)
    assert holds(layout, H100, 8)
    ran = run(Setup("static", static=layout), work, 1, 8)
    assert all(start >= 0 for start in ran.outcome.start)
    with pytest.raises(UsageFault, match="do not hold"):
        run(Setup("", static={"4g.40gb": 9}), work, 1, 8)
    with pytest.raises(UsageFault, match="could ever start"):
        run(Setup("", static={"4g.40gb": 8}), work, 1, 8)


@pytest.mark.parametrize(
    ("text", "gpus", "fits"),
    [
        ("4g.40gb:1,3g.40gb:1", 1, True),
        ("4g.40gb:2", 1, False),
        ("1g.10gb:7", 1, True),
        ("1g.10gb:8", 1, False),
        ("1g.10gb:14,3g.40gb:3,4g.40gb:1", 4, True),
        ("7g.80gb:2,1g.10gb", 2, False),
    ],
)
def test_what_so_many_gpus_hold(text: str, gpus: int, *, fits: bool) -> None:
    assert holds(parse_layout(text), H100, gpus) is fits


def test_weights_by_name_and_from_a_file(tmp_path: Path) -> None:
    assert prices("exact", H100).by_name["3g.40gb"] == 14
    assert prices("memory", H100)[0] == 8
    assert prices("compute", H100).by_name["4g.40gb"] == 4
    path = tmp_path / "weights.json"
    path.write_text('{"capacity": 31, "weights": {"1g.10gb": 4}}')
    with pytest.raises(UsageFault, match=r"no weight for .*3g\.40gb"):
        prices(str(path), H100)
    with pytest.raises(UsageFault, match="or exact, memory, compute"):
        prices("half", H100)


#: As sites publish them: `-p` ends lines with `|`, times lack seconds, names are static MIG's.
SACCT = """\
JobID|Submit|Start|End|Elapsed|Timelimit|NNodes|State|AllocTRES|ReqTRES|
7|2026-01-02T10:00:00|2026-01-02T10:05:00|2026-01-02T11:05:00|01:00:00|02:00:00|1|COMPLETED|billing=4,cpu=4,gres/mig:3g.40gb=1,gres/mig=1,gres/shard=14,mem=8G,node=1||
7.batch|2026-01-02T10:05:00|2026-01-02T10:05:00|2026-01-02T11:05:00|01:00:00||1|COMPLETED|cpu=4,mem=8G,node=1||
8_[1]|2026-01-02T09:30|2026-01-02T09:31|2026-01-03T09:31|1-00:00|UNLIMITED|1|COMPLETED|cpu=1,gres/gpu:nvidia_h100_1g.10gb=2,gres/gpu=2||
9|2026-01-02T10:10:00|Unknown|Unknown|00:00:00|10:00|1|CANCELLED by 5||gres/mig:h100_2g.20gb=1|
10|2026-01-02T10:20:00|2026-01-02T10:21:00|2026-01-02T10:31:00|10:00|Partition_Limit|1|FAILED|cpu=1,gres/gpu:h100=1,gres/gpu=1||
11|2026-01-02T10:30:00|2026-01-02T10:31:00|2026-01-02T10:41:00|00:10:00|1-00:00:00|2|COMPLETED|gres/mig:1g.10gb=2||
12|2026-01-02T10:30:00|2026-01-02T10:31:00|2026-01-02T10:41:00|00:10:00|1-00:00:00|1|COMPLETED|cpu=64,mem=3G||
13|2026-01-02T10:30:00|2026-01-02T10:31:00|2026-01-02T10:41:00|00:10:00|1-00:00:00|1|COMPLETED|gres/gpu=4||
14|2026-01-02T10:30:00|2026-01-02T10:31:00|2026-01-02T10:41:00|00:10:00|1-00:00:00|1|COMPLETED|gres/mig=1||
"""


def test_a_sites_own_export_is_read(tmp_path: Path) -> None:
    path = tmp_path / "jobs.txt"
    path.write_text(SACCT, "utf-8")
    trace = jobs.read_sacct(path)
    assert [(str(job.wanted), job.run, job.limit) for job in trace.jobs] == [
        ("1g.10gbx2", 86400.0, jobs.UNLIMITED),
        ("3g.40gb", 3600.0, 7200.0),
        ("gpu", 600.0, jobs.UNLIMITED),
    ]
    assert trace.left_out == {
        "steps": 1,
        "that never ran": 1,
        "on several nodes": 1,
        "without a GPU": 1,
        "on several GPUs": 1,
        "whose slices were not recorded by kind (AccountingStorageTRES)": 1,
    }


def test_an_export_without_what_is_needed_says_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "jobs.txt"
    path.write_text("JobID|State\n1|COMPLETED\n", "utf-8")
    with pytest.raises(UsageFault, match="Submit, Elapsed and AllocTRES") as told:
        jobs.read_sacct(path)
    assert "sacct -a -X -P" in told.value.remedy


@pytest.mark.parametrize(
    "row", ['{"submit": 1}', '{"submit": 1, "duration": 2, "profile": "big"}', "7"]
)
def test_a_trace_names_the_job_that_is_wrong(row: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(f'{{"gpus": 8, "jobs": [{row}]}}', "utf-8")
    with pytest.raises(UsageFault, match="job 1"):
        jobs.read_trace(path)
