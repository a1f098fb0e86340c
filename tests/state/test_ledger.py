"""The ledger: durable, atomic, append-only, and readable by nobody else."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from slurm_mig import __version__
from slurm_mig.errors import LedgerFault, LedgerTooNew
from slurm_mig.mig import allocation as phases
from slurm_mig.state.ledger import Ledger, Retired
from slurm_mig.state.schema import BREAKING, CHECKPOINT, MIGRATIONS, SCHEMA
from tests.kit.ledgers import Clock, broken_event, everything, planned
from tests.kit.records import ALLOCATIONS

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier
    from pathlib import Path

    from slurm_mig.mig.allocation import Allocation

pytestmark = pytest.mark.root


def test_a_life(ledger: Ledger, clock: Clock) -> None:
    """Planned, active with ids, releasing, released: each step is there to be read."""
    record = ledger.add(planned(), phases.PLANNED)
    assert (record.number, record.created) == (1, 1000.0)
    assert ledger.open_on("GPU-a") == ledger.open_of_job(7) == ledger.all_open() == [record]

    made = replace(record.instances[0], gi_id=2, ci_id=0, uuid="MIG-1")
    record = ledger.move(record.with_instance(0, made), phases.ACTIVE)
    assert ledger.find(1) == record

    clock.now = 2000.0
    record = ledger.move(record, phases.RELEASING)
    record = ledger.finish(record, phases.RELEASED, "the job ended")
    assert ledger.all_open() == []
    assert (ledger.find(1).ended, ledger.find(1).reason) == (2000.0, "the job ended")
    assert broken_event(ledger) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(record=ALLOCATIONS)
def test_every_record_is_read_as_it_was_written(ledger: Ledger, record: Allocation) -> None:
    """Any job id, text or number."""
    added = ledger.add(record, "test")
    assert ledger.find(added.number) == added
    assert added.open or added.ended == added.created


def test_a_refusal_is_closed_at_once(ledger: Ledger) -> None:
    """It never shows as open."""
    refused = replace(planned(), phase=phases.REFUSED, reason="no room", instances=())
    assert ledger.add(refused, phases.REFUSED).ended == 1000.0
    assert ledger.all_open() == []
    assert ledger.of_job(7)[0].reason == "no room"


def test_a_failed_write_leaves_nothing(ledger: Ledger) -> None:
    """Record, instances and event are one transaction."""
    record = ledger.add(planned(), phases.PLANNED)
    ledger._db.execute(
        "CREATE TRIGGER no BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(LedgerFault, match="write ledger"):
        ledger.move(record, phases.ACTIVE)
    with pytest.raises(LedgerFault):
        ledger.add(planned(8), phases.PLANNED)
    assert [item.phase for item in everything(ledger)] == [phases.PLANNED]


def test_events_cannot_be_changed_through_the_ledger(ledger: Ledger) -> None:
    """Not even by mistake."""
    ledger.add(planned(), phases.PLANNED)
    for statement in ("UPDATE event SET kind = 'x'", "DELETE FROM event"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger._db.execute(statement)


@pytest.mark.parametrize(
    ("tampering", "broken"),
    [
        ("UPDATE event SET detail = '{}' WHERE seq = 2", 2),
        ("UPDATE event SET at = 5 WHERE seq = 1", 1),
        ("DELETE FROM event WHERE seq = 2", 2),
        ("DELETE FROM event WHERE seq = 1", 1),
        ("UPDATE event SET digest = 'x' WHERE seq = 3", 3),
        ("UPDATE event SET job_id = 1 WHERE seq = 3", 3),
    ],
)
def test_tampering_shows(ledger: Ledger, tampering: str, broken: int) -> None:
    """Whoever has the rights to drop the triggers first: the chain names the row."""
    for job in (7, 8, 9):
        ledger.add(planned(job), phases.PLANNED)
    ledger._db.execute("DROP TRIGGER event_no_update")
    ledger._db.execute("DROP TRIGGER event_no_delete")
    ledger._db.execute(tampering)
    assert broken_event(ledger) == broken


def test_the_head_of_the_chain(ledger: Ledger) -> None:
    """Number and first digits of the last event, as a log line has it; none without events."""
    assert ledger.head() == ""
    ledger.add(planned(), phases.PLANNED)
    ledger.add(planned(8), phases.PLANNED)
    (last,) = ledger._db.execute("SELECT digest FROM event WHERE seq = 2").fetchone()
    assert ledger.head() == f"2:{last[:16]}"


def test_a_ledger_of_the_first_schema_gets_its_indexes(tmp_path: Path) -> None:
    """Without a word changed."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(MIGRATIONS[0])
        db.execute("PRAGMA user_version=1")
    ledger = Ledger(path)
    indexes = {row[0] for row in ledger._db.execute("SELECT name FROM sqlite_schema")}
    assert {"allocation_time", "allocation_user", "allocation_account"} <= indexes
    assert ledger._db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA
    ledger.close()


def test_the_file_is_roots_alone(ledger: Ledger, tmp_path: Path) -> None:
    """And what SQLite puts beside it."""
    ledger.add(planned(), phases.PLANNED)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    files = sorted((tmp_path / "state").iterdir())
    assert [path.name for path in files] == ["ledger.db", "ledger.db-shm", "ledger.db-wal"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)


def test_a_ledger_from_the_future(tmp_path: Path) -> None:
    """Broken with: refused with both versions and what to do; not a byte is changed."""
    path = tmp_path / "ledger.db"
    Ledger(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={BREAKING + 1}")
    before = path.read_bytes()
    says = f"schema version {BREAKING + 1}.* {__version__} knows up to {SCHEMA}.*install"
    with pytest.raises(LedgerTooNew, match=says):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_retired_gpu(ledger: Ledger, clock: Clock) -> None:
    """Marked, marked again, and readmitted; each step is an event in the chain."""
    assert ledger.retired() == {}
    ledger.retire("GPU-a", "alice", "")
    clock.now = 2000.0
    mark = ledger.retire("GPU-a", "bob", "3g.40gb@4")
    assert (
        ledger.retired()
        == {"GPU-a": mark}
        == {"GPU-a": Retired("GPU-a", 2000.0, "bob", "3g.40gb@4")}
    )
    ledger.readmit("GPU-a", "bob")
    assert ledger.retired() == {}
    kinds = ledger._db.execute("SELECT kind FROM event ORDER BY seq").fetchall()
    assert [row["kind"] for row in kinds] == ["retired", "retired", "readmitted"]
    assert broken_event(ledger) is None


@pytest.mark.parametrize("content", [b"garbage" * 500, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    """A node fault with the file's name and what to do; the file is kept as it is."""
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    path.chmod(0o600)
    told = "the file is damaged, .* reconcile --accept-older"
    with pytest.raises(LedgerFault, match=told) as caught:
        Ledger(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_full_disk(tmp_path: Path) -> None:
    """Writing fails as a node fault; what was there stays readable."""
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.add(planned(), phases.PLANNED)
    ledger._db.execute("PRAGMA max_page_count=1")
    with pytest.raises(LedgerFault, match="full"):
        for job in range(1000):
            ledger.add(planned(job), phases.PLANNED)
    assert ledger.find(1).owner.job_id == 7
    assert broken_event(ledger) is None
    ledger.close()


def test_a_link_in_its_place(tmp_path: Path) -> None:
    """Not followed: it could lead root to write anywhere."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/ledger.db").symlink_to(tmp_path / "victim")
    with pytest.raises(LedgerFault):
        Ledger(tmp_path / "state/ledger.db")
    assert not (tmp_path / "victim").exists()


def test_no_such_allocation(ledger: Ledger) -> None:
    """Asked for or saved."""
    with pytest.raises(LedgerFault, match="no allocation 5"):
        ledger.find(5)
    with pytest.raises(LedgerFault, match="no allocation 5"):
        ledger.save(replace(planned(), number=5), "x")


def _write(path: Path, count: int) -> None:
    for job in range(count):
        ledger = Ledger(path)
        ledger.add(planned(job), phases.PLANNED)
        ledger.close()


def test_many_hooks_at_once(tmp_path: Path) -> None:
    """Four processes that open, make and write a ledger together lose nothing."""
    context = get_context("spawn")
    path = tmp_path / "state/ledger.db"
    workers = [context.Process(target=_write, args=(path, 15)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    ledger = Ledger(path)
    assert len(ledger.all_open()) == 60
    assert broken_event(ledger) is None
    ledger.close()


def _open_together(root: Path, barrier: Barrier, count: int) -> None:
    for number in range(count):
        barrier.wait(60)
        ledger = Ledger(root / str(number) / "ledger.db")
        ledger.add(planned(), phases.PLANNED)
        ledger.close()


def test_a_new_ledger_opened_by_all_at_the_same_moment(tmp_path: Path) -> None:
    """The first jobs of a node: SQLite says "locked" at once then, and must be asked again."""
    context = get_context("fork")
    barrier = context.Barrier(6)
    workers = [
        context.Process(target=_open_together, args=(tmp_path, barrier, 40)) for _ in range(6)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 6
    for number in range(40):
        ledger = Ledger(tmp_path / str(number) / "ledger.db")
        assert len(ledger.all_open()) == 6
        ledger.close()


@pytest.mark.parametrize("statement", range(12))
def test_a_power_cut_at_any_write(tmp_path: Path, statement: int) -> None:
    """Killed before its n-th statement, a writer leaves whole transactions only."""
    path = tmp_path / "state/ledger.db"
    pid = os.fork()
    if pid == 0:
        ledger = Ledger(path)
        record = ledger.add(planned(), phases.PLANNED)
        left = [statement]

        def count(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)

        ledger._db.set_trace_callback(count)
        record = ledger.move(record, phases.ACTIVE)
        os._exit(0)
    os.waitpid(pid, 0)
    ledger = Ledger(path)
    (record,) = everything(ledger)
    events = ledger._db.execute("SELECT kind FROM event ORDER BY seq").fetchall()
    assert record.phase == events[-1]["kind"]
    assert len(record.instances) == 1
    assert broken_event(ledger) is None
    ledger.close()


@pytest.mark.root
@pytest.mark.timeout(20)
@pytest.mark.parametrize("which", ["", "-wal", "-shm"])
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "directory", "owner", "0602"])
def test_only_a_file_of_its_own(tmp_path: Path, which: str, kind: str) -> None:
    """Neither followed, nor waited for, nor shared: a fault that names it, in whichever file."""
    state = tmp_path / "state"
    Ledger(state / "l.db").close()
    path = state / f"l.db{which}"
    (tmp_path / "victim").write_text("")
    if path.exists():
        path.rename(tmp_path / "real")
    if kind == "link":
        path.symlink_to(tmp_path / "victim")
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "directory":
        path.mkdir()
    else:
        path.touch(mode=0o600)
    if kind == "hard link":
        os.link(path, tmp_path / "second")
    elif kind == "owner":
        os.chown(path, 64001, 64001)
    elif kind == "0602":
        path.chmod(0o602)
    with pytest.raises(LedgerFault, match=str(path)):
        Ledger(state / "l.db")
    assert (tmp_path / "victim").read_text() == ""


@pytest.mark.root
def test_one_that_others_could_read_is_narrowed(tmp_path: Path) -> None:
    """Restored from a backup, say."""
    Ledger(tmp_path / "s/l.db").close()
    (tmp_path / "s/l.db").chmod(0o644)
    Ledger(tmp_path / "s/l.db").close()
    assert stat.S_IMODE((tmp_path / "s/l.db").stat().st_mode) == 0o600


@pytest.mark.root
def test_the_check_drops_no_lock(tmp_path: Path) -> None:
    """A second ledger of one process leaves the first one's transaction its lock (fcntl(2))."""
    first = Ledger(tmp_path / "s/l.db")
    first._db.execute("BEGIN IMMEDIATE")
    Ledger(tmp_path / "s/l.db").close()
    pid = os.fork()
    if pid == 0:
        other = sqlite3.connect(tmp_path / "s/l.db", timeout=0)
        try:
            other.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    first._db.execute("ROLLBACK")
    first.close()


def as_a_hook(path: Path, *, beside: bool = False) -> None:
    """A process that writes much and ends without closing, as hooks do."""
    if os.fork() == 0:
        ledger = Ledger(path)
        for _ in range(5):
            ledger.add(replace(planned(), reason="x" * (CHECKPOINT // 10)), phases.PLANNED)
        if beside:
            reader = sqlite3.connect(path)
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM event").fetchall()
        ledger.shorten()
        os._exit(len(ledger.all_open()) % 251)
    os.wait()


def test_the_wal_stays_short(tmp_path: Path) -> None:
    """How far it is copied goes with its last process: it has to be emptied, not copied alone.

    Not while somebody reads; and nothing of it is lost.
    """
    path, wal = tmp_path / "state/ledger.db", tmp_path / "state/ledger.db-wal"
    sizes = []
    for number in range(6):
        as_a_hook(path, beside=number < 2)
        sizes.append(wal.stat().st_size // CHECKPOINT)
    assert sizes[1] > 1
    assert max(sizes[2:]) <= 1
    with closing(Ledger(path)) as ledger:
        assert len(ledger.all_open()) == 30
