"""Records: legal steps only, and the same after a round trip."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.errors import LedgerFault
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import OPEN, TRANSITIONS, Allocation, Owner
from tests.kit.records import ALLOCATIONS


@given(ALLOCATIONS)
def test_the_dict_form_is_plain_and_complete(record: Allocation) -> None:
    """Through JSON and back, nothing is lost."""
    assert Allocation.from_dict(json.loads(json.dumps(record.to_dict()))) == record


@given(ALLOCATIONS, st.sampled_from(sorted(TRANSITIONS)))
def test_only_listed_steps_are_taken(record: Allocation, phase: str) -> None:
    """A step that is not in the table is a fault; the old record is never touched."""
    before = record.to_dict()
    if phase in TRANSITIONS[record.phase]:
        assert record.moved(phase).phase == phase
    else:
        with pytest.raises(LedgerFault, match=f"from {record.phase} to {phase}"):
            record.moved(phase)
    assert record.to_dict() == before


def test_final_phases_are_final_and_every_open_one_can_end() -> None:
    """No record stays open for ever for want of a step."""
    for phase, steps in TRANSITIONS.items():
        assert (phase in OPEN) == bool(steps)
    for phase in OPEN:
        assert phases.LOST in TRANSITIONS[phase]


def test_runs_of_one_job_are_told_apart() -> None:
    """By restart count and SLUID; a bare id would mix up a reused one."""
    first = Owner(7, 0, "s1")
    assert first.same_run(Owner(7, 0, "s1", user="a"))
    assert not first.same_run(Owner(7, 0, "s1", uid=5))
    assert not first.same_run(Owner(7, 1, "s1"))
    assert not first.same_run(Owner(7, 0, "s2"))
    assert not first.same_run(Owner(8, 0, "s1"))
