"""Ledgers: with a clock of the test's own, edited, copied, written by a fork."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from slurm_mig.audit.chain import ChainCheck
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Instance, Owner
from slurm_mig.state.event import digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurm_mig.state.ledger import Ledger


def live(ledger: Ledger, clock: Clock, record: Allocation, made: float, ended: float) -> Allocation:
    """Write a whole life."""
    clock.now = float(made)
    record = ledger.add(record, phases.PLANNED)
    ids = [replace(i, gi_id=1, ci_id=0, uuid=f"MIG-{record.number}") for i in record.instances]
    record = ledger.save(replace(record, instances=tuple(ids)).moved(phases.ACTIVE), phases.ACTIVE)
    clock.now = float(ended)
    record = ledger.move(record, phases.RELEASING)
    return ledger.finish(record, phases.RELEASED, "the job ended")


def edit(path: Path, statements: str, *, anew: bool = False, guarded: bool = True) -> None:
    """The same in any file; not `guarded`: without putting the triggers back."""
    with closing(sqlite3.connect(path)) as db, db:
        guards = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statements)
        before = ""
        for row in db.execute("SELECT * FROM event ORDER BY seq").fetchall() if anew else ():
            before = digest(before, row[:-1])
            db.execute("UPDATE event SET digest = ? WHERE seq = ?", (before, row[0]))
        for _, text in guards if guarded else ():
            db.execute(text)


def planned(
    job: int | None = 7, restart: int = 0, gpu: str = "GPU-a", user: str = "alice"
) -> Allocation:
    return Allocation(
        owner=Owner(job, restart, user=user, uid=64001),
        node="n1",
        gpu_uuid=gpu,
        gpu_minor=0,
        gpu_name="NVIDIA H100 80GB HBM3",
        boot_id="boot",
        request="3g.40gb:1",
        instances=(Instance("3g.40gb", 9, 4, 4),),
    )


class Clock:
    """A clock that stands where it is set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def in_a_fork(work: Callable[[], object]) -> int:
    """The pid of a process that does this and nothing of pytest's; exit 99 for an exception."""
    pid = os.fork()
    if pid == 0:
        try:
            result = work()
            os._exit(result if isinstance(result, int) else 0)
        except BaseException as problem:  # noqa: BLE001  # a child must not return into pytest
            os.write(2, f"{type(problem).__name__}: {problem}\n".encode())
            os._exit(99)
    return pid


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Moments:
    """Statements of a process that opens a ledger, counted; it stops before one of them."""

    def __init__(self, stop: int, there: int, resume: int) -> None:
        self.left, self.there, self.resume = stop, there, resume

    def watch(self, tell: Callable[[str], object] | None = None) -> None:
        connect = sqlite3.connect

        def watched(*arguments: object, **options: object) -> sqlite3.Connection:
            db = connect(*arguments, **options)  # type: ignore[call-overload]
            db.set_trace_callback(tell or self.reached)
            return db  # type: ignore[no-any-return]

        sqlite3.connect = watched  # type: ignore[assignment]

    def reached(self, _: str) -> None:
        self.left -= 1
        if self.left < 0:
            self.stop()

    def stop(self) -> None:
        if self.there >= 0:
            os.write(self.there, b"x")
            os.read(self.resume, 1)
            self.there = -1


def everything(ledger: Ledger) -> list[Allocation]:
    """All allocations, oldest first."""
    return ledger._select("1", ())


def broken_event(ledger: Ledger) -> int | None:
    """Number of the first event that does not follow from the one before; None when all do."""
    query = "SELECT seq, digest FROM checkpoint ORDER BY seq DESC LIMIT 1"
    check = ChainCheck(digest, *(ledger._db.execute(query).fetchone() or (0, "")))
    for event in ledger.events_after(0):
        check.look(event)
    return next((item.event for item in check.findings()), None)
