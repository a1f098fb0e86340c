"""Shortening a ledger: nothing is lost or met twice, whatever happens, and the chain holds."""

from __future__ import annotations

import os
import random
import sqlite3
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig.audit import archiving
from slurm_mig.audit.archive import ARCHIVES, Archive
from slurm_mig.audit.copies import contradictions, youngest
from slurm_mig.errors import LedgerFault
from slurm_mig.mig import allocation as phases
from slurm_mig.state.ledger import Ledger
from tests.kit.ledgers import Clock, broken_event, edit, ended, in_a_fork, live, planned
from tests.kit.sqlite_disk import images, watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurm_mig.mig.allocation import Allocation
    from tests.kit.site import Site

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

#: All before it is archived; a time before which the fixture's clock stops in between.
BEFORE = 1.6e9 + 5000


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archiving, "FIRST_BATCH", 7)
    monkeypatch.setattr(archiving, "MOST_IN_A_BATCH", 7)
    monkeypatch.setattr(time, "sleep", lambda _: None)


def fill(path: Path, jobs: int = 8) -> None:
    """Lives before the time, one across it, one stuck and one that goes on, and some after it."""
    clock = Clock()
    clock.now = BEFORE - 5000
    with closing(Ledger(path, clock, boot="boot")) as ledger:
        stays = ledger.add(planned(100), phases.PLANNED)
        ledger.move(stays, phases.ACTIVE)
        stuck = ledger.add(planned(101), phases.PLANNED)
        stuck = ledger.move(stuck, phases.RELEASING)
        clock.now += 1
        ledger.move(stuck, phases.QUARANTINED)
        for job in range(jobs):
            start = BEFORE - 4000 + 100 * job
            live(ledger, clock, planned(200 + job), start, start + 150)
        refused = replace(planned(300), phase=phases.REFUSED, instances=())
        ledger.add(refused, phases.REFUSED)
        across = ledger.add(planned(301), phases.PLANNED)
        clock.now = BEFORE + 100
        ledger.finish(ledger.move(across, phases.RELEASING), "released")
        live(ledger, clock, planned(302), BEFORE + 200, BEFORE + 300)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    fill(tmp_path / "state/ledger.db")
    return tmp_path / "state/ledger.db"


def move(path: Path, before: float = BEFORE) -> archiving.Archived:
    with closing(Ledger(path)) as ledger:
        return archiving.move(ledger, path, path.parent / "archive", before, "root")


def opened(path: Path, stack: ExitStack) -> list[Archive]:
    """As `slurm-mig audit` opens them on a node."""
    found = [Archive(path, live=True)]
    found += [Archive(item, live=True) for item in (path.parent / "archive").glob(ARCHIVES)]
    for item in found:
        stack.callback(item.close)
    return found


def records(path: Path) -> list[Allocation]:
    with ExitStack() as stack:
        return [record for record, _ in youngest(opened(path, stack), {})]


def events(path: Path) -> dict[int, str]:
    """Digest of each event, wherever it is; in two places it must be the same."""
    with ExitStack() as stack:
        found: dict[int, str] = {}
        for archive in opened(path, stack):
            for event in archive._events("seq"):
                assert found.setdefault(event.seq, event.digest) == event.digest
        return found


def whole(path: Path) -> None:
    """Each file's chain holds, and each follows from another or from nothing."""
    with ExitStack() as stack:
        archives = opened(path, stack)
        for archive in archives:
            assert archive.check()[1] == []
            assert archive.start == 0 or any(
                other is not archive and other.digest_of(archive.start) == archive.begins_with
                for other in archives
            )
        assert contradictions(archives) == []


def test_nothing_is_lost(path: Path) -> None:
    """The same records and events are found as before; what is open stayed; the file shrank."""
    before, then = records(path), events(path)
    done = move(path)
    assert done.file is not None
    assert (done.file.name, done.note) == ("events-0000000001.db", "")
    assert done.file.stat().st_mode & 0o777 == 0o400
    assert records(path) == before
    now = events(path)
    assert {seq: now[seq] for seq in then} == then
    whole(path)
    with closing(Archive(path, live=True)) as ledger:
        left = {record.owner.job_id for record in ledger.find()}
        assert left == {100, 101, 301, 302}
        assert ledger.start == done.events
    # A second time there is nothing to do.
    assert move(path) == archiving.Archived(None)


def test_life_goes_on(path: Path) -> None:
    """Numbers are not used again, stuck slices keep their time, the stuck one can be released."""
    with closing(Ledger(path)) as ledger:
        (stuck,) = [item for item in ledger.all_open() if item.phase == phases.QUARANTINED]
        since = ledger.first(stuck, phases.QUARANTINED)
    newest = max(record.number for record in records(path))
    move(path, 2e9)
    move(path, 2e9)
    with closing(Ledger(path)) as ledger:
        assert ledger.first(stuck, phases.QUARANTINED) == since
        assert since.boot == "boot"
        assert ledger.add(planned(400), phases.PLANNED).number == newest + 1
        gone = ledger.move(stuck, phases.RELEASING)
        ledger.finish(gone, phases.RELEASED, "the job ended")
        assert broken_event(ledger) is None
    whole(path)
    move(path, 3e9)
    whole(path)
    assert len(list((path.parent / "archive").glob(ARCHIVES))) >= 2
    numbers = [record.number for record in records(path)]
    assert len(numbers) == len(set(numbers)) == newest + 1


def test_hooks_go_on_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two batches they get the ledger; all that they write is there."""
    wrote: list[int | None] = []

    def hook(_: float) -> None:
        with closing(Ledger(path)) as ledger:
            wrote.append(ledger.add(planned(500 + len(wrote)), phases.PLANNED).owner.job_id)

    monkeypatch.setattr(time, "sleep", hook)
    done = move(path)
    assert len(wrote) >= 3
    assert done.longest < 5
    whole(path)
    assert {record.owner.job_id for record in records(path)} >= set(wrote)


def killed_at(path: Path, statement: int) -> Callable[[], object]:
    def run() -> object:
        left = [statement]
        connect = sqlite3.connect

        def count(_: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)

        def watched_(*arguments: object, **options: object) -> sqlite3.Connection:
            db = connect(*arguments, **options)  # type: ignore[call-overload]
            db.set_trace_callback(count)
            return db  # type: ignore[no-any-return]

        sqlite3.connect = watched_  # type: ignore[assignment]
        move(path)
        return 0

    return run


def test_killed_before_any_statement(tmp_path: Path) -> None:
    """Whatever is there then is whole and has everything; the next run ends the work."""
    statement, codes = 0, []
    while True:
        path = tmp_path / f"{statement}/ledger.db"
        fill(path, 3)
        before, then = records(path), events(path)
        code = ended(in_a_fork(killed_at(path, statement)))
        codes.append(code)
        whole(path)
        assert records(path) == before
        now = events(path)
        assert {seq: now[seq] for seq in then} == then
        move(path)
        whole(path)
        assert records(path) == before
        with closing(Archive(path, live=True)) as ledger:
            assert {record.owner.job_id for record in ledger.find()} == {100, 101, 301, 302}
        if code == 0:
            break
        # Several are much the same: each row of a batch is a statement.
        statement += 1 if statement < 40 else 3
    assert set(codes) == {-9, 0}
    assert len(codes) > 40


def test_a_power_cut(tmp_path: Path) -> None:
    """Of a sample of what disks may have then: the two together have everything."""
    path = tmp_path / "state/ledger.db"
    fill(path, 3)
    then, old = events(path), path.read_bytes()
    try:
        with watched() as disk:
            move(path)
            changes = disk.changes
    except OSError as problem:
        pytest.skip(str(problem))
    chance, tried = random.Random(1), 0
    start = replace(changes[0], kind="write", file="ledger.db", at=0, data=old)
    known = [start, replace(start, kind="sync")]
    # From then on it has its own name, and the name is safe: that is no call of SQLite's.
    named = next(
        n for n, item in enumerate(changes) if item.file.startswith("events-0000000001.db")
    )
    ends = [n for n, item in enumerate(changes, 1) if item.kind in ("sync", "directory", "delete")]
    for end in chance.sample(ends, min(len(ends), 25)):
        so_far = [
            replace(item, file=item.file.replace(".new", ".db")) if end > named else item
            for item in changes[:end]
        ]
        found = list(images([*known, *so_far]))
        for image in chance.sample(found, min(len(found), 8)):
            tried += 1
            place = tmp_path / f"cut{tried}/state/ledger.db"
            (place.parent / "archive").mkdir(parents=True)
            place.parent.chmod(0o700)
            for name, data in image.items():
                directory = place.parent if name.startswith("ledger") else place.parent / "archive"
                # A file whose making was lost has nothing in it.
                if data and not name.endswith("-shm"):
                    (directory / name).write_bytes(data)
            Ledger(place).close()
            now = events(place)
            assert {seq: now.get(seq) for seq in then} == then
            whole(place)
    assert tried > 50


def test_a_ledger_that_was_edited_is_not_put_away(path: Path) -> None:
    """The batch with the event stays, and its number is told."""
    edit(path, "UPDATE event SET kind = 'active' WHERE seq = 12")
    with pytest.raises(LedgerFault, match="event 12 in .* does not follow"):
        move(path)
    assert set(range(1, 20)) <= set(events(path))


def test_a_ledger_that_was_set_back(path: Path) -> None:
    """Its archive knows more than it: nothing is overwritten or taken out."""
    backup = path.read_bytes()
    move(path)
    path.write_bytes(backup)
    with closing(Ledger(path)) as ledger:
        ledger.add(planned(600), phases.PLANNED)
    edit(path, "DELETE FROM event WHERE seq > 20", guarded=True)
    before = events(path)
    with pytest.raises(LedgerFault, match="one of them was set back"):
        move(path)
    assert events(path).items() >= before.items()


def test_no_room_to_shrink(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is kept for new events; that is said, and no fault."""
    monkeypatch.setattr(archiving, "SHRINK_TIME", -1.0)

    class Impatient(sqlite3.Connection):
        def set_progress_handler(self, handler: object, n: int) -> None:
            super().set_progress_handler(handler, min(n, 1))  # type: ignore[arg-type]

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, **o, factory=Impatient))
    with closing(connect(path)) as db, db:
        db.execute("CREATE TABLE filler (x)")
        db.execute("INSERT INTO filler VALUES (zeroblob(400000))")
        db.execute("DROP TABLE filler")
    done = move(path)
    assert done.saved == 0
    assert "not made smaller (interrupted)" in done.note
    whole(path)


# -- the command -----------------------------------------------------------------------


@pytest.fixture
def node(site: Site) -> Site:
    fill(site.root / "state/ledger.db")
    return site


def test_the_command(node: Site) -> None:
    """What would be, what was moved; answers stay the same; usage."""
    asked = node.cli("audit", "--json").stdout
    assert node.cli("archive").returncode == 2
    assert node.cli("archive", "--before", "2020-01-01", "--older-than", "9").returncode == 2
    assert node.cli("archive", "--before", "2100-01-01").returncode == 2
    foreseen = node.cli("archive", "--before", str(BEFORE), "--dry-run").stdout
    assert foreseen.startswith("would be moved: 39 events and 9 records")
    assert not (node.root / "state/archive").exists()
    done = node.cli("archive", "--before", str(BEFORE))
    assert done.stdout.startswith("39 events and 9 records moved to"), done.stderr
    assert node.cli("audit", "--json").stdout == asked
    check = node.cli("audit", "--check")
    assert check.returncode == 0
    assert "n1: 39 events" in check.stdout
    assert "events from event 40 on" in check.stdout
    assert node.cli("archive", "--before", str(BEFORE)).stdout.startswith("nothing is older")


@pytest.mark.parametrize(
    ("file", "statements", "anew", "code", "says"),
    [
        ("archive", "UPDATE event SET kind = 'x' WHERE seq = 9", False, 29, "event 9 does not"),
        ("archive", "UPDATE event SET at = 1.0 WHERE seq = 9", True, 29, "event 39 of "),
        ("archive", "DELETE FROM event WHERE seq > 30", False, 29, "ends with event 30"),
        ("archive", "UPDATE allocation SET user = 'eve' WHERE number = 4", False, 29, "eve"),
        ("archive", "DELETE FROM allocation WHERE number = 4", False, 29, "allocation 4 is gone"),
        ("ledger", "UPDATE checkpoint SET digest = 'x'", False, 29, "event 40 does not follow"),
        ("ledger", "UPDATE checkpoint SET seq = 38", False, 29, "event 39 is gone"),
        ("ledger", "DELETE FROM checkpoint", False, 29, "events 1 to 39 are gone"),
        ("ledger", "UPDATE allocation SET user = 'eve' WHERE number = 1", False, 29, "eve"),
        ("gone", "", False, 0, "events 1 to 39 of n1 are in the archive events-0000000001.db"),
    ],
)
def test_tampering(
    node: Site, file: str, statements: str, anew: bool, code: int, says: str
) -> None:
    """With the archive, its records, the checkpoint; who took it away is told as well."""
    assert node.cli("archive", "--before", str(BEFORE)).returncode == 0
    archive = node.root / "state/archive/events-0000000001.db"
    if file == "gone":
        archive.unlink()
    else:
        edit(archive if file == "archive" else node.root / "state/ledger.db", statements, anew=anew)
    done = node.cli("audit", "--check")
    assert done.returncode == code, done.stdout + done.stderr
    assert says in " ".join((done.stdout + done.stderr).split())
    if file == "gone":
        assert "this answer lacks it" in node.cli("audit").stderr
        assert node.cli("audit", "--since", str(BEFORE)).stderr == ""
