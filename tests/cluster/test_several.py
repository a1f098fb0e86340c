"""Slices that one GPU does not hold, by a real Slurm: whole GPUs, carved, each task its own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import ALICE, BOB, Site, launch, running
from tests.kit.cluster_jobs import SHOW, seen
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.mig.allocation import Allocation

NODES = (SandboxNode("n1", ((H100, 4),)), SandboxNode("n2", ((H100, 4),)))


@pytest.fixture(scope="module")
def four() -> Iterator[Site]:
    """Two nodes with four GPUs each."""
    with running(NODES) as cluster:
        yield Site(cluster)


@pytest.fixture
def gpus(four: Site) -> Iterator[Site]:
    yield four
    four.settle()
    for item in four.cluster.nodes:
        four.unblock(item.name)
    four.check_clean()


def active(site: Site, name: str = "n1") -> list[Allocation]:
    return [record for record in site.records(name) if record.phase == phases.ACTIVE]


def profiles_made(site: Site, name: str = "n1") -> list[list[str]]:
    """Of each GPU of a node."""
    return [[text.partition("@")[0] for text in site.made(name, gpu)] for gpu in range(4)]


def tres(site: Site, job: int) -> set[str]:
    words = site.show(job, "TresPerNode").split(",")
    return {re.sub("^gres[:/]", "", word) for word in words}


def test_a_task_for_each_slice(gpus: Site) -> None:
    """Batch script, plain step and steps with a part; what Slurm counts; all gone afterwards."""
    step = f"sh -c '{SHOW}'"
    job = gpus.sbatch(
        "-N1", "-n8", "--gres=mig:3g.40gb:8",
        script=f"{SHOW}\nsrun -n8 {step}\nsrun -n1 {step}\n"
        f"srun --exact -n2 --gres=mig:3g.40gb:2 {step}\n"
        f"srun --exact -n2 --gres=gpu:1,mig:3g.40gb:2 {step}\n"
        f"srun --exact -n1 --gres=mig:3g.40gb:1 {step}\nsleep 300",
    )  # fmt: skip
    gpus.until(lambda: len(seen(gpus.output(job))) >= 15, gpus.output(job))
    assert tres(gpus, job) == {"gpu:h100:4", "mig:3g.40gb:8"}
    assert "slurm-mig:" not in gpus.output(job)
    found = active(gpus)
    assert [record.gpu_minor for record in found] == [0, 1, 2, 3]
    assert profiles_made(gpus) == [["3g.40gb"] * 2] * 4
    held = [uuid for record in found for uuid in record.uuids]
    lines = [line.split()[1:] for line in gpus.output(job).splitlines() if line.startswith("seen ")]
    everything = ",".join(held)
    assert lines[0][1] == everything
    assert sorted(line[1] for line in lines[1:9]) == sorted(held)
    assert [line[1] for line in sorted(lines[1:9], key=lambda line: int(line[0]))] == held
    assert lines[9][1] == everything
    # A step with a part has one of the GPUs, each of its tasks a slice.
    for pair in (lines[10:12], lines[12:14]):
        first, second = sorted(line[1] for line in pair)
        assert first != second
        assert any({first, second} == set(record.uuids) for record in found)
        assert len({line[3] for line in pair}) == 1
    assert lines[14][1] in held
    gpus.run("scancel", str(job))
    gpus.until(lambda: active(gpus) == [], "the Epilog")


@pytest.mark.parametrize(
    ("asked", "each"),
    [("--gres=mig:3g.40gb:8", 1), ("--gpus-per-node=h100_3g.40gb:8", 8)],
    ids=["mig", "gpu"],
)
def test_srun_alone(gpus: Site, asked: str, each: int) -> None:
    """The job and its step by one command: of `mig` each task its own, of `gpu` all as static."""
    text = gpus.run("srun", "-N1", "-n8", asked, "/bin/sh", "-c", SHOW, uid=ALICE)
    lists = [line[1].split(",") for line in seen(text)]
    assert len(lists) == 8
    assert {len(uuids) for uuids in lists} == {each}
    assert len({uuid for uuids in lists for uuid in uuids}) == 8


def test_two_nodes(gpus: Site) -> None:
    """Each carves its own parts."""
    text = gpus.run(
        "srun", "-N2", "--ntasks-per-node=4", "--gres=mig:3g.40gb:4", "/bin/sh", "-c", SHOW,
        uid=ALICE,
    )  # fmt: skip
    lines = seen(text)
    # UUIDs of two simulated machines may be alike; their GPUs are not.
    assert len({(line[1], line[3]) for line in lines}) == len(lines) == 8
    assert {line[2] for line in lines} == {"3g.40gb"}


def test_whole_gpus_as_slices(gpus: Site) -> None:
    """`-n2 --gres=mig:7g.80gb:2`: a GPU's largest slice for each task, paid with both GPUs."""
    job = gpus.sbatch("-n2", "-N1", "--gres=mig:7g.80gb:2", script=f"srun sh -c '{SHOW}'")
    gpus.wait(job, "COMPLETED")
    lines = seen(gpus.output(job))
    assert len({line[1] for line in lines}) == 2
    assert len({line[3] for line in lines}) == 2
    assert tres(gpus, job) == {"gpu:h100:2", "mig:7g.80gb:2"}


def test_mixed_profiles_beside_other_jobs(gpus: Site) -> None:
    """Of its GPUs nobody else has anything, though there is room; of the others everybody."""
    job = gpus.sbatch("-N1", "--gres=mig:4g.40gb:2,mig:3g.40gb:1", script="sleep 300")
    gpus.wait(job, "RUNNING")
    gpus.until(lambda: len(active(gpus)) == 2, "both parts")
    others = [
        gpus.sbatch("-w", "n1", f"--gres=mig:{what}", uid=BOB)
        for what in ("3g.40gb:2", "1g.10gb:7", "1g.10gb:1")
    ]
    for other in others[:2]:
        gpus.wait(other, "RUNNING")
    gpus.until(lambda: len(active(gpus)) == 4, "the others")
    assert gpus.state(others[2]) == "PENDING"
    assert [sorted(names) for names in profiles_made(gpus)] == [
        ["3g.40gb", "4g.40gb"], ["4g.40gb"], ["3g.40gb"] * 2, ["1g.10gb"] * 7,
    ]  # fmt: skip


def test_an_array_and_a_requeue(gpus: Site) -> None:
    """Each run has its parts carved anew; two tasks of an array side by side."""
    job = gpus.sbatch("--array=0-1", "-N1", "-w", "n1", "--gres=mig:7g.80gb:2")
    gpus.until(lambda: len(active(gpus)) == 4, "both tasks")
    assert profiles_made(gpus) == [["7g.80gb"]] * 4
    gpus.run("scancel", f"{job}_1")
    gpus.until(lambda: len(active(gpus)) == 2, "one task")
    gpus.run("scontrol", "requeue", f"{job}_0")
    gpus.until(
        lambda: [record.owner.restart for record in active(gpus)] == [1, 1], "its second run", 200
    )


def test_refused_in_one_sentence(gpus: Site) -> None:
    """More than a node has: with the line to type, and it works."""
    done = gpus.cluster.try_run(
        "sbatch", "-N1", "--gres=mig:7g.80gb:8", uid=ALICE, stdin="#!/bin/sh\ntrue\n"
    )
    assert done.returncode != 0
    assert "write -N2 --gres=mig:7g.80gb:4" in done.stderr
    job = gpus.sbatch("-N2", "--gres=mig:7g.80gb:4", script="true")
    gpus.wait(job, "COMPLETED")


def test_no_room_on_one_of_them(gpus: Site) -> None:
    """A stranger's instances on the second GPU: the job is refused and nothing of it stays."""
    gpus.block(gpu=1)
    job = gpus.sbatch("-N1", "-w", "n1", "--gres=mig:7g.80gb:2", "--no-requeue")
    gpus.until(
        lambda: [r.phase for r in gpus.records() if r.owner.job_id == job][-1:] == [phases.REFUSED],
        "the refusal",
    )
    assert gpus.made(gpu=0) == []
    assert gpus.in_service()
    gpus.run("scancel", str(job))


def test_an_allocation_and_its_steps(gpus: Site) -> None:
    """salloc: plain steps see all, each task its own."""
    shell = launch(gpus, "salloc", "-N1", "-n4", "--gres=mig:3g.40gb:4", "/bin/sh")
    out, errors = shell.communicate(f"srun /bin/sh -c '{SHOW}'\nsrun -n1 /bin/sh -c '{SHOW}'\n")
    assert shell.returncode == 0, errors
    lines = seen(out)
    assert len({line[1] for line in lines}) == len(lines) == 5


@pytest.mark.parametrize(
    "options",
    [
        ["-N1", "-n8", "--gpus-per-task=h100_3g.40gb:1"],
        ["-N1", "-n8", "--gpus=h100_3g.40gb:8"],
        ["-N1", "-n8", "--gpus-per-node=3g.40gb:8"],
        ["-N2", "--ntasks-per-node=4", "--gres=gpu:3g.40gb:4"],
    ],
    ids=lambda options: options[-1],
)
def test_forms_of_static_mig(gpus: Site, options: list[str]) -> None:
    """As users type them, steps too; Slurm's number of GPUs is theirs.

    A task has a slice of its own where one is asked for each task, else it sees its node's.
    """
    here = 8 if "-N1" in options else 4
    each = 1 if "per-task" in options[-1] else here
    step = f"sh -c '{SHOW}; echo on node $SLURM_GPUS_ON_NODE'"
    asked = ("", "--exact -N1 -n1 --gpus=1", "--exact -N1 -n1 --gres=gpu:1",
             "-N1 -n2 --gpus-per-task=1", "-N1 -n1 --gres=none")  # fmt: skip
    script = "".join(f"srun {words} {step}; echo end\n" for words in asked)
    job = gpus.sbatch(*options, script=script)
    gpus.wait(job, "COMPLETED")
    steps = gpus.output(job).split("end\n")
    shown = [
        [line.split()[2:] for line in text.splitlines() if line.startswith("seen ")]
        for text in steps
    ]
    assert [len(lines) for lines in shown[:5]] == [8, 1, 1, 2, 1], gpus.output(job)
    assert {len(uuids.split(",")) for uuids, *_ in shown[0]} == {each}
    # Two simulated nodes have UUIDs of slices alike, of GPUs not.
    owned = {(uuids, gpu) for uuids, _, gpu in shown[0]}
    assert len(owned) == 8 // each
    assert len({uuid for uuid, *_ in shown[3]}) == 2
    assert all(word.startswith("MIG-") for lines in shown[:4] for word, *_ in lines)
    assert shown[4] == [[]]
    numbers = [set(re.findall(r"on node ?(\d*)", text)) for text in steps[:5]]
    assert numbers == [{str(here)}, {"1"}, {"1"}, {"2"}, {""}]
