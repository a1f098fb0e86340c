"""The transaction: carve for an owner, tear down, bring record and hardware together.

Every public operation holds the GPU's lock from first look to last write. Under
the lock no hook of another process is half-way, so a record that says `planned`
or `releasing` belongs to one that died: each operation first finishes those.
What exists is decided by looking at the hardware, before and after.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from slurm_mig import allocation as phases
from slurm_mig import environment
from slurm_mig.allocation import Allocation, Instance, Owner
from slurm_mig.environment import TaskSettings
from slurm_mig.errors import (
    BadRequest,
    DriverFault,
    GpuLost,
    Held,
    InstanceBusy,
    NoRoom,
    SlurmMigError,
    about,
)
from slurm_mig.planner import Slot, plan, plan_at
from slurm_mig.request import Item, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slurm_mig.capabilities import Capabilities
    from slurm_mig.driver import Driver, Gpu, GpuInstance
    from slurm_mig.geometry import Placement
    from slurm_mig.ledger import Ledger
    from slurm_mig.locks import Locks
    from slurm_mig.planner import Plan
    from slurm_mig.runfiles import RunFiles

#: Pause between two tries to destroy an instance that is in use, in seconds: doubled
#: from the first to the last. "In use" right after a CI went is normal (mig-facts.md h).
FIRST_PAUSE: Final = 0.02
LAST_PAUSE: Final = 0.5

#: Seconds a hook spends on what another one left: its own job must not wait long for it.
SWEEP_PATIENCE: Final = 1.0


_SLICES_ONLY: Final = "this GPU is given out in slices only"
_ASK_LARGEST: Final = "ask for its largest profile with --gres=mig:<profile>:1"


@dataclass(slots=True)
class Report:
    """What a reconcile did and found, as one line each."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


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
        node: str,
        boot_id: str,
        destroy_timeout: float,
        tasks: TaskSettings | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._ledger = ledger
        self._locks = locks
        self._capabilities = capabilities
        self._files = files
        self._node = node
        self._boot_id = boot_id
        self._destroy_timeout = destroy_timeout
        self._tasks = tasks or TaskSettings()
        self._sleep = sleep
        self._monotonic = monotonic

    # -- allocate ------------------------------------------------------------

    def allocate(
        self, owner: Owner, request: Request, gpu: Gpu, start: int | None = None
    ) -> Allocation:
        """Carve a request on one GPU: all of it, or nothing of it stays.

        The planner chooses the placement, unless an administrator names the
        `start` unit of a single instance.

        Stages: sweep, look, plan, intend, carve, close, activate, publish. Raises
        NoRoom or ProfileNotOffered (a job's fault) before anything is made, or a
        NodeFault after the stages done so far have been undone in reverse.
        """
        action = f"carve {request} for {owner}"
        with about(job=owner.job_id, gpu=str(gpu)), self._locks.hold([gpu.uuid], action):
            gpu = self._now(gpu)
            self._sweep(gpu, owner)
            held = self._held_already(owner, gpu, str(request))
            if held is not None:
                self._close_nodes(held)
                self._publish(held, request)
                return held
            self._refuse_whole(gpu, owner)
            gpu = self._with_mig_mode(gpu)
            chosen = self._plan(request, gpu, start)
            with ExitStack() as undo:
                record = self._intend(owner, request, gpu, chosen, undo)
                record = self._carve(record, gpu)
                self._close_nodes(record)
                record = self._ledger.save(record.moved(phases.ACTIVE), phases.ACTIVE)
                self._publish(record, request)
                undo.pop_all()
        return record

    def _now(self, gpu: Gpu) -> Gpu:
        """The GPU as it is under its lock: while we waited its MIG mode may have changed.

        Without, a job's slices would look gone, or a whole GPU like a broken one.
        """
        return self._driver.gpu(gpu.uuid)

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
                raise NoRoom(record.reason)
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
                self._try_tear_down(record, gpu, "left by an earlier job of that number")
        return None

    def _with_mig_mode(self, gpu: Gpu) -> Gpu:
        """Have MIG mode on; switched on here only where that costs no GPU reset."""
        gpu = self._driver.gpu(gpu.uuid)
        if gpu.mig_mode:
            return gpu
        if not gpu.resetless:
            raise DriverFault(
                "MIG mode is off, and switching it on resets this GPU",
                remedy=f"run `slurm-mig enable --gpu {gpu.minor}` while it is idle",
            )
        return self._driver.set_mig_mode(gpu, on=True)

    def _plan(self, request: Request, gpu: Gpu, start: int | None) -> Plan:
        geometry, present = self._driver.geometry(gpu), self._present(gpu)
        if start is None:
            return plan(request, geometry, present)
        return plan_at(request, start, geometry, present)

    def _present(self, gpu: Gpu) -> list[Slot]:
        geometry = self._driver.geometry(gpu)
        return [
            Slot(geometry.by_id(item.profile_id), item.placement)
            for item in self._driver.instances(gpu)
        ]

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
        record = self._ledger.add(planned, phases.PLANNED)
        undo.callback(self._roll_back, record.number, gpu)
        return record

    def _carve(self, record: Allocation, gpu: Gpu) -> Allocation:
        made: GpuInstance | None = None
        for place, wanted in enumerate(record.instances):
            # Compute instances that share a GPU instance follow one another.
            if made is None or made.placement != wanted.placement:
                made = self._driver.create_gpu_instance(gpu, wanted.profile_id, wanted.placement)
            compute = self._driver.create_compute_instance(gpu, made.gi_id, wanted.compute_slices)
            ids = replace(wanted, gi_id=made.gi_id, ci_id=compute.ci_id, uuid=compute.uuid)
            record = record.with_instance(place, ids)
        self._look_again(record, gpu)
        return record

    def _look_again(self, record: Allocation, gpu: Gpu) -> None:
        """Believe what is seen, not what creation returned (go-nvml#146)."""
        there = {item.gi_id: item for item in self._driver.instances(gpu)}
        for wanted in record.instances:
            found = there.get(wanted.gi_id if wanted.gi_id is not None else -1)
            uuids = [compute.uuid for compute in found.compute] if found else []
            if found is None or found.placement != wanted.placement or wanted.uuid not in uuids:
                raise DriverFault(
                    f"driver reported {wanted} as made (GPU instance {wanted.gi_id}), "
                    f"but lists {found}"
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

    def _publish(self, record: Allocation, request: Request) -> None:
        owner = record.owner
        if owner.job_id is None:
            return
        leases = ""
        if len(record.instances) > 1:
            # Nobody else can guess it, so nobody can be there first.
            run = f"{owner.job_id}.{owner.restart}"
            fresh = f"{self._tasks.leases}-{run}-{os.urandom(8).hex()}"
            leases = self._files.leases(owner) or fresh
            self._files.mark(owner, leases=leases)
        lines = environment.slice_lines(record, request, self._tasks, leases)
        self._files.publish(owner, lines)

    def _roll_back(self, number: int, gpu: Gpu) -> None:
        """Undo a carve that failed; what cannot be undone stays on record for the next hook."""
        record = self._ledger.find(number)
        if record.owner.job_id is not None:
            self._files.withdraw_environment(record.owner)
        self._tear_down(record, gpu, "rolled back")

    # -- whole GPUs ----------------------------------------------------------

    def give_whole(self, owner: Owner, gpu: Gpu, policy: str, *, reset: bool) -> Allocation:
        """Let a job have a whole managed GPU; never in MIG mode without an instance.

        `policy` is `mig-off`, `full-profile`, `reject`, or `auto` (mig-off where that
        needs no GPU reset, else full-profile); `reset` allows mig-off to reset an
        Ampere GPU (mig-facts.md b). Raises NoRoom while others' instances exist
        there, BadRequest where the policy says no.
        """
        if policy == "auto":
            policy = "mig-off" if gpu.resetless else "full-profile"
        row = self._driver.geometry(gpu).whole
        largest = Request((Item(row.name, 1, row.profile_id),))
        with about(job=owner.job_id, gpu=str(gpu)), self._locks.hold([gpu.uuid], "whole GPU"):
            gpu = self._now(gpu)
            self._sweep(gpu, owner)
            held = self._held_already(owner, gpu, phases.WHOLE, phases.WHOLE_MIG_OFF, str(largest))
            if held is not None:
                return held
            self._refuse_whole(gpu, owner, stuck=False)
            gpu = self._driver.gpu(gpu.uuid)
            if policy == "reject":
                raise BadRequest(_SLICES_ONLY, remedy=_ASK_LARGEST)
            # MIG mode is off after a reboot of Hopper and later: the policy holds all the same.
            if not gpu.mig_mode and not (policy == "full-profile" and gpu.resetless):
                return self._without_mig(owner, gpu, phases.WHOLE)
            if policy == "mig-off":
                return self._switched_off(owner, gpu, reset=reset)
        return self.allocate(owner, largest, gpu)

    def _switched_off(self, owner: Owner, gpu: Gpu, *, reset: bool) -> Allocation:
        if self._driver.instances(gpu):
            raise NoRoom("a whole GPU was asked for, but MIG instances exist on it")
        if not (gpu.resetless or reset):
            raise BadRequest(_SLICES_ONLY, remedy=_ASK_LARGEST)
        return self._without_mig(owner, gpu, phases.WHOLE_MIG_OFF)

    def _without_mig(self, owner: Owner, gpu: Gpu, request: str) -> Allocation:
        """Record first, then switch: a hook that dies here leaves what the next one undoes."""
        self._files.mark(owner)
        record = self._ledger.add(self._record(owner, gpu, request), phases.PLANNED)
        if request == phases.WHOLE_MIG_OFF:
            try:
                self._leave_mig_mode(gpu)
            except SlurmMigError:
                self._tear_down(record, gpu, "rolled back")
                raise
        return self._ledger.save(record.moved(phases.ACTIVE), phases.ACTIVE)

    def _leave_mig_mode(self, gpu: Gpu) -> None:
        """Switch MIG mode off; NoRoom while something (a monitor, say) keeps the GPU open."""
        until = self._monotonic() + self._destroy_timeout
        busy = self._retry(lambda: self._driver.set_mig_mode(gpu, on=False), until)
        if busy is not None:
            raise NoRoom(f"{busy.cause}, used by {self._users(gpu, None)}") from busy
        # On Ampere the wish alone is success to NVML: without its reset the mode stays.
        if self._driver.gpu(gpu.uuid).mig_mode:
            raise NoRoom("MIG mode stays on: something keeps the GPU from being reset")

    def publish_whole(
        self, owner: Owner, given: Sequence[tuple[int, str, Allocation | None]]
    ) -> None:
        """Tell the tasks of a job with whole GPUs what they are: (Slurm's index, UUID, record)."""
        self._files.mark(owner)
        self._files.publish(owner, environment.whole_lines(given, self._tasks))

    # -- release -------------------------------------------------------------

    def release(self, record: Allocation, reason: str) -> Allocation:
        """Destroy exactly what a record names, then look, then close the record.

        Returns the record as `released`, `lost`, or `quarantined` when something
        of it is still in use after the deadline: the slice is set aside, not the
        node. Raises NodeFault when the driver fails otherwise.
        """
        with about(job=record.owner.job_id, gpu=record.gpu_uuid):
            if record.boot_id != self._boot_id and record.request != phases.WHOLE_MIG_OFF:
                return self._ledger.finish(record, phases.LOST, "the node was rebooted")
            gpu = self._driver.gpu(record.gpu_uuid)
            with self._locks.hold([record.gpu_uuid], f"release {record.owner}"):
                gpu = self._now(gpu)
                self._sweep(gpu, None)
                # Another hook, or the sweep, may have finished it by now.
                record = self._ledger.find(record.number)
                return self._tear_down(record, gpu, reason, self._destroy_timeout)

    def _tear_down(
        self, record: Allocation, gpu: Gpu, reason: str, patience: float = SWEEP_PATIENCE
    ) -> Allocation:
        if not record.open:
            return record
        record = self._with_ids(record, gpu)
        if record.phase != phases.RELEASING:
            record = self._ledger.save(record.moved(phases.RELEASING), phases.RELEASING)
        until = self._monotonic() + patience
        busy = [why for item in record.instances if (why := self._destroy(item, gpu, until))]
        seen = self._driver.instances(gpu)
        survivors = [item for item in record.instances if find(item, seen)]
        if survivors:
            names = ", ".join(str(item) for item in survivors)
            why = "; ".join(busy) or "the driver said they were destroyed"
            quarantined = record.moved(phases.QUARANTINED, f"{names} still there: {why}")
            return self._ledger.save(quarantined, phases.QUARANTINED)
        for item in record.instances:
            if item.gi_id is not None and item.ci_id is not None:
                self._capabilities.remove(record.gpu_minor, item.gi_id, item.ci_id)
        if record.request == phases.WHOLE_MIG_OFF and (why := self._restore_mig_mode(gpu)):
            return self._ledger.save(record.moved(phases.QUARANTINED, why), phases.QUARANTINED)
        return self._ledger.finish(record, phases.RELEASED, reason)

    def _restore_mig_mode(self, gpu: Gpu) -> str:
        """MIG mode on again; says why it is not, for a later hook to try again."""
        try:
            now = self._driver.set_mig_mode(self._driver.gpu(gpu.uuid), on=True)
        except GpuLost:
            raise
        except DriverFault as fault:
            return f"MIG mode is still off: {fault.cause}, used by {self._users(gpu, None)}"
        return "" if now.mig_mode else "MIG mode is still off: the GPU could not be reset"

    def _with_ids(self, record: Allocation, gpu: Gpu) -> Allocation:
        """Add what the hardware knows and a hook that died could not write down."""
        seen = self._driver.instances(gpu)
        before: list[Placement] = []
        for place, item in enumerate(record.instances):
            found = find(item, seen)
            if item.gi_id is None and found is not None:
                # The how-manieth of those that share the GPU instance.
                number = before.count(item.placement)
                compute = found.compute[number] if number < len(found.compute) else None
                ids = replace(
                    item,
                    gi_id=found.gi_id,
                    ci_id=compute.ci_id if compute else None,
                    uuid=compute.uuid if compute else None,
                )
                record = record.with_instance(place, ids)
            before.append(item.placement)
        return record

    def _destroy(self, item: Instance, gpu: Gpu, until: float) -> str | None:
        """Destroy one instance, retrying while it is in use; returns why it could not."""

        def destroy() -> None:
            found = find(item, self._driver.instances(gpu))
            if found is not None:
                for compute in found.compute:
                    self._driver.destroy_compute_instance(gpu, found.gi_id, compute.ci_id)
                self._driver.destroy_gpu_instance(gpu, found.gi_id)

        busy = self._retry(destroy, until)
        if busy is None:
            return None
        found = find(item, self._driver.instances(gpu))
        return f"{busy.cause}, used by {self._users(gpu, found)}" if found else None

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

    def _users(self, gpu: Gpu, found: GpuInstance | None) -> str:
        wanted = None if found is None else found.gi_id
        pids = [pid for pid, gi_id in self._driver.processes(gpu) if gi_id == wanted]
        return ", ".join(f"pid {pid}" for pid in pids) or "no process that the driver names"

    # -- sweep and reconcile -------------------------------------------------

    def _sweep(self, gpu: Gpu, owner: Owner | None) -> None:
        """Finish what dead hooks left on a GPU whose lock we hold.

        `owner` is about to be served: another run of the same job cannot still be
        alive, so its slices go too (ids are reused, Epilogs may be missing).
        """
        for record in self._ledger.open_on(gpu.uuid):
            if record.boot_id != self._boot_id:
                if record.request == phases.WHOLE_MIG_OFF:
                    # Ampere keeps the mode over a reboot, also the one that was meant for a job.
                    self._restore_mig_mode(gpu)
                self._ledger.finish(record, phases.LOST, "the node was rebooted")
            elif record.phase == phases.QUARANTINED:
                self._try_tear_down(record, gpu, "no longer in use", patience=0)
                self._withdraw_files(record)
            elif record.phase != phases.ACTIVE:
                self._try_tear_down(record, gpu, "finished for a hook that died")
                self._withdraw_files(record)
            elif missing := self._missing(record, gpu):
                self._close_lost(record, gpu, missing)
            elif owner and _superseded(record.owner, owner):
                self._try_tear_down(record, gpu, "left by an earlier run of the job")

    def _try_tear_down(
        self, record: Allocation, gpu: Gpu, reason: str, patience: float = SWEEP_PATIENCE
    ) -> None:
        """Clear another's left-overs; what resists is set aside and does not stop this hook."""
        try:
            self._tear_down(record, gpu, reason, patience)
        except GpuLost:
            raise
        except DriverFault as fault:
            stuck = self._ledger.find(record.number)
            if stuck.phase == phases.RELEASING:
                stuck = stuck.moved(phases.QUARANTINED, str(fault))
                self._ledger.save(stuck, phases.QUARANTINED)

    def _withdraw_files(self, record: Allocation) -> None:
        """Take away what an Epilog that was killed left: Slurm does not run it again."""
        owner = record.owner
        if owner.job_id is None:
            return
        still_open = self._ledger.open_of_job(owner.job_id)
        if not any(item.owner.same_run(owner) for item in still_open):
            self._files.withdraw_run(owner)

    def _missing(self, record: Allocation, gpu: Gpu) -> list[Instance]:
        seen = self._driver.instances(gpu)
        return [item for item in record.instances if not find(item, seen)]

    def _close_lost(self, record: Allocation, gpu: Gpu, missing: list[Instance]) -> None:
        """Instances of an active record are gone: somebody destroyed them, or a reset did."""
        names = ", ".join(str(item) for item in missing)
        reason = f"{names} taken away from outside, or the GPU was reset"
        if len(missing) == len(record.instances):
            self._ledger.finish(record, phases.LOST, reason)
        else:
            self._try_tear_down(record, gpu, reason)

    def reconcile(self, live_jobs: Callable[[], frozenset[int]] | None) -> Report:
        """Bring ledger and hardware to one truth on every GPU.

        `live_jobs` tells the jobs Slurm has on this node; None when Slurm cannot be
        asked, and then no active slice is taken from a job. It is asked anew under
        each GPU's lock: what was carved while we waited has a job that lives.
        Instances that no record names are listed, never touched.
        """
        report = Report()
        self._close_earlier_boots(report)
        gpus, faults = self._driver.survey()
        report.left += [str(fault) for fault in faults]
        report.left += self._records_without_gpu({gpu.uuid for gpu in gpus})
        for gpu in gpus:
            if gpu.mig_capable:
                with about(gpu=str(gpu)), self._locks.hold([gpu.uuid], "reconcile"):
                    self._reconcile_gpu(self._now(gpu), live_jobs, report)
        self._remove_stale_files(live_jobs, report)
        return report

    def _close_earlier_boots(self, report: Report) -> None:
        for record in self._ledger.all_open():
            # One that MIG mode was switched off for is closed by the sweep of its GPU.
            if record.boot_id != self._boot_id and record.request != phases.WHOLE_MIG_OFF:
                self._ledger.finish(record, phases.LOST, "the node was rebooted")
                report.done.append(f"{_name(record)}: lost with a reboot")

    def _records_without_gpu(self, present: set[str]) -> list[str]:
        return [
            f"{_name(record)}: its GPU {record.gpu_uuid} does not answer"
            for record in self._ledger.all_open()
            if record.gpu_uuid not in present
        ]

    def _reconcile_gpu(
        self, gpu: Gpu, live: Callable[[], frozenset[int]] | None, report: Report
    ) -> None:
        before = {record.number: record for record in self._ledger.open_on(gpu.uuid)}
        self._sweep(gpu, None)
        if live is not None:
            self._collect(gpu, live())
        for number in before:
            now = self._ledger.find(number)
            if now.phase == phases.QUARANTINED:
                report.left.append(f"{_name(now)}: {now.reason}")
            elif not now.open:
                report.done.append(f"{_name(now)}: {now.phase}, {now.reason}")
        report.foreign += [f"{gpu}: {text}" for text in self._foreign(gpu)]

    def collect(self, gpu: Gpu, live_jobs: Callable[[], frozenset[int]]) -> list[Allocation]:
        """Take down on one GPU what belongs to jobs that Slurm no longer has here.

        After a lost controller state no Epilog comes for them (slurm-facts.md 9).
        Returns the records that were closed or set aside.
        """
        with about(gpu=str(gpu)), self._locks.hold([gpu.uuid], "collect"):
            return self._collect(self._now(gpu), live_jobs())

    def _collect(self, gpu: Gpu, live: frozenset[int]) -> list[Allocation]:
        gone = [
            record
            for record in self._ledger.open_on(gpu.uuid)
            if record.phase == phases.ACTIVE and record.owner.job_id not in (None, *live)
        ]
        for record in gone:
            self._try_tear_down(record, gpu, "its job is no longer on this node")
            if record.owner.job_id is not None:
                self._files.withdraw(record.owner.job_id)
        return [self._ledger.find(record.number) for record in gone]

    def _foreign(self, gpu: Gpu) -> Iterator[str]:
        geometry = self._driver.geometry(gpu)
        for found in self.foreign_instances(gpu):
            name = geometry.by_id(found.profile_id).name
            yield f"GPU instance {found.gi_id} ({name}@{found.placement.start}) is in no record"

    def foreign_instances(self, gpu: Gpu) -> Sequence[GpuInstance]:
        """Instances on a GPU that no open record names."""
        known = {
            (item.profile_id, item.placement)
            for record in self._ledger.open_on(gpu.uuid)
            for item in record.instances
        }
        return [
            found
            for found in self._driver.instances(gpu)
            if (found.profile_id, found.placement) not in known
        ]

    def _remove_stale_files(
        self, live: Callable[[], frozenset[int]] | None, report: Report
    ) -> None:
        if live is None:
            return
        # Listed before Slurm is asked: a job whose file was there by then is still known.
        found = self._files.jobs()
        held = {record.owner.job_id for record in self._ledger.all_open()}
        for job in sorted(found - live() - held):
            self._files.withdraw(job)
            report.done.append(f"job {job}: left-over files removed")

    # -- for administrators --------------------------------------------------

    def set_mode(self, gpu: Gpu, *, on: bool) -> Gpu:
        """Switch MIG mode; Held while instances exist that switching off would destroy."""
        with about(gpu=str(gpu)), self._locks.hold([gpu.uuid], "switch MIG mode"):
            gpu = self._now(gpu)
            self._sweep(gpu, None)
            gpu = self._driver.gpu(gpu.uuid)
            whole = [item for item in self._ledger.open_on(gpu.uuid) if item.whole]
            if whole and on:
                raise Held(f"{whole[0].owner} has the whole GPU, without MIG")
            present = [str(slot) for slot in self._present(gpu)]
            if present and not on:
                raise Held(
                    f"MIG mode stays on: {', '.join(present)} exist",
                    remedy="see `slurm-mig status` for whose they are",
                )
            return self._driver.set_mig_mode(gpu, on=on)

    def adopt(self, owner: Owner, gpu: Gpu, found: GpuInstance) -> Allocation:
        """Put a foreign instance on record, so that its end is on record too."""
        name = str(self._driver.geometry(gpu).by_id(found.profile_id).name)
        compute = found.compute[0] if found.compute else None
        place = found.placement
        instance = Instance(
            name,
            found.profile_id,
            place.start,
            place.size,
            found.gi_id,
            compute.ci_id if compute else None,
            compute.uuid if compute else None,
        )
        with about(gpu=str(gpu)), self._locks.hold([gpu.uuid], "adopt"):
            record = replace(self._record(owner, gpu, name), instances=(instance,))
            record = self._ledger.add(record, "adopted")
            return self._ledger.save(record.moved(phases.ACTIVE), phases.ACTIVE)

    # -- records without carving ---------------------------------------------

    def refuse(self, owner: Owner, request: str, gpu: Gpu, fault: SlurmMigError) -> Allocation:
        """Keep a refusal and its reason on record."""
        record = self._record(owner, gpu, request)
        refused = replace(record, phase=phases.REFUSED, reason=str(fault))
        return self._ledger.add(refused, phases.REFUSED)

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


def find(item: Instance, seen: Sequence[GpuInstance]) -> GpuInstance | None:
    """The hardware's instance that a record means, if it is still that one.

    A GI id alone proves nothing: it is reused. Profile and placement must agree
    too; a planned one is known by these alone, for nobody else could have been
    there while it was carved.
    """
    for found in seen:
        same_place = (found.profile_id, found.placement) == (item.profile_id, item.placement)
        if same_place and item.gi_id in (None, found.gi_id):
            uuids = [compute.uuid for compute in found.compute]
            # A foreign instance in the same place has another compute instance.
            return found if item.uuid is None or not uuids or item.uuid in uuids else None
    return None


def _superseded(old: Owner, new: Owner) -> bool:
    return old.job_id is not None and old.job_id == new.job_id and not old.same_run(new)


def _name(record: Allocation) -> str:
    return f"{record.owner} on GPU {record.gpu_minor} ({record.made})"
