"""What is done about an instance that stays in use: its holders named, the site's remedies used.

A slice ends with its job: rights are the user's, but payment is the job's. Nothing is ever
killed but processes of the very job that is over, or, where the site wants that, of its user
that have this very instance open (holder.py says which those are); nothing restarted but a
unit that the configuration names and that holds the instance.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SlurmMigError, Unresolved
from slurm_mig.gpu.holder import INSTANCE
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurm_mig.gpu.capabilities import Capabilities
    from slurm_mig.gpu.holder import Holders
    from slurm_mig.gpu.holder_search import Processes, Target
    from slurm_mig.mig.allocation import Owner
    from slurm_mig.mig.driver import Driver, Gpu, GpuInstance
    from slurm_mig.system.services import Services

KILL_JOB: Final = "kill-job"
KILL_USER: Final = "kill-user"
RESTART: Final = "restart:"

#: Longest look for holders, in seconds.
LOOK: Final = 2.0


@dataclass(frozen=True, slots=True)
class Permit:
    """Whose processes may be killed: `owner`'s, whose job is over; nobody's when None.

    `by_environment`: also those that only their environment tells (Holder.is_left_of).
    """

    owner: Owner | None = None
    by_environment: bool = False


class Stuck:
    """Remedies of one node. `timeout` seconds are for all that is done about one record."""

    def __init__(
        self,
        driver: Driver,
        capabilities: Capabilities,
        *,
        remedies: Sequence[str] = (),
        timeout: float = 10.0,
        processes: Processes | None = None,
        services: Services | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._capabilities = capabilities
        self.remedies = tuple(remedies)
        self.timeout = timeout
        self._processes = processes
        self._services = services
        self._monotonic = monotonic

    @property
    def look(self) -> float:
        """Longest look for holders here, in seconds."""
        return min(LOOK, self.timeout)

    def holders(self, gpu: Gpu, found: GpuInstance | None, within: float | None = None) -> Holders:
        """Who holds an instance; without one, who holds anything of the GPU.

        `within` so many seconds, if that is less than `look`.
        """
        timeout = self.look if within is None else max(0.0, min(within, self.look))
        return self._looker().holding(self._target(gpu, found), timeout)

    def check_unused(self, gpu: Gpu, found: GpuInstance, name: str, work: str) -> None:
        """Unresolved, naming the holders, where something has an instance open that is to go.

        Asked before the first change: a layout that is taken down by half helps nobody.
        """
        holders = self.holders(gpu, found)
        if any(holder.has == INSTANCE for holder in holders.found):
            raise Unresolved(
                f"{name} has to go and is in use by {holders.text()}",
                remedy=f"end what uses it, and {work} again",
            )

    def apply(
        self, remedy: str, gpu: Gpu, found: GpuInstance | None, permit: Permit, until: float
    ) -> list[str]:
        """Use one remedy where it fits; says what was done, nothing if it does not fit.

        `until` on the clock of `monotonic`; a restart is not waited for any longer.
        """
        left = until - self._monotonic()
        if left <= 0:
            return []
        if remedy in (KILL_JOB, KILL_USER):
            return self._kill(gpu, found, permit, left, anywhere=remedy == KILL_USER)
        unit = remedy.removeprefix(RESTART)
        if unit not in self.holders(gpu, found, left).units:
            return []
        failure = self._restarter().restart(unit, max(until - self._monotonic(), 0.1))
        return [f"restarted {unit}" + (f" ({failure})" if failure else "")]

    def _kill(
        self, gpu: Gpu, found: GpuInstance | None, permit: Permit, left: float, *, anywhere: bool
    ) -> list[str]:
        # Without an instance the GPU itself is meant, which is not the job's alone.
        if permit.owner is None or (anywhere and found is None):
            return []
        killed = self._looker().kill(
            self.holders(gpu, found, left / 2).found,
            # Asked anew: what NVML said before is old by the time of the look.
            self._target(gpu, found),
            permit.owner,
            min(self.look, left / 2),
            by_environment=permit.by_environment,
            anywhere=anywhere,
        )
        return [f"killed {holder}" for holder in killed]

    def _target(self, gpu: Gpu, found: GpuInstance | None) -> Target:
        from slurm_mig.gpu.holder_search import Target

        try:
            listed = tuple(self._driver.processes(gpu))
        except SlurmMigError:
            # A driver that does not even list them: /proc may still tell.
            listed = ()
        node = self._capabilities.numbers(gpu.minor)
        if found is None:
            return Target(gpu=node, listed=listed)
        ci_ids = [item.ci_id for item in found.compute]
        nodes = self._capabilities.instance_numbers(gpu.minor, found.gi_id, ci_ids)
        return Target(nodes, node, listed, found.gi_id)

    def _looker(self) -> Processes:
        if self._processes is None:
            from slurm_mig.gpu.holder_search import Processes

            self._processes = Processes()
        return self._processes

    def _restarter(self) -> Services:
        if self._services is None:
            from slurm_mig.system.services import Services

            self._services = Services()
        return self._services
