"""The manual's procedures with jobs in flight: nobody gets a GPU that he did not pay for."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slurm_mig.sandbox import Cluster, scratch

from .conftest import NODES, PREFIX, Site, enable_mig

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What step 3 of "Getting rid of it" takes out of slurm.conf.
OURS = re.compile(
    r"^(Prolog|Epilog|TaskProlog|GresTypes|JobSubmitPlugins|CliFilterPlugins)=.*\n", re.MULTILINE
)
MIG = "--gres=mig:3g.40gb:1"
SAYS = 'echo "ran with <$CUDA_VISIBLE_DEVICES>"; sleep 300'


@pytest.fixture
def site() -> Iterator[Site]:
    """A cluster that is taken apart."""
    made = Cluster(scratch(), NODES[:1], prefix=PREFIX)
    try:
        with made:
            enable_mig(made)
            yield Site(made)
    finally:
        made.remove()


def ours(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of root's on n1."""
    environ = site.cluster.environ() | {
        "SLURM_MIG_CONFIG": str(site.cluster.root / "nodes/n1/config.toml"),
        "SLURMD_NODENAME": "n1",
    }
    command = [sys.executable, "-m", "slurm_mig", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_getting_rid_of_it(site: Site) -> None:
    """In the manual's order, with one job that runs and one that waits for a slice."""
    cluster = site.cluster
    running = site.sbatch(MIG, script=SAYS)
    site.until(lambda: "MIG-" in site.output(running), "the slice")
    site.run("scontrol", "update", "nodename=n1", "state=drain", "reason=leaving slurm-mig")
    waiting = site.sbatch(MIG, script=SAYS)
    held = ours(site, "reset", "--gpu", "all")
    assert (held.returncode, f"job {running} of user alice holds it" in held.stderr) == (23, True)
    site.run("scancel", str(running))
    site.until(lambda: site.node_state() == "drained", "the Epilog")
    assert ours(site, "reset", "--gpu", "all").returncode == 0
    assert ours(site, "disable", "--gpu", "all").returncode == 0

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


def test_hooks_out_first_is_what_reset_mends(site: Site) -> None:
    """Whoever has taken the hook lines out with jobs running: their slices still go."""
    cluster = site.cluster
    running = site.sbatch(MIG, script=SAYS)
    site.until(lambda: "MIG-" in site.output(running), "the slice")
    text = (cluster.conf / "slurm.conf").read_text()
    hooks = re.compile(r"^(Prolog|Epilog|TaskProlog)=.*\n", re.MULTILINE)
    (cluster.conf / "slurm.conf").write_text(hooks.sub("", text))
    # Not by `scontrol reconfigure`: it does not wait for slurmd, which may run its old Epilog yet.
    cluster.stop_daemon("n1")
    cluster.start_slurmd("n1")
    site.until(lambda: site.node_state() in ("mixed", "allocated"), "slurmd")
    site.run("scancel", str(running))
    site.until(lambda: site.node_state() == "idle", "the node")
    assert site.made("n1") == ["3g.40gb@4"]
    done = ours(site, "reset", "--gpu", "all")
    assert done.returncode == 0, done.stderr
    assert site.made("n1") == []
