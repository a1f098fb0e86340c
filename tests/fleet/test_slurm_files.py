"""Generated files: exact, the same as the shipped samples, and right for every request."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.hooks.refusal import comment_with
from slurm_mig.mig import request as requests
from slurm_mig.settings import Config
from tests.kit import lua_host
from tests.kit.gpus import A30, A100, A100_40, H100, RTX

FLEET = lua_host.fleet((H100, H100), (RTX, A30), parts=True)
HOSTS = {version: lua_host.job_submit(version, FLEET) for version in lua_host.VERSIONS}
FILTERS = {version: lua_host.cli_filter(version, FLEET) for version in lua_host.VERSIONS}

versions = pytest.mark.parametrize("version", lua_host.VERSIONS)


# -- files ---------------------------------------------------------------------


def test_the_shipped_samples_are_what_the_generator_writes() -> None:
    """etc/ cannot drift from the tables."""
    etc = Path(__file__).parents[2] / "etc"
    sample = lua_host.fleet((H100,) * 8, (A30, A30))
    for group, hosts in zip(sample.groups, ("gpu[01-04]", "a30-[01-02]"), strict=True):
        object.__setattr__(group, "hosts", hosts)
    files = slurm_files.generate(sample, hooks="/etc/slurm-mig/hooks")
    assert {name: (etc / name).read_text() for name in files} == dict(files)


def test_gres_conf_has_one_line_per_gpu_and_no_mig() -> None:
    """One shard line per GPU with its file, and no mig line at all (facts/slurm.md#gresconf)."""
    text = slurm_files.gres_conf(FLEET)
    lines = [line for line in text.splitlines() if not line.startswith("#")]

    assert len(lines) == 8
    assert all("AutoDetect=off" in line and "File=/dev/nvidia" in line for line in lines)
    assert "mig" not in "".join(lines)
    assert lines[1] == (
        "NodeName=n0 AutoDetect=off Name=shard Type=h100 Count=31 File=/dev/nvidia0"
    )


def test_whole_gpus_have_no_shards() -> None:
    """Their line stands at their minor; what the node's config must say stands beside Gres=."""
    group = NodeGroup("n1", FLEET.groups[0].gpus[:1], whole=((0, "l40s"),))
    texts = slurm_files.generate(
        Fleet((group,)), hooks="/h", billing={"": {"GRES/gpu:l40s": 1 / 3}}
    )
    lines = texts["gres.conf.mig"].splitlines()[1:]
    assert [line.split()[2:5] for line in lines] == [
        ["Name=gpu", "Type=l40s", "File=/dev/nvidia0"],
        ["Name=gpu", "Type=h100", "File=/dev/nvidia1"],
        ["Name=shard", "Type=h100", "Count=31"],
    ]
    assert "[gpus] managed = [1]" in texts["slurm.conf.mig"]
    assert "#TRESBillingWeights=GRES/gpu:l40s=0.3333\n" in texts["slurm.conf.mig"]
    assert "gres/gpu:l40s,gres/gpu:h100," in texts["slurm.conf.mig"]


def test_a_batch_job_is_not_taken_for_lost() -> None:
    """While its Prolog may still run, whatever hangs (SM123)."""
    line = next(
        line for line in slurm_files.slurm_conf(FLEET, "/h").splitlines() if "BatchStart" in line
    )
    assert line == f"BatchStartTimeout={slurm_files.BATCH_START}"
    assert Config().longest_hook < slurm_files.BATCH_START < Config().longest_hook + 60


def test_prices_of_each_partition() -> None:
    """A line for each, with its name; the one without a name is for all."""
    weights = {"hopper": {"GRES/gpu:h100": 8.0}, "": {"GRES/gpu:a30": 2.0}}
    lines = slurm_files.slurm_conf(FLEET, "/h", weights).splitlines()
    place = lines.index("# Onto the line of partition hopper:")
    assert lines[place + 1 : place + 4] == [
        "#TRESBillingWeights=GRES/gpu:h100=8",
        "# Onto the lines of the partitions with these nodes:",
        "#TRESBillingWeights=GRES/gpu:a30=2",
    ]


def test_shard_sums_agree_on_both_sides() -> None:
    """slurm.conf and gres.conf count the same shards: a difference overfills a GPU in silence."""
    for group in FLEET.groups:
        words = dict(
            word.rsplit(":", 1) for word in FLEET.gres(group).split(",") if "shard:" in word
        )
        lines = [
            line.split()
            for line in slurm_files.gres_conf(FLEET).splitlines()
            if line.startswith(f"NodeName={group.hosts} ") and "Name=shard" in line
        ]
        for name, total in words.items():
            kind = f"Type={name.removeprefix('shard:')}"
            assert int(total) == sum(
                int(word.removeprefix("Count="))
                for line in lines
                if kind in line
                for word in line
                if word.startswith("Count=")
            )


# -- job_submit.lua: what is accepted ------------------------------------------


@versions
@pytest.mark.parametrize(
    ("asked", "becomes", "stamp"),
    [
        ("gres:mig:3g.40gb:1", "gres:mig:3g.40gb:1,gres:shard:h100:14", "3g.40gb/9/14:1"),
        ("gres:mig:3g.40gb", "gres:mig:3g.40gb:1,gres:shard:h100:14", "3g.40gb/9/14:1"),
        ("gres:mig:1g.10gb=2", "gres:mig:1g.10gb:2,gres:shard:h100:8", "1g.10gb/19/4:2"),
        ("gres:mig:1g.10gb:2", "gres:mig:1g.10gb:2,gres:shard:h100:8", "1g.10gb/19/4:2"),
        (
            "gres:mig:1g.10gb:1,gres:mig:3g.40gb:1",
            "gres:mig:1g.10gb:1,gres:mig:3g.40gb:1,gres:shard:h100:18",
            "1g.10gb/19/4:1,3g.40gb/9/14:1",
        ),
        ("gres:mig:1g.6gb:4", "gres:mig:1g.6gb:4,gres:shard:a30:4", "1g.6gb/14/1:4"),
        (
            "gres:craynetwork:1,gres:mig:1g.24gb+me.all",
            "gres:mig:1g.24gb+me.all:1,gres:shard:rtx_pro_6000:1,gres:craynetwork:1",
            "1g.24gb+me.all/65/1:1",
        ),
        (
            "gres:mig:3g.40gb:1,gres:shard:h100:14",
            "gres:mig:3g.40gb:1,gres:shard:h100:14",
            "3g.40gb/9/14:1",
        ),
    ],
)
def test_accepted(version: str, asked: str, becomes: str, stamp: str) -> None:
    """Count, shards and stamp are added; what cli_filter.lua added already is kept."""
    code, job, said = HOSTS[version].submit(tres_per_node=asked)

    assert (code, said) == (0, "")
    assert job["tres_per_node"] == becomes
    assert job["comment"] == f"slurm-mig=1,{stamp}"
    assert "extra" not in job


@versions
def test_the_stamp_stands_in_the_comment(version: str) -> None:
    """Under extra_constraints Slurm would read `extra`; the user's own words stay in both."""
    code, job, _ = HOSTS[version].submit(
        tres_per_node="gres/mig:3g.40gb:1", extra="lab=7&gpu", comment="my run"
    )

    assert code == 0
    assert job["tres_per_node"] == "gres/mig:3g.40gb:1,gres/shard:h100:14"
    assert job["extra"] == "lab=7&gpu"
    assert job["comment"] == "my run slurm-mig=1,3g.40gb/9/14:1"


@versions
@pytest.mark.parametrize(
    "beside",
    [
        {"tres_per_task": "cpu=4"},
        {"tres_per_task": "cpu:2"},
        {"tres_per_job": "gres:gpu:0"},
        {"tres_per_job": ""},
        {"tres_per_task": "cpu=1,gres/gpu=0"},
        {"tres_per_task": "gres/gpu:h100=0"},
    ],
)
def test_a_field_that_names_no_gpu(version: str, beside: dict[str, str]) -> None:
    """`-c 4` fills tres_per_task on later releases; a count of nothing asks for nothing."""
    code, _, said = HOSTS[version].submit(tres_per_node="gres/mig:3g.40gb:1", **beside)
    assert (code, said) == (0, "")
    assert HOSTS[version].submit(tres_per_node="gres/gpu:0,gres/mig:3g.40gb:1", **beside)[0] == 0


# -- job_submit.lua: what is refused --------------------------------------------


@versions
@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"tres_per_node": "gres:mig:9g.40gb:1"}, "unknown MIG profile '9g.40gb', did you mean"),
        ({"tres_per_node": "gres:mig:9g.40gb:1"}, "did you mean 3g.40gb; known: 1g.10gb,"),
        ({"tres_per_node": "gres:mig"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:mig:1"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:mig:1g.10gb:0"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:mig:1g.10gb:-1"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:mig:1g.10gb:1k"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:mig:1g.10gb:100"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:mig:1g.10gb:1:1"}, "write --gres=mig:<profile>:<count>"),
        ({"tres_per_node": "gres:MIG:1g.10gb:1"}, "cannot read"),
        ({"tres_per_node": "gres:gres:mig:1g.10gb:1"}, "cannot read"),
        ({"tres_per_node": "gres:gpu:mig:1"}, "cannot read"),
        ({"tres_per_node": "gres:shard:4"}, "shards are counted by slurm-mig"),
        ({"tres_per_node": "gres:Shard:4"}, "cannot read"),
        ({"tres_per_node": "gres:mig:3g.40gb:1,gres:shard:h100:1"}, "leave 'shard:h100:1' out"),
        ({"tres_per_node": "gres:mig:3g.40gb:1,gres:shard:14"}, "leave 'shard:14' out"),
        (
            {"tres_per_node": "gres:mig:3g.40gb:1,gres:shard:h100:14,gres:shard:h100:14"},
            "shards are counted",
        ),
        ({"tres_per_node": "gres:mig:1g.10gb:1,gres:mig:1g.10gb:1"}, "named twice"),
        ({"tres_per_node": "gres:mig:1g.10gb:15"}, "write -N2 --gres=mig:1g.10gb:8"),
        ({"tres_per_node": "gres:mig:1g.10gb+me:3"}, "on the 2 GPUs that a job may have on one"),
        ({"tres_per_node": "gres:mig:7g.80gb:2,gres:mig:3g.40gb:1"}, "ask for fewer, or for more"),
        ({"tres_per_node": "gres:mig:1g.10gb:1,gres:mig:1g.6gb:1"}, "different GPU models"),
        ({"tres_per_node": "gres:mig:3g.40gb:1,gres:gpu:1"}, "whole GPUs and MIG slices"),
        ({"tres_per_node": "gres:mig:3g.40gb:1", "tres_per_job": "gres:gpu:1"}, "whole GPUs"),
        ({"tres_per_node": "gres:mig:3g.40gb:1", "tres_per_task": "cpu=2,gres/gpu=1"}, "whole"),
        ({"tres_per_node": "gres:mig:3g.40gb:1,gres:gpu"}, "whole GPUs"),
        ({"tres_per_node": "gres:mig:3g.40gb:1", "shared": 0}, "--exclusive"),
        ({"tres_per_node": "gres:mig:3g.40gb:1", "shared": 0.0}, "--exclusive"),
        ({"tres_per_job": "gres:gpu:mig:1"}, "cannot read 'gpu:mig:1'"),
        ({"tres_per_task": "gres/mig:3g.40gb=1"}, "add -n <tasks>"),
        ({"tres_per_socket": "gres:mig:3g.40gb:1"}, "add --sockets-per-node=<n>"),
        ({"tres_per_task": "gres/shard=1"}, "shards are counted"),
    ],
)
def test_refused(version: str, job: dict[str, object], says: str) -> None:
    """Each with a line the user sees; the job is left as it was."""
    code, after, said = HOSTS[version].submit(**job)

    assert code == -1
    assert said.startswith("slurm-mig: ")
    assert says in said
    assert after == job | {"shared": job.get("shared", 65534)}


@versions
@pytest.mark.parametrize(
    "job",
    [
        {},
        {"tres_per_node": "gres:gpu:2"},
        {"tres_per_node": "gres/gpu:h100:1,gres/tmpfs:5", "comment": "a b", "extra": "{}"},
        {"tres_per_job": "gres:gpu:4", "shared": 0},
        {"tres_per_node": "gres:migraine:1"},
        {"comment": "please no slurm-migration"},
    ],
)
def test_other_jobs_are_not_touched(version: str, job: dict[str, object]) -> None:
    """Not a field of them."""
    code, after, said = HOSTS[version].submit(**job)
    assert (code, said) == (0, "")
    assert after == {"shared": 65534} | job


WORDS = st.text(st.sampled_from("slurm-ig= \t\nab1,/:.\u00a0"), max_size=40)


@given(st.sampled_from(lua_host.VERSIONS), WORDS, WORDS)
def test_no_stamp_of_a_users_survives(version: str, comment: str, extra: str) -> None:
    """However it is written or nested; on a job of ours only our own is left."""
    forged = "slurm-mig=1,7g.80gb/0/31:1"
    job = {"comment": f"{comment}{forged}{extra}", "extra": f"{extra} {forged} {comment}"}

    _, plain, _ = HOSTS[version].submit(**job)
    _, ours, _ = HOSTS[version].submit(tres_per_node="gres/mig:1g.10gb:1", **job)

    assert requests.from_stamp(plain["comment"]) is requests.from_stamp(plain["extra"]) is None
    assert requests.from_stamp(ours["extra"]) is None
    assert str(requests.from_stamp(ours["comment"])) == "1g.10gb:1"


@given(
    st.sampled_from(lua_host.VERSIONS), st.text(st.sampled_from(" \t\n\r\x0bab=[]"), max_size=12)
)
def test_a_comment_comes_back_to_the_letter(version: str, own: str) -> None:
    """At submission, after an update by its user, and after a refusal's reason came and went."""
    host = HOSTS[version]
    _, job, _ = host.submit(tres_per_node="gres/mig:1g.10gb:1", comment=own)
    assert requests.without_stamp(job["comment"]) == own
    _, after, _ = host.modify(job, comment=own)
    assert requests.without_stamp(after["comment"]) == own
    _, told, _ = host.modify(job, comment=comment_with(job["comment"], "no room", 2))
    assert requests.without_stamp(told["comment"]).startswith(own)
    assert comment_with(told["comment"], "x") == comment_with(own, "x")


NAMES = st.sampled_from([*FLEET.names, "9g.90gb", "1", ""])
TOKENS = st.builds(
    lambda prefix, kind, name, count: f"{prefix}{kind}{name}{count}",
    st.sampled_from(["gres:", "gres/", ""]),
    st.sampled_from(["mig:", "mig", "mig=", "MIG:", "shard:", "gpu:", ""]),
    NAMES,
    st.sampled_from(["", ":1", ":2", ":7", ":0", ":99", "=1", ":1k", ":-1", "::1"]),
)


@given(st.sampled_from(lua_host.VERSIONS), st.lists(TOKENS, min_size=1, max_size=3).map(",".join))
def test_whatever_is_accepted_is_paid_for(version: str, text: str) -> None:
    """The stamp, the gres and the shards of an accepted job say the same, for any text."""
    code, job, _ = HOSTS[version].submit(tres_per_node=text)
    tres = job["tres_per_node"]
    if code != 0:
        assert tres == text
        return
    stamp = requests.from_stamp(job.get("comment", ""))
    if stamp is None:
        assert not re.search(r"(^|[:/=,])(mig|shard)([:=,]|$)", text.lower())
        return
    prefixed = tres if tres.startswith("gres") else f"gres/{tres}".replace(",", ",gres/")
    if isinstance(stamp, requests.Several):
        # With all shards of its GPUs; who packs them is tests/fleet/test_packing.py's.
        assert f"gpu:h100:{len(stamp.parts)}" in tres
        assert "shard" not in tres
        return
    assert str(requests.from_gres(prefixed)) == str(stamp)
    cost = sum(FLEET.names[str(item.profile)].weight * item.gpu_instances for item in stamp.items)
    assert cost == sum(item.shards or 0 for item in stamp.items)
    shards = [word for word in tres.split(",") if "shard:" in word]
    assert len(shards) == 1
    assert shards[0].endswith(f":{cost}")


# -- job_submit.lua: words that stand for a profile -----------------------------

ALIASES = {"small": "1g.10gb", "half": "3g.40gb"}
SITE = Fleet(FLEET.groups, ALIASES, ("a30",), compute_parts=("*",))
SITES = {version: lua_host.job_submit(version, SITE) for version in lua_host.VERSIONS}


@versions
@pytest.mark.parametrize(
    ("asked", "becomes"),
    [
        ("mig:small", "mig:1g.10gb:1,gres/shard:h100:4"),
        ("mig:half:2", "mig:3g.40gb:2,gres/shard:h100:28"),
        ("mig:small:2,gres/mig:half", "mig:1g.10gb:2,gres/mig:3g.40gb:1,gres/shard:h100:22"),
        # The smallest profile that has it, wherever in the fleet; of equals the smaller share.
        ("mig:1gb", "mig:1g.6gb:1,gres/shard:a30:1"),
        ("mig:10gb:2", "mig:1g.10gb:2,gres/shard:h100:8"),
        ("mig:11gb", "mig:2g.12gb:1,gres/shard:a30:2"),
        ("mig:20gb", "mig:1g.20gb:1,gres/shard:h100:7"),
        ("mig:40gb", "mig:3g.40gb:1,gres/shard:h100:14"),
        ("mig:41gb", "mig:2g.48gb:1,gres/shard:rtx_pro_6000:2"),
        # Compute instances that share a GPU instance pay for it once.
        ("mig:1c.3g.40gb:1", "mig:1c.3g.40gb:1,gres/shard:h100:14"),
        ("mig:1c.3g.40gb:3", "mig:1c.3g.40gb:3,gres/shard:h100:14"),
        ("mig:1c.3g.40gb:4", "mig:1c.3g.40gb:4,gres/shard:h100:28"),
        ("mig:2c.7g.80gb:3", "mig:2c.7g.80gb:3,gres/shard:h100:31"),
    ],
)
def test_words_become_profiles(version: str, asked: str, becomes: str) -> None:
    """At submission, so that `scontrol show job` and accounting show what it is."""
    code, job, said = SITES[version].submit(tres_per_node=f"gres/{asked}")
    assert (code, said) == (0, "")
    assert job["tres_per_node"] == f"gres/{becomes}"


@versions
@pytest.mark.parametrize(
    ("job", "says"),
    [
        ({"tres_per_node": "gres/mig:large"}, "unknown MIG profile 'large'; known: 1g.10gb,"),
        ({"tres_per_node": "gres/mig:large"}, "small (1g.10gb), half (3g.40gb)"),
        ({"tres_per_node": "gres/mig:97gb"}, "no MIG profile has 97gb"),
        ({"tres_per_node": "gres/mig:0gb"}, "unknown MIG profile '0gb'"),
        ({"tres_per_node": "gres/mig:1c.3g.40gb:13"}, "write -N2 --gres=mig:1c.3g.40gb:7"),
        ({"tres_per_node": "gres/mig:5c.7g.80gb:1"}, "unknown MIG profile"),
        ({"tres_per_node": "gres/mig:small,gres/mig:1g.10gb"}, "named twice"),
        ({"tres_per_node": "gres/gpu:a30:1"}, "a30 GPUs are given out in slices only"),
        ({"tres_per_job": "gres/gpu:a30:1"}, "in slices only"),
        ({"tres_per_task": "gres/gpu:a30=1"}, "in slices only"),
    ],
)
def test_words_that_mean_nothing(version: str, job: dict[str, str], says: str) -> None:
    """The list of what there is, aliases included."""
    code, after, said = SITES[version].submit(**job)
    assert (code, says in said) == (-1, True), said
    assert after["shared"] == 65534


@versions
def test_whole_gpus_of_no_type_where_all_are_kept(version: str) -> None:
    """`*` keeps them all; without it only the named types."""
    every = lua_host.job_submit(version, Fleet(FLEET.groups, slices_only=("*",)))
    for job in ({"tres_per_node": "gres/gpu:1"}, {"tres_per_job": "gres/gpu:h100:2"}):
        assert every.submit(**job)[0] == -1
        assert SITES[version].submit(**job)[0] == 0
    assert every.modify({}, tres_per_node="gres/gpu:1")[0] == -1


PARTITIONS = {
    "shared": {"flag_default": 1, "max_share": 1},
    "whole": {"flag_default": 0, "max_share": 0},
}


@versions
@pytest.mark.parametrize(
    ("partition", "code"), [(None, 0), ("shared", 0), ("whole", -1), ("shared,whole", -1)]
)
def test_partitions_of_whole_nodes(version: str, partition: str | None, code: int) -> None:
    """A MIG job there would wait for ever; another job is none of ours."""
    asked = {"partition": partition} if partition else {}
    host = HOSTS[version]
    assert host.submit_to(PARTITIONS, tres_per_node="gres/mig:3g.40gb", **asked)[0] == code
    assert host.submit_to(PARTITIONS, tres_per_node="gres/gpu:1", **asked)[0] == 0
    if partition:
        assert host.modify_in(PARTITIONS, NEW, partition=partition)[0] == code
        assert host.modify_in(PARTITIONS, {}, partition=partition)[0] == 0


@versions
@pytest.mark.parametrize("gres", ["gres/mig:3g.40gb:1", "gres/gpu:1"])
def test_what_a_batch_job_inherits_from_a_step(version: str, gres: str) -> None:
    """Emptied, for slurmd leaves it in place; the rest of the environment is the user's."""
    inherited = {
        "SLURM_STEP_ID": "3",
        "SLURM_RESTART_COUNT": "1",
        "MINE": "x",
        "SLURM_STEP_GPUS": "",
    }
    _, job, _ = HOSTS[version].submit(tres_per_node=gres, script="x", environment=inherited)
    left = dict(job["environment"].items())
    assert left == inherited | {"SLURM_STEP_ID": "", "SLURM_RESTART_COUNT": ""}
    _, plain, _ = HOSTS[version].submit(script="x", environment=inherited)
    assert dict(plain["environment"].items()) == inherited


@versions
@pytest.mark.parametrize(
    ("fields", "had", "left"),
    [
        ({"tres_per_node": "gres/gpu:1g.10gb:2"}, None, "asked"),
        ({"tres_per_job": "gres/gpu:1g.10gb:2"}, "", "asked"),
        ({"tres_per_node": "gres/gpu:1g.10gb:2"}, "none", "none"),
        ({"tres_per_node": "gres/gpu:1g.10gb:2", "tres_bind": "gpu:single:1"}, None, None),
        ({"tres_per_node": "gres/gpu:1g.10gb:2", "tres_bind": "gpu:closest"}, None, "asked"),
        ({"tres_per_node": "gres/gpu:1g.10gb:2", "ntasks_per_tres": 1}, None, None),
        ({"tres_per_task": "gres/gpu:1g.10gb:1", "num_tasks": 2}, None, None),
        ({"tres_per_node": "gres/mig:1g.10gb:2"}, None, None),
        # Inherited from the job that this one was submitted from.
        ({"tres_per_node": "gres/mig:1g.10gb:2"}, "asked", ""),
        ({"tres_per_node": "gres/mig:1g.10gb:2"}, "none", "none"),
    ],
)
def test_tasks_are_bound_as_they_were_asked_for(
    version: str, fields: dict[str, object], had: str | None, left: str | None
) -> None:
    """Who asks in the words of GPUs has scripts that expect to see all; the user's word holds."""
    inherited = {"MINE": "x"} | ({} if had is None else {"SLURM_MIG_BIND": had})
    code, job, said = HOSTS[version].submit(**fields, script="x", environment=inherited)
    assert (code, said) == (0, "")
    assert job["environment"]["SLURM_MIG_BIND"] == left


@versions
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpu-bind": "single:1"}, "ALL,SLURM_MIG_PER_TASK=1"),
        ({"gpu-bind": "per_task:1", "export": "ALL,X=1"}, "ALL,X=1,SLURM_MIG_PER_TASK=1"),
        ({"gpu-bind": "closest"}, None),
        ({"gpu-bind": "single:1", "export": "NONE"}, "NONE"),
        ({"gpus-per-task": "1"}, "ALL,SLURM_MIG_PER_TASK=1"),
        ({"gpus-per-task": "1", "gpu-bind": "none"}, None),
        ({"gpus": "2"}, None),
    ],
)
def test_a_step_that_binds_where_the_job_does_not(
    monkeypatch: pytest.MonkeyPatch, version: str, options: dict[str, object], said: str | None
) -> None:
    """In a job in the words of GPUs its step tells TaskProlog that each task has its own."""
    job = {"SLURM_JOB_ID": "5", "SLURM_MIG_JOB": "5", "SLURM_MIG_PROFILES": "1g.10gb,1g.10gb"}
    for name, value in {**job, "SLURM_MIG_BIND": "asked"}.items():
        monkeypatch.setenv(name, value)
    host = lua_host.cli_filter(version, lua_host.fleet((H100,)))
    step = {"type": "srun", "ntasks": 2, **options}
    code, (after,), _ = host.call("slurm_cli_pre_submit", step)
    assert (code, after.get("export")) == (0, said)


@versions
@pytest.mark.parametrize(
    ("bind", "said"),
    [
        ("none", "ALL,SLURM_MIG_BIND=asked,SLURM_MIG_PER_TASK=0,SLURM_MIG_TASKS_PER_SLICE=0"),
        ("single:1", None),
    ],
)
def test_a_step_that_does_not_bind_where_the_job_does(
    monkeypatch: pytest.MonkeyPatch, version: str, bind: str, said: str | None
) -> None:
    """Its tasks see all, though the job asked for each; its user's own word would hold."""
    job = {"SLURM_JOB_ID": "5", "SLURM_MIG_JOB": "5", "SLURM_MIG_PROFILES": "1g.10gb,1g.10gb"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    host = lua_host.cli_filter(version, lua_host.fleet((H100,)))
    for users, variable, exported in (("", "", said), ("task", "", None), ("", bind, None)):
        monkeypatch.setenv("SLURM_MIG_BIND", users)
        monkeypatch.setenv("SLURM_GPU_BIND", variable)
        step = {"type": "srun", "ntasks": 2, "gpu-bind": bind}
        code, (after,), _ = host.call("slurm_cli_pre_submit", step)
        assert (code, after.get("export")) == (0, exported)


#: A machine on which srun is started again: what it would run, and how that would end.
STARTS = """
words, told, release = ...
io.popen = function()
  return { read = function() return "slurm-wlm " .. release end, close = function() end }
end
io.open = function()
  local text = table.concat(words, "\\0") .. "\\0"
  return { read = function() return text end, close = function() end }
end
os.execute = function(command)
  started = command
  return (table.unpack or unpack)(told)
end
os.exit = function(code) left = code; error("left") end
function left_with() return left end
"""


def started_again(
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    words: list[str],
    options: dict[str, object],
    environ: dict[str, str] | None = None,
    release: str = "22.05.8",
) -> tuple[str | None, int | None, int]:
    """What srun would start, the code it would end with, and what the filter returns."""
    for name, value in (environ or {}).items():
        monkeypatch.setenv(name, value)
    host = lua_host.cli_filter(version, lua_host.fleet((H100,)))
    told = [7 * 256] if version == "lua51" else [False, "exit", 7]
    host.lua.execute(STARTS, host.lua.table_from(words), host.lua.table_from(told), release)
    options = {"type": "srun", "nodes": "1", **options}
    code, _, _ = host.call("slurm_cli_pre_submit", options)
    lua = host.lua.globals()
    head, _, own = (lua.started or "").rpartition(" 'srun' ")
    variables = re.findall(r"'(SLURM_\w+=[^']*)' ", f"{head} ")
    command = " ".join([*variables, own]) if lua.started else None
    return command, lua.left_with(), code


@versions
@pytest.mark.parametrize(
    ("own", "options", "more"),
    [
        ("--cpus-per-gpu 2", {"cpus-per-gpu": 2}, "{own} '--cpus-per-task=4'"),
        ("--cpus-per-g=2", {"cpus-per-gpu": 2, "ntasks": 2}, "{own} '--cpus-per-task=2'"),
        ("--mem-per-gpu=3G", {"mem-per-gpu": "3G"}, "{own} '--mem=6G'"),
        (
            "--ntasks-per-gpu=2",
            {"ntasks-per-gpu": 2},
            "SLURM_MIG_TASKS_PER_SLICE=2 {own} '--ntasks=4'",
        ),
        ("--gpu-freq=low", {"gpu-freq": "low"}, "{own}"),
        # Before 23.11 a binding of Slurm's keeps tasks off the GPU of their shards.
        ("--gpu-bind=single:1", {"gpu-bind": "single:1"}, "{own}"),
        (
            "--gpu-b none",
            {"gpu-bind": "none"},
            "SLURM_MIG_BIND=asked SLURM_MIG_PER_TASK=0 SLURM_MIG_TASKS_PER_SLICE=0 {own}",
        ),
    ],
)
def test_srun_is_started_again_without_what_it_cannot_forget(
    monkeypatch: pytest.MonkeyPatch, version: str, own: str, options: dict[str, object], more: str
) -> None:
    """Its options for each GPU become those that need none; the program's words are its own."""
    program = ["sh", "-c", "it's", "--cpus-per-gpu=9"]
    words = ["srun", *own.split(), "--gpus=1g.10gb:2", "--", *program]
    argv = ["/bin/sh", *program[1:]]
    asked: dict[str, object] = {"gpus": "1g.10gb:2", "argv": argv, **options}
    started, left, _ = started_again(monkeypatch, version, words, asked)
    more = more.format(own="'--gpus=1g.10gb:2'")
    assert (started, left) == (f"{more} '--' 'sh' '-c' 'it'\\''s' '--cpus-per-gpu=9'", 7)


@versions
@pytest.mark.parametrize(
    ("release", "again"), [("22.05.8", True), ("23.02.1", True), ("24.11.5", False)]
)
def test_slices_for_each_task_before_23_11(
    monkeypatch: pytest.MonkeyPatch, version: str, release: str, again: bool
) -> None:
    """Asked for on each node; the option would keep tasks off the GPU of their shards."""
    words = ["srun", "-n2", "--gpus-per-task=1g.10gb:1", "x"]
    asked: dict[str, object] = {"gpus-per-task": "1g.10gb:1", "ntasks": 2, "argv": ["x"]}
    started, _, _ = started_again(monkeypatch, version, words, asked, release=release)
    gres = "mig:1g.10gb:2,shard:h100:8"
    expected = f"SLURM_MIG_PER_TASK=1 '-n2' '--gres={gres}' '--nodes=1' 'x'" if again else None
    assert started == expected


@versions
def test_a_step_of_all_keeps_what_its_job_says(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """What salloc leaves in its shell: a step of all slices has their CPUs and memory."""
    job = {
        "SLURM_JOB_ID": "5", "SLURM_MIG_JOB": "5", "SLURM_MIG_PROFILES": "1g.10gb,1g.10gb",
        "SLURM_CPUS_PER_GPU": "2", "SLURM_MEM_PER_GPU": "100",
    }  # fmt: skip
    options: dict[str, object] = {"cpus-per-gpu": "2", "mem-per-gpu": "100", "argv": ["x"]}
    started, _, _ = started_again(monkeypatch, version, ["srun", "x"], options, job)
    assert started == "'x'"
    one = {"gpus": "1", **options}
    started, _, _ = started_again(monkeypatch, version, ["srun", "-G1", "x"], one, job)
    assert started == "'-G1' '--cpus-per-task=2' '--mem=100' 'x'"


@versions
@pytest.mark.parametrize(
    "words", [["srun", "--cpus-per-gpu=2", "x", ":", "x"], ["srun", "x", "a"], []]
)
def test_srun_is_not_started_again_where_its_words_are_not_known(
    monkeypatch: pytest.MonkeyPatch, version: str, words: list[str]
) -> None:
    """Several components, or another's command line: refused with what to type."""
    options: dict[str, object] = {
        "gpus": "1g.10gb:2",
        "cpus-per-gpu": "2",
        "argv": ["x", "b"],
    }
    found = started_again(monkeypatch, version, words, options)
    assert found == (None, None, -1)


@versions
def test_an_environment_that_cannot_be_changed_is_logged(version: str) -> None:
    """The job is right without it: it goes on, and slurmctld's log has the reason."""
    code, _, said = HOSTS[version].submit(
        tres_per_node="gres/mig:1g.10gb:1", script="x", environment=5
    )
    assert (code, said) == (0, "")
    logged = list(HOSTS[version].lua.globals().slurm.logged.values())
    assert "inherited variables of a job stay: " in logged[-1]
    assert "environment" in logged[-1]


@versions
@pytest.mark.parametrize(
    "job",
    [
        {"tres_per_node": "gres/mig:" + "1" + "a" * 100_000 + ":x"},
        {"tres_per_node": "gres/mig:1g.10gb", "comment": "a" + " " * 200_000 + "x"},
        {"tres_per_node": "gres/mig:1g.10gb", "extra": " " * 200_000},
        {"tres_per_node": "gres/mig:1g.10gb", "comment": "slurm-mig=" * 20_000},
    ],
    ids=["gres", "comment", "blanks", "stamps"],
)
def test_long_texts_do_not_hold_up_slurmctld(version: str, job: dict[str, str]) -> None:
    """Linear they take a fraction of a second; a pattern that backtracks takes minutes."""
    before = time.process_time()
    HOSTS[version].submit(**job)
    assert time.process_time() - before < 10


# -- job_submit.lua: modification and errors ------------------------------------

OLD = {
    "tres_per_node": "gres:mig:1g.10gb:1,gres:shard:h100:4",
    "comment": "slurm-mig=1,1g.10gb/19/4:1",
}
#: From before an upgrade: the stamp stood in `extra` on releases that have it.
NEW = {
    "tres_per_node": "gres/mig:1g.10gb:1,gres/shard:h100:4",
    "extra": "slurm-mig=1,1g.10gb/19/4:1",
}


@versions
@pytest.mark.parametrize("record", [OLD, NEW])
@pytest.mark.parametrize(
    "change",
    [
        {"tres_per_node": "gres:mig:7g.80gb:1"},
        {"tres_per_node": "gres/mig:7g.80gb:1,gres/shard:h100:4"},
        {"tres_per_node": "gres:gpu:1"},
        {"tres_per_node": ""},
        {"tres_per_task": "gres/mig:7g.80gb=1"},
        {"tres_per_job": "gres:gpu:1"},
        {"shared": 0},
    ],
)
def test_a_mig_jobs_gres_cannot_be_changed(
    version: str, record: dict[str, str], change: dict[str, object]
) -> None:
    """Nobody holds a 7g on four shards."""
    assert HOSTS[version].modify(record, **change)[0] == -1


@versions
def test_nor_can_another_job_become_one(version: str) -> None:
    """An update would bring slices without shards."""
    assert HOSTS[version].modify({}, tres_per_node="gres:mig:7g.80gb:1")[0] == -1
    assert HOSTS[version].modify({}, tres_per_node="gres:shard:4")[0] == -1
    assert HOSTS[version].modify({}, tres_per_node="gres:gpu:1")[0] == 0


@versions
@pytest.mark.parametrize(("record", "field"), [(OLD, "comment"), (NEW, "extra")])
@pytest.mark.parametrize(
    "words", ["new words", "", "slurm-mig=1,7g.80gb/0/31:1", "a slurm-mig=x b"]
)
def test_the_stamp_stays_when_its_field_is_changed(
    version: str, record: dict[str, str], field: str, words: str
) -> None:
    """A user may change his words, never the stamp; the hook's own comment goes the same way."""
    code, after, _ = HOSTS[version].modify(record, **{field: words})

    assert code == 0
    assert str(requests.from_stamp(after[field])) == "1g.10gb:1"
    assert requests.without_stamp(after[field]) == requests.without_stamp(words)


@versions
def test_a_forged_stamp_on_another_job_is_stripped(version: str) -> None:
    """By update as by submission."""
    _, after, _ = HOSTS[version].modify(
        {}, comment="x slurm-mig=1,7g.80gb/0/31:1", extra="slurm-mig=1"
    )
    assert after == {"comment": "x", "extra": ""}


@versions
def test_other_changes_pass(version: str) -> None:
    """Time limit, name, the same gres again."""
    assert HOSTS[version].modify(OLD, time_limit=5, name="x")[:2] == (
        0,
        {"time_limit": 5, "name": "x"},
    )
    assert HOSTS[version].modify(OLD, tres_per_node=OLD["tres_per_node"])[0] == 0


@versions
def test_lua_errors_fail_closed_for_us_alone(version: str) -> None:
    """Before 26.05 Slurm lets a job through when the script fails: ours must not be."""
    text = slurm_files.lua(FLEET, "job_submit.lua").replace(
        "local function submit(job, partitions)",
        "local function submit(job, partitions)\n  error('boom')",
    )
    broken = lua_host.Host(version, text)

    code, _, said = broken.submit(tres_per_node="gres:mig:3g.40gb:1")
    assert (code, "internal error" in said) == (-1, True)
    assert broken.submit(comment="slurm-mig=1,3g.40gb/9/14:1")[0] == -1
    assert broken.submit(tres_per_node="gres:gpu:1")[0] == 0
    assert "boom" in " ".join(broken.lua.globals().slurm.logged.values())


@versions
def test_a_percent_sign_in_a_refusal(version: str) -> None:
    """log_user formats its text: what the user typed must not be a format."""
    code, _, said = HOSTS[version].submit(tres_per_node="gres:mig:%s%d%n:1")
    assert (code, "'%s%d%n'" in said) == (-1, True)


# -- cli_filter.lua ----------------------------------------------------------------


@versions
@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("mig:3g.40gb:1", "mig:3g.40gb:1,shard:h100:14"),
        ("mig:3g.40gb", "mig:3g.40gb:1,shard:h100:14"),
        ("gres:mig:1g.10gb:2", "gres:mig:1g.10gb:2,gres:shard:h100:8"),
        ("gres/mig:1g.6gb:1", "gres/mig:1g.6gb:1,gres/shard:a30:1"),
        (
            "mig:1g.10gb:1,mig:3g.40gb:1,tmpfs:5",
            "mig:1g.10gb:1,mig:3g.40gb:1,shard:h100:18,tmpfs:5",
        ),
        ("mig:3g.40gb:1,shard:h100:14", "mig:3g.40gb:1,shard:h100:14"),
        ("mig:9g.40gb:1", "mig:9g.40gb:1"),
        ("mig:1g.10gb:9", "mig:1g.10gb:9,gpu:h100:2"),
        ("gpu:h100:2,mig:1g.10gb:9", "gpu:h100:2,mig:1g.10gb:9"),
        ("mig:1g.10gb:99", "mig:1g.10gb:99"),
        ("mig", "mig"),
        ("gpu:1", "gpu:1"),
        ("none", "none"),
        ("mig:48gb", "mig:2g.48gb:1,shard:rtx_pro_6000:2"),
        ("mig:1c.3g.40gb:3", "mig:1c.3g.40gb:3,shard:h100:14"),
    ],
)
def test_the_client_adds_what_the_controller_would(version: str, typed: str, becomes: str) -> None:
    """A step needs its shards too; what cannot be priced is left to the controller's answer."""
    code, (options,), _ = FILTERS[version].call("slurm_cli_pre_submit", {"gres": typed})
    assert (code, options["gres"]) == (0, becomes)


@versions
def test_a_step_gets_the_price_of_its_part(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a job, so that several steps fit into one GPU instance's shards."""
    asked = {"gres": "mig:1c.3g.40gb:1", "type": "srun"}
    call = FILTERS[version].call
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert call("slurm_cli_pre_submit", asked)[1][0]["gres"].endswith(",shard:h100:4")
    two = asked | {"gres": "mig:1c.3g.40gb:2,mig:1g.10gb:1"}
    assert call("slurm_cli_pre_submit", two)[1][0]["gres"].endswith(",shard:h100:13")
    # A job submitted from inside a job pays for itself.
    job = asked | {"type": "sbatch"}
    assert call("slurm_cli_pre_submit", job)[1][0]["gres"].endswith(",shard:h100:14")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert call("slurm_cli_pre_submit", asked)[1][0]["gres"].endswith(",shard:h100:14")


@versions
def test_the_client_filter_never_stands_in_the_way(version: str) -> None:
    """No gres, no options at all: success."""
    assert FILTERS[version].call("slurm_cli_pre_submit", {})[0] == 0
    assert FILTERS[version].call("slurm_cli_setup_defaults", {})[0] == 0
    assert FILTERS[version].call("slurm_cli_post_submit")[0] == 0


@given(st.sampled_from(lua_host.VERSIONS), st.lists(TOKENS, min_size=1, max_size=3).map(",".join))
def test_controller_and_client_agree(version: str, text: str) -> None:
    """What the client filter added is accepted exactly when the bare request is."""
    _, (options,), _ = FILTERS[version].call("slurm_cli_pre_submit", {"gres": text})
    bare, _, _ = HOSTS[version].submit(tres_per_node=text)
    filtered, _, _ = HOSTS[version].submit(tres_per_node=options["gres"])
    assert bare == filtered


@versions
def test_a_model_and_profile_in_lua(version: str) -> None:
    """Its shards have the model's type, the stamp has the plain profile; the filter agrees."""
    fleet = lua_host.fleet((A100,), (H100,), (A100_40,))
    host, client = lua_host.job_submit(version, fleet), lua_host.cli_filter(version, fleet)

    for asked, becomes, stamp in (
        ("mig:a100_40gb_1g.10gb", "mig:a100_40gb_1g.10gb:1,{}shard:a100_40gb:7", "1g.10gb/15/7:1"),
        ("mig:h100_1g.10gb", "mig:1g.10gb:1,{}shard:h100:4", "1g.10gb/19/4:1"),
        ("mig:1g.10gb:2", "mig:1g.10gb:2,{}shard:8", "1g.10gb/19/4:2"),
    ):
        _, job, _ = host.submit(tres_per_node=f"gres/{asked}")
        assert job["tres_per_node"] == f"gres/{becomes.format('gres/')}"
        assert job["comment"] == f"slurm-mig=1,{stamp}"
        _, options, _ = client.call("slurm_cli_pre_submit", {"gres": asked, "type": "sbatch"})
        filtered = options[0]["gres"]
        assert filtered == becomes.format("")
        # What the client wrote passes, and stays on the model that was meant.
        code, again, _ = host.submit(tres_per_node="gres/" + filtered.replace(",", ",gres/"))
        assert (code, again) == (0, job)


@versions
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        # Two names of one thing, and two things that no GPU has.
        ("gres/mig:h100_1g.10gb,gres/mig:1g.10gb", "named twice"),
        ("gres/mig:h100_1g.10gb,gres/mig:a100_80gb_3g.40gb", "different GPU models"),
        # Shards of a type that does not have it, and fewer than it costs.
        ("gres/mig:1g.10gb:1,gres/shard:a100_40gb:4", "leave 'shard:a100_40gb:4' out"),
        ("gres/mig:1g.10gb:1,gres/shard:h100:3", "leave 'shard:h100:3' out"),
        ("gres/mig:h100_1g.10gb:1,gres/shard:a100_80gb:4", "leave 'shard:a100_80gb:4' out"),
        ("gres/mig:h100_1g.10gb:1,gres/shard:4", "leave 'shard:4' out"),
    ],
)
def test_a_word_for_a_model_pays_no_less(version: str, asked: str, says: str) -> None:
    """Neither with another model's shards nor with fewer."""
    host = lua_host.job_submit(version, lua_host.fleet((A100,), (H100,), (A100_40,)))
    code, _, said = host.submit(tres_per_node=asked)
    assert (code, says in said) == (-1, True), said
