"""Every point at which a hook can die: found by watching it, not by a list.

A hook runs in a child under `sys.setprofile`, which reports every call of a builtin
(each system call of Python's own modules, each SQLite statement) and every entry
into the simulated driver. Each is two crash points, before and after. What the
simulator does inside a call does not count: it is the hardware, and a call of it
is atomic.

In one run the child looks at the files after each point and tells which of them
leave the same bytes. Of each such group a child is really killed by SIGKILL, and
every kind of next hook is run on what it left. With `--every` a child is killed
at each single point, and what it left is compared with what was seen there.

    [SLURM_MIG_WAY=later] python -m tests.kit.crash_points [--every] [NAME...]
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import signal
import sqlite3
import stat
import struct
import sys
import tempfile
import time
import types
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import slurm_mig.simulator
from slurm_mig.hooks.epilog import epilog, teardown
from slurm_mig.hooks.job import Job
from slurm_mig.hooks.log_line import LogLine
from slurm_mig.hooks.prolog import prolog
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import TRANSITIONS, Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.node.node import Node
from slurm_mig.settings import Config
from slurm_mig.simulator import Machine
from slurm_mig.simulator.tree import ci_minor, gi_minor
from slurm_mig.slurm.protocol import JobFacts, NodeFacts
from slurm_mig.state import leases
from slurm_mig.transaction import carve, reconcile, release
from slurm_mig.transaction.sweep import settled
from tests.kit.gpus import A30, A100, H100, RTX, geometry_of
from tests.kit.ledgers import broken_event, everything
from tests.kit.site import build_machine, job_environ, remove_tree
from tests.kit.ways import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.simulator.board import SimInstance

#: Owners of builtins that compute and touch nothing outside the process. What is not
#: named here counts, so that an operation nobody thought of is a crash point, too.
PURE_MODULES: Final = frozenset(
    """
    _abc _asyncio _bisect _codecs _collections _collections_abc _contextvars _csv _ctypes _datetime
    _decimal _functools _hashlib _heapq _imp _json _locale _operator _opcode _random
    _sha1 _sha2 _sha256 _sha512 _sre _stat _string _struct _thread _tokenize
    _typing _warnings _weakref _weakrefset atexit binascii builtins collections datetime errno
    functools gc hashlib itertools json math operator pickle re select
    struct sys syslog time types typing unicodedata weakref zlib
    """.split()  # noqa: SIM905  # a table
)
#: Of builtins that do touch something: these only compute or ask for the process itself.
PURE_FUNCTIONS: Final = frozenset(
    {"fspath", "getpid", "geteuid", "urandom", "makedev", "text_encoding", "_path_normpath"}
    | {"WIFEXITED", "waitstatus_to_exitcode", "fsencode", "fsdecode"}
)

_SIMULATOR: Final = str(Path(slurm_mig.simulator.__file__).parent)

#: The job that dies, those beside it, and the one that comes next.
DEAD: Final = 7
NEIGHBOURS: Final = (1, 2)
NEXT: Final = 90


# -- a node in a directory -------------------------------------------------------------


class QuietSlurm:
    """A Slurm that knows which jobs live, and does what it is told."""

    def __init__(self, live: frozenset[int]) -> None:
        self._live = live

    def live_jobs(self, _node: str) -> frozenset[int]:
        return self._live

    def node(self, name: str) -> NodeFacts:
        return NodeFacts(name, frozenset(), "", {}, None, "localhost", "127.0.0.1")

    def job(self, job_id: int) -> JobFacts | None:
        if job_id not in self._live:
            return None
        return JobFacts(job_id, str(job_id), batch=True, requeue=True, state="RUNNING",
                        tres_per_node="")  # fmt: skip

    def state(self, _reference: str) -> str:
        return ""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_, **__: None


@dataclass(frozen=True)
class Place:
    """One node, everything of it below `root`: state, run directory, simulated machine."""

    root: Path
    whole_policy: str = "auto"
    whole_reset: bool = False
    stuck_timeout: float = 10.0

    @property
    def machine(self) -> Machine:
        return Machine(self.root / "sim")

    @contextmanager
    def node(self, *live: int) -> Iterator[Node]:
        """What a hook has while it runs; `live` is what Slurm says."""
        config = Config(
            library=f"simulator:{self.root}/sim",
            state=self.root / "state",
            run=self.root / "run",
            lock_timeout=5,
            destroy_timeout=0.1,
            defer_teardown=later(),
            leases=self.root / "leases",
            whole_policy=self.whole_policy,
            whole_reset=self.whole_reset,
            stuck_timeout=self.stuck_timeout,
        )
        node = Node(config, {"SLURMD_NODENAME": "n1"})
        node.__dict__["slurm"] = QuietSlurm(frozenset(live))
        try:
            yield node
        finally:
            node.close()

    def prolog(self, job: int, request: str, gpus: str = "0", restart: int = 0) -> None:
        """The Prolog of a job: `3g.40gb:1,1g.10gb:2` on a GPU, or empty for whole GPUs.

        `;` stands between what it has on several GPUs.
        """
        with self.node(*NEIGHBOURS, DEAD, NEXT) as node:
            prolog(node, self._job(job, request, gpus, restart), LogLine("prolog"))

    def epilog(self, job: int) -> None:
        """The Epilog, and the process to which it leaves the teardown, if it does."""
        with self.node(*NEIGHBOURS) as node:
            epilog(node, self._job(job, "", ""), LogLine("epilog"))
        if node.put_off:
            self.teardown(job)

    def put_off(self, job: int) -> None:
        """The Epilog that leaves the teardown to another process, which never comes."""
        with self.node(*NEIGHBOURS) as node:
            node.config = replace(node.config, defer_teardown=True)
            epilog(node, self._job(job, "", ""), LogLine("epilog"))

    def teardown(self, job: int) -> None:
        """That process."""
        with self.node(*NEIGHBOURS) as node:
            teardown(node, self._job(job, "", ""), LogLine("teardown"))

    def outlast(self) -> None:
        """What hooks spare for a process that has it in hand, once that has had its time."""
        with self.node(*NEIGHBOURS, DEAD, NEXT) as node:
            for gpu in {item.gpu_uuid for item in node.ledger.all_open() if item.put_off}:
                with settled(node.bench(), gpu, "outlast"):
                    pass

    def reconcile(self, *live: int) -> None:
        with self.node(*live) as node:
            report = reconcile.reconcile(node.bench(), node.live_jobs)
            assert report.left == []

    def owner(self, job: int, restart: int = 0) -> Owner:
        return self._job(job, "", "", restart).owner

    def _job(self, job: int, request: str, gpus: str, restart: int = 0) -> Job:
        environ = job_environ(job, self._stamp(request, gpus), gpus)
        environ["SLURM_JOB_RESTART_COUNT"] = str(restart)
        environ["SLURM_JOB_UID"] = environ["SLURM_JOB_GID"] = str(64000 + job)
        return Job.from_environ(environ)

    def _stamp(self, request: str, gpus: str) -> str:
        if not request:
            return ""
        if ";" in request:
            pairs = zip(request.split(";"), gpus.split(","), strict=True)
            parts = [self._stamp(*pair).partition(",")[2] for pair in pairs]
            return f"slurm-mig=2,{';'.join(parts)}"
        rows = geometry_of(self.machine.gpus[int(gpus)]["name"]).profiles
        ids = {str(row.name): row.profile_id for row in rows}
        words = []
        for item in request.split(","):
            name, _, count = item.partition(":")
            whole = name.partition("c.")[2] or name
            words.append(f"{name}/{ids[whole]}/4:{count}")
        return f"slurm-mig=1,{','.join(words)}"

    def foreign(self, index: int, start: int, name: str, *, compute: bool = True) -> None:
        """An administrator's instance, made past us; perhaps without a compute instance."""
        with self.machine.change(index) as board:
            row = next(row for row in board.geometry.profiles if str(row.name) == name)
            made = board.create(row.profile_id, Placement(start, row.size), busy=False)
            if compute:
                widest = max(
                    board.ci_profiles(made).values(), key=lambda ci: (ci.slices, ci.profile_id)
                )
                board.create_compute(made, widest.profile_id)

    def copy(self, name: Path) -> Place:
        _copy(str(self.root), str(name))
        return replace(self, root=name)

    def remove(self) -> None:
        remove_tree(self.root)


def _copy(source: str, target: str) -> None:
    """A whole tree with owners, modes, access lists, device nodes and mounted leases."""
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        os.mkdir(target)  # noqa: PTH102  # thousands of times: no Path objects
        if os.path.ismount(source):
            leases._call("mount", leases.SOURCE.encode(), Path(target), b"tmpfs", 0, b"size=1m")
        for name in os.listdir(source):  # noqa: PTH208
            _copy(f"{source}/{name}", f"{target}/{name}")
    elif stat.S_ISCHR(status.st_mode):
        os.mknod(target, status.st_mode, status.st_rdev)
    elif stat.S_ISFIFO(status.st_mode):
        # A ticket that a killed hook left; to open it for reading would wait for a writer.
        os.mkfifo(target)
    else:
        with open(source, "rb") as old, open(target, "wb") as new:  # noqa: PTH123
            new.write(old.read())
    if (status.st_uid, status.st_gid) != (0, 0):
        os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))  # noqa: PTH101
    may = stat.S_ISREG(status.st_mode) or "/leases/" in source
    for name in os.listxattr(source) if may else ():
        os.setxattr(target, name, os.getxattr(source, name))


# -- watching and killing --------------------------------------------------------------


@cache
def _owner_counts(owner: str) -> bool:
    return owner.partition(".")[0] not in PURE_MODULES


def counts(function: Any) -> bool:  # any builtin
    """Whether a call of this builtin can change or depend on anything outside the process."""
    owner = function.__self__
    module = owner.__name__ if isinstance(owner, types.ModuleType) else type(owner).__module__
    # `open` says that it is of `builtins` or `io`, by Python's version.
    if function.__name__ == "open":
        return True
    return _owner_counts(module) and function.__name__ not in PURE_FUNCTIONS


class Watch:
    """A profile function that calls `point` before and after each operation."""

    def __init__(self, point: Callable[[str], None]) -> None:
        self._point = point
        self._inside: types.FrameType | None = None
        # What a hook leaves running in a process of its own does not die with it.
        os.register_at_fork(after_in_child=lambda: sys.setprofile(None))

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if self._inside is not None:
            if event == "return" and frame is self._inside:
                self._inside = None
                self._point(f"after {self._label(frame)}")
            return
        if event == "call":
            if frame.f_code.co_filename.startswith(_SIMULATOR):
                self._inside = frame
                self._point(f"before {self._label(frame)}")
        elif event.startswith("c_") and counts(argument):
            when = "before" if event == "c_call" else "after"
            self._point(f"{when} {argument.__name__}")

    @staticmethod
    def _label(frame: types.FrameType) -> str:
        code = frame.f_code
        name = str(frame.f_locals["name"]) if code.co_name == "call" else code.co_name
        return name[1:] if name.startswith("_nvml") else name


def _in_child(work: Callable[[], None], point: Callable[[str], None]) -> int:
    """Run `work` in a child that reports each point; its wait status as an exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.umask(0o077)
            watch = Watch(point)
            sys.setprofile(watch)
            try:
                work()
            finally:
                sys.setprofile(None)
            code = 0
        except BaseException:  # noqa: BLE001  # a child must not return into pytest
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Seen:
    """What one run of a hook went through: labels of all points, and where bytes changed."""

    labels: list[str] = field(default_factory=list)
    #: Number of the state that the files are in at each point.
    states: list[int] = field(default_factory=list)
    #: The meaning of each state, which another run must have at the same point.
    meanings: list[str] = field(default_factory=list)

    def first_points(self) -> list[int]:
        """The first point of each run of points between which nothing changed."""
        return [n for n, s in enumerate(self.states) if n == 0 or s != self.states[n - 1]]


def watch(place: Place, work: Callable[[Place], None], scratch: Path) -> Seen:
    """Run a hook to its end and look at the files after each operation."""
    seen = Seen()
    known: dict[str, int] = {}

    def point(label: str) -> None:
        seen.labels.append(label)
        # Between the end of one operation and the begin of the next there is only
        # computing: nothing but a builtin or the driver changes a file.
        if label.startswith("before") and seen.states:
            seen.states.append(seen.states[-1])
            return
        digest = bytes_of(place.root)
        if digest not in known:
            known[digest] = len(known)
            seen.meanings.append(meaning_of(place))
        seen.states.append(known[digest])

    def run() -> None:
        work(place)
        sys.setprofile(None)
        scratch.write_bytes(pickle.dumps(seen))

    assert _in_child(run, point) == 0
    result: Seen = pickle.loads(scratch.read_bytes())
    return result


def kill(place: Place, work: Callable[[Place], None], at: int, label: str) -> None:
    """Run a hook in a process that is killed at a point, and check that it is that point."""
    count = -1
    right = b""
    reader, writer = os.pipe()

    def point(now: str) -> None:
        nonlocal count
        count += 1
        if count == at:
            os.write(writer, now.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    status = _in_child(lambda: work(place), point)
    os.close(writer)
    right = os.read(reader, 1000)
    os.close(reader)
    assert (status, right.decode()) == (-signal.SIGKILL, label)


def _entries(root: str, into: list[tuple[str, os.stat_result]]) -> None:
    with os.scandir(root) as found:
        for entry in sorted(found, key=lambda item: item.name):
            status = entry.stat(follow_symlinks=False)
            into.append((entry.path, status))
            if stat.S_ISDIR(status.st_mode):
                _entries(entry.path, into)


def _tree(root: Path) -> list[tuple[str, os.stat_result]]:
    """Everything a crash can leave; the parts of the machine that never change left out."""
    found: list[tuple[str, os.stat_result]] = []
    sim = root / "sim"
    for part in (root / "state", root / "run", sim / "dev",
                 sim / "proc/driver/nvidia/capabilities"):  # fmt: skip
        if part.exists():
            found.append((str(part), part.lstat()))
            _entries(str(part), found)
    found += [(str(path), path.lstat()) for path in sorted(sim.glob("gpu*.json"))]
    return found


def bytes_of(root: Path) -> str:
    """Digest of names, owners, modes, device numbers and every byte."""
    digest = hashlib.sha256()
    for path, status in _tree(root):
        digest.update(
            f"{path} {status.st_mode} {status.st_uid} {status.st_gid} {status.st_rdev} ".encode()
        )
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:  # noqa: PTH123
                digest.update(file.read())
    return digest.hexdigest()


def meaning_of(place: Place) -> str:
    """The same without what differs from run to run: process ids, times, SQLite's salts."""
    lines = []
    for path, status in _tree(place.root):
        name = re.sub(r"\.\d+$", ".PID", path.removeprefix(str(place.root)))
        # The directory of leases has a name that nobody can guess.
        name = re.sub(r"-[0-9a-f]{16}\b", "-RANDOM", name)
        if name.startswith("/state/"):
            continue
        text = ""
        if stat.S_ISREG(status.st_mode):
            text = Path(path).read_text("utf-8")
            text = re.sub(r"(\"pid\"|\"since\"|\"created\"): [\d.]+", r"\1", text)
            # The directory of leases has a name that nobody can guess.
            text = re.sub(r"[0-9a-f]{16}\b(?!-)", "RANDOM", text)
            text = text.replace(str(place.root), "ROOT")
        lines.append(f"{name} {status.st_mode:o} {status.st_uid} {status.st_rdev} {text}")
    return "\n".join([*lines, *_ledger_of(place.root)])


def _ledger_of(root: Path) -> list[str]:
    """What another process reads in the ledger now, from a copy: reading may change files."""
    if not (root / "state").is_dir():
        return []
    aside = Path(tempfile.mkdtemp(dir=root))
    try:
        for path in (root / "state").glob("ledger.db*"):
            shutil.copy(path, aside)
        if not (aside / "ledger.db").exists():
            return ["no ledger"]
        with closing(sqlite3.connect(aside / "ledger.db")) as db:
            tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master ORDER BY 1")]
            if "event" not in tables:
                return tables
            queries = (
                "SELECT number, job_id, gpu_minor, phase, reason, ended IS NULL FROM allocation",
                "SELECT * FROM instance",
                "SELECT seq, kind, allocation FROM event",
            )
            return [str(row) for query in queries for row in db.execute(query)]
    finally:
        shutil.rmtree(aside)


# -- what must hold --------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """What there was before a hook ran and died, and must be there ever after."""

    foreign: dict[int, list[tuple[object, ...]]]
    neighbours: dict[int, tuple[list[Allocation], str]]
    mig_mode: dict[int, bool]
    #: Jobs whose Epilog has begun: it closes their nodes before it says so on record.
    ended: frozenset[int]


def _fingerprint(item: SimInstance) -> tuple[object, ...]:
    return (
        item.profile_id, item.start, item.gi_id, item.serial,
        *((ci.ci_id, ci.serial) for ci in item.compute),
    )  # fmt: skip


def note(place: Place, ended: frozenset[int]) -> Before:
    """Remember what is not the dying hook's."""
    machine = place.machine
    foreign, mode = {}, {}
    neighbours: dict[int, tuple[list[Allocation], str]] = {}
    with place.node() as node:
        open_ = node.ledger.all_open()
        for job in NEIGHBOURS:
            if records := [item for item in open_ if item.owner.job_id == job]:
                neighbours[job] = (records, (place.root / f"run/env/{job}.0").read_text())
    for index, facts in enumerate(machine.gpus):
        board = machine.board(index)
        ours = {
            (item.profile_id, item.start)
            for record in open_
            if record.gpu_uuid == facts["uuid"]
            for item in record.instances
        }
        strangers = [item for item in board.instances if (item.profile_id, item.start) not in ours]
        foreign[index] = [_fingerprint(item) for item in strangers]
        mode[index] = board.mig_current
    return Before(foreign, neighbours, mode, ended)


def check(place: Place, before: Before) -> None:
    """One truth: ledger, hardware, device nodes, files, locks, and the trail of it all."""
    place.outlast()
    with place.node() as node:
        open_ = node.ledger.all_open()
        assert broken_event(node.ledger) is None
        for index in before.foreign:
            _check_gpu(place, before, index, open_)
        _check_nodes(place, open_, before.ended)
        _check_files(place, open_)
        for job, (records, lines) in before.neighbours.items():
            assert [item for item in open_ if item.owner.job_id == job] == records
            assert (place.root / f"run/env/{job}.0").read_text() == lines
        with node.locks.hold([facts["uuid"] for facts in place.machine.gpus], "look"):
            pass
    _check_trail(place)


def _check_gpu(place: Place, before: Before, index: int, open_: list[Allocation]) -> None:
    board = place.machine.board(index)
    records = [record for record in open_ if record.gpu_uuid == board.uuid]
    assert {record.phase for record in records} <= {phases.ACTIVE}
    recorded: dict[tuple[int, int, int | None], set[tuple[int | None, str | None]]] = {}
    for record in records:
        for item in record.instances:
            key = (item.profile_id, item.start, item.gi_id)
            recorded.setdefault(key, set()).add((item.ci_id, item.uuid))
    there = {
        (item.profile_id, item.start, item.gi_id): {
            (ci.ci_id, board.mig_uuid(item, ci)) for ci in item.compute
        }
        for item in board.instances
    }
    strangers = {item[:3] for item in before.foreign[index]}
    assert {key: ids for key, ids in there.items() if key not in strangers} == recorded
    left = [_fingerprint(item) for item in board.instances]
    assert [item for item in left if item[:3] in strangers] == before.foreign[index]
    off = any(record.request == phases.WHOLE_MIG_OFF for record in records)
    if off or before.mig_mode[index]:
        assert board.mig_current is not off


def _check_nodes(place: Place, open_: list[Allocation], ended: frozenset[int]) -> None:
    """Every living instance of a job is closed to all but its user; no other node is left."""
    expected, closed = {}, set()
    base = place.root / "sim/proc/driver/nvidia/capabilities"
    for record in open_:
        for item in record.instances:
            if record.owner.job_id is None or item.gi_id is None or item.ci_id is None:
                continue
            gi = base / f"gpu{record.gpu_minor}/mig/gi{item.gi_id}"
            for minor, access in (
                (gi_minor(record.gpu_minor, item.gi_id), gi / "access"),
                (ci_minor(record.gpu_minor, item.gi_id, item.ci_id), gi / f"ci{item.ci_id}/access"),
            ):
                expected[f"nvidia-cap{minor}"] = (record.owner.uid, record.owner.gid, 0o400)
                if record.owner.job_id in ended:
                    closed.add(f"nvidia-cap{minor}")
                assert "DeviceFileModify: 0" in access.read_text()
    nodes = place.root / "sim/dev/nvidia-caps"
    found = {}
    for path in nodes.iterdir() if nodes.is_dir() else ():
        status = path.lstat()
        assert stat.S_ISCHR(status.st_mode)
        found[path.name] = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
        if path.name in closed and found[path.name] in ((0, 0, 0), (0, 0, 0o400)):
            expected[path.name] = found[path.name]
    assert found == expected
    if expected:
        # Every user has to get through to his own.
        assert stat.S_IMODE(nodes.stat().st_mode) == 0o755


def _check_files(place: Place, open_: list[Allocation]) -> None:
    """No environment of a run without a slice, and it names just those that the run has."""
    held: dict[str, list[Allocation]] = {}
    for record in open_:
        held.setdefault(f"{record.owner.job_id}.{record.owner.restart}", []).append(record)
    env = place.root / "run/env"
    for path in env.iterdir() if env.is_dir() else ():
        # What a write left half-way is not read by tasks, and goes with its job's next hook.
        half = path.name.startswith(".")
        stem = ".".join(path.name.removeprefix(".").split(".")[:2])
        if ".refused" in path.name:
            # One or the other: TaskProlog takes the refusal, whatever else is there.
            assert half or not (env / stem).exists()
            continue
        assert stem in held, f"{path} has no slice"
        if not half:
            lines = path.read_text().splitlines()
            uuids = {line.split()[1] for line in lines if line.startswith("slice ")}
            # Beside slices, a GPU that the job has as a whole is named by its own UUID.
            whole = {record.gpu_uuid for record in held[stem] if record.whole}
            assert uuids <= whole | {uuid for record in held[stem] for uuid in record.uuids}
            assert readers(path) <= {record.owner.uid for record in held[stem]}
            assert stat.S_IMODE(path.stat().st_mode) in (0o400, 0o440)


def readers(path: Path) -> set[int]:
    """Users whom a file's access list, or without one its owner's mode, lets read it."""
    try:
        packed = os.getxattr(path, "system.posix_acl_access")[4:]
    except OSError:
        return {path.stat().st_uid}
    entries = struct.iter_unpack("<HHI", packed)
    named = {uid for tag, right, uid in entries if tag == 0x02 and right & 4}
    # The mask is where the group's bits stand; without it the list lets nobody in.
    return named if path.stat().st_mode & 0o040 else set()


def _check_trail(place: Place) -> None:
    """Events tell a legal life of each record, and its last one is what the record says."""
    with closing(sqlite3.connect(place.root / "state/ledger.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for number, phase in db.execute("SELECT number, phase FROM allocation").fetchall():
            rows = db.execute(
                "SELECT kind, detail FROM event WHERE allocation = ? ORDER BY seq", (number,)
            )
            told = [json.loads(detail)["phase"] for _, detail in rows]
            assert told[0] in (phases.PLANNED, phases.REFUSED)
            assert told[-1] == phase
            for old, new in pairwise(told):
                assert new in TRANSITIONS[old]


def check_nothing_left_of(place: Place, *jobs: int) -> None:
    """Neither a record nor a file, not even a half-written one."""
    with place.node() as node:
        for job in jobs:
            assert node.ledger.open_of_job(job) == []
            left = [*place.root.glob(f"run/*/{job}.*"), *place.root.glob(f"run/*/.{job}.*")]
            assert left == []


def check_no_remains(place: Place) -> None:
    """No half-written file and no note of a dead lock holder anywhere."""
    assert [path for path in place.root.glob("run/*/*") if path.name.startswith(".")] == []
    assert list(place.root.glob("run/locks/*.holder")) == []


# -- what comes next -------------------------------------------------------------------


def next_prolog(place: Place, before: Before, spot: Spot) -> None:
    """A Prolog of another job on every GPU that the dead hook had to do with."""
    for number, gpu in enumerate(spot.gpus):
        smallest = geometry_of(place.machine.gpus[int(gpu)]["name"]).profiles[0]
        place.prolog(NEXT + number, f"{smallest.name}:1", gpu)
    check(place, before)
    for job in spot.jobs:
        place.epilog(job)
    check_nothing_left_of(place, *spot.jobs)


def same_prolog(place: Place, before: Before, spot: Spot) -> None:
    """The Prolog of the same run once more: it is served as if nothing had been."""
    spot.work(place)
    check(place, before)
    spot.served(place)


def next_epilog(place: Place, before: Before, spot: Spot) -> None:
    """The Epilogs of the jobs that the hook had to do with."""
    for job in spot.jobs:
        place.epilog(job)
    check(place, before)
    check_nothing_left_of(place, *spot.jobs)


def while_it_lives(place: Place, before: Before, spot: Spot) -> None:
    """A reconcile while Slurm still has the job; and its Epilog later."""
    place.reconcile(*NEIGHBOURS, *spot.jobs)
    check(place, before)
    for job in spot.jobs:
        place.epilog(job)
    check(place, before)
    check_nothing_left_of(place, *spot.jobs)


def when_it_is_gone(place: Place, before: Before, spot: Spot) -> None:
    """A reconcile once Slurm has forgotten it: no Epilog ever comes."""
    place.reconcile(*NEIGHBOURS)
    check(place, before)
    check_nothing_left_of(place, *spot.jobs)
    check_no_remains(place)


NEXT_STEPS: Final = (next_prolog, same_prolog, next_epilog, while_it_lives, when_it_is_gone)


# -- where hooks die -------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """A node as it is, the hook that dies on it, and the GPUs it has to do with."""

    name: str
    machine: tuple[str, ...]
    work: Callable[[Place], None]
    setting: Callable[[Place], None] = lambda _: None
    gpus: tuple[str, ...] = ("0",)
    jobs: tuple[int, ...] = (DEAD,)
    whole_policy: str = "auto"
    whole_reset: bool = False
    stuck_timeout: float = 10.0

    def build(self, root: Path) -> Place:
        root.mkdir(mode=0o755)
        machine = build_machine(root / "sim", *self.machine)
        for index in range(len(self.machine)):
            with machine.change(index) as board:
                board.set_mode(True, busy=False)
        place = Place(root, self.whole_policy, self.whole_reset, self.stuck_timeout)
        self.setting(place)
        return place

    @property
    def kind(self) -> str:
        """What dies: prolog, epilog, reconcile or by (an administrator's command)."""
        return self.name.partition("-")[0]

    @property
    def ended(self) -> frozenset[int]:
        """Jobs whose Epilog has begun by the time of the kill."""
        begun = self.kind == "epilog" or "killed-epilog" in self.name
        return frozenset(self.jobs if begun else ())

    def served(self, place: Place) -> None:
        """The job has what it asked for, or has been refused again."""
        with place.node() as node:
            records = [item for item in node.ledger.of_job(DEAD) if item.open]
            refused = (place.root / f"run/env/{DEAD}.0.refused").exists()
            assert refused == self.name.endswith("refused")
            if refused:
                assert records == []
            else:
                assert [item.gpu_minor for item in records] == [int(gpu) for gpu in self.gpus]
                assert (place.root / f"run/env/{DEAD}.0").exists()


def _prolog(request: str, gpus: str = "0") -> Callable[[Place], None]:
    return lambda place: place.prolog(DEAD, request, gpus)


def _given(request: str, gpus: str = "0") -> Callable[[Place], None]:
    """The same for a setting: the job that is to lose them has its slices."""

    def setting(place: Place) -> None:
        place.prolog(DEAD, request, gpus)
        with place.node() as node:
            assert node.ledger.open_of_job(DEAD)

    return setting


def _epilog(place: Place) -> None:
    place.epilog(DEAD)


def _put_off(place: Place) -> None:
    place.put_off(DEAD)


def _reconcile(place: Place) -> None:
    place.reconcile(*NEIGHBOURS)


def _both(*settings: Callable[[Place], None]) -> Callable[[Place], None]:
    def setting(place: Place) -> None:
        for one in settings:
            one(place)

    return setting


def _over(job: int, request: str) -> Callable[[Place], None]:
    """A job that has ended, and whose teardown nobody has begun."""

    def setting(place: Place) -> None:
        place.prolog(job, request)
        place.put_off(job)

    return setting


def _neighbours(*requests: str) -> Callable[[Place], None]:
    def setting(place: Place) -> None:
        for job, request in zip(NEIGHBOURS, requests, strict=False):
            place.prolog(job, request)

    return setting


def _stranger(start: int, name: str, *, compute: bool = True) -> Callable[[Place], None]:
    return lambda place: place.foreign(0, start, name, compute=compute)


def _killed(work: Callable[[Place], None], label: str, times: int = 1) -> Callable[[Place], None]:
    """A hook that was killed before: at the n-th point of that name."""

    def setting(place: Place) -> None:
        left = times

        def point(now: str) -> None:
            nonlocal left
            left -= now == label
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        assert _in_child(lambda: work(place), point) == -signal.SIGKILL

    return setting


def _rebooted(place: Place) -> None:
    place.machine.reboot()
    remove_tree(place.root / "run")


def _used(place: Place) -> None:
    """A node that has served before: its ledger and directories are there."""
    place.prolog(NEIGHBOURS[0], "")
    place.epilog(NEIGHBOURS[0])


def _mode_off(place: Place) -> None:
    for index in range(len(place.machine.gpus)):
        with place.machine.change(index) as board:
            board.set_mode(False, busy=False)


def _by_hand(place: Place) -> None:
    """`slurm-mig create`: an administrator's slice, without job."""
    with place.node() as node:
        geometry = node.driver.geometry(node.driver.gpus()[0])
        from slurm_mig.mig.request import Item, Request

        row = geometry.profiles[0]
        request = Request((Item(row.name, 1, row.profile_id),))
        for record in node.ledger.all_open():
            if record.owner.job_id is None:
                release.release(node.bench(), record, "by hand")
        carve.allocate(node.bench(), Owner(None), request, node.driver.gpus()[0])


_CREATED: Final = "after nvmlDeviceCreateGpuInstanceWithPlacement"
_GI_GONE: Final = "after nvmlGpuInstanceDestroy"

SPOTS: Final = (
    Spot("prolog-first-of-a-node", (H100,), _prolog("3g.40gb:1")),
    Spot(
        "prolog-between-neighbours",
        (H100, A30),
        _prolog("2g.20gb:1"),
        _both(_neighbours("1g.10gb:1", "1g.20gb:1"), _stranger(0, "1g.10gb")),
    ),
    Spot(
        "prolog-ampere-several-slices",
        (A100,),
        _prolog("1g.10gb:2,2g.20gb:1"),
        _both(_neighbours("1g.10gb:1"), _stranger(2, "1g.10gb", compute=False)),
    ),
    Spot("prolog-a30", (A30,), _prolog("2g.12gb:1"), _neighbours("1g.6gb:1")),
    Spot("prolog-rtx", (RTX,), _prolog("1g.24gb:1"), _both(_used, _stranger(9, "1g.24gb"))),
    Spot(
        "prolog-shared-gpu-instance",
        (H100,),
        _prolog("1c.3g.40gb:3"),
        _neighbours("1g.10gb:1"),
    ),
    Spot("prolog-refused", (H100,), _prolog("7g.80gb:1"), _neighbours("1g.10gb:1")),
    Spot(
        "prolog-after-a-killed-one",
        (H100,),
        _prolog("3g.40gb:1"),
        _both(
            _neighbours("1g.10gb:1"),
            _killed(lambda place: place.prolog(5, "1g.10gb:2"), _CREATED, 2),
        ),
        jobs=(DEAD, 5),
    ),
    Spot(
        "prolog-again",
        (A100,),
        _prolog("1g.10gb:2"),
        _both(_neighbours("1g.10gb:1"), lambda place: place.prolog(DEAD, "1g.10gb:2")),
    ),
    Spot("prolog-mig-mode-off", (H100,), _prolog("3g.40gb:1"), _both(_used, _mode_off)),
    Spot("prolog-whole", (H100,), _prolog(""), _used),
    Spot("prolog-two-whole", (H100, H100), _prolog("", "0,1"), _used, gpus=("0", "1")),
    Spot(
        "prolog-second-whole-refused",
        (H100, H100),
        _prolog("", "0,1"),
        _both(_used, lambda place: place.foreign(1, 3, "1g.10gb")),
        gpus=("0", "1"),
    ),
    Spot(
        "prolog-several-gpus",
        (H100, H100),
        _prolog("3g.40gb:2;3g.40gb:1,1g.10gb:1", "0,1"),
        _both(_used, _mode_off),
        gpus=("0", "1"),
    ),
    Spot(
        "prolog-several-gpus-second-refused",
        (H100, H100),
        _prolog("3g.40gb:2;7g.80gb:1", "0,1"),
        _both(_used, lambda place: place.foreign(1, 3, "1g.10gb")),
        gpus=("0", "1"),
    ),
    Spot(
        "prolog-whole-by-reset",
        (A100,),
        _prolog(""),
        _used,
        whole_policy="mig-off",
        whole_reset=True,
    ),
    Spot("prolog-whole-as-profile", (A100,), _prolog(""), _used),
    Spot(
        "prolog-where-much-is-put-off",
        (H100,),
        _prolog("1g.10gb:1,2g.20gb:1"),
        _both(_neighbours("1g.10gb:1"), _over(5, "3g.40gb:1"), _over(6, "1g.10gb:2")),
        jobs=(DEAD, 5, 6),
        # However long all its deaths take, what was put off is young.
        stuck_timeout=10_000,
    ),
    Spot(
        "epilog",
        (H100,),
        _epilog,
        _both(_stranger(6, "1g.10gb"), _neighbours("1g.10gb:1"), _given("3g.40gb:1")),
    ),
    Spot(
        "epilog-ampere-several-slices",
        (A100,),
        _epilog,
        _both(_neighbours("1g.10gb:1"), _given("1g.10gb:2,2g.20gb:1")),
    ),
    Spot("epilog-shared-gpu-instance", (A30,), _epilog, _given("1c.2g.12gb:2")),
    Spot("epilog-whole", (H100, H100), _epilog, _given("", "0,1"), gpus=("0", "1")),
    Spot("epilog-put-off", (H100,), _put_off, _given("1g.10gb:1,3g.40gb:1")),
    Spot(
        "epilog-put-off-teardown",
        (H100,),
        lambda place: place.teardown(DEAD),
        _both(_neighbours("1g.10gb:1"), _given("1g.10gb:1,3g.40gb:1"), _put_off),
    ),
    Spot(
        "epilog-several-gpus",
        (A100, H100),
        _epilog,
        _given("3g.40gb:2;1c.3g.40gb:3", "0,1"),
        gpus=("0", "1"),
    ),
    Spot("epilog-refused", (H100,), _epilog, _both(_neighbours("1g.10gb:1"), _prolog("7g.80gb:1"))),
    Spot(
        "epilog-after-a-killed-prolog",
        (H100,),
        _epilog,
        _both(_neighbours("1g.10gb:1"), _killed(_prolog("1g.10gb:1,3g.40gb:1"), _CREATED, 2)),
    ),
    Spot(
        "reconcile-after-a-killed-epilog",
        (A100, H100),
        _reconcile,
        _both(
            _neighbours("1g.10gb:1"),
            _stranger(0, "1g.10gb"),
            _given("1g.10gb:2"),
            _killed(_epilog, _GI_GONE),
            lambda place: place.prolog(5, "3g.40gb:1", "1"),
        ),
        gpus=("0", "1"),
        jobs=(DEAD, 5),
    ),
    Spot(
        "reconcile-after-a-reboot",
        (A100, H100),
        _reconcile,
        _both(
            _given(""),
            lambda place: place.prolog(5, "3g.40gb:1", "1"),
            _rebooted,
        ),
        gpus=("0", "1"),
        jobs=(DEAD, 5),
        whole_policy="mig-off",
        whole_reset=True,
    ),
    Spot("by-hand", (RTX,), _by_hand, _both(_stranger(9, "1g.24gb"), _by_hand), jobs=()),
)


# -- all of it -------------------------------------------------------------------------


@dataclass
class Figures:
    """What was tried on one spot."""

    points: int = 0
    states: int = 0
    kills: int = 0
    recoveries: int = 0
    seconds: float = 0.0


def room() -> Path:
    """A directory for worlds: in memory where there is one, for they are many."""
    memory = Path("/dev/shm")
    base = memory if os.access(memory, os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="smig-", dir=base))
    path.chmod(0o755)
    return path


def exhaust(spot: Spot, *, every: bool = False, one_in: int = 1) -> Figures:
    """Kill the spot's hook at each of its points, and let everything come next.

    `one_in`: of so many states one, another one for each spot.
    """
    started, root = time.monotonic(), room()
    try:
        figures = _exhaust(spot, root, every=every, one_in=one_in)
    finally:
        remove_tree(root)
    figures.seconds = time.monotonic() - started
    return figures


def _exhaust(spot: Spot, root: Path, *, every: bool, one_in: int) -> Figures:
    fresh = spot.build(root / "fresh")
    before = note(fresh, spot.ended)
    # Once for nothing: what is imported late is imported now, in all later runs alike.
    spot.work(fresh.copy(root / "warm"))
    seen = watch(fresh.copy(root / "watched"), spot.work, root / "seen")
    figures = Figures(points=len(seen.labels), states=len(set(seen.states)))
    steps = [step for step in NEXT_STEPS if step is not same_prolog or spot.kind == "prolog"]
    if not spot.jobs:
        steps.remove(next_epilog)
    firsts = set(sorted(seen.first_points())[len(spot.name) % one_in :: one_in])
    failures: list[Exception] = []
    for at in range(len(seen.labels)) if every else sorted(firsts):
        dead = fresh.copy(root / "dead")
        kill(dead, spot.work, at, seen.labels[at])
        figures.kills += 1
        assert meaning_of(dead) == seen.meanings[seen.states[at]], f"at {seen.labels[at]} ({at})"
        for step in steps if at in firsts else ():
            try:
                _recover(dead, step, before, spot, last=step is steps[-1])
            except Exception as problem:  # noqa: BLE001  # all are told, at the end
                problem.add_note(f"killed {seen.labels[at]} (point {at}), then {step.__name__}")
                failures.append(problem)
            figures.recoveries += 1
        if dead.root.exists():
            dead.remove()
    if failures:
        raise ExceptionGroup(spot.name, failures)
    return figures


def _recover(
    dead: Place,
    step: Callable[[Place, Before, Spot], None],
    before: Before,
    spot: Spot,
    *,
    last: bool,
) -> None:
    trial = dead if last else dead.copy(dead.root.with_name("trial"))
    try:
        step(trial, before, spot)
        with trial.node() as node:
            # Nobody but us was here.
            blamed = [item for item in everything(node.ledger) if "from outside" in item.reason]
            assert blamed == []
    finally:
        trial.remove()


def main(arguments: list[str]) -> None:
    """Run the named spots, or all, and print what was tried."""
    every, names = "--every" in arguments, [word for word in arguments if word != "--every"]
    total = Figures()
    print(f"{'where':34} points states  kills recoveries seconds")
    for spot in SPOTS:
        if names and spot.name not in names:
            continue
        done = exhaust(spot, every=every)
        _print(spot.name, done)
        for name in vars(total):
            setattr(total, name, getattr(total, name) + getattr(done, name))
    _print("all", total)


def _print(name: str, done: Figures) -> None:
    print(
        f"{name:34} {done.points:6} {done.states:6} {done.kills:6} {done.recoveries:10} "
        f"{done.seconds:7.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
