"""The transaction: carve for an owner, tear down, bring record and hardware together.

Every public operation holds the GPU's lock from first look to last write. Under
the lock no hook of another process is half-way, so a record that says `planned`
or `releasing` belongs to one that died: each operation first finishes those.
What exists is decided by looking at the hardware, before and after.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import (
    BadRequest,
    DriverFault,
    GpuLost,
    Held,
    InstanceBusy,
    Later,
    LedgerFault,
    LockTimeout,
    NodeFault,
    NoRoom,
    SlurmFault,
    SlurmMigError,
    about,
)
from slurm_mig.gpu.holder import INSTANCE
from slurm_mig.gpu.remedies import KILL_USER, Permit, Stuck
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Instance, Owner
from slurm_mig.mig.plan import Slot, plan, plan_at
from slurm_mig.mig.request import Item, Request
from slurm_mig.state import task_file
from slurm_mig.state.monitoring import Feeds
from slurm_mig.state.task_file import TaskSettings
from slurm_mig.system.held import ask_freely
from slurm_mig.transaction.recognise import as_found, find, is_own, own_compute, strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slurm_mig.gpu.capabilities import Capabilities
    from slurm_mig.mig.driver import ComputeInstance, Driver, Gpu, GpuInstance
    from slurm_mig.mig.plan import Plan
    from slurm_mig.state.ledger import Ledger, Retired
    from slurm_mig.state.locks import Locks
    from slurm_mig.state.run_files import RunFiles

#: Pause between two tries to destroy an instance that is in use, in seconds: doubled
#: from the first to the last. "In use" right after a CI went is normal (facts/mig.md#bugs).
FIRST_PAUSE: Final = 0.02
LAST_PAUSE: Final = 0.5

#: Seconds a hook spends on what another one left: its own job must not wait long for it.
SWEEP_PATIENCE: Final = 1.0

#: Seconds to retry a creation that the driver answers with "In use": clients of the GPU as a
#: whole that are just ending are in the way of its first instance (facts/mig.md#mode).
CREATE_PATIENCE: Final = 2.0


_SLICES_ONLY: Final = "this GPU is given out in slices only"
_ASK_LARGEST: Final = "ask for its largest profile with --gres=mig:<profile>:1"


@dataclass(frozen=True, slots=True)
class StillThere:
    """Something of a record that could not be taken down, and why; None for the GPU's MIG mode."""

    found: GpuInstance | None
    cause: str

    @property
    def gi_id(self) -> int | None:
        """Id of the GPU instance."""
        return None if self.found is None else self.found.gi_id


@dataclass(frozen=True, slots=True)
class _Ended:
    """Numbers of records whose jobs are over for certain: Slurm was asked after they were there."""

    numbers: frozenset[int] = frozenset()


@dataclass(slots=True)
class Report:
    """What a reconcile did and found, as one line each."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    #: GPUs that could not be brought in order, by UUID, and why; in `left`, too.
    faults: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Time:
    """What one hook has for slices that stay in use, however many they are; in seconds.

    `wait` for trying again, `fix` for remedies and for naming who holds them. Waiting for a
    lock is not counted; but once one was not to be had, none is waited for any more (`lock`).
    """

    wait: float
    fix: float
    lock: float | None = None


class Misplaced(DriverFault):
    """The driver made an instance elsewhere than asked, and it does not go: it goes on record."""

    def __init__(self, cause: str, made: Instance, remedy: str) -> None:
        super().__init__(cause, remedy=remedy)
        self.made = made


class Allocator:
    """Carves and tears down on one node. Adapters are handed in, never looked up."""

    def __init__(
        self,
        *,
        driver: Driver,
        ledger: Ledger,
        locks: Locks,
        capabilities: Capabilities,
        files: RunFiles,
        feeds: Feeds | None = None,
        node: str,
        boot_id: str,
        destroy_timeout: float,
        tasks: TaskSettings | None = None,
        stuck: Stuck | None = None,
        tell: Callable[[str], object] = str,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` hears what was met on the way and an administrator should know of."""
        self._driver = driver
        self._ledger = ledger
        self._locks = locks
        self._capabilities = capabilities
        self._files = files
        self._feeds = feeds or Feeds()
        self._node = node
        self._boot_id = boot_id
        self._destroy_timeout = destroy_timeout
        self._tasks = tasks or TaskSettings()
        self._stuck = stuck or Stuck(driver, capabilities)
        self._tell = tell
        self._sleep = sleep
        self._monotonic = monotonic

    # -- allocate ------------------------------------------------------------

    def allocate(
        self,
        owner: Owner,
        request: Request,
        gpu: Gpu,
        start: int | None = None,
        *,
        part: bool = False,
    ) -> Allocation:
        """Carve a request on one GPU: all of it, or nothing of it stays.

        The planner chooses the placement, unless an administrator names the
        `start` unit of a single instance. Of a `part` of what a job has its tasks are
        told nothing yet (`publish_several`).

        Stages: sweep, look, plan, intend, carve, close, activate, publish. Raises
        NoRoom or ProfileNotOffered (a job's fault) before anything is made, or a
        NodeFault after the stages done so far have been undone in reverse.
        """
        action = f"carve {request} for {owner}"
        with about(job=owner.job_id, gpu=str(gpu)), self._locked(gpu.uuid, action) as now:
            self._refuse_retired(gpu, owner)
            self._sweep(now, owner)
            held = self._held_already(owner, gpu, str(request))
            if held is not None:
                self._close_nodes(held)
                self._publish(held, request, gpu, part=part)
                return held
            self._refuse_whole(gpu, owner)
            gpu = self._with_mig_mode(now)
            there = self._driver.instances(gpu)
            self._note_gone(gpu, there)
            chosen = self._plan(request, gpu, start, self._taken(gpu, there))
            with ExitStack() as undo:
                record = self._intend(owner, request, gpu, chosen, undo)
                record = self._carve(record, gpu, {item.gi_id for item in there})
                self._close_nodes(record)
                record = self._ledger.save(record.moved(phases.ACTIVE), phases.ACTIVE)
                self._publish(record, request, gpu, part=part)
                undo.pop_all()
        return record

    def foresee_plan(self, request: Request, gpu: Gpu, start: int | None = None) -> Plan:
        """Where `allocate` would put it now, raising what it would for want of room."""
        with about(gpu=str(gpu)), self._locked(gpu.uuid, "plan") as gpu:
            # By the driver alone: what the ledger has of dead hooks would be cleared first.
            present = self._slots(gpu, self._driver.instances(gpu))
            return self._plan(request, gpu, start, present)

    def _refuse_retired(self, gpu: Gpu, owner: Owner) -> None:
        """Look again under the lock: it may have been retired since the hook asked."""
        mark = self._ledger.retired().get(gpu.uuid)
        if mark is not None and owner.job_id is not None:
            raise offered_though_retired(mark)

    def _refuse_whole(self, gpu: Gpu, owner: Owner, *, stuck: bool = True) -> None:
        """Leave a GPU alone that a job has as a whole: MIG mode would come on under it.

        `stuck`: also one whose MIG mode could not be switched on again since then.

        Slurm does not offer both at once; but an administrator may ask, and a record
        may be left of a job whose Epilog never came.
        """
        for record in self._ledger.open_on(gpu.uuid):
            if not record.whole or record.owner.same_run(owner):
                continue
            if record.phase == phases.QUARANTINED and stuck:
                # Its own reason names processes of others: not for this job's user.
                raise NoRoom("MIG mode is still off since an earlier job: the GPU is in use")
            if record.phase != phases.QUARANTINED:
                raise NoRoom(f"{record.owner} has the whole GPU")

    def _held_already(self, owner: Owner, gpu: Gpu, *requests: str) -> Allocation | None:
        """What this very run holds: a Prolog that is run twice must not carve twice.

        Where Slurm has no SLUID a later job can have the number of one that was lost:
        what that one asked for goes.
        """
        if owner.job_id is None:
            return None
        for record in self._ledger.open_on(gpu.uuid):
            if record.owner.same_run(owner) and record.phase == phases.ACTIVE:
                if record.request in requests:
                    return record
                until = self._monotonic() + SWEEP_PATIENCE
                self._try_tear_down(record, gpu, "left by an earlier job of that number", until)
        return None

    def _with_mig_mode(self, gpu: Gpu) -> Gpu:
        """Have MIG mode on; switched on here only where that costs no GPU reset."""
        gpu = self._fresh(gpu.uuid)
        if gpu.mig_mode:
            return gpu
        if not gpu.resetless:
            raise DriverFault(
                "MIG mode is off, and switching it on resets this GPU",
                remedy=f"run `slurm-mig enable --gpu {gpu.minor}` while it is idle",
            )
        busy = self._retry(
            lambda: self._driver.set_mig_mode(gpu, on=True), self._monotonic() + CREATE_PATIENCE
        )
        if busy is not None:
            raise self._occupied(gpu, busy) from busy
        gpu = self._fresh(gpu.uuid)
        if not gpu.mig_mode:
            raise DriverFault(
                "MIG mode is off, and still is after the driver switched it on",
                remedy=f"run `slurm-mig enable --gpu {gpu.minor}`, or reset the GPU",
            )
        return gpu

    def _occupied(self, gpu: Gpu, busy: InstanceBusy) -> NoRoom:
        """Whoever has the GPU open may be a user: that must not drain the node."""
        users = self._stuck.holders(gpu, None).text(public=True)
        return NoRoom(f"{busy.cause}, used by {users}", remedy=busy.remedy)

    @contextmanager
    def _locked(self, uuid: str, action: str, within: float | None = None) -> Iterator[Gpu]:
        """Hold a GPU's lock; the GPU as it is then: what was seen before may have changed.

        With an old MIG mode a job's slices would look gone, or a whole GPU like a broken one.
        """
        with self._locks.hold([uuid], action, within):
            yield self._fresh(uuid)

    def _fresh(self, uuid: str) -> Gpu:
        """A managed GPU as it is now: it had MIG when it was chosen, so it has still."""
        gpu = self._driver.gpu(uuid)
        if not gpu.mig_capable:
            raise DriverFault(
                "read MIG mode: the driver says that this GPU has none",
                remedy="it had before: see dmesg, and reset the GPU or reboot the node",
                gpu=str(gpu),
            )
        return gpu

    def _plan(self, request: Request, gpu: Gpu, start: int | None, present: Sequence[Slot]) -> Plan:
        geometry = self._driver.geometry(gpu)

        def chosen(taken: Sequence[Slot]) -> Plan:
            if start is None:
                return plan(request, geometry, taken)
            return plan_at(request, start, geometry, taken)

        try:
            return chosen(present)
        except NoRoom as full:
            # Who waits for room should know that nobody's job has it.
            stuck = self._quarantined(gpu)
            if not stuck:
                raise
            try:
                chosen([slot for slot in present if slot not in stuck])
            except NoRoom:
                raise full from None
            raise NoRoom(f"{full.cause}; {_stuck_words(stuck)}", remedy=full.remedy) from None

    def _quarantined(self, gpu: Gpu) -> list[Slot]:
        """Slots of slices on a GPU that could not be taken down."""
        geometry = self._driver.geometry(gpu)
        slots = {
            Slot(geometry.by_id(item.profile_id), item.placement): None
            for record in self._ledger.open_on(gpu.uuid)
            if record.phase == phases.QUARANTINED
            for item in record.present
        }
        return list(slots)

    def _taken(self, gpu: Gpu, there: Sequence[GpuInstance]) -> list[Slot]:
        """What is there, by the driver's list or by the ledger.

        A list that for a moment lacks a neighbour's slice must not give its place away.
        """
        geometry = self._driver.geometry(gpu)
        recorded = (
            Slot(geometry.by_id(item.profile_id), item.placement)
            for record in self._ledger.open_on(gpu.uuid)
            if record.phase in (phases.ACTIVE, phases.QUARANTINED)
            for item in record.present
        )
        return list(dict.fromkeys([*self._slots(gpu, there), *recorded]))

    def _slots(self, gpu: Gpu, there: Sequence[GpuInstance]) -> list[Slot]:
        geometry = self._driver.geometry(gpu)
        return [Slot(geometry.by_id(item.profile_id), item.placement) for item in there]

    def _intend(
        self, owner: Owner, request: Request, gpu: Gpu, chosen: Plan, undo: ExitStack
    ) -> Allocation:
        """Write down what is going to be made, before the first NVML call that makes it."""
        if owner.job_id is not None:
            self._files.mark(owner)
        planned = replace(
            self._record(owner, gpu, str(request)),
            instances=tuple(item for slot in chosen.slots for item in Instance.planned(slot)),
            reason=str(chosen),
        )
        waited = round(self._locks.waited, 3)
        record = self._ledger.add(planned, phases.PLANNED, waited=waited)
        undo.callback(self._roll_back, record.number, gpu)
        return record

    def _carve(self, record: Allocation, gpu: Gpu, before: set[int]) -> Allocation:
        made: GpuInstance | None = None
        for place, wanted in enumerate(record.instances):
            tries: list[int] = []
            try:
                if made is None or made.placement != wanted.placement:
                    made = self._create(gpu, wanted, before, tries)
                compute = self._create_compute(gpu, made.gi_id, wanted.compute_slices)
            except SlurmMigError as fault:
                there = made is not None and made.placement == wanted.placement
                # Said "no" to at once: nothing was made, and what is there is somebody else's.
                refused = isinstance(fault, NoRoom) and not there and len(tries) == 1
                self._save_unmade(record, place, fault, refused=refused)
                raise
            ids = replace(wanted, gi_id=made.gi_id, ci_id=compute.ci_id, uuid=compute.uuid)
            record = record.with_instance(place, ids)
        self._look_again(record, gpu)
        return record

    def _save_unmade(
        self, record: Allocation, place: int, fault: SlurmMigError, *, refused: bool
    ) -> None:
        """Before a carve is undone that failed at item number `place`: what was never made.

        It must not be looked for by its placement: an administrator may be there by now. What
        the driver did before a fault is not known.
        """
        here = record.instances[place].placement
        unmade = [
            item
            for item in record.instances[place:]
            if item.placement != here or (refused and item.gi_id is None)
        ]
        record = record.without(unmade)
        if isinstance(fault, Misplaced):
            record = record.with_instance(place, fault.made)
        self._ledger.save(record.moved(phases.RELEASING), phases.RELEASING)

    def _create(
        self, gpu: Gpu, wanted: Instance, before: set[int], tries: list[int]
    ) -> GpuInstance:
        """Make one GPU instance; NoRoom while something keeps the GPU from being partitioned.

        `tries` grows by one for each call. What was made elsewhere than asked goes again at
        once, for by its placement no record would find it: Misplaced, if it does not. Its id
        must be new, or it could be somebody else's.
        """
        made: list[GpuInstance] = []

        def create() -> None:
            tries.append(gpu.minor)
            made.append(self._driver.create_gpu_instance(gpu, wanted.profile_id, wanted.placement))

        busy = self._retry(create, self._monotonic() + CREATE_PATIENCE)
        if busy is not None:
            raise self._occupied(gpu, busy) from busy
        (found,) = made
        if (found.profile_id, found.placement) != (wanted.profile_id, wanted.placement):
            raise self._elsewhere(gpu, wanted, found, new=found.gi_id not in before)
        before.add(found.gi_id)
        return found

    def _elsewhere(
        self, gpu: Gpu, wanted: Instance, found: GpuInstance, *, new: bool
    ) -> DriverFault:
        """The fault to raise for an instance that was made elsewhere; it is destroyed if it can be.

        One that is not `new` is somebody else's.
        """
        cause = (
            f"{wanted} was asked for, the driver made GPU instance {found.gi_id} of profile "
            f"id {found.profile_id} at {found.placement}"
        )
        remedy = "see `slurm-mig status` for what is there"
        destroy = partial(self._driver.destroy_gpu_instance, gpu, found.gi_id)
        if not new or self._retry(destroy, self._monotonic() + CREATE_PATIENCE) is None:
            return DriverFault(cause, remedy=remedy)
        place = found.placement
        name = str(self._driver.geometry(gpu).by_id(found.profile_id).name)
        made = Instance(name, found.profile_id, place.start, place.size, found.gi_id)
        return Misplaced(cause, made, remedy)

    def _create_compute(self, gpu: Gpu, gi_id: int, slices: int | None) -> ComputeInstance:
        """Make one compute instance in a GPU instance of ours.

        Until its nodes are closed any user could have opened it: he is in the way, not the node.
        """
        made: list[ComputeInstance] = []

        def create() -> None:
            made.append(self._driver.create_compute_instance(gpu, gi_id, slices))

        busy = self._retry(create, self._monotonic() + CREATE_PATIENCE)
        if busy is not None:
            holders = self._stuck.holders(gpu, self._driver.instance(gpu, gi_id))
            if not any(item.has == INSTANCE and any(item.uids) for item in holders.found):
                # A monitor of root's that has the GPU open is no excuse for the driver.
                raise busy
            users = holders.text(public=True)
            raise NoRoom(f"{busy.cause}, used by {users}", remedy=busy.remedy) from busy
        return made[0]

    def _look_again(self, record: Allocation, gpu: Gpu) -> None:
        """Believe what is seen, not what creation returned (go-nvml#146)."""
        there = {item.gi_id: item for item in self._driver.instances(gpu)}
        for wanted in record.instances:
            found = there.get(wanted.gi_id if wanted.gi_id is not None else -1)
            ours = found is not None and find(wanted, [found]) and own_compute(wanted, found)
            if not ours:
                raise DriverFault(
                    f"driver reported {wanted} as made (GPU instance {wanted.gi_id}), "
                    f"but lists {found}",
                    remedy="if it comes again, reset the GPU or reboot the node",
                )

    def _close_nodes(self, record: Allocation) -> None:
        """Let only the job's user in. An administrator's instance stays as the driver has it."""
        if record.owner.job_id is None:
            return
        for item in record.instances:
            if item.gi_id is not None and item.ci_id is not None:
                self._capabilities.close(
                    record.gpu_minor, item.gi_id, item.ci_id, record.owner.uid, record.owner.gid
                )

    def _publish(
        self, record: Allocation, request: Request, gpu: Gpu, *, part: bool = False
    ) -> None:
        owner = record.owner
        if owner.job_id is None:
            return
        if not part:
            several = len(record.instances) > 1
            leases = self._leases(owner, len(record.instances)) if several else ""
            self._mark(owner, [record], leases)
            lines = task_file.slice_lines(record, request, self._tasks, leases)
            self._files.publish(owner, lines)
        self._feeds.show(record, gpu.index)

    def _leases(self, owner: Owner, slices: int) -> str:
        """Where the job's steps write down which slices they took."""
        # Nobody else can guess it, so nobody can be there first.
        run = f"{owner.job_id}.{owner.restart}"
        elsewhere = f"{self._tasks.leases}-{run}-{os.urandom(8).hex()}"
        return self._files.make_leases(owner, slices, elsewhere)

    def _mark(self, owner: Owner, records: Sequence[Allocation], leases: str = "") -> None:
        """Write down beside the ledger what a run has, should the ledger be lost (evidence.py)."""
        self._files.mark(owner, leases=leases, head=self._ledger.head(), records=records)

    def publish_several(self, owner: Owner, given: Sequence[tuple[int, Allocation]]) -> None:
        """Tell the tasks of a job with slices on several GPUs: (Slurm's index, its part)."""
        leases = self._leases(owner, sum(len(record.instances) for _, record in given))
        self._mark(owner, [record for _, record in given], leases)
        self._files.publish(owner, task_file.several_lines(given, self._tasks, leases))

    def _roll_back(self, number: int, gpu: Gpu) -> None:
        """Undo a carve that failed; what cannot be undone stays on record for the next hook."""
        self._tear_down(self._ledger.find(number), gpu, "rolled back")

    # -- whole GPUs ----------------------------------------------------------

    def give_whole(self, owner: Owner, gpu: Gpu, policy: str, *, reset: bool) -> Allocation:
        """Let a job have a whole managed GPU; never in MIG mode without an instance.

        `policy` is `mig-off`, `full-profile`, `reject`, or `auto` (mig-off where that
        needs no GPU reset, else full-profile); `reset` allows mig-off to reset an
        Ampere GPU (facts/mig.md#mode). Raises NoRoom while others' instances exist
        there, BadRequest where the policy says no.
        """
        if policy == "auto":
            policy = "mig-off" if gpu.resetless else "full-profile"
        row = self._driver.geometry(gpu).whole
        largest = Request((Item(row.name, 1, row.profile_id),))
        with about(job=owner.job_id, gpu=str(gpu)), self._locked(gpu.uuid, "whole GPU") as now:
            self._refuse_retired(gpu, owner)
            self._sweep(now, owner)
            held = self._held_already(owner, gpu, phases.WHOLE, phases.WHOLE_MIG_OFF, str(largest))
            if held is not None:
                return held
            self._refuse_whole(gpu, owner, stuck=False)
            gpu = self._fresh(gpu.uuid)
            if policy == "reject":
                raise BadRequest(_SLICES_ONLY, remedy=_ASK_LARGEST)
            # MIG mode is off after a reboot of Hopper and later: the policy holds all the same.
            if not gpu.mig_mode and not (policy == "full-profile" and gpu.resetless):
                return self._taken_over(owner, gpu) or self._without_mig(owner, gpu, phases.WHOLE)
            if policy == "mig-off":
                return self._switched_off(owner, gpu, reset=reset)
        return self.allocate(owner, largest, gpu)

    def _switched_off(self, owner: Owner, gpu: Gpu, *, reset: bool) -> Allocation:
        if self._driver.instances(gpu):
            stuck = self._quarantined(gpu)
            words = f"; {_stuck_words(stuck)}" if stuck else ""
            raise NoRoom(f"a whole GPU was asked for, but MIG instances exist on it{words}")
        if not (gpu.resetless or reset):
            raise BadRequest(_SLICES_ONLY, remedy=_ASK_LARGEST)
        return self._without_mig(owner, gpu, phases.WHOLE_MIG_OFF)

    def _taken_over(self, owner: Owner, gpu: Gpu) -> Allocation | None:
        """Let the next job's end bring MIG mode back, where that is due since an earlier one.

        Else it would come back under the job, as soon as what was in its way has ended.
        """
        due = [
            record
            for record in self._ledger.open_on(gpu.uuid)
            if record.request == phases.WHOLE_MIG_OFF and record.phase == phases.QUARANTINED
        ]
        return self._without_mig(owner, gpu, phases.WHOLE_MIG_OFF, due) if due else None

    def _without_mig(
        self, owner: Owner, gpu: Gpu, request: str, due: Sequence[Allocation] = ()
    ) -> Allocation:
        """Record first, then switch: a hook that dies here leaves what the next one undoes."""
        self._files.mark(owner)
        record = self._ledger.add(self._record(owner, gpu, request), phases.PLANNED)
        for earlier in due:
            going = self._ledger.save(earlier.moved(phases.RELEASING), phases.RELEASING)
            self._ledger.finish(going, phases.RELEASED, f"the GPU went on to {owner}")
        if request == phases.WHOLE_MIG_OFF and not due:
            try:
                self._leave_mig_mode(gpu)
            except SlurmMigError:
                self._tear_down(record, gpu, "rolled back")
                raise
        record = self._ledger.save(record.moved(phases.ACTIVE), phases.ACTIVE)
        self._feeds.show(record, gpu.index)
        return record

    def _leave_mig_mode(self, gpu: Gpu) -> None:
        """Switch MIG mode off; NoRoom while something (a monitor, say) keeps the GPU open."""
        until = self._monotonic() + self._destroy_timeout
        busy = self._retry(lambda: self._driver.set_mig_mode(gpu, on=False), until)
        if busy is not None:
            raise self._occupied(gpu, busy) from busy
        # On Ampere the wish alone is success to NVML: without its reset the mode stays.
        if self._fresh(gpu.uuid).mig_mode:
            raise NoRoom("MIG mode stays on: something keeps the GPU from being reset")

    def publish_whole(
        self, owner: Owner, given: Sequence[tuple[int, str, Allocation | None]]
    ) -> None:
        """Tell the tasks of a job with whole GPUs what they are: (Slurm's index, UUID, record)."""
        self._mark(owner, [record for _, _, record in given if record is not None])
        self._files.publish(owner, task_file.whole_lines(given, self._tasks))

    # -- release -------------------------------------------------------------

    def release(self, record: Allocation, reason: str, *, over: bool = False) -> Allocation:
        """Destroy exactly what a record names, then look, then close the record.

        `over`: its job has ended on this node for certain, so what is left of its
        processes may be killed if the site wants that.

        Returns the record as `released`, `lost`, or `quarantined` when something
        of it is still in use after the deadline: the slice is set aside, not the
        node. Raises NodeFault when the driver fails otherwise.
        """
        (ended,) = self.release_all([record], reason, over=over)
        return ended

    def release_all(
        self, records: Sequence[Allocation], reason: str, *, over: bool = False
    ) -> list[Allocation]:
        """`release` several within the time of one; one that fails keeps no other from its end.

        All are tried first, and what resists then shares the time. Raises the first NodeFault
        after the last record.
        """
        left = Time(self._destroy_timeout, self._stuck.timeout)
        ended: dict[int, Allocation] = {}
        faults: list[NodeFault] = []
        if over:
            self._shut(records)
        insist: list[tuple[int, Gpu]] = []
        for record in records:
            share = min(SWEEP_PATIENCE, self._destroy_timeout / len(records))
            with self._noting(faults, job=record.owner.job_id, gpu=record.gpu_uuid):
                now, gpu = self._begin(record, reason, left, share)
                ended[now.number] = now
                insist += [] if gpu is None else [(now.number, gpu)]
        for number, gpu in insist:
            with self._noting(faults, job=ended[number].owner.job_id, gpu=str(gpu)):
                ended[number] = self._insist(ended[number], gpu, reason, left, over=over)
        if faults:
            raise faults[0]
        return list(ended.values())

    @staticmethod
    @contextmanager
    def _noting(faults: list[NodeFault], *, job: int | None, gpu: str) -> Iterator[None]:
        """Go on with the next record after a fault, which is noted; not after the ledger's.

        Later is none: what is set aside by then is tried again by every later hook there.
        """
        try:
            with about(job=job, gpu=gpu):
                yield
        except (LedgerFault, Later) as problem:
            if isinstance(problem, LedgerFault):
                raise
        except NodeFault as fault:
            faults.append(fault)

    def _shut(self, records: Sequence[Allocation]) -> None:
        """Close what ended jobs have to their users, before anything is waited for.

        Without the GPU's lock: the nodes of a record that is active and of this boot are its
        own, and another's that has their numbers by now is left as it is. What fails here is
        tried again, and told, under the lock.
        """
        for record in records:
            if record.phase != phases.ACTIVE or record.boot_id != self._boot_id:
                continue
            for item in self._unclaimed(record).present:
                if item.gi_id is not None and item.ci_id is not None and record.owner.uid:
                    with suppress(NodeFault):
                        self._capabilities.revoke(
                            record.gpu_minor, item.gi_id, item.ci_id, owned_by=record.owner.uid
                        )

    def _open_again(self, record: Allocation) -> None:
        """Under the lock: give back what `_shut` may have closed of a later job's.

        Between its look at the ledger and its closing another hook can have closed the record
        as lost, and carved the place anew for another job of the same user.
        """
        for other in self._ledger.open_on(record.gpu_uuid):
            same = other.owner.uid == record.owner.uid and other.number > record.number
            if same and other.phase == phases.ACTIVE:
                self._close_nodes(other)

    def _begin(
        self, record: Allocation, reason: str, left: Time, patience: float
    ) -> tuple[Allocation, Gpu | None]:
        """Tear a record down as far as it goes in a moment; its GPU, where more is to be done."""
        if record.boot_id != self._boot_id and record.request != phases.WHOLE_MIG_OFF:
            return self._ledger.finish(record, phases.LOST, "the node was rebooted"), None
        try:
            with self._locked(record.gpu_uuid, f"release {record.owner}", left.lock) as gpu:
                self._sweep(gpu, None)
                # Another hook, or the sweep, may have finished it by now.
                record = self._ledger.find(record.number)
                if not record.open:
                    self._open_again(record)
                started = self._monotonic()
                record = self._tear_down(record, gpu, reason, started + patience, users={})
                left.wait = max(0, left.wait - (self._monotonic() - started))
        except LockTimeout:
            left.lock = 0
            raise
        except Later as crowd:
            left.lock = 0
            return self._ledger.leave(record.number, f"{reason}; {crowd.cause}"), None
        return record, gpu

    def _tear_down(
        self,
        record: Allocation,
        gpu: Gpu,
        reason: str,
        until: float | None = None,
        *,
        done: Sequence[str] = (),
        users: Mapping[int | None, str] | None = None,
    ) -> Allocation:
        """Under the lock, so not for long: till `until`, and a look for holders.

        `users` by GPU instance id where they are known already, or are not to be looked
        for now; `done` is what was done to get here. Raises DriverFault with the record
        set aside, so that a later hook tries again.
        """
        if not record.open:
            return record
        until = self._monotonic() + SWEEP_PATIENCE if until is None else until
        self._withdraw_environment(record)
        record = self._unclaimed(record)
        self._feeds.hide(record, gpu.index)
        seen = self._driver.instances(gpu)
        record = _with_ids(record, seen)
        if record.phase != phases.RELEASING:
            record = self._ledger.save(record.moved(phases.RELEASING), phases.RELEASING)
        try:
            self._take_from_user(record, seen)
            held = self._free(record, gpu, until)
            if held:
                looks = self._users(gpu, held, until + self._stuck.look) if users is None else users
                return self._set_aside(record, gpu, held, looks, done)
            self._remove_nodes(record, record.present, gpu)
        except GpuLost:
            raise
        except DriverFault as fault:
            self._save_stuck(record, gpu, str(fault))
            raise
        return self._ledger.finish(record, phases.RELEASED, "; ".join([reason, *done]))

    def _unclaimed(self, record: Allocation) -> Allocation:
        """The record without places that went on to another one: its own slices there are gone.

        Ids and MIG UUID in one place are always the same (facts/mig.md#ids): without this a
        record that could not be closed would take the next job's slice for its own.
        """
        claimed = {
            (item.profile_id, item.placement)
            for other in self._ledger.open_on(record.gpu_uuid)
            if other.number != record.number
            and (other.number > record.number or other.phase == phases.ACTIVE)
            for item in other.present
        }
        lost = [item for item in record.present if (item.profile_id, item.placement) in claimed]
        return record.without(lost) if lost else record

    def _save_stuck(self, record: Allocation, gpu: Gpu, reason: str) -> None:
        """Set a record aside that the driver failed on, without what of it is gone already."""
        with suppress(DriverFault):
            gone = self._gone(record, gpu, self._driver.instances(gpu))
            self._remove_nodes(record, gone, gpu)
            record = record.without(gone)
        self._ledger.save(record.moved(phases.QUARANTINED, reason), phases.QUARANTINED)

    def _gone(self, record: Allocation, gpu: Gpu, seen: Sequence[GpuInstance]) -> list[Instance]:
        """What of a record neither the driver's list nor its own id shows."""
        return [
            item
            for item in record.present
            if find(item, seen) is None and self._known(item, gpu) is None
        ]

    def _note_gone(self, gpu: Gpu, seen: Sequence[GpuInstance]) -> None:
        """Before a place is given away: what was set aside there and is gone has no claim to it."""
        for record in self._ledger.open_on(gpu.uuid):
            gone = self._gone(record, gpu, seen) if record.phase == phases.QUARANTINED else []
            if not gone:
                continue
            self._remove_nodes(record, gone, gpu)
            going = self._ledger.save(record.moved(phases.RELEASING), phases.RELEASING)
            rest = going.without(gone)
            if rest.present:
                self._ledger.save(rest.moved(phases.QUARANTINED), phases.QUARANTINED)
            else:
                self._ledger.finish(rest, phases.RELEASED, "no longer there")

    def _free(self, record: Allocation, gpu: Gpu, until: float) -> list[StillThere]:
        """Take down what a record names; what of it is there afterwards, and why.

        An instance that a successful call left is destroyed again (go-nvml#146).
        """
        pause = FIRST_PAUSE
        while True:
            causes = {item: self._destroy(item, gpu, until) for item in record.present}
            held = self._seen_after(causes, gpu)
            if not held or any(causes.values()) or self._monotonic() >= until:
                break
            self._sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
        if not held and record.request == phases.WHOLE_MIG_OFF:
            why = self._restore_mig_mode(gpu, until)
            return [StillThere(None, why)] if why else []
        return held

    def _seen_after(self, causes: Mapping[Instance, str | None], gpu: Gpu) -> list[StillThere]:
        """What exists still, by the list or by its own id."""
        seen = self._driver.instances(gpu)
        held: dict[int, StillThere] = {}
        for item, cause in causes.items():
            found = find(item, seen) or self._known(item, gpu)
            if found is not None:
                why = cause or "the driver said it was destroyed"
                held.setdefault(found.gi_id, StillThere(found, why))
        return list(held.values())

    def _insist(
        self, record: Allocation, gpu: Gpu, reason: str, time_left: Time, *, over: bool
    ) -> Allocation:
        """Go on with what was set aside: wait, then use the remedies, then name who holds it.

        The lock is taken for each try alone. Several jobs of a user can be stuck on one
        GPU at once: whoever waits for their hooks must not run into its lock timeout, for
        that would drain the node.
        """
        started = self._monotonic()
        record = self._keep_trying(record, gpu, reason, started + time_left.wait)
        time_left.wait = max(0, time_left.wait - (self._monotonic() - started))
        if record.phase != phases.QUARANTINED:
            return record
        started = self._monotonic()
        record = self._use_remedies(record, gpu, reason, started + time_left.fix, over=over)
        time_left.fix = max(0, time_left.fix - (self._monotonic() - started))
        return record

    def _use_remedies(
        self, record: Allocation, gpu: Gpu, reason: str, end: float, *, over: bool
    ) -> Allocation:
        # The last look for holders has to be in time, too.
        until = end - self._stuck.look
        done: list[str] = []
        for remedy in self._stuck.remedies:
            permit = self._permit(record, over=over)
            used = self._use(remedy, record, gpu, permit, until)
            did = [text for text in used if text not in done]
            done += did
            if did:
                record = self._keep_trying(record, gpu, reason, until, done)
            if record.phase != phases.QUARANTINED or self._monotonic() >= until:
                break
        if record.phase != phases.QUARANTINED:
            return record
        users = self._users(gpu, self._still_there(record, gpu), end)
        with self._locked(gpu.uuid, f"set aside {record.owner}") as gpu:
            record = self._ledger.find(record.number)
            now = self._monotonic()
            return self._tear_down(record, gpu, reason, now, done=done, users=users)

    def _use(
        self, remedy: str, record: Allocation, gpu: Gpu, permit: Permit, until: float
    ) -> list[str]:
        with ExitStack() as locked:
            if remedy == KILL_USER:
                # Another job of this user could be given the place between the look and the
                # kill, and its process would look like one that has stayed behind.
                action = f"end what holds the slice of {record.owner}"
                gpu = locked.enter_context(self._locked(gpu.uuid, action))
                record = self._ledger.find(record.number)
                if record.phase != phases.QUARANTINED:
                    return []
            return [
                text
                for item in self._still_there(record, gpu)
                for text in self._stuck.apply(remedy, gpu, item.found, permit, until)
            ]

    def _keep_trying(
        self, record: Allocation, gpu: Gpu, reason: str, until: float, done: Sequence[str] = ()
    ) -> Allocation:
        """Try a quarantined record again and again until it goes or the time has come."""
        pause = FIRST_PAUSE
        while record.phase == phases.QUARANTINED:
            with self._locked(gpu.uuid, f"release {record.owner}") as gpu:
                record = self._ledger.find(record.number)
                if record.phase == phases.QUARANTINED:
                    self._try_again(record, gpu, "; ".join([reason, *done]))
                    record = self._ledger.find(record.number)
            if self._monotonic() >= until:
                break
            self._sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
        return record

    def _still_there(self, record: Allocation, gpu: Gpu) -> list[StillThere]:
        seen, record = self._driver.instances(gpu), self._unclaimed(record)
        found = {each.gi_id: each for item in record.present if (each := find(item, seen))}
        if record.request == phases.WHOLE_MIG_OFF:
            return [StillThere(None, "")]
        return [StillThere(each, "") for each in found.values()]

    def _permit(self, record: Allocation, *, over: bool) -> Permit:
        """Whose processes a remedy may kill: in doubt nobody's."""
        owner = record.owner
        if not over or owner.job_id is None:
            return Permit()
        others = [
            item.owner
            for item in self._ledger.all_open()
            if item.phase in (phases.PLANNED, phases.ACTIVE) and not item.owner.same_run(owner)
        ]
        if any(other.job_id == owner.job_id for other in others):
            # Another run of this job lives, and its processes look the same.
            return Permit()
        return Permit(owner, by_environment=all(other.uid != owner.uid for other in others))

    def _set_aside(
        self,
        record: Allocation,
        gpu: Gpu,
        held: Sequence[StillThere],
        users: Mapping[int | None, str],
        done: Sequence[str],
    ) -> Allocation:
        """Quarantine what stays: by itself, with what holds it."""
        seen = [item.found for item in held if item.found is not None]
        gone = [item for item in record.present if not find(item, seen)]
        self._remove_nodes(record, gone, gpu)
        record = record.without(gone)
        texts = []
        for item in held:
            found = [] if item.found is None else [item.found]
            names = ", ".join(str(each) for each in record.present if find(each, found))
            what = f"{names} still there" if names else "MIG mode is still off"
            # Who it is comes first: reasons are cut off at their end.
            who = users.get(item.gi_id, "")
            texts.append(f"{what}{f', used by {who}' if who else ''}: {item.cause}")
        reason = "; ".join([*texts, *done])
        return self._ledger.save(record.moved(phases.QUARANTINED, reason), phases.QUARANTINED)

    def _users(self, gpu: Gpu, held: Sequence[StillThere], end: float) -> Mapping[int | None, str]:
        """Who holds what is still there, by GPU instance id; one look's time for all."""
        until = min(end, self._monotonic() + self._stuck.look)
        return {
            item.gi_id: self._stuck.holders(gpu, item.found, until - self._monotonic()).text()
            for item in held
        }

    def _known(self, item: Instance, gpu: Gpu) -> GpuInstance | None:
        if item.gi_id is None:
            return None
        found = self._driver.instance(gpu, item.gi_id)
        return found if found is not None and find(item, [found]) else None

    def _take_from_user(self, record: Allocation, seen: Sequence[GpuInstance]) -> None:
        """Close an ended job's instances to its user: nothing new starts on what resists."""
        if record.owner.job_id is None:
            return
        for item in record.instances:
            if item.gi_id is not None and item.ci_id is not None and find(item, seen):
                self._capabilities.revoke(record.gpu_minor, item.gi_id, item.ci_id)

    def _remove_nodes(self, record: Allocation, items: Sequence[Instance], gpu: Gpu) -> None:
        """Take away the nodes of instances that are gone.

        The ids may be another instance's by now, made by hand: of its nodes only those
        that still are the job's user's go.
        """
        taken = {found.gi_id for found in self._driver.instances(gpu)}
        for item in items:
            if item.gi_id is None or item.ci_id is None:
                continue
            ids = record.gpu_minor, item.gi_id, item.ci_id
            if item.gi_id not in taken:
                self._capabilities.remove(*ids)
            elif record.owner.uid:
                self._capabilities.remove(*ids, owned_by=record.owner.uid)
        # A hook that died before it wrote the ids down left nodes that no record names.
        self._capabilities.remove_stale(record.gpu_minor)

    def _withdraw_environment(self, record: Allocation) -> None:
        """Take a run's environment away before its slices go.

        A hook that dies in between leaves a run that no task can start in, not one
        whose tasks are sent to a slice that is gone or is another's by now.
        """
        owner = record.owner
        if owner.job_id is None or record.phase != phases.ACTIVE:
            return
        if not self._has_heir(owner):
            with self._courtesy(f"environment of {owner}"):
                self._files.withdraw_environment(owner)

    @contextmanager
    def _courtesy(self, what: str) -> Iterator[None]:
        """Files that steer, and decide nothing: the teardown they go with goes on without them.

        A task that is sent to a slice which is gone, or is another's, cannot open its nodes.
        """
        try:
            yield
        except (OSError, NodeFault) as problem:
            self._feeds.problems.append(f"{what}: {problem}")

    def _has_heir(self, owner: Owner) -> bool:
        """Whether the files are those of a later job with this number: ids are reused."""
        return owner.job_id is not None and any(
            other.phase in (phases.PLANNED, phases.ACTIVE)
            and other.owner.restart == owner.restart
            and not other.owner.same_run(owner)
            for other in self._ledger.open_of_job(owner.job_id)
        )

    def _restore_mig_mode(self, gpu: Gpu, until: float) -> str:
        """MIG mode on again; says why it is not, for a later hook to try again.

        What uses the GPU may be a user's: it is no fault of the node, unlike all else.
        """
        now = self._fresh(gpu.uuid)
        if not (now.mig_mode and now.mig_pending):
            busy = self._retry(lambda: self._driver.set_mig_mode(gpu, on=True), until)
            if busy is not None:
                return busy.cause
            now = self._fresh(gpu.uuid)
        return "" if now.mig_mode else "the GPU could not be reset"

    def _destroy(self, item: Instance, gpu: Gpu, until: float) -> str:
        """Destroy one instance, retrying while it is in use; returns why it could not."""

        def destroy() -> None:
            found = find(item, self._driver.instances(gpu))
            if found is not None:
                for compute in found.compute:
                    self._driver.destroy_compute_instance(gpu, found.gi_id, compute.ci_id)
                self._driver.destroy_gpu_instance(gpu, found.gi_id)

        busy = self._retry(destroy, until)
        return "" if busy is None else busy.cause

    def _retry(self, work: Callable[[], object], until: float) -> InstanceBusy | None:
        """Do what may be in use, again and again until it works or the time has come."""
        pause = FIRST_PAUSE
        while True:
            try:
                work()
            except InstanceBusy as busy:
                if self._monotonic() >= until:
                    return busy
                self._sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
            else:
                return None

    # -- sweep and reconcile -------------------------------------------------

    def _sweep(self, gpu: Gpu, owner: Owner | None) -> None:
        """Finish what dead hooks left on a GPU whose lock we hold.

        `owner` is about to be served: another run of the same job cannot still be
        alive, so its slices go too (ids are reused, Epilogs may be missing).
        """
        until = self._monotonic() + SWEEP_PATIENCE
        for record in self._ledger.open_on(gpu.uuid):
            if record.boot_id != self._boot_id:
                self._close_with_boot(record, gpu)
            elif record.phase == phases.QUARANTINED:
                self._try_again(record, gpu)
                self._withdraw_files(record)
            elif record.phase != phases.ACTIVE:
                self._try_tear_down(record, gpu, "finished for a hook that died", until)
                self._withdraw_files(record)
            elif missing := self._missing(record, gpu):
                self._close_lost(record, gpu, missing, until)
            elif owner and record.node == self._node and _superseded(record.owner, owner):
                self._try_tear_down(record, gpu, "left by an earlier run of the job", until)

    def _close_with_boot(self, record: Allocation, gpu: Gpu) -> None:
        """Close a record of an earlier boot: its instances went with it."""
        if record.request == phases.WHOLE_MIG_OFF:
            # Ampere keeps the mode over a reboot, also the one that was meant for a job.
            why = self._restore_mig_mode(gpu, self._monotonic())
            if why:
                # It stays due: else the next job's Prolog would find the mode off and no reason.
                self._set_mode_aside(record, why)
                return
        self._ledger.finish(record, phases.LOST, "the node was rebooted")

    def _set_mode_aside(self, record: Allocation, why: str) -> None:
        if record.phase == phases.QUARANTINED:
            return
        if record.phase != phases.RELEASING:
            record = self._ledger.save(record.moved(phases.RELEASING), phases.RELEASING)
        reason = f"MIG mode is still off: {why}"
        self._ledger.save(record.moved(phases.QUARANTINED, reason), phases.QUARANTINED)

    def _try_again(self, record: Allocation, gpu: Gpu, reason: str = "no longer in use") -> None:
        """Retry at once what is set aside; on record only when something of it has gone.

        Every hook comes by here: with each of them on record the ledger would grow, and
        each would look for the holders again.
        """
        rest = self._unclaimed(record)
        try:
            held = self._free(rest, gpu, self._monotonic())
        except GpuLost:
            raise
        except DriverFault:
            return
        if not held or len(held) < len({item.placement for item in record.present}):
            self._try_tear_down(record, gpu, reason, self._monotonic())

    def _try_tear_down(self, record: Allocation, gpu: Gpu, reason: str, until: float) -> None:
        """Clear another's left-overs; what resists is set aside and does not stop this hook."""
        try:
            self._tear_down(record, gpu, reason, until)
        except GpuLost:
            raise
        except DriverFault:
            if self._ledger.find(record.number).phase in (phases.PLANNED, phases.ACTIVE):
                # Not even begun, for what is there could not be read: nothing says so on record.
                raise

    def _withdraw_files(self, record: Allocation) -> None:
        """Take away what an Epilog that was killed left: Slurm does not run it again."""
        owner = record.owner
        if owner.job_id is None:
            return
        still_open = self._ledger.open_of_job(owner.job_id)
        if not any(item.owner.same_run(owner) for item in still_open) and not self._has_heir(owner):
            with self._courtesy(f"files of {owner}"):
                self._files.withdraw_run(owner)

    def _missing(self, record: Allocation, gpu: Gpu) -> list[Instance]:
        """Those that do not exist: gone is only what neither the list nor its own id shows."""
        seen = self._driver.instances(gpu)
        return [
            item
            for item in record.instances
            if not self._usable(item, find(item, seen) or self._known(item, gpu), gpu)
        ]

    def _usable(self, item: Instance, found: GpuInstance | None, gpu: Gpu) -> bool:
        """Whether the compute instance that a job was given is still in there.

        One that the list does not show is asked for by its id: a driver that hides a
        profile for a moment must cost no living job its slice.
        """
        if found is None or item.uuid is None or own_compute(item, found) is not None:
            return found is not None
        if item.ci_id is None:
            return False
        hidden = self._driver.compute_instance(gpu, found.gi_id, item.ci_id)
        return hidden is not None and is_own(item, hidden, found)

    def _close_lost(
        self, record: Allocation, gpu: Gpu, missing: list[Instance], until: float
    ) -> None:
        """Instances of an active record are gone: somebody destroyed them, or a reset did."""
        names = ", ".join(str(item) for item in missing)
        reason = f"{names} taken away from outside, or the GPU was reset"
        seen = self._driver.instances(gpu)
        self._tell(f"{record.owner} lost its slice: {reason}")
        self._tell_tasks(record, reason)
        # One that only lost its compute instance is still there: called lost, it would leak.
        if not any(find(item, seen) or self._known(item, gpu) for item in record.instances):
            self._withdraw_environment(record)
            self._feeds.hide(record, gpu.index)
            # The next instance with these ids would be open to the user of the one that went.
            self._remove_nodes(record, record.instances, gpu)
            self._ledger.finish(record, phases.LOST, reason)
        else:
            self._try_tear_down(record, gpu, reason, until)

    def _tell_tasks(self, record: Allocation, reason: str) -> None:
        """Let the next step of a job that lost its slice say so: the place may be another's now.

        The next instance there has the same MIG UUID; so nothing may point to it any more.
        """
        owner = record.owner
        if owner.job_id is None or self._has_heir(owner):
            return
        text = f"the job has lost its slice: {reason}; submit it again"
        self._files.refuse(owner, task_file.refusal_lines(text))

    def reconcile(self, live_jobs: Callable[[], frozenset[int]] | None) -> Report:
        """Bring ledger and hardware to one truth on every GPU.

        `live_jobs` tells the jobs Slurm has on this node; None when Slurm cannot be
        asked, and then no active slice is taken from a job. It is asked before any lock is
        taken, and about records that were there by then: what is carved meanwhile has a
        job that lives. Instances that no record names are listed, never touched.
        """
        report = Report()
        self._close_earlier_boots(report)
        gpus, faults = self._driver.survey()
        report.left += [str(fault) for fault in faults]
        if not faults:
            self._close_replaced({gpu.uuid for gpu in gpus}, report)
        gpus = [gpu for gpu in gpus if gpu.mig_capable]
        report.left += self._records_without_gpu({gpu.uuid for gpu in gpus})
        silence: SlurmFault | None = None
        ended = _Ended()
        try:
            ended = self._ended(self._ledger.all_open(), live_jobs)
        except SlurmFault as fault:
            # Left-overs are swept all the same: only jobs could not be asked for.
            silence = fault
        for gpu in gpus:
            try:
                with about(gpu=str(gpu)):
                    self._reconcile_gpu(gpu, ended, report)
            except LedgerFault:
                raise
            except (NodeFault, Later) as problem:
                # One GPU that fails, or whose lock is held, stops no work on the others.
                report.left.append(str(problem))
                report.faults[gpu.uuid] = str(problem)
        if silence is not None:
            raise silence
        self._remove_stale_files(live_jobs, report)
        return report

    def _close_replaced(self, present: set[str], report: Report) -> None:
        """Close what waits for a GPU's MIG mode when another card is in its place since a boot."""
        for record in self._ledger.all_open():
            if record.boot_id != self._boot_id and record.gpu_uuid not in present:
                self._ledger.finish(record, phases.LOST, "the node was rebooted without its GPU")
                report.done.append(f"{_name(record)}: lost with its GPU")

    def foresee(self, live_jobs: Callable[[], frozenset[int]] | None) -> Report:
        """What `reconcile` would do, as far as looking tells; nothing is changed.

        Whether something that is in use goes is seen only by trying: it is in `done`, as what
        would be tried.
        """
        report = Report()
        gpus, faults = self._driver.survey()
        report.left += [str(fault) for fault in faults]
        here = {gpu.uuid: gpu for gpu in gpus if gpu.mig_capable}
        report.left += self._records_without_gpu(set(here))
        live = None if live_jobs is None else live_jobs()
        for record in self._ledger.all_open():
            text = self._foreseen(record, here.get(record.gpu_uuid), live)
            report.done += [f"{_name(record)}: {text}"] if text else []
        for gpu in here.values():
            if gpu.uuid not in self._ledger.retired():
                report.foreign += [f"{gpu}: {text}" for text in self._foreign(gpu)]
        if live is not None:
            held = {record.owner.job_id for record in self._ledger.all_open()}
            stale = sorted(self._files.jobs() - live - held)
            report.done += [f"job {job}: left-over files would be removed" for job in stale]
        return report

    def _foreseen(self, record: Allocation, gpu: Gpu | None, live: frozenset[int] | None) -> str:
        if record.boot_id != self._boot_id:
            # One that MIG mode was switched off for stands on its GPU's answer.
            waits = gpu is None and record.request == phases.WHOLE_MIG_OFF
            return "" if waits else "would be closed as lost with a reboot"
        if gpu is None:
            return ""
        if record.phase == phases.QUARANTINED:
            return "would be tried again"
        if record.phase != phases.ACTIVE:
            return "would be finished, if no hook is at work on it"
        if self._missing(record, gpu):
            return "would be closed: something of it is gone"
        if live is not None and record.owner.job_id not in (None, *live):
            return "would be taken down: its job is no longer on this node"
        return ""

    def _close_earlier_boots(self, report: Report) -> None:
        for record in self._ledger.all_open():
            # One that MIG mode was switched off for is closed by the sweep of its GPU.
            if record.boot_id != self._boot_id and record.request != phases.WHOLE_MIG_OFF:
                self._ledger.finish(record, phases.LOST, "the node was rebooted")
                report.done.append(f"{_name(record)}: lost with a reboot")

    def _records_without_gpu(self, present: set[str]) -> list[str]:
        return [
            f"{_name(record)}: its GPU {record.gpu_uuid} does not answer, or not as a GPU with MIG"
            for record in self._ledger.all_open()
            if record.gpu_uuid not in present
        ]

    def _ended(
        self, records: Sequence[Allocation], live_jobs: Callable[[], frozenset[int]] | None
    ) -> _Ended:
        """Of these records, those whose jobs Slurm no longer has; asked after they were listed."""
        if live_jobs is None:
            return _Ended()
        ask_freely("which jobs live")
        live = live_jobs()
        jobs = {record.number: record.owner.job_id for record in records}
        gone = (number for number, job in jobs.items() if job is not None and job not in live)
        return _Ended(frozenset(gone))

    def _reconcile_gpu(self, gpu: Gpu, ended: _Ended, report: Report) -> None:
        with self._locked(gpu.uuid, "reconcile") as gpu:
            before = {record.number: record for record in self._ledger.open_on(gpu.uuid)}
            self._sweep(gpu, None)
            self._collect(gpu, ended)
        self._relieve(gpu, before, ended)
        for number in before:
            now = self._ledger.find(number)
            if now.phase == phases.QUARANTINED:
                report.left.append(f"{_name(now)}: {now.reason}")
            elif not now.open:
                report.done.append(f"{_name(now)}: {now.phase}, {now.reason}")
        if gpu.uuid not in self._ledger.retired():
            report.foreign += [f"{gpu}: {text}" for text in self._foreign(gpu)]

    def _relieve(self, gpu: Gpu, numbers: Iterable[int], ended: _Ended) -> None:
        """Use the remedies on what is quarantined; in jobs that live on nobody is killed."""
        time_left = Time(0, self._stuck.timeout)
        for number in numbers:
            record = self._ledger.find(number)
            if record.phase == phases.QUARANTINED:
                over = number in ended.numbers
                self._insist(record, gpu, "no longer in use", time_left, over=over)

    def collect(self, gpu: Gpu, live_jobs: Callable[[], frozenset[int]]) -> list[Allocation]:
        """Take down on one GPU what belongs to jobs that Slurm no longer has here.

        After a lost controller state no Epilog comes for them (facts/slurm.md#failures).
        Returns the records that were closed or set aside.
        """
        with about(gpu=str(gpu)):
            ended = self._ended(self._ledger.open_on(gpu.uuid), live_jobs)
            with self._locked(gpu.uuid, "collect") as gpu:
                gone = self._collect(gpu, ended)
            self._relieve(gpu, gone, ended)
            return [self._ledger.find(number) for number in gone]

    def _collect(self, gpu: Gpu, ended: _Ended) -> list[int]:
        gone = [
            record
            for record in self._ledger.open_on(gpu.uuid)
            if record.phase == phases.ACTIVE and record.number in ended.numbers
        ]
        until = self._monotonic() + SWEEP_PATIENCE
        for record in gone:
            self._try_tear_down(record, gpu, "its job is no longer on this node", until)
            if record.owner.job_id is not None:
                with self._courtesy(f"files of {record.owner}"):
                    self._files.withdraw(record.owner.job_id)
        return [record.number for record in gone]

    def _foreign(self, gpu: Gpu) -> Iterator[str]:
        geometry = self._driver.geometry(gpu)
        for found in self.foreign_instances(gpu):
            name = geometry.by_id(found.profile_id).name
            yield f"GPU instance {found.gi_id} ({name}@{found.placement.start}) is in no record"

    def foreign_instances(self, gpu: Gpu) -> Sequence[GpuInstance]:
        """Instances on a GPU that no open record names."""
        known = [item for record in self._ledger.open_on(gpu.uuid) for item in record.present]
        return strangers(known, self._driver.instances(gpu))

    def _remove_stale_files(
        self, live: Callable[[], frozenset[int]] | None, report: Report
    ) -> None:
        if live is None:
            return
        # Listed before Slurm is asked: a job whose file was there by then is still known.
        found = self._files.runs()
        ask_freely("which jobs live")
        jobs = live()
        for job in sorted({run.job for run in found} - jobs):
            # A run of that job may have begun since: what it has is not in the list.
            if not self._ledger.open_of_job(job):
                self._files.withdraw_listed([run for run in found if run.job == job])
                report.done.append(f"job {job}: left-over files removed")

    # -- for administrators --------------------------------------------------

    def set_mode(self, gpu: Gpu, *, on: bool) -> Gpu:
        """Switch MIG mode; Held while instances exist that switching off would destroy."""
        with about(gpu=str(gpu)), self._locked(gpu.uuid, "switch MIG mode") as now:
            self._sweep(now, None)
            gpu = self._driver.gpu(gpu.uuid)
            self._refuse_mode(gpu, on=on)
            return self._driver.set_mig_mode(gpu, on=on)

    def may_set_mode(self, gpu: Gpu, *, on: bool) -> None:
        """Held where `set_mode` would be; nothing is changed."""
        with about(gpu=str(gpu)), self._locked(gpu.uuid, "look at MIG mode") as gpu:
            self._refuse_mode(gpu, on=on)

    def _refuse_mode(self, gpu: Gpu, *, on: bool) -> None:
        # One that is set aside waits for this very mode, and one of an earlier boot has no job.
        whole = [
            item
            for item in self._ledger.open_on(gpu.uuid)
            if item.whole and item.phase != phases.QUARANTINED and item.boot_id == self._boot_id
        ]
        if whole and on:
            raise Held(f"{whole[0].owner} has the whole GPU, without MIG")
        present = [str(slot) for slot in self._slots(gpu, self._driver.instances(gpu))]
        if present and not on:
            raise Held(
                f"MIG mode stays on: {', '.join(present)} exist",
                remedy="see `slurm-mig status` for whose they are",
            )

    def adopt(self, owner: Owner, gpu: Gpu, found: GpuInstance) -> Allocation:
        """Put a foreign instance on record, so that its end is on record too."""
        with about(gpu=str(gpu)), self._locked(gpu.uuid, "adopt") as gpu:
            return self.adopt_settled(owner, gpu, found)

    def adopt_settled(self, owner: Owner, gpu: Gpu, found: GpuInstance) -> Allocation:
        """Like `adopt`, for a caller who has the GPU `settled`.

        Held when it is another's by now: a job may have been given the place.
        """
        if found not in self.foreign_instances(gpu):
            raise Held(
                f"GPU instance {found.gi_id} at {found.placement} is no longer what it was",
                remedy="see `slurm-mig status`, and try again",
            )
        instance = as_found(found, self._driver.geometry(gpu).by_id(found.profile_id).name)
        record = replace(self._record(owner, gpu, instance.profile), instances=(instance,))
        record = self._ledger.add(record, "adopted")
        return self._ledger.save(record.moved(phases.ACTIVE), phases.ACTIVE)

    @contextmanager
    def settled(self, gpu: Gpu, action: str, *, sweep: bool = True) -> Iterator[None]:
        """Hold a GPU's lock, with what dead hooks left there finished first."""
        with about(gpu=str(gpu)), self._locked(gpu.uuid, action) as gpu:
            if sweep:
                self._sweep(gpu, None)
            yield

    def clear(self, record: Allocation, gpu: Gpu, reason: str) -> Allocation:
        """Take down what a record names, for a caller who has the GPU `settled`.

        Returns it as `released`, or `quarantined` if it is in use beyond the deadline.
        """
        return self._tear_down(record, gpu, reason, self._monotonic() + self._destroy_timeout)

    # -- records without carving ---------------------------------------------

    def refuse(self, owner: Owner, request: str, gpu: Gpu, fault: SlurmMigError) -> Allocation:
        """Keep a refusal and its reason on record."""
        record = self._record(owner, gpu, request)
        refused = replace(record, phase=phases.REFUSED, reason=str(fault))
        return self._ledger.add(refused, phases.REFUSED, fault=type(fault).__name__)

    def _record(self, owner: Owner, gpu: Gpu, request: str) -> Allocation:
        return Allocation(
            owner=owner,
            node=self._node,
            gpu_uuid=gpu.uuid,
            gpu_minor=gpu.minor,
            gpu_name=gpu.name,
            boot_id=self._boot_id,
            request=request,
        )


def _with_ids(record: Allocation, seen: Sequence[GpuInstance]) -> Allocation:
    """Add what the hardware knows and a hook that died could not write down."""
    taken = {(item.gi_id, item.ci_id) for item in record.instances}
    for place, item in enumerate(record.instances):
        found = find(item, seen)
        if item.gi_id is not None or found is None:
            continue
        ids = replace(item, gi_id=found.gi_id)
        for one in found.compute:
            # Several of a record can share the GPU instance, each with one of its own size.
            given = replace(ids, ci_id=one.ci_id, uuid=one.uuid)
            if (found.gi_id, one.ci_id) not in taken and is_own(given, one, found):
                ids = given
                break
        taken.add((ids.gi_id, ids.ci_id))
        record = record.with_instance(place, ids)
    return record


def _stuck_words(stuck: Sequence[Slot]) -> str:
    """For the user who is refused: whose the processes are is no business of his."""
    names = ", ".join(map(str, stuck))
    return f"{names} of jobs that have ended cannot be taken down yet"


def offered_though_retired(mark: Retired) -> NodeFault:
    """Slurm sends jobs to a GPU that an administrator took out of management."""
    return NodeFault(
        f"Slurm offers a GPU that is {mark}",
        remedy="take its shards and slices out of gres.conf and slurm.conf, as `slurm-mig retire` "
        "said, or take it back with `slurm-mig retire --undo`",
        gpu=mark.gpu_uuid,
    )


def _superseded(old: Owner, new: Owner) -> bool:
    return old.job_id is not None and old.job_id == new.job_id and not old.same_run(new)


def _name(record: Allocation) -> str:
    return f"{record.owner} on GPU {record.gpu_minor} ({record.made})"
