"""The cluster as slurmctld counts it."""

from __future__ import annotations

import pytest

from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.overview import NodeView, overview, total_room
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog
from slurm_mig.slurm.answers import _configured
from slurm_mig.slurm.protocol import JobOnNode, NodeFacts
from tests.kit.fleets import model_of
from tests.kit.gpus import A30, A100, A100_40, H100, RTX

MODELS = [fleet_model(product) for product in catalog.products() if product.known]


def node_of(
    *gpus: str,
    whole: tuple[tuple[int, str], ...] = (),
    shards: tuple[tuple[int, int], ...] | None = (),
    state: str = "IDLE",
    others: tuple[NodeGroup, ...] = (),
) -> NodeFacts:
    """A node of a generated fleet."""
    group = NodeGroup("n1", tuple(model_of(name) for name in gpus), whole=whole)
    gres = _configured(Fleet((*others, group)).gres(group))
    if shards == ():
        shards = tuple(
            (0, model.weights.capacity if model else 0) for _, model in group.by_minor().values()
        )
    return NodeFacts("n1", frozenset({state}), "", gres, shards)


def one(node: NodeFacts, *shares: JobOnNode) -> NodeView:
    (view,) = overview([node], shares, MODELS)
    return view


def share(gpus: tuple[int, ...] | None, **gres: int) -> JobOnNode:
    names = {name.replace("__", ":").replace("_", "."): count for name, count in gres.items()}
    return JobOnNode(7, 0, "alice", "n1", 1000.0, names, gpus)


def test_an_idle_node() -> None:
    """As much room as its GPUs hold; parts of instances are not listed."""
    room = one(node_of(H100, H100)).room
    assert room == {
        "1g.10gb": 14,
        "1g.10gb+me": 2,
        "1g.20gb": 8,
        "2g.20gb": 6,
        "3g.40gb": 4,
        "4g.40gb": 2,
        "7g.80gb": 2,
    }


def test_shards_that_are_taken() -> None:
    """Of one GPU each; a remainder on two of them makes no slice."""
    job = share((0,), mig__3g_40gb=1)
    view = one(node_of(H100, H100, shards=((14, 31), (28, 31))), job)
    assert view.room["3g.40gb"] == 1
    assert view.room["1g.10gb"] == 4
    assert view.room["7g.80gb"] == 0
    assert [len(gpu.jobs) for gpu in view.gpus] == [1, 0]


def test_a_whole_gpu_has_no_room() -> None:
    """Its shards are free, and nobody can have them."""
    view = one(node_of(H100, H100), share((1,), gpu__h100=1))
    assert view.room["7g.80gb"] == 1


def test_slices_on_several_gpus() -> None:
    """Their GPUs have no room, as if they were whole; the others do, as far as Slurm counts."""
    job = share((0, 1), gpu__h100=2, mig__3g_40gb=3)
    for shards in ((), None):
        view = one(node_of(H100, H100, H100, shards=shards), job)
        assert (view.room["7g.80gb"], view.room["1g.10gb"], view.room["3g.40gb"]) == (1, 7, 2)
        assert [len(gpu.jobs) for gpu in view.gpus] == [1, 1, 0]


def test_gpus_that_are_not_carved() -> None:
    """They count for nothing; their places count."""
    view = one(node_of(H100, A30, whole=((0, "h100"),), shards=((0, 0), (0, 31), (2, 4))))
    assert [gpu.type_name for gpu in view.gpus] == ["h100", "h100", "a30"]
    assert (view.room["7g.80gb"], view.room["2g.12gb"]) == (1, 1)


def test_names_with_the_type_before_them() -> None:
    """Where two models give one name to different profiles."""
    other = (NodeGroup("n0", (model_of(A100_40),)),)
    assert one(node_of(A100, others=other)).room["a100_80gb_1g.10gb"] == 7


def test_slurm_that_counts_no_shards() -> None:
    """22.05: what the jobs have is added up, GPU by GPU, and an idle node has all its room."""
    node = node_of(H100, A30, shards=None)
    idle = one(node)
    assert (idle.room["7g.80gb"], idle.room["4g.24gb"]) == (1, 1)
    assert [gpu.shards for gpu in idle.gpus] == [(0, 31), (0, 4)]
    jobs = [
        share((0,), mig__3g_40gb=1, shard__h100=14),
        share((0, 1), mig__1g_10gb=1, shard__h100=4, mig__1g_6gb=1, shard__a30=1),
    ]
    (busy,) = overview([node], jobs, MODELS)
    assert [gpu.shards for gpu in busy.gpus] == [(18, 31), (1, 4)]
    assert (busy.room["1g.10gb"], busy.room["7g.80gb"]) == (3, 0)


@pytest.mark.parametrize(
    ("gpus", "shards"),
    [
        # docs/slurm.md: after a restart of slurmctld 22.05 jobs may get shards of no GPU.
        ((), 14),
        # Shares of each are not told.
        ((0, 1), 14),
        # A place that the node does not have.
        ((2,), 14),
    ],
)
def test_shards_of_a_gpu_that_is_not_known(gpus: tuple[int, ...], shards: int) -> None:
    """Rather nothing than a GPU that is shown as free and is not."""
    view = one(node_of(H100, H100, shards=None), share(gpus, mig__3g_40gb=1, shard__h100=shards))
    assert set(view.room.values()) == {None}
    assert [gpu.shards for gpu in view.gpus] == [None, None]


def test_some_of_a_type_not_carved() -> None:
    """Which ones Slurm 22.05 does not tell."""
    view = one(node_of(H100, H100, whole=((2, "h100"),), shards=None))
    assert {gpu.shards for gpu in view.gpus} == {None}


def test_slurm_that_does_not_tell_gpus() -> None:
    """Nothing is made up: no room is known, and the jobs are on some GPU."""
    view = one(node_of(H100, H100, shards=None), share(None, mig__3g_40gb=1))
    assert set(view.room.values()) == {None}
    assert [item.job_id for item in view.elsewhere] == [7]


def test_a_type_that_fits_no_model() -> None:
    """A site's own numbers: unknown rather than wrong."""
    node = node_of(H100)
    odd = NodeFacts("n1", node.state, "", dict(node.gres) | {"shard:h100": 32}, ((0, 32),))
    assert set(one(odd).room.values()) == {None}


def test_two_types_that_count_alike() -> None:
    """Both GPUs have four shards; each has its own profiles. Renamed, nobody can tell."""
    node = node_of(RTX, A30)
    room = one(node).room
    assert (room["4g.96gb"], room["4g.24gb"], room["1g.6gb"]) == (1, 1, 4)
    names = {
        name.replace("a30", "x").replace("rtx_pro_6000", "y"): n for name, n in node.gres.items()
    }
    assert set(one(NodeFacts("n1", node.state, "", names, node.shards)).room.values()) == {None}


def test_a_type_with_a_name_of_the_sites_own() -> None:
    """One type on the node: the model is the one that its profiles fit."""
    node = node_of(H100, H100)
    names = {name.replace("h100", "sxm"): count for name, count in node.gres.items()}
    assert one(NodeFacts("n1", node.state, "", names, node.shards)).room["3g.40gb"] == 4


def test_the_sum_of_all_nodes() -> None:
    """Those that take jobs; what one of them cannot tell is not known of all."""
    views = [one(node_of(H100)), one(node_of(RTX)), one(node_of(H100, state="DRAIN"))]
    assert total_room(views)["7g.80gb"] == 1
    assert total_room([*views, one(node_of(H100, shards=None), share(None))])["7g.80gb"] is None


def test_every_product_is_known_by_its_node() -> None:
    """Whatever the model, an idle GPU has room for its largest profile."""
    for product in catalog.products():
        if product.known:
            view = one(node_of(product.key))
            whole = str(product.geometry().whole.name)
            assert view.room[whole] == 1, product.key
