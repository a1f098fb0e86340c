"""GPU models and nodes -> gres names, weights, counts. Pure.

One fleet description feeds slurm.conf, gres.conf, job_submit.lua and
cli_filter.lua, so that they cannot disagree. A profile is called by NVIDIA's
name where that name means one thing in the fleet; where two models give one name
to different profiles (1g.10gb is the double-memory profile of an A100-40GB), it
is called `<gpu type>_<profile>` on all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import UsageFault
from slurm_mig.request import MAX_INSTANCES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from slurm_mig.geometry import Geometry, GpuProfile
    from slurm_mig.weights import Weights


_ALIAS: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Model:
    """A GPU model under its Slurm type name (`h100`), with its derived weights."""

    type_name: str
    title: str
    geometry: Geometry
    weights: Weights


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

    @property
    def shard(self) -> str:
        """The gres that pays for it: typed where one type alone has it."""
        return f"shard:{self.types[0]}" if len(self.types) == 1 else "shard"


class Fleet:
    """All nodes that slurm-mig manages in one cluster."""

    def __init__(
        self,
        groups: tuple[NodeGroup, ...],
        aliases: Mapping[str, str] | None = None,
        slices_only: Collection[str] = (),
    ) -> None:
        """`aliases`: a site's own words -> gres names; `slices_only`: GPU types, or `*`.

        Raises UsageFault for an alias that means nothing or looks like a profile, and
        for a GPU type that is not in the fleet.
        """
        if not any(group.gpus for group in groups):
            raise UsageFault("a fleet needs at least one node with a GPU that is carved")
        self.groups = groups
        self.aliases = dict(aliases or {})
        self.slices_only = tuple(slices_only)
        for alias, target in self.aliases.items():
            self._check_alias(alias, target)
        for name in self.slices_only:
            if name != "*" and name not in self.models:
                raise UsageFault(f"no GPU type {name!r}; types: {', '.join(self.models)}, or *")

    def _check_alias(self, alias: str, target: str) -> None:
        if target not in self.names:
            raise UsageFault(
                f"alias {alias}: {target!r} is no profile here; known: {', '.join(self.names)}"
            )
        # A digit first would read as a profile, a count or an amount of memory.
        if not _ALIAS.fullmatch(alias) or alias in self.names:
            raise UsageFault(
                f"alias {alias!r}: write a letter, then letters, digits, _ or -, "
                "and no profile's name"
            )

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
    def names(self) -> dict[str, GresName]:
        """Every gres name of the fleet, by name, in the order of the GPUs' tables."""
        offers: dict[str, list[tuple[Model, GpuProfile]]] = {}
        for model in self.models.values():
            for row in model.geometry.profiles:
                offers.setdefault(str(row.name), []).append((model, row))
        named = (item for offer in offers.values() for item in self._named(offer))
        return {item.name: item for item in named}

    @cached_property
    def by_memory(self) -> tuple[tuple[int, str], ...]:
        """(memory in NVIDIA's GB, gres name), smallest first: what `mig:20gb` chooses from.

        Plain profiles only: who wants media engines or graphics says so. Of equal
        memory the one with the smaller share of its GPU comes first.
        """
        rows = [
            (row.name.memory_gb, gres.weight / gres.capacity, gres.name)
            for model in self.models.values()
            for row in model.geometry.profiles
            if not row.name.attribute
            for gres in [self.name_of(model, row)]
        ]
        # A stable sort: of equals the fleet's first model wins.
        ordered = sorted(rows, key=lambda item: item[:2])
        return tuple(dict.fromkeys((memory, name) for memory, _, name in ordered))

    def _named(self, offer: list[tuple[Model, GpuProfile]]) -> Iterator[GresName]:
        model, row = offer[0]
        if len(offer) == 1:
            yield from _gres_names("", model, row, (model.type_name,))
        elif self._one_meaning(offer):
            types = tuple(dict.fromkeys(model.type_name for model, _ in offer))
            yield from _gres_names("", model, row, types)
        else:
            for model, row in offer:
                prefix = f"{model.type_name}_"
                yield from _gres_names(prefix, model, row, (model.type_name,))

    def _one_meaning(self, offer: list[tuple[Model, GpuProfile]]) -> bool:
        """Whether untyped shards buy the same thing wherever the name is offered."""
        prices = {
            (row.profile_id, model.weights.of(model.geometry, row), model.weights.capacity)
            for model, row in offer
        }
        types = {model.type_name for model, _ in offer}
        mixed = any(
            types & set(group.types()) and set(group.types()) - types for group in self.groups
        )
        # On a node that also has another model, Slurm could take the shards from that one.
        return len(prices) == 1 and not mixed

    def name_of(self, model: Model, row: GpuProfile) -> GresName:
        """The gres name under which a model's profile is asked for."""
        plain = self.names.get(str(row.name))
        return plain or self.names[f"{model.type_name}_{row.name}"]

    def counts(self, group: NodeGroup) -> dict[str, int]:
        """`mig` counts of a node of that group: as many as its empty GPUs could hold."""
        found: dict[str, int] = {}
        for model in group.gpus:
            for row in model.geometry.profiles:
                for gres in self._sizes[self.name_of(model, row).name]:
                    found[gres.name] = found.get(gres.name, 0) + gres.most
        return found

    @cached_property
    def _sizes(self) -> dict[str, list[GresName]]:
        """Gres name of a GPU instance -> itself and its smaller compute instances."""
        found: dict[str, list[GresName]] = {}
        for gres in self.names.values():
            found.setdefault(gres.base, []).append(gres)
        return found

    def gres(self, group: NodeGroup) -> str:
        """The value of `Gres=` in slurm.conf for a node of that group."""
        every = Counter(name for name, _ in group.by_minor().values())
        words = [f"gpu:{name}:{number}" for name, number in every.items()]
        types = {name: len(where) for name, where in group.types().items()}
        for name, number in types.items():
            words.append(f"shard:{name}:{number * self.models[name].weights.capacity}")
        words += [f"mig:{name}:{number}" for name, number in self.counts(group).items()]
        return ",".join(words)


def _gres_names(
    prefix: str, model: Model, row: GpuProfile, types: tuple[str, ...]
) -> Iterator[GresName]:
    """The profile's gres name, and those of compute instances smaller than it."""
    weight = model.weights.of(model.geometry, row)
    fit = model.weights.capacity // weight
    most = min(fit, row.max_instances if row.name.attribute else fit, MAX_INSTANCES)
    for slices in (None, *_compute_sizes(model.geometry, row)):
        profile = replace(row.name, compute_slices=slices)
        yield GresName(
            name=f"{prefix}{profile}",
            profile=str(profile),
            profile_id=row.profile_id,
            weight=weight,
            capacity=model.weights.capacity,
            most=most * profile.per_gpu_instance,
            types=types,
            base=f"{prefix}{row.name}",
            per=profile.per_gpu_instance,
        )


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
