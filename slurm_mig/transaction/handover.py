"""What tasks and steps, the Epilog and monitoring are told of a slice, and its taking back.

`promise` that there may be something, `give` it (`give_several`, `give_gpus`), `take_back`
before it goes, `forget` what is left of it; `tell_lost` where it went by itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from slurm_mig.mig import allocation as phases
from slurm_mig.state import task_file
from slurm_mig.transaction.whereabouts import unclaimed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.request import Request
    from slurm_mig.transaction.workbench import Workbench


def promise(bench: Workbench, owner: Owner) -> None:
    """Leave a mark, before anything is made, by which the Epilog knows that there may be."""
    if owner.is_job:
        bench.files.mark(owner)


def give(
    bench: Workbench, record: Allocation, request: Request, gpu: Gpu, *, part: bool = False
) -> None:
    """Tell the tasks of a job what they have on one GPU; of a `part` only monitoring hears."""
    owner = record.owner
    if not owner.is_job:
        return
    if not part:
        several = len(record.instances) > 1
        leases = _make_leases(bench, owner, len(record.instances)) if several else ""
        _mark_run(bench, owner, [record], leases)
        lines = task_file.slice_lines(record, request, bench.tasks, leases)
        bench.files.publish(owner, lines)
    bench.feeds.show(record, gpu.index)


def _make_leases(bench: Workbench, owner: Owner, slices: int) -> str:
    """Where the job's steps write down which slices they took."""
    # Nobody else can guess it, so nobody can be there first.
    run = f"{owner.job_id}.{owner.restart}"
    elsewhere = f"{bench.tasks.leases}-{run}-{os.urandom(8).hex()}"
    return bench.files.make_leases(owner, slices, elsewhere)


def _mark_run(
    bench: Workbench, owner: Owner, records: Sequence[Allocation], leases: str = ""
) -> None:
    """Write down beside the ledger what a run has, should the ledger be lost (evidence.py)."""
    bench.files.mark(owner, leases=leases, head=bench.ledger.head(), records=records)


def give_several(bench: Workbench, owner: Owner, given: Sequence[tuple[int, Allocation]]) -> None:
    """Tell the tasks of a job with slices on several GPUs: (Slurm's index, its part)."""
    leases = _make_leases(bench, owner, sum(len(record.instances) for _, record in given))
    _mark_run(bench, owner, [record for _, record in given], leases)
    bench.files.publish(owner, task_file.several_lines(given, bench.tasks, leases))


def give_gpus(
    bench: Workbench, owner: Owner, given: Sequence[tuple[int, str, Allocation | None]]
) -> None:
    """Tell the tasks of a job with whole GPUs what they are: (Slurm's index, UUID, record)."""
    _mark_run(bench, owner, [record for _, _, record in given if record is not None])
    bench.files.publish(owner, task_file.whole_lines(given, bench.tasks))


def take_back(bench: Workbench, record: Allocation, gpu: Gpu) -> None:
    """Take a run's environment away before its slices go, and hide them from monitoring.

    A hook that dies in between leaves a run that no task can start in, not one
    whose tasks are sent to a slice that is gone or is another's by now.
    """
    owner = record.owner
    # Also of one that was put off: an Epilog that was killed then has left the environment.
    if owner.is_job and record.untouched and not _has_heir(bench, record):
        with bench.courtesy(f"environment of {owner}"):
            bench.files.withdraw_environment(owner)
    bench.feeds.hide(unclaimed(bench, record), gpu.index)


def _has_heir(bench: Workbench, record: Allocation) -> bool:
    """Whether the files are those of a later job with this number: ids are reused.

    What an earlier one still has on another GPU would keep files that name a slice which is gone.
    """
    owner = record.owner
    return owner.job_id is not None and any(
        other.phase in (phases.PLANNED, phases.ACTIVE)
        and other.number > record.number
        and other.owner.restart == owner.restart
        and not other.owner.same_run(owner)
        for other in bench.ledger.open_of_job(owner.job_id)
    )


def forget(bench: Workbench, record: Allocation) -> None:
    """Take away what an Epilog that was killed left: Slurm does not run it again."""
    owner = record.owner
    if owner.job_id is None:
        return
    still_open = bench.ledger.open_of_job(owner.job_id)
    if not any(item.owner.same_run(owner) for item in still_open) and not _has_heir(bench, record):
        with bench.courtesy(f"files of {owner}"):
            bench.files.withdraw_run(owner)


def tell_lost(bench: Workbench, record: Allocation, reason: str) -> None:
    """Let the next step of a job that lost its slice say so: the place may be another's now.

    The next instance there has the same MIG UUID; so nothing may point to it any more.
    """
    owner = record.owner
    if not owner.is_job or _has_heir(bench, record):
        return
    text = f"the job has lost its slice: {reason}; submit it again"
    bench.files.refuse(owner, task_file.refusal_lines(text))
