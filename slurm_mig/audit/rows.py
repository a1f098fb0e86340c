"""Whether a ledger's rows are such as slurm-mig writes: an edited value is named by its row.

SQLite keeps what it is given, whatever a column was declared as. So a byte string may stand
where a user's name was, and a word where a time was.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.state.event import Event

    Rules = Mapping[str, tuple[Callable[[object], bool], str]]

#: The last time that is one, in seconds since the epoch: the calendar's end, less some years
#: for time zones.
LATEST: Final = 253_000_000_000.0

#: More placement units than any GPU has; a mask of a billion bits would take all memory.
_UNITS: Final = 1024

#: Bytes that are no UTF-8 are read as these.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def is_text(value: object) -> bool:
    """Whether it is text that was UTF-8."""
    return isinstance(value, str) and (value.isascii() or not _SURROGATE.search(value))


def is_whole(value: object) -> bool:
    """Whether it is a whole number."""
    return isinstance(value, int)


def is_time(value: object) -> bool:
    """Whether it is a time that a calendar has."""
    return isinstance(value, float) and 0 <= value <= LATEST


def _is_slot(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _UNITS


def _or_none(test: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or test(value)


_TEXT: Final = (is_text, "no text")
_WHOLE: Final = (is_whole, "no whole number")
_SLOT: Final = (_is_slot, "no number of slots")
_TIME: Final = (is_time, "no time")

_OWNER: Final[Rules] = {
    "job_id": (_or_none(is_whole), "no whole number"),
    "het_leader": (_or_none(is_whole), "no whole number"),
    **dict.fromkeys(("restart", "uid", "gid"), _WHOLE),
    **dict.fromkeys(("sluid", "user", "account"), _TEXT),
}
_RECORD: Final[Rules] = {
    **dict.fromkeys(("node", "gpu_uuid", "gpu_name", "boot_id", "request"), _TEXT),
    **dict.fromkeys(("phase", "reason"), _TEXT),
    "gpu_minor": _WHOLE,
    "created": _TIME,
    "ended": (_or_none(is_time), "no time"),
}
_INSTANCE: Final[Rules] = {
    "profile": _TEXT,
    "profile_id": _WHOLE,
    "start": _SLOT,
    "size": _SLOT,
    **dict.fromkeys(("gi_id", "ci_id"), (_or_none(is_whole), "no whole number")),
    "uuid": (_or_none(is_text), "no text"),
}
_EVENT: Final[Rules] = {
    "at": _TIME,
    "kind": _TEXT,
    "allocation": _WHOLE,
    "job_id": (_or_none(is_whole), "no whole number"),
    "detail": _TEXT,
}


def odd_record(record: Allocation) -> str:
    """The first value of a record and its instances that slurm-mig never writes, in words.

    Empty when there is none.
    """
    parts = [(record, _RECORD), (record.owner, _OWNER)]
    parts += [(item, _INSTANCE) for item in record.instances]
    return next(filter(None, (_odd(part, rules) for part, rules in parts)), "")


def odd_event(event: Event) -> str:
    """The same for a row of the event table."""
    return _odd(event, _EVENT)


def _odd(row: object, rules: Rules) -> str:
    for name, (test, what) in rules.items():
        value = getattr(row, name)
        if not test(value):
            return f"{name} is {short(value)}, which is {what}"
    return ""


def short(value: object) -> str:
    """A value as Python writes it, cut where it would fill a screen."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
