"""Slices that stay in use, on real Slurm: set aside, freed by a later hook, drain and resume."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.gpu.holder import Place
from slurm_mig.mig import allocation as phases
from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import ALICE, BOB, Site, running
from tests.kit.gpus import H100
from tests.kit.site import with_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.sandbox import Cluster

#: Ends its own process tree: proctrack/linuxproc does not find it again.
DAEMON = "(setsid sleep 300 </dev/null >/dev/null 2>&1 & echo $! >daemon.$SLURM_JOB_ID); sleep 300"

# Hooks have no LD_PRELOAD, so this cluster's users are but numbers to them.
QUICK = "[hooks]\ndestroy_timeout = 1\n[stuck]\ntimeout = 4\n"
IGNORE = QUICK + 'remedies = ["ignore"]\n'


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node with one H100."""
    with running((SandboxNode("n1", ((H100, 1),)),)) as made:
        yield made


@pytest.fixture
def configure(site: Site) -> Iterator[Callable[[str], None]]:
    """Put lines behind the node's configuration; the hooks read it each time."""
    path = site.cluster.root / "nodes/n1/config.toml"
    plain = path.read_text()

    def write(text: str) -> None:
        own = with_hooks("")
        assert plain.endswith(own)
        path.write_text(plain.removesuffix(own) + with_hooks(text))

    yield write
    path.write_text(plain)
    # Whatever the test came to, the next one begins on a clean node.
    for note in site.cluster.work.glob("daemon.*"):
        with contextlib.suppress(ValueError, ProcessLookupError):
            os.kill(int(note.read_text()), signal.SIGKILL)
        note.unlink()
    site.settle()
    command(site, "reconcile")
    if not site.in_service():
        site.run("scontrol", "update", "nodename=n1", "state=undrain")


def leave_behind(site: Site, profile: str = "3g.40gb", uid: int = ALICE) -> tuple[int, int]:
    """A job of which a process uses its slice beyond its end: job and pid, both still there."""
    job = site.sbatch(f"--gres=mig:{profile}:1", script=DAEMON, uid=uid)
    note = site.cluster.work / f"daemon.{job}"
    site.until(lambda: note.exists() and note.read_text().strip(), "the daemon")
    pid = int(note.read_text())
    site.machine().hold(pid, site.record(job).uuids[0])
    return job, pid


def stuck(site: Site, profile: str = "3g.40gb", uid: int = ALICE) -> tuple[int, int]:
    """The same once the job has ended, and its slice is set aside."""
    job, pid = leave_behind(site, profile, uid)
    site.run("scancel", str(job))
    site.until(lambda: site.record(job).phase == phases.QUARANTINED, "the quarantine")
    site.until(lambda: site.state(job) not in ("RUNNING", "COMPLETING"), "the Epilog")
    return job, pid


def alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # Dead, though nobody has reaped it: what is process 1 in a container may take its time.
    return text.rpartition(")")[2].split()[0] != "Z"


def command(site: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of slurm-mig on the node."""
    config = site.cluster.root / "nodes/n1/config.toml"
    return subprocess.run(
        [sys.executable, "-m", "slurm_mig", "--config", config, *arguments],
        env=site.cluster.environ() | {"SLURMD_NODENAME": "n1"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def free(site: Site, *pids: int) -> None:
    """End what tests left behind; the next hook or reconcile takes the slices down."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    site.until(lambda: not any(map(alive, pids)), "the end of the processes")


def test_set_aside_and_freed_by_the_next_jobs_hook(
    site: Site, configure: Callable[[str], None]
) -> None:
    """That slice alone: others run beside it, status shows it, no node is drained."""
    configure(IGNORE)
    job, pid = stuck(site)
    assert alive(pid)
    assert f"used by pid {pid} of {ALICE} (sleep 300)" in site.record(job).reason
    assert site.in_service()

    other = site.sbatch("--gres=mig:3g.40gb:1", script="sleep 300", uid=BOB)
    site.wait(other, "RUNNING")
    site.until(lambda: site.made() == ["3g.40gb@0", "3g.40gb@4"], "the other slice")
    data = json.loads(command(site, "status", "--json").stdout)
    assert [(row["gpu"], row["slices"]) for row in data["stuck"]] == [(0, 1)]
    (item,) = [item for item in data["gpus"][0]["instances"] if item["phase"] == "quarantined"]
    assert [(holder["pid"], holder["user"]) for holder in item["holders"]] == [(pid, "alice")]
    assert "stuck: 1 on GPU 0" in command(site, "status").stdout

    free(site, pid)
    third = site.sbatch("--gres=mig:1g.10gb:1", script="true")
    site.wait(third, "COMPLETED")
    assert site.record(job).phase == phases.RELEASED
    site.run("scancel", str(other))


def test_a_job_that_finds_no_room_for_it_is_told(
    site: Site, configure: Callable[[str], None]
) -> None:
    """In its comment, without a word of whose process it is; requeued, the node stays."""
    configure(IGNORE)
    _, pid = stuck(site)
    refused = site.sbatch("--gres=mig:7g.80gb:1", script="true", uid=BOB)
    site.until(lambda: "[slurm-mig:" in site.show(refused, "Comment"), "the refusal")
    told = site.show(refused, "Comment")
    assert "3g.40gb@4 of jobs that have ended cannot be taken down yet" in told
    assert str(pid) not in told
    assert site.in_service()
    site.run("scancel", str(refused))
    free(site, pid)
    assert command(site, "reconcile").returncode == 0


def test_what_slurm_missed_is_killed(site: Site, configure: Callable[[str], None]) -> None:
    """By default: the job is over, and its processes with it."""
    configure(QUICK)
    job, pid = leave_behind(site)
    site.run("scancel", str(job))
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert not alive(pid)
    assert f"killed pid {pid} of {ALICE} (sleep 300)" in site.record(job).reason


def test_a_slice_ends_with_its_job(site: Site, configure: Callable[[str], None]) -> None:
    """By default also where a process of another job of the same user sits on it."""
    configure(QUICK)
    other = site.sbatch("--gres=mig:1g.10gb:1", script=DAEMON)
    note = site.cluster.work / f"daemon.{other}"
    site.until(lambda: note.exists() and note.read_text().strip(), "the process")
    intruder = int(note.read_text())
    job = site.sbatch("--gres=mig:4g.40gb:1", script="sleep 300")
    # Its Prolog may still be at work.
    site.until(
        lambda: any(item.owner.job_id == job and item.uuids for item in site.records("n1")),
        "the slice",
    )
    site.machine().hold(intruder, site.record(job).uuids[0])
    site.run("scancel", str(job))
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert not alive(intruder)
    assert f"killed pid {intruder} of {ALICE}" in site.record(job).reason
    assert site.state(other) == "RUNNING"
    assert site.in_service()
    site.run("scancel", str(other))


def test_another_job_of_the_user_makes_it_doubtful(
    site: Site, configure: Callable[[str], None]
) -> None:
    """Without cgroups the environment alone tells them apart: `kill-job` leaves it at that."""
    configure(QUICK + 'remedies = ["kill-job"]\n')
    other = site.sbatch("--gres=mig:1g.10gb:1", script="sleep 300")
    site.wait(other, "RUNNING")
    _, pid = stuck(site)
    assert alive(pid)
    site.run("scancel", str(other))
    site.until(lambda: site.record(other).phase == phases.RELEASED, "the Epilog")
    assert command(site, "reconcile").returncode == 0
    assert not alive(pid)


def test_drained_past_the_threshold_and_resumed(
    site: Site, configure: Callable[[str], None]
) -> None:
    """By an Epilog each; the reason names who it is, and the running job is not disturbed."""
    configure(IGNORE + "drain_slices = 2\ndrain_after = 0.001\n")
    running_on = site.sbatch("--gres=mig:1g.10gb:1", script="sleep 300", uid=BOB)
    site.wait(running_on, "RUNNING")
    _, first = stuck(site, "2g.20gb")
    assert site.in_service()
    _, second = stuck(site, "2g.20gb")
    site.until(lambda: not site.in_service(), "the drain")
    reason = site.drain_reason()
    assert reason.startswith("slurm-mig: stuck slices: GPU 0 2g.20gb@")
    assert f"pid {first} of {ALICE} (sleep 300)" in reason
    assert site.state(running_on) == "RUNNING"

    free(site, first)
    site.run("scancel", str(running_on))
    site.until(site.in_service, "the Epilog that resumes it")
    # Since 24.11 Slurm keeps the reason of a drain that is over.
    assert site.drain_reason() in ("none", reason)
    free(site, second)
    assert command(site, "reconcile").returncode == 0


def test_an_administrators_reason_is_not_cleared(
    site: Site, configure: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """He drained on top: the slice goes, the drain stays his."""
    configure(IGNORE + "drain_slices = 1\ndrain_after = 0.001\n")
    _, pid = stuck(site)
    site.until(lambda: not site.in_service(), "the drain")
    site.run("scontrol", "update", "nodename=n1", "state=drain", "reason=fan broken")
    free(site, pid)
    done = command(site, "reconcile")
    assert "no longer drained by slurm-mig, but by 'fan broken'" in done.stdout
    assert site.drain_reason() == "fan broken"
    site.run("scontrol", "update", "nodename=n1", "state=undrain")
    # The other way round: his drain is there first, and stays as it is.
    site.until(site.in_service, "the node")
    configure(IGNORE)
    _, pid = stuck(site)
    site.run("scontrol", "update", "nodename=n1", "state=drain", "reason=fan broken")
    configure(IGNORE + "drain_slices = 1\ndrain_after = 0.001\n")
    assert "not drained for stuck slices" in command(site, "reconcile").stdout
    monkeypatch.setenv("SLURM_CONF", site.cluster.environ()["SLURM_CONF"])
    node = site.cluster.node("n1")
    node.slurm.drain("n1", "slurm-mig: a node's fault")
    node.close()
    assert site.drain_reason() == "fan broken"
    site.run("scontrol", "update", "nodename=n1", "state=undrain")
    free(site, pid)
    assert command(site, "reconcile").returncode == 0


def test_a_silent_slurmctld_is_tried_again(site: Site, configure: Callable[[str], None]) -> None:
    """Freed while it is away: the drain is taken back by the next reconcile."""
    configure(IGNORE + "drain_slices = 1\ndrain_after = 0.001\n")
    _, pid = stuck(site)
    site.until(lambda: not site.in_service(), "the drain")
    site.cluster.stop_daemon("slurmctld")
    free(site, pid)
    assert command(site, "reconcile").returncode == 24
    assert site.made() == []
    site.cluster.start_slurmctld()
    site.until(lambda: site.cluster.try_run("sinfo").returncode == 0, "slurmctld")
    assert not site.in_service()
    assert "resumed" in command(site, "reconcile").stdout
    assert site.in_service()


@pytest.mark.skipif(
    not any("freezer" in line for line in Path("/proc/self/cgroup").read_text().splitlines()),
    reason="no freezer cgroup (v1) on this machine: proctrack/cgroup cannot be tried",
)
def test_slurms_own_cgroups_are_understood(build: Callable[..., Site]) -> None:
    """The paths that a real slurmd makes name job and user, and its own steps name nobody else."""
    site = build(
        slurm_conf="ProctrackType=proctrack/cgroup\n",
        cgroup_conf="CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n",
    )
    job = site.sbatch("--gres=mig:1g.10gb:1", script="echo $$ >shell; sleep 300")
    note = site.cluster.work / "shell"
    site.until(lambda: note.exists() and note.read_text().strip(), "the script")
    place = Place.parse(Path(f"/proc/{note.read_text().strip()}/cgroup").read_text())
    assert (place.job, place.job_uid, place.doubtful) == (job, ALICE, False)
    site.settle()
