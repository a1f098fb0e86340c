"""Shard weights: counting accepts exactly what has a layout."""

from __future__ import annotations

from itertools import product

import pytest

from slurm_mig.mig.geometry import Geometry, GpuProfile, Placement, feasible_multisets
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.weights import derive
from tests.kit.gpus import A30, A100, H100, KNOWN, RTX, geometry_of


@pytest.mark.parametrize(
    ("gpu", "capacity", "weights"),
    [
        (A100, 31, (4, 7, 8, 14, 16, 31)),
        (H100, 31, (4, 7, 8, 14, 16, 31)),
        (A30, 4, (1, 2, 4)),
        (RTX, 4, (1, 2, 4)),
    ],
)
def test_known_results(gpu: str, capacity: int, weights: tuple[int, ...]) -> None:
    """The search arrives by itself at the weights of the placement study."""
    found = derive(geometry_of(gpu))

    assert (found.capacity, found.by_class) == (capacity, weights)


@pytest.mark.parametrize("key", KNOWN)
def test_exact_on_every_product(key: str) -> None:
    """No set is accepted without a layout, none refused that has one: checked over all counts."""
    geometry = geometry_of(key)
    found = derive(geometry)
    feasible = feasible_multisets(geometry)
    most = [max(item[place] for item in feasible) + 1 for place in range(len(geometry.classes))]

    for counts in product(*(range(limit + 1) for limit in most)):
        cost = sum(w * c for w, c in zip(found.by_class, counts, strict=True))
        assert (cost <= found.capacity) == (counts in feasible), counts
    assert (found.false_accepts, found.false_rejects) == (0, 0)


def test_no_smaller_capacity_is_exact() -> None:
    """31 is the least capacity for a 7-slice GPU: every smaller one fails for every weight."""
    geometry = geometry_of(H100)
    feasible = feasible_multisets(geometry)
    alone = [max(item[place] for item in feasible) for place in range(6)]
    for capacity in range(1, 31):
        choices = [range(capacity // (n + 1) + 1, capacity // n + 1) for n in alone[:4]]
        for weights in product(*choices):
            if all(
                sum(w * c for w, c in zip(weights, item, strict=False)) <= capacity
                for item in feasible
            ) and not any(
                sum(w * c for w, c in zip(weights, counts, strict=False)) <= capacity
                for counts in product(range(8), range(5), range(4), range(3))
                if (*counts, 0, 0) not in feasible
            ):
                pytest.fail(f"W={capacity} with {weights} is exact on the first four classes")


def _geometry(*profiles: tuple[int, list[int]]) -> Geometry:
    rows = [
        GpuProfile(number, Profile(number + 1, 1), 1, tuple(Placement(s, size) for s in starts), 9)
        for number, (size, starts) in enumerate(profiles)
    ]
    return Geometry(tuple(rows))


def test_a_two_slice_part() -> None:
    """(1, 2) of 2, as NVIDIA's two-slice boards will need."""
    found = derive(_geometry((1, [0, 1]), (2, [0])))

    assert (found.capacity, found.by_class) == (2, (1, 2))


def test_where_no_scalar_is_exact_the_errors_are_counted() -> None:
    """Placement units serve then, and what they get wrong is said, not hidden."""
    # Two one-unit profiles with other starts: which of them is asked decides, not how many.
    geometry = _geometry((1, [2, 3]), (1, [0, 1, 3]), (3, [1]), (4, [0]))
    found = derive(geometry)
    feasible = feasible_multisets(geometry)

    def cost(counts: tuple[int, ...]) -> int:
        return sum(w * n for w, n in zip(found.by_class, counts, strict=True))

    def one_less(counts: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [(*counts[:p], n - 1, *counts[p + 1 :]) for p, n in enumerate(counts) if n]

    every = list(product(range(5), repeat=4))
    accepted = [item for item in every if cost(item) <= found.capacity and item not in feasible]
    assert found.false_accepts == sum(any(x in feasible for x in one_less(i)) for i in accepted)
    assert found.false_rejects == sum(cost(item) > found.capacity for item in feasible)
    assert found.false_accepts + found.false_rejects > 0
