"""Words for real clusters whose nodes publish what fits."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from slurm_mig.mig import allocation as phases
from slurm_mig.mig.geometry import Placement
from slurm_mig.sandbox import SandboxNode
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from tests.kit.cluster import Site

NODES = (SandboxNode("n1", ((H100, 2),)), SandboxNode("n2", ((H100, 1),)))
PREEMPTION = """
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1
PartitionName=high Nodes=ALL PriorityTier=10
"""
THREE = "--gres=mig:3g.40gb:1"


def look(site: Site, *words: str, name: str = "n1") -> str:
    """What the timer runs each minute."""
    root = site.cluster.root / "nodes" / name
    done = subprocess.run(
        [sys.executable, "-m", "slurm_mig", "--config", str(root / "config.toml"), "publish",
         "--node", name, *words],
        env={"SLURM_CONF": str(site.cluster.conf / "slurm.conf"), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def look_everywhere(site: Site, *words: str) -> None:
    for item in site.cluster.nodes:
        look(site, *words, name=item.name)


def fits(site: Site, name: str = "n1") -> dict[str, int]:
    text = site.run("scontrol", "show", "node", "-o", name)
    return {kind: int(count) for kind, count in re.findall(r"fit:([^:,]+):(\d+)", text)}


def fill(site: Site) -> None:
    """Strange slices where a 3g has no place on any GPU, though Slurm counts shards for it."""
    for name, gpus in (("n1", 2), ("n2", 1)):
        for gpu in range(gpus):
            with site.machine(name).change(gpu) as board:
                board.set_mode(True, busy=False)
                for start in (3, 4):
                    board.create(19, Placement(start, 1), busy=False)
    look_everywhere(site)
    assert (fits(site)["3g.40gb"], fits(site, "n2")["3g.40gb"]) == (0, 0)


def empty(site: Site) -> None:
    for name in ("n1", "n2"):
        site.unblock(name)
    look_everywhere(site)


def refusals(site: Site) -> int:
    return sum(r.phase == phases.REFUSED for name in ("n1", "n2") for r in site.records(name))


def reasons(site: Site) -> dict[str, str]:
    """Why each job waits, by its id as users see it."""
    lines = site.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i|%r|%Q").splitlines()
    rows = [line.split("|") for line in lines]
    assert all(float(priority) > 0 for _, _, priority in rows), lines
    return {job: reason for job, reason, _ in rows}


def nobody_is_held(site: Site) -> None:
    told = reasons(site)
    assert not [item for item in told.items() if re.search("BadC|[Hh]eld", item[1])], told


def has_anchor(site: Site) -> bool:
    return "mig-anchor" in site.run("sinfo", "-h", "-N", "-o", "%N")
