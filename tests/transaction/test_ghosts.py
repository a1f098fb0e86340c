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


def test_a_job_that_ended_with_the_machine(site: Site) -> None:
    """Named with the remedy; one with a process, or with a record of this boot, is not."""
    job = 900_000_000 + os.getpid()
    tres = "gres:mig:3g.40gb:1,gres:shard:h100:14"
    slurm_commands(site, squeue=squeue(job, tres, live=[job]))
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
