"""What a slice costs."""

from __future__ import annotations

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.fleet.billing import SHARES, billing, by_partition
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from tests.kit.fleets import group, model_of
from tests.kit.gpus import A30, A100, H100, KNOWN


def test_by_the_larger_share() -> None:
    """3g of seven slices keeps half of the memory from others; a third of it costs a third."""
    found = billing(Fleet((group("n1", H100),), compute_parts=("*",)), {"h100": 14}, "largest")

    assert found["GRES/gpu:h100"] == 14
    assert found["GRES/mig:1g.10gb"] == pytest.approx(2)
    assert found["GRES/mig:1g.20gb"] == pytest.approx(3.5)
    assert found["GRES/mig:3g.40gb"] == pytest.approx(7)
    assert found["GRES/mig:1c.3g.40gb"] == pytest.approx(7 / 3)
    assert found["GRES/mig:4g.40gb"] == pytest.approx(8)
    assert found["GRES/mig:7g.80gb"] == pytest.approx(14)


def test_by_one_share() -> None:
    """A site may charge for compute or for memory alone."""
    fleet = Fleet((group("n1", H100),))
    assert billing(fleet, {"h100": 7}, "compute")["GRES/mig:3g.40gb"] == pytest.approx(3)
    assert billing(fleet, {"h100": 8}, "memory")["GRES/mig:3g.40gb"] == pytest.approx(4)


@pytest.mark.parametrize("by", SHARES)
@pytest.mark.parametrize("key", KNOWN)
def test_the_largest_profile_costs_a_gpu(key: str, by: str) -> None:
    """And nothing costs more, on any product."""
    fleet = Fleet((group("n1", key),))
    model = model_of(key)
    found = billing(fleet, {model.type_name: 1}, by)
    assert found[f"GRES/mig:{model.geometry.whole.name}"] == pytest.approx(1)
    assert max(found.values()) <= 1 + 1e-9
    assert min(found.values()) > 0


def test_whole_gpus_have_a_price_too() -> None:
    """Of a type that is not carved at all."""
    fleet = Fleet((NodeGroup("n1", (model_of(A30),), whole=((1, "l40s"),)),))
    assert billing(fleet, {"a30": 2, "l40s": 3}, "largest")["GRES/gpu:l40s"] == 3


def test_prices_that_differ_between_partitions() -> None:
    """Slurm has its weights on a partition's line: one profile may cost more on a newer GPU."""
    fleet = Fleet((group("n1", H100), group("n2", A100), group("n3", A30)))
    prices = {"h100": 8.0, "a100_80gb": 4.0, "a30": 2.0}
    found = by_partition(fleet, [("hopper", "all80"), ("ampere",), ()], prices, "largest")
    assert list(found) == ["hopper", "all80", "ampere", ""]
    assert found["hopper"]["GRES/mig:1g.10gb"] == pytest.approx(8 / 7)
    assert found["ampere"]["GRES/mig:1g.10gb"] == pytest.approx(4 / 7)
    assert [name for name in found["ampere"] if "gpu:" in name] == ["GRES/gpu:a100_80gb"]
    assert not [name for name in found[""] if name.startswith("GRES/mig:") and "10gb" in name]
    assert found["all80"] == found["hopper"]


def test_two_prices_in_one_partition() -> None:
    """Which is wrong whatever line is written: both partitions would have to be named."""
    fleet = Fleet((group("n1", H100), group("n2", A100)))
    with pytest.raises(UsageFault, match="say with `partitions`"):
        by_partition(fleet, [("a",), ("a", "b")], {"h100": 8, "a100_80gb": 4}, "largest")


@pytest.mark.parametrize(
    ("prices", "says"),
    [
        ({"h100": 8}, "no price for GPU type a100_80gb"),
        ({"h100": 8, "a100_80gb": 4, "x": 1}, "no GPU type 'x'; types: h100, a100_80gb"),
        ({"h100": 8, "a100_80gb": 4}, "mig:1g.10gb would cost 1.143 on h100, 0.5714 on a100_80gb"),
    ],
)
def test_prices_that_cannot_be(prices: dict[str, float], says: str) -> None:
    """Slurm has one weight for a name in a partition."""
    fleet = Fleet((group("n1", H100), group("n2", A100)))
    with pytest.raises(UsageFault, match=says):
        billing(fleet, prices, "largest")
