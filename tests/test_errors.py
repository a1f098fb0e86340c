"""Faults: two trees, one line each, one exit code each."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from slurm_mig import errors
from slurm_mig.errors import (
    EXIT_CODES,
    BadRequest,
    DriverFault,
    JobFault,
    Later,
    NodeFault,
    NoRoom,
    SlurmMigError,
    about,
)

CLASSES = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, SlurmMigError) and item not in (SlurmMigError, JobFault, Later)
]


def test_no_fault_is_both_the_jobs_and_the_nodes() -> None:
    """What may drain a node and what must not are disjoint."""
    for item in CLASSES:
        assert not (issubclass(item, JobFault) and issubclass(item, NodeFault)), item


def test_every_class_has_its_own_code_in_the_table() -> None:
    """The table is complete: a class without a line of its own has its parent's code."""
    table = {item for _, item, _ in EXIT_CODES}
    assert table <= set(CLASSES)
    for item in set(CLASSES) - table:
        (parent,) = item.__bases__
        assert parent in table
        assert parent.exit_code == item.exit_code, item
    assert all(code == item.exit_code for code, item, _ in EXIT_CODES)
    assert len({code for code, _, _ in EXIT_CODES}) == len(EXIT_CODES)


def test_no_code_looks_like_success_or_like_a_crash() -> None:
    """0 is success, 1 a Python traceback's."""
    assert all(1 < code < 126 for code, _, _ in EXIT_CODES)


def test_the_manual_has_the_same_table() -> None:
    """docs/exit-codes.md says what the code does."""
    text = (Path(__file__).parents[1] / "docs/exit-codes.md").read_text()
    for code, item, meaning in EXIT_CODES:
        assert f"| {code} | `{item.__name__}` | {meaning} |" in text


def test_a_fault_is_one_line_with_job_gpu_cause_and_remedy() -> None:
    """Even when its parts come with newlines from outside."""
    fault = DriverFault("create:\nbroken\t driver", remedy="reboot", job=7, gpu="GPU 0")

    assert str(fault) == "job 7: GPU 0: create: broken driver; reboot"


def test_context_is_filled_in_on_the_way_up_and_never_overwritten() -> None:
    """The innermost knows best; the fault keeps its type."""
    with pytest.raises(NoRoom) as caught, about(job=7, gpu="GPU 0"), about(gpu="GPU 1"):
        raise NoRoom("full")
    assert (caught.value.job, caught.value.gpu) == (7, "GPU 1")


def test_other_exceptions_pass_unchanged() -> None:
    """Only faults get context."""
    with pytest.raises(ZeroDivisionError), about(job=7):
        raise ZeroDivisionError
    assert BadRequest("x").job is None
