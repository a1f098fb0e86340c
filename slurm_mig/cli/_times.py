"""Times as people type them: all that sacct takes (sacct(1), --starttime), and `yesterday`.

Questions are about the past: a time of day that is still to come today is yesterday's, a day
without its year the last one of that name.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from slurm_mig.errors import UsageFault

#: Seconds since the epoch that are taken for such: of the years 2001 to 5138.
FIRST_SECOND: Final = 10**9
LAST_SECOND: Final = 10**11

#: A number that is no date: ISO 8601's basic format has eight digits, sacct's MMDD[YY] fewer.
_SECONDS: Final = re.compile(r"[0-9]{9,}(\.[0-9]+)?")

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NOW: Final = re.compile(
    r"now(?:(?P<sign>[+-])(?P<count>[0-9]{1,9})"
    r"(?P<unit>|s|sec(ond)?s?|m|min(ute)?s?|h|hours?|d|days?|w|weeks?))?"
)
_CLOCK: Final = (
    r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2}))?(?P<half>[ap]m)?"
)
_TIME: Final = re.compile(_CLOCK)
_DAY: Final = re.compile(
    r"(?P<month>[0-9]{2})(?P<mark>[./]?)(?P<day>[0-9]{2})(?:(?P=mark)(?P<year>[0-9]{2}))?"
    rf"(?:-{_CLOCK})?"
)
#: Words for a time of day, in hours: the last of these.
_HOURS: Final = {"midnight": 0, "noon": 12, "fika": 15, "teatime": 16}
#: Words for the beginning of a day, in days from today's.
_DAYS: Final = {"yesterday": -1, "today": 0, "tomorrow": 1}


def parse_time(text: str, now: datetime | None = None) -> float:
    """Seconds since the epoch from what sacct takes, local time, or from such a number.

    Eight digits are a date, `20260301`: as seconds they would be a day of 1970, and a
    question about it has an empty answer.
    """
    number = _SECONDS.fullmatch(text)
    try:
        seconds = float(text) if number else _moment(text.lower(), now or datetime.now())
    except (ValueError, OverflowError):
        seconds = -1.0
    if not (FIRST_SECOND if number else 0) <= seconds <= LAST_SECOND:
        raise UsageFault(
            f"time {text!r}: write 2026-03-01, 2026-03-01T12:30 (years 1970 to 5137), yesterday, "
            f"now-2hours, another form of sacct's, or seconds since the epoch ({FIRST_SECOND} to "
            f"{LAST_SECOND})"
        )
    return seconds


def _moment(text: str, now: datetime) -> float:
    if match := _NOW.fullmatch(text):
        return now.timestamp() + _delta(match)
    if text in _DAYS:
        return _days(now, _DAYS[text]).timestamp()
    if text in _HOURS:
        return _last(now, (_HOURS[text], 0, 0)).timestamp()
    if match := _TIME.fullmatch(text):
        return _last(now, _clock(match)).timestamp()
    if match := _DAY.fullmatch(text):
        return _dated(match, now).timestamp()
    return datetime.fromisoformat(text.upper()).timestamp()


def _delta(match: re.Match[str]) -> float:
    if not match["count"]:
        return 0.0
    seconds = int(match["count"]) * _UNITS[(match["unit"] or "s")[0]]
    return float(-seconds if match["sign"] == "-" else seconds)


def _days(now: datetime, count: int) -> datetime:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=count)


def _last(now: datetime, clock: tuple[int, int, int]) -> datetime:
    hour, minute, second = clock
    found = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
    return found if found <= now else found - timedelta(days=1)


def _clock(match: re.Match[str]) -> tuple[int, int, int]:
    hour = int(match["hour"])
    if match["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(match[0])
        hour = hour % 12 + (12 if match["half"] == "pm" else 0)
    return hour, int(match["minute"]), int(match["second"] or 0)


def _dated(match: re.Match[str], now: datetime) -> datetime:
    hour, minute, second = _clock(match) if match["hour"] else (0, 0, 0)
    year = now.year if match["year"] is None else 2000 + int(match["year"])
    found = datetime(year, int(match["month"]), int(match["day"]), hour, minute, second)
    if match["year"] is None and found > now:
        found = found.replace(year=year - 1)
    return found
