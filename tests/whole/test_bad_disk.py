"""Hooks on a machine whose disk, /run or slurmctld is slow, full or broken; real processes.

What a hook needs fails with its cause and its remedy; a courtesy fails nothing; and what is
slow makes nobody give up whose turn comes.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import subprocess
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.system.causes import ledger_remedy, remedy
from tests.kit.bad_disk import counted, failing, slow
from tests.kit.gpus import H100
from tests.kit.hooks import HERE, STAMP, records, slurm_commands, squeue
from tests.kit.site import Site, job_environ
from tests.kit.ways import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ONE = "slurm-mig=1,1g.10gb/19/4:1"
WHOLE = "slurm-mig=1,7g.80gb/0/31:1"


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site(H100)


def at_once(
    site: Site, hook: str, jobs: Iterable[int], stamp: str, more: Mapping[str, str]
) -> list[tuple[int, str]]:
    """Exit code and log line of a hook for each of these jobs, all begun together."""
    begun = [
        subprocess.Popen(
            [site.root / "hooks" / hook], env={**job_environ(job, stamp), **more}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for job in jobs
    ]  # fmt: skip
    ended = [(item.returncode, told) for item in begun for _, told in [item.communicate()]]
    site.settle()
    return ended


def nodes_of(site: Site, uid: int) -> list[str]:
    """Capability nodes that a user may open."""
    found = (site.machine.tree.dev / "nvidia-caps").iterdir()
    return [path.name for path in found if path.stat().st_uid == uid]


# -- slow --------------------------------------------------------------------------------------


def test_seven_epilogs_on_a_slow_disk(make_site: Callable[..., Site]) -> None:
    """Each forced write takes longer than a third of the patience: all seven are served."""
    site = make_site(H100, config="[hooks]\nlock_timeout = 8\n")
    for job in range(7):
        assert site.prolog(10 + job, ONE).returncode == 0
    ended = at_once(site, "epilog", range(10, 17), "", slow(1.5))
    assert [code for code, _ in ended] == [0] * 7, ended
    assert {record.phase for record in records(site)} == {phases.RELEASED}


def test_seven_prologs_and_a_slow_slurmctld(make_site: Callable[..., Site]) -> None:
    """No room for any of them; squeue takes longer than a third of the patience: no drain."""
    site = make_site(H100, config="[hooks]\nlock_timeout = 3\n[refusal]\nretry_delay = 1\n")
    assert site.prolog(7, WHOLE).returncode == 0
    asked = slurm_commands(site, squeue="sleep 1.2; echo 7")
    ended = at_once(site, "prolog", range(10, 17), STAMP, {})
    assert [code for code, _ in ended] == [0] * 7, ended
    assert "state=drain" not in asked.read_text()


def test_a_queue_longer_than_a_hook_lives(make_site: Callable[..., Site]) -> None:
    """An Epilog whose time is up leaves its slices to the next hook, closed to their user."""
    limits = "lock_timeout = 8\ndestroy_timeout = 0.5\ndeadline = 40\n[stuck]\ntimeout = 0.5\n"
    site = make_site(H100, config=f"[hooks]\n{limits}")
    for job in range(7):
        assert site.prolog(10 + job, ONE).returncode == 0
    ended = at_once(site, "epilog", range(10, 17), "", slow(2.5))
    assert [code for code, _ in ended] == [0] * 7, ended
    left = [told for _, told in ended if "others are still before this one" in told]
    assert left or later()
    assert nodes_of(site, 64001) == []
    # It is finished by the next hook on the GPU, without a question.
    slurm_commands(site, squeue="exit 1")
    assert site.prolog(30, WHOLE).returncode == 0
    assert records(site)[-1].phase == phases.ACTIVE


def test_an_ended_jobs_nodes_close_before_any_wait(make_site: Callable[..., Site]) -> None:
    """While another hook has the GPU's lock; a neighbour's nodes stay as they are."""
    site = make_site(H100, config="[hooks]\ndefer_teardown = false\n")
    site.prolog(7, STAMP)
    site.prolog(8, ONE, SLURM_JOB_UID="64002", SLURM_JOB_GID="64002")
    assert len(nodes_of(site, 64001)) == len(nodes_of(site, 64002)) == 2
    node = site.node()
    (gpu, *_) = node.driver.gpus()
    with node.locks.hold([gpu.uuid], "test"):
        epilog = subprocess.Popen(
            [site.root / "hooks/epilog"], env=job_environ(7, ""), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 60
        while nodes_of(site, 64001) and time.monotonic() < until:
            time.sleep(0.02)
        assert nodes_of(site, 64001) == []
        assert epilog.poll() is None
        assert [record.phase for record in node.ledger.open_of_job(7)] == [phases.ACTIVE]
    node.close()
    assert epilog.wait(60) == 0
    assert len(nodes_of(site, 64002)) == 2


def test_forced_writes_of_a_hook(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """The WAL's and its directory's, once, and a checkpoint's few once in a while."""
    note = site.root / "forced"
    numbers: dict[str, list[int]] = {"prolog": [], "epilog": []}
    # The first makes the ledger.
    site.prolog(6, ONE)
    site.epilog(6)
    for job in range(7, 19):
        for hook, stamp in (("prolog", ONE), ("epilog", "")):
            note.unlink(missing_ok=True)
            assert site.hook(hook, job_environ(job, stamp) | counted(note)).returncode == 0
            numbers[hook].append(len(note.read_text().splitlines()))
    with capsys.disabled():
        print(f"\nforced writes: {numbers}")
    for found in numbers.values():
        assert sorted(found)[len(found) // 2] == 2
        assert sum(found) / len(found) < 3


# -- full, and worse: courtesies ----------------------------------------------------------------


@pytest.fixture
def small(site: Site) -> Iterator[Site]:
    """A node whose run directory is a file system of 256 KiB and 40 files."""
    site.run.mkdir(exist_ok=True)
    size = "size=256k,nr_inodes=40,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(site.run)], check=True)
    yield site
    subprocess.run(["umount", str(site.run)], check=True)


def fill(directory: Path, size: int = 1 << 16) -> None:
    """With blocks, until no file can grow, or with files of no size."""
    with pytest.raises(OSError, match="28"):
        for number in range(1000):
            (directory / f"filler{number}").write_bytes(b"x" * size)


def empty(directory: Path) -> None:
    for path in directory.glob("filler*"):
        path.unlink()


def put_off(site: Site, stamp: str, gpus: str = "0", **more: str) -> None:
    """The Prolog of job 8 on a full file system: requeued and put off, by whoever can."""
    before = [record for record in records(site) if record.open]
    answer = f"case \"$*\" in *'-o %T'*) echo PENDING ;; *) {squeue(8)} ;; esac"
    version = 'case "$*" in --version) echo slurm 24.11.5 ;; esac'
    asked = slurm_commands(site, squeue=answer, scontrol=f"{version}\n{HERE}")
    asked.unlink(missing_ok=True)
    refused = site.prolog(8, stamp, gpus, **more)
    assert (refused.returncode, "outcome=requeued" in refused.stderr) == (0, True), refused.stderr
    assert [record for record in records(site) if record.open] == before
    assert records(site)[-1].phase == phases.REFUSED
    assert site.epilog(8, gpus, **more).returncode == 0
    until = time.monotonic() + 20
    while "starttime=now+" not in asked.read_text():
        assert time.monotonic() < until, asked.read_text()
        time.sleep(0.05)
    assert "state=drain" not in asked.read_text()


def test_a_full_run_directory(small: Site) -> None:
    """The Epilog takes everything down; the next job waits, and leaves nothing to do."""
    assert small.prolog(7, STAMP).returncode == 0
    fill(small.run)
    done = small.epilog(7)
    assert done.returncode == 0, done.stderr
    assert [record.phase for record in records(small)] == [phases.RELEASED]
    put_off(small, STAMP)
    assert re.search(rf"full: {small.run}: \d+ KiB free;", small.cli("status").stdout)
    empty(small.run)
    assert small.prolog(9, STAMP).returncode == 0


def test_a_run_directory_without_files(small: Site) -> None:
    """Not even an empty lock can be made there; an Epilog needs none but those that are there."""
    fill(small.run, 0)
    put_off(small, ONE)
    assert f"full: {small.run}: room for 0 files;" in small.cli("status").stdout
    empty(small.run)
    assert small.prolog(7, ONE).returncode == 0
    fill(small.run, 0)
    put_off(small, ONE)
    assert small.epilog(7).returncode == 0
    assert not [record for record in records(small) if record.open]


@pytest.mark.parametrize(
    ("part", "stamp", "gpus"),
    [
        ("/env/", WHOLE, "0"),
        ("/env/", "", "0,1"),
        ("/env/", "slurm-mig=2,3g.40gb/9/14:2;3g.40gb/9/14:2", "0,1"),
        ("/leases/8.0", "slurm-mig=1,1g.10gb/19/4:2", "0"),
    ],
)
def test_what_was_carved_when_it_was_full_goes(
    make_site: Callable[..., Site], part: str, stamp: str, gpus: str
) -> None:
    """Of slices on several GPUs and of whole ones, too; so do leases."""
    site = make_site(H100, H100)
    put_off(site, stamp, gpus, **failing("EDQUOT", part, "open", "rename"))
    assert not list(site.run.glob("leases/*"))


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_strange_names(site: Site, kind: str) -> None:
    """In each directory of ours: they are left alone, and stop no hook and no reconcile."""
    assert site.prolog(7, STAMP).returncode == 0

    def put(path: Path) -> None:
        if kind == "link":
            path.symlink_to("/nowhere")
        else:
            (path.touch if kind == "file" else path.mkdir)()

    names = ["12abc", "12", ".12", "12.x", "12.0.hetx", "²", "7.0.refused.a", "7x", ".7.0.x"]
    for name in names:
        for directory in ("env", "jobs", "locks"):
            put(site.run / directory / name)
        put(site.machine.tree.dev / "nvidia-caps" / f"nvidia-cap{name}x")
    assert site.epilog(7).returncode == 0
    assert site.prolog(8, STAMP).returncode == 0
    assert [record.phase for record in records(site)] == [phases.RELEASED, phases.ACTIVE]
    slurm_commands(site, squeue="echo 8", scontrol=HERE)
    told = site.cli("reconcile", SLURMD_NODENAME="n1")
    assert told.returncode == 0, told.stderr
    assert {path.name for path in (site.run / "env").iterdir()} >= set(names)


@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "writable"])
def test_no_mark_in_a_marks_place(site: Site, kind: str) -> None:
    """It is told, and says nothing of the ledger: other jobs' hooks and the boot go on."""
    assert site.prolog(7, STAMP).returncode == 0
    odd = site.run / "jobs/77.0"
    if kind == "directory":
        odd.mkdir()
    elif kind == "fifo":
        os.mkfifo(odd)
    elif kind == "link":
        odd.symlink_to("/nowhere")
    else:
        odd.write_text("head 999:abc\n")
        odd.chmod(0o666)
    ended = site.epilog(7)
    assert (ended.returncode, f"{odd}" in ended.stderr) == (0, True), ended.stderr
    assert site.prolog(8, STAMP).returncode == 0
    assert [record.phase for record in records(site)] == [phases.RELEASED, phases.ACTIVE]
    slurm_commands(site, squeue="echo 8", scontrol=HERE)
    for words in (("reconcile",), ("reconcile", "--boot", "--wait", "0")):
        told = site.cli(*words, SLURMD_NODENAME="n1")
        assert told.returncode == 0, told.stderr


@pytest.mark.parametrize(
    ("part", "calls"),
    [
        (".holder", ("open", "write", "rename", "unlink")),
        (".turn.", ("link", "open", "unlink")),
        ("/locks/.", ("mkfifo",)),
    ],
)
@pytest.mark.parametrize("name", ["ENOSPC", "EIO"])
def test_a_courtesy_fails_nothing(site: Site, name: str, part: str, calls: tuple[str, ...]) -> None:
    """Notes of a lock and places in its queue."""
    broken = failing(name, part, *calls)
    assert site.prolog(7, STAMP, **broken).returncode == 0
    assert site.epilog(7, **broken).returncode == 0
    assert [record.phase for record in records(site)] == [phases.RELEASED]


# -- causes --------------------------------------------------------------------------------------

#: Where a hook writes: part of the path, the calls that fail there, and the hook.
PLACES = {
    "mark": ("/jobs/", ("open", "rename"), "prolog"),
    "environment": ("/env/", ("open", "rename"), "prolog"),
    "lock": (".lock", ("open",), "prolog"),
    "device node": ("nvidia-cap", ("mknod",), "prolog"),
    "ledger": ("ledger.db", ("pwrite64", "fdatasync", "fsync"), "prolog"),
    "ledger, opened": ("ledger.db", ("open",), "epilog"),
    "ledger's end": ("ledger.db", ("pwrite64", "fdatasync", "fsync"), "epilog"),
    "files taken away": ("/env/7", ("unlink",), "epilog"),
    "configuration": ("config.toml", ("open",), "prolog"),
}
NAMES = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EMFILE")


@pytest.mark.parametrize("place", PLACES)
def test_each_cause_in_each_place(site: Site, place: str) -> None:
    """A fault by name, with a remedy; never an internal error, and the next hook goes on."""
    part, calls, hook = PLACES[place]
    for job, name in enumerate(NAMES, 7):
        if hook == "epilog":
            assert site.prolog(job, ONE).returncode == 0
        broken = failing(name, part.replace("/7", f"/{job}"), *calls)
        done = site.hook(hook, job_environ(job, ONE if hook == "prolog" else "") | broken)
        assert "internal error" not in done.stderr, (place, name)
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert 10 <= done.returncode <= 19, (name, done.stderr)
            assert ";" in done.stderr, (name, done.stderr)
        # It was a fault of the moment: the next hook has no trouble with what it left.
        assert site.epilog(job).returncode == 0, (name, done.stderr)
    assert site.prolog(100, WHOLE).returncode == 0
    assert len([record for record in records(site) if record.open]) == 1


def test_remedies_are_told_apart() -> None:
    """A full disk, one that is read-only, one that fails, one that shuts root out."""
    numbers = {name: remedy(getattr(errno, name)) for name in NAMES}
    assert all(numbers.values())
    assert len(set(numbers.values())) == len(NAMES)
    assert remedy(None) == remedy(99999) == ""


def test_a_busy_ledger_is_left_where_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told that it is locked must not move it away."""
    from slurm_mig.errors import LedgerFault
    from slurm_mig.state import ledger

    site.prolog(7, STAMP)
    monkeypatch.setattr(ledger, "BUSY_TIMEOUT", 0.2)
    node = site.node()
    with closing(sqlite3.connect(site.root / "state/ledger.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerFault, match="database is locked; leave the file where it is"):
            node.ledger.leave(1, "x")
    node.close()


def sqlite_fault(work: Callable[[], object]) -> str:
    with pytest.raises(sqlite3.Error) as caught:
        work()
    return ledger_remedy(caught.value)


def test_each_fault_of_the_ledger_has_its_remedy(tmp_path: Path) -> None:
    """Made by SQLite itself: missing, no database, read-only, full, and what is not ours."""
    path = tmp_path / "l.db"

    def opened(text: str = "SELECT * FROM sqlite_master", mode: str = "rw") -> Callable[[], object]:
        def work() -> None:
            with closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True)) as db:
                for statement in text.split(";"):
                    db.execute(statement)

        return work

    assert "missing" in sqlite_fault(opened())
    path.write_bytes(b"not a database" * 100)
    assert "the file is damaged" in sqlite_fault(opened())
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE t (x)")
    assert "read-only" in sqlite_fault(opened("INSERT INTO t VALUES (1)", mode="ro"))
    full = "PRAGMA max_page_count=2; INSERT INTO t VALUES (zeroblob(100000))"
    assert "is full" in sqlite_fault(opened(full))
    assert "the file is damaged" in sqlite_fault(opened("SELECT * FROM allocation"))


def test_no_process_to_be_had(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node fault that says so, not a traceback that drains with "Prolog error" alone."""
    from slurm_mig.hooks import log_line, run
    from slurm_mig.system import watchdog

    def none(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(watchdog, "watched", none)
    told: list[str] = []
    for module in (log_line, run):
        monkeypatch.setattr(module, "tell_slurmd", told.append)
    slurm_commands(site)
    environ = {**job_environ(7, STAMP), "SLURM_MIG_CONFIG": str(site.config)}
    assert run.run("prolog", environ, watched=True) == 10
    assert "no process can be started" in told[0]


def test_no_room_and_no_process(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that cannot be put off comes back at once; the node is not drained for it."""
    from slurm_mig.errors import NodeFault
    from slurm_mig.hooks import log_line, run
    from slurm_mig.state import run_files
    from slurm_mig.system import detach

    def full(*_: object, **__: object) -> None:
        raise NodeFault("write") from OSError(errno.ENOSPC, "No space left on device")

    def none(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(run_files, "replace_file", full)
    monkeypatch.setattr(detach, "detach", none)
    told: list[str] = []
    for module in (log_line, run):
        monkeypatch.setattr(module, "tell_slurmd", told.append)
    slurm_commands(site, squeue=squeue(8))
    environ = {**job_environ(8, STAMP), "SLURM_MIG_CONFIG": str(site.config)}
    assert run.run("prolog", environ) == 0
    assert "outcome=requeued" in told[0]
    assert "not postponed: [Errno 11]" in told[0]
