"""The Epilog: what a job had is closed to it and taken down, or postponed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import LedgerFault, NodeFault
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction import release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.hooks.job import Job
    from slurm_mig.hooks.log_line import LogLine
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.node.node import Node


def epilog(node: Node, job: Job, line: LogLine) -> None:
    """Tear down what the ledger says this job has, whatever the environment says."""
    _believable(node, job, line)
    records = [item for item in node.ledger.open_of_job(job.job_id) if item.node == node.name]
    if node.config.defer_teardown and records and all(map(_in_order, records)):
        release.put_off(node.bench(), records)
        _withdraw(node, job, line)
        line.add(slices=_named(records))
        line.say("INFO", "closed, to be taken down")
        node.put_off = True
        return
    try:
        take_down(node, records, line)
    finally:
        # Also where a GPU is lost: nothing of an ended job's is to stay open to its user.
        _withdraw(node, job, line)


def _in_order(record: Allocation) -> bool:
    """Only what a living job had is put off: what a dead hook left has waited long enough."""
    return record.phase == phases.ACTIVE


def teardown(node: Node, job: Job, line: LogLine) -> None:
    """What an Epilog has put off, in a process that nobody waits for."""
    node.check_ledger()
    # None of them where a Prolog was faster, for it needed the place: what that one could not
    # take down is stuck, and told of here. Another run of the job may have begun.
    records = [
        item
        for item in node.ledger.open_of_job(job.job_id)
        if item.node == node.name and item.phase in (phases.RELEASING, phases.QUARANTINED)
    ]
    take_down(node, records, line, late=True)


def _named(records: Sequence[Allocation]) -> str:
    return ",".join(str(item) for record in records for item in record.instances) or "-"


def take_down(
    node: Node, records: Sequence[Allocation], line: LogLine, *, late: bool = False
) -> None:
    """End these records, and say what became of them; `late` as in `release_all`."""
    reason = phases.JOB_ENDED
    released = (
        release.release_all(node.bench(), records, reason, over=True, late=late) if records else []
    )
    if released:
        _call_who_waits(node, line)
    odd = [
        f"{item.phase}: {item.reason}"
        for item in released
        # What was killed or restarted on the way is worth a line, too.
        if item.phase in (phases.QUARANTINED, phases.LOST, phases.RELEASING)
        or item.reason.startswith(f"{reason};")
    ]
    line.add(slices=_named(released))
    calm = "released" if released else "nothing to release"
    line.say("WARNING" if odd else "INFO", "; ".join(odd) or calm)


def _withdraw(node: Node, job: Job, line: LogLine) -> None:
    """Remove the job's files, and postpone it if it was refused; neither undoes the teardown."""
    try:
        retries = node.files.retries(job.job_id)
    except (NodeFault, OSError) as fault:
        retries = []
        line.say("WARNING", f"not postponed: {fault}")
    try:
        node.files.withdraw(job.job_id)
    except (NodeFault, OSError) as fault:
        line.say("WARNING", f"files left: {fault}")
    for retry in retries:
        words = retry.split()
        if len(words) == 2 and words[1].isascii() and words[1].isdigit():
            from slurm_mig.hooks.refusal import come_back_later

            come_back_later(node, job.job_id, line, *words)


def _call_who_waits(node: Node, line: LogLine) -> None:
    """This made room: whoever was refused for want of it may go now."""
    # Made by the first refusal: most nodes need not even load what reads it.
    if not (node.config.state / "waiting").is_dir() or not node.waiting.any():
        return
    from slurm_mig.node.gate import look_later

    try:
        look_later(node)
    except OSError as problem:
        line.say("WARNING", f"nobody looks who may start now: {problem}")


def _believable(node: Node, job: Job, line: LogLine) -> None:
    """The fault of a ledger that cannot be used: then the job's mark closes its nodes.

    Damaged, of a newer version, replaced or lost. What the job had stays until an
    administrator has put the ledger right.
    """
    try:
        node.check_ledger()
    except LedgerFault:
        from slurm_mig.transaction.evidence import shut

        closed = shut(job.job_id, node.files, node.capabilities, node.boot_id)
        line.add(closed=",".join(closed) or "-")
        raise
