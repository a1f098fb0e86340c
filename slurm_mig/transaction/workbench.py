"""What a change of a GPU is done with: the adapters, and a GPU under its lock as it is then.

Every public operation of this package holds the GPU's lock from first look to last write.
Under the lock no hook of another process is half-way, so a record that says `planned` or
`releasing` belongs to one that died: each operation first finishes those (sweep). What
exists is decided by looking at the hardware, before and after.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import DriverFault, InstanceBusy, NodeFault, SlurmMigError
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Owner
from slurm_mig.mig.plan import Slot, fits
from slurm_mig.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slurm_mig.gpu.capabilities import Capabilities
    from slurm_mig.gpu.remedies import Stuck
    from slurm_mig.mig.driver import Driver, Gpu, GpuInstance
    from slurm_mig.mig.plan import Policy
    from slurm_mig.state.ledger import Ledger
    from slurm_mig.state.locks import Locks
    from slurm_mig.state.monitoring import Feeds
    from slurm_mig.state.run_files import RunFiles
    from slurm_mig.state.task_file import TaskSettings


#: Pause between two tries to destroy an instance that is in use, in seconds: doubled
#: from the first to the last. "In use" right after a CI went is normal (facts/mig.md#bugs).
FIRST_PAUSE: Final = 0.02


LAST_PAUSE: Final = 0.5


#: Seconds a hook spends on what another one left: its own job must not wait long for it.
SWEEP_PATIENCE: Final = 1.0


#: Seconds to retry a creation that the driver answers with "In use": clients of the GPU as a
#: whole that are just ending are in the way of its first instance (facts/mig.md#mode).
CREATE_PATIENCE: Final = 2.0


class Workbench:
    """The adapters of one node, handed in and never looked up."""

    sweep_patience = SWEEP_PATIENCE
    create_patience = CREATE_PATIENCE

    def __init__(
        self,
        *,
        driver: Driver,
        ledger: Ledger,
        locks: Locks,
        capabilities: Capabilities,
        files: RunFiles,
        feeds: Feeds,
        node: str,
        boot_id: str,
        destroy_timeout: float,
        tasks: TaskSettings,
        stuck: Stuck,
        tell: Callable[[str], object] = str,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` hears what was met on the way and an administrator should know of."""
        self.driver = driver
        self.ledger = ledger
        self.locks = locks
        self.capabilities = capabilities
        self.files = files
        self.feeds = feeds
        self.node = node
        self.boot_id = boot_id
        self.destroy_timeout = destroy_timeout
        self.tasks = tasks
        self.stuck = stuck
        self.tell = tell
        self.sleep = sleep
        self.monotonic = monotonic
        #: Where on a GPU slices go, if the site chose that.
        self.policy: Policy = fits

    @contextmanager
    def locked(self, uuid: str, action: str, within: float | None = None) -> Iterator[Gpu]:
        """Hold a GPU's lock; the GPU as it is then: what was seen before may have changed.

        With an old MIG mode a job's slices would look gone, or a whole GPU like a broken one.
        """
        with self.locks.hold([uuid], action, within), self.driver.believing(uuid):
            yield self.fresh(uuid)

    def fresh(self, uuid: str) -> Gpu:
        """A managed GPU as it is now: it had MIG when it was chosen, so it has still."""
        gpu = self.driver.gpu(uuid)
        if not gpu.mig_capable:
            raise DriverFault(
                "read MIG mode: the driver says that this GPU has none",
                remedy="it had before: see dmesg, and reset the GPU or reboot the node",
                gpu=str(gpu),
            )
        return gpu

    def slots(self, gpu: Gpu, there: Sequence[GpuInstance]) -> list[Slot]:
        """Instances as the planner's slots."""
        geometry = self.driver.geometry(gpu)
        return [Slot(geometry.by_id(item.profile_id), item.placement) for item in there]

    @contextmanager
    def courtesy(self, what: str) -> Iterator[None]:
        """Files that steer, and decide nothing: the teardown they go with goes on without them.

        A task that is sent to a slice which is gone, or is another's, cannot open its nodes.
        """
        try:
            yield
        except (OSError, NodeFault) as problem:
            self.feeds.problems.append(f"{what}: {problem}")

    def tries(self, until: float) -> Iterator[None]:
        """One turn at once, then one after each pause, until the time has come."""
        pause = FIRST_PAUSE
        while True:
            yield
            if self.monotonic() >= until:
                return
            self.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def retry(self, work: Callable[[], object], until: float) -> InstanceBusy | None:
        """Do what may be in use, again and again until it works or the time has come."""
        last = None
        for _ in self.tries(until):
            try:
                work()
            except InstanceBusy as busy:
                last = busy
            else:
                return None
        return last

    def refuse(self, owner: Owner, request: str, gpu: Gpu, fault: SlurmMigError) -> Allocation:
        """Keep a refusal and its reason on record."""
        record = self.new_record(owner, gpu, request)
        refused = replace(record, phase=phases.REFUSED, reason=str(fault))
        return self.ledger.add(refused, phases.REFUSED, fault=type(fault).__name__)

    def new_record(self, owner: Owner, gpu: Gpu, request: str) -> Allocation:
        """A record without instances, of this node and boot."""
        return Allocation(
            owner=owner,
            node=self.node,
            gpu_uuid=gpu.uuid,
            gpu_minor=gpu.minor,
            gpu_name=gpu.name,
            boot_id=self.boot_id,
            request=request,
        )
