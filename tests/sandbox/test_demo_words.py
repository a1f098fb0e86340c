"""What the demonstration says of each task."""

from __future__ import annotations

from slurm_mig.sandbox.demo import reach


def test_what_a_task_could_open() -> None:
    """A job without GPU, of a user who has slices elsewhere, must not look like a hole."""
    assert reach(4, 4, 14) == "could open 4 of 14 device nodes of slices"
    assert reach(0, 0, 14) == "could open 0 of 14 device nodes of slices"
    assert reach(4, 0, 4) == (
        "could open 4 of 4 device nodes of slices, 4 of them of other slices of its user's, "
        "which users may open"
    )
