"""What jobs on a real Slurm show of themselves."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation
    from tests.kit.cluster import Site


def unfiltered(site: Site) -> str:
    """A client's configuration without cli_filter.lua."""
    plain = site.cluster.root / "conf-plain"
    plain.mkdir(exist_ok=True)
    for path in site.cluster.conf.iterdir():
        if path.name != "cli_filter.lua":
            text = path.read_text().replace("CliFilterPlugins=cli_filter/lua\n", "")
            (plain / path.name).write_text(text)
    return str(plain / "slurm.conf")


SHOW = 'echo "seen $SLURM_PROCID $CUDA_VISIBLE_DEVICES $SLURM_MIG_PROFILES $SLURM_MIG_GPU"'


def seen(text: str) -> list[list[str]]:
    """What tasks printed: rank, UUIDs, profiles, GPU."""
    return sorted(line.split()[1:] for line in text.splitlines() if line.startswith("seen "))


def saved(site: Site, job: int) -> None:
    """Wait until slurmctld has written its state, which it does some seconds after a change."""
    state = site.cluster.root / "state/job_state"
    changed = time.time()
    site.run("scontrol", "update", f"jobid={job}", "admincomment=changed")
    site.until(lambda: state.stat().st_mtime > changed, "the state to be written")


def uuids(record: Allocation) -> str:
    return ",".join(record.uuids)


def kill_steps(site: Site) -> None:
    from slurm_mig.sandbox.daemons import working_in

    for pid in working_in(site.cluster.root):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if name.startswith(("slurmstepd", "sleep", "sh", "slurm_script")):
            os.kill(pid, signal.SIGKILL)


def replace_script(site: Site, text: str) -> None:
    """Give slurmctld another script; it does not see a change in the second of its last look."""
    path = site.cluster.conf / "job_submit.lua"
    later = max(time.time(), path.stat().st_mtime) + 2
    path.write_text(text)
    os.utime(path, (later, later))
