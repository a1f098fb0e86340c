"""One fleet, one meaning per gres name."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.errors import UsageFault
from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.naming import NOBODY, Word
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog
from tests.kit import lua_host
from tests.kit.fleets import group, model_of, shard_of
from tests.kit.gpus import A30, A100, A100_40, H100, KNOWN, RTX


def test_one_model() -> None:
    """Plain NVIDIA names, typed shards, counts of an empty node."""
    fleet = Fleet((group("n[1-4]", H100, H100),))

    assert fleet.gres(fleet.groups[0]) == (
        "gpu:h100:2,shard:h100:62,mig:1g.10gb:14,mig:1g.10gb+me:2,mig:1g.20gb:8,"
        "mig:2g.20gb:6,mig:3g.40gb:4,mig:4g.40gb:2,mig:7g.80gb:2"
    )
    assert shard_of(fleet.names["3g.40gb"]) == "shard:h100"


def test_parts_are_sold_where_the_site_says_so() -> None:
    """Not on the other model, though it has the same profiles."""
    groups = (group("n[1-4]", H100, H100), group("a", A100))
    fleet = Fleet(groups, compute_parts=("h100",))

    assert fleet.gres(groups[0]) == (
        "gpu:h100:2,shard:h100:62,mig:1g.10gb:14,mig:1g.10gb+me:2,mig:1g.20gb:8,"
        "mig:2g.20gb:6,mig:1c.2g.20gb:12,"
        "mig:3g.40gb:4,mig:1c.3g.40gb:12,mig:2c.3g.40gb:4,"
        "mig:4g.40gb:2,mig:1c.4g.40gb:8,mig:2c.4g.40gb:4,mig:3c.4g.40gb:2,"
        "mig:7g.80gb:2,mig:1c.7g.80gb:14,mig:2c.7g.80gb:6,mig:3c.7g.80gb:4,mig:4c.7g.80gb:2"
    )
    assert "c." not in fleet.gres(groups[1])
    assert fleet.names["1c.3g.40gb"].types == ("h100",)
    assert fleet.meaning("h100_1c.3g.40gb") == Word("1c.3g.40gb", ("h100",))
    assert fleet.meaning("a100_80gb_1c.3g.40gb") is None
    assert shard_of(Fleet(groups, compute_parts=("*",)).names["1c.3g.40gb"]) == "shard"
    with pytest.raises(UsageFault, match="types: h100, a100_80gb, or"):
        Fleet(groups, compute_parts=("h10",))


def test_two_models_on_one_node() -> None:
    """Shards are typed: the slices of an A30 are never paid with shards of the other GPU."""
    fleet = Fleet((group("n1", RTX, A30),))

    assert shard_of(fleet.names["1g.6gb"]) == "shard:a30"
    assert shard_of(fleet.names["1g.24gb-me"]) == "shard:rtx_pro_6000"
    assert "shard:rtx_pro_6000:4,shard:a30:4" in fleet.gres(fleet.groups[0])


def test_a_name_with_one_meaning_is_shared() -> None:
    """3g.40gb is the same on A100-80GB and H100 nodes: either may serve it."""
    fleet = Fleet((group("a", A100), group("h", H100)))

    assert shard_of(fleet.names["3g.40gb"]) == "shard"
    assert fleet.counts(fleet.groups[0])["3g.40gb"] == 2


def test_a_name_with_two_meanings_stays_with_who_came_first() -> None:
    """1g.10gb is double-memory on an A100-40GB: one price would be wrong for one of them."""
    fleet = Fleet((group("h", H100), group("a", A100), group("b", A100_40)))

    assert fleet.names["1g.10gb"].types == ("h100", "a100_80gb")
    assert fleet.names["1g.10gb"].weight == 4
    assert fleet.names["a100_40gb_1g.10gb"].weight == 7
    assert fleet.names["a100_40gb_1g.10gb"].profile == "1g.10gb"
    assert "1g.10gb" not in fleet.counts(fleet.groups[2])
    assert shard_of(fleet.names["3g.20gb"]) == "shard:a100_40gb"
    assert fleet.meaning("h100_1g.10gb") == Word("1g.10gb", ("h100",))
    assert fleet.meaning("a100_1g.10gb") == Word("1g.10gb", ("a100_80gb",))
    assert fleet.meaning("a100_3g.20gb") == Word("3g.20gb", ("a100_40gb",))


def test_the_site_says_who_keeps_a_name() -> None:
    """Another than who came first, or nobody: then the choices are named."""
    groups = (group("h", H100), group("a", A100), group("b", A100_40))
    fleet = Fleet(groups, owners={"1g.10gb": "a100_40gb"})
    assert fleet.names["1g.10gb"].types == ("a100_40gb",)
    assert fleet.names["h100_1g.10gb"].weight == fleet.names["a100_80gb_1g.10gb"].weight == 4
    assert fleet.names["3g.40gb"].types == ("h100", "a100_80gb")

    nobodys = Fleet(groups, owners={"1g.10gb": NOBODY})
    choices = ["h100_1g.10gb", "a100_80gb_1g.10gb", "a100_40gb_1g.10gb"]
    assert nobodys.unclear == {"1g.10gb": choices}
    code, _, said = lua_host.job_submit("lua53", nobodys).submit(tres_per_node="gres/mig:1g.10gb")
    assert code == -1
    assert said.endswith(f"'1g.10gb' differs between GPU models; write {' or '.join(choices)}")


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        ({"9g.10gb": "h100"}, "no GPU of the fleet has a profile '9g.10gb'"),
        ({"3g.20gb": "h100"}, "3g.20gb = 'h100': it is a profile of a100_40gb"),
        ({"1g.10gb": "h1000"}, "1g.10gb = 'h1000': it is a profile of h100, a100_40gb"),
    ],
)
def test_owners_that_cannot_be(owners: dict[str, str], says: str) -> None:
    """A typing mistake would give the name to another."""
    with pytest.raises(UsageFault, match=says):
        Fleet((group("h", H100), group("b", A100_40)), owners=owners)


def test_a_shared_name_is_typed_on_a_node_that_mixes_models() -> None:
    """Untyped shards could come from the A30 beside it; the others keep the shared name."""
    groups = (group("h", H100), group("a", A100), group("m", A100, A30))
    fleet = Fleet(groups)

    assert shard_of(fleet.names["3g.40gb"]) == "shard"
    assert shard_of(fleet.names["a100_80gb_3g.40gb"]) == "shard:a100_80gb"
    assert "3g.40gb" not in fleet.counts(groups[2])
    # The word for the model means all its nodes.
    assert all(fleet.counts(one)["a100_80gb_3g.40gb"] == 2 for one in groups[1:])
    assert fleet.counts(groups[1])["3g.40gb"] == 2


def test_a_mixed_node_that_came_first_keeps_its_names() -> None:
    """Its shards have a type; who comes later cannot share the name, nor take it."""
    fleet = Fleet((group("a", A100, A30), group("h", H100)))
    assert shard_of(fleet.names["3g.40gb"]) == "shard:a100_80gb"
    assert shard_of(fleet.names["h100_3g.40gb"]) == "shard:h100"


def meanings(fleet: Fleet) -> dict[str, tuple[str, str, int, int, int]]:
    """What each name and word of a fleet buys, where, and for how many shards."""
    every = {**{name: fleet.meaning(name) for name in fleet.names}, **fleet.words}
    found = {}
    for word, item in every.items():
        assert item is not None
        gres = fleet.names[item.name]
        assert set(item.types) <= set(gres.types)
        found[word] = (gres.name, gres.profile, gres.profile_id, gres.weight, gres.capacity)
    return found


@pytest.mark.parametrize("pair", list(permutations(KNOWN, 2)), ids="+".join)
def test_a_later_model_takes_no_name_away(pair: tuple[str, str]) -> None:
    """Names, words, counts and GPU types of the first are all there, and mean the same."""
    alone, both = Fleet((group("a", pair[0]),)), Fleet((group("a", pair[0]), group("b", pair[1])))

    assert meanings(alone).items() <= meanings(both).items()
    assert alone.counts(alone.groups[0]) == both.counts(both.groups[0])
    for name, gres in alone.names.items():
        assert set(gres.types) <= set(both.names[name].types)


GROUPS = st.lists(st.lists(st.sampled_from(KNOWN), min_size=1, max_size=2), min_size=1, max_size=5)


# The first use of a model derives its weights.
@settings(deadline=None)
@given(GROUPS, st.lists(st.sampled_from(KNOWN), min_size=1, max_size=2))
def test_nor_does_any_node_in_any_fleet(groups: list[list[str]], later: list[str]) -> None:
    """Mixed nodes too; only the word for a model may be counted under its own name from then on."""
    before = tuple(group(f"n{place}", *gpus) for place, gpus in enumerate(groups))
    old, new = Fleet(before), Fleet((*before, group("later", *later)))

    for one in before:
        assert old.counts(one).items() <= new.counts(one).items()
    for word, (name, *buys) in meanings(old).items():
        now, *then = meanings(new)[word]
        assert then == buys
        assert now == name or now == word != name
        assert set(old.names[name].types) <= set(new.names[name].types)


@settings(deadline=None)
@given(GROUPS)
def test_a_model_and_profile_are_always_understood(groups: list[list[str]]) -> None:
    """By the fleet's type and by the usual ones: one script for every cluster."""
    fleet = Fleet(tuple(group(f"n{place}", *gpus) for place, gpus in enumerate(groups)))
    for one in fleet.groups:
        for model in one.gpus:
            for row in model.geometry.profiles:
                item = fleet.meaning(f"{model.type_name}_{row.name}")
                assert item is not None
                assert item.types == (model.type_name,)
                counted = fleet.counts(one)
                assert counted[item.name] > 0
                assert counted[fleet.name_of(one, model, row).name] > 0
                assert all(fleet.meaning(f"{word}_{row.name}") for word in model.also)


def test_names_of_before_are_kept_while_jobs_wait() -> None:
    """Counted on the nodes that had them, in accounting too; new jobs get today's name."""
    groups = (group("h", H100, H100), group("b", A100_40))
    fleet = Fleet(groups, keep=("h100_1g.10gb",))

    assert fleet.counts(groups[0])["h100_1g.10gb"] == 14
    assert "h100_1g.10gb" not in fleet.counts(groups[1])
    assert "gres/mig:h100_1g.10gb" in slurm_files.accounting_tres(fleet)
    _, job, _ = lua_host.job_submit("lua53", fleet).submit(tres_per_node="gres/mig:h100_1g.10gb")
    assert job["tres_per_node"] == "gres/mig:1g.10gb:1,gres/shard:h100:4"
    for name, says in (("9g.90gb", "means nothing here"), ("1g.10gb", "is counted anyway")):
        with pytest.raises(UsageFault, match=says):
            Fleet(groups, keep=(name,))


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


@pytest.mark.parametrize("pair", list(combinations(KNOWN, 2)), ids="+".join)
def test_what_one_gpu_holds_can_be_asked_for_beside_any_other_model(pair: tuple[str, str]) -> None:
    """Profiles that two models share and ones they do not, in one job of the model with both."""
    fleet = Fleet((group("a", pair[0]), group("b", pair[1])))
    host = lua_host.job_submit("lua53", fleet)
    for one in fleet.groups:
        model = one.gpus[0]
        for first, second in combinations(model.geometry.profiles, 2):
            names = [fleet.name_of(one, model, row) for row in (first, second)]
            cost = sum(name.weight for name in names)
            # Shards do not count media engines: job_submit.lua does.
            if cost <= model.weights.capacity and model.geometry.media_left([first, second]):
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
            gres = fleet.name_of(one, one.gpus[0], row)
            assert (gres.profile, gres.profile_id) == (str(row.name), row.profile_id)
            assert gres.weight == one.gpus[0].weights.of(one.gpus[0].geometry, row)


@pytest.mark.parametrize(
    ("alias", "target", "says"),
    [
        ("small", "9g.90gb", "'9g.90gb' is no profile here"),
        ("20gb", "1g.10gb", "as a profile or as an amount of memory"),
        ("3G.40GB", "1g.10gb", "as a profile or as an amount of memory"),
        ("1c.3g.40gb+x", "1g.10gb", "as a profile or as an amount of memory"),
        ("2g", "1g.10gb", "Slurm reads it as a count"),
        ("12", "1g.10gb", "Slurm reads it as a count"),
        ("3g.40gb", "1g.10gb", "a profile's name"),
        ("h100_3g.40gb", "1g.10gb", "a profile's name"),
        ("a:b", "1g.10gb", "write letters, digits"),
        ("-a", "1g.10gb", "write letters, digits"),
        ("", "1g.10gb", "write letters, digits"),
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


@pytest.mark.parametrize("alias", ["small", "1st", "2g-class", "_x", "a.b+c", "mig_24gb"])
def test_aliases(alias: str) -> None:
    """Any word that Slurm takes and nobody reads as something else."""
    fleet = Fleet((group("n1", H100), group("a", A100)), {alias: "a100_1g.10gb"})
    _, job, _ = lua_host.job_submit("lua53", fleet).submit(tres_per_node=f"gres/mig:{alias}:2")
    assert job["tres_per_node"] == "gres/mig:1g.10gb:2,gres/shard:a100_80gb:8"


def test_memory_in_a_mixed_fleet() -> None:
    """By memory, by share of the GPU, then the name that most models share: any may serve it."""
    fleet = Fleet((group("b", A100_40), group("m", A100, A30), group("a", A100), group("h", H100)))
    chosen = [name for gb, name in fleet.by_memory if gb >= 10]
    assert chosen[:2] == ["a100_80gb_1g.10gb", "h100_1g.10gb"]
    assert "1g.10gb" in chosen[2:]

    both = Fleet((group("b", A100_40), group("a", A100), group("h", H100)))
    host = lua_host.job_submit("lua53", both)
    _, job, _ = host.submit(tres_per_node="gres/mig:40gb")
    assert job["tres_per_node"] == "gres/mig:3g.40gb:1,gres/shard:14"
