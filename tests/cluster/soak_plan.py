"""What a soak does, drawn from a seed: the same seed is the same list of steps.

When each step comes depends on the machine, and which job a cancel hits on what
runs then; what is tried, and in which order, does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.kit.gpus import A30, H100

#: Nodes of the cluster and their GPUs.
NODES = {"n1": (H100, H100, H100), "n2": (H100, H100, A30)}
SMALL = ("1g.10gb", "1g.10gb", "1g.10gb", "1g.10gb+me", "1g.20gb", "1g.6gb", "1g.6gb+me")
MIDDLE = ("2g.20gb", "3g.40gb", "3g.40gb", "4g.40gb", "2g.12gb", "2g.12gb+me", "1c.2g.20gb")
LARGE = ("7g.80gb", "4g.24gb", "2c.4g.40gb", "3c.7g.80gb")

#: Requests that fit one GPU and are more than one instance.
SEVERAL = (
    "mig:1g.10gb:2",
    "mig:1g.10gb:4",
    "mig:3g.40gb:2",
    "mig:1g.10gb:1,mig:3g.40gb:1",
    "mig:1g.10gb:2,mig:2g.20gb:1,mig:3g.40gb:1",
    "mig:2g.20gb:3",
    "mig:1g.6gb:3",
    "mig:2g.12gb:2",
)

#: What job_submit.lua must turn away.
BAD = (
    "mig:9g.90gb:1",
    "mig:1",
    "mig:7g.80gb:9",
    "mig:1g.10gb:99",
    "shard:3",
    "gpu:1,mig:1g.10gb:1",
    "mig:1g.10gb:0",
)

#: Kinds of submissions and how often, in parts of the sum.
SHAPES = {
    "one": 46,
    "several": 12,
    "array": 7,
    "srun": 10,
    "salloc": 2,
    "no-requeue": 6,
    "whole": 4,
    "het": 2,
    "two-nodes": 5,
    "bad": 3,
    "plain": 3,
}

#: Kinds of mischief and how many for each 1 000 jobs.
MISCHIEF = {
    "cancel-pending": 30,
    "cancel-prolog": 30,
    "cancel-running": 60,
    "cancel-completing": 20,
    "requeue": 20,
    "hold-slice": 15,
    "admin-slice": 12,
    "kill-hook": 8,
    "kill-at-call": 8,
    "driver-error": 6,
    "hang": 3,
    "slurmd-kill": 5,
    "slurmd-away": 0.5,
    "slurmctld-restart": 3,
    "slurmctld-kill": 3,
}

#: Kinds of trouble (soak_trouble.py), and how many for each 1 000 jobs: beside it comes only
#: mischief that drains no node.
TROUBLE = {
    "slow-disk": 40,
    "clock-jump": 40,
    "full-run": 40,
    "late-controller": 40,
}
GENTLE = (
    "cancel-pending",
    "cancel-prolog",
    "cancel-running",
    "cancel-completing",
    "requeue",
    "hold-slice",
    "admin-slice",
    "slurmctld-restart",
)

#: Calls at which faults strike; `*` is the n-th of any.
CALLS = (
    "*",
    "nvmlInitWithFlags",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
)
CODES = ("UNKNOWN", "NO_PERMISSION", "GPU_IS_LOST", "DRIVER_NOT_LOADED", "INSUFFICIENT_RESOURCES")


@dataclass(frozen=True)
class Submit:
    """Submission `number` of a user; it makes `jobs` of Slurm's jobs."""

    number: int
    shape: str
    user: str
    options: tuple[str, ...]
    seconds: float
    jobs: int = 1


@dataclass(frozen=True)
class Act:
    """A mischief; `pick` in [0, 1) chooses among the jobs or processes there are then."""

    kind: str
    pick: float
    node: str
    call: str
    skip: int
    detail: str
    seconds: float


def plan(seed: int, jobs: int, *, trouble: bool = False) -> list[Submit | Act]:
    """Steps for at least `jobs` jobs of Slurm, with each mischief at least once."""
    draw = random.Random(seed)
    kinds = {name: MISCHIEF[name] for name in GENTLE} | TROUBLE if trouble else MISCHIEF
    steps: list[Submit | Act] = []
    made = 0
    while made < jobs:
        steps.append(_submit(draw, len(steps)))
        made += steps[-1].jobs  # type: ignore[union-attr]
    for kind, often in kinds.items():
        for _ in range(max(1, round(often * jobs / 1000))):
            # Not into the first jobs: there is nothing to disturb yet.
            place = draw.randrange(min(5, len(steps)), len(steps) + 1)
            steps.insert(place, _act(draw, kind))
    return steps


def _submit(draw: random.Random, number: int) -> Submit:
    shape = draw.choices(list(SHAPES), list(SHAPES.values()))[0]
    user = draw.choice(("alice", "bob", "carol"))
    seconds = round(draw.choice((0, 0.1, 0.2, 0.5, 1, 3)) * draw.uniform(0.5, 1.5), 2)
    options, jobs = _options(draw, shape)
    return Submit(number, shape, user, options, seconds, jobs)


def _options(draw: random.Random, shape: str) -> tuple[tuple[str, ...], int]:
    one = f"--gres=mig:{draw.choice(draw.choices((SMALL, MIDDLE, LARGE), (5, 4, 1))[0])}:1"
    if shape in ("one", "srun", "salloc"):
        return (one,), 1
    if shape == "no-requeue":
        return ("--no-requeue", one), 1
    if shape == "several":
        return (f"--gres={draw.choice(SEVERAL)}",), 1
    if shape == "array":
        tasks = draw.randint(2, 4)
        return (f"--array=0-{tasks - 1}", f"--gres=mig:{draw.choice(SMALL)}:1"), tasks
    if shape == "whole":
        return (f"--gres=gpu:{draw.choice(('h100', 'h100', 'a30'))}:1",), 1
    if shape == "het":
        return ("--gres=mig:1g.10gb:1", ":", "--gres=mig:2g.20gb:1"), 2
    if shape == "two-nodes":
        return ("-N2", f"--gres=mig:{draw.choice(('1g.10gb', '2g.20gb', '3g.40gb'))}:1"), 1
    if shape == "bad":
        return (f"--gres={draw.choice(BAD)}",), 0
    return (), 1


def _act(draw: random.Random, kind: str) -> Act:
    call = draw.choice(CALLS)
    detail = {
        "driver-error": draw.choice(CODES),
        "kill-at-call": draw.choice(("kill-before", "kill-after")),
        "slurmd-kill": draw.choice(("prolog", "running", "any")),
    }.get(kind, "")
    return Act(
        kind,
        draw.random(),
        draw.choice(list(NODES)),
        call,
        draw.randrange(60) if call == "*" else draw.randrange(3),
        detail,
        round(draw.uniform(0.5, 4), 2),
    )
