"""Killed hooks, killed daemons and lost nodes on real Slurm: nothing leaks, the next job runs.

Which process of a hook does the work is the hook's own affair: these tests strike
every process of it, as slurmd does with the group it started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.sandbox import SandboxNode
from slurm_mig.simulator.faults import Rule
from tests.kit.cluster import ALICE, Site, launch, running
from tests.kit.cluster_jobs import saved
from tests.kit.gpus import H100
from tests.kit.ways import at_work, later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.sandbox import Cluster

NODES = tuple(SandboxNode(name, ((H100, 1),)) for name in ("n1", "n2"))

#: PrologEpilogTimeout, long enough for a hook on a busy machine.
TIMEOUT = 8

CREATE_GI = "nvmlDeviceCreateGpuInstanceWithPlacement"
CREATE_CI = "nvmlGpuInstanceCreateComputeInstance"
DESTROY_CI = "nvmlComputeInstanceDestroy"
DESTROY_GI = "nvmlGpuInstanceDestroy"

SLICE = "--gres=mig:3g.40gb:1"
ON_N1 = (SLICE, "-w", "n1")

#: Slurm's words where the hook was killed, ours where it could still speak.
PROLOG_REASON = ("Prolog error", "slurm-mig: ")
EPILOG_REASON = ("Epilog error", "slurm-mig: ")


@pytest.fixture(scope="module")
def rough() -> Iterator[Cluster]:
    """Two equal nodes, hooks killed after some seconds, nodes soon declared dead."""
    conf = f"PrologEpilogTimeout={TIMEOUT}\nSlurmdTimeout=10\n"
    with running(NODES, slurm_conf=conf, config="[hooks]\ndestroy_timeout = 3\n") as made:
        yield made


@pytest.fixture
def site(rough: Cluster) -> Iterator[Site]:
    """Idle before; afterwards clean, without help from reconcile, and able to run a job."""
    talk = Site(rough)
    yield talk
    for name in ("n1", "n2"):
        talk.machine(name).faults.set([])
        if not talk.in_service(name):
            resume(talk, name)
    talk.settle()
    for name in ("n1", "n2"):
        talk.unblock(name)
    run_next(talk)
    talk.settle()
    # The process of a put-off teardown ends a moment after its record.
    talk.until(lambda: not processes(talk), "no process of a hook", 30)
    talk.check_clean()


def run_next(site: Site) -> None:
    """A job for each node, with ids that no slurmd has seen."""
    spend_forgotten(site)
    jobs = {name: _next(site, name) for name in ("n1", "n2")}
    for name, job in jobs.items():
        site.wait(job, "COMPLETED")
        assert site.output(f"next-{name}") == "next\n"


def spend_forgotten(site: Site) -> None:
    """Let no job have an id that a killed slurmctld forgot.

    22.05's slurmd believes that such a job's Prolog has run already, so our TaskProlog stops it.
    """
    known = [item for name in ("n1", "n2") for item in site.records(name)]
    last = max((item.owner.job_id or 0 for item in known), default=0)
    while site.sbatch("--hold", script="true") < last:
        pass
    site.run("scancel", "-u", "alice")
    site.until(lambda: not site.run("squeue", "-h").strip(), "no jobs")


def _next(site: Site, name: str) -> int:
    (site.cluster.work / f"next-{name}.out").unlink(missing_ok=True)
    return site.sbatch(SLICE, "-w", name, "-o", f"next-{name}.out", script="echo next")


def resume(site: Site, name: str = "n1") -> None:
    site.run("scontrol", "update", f"nodename={name}", "state=resume")


def stop_at(site: Site, call: str, seconds: float, name: str = "n1") -> None:
    """Let the next hook stand still at a call."""
    site.machine(name).faults.set([Rule(call, f"hang:{seconds}")])


def processes(site: Site) -> list[int]:
    """Every process of a hook of this cluster; a helper's client comes before its work."""
    homes = [site.cluster.root / "nodes" / item.name for item in site.cluster.nodes]
    return sorted(pid for home in homes for pid in at_work(home / "config.toml"))


def standing(site: Site, name: str = "n1") -> bool:
    """Whether a hook has come to the call at which it is to stand."""
    return any(rule.seen for rule in site.machine(name).faults.rules())


def strike(site: Site, name: str = "n1") -> None:
    """SIGKILL for every process of the hook that stands."""
    site.until(lambda: standing(site, name), "the hook to come to its call")
    for pid in processes(site):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    site.machine(name).faults.set([])


def drained(site: Site, reasons: tuple[str, ...], name: str = "n1", seconds: float = 60) -> None:
    site.until(lambda: not site.in_service(name), f"{name} to drain", seconds)
    assert site.drain_reason(name).startswith(reasons)


def closed(site: Site, job: int, name: str = "n1") -> bool:
    return not any(item.open for item in site.records(name) if item.owner.job_id == job)


def reconcile(site: Site, name: str = "n1") -> bool:
    """As an administrator, or cron, runs it."""
    config = str(site.cluster.root / "nodes" / name / "config.toml")
    done = site.cluster.try_run(
        sys.executable, "-m", "slurm_mig", "reconcile",
        SLURM_MIG_CONFIG=config, SLURMD_NODENAME=name,
    )  # fmt: skip
    return done.returncode == 0


# -- hooks ---------------------------------------------------------------------


@pytest.mark.parametrize("call", ["nvmlInitWithFlags", CREATE_GI, CREATE_CI])
def test_a_prolog_killed_from_outside(site: Site, call: str) -> None:
    """Before its record, with nothing made, with half an instance: nothing leaks."""
    stop_at(site, call, 30)
    job = site.sbatch(*ON_N1, script="echo ran")
    strike(site)
    drained(site, PROLOG_REASON)
    site.until(lambda: site.show(job, "Reason") == "launch_failed_requeued_held", "the hold")
    site.until(lambda: closed(site, job), "the Epilog")
    assert site.made() == []
    assert site.output(job) == ""
    assert site.in_service("n2")


def test_a_prolog_over_its_timeout(site: Site) -> None:
    """Slurm kills it, drains the node and holds the job; no process of it goes on."""
    stop_at(site, CREATE_CI, 30)
    job = site.sbatch(*ON_N1, script="echo ran")
    site.until(lambda: standing(site), "the hook to come to its call")
    drained(site, PROLOG_REASON, seconds=TIMEOUT + 30)
    site.until(lambda: not processes(site), "the hook's processes to end")
    site.wait(job, "PENDING")
    site.until(lambda: closed(site, job), "the Epilog")
    assert site.made() == []
    assert site.output(job) == ""


def test_srun_and_a_prolog_over_its_timeout(site: Site) -> None:
    """The user's command ends; his program never started."""
    stop_at(site, CREATE_CI, 30)
    client = launch(site, "srun", *ON_N1, "echo", "ran")
    drained(site, PROLOG_REASON, seconds=TIMEOUT + 30)
    out, _ = client.communicate(timeout=60)
    assert client.returncode != 0
    assert "ran" not in out
    site.until(lambda: site.made() == [], "the Epilog")


@pytest.mark.parametrize("call", [DESTROY_CI, DESTROY_GI])
def test_an_epilog_killed_from_outside(site: Site, call: str) -> None:
    """The job has completed; the node drains, and the next hook there takes the slice down."""
    stop_at(site, call, 30)
    job = site.sbatch(*ON_N1, script="echo ran")
    strike(site)
    if not later():
        drained(site, EPILOG_REASON)
    site.wait(job, "COMPLETED")
    assert site.output(job) == "ran\n"
    assert site.record(job).phase == phases.RELEASING
    if later():
        # It was over before, and said that all is well: as it is, for the next one takes it down.
        assert site.in_service()
    else:
        resume(site)
    other = site.sbatch("--gres=mig:7g.80gb:1", "-w", "n1", script="true")
    site.wait(other, "COMPLETED")
    assert site.record(job).phase == phases.RELEASED


def test_an_epilog_over_its_timeout(site: Site) -> None:
    """As when it is killed: Slurm does that."""
    stop_at(site, DESTROY_GI, 30)
    job = site.sbatch(*ON_N1, script="echo ran")
    site.until(lambda: standing(site), "the hook to come to its call")
    if later():
        # Slurm neither waits nor kills: it comes to its end.
        site.wait(job, "COMPLETED")
        assert processes(site)
    else:
        drained(site, EPILOG_REASON, seconds=TIMEOUT + 30)
        site.wait(job, "COMPLETED")
    site.until(lambda: not processes(site), "the hook's processes to end")
    assert site.in_service() == later()
    assert reconcile(site)
    assert site.record(job).phase == phases.RELEASED


# -- slurmd --------------------------------------------------------------------


def test_slurmd_killed_during_the_prolog(site: Site) -> None:
    """The orphaned Prolog ends its work; the job's end takes the slice down."""
    stop_at(site, CREATE_CI, 4)
    job = site.sbatch(*ON_N1, script="echo ran; sleep 300")
    site.until(lambda: standing(site), "the Prolog")
    site.cluster.kill_daemon("n1")
    site.cluster.start_slurmd("n1")
    site.until(lambda: site.record(job).phase == phases.ACTIVE, "the orphan to end its work")
    site.until(lambda: "n1" in site.run("sinfo", "-h", "-N", "-o", "%N %T"), "the node")
    site.run("scancel", str(job))
    site.until(lambda: closed(site, job), "the Epilog")
    assert site.made() == []
    assert site.in_service()


@pytest.mark.parametrize("interactive", [False, True])
def test_slurmd_killed_during_the_job(site: Site, interactive: bool) -> None:
    """The job goes on with its slice; the new slurmd runs its Epilog."""
    (site.cluster.work / "go").unlink(missing_ok=True)
    program = "echo up >up; while [ ! -e go ]; do sleep 0.2; done; rm up; echo done"
    if interactive:
        client = launch(site, "srun", *ON_N1, "/bin/sh", "-c", program)
    else:
        site.sbatch(*ON_N1, script=program)
    # Not sooner: a step that slurmd has not heard of is lost with it.
    site.until((site.cluster.work / "up").exists, "the program")
    before = site.records()[-1]
    assert before.owner.job_id is not None
    site.cluster.kill_daemon("n1")
    site.cluster.start_slurmd("n1")
    time.sleep(2)
    assert site.made() == ["3g.40gb@4"]
    (site.cluster.work / "go").touch()
    site.wait(before.owner.job_id, "COMPLETED")
    if interactive:
        assert client.communicate(timeout=30)[0] == "done\n"
    else:
        assert site.output(before.owner.job_id) == "done\n"
    site.until(lambda: closed(site, before.owner.job_id or 0), "the Epilog")
    assert site.records()[-1].number == before.number
    assert site.in_service()


def test_a_node_declared_dead(site: Site) -> None:
    """Its job runs again elsewhere, with a slice of its own; back, it runs the missed Epilog."""
    job = site.sbatch(SLICE, script="echo run $SLURM_RESTART_COUNT; sleep 300")
    site.until(lambda: "run" in site.output(job), "the first run")
    (first,) = [name for name in ("n1", "n2") if site.made(name)]
    (second,) = {"n1", "n2"} - {first}
    site.cluster.kill_daemon(first)
    try:
        site.until(lambda: "down" in site.node_state(first), "the node to be given up")
        assert site.record(job, first).phase == phases.ACTIVE
        # 22.05 would start it without a Prolog had it been on this very node.
        site.until(lambda: site.made(second), "the second run", 90)
        site.until(lambda: site.record(job, second).phase == phases.ACTIVE, "its record")
    finally:
        site.cluster.start_slurmd(first)
    site.until(lambda: closed(site, job, first), "the Epilog of the first run")
    assert site.made(first) == []
    assert site.record(job, second).phase == phases.ACTIVE
    assert site.record(job, second).owner.restart == 1
    assert site.made(second) == ["3g.40gb@4"]
    site.until(lambda: site.in_service(first), "the node")


# -- slurmctld -----------------------------------------------------------------


def restart(site: Site, *, kill: bool) -> None:
    (site.cluster.kill_daemon if kill else site.cluster.stop_daemon)("slurmctld")
    site.cluster.start_slurmctld()
    site.until(lambda: site.cluster.try_run("sinfo").returncode == 0, "slurmctld")


@pytest.mark.parametrize("kill", [False, True])
def test_slurmctld_lost_during_the_prolog(site: Site, kill: bool) -> None:
    """The Prolog ends its work; the job's end takes it down, or reconcile if Slurm forgot it.

    The launch of the batch script is lost with slurmctld (DeferBatch): 22.05 notices
    after a minute and requeues the job. Here its user does not wait so long.
    """
    stop_at(site, CREATE_CI, 3)
    job = site.sbatch(*ON_N1, script="echo ran; sleep 300")
    site.until(lambda: standing(site), "the Prolog")
    restart(site, kill=kill)
    site.until(lambda: site.record(job).phase != phases.PLANNED, "the Prolog to end its work")
    patience = time.monotonic() + 20

    def gone() -> bool:
        # A cancellation that comes while slurmctld reads its state is lost with it.
        site.cluster.try_run("scancel", str(job))
        if time.monotonic() > patience:
            # So is the Prolog's end: then nothing is cancelled before BatchStartTimeout.
            for state in ("DOWN", "RESUME"):
                # A slurmd that registers in between has resumed it (ReturnToService).
                change = ("NodeName=n1", f"State={state}", "Reason=lost")
                site.cluster.try_run("scontrol", "update", *change)
        return reconcile(site) and closed(site, job)

    site.until(gone, "the slice to go")
    assert site.made() == []
    assert site.in_service()


@pytest.mark.parametrize("kill", [False, True])
def test_slurmctld_lost_during_the_job(site: Site, kill: bool) -> None:
    """Long enough after its start to be saved: the job and its slice go on."""
    job = site.sbatch(*ON_N1, script="echo up; sleep 300")
    site.until(lambda: "up" in site.output(job), "the job")
    if kill:
        saved(site, job)
    restart(site, kill=kill)
    site.until(lambda: site.state(job) == "RUNNING", "the job to be known")
    assert site.record(job).phase == phases.ACTIVE
    site.run("scancel", str(job))
    site.until(lambda: closed(site, job), "the Epilog")


@pytest.mark.parametrize("kill", [False, True])
def test_slurmctld_lost_during_the_epilog(site: Site, kill: bool) -> None:
    """The Epilog ends its work; the node comes back into service."""
    stop_at(site, DESTROY_GI, 3)
    job = site.sbatch(*ON_N1, script="echo ran")
    site.until(lambda: standing(site), "the Epilog")
    restart(site, kill=kill)
    site.until(lambda: closed(site, job), "the Epilog to end")
    assert site.made() == []
    # A killed slurmctld may remember the job as one whose Prolog runs, for minutes.
    site.cluster.try_run("scancel", str(job))
    site.until(lambda: site.node_state() == "idle", "the node", 150)
    assert site.made() == []


# -- two nodes -----------------------------------------------------------------

TWO = ("-N2", SLICE)


def test_a_job_of_two_nodes_and_a_broken_one(site: Site) -> None:
    """The broken node drains with our reason; the other one takes its part down again."""
    site.machine("n2").faults.set([Rule(CREATE_GI, "error:UNKNOWN", times=0)])
    job = site.sbatch(*TWO, script="srun echo ran")
    drained(site, ("slurm-mig: ",), "n2")
    site.wait(job, "PENDING")
    site.until(lambda: closed(site, job) and closed(site, job, "n2"), "the Epilogs")
    # 22.05 may start the script on the good node before it hears of the other one.
    assert site.made("n1") == site.made("n2") == []
    assert site.in_service("n1")


def test_srun_of_two_nodes_and_a_broken_one(site: Site) -> None:
    """The same for an interactive job: it ends."""
    site.machine("n2").faults.set([Rule(CREATE_GI, "error:UNKNOWN", times=0)])
    done = site.cluster.try_run("srun", *TWO, "echo", "ran", uid=ALICE)
    assert done.returncode != 0
    assert "ran" not in done.stdout
    drained(site, ("slurm-mig: ",), "n2")
    site.until(lambda: site.made("n1") == site.made("n2") == [], "the Epilogs")
    assert site.in_service("n1")


def test_a_job_of_two_nodes_without_room_on_one(site: Site) -> None:
    """The job waits with the reason; no node drains, both are clean."""
    site.block(0, "n2")
    job = site.sbatch(*TWO, script="srun echo ran")
    site.until(
        lambda: any(item.phase == phases.REFUSED for item in site.records("n2")), "the refusal"
    )
    site.wait(job, "PENDING")
    site.until(lambda: closed(site, job), "the Epilog of the other node")
    assert site.made("n1") == []
    assert site.in_service("n1")
    assert site.in_service("n2")
    assert "no placement for 3g.40gb:1" in site.show(job, "Comment")
    assert site.output(job) == ""


def test_srun_of_two_nodes_without_room_on_one(site: Site) -> None:
    """The user is told; no node drains, both are clean."""
    site.block(0, "n2")
    done = site.cluster.try_run("srun", *TWO, "echo", "ran", uid=ALICE)
    assert done.returncode != 0
    assert "ran" not in done.stdout
    assert "no placement for 3g.40gb:1" in done.stderr
    site.until(lambda: site.made("n1") == [], "the Epilog of the other node")
    assert site.in_service("n1")
    assert site.in_service("n2")


# -- time limit ----------------------------------------------------------------


def test_the_time_limit_in_the_prolog(build: Callable[..., Site]) -> None:
    """The Prolog is not signalled; the job ends as TIMEOUT, its Epilog takes all down."""
    site = build(NODES[0])
    stop_at(site, CREATE_CI, 35)
    job = site.sbatch(*ON_N1, script="echo ran")
    site.until(lambda: standing(site), "the Prolog")
    site.run("scontrol", "update", f"jobid={job}", "endtime=now+1")
    site.wait(job, "TIMEOUT", seconds=90)
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert site.output(job) == ""
    site.settle()
    site.check_clean()
