"""GPU models and nodes -> gres names, weights, counts. Pure.

One fleet description feeds slurm.conf, gres.conf, job_submit.lua and
cli_filter.lua, so that they cannot disagree. What a profile is called on which
nodes: naming.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from slurm_mig.errors import UsageFault
from slurm_mig.fleet import naming
from slurm_mig.fleet.naming import NOBODY, Model, NodeGroup, Word
from slurm_mig.mig.request import MAX_PER_REQUEST

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from slurm_mig.fleet.naming import Offer
    from slurm_mig.mig.geometry import Geometry, GpuProfile

__all__ = ["Fleet", "GresName", "Model", "NodeGroup"]


@dataclass(frozen=True, slots=True)
class GresName:
    """One `mig:<name>` of the fleet.

    `weight` and `capacity` in shards; `types` are the GPU types that offer it, all at
    that price; `most` bounds instances on one GPU. A
    compute instance smaller than its GPU instance shares it: `per` of them for one
    `weight`. `base` is the gres name of the GPU instance alone.
    """

    name: str
    profile: str
    profile_id: int
    weight: int
    capacity: int
    most: int
    types: tuple[str, ...]
    base: str
    per: int = 1


class Fleet:
    """All nodes that slurm-mig manages in one cluster."""

    def __init__(
        self,
        groups: tuple[NodeGroup, ...],
        aliases: Mapping[str, str] | None = None,
        slices_only: Collection[str] = (),
        *,
        owners: Mapping[str, str] | None = None,
        compute_parts: Collection[str] = (),
        keep: Collection[str] = (),
        several_gpus: int | None = None,
        publish: bool = False,
    ) -> None:
        """Sort out who is called what.

        `aliases`: a site's own words -> what they stand for; `slices_only`: GPU types that are
        never given whole, or `*`; `owners`: profile -> GPU type that keeps its plain name, or
        NOBODY; `compute_parts`: GPU types whose GPU instances are sold in parts, too, or `*`;
        `keep`: names of before that nodes go on counting, for jobs that wait with them;
        `several_gpus`: GPUs of a node that a job may have slices of, None as many as there are;
        `publish`: whether nodes also count what fits (facts/packing.md#publishing).

        Raises UsageFault for a word that means nothing or could be read as something else,
        and for a GPU type that is not in the fleet.
        """
        if not any(group.gpus for group in groups):
            raise UsageFault("a fleet needs at least one node with a GPU that is carved")
        self.groups = groups
        self.aliases = dict(aliases or {})
        self.slices_only = tuple(slices_only)
        self.several_gpus = several_gpus
        self.publish = publish
        self.compute_parts = tuple(compute_parts)
        self.owners = dict(owners or {})
        for name in (*self.slices_only, *self.compute_parts):
            if name != "*" and name not in self.models:
                raise UsageFault(f"no GPU type {name!r}; types: {', '.join(self.models)}, or *")
        for profile, owner in self.owners.items():
            self._check_owner(profile, owner)
        for alias, target in self.aliases.items():
            self._check_alias(alias, target)
        self.kept = {name: self._kept(name) for name in keep}

    def _check_owner(self, profile: str, owner: str) -> None:
        types = [o.model.type_name for o, _ in self._named if str(o.row.name) == profile]
        if not types:
            raise UsageFault(f"names: no GPU of the fleet has a profile {profile!r}")
        if owner != NOBODY and owner not in types:
            known = ", ".join(dict.fromkeys(types))
            raise UsageFault(f"names: {profile} = {owner!r}: it is a profile of {known}")

    def _check_alias(self, alias: str, target: str) -> None:
        if self.meaning(target) is None:
            raise UsageFault(
                f"alias {alias}: {target!r} is no profile here; known: {', '.join(self.names)}"
            )
        taken = "it is a profile's name" if alias in {**self.names, **self.words} else ""
        if problem := taken or naming.misread(alias):
            raise UsageFault(f"alias {alias!r}: {problem}")

    def _kept(self, name: str) -> GresName:
        word = self.words.get(name)
        if word is None:
            reason = "it is counted anyway" if name in self.names else "it means nothing here"
            raise UsageFault(f"keep_names: {name!r}: {reason}; leave it out")
        return replace(self.names[word.name], name=name, base=name, types=word.types)

    @cached_property
    def models(self) -> dict[str, Model]:
        """GPU types of the fleet; UsageFault when one type names two models."""
        found: dict[str, Model] = {}
        for group in self.groups:
            for model in group.gpus:
                known = found.setdefault(model.type_name, model)
                if known.geometry != model.geometry:
                    raise UsageFault(
                        f"GPU type {model.type_name} names both {known.title} and {model.title}",
                        remedy="give one of them another type with --gpu-type",
                    )
        return found

    @cached_property
    def _named(self) -> list[tuple[Offer, str]]:
        """Every row of every model on each group of nodes, with its gres name."""
        return naming.assign(self.groups, self.owners)

    @cached_property
    def _by_place(self) -> dict[int, list[tuple[Offer, str]]]:
        """The same by group of nodes; one without a carved GPU has none."""
        found: dict[int, list[tuple[Offer, str]]] = {place: [] for place in range(len(self.groups))}
        for offer, name in self._named:
            found[offer.place].append((offer, name))
        return found

    @cached_property
    def names(self) -> dict[str, GresName]:
        """Every gres name of the fleet, by name, in the order of the GPUs' tables."""
        every = (
            item
            for name, offers in naming.by_owner(self._named)
            for item in self._gres_names(name, offers)
        )
        return {item.name: item for item in every}

    @property
    def counted(self) -> dict[str, GresName]:
        """All that nodes count: `names`, and those of before that are kept."""
        return {**self.names, **self.kept}

    @cached_property
    def words(self) -> dict[str, Word]:
        """`<model>_<profile>` -> what it stands for, where it is no gres name itself."""
        whole = naming.words(self._named, self.names)
        found = dict(whole)
        for word, item in whole.items():
            for part in self._parts.get(item.name, ()):
                head = word.removesuffix(self.names[item.name].profile)
                if set(item.types) <= set(part.types):
                    found.setdefault(f"{head}{part.profile}", Word(part.name, item.types))
        return {word: item for word, item in found.items() if word not in self.names}

    @cached_property
    def unclear(self) -> dict[str, list[str]]:
        """Plain names that no model keeps -> those to choose from."""
        return naming.unclear(self._named, self.owners)

    def meaning(self, word: str) -> Word | None:
        """What a gres name, or a word for one, stands for."""
        if word in self.names:
            return Word(word, self.names[word].types)
        return self.words.get(word)

    @cached_property
    def by_memory(self) -> tuple[tuple[int, str], ...]:
        """(memory in NVIDIA's GB, gres name), smallest first: what `mig:20gb` chooses from.

        Plain profiles only: who wants media engines or graphics says so. Of equal
        memory the one with the smaller share of its GPU comes first, then the one that most
        GPU types share, for each of them may serve it.
        """
        rows = [
            (offer.row.name.memory_gb, gres.weight / gres.capacity, -len(gres.types), name)
            for offer, name in self._named
            if not offer.row.name.attribute
            for gres in [self.names[name]]
        ]
        # A stable sort: of equals the fleet's first model wins.
        ordered = sorted(rows, key=lambda item: item[:3])
        return tuple(dict.fromkeys((memory, name) for memory, *_, name in ordered))

    def name_of(self, group: NodeGroup, model: Model, row: GpuProfile) -> GresName:
        """The gres name under which a model's profile is counted on nodes of that group."""
        place = self.groups.index(group)
        for offer, name in self._by_place[place]:
            if (offer.model.type_name, offer.row.name) == (model.type_name, row.name):
                return self.names[name]
        raise KeyError(f"{group.hosts}: {model.type_name} {row.name}")

    def counts(self, group: NodeGroup) -> dict[str, int]:
        """`mig` counts of a node of that group: as many as its empty GPUs could hold."""
        found: dict[str, int] = {}
        number = Counter(model.type_name for model in group.gpus)
        for offer, name in self._by_place[self.groups.index(group)]:
            for gres in self._on(name, offer):
                many = gres.most * number[offer.model.type_name]
                found[gres.name] = found.get(gres.name, 0) + many
        for gres in self.kept.values():
            if many := sum(number[kind] for kind in gres.types):
                found[gres.name] = gres.most * many
        return found

    def _on(self, name: str, offer: Offer) -> Iterator[GresName]:
        """What is counted for an offer: its name, its parts, and its own name if others have that.

        Else the word for the model would mean the other nodes alone.
        """
        kind = offer.model.type_name
        for base in dict.fromkeys((name, offer.own_name)):
            if base in self.names:
                yield self.names[base]
                yield from (part for part in self._parts.get(base, ()) if kind in part.types)

    @cached_property
    def _parts(self) -> dict[str, list[GresName]]:
        """Gres name of a GPU instance -> its smaller compute instances."""
        found: dict[str, list[GresName]] = {}
        for gres in self.names.values():
            if gres.name != gres.base:
                found.setdefault(gres.base, []).append(gres)
        return found

    def _gres_names(self, name: str, offers: Sequence[Offer]) -> Iterator[GresName]:
        """The profile's gres name, and those of compute instances smaller than it."""
        offer = offers[0]
        row, weights = offer.row, offer.model.weights
        weight = weights.of(offer.model.geometry, row)
        fit = weights.capacity // weight
        most = min(fit, row.max_instances if row.name.attribute else fit, MAX_PER_REQUEST)
        for slices, types in self._sizes(offers).items():
            profile = replace(row.name, compute_slices=slices or None)
            yield GresName(
                name=name.removesuffix(str(row.name)) + str(profile),
                profile=str(profile),
                profile_id=row.profile_id,
                weight=weight,
                capacity=weights.capacity,
                most=most * profile.per_gpu_instance,
                types=tuple(types),
                base=name,
                per=profile.per_gpu_instance,
            )

    def _sizes(self, offers: Sequence[Offer]) -> dict[int, list[str]]:
        """Compute slices of a part (0: the whole GPU instance) -> the GPU types that sell it."""
        found: dict[int, list[str]] = {0: []}
        for offer in offers:
            kind = offer.model.type_name
            found[0].append(kind)
            if {kind, "*"} & set(self.compute_parts):
                for slices in _compute_sizes(offer.model.geometry, offer.row):
                    found.setdefault(slices, []).append(kind)
        return found

    def gres(self, group: NodeGroup) -> str:
        """The value of `Gres=` in slurm.conf for a node of that group."""
        every = Counter(name for name, _ in group.by_minor().values())
        words = [f"gpu:{name}:{number}" for name, number in every.items()]
        types = {name: len(where) for name, where in group.types().items()}
        for name, number in types.items():
            words.append(f"shard:{name}:{number * self.models[name].weights.capacity}")
        words += [f"mig:{name}:{number}" for name, number in self.counts(group).items()]
        words += [f"fit:{name}:{number}" for name, number in self.fits(group).items()]
        return ",".join(words)

    def fits(self, group: NodeGroup) -> dict[str, int]:
        """`fit` counts of a node whose slots nobody has looked at: they stop nothing.

        One for each request of one profile that leaves room on its GPU, `3g.40gb`, `1g.10gbx2`;
        `start` is counted by every such job, `rest` by none: it takes what the others change,
        so that their sum stays. What takes all of a GPU has exact shards.
        """
        found: dict[str, int] = {}
        if not self.publish:
            return found
        for name, number in self.counts(group).items():
            item = self.names.get(name)
            if item is None or item.name != item.base:
                continue
            for many in range(1, item.most + 1):
                if many * item.weight < item.capacity:
                    found[fit_type(name, many)] = number // many
        if found:
            most = sum(len(places) for places in group.types().values()) * MAX_PER_REQUEST
            found["start"] = most
            found["rest"] = most * len(found)
        return found


def fit_type(name: str, many: int) -> str:
    """The type of `fit` for so many GPU instances of one profile on one GPU; Lua has the same."""
    return name if many == 1 else f"{name}x{many}"


def _compute_sizes(geometry: Geometry, row: GpuProfile) -> list[int]:
    """Slices of the compute instances that a GPU instance may be cut into.

    As `nvidia-smi mig -lcip` shows them: the slice counts that GPU instances have,
    too (facts/mig.md#ids). The catalogue does not say it for each board; the driver
    has the last word when the instance is made.
    """
    if row.name.attribute:
        return []
    counts = {other.slices for other in geometry.profiles}
    return sorted(count for count in counts if count < row.slices)
