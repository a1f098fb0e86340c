"""prolog/task_prolog, run as Slurm runs it: by a task, below a slurmstepd, as a user."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slurm_mig.mig.allocation import Allocation, Instance
from slurm_mig.state import task_file
from slurm_mig.state.run_files import RunFiles
from slurm_mig.state.task_file import TaskSettings
from tests.kit.site import remove_tree
from tests.kit.task_prolog import OWNER, UID, WEIGHTS, Job, make_job, slices

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture(params=["dash", "bash"])
def job(request: pytest.FixtureRequest, public_tmp: Path) -> Iterator[Job]:
    shell = shutil.which(request.param)
    if shell is None:
        pytest.skip(f"no {request.param} here")
    made = make_job(public_tmp)
    made.shell = shell
    yield made
    for step in list(made.steps):
        made.end(step)


# -- which file ------------------------------------------------------------------


def test_one_slice(job: Job) -> None:
    """UUIDs, profiles and GPU; nothing else."""
    job.publish("3g.40gb")
    done = job.run(SLURM_SHARDS_ON_NODE="14")
    assert done.stdout.splitlines() == [
        "export CUDA_VISIBLE_DEVICES=MIG-0",
        "export SLURM_MIG_PROFILES=3g.40gb",
        "export SLURM_MIG_GPU=GPU-1",
        "export SLURM_MIG_JOB=7",
        "export SLURM_GPUS_ON_NODE=1",
    ]


def test_an_ordinary_job(job: Job) -> None:
    """Says nothing, does nothing."""
    done = job.run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "holds", [{"SLURM_SHARDS_ON_NODE": "4"}, {"SLURM_GPUS_ON_NODE": "1"}], ids=["shards", "gpus"]
)
def test_no_file_of_this_run(job: Job, holds: dict[str, str]) -> None:
    """Restarted without its Prolog: the task stops, whatever another run has left."""
    job.publish("3g.40gb")
    done = job.run(SLURM_RESTART_COUNT="1", **holds)
    assert done.returncode == 1
    assert done.stdout.startswith("print slurm-mig: job 7 has no GPU of its own on n1")


def test_the_file_of_a_lost_job_of_that_number(job: Job) -> None:
    """What a batch script pays for must be what stands there."""
    job.publish("3g.40gb")
    done = job.run(SLURM_SHARDS_ON_NODE="4")
    assert done.returncode == 1
    assert "without its Prolog" in done.stdout
    assert "MIG-" not in done.stdout


def test_gpus_where_nothing_is_managed(job: Job) -> None:
    """No Prolog of ours has ever kept a file: a GPU job is an ordinary job."""
    assert job.run(SLURM_GPUS_ON_NODE="1").returncode == 0


def test_whole_gpus(job: Job) -> None:
    """A step sees the instances that stand for its own GPUs, by Slurm's index."""
    files = RunFiles(job.root / "run")
    files.mark(OWNER)
    two = [
        (index, f"GPU-{index}", Allocation(
            OWNER, "n1", f"GPU-{index}", 0, "x", "b", "7g.80gb:1",
            instances=(Instance("7g.80gb", 0, 0, 8, 0, 0, f"MIG-{index}"),),
        ))
        for index in (2, 5)
    ]  # fmt: skip
    files.publish(OWNER, task_file.whole_lines(two, TaskSettings()))
    assert job.sees() == "2,5"
    assert job.sees(SLURM_STEP_ID="0", SLURM_STEP_GPUS="2,5") == "2,5"
    assert job.sees(SLURM_STEP_ID="0", SLURM_STEP_GPUS="5") == "5"
    assert job.sees(SLURM_STEP_ID="0") == ""


# -- slices on several GPUs ----------------------------------------------------------


def several(job: Job, *parts: str, scontrol: str = "") -> None:
    """What the Prolog leaves for a job with a part on each GPU; slices count through."""
    files = RunFiles(job.root / "run")
    files.mark(OWNER)
    given, number = [], 0
    for index, part in enumerate(parts):
        names = [
            name
            for item in part.split(",")
            for name in [item.partition(":")[0]] * int(item.partition(":")[2])
        ]
        instances = tuple(
            Instance(name, 0, place, 1, place, 0, f"MIG-{number + place}")
            for place, name in enumerate(names)
        )
        number += len(names)
        given.append((index, Allocation(OWNER, "n1", f"GPU-{index}", index, "x", "b", part,
                                        instances=instances)))  # fmt: skip
    settings = TaskSettings(scontrol=scontrol)
    leases = job.make_leases(files, OWNER, number)
    lines = task_file.several_lines(given, settings, leases)
    files.publish(OWNER, lines)


def asked(job: Job, gres: str) -> str:
    """A scontrol that says what a step asked for, and notes that it was asked."""
    path = job.root / "scontrol"
    path.write_text(f"#!/bin/sh\necho x >>{job.root}/shm/asked\necho TresPerNode={gres}\n")
    path.chmod(0o755)
    return str(path)


EIGHT = ("3g.40gb:2",) * 4


def test_a_batch_script_sees_all_gpus_slices(job: Job) -> None:
    """And what is on each GPU, for steps that are asked for from it."""
    several(job, "3g.40gb:2", "1g.10gb:1,3g.40gb:1")
    told = job.run(SLURM_GPUS_ON_NODE="2").stdout.splitlines()
    assert told == [
        "export CUDA_VISIBLE_DEVICES=MIG-0,MIG-1,MIG-2,MIG-3",
        "export SLURM_MIG_PROFILES=3g.40gb,3g.40gb,1g.10gb,3g.40gb",
        "export SLURM_MIG_GPU=GPU-0,GPU-1",
        "export SLURM_MIG_PARTS=3g.40gb:2;1g.10gb:1,3g.40gb:1",
        "export SLURM_MIG_JOB=7",
        "export SLURM_GPUS_ON_NODE=4",
    ]


def test_a_task_for_each_slice(job: Job) -> None:
    """Each has its own, over all GPUs, and slurmctld is not asked by any of them."""
    several(job, *EIGHT, scontrol=asked(job, "gres/gpu:h100:4,gres/mig:3g.40gb:8"))
    seen = [
        job.sees(SLURM_STEP_ID="0", SLURM_STEP_GPUS="0,1,2,3", SLURM_STEP_TASKS_PER_NODE="8",
                 SLURM_LOCALID=str(number))
        for number in range(8)
    ]  # fmt: skip
    assert seen == [str(number) for number in range(8)]
    assert not (job.root / "shm/asked").exists()


def test_a_step_with_one_of_the_gpus(job: Job) -> None:
    """Its slices are those of Slurm's GPU, each task with its own."""
    several(job, *EIGHT, scontrol=asked(job, "gres/gpu:1,gres/mig:3g.40gb:2"))
    words = {"SLURM_STEP_GPUS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    assert [job.task(0, 0, **words, SLURM_LOCALID=str(n)) for n in range(2)] == ["4", "5"]
    assert len((job.root / "shm/asked").read_text().split()) == 1
    assert job.task(1, 0, SLURM_STEP_GPUS="3") == "6,7"


def test_a_step_with_fewer_slices_than_its_gpus_have(job: Job) -> None:
    """As many as it asked for; one that shares the GPU takes another."""
    several(job, *EIGHT, scontrol=asked(job, "gres:gpu:1,gres:mig:3g.40gb:1"))
    assert [job.task(step, 0, SLURM_STEP_GPUS="1") for step in range(2)] == ["2", "3"]


def test_a_step_that_asked_for_gpus_alone(job: Job) -> None:
    """It sees what stands for them."""
    several(job, *EIGHT, scontrol=asked(job, "gres/gpu:1"))
    assert job.task(0, 0, SLURM_STEP_GPUS="1") == "2,3"


def test_a_step_that_asked_for_slices_alone(job: Job) -> None:
    """Without cli_filter.lua Slurm gives it no GPU: it takes its slices from all of them."""
    several(job, *EIGHT, scontrol=asked(job, "gres/mig:3g.40gb:1"))
    assert job.task(0, 0) == "0"
    assert job.task(1, 0) == "1"


def test_a_step_without_gpus_has_none_of_several(job: Job) -> None:
    """`--gres=none`."""
    several(job, *EIGHT, scontrol=asked(job, "gres/none"))
    assert job.sees(SLURM_STEP_ID="0") == ""


def test_a_step_whose_gpu_has_too_few(job: Job) -> None:
    """Slurm chose a GPU with fewer of them than the step asked for: it is told."""
    several(job, "3g.40gb:2", "3g.40gb:1", scontrol=asked(job, "gres/gpu:1,gres/mig:3g.40gb:2"))
    told = job.run(SLURM_STEP_ID="0", SLURM_STEP_GPUS="1").stdout
    assert "CUDA_VISIBLE_DEVICES=MIG-2\n" in told
    assert "print slurm-mig: its GPUs have 1 slices fewer than this step asked for" in told


def test_refused(job: Job) -> None:
    """The reason, and the task does not start."""
    files = RunFiles(job.root / "run")
    files.refuse(OWNER, task_file.refusal_lines("job 7: no room; wait"))
    done = job.run(SLURM_SHARDS_ON_NODE="14")
    assert (done.returncode, done.stdout) == (1, "print slurm-mig: job 7: no room; wait\n")


def test_containers(job: Job) -> None:
    """The same UUIDs under the name that container runtimes read."""
    job.publish("1g.10gb", "2g.20gb", containers=True)
    lines = job.run(SLURM_SHARDS_ON_NODE="12").stdout.splitlines()
    assert lines[0].partition("=")[2] == "MIG-0,MIG-1"
    assert "export NVIDIA_VISIBLE_DEVICES=MIG-0,MIG-1" in lines


# -- binding -----------------------------------------------------------------------


STEP = {"SLURM_STEP_ID": "0", "SLURM_SHARDS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2"}


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"SLURM_LOCALID": "0"}, "0"),
        ({"SLURM_LOCALID": "1"}, "1"),
        ({"SLURM_LOCALID": "1", "SLURM_MIG_BIND": "none"}, "0,1"),
        ({"SLURM_LOCALID": "1", "SLURM_MIG_BIND": "task"}, "1"),
        # More or fewer tasks than slices: all see all.
        ({"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "3"}, "0,1"),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}, "0,1"),
        # Several nodes: this one's number of tasks counts.
        ({"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,2(x3)", "SLURM_NODEID": "3"}, "1"),
        ({"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1,2(x3)"}, "0,1"),
        ({"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2"}, "1"),
        # A batch script and salloc's shell are one task, whatever the job's steps will be.
        ({"SLURM_STEP_ID": "-5"}, "0,1"),
        ({"SLURM_STEP_ID": "4294967290"}, "0,1"),
    ],
)
def test_binding(job: Job, environ: dict[str, str], seen: str) -> None:
    """As many slices as tasks on the node: each its own."""
    job.publish("1g.10gb", "1g.10gb")
    assert job.sees(**(STEP | environ)) == seen


def test_a_site_that_does_not_bind(job: Job) -> None:
    """Unless the job says otherwise."""
    job.publish("1g.10gb", "1g.10gb", bind="none")
    assert job.sees(**STEP, SLURM_LOCALID="1") == "0,1"
    assert job.sees(**STEP, SLURM_LOCALID="1", SLURM_MIG_BIND="task") == "1"


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({}, "0,1"),
        ({"SLURM_MIG_PER_TASK": "1"}, "1"),
        ({"SLURM_GPUS_PER_TASK": "1"}, "1"),
        ({"SLURM_MIG_TASKS_PER_SLICE": "1"}, "1"),
    ],
)
def test_a_job_in_the_words_of_gpus(job: Job, environ: dict[str, str], seen: str) -> None:
    """As Slurm shows GPUs: all to each task, unless something was asked for each."""
    job.publish("1g.10gb", "1g.10gb")
    assert job.sees(**STEP, SLURM_LOCALID="1", SLURM_MIG_BIND="asked", **environ) == seen


def test_a_binding_that_is_none(job: Job) -> None:
    """One line with the value and what is allowed."""
    job.publish("1g.10gb")
    done = job.run(SLURM_MIG_BIND="tasks")
    assert done.returncode == 1
    assert done.stdout == "print slurm-mig: SLURM_MIG_BIND is not task or none: tasks\n"


# -- steps that ask for a part -------------------------------------------------------


def test_steps_side_by_side(job: Job) -> None:
    """Each has its own, all tasks of a step the same; what ends is free again."""
    job.publish("1g.10gb", "1g.10gb", "1g.10gb")
    assert job.task(0, 4) == "0"
    assert job.task(1, 4) == "1"
    assert job.task(0, 4) == "0"
    job.end(0)
    assert job.task(2, 8) == "0,2"
    assert job.task(3, 12) == "0,1,2"
    # What ended is written over: a long job of short steps never runs out.
    used = sorted(path.name for path in job.leases.iterdir() if path.stat().st_size)
    assert used == ["step.0", "step.1"]


def test_a_daemon_that_is_slow_to_go(job: Job) -> None:
    """Slurm starts the next step as soon as the tasks are gone: their slices are free then."""
    job.publish("1g.10gb", "1g.10gb")
    assert job.task(0, 4) == "0"
    assert job.task(1, 4) == "1"
    job.linger(1)
    assert job.task(2, 4) == "1"


def test_a_part_is_bound_to_tasks_too(job: Job) -> None:
    """Two tasks of a step with two of three slices."""
    job.publish("1g.10gb", "1g.10gb", "1g.10gb")
    assert job.task(0, 4) == "0"
    two = {"SLURM_STEP_TASKS_PER_NODE": "2"}
    assert job.task(1, 8, SLURM_LOCALID="0", **two) == "1"
    assert job.task(1, 8, SLURM_LOCALID="1", **two) == "2"


def test_profiles_by_their_price(job: Job) -> None:
    """The step's shards tell which profile it asked for."""
    job.publish("1g.10gb", "3g.40gb")
    assert job.task(0, 14) == "1"
    assert job.task(1, 4) == "0"


def test_a_price_of_two_meanings_is_asked_for(job: Job) -> None:
    """Slurm is asked what the step wants, once, by the one task that chooses."""
    answer = job.root / "scontrol"
    answer.write_text(
        f'#!/bin/sh\necho "$@" >>{job.root}/shm/asked\n'
        "echo 'StepId=7.0 Name=x TresPerNode=gres:mig:h100_2g.20gb:1,gres:shard:h100:8 Y=z'\n"
    )
    answer.chmod(0o755)
    job.scontrol = str(answer)
    job.publish("1g.10gb", "1g.10gb", "2g.20gb")
    assert job.task(0, 8) == "2"
    assert (job.root / "shm/asked").read_text() == "-o show step 7.0\n"
    assert job.task(1, 4) == "0"


def test_a_price_that_nobody_explains(job: Job) -> None:
    """No answer from Slurm, or shards that are none of ours: the step sees all of the job."""
    job.publish("1g.10gb", "1g.10gb", "2g.20gb")
    assert job.task(0, 8) == "0,1,2"
    assert job.task(1, 5) == "0,1,2"


def test_steps_that_began_before_an_upgrade(job: Job) -> None:
    """Their Prolog was an earlier release's: its place holds, with what their tasks wrote there."""
    job.elsewhere = True
    job.publish("1g.10gb", "1g.10gb", "1g.10gb")
    assert job.task(0, 4) == "0"
    told = [path for path in job.leases.iterdir() if path.stat().st_size]
    # That release had no word for the step: the file's name said which it was.
    told[0].write_text("".join(told[0].read_text().splitlines(keepends=True)[1:]))
    assert (job.task(0, 4), job.task(1, 4), job.task(2, 4)) == ("0", "1", "2")
    job.end(0)
    assert job.task(3, 4) == "0"
    # The file that step 0 had was written over: a task that comes too late takes no other one's.
    before = [path.read_text() for path in job.leases.glob("step.*")]
    assert job.task(0, 4) == "0"
    assert set(before) < {path.read_text() for path in job.leases.glob("step.*")}
    assert not (job.root / "run/leases").exists()


def test_more_steps_than_can_share(job: Job) -> None:
    """It is said, and nobody's file is written over."""
    job.publish("1g.10gb", "1g.10gb")
    for step in range(8):
        job.task(step, 4)
    before = [path.read_text() for path in sorted(job.leases.iterdir())]
    done = job.run(SLURM_STEP_ID="3000", SLURM_SHARDS_ON_NODE="4")
    assert (done.returncode, done.stderr) == (1, "")
    assert "no lease of slices in" in done.stdout
    assert [path.read_text() for path in sorted(job.leases.iterdir())] == before


def test_overlapping_steps_share(job: Job) -> None:
    """Slurm starts more than fits only for --overlap; then a slice has two users."""
    job.publish("1g.10gb", "1g.10gb")
    assert [job.task(step, 4) for step in range(3)] == ["0", "1", "0"]


def test_what_cleans_between_two_steps(job: Job) -> None:
    """RemoveIPC, an epilog or the user themselves: leases are root's, so each step has its own."""
    job.publish("1g.10gb", "1g.10gb")
    assert job.task(0, 4) == "0"
    for clean in (f"rm -rf {job.leases}", f"find {job.leases} -user {UID} -delete"):
        subprocess.run(
            ["sh", "-c", clean], user=UID, group=UID, extra_groups=[], capture_output=True,
            check=False,
        )  # fmt: skip
    assert job.task(1, 4) == "1"


def test_a_directory_that_was_cleaned(job: Job) -> None:
    """No lease there does not mean that no step has one: two would share, so the task stops."""
    job.elsewhere = True
    job.publish("1g.10gb", "1g.10gb")
    assert job.task(0, 4) == "0"
    leases = job.leases
    step = {"SLURM_STEP_ID": "1", "SLURM_SHARDS_ON_NODE": "4"}

    def stopped() -> bool:
        done = job.run(**step)
        said = "no lease of slices in" in done.stdout
        return said and done.returncode == 1 and "MIG-" not in done.stdout

    for path in leases.iterdir():
        path.unlink()
    assert stopped()
    leases.rmdir()
    assert stopped()
    assert not leases.exists()
    # Not ours, or a link.
    leases.mkdir()
    (leases / "lock").touch()
    assert stopped()
    (leases / "lock").unlink()
    leases.rmdir()
    (job.root / "shm/mine").mkdir()
    (job.root / "shm/mine/lock").touch()
    for path in (job.root / "shm/mine", job.root / "shm/mine/lock"):
        os.chown(path, UID, UID)
    leases.symlink_to(job.root / "shm/mine")
    assert stopped()


def test_two_tasks_at_once(job: Job) -> None:
    """The first to come chooses; the lock makes the others wait and read."""
    job.publish("1g.10gb", "1g.10gb", "1g.10gb")
    job.task(0, 4)
    lock = job.leases / "lock"
    holder = subprocess.Popen(
        ["flock", str(lock), "sh", "-c", "echo held; read x"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    waiting = [
        subprocess.Popen(
            [job.shell, str(job.task_prolog)], stdout=subprocess.PIPE, text=True,
            env={"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_SHARDS_ON_NODE": "4"},
            user=UID, group=UID, extra_groups=[],
        )
        for _ in range(3)
    ]  # fmt: skip
    assert all(task.poll() is None for task in waiting)
    holder.communicate("\n")
    assert {slices(task.communicate()[0]) for task in waiting} == {"1"}


class Steps(RuleBasedStateMachine):
    """Steps come and go: none has what another one has, each has what it asked for."""

    profiles = ("1g.10gb", "1g.10gb", "1g.10gb", "3g.40gb")

    @initialize(target=None)
    def begin(self) -> None:
        import tempfile

        self.root = Path(tempfile.mkdtemp())
        self.root.chmod(0o755)
        self.job = make_job(self.root)
        self.job.publish(*self.profiles)
        self.held: dict[int, tuple[str, ...]] = {}
        self.next = 0

    def free(self, name: str) -> int:
        taken = sum(had.count(name) for had in self.held.values())
        return self.profiles.count(name) - taken

    @rule(small=st.integers(0, 3), large=st.integers(0, 1))
    def start(self, small: int, large: int) -> None:
        whole = (small, large) == (3, 1)
        if (small, large) == (0, 0) or whole:
            return
        if small > self.free("1g.10gb") or large > self.free("3g.40gb"):
            return
        wanted = ("1g.10gb",) * small + ("3g.40gb",) * large
        seen = self.job.task(self.next, 4 * small + 14 * large).split(",")
        assert tuple(self.profiles[int(number)] for number in seen) == wanted
        self.held[self.next] = wanted
        self.numbers = getattr(self, "numbers", {}) | {self.next: set(seen)}
        self.next += 1

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if self.held:
            step = data.draw(st.sampled_from(sorted(self.held)))
            self.job.end(step)
            del self.held[step], self.numbers[step]

    @rule(data=st.data())
    def another_task(self, data: st.DataObject) -> None:
        if self.held:
            step = data.draw(st.sampled_from(sorted(self.held)))
            had = self.held[step]
            shards = sum(WEIGHTS[name] for name in had)
            assert set(self.job.task(step, shards).split(",")) == self.numbers[step]

    @invariant()
    def nothing_is_held_twice(self) -> None:
        held = [number for numbers in getattr(self, "numbers", {}).values() for number in numbers]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        for step in list(self.job.steps):
            self.job.end(step)
        remove_tree(self.root)


TestSteps = Steps.TestCase
TestSteps.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
