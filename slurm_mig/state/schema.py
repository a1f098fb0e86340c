"""The ledger's tables, and how those of an earlier version become them."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

from slurm_mig.mig.allocation import PLANNED, RELEASING

if TYPE_CHECKING:
    from collections.abc import Iterator


SCHEMA: Final = 3

#: Columns of an allocation: its owner's, and its own beside the number; and of an instance.
OWNER_COLUMNS: Final = ("job_id", "restart", "sluid", "uid", "gid", "user", "account", "het_leader")
PLAIN_COLUMNS: Final = (
    "node",
    "gpu_uuid",
    "gpu_minor",
    "gpu_name",
    "boot_id",
    "request",
    "phase",
    "reason",
    "created",
    "ended",
)
ALLOCATION_COLUMNS: Final = (*OWNER_COLUMNS, *PLAIN_COLUMNS)
INSTANCE_COLUMNS: Final = ("profile", "profile_id", "start", "size", "gi_id", "ci_id", "uuid")

#: One breaking change in `user_version`; what is below it counts additions.
BREAKING: Final = 1000

#: Size of the WAL, in bytes, at which it is copied into the file. Whoever opens the ledger after
#: a hook reads the WAL, which takes some milliseconds by then.
CHECKPOINT: Final = 1 << 20

#: Kinds of steps that only the next hook needs to know of.
PASSING: Final = (PLANNED, RELEASING)
_CREATE: Final = """
CREATE TABLE allocation (
    number    INTEGER PRIMARY KEY,
    job_id    INTEGER,
    restart   INTEGER NOT NULL,
    sluid     TEXT NOT NULL,
    uid       INTEGER NOT NULL,
    gid       INTEGER NOT NULL,
    user      TEXT NOT NULL,
    account   TEXT NOT NULL,
    het_leader INTEGER,
    node      TEXT NOT NULL,
    gpu_uuid  TEXT NOT NULL,
    gpu_minor INTEGER NOT NULL,
    gpu_name  TEXT NOT NULL,
    boot_id   TEXT NOT NULL,
    request   TEXT NOT NULL,
    phase     TEXT NOT NULL,
    reason    TEXT NOT NULL,
    created   REAL NOT NULL,
    ended     REAL
);
CREATE INDEX allocation_job ON allocation (job_id);
CREATE INDEX allocation_open ON allocation (phase) WHERE ended IS NULL;
CREATE TABLE instance (
    allocation INTEGER NOT NULL REFERENCES allocation (number),
    place      INTEGER NOT NULL,
    profile    TEXT NOT NULL,
    profile_id INTEGER NOT NULL,
    start      INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    gi_id      INTEGER,
    ci_id      INTEGER,
    uuid       TEXT,
    PRIMARY KEY (allocation, place)
) WITHOUT ROWID;
CREATE INDEX instance_uuid ON instance (uuid);
CREATE TABLE event (
    seq        INTEGER PRIMARY KEY,
    at         REAL NOT NULL,
    kind       TEXT NOT NULL,
    allocation INTEGER NOT NULL,
    job_id     INTEGER,
    detail     TEXT NOT NULL,
    digest     TEXT NOT NULL
);
CREATE INDEX event_allocation ON event (allocation);
CREATE TRIGGER event_no_update BEFORE UPDATE ON event
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""

#: GPUs whose management has ended: since when, by whom, and the layout they were left in.
_RETIRED: Final = """
CREATE TABLE retired (
    gpu_uuid TEXT PRIMARY KEY,
    at       REAL NOT NULL,
    who      TEXT NOT NULL,
    layout   TEXT NOT NULL
) WITHOUT ROWID;
"""

#: What `slurm-mig audit` asks for: a time, a user, an account. Both times are in the first, so
#: that a year of others' rows is passed over without reading them.
_AUDIT_INDEXES: Final = """
CREATE INDEX allocation_time ON allocation (created, ended);
CREATE INDEX allocation_user ON allocation (user, created);
CREATE INDEX allocation_account ON allocation (account, created);
"""

#: How far `slurm-mig archive` has moved events away: up to `seq`, all from before the time
#: `before`, into `file`. The chain that is left goes on from `digest`. In an archive the row says
#: where its own chain begins. What lies behind no checkpoint can still not be removed.
_CHECKPOINT: Final = """
CREATE TABLE checkpoint (
    seq    INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    file   TEXT NOT NULL,
    before REAL NOT NULL
);
DROP TRIGGER event_no_delete;
CREATE TRIGGER event_no_delete BEFORE DELETE ON event
    WHEN OLD.seq > (SELECT coalesce(max(seq), 0) FROM checkpoint)
    BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
"""

#: Statements that lead from each schema version to the next key, and from the last to SCHEMA.
MIGRATIONS: Final[dict[int, str]] = {0: _CREATE, 1: _RETIRED + _AUDIT_INDEXES, 2: _CHECKPOINT}


def statements(script: str) -> Iterator[str]:
    """Single statements: executescript() would commit between them."""
    pending = ""
    for line in script.strip().splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
