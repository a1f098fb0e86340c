"""Finish what dead hooks left on a GPU, before anything new is done there."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from slurm_mig.errors import DriverFault, GpuLost, about
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.access import remove_nodes
from slurm_mig.transaction.handover import forget, take_back, tell_lost
from slurm_mig.transaction.mig_mode import restore_mig_mode
from slurm_mig.transaction.recognise import find
from slurm_mig.transaction.teardown import free_places, try_tear_down
from slurm_mig.transaction.whereabouts import known, missing_of, unclaimed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.mig.allocation import Allocation, Instance, Owner
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


@contextmanager
def settled(
    bench: Workbench,
    gpu: Gpu | str,
    action: str,
    owner: Owner | None = None,
    *,
    within: float | None = None,
    sweep: bool = True,
    spare: bool = False,
    apart: int = 0,
) -> Iterator[Gpu]:
    """The entrance of every operation: a GPU (or its UUID) under its lock, as it is then.

    What dead hooks left there is finished first, unless a caller that only reads leaves that
    (`sweep`); one that is to `spare` what was put off lately takes of that what is in its way,
    and one that is to end the record number `apart` does that itself. `owner` is about to be
    served; the lock is waited for `within` seconds, by default as long as the site says.
    Raises LockTimeout, Crowded, or a NodeFault of the driver's.
    """
    uuid = gpu if isinstance(gpu, str) else gpu.uuid
    job = None if owner is None else owner.job_id
    with about(job=job, gpu=str(gpu)), bench.locked(uuid, action, within) as now:
        changed = sweep and sweep_gpu(bench, now, owner, spare=spare, apart=apart)
        # To finish a record can bring MIG mode back.
        yield bench.fresh(uuid) if changed else now


def sweep_gpu(
    bench: Workbench,
    gpu: Gpu,
    owner: Owner | None = None,
    *,
    spare: bool = False,
    apart: int = 0,
) -> bool:
    """Finish what dead hooks left on a GPU whose lock we hold; whether there was anything.

    `owner` is about to be served: another run of the same job cannot still be
    alive, so its slices go too (ids are reused, Epilogs may be missing).
    """
    until = bench.monotonic() + bench.sweep_patience
    changed = False
    for record in bench.ledger.open_on(gpu.uuid):
        if record.number != apart and not (spare and _in_hand(bench, record, owner)):
            changed |= finish(bench, record, gpu, owner, until)
    return changed


def _in_hand(bench: Workbench, record: Allocation, owner: Owner | None) -> bool:
    """Whether a process is about to take a record down whose slices may stay until then.

    Not of this job, for whose files it would look; nor one that has had its time: that
    process has died.
    """
    if not record.put_off or not record.present or record.boot_id != bench.boot_id:
        return False
    return (owner is None or owner.job_id != record.owner.job_id) and young(bench, record) > 0


def young(bench: Workbench, record: Allocation) -> float:
    """Seconds that an Epilog would still have for the record of a job that has ended."""
    limit = bench.destroy_timeout + bench.stuck.timeout
    return limit - bench.ledger.first(record, phases.RELEASING).age(bench.ledger.now())


def finish(
    bench: Workbench, record: Allocation, gpu: Gpu, owner: Owner | None, until: float
) -> bool:
    """Finish a record that no living hook is at work on; False for one that is well."""
    if record.boot_id != bench.boot_id:
        _close_with_boot(bench, record, gpu)
    elif record.phase == phases.QUARANTINED:
        try_again(bench, record, gpu)
        forget(bench, record)
    elif close_if_lost(bench, record, gpu, until):
        pass
    elif record.phase != phases.ACTIVE:
        try_tear_down(bench, record, gpu, _why(record), until)
        forget(bench, record)
    elif owner and record.node == bench.node and _superseded(record.owner, owner):
        try_tear_down(bench, record, gpu, "left by an earlier run of the job", until)
    else:
        return False
    return True


def close_if_lost(bench: Workbench, record: Allocation, gpu: Gpu, until: float) -> bool:
    """Close a record whose job's slices somebody else has taken away; whether it was so.

    Also where its Epilog had put it off: it is no teardown of ours then.
    """
    missing = missing_of(bench, record, gpu) if record.untouched else []
    if missing:
        _close_lost(bench, record, gpu, missing, until)
        if record.put_off:
            forget(bench, record)
    return bool(missing)


def _why(record: Allocation) -> str:
    """What ends a record that is half-way: its Epilog put it off, or its hook has died."""
    return phases.JOB_ENDED if record.put_off else "finished for a hook that died"


def _close_with_boot(bench: Workbench, record: Allocation, gpu: Gpu) -> None:
    """Close a record of an earlier boot: its instances went with it."""
    if record.request == phases.WHOLE_MIG_OFF:
        # Ampere keeps the mode over a reboot, also the one that was meant for a job.
        why = restore_mig_mode(bench, gpu, bench.monotonic())
        if why:
            # It stays due: else the next job's Prolog would find the mode off and no reason.
            _leave_mode_stuck(bench, record, why)
            return
    bench.ledger.finish(record, phases.LOST, "the node was rebooted")


def _leave_mode_stuck(bench: Workbench, record: Allocation, why: str) -> None:
    if record.phase == phases.QUARANTINED:
        return
    if record.phase != phases.RELEASING:
        record = bench.ledger.move(record, phases.RELEASING)
    reason = f"MIG mode is still off: {why}"
    bench.ledger.move(record, phases.QUARANTINED, reason)


def try_again(
    bench: Workbench, record: Allocation, gpu: Gpu, reason: str = "no longer in use"
) -> None:
    """Retry at once what is stuck; on record only when something of it has gone.

    Every hook comes by here: with each of them on record the ledger would grow, and
    each would look for the holders again.
    """
    rest = unclaimed(bench, record)
    try:
        held = free_places(bench, rest, gpu, bench.monotonic())
    except GpuLost:
        raise
    except DriverFault:
        return
    if not held or len(held) < len({item.placement for item in record.present}):
        try_tear_down(bench, record, gpu, reason, bench.monotonic())


def _close_lost(
    bench: Workbench, record: Allocation, gpu: Gpu, missing: list[Instance], until: float
) -> None:
    """Instances of an active record are gone: somebody destroyed them, or a reset did."""
    names = ", ".join(str(item) for item in missing)
    reason = f"{names} taken away from outside, or the GPU was reset"
    seen = bench.driver.instances(gpu)
    bench.tell(f"{record.owner} lost its slice: {reason}")
    if record.phase == phases.ACTIVE:
        tell_lost(bench, record, reason)
    # One that only lost its compute instance is still there: called lost, it would leak.
    if not any(find(item, seen) or known(bench, item, gpu) for item in record.instances):
        take_back(bench, record, gpu)
        # The next instance with these ids would be open to the user of the one that went.
        remove_nodes(bench, record, record.instances, gpu)
        bench.ledger.finish(record, phases.LOST, reason)
    else:
        try_tear_down(bench, record, gpu, reason, until)


def _superseded(old: Owner, new: Owner) -> bool:
    return old.job_id is not None and old.job_id == new.job_id and not old.same_run(new)
