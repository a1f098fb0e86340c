"""Every way to ask that users have: what each job, step and task saw."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import ALICE, BOB, Site, launch, running
from tests.kit.cluster_jobs import SHOW, seen, uuids
from tests.kit.gpus import A100, A100_40, H100

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.mig.allocation import Allocation

    Together = Callable[[list[str], list[str]], tuple[Allocation, list[list[str]]]]


def ran(site: Site, *options: str, script: str = SHOW) -> tuple[Allocation, list[list[str]]]:
    """A batch job that came to its end: its record, and what its tasks saw."""
    job = site.sbatch(*options, script=script)
    site.wait(job, "COMPLETED")
    return site.record(job), seen(site.output(job))


# -- words ---------------------------------------------------------------------------


def test_memory_instead_of_a_name(site: Site) -> None:
    """The smallest profile that has it; Slurm shows and accounts what it is."""
    job = site.sbatch("--gres=mig:20gb", script=SHOW)
    site.wait(job, "COMPLETED")
    assert "mig:1g.20gb:1" in site.show(job, "TresPerNode")
    assert seen(site.output(job))[0][2] == "1g.20gb"


def test_a_sites_alias(site: Site) -> None:
    """For sbatch, and for srun, whose step asks by the same word."""
    _, told = ran(site, "--gres=mig:small:2")
    assert told[0][2] == "1g.10gb,1g.10gb"
    text = site.run("srun", "--gres=mig:small", "/bin/sh", "-c", SHOW, uid=ALICE)
    assert seen(text)[0][2] == "1g.10gb"


def test_compute_instances_that_share_a_gpu_instance(site: Site) -> None:
    """Three MIG devices in one GPU instance, paid once, a task on each."""
    script = f"{SHOW}; srun -n3 /bin/sh -c '{SHOW}'"
    record, told = ran(site, "-n3", "--gres=mig:1c.3g.40gb:3", script=script)
    assert {item.gi_id for item in record.instances} == {record.instances[0].gi_id}
    assert sorted(line[1] for line in told) == sorted([*record.uuids, uuids(record)])


# -- binding and steps -----------------------------------------------------------------


def test_each_task_its_own(site: Site) -> None:
    """With as many slices as tasks; the batch script itself sees all."""
    script = f"{SHOW}; srun /bin/sh -c '{SHOW}'"
    record, told = ran(site, "-n2", "--gres=mig:1g.10gb:1,mig:3g.40gb:1", script=script)
    assert sorted(line[1] for line in told) == sorted([*record.uuids, uuids(record)])


@pytest.mark.parametrize(
    ("script", "each"),
    [
        ("srun -n2 --export=ALL,SLURM_MIG_BIND=none ./show", 2),
        ("export SLURM_MIG_BIND=none; srun -n2 ./show", 2),
        ("srun -n2 --export=NONE ./show", 1),
        ("srun -n1 ./show", 2),
        ("srun -n3 ./show", 2),
    ],
)
def test_binding_as_a_job_wants_it(site: Site, script: str, each: int) -> None:
    """Off for a job or a step; all slices where numbers differ."""
    show = site.cluster.work / "show"
    show.write_text(f"#!/bin/sh\n{SHOW}\n")
    show.chmod(0o755)
    _, told = ran(site, "-n3", "--gres=mig:1g.10gb:2", script=script)
    assert {len(line[1].split(",")) for line in told} == {each}


def test_an_unknown_binding(site: Site) -> None:
    """One line in the job's own output; the node stays."""
    job = site.sbatch("--gres=mig:1g.10gb:1", script="SLURM_MIG_BIND=both srun echo ran")
    site.wait(job, "COMPLETED", "FAILED")
    assert "SLURM_MIG_BIND is not task or none: both" in site.output(job)
    assert site.in_service()


WAITING = "while [ ! -e go ]; do sleep 0.1; done"


@pytest.fixture
def together(site: Site) -> Iterator[Together]:
    """Run steps of a batch job at the same time: each shows what it sees, then waits for all."""
    go = site.cluster.work / "go"
    go.unlink(missing_ok=True)
    step = site.cluster.work / "step"
    step.write_text(f"#!/bin/sh\nSLURM_PROCID=$1.$SLURM_PROCID\n{SHOW}\n{WAITING}\n")
    step.chmod(0o755)

    def run(options: list[str], steps: list[str]) -> tuple[Allocation, list[list[str]]]:
        script = "\n".join(f"srun {words} ./step {n} &" for n, words in enumerate(steps))
        job = site.sbatch(*options, script=f"{script}\nwait")
        tasks = sum(int(re.findall(r"-n(\d)", words)[0]) for words in steps)
        site.until(lambda: len(seen(site.output(job))) == tasks, f"{tasks} tasks")
        go.touch()
        site.wait(job, "COMPLETED")
        return site.record(job), seen(site.output(job))

    yield run
    go.unlink(missing_ok=True)


def test_exact_steps_side_by_side(together: Together) -> None:
    """Both have LOCALID 0; each leases a slice of its own."""
    steps = ["-n1 --exact --gres=mig:1g.10gb:1"] * 3
    record, told = together(["-n3", "--gres=mig:1g.10gb:3"], steps)
    assert sorted(line[1] for line in told) == sorted(record.uuids)


def test_steps_of_different_profiles(together: Together) -> None:
    """Two 1g cost what a 2g costs: each step still gets the profile it named."""
    steps = ["-n1 --exact --gres=mig:1g.10gb:2", "-n1 --exact --gres=mig:2g.20gb:1"]
    _, told = together(["-n2", "--gres=mig:1g.10gb:2,mig:2g.20gb:1"], steps)
    assert [line[2] for line in told] == ["1g.10gb,1g.10gb", "2g.20gb"]


def test_a_step_of_several_tasks_with_a_part(together: Together) -> None:
    """Its tasks share the lease, and each has its own of it."""
    steps = ["-n2 --exact --gres=mig:1g.10gb:2", "-n1 --exact --gres=mig:1g.10gb:1"]
    record, told = together(["-n3", "--gres=mig:1g.10gb:3"], steps)
    assert sorted(line[1] for line in told) == sorted(record.uuids)


def test_steps_in_one_gpu_instance(together: Together) -> None:
    """Compute instances of one GPU instance, a step each at the same time."""
    steps = ["-n1 --exact --gres=mig:1c.3g.40gb:1"] * 3
    record, told = together(["-n3", "--gres=mig:1c.3g.40gb:3"], steps)
    assert sorted(line[1] for line in told) == sorted(record.uuids)


def test_overlap(together: Together) -> None:
    """Steps that share the job's resources share its slices."""
    record, told = together(["--gres=mig:1g.10gb:2"], ["-n1 --overlap"] * 2)
    assert [line[1] for line in told] == [uuids(record)] * 2


def test_steps_one_after_the_other(site: Site) -> None:
    """A lease ends with its step: a long job of short steps never runs out."""
    step = f"srun -n1 --exact --gres=mig:1g.10gb:1 /bin/sh -c '{SHOW}'"
    record, told = ran(site, "--gres=mig:1g.10gb:2", script="\n".join([step] * 5))
    assert [line[1] for line in told] == [record.uuids[0]] * 5, "each takes the first free one"


def test_leases_are_gone_with_the_job(site: Site, together: Together) -> None:
    """They were in the run directory while it ran, and nothing stays there."""
    record, _ = together(["-n2", "--gres=mig:1g.10gb:2"], ["-n1 --exact --gres=mig:1g.10gb:1"] * 2)
    run = f"{record.owner.job_id}.0"
    leases = site.cluster.root / "nodes" / record.node / "run/leases"
    assert leases.is_dir()
    site.until(lambda: not (leases / run).exists(), "no leases")


# -- forms of jobs ---------------------------------------------------------------------


def test_a_dependency(site: Site) -> None:
    """The second carves after the first has let go."""
    first = site.sbatch("--gres=mig:7g.80gb:1", script="true")
    second = site.sbatch("--gres=mig:7g.80gb:1", f"--dependency=afterok:{first}", script=SHOW)
    site.wait(second, "COMPLETED")
    assert site.record(first).ended is not None
    assert (site.record(first).ended or 0) <= site.record(second).created


def test_a_heterogeneous_batch_job(site: Site) -> None:
    """Each component carves for itself; a step over both sees each node's own."""
    script = (
        "#SBATCH -w n1 --gres=mig:1g.10gb:1\n#SBATCH hetjob\n#SBATCH -w n2 --gres=mig:1g.6gb:2\n"
        f"{SHOW}\nsrun --het-group=0,1 /bin/sh -c '{SHOW}'"
    )
    job = site.sbatch(script=script)
    site.wait(job, "COMPLETED", seconds=90)
    names = sorted(line[2] for line in seen(site.output(job)))
    assert names == ["1g.10gb", "1g.10gb", "1g.6gb,1g.6gb"]


def test_suspend_and_resume(site: Site) -> None:
    """The slice stays the job's."""
    job = site.sbatch("--gres=mig:3g.40gb:1", script="sleep 300")
    site.until(site.made, "the slice")
    site.wait(job, "RUNNING")
    site.run("scontrol", "suspend", str(job))
    site.wait(job, "SUSPENDED")
    assert site.made() == ["3g.40gb@4"]
    site.run("scontrol", "resume", str(job))
    site.wait(job, "RUNNING")
    assert site.record(job).phase == phases.ACTIVE


@pytest.mark.parametrize("options", [["--requeue"], ["--no-requeue"]])
def test_a_requeue_by_an_administrator(site: Site, options: list[str]) -> None:
    """Its slices go with the first run; --no-requeue is Slurm's to refuse."""
    job = site.sbatch("--gres=mig:3g.40gb:1", *options, script="sleep 300")
    site.until(site.made, "the slice")
    site.wait(job, "RUNNING")
    done = site.cluster.try_run("scontrol", "requeue", str(job))
    if options == ["--requeue"]:
        site.wait(job, "PENDING")
        assert site.record(job).phase == phases.RELEASED
        assert site.made() == []
    else:
        assert done.returncode != 0
        assert site.state(job) == "RUNNING"


def test_a_time_limit(build: Callable[..., Site]) -> None:
    """TIMEOUT ends the job; its slices go."""
    site = build(slurm_conf="OverTimeLimit=0\n")
    job = site.sbatch("--gres=mig:3g.40gb:1", script="sleep 300")
    site.until(site.made, "the slice")
    # Slurm rounds --time up to a minute, and looks every 30 seconds or so.
    site.run("scontrol", "update", f"jobid={job}", "endtime=now+1")
    site.wait(job, "TIMEOUT")
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    site.check_clean()


def test_preemption(build: Callable[..., Site]) -> None:
    """A job of a higher partition takes the GPU; the lower one is requeued without its slice."""
    site = build(
        slurm_conf="PreemptType=preempt/partition_prio\nPreemptMode=REQUEUE\n"
        "PartitionName=high Nodes=ALL PriorityTier=10\n"
    )
    low = [site.sbatch("--gres=mig:7g.80gb:1", "--requeue") for _ in range(2)]
    for job in low:
        site.wait(job, "RUNNING")
    high = site.sbatch("--gres=mig:4g.40gb:1", "-p", "high", script=f"{SHOW}; sleep 300")
    site.until(lambda: seen(site.output(high)), "the higher one")
    states = sorted(site.state(job) for job in low)
    assert states == ["PENDING", "RUNNING"]
    assert site.record(high).phase == phases.ACTIVE
    site.settle()
    site.check_clean()


@pytest.mark.parametrize("phase", ["pending", "running"])
def test_a_cancel(site: Site, phase: str) -> None:
    """Before anything is made, or while it runs: nothing is left."""
    options = ["--hold"] if phase == "pending" else []
    job = site.sbatch("--gres=mig:3g.40gb:1", *options)
    if phase == "running":
        site.until(site.made, "the slice")
    site.run("scancel", str(job))
    site.wait(job, "CANCELLED")
    site.until(lambda: site.made() == [], "nothing")


def test_a_cancel_while_the_epilog_runs(build: Callable[..., Site]) -> None:
    """COMPLETING already: the Epilog goes on to its end."""
    site = build(SandboxNode("n1", ((H100, 1),), {"destroy-gi": 2000}))
    job = site.sbatch("--gres=mig:3g.40gb:1", script="true")
    site.until(lambda: "COMPLETING" in site.state(job), "the Epilog")
    site.cluster.try_run("scancel", str(job))
    site.until(lambda: site.record(job).phase == phases.RELEASED, "its end")
    site.check_clean()


# -- nodes and models --------------------------------------------------------------------


def test_several_nodes(build: Callable[..., Site]) -> None:
    """Each node carves its own share; tasks see the slices of their node."""
    site = build(SandboxNode("n1", ((H100, 1),)), SandboxNode("n2", ((H100, 2),)))
    job = site.sbatch(
        "-N2", "-n4", "--ntasks-per-node=2", "--gres=mig:1g.10gb:2",
        script=f"srun /bin/sh -c '{SHOW}'",
    )  # fmt: skip
    site.wait(job, "COMPLETED")
    held = [uuid for name in ("n1", "n2") for uuid in site.record(job, name).uuids]
    assert len(set(held)) == 4
    assert sorted(line[1] for line in seen(site.output(job))) == sorted(held)
    site.settle()
    site.check_clean()


@pytest.fixture(scope="module")
def mixed() -> Iterator[Site]:
    """A100-40GB, where 1g.10gb is the double-memory profile, beside A100-80GB."""
    nodes = (
        SandboxNode("n1", ((A100_40, 1), (A100, 1))),
        SandboxNode("n2", ((A100_40, 1),)),
        SandboxNode("n3", ((A100, 1),)),
    )
    with running(nodes) as cluster:
        yield Site(cluster)


@pytest.mark.parametrize(
    ("asked", "node", "gpu", "shards", "made"),
    [
        ("a100_40gb_1g.10gb", "n1", 0, "a100_40gb:7", "1g.10gb@6"),
        ("a100_80gb_1g.10gb", "n1", 1, "a100_80gb:4", "1g.10gb@6"),
        ("a100_40gb_1g.10gb", "n2", 0, "a100_40gb:7", "1g.10gb@6"),
        ("a100_80gb_1g.10gb", "n3", 0, "a100_80gb:4", "1g.10gb@6"),
        # The plain name is that of who comes first in the fleet.
        ("1g.10gb", "n2", 0, "a100_40gb:7", "1g.10gb@6"),
        ("3g.20gb", "n1", 0, "a100_40gb:14", "3g.20gb@4"),
        ("3g.40gb", "n1", 1, "a100_80gb:14", "3g.40gb@4"),
        ("10gb", "n1", 1, "a100_80gb:4", "1g.10gb@6"),
    ],
)
def test_one_name_on_two_models(
    mixed: Site, asked: str, node: str, gpu: int, shards: str, made: str
) -> None:
    """The name carries the model; the weight and the GPU are that model's."""
    job = mixed.sbatch(f"--gres=mig:{asked}", "-w", node, script=f"{SHOW}; sleep 300")
    mixed.until(lambda: seen(mixed.output(job)), "output")
    assert f"shard:{shards}" in mixed.show(job, "TresPerNode")
    assert mixed.made(node, gpu) == [made]
    mixed.settle()
    mixed.check_clean()


# -- whole GPUs ----------------------------------------------------------------------------


TOLD = 'echo "gpus $SLURM_PROCID ${CUDA_VISIBLE_DEVICES-unset} ${SLURM_MIG_PROFILES-none}"'


def told(text: str) -> list[str]:
    return sorted(line[5:] for line in text.splitlines() if line.startswith("gpus "))


@pytest.mark.parametrize(
    ("options", "each"),
    [
        (["--gres=gpu:1"], ["0 0 none"]),
        (["--gpus=2"], ["0 0,1 none"]),
        (["-n2", "--gpus-per-task=1"], ["0 0 none", "1 1 none"]),
        (["--gpus-per-node=h100:2"], ["0 0,1 none"]),
    ],
)
def test_whole_gpus_without_mig(site: Site, options: list[str], each: list[str]) -> None:
    """As Slurm sets them, MIG mode off for the time, and on again after."""
    text = site.run("srun", "-w", "n1", *options, "/bin/sh", "-c", TOLD, uid=ALICE)
    assert told(text) == each
    site.settle()
    assert [site.machine().board(gpu).mig_current for gpu in (0, 1)] == [True, True]


def test_an_exclusive_job_is_no_way_to_a_mig_gpu(site: Site) -> None:
    """It gets the node with all its GPUs: MIG mode is off on all of them meanwhile."""
    job = site.sbatch("--exclusive", "-w", "n1", script=f"{TOLD}; sleep 300")
    site.until(lambda: told(site.output(job)), "output")
    assert [site.machine().board(gpu).mig_current for gpu in (0, 1)] == [False, False]
    site.run("scancel", str(job))
    site.settle()
    assert [site.machine().board(gpu).mig_current for gpu in (0, 1)] == [True, True]


@pytest.mark.parametrize(
    ("options", "each"),
    [
        (["--gpus=1"], ["0 1 7g.40gb"]),
        (["--gres=gpu:2"], ["0 2 7g.40gb,7g.80gb"]),
        (["-n2", "--gpus-per-task=1"], ["0 1 7g.40gb", "1 1 7g.80gb"]),
    ],
)
def test_whole_gpus_that_stay_in_mig_mode(mixed: Site, options: list[str], each: list[str]) -> None:
    """Ampere: one instance of the largest profile stands for each GPU."""
    text = mixed.run("srun", "-w", "n1", *options, "/bin/sh", "-c", TOLD, uid=ALICE)
    counted = [
        f"{rank} {len(re.findall('MIG-', devices))} {profiles}"
        for rank, devices, profiles in (line.split() for line in told(text))
    ]
    assert counted == each
    mixed.settle()
    mixed.check_clean()


def test_a_reset_where_the_site_allows_it(build: Callable[..., Site]) -> None:
    """Ampere out of MIG mode for a whole-GPU job, and back."""
    site = build(
        SandboxNode("n1", ((A100, 1),)), config='[whole_gpus]\npolicy = "mig-off"\nreset = true\n'
    )
    assert told(site.run("srun", "--gpus=1", "/bin/sh", "-c", TOLD, uid=ALICE)) == ["0 0 none"]
    site.settle()
    assert site.machine().board(0).mig_current is True
    job = site.sbatch("--gres=mig:3g.40gb:1", script=SHOW)
    site.wait(job, "COMPLETED")
    site.settle()
    site.check_clean()


def test_a_policy_of_refusal(build: Callable[..., Site]) -> None:
    """Batch jobs are held with the reason, interactive ones told; no node drains."""
    site = build(config='[whole_gpus]\npolicy = "reject"\n')
    job = site.sbatch("--gpus=1", script="echo ran")
    site.until(lambda: "slices only" in site.show(job, "Comment"), "the refusal")
    site.wait(job, "PENDING")
    assert site.output(job) == ""
    done = site.cluster.try_run("srun", "--gpus=1", "true", uid=ALICE)
    assert done.returncode != 0
    assert "slices only" in done.stderr
    assert site.in_service()
    site.settle()
    site.check_clean()


def test_a_cpu_job_from_inside_a_gpu_job(site: Site) -> None:
    """Inherits the environment, not the need for a GPU of its own."""
    # Slurm's own srun would take the outer job's --gpus from the environment.
    inner = "unset SLURM_GPUS; sbatch --parsable --wait -o inner.out --wrap='srun echo inner ran'"
    for options in (["--gpus=1"], ["--gres=mig:1g.10gb:1"]):
        out = site.cluster.work / "inner.out"
        out.unlink(missing_ok=True)
        job = site.sbatch(*options, "-w", "n1", script=inner)
        site.wait(job, "COMPLETED")
        assert out.read_text() == "inner ran\n"


INSIDE = "unset SLURM_GPUS; sbatch --parsable --wait -o inner.%j.out {options} {script}"


@pytest.mark.parametrize(
    ("outer", "inner", "sees"),
    [
        ("srun -n2 --exact ./chain", "--gres=mig:1g.10gb:2", "1g.10gb,1g.10gb"),
        ("SLURM_RESTART_COUNT=1 ./chain", "--gres=mig:1g.10gb:1", "1g.10gb"),
        ("SLURM_RESTART_COUNT=1 SLURM_STEP_ID=3 ./chain", "--gres=mig:1g.10gb", "1g.10gb"),
    ],
)
def test_jobs_that_submit_jobs(site: Site, outer: str, inner: str, sees: str) -> None:
    """From a step, or from a restarted job: the successor is a batch script's first run."""
    for old in site.cluster.work.glob("inner.*"):
        old.unlink()
    show = site.cluster.work / "show"
    show.write_text(f"#!/bin/sh\n{SHOW}\n")
    show.chmod(0o755)
    chain = site.cluster.work / "chain"
    asked = INSIDE.format(options=inner, script="./show")
    chain.write_text(f"#!/bin/sh\n[ ${{SLURM_PROCID:-0}} -gt 0 ] || {{ {asked}; }}\n")
    chain.chmod(0o755)
    job = site.sbatch("-n2", "--gres=mig:1g.10gb:1", script=outer)
    site.wait(job, "COMPLETED")
    texts = {path.name: path.read_text() for path in site.cluster.work.glob("inner.*")}
    assert [line[2] for text in texts.values() for line in seen(text)] == [sees], texts


# -- what users bring ------------------------------------------------------------------------


def test_containers(build: Callable[..., Site]) -> None:
    """The same UUIDs under the name that container runtimes read, when configured."""
    site = build(config="[tasks]\ncontainers = true\n")
    script = 'echo "both $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES"'
    text = site.run("srun", "--gres=mig:1g.10gb:2", "/bin/sh", "-c", script, uid=ALICE)
    _, ours, theirs = text.split()
    assert ours == theirs
    assert ours.count("MIG-") == 2


def test_nothing_of_the_users_is_lost(site: Site) -> None:
    """His own variables stay, ours come on top, with and without --export."""
    for options in ([], ["--export=ALL,MINE=kept"], ["--export=MINE=kept"]):
        done = site.cluster.try_run(
            "srun", *options, "--gres=mig:1g.10gb:1", "/bin/sh", "-c",
            'echo "$MINE ${CUDA_VISIBLE_DEVICES%%-*}"', uid=BOB, MINE="kept",
        )  # fmt: skip
        assert done.stdout == "kept MIG\n"


def test_salloc_shell_and_steps_of_parts(site: Site) -> None:
    """An allocation's steps lease like those of a batch job."""
    shell = launch(site, "salloc", "-n2", "--gres=mig:1g.10gb:2", "/bin/sh")
    line = f"srun -n1 --exact --gres=mig:1g.10gb:1 /bin/sh -c '{SHOW}; sleep 2'"
    out, err = shell.communicate(f"{line} &\n{line} &\nwait\n", timeout=60)
    assert shell.returncode == 0, err
    assert len({line[1] for line in seen(out)}) == 2
