"""The manual's procedures with jobs in flight: nobody gets a GPU that he did not pay for."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import NODES, Site, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What step 3 of "Getting rid of it" takes out of slurm.conf.
OURS = re.compile(
    r"^(Prolog|Epilog|TaskProlog|GresTypes|JobSubmitPlugins|CliFilterPlugins)=.*\n", re.MULTILINE
)
MIG = "--gres=mig:3g.40gb:1"
SAYS = 'echo "ran with <$CUDA_VISIBLE_DEVICES>"; sleep 300'


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A cluster that each walk leaves as it was, and the last takes apart."""
    with running(NODES[:1]) as made:
        yield Site(made)


def ours(site: Site, *words: str, code: int = 0) -> str:
    """A command of root's on n1, with what it says."""
    environ = site.cluster.environ() | {
        "SLURM_MIG_CONFIG": str(site.cluster.root / "nodes/n1/config.toml"),
        "SLURMD_NODENAME": "n1",
    }
    command = [sys.executable, "-m", "slurm_mig", *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def started(site: Site) -> int:
    """A job with a slice, at work."""
    job = site.sbatch(MIG, script=SAYS)
    site.until(lambda: "MIG-" in site.output(job), "the slice")
    return job


def drained_by(site: Site, job: int, words: str) -> None:
    """The job's Prolog fails for that reason: it has not begun, and no other will."""
    site.until(lambda: not site.in_service(), "the drain")
    assert words in site.drain_reason()
    site.until(lambda: site.state(job) == "PENDING", "the job to be put back")
    assert site.output(job) == ""


def resume(site: Site) -> None:
    site.run("scontrol", "update", "nodename=n1", "state=resume")


def reloaded(site: Site, text: str) -> None:
    """Another slurm.conf, in force everywhere: a reconfiguration does not wait for slurmd."""
    (site.cluster.conf / "slurm.conf").write_text(text)
    site.cluster.stop_daemon("n1")
    site.run("scontrol", "reconfigure")
    site.cluster.start_slurmd("n1")
    site.until(lambda: site.node_state() in ("idle", "mixed", "allocated"), "slurmd")


def ledger(site: Site) -> Path:
    return site.cluster.root / "nodes/n1/state/ledger.db"


def version(site: Site, number: int) -> None:
    with closing(sqlite3.connect(ledger(site))) as db:
        db.execute(f"PRAGMA user_version={number}")


def away(site: Site) -> None:
    """The ledger and what lies beside it, moved aside."""
    for path in ledger(site).parent.glob("ledger.db*"):
        path.rename(path.with_name(f"old-{path.name}"))


def test_restoring_a_backup(site: Site) -> None:
    """One job ended since, another has its place, a third waits: none loses or shares a slice."""
    first = started(site)
    copy = ledger(site).with_name("copy.db")
    with closing(sqlite3.connect(ledger(site))) as db, closing(sqlite3.connect(copy)) as other:
        db.backup(other)
    site.run("scancel", str(first))
    site.until(lambda: site.node_state() == "idle", "the Epilog")
    second = started(site)
    away(site)
    copy.rename(ledger(site))
    waiting = site.sbatch(MIG, script=SAYS)
    drained_by(site, waiting, "ledger is older than what lies beside it")
    assert site.made() == ["3g.40gb@4"]
    assert "SM508" in ours(site, "doctor", code=30)
    said = ours(site, "reconcile", "--accept-older-ledger")
    assert f"job {second}" in said
    resume(site)
    slices = {site.output(job).split("<")[1] for job in (second, started(site))}
    assert (len(slices), site.output(waiting)) == (2, "")
    site.settle()
    site.check_clean()


def test_going_back_a_version_with_jobs(site: Site) -> None:
    """Across a breaking change, without the drain: nothing is destroyed, nothing starts."""
    running = started(site)
    version(site, 1003)
    waiting = site.sbatch(MIG, script=SAYS)
    drained_by(site, waiting, "has schema version 1003")
    ours(site, "reset", "--gpu", "all", "--force", code=17)
    site.run("scancel", str(running))
    site.until(lambda: site.node_state() == "drained", "the Epilog, which fails")
    assert site.made() == ["3g.40gb@4"]

    # The manual's order, late: the newer version empties the GPUs, the older begins anew.
    version(site, 3)
    ours(site, "reset", "--gpu", "all")
    version(site, 1003)
    away(site)
    ours(site, "reconcile", code=16)
    ours(site, "reconcile", "--accept-older-ledger")
    ours(site, "doctor")
    resume(site)
    site.settle()
    site.check_clean()


def test_to_static_mig_and_back(site: Site) -> None:
    """A job that runs is waited for; one that Slurm sends to a retired GPU does not begin."""
    running = started(site)
    layout = ("--layout", "3g.40gb:1,1g.10gb:3")
    site.run("scontrol", "update", "nodename=n1", "state=drain", "reason=to static MIG")
    assert f"job {running} of user alice has 3g.40gb@4" in ours(site, "retire", *layout, code=23)
    site.run("scancel", str(running))
    site.until(lambda: site.node_state() == "drained", "the Epilog")
    ours(site, "retire", *layout)
    assert "SM227" in ours(site, "doctor", code=30)
    # Resumed before Slurm's lines were changed.
    waiting = site.sbatch(MIG, script=SAYS)
    resume(site)
    drained_by(site, waiting, "retired")
    ours(site, "reset", "--gpu", "all", "--foreign")
    ours(site, "retire", "--undo")
    resume(site)
    site.settle()
    site.check_clean()


def test_removing_it_with_jobs(site: Site) -> None:
    """As the package's prerm does: refused while Slurm names the hooks, and while a slice is out.

    Whoever has taken the hook lines out with jobs running: their slices still go.
    """
    cluster = site.cluster
    hooks = ("--only", "hooks", "--hooks", str(cluster.root / "hooks"))
    ours(site, "install", *hooks)
    running = started(site)
    remove = ("install", "--uninstall", *hooks)
    assert "slurmd drains the node without" in ours(site, *remove, code=23)
    conf = cluster.conf / "slurm.conf"
    before = conf.read_text()
    lines = re.compile(r"^(Prolog|Epilog|TaskProlog)=.*\n", re.MULTILINE)
    reloaded(site, lines.sub("", before))
    assert "nothing takes down without the hooks" in ours(site, *remove, code=23)
    site.run("scancel", str(running))
    site.until(lambda: site.node_state() == "idle", "the node")
    assert site.made() == ["3g.40gb@4"]
    ours(site, "reset", "--gpu", "all")
    assert site.made() == []
    assert "start on bare GPUs" in ours(site, *remove, code=23)
    conf.write_text(re.sub(r" Gres=\S+", "", conf.read_text()))
    ours(site, *remove)
    ours(site, "install", *hooks)
    reloaded(site, before)


def test_getting_rid_of_it(site: Site) -> None:
    """In the manual's order, with one job that runs and one that waits for a slice."""
    cluster = site.cluster
    running = started(site)
    site.run("scontrol", "update", "nodename=n1", "state=drain", "reason=leaving slurm-mig")
    waiting = site.sbatch(MIG, script=SAYS)
    held = ours(site, "reset", "--gpu", "all", code=23)
    assert f"job {running} of user alice holds it" in held
    site.run("scancel", str(running))
    site.until(lambda: site.node_state() == "drained", "the Epilog")
    ours(site, "reset", "--gpu", "all")
    ours(site, "disable", "--gpu", "all")

    # A Slurm that no longer knows mig would start it without any GPU.
    site.run("scontrol", "hold", str(waiting))
    for name in ("n1", "slurmctld"):
        cluster.stop_daemon(name)
    text = OURS.sub("", (cluster.conf / "slurm.conf").read_text())
    (cluster.conf / "slurm.conf").write_text(re.sub(r" Gres=\S+", "", text))
    (cluster.conf / "gres.conf").write_text("")
    cluster.start_slurmctld()
    cluster.start_slurmd("n1")
    site.until(lambda: site.node_state() == "drained", "the node")
    site.run("scontrol", "update", "nodename=n1", "state=resume")
    plain = site.sbatch(script="echo done")
    site.until(lambda: "done" in site.output(plain), "a job without a GPU")
    assert site.output(waiting) == ""
    assert site.cluster.try_run("sbatch", MIG, "--wrap", "true").returncode != 0
