"""Shard weights: let Slurm's plain counting accept exactly what has a layout.

Slurm knows a GPU as W shards and a profile as w shards. The search below finds
the smallest W, and for it the smallest w, such that a set of instances is
accepted by counting if and only if some layout holds it. It uses nothing but
the placements, so a geometry that nobody has seen yet gets its own weights.
For 7-slice GPUs it arrives at W=31 and 4, 7, 8, 14, 16, 31 (facts/packing.md#weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm_mig.mig.geometry import feasible_multisets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.mig.geometry import Geometry, GpuProfile

    Counts = tuple[int, ...]

#: Above this many shards a GPU the search gives up; every known geometry needs at most 31.
CAPACITY_LIMIT = 128


@dataclass(frozen=True, slots=True)
class Weights:
    """Shards of a GPU, shards of each placement class, and what counting gets wrong.

    `false_accepts` counts sets without a layout that counting would accept, among
    those one instance beyond a feasible set; `false_rejects` counts sets with a
    layout that counting refuses. Both are 0 where an exact scalar exists. Media
    engines are not part of it: Slurm bounds `+me` by the typed count of gres/mig.
    """

    capacity: int
    by_class: Counts
    false_accepts: int
    false_rejects: int

    def of(self, geometry: Geometry, row: GpuProfile) -> int:
        """Shards that one instance of this profile takes."""
        return self.by_class[geometry.class_of(row)]


def derive(geometry: Geometry) -> Weights:
    """Weights for a geometry: exact with least capacity, else placement units.

    Proof by enumeration: the returned error counts are measured over all sets,
    not assumed from the search.
    """
    feasible = feasible_multisets(geometry)
    found = _search(geometry, feasible)
    if found is None:
        found = (geometry.units, tuple(places[0].size for places in geometry.classes))
    capacity, weights = found
    return Weights(
        capacity,
        weights,
        false_accepts=sum(_sum(weights, item) <= capacity for item in _one_step(feasible)),
        false_rejects=sum(_sum(weights, item) > capacity for item in feasible),
    )


def _search(geometry: Geometry, feasible: frozenset[Counts]) -> tuple[int, Counts] | None:
    alone = [max(item[number] for item in feasible) for number in range(len(geometry.classes))]
    whole = geometry.class_of(geometry.whole)
    must_fit = _maximal(feasible)
    must_not = _minimal_infeasible(feasible)
    for capacity in range(1, CAPACITY_LIMIT + 1):
        # The whole GPU always takes every shard: nothing may start beside it.
        bounds = [
            range(capacity, capacity + 1)
            if number == whole
            else range(capacity // (count + 1) + 1, capacity // count + 1)
            for number, count in enumerate(alone)
        ]
        weights = _assign((), bounds, capacity, must_fit, must_not)
        if weights is not None:
            return capacity, weights
    return None


def _assign(
    chosen: Counts,
    bounds: list[range],
    capacity: int,
    must_fit: frozenset[Counts],
    must_not: frozenset[Counts],
) -> Counts | None:
    """Depth first, smallest weight first; each prefix must already be exact."""
    depth = len(chosen)
    if depth == len(bounds):
        return chosen
    for weight in bounds[depth]:
        weights = (*chosen, weight)
        if any(_sum(weights, item) > capacity for item in must_fit):
            return None  # larger weights only overflow more
        if any(_sum(weights, item) <= capacity for item in must_not if not any(item[depth + 1 :])):
            continue
        found = _assign(weights, bounds, capacity, must_fit, must_not)
        if found is not None:
            return found
    return None


def _sum(weights: Counts, item: Counts) -> int:
    # A prefix of weights sums a prefix of the set: what is not chosen yet counts nothing.
    return sum(weight * count for weight, count in zip(weights, item, strict=False))


def _neighbours(item: Counts, step: int) -> Iterator[Counts]:
    for number, count in enumerate(item):
        if count + step >= 0:
            yield (*item[:number], count + step, *item[number + 1 :])


def _one_step(feasible: frozenset[Counts]) -> frozenset[Counts]:
    """Sets without a layout that are a feasible set and one instance more."""
    return frozenset(more for item in feasible for more in _neighbours(item, 1)) - feasible


def _maximal(feasible: frozenset[Counts]) -> frozenset[Counts]:
    return frozenset(item for item in feasible if not feasible.intersection(_neighbours(item, 1)))


def _minimal_infeasible(feasible: frozenset[Counts]) -> frozenset[Counts]:
    return frozenset(
        item for item in _one_step(feasible) if feasible.issuperset(_neighbours(item, -1))
    )
