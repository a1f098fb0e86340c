"""What becomes of a job that cannot have its slices: told, requeued, held or cancelled.

Any non-zero exit of a Prolog drains the node, and no setting stops that; so a
refusal exits 0 and deals with the job itself. What works in which situation was
measured: facts/slurm.md#failing, #requeue.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import JobFault, Later, SlurmFault
from slurm_mig.mig.allocation import REFUSED
from slurm_mig.mig.request import without_stamp
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from slurm_mig.hooks.log_line import LogLine
    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.node.node import Node
    from slurm_mig.settings import Config
    from slurm_mig.slurm.protocol import JobFacts, Slurm

#: First release whose restarted jobs always get a Prolog (facts/slurm.md#releases).
PROLOG_ALWAYS_RUNS: Final = (23, 2)

#: Seconds a restart must stay away from its Epilog: before 23.02 beyond the credential's
#: expiry, after it beyond the same second (facts/slurm.md#requeue).
MARGIN_OLD: Final = 5
MARGIN_NEW: Final = 3

#: How long the detached child waits for the job to leave COMPLETING, and how often it looks.
PATIENCE: Final = 300.0
LOOK_EVERY: Final = 1.0

#: States of a job whose Prolog runs and that is not about to end.
STARTING: Final = ("RUNNING", "CONFIGURING", "SUSPENDED")

_OUR_COMMENT: Final = re.compile(r" ?\[slurm-mig: [^\]]*?(?:; refused (\d{1,4}) times)?\]")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused run: which job, how often it was refused before, and the user's comment."""

    job_id: int
    earlier: int
    comment: str
    het_leader: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done with the job; `retry` is the reference to postpone, if it was requeued."""

    text: str
    retry: str = ""


def earlier(records: Iterable[Allocation], owner: Owner, comment: str) -> int:
    """How often the job was refused before this run.

    Not SLURM_JOB_RESTART_COUNT: that counts preemptions and an administrator's requeues, too.
    `records` are this node's for the job id; what other nodes refused stands in the comment.
    A user may change the comment: the records keep them from waiting on one node for ever.
    """
    here = sum(
        record.phase == REFUSED
        and record.owner.uid == owner.uid
        and record.owner.restart < owner.restart
        for record in records
    )
    told = _OUR_COMMENT.search(comment)
    return max(here, int(told[1] or 1) if told and owner.restart else 0)


def refuse(refusal: Refusal, fault: JobFault, slurm: Slurm, config: Config) -> Outcome:
    """Deal with the job through Slurm; an unreachable slurmctld is an outcome, not an error.

    The TaskProlog then stops the job's tasks and shows the reason.
    """
    try:
        facts = slurm.job(refusal.job_id)
        if facts is None:
            return Outcome("unknown to Slurm")
        if facts.state not in STARTING:
            # Cancelled while its Prolog ran: a requeue would bring it back to life.
            return Outcome(f"left alone, it is {facts.state}")
        reference = str(refusal.het_leader or facts.reference)
        _explain(refusal, fault, reference, slurm)
        if not facts.batch:
            return _cancel_interactive(reference, fault, slurm)
        return _put_back(refusal, fault, facts, reference, slurm, config)
    except SlurmFault as problem:
        return Outcome(f"left to the TaskProlog: {problem.cause}")


def _explain(refusal: Refusal, fault: JobFault, reference: str, slurm: Slurm) -> None:
    # The comment is a courtesy: that it fails must not keep the job from being requeued.
    try:
        slurm.comment(reference, comment_with(refusal.comment, str(fault), refusal.earlier + 1))
    except SlurmFault:
        return


def comment_with(comment: str, reason: str, times: int = 1) -> str:
    """The user's comment, to the letter, with our reason behind it instead of an earlier one."""
    own = _OUR_COMMENT.sub("", without_stamp(comment))
    count = f"; refused {times} times" if times > 1 else ""
    ours = f"[slurm-mig: {reason.replace(']', ')')}{count}]"
    return f"{own} {ours}" if own else ours


def _cancel_interactive(reference: str, fault: JobFault, slurm: Slurm) -> Outcome:
    slurm.notify(reference, f"slurm-mig: {fault}")
    slurm.cancel(reference)
    return Outcome("cancelled")


def _put_back(
    refusal: Refusal,
    fault: JobFault,
    facts: JobFacts,
    reference: str,
    slurm: Slurm,
    config: Config,
) -> Outcome:
    if not facts.requeue and config.no_requeue == "cancel":
        slurm.cancel(reference)
        return Outcome("cancelled")
    # What bounces for ever helps nobody, though it may pass by itself.
    hold = not isinstance(fault, Later) or refusal.earlier >= config.max_requeues
    if not facts.requeue:
        slurm.allow_requeue(reference, allow=True)
    (slurm.requeue_hold if hold else slurm.requeue)(reference)
    if not facts.requeue:
        slurm.allow_requeue(reference, allow=False)
    return Outcome("held") if hold else Outcome("requeued", retry=reference)


def least_delay(slurm: Slurm) -> int:
    """Seconds from the Epilog's end in which a restart would not be a good one."""
    if slurm.version() < PROLOG_ALWAYS_RUNS:
        return slurm.credential_lifetime() + MARGIN_OLD
    return MARGIN_NEW


def retry_delay(refusals: int, least: int, config: Config) -> int:
    """Seconds until Slurm starts a refused job in any case: doubled each time, within bounds."""
    wanted = config.retry_delay * 2.0 ** min(refusals, 20)
    return int(max(least, min(wanted, config.retry_delay_max)))


def postpone(
    reference: str,
    refusals: int,
    slurm: Slurm,
    config: Config,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[int, int] | None:
    """Once the job's Epilog has completed, move its next start away.

    Slurm sets the begin time when the Epilog completes and overwrites what was
    set before; so this runs in a process that outlives the Epilog. Returns in how many
    seconds it may start at the earliest and will at the latest; None where nothing was set.
    """
    waited = 0.0
    while waited < PATIENCE:
        state = slurm.state(reference)
        if state == "PENDING":
            least = least_delay(slurm)
            latest = retry_delay(refusals, least, config)
            slurm.start_after(reference, latest)
            return least, latest
        if state not in ("COMPLETING", "REQUEUED"):
            return None
        sleep(LOOK_EVERY)
        waited += LOOK_EVERY
    return None


def come_back_later(node: Node, job: int, line: LogLine, reference: str, refusals: str) -> None:
    """See to it that a refused job does not come back at once; the count is the Prolog's."""
    from slurm_mig.node.gate import look_instead
    from slurm_mig.system.detach import detach

    slurm, config, waiting = node.slurm, node.config, node.waiting

    def work() -> None:
        delays = postpone(reference, int(refusals), slurm, config)
        if delays is None or not waiting.any():
            return
        least, latest = delays
        now = time.time()
        waiting.postponed(job, now + least, now + latest)
        # What made room meanwhile found a job that could not be called yet.
        look_instead(node, least)

    try:
        detach(work)
    except OSError as problem:
        # No process is to be had: the job comes back at once, and is refused again.
        line.say("WARNING", f"not postponed: {problem}")
