"""The cluster as slurmctld counts it: who has which slices on which GPU, and what has room. Pure.

Slurm knows shards, not slots: a profile has room here when enough shards of one GPU are
free. Whether a slot for it is free, only the node knows (`slurm-mig status` there).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from slurm_mig.slurm.protocol import NO_JOBS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slurm_mig.fleet.fleet import Model
    from slurm_mig.slurm.protocol import JobOnNode, NodeFacts


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU: (used, all) shards, None where Slurm does not tell; jobs with something on it."""

    index: int
    type_name: str
    shards: tuple[int, int] | None
    jobs: tuple[JobOnNode, ...]

    @property
    def whole(self) -> bool:
        """Whether a job has the GPU itself: its shards are free, and nobody can have them."""
        return any("gpu" in item.partition(":")[0] for job in self.jobs for item in job.gres)


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node; `room` is None for a profile where it cannot be told."""

    name: str
    state: frozenset[str]
    reason: str
    gpus: tuple[GpuView, ...]
    elsewhere: tuple[JobOnNode, ...]
    room: Mapping[str, int | None]

    @property
    def usable(self) -> bool:
        """Whether Slurm sends jobs there."""
        return not self.state & NO_JOBS


def overview(
    nodes: Sequence[NodeFacts], shares: Sequence[JobOnNode], models: Sequence[Model]
) -> list[NodeView]:
    """Every node that offers slices, in Slurm's order."""
    return [
        _view(node, [item for item in shares if item.node == node.name], models)
        for node in nodes
        if any(name.startswith("mig:") for name in node.gres)
    ]


def total_room(views: Sequence[NodeView]) -> dict[str, int | None]:
    """What has room on all nodes that take jobs; None where one of them cannot tell."""
    found: dict[str, int | None] = {}
    for view in views:
        for name, count in view.room.items() if view.usable else ():
            before = found.get(name, 0)
            found[name] = None if before is None or count is None else before + count
    return found


def _view(node: NodeFacts, shares: Sequence[JobOnNode], models: Sequence[Model]) -> NodeView:
    if node.shards is None:
        node = replace(node, shards=_added_up(node, shares, models))
    gpus = tuple(
        GpuView(
            index,
            name,
            node.shards[index] if node.shards and index < len(node.shards) else None,
            tuple(item for item in shares if item.gpus and index in item.gpus),
        )
        for index, name in enumerate(_types(node))
    )
    elsewhere = tuple(item for item in shares if item.gpus is None and _ours(item))
    return NodeView(
        node.name, node.state, node.reason, gpus, elsewhere, _room(node, gpus, shares, models)
    )


def _added_up(
    node: NodeFacts, shares: Sequence[JobOnNode], models: Sequence[Model]
) -> tuple[tuple[int, int], ...] | None:
    """(used, all) shards of each GPU by what the jobs have: 22.05 counts wrongly itself.

    None where a job's GPU is not known, or where the GPUs of a type cannot all be carved: an
    occupied GPU would else be shown as free.
    """
    types = [*_types(node)]
    used: Counter[int] = Counter()
    for item in shares:
        if item.gpus is None:
            return None
        for name, count in item.gres.items():
            kind, _, type_name = name.partition(":")
            places = [place for place in item.gpus if types[place : place + 1] == [type_name]]
            if kind == "shard" and len(places) != 1:
                return None
            used.update({places[0]: count} if kind == "shard" else {})
    full = {name: node.gres.get(f"shard:{name}", 0) // types.count(name) for name in types}
    offered = _offered(node)
    if any(full[name] and _weights(name, node, offered, models) is None for name in full):
        return None
    return tuple((used[place], full[name]) for place, name in enumerate(types))


def _ours(share: JobOnNode) -> bool:
    return any(name.partition(":")[0] in ("mig", "gpu") for name in share.gres)


def _types(node: NodeFacts) -> Iterator[str]:
    for name, count in node.gres.items():
        if name.startswith("gpu:"):
            yield from [name.removeprefix("gpu:")] * count


def _room(
    node: NodeFacts, gpus: Sequence[GpuView], shares: Sequence[JobOnNode], models: Sequence[Model]
) -> dict[str, int | None]:
    """Instances of each profile that still have room: by shards, and by Slurm's count of it."""
    offered = _offered(node)
    held: Counter[str] = Counter()
    for item in shares:
        held.update({n.removeprefix("mig:"): c for n, c in item.gres.items() if n[:4] == "mig:"})
    found: dict[str, int | None] = {}
    for name in _whole_instances(offered):
        fits = _fits(name, node, gpus, offered, models)
        found[name] = None if fits is None else min(fits, max(offered[name] - held[name], 0))
    return found


def _offered(node: NodeFacts) -> dict[str, int]:
    """Instances of each profile that Slurm may give out there."""
    return {
        name.removeprefix("mig:"): count
        for name, count in node.gres.items()
        if name.startswith("mig:")
    }


def _whole_instances(offered: Mapping[str, int]) -> Iterator[str]:
    """Without parts of an instance: `1c.3g.40gb` has the room of its `3g.40gb`."""
    for name in offered:
        part, dot, _ = name.rpartition("_")[2].partition(".")
        if not (dot and part.endswith("c")):
            yield name


def _fits(
    name: str,
    node: NodeFacts,
    gpus: Sequence[GpuView],
    offered: Mapping[str, int],
    models: Sequence[Model],
) -> int | None:
    fits = 0
    for gpu in gpus:
        weights = _weights(gpu.type_name, node, offered, models)
        if gpu.shards is None or weights is None:
            return None
        used, full = gpu.shards
        if name in weights and full and not gpu.whole:
            fits += (full - used) // weights[name]
    return fits


def _weights(
    type_name: str, node: NodeFacts, offered: Mapping[str, int], models: Sequence[Model]
) -> dict[str, int] | None:
    """Shards of each profile of a GPU type, by the model that its names and capacity fit."""
    if not (total := node.gres.get(f"shard:{type_name}", 0)):
        return {}
    carved = [name for name in node.gres if name.startswith("shard:")]
    found = {
        model.type_name: weights
        for model in models
        if model.weights.capacity == total // max(_count(type_name, node), 1)
        and (weights := _named(model, type_name, offered))
    }
    if type_name in found:
        return found[type_name]
    # A name of the site's own: on a node with one type the model is the one with most names.
    most = max(map(len, found.values()), default=0)
    best = [weights for weights in found.values() if len(weights) == most or len(carved) > 1]
    # Two models with the same names and other prices: rather nothing than a wrong number.
    return best[0] if best and all(item == best[0] for item in best) else None


def _count(type_name: str, node: NodeFacts) -> int:
    """GPUs of a type that are carved: those with shards, where Slurm tells them by GPU."""
    places = [place for place, name in enumerate(_types(node)) if name == type_name]
    return sum(1 for place in places if node.shards is None or node.shards[place][1])


def _named(model: Model, type_name: str, offered: Mapping[str, int]) -> dict[str, int]:
    """The model's weights under the names of this node; empty when one is missing.

    A name with the type is surely this model's; the plain one may be another's there.
    """
    found = {}
    for row in model.geometry.profiles:
        names = [name for name in (f"{type_name}_{row.name}", str(row.name)) if name in offered]
        if not names:
            return {}
        found[names[0]] = model.weights.of(model.geometry, row)
    return found
