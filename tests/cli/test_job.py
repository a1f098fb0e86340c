"""`slurm-mig job ID`: what an administrator, or a user, wants to know of one job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.cli import commands, parsed, refused
from tests.kit.hooks import STAMP, squeue
from tests.kit.users import cli_as

if TYPE_CHECKING:
    from tests.kit.site import Site

pytestmark = pytest.mark.root


def pending(job: int) -> str:
    return squeue(job).replace("RUNNING", "PENDING")


def test_a_jobs_life(site: Site) -> None:
    """Refused and waiting, then at work, then over: the times, the slice, and what comes next."""
    assert site.prolog(8, "slurm-mig=1,7g.80gb/0/31:1").returncode == 0
    assert site.prolog(7, STAMP).returncode == 0
    commands(site, squeue=pending(7))
    lines = site.cli("job", "7").stdout.splitlines()
    assert lines[0] == "job 7 of alice: pending"
    assert lines[1].startswith("  n1, GPU 0: refused, 20")
    assert lines[3].startswith("    why: job 7: GPU 0")
    assert "next: it starts by itself once a start would succeed" in " ".join(lines)
    site.epilog(8)
    site.prolog(7, STAMP, SLURM_JOB_RESTART_COUNT="1")
    commands(site, squeue=squeue(7))
    shown = site.cli("job", "7").stdout
    assert "  n1, GPU 0 (run 2): active, since 20" in shown
    assert "    3g.40gb@4      MIG-" in shown
    assert shown.endswith("next: its slices end with the job\n")
    assert all(len(line) <= 80 for line in shown.splitlines())
    commands(site, squeue="exit 0")
    assert "its slice is still here: `slurm-mig reconcile`" in site.cli("job", "7").stdout
    site.epilog(7, SLURM_JOB_RESTART_COUNT="1")
    data = parsed(site.cli("job", "7", "--json"))
    assert (data["state"], [item["phase"] for item in data["records"]]) == (
        None,
        ["refused", "released"],
    )
    assert data["next"].startswith("nothing; ")


def test_a_job_that_nobody_knows(site: Site) -> None:
    """Where to look."""
    commands(site, squeue="exit 0")
    refused(site.cli("job", "99"), 2, "`sacct -j 99 -o JobID,State,NodeList`")
    refused(site.cli("job", "x"), 2, "Allowed: whole numbers from 1 to 4294967295")


def test_slurm_is_silent(site: Site) -> None:
    """What is recorded is shown, and nothing is concluded; the silence is the exit code."""
    site.prolog(7, STAMP)
    done = site.cli("job", "7")
    assert done.returncode == 20
    assert done.stdout.startswith("job 7 of alice: Slurm does not answer\n  n1, GPU 0: active")
    assert done.stdout.endswith("next: ask again when slurmctld answers\n")


def test_for_everybody(site: Site) -> None:
    """A user is told what Slurm knows."""
    site.prolog(7, STAMP)
    site.config.chmod(0o644)
    commands(site, squeue=squeue(7))
    done = cli_as(64001, "job", "7", SLURM_MIG_CONFIG=str(site.config))
    assert done.stderr == ""
    assert done.stdout == "job 7: running\nnext: its slices end with the job\n"


@pytest.mark.parametrize("asked", [("job",), ("audit", "--job"), ("verify", "--job")])
def test_a_tasks_name_is_no_job_id(site: Site, asked: tuple[str, ...]) -> None:
    """`12_3` was read as the number 123: another job's answer."""
    for name in ("12_3", "12+1"):
        refused(site.cli(*asked, name), 2, f"squeue -h -j {name} -O JobID")
