"""Ledgers that are copies of one another: which copy of a record counts, and where they disagree.

A copy knows nothing of what came after it. To filter each on its own and merge what is left
would show a slice as held that a later copy knows to be released.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurm_mig.allocation import Allocation

#: Number, node and time of creation: what every copy has of a record, and no other record has.
Key = tuple[object, object, object]


class Copy(Protocol):
    """A ledger as far as this is about it (archive.py, Archive)."""

    def length(self) -> int:
        """Number of the last event."""

    def ends(self) -> Sequence[Key]:
        """Keys of the first and the last record; none of a ledger without any."""

    def key(self, number: int) -> Key | None:
        """Key of the record of that number."""

    def digest_of(self, seq: int) -> str | None:
        """Digest of an event."""

    def find(self, *args: Any, **wanted: Any) -> Sequence[Allocation]:
        """The records that are asked for."""


C = TypeVar("C", bound=Copy)

_FIRST_EVENT: Final = 1


@dataclass(frozen=True, slots=True)
class Contradiction(Generic[C]):
    """Two copies of one ledger whose histories differ from an event on."""

    one: C
    other: C
    event: int


def youngest(copies: Iterable[C], wanted: Mapping[str, Any]) -> list[tuple[Allocation, C]]:
    """Records of all ledgers that are asked for, oldest first, each with the ledger it is from.

    Of several copies the youngest that has a record speaks for it, also where it says that
    the record is not meant.
    """
    found: list[tuple[Allocation, C]] = []
    for family in _families(copies):
        for place, copy in enumerate(family):
            found += [
                (record, copy)
                for record in copy.find(**wanted)
                if not any(_has(younger, record) for younger in family[:place])
            ]
    return sorted(found, key=lambda item: (item[0].created, item[0].node, item[0].number))


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
    """By the first event, or by a record of both: none is another ledger for one edit."""
    first = one.digest_of(_FIRST_EVENT)
    if first is not None and first == other.digest_of(_FIRST_EVENT):
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

    last = min(one.length(), other.length())
    if not differ(last):
        return None
    return bisect_left(range(1, last + 1), True, key=differ) + 1  # noqa: FBT003  # what is looked for
