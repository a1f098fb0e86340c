"""Counters and histograms over the ledger's events, kept from one reading to the next. Pure.

A monitor wants numbers that only grow; the ledger has single events. A `Tally` has read
all of them up to one, and goes on from there.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.mig.allocation import (
    ACTIVE,
    LOST,
    PLANNED,
    QUARANTINED,
    REFUSED,
    RELEASED,
    RELEASING,
)
from slurm_mig.values import asdict, dataclass, field

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.state.event import Event

#: Upper bounds in seconds; the last bucket has no bound. facts/mig.md#times: tenths of a second
#: for a carve, up to a second for a teardown under load.
BUCKETS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

#: Names of refusals whose kind an event does not tell.
UNKNOWN: Final = "unknown"

_ENDED: Final = (RELEASED, LOST, REFUSED)


@dataclass(slots=True)
class Histogram:
    """Counts of values up to each bound of BUCKETS (not cumulative), and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one value; a clock that was set back makes none negative."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, int]]:
        """(upper bound, count up to it), as Prometheus wants them."""
        found, seen = [], 0
        bounds = [*(f"{bound:g}" for bound in BUCKETS), "+Inf"]
        for bound, count in zip(bounds, self.counts, strict=True):
            seen += count
            found.append((bound, seen))
        return found


@dataclass(slots=True)
class Tally:
    """What all events up to number `last` add up to."""

    last: int = 0
    carve: Histogram = field(default_factory=Histogram)
    teardown: Histogram = field(default_factory=Histogram)
    lock_wait: Histogram = field(default_factory=Histogram)
    refusals: dict[str, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    #: Allocation -> when its carve, or its teardown, began.
    carving: dict[str, float] = field(default_factory=dict)
    ending: dict[str, float] = field(default_factory=dict)
    #: Allocation -> when it got stuck first: each try to release it says so again.
    stuck: dict[str, float] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Count one event; those that were counted before are passed over."""
        if event.seq <= self.last:
            return
        facts = event.facts
        self.last = event.seq
        if "waited" in facts:
            self.lock_wait.add(float(facts["waited"]))
        self._time(event)
        if self._first_stuck(event) or event.kind in _ENDED:
            self.outcomes[event.kind] = self.outcomes.get(event.kind, 0) + 1
        if event.kind == REFUSED:
            kind = str(facts.get("fault", UNKNOWN))
            self.refusals[kind] = self.refusals.get(kind, 0) + 1

    def _first_stuck(self, event: Event) -> bool:
        """Whether an allocation is stuck for the first time; its end lets the number go."""
        number = str(event.allocation)
        if event.kind in _ENDED:
            self.stuck.pop(number, None)
        if event.kind != QUARANTINED or number in self.stuck:
            return False
        self.stuck[number] = event.at
        return True

    def _time(self, event: Event) -> None:
        """From intent to active, and from the first destroy to the last look."""
        number = str(event.allocation)
        if event.kind == PLANNED:
            self.carving[number] = event.at
        elif event.kind == ACTIVE and number in self.carving:
            self.carve.add(event.at - self.carving.pop(number))
        elif event.kind == RELEASING:
            # A carve that is rolled back counts as none; a teardown that is retried as one.
            self.carving.pop(number, None)
            self.ending.setdefault(number, event.at)
        elif event.kind == RELEASED and number in self.ending:
            self.teardown.add(event.at - self.ending.pop(number))
        elif event.kind in _ENDED:
            self.carving.pop(number, None)
            self.ending.pop(number, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Tally:
        """The inverse; ValueError for what is none."""
        try:
            fields = dict(data)
            for name in ("carve", "teardown", "lock_wait"):
                fields[name] = Histogram(**fields[name])
                if len(fields[name].counts) != len(BUCKETS) + 1:
                    raise ValueError(f"{name} has other buckets")
            if "stuck" not in fields:
                raise ValueError("of a version that counted each retry of a stuck slice")
            return cls(**fields)
        except (TypeError, KeyError) as problem:
            raise ValueError(f"{type(problem).__name__}: {problem}") from problem
