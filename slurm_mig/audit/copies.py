"""Ledgers that are copies of one another: which copy of a record counts, and where they disagree.

A copy knows nothing of what came after it. To filter each on its own and merge what is left
would show a slice as held that a later copy knows to be released.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from heapq import merge
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from slurm_mig.mig.allocation import Allocation

#: Number, node and time of creation: what every copy has of a record, and no other record has.
Key = tuple[object, object, object]


class Copy(Protocol):
    """A ledger as far as this is about it (archive.py, Archive)."""

    def length(self) -> int:
        """Number of the last event."""

    def first(self) -> int:
        """Number of the event before its first one; 0 where nothing was moved to an archive."""

    def ends(self) -> Sequence[Key]:
        """Keys of the first and the last record; none of a ledger without any."""

    def key(self, number: int) -> Key | None:
        """Key of the record of that number."""

    def digest_of(self, seq: int) -> str | None:
        """Digest of an event, or of the one before its first."""

    def find(self, *args: Any, **wanted: Any) -> Iterable[Allocation]:
        """The records that are asked for, oldest first."""


C = TypeVar("C", bound=Copy)

_FIRST_EVENT: Final = 1


@dataclass(frozen=True, slots=True)
class Contradiction(Generic[C]):
    """Two copies of one ledger whose histories differ from an event on."""

    one: C
    other: C
    event: int


def youngest(copies: Iterable[C], wanted: Mapping[str, Any]) -> Iterator[tuple[Allocation, C]]:
    """Records of all ledgers that are asked for, oldest first, each with the ledger it is from.

    Of several copies the youngest that has a record speaks for it, also where it says that
    the record is not meant. An archive and the ledger that it was moved out of count as copies.
    Records come as they are read: all of them may not fit in memory.
    """
    streams = [
        _spoken_for(copy, family[:place], wanted)
        for family in _families(copies)
        for place, copy in enumerate(family)
    ]
    return merge(*streams, key=lambda item: (item[0].created, item[0].node, item[0].number))


def _spoken_for(
    copy: C, younger: Sequence[C], wanted: Mapping[str, Any]
) -> Iterator[tuple[Allocation, C]]:
    """Records of a copy that no younger one has."""
    spans = [(other, *_numbers(other)) for other in younger]
    for record in copy.find(**wanted):
        if not any(low <= record.number <= high and _has(o, record) for o, low, high in spans):
            yield record, copy


def _numbers(copy: Copy) -> tuple[int, int]:
    """The first and the last record's number, so that few others are looked up there."""
    numbers = [key[0] for key in copy.ends() if isinstance(key[0], int)]
    return (numbers[0], numbers[-1]) if numbers else (1, 0)


def contradictions(copies: Iterable[C]) -> list[Contradiction[C]]:
    """Copies of one ledger that do not tell the same; each compared with the youngest."""
    found = []
    for family in _families(copies):
        heads: list[C] = []
        for copy in family:
            head = next((other for other in heads if _same(copy, other)), None)
            if head is None:
                heads.append(copy)
            elif (event := _fork(head, copy)) is not None:
                found.append(Contradiction(head, copy, event))
    return found


def _families(copies: Iterable[C]) -> list[list[C]]:
    """Ledgers of one node, the youngest first: only these may be copies of one another."""
    families: dict[object, list[C]] = defaultdict(list)
    for copy in sorted(copies, key=lambda copy: -copy.length()):
        ends = copy.ends()
        families[ends[0][1] if ends else None].append(copy)
    return list(families.values())


def _has(copy: Copy, record: Allocation) -> bool:
    return copy.key(record.number) == (record.number, record.node, record.created)


def _same(one: Copy, other: Copy) -> bool:
    """By the first event of both, or by a record: none is another ledger for one edit."""
    first = max(one.first(), other.first(), _FIRST_EVENT)
    digest = one.digest_of(first)
    if digest is not None and digest == other.digest_of(first):
        return True
    return any(
        there.key(key[0]) == key
        for here, there in ((one, other), (other, one))
        for key in here.ends()
        if isinstance(key[0], int)
    )


def _fork(one: Copy, other: Copy) -> int | None:
    """The first event that differs: each digest stands for all events before it."""

    def differ(seq: int) -> bool:
        return one.digest_of(seq) != other.digest_of(seq)

    first = max(one.first(), other.first(), _FIRST_EVENT)
    last = min(one.length(), other.length())
    if last < first or not differ(last):
        return None
    events = range(first, last + 1)
    return first + bisect_left(events, True, key=differ)  # noqa: FBT003  # what is looked for
