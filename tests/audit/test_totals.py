"""Sums by user, account, profile and node."""

from __future__ import annotations

import pytest

from slurm_mig.audit.holdings import Size, holdings
from slurm_mig.audit.spool import DistinctNumbers
from slurm_mig.audit.totals import BY, totals
from tests.kit.audit_records import H100_SIZE, held, record, refusal, whole

HOUR = 3600.0


def test_hours() -> None:
    """Slice-hours, and the same weighed by the share of the GPU; most first."""
    items = held(
        record(1, 0, HOUR, ("3g.40gb", 0), user="bob"),
        record(2, 0, 4 * HOUR, ("1g.10gb", 0), ("2g.20gb", 4)),
        whole(3, 0, HOUR),
    )
    alice, bob = totals(items, "user", 0, 1e9, DistinctNumbers())
    assert (alice.key, alice.jobs, alice.slices, alice.slice_hours) == ("alice", 2, 3, 9.0)
    assert alice.compute_hours == pytest.approx(4 * 3 / 7 + 1)
    assert alice.memory_hours == pytest.approx(4 * 3 / 8 + 1)
    assert (bob.key, bob.slice_hours) == ("bob", 1.0)
    assert bob.compute_hours == pytest.approx(3 / 7)


def test_only_the_span_counts() -> None:
    """A job across its ends counts for what lies inside."""
    (total,) = totals(held(record(1, 0, 10 * HOUR)), "user", 4 * HOUR, 5 * HOUR, DistinctNumbers())
    assert total.slice_hours == 1.0


def test_what_is_open_counts_as_far_as_it_is_known() -> None:
    """In a copied ledger to its newest event; what is closed counts whole."""
    items = [
        *holdings(record(1, 0, None), H100_SIZE, 2 * HOUR),
        *holdings(record(2, 0, 3 * HOUR, user="bob"), H100_SIZE, 2 * HOUR),
        *holdings(whole(3, 5 * HOUR, None), H100_SIZE, 2 * HOUR),
    ]
    found = {
        total.key: total.slice_hours
        for total in totals(items, "user", 0, 9 * HOUR, DistinctNumbers())
    }
    assert found == {"alice": 2.0, "bob": 3.0}


def test_refusals_are_counted_and_weigh_nothing() -> None:
    """Even one of a whole GPU."""
    (total,) = totals(held(refusal(), refusal(8)), "user", 0, 1e9, DistinctNumbers())
    assert (total.refused, total.jobs, total.slices, total.slice_hours) == (2, 0, 0, 0.0)


def test_an_unknown_gpu_is_in_no_gpu_hours() -> None:
    """Its slice-hours are, and are told apart."""
    items = held(record(1, 0, HOUR)) + held(record(2, 0, HOUR), size=Size())
    (total,) = totals(items, "node", 0, 1e9, DistinctNumbers())
    assert (total.slice_hours, total.unknown_hours) == (2.0, 1.0)
    assert total.compute_hours == pytest.approx(3 / 7)


def test_runs_of_one_job_are_one_job_and_administrators_none() -> None:
    """As people count."""
    items = held(record(1, 0, 1), record(1, 2, 3), record(None, 4, 5))
    assert totals(items, "account", 0, 9, DistinctNumbers())[0].jobs == 1


@pytest.mark.parametrize("by", BY)
def test_every_sum_has_the_same_total(by: str) -> None:
    """However it is cut."""
    items = held(
        record(1, 0, HOUR, ("3g.40gb", 0), ("1g.10gb", 4), user="bob", account="a"),
        record(2, 0, HOUR, node="n2"),
        whole(3, 0, HOUR),
    )
    assert sum(total.slice_hours for total in totals(items, by, 0, 1e9, DistinctNumbers())) == 4.0


def test_profiles() -> None:
    """By instance; a refusal under what was asked for."""
    items = held(record(1, 0, HOUR, ("3g.40gb", 0), ("1g.10gb", 4)), refusal(), whole(9, 0, 1))
    found = {total.key for total in totals(items, "profile", 0, 1e9, DistinctNumbers())}
    assert found == {"3g.40gb", "1g.10gb", "whole GPU"}
    both = refusal(7, 1, request="1g.10gb:2,2g.20gb:1")
    assert totals(held(both), "profile", 0, 9, DistinctNumbers())[0].key == "1g.10gb:2,2g.20gb:1"
