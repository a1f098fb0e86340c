"""No way around the accounting: what an unprivileged user tries, and what he holds then."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import ALICE, BOB, Site
from tests.kit.cluster_jobs import SHOW, replace_script, seen, unfiltered

if TYPE_CHECKING:
    from collections.abc import Callable

FORGED = "slurm-mig=1,7g.80gb/0/4:1"
PAID = ["1g.10gb@6"]


def attempt(site: Site, *command: str, environ: dict[str, str] | None = None) -> str:
    """Run a command as a user that may be refused; returns what it said."""
    script = "#!/bin/sh\nsleep 300\n"
    done = site.cluster.try_run(*command, uid=ALICE, timeout=60, stdin=script, **(environ or {}))
    return done.stdout + done.stderr


def requeued(site: Site, job: int) -> bool:
    """Whether Slurm took the user's requeue."""
    done = site.cluster.try_run("scontrol", "requeue", str(job), uid=ALICE)
    return done.returncode == 0


def runs_with_what_is_paid(site: Site, job: int) -> None:
    """A job of one 1g runs, twice, with one 1g and its four shards."""
    site.run("scontrol", "release", str(job))
    for restart in range(2):
        site.until(lambda: site.state(job) == "RUNNING", f"run {restart}", 90)
        site.until(lambda: site.made() == PAID, "the slice that was paid for")
        assert site.show(job, "TresPerNode").replace("/", ":") == (
            "gres:mig:1g.10gb:1,gres:shard:h100:4"
        )
        if restart == 0:
            # Slurm refuses it while the Prolog still runs.
            site.until(lambda: requeued(site, job), "the requeue")
            site.wait(job, "PENDING")
            # Past the credential's life: 22.05 restarts sooner ones without a Prolog.
            site.run("scontrol", "update", f"jobid={job}", "starttime=now+10", uid=ALICE)


# -- counting ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gres",
    [
        "mig:1g.10gb:0",
        "mig:1g.10gb:-1",
        "mig:1g.10gb:99999999999",
        "mig:1g.10gb:4294967297",
        "mig:1g.10gb:1k",
        "mig:1g.10gb:1M",
        "mig:1g.10gb=1k",
        "mig:1g.10gb:1.5",
        "mig:1g.10gb:0x1",
        "mig:7g.80gb:1,shard:h100:1",
        "mig:7g.80gb:1,shard:h100:31,shard:h100:1",
        "mig:7g.80gb:1,shard:31",
        "mig:7g.80gb:1,SHARD:1",
        "shard:1",
        "shard:h100:31",
        "Mig:7g.80gb:1",
        "mig:1",
        "mig",
        "mig:",
        "mig::1",
        "gpu:1,mig:1g.10gb:1",
        "mig:1g.10gb:1,gpu:h100:1",
        "mig:1g.10gb:1,mig:7g.80gb:2",
        # Slices that one GPU does not hold are paid with all of the GPUs, not more, not fewer.
        "gpu:h100:2,mig:3g.40gb:1",
        "gpu:h100:1,mig:3g.40gb:3",
        "gpu:2,mig:3g.40gb:3",
        "gpu:h100:2,gpu:h100:2,mig:3g.40gb:3",
        "mig:3g.40gb:3,shard:h100:42",
        "mig:3g.40gb:3,shard:h100:1",
        "gpu:h100:2,mig:3g.40gb:3,shard:h100:1",
        "gpu:a30:2,mig:3g.40gb:3",
        "gpu:mig:1",
        "gres:mig:7g.80gb:1,shard:h100:1",
    ],
)
def test_counts_and_spellings(site: Site, gres: str) -> None:
    """Refused at once by the controller or by Slurm's own client; nothing is queued."""
    for environ in ({}, {"SLURM_CONF": unfiltered(site)}):
        said = attempt(site, "sbatch", f"--gres={gres}", environ=environ)
        assert "Submitted" not in said, said
    assert site.run("squeue", "-h").strip() == ""


@pytest.mark.parametrize(
    "option",
    [
        "--gpus=mig:1",
        "--gpus=mig:7g.80gb:1",
        "--gpus-per-node=mig:1",
        "--gpus-per-task=mig:1",
        "--gpus-per-socket=mig:1",
        "--tres-per-task=gres/shard=1",
    ],
)
def test_counts_in_other_places(site: Site, option: str) -> None:
    """Per job, task or socket: Slurm takes some of these and allocates nothing."""
    assert "Submitted" not in attempt(site, "sbatch", option, "-n1", "--sockets-per-node=1")
    assert site.run("squeue", "-h").strip() == ""


# -- stamps --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    [
        f"--comment={FORGED}",
        f"--comment=a\n{FORGED}\tb",
        f"--comment=slurm-mig=slurm-mig=1,x {FORGED}",
        f"--extra={FORGED}",
        f"--job-name={FORGED}",
        f"--wckey={FORGED}",
        f"--mcs-label={FORGED}",
        f"--admin-comment={FORGED}",
        f"--network={FORGED}",
        f"--thread-spec=0 {FORGED}",
    ],
)
def test_forged_at_submission(site: Site, forged: str) -> None:
    """In every field that a user can fill: refused, or worth nothing."""
    said = attempt(site, "sbatch", "--parsable", "--hold", forged, "--gres=mig:1g.10gb:1")
    jobs = site.run("squeue", "-h", "-o", "%A").split()
    if jobs:
        runs_with_what_is_paid(site, int(jobs[0]))
    else:
        assert not said.strip().isdigit()


def test_forged_in_the_environment(site: Site) -> None:
    """What a client's environment says of fields and jobs; all of it goes along to the job.

    Not by `--export=ALL,NAME=...`: from 25.11 on Slurm wants a login shell of the user for that.
    """
    environ = {
        "SLURM_JOB_COMMENT": FORGED,
        "SBATCH_COMMENT": FORGED,
        "SLURM_JOB_EXTRA": FORGED,
        "SLURM_COMMENT": FORGED,
        "SLURM_JOB_GPUS": "0,1",
        "SLURM_RESTART_COUNT": "7",
    }
    asked = ("sbatch", "--parsable", "--hold", "--gres=mig:1g.10gb:1")
    said = attempt(site, *asked, environ=environ)
    runs_with_what_is_paid(site, int(said.split()[-1]))


def test_forged_without_slices(site: Site) -> None:
    """A whole-GPU job and a job without GPU stay what they are."""
    for options in (["--gres=gpu:h100:1"], []):
        said = attempt(site, "sbatch", "--parsable", f"--comment={FORGED}", *options, "-w", "n1")
        job = int(said.split()[-1])
        site.wait(job, "RUNNING")
        assert "slurm-mig" not in site.show(job, "Comment")
        assert site.made() == []
        site.settle()


@pytest.mark.parametrize("option", ["--account", "--comment", "--job-name", "--wckey"])
def test_bytes_that_are_no_text(site: Site, option: str) -> None:
    """Neither a drain nor a job that is lost."""
    text = site.cluster.run(
        "/bin/sh", "-c",
        f"exec sbatch --parsable {option}=$(printf '\\377\\376') --gres=mig:1g.10gb:1 --wrap=true",
        uid=ALICE,
    )  # fmt: skip
    job = int(text)
    site.wait(job, "COMPLETED")
    assert site.record(job).uuids
    assert site.in_service()


# -- updates -------------------------------------------------------------------------

UPDATES = [
    "gres=mig:7g.80gb:1",
    "gres=mig:7g.80gb:1,shard:h100:31",
    "gres=mig:1g.10gb:2",
    "gres=mig:1g.10gb:1k",
    "gres=mig:1g.10gb:-1",
    "gres=mig:1g.10gb:99999999999",
    "gres=mig:small:7",
    "gres=mig:80gb",
    "gres=shard:h100:1",
    "gres=gpu:1",
    "gres=gpu:h100:1",
    "gres=none",
    "gres=",
    "TresPerNode=gres:mig:7g.80gb:1",
    "TresPerNode=gres/mig:7g.80gb:1",
    "TresPerJob=gres:gpu:1",
    "TresPerTask=gres:gpu:1",
    "TresPerTask=gres/mig:7g.80gb=1",
    "TresPerSocket=gres:gpu:1",
    "CpusPerTres=gres:gpu:2",
    "CpusPerTres=gres/mig:2",
    "CpusPerTres=gres:mig:2",
    "MemPerTres=gres:gpu:100",
    "MemPerTres=gres/mig:1",
    "NtasksPerTRES=1",
    "TresBind=gres:gpu:single:1",
    "TresFreq=gpu:high",
    "GpusPerNode=1",
    f"comment={FORGED}",
    "comment=slurm-mig=1,7g.80gb/0/31:1 slurm-mig=1,1g.10gb/19/4:1",
    "comment=",
    f"extra={FORGED}",
    f"admincomment={FORGED}",
    f"name={FORGED}",
    f"wckey={FORGED}",
    "features=h100",
    "oversubscribe=no",
    "oversubscribe=exclusive",
    "shared=no",
    "numtasks=8",
    "numcpus=8",
    "sluid=0",
]  # fmt: skip


@pytest.mark.parametrize("first", [0, 1], ids=["pending", "running"])
def test_updates_by_the_user(site: Site, first: int) -> None:
    """All of them on one job, before its first and before its second run."""
    said = attempt(site, "sbatch", "--parsable", "--hold", "--gres=mig:1g.10gb:1")
    job = int(said.split()[-1])
    if first == 1:
        site.run("scontrol", "release", str(job))
        site.wait(job, "RUNNING")
    for change in UPDATES:
        attempt(site, "scontrol", "update", f"jobid={job}", change)
        gres = site.show(job, "TresPerNode").replace("/", ":")
        assert gres == "gres:mig:1g.10gb:1,gres:shard:h100:4", change
    runs_with_what_is_paid(site, job)


@pytest.mark.parametrize("change", [change for change in UPDATES if "mig" in change])
def test_an_ordinary_job_gets_no_slices_by_update(site: Site, change: str) -> None:
    """Neither refused updates nor accepted ones make it hold any."""
    job = int(attempt(site, "sbatch", "--parsable", "--hold").split()[-1])
    attempt(site, "scontrol", "update", f"jobid={job}", change)
    assert "mig" not in site.show(job, "TresPerNode")
    site.run("scontrol", "release", str(job))
    site.wait(job, "RUNNING")
    assert site.made() == []


@pytest.mark.parametrize("asked", ["--gres=mig:1g.10gb:1", "--gpus=1g.10gb:1"])
def test_updates_of_array_tasks(site: Site, asked: str) -> None:
    """One task of an array is changed apart from the others."""
    said = attempt(site, "sbatch", "--parsable", "--hold", "--array=0-2", asked)
    array = said.split()[-1]
    for change in (f"comment={FORGED}", "gres=mig:7g.80gb:1"):
        attempt(site, "scontrol", "update", f"jobid={array}_1", change)
    site.run("scontrol", "release", array)
    site.until(lambda: len(site.made()) == 3, "three slices")
    assert {name.split("@")[0] for name in site.made()} == {"1g.10gb"}


def test_components_of_a_het_job(site: Site) -> None:
    """Each is stamped by itself, whatever its user wrote there."""
    forged = f"--comment={FORGED}"
    said = attempt(
        site, "sbatch", "--parsable", forged, "--gpus=1g.10gb:1", ":",
        forged, "--gres=gpu:a30_1g.6gb:1",
    )  # fmt: skip
    leader = int(said.split()[-1])
    site.wait(leader, "RUNNING")
    site.until(lambda: site.made() + site.made("n2", 1) == [*PAID, "1g.6gb@3"], "both slices")
    for component, stamp in ((leader, "1g.10gb/19/4:1"), (leader + 1, "1g.6gb/14/1:1")):
        assert site.show(component, "Comment").strip() == f"slurm-mig=1,{stamp}"


# -- slices on several GPUs ----------------------------------------------------------------

FORGED_SEVERAL = "slurm-mig=2,7g.80gb/0/31:1;7g.80gb/0/31:1"


def parts(site: Site) -> list[list[str]]:
    return [[name.partition("@")[0] for name in site.made(gpu=gpu)] for gpu in range(2)]


@pytest.mark.parametrize("by", ["filter", "plain"])
def test_updates_of_slices_on_several_gpus(site: Site, by: str) -> None:
    """Its user changes nothing of what it pays or gets; with cli_filter.lua and without."""
    environ = {} if by == "filter" else {"SLURM_CONF": unfiltered(site)}
    said = attempt(
        site, "sbatch", "--parsable", "--hold", f"--comment={FORGED_SEVERAL}",
        "--gres=mig:3g.40gb:3", environ=environ,
    )  # fmt: skip
    job = int(said.split()[-1])
    paid = {"gpu:h100:2", "mig:3g.40gb:3"}
    changes = [
        "gres=gpu:h100:1,mig:3g.40gb:3", "gres=mig:3g.40gb:3", "gres=gpu:h100:2",
        "gres=gpu:h100:2,mig:7g.80gb:2", "gres=gpu:h100:2,mig:3g.40gb:4", "GpusPerNode=1",
        f"comment={FORGED_SEVERAL}", f"extra={FORGED_SEVERAL}", f"comment={FORGED}", "comment=",
    ]  # fmt: skip
    # CPUs and memory for each of many slices may be more than a node has: 24.11 never starts it.
    for change in (*changes, *(other for other in UPDATES if "PerTres=" not in other)):
        attempt(site, "scontrol", "update", f"jobid={job}", change)
        held = site.show(job, "TresPerNode").replace("/", ":").split(",")
        assert {word.removeprefix("gres:") for word in held} == paid, change
    site.run("scontrol", "release", str(job))
    site.until(lambda: parts(site) == [["3g.40gb"] * 2, ["3g.40gb"]], "what was paid for", 90)


def test_a_stamp_of_several_gpus_is_nobodys(site: Site) -> None:
    """On a slice of one GPU and on whole GPUs: they stay what they are."""
    forged = f"--comment={FORGED_SEVERAL}"
    said = attempt(site, "sbatch", "--parsable", "--hold", forged, "--gres=mig:1g.10gb:1")
    runs_with_what_is_paid(site, int(said.split()[-1]))
    site.settle()
    said = attempt(site, "sbatch", "--parsable", forged, "--gres=gpu:h100:2", "-w", "n1")
    site.wait(int(said.split()[-1]), "RUNNING")
    assert parts(site) == [[], []]


def test_steps_of_several_gpus_that_ask_for_more(site: Site) -> None:
    """Whatever a step says, it sees its job's slices or none."""
    steps = [
        "--gres=gpu:2,mig:7g.80gb:2", "--gres=gpu:1,mig:3g.40gb:3", "--gres=gpu:2",
        "--gres=mig:3g.40gb:9", "--gres=shard:h100:31", "--gres=none",
        "--export=ALL,SLURM_STEP_GPUS=0,SLURM_MIG_PARTS=7g.80gb:9", "--gpus=2",
    ]  # fmt: skip
    script = "".join(f"timeout 20 srun -n1 {step} sh -c '{SHOW}'\n" for step in steps)
    job = site.sbatch("--gres=mig:3g.40gb:3", script=f"{script}true")
    site.wait(job, "COMPLETED", seconds=200)
    held = {uuid for r in site.records() if r.owner.job_id == job for uuid in r.uuids}
    told = seen(site.output(job))
    shown = {word for line in told for text in line[1:] for word in text.split(",")}
    assert {word for word in shown if word.startswith("MIG")} <= held
    assert not shown & {"0", "1", "7g.80gb"}
    assert held <= shown


# -- steps ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "--gres=mig:7g.80gb:1",
        "--gres=mig:1g.10gb:2",
        "--gres=shard:h100:31",
        "--gres=mig:1g.10gb:1,shard:h100:31",
        "--gpus=1",
        "--gres=gpu:1",
        "--export=ALL,SLURM_SHARDS_ON_NODE=31,SLURM_STEP_GPUS=1,SLURM_JOB_GPUS=1",
        "--export=ALL,CUDA_VISIBLE_DEVICES=0",
        "--gres=none",
    ],
)
def test_steps_that_ask_for_more(site: Site, option: str) -> None:
    """Slurm refuses the step, or it sees what the job has."""
    job = site.sbatch("--gres=mig:1g.10gb:1", script=f"srun {option} /bin/sh -c '{SHOW}'; true")
    site.wait(job, "COMPLETED")
    told = seen(site.output(job))
    assert [line[1] for line in told if line[1:]] in ([], list(site.record(job).uuids))


def test_anothers_job_by_name(site: Site) -> None:
    """A step or task that says it is another's: it sees nothing of that one's."""
    theirs = site.sbatch("--gres=mig:3g.40gb:1", uid=BOB)
    site.wait(theirs, "RUNNING")
    site.until(site.made, "the slice")
    site.until(lambda: site.record(theirs).uuids, "its UUID")
    (uuid,) = site.record(theirs).uuids
    script = (
        f"srun --jobid={theirs} --overlap /bin/sh -c '{SHOW}'\n"
        f"srun --export=ALL,SLURM_JOB_ID={theirs},SLURM_JOBID={theirs} /bin/sh -c '{SHOW}'\n"
        f"SLURM_JOB_ID={theirs} $TASK_PROLOG\n"
    )
    hook = site.cluster.root / "hooks/task_prolog"
    job = site.sbatch("--gres=mig:1g.10gb:1", script=f"TASK_PROLOG={hook}\n{script}")
    site.wait(job, "COMPLETED", "FAILED")
    assert uuid not in site.output(job)


# -- forms of static MIG ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--gres=gpu:1g.10gb:1"],
        ["--gpus=h100_1g.10gb:1"],
        ["--gpus-per-task=1g.10gb:1", "-n1"],
    ],
)
def test_bridged_forms_are_paid_without_the_clients_help(site: Site, options: list[str]) -> None:
    """job_submit.lua alone is enough; and what runs cannot be made more by an update."""
    environ = {"SLURM_CONF": unfiltered(site)}
    said = attempt(site, "sbatch", "--parsable", "--hold", *options, environ=environ)
    job = int(said.split()[-1])
    for change in ("gres=gpu:7g.80gb:1", "TresPerJob=gres:gpu:7g.80gb:1", "gres=gpu:h100_3g.40gb"):
        attempt(site, "scontrol", "update", f"jobid={job}", change)
    runs_with_what_is_paid(site, job)


@pytest.mark.parametrize(
    ("taken", "options"),
    [
        (False, {"gres": "mig:7g.80gb:1,shard:h100:4"}),
        (False, {"gres": "gpu:1g.10gb:1,shard:h100:1"}),
        (False, {"gres": "gpu:h100:2,mig:3g.40gb:2", "comment": FORGED_SEVERAL}),
        (True, {"gres": "mig:1g.10gb:1,shard:h100:4", "comment": FORGED}),
        (True, {"gres": "mig:1g.10gb:1", "comment": FORGED_SEVERAL, "job-name": FORGED}),
        (True, {"gpus": "1g.10gb:1", "comment": f"{FORGED} {FORGED_SEVERAL}"}),
    ],
)
def test_a_client_filter_of_the_users_own(site: Site, taken: bool, options: dict[str, str]) -> None:
    """It writes what ours would, and worse: the controller takes what is paid, or nothing."""
    mine = Path(unfiltered(site)).parent
    sets = "".join(f'options["{name}"] = "{value}"; ' for name, value in options.items())
    (mine / "cli_filter.lua").write_text(
        f"function slurm_cli_pre_submit(options, offset) {sets}return slurm.SUCCESS end\n"
        "function slurm_cli_setup_defaults() return slurm.SUCCESS end\n"
        "function slurm_cli_post_submit() return slurm.SUCCESS end\n"
    )
    config = mine / "slurm.conf"
    config.write_text(f"{config.read_text()}CliFilterPlugins=cli_filter/lua\n")
    said = attempt(site, "sbatch", "--parsable", environ={"SLURM_CONF": str(config)})
    # Others read these files without a filter.
    (mine / "cli_filter.lua").unlink()
    jobs = site.run("squeue", "-h", "-o", "%A").split()
    assert (len(jobs) == 1) is taken, said
    for job in jobs:
        assert site.show(job, "TresPerNode").replace("/", ":") == (
            "gres:mig:1g.10gb:1,gres:shard:h100:4"
        )
        site.until(lambda: site.made() == PAID, "the slice that was paid for")


@pytest.mark.parametrize("gres", ["gpu:7g.80gb:1,shard:h100:1", "gpu:1g.10gb:1k", "gpu:1g.10gb:-1"])
def test_bridged_forms_that_count_otherwise(site: Site, gres: str) -> None:
    """Refused, with and without cli_filter.lua."""
    for environ in ({}, {"SLURM_CONF": unfiltered(site)}):
        assert "Submitted" not in attempt(site, "sbatch", f"--gres={gres}", environ=environ)
    assert site.run("squeue", "-h").strip() == ""


# -- a script that fails ----------------------------------------------------------------


def test_lua_errors_fail_closed(build: Callable[..., Site]) -> None:
    """A run-time error refuses MIG requests and lets other jobs pass."""
    site = build()
    waiting = int(
        attempt(site, "sbatch", "--parsable", "--hold", "--gres=mig:1g.10gb:1").split()[-1]
    )
    script = site.cluster.conf / "job_submit.lua"
    text = script.read_text()
    replace_script(
        site, re.sub(r"(local function (apply|modify)\(.*\)\n)", r"\1  error('x')\n", text)
    )
    for asked in ("--gres=mig:1g.10gb:1", "--gres=shard:1"):
        assert "internal error" in attempt(site, "sbatch", asked)
    forged = attempt(site, "sbatch", "--parsable", "--hold", f"--comment={FORGED}").split()[-1]
    assert "slurm-mig" not in site.show(forged, "Comment")
    plain = attempt(site, "sbatch", "--parsable", "--gres=gpu:1").split()[-1]
    attempt(site, "scontrol", "update", f"jobid={waiting}", "gres=mig:7g.80gb:1")
    attempt(site, "scontrol", "update", f"jobid={waiting}", f"comment={FORGED}")
    assert "7g" not in site.show(waiting, "TresPerNode")
    site.wait(int(plain), "RUNNING")
    site.run("scontrol", "release", str(waiting))
    site.until(lambda: "1g.10gb@6" in site.made() + site.made("n1", 1), "what was paid")
    site.settle()
    site.check_clean()


def test_a_script_that_cannot_be_read(build: Callable[..., Site]) -> None:
    """Broken while slurmctld runs: the last good one stays in force."""
    site = build()
    replace_script(site, "this is not Lua\n")
    assert "shards are counted" in attempt(site, "sbatch", "--gres=shard:1")
    job = site.sbatch("--gres=mig:1g.10gb:1")
    site.wait(job, "RUNNING")
    assert "shard:h100:4" in site.show(job, "TresPerNode")
    site.settle()


def test_a_partition_of_whole_nodes(build: Callable[..., Site]) -> None:
    """Told at once instead of waiting for ever; by update, too."""
    site = build(slurm_conf="PartitionName=whole Nodes=ALL OverSubscribe=EXCLUSIVE\n")
    said = attempt(site, "sbatch", "-p", "whole", "--gres=mig:1g.10gb:1")
    assert "partition whole gives out whole nodes" in said
    job = attempt(site, "sbatch", "--parsable", "--hold", "--gres=mig:1g.10gb:1").split()[-1]
    attempt(site, "scontrol", "update", f"jobid={job}", "partition=whole")
    assert site.show(job, "Partition").split()[0] == "all"
    plain = attempt(site, "sbatch", "--parsable", "-p", "whole").split()[-1]
    site.wait(int(plain), "RUNNING")
    site.settle()
