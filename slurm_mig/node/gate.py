"""Who was refused for want of room goes again when a start would succeed, not before.

A refused job waits in Slurm's queue with a begin time far away. Every event that makes room here
(an Epilog's end, a boot, `reconcile`, what an administrator removes) looks whether the GPU
that Slurm would take has a place now, and brings the job forward. An event that is lost costs time
only: at the begin time Slurm starts the job, as it does with jobs of several nodes, of which no
node knows enough.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SlurmMigError
from slurm_mig.mig.request import Request, from_stamp
from slurm_mig.node.outlook import Outlook, rule_of, strangers
from slurm_mig.packing import foresight
from slurm_mig.packing.foresight import NOWHERE, RequestKind
from slurm_mig.packing.states import REFUSED
from slurm_mig.system.detach import detach

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_mig.node.node import Node
    from slurm_mig.state.waiting import Waiting

#: Seconds in which a job that was brought forward has its place kept from other waiting ones.
KEPT: Final = 10.0

#: Seconds by which the begin time may differ from the one that we set, on a busy machine.
CLOSE: Final = 30.0

#: Seconds after which a refused job whose Epilog never told of it is taken for postponed.
FORGOTTEN: Final = 400.0


@contextmanager
def alone(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """One at a time, and one behind it; False for who comes third: the second sees it all.

    `wait`: the third waits, too, until what it has changed has been seen.
    """
    with _opened(path.with_suffix(".next")) as second, _opened(path) as first:
        try:
            fcntl.flock(second, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_UN)
        yield True


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def look(node: Node, now: float | None = None) -> list[str]:
    """Bring forward who would succeed now, the longest waiting first; a line on each.

    SlurmFault when slurmctld does not answer: who waits goes on waiting.
    """
    if not node.waiting.any():
        return []
    with alone(node.config.state / "gate.lock") as mine:
        return _call(node, time.time() if now is None else now) if mine else []


def _call(node: Node, now: float) -> list[str]:
    entries = [item for item in node.waiting.all() if not _over(node, item, now)]
    if not entries:
        return []
    rule = rule_of(node.slurm.selection())
    thought = foresight.NodeState(Outlook(node, strangers(node)).gpus(), rule)
    called = []
    for item in sorted(entries, key=lambda item: not item.called):
        kind = _kind(item)
        start = thought.try_start(kind)
        if start.picked == NOWHERE or start.after == REFUSED:
            continue
        if not item.called:
            if not _bring_forward(node, item, now):
                continue
            called.append(f"job {item.job}: brought forward, {kind.name} has room")
        thought.make(kind, start)
    return called


def _over(node: Node, item: Waiting, now: float) -> bool:
    """Whether a job is no more of ours to bring forward, now or at all; forgotten then."""
    if not item.latest and now < item.since + FORGOTTEN:
        return True
    started = any(record.phase != "refused" for record in node.ledger.open_of_job(item.job))
    past = now > item.latest > 0 or (item.called and now > item.called + KEPT)
    if started or past or _kind_or_none(item) is None:
        node.waiting.remove(item.job)
        return True
    return now < item.earliest


def _kind_or_none(item: Waiting) -> RequestKind | None:
    with suppress(SlurmMigError):
        return _kind(item)
    return None


def _kind(item: Waiting) -> RequestKind:
    request = from_stamp(item.stamp)
    if not isinstance(request, Request):
        raise SlurmMigError(f"stamp {item.stamp!r} is not of one GPU")
    return RequestKind(str(request), request, sum(one.shards or 0 for one in request.items))


def _bring_forward(node: Node, item: Waiting, now: float) -> bool:
    """Whether it is still as we left it: what its user or an administrator moved stays there."""
    state, begin = node.slurm.begin(item.reference)
    ours = not item.latest or abs(begin - item.latest) <= CLOSE
    if state != "PENDING" or not ours:
        node.waiting.remove(item.job)
        return False
    node.slurm.start_after(item.reference, 0)
    node.waiting.put(replace(item, called=now, latest=now + KEPT))
    return True


def look_later(node: Node, seconds: float = 0.0) -> None:
    """Look in a process of its own, with a connection to the ledger and the driver of its own.

    Slurm neither waits for it nor kills it; OSError where none can be made.
    """
    detach(lambda: look_instead(node, seconds))


def look_instead(node: Node, seconds: float = 0.0) -> None:
    """Become that process: what forked from a hook must use neither its ledger nor its driver."""
    time.sleep(max(0.0, seconds))
    command = [sys.executable, "-I", "-m", "slurm_mig"]
    if node.config.source is not None:
        command += ["--config", str(node.config.source)]
    environment = {key: os.environ[key] for key in ("PATH", "SLURM_CONF") if key in os.environ}
    environment["SLURMD_NODENAME"] = node.name
    os.execve(sys.executable, [*command, "publish"], environment)  # noqa: S606  # no shell
