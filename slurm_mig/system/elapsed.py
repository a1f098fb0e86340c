"""How long ago something was, by a clock that nobody sets.

An administrator or NTP may step the wall clock, by hours where a machine's battery is empty:
by it five minutes are over at once, or never. CLOCK_BOOTTIME goes on by itself from a boot to
its end, asleep or not (clock_gettime(2)).
"""

from __future__ import annotations

import time

from slurm_mig.values import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """`at` in seconds since the epoch; `uptime` in seconds of the boot with the id `boot`.

    `boot` is empty where an earlier release has put down the wall clock alone.
    """

    at: float
    boot: str = ""
    uptime: float = 0.0

    def age(self, now: Moment) -> float:
        """Seconds from this moment to `now`, and never more than are certain.

        What another boot has put down is at least as old as this boot. With the wall clock
        alone it is that clock's difference, which may be wrong.
        """
        if not self.boot:
            return max(0.0, now.at - self.at)
        return max(0.0, now.uptime - (self.uptime if self.boot == now.boot else 0.0))


def uptime() -> float:
    """Seconds since this machine was booted."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
