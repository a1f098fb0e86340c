"""What users of static MIG type, and what a site says it means here -> tables for Lua. Pure.

job_submit.lua and cli_filter.lua translate by these: the spellings of GPU models,
the types that the site still gives out as they are, its own words, and what a GPU
without a type is in a partition, with a feature or in a reservation.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import UsageFault
from slurm_mig.fleet.naming import COUNT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from slurm_mig.fleet.fleet import Fleet, Model

#: Names that a word of a site's cannot be: Slurm or we read them as something else.
RESERVED: Final = ("gpu", "mig", "shard", "gres", "none", "cpu", "mem", "node", "billing", "energy")

#: How CPUs and memory of a GPU are counted for a slice.
BY: Final = ("slice", "share")

# A gres word as users write it, without its count.
_WORD: Final = re.compile(r"(?:gpu:)?[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
# What `mig:` reads as memory.
_MEMORY: Final = re.compile(r"[1-9][0-9]{0,3}gb", re.IGNORECASE)
#: Words of an NVML name before which a shorter name of the board may end.
_NUMBERED: Final = re.compile(r".*[0-9]")


@dataclass(frozen=True, slots=True)
class Default:
    """What a GPU is for jobs in a partition, with a feature and in a reservation of these.

    Empty tuples stand for any. `slice` is what a GPU without a type becomes, `cpus` and
    `memory` (MB) what belongs to each GPU; `by` says whether a slice has all of that
    (`slice`) or its share of the GPU (`share`).
    """

    partitions: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    reservations: tuple[str, ...] = ()
    slice: str | None = None
    cpus: int | None = None
    memory: int | None = None
    by: str = BY[0]


@dataclass(frozen=True, slots=True)
class Bridge:
    """A site's words. `on`: whether forms of static MIG are translated at all.

    `words` are gres words -> slices; `static` GPU types of nodes that are not in the
    fleet; `partitions` those of each node group, in the fleet's order.
    """

    on: bool = True
    words: Mapping[str, str] = field(default_factory=dict)
    defaults: tuple[Default, ...] = ()
    static: tuple[str, ...] = ()
    partitions: tuple[tuple[str, ...], ...] = ()

    def tables(self, fleet: Fleet) -> str:
        """Lua tables; UsageFault names a word or default that cannot be."""
        rows = "".join(f"  {_row(fleet, item)}\n" for item in self.defaults)
        self._check_places(fleet)
        types = dict.fromkeys((*_types(fleet), *self.static))
        return (
            "-- Whether words of static MIG are translated; GPU types that are whole GPUs;\n"
            "-- spellings of GPU models; the site's words; what a GPU is where; partitions.\n"
            f"local BRIDGE = {'true' if self.on else 'false'}\n"
            f"local STATIC = {_set(types)}\n"
            f"local MODELS = {{ {_models(fleet)} }}\n"
            f"local SITE_WORDS = {{ {', '.join(self._words(fleet, types))} }}\n"
            f"local DEFAULTS = {{\n{rows}}}\n"
            f"local PARTITIONS = {{ {', '.join(self._partitions(fleet))} }}\n"
        )

    def _words(self, fleet: Fleet, types: Iterable[str]) -> Iterator[str]:
        taken = {*RESERVED, *map(str.lower, types)}
        seen: dict[str, str] = {}
        for word, target in self.words.items():
            lower = word.lower()
            bare = lower.removeprefix("gpu:")
            if not _WORD.fullmatch(word) or COUNT.fullmatch(bare):
                raise UsageFault(
                    f"word {word!r}: write what stands in --gres without its count, such as "
                    '"gpu:a100l.1" or "mig_24gb"'
                )
            if bare in taken:
                allowed = "what a GPU without a type is stands in [[defaults]]"
                raise UsageFault(
                    f"word {word!r}: {bare} has a meaning already, and keeps it; {allowed}"
                )
            if lower in seen:
                raise UsageFault(
                    f"words {seen[lower]!r} and {word!r} are one, for upper and lower case are "
                    "the same; leave one of them out"
                )
            seen[lower] = word
            row = _slice(fleet, target, f"word {word}")
            _keeps_meaning(fleet, word, row)
            yield f"[{_lua(lower)}] = {row}"

    def _check_places(self, fleet: Fleet) -> None:
        """UsageFault for a default slice that no node of its partition has: jobs would wait."""
        models = self._models_of_partitions(fleet)
        for item in self.defaults:
            meaning = fleet.meaning(fleet.aliases.get(item.slice or "", item.slice or ""))
            for partition in item.partitions:
                if meaning and partition in models and not models[partition] & {*meaning.types}:
                    raise UsageFault(
                        f"[[defaults]] slice: no node in partition {partition} has "
                        f"{item.slice!r}; its GPU types: {', '.join(sorted(models[partition]))}"
                    )

    def _models_of_partitions(self, fleet: Fleet) -> dict[str, set[str]]:
        """Types of carved GPUs in each partition of which the site says what nodes it has."""
        models: dict[str, set[str]] = {}
        for group, partitions in zip(fleet.groups, self.partitions, strict=False):
            for partition in partitions:
                models.setdefault(partition, set()).update(group.types())
        return models

    def _partitions(self, fleet: Fleet) -> Iterator[str]:
        for partition, types in self._models_of_partitions(fleet).items():
            known = [
                name
                for name, gres in fleet.names.items()
                if gres.name == gres.base and set(gres.types) & types
            ]
            yield (
                f"[{_lua(partition)}] = {{ types = {_set(sorted(types))}, "
                f"known = {_lua(', '.join(known) or 'no slices')} }}"
            )


def _keeps_meaning(fleet: Fleet, word: str, row: str) -> None:
    """UsageFault for a word that is another slice already: one name would have two meanings."""
    bare = word.removeprefix("gpu:")
    aliases = fleet.aliases if bare == word else {}
    known = aliases.get(bare, bare.lower())
    if fleet.meaning(known) and _slice(fleet, known, f"word {word}") != row:
        raise UsageFault(
            f"word {word!r}: {bare} is {known} here already, and keeps that meaning; "
            "choose another word"
        )
    if bare == word and _MEMORY.fullmatch(bare):
        raise UsageFault(
            f'word {word!r}: an amount of memory is the smallest slice that has it; "gpu:{bare}" '
            "can be a word"
        )


def _slice(fleet: Fleet, target: str, where: str) -> str:
    meaning = fleet.meaning(fleet.aliases.get(target, target))
    if meaning is None:
        raise UsageFault(
            f"{where}: {target!r} is no profile here; known: "
            f"{', '.join((*fleet.names, *fleet.aliases))}"
        )
    item = fleet.names[meaning.name]
    only = "" if meaning.types == item.types else f", only = {_lua(meaning.types[0])}"
    return f"{{ name = {_lua(item.name)}{only} }}"


def _types(fleet: Fleet) -> Iterator[str]:
    for group in fleet.groups:
        for name, _ in group.by_minor().values():
            yield name


def _models(fleet: Fleet) -> str:
    found: dict[str, dict[str, None]] = {}
    for model in fleet.models.values():
        for spelling in spellings(model):
            found.setdefault(spelling, {})[model.type_name] = None
    return ", ".join(f"[{_lua(name)}] = {_set(types)}" for name, types in found.items())


def spellings(model: Model) -> dict[str, None]:
    """How people write a model before a profile, in lower case and without marks.

    Its type, its names, and what those begin with from the first number on: `a100`,
    `a100sxm4` and `a100sxm440gb` for NVIDIA A100-SXM4-40GB, which gres.conf with
    AutoDetect=nvml has as nvidia_a100-sxm4-40gb.
    """
    found = dict.fromkeys(map(_plain, (model.type_name, *model.also)))
    for name in (model.title, *model.names):
        words = re.split(r"[^a-z0-9]+", name.lower().removeprefix("nvidia "))
        for end in range(1, len(words) + 1):
            head = words[:end]
            if any(_NUMBERED.match(word) for word in head):
                found["".join(head)] = None
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _row(fleet: Fleet, item: Default) -> str:
    parts = [
        f"{key} = {_set(values)}"
        for key, values in (
            ("partitions", item.partitions),
            ("features", item.features),
            ("reservations", item.reservations),
        )
        if values
    ]
    if item.slice is not None:
        parts.append(f"slice = {_slice(fleet, item.slice, '[[defaults]] slice')}")
    parts += [
        f"{key} = {value}"
        for key, value in (("cpus", item.cpus), ("memory", item.memory))
        if value is not None
    ]
    if item.by == "share":
        parts.append("share = true")
    return f"{{ {', '.join(parts)} }},"


def _set(names: Iterable[str]) -> str:
    words = ", ".join(f"[{_lua(name)}] = true" for name in names)
    return f"{{ {words} }}"


def _lua(value: str) -> str:
    """A Lua literal: of ASCII words without control characters, JSON's are the same."""
    return json.dumps(value)
