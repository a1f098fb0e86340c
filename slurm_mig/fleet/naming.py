"""Which gres name a profile has on which nodes, and which words stand for it. Pure.

A name must not depend on what the fleet gets later: pending jobs, limits, prices and
accounting hold on to it. So whoever comes first in the fleet's order keeps NVIDIA's plain
name, and a later model shares it only where it means the same and one price can be paid for
both; else it is called `<GPU type>_<profile>` there. The word `<GPU type>_<profile>` is
understood in every fleet, whatever Slurm counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final

from slurm_mig.mig.geometry import UNKNOWN_ID

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from slurm_mig.mig.geometry import Geometry, GpuProfile
    from slurm_mig.mig.weights import Weights

#: In place of a GPU type: no model has the plain name; who asks for it is told the choices.
NOBODY: Final = ""

#: Characters that Slurm takes in a gres type and no part of ours gives another meaning.
ALIAS: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,31}")

#: Slurm reads a number, and a number with one of its units, as a count.
COUNT: Final = re.compile(r"[0-9]+[kmgtpe]?", re.IGNORECASE)
#: An amount of memory, or a profile, however its parts are put together.
_PROFILE: Final = re.compile(
    r"(?:[0-9]+c[._-]?)?(?:[0-9]+g[._-]?)?[0-9]+gi?b(?:[+._-].*)?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Model:
    """A GPU model under its Slurm type name (`h100`), with its derived weights.

    `also` are names under which other sites know it: users' scripts come from there.
    `names` are the catalogue's and NVML's.
    """

    type_name: str
    title: str
    geometry: Geometry
    weights: Weights
    also: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes with the same GPUs: a Slurm host list, and the models that are carved.

    `devices` is the directory of nvidia<minor> on those nodes. `whole` are GPUs that
    Slurm gives out as they are, as (device minor, GPU type); `gpus` have the other
    minors, in order.
    """

    hosts: str
    gpus: tuple[Model, ...]
    devices: str = "/dev"
    whole: tuple[tuple[int, str], ...] = ()

    def types(self) -> dict[str, list[int]]:
        """Type of carved GPUs -> their places in `gpus`, in order of first appearance."""
        found: dict[str, list[int]] = {}
        for index, model in enumerate(self.gpus):
            found.setdefault(model.type_name, []).append(index)
        return found

    def by_minor(self) -> dict[int, tuple[str, Model | None]]:
        """Device minor -> GPU type, and the model where the GPU is carved."""
        found: dict[int, tuple[str, Model | None]] = {minor: (n, None) for minor, n in self.whole}
        free = (minor for minor in count() if minor not in found)
        carved = [(next(free), (model.type_name, model)) for model in self.gpus]
        return dict(sorted((found | dict(carved)).items()))

    def managed(self) -> str:
        """What stands for `managed` in config.toml of these nodes, as TOML."""
        if not self.whole:
            return '"all"'
        minors = [minor for minor, (_, model) in self.by_minor().items() if model is not None]
        return str(minors) if minors else '"none"'


@dataclass(frozen=True, slots=True)
class Word:
    """What a word stands for: a gres name, and the GPU types that may serve it."""

    name: str
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on the nodes of the fleet's `place`-th group, and a row of its table."""

    place: int
    group: NodeGroup
    model: Model
    row: GpuProfile

    @property
    def meaning(self) -> tuple[int | str | None, ...]:
        """What has to be the same for one name to have one price and one stamp."""
        weights = self.model.weights
        weight = weights.of(self.model.geometry, self.row)
        most = self.row.max_instances if self.row.name.attribute else None
        # Two ids that nobody knows are not the same id.
        apart = self.model.type_name if self.row.profile_id == UNKNOWN_ID else ""
        return (self.row.profile_id, weight, weights.capacity, most, apart)

    @property
    def own_name(self) -> str:
        """The name that is this model's alone."""
        return f"{self.model.type_name}_{self.row.name}"


def assign(groups: Sequence[NodeGroup], owners: Mapping[str, str]) -> list[tuple[Offer, str]]:
    """Each offer of the fleet with its gres name; `owners`: profile -> who keeps the plain name."""
    found: list[tuple[Offer, str]] = []
    for profile, offers in _offers(groups).items():
        found += zip(offers, _names(offers, owners.get(profile)), strict=True)
    return found


def _offers(groups: Sequence[NodeGroup]) -> dict[str, list[Offer]]:
    found: dict[str, list[Offer]] = {}
    for place, group in enumerate(groups):
        for model in {model.type_name: model for model in group.gpus}.values():
            for row in model.geometry.profiles:
                found.setdefault(str(row.name), []).append(Offer(place, group, model, row))
    return found


def _names(offers: Sequence[Offer], owner: str | None) -> list[str]:
    """Names of one profile, in the order of `offers`."""
    if owner == NOBODY:
        return [offer.own_name for offer in offers]
    # As if the owner had come first; all others in their own order.
    first = next((offer for offer in offers if offer.model.type_name == owner), offers[0])
    order = [first, *(offer for offer in offers if offer is not first)]
    agreeing = {o.model.type_name for o in offers if o.meaning == order[0].meaning}
    types: set[str] = set()
    holders: list[NodeGroup] = []
    plain = set()
    for offer in order:
        kind = offer.model.type_name
        # Shards without a type pay where several types have the name. On a node that also has
        # another model, Slurm could take them from that one.
        joins = not types - {kind} or all(
            agreeing.issuperset(group.types()) for group in (*holders, offer.group)
        )
        if kind in agreeing and joins:
            types.add(kind)
            holders.append(offer.group)
            plain.add((offer.place, kind))
    return [
        str(offer.row.name) if (offer.place, offer.model.type_name) in plain else offer.own_name
        for offer in offers
    ]


def words(named: Sequence[tuple[Offer, str]], counted: Collection[str]) -> dict[str, Word]:
    """`<model>_<profile>` for all that a model is called; `counted` names are none of them.

    A fleet's own GPU types come before other names of models, and of equals the first keeps it.
    """
    own: dict[str, Word] = {}
    other: dict[str, Word] = {}
    for offer, name in named:
        kind = offer.model.type_name
        own.setdefault(offer.own_name, Word(name, (kind,)))
        for called in offer.model.also:
            other.setdefault(f"{called}_{offer.row.name}", Word(name, (kind,)))
    return {word: item for word, item in (other | own).items() if word not in counted}


def misread(word: str) -> str:
    """Why a site cannot have a word as its own, or nothing."""
    if not ALIAS.fullmatch(word):
        return "write letters, digits, and inside also _ . + -, at most 32"
    if COUNT.fullmatch(word):
        return "Slurm reads it as a count"
    if _PROFILE.fullmatch(word):
        return "it reads as a profile or as an amount of memory"
    return ""


def unclear(named: Sequence[tuple[Offer, str]], owners: Mapping[str, str]) -> dict[str, list[str]]:
    """Plain names that nobody has -> the names to choose from."""
    found: dict[str, list[str]] = {}
    for offer, name in named:
        if owners.get(str(offer.row.name)) == NOBODY:
            found.setdefault(str(offer.row.name), []).append(name)
    return {profile: list(dict.fromkeys(names)) for profile, names in found.items()}


def by_owner(named: Sequence[tuple[Offer, str]]) -> Iterator[tuple[str, list[Offer]]]:
    """Each name with its offers, one of a GPU type, in the order of the GPUs' tables."""
    found: dict[str, dict[str, Offer]] = {}
    for offer, name in named:
        found.setdefault(name, {}).setdefault(offer.model.type_name, offer)
    for name, offers in found.items():
        yield name, list(offers.values())
