"""After a boot, before slurmd starts: is the hardware what the configuration says, then one truth.

Nothing of Slurm's is asked for jobs: slurmctld may be down, and at a boot no job lives. The
same may be run by hand on a node at work: records of this boot, and their files, are left.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import (
    DriverFault,
    DriverMissing,
    GpuLost,
    HardwareMismatch,
    Held,
    InstanceBusy,
)
from slurm_mig.gpu import indexes
from slurm_mig.node.node import minors_not_there
from slurm_mig.slurm.protocol import BOOT, drain_reason
from slurm_mig.transaction import by_hand, reconcile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from slurm_mig.errors import SlurmMigError
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.node.node import Node
    from slurm_mig.slurm.protocol import NodeFacts

#: Seconds to wait for a driver that loads late, or for a GPU that something still has open.
WAIT: Final = 60.0

#: Seconds between two looks.
LOOK_EVERY: Final = 1.0

#: Reasons that slurmctld itself gives a node that is or was switched off.
BY_ITSELF: Final = ("", "Not responding", "Node unexpectedly rebooted", "Scheduled reboot")

#: All that a drained node shows that is switched off.
PLAINLY_DOWN: Final = frozenset({"DOWN", "DRAIN", "NOT_RESPONDING"})


@dataclass(slots=True)
class Boot:
    """What was done, what is strange, what is left, and how the hardware differs; a line each."""

    done: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)

    def check(self) -> None:
        """HardwareMismatch with the first difference, if there is any."""
        if self.mismatches:
            first, *others = self.mismatches
            more = f", and {len(others)} more" if others else ""
            raise HardwareMismatch(
                f"{first}{more}",
                remedy="correct the hardware or the [gpus] table of the config, and run "
                "`slurm-mig reconcile --boot`",
            )


def bring_up(
    node: Node,
    wait: float = WAIT,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> Boot:
    """Do all that has to be done between a boot and slurmd; at most `wait` seconds of waiting.

    Differences of the hardware are in what is returned; what is right is brought
    in order all the same. NodeFaults of other kinds are raised.
    """
    until = monotonic() + wait

    def again() -> bool:
        if monotonic() >= until:
            return False
        sleep(LOOK_EVERY)
        return True

    found = Boot()
    gpus = _look(node, found, again)
    if node.config.managed == () or not gpus:
        return found
    _agree(node, gpus, found)
    report = reconcile.reconcile(node.bench(), None)
    found.done += report.done
    found.foreign += report.foreign
    # A managed GPU that cannot be brought in order would drain the node at its first job.
    managed = {gpu.uuid for gpu in filter(node.managed, gpus)}
    found.mismatches += [text for uuid, text in report.faults.items() if uuid in managed]
    found.left += [line for line in report.left if line not in found.mismatches]
    for gpu in filter(node.managed, gpus):
        _have_mig_mode(node, gpu, found, again)
    _remove_left_overs(node, gpus, found)
    return found


# -- is it there? ------------------------------------------------------------


def _look(node: Node, found: Boot, again: Callable[[], bool]) -> Sequence[Gpu]:
    """The GPUs, once they are as configured or there is no time left to wait for it."""
    while True:
        try:
            gpus, faults = node.driver.survey()
            found.mismatches = list(differences(node, gpus, faults))
        except (DriverMissing, DriverFault) as fault:
            gpus, found.mismatches = (), _unless_needless(node, fault)
        if not found.mismatches or not again():
            return gpus
        # NVML lists GPUs when it starts. What is wrong with its end, its next start says.
        with suppress(DriverFault):
            node.close()


def _unless_needless(node: Node, fault: SlurmMigError) -> list[str]:
    """A node of which nothing is managed or expected needs no driver."""
    config = node.config
    return [] if config.managed == () and not config.expected else [str(fault)]


def differences(node: Node, gpus: Sequence[Gpu], faults: Sequence[SlurmMigError]) -> Iterator[str]:
    """How the GPUs that answer differ from the [gpus] table, one line each."""
    config = node.config
    if config.managed == () and not config.expected:
        return
    yield from map(str, faults)
    if config.expected is not None:
        yield from _counted(config.expected, [gpu.name for gpu in gpus])
    here = {gpu.minor: gpu for gpu in gpus}
    yield from minors_not_there(config, here)
    yield from _gone(node, here, faults)
    for minor in config.managed or ():
        if minor in here and not here[minor].mig_capable:
            yield f"{here[minor]} is managed, but a {here[minor].name} without MIG"
    if config.managed is None and not any(gpu.mig_capable for gpu in gpus):
        yield 'every GPU is managed, but none here knows MIG (managed = "none" says so)'


def _gone(node: Node, here: Mapping[int, Gpu], faults: Sequence[SlurmMigError]) -> Iterator[str]:
    """Whether Slurm's indexes still mean what was agreed; a GPU that does not answer may be it."""
    agreed = None if node.config.order else indexes.read(node.config.state)
    if agreed is None or faults or indexes.beyond(agreed, [*here]) is not None:
        return
    minors = (", ".join(map(str, item)) or "none" for item in (agreed, sorted(here)))
    path = node.config.state / indexes.NAME
    yield (
        "Slurm's GPU indexes were agreed for device minors {}, the driver shows {}: if that is to "
        f"stay, make gres.conf so and remove {path}"
    ).format(*minors)


def _agree(node: Node, gpus: Sequence[Gpu], found: Boot) -> None:
    """Write down which device minors Slurm counts along, while all of them are there."""
    agreed = indexes.read(node.config.state)
    here = [gpu.minor for gpu in gpus]
    order = node.config.order or indexes.beyond(agreed or (), here)
    if order is not None and order != agreed and not found.mismatches:
        indexes.write(node.config.state, order)


def _counted(expected: Mapping[str, int], names: Sequence[str]) -> Iterator[str]:
    for name, count in expected.items():
        if names.count(name) != count:
            yield f"[gpus] expected has {count} x {name}, the driver shows {names.count(name)}"
    for name in sorted(set(names) - set(expected)):
        yield f"[gpus] expected has no {name}, the driver shows {names.count(name)}"


# -- in order ----------------------------------------------------------------


def _have_mig_mode(node: Node, gpu: Gpu, found: Boot, again: Callable[[], bool]) -> None:
    """MIG mode on, unless a job of this boot has the whole GPU."""
    while True:
        try:
            if node.driver.gpu(gpu.uuid).mig_mode:
                return
            now = by_hand.set_mode(node.bench(), gpu, on=True)
        except Held:
            return
        except InstanceBusy as fault:
            if again():
                continue
            found.mismatches.append(str(fault))
        except (DriverFault, GpuLost) as fault:
            found.mismatches.append(str(fault))
        else:
            _say_mode(now, found)
        return


def _say_mode(gpu: Gpu, found: Boot) -> None:
    if gpu.mig_mode:
        found.done.append(f"{gpu}: MIG mode switched on")
    else:
        found.mismatches.append(
            f"{gpu}: MIG mode is off until the GPU is reset: stop what holds it and run "
            f"`nvidia-smi --gpu-reset -i {gpu.index}`, or boot again"
        )


def _remove_left_overs(node: Node, gpus: Sequence[Gpu], found: Boot) -> None:
    """What earlier boots and killed processes left; what a job of this boot has, stays."""
    node.files.prepare()
    for job in sorted(node.files.jobs_of_other_boots()):
        if not any(record.boot_id == node.boot_id for record in node.ledger.of_job(job)):
            node.files.withdraw(job)
            found.done.append(f"job {job}: left-over files removed")
    paths = [*node.files.remove_abandoned(), *node.locks.remove_stale()]
    for gpu in filter(node.managed, gpus):
        with node.locks.hold([gpu.uuid], "remove left-over device nodes"):
            paths += node.capabilities.remove_stale(gpu.minor)
    found.done += [f"{path} removed" for path in paths]


# -- Slurm -------------------------------------------------------------------


def keep_out(node: Node, fault: SlurmMigError) -> None:
    """Drain the node with the reason, so that `sinfo -R` shows it.

    One that somebody else took out of service keeps its reason: nobody could tell later that
    it was not ours. SlurmFault when slurmctld does not answer, or does not know the node.
    """
    facts = node.slurm.node(node.name)
    node.not_elsewhere(facts)
    if facts.out_of_service and not _may_replace(facts):
        return
    node.slurm.drain(node.name, drain_reason(str(fault), BOOT), replace=True)


def _may_replace(facts: NodeFacts) -> bool:
    """Whether a node that is out of service is so for us, or for its boot alone."""
    if facts.reason.startswith(BOOT):
        return True
    return "DRAIN" not in facts.state and facts.reason in BY_ITSELF


def let_in(node: Node) -> bool:
    """Take back a drain of ours from an earlier boot; whether there was one. Raises SlurmFault.

    A node that is down, too, went down by itself while it was switched off: an administrator
    has to give a reason, which would stand in the place of ours (scontrol(1)). With any other
    state beside the drain only the drain goes.
    """
    facts = node.slurm.node(node.name)
    ours = facts.drained_for(BOOT)
    if ours:
        node.not_elsewhere(facts)
        down = "DOWN" in facts.state and facts.state <= PLAINLY_DOWN
        (node.slurm.resume if down else node.slurm.undrain)(node.name)
    return ours
