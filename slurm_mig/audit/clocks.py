"""What records say of the clocks they were written by, and what they cannot say.

A Prolog runs after slurmctld started its job, and before the job ended. So each
run that ended by itself bounds how far its node's clock is from slurmctld's.
Between two nodes nothing is certain; that the Prologs of one job begin together
is an estimate.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.mig.allocation import REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slurm_mig.audit.accounting import Match
    from slurm_mig.mig.allocation import Allocation

#: Differences below this many seconds are not worth a word: a Prolog may wait for a lock.
WORTH_A_WORD: Final = 2.0

#: Runs that are kept to compare nodes by.
SAMPLE: Final = 20_000

#: The greatest job id that Slurm has.
_LAST_JOB: Final = 2**32

#: States of runs whose end came after their beginning on the node; one that is cancelled
#: may end while its Prolog waits.
_BY_ITSELF: Final = ("COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY")


@dataclass(frozen=True, slots=True)
class Offset:
    """Bounds of a node's clock against slurmctld's, in seconds; positive is ahead.

    `low` is None where no run bounds it from below.
    """

    node: str
    low: float | None
    high: float
    runs: int

    def __str__(self) -> str:
        if self.low is not None and self.low > self.high:
            return f"clock of {self.node}: it changed against Slurm's while {self.runs} runs began"
        if self.high < 0:
            return f"clock of {self.node}: at least {-self.high:.0f} s behind Slurm's"
        if self.low is not None and self.low > 0:
            return f"clock of {self.node}: {self.low:.0f} to {self.high:.0f} s ahead of Slurm's"
        return f"clock of {self.node}: at most {self.high:.0f} s ahead of Slurm's, not known behind"


def against_slurm(pairs: Iterable[Match]) -> list[Offset]:
    """How far each node's clock is from slurmctld's, by the runs that it served."""
    highs: dict[str, list[float]] = defaultdict(list)
    lows: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        node, made = pair.record.node, pair.record.created
        highs[node].append(made - pair.run.start)
        if pair.run.ended and pair.run.row.state in _BY_ITSELF:
            # The accounting's times are cut to whole seconds.
            lows[node].append(made - pair.run.end - 1)
    return [
        Offset(node, max(lows[node], default=None), min(highs[node]), len(highs[node]))
        for node in sorted(highs)
    ]


class BetweenNodes:
    """Estimates from jobs on several nodes, whose records are looked at one after the other.

    Of more than `most` runs it keeps a sample by job id, the same jobs on every node.
    """

    def __init__(self, most: int = SAMPLE) -> None:
        self._most = most
        self._every = 1
        self._begun: dict[tuple[Any, ...], dict[str, float]] = defaultdict(dict)

    def look(self, record: Allocation) -> None:
        """Take the next record."""
        owner = record.owner
        if owner.job_id is None or record.phase == REFUSED or owner.job_id % self._every:
            return
        run = (owner.job_id, owner.restart, owner.sluid, owner.user)
        self._begun[run].setdefault(record.node, record.created)
        while len(self._begun) > self._most and self._every <= _LAST_JOB:
            self._every *= 2
            for other in [run for run in self._begun if run[0] % self._every]:
                del self._begun[other]

    def lines(self) -> list[str]:
        """Lines on nodes whose records of one job lie apart."""
        apart: dict[tuple[str, str], list[float]] = defaultdict(list)
        for nodes in self._begun.values():
            for one, other in combinations(sorted(nodes), 2):
                apart[one, other].append(nodes[one] - nodes[other])
        return [
            f"clocks of {one} and {other}: {one} seems {abs(ahead):.0f} s "
            f"{'ahead' if ahead > 0 else 'behind'}, by {len(all_apart)} jobs on both (estimate)"
            for (one, other), all_apart in sorted(apart.items())
            if abs(ahead := median(all_apart)) > WORTH_A_WORD
        ]


def between_nodes(records: Iterable[Allocation]) -> list[str]:
    """Estimates from jobs on several nodes: lines on nodes whose records of one job lie apart."""
    found = BetweenNodes()
    for record in records:
        found.look(record)
    return found.lines()


def in_the_future(node: str, newest: float, written: float, now: float) -> list[str]:
    """Lines on a ledger whose newest event, or whose file, is younger than this machine's clock."""
    return [
        f"clock of {node}: {what} is {time - now:.0f} s in the future of this machine"
        for what, time in (("its newest event", newest), ("its file", written))
        if time - now > WORTH_A_WORD
    ]


def set_back(node: str, times: int, widest: tuple[int, float]) -> list[str]:
    """Lines on a clock that was set back between two events of its ledger: how often, how far."""
    event, seconds = widest
    if seconds <= WORTH_A_WORD:
        return []
    more = f", {times} times in all" if times > 1 else ""
    return [f"clock of {node}: set back by {seconds:.0f} s before event {event}{more}"]
