"""What stays in use: wait, use the site's remedies, and name who holds it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from slurm_mig.gpu.remedies import KILL_USER, Permit
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.sweep import settled, try_again, young
from slurm_mig.transaction.teardown import tear_down, users_of
from slurm_mig.transaction.whereabouts import still_there
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


@dataclass(slots=True)
class StuckBudget:
    """What one hook has for slices that stay in use, however many they are; in seconds.

    `wait` for trying again, `fix` for remedies and for naming who holds them. Waiting for a
    lock is not counted; but once one was not to be had, none is waited for any more (`lock`).
    """

    wait: float
    fix: float
    lock: float | None = None


def insist_on(
    bench: Workbench,
    record: Allocation,
    gpu: Gpu,
    reason: str,
    time_left: StuckBudget,
    *,
    over: bool,
) -> Allocation:
    """Go on with what is stuck: wait, then use the remedies, then name who holds it.

    The lock is taken for each try alone. Several jobs of a user can be stuck on one
    GPU at once: whoever waits for their hooks must not run into its lock timeout, for
    that would drain the node.
    """
    if record.phase != phases.QUARANTINED:
        return record
    started = bench.monotonic()
    record = _keep_trying(bench, record, gpu, reason, started + time_left.wait)
    time_left.wait = max(0, time_left.wait - (bench.monotonic() - started))
    if record.phase != phases.QUARANTINED:
        return record
    started = bench.monotonic()
    record = _use_remedies(bench, record, gpu, reason, started + time_left.fix, over=over)
    time_left.fix = max(0, time_left.fix - (bench.monotonic() - started))
    return record


def clear_young(bench: Workbench, gpu: Gpu) -> bool:
    """Go on with what is being taken down on a GPU, as long as an Epilog would; whether it went.

    Slurm has sent a job to a place whose teardown was put off: that one is not refused for it.
    Nobody is killed here: the process that was left with it does that, if the site wants it.
    """
    went = False
    for record in bench.ledger.open_on(gpu.uuid):
        going = record.phase in (phases.RELEASING, phases.QUARANTINED)
        if not going or record.boot_id != bench.boot_id:
            continue
        left = young(bench, record)
        if left > 0:
            went |= _cleared(bench, record.number, gpu, bench.monotonic() + left)
    return went


def _cleared(bench: Workbench, number: int, gpu: Gpu, until: float) -> bool:
    # One that was put off just now is finished at the entrance.
    with settled(bench, gpu, f"clear record {number}"):
        record = bench.ledger.find(number)
    if record.phase == phases.QUARANTINED:
        record = _keep_trying(bench, record, gpu, phases.JOB_ENDED, until)
    return not record.open


def _use_remedies(
    bench: Workbench, record: Allocation, gpu: Gpu, reason: str, end: float, *, over: bool
) -> Allocation:
    # The last look for holders has to be in time, too.
    until = end - bench.stuck.look
    done: list[str] = []
    for remedy in bench.stuck.remedies:
        permit = _permit_for(bench, record, over=over)
        used = _use(bench, remedy, record, gpu, permit, until)
        did = [text for text in used if text not in done]
        done += did
        if did:
            record = _keep_trying(bench, record, gpu, reason, until, done)
        if record.phase != phases.QUARANTINED or bench.monotonic() >= until:
            break
    if record.phase != phases.QUARANTINED:
        return record
    users = users_of(bench, gpu, still_there(bench, record, gpu), end)
    with bench.locked(gpu.uuid, f"name what holds the slice of {record.owner}") as gpu:
        record = bench.ledger.find(record.number)
        now = bench.monotonic()
        return tear_down(bench, record, gpu, reason, now, done=done, users=users)


def _use(
    bench: Workbench, remedy: str, record: Allocation, gpu: Gpu, permit: Permit, until: float
) -> list[str]:
    with ExitStack() as locked:
        if remedy == KILL_USER:
            # Another job of this user could be given the place between the look and the
            # kill, and its process would look like one that has stayed behind.
            action = f"end what holds the slice of {record.owner}"
            gpu = locked.enter_context(bench.locked(gpu.uuid, action))
            record = bench.ledger.find(record.number)
            if record.phase != phases.QUARANTINED:
                return []
        return [
            text
            for item in still_there(bench, record, gpu)
            for text in bench.stuck.apply(remedy, gpu, item.found, permit, until)
        ]


def _keep_trying(
    bench: Workbench,
    record: Allocation,
    gpu: Gpu,
    reason: str,
    until: float,
    done: Sequence[str] = (),
) -> Allocation:
    """Try a stuck record again and again until it goes or the time has come."""
    for _ in bench.tries(until):
        with bench.locked(gpu.uuid, f"release {record.owner}") as gpu:
            record = bench.ledger.find(record.number)
            if record.phase == phases.QUARANTINED:
                try_again(bench, record, gpu, "; ".join([reason, *done]))
                record = bench.ledger.find(record.number)
        if record.phase != phases.QUARANTINED:
            break
    return record


def _permit_for(bench: Workbench, record: Allocation, *, over: bool) -> Permit:
    """Whose processes a remedy may kill: in doubt nobody's."""
    owner = record.owner
    if not over or not owner.is_job:
        return Permit()
    others = [
        item.owner
        for item in bench.ledger.all_open()
        if item.phase in (phases.PLANNED, phases.ACTIVE) and not item.owner.same_run(owner)
    ]
    if any(other.job_id == owner.job_id for other in others):
        # Another run of this job lives, and its processes look the same.
        return Permit()
    return Permit(owner, by_environment=all(other.uid != owner.uid for other in others))
