"""The ledger: which instance is whose, and the trail of every step. SQLite.

`allocation` and `instance` hold the present truth, `event` is append-only and
each of its rows is hashed with its predecessor. Every change and its event are
one transaction, in write-ahead logging.

A write that a power cut may take is not forced to the disk: a step on the way (`planned`,
`releasing`) serves the next hook, should this one be killed, and what a power cut leaves of
it nobody needs, for instances do not outlive the machine's end. Where something of it does
(MIG mode, which Ampere keeps), and where a slice is somebody's, or nobody's any more, what a
hook was told is written is on the disk, with all that was written before it.

Schema changes go forward only. `user_version` counts them: its thousands are the
*breaking* ones, the rest are additions (a table, an index, a column with a default).
A ledger with additions that are not known here is used as it is, for hooks of an
old and of a new version run side by side while a node is upgraded; so columns are
always named. One with breaking changes that are not known here is refused.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig import __version__
from slurm_mig.errors import LedgerFault, LedgerTooNew, NodeFault
from slurm_mig.mig.allocation import (
    ACTIVE,
    GONE,
    OPEN,
    QUARANTINED,
    RELEASING,
    WHOLE_MIG_OFF,
    Allocation,
    Instance,
    Owner,
)
from slurm_mig.state import schema
from slurm_mig.state.event import ARCHIVED, CARRIED, DIGESTED, NO_ALLOCATION, Event, digest
from slurm_mig.state.schema import (
    ALLOCATION_COLUMNS,
    BREAKING,
    CHECKPOINT,
    INSTANCE_COLUMNS,
    MIGRATIONS,
    OWNER_COLUMNS,
    PASSING,
    PLAIN_COLUMNS,
    statements,
)
from slurm_mig.system.causes import ledger_remedy
from slurm_mig.system.elapsed import Moment, uptime
from slurm_mig.system.trust import check_own, private_directory
from slurm_mig.values import asdict, dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


#: Hex digits of a digest that a log line has: 64 bits that nobody hits on purpose.
HEAD_DIGITS: Final = 16

#: Longest wait for another process's transaction, in seconds.
BUSY_TIMEOUT: Final = 20.0
_IS_OPEN: Final = f"ended IS NULL AND phase IN ({', '.join(repr(phase) for phase in OPEN)})"

#: What later events of an allocation repeat; the first one has everything.
_CHANGING: Final = ("phase", "reason", "instances", "ended")


@dataclass(frozen=True, slots=True)
class Retired:
    """A GPU that is no longer managed: since when (seconds since the epoch), by whom.

    `layout` has the instances it was left with, `3g.40gb@4,1g.10gb@0`; empty for none.
    """

    gpu_uuid: str
    at: float
    who: str
    layout: str

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        left = self.layout or "no instances"
        return f"retired since {since} by {self.who}, with {left}"


class Ledger:
    """An open ledger. Several processes may have it open; each write is atomic.

    Without a path it is an empty one in memory, for who only looks where there is none.
    `boot` is this boot's id, empty where it is not known.
    """

    def __init__(
        self,
        path: Path | None,
        clock: Callable[[], float] = time.time,
        *,
        boot: str = "",
        uptime: Callable[[], float] = uptime,
    ) -> None:
        self._path = path or ":memory:"
        self._clock = clock
        self._boot = boot
        self._uptime = uptime
        #: Whether a power cut may take what was written last: then nobody is to be told its head.
        self.loose = False
        if path is not None:
            private_directory(path.parent, 0o700)
        with self._guarded("open"):
            try:
                if path is not None:
                    _create_private(path)
            except NodeFault as fault:
                raise LedgerFault(f"ledger: {fault.cause}", remedy=fault.remedy) from fault
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        """Connect, waiting out those who switch a new file to WAL or clean up behind the last.

        SQLite answers these with "locked" at once, without its own waiting
        (wal.html, "Sometimes Queries Return SQLITE_BUSY In WAL Mode").
        """
        until = time.monotonic() + BUSY_TIMEOUT
        while True:
            db = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
            try:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA journal_mode=WAL")
                # Not by itself: that would be under a GPU's lock, and others wait for the disk.
                db.execute("PRAGMA wal_autocheckpoint=0")
                db.execute("PRAGMA foreign_keys=ON")
                self._migrate(db)
            except BaseException as problem:
                db.close()
                if not _busy(problem) or time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return db

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def shorten(self) -> None:
        """Copy a long WAL into the file and empty it: for who holds no lock, and does not close.

        How far a WAL is copied is in shared memory alone, which ends with the last process that
        has the ledger open: one that is copied and not emptied would grow with each hook, and be
        copied from its beginning by each. It is emptied when nothing is left to copy, so that
        nobody waits for the disk; who is at work just now keeps it for the next hook.
        """
        wal = Path(f"{self._path}-wal")
        if wal.exists() and wal.stat().st_size > CHECKPOINT:
            with self._guarded("shorten"):
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._db.execute("PRAGMA busy_timeout=0")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._db.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT * 1000:.0f}")

    def now(self) -> Moment:
        """This moment, as events are put down with it."""
        return Moment(self._clock(), self._boot, self._uptime())

    # -- writing -------------------------------------------------------------

    def add(self, allocation: Allocation, kind: str, **facts: Any) -> Allocation:
        """Record a new allocation with its first event; returns it with its number.

        `facts` are JSON values that only the event keeps.
        """
        now = allocation.created or self._clock()
        added = replace(allocation, created=now, ended=None if allocation.open else now)
        with self._writing(force=_lasts(added, kind)):
            marks = ", ".join("?" * len(ALLOCATION_COLUMNS))
            cursor = self._db.execute(
                f"INSERT INTO allocation ({', '.join(ALLOCATION_COLUMNS)}) VALUES ({marks})",  # noqa: S608
                _values(added),
            )
            added = replace(added, number=cursor.lastrowid or 0)
            self._write_instances(added)
            self._append(kind, added, added.to_dict() | facts)
        return added

    def save(self, allocation: Allocation, kind: str) -> Allocation:
        """Record a changed allocation and the event that changed it."""
        with self._writing(force=_lasts(allocation, kind)):
            self._change(allocation, kind)
        return allocation

    def move(self, allocation: Allocation, phase: str, reason: str = "") -> Allocation:
        """Take an allocation to its next phase; LedgerFault for an illegal step.

        `reason` is kept where none is given.
        """
        return self.save(allocation.moved(phase, reason), phase)

    def leave(self, number: int, reason: str) -> Allocation:
        """Leave an active allocation to the next hook on its GPU, which finishes it.

        Without the GPU's lock: who holds it may have taken the record further by now, and
        then that stays.
        """
        with self._writing(force=False):
            record = self.find(number)
            if record.phase == ACTIVE:
                record = record.moved(RELEASING, reason)
                self._change(record, RELEASING)
        return record

    def _change(self, allocation: Allocation, kind: str) -> None:
        assignments = ", ".join(f"{name} = ?" for name in ALLOCATION_COLUMNS)
        changed = self._db.execute(
            f"UPDATE allocation SET {assignments} WHERE number = ?",  # noqa: S608
            (*_values(allocation), allocation.number),
        ).rowcount
        if changed != 1:
            raise LedgerFault(f"{self._path} has no allocation {allocation.number}")
        self._write_instances(allocation)
        full = allocation.to_dict()
        facts = {name: full[name] for name in _CHANGING}
        if kind == QUARANTINED and self._boot:
            # How long it has been so decides about a drain: the wall clock may be set.
            facts |= {"boot": self._boot, "uptime": self._uptime()}
        self._append(kind, allocation, facts)

    def finish(self, allocation: Allocation, phase: str, reason: str = "") -> Allocation:
        """Close an allocation in a final phase, now."""
        return self.save(allocation.moved(phase, reason, ended=self._clock()), phase)

    def _write_instances(self, allocation: Allocation) -> None:
        self._db.execute("DELETE FROM instance WHERE allocation = ?", (allocation.number,))
        columns = ("allocation", "place", *INSTANCE_COLUMNS)
        marks = ", ".join("?" * len(columns))
        self._db.executemany(
            f"INSERT INTO instance ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
            [
                (allocation.number, place, *(getattr(item, name) for name in INSTANCE_COLUMNS))
                for place, item in enumerate(allocation.instances)
            ],
        )

    def _append(self, kind: str, allocation: Allocation, facts: dict[str, Any]) -> None:
        self._append_row(kind, allocation.number, allocation.owner.job_id, facts)

    def _append_row(
        self, kind: str, number: int, job_id: int | None, facts: dict[str, Any]
    ) -> None:
        seq, before = self.last_event()
        seq += 1
        detail = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        at = round(self._clock(), 6)
        content = (seq, at, kind, number, job_id, detail)
        self._db.execute(
            "INSERT INTO event (seq, at, kind, allocation, job_id, detail, digest) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*content, digest(before, content)),
        )

    def retire(self, gpu_uuid: str, who: str, layout: str) -> Retired:
        """Put down that a GPU is managed no more, from now on; an earlier mark gives way."""
        mark = Retired(gpu_uuid, self._clock(), who, layout)
        with self._writing():
            self._db.execute(
                "INSERT OR REPLACE INTO retired (gpu_uuid, at, who, layout) VALUES (?, ?, ?, ?)",
                (mark.gpu_uuid, mark.at, mark.who, mark.layout),
            )
            self._append_row("retired", NO_ALLOCATION, None, asdict(mark))
        return mark

    def readmit(self, gpu_uuid: str, who: str) -> None:
        """Take the mark of a retired GPU away."""
        with self._writing():
            self._db.execute("DELETE FROM retired WHERE gpu_uuid = ?", (gpu_uuid,))
            facts = {"gpu_uuid": gpu_uuid, "who": who}
            self._append_row("readmitted", NO_ALLOCATION, None, facts)

    def carry(self, last: int, facts: dict[str, Any]) -> int:
        """Before events up to number `last` leave: repeat what stays behind, say so; how many.

        Each record that stays although events of it leave gets an event with everything that
        is known of it: the open ones, those with later events, and the newest, whose number
        the next one is counted from. `facts` tell of the move.
        """
        with self._guarded("write"), _transaction(self._db):
            staying = self._select(
                "number IN (SELECT allocation FROM event WHERE seq <= :last) AND (ended IS NULL "
                "OR number = (SELECT max(number) FROM allocation) OR EXISTS "
                "(SELECT 1 FROM event WHERE allocation = number AND seq > :last)) AND NOT EXISTS "
                "(SELECT 1 FROM event WHERE allocation = number AND seq > :last AND kind = :kind)",
                {"last": last, "kind": CARRIED},
            )
            for record in staying:
                firsts = self._firsts(record.number)
                told = record.to_dict() | {
                    "firsts": {kind: first.at for kind, first in firsts.items()},
                    "uptimes": {
                        kind: [first.boot, first.uptime]
                        for kind, first in firsts.items()
                        if first.boot
                    },
                }
                self._append(CARRIED, record, told)
            self._append_row(ARCHIVED, NO_ALLOCATION, None, facts)
        return len(staying)

    # -- reading -------------------------------------------------------------

    def retired(self) -> dict[str, Retired]:
        """GPUs that are managed no more, by UUID."""
        with self._guarded("read"):
            rows = self._db.execute("SELECT gpu_uuid, at, who, layout FROM retired").fetchall()
        return {row["gpu_uuid"]: Retired(*row) for row in rows}

    def open_on(self, gpu_uuid: str) -> list[Allocation]:
        """Allocations on a GPU that may have instances, oldest first."""
        return self._select(f"{_IS_OPEN} AND gpu_uuid = ?", (gpu_uuid,))

    def all_open(self) -> list[Allocation]:
        """Allocations that may have instances, oldest first."""
        return self._select(_IS_OPEN, ())

    def open_of_job(self, job_id: int) -> list[Allocation]:
        """Allocations of any run of a job that may have instances, oldest first."""
        return self._select(f"{_IS_OPEN} AND job_id = ?", (job_id,))

    def find(self, number: int) -> Allocation:
        """One allocation by its number; LedgerFault when there is none."""
        found = self._select("number = ?", (number,))
        if not found:
            raise LedgerFault(f"{self._path} has no allocation {number}")
        return found[0]

    def of_job(self, job_id: int) -> list[Allocation]:
        """Everything recorded for a job id, oldest first."""
        return self._select("job_id = ?", (job_id,))

    def first(self, allocation: Allocation, kind: str) -> Moment:
        """When an allocation had its first event of a kind.

        Without such an event: when it was created.
        """
        return self._firsts(allocation.number).get(kind, Moment(allocation.created))

    def _firsts(self, number: int) -> dict[str, Moment]:
        """When an allocation had its first event of each kind, those in archives included."""
        query = "SELECT at, kind, detail FROM event WHERE allocation = ? ORDER BY seq DESC"
        found: dict[str, Moment] = {}
        with self._guarded("read"):
            for row in self._db.execute(query, (number,)):
                # The earliest comes last; who was carried has earlier ones in its detail.
                told = json.loads(row["detail"]) if row["kind"] in (QUARANTINED, CARRIED) else {}
                clock = told.get("boot", ""), told.get("uptime", 0.0)
                found[row["kind"]] = Moment(float(row["at"]), *clock)
                clocks = told.get("uptimes", {})
                for kind, at in told.get("firsts", {}).items():
                    found[kind] = Moment(at, *clocks.get(kind, ()))
        return found

    def events_after(self, seq: int) -> Iterator[Event]:
        """Events behind number `seq`, oldest first."""
        with self._guarded("read"):
            columns = ", ".join((*DIGESTED, "digest"))
            query = f"SELECT {columns} FROM event WHERE seq > ? ORDER BY seq"  # noqa: S608
            for row in self._db.execute(query, (seq,)):
                yield Event(*row)

    def last_event(self) -> tuple[int, str]:
        """Number and digest of the newest event: the head of the hash chain; 0 and "" before."""
        with self._guarded("read"):
            row = self._db.execute(
                "SELECT seq, digest FROM event ORDER BY seq DESC LIMIT 1"
            ).fetchone()
        return (row["seq"], row["digest"]) if row else (0, "")

    def digest_of(self, seq: int) -> str | None:
        """Digest of an event; None when there is none of that number."""
        with self._guarded("read"):
            row = self._db.execute("SELECT digest FROM event WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else str(row["digest"])

    def note(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Append an event that concerns the ledger as a whole; `facts` are JSON values."""
        with self._guarded("write"), _transaction(self._db):
            self._append_row(kind, NO_ALLOCATION, None, dict(facts))

    def head(self) -> str:
        """The chain's last link, `<event>:<16 hex digits>`, for the log; empty without events.

        Whoever edits the table can hash it anew, but not what syslog has sent elsewhere.
        """
        seq, last = self.last_event()
        return f"{seq}:{last[:HEAD_DIGITS]}" if seq else ""

    def _select(
        self, where: str, values: Sequence[object] | Mapping[str, object]
    ) -> list[Allocation]:
        with self._guarded("read"):
            rows = self._db.execute(
                f"SELECT * FROM allocation WHERE {where} ORDER BY number",  # noqa: S608
                values,
            ).fetchall()
            return [self._allocation(row) for row in rows]

    def _allocation(self, row: sqlite3.Row) -> Allocation:
        instances = self._db.execute(
            "SELECT * FROM instance WHERE allocation = ? ORDER BY place", (row["number"],)
        )
        return Allocation(
            owner=Owner(**{name: row[name] for name in OWNER_COLUMNS}),
            **{name: row[name] for name in PLAIN_COLUMNS},
            instances=tuple(
                Instance(**{name: item[name] for name in INSTANCE_COLUMNS}) for item in instances
            ),
            number=row["number"],
        )

    # -- file ----------------------------------------------------------------

    def _migrate(self, db: sqlite3.Connection) -> None:
        if self._known(_version(db)):
            return
        with _transaction(db):
            # Another hook may have migrated while this one waited for the write lock.
            version = _version(db)
            if self._known(version):
                return
            for step in sorted(key for key in MIGRATIONS if key >= version):
                for statement in statements(MIGRATIONS[step]):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version={schema.SCHEMA}")

    def _known(self, version: int) -> bool:
        """Whether a ledger of that version can be used as it is; LedgerTooNew if it never can."""
        _check_version(self._path, version)
        return version >= schema.SCHEMA

    @contextmanager
    def _writing(self, *, force: bool = True) -> Iterator[None]:
        with self._guarded("write"), _transaction(self._db, force=force):
            yield
        self.loose = not force

    @contextmanager
    def _guarded(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            raise LedgerFault(
                f"{action} ledger {self._path}: {problem}", remedy=ledger_remedy(problem)
            ) from problem


def check_usable(path: Path) -> None:
    """LedgerFault or LedgerTooNew where no hook could use it; changes nothing, as `recorded`."""
    ((version,),) = _look(path, "PRAGMA user_version")
    _check_version(path, version)


def newest(path: Path) -> int:
    """Number of the last event, 0 without one; changes nothing, as `recorded`."""
    return int(_look(path, "SELECT coalesce(max(seq), 0) FROM event")[0][0])


def digest_in(path: Path, seq: int) -> str | None:
    """Digest of an event, None where there is none; changes nothing, as `recorded`."""
    rows = _look(path, "SELECT digest FROM event WHERE seq = ?", seq)
    return str(rows[0][0]) if rows else None


def recorded(path: Path) -> list[tuple[str, Instance]]:
    """GPU UUID and instance for every instance on open record; changes nothing.

    For who only looks: opening a `Ledger` makes or migrates it and narrows its directory.
    """
    query = (
        f"SELECT gpu_uuid, {', '.join(INSTANCE_COLUMNS)} FROM instance "  # noqa: S608  # our own words
        f"JOIN allocation ON allocation.number = instance.allocation WHERE {_IS_OPEN}"
    )
    found = ((row[0], Instance(*row[1:])) for row in _look(path, query))
    return [(uuid, item) for uuid, item in found if item.gi_id != GONE]


def retired(path: Path) -> frozenset[str]:
    """UUIDs of GPUs that were taken out of management; changes nothing, as `recorded`."""
    if not _look(path, "SELECT 1 FROM sqlite_master WHERE name = 'retired'"):
        # Version 1 knows of none.
        return frozenset()
    return frozenset(uuid for (uuid,) in _look(path, "SELECT gpu_uuid FROM retired"))


def _look(path: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    from urllib.parse import quote

    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            return db.execute(query, values).fetchall()
    except sqlite3.Error as problem:
        raise LedgerFault(
            f"read ledger {path}: {problem}", remedy=ledger_remedy(problem)
        ) from problem


def _lasts(allocation: Allocation, kind: str) -> bool:
    """Whether a power cut must not take a change back."""
    return kind not in PASSING or allocation.request == WHOLE_MIG_OFF


@contextmanager
def _transaction(db: sqlite3.Connection, *, force: bool = True) -> Iterator[None]:
    """One change, whole or not at all; with `force` it is on the disk when the block is left.

    NORMAL forces nothing to the disk but at a checkpoint, FULL each commit's WAL, and with it
    all that was written to it before (sqlite.org/pragma.html#pragma_synchronous).
    """
    db.execute(f"PRAGMA synchronous={'FULL' if force else 'NORMAL'}")
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _check_version(path: Path | str, version: int) -> None:
    if version // BREAKING > schema.SCHEMA // BREAKING:
        raise LedgerTooNew(
            f"{path} has schema version {version}, this slurm-mig {__version__} knows up "
            f"to {schema.SCHEMA} and its additions below "
            f"{(schema.SCHEMA // BREAKING + 1) * BREAKING}",
            remedy="install the slurm-mig again that wrote it, or a later one "
            '(docs/upgrade.md, "Upgrading")',
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _busy(problem: BaseException) -> bool:
    code = getattr(problem, "sqlite_errorcode", 0)
    # Extended codes keep the plain one in their low byte.
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _create_private(path: Path) -> None:
    # Before SQLite does: it would use the umask, and its -wal and -shm files copy the mode.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            _check_private(path.with_name(path.name + suffix))


def _check_private(path: Path) -> None:
    # O_PATH: closing any other descriptor would drop the locks of this process (fcntl(2)).
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        check_own(descriptor, path)
        status = os.fstat(descriptor)
        if status.st_nlink != 1:
            # Under another name it could be opened past this directory.
            raise NodeFault(
                f"{path} has {status.st_nlink} names (hard links)",
                remedy="copy it and put the copy in its place, so that it has one",
            )
        if status.st_mode & 0o077:
            # Its directory lets nobody but root put another file in this place.
            path.chmod(0o600)
    finally:
        os.close(descriptor)


def _values(allocation: Allocation) -> tuple[Any, ...]:
    return (
        *(getattr(allocation.owner, name) for name in OWNER_COLUMNS),
        *(getattr(allocation, name) for name in PLAIN_COLUMNS),
    )
