"""Ledgers read for an audit: every version, from any medium, and nothing is written."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import sqlite3
import stat
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slurm_mig.audit.archive import _INSTANCE_BEGINS, Archive, collected
from slurm_mig.errors import LedgerFault, LedgerTooNew, NotPermitted, UsageFault
from slurm_mig.mig import allocation as phases
from slurm_mig.state.event import digest
from slurm_mig.state.ledger import Ledger
from slurm_mig.state.schema import BREAKING, MIGRATIONS, SCHEMA
from tests.kit.ledgers import Clock, live, planned
from tests.kit.records import ALLOCATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.mig.allocation import Allocation

pytestmark = pytest.mark.root


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[[], Archive]]:
    """The ledger of `ledger`, open for an audit."""
    with ExitStack() as stack:

        def opened() -> Archive:
            archive = Archive(tmp_path / "state/ledger.db", live=True)
            stack.callback(archive.close)
            return archive

        yield opened


def numbers(archive: Archive, **filters: object) -> list[int]:
    return [item.number for item in archive.find(**filters)]  # type: ignore[arg-type]


def snapshot(directory: Path) -> dict[str, tuple[int, str]]:
    """Every file with its time and content."""
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.iterdir()
    }


# -- questions -----------------------------------------------------------------


def test_filters(ledger: Ledger, clock: Clock, read: Callable[[], Archive]) -> None:
    """Each alone, and together."""
    owner = replace(planned().owner, account="physics")
    live(ledger, clock, replace(planned(7), owner=owner), 1000, 2000)
    live(ledger, clock, planned(8, user="bob", gpu="GPU-b"), 3000, 4000)
    clock.now = 3500
    refused = replace(planned(9), phase=phases.REFUSED, instances=(), request="1g.10gb:2,2g.20gb:1")
    ledger.add(refused, phases.REFUSED)
    ledger.add(replace(planned(10), node="n2", gpu_minor=3), phases.PLANNED)
    archive = read()
    assert numbers(archive) == [1, 2, 3, 4]
    for filters, expected in (
        ({"job_id": 8}, [2]),
        ({"user": "bob"}, [2]),
        ({"account": "physics"}, [1]),
        ({"node": "n2"}, [4]),
        ({"gpu": "GPU-b"}, [2]),
        ({"gpu": "3"}, [4]),
        ({"gpu": "0"}, [1, 2, 3]),
        ({"uuid": "MIG-1"}, [1]),
        ({"profile": "3g.40gb"}, [1, 2, 4]),
        ({"profile": "1g.10gb"}, [3]),
        ({"profile": "g.10gb"}, []),
        ({"profile": "2g.20gb"}, [3]),
        ({"outcome": "refused"}, [3]),
        ({"outcome": "planned"}, [4]),
        ({"user": "alice", "outcome": "released"}, [1]),
        ({"user": "' OR 1 --"}, []),
    ):
        assert numbers(archive, **filters) == expected, filters
    assert archive.nodes() == ["n1", "n2"]
    assert [gpu[1:3] for gpu in archive.gpus()] == [("GPU-a", 0), ("GPU-b", 0), ("GPU-a", 3)]


def test_spans_are_half_open(ledger: Ledger, clock: Clock, read: Callable[[], Archive]) -> None:
    """What ends when the span begins is not in it; a refusal is, at its instant."""
    live(ledger, clock, planned(7), 1000, 2000)
    live(ledger, clock, planned(8), 2000, 3000)
    clock.now = 3500
    ledger.add(replace(planned(9), phase=phases.REFUSED, instances=()), phases.REFUSED)
    ledger.add(planned(10), phases.PLANNED)
    archive = read()
    assert numbers(archive, since=2000.0) == [2, 3, 4]
    assert numbers(archive, until=2000.0) == [1]
    assert numbers(archive, since=2000.0, until=2000.1) == [2]
    assert numbers(archive, since=3500.0, until=3500.1) == [3, 4]
    assert numbers(archive, since=4000.0) == [4]
    assert numbers(archive, since=3000.0, until=3500.0) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(record=ALLOCATIONS)
def test_every_record_is_read_as_the_ledger_reads_it(
    ledger: Ledger, read: Callable[[], Archive], record: Allocation
) -> None:
    """Both come from the same rows."""
    number = ledger.add(record, "test").number
    (found,) = [item for item in read().find() if item.number == number]
    assert found == ledger.find(number)


# -- collected files ---------------------------------------------------------------


def test_nothing_is_written_beside_a_collected_ledger(
    ledger: Ledger, clock: Clock, tmp_path: Path
) -> None:
    """Copied when closed: the file alone, in a directory that stays as it is."""
    live(ledger, clock, planned(7), 1000, 2000)
    ledger.close()
    out = tmp_path / "all"
    out.mkdir()
    shutil.copy2(tmp_path / "state/ledger.db", out / "n1?#%.db")
    before = snapshot(out)
    archive = Archive(out / "n1?#%.db")
    assert numbers(archive) == [1]
    assert archive.check()[1] == []
    assert snapshot(out) == before
    archive.close()
    assert snapshot(out) == before


def test_a_log_copied_along_is_read(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    """Copied while a hook had it open: what is in the log counts, and both files stay."""
    live(ledger, clock, planned(7), 1000, 2000)
    out = tmp_path / "all"
    out.mkdir()
    for name in ("ledger.db", "ledger.db-wal"):
        shutil.copy2(tmp_path / "state" / name, out / name)
    before = snapshot(out)
    assert os.path.getsize(out / "ledger.db-wal") > 0  # noqa: PTH202
    archive = Archive(out / "ledger.db")
    assert numbers(archive) == [1]
    archive.close()
    assert snapshot(out) == before


def test_the_private_copy_is_private_and_goes(
    ledger: Ledger, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ledgers are root's; a copy in /tmp must be no leak."""
    import tempfile

    live(ledger, clock, planned(7), 1000, 2000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    out = tmp_path / "all"
    shutil.copytree(tmp_path / "state", out, ignore=shutil.ignore_patterns("*-shm"))
    archive = Archive(out / "ledger.db")
    (private,) = scratch.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    archive.close()
    assert list(scratch.iterdir()) == []


def test_older_schemas_are_read_and_not_migrated(tmp_path: Path) -> None:
    """Version 1 lacks the indexes, and its events the end; the file keeps its version."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(MIGRATIONS[0])
        db.execute("PRAGMA user_version=1")
        db.execute(
            "INSERT INTO allocation VALUES (1, 7, 0, '', 5, 5, 'alice', '', NULL, 'n1', 'GPU-a', "
            "0, 'H100', 'boot', '3g.40gb:1', 'released', 'x', 1000.0, 2000.0)"
        )
        db.execute("INSERT INTO instance VALUES (1, 0, '3g.40gb', 9, 0, 4, 1, 0, 'MIG-1')")
        db.commit()
    archive = Archive(path)
    assert numbers(archive, since=1500.0, user="alice", uuid="MIG-1") == [1]
    archive.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_column_that_came_later(
    ledger: Ledger, clock: Clock, tmp_path: Path, read: Callable[[], Archive]
) -> None:
    """Has its default in a ledger that is older than it."""
    record = live(ledger, clock, replace(planned(7)), 1000, 2000)
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "state/ledger.db")) as db, db:
        db.execute("ALTER TABLE allocation DROP COLUMN het_leader")
    assert list(read().find()) == [record]


@pytest.mark.parametrize(
    ("table", "column"), [("allocation", "boot_id"), ("instance", "profile"), ("instance", "size")]
)
def test_a_column_that_was_taken_away(
    ledger: Ledger, tmp_path: Path, table: str, column: str
) -> None:
    """Every version had it: there is no default for it."""
    ledger.close()
    path = tmp_path / "state/ledger.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    says = f"{path} is no ledger of slurm-mig: table {table} has no {column}"
    with pytest.raises(LedgerFault, match=says):
        Archive(path)


def test_a_ledger_from_the_future(ledger: Ledger, tmp_path: Path) -> None:
    """With additions it is read; with a breaking change it is refused, both versions named."""
    ledger.close()
    path = tmp_path / "state/ledger.db"
    for version in (SCHEMA + 1, SCHEMA + BREAKING):
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version={version}")
        if version < BREAKING:
            Archive(path).close()
    with pytest.raises(LedgerTooNew, match=f"ledger.db has schema version {SCHEMA + BREAKING}"):
        Archive(path)


@pytest.mark.parametrize("content", [b"garbage" * 500, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_what_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    """A fault with the file's name."""
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(LedgerFault, match=r"open ledger .*x\.db"):
        Archive(path)


def test_another_database(tmp_path: Path) -> None:
    """Nor is every SQLite file one."""
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (a)")
    with pytest.raises(LedgerFault, match="no ledger of slurm-mig"):
        Archive(path)


def test_patterns(tmp_path: Path) -> None:
    """In order, each file once, without what SQLite puts beside; none is an error."""
    for name in ("b.db", "a.db", "a.db-wal", "a.db-shm"):
        (tmp_path / name).touch()
    found = collected([f"{tmp_path}/*.db*", f"{tmp_path}/a.db"])
    assert [path.name for path in found] == ["a.db", "b.db"]
    with pytest.raises(UsageFault, match=r"names no file"):
        collected([f"{tmp_path}/*.sqlite"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A directory is none."""
    with pytest.raises(UsageFault, match="no regular file"):
        Archive(tmp_path)


def test_patterns_are_globs(tmp_path: Path) -> None:
    """Every one of them names the files that glob.glob() has."""
    for name in ("a.db", ".b.db", "n1/a.db", "n2/a.db", "n2/.c/a.db", "file"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "gone.db").symlink_to("/nowhere")
    for pattern in (
        "*",
        "*.db",
        ".*",
        "*/a.db",
        "*/*.db",
        "n?/*",
        "n[2]/.*/*",
        "*/",
        "a.db",
        "**/*",
    ):
        expected = sorted(glob.glob(f"{tmp_path}/{pattern}"))  # noqa: PTH207
        assert sorted(map(str, collected([f"{tmp_path}/{pattern}"]))) == [
            path.rstrip("/") for path in expected
        ], pattern
    with pytest.raises(UsageFault, match="names no file"):
        collected([f"{tmp_path}/file/*.db"])


def test_what_is_no_file(tmp_path: Path) -> None:
    """A FIFO that nobody writes to would be waited for, for ever."""
    fifo = tmp_path / "x.db"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/null")):
        with pytest.raises(UsageFault, match=f"read ledger {path}: it is no regular file"):
            Archive(path)


def test_how_uuids_begin(ledger: Ledger, clock: Clock, read: Callable[[], Archive]) -> None:
    """One that is a beginning of another is both; a GPU's means all that was on it."""
    for job in range(1, 12):
        live(ledger, clock, planned(job, gpu="GPU-ab" if job < 11 else "GPU-ac"), 1000, 2000)
    archive = read()
    assert numbers(archive, uuid="MIG-1") == [1, 10, 11]
    assert numbers(archive, uuid="MIG-11") == [11]
    assert numbers(archive, gpu="gpu-AC") == numbers(archive, uuid="GPU-ac") == [11]
    assert numbers(archive, gpu="GPU-a%") == []
    query = f"EXPLAIN QUERY PLAN SELECT * FROM allocation a WHERE {_INSTANCE_BEGINS}"
    plan = archive._db.execute(query, {"uuid": "MIG-1"}).fetchall()
    assert any("INDEX instance_uuid (uuid>? AND uuid<?)" in row[3] for row in plan)


def test_somebody_elses_ledger(public_tmp: Path) -> None:
    """Whoever cannot read the file is told so."""
    path = public_tmp / "x.db"
    path.touch(mode=0o600)
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(64001)
            Archive(path)
        except NotPermitted:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- integrity ---------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(["life", "refusal", "open"]), max_size=6))
def test_what_the_ledger_writes_is_found_true(tmp_path: Path, lives: list[str]) -> None:
    """Whatever happened."""
    clock = Clock()
    path = tmp_path / f"{os.urandom(8).hex()}.db"
    ledger = Ledger(path, clock)
    for job, kind in enumerate(lives, 1):
        clock.now += 100
        if kind == "life":
            live(ledger, clock, planned(job), clock.now, clock.now + 50)
        elif kind == "refusal":
            refused = replace(planned(job), phase=phases.REFUSED, instances=())
            ledger.add(refused, phases.REFUSED)
        else:
            ledger.add(planned(job), phases.PLANNED)
    archive = Archive(path, live=True)
    chain, found = archive.check()
    assert (found, chain.set_back) == ([], 0)
    assert chain.events == archive.last()[0]
    archive.close()
    ledger.close()


def test_a_hook_that_writes_meanwhile(
    ledger: Ledger, clock: Clock, read: Callable[[], Archive], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is no finding: events and records are read as of one moment."""
    from slurm_mig.audit.chain import ChainCheck
    from slurm_mig.state.event import Event

    live(ledger, clock, planned(7), 1000, 2000)
    record = ledger.add(planned(8), phases.PLANNED)
    look = ChainCheck.look
    wrote: list[Allocation] = []

    def interrupted(chain: ChainCheck, event: Event) -> None:
        if not wrote:
            wrote.append(ledger.move(record, phases.ACTIVE))
            live(ledger, clock, planned(9), 3000, 4000)
        look(chain, event)

    monkeypatch.setattr(ChainCheck, "look", interrupted)
    archive = read()
    chain, found = archive.check()
    assert (chain.events, found) == (5, [])
    # What one audit reads is all as of the moment at which it began.
    assert archive.check()[0].events == 5
    assert read().check()[0].events == 10


def edited(path: Path, edit: str, *, anew: bool = False) -> Archive:
    """A ledger after an edit by whoever has the rights; `anew` hashes its chain again."""
    with closing(sqlite3.connect(path)) as db:
        guards = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            db.execute(f"DROP TRIGGER {name}")
        db.executescript(edit)
        db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        before = ""
        for row in db.execute("SELECT * FROM event ORDER BY seq").fetchall() if anew else ():
            before = digest(before, row[:-1])
            db.execute("UPDATE event SET digest = ? WHERE seq = ?", (before, row[0]))
        for _, text in guards:
            db.execute(text)
        db.commit()
    return Archive(path, live=True)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            "event SET kind = x'ff' WHERE seq = 4",
            "event 4 was changed: kind is b'\\xff', which is no",
        ),
        (
            "event SET at = 'foo' WHERE seq = 4",
            "event 4 was changed: at is 'foo', which is no time",
        ),
        ("event SET at = 9e999 WHERE seq = 2", "event 2 was changed: at is inf, which is no time"),
        ("event SET allocation = 'x' WHERE seq = 4", "allocation is 'x', which is no whole number"),
        ("event SET job_id = 'x' WHERE seq = 4", "job_id is 'x', which is no whole number"),
        ("event SET detail = cast(x'ff' AS TEXT) WHERE seq = 4", "which is no text"),
        ("event SET detail = '{' WHERE seq = 4", "event 4 "),
        ("event SET detail = '[]' WHERE seq = 1", "event 1 "),
        ("event SET detail = '{\"owner\": 1}' WHERE seq = 1", "event 1 "),
        ("allocation SET user = x'ff'", "allocation 1: owner.user is"),
        ("allocation SET user = cast(x'ff' AS TEXT)", "allocation 1: owner.user is"),
        ("allocation SET node = x'ff'", "allocation 1: node is"),
        ("allocation SET job_id = x'ff'", "allocation 1: owner.job_id is"),
        ("allocation SET created = 'foo'", 'allocation 1: created is "foo"'),
        ("allocation SET ended = 'foo'", 'allocation 1: ended is "foo"'),
        ("allocation SET ended = 1e308", "allocation 1: ended is 1e+308"),
        ("allocation SET ended = -1e308", "allocation 1: ended is -1e+308"),
        ("allocation SET ended = 9e999", "allocation 1: ended is Infinity"),
        ("allocation SET gpu_minor = 'x'", 'allocation 1: gpu_minor is "x"'),
        ("instance SET start = 'x'", "allocation 1: instances is"),
    ],
)
def test_values_that_are_none_are_named(
    ledger: Ledger, clock: Clock, tmp_path: Path, edit: str, says: str, *, anew: bool
) -> None:
    """No edit ends the check before it has said which row it is, hashed anew or not."""
    live(ledger, clock, planned(7), 1000, 2000)
    live(ledger, clock, planned(8), 3000, 4000)
    ledger.close()
    archive = edited(tmp_path / "state/ledger.db", f"UPDATE {edit}", anew=anew)
    found = archive.check()[1]
    assert any(says in item.text for item in found), found
    json.dumps([asdict(item) for item in found])
    archive.close()


def test_what_events_say_of_a_time_is_none_either(
    ledger: Ledger, clock: Clock, tmp_path: Path
) -> None:
    """Record and events agree, and every other audit refuses the value: so the check names it."""
    live(ledger, clock, planned(7), 1000, 2000)
    ledger.close()
    both = (
        "UPDATE allocation SET ended = 1e308;"
        "UPDATE event SET detail = replace(detail, '2000.0', '1e308') WHERE seq = 4"
    )
    archive = edited(tmp_path / "state/ledger.db", both, anew=True)
    (found,) = archive.check()[1]
    assert (found.kind, found.allocation) == ("changed", 1)
    assert found.text == "allocation 1: ended is 1e+308, which is no time"
    archive.close()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("allocation SET user = x'ff'", "user is b'\\xff', which is no text"),
        ("allocation SET node = cast(x'ff' AS TEXT)", "node is '\\udcff', which is no text"),
        ("allocation SET created = 'foo'", "created is 'foo', which is no time"),
        ("allocation SET created = -1", "created is -1.0, which is no time"),
        ("allocation SET ended = 'foo'", "ended is 'foo', which is no time"),
        ("allocation SET ended = 1e308", "ended is 1e+308, which is no time"),
        ("allocation SET ended = -1e308", "ended is -1e+308, which is no time"),
        ("allocation SET ended = 9e999", "ended is inf, which is no time"),
        ("allocation SET gpu_minor = 'x'", "gpu_minor is 'x', which is no whole number"),
        ("instance SET start = 'x'", "start is 'x', which is no number of slots"),
        ("instance SET size = 1000000000", "size is 1000000000, which is no number of slots"),
        ("instance SET uuid = x'ff'", "uuid is b'\\xff', which is no text"),
    ],
)
def test_values_that_are_none_are_refused(
    ledger: Ledger, clock: Clock, tmp_path: Path, edit: str, says: str
) -> None:
    """In a span, too, which a comparison with such a time would pass over."""
    live(ledger, clock, planned(7), 1000, 2000)
    ledger.close()
    path = tmp_path / "state/ledger.db"
    archive = edited(path, f"UPDATE {edit}")
    for wanted in ({}, {"since": 500.0}, {"until": 5000.0}, {"since": 1500.0, "until": 1600.0}):
        with pytest.raises(LedgerFault) as fault:
            list(archive.find(**wanted))  # type: ignore[arg-type]
        assert str(fault.value).startswith(f"ledger {path}: allocation 1: {says}; it was edited")
        assert "`slurm-mig audit --check`" in str(fault.value)
    archive.close()


def test_a_gpu_and_a_last_time_that_are_none(ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    """Also where no record is read: for the picture's bands, and beside the future's clock."""
    live(ledger, clock, planned(7), 1000, 2000)
    ledger.close()
    path = tmp_path / "state/ledger.db"
    edits = "UPDATE event SET at = 'foo' WHERE seq = 4; UPDATE allocation SET gpu_name = x'ff'"
    archive = edited(path, edits)
    with pytest.raises(LedgerFault, match="event 4: at is 'foo', which is no time"):
        archive.last()
    with pytest.raises(LedgerFault, match=r"allocation 1: 'n1', 'GPU-a', 0, b.* are no node and"):
        archive.gpus()
    archive.close()


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        ("DROP TRIGGER event_no_update", "event_no_update"),
        (
            "DROP TRIGGER event_no_delete; DROP TRIGGER event_no_update",
            "event_no_delete, event_no_up",
        ),
        (
            (
                "DROP TRIGGER event_no_delete; CREATE TRIGGER event_no_delete "
                "BEFORE DELETE ON event BEGIN SELECT 1; END"
            ),
            "event_no_delete",
        ),
    ],
)
def test_missing_triggers_are_found(
    ledger: Ledger, read: Callable[[], Archive], tmp_path: Path, edit: str, names: str
) -> None:
    """Who drops them has edited, or is about to; another of the same name guards nothing."""
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "state/ledger.db")) as db:
        db.executescript(edit)
    (found,) = read().check()[1]
    assert found.kind == "unguarded"
    assert found.text.startswith(f"triggers {names}")


@pytest.mark.parametrize(
    ("edit", "kind", "says"),
    [
        ("UPDATE event SET detail = '{}' WHERE seq = 2", "changed", "event 2 does not follow"),
        ("DELETE FROM event WHERE seq = 3", "removed", "event 3 is gone"),
        ("DELETE FROM event WHERE seq > 6", "disagrees", 'allocation 2: phase is "released"'),
        ("DELETE FROM event WHERE seq > 4", "added", "allocation 2 is in no event"),
        ("DELETE FROM allocation WHERE number = 1", "removed", "allocation 1 is gone"),
        ("UPDATE allocation SET user = 'eve'", "disagrees", 'owner.user is "eve", by event 4'),
        ("UPDATE allocation SET ended = 9e9", "disagrees", "ended is 9000000000.0, by event 4"),
        ("UPDATE instance SET uuid = 'MIG-x'", "disagrees", "allocation 1: instances is"),
        ("DELETE FROM instance", "disagrees", "allocation 1: instances is []"),
        (
            (
                "UPDATE event SET seq = -seq WHERE seq IN (2, 3);"
                "UPDATE event SET seq = 5 + seq WHERE seq < 0"
            ),
            "reordered",
            "event 2 was written as event 3",
        ),
    ],
)
def test_edits_are_found(
    ledger: Ledger,
    clock: Clock,
    read: Callable[[], Archive],
    tmp_path: Path,
    edit: str,
    kind: str,
    says: str,
) -> None:
    """By whoever has the rights to drop the triggers first."""
    live(ledger, clock, planned(7), 1000, 2000)
    live(ledger, clock, planned(8), 3000, 4000)
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "state/ledger.db")) as db:
        db.executescript(f"DROP TRIGGER event_no_update; DROP TRIGGER event_no_delete; {edit}")
    _, found = read().check()
    assert any(item.kind == kind and says in item.text for item in found), found


def test_a_row_hashed_anew_escapes_the_chain_alone(
    ledger: Ledger, clock: Clock, read: Callable[[], Archive], tmp_path: Path
) -> None:
    """That is what heads in syslog are for: the digest of the old row is not the new one's."""
    live(ledger, clock, planned(7), 1000, 2000)
    head = ledger.head()
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "state/ledger.db")) as db, db:
        db.execute("DROP TRIGGER event_no_update")
        db.execute("UPDATE event SET detail = replace(detail, 'alice', 'carol')")
        db.execute("UPDATE allocation SET user = 'carol'")
        before = ""
        for row in db.execute("SELECT * FROM event ORDER BY seq").fetchall():
            before = digest(before, row[:-1])
            db.execute("UPDATE event SET digest = ? WHERE seq = ?", (before, row[0]))
    archive = read()
    assert [item.kind for item in archive.check()[1]] == ["unguarded"]
    number, _, start = head.partition(":")
    assert not str(archive.digest_of(int(number))).startswith(start)
    assert archive.digest_of(99) is None


def test_an_empty_ledger(ledger: Ledger, read: Callable[[], Archive]) -> None:
    """Nothing is in it, and nothing wrong with it."""
    archive = read()
    assert (archive.check()[1], [*archive.find()], archive.last()) == ([], [], (0, 0.0))
    assert ledger.head() == ""
