"""Sums over holdings: slice-hours, and what they are worth in hours of whole GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from slurm_mig.mig.allocation import REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from slurm_mig.audit.holdings import Holding


def _asked(request: str) -> str:
    """The profile of a refused request; the request itself where it named several."""
    return request if "," in request else request.rpartition(":")[0] or request


#: What totals can be had by, and how a holding tells it.
BY: Final[dict[str, Callable[[Holding], str]]] = {
    "user": lambda item: item.record.owner.user,
    "account": lambda item: item.record.owner.account,
    "profile": lambda item: item.profile or _asked(item.record.request),
    "node": lambda item: item.record.node,
}


@dataclass(slots=True)
class Total:
    """What one user (account, profile, node) had in a span.

    `slice_hours`: one instance, or one whole GPU, for one hour. `compute_hours`
    and `memory_hours` weigh them by their share of the GPU; `unknown_hours` are
    those on GPUs whose size nobody published: they are in neither.
    """

    key: str
    slices: int = 0
    slice_hours: float = 0.0
    compute_hours: float = 0.0
    memory_hours: float = 0.0
    unknown_hours: float = 0.0
    refused: int = 0
    #: Jobs that held something; runs of one job count once, administrators not.
    jobs: int = 0

    def add(self, item: Holding, since: float, until: float) -> None:
        """Count a holding for the part of it that lies in the span."""
        if item.record.phase == REFUSED:
            self.refused += 1
            return
        self.slices += 1
        hours = item.seconds(since, until) / 3600
        self.slice_hours += hours
        if item.compute is None or item.memory is None:
            self.unknown_hours += hours
            return
        self.compute_hours += item.compute * hours
        self.memory_hours += item.memory * hours


class Distinct(Protocol):
    """Counts the different numbers under each key; there may be more than fit in memory."""

    def add(self, key: str, number: int) -> None:
        """Take one, maybe once more."""

    def counts(self) -> Mapping[str, int]:
        """How many different ones each key has; a key without any may be missing."""


def totals(
    items: Iterable[Holding], by: str, since: float, until: float, jobs: Distinct
) -> list[Total]:
    """Totals by user, account, profile or node; most slice-hours first, then by name.

    Only what lies in [since, until) counts; `until` must not lie in the future:
    what is still held counts until then. `jobs` is empty yet.
    """
    key = BY[by]
    found: dict[str, Total] = {}
    for item in items:
        name = key(item)
        if name not in found:
            found[name] = Total(name)
        found[name].add(item, since, until)
        job = item.record.owner.job_id
        if job is not None and item.record.phase != REFUSED:
            jobs.add(name, job)
    for name, count in jobs.counts().items():
        found[name].jobs = count
    return sorted(found.values(), key=lambda total: (-total.slice_hours, total.key))
