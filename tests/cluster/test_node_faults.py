"""Broken nodes and killed hooks on real Slurm."""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.sandbox import SandboxNode
from slurm_mig.simulator.faults import Rule
from slurm_mig.transaction import reconcile
from tests.kit.cluster import ALICE, BOB
from tests.kit.cluster_jobs import kill_steps
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.cluster import Site


def resume(site: Site, name: str = "n1") -> None:
    site.run("scontrol", "update", f"nodename={name}", "state=resume")


def test_a_broken_driver_drains_with_our_reason(site: Site) -> None:
    """The job is requeued and held by Slurm; nothing is left on the hardware."""
    site.machine().faults.set([Rule("nvmlInitWithFlags", "error:DRIVER_NOT_LOADED", times=0)])
    job = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1", script="echo ran")
    site.until(lambda: not site.in_service(), "the drain")
    site.wait(job, "PENDING")
    assert site.drain_reason().startswith("slurm-mig: ")
    assert "load the NVIDIA kernel module" in site.drain_reason()
    assert site.output(job) == ""
    site.machine().faults.set([])
    resume(site)


def test_a_prolog_killed_in_the_middle(site: Site) -> None:
    """Slurm runs the Epilog; the half-made instance goes with it."""
    site.machine().faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "kill-after")])
    job = site.sbatch("--gres=mig:3g.40gb:1", script="echo ran")
    site.until(lambda: not site.in_service(), "the drain")
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert site.made() == []
    assert site.output(job) == ""
    site.machine().faults.set([])
    resume(site)


def test_a_job_restarted_without_its_prolog_fails_closed(site: Site) -> None:
    """What 22.05 does with some requeued jobs: here the file of the run is taken away."""
    job = site.sbatch("--gres=mig:1g.10gb:1", script="sleep 2; srun echo step ran; echo $?")
    site.wait(job, "RUNNING")
    site.until((site.cluster.root / f"nodes/n1/run/env/{job}.0").exists, "the file")
    (site.cluster.root / f"nodes/n1/run/env/{job}.0").unlink()
    site.wait(job, "COMPLETED", "FAILED")
    assert "slurm-mig: job" in site.output(job)
    assert "step ran" not in site.output(job).replace("srun echo step ran", "")
    assert site.in_service()


def test_a_cancel_while_the_prolog_runs(build: Callable[..., Site]) -> None:
    """The Prolog runs to its end, the Epilog takes everything down again."""
    site = build(SandboxNode("n1", ((H100, 2),), {"create-gi": 1500}))
    job = site.sbatch("--gres=mig:3g.40gb:1", script="echo ran")
    site.until(lambda: any(r.phase == phases.PLANNED for r in site.records()), "the Prolog")
    site.run("scancel", str(job))
    site.wait(job, "CANCELLED")
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert site.output(job) == ""
    site.settle()
    site.check_clean()


def test_slurmctld_restarted_while_a_job_runs(site: Site) -> None:
    """The Epilog may come without SLURM_JOB_GPUS then: the ledger knows."""
    job = site.sbatch("--gres=mig:3g.40gb:1", script="sleep 300")
    site.until(site.made, "the slice")
    cluster = site.cluster
    time.sleep(1)
    cluster.stop_daemon("slurmctld")
    cluster.start_slurmctld()
    site.until(lambda: site.cluster.try_run("sinfo").returncode == 0, "slurmctld")
    site.until(lambda: site.state(job) == "RUNNING", "the job to be known")
    site.run("scancel", str(job))
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert site.made() == []


def _lose_state(site: Site) -> None:
    """Slurmctld forgets every job; their processes are gone, and no Epilog ever comes."""
    cluster = site.cluster
    # The node's daemon goes first: it would bring the job back to a controller that forgot it.
    cluster.stop_daemon("n1")
    cluster.stop_daemon("slurmctld")
    shutil.rmtree(cluster.root / "state")
    (cluster.root / "state").mkdir()
    kill_steps(site)
    cluster.start_slurmctld()
    cluster.start_slurmd("n1")
    site.until(lambda: site.node_state() == "idle", "the node")


def test_a_lost_controller_state_is_reconciled(build: Callable[..., Site]) -> None:
    """No Epilog ever comes: reconcile asks who lives and takes down the rest."""
    site = build()
    job = site.sbatch("--gres=mig:3g.40gb:1", script="sleep 300")
    site.until(site.made, "the slice")
    _lose_state(site)
    node = site.cluster.node("n1")
    report = reconcile.reconcile(node.bench(), frozenset)
    node.close()
    assert [line for line in report.done if f"job {job} " in line]
    site.check_clean()


@pytest.mark.parametrize("uid", [ALICE, BOB])
def test_job_ids_used_again(build: Callable[..., Site], uid: int) -> None:
    """The new job of that number never gets what the lost one had.

    22.05 thinks that its Prolog has run already: the job is stopped then.
    """
    site = build()
    lost = site.sbatch("--gres=mig:7g.80gb:1", script="sleep 300")
    site.until(site.made, "the slice")
    _lose_state(site)
    # A file of its own: the lost job's belongs to its user.
    asked = ("--gres=mig:1g.10gb:1", "-o", "again.out")
    again = site.sbatch(*asked, script="echo $SLURM_MIG_PROFILES", uid=uid)
    assert again == lost
    site.wait(again, "COMPLETED", "FAILED")
    told = site.output("again")
    assert "1g.10gb" in told or "without its Prolog" in told
    assert "7g" not in told
    site.settle()
    site.check_clean()


def test_a_lost_job_does_not_stand_in_the_way(build: Callable[..., Site]) -> None:
    """Slurm sends a job to slots that a forgotten one still has: they are freed for it."""
    site = build(SandboxNode("n1", ((H100, 1),)))
    site.sbatch("--gres=mig:7g.80gb:1", script="sleep 300")
    site.until(site.made, "the slice")
    _lose_state(site)
    for _ in range(2):
        job = site.sbatch("--gres=mig:3g.40gb:1", script="true")
    site.wait(job, "COMPLETED")
    site.settle()
    site.check_clean()


def test_hooks_say_one_line_each(site: Site) -> None:
    """What slurmd's Prolog wrote is what an administrator greps for."""
    hooks = site.cluster.root / "hooks"
    original = (hooks / "prolog").read_text()
    log = site.cluster.root / "log/hook-lines"
    wrapped = original.replace("</dev/null", f"</dev/null 2>>{log}")
    (hooks / "prolog").write_text(wrapped)
    try:
        job = site.sbatch("--gres=mig:3g.40gb:1", script="true")
        site.wait(job, "COMPLETED")
    finally:
        (hooks / "prolog").write_text(original)
    (line,) = log.read_text().splitlines()
    assert re.search(rf"^slurm-mig: prolog job={job} restart=0 user=alice node=n1 .* carved$", line)
