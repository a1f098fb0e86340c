"""Plan, intend, make, look, close, hand over: all of a request on one GPU, or nothing."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from slurm_mig.errors import DriverFault, NodeFault, NoRoom, SlurmMigError
from slurm_mig.gpu.holder import INSTANCE
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Instance, Owner
from slurm_mig.mig.plan import Slot, fits, in_the_way, plan, plan_at, sparing
from slurm_mig.transaction.access import close_nodes
from slurm_mig.transaction.handover import give, promise
from slurm_mig.transaction.mig_mode import ensure_mig_mode, occupied
from slurm_mig.transaction.recognise import find, own_compute
from slurm_mig.transaction.sweep import finish, settled
from slurm_mig.transaction.teardown import note_gone, roll_back, try_tear_down
from slurm_mig.values import replace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.driver import ComputeInstance, Gpu, GpuInstance
    from slurm_mig.mig.plan import Plan
    from slurm_mig.mig.request import Request
    from slurm_mig.state.ledger import Retired
    from slurm_mig.transaction.workbench import Workbench


class Misplaced(DriverFault):
    """The driver made an instance elsewhere than asked, and it does not go: it goes on record."""

    def __init__(self, cause: str, made: Instance, remedy: str) -> None:
        super().__init__(cause, remedy=remedy)
        self.made = made


def allocate(
    bench: Workbench,
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
    told nothing yet (`give_several`).

    Stages: settle, look, plan, intend, carve, close, activate, publish. Raises
    NoRoom or ProfileNotOffered (a job's fault) before anything is made, or a
    NodeFault after the stages done so far have been undone in reverse.
    """
    with settled(bench, gpu, f"carve {request} for {owner}", owner, spare=True) as now:
        return carve_here(bench, owner, request, now, start, part=part)


def carve_here(
    bench: Workbench,
    owner: Owner,
    request: Request,
    gpu: Gpu,
    start: int | None = None,
    *,
    part: bool = False,
) -> Allocation:
    """`allocate` for a caller who has the GPU `settled`."""
    refuse_retired(bench, gpu, owner)
    held = held_already(bench, owner, gpu, str(request))
    if held is not None:
        close_nodes(bench, held)
        give(bench, held, request, gpu, part=part)
        return held
    refuse_whole(bench, gpu, owner)
    gpu = ensure_mig_mode(bench, gpu)
    chosen = _clear_place(bench, owner, request, gpu, start)
    with ExitStack() as undo:
        record = _intend(bench, owner, request, gpu, chosen, undo)
        there = bench.driver.instances(gpu)
        record = _make_all(bench, record, gpu, {item.gi_id for item in there})
        close_nodes(bench, record)
        record = bench.ledger.move(record, phases.ACTIVE)
        give(bench, record, request, gpu, part=part)
        undo.pop_all()
    return record


def foresee_plan(bench: Workbench, request: Request, gpu: Gpu, start: int | None = None) -> Plan:
    """Where `allocate` would put it now, raising what it would for want of room."""
    with settled(bench, gpu, "plan", sweep=False) as now:
        # By the driver alone: what the ledger has of dead hooks would be cleared first.
        present = bench.slots(now, bench.driver.instances(now))
        return _choose_place(bench, request, now, start, present)


def refuse_retired(bench: Workbench, gpu: Gpu, owner: Owner) -> None:
    """Look again under the lock: it may have been retired since the hook asked."""
    mark = bench.ledger.retired().get(gpu.uuid)
    if mark is not None and owner.is_job:
        raise offered_though_retired(mark)


def refuse_whole(bench: Workbench, gpu: Gpu, owner: Owner, *, stuck: bool = True) -> None:
    """Leave a GPU alone that a job has as a whole: MIG mode would come on under it.

    `stuck`: also one whose MIG mode could not be switched on again since then.

    Slurm does not offer both at once; but an administrator may ask, and a record
    may be left of a job whose Epilog never came.
    """
    for record in bench.ledger.open_on(gpu.uuid):
        if not record.whole or record.owner.same_run(owner):
            continue
        if record.phase == phases.QUARANTINED and stuck:
            # Its own reason names processes of others: not for this job's user.
            raise NoRoom("MIG mode is still off since an earlier job: the GPU is in use")
        if record.phase != phases.QUARANTINED:
            raise NoRoom(f"{record.owner} has the whole GPU")


def held_already(bench: Workbench, owner: Owner, gpu: Gpu, *requests: str) -> Allocation | None:
    """What this very run holds: a Prolog that is run twice must not carve twice.

    Where Slurm has no SLUID a later job can have the number of one that was lost:
    what that one asked for goes.
    """
    if not owner.is_job:
        return None
    for record in bench.ledger.open_on(gpu.uuid):
        if record.owner.same_run(owner) and record.phase == phases.ACTIVE:
            if record.request in requests:
                return record
            until = bench.monotonic() + bench.sweep_patience
            try_tear_down(bench, record, gpu, "left by an earlier job of that number", until)
    return None


def _clear_place(
    bench: Workbench, owner: Owner, request: Request, gpu: Gpu, start: int | None
) -> Plan:
    """Choose a place as if what was put off were gone; of that go only those in its way.

    A Prolog that took down all of it would have its job wait for places that it does not need.
    """
    until = bench.monotonic() + bench.sweep_patience
    tried: set[int] = set()
    while True:
        there = bench.driver.instances(gpu)
        note_gone(bench, gpu, there)
        going = {
            record.number: _slots_of(bench, record, gpu)
            for record in bench.ledger.open_on(gpu.uuid)
            if record.put_off and record.number not in tried
        }
        leaving = [slot for slots in going.values() for slot in slots]
        staying = [slot for slot in _taken_slots(bench, gpu, there) if slot not in leaving]
        chosen = _choose_place(bench, request, gpu, start, staying, leaving)
        first = in_the_way(bench.driver.geometry(gpu), chosen.slots, staying, going)
        if not first:
            return chosen
        for number in first:
            finish(bench, bench.ledger.find(number), gpu, owner, until)
        tried.update(first)


def _slots_of(bench: Workbench, record: Allocation, gpu: Gpu) -> list[Slot]:
    geometry = bench.driver.geometry(gpu)
    found = (Slot(geometry.by_id(item.profile_id), item.placement) for item in record.present)
    return list(dict.fromkeys(found))


def _choose_place(
    bench: Workbench,
    request: Request,
    gpu: Gpu,
    start: int | None,
    present: Sequence[Slot],
    leaving: Sequence[Slot] = (),
) -> Plan:
    geometry = bench.driver.geometry(gpu)
    policy = bench.policy
    if leaving and policy is fits:
        policy = sparing(leaving)

    def chosen(taken: Sequence[Slot]) -> Plan:
        if start is None:
            return plan(request, geometry, taken, policy)
        return plan_at(request, start, geometry, taken)

    try:
        return chosen(present)
    except NoRoom as full:
        # Who waits for room should know that nobody's job has it.
        stuck = stuck_slots(bench, gpu)
        if not stuck:
            raise
        try:
            chosen([slot for slot in present if slot not in stuck])
        except NoRoom:
            raise full from None
        raise NoRoom(f"{full.cause}; {stuck_words(stuck)}", remedy=full.remedy) from None


def stuck_slots(bench: Workbench, gpu: Gpu) -> list[Slot]:
    """Slots of slices on a GPU that could not be taken down."""
    return _recorded(bench, gpu, phases.QUARANTINED)


def _recorded(bench: Workbench, gpu: Gpu, *kinds: str) -> list[Slot]:
    records = (record for record in bench.ledger.open_on(gpu.uuid) if record.phase in kinds)
    slots = (slot for record in records for slot in _slots_of(bench, record, gpu))
    return list(dict.fromkeys(slots))


def _taken_slots(bench: Workbench, gpu: Gpu, there: Sequence[GpuInstance]) -> list[Slot]:
    """What is there, by the driver's list or by the ledger.

    A list that for a moment lacks a neighbour's slice must not give its place away.
    """
    recorded = _recorded(bench, gpu, phases.ACTIVE, phases.QUARANTINED)
    return list(dict.fromkeys([*bench.slots(gpu, there), *recorded]))


def _intend(
    bench: Workbench, owner: Owner, request: Request, gpu: Gpu, chosen: Plan, undo: ExitStack
) -> Allocation:
    """Write down what is going to be made, before the first NVML call that makes it."""
    promise(bench, owner)
    planned = replace(
        bench.new_record(owner, gpu, str(request)),
        instances=tuple(item for slot in chosen.slots for item in Instance.planned(slot)),
        reason=str(chosen),
    )
    waited = round(bench.locks.waited, 3)
    record = bench.ledger.add(planned, phases.PLANNED, waited=waited)
    undo.callback(roll_back, bench, record.number, gpu)
    return record


def _make_all(bench: Workbench, record: Allocation, gpu: Gpu, before: set[int]) -> Allocation:
    made: GpuInstance | None = None
    for place, wanted in enumerate(record.instances):
        tries: list[int] = []
        try:
            if made is None or made.placement != wanted.placement:
                made = _make_instance(bench, gpu, wanted, before, tries)
            compute = _make_compute(bench, gpu, made.gi_id, wanted.compute_slices)
        except SlurmMigError as fault:
            there = made is not None and made.placement == wanted.placement
            # Said "no" to at once: nothing was made, and what is there is somebody else's.
            refused = isinstance(fault, NoRoom) and not there and len(tries) == 1
            _save_unmade(bench, record, place, fault, refused=refused)
            raise
        ids = replace(wanted, gi_id=made.gi_id, ci_id=compute.ci_id, uuid=compute.uuid)
        record = record.with_instance(place, ids)
    _look_again(bench, record, gpu)
    return record


def _save_unmade(
    bench: Workbench, record: Allocation, place: int, fault: SlurmMigError, *, refused: bool
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
    bench.ledger.move(record, phases.RELEASING)


def _make_instance(
    bench: Workbench, gpu: Gpu, wanted: Instance, before: set[int], tries: list[int]
) -> GpuInstance:
    """Make one GPU instance; NoRoom while something keeps the GPU from being partitioned.

    `tries` grows by one for each call. What was made elsewhere than asked goes again at
    once, for by its placement no record would find it: Misplaced, if it does not. Its id
    must be new, or it could be somebody else's.
    """
    made: list[GpuInstance] = []

    def create() -> None:
        tries.append(gpu.minor)
        made.append(bench.driver.create_gpu_instance(gpu, wanted.profile_id, wanted.placement))

    busy = bench.retry(create, bench.monotonic() + bench.create_patience)
    if busy is not None:
        raise occupied(bench, gpu, busy) from busy
    (found,) = made
    if (found.profile_id, found.placement) != (wanted.profile_id, wanted.placement):
        raise _elsewhere(bench, gpu, wanted, found, new=found.gi_id not in before)
    before.add(found.gi_id)
    return found


def _elsewhere(
    bench: Workbench, gpu: Gpu, wanted: Instance, found: GpuInstance, *, new: bool
) -> DriverFault:
    """The fault to raise for an instance that was made elsewhere; it is destroyed if it can be.

    One that is not `new` is somebody else's.
    """
    cause = (
        f"{wanted} was asked for, the driver made GPU instance {found.gi_id} of profile "
        f"id {found.profile_id} at {found.placement}"
    )
    remedy = "see `slurm-mig status` for what is there"
    destroy = partial(bench.driver.destroy_gpu_instance, gpu, found.gi_id)
    if not new or bench.retry(destroy, bench.monotonic() + bench.create_patience) is None:
        return DriverFault(cause, remedy=remedy)
    place = found.placement
    name = str(bench.driver.geometry(gpu).by_id(found.profile_id).name)
    made = Instance(name, found.profile_id, place.start, place.size, found.gi_id)
    return Misplaced(cause, made, remedy)


def _make_compute(bench: Workbench, gpu: Gpu, gi_id: int, slices: int | None) -> ComputeInstance:
    """Make one compute instance in a GPU instance of ours.

    Until its nodes are closed any user could have opened it: they are in the way, not the node.
    """
    made: list[ComputeInstance] = []

    def create() -> None:
        made.append(bench.driver.create_compute_instance(gpu, gi_id, slices))

    busy = bench.retry(create, bench.monotonic() + bench.create_patience)
    if busy is not None:
        holders = bench.stuck.holders(gpu, bench.driver.instance(gpu, gi_id))
        if not any(item.has == INSTANCE and any(item.uids) for item in holders.found):
            # A monitor of root's that has the GPU open is no excuse for the driver.
            raise busy
        users = holders.text(public=True)
        raise NoRoom(f"{busy.cause}, used by {users}", remedy=busy.remedy) from busy
    return made[0]


def _look_again(bench: Workbench, record: Allocation, gpu: Gpu) -> None:
    """Believe what is seen, not what creation returned (go-nvml#146)."""
    there = {item.gi_id: item for item in bench.driver.instances(gpu)}
    for wanted in record.instances:
        found = there.get(wanted.gi_id if wanted.gi_id is not None else -1)
        ours = found is not None and find(wanted, [found]) and own_compute(wanted, found)
        if not ours:
            raise DriverFault(
                f"driver reported {wanted} as made (GPU instance {wanted.gi_id}), "
                f"but lists {found}",
                remedy="if it comes again, reset the GPU or reboot the node",
            )


def stuck_words(stuck: Sequence[Slot]) -> str:
    """For the user who is refused: whose the processes are is no business of theirs."""
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
