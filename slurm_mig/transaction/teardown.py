"""Take down what a record names; what resists is left as stuck, with who holds it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from slurm_mig.errors import DriverFault, GpuLost
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.access import remove_nodes, take_from_user
from slurm_mig.transaction.handover import take_back
from slurm_mig.transaction.mig_mode import restore_mig_mode
from slurm_mig.transaction.recognise import find, is_own
from slurm_mig.transaction.whereabouts import StillThere, gone_of, seen_after, unclaimed
from slurm_mig.values import replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurm_mig.mig.allocation import Allocation, Instance
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.transaction.workbench import Workbench


def roll_back(bench: Workbench, number: int, gpu: Gpu) -> None:
    """Undo a carve that failed; what cannot be undone stays on record for the next hook."""
    tear_down(bench, bench.ledger.find(number), gpu, "rolled back")


def tear_down(
    bench: Workbench,
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
    stuck, so that a later hook tries again.
    """
    if not record.open:
        return record
    until = bench.monotonic() + bench.sweep_patience if until is None else until
    take_back(bench, record, gpu)
    record = unclaimed(bench, record)
    seen = bench.driver.instances(gpu)
    record = _with_ids(record, seen)
    if record.phase != phases.RELEASING:
        record = bench.ledger.move(record, phases.RELEASING)
    elif record.untouched:
        # If this hook dies, too, what it destroyed was not taken away from outside.
        record = bench.ledger.move(record, phases.RELEASING, phases.GOING)
    try:
        take_from_user(bench, record, seen)
        held = free_places(bench, record, gpu, until)
        if held:
            looks = users_of(bench, gpu, held, until + bench.stuck.look) if users is None else users
            return _leave_stuck(bench, record, gpu, held, looks, done)
        remove_nodes(bench, record, record.present, gpu)
    except GpuLost:
        raise
    except DriverFault as fault:
        _save_stuck(bench, record, gpu, str(fault))
        raise
    return bench.ledger.finish(record, phases.RELEASED, "; ".join([reason, *done]))


def _save_stuck(bench: Workbench, record: Allocation, gpu: Gpu, reason: str) -> None:
    """Set a record aside that the driver failed on, without what of it is gone already."""
    with suppress(DriverFault):
        gone = gone_of(bench, record, gpu, bench.driver.instances(gpu))
        remove_nodes(bench, record, gone, gpu)
        record = record.without(gone)
    bench.ledger.move(record, phases.QUARANTINED, reason)


def note_gone(bench: Workbench, gpu: Gpu, seen: Sequence[GpuInstance]) -> None:
    """Before a place is given away: what was stuck there and is gone has no claim to it."""
    for record in bench.ledger.open_on(gpu.uuid):
        gone = gone_of(bench, record, gpu, seen) if record.phase == phases.QUARANTINED else []
        if not gone:
            continue
        remove_nodes(bench, record, gone, gpu)
        going = bench.ledger.move(record, phases.RELEASING)
        rest = going.without(gone)
        if rest.present:
            bench.ledger.move(rest, phases.QUARANTINED)
        else:
            bench.ledger.finish(rest, phases.RELEASED, "no longer there")


def free_places(bench: Workbench, record: Allocation, gpu: Gpu, until: float) -> list[StillThere]:
    """Take down what a record names; what of it is there afterwards, and why.

    An instance that a successful call left is destroyed again (go-nvml#146).
    """
    held: list[StillThere] = []
    for _ in bench.tries(until):
        causes = {item: _destroy_one(bench, item, gpu, until) for item in record.present}
        held = seen_after(bench, causes, gpu)
        if not held or any(causes.values()):
            break
    if not held and record.request == phases.WHOLE_MIG_OFF:
        why = restore_mig_mode(bench, gpu, until)
        return [StillThere(None, why)] if why else []
    return held


def _leave_stuck(
    bench: Workbench,
    record: Allocation,
    gpu: Gpu,
    held: Sequence[StillThere],
    users: Mapping[int | None, str],
    done: Sequence[str],
) -> Allocation:
    """Leave what stays as stuck: by itself, with what holds it."""
    seen = [item.found for item in held if item.found is not None]
    gone = [item for item in record.present if not find(item, seen)]
    remove_nodes(bench, record, gone, gpu)
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
    return bench.ledger.move(record, phases.QUARANTINED, reason)


def users_of(
    bench: Workbench, gpu: Gpu, held: Sequence[StillThere], end: float
) -> Mapping[int | None, str]:
    """Who holds what is still there, by GPU instance id; one look's time for all."""
    until = min(end, bench.monotonic() + bench.stuck.look)
    return {
        item.gi_id: bench.stuck.holders(gpu, item.found, until - bench.monotonic()).text()
        for item in held
    }


def _destroy_one(bench: Workbench, item: Instance, gpu: Gpu, until: float) -> str:
    """Destroy one instance, retrying while it is in use; returns why it could not."""

    def destroy() -> None:
        found = find(item, bench.driver.instances(gpu))
        if found is not None:
            for compute in found.compute:
                bench.driver.destroy_compute_instance(gpu, found.gi_id, compute.ci_id)
            bench.driver.destroy_gpu_instance(gpu, found.gi_id)

    busy = bench.retry(destroy, until)
    return "" if busy is None else busy.cause


def try_tear_down(
    bench: Workbench, record: Allocation, gpu: Gpu, reason: str, until: float
) -> None:
    """Clear another's left-overs; what resists is left as stuck and does not stop this hook."""
    try:
        tear_down(bench, record, gpu, reason, until)
    except GpuLost:
        raise
    except DriverFault:
        if bench.ledger.find(record.number).phase in (phases.PLANNED, phases.ACTIVE):
            # Not even begun, for what is there could not be read: nothing says so on record.
            raise


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
