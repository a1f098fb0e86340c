"""Ledgers read for an audit: this node's, or copies collected from many. Never written.

A collected file is not migrated, and nothing appears beside it: SQLite is told
that it does not change (`immutable`), and where a write-ahead log was copied
along, both are copied once more, into a private directory.
"""

from __future__ import annotations

import glob
import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from slurm_mig.allocation import Allocation, Instance, Owner
from slurm_mig.audit.chain import ChainCheck, Event, check_allocation
from slurm_mig.audit.findings import Finding
from slurm_mig.errors import LedgerFault, LedgerTooNew, NotPermitted, UsageFault
from slurm_mig.ledger import BREAKING, SCHEMA, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_OWNER: Final = tuple(item.name for item in fields(Owner))
_PLAIN: Final = tuple(
    item.name for item in fields(Allocation) if item.name not in ("owner", "instances")
)
_INSTANCE: Final = tuple(item.name for item in fields(Instance))

#: Later than any time on record, in seconds since the epoch.
_FOREVER: Final = 1e18

_EVENT: Final = "seq, at, kind, allocation, job_id, detail, digest"


class Archive:
    """One ledger, open for reading."""

    def __init__(self, path: Path, *, live: bool = False) -> None:
        """Open; `live` where hooks may be writing to it, which takes the right to do so.

        Raises UsageFault for what is not there, NotPermitted, LedgerTooNew, or
        LedgerFault for what is no ledger.
        """
        self.path = path
        _check_readable(path)
        with ExitStack() as undo, self._guarded("open"):
            address = self._address(undo, live=live)
            self._db = sqlite3.connect(address, uri=True, isolation_level=None)
            undo.callback(self._db.close)
            self._check_version()
            # A column that came later is left to its default.
            self._owner = self._there("allocation", _OWNER)
            self._plain = self._there("allocation", _PLAIN)
            self._instance = self._there("instance", _INSTANCE)
            self._undo = undo.pop_all()

    def _address(self, undo: ExitStack, *, live: bool) -> str:
        if live:
            return f"file:{quote(str(self.path))}?mode=ro"
        path, log = self.path, self.path.with_name(f"{self.path.name}-wal")
        if log.exists() and log.stat().st_size:
            # Reading such a log needs a -shm file beside it, and closing may empty it.
            private = undo.enter_context(tempfile.TemporaryDirectory(prefix="slurm-mig-audit-"))
            for file in (path, log):
                shutil.copyfile(file, Path(private, file.name))
            return f"file:{quote(str(Path(private, path.name)))}"
        return f"file:{quote(str(path))}?mode=ro&immutable=1"

    def close(self) -> None:
        """Close the file, and remove the private copy if there is one."""
        self._undo.close()

    def _check_version(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        # Additions of a later version do no harm to who reads what he knows.
        if version // BREAKING > SCHEMA // BREAKING:
            raise LedgerTooNew(
                f"{self.path} has schema version {version}, this slurm-mig knows up to {SCHEMA} "
                "and its additions",
                remedy="read it with the slurm-mig that wrote it, or a newer one",
            )
        if version < 1:
            raise LedgerFault(f"{self.path} is no ledger of slurm-mig")

    def _there(self, table: str, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the columns that this ledger's version has."""
        have = {row[1] for row in self._db.execute(f"PRAGMA table_info({table})")}
        return tuple(name for name in names if name in have)

    # -- what is in it ---------------------------------------------------------

    def nodes(self) -> list[str]:
        """Nodes whose records it has; one, unless somebody renamed the node."""
        with self._guarded("read"):
            return [name for (name,) in self._db.execute("SELECT DISTINCT node FROM allocation")]

    def gpus(self) -> list[tuple[str, str, int, str]]:
        """(node, UUID, device minor, name) of every GPU in it."""
        query = "SELECT DISTINCT node, gpu_uuid, gpu_minor, gpu_name FROM allocation"
        with self._guarded("read"):
            return [tuple(row) for row in self._db.execute(query)]

    def last(self) -> tuple[int, float]:
        """Number and time of the last event; (0, 0.0) when there is none."""
        query = "SELECT seq, at FROM event ORDER BY seq DESC LIMIT 1"
        with self._guarded("read"):
            row = self._db.execute(query).fetchone()
        return (row[0], row[1]) if row else (0, 0.0)

    def begins(self) -> float | None:
        """Time of the first event; None when there is none."""
        with self._guarded("read"):
            row = self._db.execute("SELECT at FROM event ORDER BY seq LIMIT 1").fetchone()
        return row[0] if row else None

    def digest_of(self, seq: int) -> str | None:
        """Digest of an event; None when there is none of that number."""
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
    ) -> list[Allocation]:
        """Allocations that existed in [since, until), oldest first.

        `gpu` is a device minor or UUID, `uuid` a MIG UUID, `profile` the name of an
        instance, of a refused request or `whole GPU`, `outcome` a phase. A refusal
        exists for an instant.
        """
        by_minor = gpu is not None and gpu.isascii() and gpu.isdigit() and len(gpu) < 10
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
            ("a.gpu_minor = :gpu" if by_minor else "a.gpu_uuid = :gpu", "gpu", gpu),
            ("a.number IN (SELECT allocation FROM instance WHERE uuid = :uuid)", "uuid", uuid),
            (_PROFILE, "profile", profile),
            ("a.phase = :outcome", "outcome", outcome),
        ]
        given = [(clause, name, value) for clause, name, value in wanted if value is not None]
        where = " AND ".join(clause for clause, _, _ in given) or "1"
        with self._guarded("read"):
            return list(self._read(where, {name: value for _, name, value in given}))

    def _read(self, where: str, values: Mapping[str, object]) -> Iterator[Allocation]:
        columns = [f"a.{name}" for name in (*self._owner, *self._plain)]
        columns += [f"i.{name}" for name in self._instance]
        query = (
            f"SELECT {', '.join(columns)} FROM allocation a "  # noqa: S608
            f"LEFT JOIN instance i ON i.allocation = a.number WHERE {where} "
            "ORDER BY a.number, i.place"
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

    def check(self) -> tuple[ChainCheck, list[Finding]]:
        """The chain as it was looked at, and everything found in the file."""
        chain = ChainCheck(digest)
        with self._guarded("read"), self._one_state():
            (state,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            for event in self._events("seq"):
                chain.look(event)
            found = [] if state == "ok" else [Finding("damaged", f"{self.path}: {state}")]
            return chain, [*found, *chain.findings(), *self._check_allocations()]

    @contextmanager
    def _one_state(self) -> Iterator[None]:
        """Read as of one moment: what a hook wrote in between would be a finding."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def _check_allocations(self) -> Iterator[Finding]:
        """Merges both in the order of allocations: a million events do not fit in memory."""
        records = self._read("1", {})
        record = next(records, None)
        # Event 0 and below are of no allocation; their chain is checked all the same.
        events = groupby(self._events("allocation, seq"), key=lambda event: event.allocation)
        for number, group in events:
            while record is not None and record.number < number:
                yield from check_allocation(record.number, record, [])
                record = next(records, None)
            same = record if record is not None and record.number == number else None
            if number > 0:
                yield from check_allocation(number, same, list(group))
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


#: An instance of that profile, a refused request that names it, or a whole GPU.
_PROFILE: Final = (
    "(a.number IN (SELECT allocation FROM instance WHERE profile = :profile) "
    "OR (a.phase = 'refused' AND instr(',' || a.request, ',' || :profile || ':') > 0) "
    "OR (:profile = 'whole GPU' AND a.request LIKE 'whole GPU%'))"
)


def collected(patterns: Iterable[str]) -> list[Path]:
    """The files that patterns such as `DIR/*.db` name; UsageFault for one that names none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        paths = sorted(glob.glob(pattern))  # noqa: PTH207  # a whole pattern, absolute or not
        paths = [path for path in paths if not path.endswith(("-wal", "-shm"))]
        if not paths:
            raise UsageFault(f"--ledger {pattern!r} names no file")
        found |= dict.fromkeys(Path(path) for path in paths)
    return list(found)


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except PermissionError as problem:
        raise NotPermitted(f"read ledger {path}: {problem.strerror}") from problem
    except OSError as problem:
        raise UsageFault(f"read ledger {path}: {problem.strerror}") from problem
