"""Options that several verbs have, and times as people type them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Callable


json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)

#: As with nvidia-smi: `-i` names a GPU, and without it a command means all of them.
gpu_option: Callable[[Any], Any] = click.option(
    "-i", "--gpu", "gpu", default="all", help="Device minor or UUID; all GPUs if not given."
)
dry_run_option: Callable[[Any], Any] = click.option(
    "--dry-run", is_flag=True, help="Only say what would be done."
)

#: Seconds since the epoch that are taken for such: of the years 2001 to 5138.
FIRST_SECOND: Final = 10**9
LAST_SECOND: Final = 10**11

#: A number that is no date in ISO 8601's basic format.
_SECONDS: Final = re.compile(r"(?![0-9]{8}\Z)[0-9]+(\.[0-9]+)?")


def parse_time(text: str) -> float:
    """Seconds since the epoch from `2026-03-01`, `2026-03-01T12:00` (local) or such a number.

    Eight digits are a date, `20260301`: as seconds they would be a day of 1970, and a
    question about it has an empty answer.
    """
    try:
        number = _SECONDS.fullmatch(text)
        seconds = float(text) if number else datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
        number = None
    if not (FIRST_SECOND if number else 0) <= seconds <= LAST_SECOND:
        raise UsageFault(
            f"time {text!r}: write 2026-03-01, 2026-03-01T12:30 (years 1970 to 5137) or seconds "
            f"since the epoch ({FIRST_SECOND} to {LAST_SECOND})"
        )
    return seconds
