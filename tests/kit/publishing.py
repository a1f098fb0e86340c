"""Words for real clusters whose nodes publish what fits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.fleet import Fleet
from slurm_mig.fleet.fleet_file import FleetText, NodeText
from slurm_mig.fleet.resolve import node_groups
from slurm_mig.mig import allocation as phases
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
    done = start_look(site, *words, name=name)
    told, problem = done.communicate(timeout=60)
    assert done.returncode == 0, problem
    return told


def start_look(
    site: Site, *words: str, name: str = "n1", config: Path | None = None
) -> subprocess.Popen[str]:
    """The same, while others go on."""
    path = config or site.cluster.root / "nodes" / name / "config.toml"
    return subprocess.Popen(
        [sys.executable, "-m", "slurm_mig", "--config", str(path), "publish", "--node", name,
         *words],
        env={"SLURM_CONF": str(site.cluster.conf / "slurm.conf"), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def struck(site: Site, when: str, what: str) -> subprocess.Popen[str]:
    """A look whose first scontrol with these words does something else: `what`, a line of shell.

    There $PPID is the publisher, and "$real" "$@" what was meant.
    """
    here = site.cluster.root / "struck"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    real = Path(re.search(r'bin = "(.+?)"', _config_of(site).read_text())[1])  # type: ignore[index]
    for name in ("squeue", "scontrol"):
        (here / name).write_text(
            f"#!/bin/sh\nreal={real}/{name}\n"
            f'case "$*" in *"{when}"*) mkdir {here}/once 2>/dev/null && {{ {what}\n}};; esac\n'
            'exec "$real" "$@"\n'
        )
        (here / name).chmod(0o755)
    config = here / "config.toml"
    config.write_text(_config_of(site).read_text().replace(f'bin = "{real}"', f'bin = "{here}"'))
    config.chmod(0o600)
    return start_look(site, config=config)


def _config_of(site: Site) -> Path:
    return site.cluster.root / "nodes/n1/config.toml"


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
            site.block(gpu, name)
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


def take_over(site: Site, *, slurm_conf: bool) -> None:
    """What `generate` writes with `publish = true`, as docs/publishing.md says: in two steps."""
    nodes = tuple(
        NodeText(
            item.name,
            tuple(f"{name}:{count}" for name, count in item.gpus),
            devices=str(site.machine(item.name).tree.dev),
        )
        for item in site.cluster.nodes
    )
    fleet = Fleet(tuple(node_groups(FleetText(nodes))), publish=True)
    conf = site.cluster.conf
    if not slurm_conf:
        for name in ("job_submit.lua", "cli_filter.lua"):
            (conf / name).write_text(slurm_files.lua(fleet, name))
        return
    text = (conf / "slurm.conf").read_text()
    lines = slurm_files.slurm_conf(fleet, "/").splitlines()
    text = text.replace("GresTypes=gpu,shard,mig", "GresTypes=gpu,shard,mig,fit")
    for group in fleet.groups:
        line = rf"(?m)^(NodeName={group.hosts} .*Gres=)\S+"
        text = re.sub(line, rf"\1{fleet.gres(group)}", text)
    if site.cluster.run("slurmctld", "-V").split()[1] >= "23.11":
        text = text.replace("bf_interval=1", "bf_interval=1,extra_constraints", 1)
    else:
        anchor = next(line for line in lines if line.startswith("#NodeName=mig-anchor"))
        text += f"{anchor[1:]} CPUs=16 RealMemory=4096\n"
    (conf / "slurm.conf").write_text(text)
    site.cluster.stop_daemon("slurmctld")
    site.cluster.start_slurmctld()
    for item in site.cluster.nodes:
        site.cluster.stop_daemon(item.name)
        site.cluster.start_slurmd(item.name)
    names = [item.name for item in site.cluster.nodes]
    site.until(
        lambda: all(site.in_service(name) and fits(site, name) for name in names), "restarts"
    )
