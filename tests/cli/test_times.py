"""Times as Slurm takes them."""

from __future__ import annotations

from datetime import datetime

import pytest

from slurm_mig.cli._print import age, when
from slurm_mig.cli._times import parse_time
from slurm_mig.errors import UsageFault

#: A Thursday afternoon.
NOW = datetime(2026, 11, 26, 15, 30, 10)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("now", "2026-11-26 15:30:10"),
        ("now-1day", "2026-11-25 15:30:10"),
        ("now-2hours", "2026-11-26 13:30:10"),
        ("now-10", "2026-11-26 15:30:00"),
        ("now+1week", "2026-12-03 15:30:10"),
        ("today", "2026-11-26 00:00:00"),
        ("Yesterday", "2026-11-25 00:00:00"),
        ("midnight", "2026-11-26 00:00:00"),
        ("noon", "2026-11-26 12:00:00"),
        # Still to come today: yesterday's.
        ("teatime", "2026-11-25 16:00:00"),
        ("08:15", "2026-11-26 08:15:00"),
        ("23:00:05", "2026-11-25 23:00:05"),
        ("12:10am", "2026-11-26 00:10:00"),
        ("3:00PM", "2026-11-26 15:00:00"),
        ("1101", "2026-11-01 00:00:00"),
        ("12/24", "2025-12-24 00:00:00"),
        ("12/24/24", "2024-12-24 00:00:00"),
        ("11.01.26-12:30", "2026-11-01 12:30:00"),
        ("2026-03-01T12:30", "2026-03-01 12:30:00"),
        ("20260301", "2026-03-01 00:00:00"),
    ],
)
def test_what_sacct_takes(text: str, means: str) -> None:
    """And `yesterday`, which it does not."""
    assert datetime.fromtimestamp(parse_time(text, NOW)) == datetime.fromisoformat(means)


@pytest.mark.parametrize(
    "text", ["13:00pm", "25:00", "1301", "02/30", "now-", "now-1month", "then"]
)
def test_what_it_refuses(text: str) -> None:
    """With the forms there are."""
    with pytest.raises(UsageFault, match="yesterday, now-2hours, another form of sacct's"):
        parse_time(text, NOW)


def test_as_slurm_writes_them() -> None:
    """Durations as squeue does, times as sacct does."""
    assert [age(seconds) for seconds in (-1, 9, 1563, 12363, 95163)] == [
        *("0:00", "0:09", "26:03", "3:26:03", "1-02:26:03"),
    ]
    assert when(datetime(2026, 3, 1, 12, 30).timestamp()) == "2026-03-01T12:30:00"
    assert when(None) == "-"
