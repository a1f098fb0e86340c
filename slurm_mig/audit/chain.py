"""The event table is a hash chain: what was changed, removed or reordered, by row.

What the chain alone cannot show: the last rows cut off, and a table that was
hashed anew from the changed row on. The first shows against the other tables,
both against the heads that hooks write to syslog.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.audit.findings import Finding
from slurm_mig.audit.rows import is_text, is_time, is_whole, odd_event, odd_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurm_mig.allocation import Allocation

    Digest = Callable[[str, Sequence[object]], str]

#: Rows that do not follow are named singly up to this many; who renumbers a table breaks all.
NAMED: Final = 32

#: Longest time between the end on record and the writing of its event, in seconds: a
#: transaction may wait for others. For events of schema version 1, which do not say the end.
WRITTEN_WITHIN: Final = 60.0

#: A hook's line in syslog with the chain's head (hooks.py, Line). Whatever stands before it.
_HEAD: Final = re.compile(
    r"\b(?:prolog|epilog) job=\d+ restart=\d+ user=.*? node=(\S+) (?:.*? )?ms=\d+ "
    r"head=([1-9]\d{0,17}):([0-9a-f]{16})(?= |$)"
)


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the event table."""

    seq: int
    at: float
    kind: str
    allocation: int
    job_id: int | None
    detail: str
    digest: str

    @property
    def content(self) -> tuple[object, ...]:
        """What the digest is taken of, beside the digest before."""
        return (self.seq, self.at, self.kind, self.allocation, self.job_id, self.detail)


@dataclass(frozen=True, slots=True)
class Head:
    """A chain's head as a line of syslog has it: the first 16 digits of the digest."""

    node: str
    seq: int
    digest: str


class ChainCheck:
    """Looks at events in their order, one after the other; then tells what is wrong."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._before = ""
        self._expected = 1
        self._last_at = float("-inf")
        self._gaps: list[Finding] = []
        self._broken: list[tuple[Event, str]] = []
        self._uncounted = 0
        self.events = 0
        #: Times at which the node's clock was set back: (event, seconds).
        self.set_back: list[tuple[int, float]] = []

    @property
    def last(self) -> int:
        """Number of the last event that was looked at."""
        return self._expected - 1

    def look(self, event: Event) -> None:
        """Take the next event."""
        self.events += 1
        if event.seq != self._expected:
            self._gaps.append(_gap(self._expected, event.seq))
        # Whoever hashes the table anew gives a digest to values that nobody can read, too.
        elif self._digest(self._before, event.content) != event.digest or odd_event(event):
            if len(self._broken) < NAMED:
                self._broken.append((event, self._before))
            else:
                self._uncounted += 1
        if is_time(event.at):
            if event.at < self._last_at:
                self.set_back.append((event.seq, self._last_at - event.at))
            self._last_at = event.at
        self._before, self._expected = event.digest, event.seq + 1

    def findings(self) -> list[Finding]:
        """What is wrong, in the order of the events."""
        found = [*self._gaps, *(self._name(event) for event, _ in self._broken)]
        found.sort(key=lambda item: item.event or 0)
        if self._uncounted:
            found.append(Finding("changed", f"{self._uncounted} events more do not follow"))
        return found

    def _name(self, event: Event) -> Finding:
        written = self._place(event)
        if written is not None:
            text = f"event {event.seq} was written as event {written}"
            return Finding("reordered", text, event=event.seq)
        if odd := odd_event(event):
            return Finding("changed", f"event {event.seq} was changed: {odd}", event=event.seq)
        before = f", or event {event.seq - 1} with its digest" if event.seq > 1 else ""
        text = f"event {event.seq} does not follow: it was changed{before}"
        return Finding("changed", text, event=event.seq)

    def _place(self, event: Event) -> int | None:
        """Where an event was written, if that is one of the places that are wrong now."""
        places = {other.seq for other, _ in self._broken} - {event.seq}
        befores = {other.digest for other, _ in self._broken} | {last for _, last in self._broken}
        for place in sorted(places):
            content = (place, *event.content[1:])
            if any(self._digest(before, content) == event.digest for before in befores):
                return place
        return None


def _gap(expected: int, found: int) -> Finding:
    if found < expected:
        return Finding("added", f"event {found}: the first is event 1", event=found)
    last = found - 1
    which = f"event {expected} is" if last == expected else f"events {expected} to {last} are"
    return Finding("removed", f"{which} gone", event=expected)


# -- heads ---------------------------------------------------------------------


def heads(lines: Iterable[str]) -> Iterator[Head]:
    """The heads in a text of syslog or journal, whichever host's lines it has."""
    for line in lines:
        match = _HEAD.search(line)
        if match:
            yield Head(match[1], int(match[2]), match[3])


def check_heads(
    seen: Iterable[Head], digest_of: Callable[[int], str | None], last: int
) -> list[Finding]:
    """Compare heads of one node with its table; `last` is the table's last event.

    Says between which events the first rewritten one lies: each digest stands
    for all rows before it.
    """
    ordered = sorted(set(seen), key=lambda head: (head.seq, head.digest))
    good = 0
    for head in ordered:
        have = digest_of(head.seq)
        if have is None and head.seq > last:
            text = f"syslog has event {head.seq}, the ledger ends with event {last}"
            return [Finding("removed", text, head.node, event=last + 1)]
        if have is None or not have.startswith(head.digest):
            text = f"event {good + 1} was changed since syslog had its head {head.digest}"
            if head.seq > good + 1:
                text = f"one of the events {good + 1} to {head.seq} was changed since syslog had "
                text += f"the head {head.seq}:{head.digest}"
            return [Finding("rewritten", text, head.node, event=good + 1)]
        good = head.seq
    return []


# -- the present truth -----------------------------------------------------------


def check_allocation(
    number: int, record: Allocation | None, events: Sequence[Event]
) -> list[Finding]:
    """Whether an allocation and its instances are what its events lead to."""
    if not events:
        text = f"allocation {number} is in no event: it was added, or its events were cut off"
        return [Finding("added", text, allocation=number)]
    if record is None:
        text = f"allocation {number} is gone; event {events[0].seq} made it"
        return [Finding("removed", text, event=events[0].seq, allocation=number)]
    told = _told(events)
    if isinstance(told, Finding):
        return [told]
    have = _plain(record)
    differ = [name for name in have if name in told and told[name] != have[name]]
    if not differ and not _end_fits(record, events[-1], told):
        at = events[-1].at
        differ, told["ended"] = ["ended"], f"about {at:.0f}" if is_time(at) else "not known"
    if not differ and (odd := odd_record(record)):
        # What its events say, too, once somebody has hashed them anew.
        return [Finding("changed", f"allocation {number}: {odd}", allocation=number)]
    owner = record.owner
    return [
        Finding(
            "disagrees",
            f"allocation {number}: {name} is {_short(have[name])}, "
            f"by event {events[-1].seq} it is {_short(told[name])}",
            event=events[-1].seq,
            allocation=number,
            job_id=owner.job_id if is_whole(owner.job_id) else None,
            user=owner.user if is_text(owner.user) else "",
        )
        for name in differ
    ]


def _told(events: Sequence[Event]) -> dict[str, Any] | Finding:
    """What the events lead to: the first has everything, later ones what changed.

    Else the event that cannot be read: there is nothing to compare with.
    """
    told: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for event in events:
        read = _facts(event.detail)
        if read is None or not isinstance(read.get("owner", {}), dict):
            text = f"event {event.seq} was changed: its detail is not what slurm-mig writes"
            return Finding("changed", text, event=event.seq)
        facts = read
        told.update(facts)
    owner = told.pop("owner", {})
    # `ended` of the first event says nothing of a record that later events close.
    if len(events) > 1 and "ended" not in facts:
        told.pop("ended", None)
    return told | {f"owner.{name}": value for name, value in owner.items()}


def _facts(detail: object) -> dict[str, Any] | None:
    """The detail of an event; None for what is no JSON object."""
    try:
        facts = json.loads(detail) if isinstance(detail, str) else None
    except (ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def _plain(record: Allocation) -> dict[str, Any]:
    plain = record.to_dict()
    owner = plain.pop("owner")
    plain["instances"] = list(plain["instances"])
    return plain | {f"owner.{name}": value for name, value in owner.items()}


def _end_fits(record: Allocation, last: Event, told: dict[str, Any]) -> bool:
    """Where the events do not say the end: just before the last of them was written."""
    if "ended" in told:
        return True
    if record.ended is None or record.open:
        return record.open and record.ended is None
    if not (is_time(record.ended) and is_time(last.at)):
        return False
    return -1 <= last.at - record.ended <= WRITTEN_WITHIN


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=repr)
    return text if len(text) <= 120 else text[:117] + "..."
