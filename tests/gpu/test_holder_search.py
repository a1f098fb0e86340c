"""Finding who has a device open, by real processes; and killing only what may be killed."""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.gpu import holder_search
from slurm_mig.gpu.holder import GPU, INSTANCE, Holder, Holders
from slurm_mig.gpu.holder_search import Processes, Target
from slurm_mig.mig.allocation import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = pytest.mark.root

ALICE = Owner(7, uid=64001, gid=64001, user="alice")
OF_JOB = {"SLURM_JOB_ID": "7"}

#: Devices that anybody may have open, for an instance, its GPU and a neighbour's instance.
FULL, ZERO, URANDOM = os.makedev(1, 7), os.makedev(1, 5), os.makedev(1, 9)
TARGET = Target(frozenset({FULL}), frozenset({ZERO}), (), 2)


class Crowd:
    """Processes that hold devices until the test ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[bytes]] = []
        for name, device in (("nvidia-cap21", FULL), ("nvidia0", ZERO), ("nvidia-cap30", URANDOM)):
            os.mknod(root / name, stat.S_IFCHR | 0o666, device)
            (root / name).chmod(0o666)

    def start(
        self,
        *nodes: str,
        uid: int = 64001,
        name: str = "sleep",
        flags: int = os.O_RDONLY,
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """`sleep` under a name, as a user, with nodes open."""
        opened = [os.open(self.root / node, flags) for node in nodes]
        try:
            process = subprocess.Popen(
                [name, "300"], executable="/bin/sleep", env=dict(environ or {}), pass_fds=opened,
                user=uid, group=uid, extra_groups=[], cwd="/",
            )  # fmt: skip
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def crowd(public_tmp: Path) -> Iterator[Crowd]:
    made = Crowd(public_tmp)
    yield made
    made.end()


def look(target: Target = TARGET) -> dict[int, Holder]:
    found = Processes().holding(target, 10)
    assert found.complete
    return {holder.pid: holder for holder in found.found}


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it was killed; given a moment."""
    try:
        return process.wait(0.3) == -9
    except subprocess.TimeoutExpired:
        return False


# -- looking ------------------------------------------------------------------------


def test_who_has_the_node_open(crowd: Crowd) -> None:
    """Not listed by NVML, found by descriptor: with all that an administrator asks for."""
    process = crowd.start("nvidia-cap21", environ=OF_JOB)
    crowd.start()
    (holder,) = look().values()
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    assert (holder.pid, holder.has, holder.uids) == (process.pid, INSTANCE, (64001,) * 4)
    assert (holder.name, holder.command.strip()) == ("sleep", "sleep 300")
    assert (holder.started, holder.environment_job) == (int(fields[19]), 7)


def test_a_monitor_has_only_the_gpu(crowd: Crowd) -> None:
    """Told apart from who has the instance."""
    monitor = crowd.start("nvidia0", uid=0)
    user = crowd.start("nvidia0", "nvidia-cap21")
    assert {pid: item.has for pid, item in look().items()} == {
        monitor.pid: GPU,
        user.pid: INSTANCE,
    }


def test_a_neighbour_is_not_named(crowd: Crowd) -> None:
    """Everybody on the GPU has its node open; a monitor of root's sees all instances."""
    crowd.start("nvidia0", "nvidia-cap30")
    monitor = crowd.start("nvidia0", "nvidia-cap30", uid=0)
    assert list(look()) == [monitor.pid]


def test_what_nvml_lists(crowd: Crowd) -> None:
    """By GPU instance id; without one the process has the GPU as a whole."""
    mine, other, whole = (crowd.start() for _ in range(3))
    listed = ((mine.pid, 2), (other.pid, 5), (whole.pid, None))
    found = look(replace(TARGET, listed=listed))
    assert {pid: item.has for pid, item in found.items()} == {mine.pid: INSTANCE, whole.pid: GPU}
    assert set(look(Target(gpu=TARGET.gpu, listed=listed))) == {mine.pid, other.pid, whole.pid}


def test_a_listed_process_that_is_gone(crowd: Crowd) -> None:
    """The driver may still speak of it."""
    process = crowd.start()
    process.kill()
    process.wait()
    (holder,) = look(replace(TARGET, listed=((process.pid, 2),))).values()
    assert str(holder) == f"pid {process.pid}, which is gone or not to be seen"


def test_a_descriptor_that_holds_nothing(crowd: Crowd) -> None:
    """O_PATH needs no permission: nobody makes himself the holder of another's slice by it."""
    (crowd.root / "nvidia-cap21").chmod(0)
    crowd.start("nvidia-cap21", flags=os.O_PATH)
    assert look() == {}


def test_only_devices_count(crowd: Crowd) -> None:
    """A file of that name, or the same number with another name, is none of ours."""
    (crowd.root / "nvidia-cap99").write_text("x")
    os.mknod(crowd.root / "other", stat.S_IFCHR | 0o666, FULL)
    crowd.start("nvidia-cap99", "other")
    assert look() == {}


@pytest.mark.parametrize(
    "name",
    [
        "nv-hostengine) S 1 (x",
        "a\nslurm-mig: epilog job=1 released",
        "\x1b[2J\x1b[31mroot",
        "\udcff\udcfe bytes",
        "",
    ],
)
def test_hostile_names(crowd: Crowd, name: str) -> None:
    """Brackets, newlines, escapes, bytes that are no text: one printable line, right facts."""
    process = crowd.start("nvidia-cap21", name=name)
    holder = look()[process.pid]
    assert holder.uids == (64001,) * 4
    assert holder.started > 0
    assert all(" " <= char <= "~" for char in str(holder))


def test_renamed_by_prctl(crowd: Crowd) -> None:
    """The name in stat may look like its fields."""
    with forked(crowd, b"x) Z 1 1 (") as pid:
        holder = look()[pid]
        assert (holder.name, holder.started > 0) == ("x) Z 1 1 (", True)


@contextmanager
def forked(crowd: Crowd, name: bytes) -> Iterator[int]:
    """A process that calls itself something by PR_SET_NAME."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.open(crowd.root / "nvidia-cap21", os.O_RDONLY)
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
        os.write(done, b"x")
        time.sleep(300)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(done)
    try:
        yield pid
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_processes_that_come_and_go(crowd: Crowd) -> None:
    """None of them disturbs the look."""
    keep = crowd.start("nvidia-cap21")
    for _ in range(5):
        going = [crowd.start("nvidia-cap21") for _ in range(5)]
        for process in going:
            process.kill()
        assert keep.pid in look()


def test_a_process_with_very_many_descriptors(crowd: Crowd) -> None:
    """It is found all the same, and hides nobody: it is looked at last."""
    first = os.open(crowd.root / "nvidia-cap21", os.O_RDONLY)
    many = [first, *(os.dup(first) for _ in range(holder_search.MANY + 10))]
    try:
        crowd_of_one = subprocess.Popen(["/bin/sleep", "300"], pass_fds=many)
        crowd.started.append(crowd_of_one)
    finally:
        for descriptor in many:
            os.close(descriptor)
    plain = crowd.start("nvidia-cap21")
    found = Processes().holding(TARGET, 10).found
    assert [holder.pid for holder in found] == [plain.pid, crowd_of_one.pid]


def test_a_crowd_is_not_counted_to_its_end(tmp_path: Path) -> None:
    """Millions of descriptors are read no further than it takes to know that they are many."""
    for pid, count in (("5", holder_search.MANY + 1), ("6", holder_search.MANY)):
        (tmp_path / pid / "fd").mkdir(parents=True)
        for number in range(count):
            (tmp_path / pid / "fd" / str(number)).touch()
    crowded = Processes(tmp_path)._crowded
    assert (crowded("5"), crowded("6"), crowded("7")) == (True, False, False)


def test_crowds_hide_nobody(crowd: Crowd) -> None:
    """Many processes with as many descriptors as they may have, of no device at all."""
    null = os.open("/dev/null", os.O_RDONLY)
    many = [null, *(os.dup(null) for _ in range(4 * holder_search.MANY))]
    try:
        for _ in range(40):
            sleeper = subprocess.Popen(["/bin/sleep", "300"], pass_fds=many)
            crowd.started.append(sleeper)
    finally:
        for descriptor in many:
            os.close(descriptor)
    plain = crowd.start("nvidia-cap21")
    assert [holder.pid for holder in Processes().holding(TARGET, 10).found] == [plain.pid]


def test_a_directory_of_processes_that_is_odd(tmp_path: Path) -> None:
    """Nothing in it, files for directories, no right to see: nobody is found, no error."""
    (tmp_path / "1").mkdir()
    (tmp_path / "2").write_text("x")
    (tmp_path / "self").mkdir()
    assert Processes(tmp_path).holding(TARGET, 10) == Holders((), complete=True)
    found = Processes(tmp_path / "none").holding(replace(TARGET, listed=((5, 2),)), 10)
    assert [holder.pid for holder in found.found] == [5]


def test_a_look_that_hangs_is_given_up(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a process that hangs in the driver: what was seen by then is told."""
    process = crowd.start("nvidia-cap21")
    monkeypatch.setattr(holder_search, "_user", lambda *_: time.sleep(60))
    started = time.monotonic()
    found = Processes().holding(TARGET, 1)
    assert time.monotonic() - started < 5
    assert ([holder.pid for holder in found.found], found.complete) == ([process.pid], False)
    assert "in time" in found.text()


def test_not_even_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is still what NVML said."""
    monkeypatch.setattr(Processes, "_seen", lambda *_: time.sleep(60))
    found = Processes().holding(replace(TARGET, listed=((5, 2), (6, 3))), 0.2)
    assert found == Holders((Holder(5),), complete=False)


def test_nothing_is_left_open_or_behind(crowd: Crowd) -> None:
    """No descriptor, no zombie."""
    crowd.start("nvidia-cap21")
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    for _ in range(3):
        look()
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][1] for pid in children]
    assert "Z" not in states


def test_the_child_keeps_no_lock(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs for ever must hold neither the GPU's lock nor a hook's output."""

    def pids(_: Processes) -> Iterator[int]:
        mine = list(Path("/proc/self/fd").iterdir())
        kept = [os.path.realpath(path) for path in mine if path.is_symlink()]
        (crowd.root / "kept").write_text("\n".join(kept))
        return iter(())

    monkeypatch.setattr(Processes, "_pids", pids)
    with (crowd.root / "lock").open("w") as lock:
        look()
        kept = (crowd.root / "kept").read_text().splitlines()
        assert lock.name not in kept
    assert kept[:3] == ["/dev/null"] * 3


# -- killing ------------------------------------------------------------------------


def kill(
    target: Target = TARGET,
    owner: Owner = ALICE,
    *,
    by_environment: bool = True,
    change: Callable[[Holder], Holder] = lambda holder: holder,
    proc: Path = Path("/proc"),
) -> set[int]:
    """Look, then kill what may be killed."""
    looker = Processes(proc)
    found = [change(holder) for holder in looker.holding(target, 10).found]
    done = looker.kill(found, target, owner, 10, by_environment=by_environment)
    return {holder.pid for holder in done}


def test_the_left_over_of_a_finished_job(crowd: Crowd) -> None:
    """The one process, by descriptor or by NVML's list."""
    opened, listed = crowd.start("nvidia-cap21", environ=OF_JOB), crowd.start(environ=OF_JOB)
    bystander = crowd.start(environ=OF_JOB)
    target = replace(TARGET, listed=((listed.pid, 2),))
    assert kill(target) == {opened.pid, listed.pid}
    assert ended(opened)
    assert ended(listed)
    assert not ended(bystander)


@pytest.mark.parametrize(
    ("nodes", "uid", "environ"),
    [
        (("nvidia0",), 64001, OF_JOB),
        (("nvidia0", "nvidia-cap30"), 64001, OF_JOB),
        ((), 64001, OF_JOB),
        (("nvidia-cap21",), 64002, OF_JOB),
        (("nvidia-cap21",), 0, OF_JOB),
        (("nvidia-cap21",), 64001, {}),
        (("nvidia-cap21",), 64001, {"SLURM_JOB_ID": "8"}),
        (("nvidia-cap21",), 64001, {"SLURM_JOB_ID": "7 "}),
        (("nvidia-cap21",), 64001, {**OF_JOB, "SLURM_RESTART_COUNT": "1"}),
        (("nvidia-cap21",), 64001, {**OF_JOB, "SLURM_RESTART_COUNT": "x"}),
    ],
)
def test_nobody_else(
    crowd: Crowd, nodes: tuple[str, ...], uid: int, environ: dict[str, str]
) -> None:
    """The GPU only, a neighbour, nothing; another user, root; no job, another, another run."""
    process = crowd.start(*nodes, uid=uid, name="left-over of job 7", environ=environ)
    assert kill() == set()
    assert not ended(process)


def test_the_user_has_another_job_here(crowd: Crowd) -> None:
    """Then an environment proves nothing."""
    process = crowd.start("nvidia-cap21", environ=OF_JOB)
    assert kill(by_environment=False) == set()
    assert not ended(process)


def test_a_recycled_pid(crowd: Crowd) -> None:
    """Another process by now: the start time tells."""
    process = crowd.start("nvidia-cap21", environ=OF_JOB)
    assert kill(change=lambda holder: replace(holder, started=holder.started - 1)) == set()
    assert not ended(process)
    gone = [replace(holder, pid=2**22 - 1) for holder in look().values()]
    assert Processes().kill(gone, TARGET, ALICE, 10, by_environment=True) == []


def test_it_has_let_go_meanwhile(crowd: Crowd) -> None:
    """Looked at again when it is pinned: not a holder any more, so it lives."""
    process = crowd.start("nvidia-cap21", environ=OF_JOB)
    found = look().values()
    elsewhere = Target(frozenset({URANDOM}), frozenset(), (), 2)
    assert Processes().kill(found, elsewhere, ALICE, 10, by_environment=True) == []
    assert not ended(process)


def test_a_kernel_that_cannot_pin(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number alone nobody is killed."""
    process = crowd.start("nvidia-cap21", environ=OF_JOB)

    def refused(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused)
    assert kill() == set()
    assert not ended(process)


def shadow(root: Path, pid: int, cgroup: str) -> Path:
    """A /proc of one process, whose cgroup file is ours to write."""
    directory = root / "proc" / str(pid)
    directory.mkdir(parents=True)
    for name in ("fd", "fdinfo", "stat", "status", "cmdline", "environ"):
        (directory / name).symlink_to(f"/proc/{pid}/{name}")
    (directory / "cgroup").write_text(cgroup)
    return root / "proc"


@pytest.mark.parametrize(
    ("cgroup", "killed"),
    [
        ("6:freezer:/slurm/uid_64001/job_7/step_0\n", True),
        ("0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n", True),
        ("6:freezer:/slurm/uid_64001/job_8/step_0\n", False),
        ("0::/system.slice/slurmstepd.scope/job_8/step_0/user/task_0\n", False),
        ("0::/system.slice/nvidia-dcgm.service\n", False),
        ("0::/user.slice/user-64001.slice/user@64001.service/job_7\n", False),
    ],
)
def test_by_cgroup(crowd: Crowd, cgroup: str, killed: bool) -> None:
    """The job's own, whatever its environment says; not another job's, whatever it says."""
    environ = {"SLURM_JOB_ID": "8" if killed else "7"}
    process = crowd.start("nvidia-cap21", environ=environ)
    proc = shadow(crowd.root, process.pid, cgroup)
    done = kill(proc=proc, by_environment=not killed)
    assert done == ({process.pid} if killed else set())
    assert ended(process) is killed
