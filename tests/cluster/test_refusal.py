"""A request without room on real Slurm: nobody's script starts, no node drains, nothing hammers."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from slurm_mig.mig import allocation as phases
from tests.kit.cluster import ALICE, Site, launch

if TYPE_CHECKING:
    from collections.abc import Callable


def refused(site: Site, job: int) -> bool:
    return any(
        record.owner.job_id == job and record.phase == phases.REFUSED for record in site.records()
    )


def active(site: Site, job: int) -> bool:
    return any(record.owner.job_id == job and record.open for record in site.records())


def test_a_batch_job_waits_and_runs_later(site: Site) -> None:
    """Requeued without its script starting, told why, left in peace, then run."""
    site.block(0)
    site.block(1)
    job = site.sbatch("--gres=mig:3g.40gb:1", "--comment=my own words", script="echo ran")
    site.until(lambda: refused(site, job), "the refusal")
    site.wait(job, "PENDING")

    assert site.output(job) == ""
    assert site.in_service()
    comment = site.show(job, "Comment")
    assert comment.startswith("my own words [slurm-mig: job ")
    assert "no placement for 3g.40gb:1: taken 1g.10gb@3, 1g.10gb@4" in comment
    reason = site.records()[-1].reason
    assert reason in comment.replace(")", "]").replace("]", ")") or reason in comment

    # Not before twice the credential's life, here 10 s: 22.05 would skip the Prolog.
    start = site.show(job, "StartTime")
    site.until(lambda: site.show(job, "StartTime") != start or _ahead(site, job) > 4, "a delay")
    before = len(site.records())
    time.sleep(2)
    assert len(site.records()) == before
    site.unblock()
    site.wait(job, "COMPLETED", seconds=90)
    assert site.output(job) == "ran\n"
    assert site.record(job).owner.restart == 1


def _ahead(site: Site, job: int) -> float:
    text = site.show(job, "StartTime")
    if not re.match(r"\d{4}-", text):
        return 0.0
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) - time.time()


def test_one_task_of_an_array_not_the_array(site: Site) -> None:
    """The last task has the array's own id: naming it wrongly would requeue all of them."""
    site.block(1)
    site.block(0, starts=(3,))
    job = site.sbatch("--array=0-1", "--gres=mig:3g.40gb:1", script="echo up; sleep 300")
    site.until(lambda: "PENDING" in site.state(job) and "RUNNING" in site.state(job), "one of each")
    time.sleep(2)
    states = site.run("squeue", "-h", "-a", "-r", "-j", str(job), "-o", "%K:%T").split()
    assert sorted(word.split(":")[1] for word in states) == ["PENDING", "RUNNING"]
    assert site.in_service()


def test_no_requeue_is_lifted_and_put_back(site: Site) -> None:
    """By default such a job waits too, and keeps its wish."""
    site.block(0)
    site.block(1)
    job = site.sbatch("--no-requeue", "--gres=mig:3g.40gb:1", script="echo ran")
    site.until(lambda: refused(site, job), "the refusal")
    site.wait(job, "PENDING")
    site.until(lambda: site.show(job, "Requeue").startswith("0"), "the flag")
    assert site.output(job) == ""


def test_srun_is_told_and_cancelled(site: Site) -> None:
    """The user reads why; the command ends; the node stays."""
    site.block(0)
    site.block(1)
    done = site.cluster.try_run("srun", "--gres=mig:3g.40gb:1", "echo", "ran", uid=ALICE)
    assert done.returncode != 0
    assert "ran" not in done.stdout
    assert "slurm-mig: job " in done.stderr
    assert "no placement for 3g.40gb:1" in done.stderr
    assert site.in_service()


def test_salloc_is_told_and_cancelled(site: Site) -> None:
    """The same for an allocation."""
    site.block(0)
    site.block(1)
    shell = launch(site, "salloc", "--gres=mig:3g.40gb:1", "/bin/sh", "-c", "srun echo ran")
    out, err = shell.communicate(timeout=60)
    assert "ran" not in out
    assert "no placement for 3g.40gb:1" in err
    assert "revoked" in err or shell.returncode != 0


def test_a_bouncing_job_is_held(build: Callable[..., Site]) -> None:
    """After the configured number of restarts; it waits for an administrator then."""
    site = build(config="max_requeues = 0\n")
    site.block(0)
    site.block(1)
    job = site.sbatch("--gres=mig:3g.40gb:1", script="echo ran")
    site.until(lambda: refused(site, job), "the refusal")
    site.wait(job, "PENDING")
    site.until(lambda: "held" in site.show(job, "Reason").lower(), "the hold")
    site.unblock()
    site.run("scontrol", "release", str(job))
    site.until(lambda: "ran" in site.output(job), "the job to run once released", 90)


def test_preemptions_are_no_refusals(build: Callable[..., Site]) -> None:
    """Requeued more often than `max_requeues` allows, and then refused for the first time."""
    site = build(config="max_requeues = 1\n")
    job = site.sbatch("--gres=mig:3g.40gb:1", "--requeue")
    for _ in range(2):
        site.wait(job, "RUNNING")
        site.until(lambda: active(site, job), "the slice")
        site.until(
            lambda: site.cluster.try_run("scontrol", "requeue", str(job)).returncode == 0, "it back"
        )
        site.wait(job, "PENDING")
        # Past the credential's life: 22.05 restarts sooner ones without a Prolog.
        site.run("scontrol", "update", f"jobid={job}", "starttime=now+10")
    site.block(0)
    site.block(1)
    site.until(lambda: refused(site, job), "the refusal")
    site.wait(job, "PENDING")
    site.until(lambda: "BeginTime" in site.show(job, "Reason"), "another try")
    assert int(site.show(job, "Restarts")) > 1
    site.unblock()


def test_refused_while_slurmctld_is_silent(build: Callable[..., Site]) -> None:
    """The TaskProlog stops the job with the reason; the node is not drained for it."""
    site = build(config="[hooks]\nlock_timeout = 5\n")
    site.block(0)
    site.block(1)
    # What the Prolog would ask with is not there: as good as no slurmctld.
    path = site.cluster.root / "nodes/n1/config.toml"
    path.write_text(re.sub('bin = ".*"', 'bin = "/nonexistent"', path.read_text()))
    job = site.sbatch("--gres=mig:3g.40gb:1", script="echo ran")
    site.wait(job, "FAILED", "COMPLETED", "CANCELLED")
    assert site.state(job) == "FAILED"
    assert "slurm-mig: job" in site.output(job)
    assert "no placement for 3g.40gb:1" in site.output(job)
    assert "ran" not in site.output(job).split()
    assert site.in_service()


def test_a_cancel_before_the_refusal(site: Site) -> None:
    """The user's cancel holds: a refused job that is ending is not put back into the queue."""
    site.block(0)
    site.block(1)
    hook = site.cluster.root / "hooks/prolog"
    original = hook.read_text()
    hook.write_text(original.replace('exec "$python', 'sleep 2; exec "$python'))
    try:
        job = site.sbatch("--gres=mig:3g.40gb:1", script="echo ran")
        site.wait(job, "RUNNING")
        site.run("scancel", str(job), uid=ALICE)
        site.until(lambda: refused(site, job), "the refusal")
        site.wait(job, "CANCELLED")
    finally:
        hook.write_text(original)
    assert site.output(job) == ""


def test_what_makes_room_brings_a_job_forward(build: Callable[..., Site]) -> None:
    """Its time is ten minutes away: another job's end counts, though every daemon restarted."""
    site = build(config="retry_delay = 600\n")
    site.block(1)
    # Both halves of GPU 0 are spoilt for a 3g; shards for it are free.
    small = [site.sbatch("--gres=mig:1g.10gb:1") for _ in range(7)]
    site.until(lambda: len(site.made("n1", 0)) == 7, "seven small ones")
    starts = {site.record(job).instances[0].start: job for job in small}
    for start, job in starts.items():
        if start not in {1, 5}:
            site.run("scancel", str(job))
    site.until(lambda: len(site.made("n1", 0)) == 2, "two small ones")
    job = site.sbatch("--gres=mig:3g.40gb:1", script="echo ran")
    site.until(lambda: _ahead(site, job) > 500, "a begin time far away")
    for name in ("slurmctld", "n1"):
        site.cluster.stop_daemon(name)
    site.cluster.start_slurmctld()
    site.cluster.start_slurmd("n1")
    site.until(lambda: site.node_state() in {"mixed", "allocated"}, "the node to be back")
    before = len(site.records())
    time.sleep(2)
    assert len(site.records()) == before, "it does not bounce"
    site.run("scancel", str(starts[5]))
    site.wait(job, "COMPLETED")
    assert site.output(job) == "ran\n"
    # One refusal, though it was restarted once.
    assert "refused" not in site.show(job, "Comment").partition("]")[2]
    assert [record.phase for record in site.records() if record.owner.job_id == job] == [
        phases.REFUSED,
        phases.RELEASED,
    ]
    assert site.in_service()
