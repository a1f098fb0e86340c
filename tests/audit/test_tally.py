"""Numbers that only grow."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.state.event import Event
from slurm_mig.state.tally import BUCKETS, Histogram, Tally

KINDS = ["planned", "active", "releasing", "released", "quarantined", "lost", "refused"]


def event(seq: int, at: float, kind: str, number: int, facts: object = None) -> Event:
    return Event(seq, at, kind, number, None, json.dumps(facts or {}), "")


def tally(*events: tuple[str, float, int]) -> Tally:
    made = Tally()
    for seq, (kind, at, number) in enumerate(events, 1):
        made.add(event(seq, at, kind, number))
    return made


def test_a_carve_and_a_teardown() -> None:
    """From intent to active; from the first destroy to the last look, whatever came between."""
    made = tally(
        ("planned", 10, 1),
        ("active", 10.3, 1),
        ("releasing", 50, 1),
        ("quarantined", 51, 1),
        ("releasing", 60, 1),
        ("released", 60.5, 1),
    )
    assert (sum(made.carve.counts), sum(made.teardown.counts)) == (1, 1)
    assert made.carve.total == pytest.approx(0.3)
    assert made.teardown.total == pytest.approx(10.5)
    assert made.outcomes == {"quarantined": 1, "released": 1}
    assert made.carving == made.ending == {}


def test_a_stuck_slice_counts_once() -> None:
    """However often a boot, a reconcile or an Epilog tries again: it is one that got stuck."""
    retry = [("releasing", 60.0, 1), ("quarantined", 61.0, 1)]
    made = tally(("planned", 10, 1), *retry, ("quarantined", 62, 2), *retry, *retry)
    assert made.outcomes == {"quarantined": 2}
    assert made.stuck == {"1": 61.0, "2": 62.0}
    for kind, number in (("released", 1), ("lost", 2)):
        made.add(event(made.last + 1, 70, kind, number))
    assert made.outcomes == {"quarantined": 2, "released": 1, "lost": 1}
    assert made.stuck == {}


def test_a_file_that_counted_each_retry() -> None:
    """Is counted anew from the ledger, or the wrong number would stay for ever."""
    data = Tally().to_dict()
    assert Tally.from_dict(data) == Tally()
    del data["stuck"]
    with pytest.raises(ValueError, match="counted each retry"):
        Tally.from_dict(data)


def test_a_roll_back_is_no_carve() -> None:
    """Nor does its teardown begin with the intent."""
    made = tally(("planned", 10, 1), ("releasing", 20, 1), ("released", 20.5, 1))
    assert sum(made.carve.counts) == 0
    assert made.teardown.total == pytest.approx(0.5)


def test_refusals_and_waits() -> None:
    """By the name of the fault; events of before that name are unknown."""
    made = Tally()
    made.add(event(1, 1, "refused", 1, {"fault": "NoRoom"}))
    made.add(event(2, 1, "refused", 2))
    made.add(event(3, 1, "planned", 3, {"waited": 0.3}))
    assert made.refusals == {"NoRoom": 1, "unknown": 1}
    assert made.lock_wait.total == pytest.approx(0.3)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.floats(0, 1e6), st.integers(1, 3))))
def test_read_in_parts_or_at_once(events: list[tuple[str, float, int]]) -> None:
    """What was kept in a file between two readings comes to the same; nothing counts twice."""
    whole, parts = Tally(), Tally()
    rows = [event(seq, at, kind, number) for seq, (kind, at, number) in enumerate(events, 1)]
    for row in rows:
        whole.add(row)
        parts.add(row)
        parts = Tally.from_dict(json.loads(json.dumps(parts.to_dict())))
        parts.add(row)
    assert parts == whole


@given(st.lists(st.floats(-5, 1000)))
def test_a_histogram_is_cumulative(values: list[float]) -> None:
    """The last bucket has all of them, and each bound counts what is not above it."""
    made = Histogram()
    for value in values:
        made.add(value)
    buckets = made.cumulative()
    assert buckets[-1] == ("+Inf", len(values))
    for bound, (_, count) in zip(BUCKETS, buckets, strict=False):
        assert count == sum(1 for value in values if value <= bound)


@pytest.mark.parametrize(
    "data", [{}, {"x": 1}, {"carve": {"counts": [1], "total": 0}}, {"last": 1}]
)
def test_a_damaged_file(data: dict[str, object]) -> None:
    """Named by ValueError; defaults are no tally."""
    with pytest.raises(ValueError, match=".+"):
        Tally.from_dict(data)
