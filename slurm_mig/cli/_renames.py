"""Which gres names and words would end or mean something else: the files of before, and a fleet.

Jobs, limits, prices and scripts hold on to names: whoever changes a fleet has to hear of it
before Slurm does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.lua_checks import expected_rows, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.lua_checks import Row
    from slurm_mig.fleet.fleet import Fleet

_COUNTED: Final = re.compile(r"[ =,]mig:([^:,\s]+):\d+")
_WORD: Final = re.compile(
    r'^  \["([^"]+)"\] = \{ name = "([^"]+)"(?:, only = "([^"]+)")? \},$', re.MULTILINE
)
#: Where a row has id, weight and capacity, and its GPU types.
_PRICE: Final = slice(0, 4)
_TYPES: Final = -1


def renames(slurm_conf: str, job_submit: str, fleet: Fleet) -> list[str]:
    """A sentence for each name and word of the old files that would end or change."""
    before, now = rows(job_submit), expected_rows(fleet)
    found = [_ended(name, fleet) for name in _gone({*before, *_COUNTED.findall(slurm_conf)}, fleet)]
    for name, old in before.items():
        if name in now:
            found += _changed(name, old, now[name])
    for word, name, _ in _WORD.findall(job_submit):
        found += _changed_word(word, before.get(name), fleet)
    return found


def _gone(names: set[str], fleet: Fleet) -> list[str]:
    return sorted(names - set(fleet.counted))


def _ended(name: str, fleet: Fleet) -> str:
    item = fleet.meaning(name)
    if item is None:
        return (
            f"mig:{name} ends: jobs that wait with it never start, and it is unknown to new ones; "
            "cancel those jobs"
        )
    return (
        f"mig:{name} is counted no longer: jobs that wait with it never start, unless keep_names "
        f"in the fleet file has it until they have; new jobs get mig:{item.name} on "
        f"{' or '.join(item.types)} for it; limits and prices of gres/mig:{name} do not hold for "
        "them"
    )


def _changed(name: str, old: Row, new: Row) -> Iterator[str]:
    if old[_PRICE] != new[_PRICE]:
        yield (
            f"mig:{name} means something else: {_price(old)} before, {_price(new)} now; jobs "
            "that wait with it hold the old shards and are refused on the new nodes"
        )
    elif lost := sorted(_types(old) - _types(new)):
        yield (
            f"mig:{name} is no longer one of {', '.join(lost)}: jobs that wait with it for these "
            "never start"
        )


def _changed_word(word: str, old: Row | None, fleet: Fleet) -> Iterator[str]:
    targets = dict(fleet.aliases)
    item = fleet.meaning(targets.get(word, word))
    if item is None:
        yield f"the word {word} is unknown to new jobs"
    elif old and (new := expected_rows(fleet)[item.name])[_PRICE] != old[_PRICE]:
        yield f"the word {word} means something else: {_price(old)} before, {_price(new)} now"


def _types(row: Row) -> frozenset[str]:
    types = row[_TYPES]
    return types if isinstance(types, frozenset) else frozenset()


def _price(row: Row) -> str:
    profile, profile_id, weight, capacity = row[_PRICE]
    types = ", ".join(sorted(_types(row)))
    return f"{profile} of {types} (id {profile_id}, {weight} of {capacity} shards)"
