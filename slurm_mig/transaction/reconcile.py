"""Ledger, hardware and Slurm brought to one truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import Later, LedgerFault, NodeFault, SlurmFault, about
from slurm_mig.mig import allocation as phases
from slurm_mig.system.held import ask_freely
from slurm_mig.transaction.collect import EndedJobs, collect_here, ended_among, relieve
from slurm_mig.transaction.sweep import settled
from slurm_mig.transaction.whereabouts import foreign_texts, missing_of, name_of
from slurm_mig.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


@dataclass(slots=True)
class Report:
    """What a reconcile did and found, as one line each."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    #: GPUs that could not be brought in order, by UUID, and why; in `left`, too.
    faults: dict[str, str] = field(default_factory=dict)


def reconcile(bench: Workbench, live_jobs: Callable[[], frozenset[int]] | None) -> Report:
    """Bring ledger and hardware to one truth on every GPU.

    `live_jobs` tells the jobs Slurm has on this node; None when Slurm cannot be
    asked, and then no active slice is taken from a job. It is asked before any lock is
    taken, and about records that were there by then: what is carved meanwhile has a
    job that lives. Instances that no record names are listed, never touched.
    """
    report = Report()
    _close_earlier_boots(bench, report)
    gpus, faults = bench.driver.survey()
    report.left += [str(fault) for fault in faults]
    if not faults:
        _close_replaced(bench, {gpu.uuid for gpu in gpus}, report)
    gpus = [gpu for gpu in gpus if gpu.mig_capable]
    report.left += _records_without_gpu(bench, {gpu.uuid for gpu in gpus})
    silence: SlurmFault | None = None
    ended = EndedJobs()
    try:
        ended = ended_among(bench.ledger.all_open(), live_jobs)
    except SlurmFault as fault:
        # Left-overs are swept all the same: only jobs could not be asked for.
        silence = fault
    for gpu in gpus:
        try:
            with about(gpu=str(gpu)):
                _reconcile_gpu(bench, gpu, ended, report)
        except LedgerFault:
            raise
        except (NodeFault, Later) as problem:
            # One GPU that fails, or whose lock is held, stops no work on the others.
            report.left.append(str(problem))
            report.faults[gpu.uuid] = str(problem)
    if silence is not None:
        raise silence
    _remove_stale_files(bench, live_jobs, report)
    return report


def _close_replaced(bench: Workbench, present: set[str], report: Report) -> None:
    """Close what waits for a GPU's MIG mode when another card is in its place since a boot."""
    for record in bench.ledger.all_open():
        if record.boot_id != bench.boot_id and record.gpu_uuid not in present:
            bench.ledger.finish(record, phases.LOST, "the node was rebooted without its GPU")
            report.done.append(f"{name_of(record)}: lost with its GPU")


def foresee(bench: Workbench, live_jobs: Callable[[], frozenset[int]] | None) -> Report:
    """What `reconcile` would do, as far as looking tells; nothing is changed.

    Whether something that is in use goes is seen only by trying: it is in `done`, as what
    would be tried.
    """
    report = Report()
    gpus, faults = bench.driver.survey()
    report.left += [str(fault) for fault in faults]
    here = {gpu.uuid: gpu for gpu in gpus if gpu.mig_capable}
    report.left += _records_without_gpu(bench, set(here))
    live = None if live_jobs is None else live_jobs()
    for record in bench.ledger.all_open():
        text = _foreseen(bench, record, here.get(record.gpu_uuid), live)
        report.done += [f"{name_of(record)}: {text}"] if text else []
    for gpu in here.values():
        if gpu.uuid not in bench.ledger.retired():
            report.foreign += [f"{gpu}: {text}" for text in foreign_texts(bench, gpu)]
    if live is not None:
        held = {record.owner.job_id for record in bench.ledger.all_open()}
        stale = sorted(bench.files.jobs() - live - held)
        report.done += [f"job {job}: left-over files would be removed" for job in stale]
    return report


def _foreseen(
    bench: Workbench, record: Allocation, gpu: Gpu | None, live: frozenset[int] | None
) -> str:
    if record.boot_id != bench.boot_id:
        # One that MIG mode was switched off for stands on its GPU's answer.
        waits = gpu is None and record.request == phases.WHOLE_MIG_OFF
        return "" if waits else "would be closed as lost with a reboot"
    if gpu is None:
        return ""
    if record.phase == phases.QUARANTINED:
        return "would be tried again"
    if record.phase != phases.ACTIVE:
        return "would be finished, if no hook is at work on it"
    if missing_of(bench, record, gpu):
        return "would be closed: something of it is gone"
    if live is not None and record.owner.job_id not in (None, *live):
        return "would be taken down: its job is no longer on this node"
    return ""


def _close_earlier_boots(bench: Workbench, report: Report) -> None:
    for record in bench.ledger.all_open():
        # One that MIG mode was switched off for is closed by the sweep of its GPU.
        if record.boot_id != bench.boot_id and record.request != phases.WHOLE_MIG_OFF:
            bench.ledger.finish(record, phases.LOST, "the node was rebooted")
            report.done.append(f"{name_of(record)}: lost with a reboot")


def _records_without_gpu(bench: Workbench, present: set[str]) -> list[str]:
    return [
        f"{name_of(record)}: its GPU {record.gpu_uuid} does not answer, or not as a GPU with MIG"
        for record in bench.ledger.all_open()
        if record.gpu_uuid not in present
    ]


def _reconcile_gpu(bench: Workbench, gpu: Gpu, ended: EndedJobs, report: Report) -> None:
    before = [record.number for record in bench.ledger.open_on(gpu.uuid)]
    with settled(bench, gpu, "reconcile") as gpu:
        collect_here(bench, gpu, ended)
    relieve(bench, gpu, before, ended)
    for number in before:
        now = bench.ledger.find(number)
        if now.phase == phases.QUARANTINED:
            report.left.append(f"{name_of(now)}: {now.reason}")
        elif not now.open:
            report.done.append(f"{name_of(now)}: {now.phase}, {now.reason}")
    if gpu.uuid not in bench.ledger.retired():
        report.foreign += [f"{gpu}: {text}" for text in foreign_texts(bench, gpu)]


def _remove_stale_files(
    bench: Workbench, live: Callable[[], frozenset[int]] | None, report: Report
) -> None:
    if live is None:
        return
    # Listed before Slurm is asked: a job whose file was there by then is still known.
    found = bench.files.runs()
    ask_freely("which jobs live")
    jobs = live()
    for job in sorted({run.job for run in found} - jobs):
        # A run of that job may have begun since: what it has is not in the list.
        if not bench.ledger.open_of_job(job):
            bench.files.withdraw_listed([run for run in found if run.job == job])
            report.done.append(f"job {job}: left-over files removed")
