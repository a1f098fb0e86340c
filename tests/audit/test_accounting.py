"""Ledger against accounting: every disagreement has its kind, and agreement has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.audit.accounting import Question, compare, double_use
from slurm_mig.audit.findings import RECONCILED
from slurm_mig.mig.allocation import LOST, QUARANTINED
from tests.kit.audit_records import record, refusal, row, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.slurm.protocol import AccountingRow

NOW = 10_000.0


def found(
    records: Sequence[Allocation],
    rows: Sequence[AccountingRow],
    nodes: Sequence[str] = ("n1",),
    since: float = 0.0,
) -> list[tuple[str, str]]:
    items = compare(records, rows, Question(nodes, since, NOW, tolerance=60))
    assert {item.kind for item in items} <= set(RECONCILED)
    return [(item.kind, item.text) for item in items]


def kinds(
    records: Sequence[Allocation], rows: Sequence[AccountingRow], **more: object
) -> list[str]:
    return [kind for kind, _ in found(records, rows, **more)]  # type: ignore[arg-type]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 59), st.floats(0, 59), st.integers(100, 500)), max_size=8),
)
def test_jobs_that_agree(jobs: list[tuple[float, float, int]]) -> None:
    """One after the other on the same slots, with any delay that is tolerated."""
    records, rows, at = [], [], 1000.0
    for job, (prolog, epilog, length) in enumerate(jobs, 1):
        rows.append(row(job, at, at + length))
        records.append(record(job, at + prolog, at + length + epilog, number=job))
        at += length + 60
    assert found(records, rows) == []


def test_runs_of_a_requeued_job() -> None:
    """Each record goes to the run it shares time with."""
    rows = [row(7, 1000, 1500, state="REQUEUED"), row(7, 1600, 2000)]
    records = [record(7, 1001, 1501, number=1), record(7, 1601, 2001, number=2)]
    assert found(records, rows) == []
    assert kinds(records[:1], rows) == ["charged-without-slice"]


def test_a_job_that_slurm_does_not_know() -> None:
    """A slice without any job of that number."""
    assert found([record()], []) == [
        ("unknown-job", "3g.40gb@0 on GPU 0, job 7: Slurm's accounting has no such job")
    ]


@pytest.mark.parametrize("other", [row(7, 5000, 6000), row(nodes="n2"), row(7, None, None)])
def test_a_slice_without_its_job(other: AccountingRow) -> None:
    """The job ran at another time, elsewhere, or not at all."""
    kind, text = found([record()], [other])[0]
    assert kind == "slice-without-job"
    assert "did not run on n1 then" in text


def test_charged_without_a_slice() -> None:
    """For its whole time, at its beginning, or from when the slice was lost."""
    ((kind, text),) = found([], [row()])
    assert (kind, text) == (
        "charged-without-slice",
        "job 7 was charged for 3g.40gb x1, for 1000 s without a slice",
    )
    assert kinds([record(7, 1100, 2000)], [row()]) == ["charged-without-slice"]
    lost = record(7, 1000, 1500, phase=LOST, reason="the node was rebooted")
    ((_, text),) = found([lost], [row()])
    assert "for 500 s without a slice (lost: the node was rebooted)" in text


def test_a_run_of_a_moment_is_no_charge() -> None:
    """It may end before its Prolog begins."""
    assert found([], [row(7, 1000, 1030, state="CANCELLED")]) == []


def test_refused_runs() -> None:
    """Put back into the queue, or cancelled: no finding. One that ran on is one."""
    assert found([refusal()], [row(7, 1000, 1002, state="REQUEUED")]) == []
    assert found([refusal()], [row(7, 1000, 1030, state="CANCELLED")]) == []
    ((kind, text),) = found([refusal()], [row()])
    assert kind == "charged-without-slice"
    assert text.endswith("though refused: no room")


def test_a_refusal_of_an_earlier_run_excuses_nothing() -> None:
    """It is that run's alone."""
    rows = [row(7, 1000, 1002, state="REQUEUED"), row(7, 5000, 6000)]
    assert kinds([refusal()], rows) == ["charged-without-slice"]


@pytest.mark.parametrize(
    ("slices", "gres", "agree"),
    [
        ([("3g.40gb", 0)], {"mig:3g.40gb": 1}, True),
        ([("3g.40gb", 0)], {"mig:3g.39gb": 1}, True),
        ([("3g.40gb", 0)], {"mig:h100_3g.40gb": 1, "mig": 1}, True),
        ([("1g.10gb", 0), ("1g.10gb", 1)], {"mig:1g.10gb": 2}, True),
        ([("3g.40gb", 0)], {"mig:1g.10gb": 1}, False),
        ([("1g.10gb", 0)], {"mig:1g.20gb": 1}, False),
        ([("1g.10gb", 0)], {"mig:1g.10gb+me": 1}, False),
        ([("1g.10gb", 0), ("1g.10gb", 1)], {"mig:1g.10gb": 1}, False),
        ([("1g.10gb", 0)], {"mig:1g.10gb": 2}, False),
        ([("1g.10gb", 0)], {"gpu": 1, "gpu:h100": 1, "mig:1g.10gb": 14}, True),
        ([("1g.10gb", 0)], {}, False),
        ([("1g.10gb", 0)], {"mig:odd": 1}, False),
    ],
)
def test_what_was_charged_and_what_was_held(
    slices: list[tuple[str, int]], gres: dict[str, int], agree: bool
) -> None:
    """By profile and count, as any driver rounds its memory."""
    wrong = kinds([record(7, 1000, 2000, *slices)], [row(gres=gres)])
    assert wrong == ([] if agree else ["wrong-slices"])


def test_jobs_on_several_nodes() -> None:
    """The accounting has the sum; each node's part is compared with its ledger."""
    both = row(nodes="n[1-2]", gres={"mig:3g.40gb": 2})
    one, other = record(number=1), record(number=2, node="n2")
    assert found([one, other], [both], nodes=("n1", "n2")) == []
    assert found([one], [both], nodes=("n1",)) == []
    assert kinds([one], [both], nodes=("n1", "n2")) == ["charged-without-slice"]


def test_whole_gpus() -> None:
    """Agree with gres/gpu, not with slices; unmanaged ones are in no record."""
    assert found([whole()], [row(gres={"gpu": 1, "gpu:h100": 1})]) == []
    assert found([], [row(gres={"gpu": 8})]) == []
    assert kinds([whole()], [row()]) == ["wrong-slices"]
    two = [whole(), record(7, 1000, 2000, instances=(), request="whole GPU", gpu_uuid="GPU-b")]
    assert kinds(two, [row(gres={"gpu": 1})]) == ["wrong-slices"]


def test_slices_on_several_gpus() -> None:
    """Charged as whole GPUs and as slices; with --exclusive for slices that nobody has, too."""
    one = record(7, 1000, 2000, ("3g.40gb", 0), ("3g.40gb", 4))
    two = record(7, 1000.5, 2000, ("3g.40gb", 0), gpu_uuid="GPU-b", number=2)
    paid = row(gres={"gpu": 2, "gpu:h100": 2, "mig": 3, "mig:3g.40gb": 3})
    assert found([one, two], [paid]) == []
    assert found([one, two], [row(gres={"gpu": 2, "mig:3g.40gb": 4, "mig:7g.80gb": 2})]) == []
    more = row(gres={"gpu": 2, "mig:3g.40gb": 2})
    assert kinds([one, two], [more]) == ["wrong-slices"]
    other = row(gres={"gpu": 2, "mig:1g.10gb": 14})
    assert kinds([one, two], [other]) == ["wrong-slices"]
    fewer = row(gres={"gpu": 1, "mig:3g.40gb": 3})
    assert kinds([one, two], [fewer]) == ["wrong-slices"]


def test_times_outside_the_job() -> None:
    """Before it began, or after it ended; still on record is worse."""
    assert kinds([record(7, 900, 2000)], [row()]) == ["outside-job"]
    assert kinds([record(7, 1000, 2100)], [row()]) == ["outside-job"]
    ((kind, text),) = found([record(7, 1000, None)], [row()])
    assert (kind, text) == (
        "open-after-end",
        "3g.40gb@0 on GPU 0, job 7: the job ended 8000 s ago, the slice is active",
    )
    stuck = record(7, 1000, None, phase=QUARANTINED)
    assert found([stuck], [row()])[0][1].endswith("the slice is quarantined")


def test_a_job_that_runs() -> None:
    """Neither has an end."""
    assert found([record(7, 1000, None)], [row(7, 1000, None, state="RUNNING")]) == []


def test_another_user() -> None:
    """Whose slice it was is not for one of them to say."""
    assert found([record(user="eve")], [row()]) == [
        ("wrong-user", "job 7: the ledger says eve, Slurm says alice")
    ]


def test_administrators_have_no_job() -> None:
    """What they made is compared with nothing."""
    assert found([record(None)], []) == []


def test_only_the_span_counts() -> None:
    """What lies before it was reported by the audit before."""
    assert found([record()], [], since=3000) == []
    assert kinds([record()], [], since=1999) == ["unknown-job"]


def test_a_carve_that_was_rolled_back_counts_once() -> None:
    """Its slots were free again before the next was made."""
    records = [record(7, 1000, 1005, number=1), record(7, 1010, 2000, number=2)]
    assert found(records, [row()]) == []


# -- double use -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "clash"),
    [
        (record(8, 1500, 1800, ("3g.40gb", 0), number=2), True),
        (record(8, 1500, None, ("1g.10gb", 3), number=2), True),
        (record(8, 1500, 1800, ("3g.40gb", 4), number=2), False),
        (record(8, 2000, 2500, ("3g.40gb", 0), number=2), False),
        (record(8, 1500, 1800, gpu_uuid="GPU-b", number=2), False),
        (record(8, 1500, 1800, node="n2", number=2), False),
        (record(None, 1500, 1800, number=2), True),
        (whole(8, 1500, 1800), True),
        (refusal(8, 1500), False),
    ],
)
def test_double_use(second: Allocation, clash: bool) -> None:
    """The same slots of the same GPU at the same time, whoever they belong to."""
    pair = [record(), second]
    assert bool(double_use(pair, NOW)) == clash
    assert bool(double_use(pair[::-1], NOW)) == clash


def test_double_use_is_told() -> None:
    """Both owners, both records, from when to when."""
    (item,) = double_use([record(), record(8, 1500, 2500, number=2)], NOW)
    assert (item.since, item.until) == (1500, 2000)
    assert "3g.40gb@0 of job 7 (allocation 1) and 3g.40gb@0 of job 8 (allocation 2)" in item.text


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10), st.integers(0, 6)), max_size=8))
def test_double_use_finds_every_pair(spans: list[tuple[int, int, int]]) -> None:
    """As many as looking at each pair does."""
    records = [
        record(job, at, at + length, ("1g.10gb", slot), number=job)
        for job, (at, length, slot) in enumerate(spans, 1)
    ]
    pairs = sum(
        one[2] == other[2] and one[0] < other[0] + other[1] and other[0] < one[0] + one[1]
        for place, one in enumerate(spans)
        for other in spans[:place]
    )
    assert len(double_use(records, NOW)) == pairs
