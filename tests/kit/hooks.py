"""Installed hooks as slurmd runs them, and Slurm's commands as short scripts."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tests.kit.ledgers import everything
from tests.kit.ways import later

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.kit.site import Site

STAMP = "slurm-mig=1,3g.40gb/9/14:1"

#: What scontrol says of the node: that it is this machine.
NODE = "NodeName=n1 State=IDLE NodeAddr=127.0.0.1 NodeHostName=localhost "
HERE = f"case $* in 'show node'*) echo '{NODE}' ;; esac"


def records(site: Site):  # type: ignore[no-untyped-def]
    node = site.node()
    found = everything(node.ledger)
    node.close()
    return found


def became(site: Site, epilog: subprocess.CompletedProcess[str]) -> str:
    """What is said of an ended job's slices: on record, where its Epilog has put them off."""
    if not later():
        return epilog.stderr
    return "; ".join(f"{item.phase}: {item.reason}" for item in records(site))


def slurm_commands(site: Site, **bodies: str) -> Path:
    """Commands that note how they were called; answers of the real ones are in tests/cluster."""
    (site.root / "bin").mkdir(exist_ok=True)
    log = site.root / "asked"
    for name in ("scontrol", "squeue", "scancel"):
        path = site.root / "bin" / name
        body = bodies.get(name, HERE if name == "scontrol" else "exit 0")
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{body}\n')
        path.chmod(0o755)
    return log


def squeue(job: int, tres: str = "N/A", *, batch: int = 1, live: Sequence[int] = ()) -> str:
    """A squeue that knows one job, and which ones live on the node."""
    line = f"{job:<20}{job:<40}{batch:<4}{1:<4}{0:<8}{'RUNNING':<20}{'':<1000}{tres}"
    alive = " ".join(map(str, live or [job]))
    return f"case $* in *'-w n1'*) printf '%s\\n' {alive} ;; *) printf '%s\\n' '{line}' ;; esac"


def task(site: Site, uid: int = 64001, **environ: str) -> subprocess.CompletedProcess[str]:
    """The TaskProlog as the user, with what slurmstepd gives it."""
    return subprocess.run(
        [site.root / "hooks/task_prolog"],
        env={"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"} | environ,
        user=uid, group=uid, extra_groups=[],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip


def serve(site: Site, job: int, uid: int, gpus: str = "0", stamp: str = STAMP) -> None:
    done = site.prolog(job, stamp, gpus, SLURM_JOB_UID=str(uid), SLURM_JOB_GID=str(uid))
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("carved")
