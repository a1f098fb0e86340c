"""A node boots: what the unit runs before slurmd, and slurmd only if that went well."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Owner
from slurm_mig.node.retire import Retirement, parse_layout
from slurm_mig.sandbox.daemons import kill_all_in
from slurm_mig.slurm.protocol import BOOT as REASON
from slurm_mig.transaction import by_hand, release, whereabouts
from tests.kit.cluster_jobs import kill_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kit.cluster import Site


def power_off(site: Site, name: str = "n1") -> None:
    """The daemon, the steps and the instances are gone; a new boot id."""
    site.cluster.stop_daemon(name)
    kill_steps(site)
    site.machine(name).reboot()


def boot(site: Site, name: str = "n1") -> subprocess.CompletedProcess[str]:
    """As systemd does: the unit's command, and slurmd only where that ends with 0."""
    config = site.cluster.root / "nodes" / name / "config.toml"
    options = ["--config", str(config), "reconcile", "--boot", "--wait", "0", "--node", name]
    done = subprocess.run(
        [sys.executable, "-I", "-m", "slurm_mig", *options],
        env={"SLURM_CONF": str(site.cluster.conf / "slurm.conf")} | site.cluster.environ(),
        cwd="/", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode == 0:
        site.cluster.start_slurmd(name)
    return done


@pytest.fixture
def own(build: Callable[..., Site]) -> Iterator[Site]:
    """A node of the test's own: it goes through reboots."""
    site = build()
    yield site
    kill_all_in(site.cluster.work)


def test_a_reboot_under_a_running_job(own: Site) -> None:
    """The record is lost, MIG mode is on before slurmd starts, and jobs run again."""
    job = own.sbatch("--gres=mig:3g.40gb:1", script="sleep 300")
    own.until(own.made, "the slice")
    power_off(own)
    assert own.made() == []
    done = boot(own)
    assert done.returncode == 0, done.stderr
    assert f"done: job {job} on GPU 0 (3g.40gb@" in done.stdout
    assert done.stdout.count("MIG mode switched on") == 2
    assert own.record(job).phase == phases.LOST
    own.until(lambda: own.in_service() and own.node_state() != "unknown", "the node")
    own.run("scancel", str(job))
    again = own.sbatch("--gres=mig:1g.10gb:2", script="echo $SLURM_MIG_PROFILES")
    own.wait(again, "COMPLETED")
    assert "1g.10gb" in own.output(again)
    own.settle()
    own.check_clean()


def test_a_gpu_lost_on_the_way(own: Site) -> None:
    """Slurmd does not start, and sinfo says why; repaired, the next boot takes that back."""
    power_off(own)
    own.machine().lose(1)
    done = boot(own)
    assert done.returncode == 28
    assert "mismatch: " in done.stdout
    assert own.drain_reason().startswith(REASON)
    assert "Xid" in own.drain_reason()
    assert not own.in_service()
    own.machine().reboot()
    done = boot(own)
    assert done.returncode == 0, done.stderr
    own.until(lambda: own.node_state() == "idle", "the node")
    job = own.sbatch("--gres=mig:7g.80gb:1", script="true")
    own.wait(job, "COMPLETED")
    own.settle()
    own.check_clean()


def test_an_administrators_drain_is_not_ours(own: Site) -> None:
    """Neither its reason nor the drain itself is touched, however the boot goes."""
    own.run("scontrol", "update", "nodename=n1", "state=drain", "reason=new disk")
    power_off(own)
    own.machine().lose(0)
    assert boot(own).returncode == 28
    assert own.drain_reason() == "new disk"
    own.machine().reboot()
    assert boot(own).returncode == 0
    own.until(lambda: own.node_state() == "drained", "the node")
    assert own.drain_reason() == "new disk"


def test_slurmctld_is_down(own: Site) -> None:
    """The boot goes its way in bounded time; slurmd waits for the controller by itself."""
    power_off(own)
    own.cluster.stop_daemon("slurmctld")
    done = boot(own)
    assert done.returncode == 0
    assert "Slurm was not told: " in done.stderr
    own.cluster.start_slurmctld()
    own.until(lambda: own.cluster.try_run("sinfo").returncode == 0, "slurmctld")
    own.until(lambda: own.node_state() == "idle", "the node")


def test_by_hand_while_a_job_runs(site: Site) -> None:
    """The slice, its files and the job are as before."""
    job = site.sbatch("--gres=mig:3g.40gb:1", script="sleep 5; srun echo a step; true")
    site.until(site.made, "the slice")
    config = site.cluster.root / "nodes/n1/config.toml"
    done = subprocess.run(
        [sys.executable, "-m", "slurm_mig", "--config", str(config), "reconcile", "--boot"],
        env=site.cluster.environ() | {"SLURMD_NODENAME": "n1"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "hardware, configuration and ledger agree\n")
    assert site.made() != []
    site.wait(job, "COMPLETED")
    assert "a step" in site.output(job)


@pytest.mark.parametrize("service", [0, 1])
def test_nodes_that_do_not_return_by_themselves(build: Callable[..., Site], service: int) -> None:
    """ReturnToService=0 and 1 (slurm.conf(5)): a drain of ours is taken back wholly."""
    own = build(slurm_conf=f"ReturnToService={service}")
    shown = own.run("scontrol", "show", "config").split("ReturnToService")[1]
    assert shown.split()[1] == str(service)
    power_off(own)
    own.machine().lose(1)
    assert boot(own).returncode == 28
    own.machine().reboot()
    assert boot(own).returncode == 0
    own.until(lambda: own.node_state() == "idle", "the node")


def test_a_retired_gpu_that_slurm_still_offers(build: Callable[..., Site]) -> None:
    """The node is drained with a word of `retire`; taken back, the job runs."""
    own = build()
    node = own.cluster.node("n1")
    gpu = node.driver.gpus()[0]
    work = Retirement(node, Owner(None, user="root"))
    work.retire(gpu, parse_layout("1g.10gb:7"), mig_off=False)
    job = own.sbatch("--gres=mig:3g.40gb:1", script="true")
    own.until(lambda: not own.in_service(), "the drain")
    assert own.drain_reason().startswith("slurm-mig: ")
    assert "retired since" in own.drain_reason()
    assert own.made() == [f"1g.10gb@{start}" for start in range(7)]
    own.run("scancel", str(job))
    for item in whereabouts.foreign_instances(node.bench(), gpu):
        release.release(node.bench(), by_hand.adopt(node.bench(), Owner(None), gpu, item), "undone")
    work.undo(gpu)
    node.close()
    own.settle()
    own.run("scontrol", "update", "nodename=n1", "state=resume")
    again = own.sbatch("--gres=mig:3g.40gb:1", script="true")
    own.wait(again, "COMPLETED")
    own.settle()
    own.check_clean()
