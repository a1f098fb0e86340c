"""Shares of a GPU: what nobody else could have meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.audit.holdings import WHOLE_GPU, Size, holdings
from tests.kit.audit_records import H100_SIZE, record, refusal, whole


def test_a_slice() -> None:
    """By compute slices of 7, by memory in units of 8."""
    (item,) = holdings(record(), H100_SIZE)
    assert (item.profile, item.compute, item.memory) == ("3g.40gb", 3 / 7, 4 / 8)


def test_a_whole_gpu_and_a_refusal() -> None:
    """All of it, and nothing."""
    (item,) = holdings(whole(), Size())
    assert (item.profile, item.compute, item.memory) == (WHOLE_GPU, 1.0, 1.0)
    (item,) = holdings(refusal(), H100_SIZE)
    assert (item.profile, item.compute, item.memory) == ("", None, None)


@pytest.mark.parametrize("size", [Size(), Size(7, None), Size(None, 8)])
def test_what_nobody_published(size: Size) -> None:
    """It stays unknown."""
    (item,) = holdings(record(), size)
    assert (item.compute is None) == (size.slices is None)
    assert (item.memory is None) == (size.units is None)


def test_compute_instances_divide_their_gpu_instance() -> None:
    """Two 1c of one 3g are one 3g together: nobody else can have the third slice."""
    one = record()
    part = replace(one.instances[0], profile="1c.3g.40gb")
    items = holdings(replace(one, instances=(part, replace(part, ci_id=1))), H100_SIZE)
    assert sum(item.compute or 0 for item in items) == pytest.approx(3 / 7)
    assert sum(item.memory or 0 for item in items) == pytest.approx(1 / 2)


def test_a_name_that_cannot_be_read() -> None:
    """An edited ledger stops no audit."""
    one = record()
    odd = replace(one, instances=(replace(one.instances[0], profile="big"),))
    assert holdings(odd, H100_SIZE)[0].compute is None


@settings(deadline=None)
@given(*[st.floats(0, 1e6)] * 4)
def test_time_is_cut_to_the_span(created: float, length: float, since: float, wide: float) -> None:
    """Never negative, never more than either."""
    item = holdings(record(7, created, created + length), H100_SIZE)[0]
    seconds = item.seconds(since, since + wide)
    assert 0 <= seconds <= min(length, wide) + 1e-6
    total = item.seconds(0, since) + seconds + item.seconds(since + wide, 1e9)
    assert total == pytest.approx(length, abs=1e-4)


def test_what_is_still_held_counts_until_the_end_of_the_span() -> None:
    """Its record has no end yet."""
    assert holdings(record(7, 1000, None), H100_SIZE)[0].seconds(0, 1500) == 500
