"""End records within one hook's time."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from slurm_mig.errors import Later, LedgerFault, LockTimeout, NodeFault, about
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.access import open_again, shut
from slurm_mig.transaction.insist import StuckBudget, insist_on
from slurm_mig.transaction.sweep import close_if_lost, settled
from slurm_mig.transaction.teardown import tear_down

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


def put_off(bench: Workbench, records: Sequence[Allocation]) -> list[Allocation]:
    """Close to its user what an ended job has, and put down that it is to be taken down.

    In a moment: neither the driver nor a lock is asked for. A process of its own ends it, or
    who needs the place first; what its user has open by now is theirs until then.
    """
    shut(bench, records)
    left = [bench.ledger.leave(record.number, phases.JOB_ENDED) for record in records]
    for record in left:
        if not record.open:
            # Another hook has closed it meanwhile: else a later job of this user stays shut out.
            with bench.locked(record.gpu_uuid, f"put off {record.owner}"):
                open_again(bench, record)
    return left


def release(bench: Workbench, record: Allocation, reason: str, *, over: bool = False) -> Allocation:
    """Destroy exactly what a record names, then look, then close the record.

    `over`: its job has ended on this node for certain, so what is left of its
    processes may be killed if the site wants that.

    Returns the record as `released`, `lost`, or `quarantined` when something
    of it is still in use after the deadline: the slice is stuck, not the
    node. Raises NodeFault when the driver fails otherwise.
    """
    (ended,) = release_all(bench, [record], reason, over=over)
    return ended


def release_all(
    bench: Workbench,
    records: Sequence[Allocation],
    reason: str,
    *,
    over: bool = False,
    late: bool = False,
) -> list[Allocation]:
    """`release` several within the time of one; one that fails keeps no other from its end.

    All are tried first, and what resists then shares the time. `late`: nobody waits for it,
    so it lets those go first who wait for a GPU. Raises the first NodeFault after the last
    record.
    """
    left = StuckBudget(bench.destroy_timeout, bench.stuck.timeout)
    ended: dict[int, Allocation] = {}
    faults: list[NodeFault] = []
    if over:
        shut(bench, records)
    insist: list[tuple[int, Gpu]] = []
    for record in records:
        share = min(bench.sweep_patience, bench.destroy_timeout / len(records))
        with _noting(faults, job=record.owner.job_id, gpu=record.gpu_uuid):
            with bench.locks.giving_way(record.gpu_uuid) if late else nullcontext():
                now, gpu = _begin(bench, record, reason, left, share)
            ended[now.number] = now
            insist += [] if gpu is None else [(now.number, gpu)]
    for number, gpu in insist:
        with _noting(faults, job=ended[number].owner.job_id, gpu=str(gpu)):
            ended[number] = insist_on(bench, ended[number], gpu, reason, left, over=over)
    if faults:
        raise faults[0]
    return list(ended.values())


@contextmanager
def _noting(faults: list[NodeFault], *, job: int | None, gpu: str) -> Iterator[None]:
    """Go on with the next record after a fault, which is noted; not after the ledger's.

    Later is none: what is stuck by then is tried again by every later hook there.
    """
    try:
        with about(job=job, gpu=gpu):
            yield
    except (LedgerFault, Later) as problem:
        if isinstance(problem, LedgerFault):
            raise
    except NodeFault as fault:
        faults.append(fault)


def _begin(
    bench: Workbench, record: Allocation, reason: str, left: StuckBudget, patience: float
) -> tuple[Allocation, Gpu | None]:
    """Tear a record down as far as it goes in a moment; its GPU, where more is to be done."""
    if record.put_off:
        # Mostly a Prolog has needed the place by now. Then neither driver nor lock is loaded.
        record = bench.ledger.find(record.number)
        if not record.open:
            return record, None
    if record.boot_id != bench.boot_id and record.request != phases.WHOLE_MIG_OFF:
        return bench.ledger.finish(record, phases.LOST, "the node was rebooted"), None
    try:
        action = f"release {record.owner}"
        # What others have put off is theirs to end: whoever waits here waits for one of them.
        spare, apart = record.put_off, record.number if record.put_off else 0
        with settled(
            bench, record.gpu_uuid, action, within=left.lock, spare=spare, apart=apart
        ) as gpu:
            # Another hook, or the sweep, may have finished it by now.
            record = bench.ledger.find(record.number)
            if not record.open:
                open_again(bench, record)
            started = bench.monotonic()
            if record.put_off and close_if_lost(bench, record, gpu, started + patience):
                record = bench.ledger.find(record.number)
            record = tear_down(bench, record, gpu, reason, started + patience, users={})
            left.wait = max(0, left.wait - (bench.monotonic() - started))
    except LockTimeout:
        left.lock = 0
        raise
    except Later as crowd:
        left.lock = 0
        return bench.ledger.leave(record.number, f"{reason}; {crowd.cause}"), None
    return record, gpu
