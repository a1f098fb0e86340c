"""One fleet, one meaning per gres name."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import pytest

from slurm_mig import catalog
from slurm_mig.errors import UsageFault
from slurm_mig.fleet import Fleet, Model, NodeGroup
from slurm_mig.models import fleet_model

from . import lua_host
from .conftest import A30, A100, A100_40, H100, RTX


@cache
def model_of(name: str) -> Model:
    return fleet_model(catalog.find(name))


def group(hosts: str, *gpus: str) -> NodeGroup:
    return NodeGroup(hosts, tuple(model_of(name) for name in gpus))


def test_one_model() -> None:
    """Plain NVIDIA names, typed shards, counts of an empty node."""
    fleet = Fleet((group("n[1-4]", H100, H100),))

    assert fleet.gres(fleet.groups[0]) == (
        "gpu:h100:2,shard:h100:62,mig:1g.10gb:14,mig:1g.10gb+me:2,mig:1g.20gb:8,"
        "mig:2g.20gb:6,mig:1c.2g.20gb:12,"
        "mig:3g.40gb:4,mig:1c.3g.40gb:12,mig:2c.3g.40gb:4,"
        "mig:4g.40gb:2,mig:1c.4g.40gb:8,mig:2c.4g.40gb:4,mig:3c.4g.40gb:2,"
        "mig:7g.80gb:2,mig:1c.7g.80gb:14,mig:2c.7g.80gb:6,mig:3c.7g.80gb:4,mig:4c.7g.80gb:2"
    )
    assert fleet.names["3g.40gb"].shard == "shard:h100"


def test_two_models_on_one_node() -> None:
    """Shards are typed: the slices of an A30 are never paid with shards of the other GPU."""
    fleet = Fleet((group("n1", RTX, A30),))

    assert fleet.names["1g.6gb"].shard == "shard:a30"
    assert fleet.names["1g.24gb-me"].shard == "shard:rtx_pro_6000"
    assert "shard:rtx_pro_6000:4,shard:a30:4" in fleet.gres(fleet.groups[0])


def test_a_name_with_one_meaning_is_shared() -> None:
    """3g.40gb is the same on A100-80GB and H100 nodes: either may serve it."""
    fleet = Fleet((group("a", A100), group("h", H100)))

    assert fleet.names["3g.40gb"].shard == "shard"
    assert fleet.counts(fleet.groups[0])["3g.40gb"] == 2


def test_a_name_with_two_meanings_is_typed_everywhere() -> None:
    """1g.10gb is double-memory on an A100-40GB: the plain name would mean two prices."""
    fleet = Fleet((group("a", A100_40), group("b", A100)))

    assert "1g.10gb" not in fleet.names
    assert fleet.names["a100_40gb_1g.10gb"].weight == 7
    assert fleet.names["a100_80gb_1g.10gb"].weight == 4
    assert fleet.names["a100_80gb_1g.10gb"].profile == "1g.10gb"
    assert fleet.names["3g.20gb"].shard == "shard:a100_40gb"


def test_a_shared_name_is_typed_where_a_node_mixes_models() -> None:
    """Untyped shards could come from the A30 beside it."""
    fleet = Fleet((group("a", A100, A30), group("h", H100)))

    assert set(fleet.names) >= {"a100_80gb_3g.40gb", "h100_3g.40gb", "1g.6gb"}
    assert "3g.40gb" not in fleet.names


def test_media_profiles_are_bounded_by_count() -> None:
    """No shard weight can say `one per GPU`; the typed count does."""
    fleet = Fleet((group("n1", H100, H100, A30),))

    assert fleet.names["1g.10gb+me"].most == 1
    assert fleet.counts(fleet.groups[0])["1g.10gb+me"] == 2
    assert fleet.counts(fleet.groups[0])["2g.12gb+me"] == 1


def test_one_type_name_for_two_models() -> None:
    """Slurm could not tell them apart."""
    models = (fleet_model(catalog.find(H100), "gpu"), fleet_model(catalog.find(A30), "gpu"))
    with pytest.raises(UsageFault, match="names both"):
        Fleet((NodeGroup("n1", models),)).gres(NodeGroup("n1", models))


def known_keys() -> list[str]:
    return [item.key for item in catalog.products() if item.known]


@pytest.mark.parametrize("pair", list(combinations(known_keys(), 2)), ids="+".join)
def test_what_one_gpu_holds_can_be_asked_for_beside_any_other_model(pair: tuple[str, str]) -> None:
    """Profiles that two models share and ones they do not, in one job of the model with both."""
    fleet = Fleet((group("a", pair[0]), group("b", pair[1])))
    host = lua_host.job_submit("lua53", fleet)
    for one in fleet.groups:
        model = one.gpus[0]
        for first, second in combinations(model.geometry.profiles, 2):
            names = [fleet.name_of(model, row) for row in (first, second)]
            cost = sum(name.weight for name in names)
            if cost <= model.weights.capacity:
                asked = ",".join(f"gres/mig:{name.name}:1" for name in names)
                code, job, said = host.submit(tres_per_node=asked)
                assert (code, said) == (0, ""), asked
                assert job["tres_per_node"].endswith(f":{cost}")


def test_whole_gpus_beside_carved_ones() -> None:
    """They count as GPUs and have no shards; the others keep their minors."""
    one = NodeGroup("n1", (model_of(H100), model_of(H100)), whole=((0, "h100"), (2, "l40s")))
    fleet = Fleet((one,))

    assert fleet.gres(one).startswith("gpu:h100:3,gpu:l40s:1,shard:h100:62,mig:1g.10gb:14,")
    assert list(one.by_minor()) == [0, 1, 2, 3]
    assert [minor for minor, (_, model) in one.by_minor().items() if model] == [1, 3]
    assert one.managed() == "[1, 3]"


def test_a_fleet_without_a_carved_gpu() -> None:
    """Slurm can do that alone."""
    with pytest.raises(UsageFault, match="a GPU that is carved"):
        Fleet((NodeGroup("n1", (), whole=((0, "l40s"),)),))


def test_no_nodes() -> None:
    """A fleet of nothing generates nothing; that is a mistake."""
    with pytest.raises(UsageFault):
        Fleet(())


def test_every_known_product_can_be_in_a_fleet() -> None:
    """All together, each name still has one meaning."""
    keys = [item.key for item in catalog.products() if item.known]
    fleet = Fleet(tuple(group(f"n{place}", key) for place, key in enumerate(keys)))

    for one in fleet.groups:
        for row in one.gpus[0].geometry.profiles:
            gres = fleet.name_of(one.gpus[0], row)
            assert (gres.profile, gres.profile_id) == (str(row.name), row.profile_id)
            assert gres.weight == one.gpus[0].weights.of(one.gpus[0].geometry, row)


@pytest.mark.parametrize(
    ("alias", "target", "says"),
    [
        ("small", "9g.90gb", "'9g.90gb' is no profile here"),
        ("20gb", "1g.10gb", "write a letter"),
        ("a:b", "1g.10gb", "write a letter"),
        ("", "1g.10gb", "write a letter"),
    ],
)
def test_aliases_that_cannot_be(alias: str, target: str, says: str) -> None:
    """Named, with what is allowed, before any file is written."""
    with pytest.raises(UsageFault, match=says):
        Fleet((group("n1", H100),), {alias: target})


def test_slices_only_of_a_type_there_is_not() -> None:
    """A typing mistake would leave GPUs open that should be kept."""
    with pytest.raises(UsageFault, match="types: h100, or"):
        Fleet((group("n1", H100),), slices_only=("h1000",))


def test_memory_in_a_mixed_fleet() -> None:
    """By memory, then by share of the GPU; typed names where the plain one means two things."""
    fleet = Fleet((group("a", A100_40), group("b", A100)))
    chosen = [name for gb, name in fleet.by_memory if gb >= 10]
    assert chosen[:2] == ["a100_80gb_1g.10gb", "a100_40gb_1g.10gb"]
