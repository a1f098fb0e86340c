"""What a slice costs, as a share of its GPU: values for TRESBillingWeights. Pure.

A job with slices has `gres/mig:<profile>` in its TRES and no `gres/gpu`, a job with a
whole GPU the reverse (facts/slurm.md#accounting), so the two kinds of weight never add up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.errors import UsageFault
from slurm_mig.mig.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from slurm_mig.fleet.fleet import Fleet, GresName
    from slurm_mig.mig.geometry import Geometry, GpuProfile

#: Which share of the GPU a slice pays for.
SHARES: Final = ("largest", "compute", "memory")


def billing(
    fleet: Fleet, prices: Mapping[str, float], by: str, types: Collection[str] | None = None
) -> dict[str, float]:
    """TRES -> billing units for one of it, in a partition with these GPU types (None: with all).

    `prices` are units for a whole GPU by GPU type, `by` one of SHARES. Part of an
    instance pays its part. Raises UsageFault for a type without a price, and where one
    profile name would have two prices in the partition.
    """
    for name in prices:
        if name not in gpu_types(fleet):
            raise UsageFault(f"billing: no GPU type {name!r}; types: {', '.join(gpu_types(fleet))}")
    missing = [name for name in gpu_types(fleet) if name not in prices]
    if missing:
        raise UsageFault(f"billing: no price for GPU type {', '.join(missing)}")
    here = [name for name in gpu_types(fleet) if types is None or name in types]
    found = {f"GRES/gpu:{name}": prices[name] for name in here}
    for gres in fleet.counted.values():
        if of := [name for name in gres.types if name in here]:
            found[f"GRES/mig:{gres.name}"] = _price(fleet, gres, of, prices, by)
    return found


def by_partition(
    fleet: Fleet, partitions: Sequence[Sequence[str]], prices: Mapping[str, float], by: str
) -> dict[str, dict[str, float]]:
    """Partition -> `billing` for the GPU types of its nodes; "" for nodes that name none.

    `partitions` are those of each group of the fleet, in its order.
    """
    types: dict[str, set[str]] = {}
    for group, names in zip(fleet.groups, partitions, strict=True):
        for name in names or ("",):
            types.setdefault(name, set()).update(kind for kind, _ in group.by_minor().values())
    return {name: billing(fleet, prices, by, found) for name, found in types.items()}


def gpu_types(fleet: Fleet) -> list[str]:
    """All GPU types of the fleet, carved or whole, in order of appearance."""
    every = (name for group in fleet.groups for name, _ in group.by_minor().values())
    return list(dict.fromkeys(every))


def _price(
    fleet: Fleet, gres: GresName, types: Sequence[str], prices: Mapping[str, float], by: str
) -> float:
    found = {}
    for name in types:
        geometry = fleet.models[name].geometry
        found[name] = prices[name] * share(geometry, _row(geometry, gres), by) / gres.per
    if len(set(found.values())) > 1:
        each = ", ".join(f"{value:.4g} on {name}" for name, value in found.items())
        raise UsageFault(
            f"billing: mig:{gres.name} would cost {each}",
            remedy="Slurm has one price for a name in a partition: say with `partitions` in each "
            "[[nodes]] table which partition has which type, or give these types the same price",
        )
    return next(iter(found.values()))


def _row(geometry: Geometry, gres: GresName) -> GpuProfile:
    """By name: an id may not be known, and where a name is counted it means one row."""
    return geometry.by_name(Profile.parse(gres.profile).gpu_instance)


def share(geometry: Geometry, row: GpuProfile, by: str) -> float:
    """The part of a GPU that an instance takes, 0 to 1: of its slices, its memory, or the larger.

    The larger is what nobody else can use meanwhile: 3g of an A100 has 3 of 7 compute
    slices and half of the memory.
    """
    compute = row.slices / max(other.slices for other in geometry.profiles)
    memory = row.size / geometry.units
    return {"compute": compute, "memory": memory, "largest": max(compute, memory)}[by]
