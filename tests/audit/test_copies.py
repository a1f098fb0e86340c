"""Copies of one ledger: the youngest speaks, and histories that differ are told apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.audit.copies import contradictions, youngest
from slurm_mig.mig.allocation import ACTIVE, RELEASED
from tests.kit.audit_records import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.audit.copies import Key
    from slurm_mig.mig.allocation import Allocation


@dataclass
class Paper:
    """A ledger on paper: its records, and its events' digests."""

    name: str
    digests: Sequence[str]
    records: Sequence[Allocation] = ()

    def length(self) -> int:
        return len(self.digests)

    def first(self) -> int:
        return 0

    def ends(self) -> list[Key]:
        keys = [(item.number, item.node, item.created) for item in self.records]
        return [keys[0], keys[-1]] if keys else []

    def key(self, number: int) -> Key | None:
        found = [item for item in self.records if item.number == number]
        return (number, found[0].node, found[0].created) if found else None

    def digest_of(self, seq: int) -> str | None:
        return self.digests[seq - 1] if 0 < seq <= len(self.digests) else None

    def find(self, **wanted: Any) -> list[Allocation]:
        """By equal fields; that is filter enough here."""
        return [
            item
            for item in self.records
            if all(getattr(item, name) == value for name, value in wanted.items())
        ]


def told(copies: Sequence[Paper], **wanted: Any) -> list[tuple[int, str, str]]:
    return [(item.number, item.phase, copy.name) for item, copy in youngest(copies, wanted)]


OPEN = record(7, 1000, None, number=1)
CLOSED = replace(OPEN, phase=RELEASED, ended=2000.0)
NEXT = record(8, 3000, None, number=2)


def test_a_filter_is_asked_of_the_youngest_copy() -> None:
    """An older one still has open what a later one knows to be released, in either order."""
    monday, tuesday = Paper("monday", "ab", [OPEN]), Paper("tuesday", "abcd", [CLOSED, NEXT])
    for copies in ([monday, tuesday], [tuesday, monday]):
        assert told(copies) == [(1, RELEASED, "tuesday"), (2, ACTIVE, "tuesday")]
        assert told(copies, phase=ACTIVE) == [(2, ACTIVE, "tuesday")]
        assert told(copies, phase=RELEASED) == [(1, RELEASED, "tuesday")]
        assert contradictions(copies) == []


def test_other_ledgers_are_no_copies() -> None:
    """Of another node, or of the same one after it was moved aside: every record counts."""
    other = Paper("n2", "xyz", [replace(CLOSED, node="n2")])
    again = Paper("again", "lmnop", [record(7, 5000, None, number=1)])
    here = Paper("here", "ab", [OPEN])
    assert len(told([here, other, again])) == 3
    assert contradictions([here, other, again, Paper("empty", ""), Paper("none", "")]) == []


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 5))
def test_the_event_from_which_copies_differ(event: int, more: int, other: int) -> None:
    """Also where it is the first, for their records are the same."""
    same = "s" * (event - 1)
    one = Paper("one", same + "a" * (1 + more), [OPEN])
    two = Paper("two", same + "b" * (1 + other), [OPEN])
    (found,) = contradictions([one, two])
    assert found.event == event
    assert {found.one.name, found.other.name} == {"one", "two"}
    assert found.one.length() >= found.other.length()


def test_an_edited_first_record_makes_no_other_ledger() -> None:
    """The first event, or the last record, still tells whose copy it is."""
    edited = replace(OPEN, created=999.0)
    one = Paper("one", "abx", [CLOSED, NEXT])
    assert len(contradictions([one, Paper("two", "aby", [edited, NEXT])])) == 1
    assert len(contradictions([one, Paper("two", "zby", [edited, NEXT])])) == 1
