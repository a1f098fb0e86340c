"""Refused jobs that wait until this node has room for them, a file each.

    <state>/waiting/<job>    one JSON object, for root only

They outlive a boot, as the jobs do. They bring a job forward and decide nothing: Slurm itself
starts each at its `latest`, whatever becomes of its file.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from slurm_mig.errors import NodeFault
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import below, private_directory, read_own
from slurm_mig.values import asdict, dataclass, replace

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Waiting:
    """A refused job: what it wants on one GPU (`stamp`), and when it may start again.

    Times are seconds since the epoch. Before `earliest` no start is safe, at `latest` Slurm starts
    it whatever anybody knows; both are 0 until its Epilog is over. `called`: when it was brought
    forward, 0 while it waits.
    """

    job: int
    reference: str
    stamp: str
    since: float
    earliest: float = 0.0
    latest: float = 0.0
    called: float = 0.0


class WaitingJobs:
    """The directory; nothing is made before a job is refused."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def any(self) -> bool:
        """Whether there may be one: all that a hook pays for where nobody waits."""
        try:
            return next(self._directory.iterdir(), None) is not None
        except OSError:
            return False

    def all(self) -> list[Waiting]:
        """Who waits, the longest first. What somebody else put there waits for nothing."""
        found = []
        for path in below(self._directory):
            if not path.name.isdecimal():
                continue
            with suppress(NodeFault, ValueError, TypeError):
                found.append(Waiting(**json.loads(read_own(path))))
        return sorted(found, key=lambda item: (item.since, item.job))

    def put(self, item: Waiting) -> None:
        """Write a job down, or anew; NodeFault or NoSpace where that cannot be."""
        private_directory(self._directory, 0o700)
        replace_file(self._directory / str(item.job), json.dumps(asdict(item)), mode=0o600)

    def postponed(self, job: int, earliest: float, latest: float) -> None:
        """Note when a job may start again, if it is one that waits for room."""
        for item in self.all():
            if item.job == job:
                self.put(replace(item, earliest=earliest, latest=latest))

    def remove(self, job: int) -> None:
        """Forget a job: it has started, is gone, or is in Slurm's hands."""
        (self._directory / str(job)).unlink(missing_ok=True)
