"""Who held what: one `Holding` for each instance of a record, with its share of the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import BadRequest
from slurm_mig.mig.profile import Profile

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation, Instance

#: What stands for the profile of a job that has a GPU as it is.
WHOLE_GPU: Final = "whole GPU"

#: An instant that nothing is younger than.
FOREVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Size:
    """What a GPU model has in all; None for a number that nobody published.

    `slices` are compute slices (7, 4, 2), `units` placement units (8, 4, 12, 2).
    """

    slices: int | None = None
    units: int | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """One instance of a record, a whole GPU, or a refusal (neither, and no share).

    `compute` and `memory` are the parts of the GPU that nobody else could have
    meanwhile, 0 to 1: compute instances that share a GPU instance divide its
    part among them. None where the GPU's size is not known. Of an open record
    nothing is `known` after that time: a copied ledger ends with its newest event.
    """

    record: Allocation
    instance: Instance | None
    compute: float | None
    memory: float | None
    known: float = FOREVER

    @property
    def ended(self) -> float:
        """When it was given back, or until when it is known to have been held."""
        return self.known if self.record.ended is None else self.record.ended

    @property
    def profile(self) -> str:
        """Name of the profile; that of a whole GPU; empty for a refusal."""
        if self.instance is not None:
            return self.instance.profile
        return WHOLE_GPU if self.record.whole else ""

    def seconds(self, since: float, until: float) -> float:
        """How long it was held in [since, until); `until` must not lie in the future."""
        return max(0.0, min(self.ended, until) - max(self.record.created, since))


def holdings(record: Allocation, size: Size, known: float = FOREVER) -> list[Holding]:
    """A record's instances with their shares, in its order; what is open is so until `known`."""
    if not record.instances:
        share = 1.0 if record.whole else None
        return [Holding(record, None, share, share, known)]
    return [_holding(record, item, size, known) for item in record.instances]


def _holding(record: Allocation, item: Instance, size: Size, known: float) -> Holding:
    sharing = sum(other.placement == item.placement for other in record.instances)
    slices = _slices(item.profile)
    compute = slices / size.slices / sharing if slices and size.slices else None
    memory = item.size / size.units / sharing if size.units else None
    return Holding(record, item, compute, memory, known)


def _slices(name: str) -> int | None:
    try:
        return Profile.parse(name).gpu_slices
    except BadRequest:
        return None
