"""Jobs that Slurm counts on this node and that are not there: a power cut takes both sides' word.

slurmctld that went down with its node goes on counting its jobs until slurmd registers later
than BatchStartTimeout after its own start (facts/slurm.md#failures), by default each 33 minutes.
They have no process, and no record of this boot; nobody else looks from this side.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

#: What slurmd and what is of a job carry in their environment, and a step's manager as its name.
_OF_JOB: Final = re.compile(rb"(?:\A|\0)SLURM_JOB_?ID=(\d{1,12})(?=\0|\Z)")
_MANAGER: Final = re.compile(rb"slurmstepd: \[(\d{1,12})[.\]]")

#: Most that is read of one file of /proc, in bytes: a user decides how long they are.
_MOST: Final = 1 << 20


def without_process(jobs: Collection[int], proc: Path = Path("/proc")) -> set[int]:
    """Those of the jobs that no process is seen of; hooks and step managers count as theirs."""
    left = set(jobs)
    for directory in proc.glob("[0-9]*"):
        for name, pattern in (("environ", _OF_JOB), ("cmdline", _MANAGER)):
            left -= {int(found) for found in pattern.findall(_read(directory / name))}
    return left


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST)
    except OSError:
        return b""


def line(job: int) -> str:
    """What is told of one, and what to do."""
    return (
        f"job {job} is counted here by Slurm, but has no process and no record of this boot: it "
        "ended with the machine. slurmctld notices when the node registers past "
        f"BatchStartTimeout, within half an hour; sooner with `scontrol requeue {job}` or "
        f"`scancel {job}`"
    )
