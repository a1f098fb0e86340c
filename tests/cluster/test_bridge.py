"""What users of static MIG type, as jobs and as steps: each gets a slice carved for it."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.fleet.bridge import Bridge, Default
from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import ALICE, Site, launch, running
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Two sizes of GPU by partition and by feature, and words of a site's own.
WORDS = Bridge(
    words={"gpu:a100l.1": "1g.10gb", "mig_24gb": "1g.20gb", "h100-40g": "3g.40gb"},
    defaults=(
        Default(partitions=("mig",), slice="1g.10gb", cpus=3, memory=100),
        Default(partitions=("part",), slice="3g.40gb", cpus=4, by="share"),
        Default(features=("small",), slice="1g.20gb"),
    ),
    partitions=(("all", "mig", "part"), ("all",)),
)
PARTITIONS = "PartitionName=mig Nodes=n1\nPartitionName=part Nodes=n1\n"

#: What a task sees: its name, slices, and what programs count by.
SHOW = (
    'echo "saw $1 [$SLURM_MIG_PROFILES] $(echo "$CUDA_VISIBLE_DEVICES" | grep -o MIG- | wc -l)'
    ' ${SLURM_GPUS_ON_NODE-none} ${SLURM_CPUS_ON_NODE-none} ${SLURM_MEM_PER_NODE-none}"'
)


@pytest.fixture(scope="module")
def old() -> Iterator[Site]:
    """A site that had static MIG."""
    nodes = (SandboxNode("n1", ((H100, 2),)), SandboxNode("n2", ((H100, 1),)))
    with running(nodes, slurm_conf=PARTITIONS, bridge=WORDS) as cluster:
        config = cluster.conf / "slurm.conf"
        config.write_text(config.read_text().replace("CPUs=16 ", "CPUs=16 Features=small "))
        cluster.run("scontrol", "reconfigure")
        show = cluster.work / "show"
        show.write_text(f"#!/bin/sh\n{SHOW}\n")
        show.chmod(0o755)
        yield Site(cluster)


@pytest.fixture
def site(old: Site) -> Iterator[Site]:
    """The same, idle before and after."""
    yield old
    old.settle()
    old.check_clean()


def saw(text: str, who: str = "") -> list[str]:
    """What tasks printed, without their name where that is given."""
    found = (line[4:] for line in text.splitlines() if line.startswith("saw "))
    return sorted(line.removeprefix(f"{who} ") for line in found if line.startswith(who))


def ran(site: Site, *options: str, script: str = "./show batch; srun ./show step") -> str:
    """A batch job's output."""
    job = site.sbatch(*options, script=script)
    site.wait(job, "COMPLETED", "FAILED")
    return site.output(job)


def since(site: Site, *release: int) -> bool:
    words = site.run("sinfo", "--version").split()[1].split(".")
    return tuple(int(word) for word in words[:2]) >= release


# -- jobs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "batch", "step"),
    [
        ("--gres=gpu:1g.10gb:1", "[1g.10gb] 1 1 1 none", None),
        ("--gres=gpu:1g.10gb", "[1g.10gb] 1 1 1 none", None),
        ("--gres=gpu:1g.10gb=2", "[1g.10gb,1g.10gb] 2 2 1 none", None),
        ("--gres=gpu:h100_3g.40gb:1", "[3g.40gb] 1 1 1 none", None),
        ("--gres=gpu:nvidia_h100_80gb_hbm3_1g.10gb:1", "[1g.10gb] 1 1 1 none", None),
        ("--gres=gpu:3g.39gb:1", "[3g.40gb] 1 1 1 none", None),
        ("--gres=gpu:H100-1G.10GB", "[1g.10gb] 1 1 1 none", None),
        ("--gres=gpu:mig-1g.10gb:1", "[1g.10gb] 1 1 1 none", None),
        ("--gpus=h100_3g.40gb:1", "[3g.40gb] 1 1 1 none", None),
        ("-G h100_1g.10gb", "[1g.10gb] 1 1 1 none", None),
        ("--gpus-per-node=h100_1g.10gb:2", "[1g.10gb,1g.10gb] 2 2 1 none", None),
        ("--gpus-per-socket=1g.10gb:1 --sockets-per-node=1", "[1g.10gb] 1 1 1 none", None),
        ("-n2 --gpus-per-task=h100_1g.10gb:1", "[1g.10gb,1g.10gb] 2 2 2 none", "[1g.10gb] 1 2 2"),
        (
            "-n2 --gpus-per-task=1g.10gb:2",
            "[1g.10gb,1g.10gb,1g.10gb,1g.10gb] 4 4 2 none",
            "[1g.10gb,1g.10gb] 2 4 2",
        ),
        ("--gpus=1g.20gb:1 --cpus-per-gpu=2", "[1g.20gb] 1 1 2 none", None),
        ("--gpus=1g.20gb:2 --mem-per-gpu=50", "[1g.20gb,1g.20gb] 2 2 1 100", None),
        ("--gpus=1g.20gb:2 --ntasks-per-gpu=1", "[1g.20gb,1g.20gb] 2 2 2 none", "[1g.20gb] 1 2 2"),
        ("--gres=gpu:1g.10gb:2 --ntasks-per-gpu=2", "[1g.10gb,1g.10gb] 2 2 4", "[1g.10gb] 1 2 4"),
        ("--gres=mig:1g.10gb:2 --cpus-per-gpu=2", "[1g.10gb,1g.10gb] 2 2 4 none", None),
        ("--gres=mig:1g.10gb:2 --mem-per-gpu=50", "[1g.10gb,1g.10gb] 2 2 1 100", None),
        ("--gres=mig:1g.10gb:1 --gpu-freq=high", "[1g.10gb] 1 1 1 none", None),
        ("--gres=gpu:1g.10gb --gpu-bind=none", "[1g.10gb] 1 1 1 none", None),
        ("--gres=gpu:a100l.1", "[1g.10gb] 1 1 1 none", None),
        ("--gres=mig_24gb:1", "[1g.20gb] 1 1 1 none", None),
        ("--gres=gpu:h100-40g:1", "[3g.40gb] 1 1 1 none", None),
        ("-p mig --gres=gpu:1", "[1g.10gb] 1 1 3 100", None),
        ("-p mig --gpus=2", "[1g.10gb,1g.10gb] 2 2 6 200", None),
        ("-p mig -n2 --gpus-per-task=1", "[1g.10gb,1g.10gb] 2 2 6 200", "[1g.10gb] 1 2 6 200"),
        ("-p mig -n2 --ntasks-per-gpu=1", "[1g.10gb,1g.10gb] 2 2 6 200", "[1g.10gb] 1 2 6 200"),
        ("-p part --gpus=1", "[3g.40gb] 1 1 2 none", None),
        ("-C small --gpus=1", "[1g.20gb] 1 1 1 none", None),
        ("-n2 -c2 --gpus-per-task=1g.10gb:1", "[1g.10gb,1g.10gb] 2 2 4 none", "[1g.10gb] 1 2 4"),
        ("--gres=gpu:0,mig:1g.10gb:1 -c2", "[1g.10gb] 1 1 2 none", None),
        ("--gpus=0 --gres=mig:1g.10gb:1", "[1g.10gb] 1 1 1 none", None),
    ],
)
def test_forms_of_static_mig(site: Site, options: str, batch: str, step: str | None) -> None:
    """Slices, what programs count by, CPUs and memory: in the script, and in each of its tasks."""
    text = ran(site, *options.split())
    assert [line.startswith(batch) for line in saw(text, "batch")] == [True], text
    tasks = saw(text, "step")
    assert tasks, text
    assert all(line.startswith(step or batch) for line in tasks), text


def test_for_each_task_by_tres(site: Site) -> None:
    """Slurm 23.11 and later have a word for all of it."""
    if not since(site, 23, 11):
        pytest.skip("no --tres-per-task before 23.11")
    text = ran(site, "-n2", "--tres-per-task=cpu=2,gres/gpu:1g.10gb=1")
    assert [line.split()[:4] for line in saw(text, "step")] == [["[1g.10gb]", "1", "2", "4"]] * 2


def test_several_nodes(site: Site) -> None:
    """A count for the job is shared out; on each node its own."""
    text = ran(site, "-N2", "--gpus=1g.10gb:4")
    assert [line.split()[1] for line in saw(text, "step")] == ["2", "2"]
    text = ran(site, "-N2", "--ntasks-per-node=2", "--gpus-per-task=1g.10gb:1")
    assert [line.split()[1] for line in saw(text, "step")] == ["1"] * 4


@pytest.mark.parametrize(
    "beside", [["-c2"], ["--cpus-per-task=1"], ["--gpus=0"], ["--gpus-per-node=0", "-c2"]]
)
def test_options_that_ask_for_no_gpu(site: Site, beside: list[str]) -> None:
    """Beside a slice they change nothing of it: later clients fill a tres field with `cpu=2`."""
    job = site.sbatch("--gres=mig:1g.10gb:1", *beside, script="./show batch; srun ./show step")
    site.wait(job, "COMPLETED")
    assert [line.split()[0] for line in saw(site.output(job))] == ["batch", "step"]
    assert "slurm-mig=1" in site.show(job, "Comment")


@pytest.mark.parametrize(
    "variables",
    [
        {"SBATCH_GRES": "gpu:1g.10gb:1"},
        {"SBATCH_GPUS": "h100_1g.10gb:1"},
        {"SBATCH_GPUS_PER_NODE": "1g.10gb:1"},
    ],
)
def test_options_in_the_environment(site: Site, variables: dict[str, Any]) -> None:
    """As OnDemand and wrappers set them."""
    command = ("sbatch", "-W", "-o", "env.out", "--wrap=./show batch; srun ./show step")
    done = site.cluster.try_run(*command, uid=ALICE, **variables)
    assert done.returncode == 0, done.stderr
    text = (site.cluster.work / "env.out").read_text()
    assert [line.split()[:2] for line in saw(text)] == [
        ["batch", "[1g.10gb]"],
        ["step", "[1g.10gb]"],
    ]


# -- srun as a job, and steps ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ("--gres=gpu:1g.10gb:2", ["[1g.10gb,1g.10gb] 2 2"]),
        ("--gpus=h100_3g.40gb:1", ["[3g.40gb] 1 1"]),
        ("-n2 --gpus-per-task=1g.10gb:1", ["[1g.10gb] 1 2"] * 2),
        ("-n2 --gpus-per-task=1g.10gb:2", ["[1g.10gb,1g.10gb] 2 4"] * 2),
        ("--gpus=2 --gpus-per-task=1 -p mig", ["[1g.10gb] 1 2"] * 2),
        ("-p mig --gpus=1", ["[1g.10gb] 1 1"]),
        ("--gres=mig_24gb:1", ["[1g.20gb] 1 1"]),
        ("-N2 --gpus-per-node=1g.10gb:1", ["[1g.10gb] 1 1"] * 2),
    ],
)
def test_srun_as_a_job(site: Site, options: str, tasks: list[str]) -> None:
    """One request for the job and for its step."""
    text = site.run("srun", *options.split(), "./show", "srun", uid=ALICE)
    assert [" ".join(line.split()[:3]) for line in saw(text, "srun")] == tasks


STEPS = [
    ("-n1 --gpus=1", ["[1g.10gb] 1 1"]),
    ("-n1 --gres=gpu:1", ["[1g.10gb] 1 1"]),
    ("-n1 --gpus-per-node=1", ["[1g.10gb] 1 1"]),
    ("-n2 --gpus-per-task=1", ["[1g.10gb] 1 2"] * 2),
    ("-n1 --gres=gpu:1g.10gb:1", ["[1g.10gb] 1 1"]),
    ("-n1 --gpus=h100_1g.10gb:2", ["[1g.10gb,1g.10gb] 2 2"]),
    ("-n1 --gpus=1 --gpu-bind=none", ["[1g.10gb] 1 1"]),
    ("-n1 --gres=none", ["[] 0 none"]),
    ("-n1 --gpus=0", ["[] 0 none"]),
    ("-n1 --gres=gpu:0", ["[] 0 none"]),
]
ASKED = ["--gres=mig:1g.10gb:2", "--gpus=1g.10gb:2", "--gpus-per-task=1g.10gb:1"]


@pytest.mark.parametrize("asked", ASKED)
def test_steps(site: Site, asked: str) -> None:
    """Whatever the job asked by, and whatever of that is left in the script's environment."""
    script = "".join(f"srun {step} ./show {n}\n" for n, (step, _) in enumerate(STEPS))
    text = ran(site, "-n2", asked, script=script)
    for number, (step, tasks) in enumerate(STEPS):
        found = [" ".join(line.split()[:3]) for line in saw(text, f"{number}")]
        assert found == tasks, f"{step}\n{text}"


@pytest.mark.parametrize("asked", ASKED)
def test_steps_in_salloc(site: Site, asked: str) -> None:
    """Its shell is no task: what the job holds is asked of Slurm."""
    lines = "".join(f"srun {step} ./show {n}\n" for n, (step, _) in enumerate(STEPS))
    shell = launch(site, "salloc", "-n2", asked, "/bin/sh")
    text, err = shell.communicate(lines, timeout=120)
    for number, (step, tasks) in enumerate(STEPS):
        found = [" ".join(line.split()[:3]) for line in saw(text, f"{number}")]
        assert found == tasks, f"{step}\n{text}\n{err}"


def test_a_job_of_cpus_from_inside(site: Site) -> None:
    """It has no slices: nothing of the outer job's tells its steps otherwise."""
    inner = "sbatch -W -o inner.out -p all --wrap='env; srun --gpus=1 ./show step; true'"
    ran(site, "--gpus=1g.10gb:1", script=f"unset SLURM_GPUS; {inner}")
    text = (site.cluster.work / "inner.out").read_text()
    assert "SLURM_MIG_JOB" not in text
    assert saw(text) == []


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        ("--cpus-per-gpu=2 --gpus=1g.10gb:2", ["[1g.10gb,1g.10gb] 2 2 4"]),
        ("--mem-per-gpu=50 --gpus=1g.10gb:2", ["[1g.10gb,1g.10gb] 2 2 1"]),
        ("--ntasks-per-gpu=2 --gpus=1g.10gb:2", ["[1g.10gb] 1 2 4"] * 4),
        ("--gpu-freq=high --gpus=1g.10gb:1", ["[1g.10gb] 1 1 1"]),
        ("-p mig -n2 --ntasks-per-gpu=1", ["[1g.10gb] 1 2 6"] * 2),
    ],
)
def test_what_srun_cannot_forget(site: Site, options: str, tasks: list[str]) -> None:
    """It is started again without it; Slurm's answer would name a GPU nobody asked for."""
    done = site.cluster.try_run("srun", *options.split(), "./show", "srun", uid=ALICE)
    assert [" ".join(line.split()[:4]) for line in saw(done.stdout, "srun")] == tasks, done.stderr


def test_what_salloc_leaves_in_its_shell(site: Site) -> None:
    """A step of all slices has their CPUs; one of a part has that part's."""
    asked = ("--gpus=1g.10gb:2", "--cpus-per-gpu=2", "--mem-per-gpu=50", "--ntasks-per-gpu=1")
    shell = launch(site, "salloc", *asked, "/bin/sh")
    lines = "srun ./show all\nsrun -n1 --gpus=1 ./show one\n"
    text, err = shell.communicate(lines, timeout=120)
    assert [line.split()[:4] for line in saw(text, "all")] == [["[1g.10gb]", "1", "2", "4"]] * 2, (
        err
    )
    assert [line.split()[:4] for line in saw(text, "one")] == [["[1g.10gb]", "1", "1", "2"]], err


def test_an_srun_that_is_ended_ends_the_one_it_started(site: Site) -> None:
    """Its exit code is its own; it ends by a signal for the first alone, which that blocks."""
    seven = ("--gpus=1g.10gb:1", "--cpus-per-gpu=2", "sh", "-c", "exit 7")
    assert site.cluster.try_run("srun", *seven, uid=ALICE).returncode == 7
    # 26.05's srun catches SIGTERM, and nobody can tell from outside.
    ends = [signal.SIGKILL] if since(site, 26, 5) else [signal.SIGTERM, signal.SIGKILL]
    for end in ends:
        asked = ("--gpus=1g.10gb:1", "--cpus-per-gpu=2", "sleep", "300")
        with launch(site, "srun", *asked) as shell:
            site.until(lambda: "R" in site.run("squeue", "-h", "-o", "%t").split(), "the step")
            shell.send_signal(end)
            assert shell.wait(60) != 0
        site.until(lambda: not site.run("squeue", "-h").strip(), f"the end after {end.name}")


# -- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-p mig,all --gpus=1", "not the same in all partitions.*--gres=mig:<profile>:1"),
        ("--gres=gpu:h100_3g.40gv:1", "did you mean .*3g.40gb"),
        ("-p mig --gres=mig:9g.10gb", "did you mean .*g.10gb; in partition mig: 1g.10gb, "),
        ("--gres=gpu:v100_1g.10gb:1", "unknown GPU model"),
        ("-N2 --gpus=1g.10gb:3", "write --gres=mig:1g.10gb:<count for each node>"),
        ("--gres=gpu:mig:1", "write --gres=mig:<profile>:<count>"),
        ("--gres=gpu:1g.10gb:1k", "cannot read"),
        ("--gres=gpu:1g.10gb:1 --gpus=1g.10gb:1", "keep one, such as --gres=mig:1g.10gb:1"),
        ("--gres=gpu:1g.10gb:1,gpu:h100:1", "whole GPUs and MIG slices"),
        ("-n1 --gpus-per-task=1g.10gb:1 --exclusive", "would wait for ever"),
    ],
)
def test_refusals_say_what_to_type(site: Site, options: str, says: str) -> None:
    """At once, and nothing is queued."""
    done = site.cluster.try_run("sbatch", *options.split(), "--wrap=true", uid=ALICE)
    assert done.returncode != 0
    assert re.search(says, done.stderr), done.stderr
    assert site.run("squeue", "-h").strip() == ""


def test_types_that_are_still_static(site: Site) -> None:
    """A whole GPU by its type stays one, and so does one without a type where no slice is said."""
    for options in (["--gres=gpu:h100:1"], ["--gpus=1", "-p", "all"]):
        job = site.sbatch(*options)
        site.wait(job, "RUNNING")
        assert "mig" not in site.show(job, "TresPerNode")
        site.settle()
