"""ConstrainDevices with real device cgroups: every task opens its own GPU and no other.

EPERM: the cgroup denies. ENXIO: allowed, there is only no driver behind a
simulated node (facts/slurm.md#devices).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import ALICE, BOB, NODES, Site, launch, running
from tests.kit.cluster_jobs import unfiltered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _cgroup_v1_devices() -> bool:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return any(line.split()[2] == "cgroup" and "devices" in line.split()[3] for line in lines)


pytestmark = pytest.mark.skipif(
    not _cgroup_v1_devices(),
    reason="no device cgroup (v1) mounted on this machine: ConstrainDevices cannot be tried",
)

PROBE = r"""
for gpu in 0 1; do
    if (exec 3<DEV/nvidia$gpu) 2>err.$$; then text=open
    elif grep -q "No such device" err.$$; then text=open
    elif grep -q "not permitted" err.$$; then text=denied
    else text=$(cat err.$$); fi
    echo "WHO gpu$gpu $text"
done
rm -f err.$$
"""


@pytest.fixture(scope="module")
def constrained() -> Iterator[Site]:
    """A cluster that constrains devices."""
    with running(
        NODES[:1],
        slurm_conf="ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\n",
        cgroup_conf="CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainDevices=yes\n",
    ) as cluster:
        yield Site(cluster)


@pytest.fixture
def probe(constrained: Site) -> Iterator[Callable[[str], str]]:
    """A script that tries both GPUs of the node."""
    dev = constrained.machine().tree.dev
    yield lambda who: PROBE.replace("DEV", str(dev)).replace("WHO", who)
    constrained.settle()


def tried(text: str) -> set[str]:
    return {line for line in text.splitlines() if " gpu" in line}


def test_a_batch_job_and_its_steps(constrained: Site, probe: Callable[[str], str]) -> None:
    """Script, plain step, and a step that asks for a part of the job's slices."""
    (constrained.cluster.work / "probe").write_text("#!/bin/sh\n" + probe("$1"))
    (constrained.cluster.work / "probe").chmod(0o755)
    job = constrained.sbatch(
        "--gres=mig:1g.10gb:2",
        script=probe("batch") + "srun ./probe step\nsrun --gres=mig:1g.10gb:1 ./probe part\n",
    )
    constrained.wait(job, "COMPLETED")
    assert tried(constrained.output(job)) == {
        f"{who} gpu{gpu} {result}"
        for who in ("batch", "step", "part")
        for gpu, result in ((0, "open"), (1, "denied"))
    }


def test_slices_on_several_gpus(constrained: Site, probe: Callable[[str], str]) -> None:
    """The job opens both GPUs, a step those that Slurm gave it, which its slices are on."""
    (constrained.cluster.work / "probe").write_text("#!/bin/sh\n" + probe("$1"))
    (constrained.cluster.work / "probe").chmod(0o755)
    part = "srun --exact -n1 --gres=mig:3g.40gb:1"
    job = constrained.sbatch(
        "-N1", "-n4", "--gres=mig:3g.40gb:4",
        script=probe("batch") + f"srun -n1 ./probe step\n{part} ./probe part\n"
        f"{part} sh -c 'echo devices $CUDA_VISIBLE_DEVICES'\n",
    )  # fmt: skip
    constrained.wait(job, "COMPLETED")
    text = constrained.output(job)
    assert tried(text) == {
        f"{who} gpu{gpu} {'open' if gpu == 0 or who != 'part' else 'denied'}"
        for who in ("batch", "step", "part")
        for gpu in (0, 1)
    }
    (line,) = (line for line in text.splitlines() if line.startswith("devices "))
    first = [r for r in constrained.records() if r.owner.job_id == job and r.gpu_minor == 0]
    assert line.split()[1] in first[0].uuids


def test_srun_as_a_job_of_its_own(constrained: Site, probe: Callable[[str], str]) -> None:
    """Its step is made by the client: cli_filter.lua gives it the shards."""
    text = constrained.run(
        "srun", "-n2", "--gres=mig:3g.40gb:1", "/bin/sh", "-c", probe("srun"), uid=ALICE
    )
    assert tried(text) == {"srun gpu0 open", "srun gpu1 denied"}


#: Jobs in the words of static MIG, and a step of each.
BRIDGED = {
    "gres": (["--gres=gpu:1g.10gb:1"], "srun"),
    "job": (["--gpus=1g.10gb:2"], "srun -n1 --gpus=1"),
    "tasks": (["-n2", "--gpus-per-task=1g.10gb:1"], "srun"),
    "bind": (["-n2", "--gpus-per-node=1g.10gb:1"], "srun --gpu-bind=none"),
    "each": (["--gpus=1g.10gb:1", "--cpus-per-gpu=1"], "srun --cpus-per-gpu=1"),
}
#: Steps of one slice that want another GPU, too, by a client without our filter.
MORE = ("", "--gres=gpu:1", "--gpus=2", "--gres=shard:h100:31", "--gres=mig:1g.10gb:1,shard:h100:4")


def test_words_of_static_mig(constrained: Site, probe: Callable[[str], str]) -> None:
    """Job and step open the GPU of their slices, whatever they were asked by."""
    (constrained.cluster.work / "probe").write_text("#!/bin/sh\n" + probe("$1"))
    (constrained.cluster.work / "probe").chmod(0o755)
    jobs = {
        who: constrained.sbatch(*asked, script=f"{probe('batch')}{step} ./probe step\n")
        for who, (asked, step) in BRIDGED.items()
    }
    for who, job in jobs.items():
        constrained.wait(job, "COMPLETED", "FAILED")
        assert tried(constrained.output(job)) == {
            f"{place} gpu{gpu} {result}"
            for place in ("batch", "step")
            for gpu, result in ((0, "open"), (1, "denied"))
        }, f"{who}: {constrained.output(job)}"


def test_steps_that_want_another_gpu(constrained: Site, probe: Callable[[str], str]) -> None:
    """Whatever a step asks for, and whatever filter its client has: never the other GPU."""
    plain = unfiltered(constrained)
    (constrained.cluster.work / "probe").write_text("#!/bin/sh\n" + probe("$1"))
    (constrained.cluster.work / "probe").chmod(0o755)
    steps = "".join(
        f"{conf}timeout 20 srun {step} ./probe more\n"
        for step in MORE
        for conf in ("", f"SLURM_CONF={plain} ")
    )
    job = constrained.sbatch("--gpus=1g.10gb:1", script=f"{steps}true")
    constrained.wait(job, "COMPLETED", seconds=200)
    text = constrained.output(job)
    assert "more gpu0 open" in text
    assert not re.search("gpu1 (?!denied)", text), text


def test_salloc(constrained: Site, probe: Callable[[str], str]) -> None:
    """Steps of an interactive allocation."""
    shell = launch(
        constrained, "salloc", "--gres=mig:3g.40gb:1", "srun", "/bin/sh", "-c", probe("salloc")
    )
    out, err = shell.communicate(timeout=60)
    assert tried(out) == {"salloc gpu0 open", "salloc gpu1 denied"}, err


def test_the_second_gpu(constrained: Site, probe: Callable[[str], str]) -> None:
    """Whichever GPU Slurm chose, that one is open."""
    constrained.wait(constrained.sbatch("--gres=mig:7g.80gb:1"), "RUNNING")
    text = constrained.run(
        "srun", "--gres=mig:1g.10gb:1", "/bin/sh", "-c", probe("second"), uid=ALICE
    )
    assert tried(text) == {"second gpu0 denied", "second gpu1 open"}


def test_a_job_without_slices(constrained: Site, probe: Callable[[str], str]) -> None:
    """Opens no GPU at all."""
    text = constrained.run("srun", "/bin/sh", "-c", probe("none"), uid=ALICE)
    assert tried(text) == {"none gpu0 denied", "none gpu1 denied"}


def test_neighbours_on_one_gpu(constrained: Site) -> None:
    """The cgroup names no capability node: their modes keep Alice out of Bob's slice there, too."""
    theirs = constrained.sbatch("--gres=mig:3g.40gb:1", uid=BOB)
    constrained.until(lambda: constrained.made() == ["3g.40gb@4"], "Bob's slice")
    caps = constrained.machine().tree.dev / "nvidia-caps"
    constrained.until(lambda: constrained.record(theirs).phase == "active", "Bob's job")
    his = {path.name for path in caps.iterdir()}
    text = constrained.run(
        "srun", "--gres=mig:3g.40gb:1", "/bin/sh", "-c",
        f'for n in {caps}/*; do (exec 3<"$n") 2>&1; done; true', uid=ALICE,
    )  # fmt: skip
    denied = [line for line in text.splitlines() if "Permission denied" in line]
    assert {name for name in his if any(f"/{name}" in line for line in denied)} == his
    assert (len(denied), text.count("No such device")) == (2, 2)
    constrained.settle()
