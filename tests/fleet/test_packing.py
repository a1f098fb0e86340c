"""Slices on several GPUs as job_submit.lua packs them: against every way, and the planner."""

from __future__ import annotations

import time
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.errors import JobFault
from slurm_mig.fleet import packing
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog, plan
from slurm_mig.mig import request as requests
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request, Several
from tests.kit import lua_host
from tests.kit.gpus import A100, H100, KNOWN, RTX, geometry_of

#: GPUs of a node in these tests.
GPUS = 6

Counts = tuple[int, ...]


@cache
def host(model: str, version: str = "lua54") -> lua_host.Host:
    group = NodeGroup("n1", (fleet_model(catalog.find(model)),) * GPUS)
    return lua_host.job_submit(version, Fleet((group,), compute_parts=("*",)))


@cache
def held(model: str, names: tuple[str, ...], counts: Counts) -> bool:
    """Whether an empty GPU has a place for so many GPU instances of each profile."""
    geometry = geometry_of(model)
    items = tuple(
        Item(Profile.parse(name), count) for name, count in zip(names, counts, strict=True) if count
    )
    try:
        return bool(plan.plan(Request(items), geometry, ()))
    except JobFault:
        return False


@cache
def fewest(model: str, names: tuple[str, ...], counts: Counts, most: int) -> int:
    """The fewest GPUs that hold them, by trying every content of the first GPU."""
    if not any(counts):
        return 0
    if most == 0:
        return 1
    best = most + 1
    for first in product(*(range(min(count, 8) + 1) for count in counts)):
        if not any(first) or not held(model, names, first):
            continue
        # Something more of any profile never makes it worse: only full GPUs count.
        fuller = (
            (*first[:place], first[place] + 1, *first[place + 1 :])
            for place in range(len(first))
            if first[place] < counts[place]
        )
        if any(held(model, names, more) for more in fuller):
            continue
        rest = tuple(count - one for count, one in zip(counts, first, strict=True))
        best = min(best, 1 + fewest(model, names, rest, min(most, best - 1) - 1))
    return best


def parts_of(after: dict[str, object]) -> tuple[Request, ...]:
    stamp = requests.from_stamp(str(after["comment"]))
    if isinstance(stamp, Several):
        return stamp.parts
    assert stamp is not None
    return (stamp,)


@st.composite
def wanted(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A model of the catalogue, and more of its profiles than one GPU may hold."""
    model = catalog.find(draw(st.sampled_from(KNOWN))).title
    names = [str(row.name) for row in geometry_of(model).profiles]
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
    most = {1: 30, 2: 10, 3: 6}[len(chosen)]
    return model, {name: draw(st.integers(1, most)) for name in chosen}


@settings(max_examples=300, deadline=None)
@given(wanted())
def test_as_few_gpus_as_hold_them(case: tuple[str, dict[str, int]]) -> None:
    """Never more; each part has its place on an empty GPU; nothing is lost or added."""
    model, items = case
    gres = ",".join(f"gres/mig:{name}:{count}" for name, count in items.items())
    code, after, said = host(model).submit(tres_per_node=gres)
    need = fewest(model, tuple(items), tuple(items.values()), GPUS)
    if need > GPUS:
        assert (code, "do" in said) == (-1, True), said
        return
    assert code == 0, said
    parts = parts_of(after)
    assert len(parts) == need, parts
    total: dict[str, int] = {}
    for part in parts:
        for item in part.items:
            total[str(item.profile)] = total.get(str(item.profile), 0) + item.count
        assert plan.plan(part, geometry_of(model), ())
    assert total == items
    if need > 1:
        assert f"gres/gpu:{host_type(model)}:{need}" in str(after["tres_per_node"]).split(",")
        assert "shard" not in str(after["tres_per_node"])


@pytest.mark.parametrize("version", lua_host.VERSIONS)
@pytest.mark.parametrize(
    ("model", "asked", "gpus", "stamp"),
    [
        (H100, "mig:3g.40gb:8", 4, ";".join(["3g.40gb/9/14:2"] * 4)),
        (H100, "mig:7g.80gb:2", 2, "7g.80gb/0/31:1;7g.80gb/0/31:1"),
        (H100, "mig:4g.40gb:1,mig:3g.40gb:1,mig:1g.10gb:1", 2,
         "4g.40gb/5/16:1,3g.40gb/9/14:1;1g.10gb/19/4:1"),
        # Largest first would need three.
        (H100, "mig:3g.40gb:2,mig:2g.20gb:4", 2, ";".join(["3g.40gb/9/14:1,2g.20gb/14/8:2"] * 2)),
        # The last GPU instance is not full.
        (H100, "mig:1c.3g.40gb:7", 2, "1c.3g.40gb/9/14:6;1c.3g.40gb/9/14:1"),
        (H100, "mig:1g.10gb+me:2", 2, "1g.10gb+me/20/4:1;1g.10gb+me/20/4:1"),
        # Room enough, but not media engines.
        (RTX, "mig:1g.24gb+me:1,mig:1g.24gb+me.all:1", 2, None),
    ],
)  # fmt: skip
def test_what_is_written(
    version: str, model: str, asked: str, gpus: int, stamp: str | None
) -> None:
    """Whole GPUs of one type beside what was asked for, and a part for each."""
    prefixed = ",".join(f"gres:{word}" for word in asked.split(","))
    code, after, said = host(model, version).submit(tres_per_node=prefixed, comment="mine")
    assert (code, said) == (0, "")
    assert after["tres_per_node"] == f"{prefixed},gres:gpu:{host_type(model)}:{gpus}"
    if stamp is not None:
        assert after["comment"] == f"mine slurm-mig=2,{stamp}"


def two_types(most: int | None = None, **groups: tuple[int, int]) -> lua_host.Host:
    """H100 SXM and PCIe, that have the same profiles: so many of each on a node."""
    sxm, pcie = fleet_model(catalog.find(H100)), fleet_model(catalog.find("NVIDIA H100 PCIe"))
    nodes = tuple(
        NodeGroup(name, (*(sxm,) * one, *(pcie,) * two)) for name, (one, two) in groups.items()
    )
    return lua_host.job_submit("lua53", Fleet(nodes, several_gpus=most))


def test_the_type_with_most_gpus_on_a_node() -> None:
    """A job's GPUs are of one type; of equals the first by name."""
    hosts = two_types(a=(2, 0), b=(0, 4)), two_types(a=(4, 0), b=(0, 4))
    found = [host.submit(tres_per_node="gres/mig:3g.40gb:3")[1] for host in hosts]
    assert [str(job["tres_per_node"]).rpartition("gpu:")[2] for job in found] == [
        "h100_pcie:2", "h100:2",
    ]  # fmt: skip


def test_a_word_for_one_type() -> None:
    """It is of that type, also when the client has written the counted name and the GPUs."""
    sxm, pcie = fleet_model(catalog.find(H100)), fleet_model(catalog.find("NVIDIA H100 PCIe"))
    fleet = Fleet((NodeGroup("a", (sxm,) * 4), NodeGroup("b", (pcie,) * 2)))
    host, client = lua_host.job_submit("lua51", fleet), lua_host.cli_filter("lua51", fleet)
    asked = "mig:h100_pcie_3g.40gb:3"
    _, (options,), _ = client.call("slurm_cli_pre_submit", {"gres": asked, "type": "sbatch"})
    assert options["gres"] == "mig:3g.40gb:3,gpu:h100_pcie:2"
    prefixed = ",".join(f"gres/{word}" for word in options["gres"].split(","))
    for gres in (f"gres/{asked}", prefixed):
        code, after, said = host.submit(tres_per_node=gres)
        assert (code, said) == (0, "")
        assert after["tres_per_node"] == "gres/mig:3g.40gb:3,gres/gpu:h100_pcie:2"
    code, _, said = host.submit(tres_per_node="gres/mig:h100_pcie_3g.40gb:8")
    assert (code, "on the 2 GPUs that a job may have" in said) == (-1, True)


@pytest.mark.parametrize(
    ("fleet", "says"),
    [
        (
            {"several_gpus": 1},
            "this site gives a job slices of one GPU per node; write -N4 --gres=mig:3g.40gb:2",
        ),
        (
            {"several_gpus": 3},
            "on the 3 GPUs that a job may have on one node; write -N2 --gres=mig:3g.40gb:4",
        ),
        ({"whole": ((4, "h100"),)}, "not every h100 GPU of n1 is carved; write -N4"),
        ({"gpus": 3}, "on the 3 GPUs that a job may have on one node"),
    ],
)
def test_where_the_site_forbids_it(fleet: dict[str, object], says: str) -> None:
    """A sentence, with the line to type; one GPU's slices are as ever."""
    number = int(str(fleet.get("gpus", 4)))
    whole = fleet.get("whole", ())
    group = NodeGroup("n1", (fleet_model(catalog.find(H100)),) * number, whole=whole)  # type: ignore[arg-type]
    most = fleet.get("several_gpus")
    made = Fleet((group,), several_gpus=most)  # type: ignore[arg-type]
    host = lua_host.job_submit("lua54", made)
    code, after, said = host.submit(tres_per_node="gres/mig:3g.40gb:8")
    assert (code, says in said) == (-1, True), said
    assert after["tres_per_node"] == "gres/mig:3g.40gb:8"
    line = packing.lua_table(made)
    assert ("refused" in line) is ("per node" in says or "carved" in says)
    assert host.submit(tres_per_node="gres/mig:3g.40gb:2")[0] == 0


@pytest.mark.parametrize(
    "gres",
    [
        "gpu:h100:4,mig:3g.40gb:1",
        "gpu:h100:3,mig:3g.40gb:8",
        "gpu:h100:5,mig:3g.40gb:8",
        "gpu:4,mig:3g.40gb:8",
        "gpu:h100:4,gpu:h100:4,mig:3g.40gb:8",
        "gpu:h100:4,gpu:1,mig:3g.40gb:8",
        "gpu:a30:4,mig:3g.40gb:8",
        "gpu:h100=4,mig:3g.40gb:8",
        "mig:3g.40gb:8,shard:h100:112",
        "mig:3g.40gb:8,gpu:h100:4,shard:1",
    ],
)
def test_other_gpus_by_hand(gres: str) -> None:
    """Whole GPUs are what the slices need, of our type, once; all else is refused."""
    prefixed = ",".join(f"gres/{word}" for word in gres.split(","))
    code, _, said = host(H100).submit(tres_per_node=prefixed)
    assert (code, "slurm-mig: " in said) == (-1, True)


def test_the_gpus_that_are_needed_by_hand() -> None:
    """What `scontrol show job` prints of such a job, and what cli_filter.lua writes."""
    _, wanted, _ = host(H100).submit(tres_per_node="gres/mig:3g.40gb:8")
    code, after, said = host(H100).submit(tres_per_node=wanted["tres_per_node"])
    assert (code, said, after) == (0, "", wanted)
    for field in ("tres_per_job", "tres_per_task", "tres_per_socket"):
        code, _, said = host(H100).submit(
            tres_per_node="gres/mig:3g.40gb:8", **{field: "gres/gpu:h100:4"}
        )
        assert (code, "counted by slurm-mig" in said) == (-1, True)


def test_it_cannot_be_changed() -> None:
    """Neither its GPUs nor its slices, and its stamp stays."""
    _, held, _ = host(H100).submit(tres_per_node="gres/mig:3g.40gb:8")
    for gres in ("gres/gpu:h100:4", "gres/gpu:h100:8", "gres/mig:3g.40gb:1", "gres/gpu:h100:1"):
        code, _, said = host(H100).modify(held, tres_per_node=gres)
        assert (code, "cannot be changed" in said) == (-1, True)
    code, after, _ = host(H100).modify(held, comment="slurm-mig=2,7g.80gb/0/31:1;7g.80gb/0/31:1")
    assert (code, after["comment"]) == (0, held["comment"])


@pytest.mark.parametrize("version", lua_host.VERSIONS)
def test_slurmctld_does_not_wait_long(version: str) -> None:
    """Whatever is asked for, packed or refused: the search is bounded."""
    for model in (A100, RTX):
        names = [str(row.name) for row in geometry_of(model).profiles]
        for number in (3, 7, 12, 99):
            gres = ",".join(f"gres/mig:{name}:{1 + number % (2 + place)}"
                            for place, name in enumerate(names))  # fmt: skip
            started = time.process_time()
            host(model, version).submit(tres_per_node=gres)
            assert time.process_time() - started < 1


STEPS = [
    ("3g.40gb:2;3g.40gb:2", "mig:3g.40gb:1", "mig:3g.40gb:1,gpu:1"),
    ("3g.40gb:2;3g.40gb:2", "mig:3g.40gb:3", "mig:3g.40gb:3,gpu:2"),
    # Whichever GPU Slurm takes has so many.
    ("3g.40gb:2;3g.40gb:1", "mig:3g.40gb:2", "mig:3g.40gb:2,gpu:2"),
    ("4g.40gb:1,3g.40gb:1;1g.10gb:1", "mig:1g.10gb", "mig:1g.10gb:1,gpu:2"),
    ("3g.40gb:2;3g.40gb:2", "gpu:2,mig:3g.40gb:2", "gpu:2,mig:3g.40gb:2"),
    ("1g.10gb+me:1;1g.10gb+me:1", "gres:mig:1g.10gb+me:1", "gres:mig:1g.10gb+me:1,gres:gpu:1"),
]


@pytest.mark.parametrize(("parts", "typed", "becomes"), STEPS)
def test_a_step_asks_for_gpus_too(
    monkeypatch: pytest.MonkeyPatch, parts: str, typed: str, becomes: str
) -> None:
    """Under ConstrainDevices it could not open its slices' GPU without; a job has shards."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MIG_PARTS", parts)
    group = NodeGroup("n1", (fleet_model(catalog.find(H100)),) * 4)
    for version in lua_host.VERSIONS:
        call = lua_host.cli_filter(version, Fleet((group,))).call
        asked = {"gres": typed, "type": "srun"}
        assert call("slurm_cli_pre_submit", asked)[1][0]["gres"] == becomes
        asked = {"gres": "mig:3g.40gb:1", "type": "sbatch"}
        assert "shard" in call("slurm_cli_pre_submit", asked)[1][0]["gres"]


def test_a_step_beside_gpus_per_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Left in the environment by sbatch: srun 26.05 takes GPUs in one of both options only."""
    group = NodeGroup("n1", (fleet_model(catalog.find(H100)),) * 4)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MIG_JOB", "7")
    monkeypatch.setenv("SLURM_MIG_PROFILES", "3g.40gb,3g.40gb,3g.40gb,3g.40gb")
    monkeypatch.setenv("SLURM_MIG_PARTS", "3g.40gb:2;3g.40gb:2")
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "4")
    for version in lua_host.VERSIONS:
        call = lua_host.cli_filter(version, Fleet((group,))).call
        asked = {"gres": "mig:3g.40gb:1", "gpus-per-node": "4", "type": "srun"}
        _, (options,), _ = call("slurm_cli_pre_submit", asked)
        assert (options["gres"], options["gpus-per-node"]) == ("mig:3g.40gb:1", "1")


def host_type(model: str) -> str:
    return fleet_model(catalog.find(model)).type_name
