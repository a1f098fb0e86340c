"""Upgrades: every released ledger is carried on, and old and new hooks side by side do no harm."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.hooks import run as entrance
from slurm_mig.mig import allocation as phases
from slurm_mig.state import schema
from slurm_mig.state.ledger import Ledger
from slurm_mig.state.schema import MIGRATIONS, SCHEMA
from tests.kit.hooks import STAMP, records
from tests.kit.ledger_fixture import write
from tests.kit.ledgers import Moments, broken_event, ended, everything, in_a_fork, planned
from tests.kit.site import Site, job_environ

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

pytestmark = pytest.mark.root

FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("ledger-*.db"))


def copied(fixture: Path, tmp_path: Path) -> Path:
    path = tmp_path / "state/ledger.db"
    path.parent.mkdir(mode=0o700)
    shutil.copy(fixture, path)
    path.chmod(0o600)
    return path


def rows(path: Path, table: str) -> list[dict[str, object]]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def old_version() -> None:
    """Make this process one of a release that knows schema 1 and no more."""
    schema.SCHEMA = 1  # type: ignore[misc]
    for step in [key for key in MIGRATIONS if key >= 1]:
        del MIGRATIONS[step]
    # It knows of no such table, and never asks.
    Ledger.retired = lambda *_: {}  # type: ignore[method-assign]


def as_old(work: Callable[[], object]) -> int:
    """Exit code of work done by the old version."""

    def run() -> object:
        old_version()
        return work()

    return ended(in_a_fork(run))


# -- the file -----------------------------------------------------------------------


def test_there_is_a_fixture_of_each_schema() -> None:
    """Whoever raises SCHEMA in a release adds its ledger (tests/kit/ledger_fixture.py)."""
    assert [version(path) for path in FIXTURES] == [1]
    assert not any(Path(f"{path}{end}").exists() for path in FIXTURES for end in ("-wal", "-shm"))


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_every_released_ledger_is_carried_on(fixture: Path, tmp_path: Path) -> None:
    """No record, instance or event changes; the chain holds; what is open can be closed."""
    path = copied(fixture, tmp_path)
    tables = ("allocation", "instance", "event")
    before = {table: rows(path, table) for table in tables}
    opened = Ledger(path)
    assert broken_event(opened) is None
    assert opened.retired() == {}
    assert len(everything(opened)) == len(before["allocation"])
    for record in opened.all_open():
        going = opened.move(record, phases.RELEASING)
        opened.finish(going, phases.RELEASED, "the job ended")
    assert opened.all_open() == []
    assert broken_event(opened) is None
    opened.close()
    assert version(path) == SCHEMA
    assert rows(path, "event")[: len(before["event"])] == before["event"]
    assert rows(path, "instance") == before["instance"]
    kept = [{key: row[key] for key in before["allocation"][0]} for row in rows(path, "allocation")]
    closed = [row["number"] for row in before["allocation"] if row["ended"] is not None]
    assert [row for row in kept if row["number"] in closed] == [
        row for row in before["allocation"] if row["number"] in closed
    ]


def test_the_fixture_has_a_record_of_every_kind() -> None:
    """Else it would prove little."""
    (first, *_) = FIXTURES
    found = rows(first, "allocation")
    assert {row["phase"] for row in found} == set(phases.TRANSITIONS) - {phases.RELEASING}
    assert phases.WHOLE_MIG_OFF in {row["request"] for row in found}
    assert None in {row["job_id"] for row in found}


def test_what_writes_the_fixture_still_does(tmp_path: Path) -> None:
    """By the code of today: the same records; an event may tell more than it did then."""
    write(tmp_path / "state/ledger.db")
    (first, *_) = FIXTURES
    now, then = rows(tmp_path / "state/ledger.db", "event"), rows(first, "event")
    assert len(now) == len(then)
    for new, old in zip(now, then, strict=True):
        assert json.loads(str(new["detail"])).items() >= json.loads(str(old["detail"])).items()
        for name in ("seq", "at", "kind", "allocation", "job_id"):
            assert new[name] == old[name]


# -- side by side -------------------------------------------------------------------


def later_ledger(path: Path) -> None:
    """What a release with additions that nobody here knows leaves."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE allocation ADD COLUMN colour TEXT NOT NULL DEFAULT 'green'")
        db.execute("ALTER TABLE instance ADD COLUMN weight INTEGER")
        db.execute("ALTER TABLE event ADD COLUMN host TEXT")
        db.execute("CREATE TABLE shape (number INTEGER PRIMARY KEY)")
        db.execute(f"PRAGMA user_version={SCHEMA + 7}")


def test_additions_of_a_later_version_do_no_harm(tmp_path: Path) -> None:
    """Read and written as if they were not there; the version stays the later one's."""
    path = tmp_path / "state/ledger.db"
    write(path)
    later_ledger(path)
    opened = Ledger(path)
    record = opened.add(planned(99), phases.PLANNED)
    record = opened.move(record, phases.ACTIVE)
    assert opened.find(record.number) == record
    assert broken_event(opened) is None
    opened.close()
    assert version(path) == SCHEMA + 7
    assert {row["colour"] for row in rows(path, "allocation")} == {"green"}


def statements_of_a_migration() -> list[str]:
    """What opening a ledger of schema 1 executes, in this order."""
    pragmas = ["journal_mode", "wal_autocheckpoint", "foreign_keys", "user_version", "synchronous"]
    scripts = [MIGRATIONS[step] for step in sorted(MIGRATIONS) if step >= 1]
    count = sum(len(list(schema.statements(script))) for script in scripts)
    inside = ["user_version", *["statement"] * count, "user_version="]
    return [*pragmas, "BEGIN", *inside, "COMMIT"]


STATEMENTS = statements_of_a_migration()


def migrating(path: Path, stop: int, there: int, resume: int) -> Callable[[], None]:
    """The new version opens the ledger, and stops before its n-th statement, or at the end."""

    def run() -> None:
        moments = Moments(stop, there, resume)
        moments.watch()
        opened = Ledger(path)
        moments.stop()
        opened.close()

    return run


def old_hooks(path: Path, ready: int, go: int, writes: int) -> Callable[[], None]:
    """A Prolog of the old version in the middle of its work, and then an Epilog that starts."""

    def run() -> None:
        old_version()
        prolog = Ledger(path)
        record = prolog.add(planned(99), phases.PLANNED)
        os.write(ready, b"x")
        os.read(go, 1)
        os.write(writes, b"x")
        prolog.move(record, phases.ACTIVE)
        prolog.close()
        epilog = Ledger(path)
        (record,) = epilog.open_of_job(99)
        record = epilog.move(record, phases.RELEASING)
        epilog.finish(record, phases.RELEASED, "the job ended")
        epilog.close()

    return run


@pytest.mark.parametrize("outcome", ["goes on", "is killed"])
@pytest.mark.parametrize("moment", range(len(STATEMENTS) + 1))
def test_an_old_hook_works_while_the_new_one_migrates(
    tmp_path: Path, moment: int, outcome: str
) -> None:
    """Before every statement of the migration, and after the last; also when it dies there."""
    path = copied(FIXTURES[0], tmp_path)
    there, ready, writes = os.pipe(), os.pipe(), os.pipe()
    go, resume = os.pipe(), os.pipe()
    old = in_a_fork(old_hooks(path, ready[1], go[0], writes[1]))
    os.read(ready[0], 1)
    new = in_a_fork(migrating(path, moment, there[1], resume[0]))
    os.read(there[0], 1)
    os.write(go[1], b"x")
    os.read(writes[0], 1)
    # Between BEGIN and COMMIT the old one waits for the lock; at every other moment it gets
    # through first.
    locked = STATEMENTS.index("BEGIN") < moment < len(STATEMENTS)
    if not locked:
        assert ended(old) == 0
    if outcome == "is killed":
        os.kill(new, 9)
    else:
        os.write(resume[1], b"x")
    assert ended(new) == (-9 if outcome == "is killed" else 0)
    if locked:
        assert ended(old) == 0
    for pipe in (there, ready, writes, go, resume):
        os.close(pipe[0])
        os.close(pipe[1])
    opened = Ledger(path)
    (record,) = opened.of_job(99)
    assert record.phase == phases.RELEASED
    assert broken_event(opened) is None
    opened.close()
    assert version(path) == SCHEMA


def test_the_moments_are_the_migrations_own(tmp_path: Path) -> None:
    """The list above is what SQLite is really told."""
    path = copied(FIXTURES[0], tmp_path)
    seen: list[str] = []

    def run() -> None:
        Moments(0, -1, -1).watch(seen.append)
        Ledger(path)
        (tmp_path / "seen").write_text(json.dumps(seen))

    assert ended(in_a_fork(run)) == 0
    told = json.loads((tmp_path / "seen").read_text())
    assert len(told) == len(STATEMENTS)
    for text, kind in zip(told, STATEMENTS, strict=True):
        assert kind == "statement" or kind in text


# -- hooks --------------------------------------------------------------------------


def hook(name: str, site: Site, job: int, stamp: str = "") -> Callable[[], int]:
    """A hook in a process of its own, so that it can be one of the old version."""

    def run() -> int:
        os.environ["SLURM_MIG_CONFIG"] = str(site.config)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 2)
        return entrance.run(name, job_environ(job, stamp) | {"SLURM_MIG_CONFIG": str(site.config)})

    return run


@pytest.mark.parametrize("first", ["old", "new"])
def test_a_job_that_starts_under_one_version_and_ends_under_the_other(
    site: Site, first: str
) -> None:
    """In both directions, with a neighbour of the other version beside it."""

    def ran(which: str, work: Callable[[], int]) -> int:
        return as_old(work) if which == "old" else ended(in_a_fork(work))

    second = "new" if first == "old" else "old"
    assert ran(first, hook("prolog", site, 7, STAMP)) == 0
    assert ran(second, hook("prolog", site, 8, STAMP)) == 0
    assert [record.phase for record in records(site)] == [phases.ACTIVE] * 2
    assert ran(second, hook("epilog", site, 7)) == 0
    assert ran(first, hook("epilog", site, 8)) == 0
    assert [record.phase for record in records(site)] == [phases.RELEASED] * 2
    assert site.machine.board(0).instances == []
    assert version(site.root / "state/ledger.db") == SCHEMA


def task_prolog(site: Site, job: int) -> subprocess.CompletedProcess[str]:
    environ = {"SLURM_JOB_ID": str(job), "SLURM_SHARDS_ON_NODE": "14", "SLURMD_NODENAME": "n1"}
    return site.hook("task_prolog", environ)


def test_lines_that_are_not_known_are_passed_over(site: Site) -> None:
    """A later Prolog may say more in the environment file and in the mark."""
    assert site.prolog(7, STAMP).returncode == 0
    told = task_prolog(site, 7).stdout
    assert "CUDA_VISIBLE_DEVICES=MIG-" in told
    for path in (site.run / "env/7.0", site.run / "jobs/7.0"):
        path.write_text(f"colour green and blue\n{path.read_text()}shape\n")
    assert task_prolog(site, 7).stdout == told
    done = site.epilog(7)
    assert (done.returncode, done.stderr.split(" ms=")[0].split()[-1]) == (0, "slices=3g.40gb@4")
    assert not list(site.run.glob("[ej]*/*"))


def test_lines_that_are_missing_have_a_meaning(site: Site) -> None:
    """An earlier Prolog said less: the slices alone are enough, and an empty mark."""
    assert site.prolog(7, STAMP).returncode == 0
    path = site.run / "env/7.0"
    lines = [line for line in path.read_text().splitlines() if line.startswith("slice ")]
    path.write_text("\n".join(lines) + "\n")
    (site.run / "jobs/7.0").write_text("")
    assert "CUDA_VISIBLE_DEVICES=MIG-" in task_prolog(site, 7).stdout
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []


def test_a_stamp_of_another_version_is_the_jobs_trouble(site: Site) -> None:
    """A controller that was upgraded first: the job is refused and held, the node stays."""
    done = site.prolog(7, STAMP.replace("=1,", "=3,"))
    assert done.returncode == 0
    assert "bring slurm-mig on the controller and the nodes to one release" in done.stderr
    assert "'3'" in done.stderr
