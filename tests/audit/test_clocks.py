"""What can be said of clocks, and what not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.audit import clocks
from slurm_mig.audit.accounting import Question, match, runs
from tests.kit.audit_records import record, refusal, row

NODES = Question(("n1", "n2"), 0, 1e6, tolerance=1e5)


def offset(*jobs: tuple[float, float, float], state: str = "COMPLETED") -> clocks.Offset:
    """Of (made on the node, start, end) of some jobs."""
    rows = [row(n, start, end, state=state) for n, (_, start, end) in enumerate(jobs, 1)]
    records = [record(n, made, end + 9) for n, (made, _, end) in enumerate(jobs, 1)]
    pairs, _ = match(records, runs(rows, NODES), NODES)
    (found,) = clocks.against_slurm(pairs)
    return found


def test_a_clock_that_is_behind() -> None:
    """Something was made before its job began: that is sure."""
    found = offset((880.5, 1000, 2000), (3001, 3000, 4000))
    assert str(found) == "clock of n1: at least 120 s behind Slurm's"


def test_a_clock_that_is_ahead() -> None:
    """Something was made after its job ended."""
    found = offset((1130, 1000, 1010), (3150, 3000, 4000))
    assert str(found) == "clock of n1: 119 to 130 s ahead of Slurm's"


def test_a_cancelled_job_proves_nothing() -> None:
    """It may end while its Prolog waits."""
    found = offset((1130, 1000, 1010), state="CANCELLED")
    assert found.low is None
    assert "at most 130 s ahead" in str(found)


def test_a_clock_that_was_set() -> None:
    """No one difference explains it."""
    found = offset((1130, 1000, 1010), (2990, 3000, 4000))
    assert "changed against Slurm's" in str(found)


@settings(deadline=None)
@given(
    st.floats(-500, 500),
    st.lists(st.tuples(st.floats(0, 30), st.floats(31, 5000)), min_size=1, max_size=8),
)
def test_the_bounds_hold(ahead: float, jobs: list[tuple[float, float]]) -> None:
    """Whatever Prologs and jobs take: the true difference lies between them."""
    starts = [10_000.0 * place for place in range(1, len(jobs) + 1)]
    found = offset(
        *(
            (start + wait + ahead, start, int(start + length))
            for start, (wait, length) in zip(starts, jobs, strict=True)
        )
    )
    assert found.low is not None
    assert found.low - 1e-6 <= ahead <= found.high + 1e-6


def test_two_nodes_of_one_job() -> None:
    """An estimate, and called one; what a lock may explain is no word worth."""
    both = [record(job, 1000, node="n1") for job in (1, 2, 3)]
    late = [record(job, 1040 + job, node="n2") for job in (1, 2, 3)]
    assert clocks.between_nodes([*both, *late]) == [
        "clocks of n1 and n2: n1 seems 42 s behind, by 3 jobs on both (estimate)"
    ]
    soon = [record(job, 1001, node="n2") for job in (1, 2, 3)]
    assert clocks.between_nodes([*both, *soon]) == []
    assert clocks.between_nodes([refusal(1), *late]) == []


@pytest.mark.parametrize(
    ("newest", "written", "lines"), [(100, 100, 0), (160, 101, 1), (160, 160, 2)]
)
def test_the_future(newest: float, written: float, lines: int) -> None:
    """An event or a file that this machine's clock has not reached."""
    found = clocks.in_the_future("n1", newest, written, 100)
    assert len(found) == lines
    assert all("60 s in the future" in line for line in found)


def test_set_back() -> None:
    """The worst step, and how many; small ones are the clock's own correction."""
    assert clocks.set_back("n1", 1, (5, 0.3)) == []
    assert clocks.set_back("n1", 2, (5, 31.0)) == [
        "clock of n1: set back by 31 s before event 5, 2 times in all"
    ]
