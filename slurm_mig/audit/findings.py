"""One thing an audit found that should not be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Findings of one kind that are named singly: who renames all users of a ledger with a million
#: events makes as many findings, which nobody reads and no memory holds.
NAMED_OF_A_KIND: Final = 1000

#: Kinds of findings that `--check` has, and what each means.
CHECKED: Final[dict[str, str]] = {
    "changed": "an event is not as it was written, or a row has an impossible value",
    "removed": "events, or a row that events speak of, are gone",
    "reordered": "an event stands where another was written",
    "rewritten": "the chain is not the one whose head syslog has",
    "set-back": "this boot's marks have events that the ledger has not: it was replaced or lost",
    "contradicts": "two copies of one ledger tell different histories",
    "disagrees": "a row of the present truth says other than its events",
    "added": "a row that no event speaks of",
    "unguarded": "the triggers that keep events from being changed are gone, or others",
    "damaged": "SQLite finds the file damaged",
}

#: Kinds of findings that `--reconcile` has, and what each means.
RECONCILED: Final[dict[str, str]] = {
    "unknown-job": "a slice was held for a job that Slurm's accounting does not have",
    "slice-without-job": "a slice was held while its job did not run on that node",
    "outside-job": "a slice was made before its job began, or held on after it ended",
    "open-after-end": "a slice is still on record, its job has ended",
    "charged-without-slice": "a job was charged for slices during a time it had none",
    "wrong-slices": "a job had other slices than it was charged for",
    "wrong-user": "ledger and accounting name different users",
    "double-use": "two owners had the same slots of a GPU at the same time",
}


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """What was found, where, about whom, and when.

    `kind` is one of `CHECKED` or `RECONCILED`; `event` and `allocation` are rows
    of the node's ledger.
    """

    kind: str
    text: str
    node: str = ""
    event: int | None = None
    allocation: int | None = None
    job_id: int | None = None
    user: str = ""
    since: float | None = None
    until: float | None = None


def first_of_each(found: Iterable[AuditFinding]) -> list[AuditFinding]:
    """The first of each kind in their order, and for the others one that says how many."""
    named: list[AuditFinding] = []
    counts: Counter[str] = Counter()
    for item in found:
        counts[item.kind] += 1
        if counts[item.kind] <= NAMED_OF_A_KIND:
            named.append(item)
    return named + [
        AuditFinding(kind, f"{count - NAMED_OF_A_KIND} findings more of this kind")
        for kind, count in counts.items()
        if count > NAMED_OF_A_KIND
    ]
