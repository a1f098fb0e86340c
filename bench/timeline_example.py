"""Draws docs/timeline.svg: a week of eight simulated H100, served by the real bench.

Only the clock is ours: the ledger is told a time that runs through a week in seconds.

    python bench/timeline_example.py docs/timeline.svg
    python bench/timeline_example.py week.html report       the same week as `slurm-mig report`
"""

from __future__ import annotations

import heapq
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from slurm_mig.config import load
from slurm_mig.errors import NoRoom
from slurm_mig.mig import catalog
from slurm_mig.mig.allocation import Allocation, Owner
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.node.node import Node
from slurm_mig.simulator import create
from slurm_mig.simulator.spec import gpu_spec
from slurm_mig.state.ledger import Ledger
from slurm_mig.transaction import carve, release

MODEL = "NVIDIA H100 80GB HBM3"
BEGIN = 1_772_409_600.0
WEEK = 7 * 86400.0
#: User, account, and the profiles he asks for.
PEOPLE = (
    ("alice", "physics", ("3g.40gb", "3g.40gb", "7g.80gb")),
    ("bob", "physics", ("1g.10gb", "1g.10gb", "2g.20gb")),
    ("carol", "biology", ("2g.20gb", "3g.40gb")),
    ("dave", "biology", ("1g.20gb", "1g.10gb")),
    ("erin", "course-ml", ("1g.10gb",)),
    ("frank", "chemistry", ("4g.40gb", "7g.80gb")),
)
JOBS = 420


class Clock:
    """Time as the ledger sees it."""

    now = BEGIN

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now


def week(node: Node, clock: Clock) -> None:
    """Jobs come at random and go to the first GPU with room; one in a while finds none."""
    chance = random.Random(7)
    bench, gpus = node.bench(), node.driver.gpus()
    ends: list[tuple[float, int]] = []
    held: dict[int, Allocation] = {}
    for number in range(JOBS):
        clock.now = BEGIN + (number + chance.random()) * WEEK / JOBS
        now = clock.now
        while ends and ends[0][0] <= now:
            clock.now, job = heapq.heappop(ends)
            release.release(bench, held.pop(job), "the job ended")
        clock.now = now
        user, account, profiles = chance.choice(PEOPLE)
        request = Request((Item(Profile.parse(chance.choice(profiles))),))
        owner = Owner(5000 + number, uid=64001, gid=64001, user=user, account=account)
        for gpu in chance.sample(gpus, len(gpus)):
            try:
                held[5000 + number] = carve.allocate(bench, owner, request, gpu)
            except NoRoom as fault:
                why = fault
                continue
            heapq.heappush(ends, (now + chance.lognormvariate(9.6, 1.0), 5000 + number))
            break
        else:
            bench.refuse(owner, str(request), gpus[chance.randrange(len(gpus))], why)


def main() -> None:
    """Build the node, live through the week, draw it by the command itself."""
    out = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        create(root / "sim", [gpu_spec(catalog.find(MODEL), MODEL, 8)])
        config = root / "config.toml"
        config.write_text(
            f'[driver]\nlibrary = "simulator:{root}/sim"\n'
            f'[paths]\nstate = "{root}/state"\nrun = "{root}/run"\n'
        )
        node = Node(load(config, {}), {"SLURMD_NODENAME": "gpu01"})
        clock = Clock()
        vars(node)["ledger"] = Ledger(node.config.ledger, clock)
        for gpu in node.driver.gpus():
            node.driver.set_mig_mode(gpu, on=True)
        week(node, clock)
        command = [sys.executable, "-m", "slurm_mig", "--config", str(config), "audit"]
        span = ["--since", str(BEGIN), "--until", str(BEGIN + WEEK)]
        if sys.argv[2:] == ["report"]:
            subprocess.run([*command[:-1], "report", str(out), *span], check=True)
        else:
            subprocess.run([*command, *span, "--timeline", str(out), *sys.argv[2:]], check=True)
        subprocess.run([*command, *span, "--totals", "user"], check=True)
        node.close()


if __name__ == "__main__":
    main()
