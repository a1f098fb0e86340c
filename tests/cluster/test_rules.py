"""job_submit.lua in a real slurmctld: clear refusals, and nobody holds more than he pays for."""

from __future__ import annotations

import pytest

from tests.kit.cluster import ALICE, BOB, Site


def refused(site: Site, *options: str) -> str:
    """Submit nonsense; the text the user sees."""
    done = site.cluster.try_run("sbatch", *options, uid=ALICE, stdin="#!/bin/sh\ntrue\n")
    assert done.returncode != 0
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gres=mig:9g.40gb:1"], "'9g.40gb', did you mean 3g.40gb; known: 1g.10gb, 1g.10gb+me"),
        (["--gres=mig:1"], "write --gres=mig:<profile>:<count>"),
        (["--gres=mig"], "write --gres=mig:<profile>:<count>"),
        (["--gres=mig:1g.10gb:1k"], "slurm-mig: "),
        (["--gres=mig:1g.10gb:15"], "write -N2 --gres=mig:1g.10gb:8"),
        (["--gres=mig:7g.80gb:2,mig:1g.10gb:1"], "do not fit on the 2 GPUs that a job may have"),
        (["--gres=mig:1g.10gb:1,mig:1g.6gb:1"], "different GPU models"),
        (["--gres=mig:1g.10gb:1,mig:1g.10gb:1"], "named twice"),
        (["--gres=shard:4"], "shards are counted by slurm-mig"),
        (["--gres=shard:h100:4"], "shards are counted by slurm-mig"),
        (["--gres=mig:7g.80gb:1,shard:h100:1"], "leave 'shard:h100:1' out"),
        # The client refuses it itself once cli_filter.lua has added the shards.
        (["--gres=mig:3g.40gb:1", "--gpus=1"], "Invalid generic resource (gres) specification"),
        (["--gres=mig:3g.40gb:1", "--exclusive"], "--exclusive"),
    ],
)
def test_nonsense_is_refused_at_submission(site: Site, options: list[str], says: str) -> None:
    """In one sentence, before anything is queued."""
    assert says in refused(site, *options)


def test_srun_and_salloc_say_the_same(site: Site) -> None:
    """The sentence reaches interactive users, too."""
    for command in (["srun", "true"], ["salloc", "true"]):
        done = site.cluster.try_run(command[0], "--gres=mig:9g.1gb:1", command[1], uid=ALICE)
        assert done.returncode != 0
        assert "unknown MIG profile '9g.1gb'" in done.stderr


@pytest.mark.parametrize(
    "change",
    ["gres=mig:7g.80gb:1", "gres=shard:1", "gres=gpu:1", "gres=", "TresPerNode=gres:gpu:1"],
)
def test_a_pending_jobs_gres_cannot_be_changed(site: Site, change: str) -> None:
    """By its user or by root: what it would hold is not what it pays."""
    job = site.sbatch("--gres=mig:1g.10gb:1", "--hold")
    before = site.show(job, "TresPerNode")
    for uid in (ALICE, 0):
        site.cluster.try_run("scontrol", "update", f"jobid={job}", change, uid=uid)
    assert site.show(job, "TresPerNode") == before


def test_an_ordinary_job_cannot_become_a_mig_job(site: Site) -> None:
    """By update."""
    job = site.sbatch("--hold")
    done = site.cluster.try_run(
        "scontrol", "update", f"jobid={job}", "gres=mig:7g.80gb:1", uid=ALICE
    )
    assert done.returncode != 0
    assert "mig" not in site.show(job, "TresPerNode")


FORGED = "slurm-mig=1,7g.80gb/0/31:1"


def test_a_stamp_in_the_submission_is_nobodys(site: Site) -> None:
    """On a slice job the real one wins; on another job none is left."""
    job = site.sbatch("--gres=mig:1g.10gb:1", f"--comment=x {FORGED} y")
    site.wait(job, "RUNNING")
    site.until(lambda: site.made() == ["1g.10gb@6"], "the slice that was paid for")
    plain = site.sbatch(f"--comment={FORGED}", "--gres=gpu:h100:1", script="sleep 300")
    site.wait(plain, "RUNNING")
    assert "slurm-mig" not in site.show(plain, "Comment")
    assert site.made("n1", 1) == []


def test_a_stamp_by_update_is_nobodys(site: Site) -> None:
    """While pending: the comment changes, the stamp stays what was paid."""
    job = site.sbatch("--gres=mig:1g.10gb:1", "--hold", "--comment=first")
    site.run("scontrol", "update", f"jobid={job}", f"comment=second {FORGED}", uid=ALICE)
    assert site.show(job, "Comment").startswith("second")
    site.run("scontrol", "release", str(job))
    site.wait(job, "RUNNING")
    site.until(lambda: site.made() == ["1g.10gb@6"], "the slice that was paid for")


def test_another_users_job_is_out_of_reach(site: Site) -> None:
    """Slurm's own rule; our update path does not widen it."""
    job = site.sbatch("--gres=mig:1g.10gb:1", "--hold")
    done = site.cluster.try_run("scontrol", "update", f"jobid={job}", "comment=mine", uid=BOB)
    assert done.returncode != 0


def test_clients_that_skip_the_filter(site: Site) -> None:
    """cli_filter.lua is convenience: without it the controller adds the same."""
    conf = site.cluster.conf
    plain = site.cluster.root / "conf-plain"
    plain.mkdir(exist_ok=True)
    for path in conf.iterdir():
        if path.name != "cli_filter.lua":
            text = path.read_text().replace("CliFilterPlugins=cli_filter/lua\n", "")
            (plain / path.name).write_text(text)
    done = site.cluster.try_run(
        "sbatch", "--parsable", "-o", "/dev/null", "--gres=mig:3g.40gb:1",
        uid=ALICE, stdin="#!/bin/sh\nsleep 300\n", SLURM_CONF=str(plain / "slurm.conf"),
    )  # fmt: skip
    job = int(done.stdout)
    site.wait(job, "RUNNING")
    assert "shard:h100:14" in site.show(job, "TresPerNode")
