"""Timing of whole processes, taken in turn so that a drifting machine is fair to all."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one process: on the clock, and of processor time with its children's.

    `peak`: MiB that it, or its largest child, had in memory at once.
    """

    wall: float
    cpu: float
    peak: float = 0.0


def once(command: Sequence[str], environ: Mapping[str, str]) -> Cost:
    """Run a process to its end; it must succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def in_turn(contenders: Mapping[str, Callable[[int], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Each contender once a round, in the same order; one round before is not counted."""
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            cost = run(number)
            if number:
                costs[name].append(cost)
    return costs


def report(costs: Mapping[str, list[Cost]], against: str) -> None:
    """Medians in milliseconds, and the median of the ratios round by round."""
    print(f"{'':34} {'wall ms':>8} {'cpu ms':>8} {'wall x':>7} {'cpu x':>7}")
    for name, mine in costs.items():
        wall = median(cost.wall for cost in mine)
        cpu = median(cost.cpu for cost in mine)
        pairs = list(zip(mine, costs[against], strict=True))
        wall_x = median(a.wall / b.wall for a, b in pairs)
        cpu_x = median(a.cpu / b.cpu for a, b in pairs)
        print(f"{name:34} {wall * 1e3:8.1f} {cpu * 1e3:8.1f} {wall_x:7.2f} {cpu_x:7.2f}")
    print(f"x: against `{against}`, median of {len(costs[against])} rounds taken in turn")
