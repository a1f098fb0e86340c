"""The event table is a hash chain: what was changed, removed or reordered, by row.

What the chain alone cannot show: the last rows cut off, and a table that was
hashed anew from the changed row on. The first shows against the other tables,
both against the heads that hooks write to syslog.
"""

from __future__ import annotations

import json
import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.audit.findings import NAMED_OF_A_KIND, AuditFinding
from slurm_mig.audit.rows import is_text, is_time, is_whole, odd_event, odd_record
from slurm_mig.mig.allocation import OPEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.state.event import Event

    Digest = Callable[[str, Sequence[object]], str]

#: Rows that do not follow are named singly up to this many; who renumbers a table breaks all.
NAMED: Final = 32

#: Longest time between the end on record and the writing of its event, in seconds: a
#: transaction may wait for others. For events of schema version 1, which do not say the end.
WRITTEN_WITHIN: Final = 60.0

#: The program and the user that hooks write to syslog as (log_line.py, Line).
_PROGRAM: Final = "slurm-mig"
_ROOT: Final = "0"

#: What stands before a hook's line in a text of syslog (RFC 3164 and 5424): the program with
#: its pid, if it has one. Behind another program's name, which a colon ends, stands what anybody
#: may say.
_WRITTEN_BY: Final = re.compile(rf"(?:(?!: ).)*?(?<!\S){_PROGRAM}(?:(?:\[\d+\])?: | \d+ \S+ \S+ )")

#: A hook's line with the chain's head.
_HEAD: Final = re.compile(
    r"(?:prolog|epilog|teardown) job=\d+ restart=\d+ user=.*? node=(\S+) (?:.*? )?ms=\d+ "
    r"head=([1-9]\d{0,17}):([0-9a-f]{16})(?= |$)"
)


@dataclass(frozen=True, slots=True)
class Head:
    """A chain's head as a line of syslog has it: the first 16 digits of the digest."""

    node: str
    seq: int
    digest: str


class ChainCheck:
    """Looks at events in their order, one after the other; then tells what is wrong."""

    def __init__(self, digest: Digest, start: int = 0, before: str = "") -> None:
        """`start`, `before`: number and digest of the event that stands before the first."""
        self._digest = digest
        self._before = before
        self._first = self._expected = start + 1
        self._last_at = float("-inf")
        self._gaps: list[AuditFinding] = []
        self._more_gaps = 0
        self._broken: list[tuple[Event, str]] = []
        self._uncounted = 0
        self.events = 0
        #: How often the node's clock was set back, and the widest step: (event, seconds).
        self.set_back = 0
        self.widest_step = (0, 0.0)

    @property
    def last(self) -> int:
        """Number of the last event that was looked at."""
        return self._expected - 1

    def look(self, event: Event) -> None:
        """Take the next event."""
        self.events += 1
        if event.seq != self._expected:
            self._miss(_gap(self._expected, event.seq, self._first))
        # Whoever hashes the table anew gives a digest to values that nobody can read, too.
        elif self._digest(self._before, event.content) != event.digest or odd_event(event):
            if len(self._broken) < NAMED:
                self._broken.append((event, self._before))
            else:
                self._uncounted += 1
        if is_time(event.at):
            if (step := self._last_at - event.at) > 0:
                self.set_back += 1
                self.widest_step = max(self.widest_step, (event.seq, step), key=lambda it: it[1])
            self._last_at = event.at
        self._before, self._expected = event.digest, event.seq + 1

    def _miss(self, gap: AuditFinding) -> None:
        if len(self._gaps) < NAMED_OF_A_KIND:
            self._gaps.append(gap)
        else:
            self._more_gaps += 1

    def findings(self) -> list[AuditFinding]:
        """What is wrong, in the order of the events."""
        found = [*self._gaps, *(self._name(event) for event, _ in self._broken)]
        found.sort(key=lambda item: item.event or 0)
        if self._uncounted:
            found.append(AuditFinding("changed", f"{self._uncounted} events more do not follow"))
        if self._more_gaps:
            found.append(
                AuditFinding("removed", f"at {self._more_gaps} places more events are gone")
            )
        return found

    def _name(self, event: Event) -> AuditFinding:
        written = self._place(event)
        if written is not None:
            text = f"event {event.seq} was written as event {written}"
            return AuditFinding("reordered", text, event=event.seq)
        if odd := odd_event(event):
            return AuditFinding("changed", f"event {event.seq} was changed: {odd}", event=event.seq)
        before = f", or event {event.seq - 1} with its digest" if event.seq > 1 else ""
        text = f"event {event.seq} does not follow: it was changed{before}"
        return AuditFinding("changed", text, event=event.seq)

    def _place(self, event: Event) -> int | None:
        """Where an event was written, if that is one of the places that are wrong now."""
        places = {other.seq for other, _ in self._broken} - {event.seq}
        befores = {other.digest for other, _ in self._broken} | {last for _, last in self._broken}
        for place in sorted(places):
            content = (place, *event.content[1:])
            if any(self._digest(before, content) == event.digest for before in befores):
                return place
        return None


def _gap(expected: int, found: int, first: int) -> AuditFinding:
    if found < expected:
        return AuditFinding("added", f"event {found}: the first is event {first}", event=found)
    last = found - 1
    which = f"event {expected} is" if last == expected else f"events {expected} to {last} are"
    return AuditFinding("removed", f"{which} gone", event=expected)


# -- heads ---------------------------------------------------------------------


class Heads:
    """The heads in a text of syslog or journal, whichever host's lines it has; 16 bytes each.

    Read it before the ledger is opened: a head that comes after that is of an event that the
    ledger does not show, and looks as if its end had been cut off.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._by_node: dict[str, tuple[array[int], array[int]]] = {}
        #: Whether the journal itself says of each head that a program of root's wrote it.
        self.proven = True
        for line in lines:
            message, proven = _message(line)
            match = _HEAD.match(message)
            if match:
                seqs, digests = self._by_node.setdefault(match[1], (array("Q"), array("Q")))
                seqs.append(int(match[2]))
                digests.append(int(match[3], 16))
                self.proven = self.proven and proven

    def of(self, node: str) -> Iterator[Head]:
        """Those of one node, as they came."""
        for seq, digits in zip(*self._by_node.get(node, ((), ())), strict=True):
            yield Head(node, seq, f"{digits:016x}")


def _message(line: str) -> tuple[str, bool]:
    """What our program wrote in a line, and whether that is certain; empty for what others wrote.

    Journald adds the names that begin with `_` itself (`journalctl -o json`); in plain text
    anybody may take any name.
    """
    if line.startswith("{"):
        entry = _facts(line) or {}
        ours = entry.get("SYSLOG_IDENTIFIER") == _PROGRAM and entry.get("_UID") == _ROOT
        message = entry.get("MESSAGE")
        return (message if ours and isinstance(message, str) else ""), True
    before = _WRITTEN_BY.match(line)
    return (line[before.end() :] if before else ""), False


class HeadCheck:
    """Compares heads of one node with its table, one after the other.

    `last` is the table's last event. Says between which events the first rewritten one lies:
    each digest stands for all rows before it. Of a million lines it keeps eight bytes each.
    """

    def __init__(self, digest_of: Callable[[int], str | None], last: int, first: int = 0) -> None:
        """`first`: earlier events are not at hand; heads of them are counted, and prove nothing."""
        self._digest_of = digest_of
        self._last = last
        self._first = first
        self._good = array("Q")
        self._bad: Head | None = None
        self.beyond = 0
        self.compared = 0

    def look(self, head: Head) -> None:
        """Take a head, in any order."""
        have = self._digest_of(head.seq)
        if have is None and head.seq <= self._first:
            self.beyond += 1
            return
        self.compared += 1
        if have is not None and have.startswith(head.digest):
            if not self._good or self._good[-1] != head.seq:
                self._good.append(head.seq)
        elif self._bad is None or (head.seq, head.digest) < (self._bad.seq, self._bad.digest):
            self._bad = head

    def findings(self) -> list[AuditFinding]:
        """What the first head that does not agree says; none where all do."""
        head = self._bad
        if head is None:
            return []
        if head.seq > self._last:
            text = f"syslog has event {head.seq}, the ledger ends with event {self._last}"
            return [AuditFinding("removed", text, head.node, event=self._last + 1)]
        good = max((seq for seq in self._good if seq < head.seq), default=self._first)
        text = f"event {good + 1} was changed since syslog had its head {head.digest}"
        if head.seq > good + 1:
            text = f"one of the events {good + 1} to {head.seq} was changed since syslog had "
            text += f"the head {head.seq}:{head.digest}"
        return [AuditFinding("rewritten", text, head.node, event=good + 1)]


def check_heads(
    seen: Iterable[Head], digest_of: Callable[[int], str | None], last: int
) -> list[AuditFinding]:
    """Compare heads of one node with its table; `last` is the table's last event."""
    check = HeadCheck(digest_of, last)
    for head in seen:
        check.look(head)
    return check.findings()


# -- the present truth -----------------------------------------------------------


def check_allocation(
    number: int, record: Allocation | None, events: Iterable[Event], *, leaves: bool = False
) -> list[AuditFinding]:
    """Whether an allocation and its instances are what its events lead to.

    `leaves`: of an archive, where a record that was open after its last event need not be.
    """
    first, last, told = _told(events)
    if first is None or last is None:
        text = f"allocation {number} is in no event: it was added, or its events were cut off"
        return [AuditFinding("added", text, allocation=number)]
    if (
        record is None
        and leaves
        and not isinstance(told, AuditFinding)
        and told.get("phase") in OPEN
    ):
        return []
    if record is None:
        text = f"allocation {number} is gone; event {first.seq} made it"
        return [AuditFinding("removed", text, event=first.seq, allocation=number)]
    if isinstance(told, AuditFinding):
        return [told]
    have = _plain(record)
    differ = [name for name in have if name in told and told[name] != have[name]]
    if not differ and not _end_fits(record, last, told):
        at = last.at
        differ, told["ended"] = ["ended"], f"about {at:.0f}" if is_time(at) else "not known"
    if not differ and (odd := odd_record(record)):
        # What its events say, too, once somebody has hashed them anew.
        return [AuditFinding("changed", f"allocation {number}: {odd}", allocation=number)]
    owner = record.owner
    return [
        AuditFinding(
            "disagrees",
            f"allocation {number}: {name} is {_short(have[name])}, "
            f"by event {last.seq} it is {_short(told[name])}",
            event=last.seq,
            allocation=number,
            job_id=owner.job_id if is_whole(owner.job_id) else None,
            user=owner.user if is_text(owner.user) else "",
        )
        for name in differ
    ]


def _told(
    events: Iterable[Event],
) -> tuple[Event | None, Event | None, dict[str, Any] | AuditFinding]:
    """The first and the last event, and what they all lead to.

    The first has everything, later ones what changed. Of an event that cannot be read there is
    a finding instead: there is nothing to compare with.
    """
    told: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    odd: AuditFinding | None = None
    first = last = None
    for event in events:
        first, last = first or event, event
        read = _facts(event.detail)
        if read is None or not isinstance(read.get("owner", {}), dict):
            text = f"event {event.seq} was changed: its detail is not what slurm-mig writes"
            odd = odd or AuditFinding("changed", text, event=event.seq)
        else:
            facts = read
            told.update(facts)
    if odd is not None:
        return first, last, odd
    owner = told.pop("owner", {})
    # `ended` of the first event says nothing of a record that later events close.
    if first is not last and "ended" not in facts:
        told.pop("ended", None)
    return first, last, told | {f"owner.{name}": value for name, value in owner.items()}


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
