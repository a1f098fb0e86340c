"""Take down what belongs to jobs that Slurm no longer has here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import about
from slurm_mig.mig import allocation as phases
from slurm_mig.system.held import ask_freely
from slurm_mig.transaction.insist import StuckBudget, insist_on
from slurm_mig.transaction.sweep import settled
from slurm_mig.transaction.teardown import try_tear_down
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


@dataclass(frozen=True, slots=True)
class EndedJobs:
    """Numbers of records whose jobs are over for certain: Slurm was asked after they were there."""

    numbers: frozenset[int] = frozenset()


def ended_among(
    records: Sequence[Allocation], live_jobs: Callable[[], frozenset[int]] | None
) -> EndedJobs:
    """Of these records, those whose jobs Slurm no longer has; asked after they were listed."""
    if live_jobs is None:
        return EndedJobs()
    ask_freely("which jobs live")
    live = live_jobs()
    jobs = {record.number: record.owner.job_id for record in records}
    gone = (number for number, job in jobs.items() if job is not None and job not in live)
    return EndedJobs(frozenset(gone))


def relieve(bench: Workbench, gpu: Gpu, numbers: Iterable[int], ended: EndedJobs) -> None:
    """Use the remedies on what is stuck; in jobs that live on nobody is killed."""
    time_left = StuckBudget(0, bench.stuck.timeout)
    for number in numbers:
        record = bench.ledger.find(number)
        if record.phase == phases.QUARANTINED:
            over = number in ended.numbers
            insist_on(bench, record, gpu, "no longer in use", time_left, over=over)


def collect(
    bench: Workbench, gpu: Gpu, live_jobs: Callable[[], frozenset[int]]
) -> list[Allocation]:
    """Take down on one GPU what belongs to jobs that Slurm no longer has here.

    After a lost controller state no Epilog comes for them (facts/slurm.md#failures).
    Returns the records that were closed, or are stuck.
    """
    with about(gpu=str(gpu)):
        ended = ended_among(bench.ledger.open_on(gpu.uuid), live_jobs)
        with settled(bench, gpu, "collect") as now:
            gone = collect_here(bench, now, ended)
        relieve(bench, gpu, gone, ended)
        return [bench.ledger.find(number) for number in gone]


def collect_here(bench: Workbench, gpu: Gpu, ended: EndedJobs) -> list[int]:
    """Under the lock: take down active records whose jobs are over; their numbers."""
    gone = [
        record
        for record in bench.ledger.open_on(gpu.uuid)
        if record.phase == phases.ACTIVE and record.number in ended.numbers
    ]
    until = bench.monotonic() + bench.sweep_patience
    for record in gone:
        try_tear_down(bench, record, gpu, "its job is no longer on this node", until)
        if record.owner.job_id is not None:
            with bench.courtesy(f"files of {record.owner}"):
                bench.files.withdraw(record.owner.job_id)
    return [record.number for record in gone]
