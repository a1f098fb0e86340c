"""What users of static MIG type -> slices, by the generated Lua; and the tables that say so."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.errors import UsageFault
from slurm_mig.fleet import fleet_file, slurm_files
from slurm_mig.fleet.bridge import Bridge, Default, spellings
from slurm_mig.fleet.resolve import fleet_of
from slurm_mig.mig import request as requests
from tests.kit import lua_host
from tests.kit.gpus import A100, A100_40, H100

if TYPE_CHECKING:
    from pathlib import Path

FLEET = lua_host.fleet((H100, H100), (A100_40,), (A100,))
BRIDGE = Bridge(
    words={"gpu:a100l.1": "1g.10gb", "mig_24gb": "h100_1g.20gb", "h100-40g": "3g.40gb"},
    static=("v100", "mig-3g.40gb"),
    defaults=(
        Default(partitions=("mig",), slice="1g.10gb", cpus=4, memory=1000),
        Default(partitions=("share",), slice="3g.40gb", cpus=8, by="share"),
        Default(features=("small",), slice="1g.20gb"),
        Default(reservations=("course",), slice="1g.10gb"),
    ),
    partitions=(("mig", "h"), ("a40",), ("a80",)),
)


def host(bridge: Bridge = BRIDGE, version: str = "lua51") -> lua_host.Host:
    return lua_host.Host(version, slurm_files.lua(FLEET, "job_submit.lua", bridge))


HOST = host()
PARTITIONS = {name: {"flag_default": 0, "max_share": 1} for name in ("mig", "share", "h", "a40")}


def asked(**job: Any) -> str:
    """What a job gets, without prefix and shards; or what its user reads."""
    code, after, said = HOST.submit_to(PARTITIONS, **job)
    if code != 0:
        return said.removeprefix("slurm-mig: ")
    words = re.sub(r"gres[:/]", "", after.get("tres_per_node", "")).split(",")
    return ",".join(word for word in words if not word.startswith("shard"))


@pytest.mark.parametrize(
    ("typed", "gets"),
    [
        ("gpu:3g.40gb:1", "mig:3g.40gb:1"),
        ("gpu:3g.40gb", "mig:3g.40gb:1"),
        ("gpu:3g.40gb=2", "mig:3g.40gb:2"),
        ("gpu:3G.40GB", "mig:3g.40gb:1"),
        ("gpu:3g.39gb:1", "mig:3g.40gb:1"),
        ("gpu:7g.79gb:1", "mig:7g.80gb:1"),
        ("gpu:h100.3g.40gb:1", "mig:3g.40gb:1"),
        ("gpu:h100-3g.40gb:1", "mig:3g.40gb:1"),
        ("gpu:nvidia_h100_80gb_hbm3_1g.10gb:1", "mig:1g.10gb:1"),
        ("gpu:nvidia_a100-sxm4-40gb_1g.5gb:1", "mig:1g.5gb:1"),
        ("gpu:a100_1g.5gb:1", "mig:1g.5gb:1"),
        ("gpu:mig-1g.10gb:1", "mig:1g.10gb:1"),
        ("gpu:1g.10gb.me:1", "mig:1g.10gb+me:1"),
        ("gpu:a100l.1", "mig:1g.10gb:1"),
        ("gpu:A100L.1:2", "mig:1g.10gb:2"),
        ("mig_24gb:1", "mig:1g.20gb:1"),
        ("mig:h100-40g", "mig:3g.40gb:1"),
        ("h100-40g:2", "mig:3g.40gb:2"),
        ("gpu:1g.5gb:1,nvme:20", "mig:1g.5gb:1,nvme:20"),
        ("gpu:0,mig:3g.40gb", "mig:3g.40gb:1"),
        ("gpu:3g.40gb:1,", "mig:3g.40gb:1"),
        (",mig:3g.40gb,,nvme:1", "mig:3g.40gb:1,nvme:1"),
        ("gpu:3g.40gb:0", "gpu:3g.40gb:0"),
        # What the site has, it has: whole GPUs, and types of nodes that are not ours.
        ("gpu:h100:2", "gpu:h100:2"),
        ("gpu:v100:1", "gpu:v100:1"),
        ("gpu:mig-3g.40gb:1", "gpu:mig-3g.40gb:1"),
        ("gpu:gtx1080:1", "gpu:gtx1080:1"),
        ("gpu:2", "gpu:2"),
        ("my-mig:1", "my-mig:1"),
        ("mig_x:2", "mig_x:2"),
    ],
)
def test_a_word_and_what_it_means(typed: str, gets: str) -> None:
    """In --gres, with either prefix; and the same in --gpus where it is a GPU."""
    for prefix in ("gres:", "gres/"):
        text = ",".join(f"{prefix}{word}" for word in typed.split(","))
        assert asked(tres_per_node=text) == gets
    if typed.startswith("gpu:") and "," not in typed and gets.startswith("mig"):
        assert asked(tres_per_job=f"gres/{typed}") == gets


@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"tres_per_node": "gres/gpu:9g.40gb:1"}, "unknown MIG profile '9g.40gb', did you mean"),
        ({"tres_per_node": "gres/gpu:v100_1g.10gb"}, "unknown GPU model"),
        ({"tres_per_node": "gres/gpu:3g.40gb:1k"}, "cannot read"),
        ({"tres_per_node": "gres/gpu:3g.40gb:99999999"}, "cannot read"),
        ({"tres_per_node": "gres/gpu:3g.40gb:1:1"}, "cannot read"),
        ({"tres_per_node": "gres/gres/gpu:3g.40gb"}, "cannot read"),
        ({"tres_per_node": "gres/MIG(x):3g.40gb"}, "cannot read"),
        ({"tres_per_node": "gres/ shard:1"}, "cannot read"),
        (
            {"tres_per_node": "gres/mig:3g.40gv", "partition": "a40"},
            "in partition a40: a100_40gb_1g.10gb,",
        ),
        ({"tres_per_job": "gres/gpu:1g.10gb:3", "min_nodes": 2, "max_nodes": 2}, "<count for"),
        ({"tres_per_task": "gres/gpu:1g.10gb=1"}, "add -n <tasks>"),
        (
            {"tres_per_task": "gres/gpu:1g.10gb=1", "num_tasks": 3, "min_nodes": 2, "max_nodes": 2},
            "3 tasks on 2 nodes",
        ),
        ({"tres_per_node": "gpu:1g.10gb", "tres_per_job": "gpu:1g.10gb"}, "both ask for slices"),
        ({"tres_per_node": "gpu:1", "partition": "mig,h"}, "not the same in all partitions"),
        ({"tres_per_node": "gpu:1", "partition": "h", "features": "small|big"}, "not the same"),
        ({"tres_per_node": "gpu:1", "partition": "h", "features": "a|" * 500}, "not the same"),
        ({"tres_per_node": "gpu:1g.10gb", "partition": "mig,h"}, "add -c <CPUs>"),
        # Slurm reads these as counts, so they would be whole GPUs.
        ({"tres_per_node": "gpu:+1", "partition": "mig"}, "cannot read 'gpu:+1'"),
        ({"tres_per_job": "gres/gpu: 1", "partition": "mig"}, "cannot read 'gpu: 1'"),
        ({"tres_per_task": "gres:gpu:1k", "partition": "mig"}, "cannot read 'gpu:1k'"),
    ],
)
def test_refused_with_what_to_type(job: dict[str, Any], says: str) -> None:
    """The job is left as it was."""
    code, after, said = HOST.submit_to(PARTITIONS, **job)
    assert (code, says in said) == (-1, True), said
    assert after == job | {"shared": 65534}


@pytest.mark.parametrize(
    ("where", "gets"),
    [
        ({"partition": "mig"}, "mig:1g.10gb:1"),
        ({"partition": "h"}, "gpu:1"),
        ({"partition": "h", "features": "small&ib"}, "mig:1g.20gb:1"),
        ({"partition": "h", "features": "[small*2]"}, "mig:1g.20gb:1"),
        ({"partition": "h", "features": "smaller"}, "gpu:1"),
        ({"partition": "h", "reservation": "course"}, "mig:1g.10gb:1"),
        ({"partition": "h", "reservation": "courses"}, "gpu:1"),
    ],
)
def test_a_gpu_without_a_type(where: dict[str, str], gets: str) -> None:
    """By partition, feature and reservation; a change of place makes no whole GPU of a slice's."""
    assert asked(tres_per_node="gres/gpu:1", **where) == gets
    record = {"tres_per_node": "gres/gpu:1", "partition": "h"}
    code, *_ = HOST.modify_in(PARTITIONS, record, **where)
    assert code == (0 if gets == "gpu:1" else -1)


def test_what_belongs_to_a_gpu() -> None:
    """For each slice, or by its share; what the user says counts first."""
    _, job, _ = HOST.submit_to(PARTITIONS, tres_per_node="gres/gpu:2", partition="mig")
    assert (job["pn_min_cpus"], job["pn_min_memory"]) == (8, 2000)
    _, job, _ = HOST.submit_to(PARTITIONS, tres_per_node="gres/gpu:1", partition="share")
    assert job["pn_min_cpus"] == 4  # 14 of 31 shards of 8 CPUs, rounded up
    asks = {"tres_per_node": "gres/gpu:2", "partition": "mig", "cpus_per_task": 1}
    _, job, _ = HOST.submit_to(PARTITIONS, pn_min_memory=10, **asks)
    assert (job.get("pn_min_cpus"), job["pn_min_memory"]) == (None, 10)
    per_gpu = {"cpus_per_tres": "gres/gpu:3", "mem_per_tres": "gres/gpu:50"}
    _, job, _ = HOST.submit_to(PARTITIONS, tres_per_job="gres/gpu:1g.10gb:2", **per_gpu)
    assert (job["pn_min_cpus"], job["pn_min_memory"]) == (6, 100)
    assert (job["cpus_per_tres"], job["mem_per_tres"]) == ("", "")


def test_without_the_bridge() -> None:
    """Words of static MIG are Slurm's again; what is ours stays ours."""
    plain = host(Bridge(on=False))
    for text in ("gres/gpu:1g.10gb:1", "gres/gpu:h100_3g.40gb:1", "gres/gpu:1"):
        code, job, _ = plain.submit(tres_per_node=text)
        assert (code, job["tres_per_node"]) == (0, text)
    assert plain.submit(tres_per_node="gres/mig:1g.10gb")[1]["comment"].startswith("slurm-mig=1,")


TOKENS = st.builds(
    lambda prefix, name, kind, count: f"{prefix}{name}{kind}{count}",
    st.sampled_from(["gres:", "gres/", "", "gres/gres/", " "]),
    st.sampled_from(["gpu", "mig", "shard", "MIG", "Shard", "mig_24gb", "nvme", "gpu(S:0)"]),
    st.sampled_from(["", ":1g.10gb", ":h100_3g.40gb", ":a100l.1", ":h100", ":3g.39gb", ":x", "::"]),
    st.sampled_from(["", ":1", ":2", ":0", ":7", "=1", ":1k", ":-1", ":99999999", "(S:0)"]),
)
TEXTS = st.lists(TOKENS, max_size=3).map(",".join)
FIELDS = ("tres_per_node", "tres_per_job", "tres_per_task", "tres_per_socket")


@given(
    st.sampled_from(lua_host.VERSIONS),
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, TEXTS)),
    st.fixed_dictionaries(
        {},
        optional={
            "min_nodes": st.integers(1, 3),
            "max_nodes": st.integers(1, 3),
            "num_tasks": st.integers(1, 9),
            "ntasks_per_node": st.integers(1, 4),
            "ntasks_per_tres": st.integers(1, 4),
            "sockets_per_node": st.integers(1, 2),
            "partition": st.sampled_from(["mig", "h", "mig,h", "share"]),
        },
    ),
)
def test_nothing_is_given_that_is_not_paid(
    version: str, fields: dict[str, str], shape: dict[str, Any]
) -> None:
    """Whatever stands in whichever fields: accepted slices have their stamp and their shards."""
    made = HOSTS[version]
    code, job, _ = made.submit_to(PARTITIONS, **fields, **shape)
    if code != 0:
        return
    stamp = requests.from_stamp(job.get("comment", ""))
    tokens = [
        re.sub("^gres[:/]", "", token)
        for field in FIELDS
        for token in job.get(field, "").split(",")
    ]
    ours = [token for token in tokens if re.match(r"\W*(mig|shard)(\W|$)", token, re.IGNORECASE)]
    if stamp is None:
        assert ours == []
        return
    paid = [int(token.rpartition(":")[2]) for token in ours if token.startswith("shard:")]
    if isinstance(stamp, requests.Several):
        # Paid with all of its GPUs.
        whole = [token for token in tokens if token.startswith("gpu:h100:")]
        assert (paid, whole) == ([], [f"gpu:h100:{len(stamp.parts)}"])
        return
    assert paid == [sum(item.shards or 0 for item in stamp.items)]
    assert ours[: len(stamp.items)] == [f"mig:{item}" for item in named(stamp, ours)]


def named(stamp: requests.Request, ours: list[str]) -> list[str]:
    """The stamp's items under the names that Slurm counts them by."""
    names = [token.split(":")[1] for token in ours if token.startswith("mig:")]
    assert [FLEET.names[name].profile for name in names] == [str(i.profile) for i in stamp.items]
    return [f"{name}:{i.count}" for name, i in zip(names, stamp.items, strict=True)]


HOSTS = {version: host(version=version) for version in lua_host.VERSIONS}


@given(TEXTS)
def test_a_change_brings_no_slices(text: str) -> None:
    """Neither to a job that has none, nor more to one that has some, by any word."""
    code, job, _ = HOST.submit_to(PARTITIONS, tres_per_node=text)
    gets = code != 0 or "comment" in job
    held = {"tres_per_node": "gres/mig:1g.10gb:1,gres/shard:h100:4", "partition": "h"}
    assert HOST.modify_in(PARTITIONS, held, tres_per_node=text)[0] == -1
    if gets:
        assert HOST.modify_in(PARTITIONS, {"partition": "h"}, tres_per_node=text)[0] == -1


@pytest.mark.parametrize(
    ("typed", "moves"),
    [
        ({"num_tasks": 4, "ntasks_per_tres": 2}, False),
        ({"tres_per_job": "gres/gpu:2"}, False),
        ({"tres_per_node": "gres/gpu:1g.10gb:1"}, True),
        ({"num_tasks": 4}, True),
    ],
)
def test_a_job_with_whole_gpus_does_not_move_to_slices(typed: dict[str, Any], moves: bool) -> None:
    """Not one either whose GPUs follow from its tasks: slurmctld shows a change no such thing."""
    code, job, _ = HOST.submit_to(PARTITIONS, partition="h", **typed)
    assert code == 0
    shown = {key: value for key, value in job.items() if key != "ntasks_per_tres"}
    for change in ({"partition": "mig"}, {"features": "small"}):
        assert (HOST.modify_in(PARTITIONS, shown, **change)[0] == 0) is moves


def test_spellings_of_models() -> None:
    """What AutoDetect=nvml, Kubernetes and people make of a name."""
    (model,) = {group.gpus[0] for group in FLEET.groups if group.hosts == "n1"}
    assert {"a100", "a100sxm4", "a100sxm440gb", "a10040gb", "a100pcie40gb"} <= set(spellings(model))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bridge = 1", "bridge = 1: allowed is true or false"),
        ("static = ['a b']", "a GPU type of Slurm's"),
        ("words = 1", "a table such as"),
        ("[words]\na = 1", "a table such as"),
        ("defaults = 1", "for each kind of job"),
        ("[[defaults]]\npartitions = 'mig'", "says nothing of a GPU"),
        ("[[defaults]]\nslices = 'x'", "unknown key .*slices; did you mean slice"),
        ("[[defaults]]\nslice = ''", "slice = '': allowed is a text"),
        ("[[defaults]]\ncpus_per_gpu = 0", "cpus_per_gpu = 0: allowed is a whole number"),
        ("[[defaults]]\ncpus_per_gpu = 70000", "cpus_per_gpu = 70000: allowed is .* to 4096"),
        ("[[defaults]]\nslice = 'x'\npartitions = []", "partitions = ..: allowed .* leave it out"),
        ("[[defaults]]\nmemory_per_gpu = true", "allowed is a whole number"),
        ("[[defaults]]\nslice = 'x'\nby = 'gpu'", '"slice" or "share"'),
        ("[[defaults]]\nslice = 'x'\nfeatures = ['a b']", "a name or a list of names"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, says: str) -> None:
    """The key, its value, and what is allowed."""
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(UsageFault, match=says):
        fleet_file.read(path)


@pytest.mark.parametrize(
    ("bridge", "says"),
    [
        (Bridge(words={"gpu": "1g.10gb"}), "has a meaning already"),
        (Bridge(words={"gpu:h100": "1g.10gb"}), "has a meaning already"),
        (Bridge(words={"a b": "1g.10gb"}), "write what stands in --gres"),
        (Bridge(words={"gpu:2": "1g.10gb"}), "write what stands in --gres"),
        (Bridge(words={"gpu:10k": "1g.10gb"}), "write what stands in --gres"),
        (Bridge(words={"H100": "1g.10gb"}), "h100 has a meaning already"),
        (Bridge(words={"V100": "1g.10gb"}, static=("v100",)), "v100 has a meaning already"),
        (Bridge(words={"Half": "3g.40gb", "half": "1g.10gb"}), "'Half' and 'half' are one"),
        (Bridge(words={"gpu:1g.10gb": "7g.80gb"}), "1g.10gb is 1g.10gb here already"),
        (Bridge(words={"H100_1g.10gb": "7g.80gb"}), "is h100_1g.10gb here already"),
        (Bridge(words={"20gb": "3g.40gb"}), "an amount of memory is the smallest slice"),
        (
            Bridge(partitions=(("h",),), defaults=(Default(partitions=("h",), slice="1g.5gb"),)),
            "no node in partition h has '1g.5gb'; its GPU types: h100",
        ),
        (Bridge(words={"half": "9g.99gb"}), "word half: '9g.99gb' is no profile here; known: "),
        (Bridge(defaults=(Default(slice="9g.99gb"),)), r"\[\[defaults\]\] slice: '9g.99gb'"),
    ],
)
def test_words_that_cannot_be(bridge: Bridge, says: str) -> None:
    """Found before anything is written."""
    with pytest.raises(UsageFault, match=says):
        slurm_files.generate(FLEET, hooks="/h", bridge=bridge)


def test_words_that_mean_what_they_are() -> None:
    """A word may say again what a name says; and a model's short word is no type of the fleet."""
    words = {"gpu:1g.10gb": "1g.10gb", "gpu:20gb": "1g.20gb", "1g.6gb": "1g.10gb"}
    assert slurm_files.generate(FLEET, hooks="/h", bridge=Bridge(words=words))


def test_a_gpu_that_is_not_carved_has_to_be_named_so(tmp_path: Path) -> None:
    """Who lists an L40S is told where it goes."""
    path = tmp_path / "fleet.toml"
    path.write_text("[[nodes]]\nhosts = 'n1'\ngpus = ['l40s:2']\n")
    with pytest.raises(UsageFault, match="a GPU of n1 that is not carved stands in `whole`"):
        fleet_of(fleet_file.read(path))
