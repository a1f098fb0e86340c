"""Prolog and Epilog: environment in, exit code out, one log line each.

Exit 0: the job may go on, or was refused and dealt with. Non-zero: the node is
at fault, and Slurm drains it with a reason that starts `slurm-mig:`. Everything
is imported when it is needed: each import is paid on every GPU job. The work is
done by a child that a deadline ends (`watchdog.py`); its parent reads the configuration,
waits, and takes over only when the child does not come to its end.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import HookDeadline, LockTimeout, NodeFault, NoSpace, SlurmMigError, about
from slurm_mig.hooks.job import Job
from slurm_mig.hooks.log_line import LogLine, tell_slurmd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from socket import socket

    from slurm_mig.node.node import Node
    from slurm_mig.system.watchdog import Ended


#: Exit code of a hook that met something it has no name for.
INTERNAL_ERROR: Final = 1

#: What the work of an Epilog ends with when it has put its teardown off; nobody else sees it.
PUT_OFF: Final = 200

#: How often a teardown that failed after its Epilog tries to drain the node, and the seconds
#: in between: a slurmctld that restarts is back by then.
DRAIN_TRIES: Final = 6
DRAIN_PAUSE: Final = 10.0

#: Variable by which a fork of the helper says so in its line.
HELPED: Final = "SLURM_MIG_HELPED"


def run(
    hook: str,
    environ: Mapping[str, str],
    *,
    watched: bool = False,
    caller: socket | None = None,
) -> int:
    """Run a hook and return its exit code; every fault is logged, none escapes.

    It is negative where a signal ended the work: the caller is to end by the same one.

    `watched`: its work is done by a child, for at most the configured deadline; on behalf of
    `caller`, where there is one, which may be told to end. Who has a caller answers it first
    where the code is PUT_OFF, and then runs the hook `teardown`.
    """
    from slurm_mig.config import load
    from slurm_mig.node.node import Node
    from slurm_mig.settings import Config

    line = LogLine(hook)
    # Until the configuration is read, the defaults have to do for setting a drain reason.
    node = Node(Config(), environ)
    try:
        node = Node(load(environ=environ), environ)
        node.keeps_tables = True
        job = Job.from_environ(environ)
        line.add(job=job.job_id, restart=job.owner.restart, user=job.owner.user or job.owner.uid)
        line.add(node=node.name)
        if HELPED in environ:
            line.add(way="helper")
    except Exception as problem:  # noqa: BLE001  # an unknown state must drain, with its cause
        return _finish(node, line, problem)
    if watched:
        return _watched(node, job, line, caller)
    code = _work(node, job, line)
    # There is nobody to leave it to.
    return run("teardown", environ) if code == PUT_OFF else code


def _hook(name: str) -> Callable[[Node, Job, LogLine], None]:
    if name == "prolog":
        from slurm_mig.hooks.prolog import prolog

        return prolog
    from slurm_mig.hooks.epilog import epilog, teardown

    return {"epilog": epilog, "teardown": teardown}[name]


def _work(node: Node, job: Job, line: LogLine) -> int:
    fault = None
    try:
        with about(job=job.job_id):
            _hook(line.hook)(node, job, line)
            _fence(node, line)
            _publish(node, job, line)
        for text in node.notes:
            line.say("WARNING", text)
        if node.feeds.problems:
            line.say("WARNING", "; ".join(node.feeds.problems))
    except Exception as problem:  # noqa: BLE001  # an unknown state must drain, with its cause
        fault = problem
    return _finish(node, line, fault) or (PUT_OFF if node.put_off else 0)


def _finish(node: Node, line: LogLine, fault: Exception | None) -> int:
    code = 0
    if fault is not None:
        node.forget_tables()
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


def _fence(node: Node, line: LogLine) -> None:
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


def _publish(node: Node, job: Job, line: LogLine) -> None:
    """Tell Slurm what fits here now, where the site publishes it: before the Epilog's end."""
    if not (node.config.run / "published").exists() and "fit/" not in job.comment:
        return
    from slurm_mig.node.publish import Publisher

    try:
        # A refusal says that Slurm has other counts than those that were written last.
        refused = any(text.startswith("refused") for text in line.said)
        told = Publisher(node).in_step(again=refused)
    except (SlurmMigError, OSError) as fault:
        # This job's work is done; a count that is old costs another one a refusal at most.
        told = f"what fits was not published: {fault}"
    if told:
        line.say("WARNING", told)


def _fail(node: Node, line: LogLine, text: str) -> None:
    """Drain with the fault: by itself Slurm would only say "Prolog error"."""
    from slurm_mig.slurm.protocol import drain_reason

    line.say("ERR", text)
    # Of a hook the exit code drains all the same; what was put off has only this.
    tries = DRAIN_TRIES if line.hook == "teardown" else 1
    while True:
        tries -= 1
        try:
            return node.slurm.drain(node.name, drain_reason(text))
        except NodeFault as fault:
            # Slurm's silence, or a scontrol that root does not run.
            if not tries:
                return line.say("ERR", f"the drain reason could not be set: {fault.cause}")
        time.sleep(DRAIN_PAUSE)


def _watched(node: Node, job: Job, line: LogLine, caller: socket | None) -> int:
    """The work in a child; what it wrote is written here, and its exit code is ours."""
    from slurm_mig.system import watchdog

    def work(tell: Callable[[str], None]) -> int:
        node.tell = tell
        node.ends = True
        return _work(node, job, line)

    node.locks_until = time.monotonic() + node.config.queue_limit

    try:
        ended = watchdog.watched(work, node.config.deadline, caller)
    except OSError as problem:
        # Not even begun: no process or no memory is to be had.
        return _finish(node, line, problem)
    tell_slurmd(ended.output)
    if ended.code == PUT_OFF and caller is None:
        return _go_on(node)
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
        return -ended.killed
    return fault.exit_code


def _go_on(node: Node) -> int:
    """Have what an Epilog has put off taken down by a process that nobody waits for.

    By a fork of this process, which has never opened the ledger: SQLite does not live through
    a fork (sqlite.org/howtocorrupt.html).
    """
    from slurm_mig.system.detach import detach

    def teardown() -> int:
        return run("teardown", node.environ, watched=True)

    try:
        detach(teardown)
    except OSError:
        # No process is to be had: here, then.
        return teardown()
    return 0


def _given_up(node: Node, job: Job, line: LogLine, ended: Ended) -> HookDeadline:
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


def _leave_at_once(node: Node, line: LogLine, fault: HookDeadline) -> None:
    """Say it first: Slurm kills this process next. The drain is left to one that it does not."""
    from slurm_mig.slurm.protocol import drain_reason
    from slurm_mig.system.detach import detach

    line.say("ERR", str(fault))
    line.write()
    detach(lambda: node.slurm.drain(node.name, drain_reason(str(fault))))


def _close(node: Node, line: LogLine) -> None:
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
    # What it makes goes with the process, in a moment: looking for what nothing refers to any
    # more would take longer than it has.
    gc.set_threshold(100_000)
    os.umask(0o022)
    code = run(sys.argv[1], os.environ, watched=True)
    sys.stdout.flush()
    if code < 0:
        os.kill(os.getpid(), -code)
    # Nor is it taken apart, module by module.
    os._exit(code)
