"""Moves what ended long ago out of a ledger into an archive, so that no event is ever in neither.

An archive is a ledger of its own: the same tables, a part of the same chain. A batch of events,
and the records that end with it, is first written to the archive and synced, and read back; then
one transaction takes it out of the ledger and puts down how far the ledger has been shortened.
Whoever is killed in between leaves a batch in both, which the next run notices. Batches are
small, and hooks get the ledger between any two.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.audit.archive import Archive
from slurm_mig.errors import LedgerFault
from slurm_mig.mig.allocation import OPEN
from slurm_mig.state.event import ARCHIVED, CARRIED, digest
from slurm_mig.system.trust import private_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slurm_mig.state.ledger import Ledger

#: Events of the first batch; later ones are made such that each takes about BATCH_TIME.
FIRST_BATCH: Final = 500
MOST_IN_A_BATCH: Final = 5000

#: How long a batch should hold the ledger's write lock, in seconds. Between two of them hooks
#: have it for as long.
BATCH_TIME: Final = 0.1

#: Longest time in seconds that making the file smaller may hold the write lock while it copies;
#: hooks wait up to 20 s (ledger.py, BUSY_TIMEOUT). It is given up then, and the space is kept for
#: new events.
SHRINK_TIME: Final = 5.0

#: Longest wait for a hook's transaction, or for an audit that reads the archive, in seconds.
WAIT: Final = 60.0

#: What makes the file an archive, and tells who made it.
_ABOUT: Final = "CREATE TABLE archived (at REAL NOT NULL, who TEXT NOT NULL, node TEXT NOT NULL)"

_EVENT: Final = "seq, at, kind, allocation, job_id, detail"

#: Records whose last event is in the batch, and which have ended.
_LEAVING: Final = (
    "SELECT number FROM main.allocation WHERE ended IS NOT NULL "  # noqa: S608  # our own words
    f"AND phase NOT IN ({', '.join(repr(phase) for phase in OPEN)}) AND number IN "
    "(SELECT allocation FROM main.event WHERE seq > :low AND seq <= :high) AND NOT EXISTS "
    "(SELECT 1 FROM main.event WHERE allocation = number AND seq > :high)"
)


#: The same and the newest record, once it has ended: an archive has every record that its events
#: close, also where it stays in the ledger as well.
_ENDING: Final = _LEAVING.replace(
    "seq > :high)", f"seq > :high AND kind NOT IN ('{CARRIED}', '{ARCHIVED}'))"
)


@dataclass(frozen=True, slots=True)
class Archived:
    """What was moved: events and records, into which file; None where there was nothing to move.

    `carried` records have events there and stayed. `saved` is by how many bytes the ledger's file
    became smaller; `note` says why it did not, where it should have. `longest` is how long the
    ledger was held by one batch, in seconds.
    """

    file: Path | None
    events: int = 0
    records: int = 0
    carried: int = 0
    saved: int = 0
    note: str = ""
    longest: float = 0.0


def foresee(ledger: Path, before: float) -> tuple[int, int]:
    """How many events, and how many records, a move would concern; nothing is changed."""
    with _guarded(ledger), closing(_connect(ledger)) as db:
        low, _ = _checkpoint(db, "main")
        high = _cut(db, low, before)
        (count,) = db.execute(
            f"SELECT count(*) FROM ({_LEAVING})",  # noqa: S608  # our own words
            {"low": low, "high": high},
        ).fetchone()
        return max(0, high - low), int(count)


def move(
    ledger: Ledger,
    path: Path,
    directory: Path,
    before: float,
    who: str,
    passed: Callable[[int], object] = lambda _: None,
) -> Archived:
    """Move all events from before a time (seconds since the epoch), and the records they end.

    Open records, the newest one and the last event stay. `passed` is told of each batch's
    events. One process at a time may do this. Raises LedgerFault where the chain does not hold:
    what was edited must be looked at before it is put away.
    """
    with _guarded(path), closing(_connect(path)) as db:
        low, start = _checkpoint(db, "main")
        high = _cut(db, low, before)
        file = _unfinished(directory, low)
        if file is None and high <= low:
            return Archived(None)
        private_directory(directory, 0o700)
        if file is None:
            file = directory / _name(low)
            _make(db, file, (low, start, before, who))
        mover = _Mover(db, file, before, passed)
        try:
            # Before anything is written: an archive that does not fit is another ledger's.
            mover.resume()
            carried = ledger.carry(high, {"file": file.name, "last": high, "who": who})
            mover.run(high)
        finally:
            db.execute("DETACH archive")
        file.chmod(0o400)
        saved, note = _shrink(db, path)
        return Archived(file, mover.events, mover.records, carried, saved, note, mover.longest)


class _Mover:
    """Batch after batch, with ledger and archive on one connection."""

    def __init__(
        self, db: sqlite3.Connection, file: Path, before: float, passed: Callable[[int], object]
    ) -> None:
        self._db = db
        self._file = file
        self._before = before
        self._passed = passed
        self.longest = 0.0
        self.events = self.records = 0
        db.execute("ATTACH ? AS archive", (str(file),))
        # A removed journal that comes back after a power cut would undo a batch that has
        # left the ledger: EXTRA syncs the directory, too (pragma.html, "synchronous").
        db.execute("PRAGMA archive.synchronous=EXTRA")

    def resume(self) -> None:
        """Take out of the ledger what a run before this one wrote to the archive alone."""
        low, before = _checkpoint(self._db, "main")
        there = _last(self._db, "archive")
        if there > low:
            self._verify(low, before, there)
            self._take_out(low, there)

    def run(self, high: int) -> None:
        """Move everything up to an event."""
        db, size = self._db, FIRST_BATCH
        low, before = _checkpoint(db, "main")
        while low < high:
            upto = min(low + size, high)
            self._copy(low, upto)
            self._verify(low, before, upto)
            began = time.monotonic()
            self._take_out(low, upto)
            took = time.monotonic() - began
            self.longest = max(self.longest, took)
            self._passed(upto - low)
            low, before = _checkpoint(db, "main")
            size = min(MOST_IN_A_BATCH, max(50, round(size * BATCH_TIME / max(took, 1e-3))))
            if low < high:
                # SQLite's waiters look again every 0.1 s at the longest.
                time.sleep(max(took, BATCH_TIME))

    def _copy(self, low: int, high: int) -> None:
        """Write a batch to the archive; nothing but a hook's events can change in the ledger."""
        span = {"low": low, "high": high}
        with _writing(self._db):
            self._db.execute(
                "INSERT INTO archive.event SELECT * FROM main.event WHERE seq > :low AND "
                "seq <= :high ORDER BY seq",
                span,
            )
            for table, key in (("allocation", "number"), ("instance", "allocation")):
                self._db.execute(
                    f"INSERT OR IGNORE INTO archive.{table} "  # noqa: S608  # our own words
                    f"SELECT * FROM main.{table} WHERE {key} IN ({_ENDING})",
                    span,
                )

    def _verify(self, low: int, before: str, high: int) -> None:
        """LedgerFault unless the archive has the whole batch, the ledger the same last event."""
        query = (
            f"SELECT {_EVENT}, digest FROM archive.event WHERE seq > ? AND seq <= ? ORDER BY seq"  # noqa: S608
        )
        for expected, row in enumerate(self._db.execute(query, (low, high)), low + 1):
            if row[0] != expected or digest(before, row[:-1]) != row[-1]:
                raise LedgerFault(
                    f"event {expected} in {self._file} does not follow from the one before it; "
                    "nothing more was moved",
                    remedy="`slurm-mig audit --check` says what was edited or damaged",
                )
            before, low = row[-1], expected
        here = self._db.execute("SELECT digest FROM main.event WHERE seq = ?", (high,)).fetchone()
        if low != high or here is None or here[0] != before:
            raise LedgerFault(
                f"{self._file} and the ledger differ up to event {high}; nothing more was moved",
                remedy="the archive is of another ledger, or one of them was set back: move the "
                "archive to another directory once you know which one is right",
            )

    def _take_out(self, low: int, high: int) -> None:
        """Take a batch out of the ledger, which has it in the archive from now on."""
        db, span = self._db, {"low": low, "high": high}
        (last,) = db.execute("SELECT digest FROM archive.event WHERE seq = ?", (high,)).fetchone()
        with _writing(db):
            # The first statement writes, so that the lock is waited for and never upgraded.
            db.execute("DELETE FROM main.checkpoint WHERE file = ?", (self._file.name,))
            db.execute(
                "INSERT INTO main.checkpoint (seq, digest, file, before) VALUES (?, ?, ?, ?)",
                (high, last, self._file.name, self._before),
            )
            rows = db.execute(_LEAVING, span).fetchall()
            for row in rows:
                found = db.execute("SELECT 1 FROM archive.allocation WHERE number = ?", row)
                if found.fetchone() is None:
                    raise LedgerFault(f"{self._file} lacks allocation {row[0]}")
            db.executemany("DELETE FROM main.instance WHERE allocation = ?", rows)
            db.executemany("DELETE FROM main.allocation WHERE number = ?", rows)
            gone = db.execute("DELETE FROM main.event WHERE seq <= :high", span).rowcount
        self.events, self.records = self.events + gone, self.records + len(rows)


# -- files ---------------------------------------------------------------------------


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
    db.execute("PRAGMA synchronous=FULL")
    return db


def _checkpoint(db: sqlite3.Connection, schema: str) -> tuple[int, str]:
    """Number and digest of the last event that was moved away; 0 and "" for none."""
    query = f"SELECT seq, digest FROM {schema}.checkpoint ORDER BY seq DESC LIMIT 1"  # noqa: S608
    return db.execute(query).fetchone() or (0, "")


def _last(db: sqlite3.Connection, schema: str) -> int:
    (last,) = db.execute(f"SELECT max(seq) FROM {schema}.event").fetchone()  # noqa: S608
    return last or 0


def _cut(db: sqlite3.Connection, low: int, before: float) -> int:
    """The last event such that it and all before it are old enough; `low` if there is none.

    The last of all stays: the next one is counted from it, and hashed with it.
    """
    query = "SELECT min(seq) FROM main.event WHERE seq > ? AND at >= ?"
    (young,) = db.execute(query, (low, before)).fetchone()
    last = _last(db, "main") - 1
    return max(low, last if young is None else min(last, young - 1))


def _name(low: int) -> str:
    return f"events-{low + 1:010d}.db"


def _unfinished(directory: Path, low: int) -> Path | None:
    """The archive that a run left which was ended in between: to be filled, or taken out."""
    for file in sorted(directory.glob("events-*.db"), reverse=True):
        if not re.fullmatch(r"events-\d{10}\.db", file.name):
            continue
        with closing(Archive(file, live=True)) as archive:
            if archive.length() > low or file.name == _name(low):
                return file
    return None


def _make(db: sqlite3.Connection, file: Path, about: tuple[int, str, float, str]) -> None:
    """An empty archive with the ledger's own tables, which may be a later version's."""
    low, start, before, who = about
    fresh = file.with_suffix(".new")
    with suppress(FileNotFoundError):
        fresh.unlink()
    os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    tables = [
        sql
        for (sql,) in db.execute(
            "SELECT sql FROM main.sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' "
            "ORDER BY type = 'table' DESC, rowid"
        )
    ]
    (version,) = db.execute("PRAGMA main.user_version").fetchone()
    (node,) = db.execute("SELECT node FROM main.allocation LIMIT 1").fetchone() or ("",)
    earlier = db.execute("SELECT file FROM main.checkpoint WHERE seq = ?", (low,)).fetchone() or (
        "",
    )
    with closing(sqlite3.connect(fresh, isolation_level=None)) as made:
        made.execute("PRAGMA synchronous=EXTRA")
        with _writing(made):
            for statement in (*tables, _ABOUT):
                made.execute(statement)
            made.execute("INSERT INTO archived VALUES (?, ?, ?)", (time.time(), who, node))
            if low:
                made.execute(
                    "INSERT INTO checkpoint (seq, digest, file, before) VALUES (?, ?, ?, ?)",
                    (low, start, earlier[0], before),
                )
            made.execute(f"PRAGMA user_version={version}")
    if file.exists():
        raise LedgerFault(f"{file} exists already", remedy="see whose it is, and move it away")
    fresh.rename(file)
    descriptor = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _shrink(db: sqlite3.Connection, path: Path) -> tuple[int, str]:
    """Give freed space back to the file system; how many bytes, and why not, if so."""
    before = path.stat().st_size
    (pages,) = db.execute("PRAGMA main.page_count").fetchone()
    (free,) = db.execute("PRAGMA main.freelist_count").fetchone()
    if free * 10 < pages:
        return 0, ""
    until = time.monotonic() + SHRINK_TIME
    db.set_progress_handler(lambda: int(time.monotonic() > until), 10_000)
    try:
        db.execute("VACUUM main")
        db.execute("PRAGMA main.wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as problem:
        return 0, (
            f"the ledger's file was not made smaller ({problem}): the space of {free} pages is "
            "used for new events; the next run tries again"
        )
    finally:
        db.set_progress_handler(None, 0)
    return max(0, before - path.stat().st_size), ""


@contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[None]:
    # Not IMMEDIATE: that would lock the other file of the connection as well.
    db.execute("BEGIN")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as problem:
        raise LedgerFault(
            f"archive events of {path}: {problem}",
            remedy="whatever was moved is in the archive, the rest is in the ledger: free space, "
            "or end what holds it, and run it again",
        ) from problem


def summary(done: Archived) -> dict[str, Any]:
    """Plain data for --json."""
    return {
        "file": None if done.file is None else str(done.file),
        "events": done.events,
        "records": done.records,
        "carried": done.carried,
        "saved_bytes": done.saved,
        "note": done.note,
    }
