"""Reconcile sees both sides: jobs that Slurm counts here and that ended with the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slurm_mig.slurm.ghosts import without_process
from tests.kit.cli import parsed
from tests.kit.hooks import STAMP, slurm_commands, squeue

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.site import Site

pytestmark = pytest.mark.root


def test_whose_processes_are_seen(tmp_path: Path) -> None:
    """By the environment of hooks and tasks, or a step manager's name; no other number's."""
    for pid, name, text in (
        (10, "environ", b"A=1\0SLURM_JOB_ID=7\0B=2\0"),
        (11, "cmdline", b"slurmstepd: [8.extern]\0"),
        (12, "environ", b"XSLURM_JOB_ID=9\0SLURM_JOB_ID=99\0"),
        (13, "environ", b"SLURM_JOBID=10"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / name).write_bytes(text)
    assert without_process({7, 8, 9, 10}, tmp_path) == {9}


def counted(job: int, *, restarts: int, requeue: int = 1) -> str:
    """A squeue that goes on counting a job with a slice, started anew so often."""
    tres = "gres:mig:3g.40gb:1,gres:shard:h100:14"
    told = f"{1:<4}{1:<4}{0:<8}"
    known = squeue(job, tres, live=[job])
    assert told in known
    return known.replace(told, f"{1:<4}{requeue:<4}{restarts:<8}")


def test_a_run_that_a_boot_has_ended_comes_again(site: Site) -> None:
    """Of that very run slices are on record as lost: nobody has to wait for slurmctld to notice."""
    job = 900_000_000 + os.getpid()
    asked = slurm_commands(site, squeue=counted(job, restarts=0))
    assert site.prolog(job, STAMP).returncode == 0
    site.machine.reboot()
    site.cli("reconcile", "--boot", SLURMD_NODENAME="n1")
    (left,) = parsed(site.cli("reconcile", "--dry-run", "--json", SLURMD_NODENAME="n1"), 24)["left"]
    assert f"scontrol requeue {job}" in left
    assert "requeue" not in asked.read_text().replace(",requeue:", "")
    report = parsed(site.cli("reconcile", "--json", SLURMD_NODENAME="n1"))
    assert report["done"] == [f"job {job}: requeued, for it ended with an earlier boot"]
    assert asked.read_text().count(f"scontrol requeue {job}\n") == 1


@pytest.mark.parametrize(("restarts", "requeue"), [(1, 1), (0, 0)])
def test_a_run_that_is_left_to_slurm(site: Site, restarts: int, requeue: int) -> None:
    """Another run than the one that was lost, or a job that may not be requeued."""
    job = 900_000_000 + os.getpid()
    asked = slurm_commands(site, squeue=counted(job, restarts=restarts, requeue=requeue))
    assert site.prolog(job, STAMP).returncode == 0
    site.machine.reboot()
    (left,) = parsed(site.cli("reconcile", "--json", SLURMD_NODENAME="n1"), 24)["left"]
    assert left.startswith(f"job {job} is counted here by Slurm, but has no process")
    assert f"scontrol requeue {job}\n" not in asked.read_text()


def test_a_job_that_ended_with_the_machine(site: Site) -> None:
    """One of srun's is named with the remedy; not with a process, or a record of this boot."""
    job = 900_000_000 + os.getpid()
    tres = "gres:mig:3g.40gb:1,gres:shard:h100:14"
    slurm_commands(site, squeue=squeue(job, tres, batch=0, live=[job]))
    assert site.prolog(job, STAMP).returncode == 0
    assert parsed(site.cli("reconcile", "--json"))["left"] == []
    site.machine.reboot()
    (left,) = parsed(site.cli("reconcile", "--json", SLURMD_NODENAME="n1"), 24)["left"]
    assert left.startswith(f"job {job} is counted here by Slurm, but has no process")
    assert f"scontrol requeue {job}" in left
    own = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        env={"SLURM_JOB_ID": str(job)},
        stdin=subprocess.PIPE,
    )
    try:
        assert parsed(site.cli("reconcile", "--json", SLURMD_NODENAME="n1"))["left"] == []
    finally:
        own.communicate(b"")
