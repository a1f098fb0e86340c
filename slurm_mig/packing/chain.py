"""One GPU, jobs that come and go by chance, nobody waits: what a slot policy is worth, exactly.

Jobs arrive at random with the shares of a mix and run for a time that is the kind's on average,
each slice on its own. Slurm's count lets a job in; where it then has no slot it is *refused* and
lost. The states are the layouts of the GPU (723 on an H100), so the long run is a sum, not a
simulation; and the best slot for each state follows from it (`best`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from slurm_mig.errors import UsageFault
from slurm_mig.mig.geometry import layouts
from slurm_mig.mig.plan import Slot, candidates
from slurm_mig.mig.weights import derive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from slurm_mig.mig.geometry import Geometry, GpuProfile, Placement
    from slurm_mig.mig.plan import Policy

    #: How many of each placement class one job has on a GPU.
    Counts = tuple[int, ...]

#: More layouts than this take minutes; no GPU of eight units has as many.
MOST_LAYOUTS: Final = 20_000

#: Where iteration ends: no value moves by more against the others (refusals per arrival).
PRECISION: Final = 1e-8


class Worth(NamedTuple):
    """What one GPU does under a policy: refusals per 1,000 starts, share of arrivals started."""

    refused: float
    started: float


class Chain:
    """The layouts of one GPU, and what each kind of job and each end makes of them."""

    def __init__(
        self, geometry: Geometry, kinds: Sequence[Counts], runs: Sequence[float] = ()
    ) -> None:
        """`kinds`: what jobs ask for; `runs`: how long they run, 1 if not said.

        UsageFault for a GPU with too many layouts.
        """
        states = sorted(layouts(geometry))
        if len(states) > MOST_LAYOUTS:
            raise UsageFault(f"{len(states)} layouts on one GPU: more than {MOST_LAYOUTS}")
        self.geometry = geometry
        self.kinds = list(kinds)
        self.runs = list(runs) or [1.0] * len(self.kinds)
        bits = geometry.layout_bits
        self.layouts = [sum(bits[number, place] for number, place in state) for state in states]
        number_of = {layout: number for number, layout in enumerate(self.layouts)}
        speeds = self._speeds(len(geometry.classes))
        self.ends = [
            [(number_of[layout - bits[pair]], speeds[pair[0]]) for pair in state]
            for layout, state in zip(self.layouts, states, strict=True)
        ]
        weights = derive(geometry)
        self._rows = [_row_of(geometry, places) for places in geometry.classes]
        self._slots = [
            [Slot(self._rows[number], place) for number, place in state] for state in states
        ]
        self._used = [sum(weights.by_class[number] for number, _ in state) for state in states]
        self.choices = [
            self._choices(kind, weights.by_class, weights.capacity, number_of) for kind in kinds
        ]

    def _speeds(self, classes: int) -> list[float]:
        """How fast slices of each class end: by the mean run time of the kinds that have them."""
        speeds = []
        for number in range(classes):
            runs = [run for kind, run in zip(self.kinds, self.runs, strict=True) if kind[number]]
            speeds.append(len(runs) / sum(runs) if runs else 1.0)
        return speeds

    def _choices(
        self, kind: Counts, prices: Counts, capacity: int, number_of: Mapping[int, int]
    ) -> list[list[tuple[int, int, tuple[Placement, ...]]] | None]:
        """For each layout: layouts after a start, or None where Slurm has no room."""
        rows = self._rows_of(kind)
        classes = [number for number, count in enumerate(kind) for _ in range(count)]
        price = sum(prices[number] for number in classes)
        bits = self.geometry.layout_bits
        found: list[list[tuple[int, int, tuple[Placement, ...]]] | None] = []
        for layout, slots, used in zip(self.layouts, self._slots, self._used, strict=True):
            if used + price > capacity:
                found.append(None)
                continue
            mask = sum(slot.placement.mask for slot in slots)
            found.append(
                [
                    (
                        number_of[
                            layout + sum(map(bits.__getitem__, zip(classes, places, strict=True)))
                        ],
                        occupied,
                        places,
                    )
                    for places, occupied in candidates(rows, mask)
                ]
            )
        return found

    def _rows_of(self, kind: Counts) -> list[GpuProfile]:
        return [self._rows[number] for number, count in enumerate(kind) for _ in range(count)]

    def share(self, kind: Counts) -> float:
        """The part of a GPU that a job takes: of compute slices or units, whichever is more."""
        rows, whole = self._rows_of(kind), self.geometry.whole
        slices = sum(row.slices for row in rows) / whole.slices
        return max(slices, sum(row.size for row in rows) / self.geometry.units)

    def rates(self, mix: Sequence[float], load: float) -> list[float]:
        """Arrivals of each kind in one unit of time, for a load on the GPU."""
        mean = sum(
            part * self.share(kind) * run
            for part, kind, run in zip(mix, self.kinds, self.runs, strict=True)
        )
        return [load * part / mean for part in mix]

    def moves(self, policy: Policy) -> list[list[int | None]]:
        """For each kind and layout the layout after a start: itself if refused, None if no room."""
        found = []
        for kind, choices in zip(self.kinds, self.choices, strict=True):
            rows = self._rows_of(kind)
            moves: list[int | None] = []
            for number, options in enumerate(choices):
                if not options:
                    moves.append(None if options is None else number)
                    continue
                rank = policy(self.geometry, rows, self._slots[number])
                moves.append(max(options, key=lambda item: rank(item[1], item[2]))[0])
            found.append(moves)
        return found

    def worth(
        self,
        moves: Sequence[Sequence[int | None]],
        rates: Sequence[float],
        tell: Callable[[], object] = int,
    ) -> Worth:
        """The long run under these moves. `tell` is called now and then."""
        share = self._long_run(moves, rates, tell)
        refused = sum(
            rate * part
            for rate, row in zip(rates, moves, strict=True)
            for number, part in share.items()
            if row[number] == number
        )
        made = sum(
            rate * part
            for rate, row in zip(rates, moves, strict=True)
            for number, part in share.items()
            if row[number] not in (None, number)
        )
        return Worth(1000 * refused / made, made / sum(rates))

    def _long_run(
        self,
        moves: Sequence[Sequence[int | None]],
        rates: Sequence[float],
        tell: Callable[[], object],
    ) -> dict[int, float]:
        """How much of the time the GPU spends in each layout."""
        order, flows = self._reached(moves, rates)
        place = {number: at for at, number in enumerate(order)}
        into: list[list[tuple[int, float]]] = [[] for _ in order]
        out = [0.0] * len(order)
        for number, targets in zip(order, flows, strict=True):
            for target, rate in targets:
                into[place[target]].append((place[number], rate))
                out[place[number]] += rate
        share = [1 / len(order)] * len(order)
        moved = 1.0
        while moved > PRECISION:
            tell()
            # Each sum uses what this round has found already: half the rounds.
            moved = 0.0
            for at, sources in enumerate(into):
                new = sum(share[source] * rate for source, rate in sources) / out[at]
                moved = max(moved, abs(new - share[at]))
                share[at] = new
            total = sum(share)
            share = [part / total for part in share]
        return dict(zip(order, share, strict=True))

    def _reached(
        self, moves: Sequence[Sequence[int | None]], rates: Sequence[float]
    ) -> tuple[list[int], list[list[tuple[int, float]]]]:
        order, flows, seen = [self.layouts.index(0)], [], {self.layouts.index(0)}
        for number in order:
            targets = [
                (target, rate)
                for rate, row in zip(rates, moves, strict=True)
                if rate and (target := row[number]) not in (None, number)
            ]
            targets += self.ends[number]
            flows.append(targets)
            for target, _ in targets:
                if target not in seen:
                    seen.add(target)
                    order.append(target)
        return order, flows

    def best(self, rates: Sequence[float], tell: Callable[[], object] = int) -> list[float]:
        """What each layout is worth in refusals saved, by value iteration; larger is better."""
        busiest = sum(rates) + max(sum(speed for _, speed in ends) for ends in self.ends)
        options = [
            [
                (rate / busiest, None if found is None else [item[0] for item in found])
                for rate, found in zip(rates, (row[number] for row in self.choices), strict=True)
                if rate
            ]
            for number in range(len(self.layouts))
        ]
        costs, span = [0.0] * len(self.layouts), 1.0
        while span > PRECISION:
            tell()
            new = [
                self._step(number, options[number], costs, busiest)
                for number in range(len(self.layouts))
            ]
            changes = [after - before for after, before in zip(new, costs, strict=True)]
            span = max(changes) - min(changes)
            costs = [cost - new[0] for cost in new]
        return [-cost for cost in costs]

    def _step(
        self,
        number: int,
        options: Sequence[tuple[float, list[int] | None]],
        costs: Sequence[float],
        busiest: float,
    ) -> float:
        here = costs[number]
        found = here
        for chance, after in options:
            if after:
                found += chance * (min(map(costs.__getitem__, after)) - here)
            elif after is not None:
                found += chance
        for target, speed in self.ends[number]:
            found += speed * (costs[target] - here) / busiest
        return found


def _row_of(geometry: Geometry, places: tuple[Placement, ...]) -> GpuProfile:
    """A profile of that class, one without an attribute if there is one."""
    rows = [row for row in geometry.profiles if tuple(sorted(row.placements)) == places]
    return min(rows, key=lambda row: row.name.attribute or "")
