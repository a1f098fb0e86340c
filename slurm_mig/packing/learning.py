"""A site's own jobs -> the table of slots that refuses fewest, its gain, how far it holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slurm_mig.mig.plan import fits
from slurm_mig.packing.chain import Chain, Worth
from slurm_mig.packing.policies import Learned
from slurm_mig.packing.states import Space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurm_mig.packing.chain import Counts
    from slurm_mig.packing.setups import Workload

#: Steps in which a mix is moved away from the one that was learnt.
STEPS: Final = 10


class Drift(NamedTuple):
    """A direction in which the mix may go, and the share of jobs from which `fits` is better.

    None where the table stays better all the way.
    """

    towards: str
    from_share: float | None


class Lesson(NamedTuple):
    """What was learnt: worth of each layout, and of both policies at the site's mix."""

    values: dict[int, float]
    mix: dict[str, float]
    load: float
    table: Worth
    fits: Worth
    drifts: list[Drift]

    def about(self) -> dict[str, Any]:
        """What the file says of itself."""
        return {
            "mix": {name: round(share, 5) for name, share in self.mix.items()},
            "load": self.load,
            "refused_per_1000": round(self.table.refused, 2),
            "refused_per_1000_fits": round(self.fits.refused, 2),
        }


class Site(NamedTuple):
    """Kinds of jobs by what they take of a GPU: a name, counts by class, share, mean run time."""

    names: list[str]
    kinds: list[Counts]
    mix: list[float]
    runs: list[float]


def site_of(load: Workload) -> Site:
    """What the jobs of a workload ask for; equal parts of a GPU are one kind."""
    space, geometry = Space(load.geometry), load.geometry
    places: list[Counts] = []
    for request in load.requests:
        need = space.need(request)
        counts = [0] * len(geometry.classes)
        for row in need.rows if need else ():
            counts[geometry.class_of(row)] += 1
        places.append(tuple(counts))
    jobs, hours = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    names: dict[Counts, str] = {}
    for number, run in zip(load.jobs.kind, load.jobs.run, strict=True):
        jobs[places[number]] += 1
        hours[places[number]] += run  # type: ignore[assignment]
        names.setdefault(places[number], str(load.wanted[number]))
    kinds = sorted(jobs)
    total, mean = sum(jobs.values()), sum(hours.values()) / sum(jobs.values())
    return Site(
        [names[kind] for kind in kinds],
        kinds,
        [jobs[kind] / total for kind in kinds],
        [hours[kind] / jobs[kind] / mean for kind in kinds],
    )


def learn(load: Workload, pressure: float, tell: Callable[[], object] = int) -> Lesson:
    """The best table for these jobs at a load on each GPU; `tell` is called now and then."""
    site = site_of(load)
    chain = Chain(load.geometry, site.kinds, site.runs)
    best = chain.best(chain.rates(site.mix, pressure), tell)
    # As the file has them: what differs by less than iteration can tell is alike.
    values = {layout: round(v, 7) for layout, v in zip(chain.layouts, best, strict=True)}
    table = chain.moves(Learned({load.geometry.classes: values}))
    plain = chain.moves(fits)

    def worths(mix: Sequence[float]) -> tuple[Worth, Worth]:
        rates = chain.rates(mix, pressure)
        return chain.worth(table, rates, tell), chain.worth(plain, rates, tell)

    here = worths(site.mix)
    drifts = [Drift(name, turns(site.mix, to, worths)) for name, to in _directions(site)]
    mix = dict(zip(site.names, site.mix, strict=True))
    return Lesson(values, mix, pressure, here[0], here[1], drifts)


def _directions(site: Site) -> list[tuple[str, list[float]]]:
    """More and more of one kind, and all kinds alike."""
    count = len(site.kinds)
    alone = [[float(a == b) for b in range(count)] for a in range(count)]
    return [*zip(site.names, alone, strict=True), ("all kinds alike", [1 / count] * count)]


def turns(
    mix: Sequence[float],
    to: Sequence[float],
    worths: Callable[[Sequence[float]], tuple[Worth, Worth]],
) -> float | None:
    """The first share of jobs, in steps, that may follow another mix before `fits` is better."""
    for step in range(1, STEPS):
        share = step / STEPS
        there = [(1 - share) * a + share * b for a, b in zip(mix, to, strict=True)]
        table, plain = worths(there)
        if table.refused > plain.refused + 1e-6:
            return share
    return None
