"""Prolog and Epilog: environment in, exit code out, one log line each.

Exit 0: the job may go on, or was refused and dealt with. Non-zero: the node is
at fault, and Slurm drains it with a reason that starts `slurm-mig:`. Everything
is imported when it is needed: each import is paid on every GPU job. The work is
done by a child that a deadline ends (`watch.py`); its parent reads the configuration,
waits, and takes over only when the child does not come to its end.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import (
    BadRequest,
    HookDeadline,
    JobFault,
    LedgerFault,
    LockTimeout,
    NodeFault,
    NoRoom,
    NoSpace,
    SlurmFault,
    SlurmMigError,
    Unknown,
    about,
)
from slurm_mig.mig import request as requests
from slurm_mig.mig.allocation import LOST, QUARANTINED, RELEASING, Owner
from slurm_mig.text import ascii_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.request import Request, Several
    from slurm_mig.node.node import Node
    from slurm_mig.system.watchdog import Ended
    from slurm_mig.transaction.allocator import Allocator

#: Exit code of a hook that met something it has no name for.
INTERNAL_ERROR: Final = 1

#: How often a job's AdminComment is written before the last look at it.
ADMIN_COMMENT_TRIES: Final = 3

#: Seconds that a log line waits for syslog to take it; stderr has it by then.
SYSLOG_WAIT: Final = 0.5

#: Levels of syslog that a hook's line can have, the worst last.
LEVELS: Final = ("INFO", "WARNING", "ERR")


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm tells a hook about its job (prolog_epilog.html; facts/slurm.md#base)."""

    owner: Owner
    job_id: int
    gpus: tuple[int, ...]
    comment: str
    extra: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Job:
        """Read the variables; NodeFault when this is not a hook's environment."""
        # To the letter, for it is written back.
        comment = environ.get("SLURM_JOB_COMMENT", "")
        environ = {name: _readable(value) for name, value in environ.items()}
        try:
            job_id = int(environ["SLURM_JOB_ID"])
            het = environ.get("SLURM_HET_JOB_ID", "")
            owner = Owner(
                job_id=job_id,
                restart=int(environ.get("SLURM_JOB_RESTART_COUNT") or 0),
                sluid=environ.get("SLURM_JOB_SLUID", ""),
                uid=int(environ["SLURM_JOB_UID"]),
                gid=int(environ.get("SLURM_JOB_GID") or 0),
                user=environ.get("SLURM_JOB_USER", ""),
                account=environ.get("SLURM_JOB_ACCOUNT", ""),
                het_leader=int(het) if het else None,
            )
            return cls(
                owner=owner,
                job_id=job_id,
                gpus=tuple(
                    int(word) for word in environ.get("SLURM_JOB_GPUS", "").split(",") if word
                ),
                comment=comment,
                extra=environ.get("SLURM_JOB_EXTRA", ""),
            )
        except (KeyError, ValueError) as problem:
            raise NodeFault(
                f"Slurm's variables are missing or odd: {type(problem).__name__}: {problem}",
                remedy="this program is for slurmd to call",
            ) from problem

    def stamped(self) -> Request | Several | None:
        """The request that job_submit.lua stamped on the job; BadRequest if it cannot be read."""
        return requests.from_stamp(self.extra) or requests.from_stamp(self.comment)


@dataclass(slots=True)
class Line:
    """The one log line of a hook, filled in as it goes."""

    hook: str
    words: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    level: str = "INFO"
    head: str = ""
    started: float = field(default_factory=time.monotonic)

    def add(self, **facts: object) -> None:
        """Append name=value words."""
        self.words += [f"{name}={_clean(value)}" for name, value in facts.items()]

    def say(self, level: str, text: str) -> None:
        """How it went; what is said later stands behind it, and the worst level counts."""
        self.level = max(self.level, level, key=LEVELS.index)
        self.said.append(_clean(text))

    def write(self) -> None:
        """To syslog and to stderr, which slurmd logs."""
        import syslog
        import threading

        took = round((time.monotonic() - self.started) * 1000)
        words = [*self.words, f"ms={took}", *([f"head={self.head}"] if self.head else [])]
        line = " ".join([self.hook, *words, "; ".join(self.said)]).strip()
        _tell_slurmd(f"slurm-mig: {line}\n")
        syslog.openlog("slurm-mig", syslog.LOG_PID, syslog.LOG_DAEMON)
        level = getattr(syslog, f"LOG_{self.level}")
        # A daemon that no longer reads would keep a hook for ever.
        writer = threading.Thread(target=syslog.syslog, args=(level, line), daemon=True)
        # No thread to be had (pids.max, no memory): stderr has it, and the work is done.
        with suppress(RuntimeError, MemoryError):
            writer.start()
            writer.join(SYSLOG_WAIT)


def _tell_slurmd(text: str) -> None:
    """To stderr, which slurmd logs; a slurmd that was killed reads it no longer."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _readable(value: str) -> str:
    """Text that can be written anywhere: users put bytes into account and comment that are none.

    What is not UTF-8 reaches Python as lone surrogates, which no file and no database takes.
    """
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _clean(value: object) -> str:
    """Printable ASCII on one line: a log must not carry a user's newlines or escapes."""
    return ascii_line(str(value))[:1000]


# -- prolog --------------------------------------------------------------------


def prolog(node: Node, job: Job, line: Line) -> None:
    """Carve what the job asks for, or refuse the job. NodeFault means drain."""
    gpus: Sequence[Gpu] = ()
    wanted = "whole GPU"
    try:
        if not node.manages():
            return _unmanaged(node, job, line)
        allocator = node.allocator()
        # Read before anything can be refused: a refusal names the GPU, too.
        gpus = node.gpus_at(job.gpus)
        request = _request(node, job, gpus, line)
        if request is not None:
            wanted = str(request)
            line.add(request=wanted)
        if request is None or (isinstance(request, requests.Several) and not request.fill(gpus)):
            job = _with_all_gpus(node, job, gpus, line)
            gpus = node.gpus_at(job.gpus)
        try:
            _serve(node, job, gpus, request, allocator, line)
        except NoRoom:
            if not _collected(node, gpus, allocator, line):
                raise
            _serve(node, job, gpus, request, allocator, line)
    except JobFault as fault:
        _refuse(node, job, gpus, wanted, fault, line)


def _serve(
    node: Node,
    job: Job,
    gpus: Sequence[Gpu],
    request: Request | Several | None,
    allocator: Allocator,
    line: Line,
) -> None:
    if request is None:
        _whole_gpus(node, job, gpus, allocator, line)
    elif isinstance(request, requests.Several):
        _several(node, job, gpus, request, allocator, line)
    else:
        _slices(node, job, gpus, request, allocator, line)


def _collected(node: Node, gpus: Sequence[Gpu], allocator: Allocator, line: Line) -> bool:
    """Whether what stood in the way belonged to jobs that are gone, and is gone now.

    Slurm counts nothing for a job it has lost; so it sent this one. Only a job that
    would be refused, and thus asks slurmctld anyway, pays for the question.
    """
    managed = [gpu for gpu in gpus if node.managed(gpu)]
    if not any(node.ledger.open_on(gpu.uuid) for gpu in managed):
        return False
    try:
        done = [record for gpu in managed for record in allocator.collect(gpu, node.live_jobs)]
    except SlurmFault as fault:
        line.add(collect=fault.cause)
        return False
    if done:
        line.add(collected=",".join(str(record.owner.job_id) for record in done))
    return any(not record.open for record in done)


def _request(node: Node, job: Job, gpus: Sequence[Gpu], line: Line) -> Request | Several | None:
    """The stamp's request; without a stamp on a managed GPU, what slurmctld says."""
    request = job.stamped()
    if request is not None or not any(node.managed(gpu) for gpu in gpus):
        return request
    line.add(stamp="none")
    try:
        facts = node.slurm.job(job.job_id)
    except SlurmFault as fault:
        raise _no_answer(job, "what the job asked for", fault) from fault
    if facts is None:
        raise Unknown("Slurm does not know the job", job=job.job_id)
    if requests.holds_both(facts.tres_per_node):
        raise BadRequest(
            "the job has whole GPUs for slices, but nothing says which GPU is for which",
            remedy="submit it again; job_submit.lua stamps it on the job",
            job=job.job_id,
        )
    request = requests.from_gres(facts.tres_per_node)
    if request is None and _shards_alone(facts.tres_per_node):
        raise BadRequest(
            "the job has shards of a GPU, but no slice",
            remedy="ask for slices: --gres=mig:<profile>:<count>",
            job=job.job_id,
        )
    return request


def _shards_alone(text: str) -> bool:
    """Whether a job would be given a whole GPU for what counts as a part of one."""
    return requests.holds_shards(text) and not requests.holds_gpu(text)


def _no_answer(job: Job, what: str, fault: SlurmFault) -> Unknown:
    """A slurmctld that restarts is not this node's fault, nor may the job run on a guess."""
    cause = f"Slurm does not say {what}: {fault.cause}"
    return Unknown(cause, remedy="submit it again", job=job.job_id)


def _with_all_gpus(node: Node, job: Job, gpus: Sequence[Gpu], line: Line) -> Job:
    """The job with every GPU it has: since 24.11 Slurm's variables may name only some.

    Of a job with GPUs of several types they name those of the last type.
    """
    if len(gpus) == len(node.order):
        return job
    if len({gpu.name for gpu in node.gpus_by_index().values()}) == 1:
        return job
    try:
        told = node.slurm.gpus(job.job_id, node.name)
    except SlurmFault as fault:
        raise _no_answer(job, "which GPUs the job has", fault) from fault
    if told is None or set(told) <= set(job.gpus):
        return job
    line.add(named=",".join(map(str, job.gpus)))
    return replace(job, gpus=tuple(sorted({*told, *job.gpus})))


def _slices(
    node: Node, job: Job, gpus: Sequence[Gpu], request: Request, allocator: Allocator, line: Line
) -> None:
    gpu = _only_gpu(node, job, gpus)
    if gpu.uuid in node.retired:
        from slurm_mig.transaction.allocator import offered_though_retired

        raise offered_though_retired(node.retired[gpu.uuid])
    if not node.managed(gpu):
        raise NodeFault(
            f"Slurm offers slices of {gpu}, which is not managed here",
            remedy="compare `managed` in the [gpus] table of the config with gres.conf",
        )
    record = allocator.allocate(job.owner, request, gpu)
    _tell_accounting(node, job, record.uuids, line)
    line.add(gpu=gpu.minor, made=",".join(map(str, record.instances)), uuids=",".join(record.uuids))
    line.say("INFO", "carved")


def _several(
    node: Node, job: Job, gpus: Sequence[Gpu], wanted: Several, allocator: Allocator, line: Line
) -> None:
    from slurm_mig.transaction.several import carve

    apart = {gpu.uuid for gpu in gpus if gpu.uuid in node.retired or not node.managed(gpu)}
    places = list(zip(job.gpus, gpus, strict=True))
    records = carve(allocator, job.owner, wanted, places, apart)
    uuids = [uuid for record in records for uuid in record.uuids]
    _tell_accounting(node, job, uuids, line)
    made = [f"{record.gpu_minor}:{','.join(map(str, record.instances))}" for record in records]
    line.add(gpus=",".join(str(gpu.minor) for gpu in gpus), made=";".join(made))
    line.add(uuids=",".join(uuids))
    line.say("INFO", f"carved on {len(records)} GPUs")


def _tell_accounting(node: Node, job: Job, uuids: Sequence[str], line: Line) -> None:
    """Add this node's MIG UUIDs to the job's AdminComment; no job is refused for that.

    Another node of the job may write at the same moment: so it is read again.
    """
    if not (node.config.admin_comment and uuids):
        return
    ours = f"slurm-mig:{node.name}={','.join(uuids)}"
    try:
        facts = node.slurm.job(job.job_id)
        reference = job.owner.het_leader or (facts.reference if facts else job.job_id)
        for _ in range(ADMIN_COMMENT_TRIES):
            text = node.slurm.admin_comment(str(reference))
            if ours in text.split():
                return
            # What an earlier run of the job had here is in its own row of the accounting.
            # Everything else stays to the letter.
            kept = re.sub(rf" ?(?<!\S)slurm-mig:{re.escape(node.name)}=\S*", "", text)
            node.slurm.set_admin_comment(str(reference), f"{kept} {ours}" if kept else ours)
        if ours not in node.slurm.admin_comment(str(reference)).split():
            line.add(admincomment="overwritten by another node")
    except SlurmFault as fault:
        line.add(admincomment=fault.cause)


def _only_gpu(node: Node, job: Job, gpus: Sequence[Gpu]) -> Gpu:
    if not gpus:
        raise _no_gpu(node, job)
    if len(gpus) > 1:
        raise NodeFault(
            f"Slurm spread one job's shards over GPUs {','.join(map(str, job.gpus))}",
            remedy="take MULTIPLE_SHARING_GRES_PJ out of SelectTypeParameters",
            job=job.job_id,
        )
    return gpus[0]


def _no_gpu(node: Node, job: Job) -> JobFault:
    """Why Slurm names no GPU: the job has no shards, or has them of no GPU.

    The latter comes after a restart of slurmctld 22.05 (docs/slurm.md): the job is not
    to blame, and a later start is good.
    """
    try:
        facts = node.slurm.job(job.job_id)
    except SlurmFault as fault:
        return _no_answer(job, "which GPU the job has", fault)
    if facts is not None and requests.holds_shards(facts.tres_per_node):
        return Unknown(
            "Slurm chose no GPU for the job's shards, as happens after a restart of slurmctld",
            remedy="it is started again by itself",
            job=job.job_id,
        )
    return BadRequest(
        "the job has MIG slices but no shards, so Slurm chose no GPU for it",
        remedy="submit it again; job_submit.lua adds the shards",
        job=job.job_id,
    )


def _whole_gpus(
    node: Node, job: Job, gpus: Sequence[Gpu], allocator: Allocator, line: Line
) -> None:
    """All GPUs of the job, or none: what was given before a refusal is taken back."""
    config = node.config
    given: list[tuple[int, Gpu, Allocation | None]] = []
    try:
        for index, gpu in zip(job.gpus, gpus, strict=True):
            record = None
            if node.managed(gpu):
                policy = config.whole_policy_of(gpu.name)
                record = allocator.give_whole(job.owner, gpu, policy, reset=config.whole_reset)
            given.append((index, gpu, record))
        told = [(index, gpu.uuid, record) for index, gpu, record in given]
        allocator.publish_whole(job.owner, told)
    except JobFault:
        records = [record for _, _, record in given if record is not None]
        allocator.release_all(records, "another GPU of the job was refused")
        raise
    # A whole GPU may be its largest instance.
    uuids = [uuid for _, _, record in given if record is not None for uuid in record.uuids]
    _tell_accounting(node, job, uuids, line)
    line.add(gpus=",".join(str(gpu.minor) for gpu in gpus))
    made = [f"{gpu.minor}: {record.made if record else 'not managed'}" for _, gpu, record in given]
    line.say("INFO", "; ".join(made))


def _unmanaged(node: Node, job: Job, line: Line) -> None:
    """Nothing to do, but where GPUs were managed once, TaskProlog still looks for a file."""
    if job.stamped() is not None:
        raise NodeFault(
            "Slurm offers slices of this node, of which no GPU is managed here",
            remedy="compare `managed` in the [gpus] table of the config, and what was retired "
            "(`slurm-mig status`), with gres.conf",
            job=job.job_id,
        )
    if node.files.in_use():
        from slurm_mig.state import task_file

        node.files.mark(job.owner)
        node.files.publish(job.owner, task_file.whole_lines((), node.tasks))
    line.say("INFO", "no GPU of this node is managed")


def _refuse(
    node: Node, job: Job, gpus: Sequence[Gpu], wanted: str, fault: JobFault, line: Line
) -> None:
    from slurm_mig.hooks.refusal import Refusal, earlier, refuse
    from slurm_mig.state import task_file

    records: list[Allocation] = []
    if gpus:
        node.allocator().refuse(job.owner, wanted, gpus[0], fault)
        records = node.ledger.of_job(job.job_id)
    leases = node.files.leases(job.owner)
    # Before Slurm is asked: should that fail, the TaskProlog still has the reason.
    with suppress(NoSpace):
        # Without it no Epilog comes for the file that follows, should this hook die here.
        node.files.mark(job.owner, leases=leases)
        node.files.refuse(job.owner, task_file.refusal_lines(str(fault)))
    refused = earlier(records, job.owner, job.comment)
    refusal = Refusal(job.job_id, refused, job.comment, job.owner.het_leader)
    outcome = refuse(refusal, fault, node.slurm, node.config)
    retry = f"{outcome.retry} {refused}" if outcome.retry else ""
    try:
        node.files.mark(job.owner, retry=retry, leases=leases)
    except NoSpace:
        # The Epilog will not know: unless somebody else puts the job off, it comes back at once.
        if retry:
            _postpone(node, line, *retry.split())
    line.add(outcome=outcome.text)
    line.say("WARNING", f"refused: {fault}")


# -- epilog --------------------------------------------------------------------


def epilog(node: Node, job: Job, line: Line) -> None:
    """Tear down what the ledger says this job has, whatever the environment says."""
    _believable(node, job, line)
    records = [item for item in node.ledger.open_of_job(job.job_id) if item.node == node.name]
    reason = "the job ended"
    released: list[Allocation] = []
    try:
        if records:
            released = node.allocator().release_all(records, reason, over=True)
    finally:
        # Also where a GPU is lost: nothing of an ended job's is to stay open to its user.
        _withdraw(node, job, line)
    odd = [
        f"{item.phase}: {item.reason}"
        for item in released
        # What was killed or restarted on the way is worth a line, too.
        if item.phase in (QUARANTINED, LOST, RELEASING) or item.reason.startswith(f"{reason};")
    ]
    line.add(slices=",".join(str(item) for record in released for item in record.instances) or "-")
    calm = "released" if released else "nothing to release"
    line.say("WARNING" if odd else "INFO", "; ".join(odd) or calm)


def _withdraw(node: Node, job: Job, line: Line) -> None:
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
            _postpone(node, line, *words)


def _believable(node: Node, job: Job, line: Line) -> None:
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


def _postpone(node: Node, line: Line, reference: str, refusals: str) -> None:
    """See to it that a refused job does not come back at once; the count is the Prolog's."""
    from slurm_mig.hooks.refusal import postpone
    from slurm_mig.system.files import detach

    slurm, config = node.slurm, node.config
    try:
        detach(lambda: postpone(reference, int(refusals), slurm, config))
    except OSError as problem:
        # No process is to be had: the job comes back at once, and is refused again.
        line.say("WARNING", f"not postponed: {problem}")


# -- common --------------------------------------------------------------------


HOOKS: Final[dict[str, Callable[[Node, Job, Line], None]]] = {"prolog": prolog, "epilog": epilog}


def run(hook: str, environ: Mapping[str, str], *, watched: bool = False) -> int:
    """Run a hook and return its exit code; every fault is logged, none escapes.

    `watched`: its work is done by a child, for at most the configured deadline.
    """
    from slurm_mig.config import Config, load
    from slurm_mig.node.node import Node

    line = Line(hook)
    # Until the configuration is read, the defaults have to do for setting a drain reason.
    node = Node(Config(), environ)
    try:
        node = Node(load(environ=environ), environ)
        job = Job.from_environ(environ)
        line.add(job=job.job_id, restart=job.owner.restart, user=job.owner.user or job.owner.uid)
        line.add(node=node.name)
    except Exception as problem:  # noqa: BLE001  # an unknown state must drain, with its cause
        return _finish(node, line, problem)
    return (_watched if watched else _work)(node, job, line)


def _work(node: Node, job: Job, line: Line) -> int:
    fault = None
    try:
        with about(job=job.job_id):
            HOOKS[line.hook](node, job, line)
            _fence(node, line)
        for text in node.notes:
            line.say("WARNING", text)
        if node.feeds.problems:
            line.say("WARNING", "; ".join(node.feeds.problems))
    except Exception as problem:  # noqa: BLE001  # an unknown state must drain, with its cause
        fault = problem
    return _finish(node, line, fault)


def _finish(node: Node, line: Line, fault: Exception | None) -> int:
    code = 0
    if isinstance(fault, SlurmMigError):
        code = fault.exit_code
        _fail(node, line, str(fault))
    elif fault is not None:
        code, text = _unnamed(fault)
        _fail(node, line, text)
    _close(node, line)
    line.write()
    return code


def _unnamed(problem: Exception) -> tuple[int, str]:
    """Exit code and text for what is no fault of ours by name: a machine's, or a bug."""
    from slurm_mig.system.causes import unnamed

    fault = unnamed(problem)
    if fault is not None:
        return fault.exit_code, str(fault)
    return INTERNAL_ERROR, f"internal error: {type(problem).__name__}: {problem}"


def _fence(node: Node, line: Line) -> None:
    """Drain for stuck slices, or take that back. Slurm's silence is no fault of the node's."""
    config = node.config
    if not config.drain_slices and not config.drain_mark.exists():
        return
    try:
        done = node.fence().settle()
    except LockTimeout:
        # Another process is at it, and has the last look.
        return
    except (NodeFault, NoSpace, OSError) as fault:
        # The drain is for jobs to come: this one's work is done, and stays so.
        done = f"stuck slices: {fault}"
    if done:
        line.say("WARNING", done)


def _fail(node: Node, line: Line, text: str) -> None:
    """Drain with the fault: by itself Slurm would only say "Prolog error"."""
    line.say("ERR", text)
    try:
        node.slurm.drain(node.name, _clean(f"slurm-mig: {text}")[:250])
    except NodeFault as fault:
        # Slurm's silence, or a scontrol that root does not run: the exit code drains all the same.
        line.say("ERR", f"the drain reason could not be set: {fault.cause}")


def _watched(node: Node, job: Job, line: Line) -> int:
    """The work in a child; what it wrote is written here, and its exit code is ours."""
    from slurm_mig.system import watchdog

    def work(tell: Callable[[str], None]) -> int:
        node.tell = tell
        node.ends = True
        return _work(node, job, line)

    node.locks_until = time.monotonic() + node.config.queue_limit

    try:
        ended = watchdog.watched(work, node.config.deadline)
    except OSError as problem:
        # Not even begun: no process or no memory is to be had.
        return _finish(node, line, problem)
    _tell_slurmd(ended.output)
    if ended.code is not None:
        return ended.code
    fault = _given_up(node, job, line, ended)
    if ended.by is not None:
        _leave_at_once(node, line, fault)
    else:
        _fail(node, line, str(fault))
        line.write()
    if ended.killed is not None:
        # As if the hook had not been two processes: Slurm sees what ended it.
        os.kill(os.getpid(), ended.killed)
    return fault.exit_code


def _given_up(node: Node, job: Job, line: Line, ended: Ended) -> HookDeadline:
    import signal

    doing = ended.doing or "its start"
    remedy = "see dmesg for NVRM and Xid lines"
    if ended.by is not None:
        cause = f"ended by {ended.by.name} in {doing}"
        remedy = f"PrologEpilogTimeout has to be above {node.config.longest_hook:g} s"
    elif ended.killed is not None:
        cause = f"killed by {signal.Signals(ended.killed).name} in {doing}"
    else:
        cause = f"not done within {node.config.deadline:g} s, in {doing}"
    if ended.stuck is not None:
        cause += f"; pid {ended.stuck} cannot be killed and keeps the GPU's lock"
        remedy += "; the node needs a reboot"
    return HookDeadline(f"{line.hook} {cause}", remedy=remedy, job=job.job_id)


def _leave_at_once(node: Node, line: Line, fault: HookDeadline) -> None:
    """Say it first: Slurm kills this process next. The drain is left to one that it does not."""
    from slurm_mig.system.files import detach

    line.say("ERR", str(fault))
    line.write()
    detach(lambda: node.slurm.drain(node.name, _clean(f"slurm-mig: {fault}")[:250]))


def _close(node: Node, line: Line) -> None:
    # The work is done and on record: a driver that dislikes its shutdown changes nothing.
    try:
        if "ledger" in vars(node) and not node.ledger.loose:
            line.head = node.ledger.head()
            node.ledger.shorten()
        node.close()
    except (SlurmMigError, OSError) as fault:
        line.say("WARNING", str(fault))


def main() -> None:
    """Entry point of the shims, which name the hook."""
    os.umask(0o022)
    sys.exit(run(sys.argv[1], os.environ, watched=True))
