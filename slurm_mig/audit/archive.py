"""Ledgers read for an audit: this node's, or copies collected from many. Never written.

A collected file is not migrated, and nothing appears beside it: SQLite is told
that it does not change (`immutable`), and where a write-ahead log was copied
along, both are copied once more, into a private directory.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import shutil
import sqlite3
import stat
import tempfile
from contextlib import ExitStack, closing, contextmanager
from dataclasses import MISSING, fields
from itertools import chain as chain_of
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

from slurm_mig.audit.chain import ChainCheck, check_allocation
from slurm_mig.audit.findings import AuditFinding, first_of_each
from slurm_mig.audit.rows import LATEST, is_text, is_time, is_whole, odd_record, short
from slurm_mig.errors import LedgerFault, LedgerTooNew, NotPermitted, UsageFault
from slurm_mig.mig.allocation import Allocation, Instance, Owner
from slurm_mig.state.event import Event, digest
from slurm_mig.state.schema import (
    BREAKING,
    INSTANCE_COLUMNS,
    MIGRATIONS,
    OWNER_COLUMNS,
    PLAIN_COLUMNS,
    SCHEMA,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slurm_mig.audit.copies import Key

T = TypeVar("T")

_PLAIN: Final = (*PLAIN_COLUMNS, "number")

#: Columns that every version has: nothing stands for them where somebody took them away.
_ALWAYS: Final = frozenset(
    item.name
    for item in (*fields(Owner), *fields(Allocation), *fields(Instance))
    if item.default is MISSING
)

#: Later than any time on record, in seconds since the epoch.
_FOREVER: Final = 1e18

#: Names of the files that `slurm-mig archive` makes, by the number of their first event.
ARCHIVES: Final = "events-*.db"

#: Events between two words to who draws a progress bar.
_TOLD_EVERY: Final = 1000

_EVENT: Final = "seq, at, kind, allocation, job_id, detail, digest"


def _guards(db: sqlite3.Connection) -> dict[str, str]:
    """Text of the event table's triggers by name."""
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'event'"
    return dict(db.execute(query).fetchall())


def _told(events: Iterable[Event], passed: Callable[[int], object]) -> Iterator[Event]:
    """The same events; `passed` hears of them a thousand at a time."""
    count = 0
    for event in events:
        yield event
        count += 1
        if count == _TOLD_EVERY:
            passed(count)
            count = 0
    passed(count)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


class Archive:
    """One ledger, open for reading."""

    def __init__(self, path: Path, *, live: bool = False) -> None:
        """Open; `live` where hooks may be writing to it, which takes the right to do so.

        Raises UsageFault for what is not there, NotPermitted, LedgerTooNew, or
        LedgerFault for what is no ledger.
        """
        self.path = path
        self.live = live
        _check_readable(path)
        with ExitStack() as undo, self._guarded("open"):
            address = self._address(undo, live=live)
            self._db = sqlite3.connect(address, uri=True, isolation_level=None)
            undo.callback(self._db.close)
            # An edited text that is no UTF-8 must be named by its row, not end the reading.
            self._db.text_factory = _text
            self._check_version()
            if live:
                # All questions are answered as of one moment: what `slurm-mig archive` moves
                # meanwhile would else be met twice, or nowhere.
                self._db.execute("BEGIN")
            self.start, self.begins_with, self.before, self.earlier = self._beginning()
            #: Whether it has what was moved out of a ledger, not a node's present truth.
            self.archived = self._has_table("archived")
            # A column that came later is left to its default.
            self._owner = self._there("allocation", OWNER_COLUMNS)
            self._plain = self._there("allocation", _PLAIN)
            self._instance = self._there("instance", INSTANCE_COLUMNS)
            self._undo = undo.pop_all()

    def _address(self, undo: ExitStack, *, live: bool) -> str:
        path = self.path
        names = (path.with_name(f"{path.name}-{end}") for end in ("wal", "journal"))
        logs = [log for log in names if log.exists() and log.stat().st_size]
        if live:
            # What an archiving left that was killed is undone by whoever reads first.
            undone = any(log.name.endswith("-journal") for log in logs)
            return f"file:{quote(str(path))}?mode={'rw' if undone else 'ro'}"
        if logs:
            # Reading such a log needs a -shm file beside it, and closing may empty it.
            private = undo.enter_context(tempfile.TemporaryDirectory(prefix="slurm-mig-audit-"))
            for file in (path, *logs):
                shutil.copyfile(file, Path(private, file.name))
            return f"file:{quote(str(Path(private, path.name)))}"
        return f"file:{quote(str(path))}?mode=ro&immutable=1"

    def _has_table(self, name: str) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self._db.execute(query, (name,)).fetchone() is not None

    def _beginning(self) -> tuple[int, str, float, str]:
        """Number and digest of the event before its first one; before when, and where that is."""
        if not self._has_table("checkpoint"):
            return 0, "", 0.0, ""
        query = "SELECT seq, digest, before, file FROM checkpoint ORDER BY seq DESC LIMIT 1"
        row: tuple[int, str, float, str] | None = self._db.execute(query).fetchone()
        if row is None:
            return 0, "", 0.0, ""
        if not (is_whole(row[0]) and is_text(row[1]) and is_time(row[2]) and is_text(row[3])):
            raise self._edited(f"its checkpoint is {short(tuple(row))}, which is none")
        return row

    def close(self) -> None:
        """Close the file, and remove the private copy if there is one."""
        self._undo.close()

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        # Additions of a later version do no harm to a reader who takes only known columns.
        if version // BREAKING > SCHEMA // BREAKING:
            raise LedgerTooNew(
                f"{self.path} has schema version {version}, this slurm-mig knows up to {SCHEMA} "
                "and its additions",
                remedy="read it with the slurm-mig that wrote it, or a newer one",
            )
        if version < 1:
            raise LedgerFault(f"{self.path} is no ledger of slurm-mig")

    def _there(self, table: str, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the columns that its version has; LedgerFault where one was taken away."""
        have = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
        if missing := [name for name in names if name in _ALWAYS and name not in have]:
            raise LedgerFault(
                f"{self.path} is no ledger of slurm-mig: table {table} has no {', '.join(missing)}"
            )
        return tuple(name for name in names if name in have)

    # -- what is in it ---------------------------------------------------------

    def nodes(self) -> list[str]:
        """Nodes whose records it has; one, unless somebody renamed the node."""
        with self._guarded("read"):
            names = self._db.execute("SELECT DISTINCT node FROM allocation").fetchall()
        return [name for (name,) in names if is_text(name)]

    def gpus(self) -> list[tuple[str, str, int, str]]:
        """(node, UUID, device minor, name) of every GPU in it."""
        columns = "node, gpu_uuid, gpu_minor, gpu_name"
        query = f"SELECT {columns}, min(number) FROM allocation GROUP BY {columns}"  # noqa: S608
        with self._guarded("read"):
            rows = self._db.execute(query).fetchall()
        for node, uuid, minor, name, number in rows:
            if not (is_text(node) and is_text(uuid) and is_whole(minor) and is_text(name)):
                what = ", ".join(map(short, (node, uuid, minor, name)))
                raise self._edited(f"allocation {number}: {what} are no node and GPU")
        return [row[:4] for row in rows]

    def last(self) -> tuple[int, float]:
        """Number and time of the last event; (0, 0.0) when there is none."""
        query = "SELECT seq, at FROM event ORDER BY seq DESC LIMIT 1"
        with self._guarded("read"):
            seq, at = self._db.execute(query).fetchone() or (0, 0.0)
        if not is_time(at):
            raise self._edited(f"event {seq}: at is {short(at)}, which is no time")
        return seq, at

    def length(self) -> int:
        """Number of the last event; 0 when there is none."""
        with self._guarded("read"):
            (seq,) = self._db.execute("SELECT max(seq) FROM event").fetchone()
        return seq or self.start

    def first(self) -> int:
        """Number of the event before its first one, whose digest it knows; 0 from the beginning."""
        return self.start

    def size(self) -> int:
        """How many records it has."""
        with self._guarded("read"):
            (count,) = self._db.execute("SELECT count(*) FROM allocation").fetchone()
        return int(count)

    def ends(self) -> list[Key]:
        """Keys of the first and the last record, for who looks for copies of one ledger."""
        with self._guarded("read"):
            ends = self._db.execute("SELECT min(number), max(number) FROM allocation").fetchone()
        return [key for number in ends if number is not None and (key := self.key(number))]

    def key(self, number: int) -> Key | None:
        """Number, node and time of creation of a record; None when there is none."""
        query = "SELECT number, node, created FROM allocation WHERE number = ?"
        with self._guarded("read"):
            row = self._db.execute(query, (number,)).fetchone()
        return None if row is None else (row[0], row[1], row[2])

    def digest_of(self, seq: int) -> str | None:
        """Digest of an event, or of the one before its first; None for any other."""
        if seq == self.start:
            return self.begins_with
        with self._guarded("read"):
            row = self._db.execute("SELECT digest FROM event WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else str(row[0])

    def find(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        job_id: int | None = None,
        user: str | None = None,
        account: str | None = None,
        node: str | None = None,
        gpu: str | None = None,
        uuid: str | None = None,
        profile: str | None = None,
        outcome: str | None = None,
    ) -> Iterator[Allocation]:
        """Allocations that existed in [since, until), oldest first, each read when it is needed.

        `gpu` is a device minor, or how a UUID begins; `uuid` how a MIG UUID begins, in
        the driver's spelling, or a GPU's; `profile` the name of an instance, of a
        refused request or `whole GPU`, `outcome` a phase. A refusal exists for an
        instant.
        """
        by_minor = gpu is not None and gpu.isascii() and gpu.isdigit() and len(gpu) < 10
        of_gpu = uuid is not None and uuid.startswith("GPU-")
        if since is not None and until is None:
            # Without an upper bound SQLite would not take the index of both times.
            until = _FOREVER
        wanted: list[tuple[str, str, object]] = [
            ("a.created < :until", "until", until),
            ("(a.ended IS NULL OR a.ended > :since OR a.created >= :since)", "since", since),
            ("a.job_id = :job_id", "job_id", job_id),
            ("a.user = :user", "user", user),
            ("a.account = :account", "account", account),
            ("a.node = :node", "node", node),
            ("a.gpu_minor = :gpu" if by_minor else _BEGINS.format("gpu"), "gpu", gpu),
            (_BEGINS.format("uuid") if of_gpu else _INSTANCE_BEGINS, "uuid", uuid),
            (_PROFILE, "profile", profile),
            ("a.phase = :outcome", "outcome", outcome),
        ]
        given = [(clause, name, value) for clause, name, value in wanted if value is not None]
        where = " AND ".join(clause for clause, _, _ in given) or "1"
        with self._guarded("read"):
            if since is not None or until is not None:
                self._check_times()
            values = {name: value for _, name, value in given}
            for record in self._read(where, values, "a.created, a.node, a.number"):
                if what := odd_record(record):
                    raise self._edited(f"allocation {record.number}: {what}")
                yield record

    def _check_times(self) -> None:
        """LedgerFault for a record whose times are none: a span would leave it out unseen."""
        for name in ("created", "ended"):
            where = f"{name} NOT BETWEEN 0 AND ? LIMIT 1"
            query = f"SELECT number, {name} FROM allocation WHERE {where}"  # noqa: S608
            for number, value in self._db.execute(query, (LATEST,)):
                what = f"{name} is {short(value)}, which is no time"
                raise self._edited(f"allocation {number}: {what}")

    def _edited(self, what: str) -> LedgerFault:
        return LedgerFault(
            f"ledger {self.path}: {what}",
            remedy="it was edited or damaged: `slurm-mig audit --check` says what else differs",
        )

    def _read(
        self, where: str, values: Mapping[str, object], order: str = "a.number"
    ) -> Iterator[Allocation]:
        columns = [f"a.{name}" for name in (*self._owner, *self._plain)]
        columns += [f"i.{name}" for name in self._instance]
        query = (
            f"SELECT {', '.join(columns)} FROM allocation a "  # noqa: S608
            f"LEFT JOIN instance i ON i.allocation = a.number WHERE {where} "
            f"ORDER BY {order}, i.place"
        )
        number = len(self._owner) + self._plain.index("number")
        for _, group in groupby(self._db.execute(query, values), key=lambda row: row[number]):
            yield self._allocation(list(group))

    def _allocation(self, rows: Sequence[tuple[Any, ...]]) -> Allocation:
        first, plain = rows[0], len(self._owner)
        behind = plain + len(self._plain)
        return Allocation(
            owner=Owner(**dict(zip(self._owner, first[:plain], strict=True))),
            instances=tuple(
                Instance(**dict(zip(self._instance, row[behind:], strict=True)))
                for row in rows
                if row[behind] is not None
            ),
            **dict(zip(self._plain, first[plain:behind], strict=True)),
        )

    # -- integrity ---------------------------------------------------------------

    def check(
        self, passed: Callable[[int], object] = lambda _: None
    ) -> tuple[ChainCheck, list[AuditFinding]]:
        """The chain as it was looked at, and what was found in the file; of each kind the first.

        `passed` is told of every event twice, of many at once: each is looked at in its chain,
        and with its allocation.
        """
        chain = ChainCheck(digest, self.start, self.begins_with)
        with self._guarded("read"), self._one_state():
            (state,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            for event in _told(self._events("seq"), passed):
                chain.look(event)
            found = [] if state == "ok" else [AuditFinding("damaged", f"{self.path}: {state}")]
            found += chain.findings()
            named = {item.event for item in found if item.kind == "changed"} - {None}
            more = (
                item
                for item in self._check_allocations(passed)
                if item.kind != "changed" or item.event not in named
            )
            return chain, first_of_each(chain_of(found, more, self._check_guards()))

    def _check_guards(self) -> Iterator[AuditFinding]:
        """Whether the triggers that let nobody change an event by mistake are as they were made."""
        there = _guards(self._db)
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        with closing(sqlite3.connect(":memory:")) as db:
            for step in sorted(key for key in MIGRATIONS if key < version):
                db.executescript(MIGRATIONS[step])
            made = _guards(db)
        # A later version's may read otherwise.
        lost = [
            name
            for name, text in made.items()
            if name not in there or (version <= SCHEMA and there[name] != text)
        ]
        if lost:
            names = ", ".join(sorted(lost))
            text = f"triggers {names} are gone, or others: events can be edited"
            yield AuditFinding("unguarded", text)

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        """Read as of one moment: what a hook wrote in between would be a finding."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def _check_allocations(self, passed: Callable[[int], object]) -> Iterator[AuditFinding]:
        """Merges both in the order of allocations: a million events do not fit in memory."""
        records = self._read("1", {})
        record = next(records, None)
        # Event 0 and below are of no allocation; their chain is checked all the same.
        ordered = _told(self._events("allocation, seq"), passed)
        events = groupby(ordered, key=lambda event: event.allocation)
        for number, group in events:
            if not is_whole(number):
                # No number of an allocation; the chain names its events.
                continue
            while record is not None and record.number < number:
                yield from check_allocation(record.number, record, [])
                record = next(records, None)
            same = record if record is not None and record.number == number else None
            if number > 0:
                yield from check_allocation(number, same, group, leaves=self.archived)
            if same is not None:
                record = next(records, None)
        while record is not None:
            yield from check_allocation(record.number, record, [])
            record = next(records, None)

    def _events(self, order: str) -> Iterator[Event]:
        for row in self._db.execute(f"SELECT {_EVENT} FROM event ORDER BY {order}"):  # noqa: S608
            yield Event(*row)

    @contextmanager
    def _guarded(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            raise LedgerFault(
                f"{action} ledger {self.path}: {problem}",
                remedy="copy it again: with its -wal file, or while no hook writes to it",
            ) from problem


#: A GPU's UUID begins like that, however it is written.
_BEGINS: Final = "lower(substr(a.gpu_uuid, 1, length(:{0}))) = lower(:{0})"

#: An instance's does: between the text and the last one that begins with it, for the index.
_INSTANCE_BEGINS: Final = (
    "a.number IN (SELECT allocation FROM instance "
    "WHERE uuid BETWEEN :uuid AND :uuid || char(1114111))"
)

#: An instance of that profile, a refused request that names it, or a whole GPU.
_PROFILE: Final = (
    "(a.number IN (SELECT allocation FROM instance WHERE profile = :profile) "
    "OR (a.phase = 'refused' AND instr(',' || a.request, ',' || :profile || ':') > 0) "
    "OR (:profile = 'whole GPU' AND a.request LIKE 'whole GPU%'))"
)


def collected(patterns: Iterable[str]) -> list[Path]:
    """The files that patterns such as `DIR/*.db` name; UsageFault for one that names none.

    NotPermitted for a directory that may not be read: an audit without a node's
    ledger would look like one of a node where nobody held anything.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = sorted(_matching(pattern))
        paths = [path for path in paths if not path.endswith(("-wal", "-shm"))]
        if not paths:
            raise UsageFault(f"--ledger {pattern!r} names no file")
        found |= dict.fromkeys(Path(path) for path in paths)
    return list(found)


def _matching(pattern: str) -> list[str]:
    """As glob.glob() has it, which passes over what it may not read."""
    if not glob.has_magic(pattern):
        return [pattern] if _exists(pattern) else []
    directory, name = os.path.split(pattern)
    # A pattern that ends with a slash names directories alone.
    places = _matching(directory) if glob.has_magic(directory) else [directory]
    if not glob.has_magic(name):
        paths = [os.path.join(place, name) for place in places]  # noqa: PTH118  # as glob has it
        return [path for path in paths if _exists(path)]
    return [
        os.path.join(place, entry)  # noqa: PTH118
        for place in places
        for entry in fnmatch.filter(_entries(place or "."), name)
        if name.startswith(".") or not entry.startswith(".")
    ]


def _exists(path: str) -> bool:
    return _tried(os.lstat, path, os.path.dirname(path) or ".") is not None  # noqa: PTH120


def _entries(directory: str) -> list[str]:
    return _tried(os.listdir, directory, directory) or []


def _tried(call: Callable[[str], T], path: str, directory: str) -> T | None:
    """None for what is not there, and for nothing else."""
    try:
        return call(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as problem:
        raise NotPermitted(f"--ledger: read directory {directory}: {problem.strerror}") from problem
    except OSError as problem:
        raise UsageFault(f"--ledger: read directory {directory}: {problem.strerror}") from problem


def _check_readable(path: Path) -> None:
    """Before SQLite opens it, which waits for ever at a FIFO that nobody writes to."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageFault(f"read ledger {path}: it is no regular file")
        # Nor does this wait, should it have become one meanwhile.
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except PermissionError as problem:
        raise NotPermitted(f"read ledger {path}: {problem.strerror}") from problem
    except OSError as problem:
        raise UsageFault(f"read ledger {path}: {problem.strerror}") from problem
