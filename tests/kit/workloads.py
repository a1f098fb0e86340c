"""Jobs by chance, as the studies made them: mixes over the six plain profiles of an H100."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from slurm_mig.mig import catalog
from slurm_mig.packing.jobs import Job, Wanted
from slurm_mig.packing.setups import workload

if TYPE_CHECKING:
    from slurm_mig.packing.setups import Workload

H100 = catalog.find("h100-80gb-sxm").geometry()
NAMES = ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
MIXES = {
    "uniform": (1 / 6,) * 6,
    "small-heavy": (0.50, 0.20, 0.15, 0.10, 0.03, 0.02),
    "large-heavy": (0.05, 0.05, 0.15, 0.30, 0.20, 0.25),
    "bimodal": (0.65, 0.05, 0.0, 0.0, 0.10, 0.20),
}


def share(name: str) -> float:
    """Part of a GPU that a slice takes: of compute or memory, whichever is more."""
    row = H100.find(name)
    return max(row.slices / H100.whole.slices, row.size / H100.units)


def by_chance(mix: str, load: float, gpus: int, count: int, seed: int) -> Workload:
    """Poisson arrivals, run times of an hour on average and 30 s at least, known to Slurm."""
    chance, parts = random.Random(seed), MIXES[mix]
    mean = sum(part * share(name) for part, name in zip(parts, NAMES, strict=True))
    rate, now, jobs = load * gpus / (mean * 3600), 0.0, []
    for _ in range(count):
        now += chance.expovariate(rate)
        name = chance.choices(NAMES, parts)[0]
        run = max(30.0, chance.expovariate(1 / 3600))
        jobs.append(Job(now, Wanted(((name, 1),)), run, run))
    return workload(jobs, H100, Counter())
