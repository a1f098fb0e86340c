"""A power cut at any moment: the ledger opens, is whole, and has all that must last.

That is each step by which a slice becomes somebody's or nobody's, and all before it; a step
on the way may be lost, for only a hook that comes after a killed one needs it. SQLite
promises that (WAL, synchronous=FULL for what lasts); here it is seen. Files are put
together as a disk may have them after the cut, and opened as a hook opens them.
`-s` prints how many.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.state import ledger as module
from slurm_mig.state.ledger import Ledger
from tests.kit.crash_points import room
from tests.kit.ledgers import broken_event, planned
from tests.kit.sqlite_disk import Change, Disk, Image, images, watched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

# Long on a machine that does other things, too.
pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

#: What a ledger holds: every row of every table.
Content = list[tuple[object, ...]]

WAL_HEADER, FRAME = 32, 24 + 4096


@pytest.fixture
def space() -> Iterator[Path]:
    path = room()
    yield path
    shutil.rmtree(path)


def content(ledger: Ledger) -> Content:
    with ledger._guarded("read"):
        return [
            tuple(row)
            for table in ("allocation", "instance", "event")
            for row in ledger._db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")
        ]


def lives(ledger: Ledger) -> Iterator[bool]:
    """Two jobs come and go, beside one that stays; after each write whether it lasts."""
    for job in (7, 8):
        record = ledger.add(planned(job), phases.PLANNED)
        yield False
        made = replace(record.instances[0], gi_id=2, ci_id=0, uuid=f"MIG-{job}")
        record = ledger.move(record.with_instance(0, made), phases.ACTIVE)
        yield True
        if job == 7:
            record = ledger.move(record, phases.RELEASING)
            yield False
            ledger.finish(record, phases.RELEASED, "the job ended")
            yield True
    mode = replace(planned(9), instances=(), request=phases.WHOLE_MIG_OFF)
    ledger.add(mode, phases.PLANNED)
    # MIG mode outlives the machine's end, so that it was switched off must, too.
    yield True


def opened(image: Image, place: Path) -> Content:
    """What a hook finds in these files; it must be whole."""
    place.mkdir(mode=0o700)
    try:
        for name, data in image.items():
            (place / name).write_bytes(data)
            (place / name).chmod(0o600)
        ledger = Ledger(place / "ledger.db")
        try:
            assert ledger._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            assert broken_event(ledger) is None
            found = content(ledger)
            # And it goes on working.
            ledger.add(planned(99), phases.PLANNED)
            assert broken_event(ledger) is None
        finally:
            ledger.close()
    finally:
        shutil.rmtree(place)
    return found


class Openings:
    """Each different set of files is opened once."""

    def __init__(self, space: Path) -> None:
        self._place = space / "copy"
        self._known: dict[str, Content] = {}

    def __call__(self, image: Image) -> Content:
        digest = hashlib.sha256()
        for name in sorted(image):
            digest.update(f"{name} {len(image[name])} ".encode() + image[name])
        key = digest.hexdigest()
        if key not in self._known:
            self._known[key] = opened(image, self._place)
        return self._known[key]

    @property
    def count(self) -> int:
        return len(self._known)


def files(state: Path, *, shm: bool = True) -> Image:
    return {
        path.name: path.read_bytes()
        for path in state.iterdir()
        if shm or not path.name.endswith("-shm")
    }


def session(path: Path, mark: Callable[[Content, bool], None], checkpoint: int = 1000) -> None:
    """Open or make a ledger, work with it, close it; `mark` after each write that returned."""
    ledger = Ledger(path)
    ledger._db.execute(f"PRAGMA wal_autocheckpoint={checkpoint}")
    mark(content(ledger), True)
    for lasts in lives(ledger):
        mark(content(ledger), lasts)
    ledger.add(planned(10), phases.PLANNED)
    # Of what need not last nobody is told: after a power cut the ledger would look set back.
    assert ledger.loose
    mark(content(ledger), False)
    ledger.close()


# -- what the disk was told ------------------------------------------------------------------


@pytest.fixture
def disk() -> Iterator[Disk]:
    try:
        with watched() as found:
            yield found
    except OSError as problem:
        pytest.skip(str(problem))


@pytest.mark.parametrize("checkpoint", [1000, 12], ids=["at-the-end", "in-between"])
def test_nothing_that_was_written_is_lost(
    space: Path, disk: Disk, checkpoint: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever of the unsynced calls the disk had done: all that a hook was told is there.

    From the making of the file to its closing, checkpoints included, and through a
    second opening. What need not last may be there or not, in the order it was written; at
    most the write that was going on is there, too.
    """
    told: list[tuple[int, Content, bool]] = [(0, [], True)]
    for _ in range(2):
        session(
            space / "state/ledger.db",
            lambda now, lasts: told.append((len(disk.changes), now, lasts)),
            checkpoint,
        )
    changes = list(disk.changes)
    assert {change.file for change in changes} >= {"ledger.db", "ledger.db-wal"}
    check, tried, seen = Openings(space), 0, set()
    # Every cut takes minutes: the suite goes to each third.
    step = 1 if os.environ.get("SLURM_MIG_FAULTS") == "all" else 3
    for cut in range(0, len(changes) + 1, step):
        last = max(number for number, (when, *_) in enumerate(told) if when <= cut)
        safe = max(number for number in range(last + 1) if told[number][2])
        allowed = [now for _, now, _ in told[safe : last + 2]]
        for image in images(changes[:cut]):
            tried += 1
            found = check(image)
            assert found in allowed, f"after {cut} calls, the last {changes[cut - 1].kind}"
            seen.add(allowed.index(found))
    # All happens: what was going on is there, and is not; what need not last is, and is not.
    assert seen == {0, 1, 2}
    with capsys.disabled():
        print(
            f"\npower cuts ({checkpoint=}): {len(changes)} calls to the disk, {tried} cuts, "
            f"{check.count} different sets of files opened"
        )


def test_what_lasts_is_synced_before_it_is_told(space: Path, disk: Disk) -> None:
    """The last thing that happens to the WAL before such a write returns is a sync; else none."""
    ends: list[tuple[int, bool]] = []
    session(space / "state/ledger.db", lambda _, lasts: ends.append((len(disk.changes), lasts)))
    for end, lasts in ends[1:]:
        of_wal = [item for item in disk.changes[:end] if item.file == "ledger.db-wal"]
        assert (of_wal[-1].kind == "sync") is lasts


def test_a_ledger_without_sync_is_found_out(
    space: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests can fail: with synchronous=NORMAL the last writes may be lost."""
    real = module._transaction

    def careless(db: sqlite3.Connection, *, force: bool = True) -> AbstractContextManager[None]:
        del force
        return real(db, force=False)

    monkeypatch.setattr(module, "_transaction", careless)
    with pytest.raises(AssertionError, match="after .* calls"):
        test_nothing_that_was_written_is_lost(space, disk, 1000, None)  # type: ignore[arg-type]


def test_images() -> None:
    """What was synced is in all of them; what was not, is in some."""
    changes = [
        Change("write", "a", 0, b"xx"), Change("sync", "a"),
        Change("write", "a", 1, b"yz"), Change("write", "b", 0, b"q"),
    ]  # fmt: skip
    found = [tuple(sorted(image.items())) for image in images(changes)]
    assert all(dict(image)["a"][:1] == b"x" for image in found)
    assert {dict(image)["a"] for image in found} == {b"xx", b"xyz", b"xy"}
    assert {dict(image).get("b") for image in found} == {None, b"q"}


# -- copies at each statement ------------------------------------------------------------------


def test_copies_at_each_statement(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Database and WAL, with and without the shared index, also an index of earlier on."""
    state, check = space / "state", Openings(space)
    copies: list[tuple[int, Image]] = []
    told: list[Content] = []
    indexes: list[bytes] = []

    def copy(_: str) -> None:
        now = files(state)
        if index := now.get("ledger.db-shm"):
            indexes.append(index)
        copies.append((len(told), now))

    real = sqlite3.connect

    def connect(*arguments: object, **options: object) -> sqlite3.Connection:
        db = real(*arguments, **options)  # type: ignore[call-overload]
        db.set_trace_callback(copy)
        return db  # type: ignore[no-any-return]

    patch = pytest.MonkeyPatch()
    patch.setattr(sqlite3, "connect", connect)
    try:
        session(state / "ledger.db", lambda now, _: told.append(now))
    finally:
        patch.undo()
    told.insert(0, [])
    for count, image in copies:
        plain = {name: data for name, data in image.items() if not name.endswith("-shm")}
        stale = plain | {"ledger.db-shm": indexes[len(indexes) // 2]}
        for files_ in (image, plain, stale):
            assert check(files_) in told[count : count + 2]
    with capsys.disabled():
        print(f"\ncopies at {len(copies)} statements: {check.count} different ones opened")


def test_the_wal_cut_anywhere(space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At each end of a frame and inside of each: one of the states that were written, in order."""
    told: list[Content] = []
    ledger = Ledger(space / "state/ledger.db")
    told.append(content(ledger))
    told += [content(ledger) for _ in lives(ledger)]
    whole = files(space / "state")
    ledger.close()
    wal = whole["ledger.db-wal"]
    frames = (len(wal) - WAL_HEADER) // FRAME
    assert len(wal) == WAL_HEADER + frames * FRAME
    ends = [0, 7, WAL_HEADER, *(WAL_HEADER + n * FRAME for n in range(1, frames + 1))]
    middles = [WAL_HEADER + n * FRAME + k for n in range(frames) for k in (10, 24, 2000, FRAME - 1)]
    check, reached = Openings(space), []
    for size in sorted({*ends, *middles}):
        for shm in (True, False):
            image = {**whole, "ledger.db-wal": wal[:size]}
            if not shm:
                del image["ledger.db-shm"]
            found = check(image)
            # Before the tables were written there is nothing to be read.
            assert found in [[], *told]
            reached.append(told.index(found))
    # An index that knows more than the WAL has is not believed either.
    assert reached == sorted(reached)
    assert set(reached) == set(range(len(told)))
    with capsys.disabled():
        print(
            f"\nWAL of {frames} frames cut at {len({*ends, *middles})} places: {check.count} sets"
        )


def test_a_frame_that_rotted(space: Path) -> None:
    """A flipped bit in the WAL ends it there: what follows is not taken for written."""
    ledger = Ledger(space / "state/ledger.db")
    told = [content(ledger), *(content(ledger) for _ in lives(ledger))]
    whole = files(space / "state", shm=False)
    ledger.close()
    wal = whole["ledger.db-wal"]
    check = Openings(space)
    for at in range(0, len(wal), 1501):
        bad = wal[:at] + bytes([wal[at] ^ 1]) + wal[at + 1 :]
        assert check({**whole, "ledger.db-wal": bad}) in told


def test_integrity_of_the_file_itself(space: Path) -> None:
    """Once closed the WAL is gone, and the file alone has it all."""
    told: list[Content] = []
    session(space / "state/ledger.db", lambda now, _: told.append(now))
    assert [path.name for path in (space / "state").iterdir()] == ["ledger.db"]
    with closing(sqlite3.connect(space / "state/ledger.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert opened(files(space / "state"), space / "copy") == told[-1]
