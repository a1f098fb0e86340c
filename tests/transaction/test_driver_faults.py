"""Every code of every NVML call, at every point of every operation; and drivers that lie.

The hooks run here in one process after another would: the real `hooks.run` with a fresh
session, ledger and lock each time. What NVML answers is struck below pynvml.
`pytest -s -k injections tests/transaction/test_driver_faults.py` prints how many there were.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Final

import pytest

from slurm_mig.config import load
from slurm_mig.errors import SlurmMigError
from slurm_mig.gpu.nvml import NvmlDriver
from slurm_mig.hooks import log_line, run
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.node.node import Node
from slurm_mig.simulator.board import Board, SimInstance
from slurm_mig.simulator.library import Library
from slurm_mig.slurm.protocol import JobFacts, NodeFacts
from slurm_mig.state.ledger import Ledger
from slurm_mig.transaction import carve, reconcile, release
from slurm_mig.transaction.workbench import Workbench
from tests.kit.gpus import A30, H100
from tests.kit.site import build_machine, job_environ, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.simulator import Machine

pytestmark = pytest.mark.root

#: Codes that facts/mig.md#calls lists for a call; of destroys also what #bugs tells of them.
LISTED: Final[Mapping[str, tuple[str, ...]]] = {
    "nvmlInitWithFlags": ("DRIVER_NOT_LOADED",),
    "nvmlDeviceGetMigMode": ("NOT_SUPPORTED",),
    "nvmlDeviceSetMigMode": ("NOT_SUPPORTED", "RESET_REQUIRED", "IN_USE"),
    "nvmlDeviceGetHandleByUUID": ("NOT_FOUND",),
    "nvmlDeviceGetGpuInstanceProfileInfoV": ("NOT_SUPPORTED", "INVALID_ARGUMENT"),
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2": ("NOT_SUPPORTED", "INVALID_ARGUMENT"),
    "nvmlDeviceCreateGpuInstanceWithPlacement": (
        "NOT_SUPPORTED",
        "INVALID_ARGUMENT",
        "INSUFFICIENT_RESOURCES",
        "IN_USE",
        "RESET_REQUIRED",
    ),
    "nvmlGpuInstanceDestroy": ("IN_USE", "NOT_FOUND", "NOT_SUPPORTED", "INVALID_ARGUMENT"),
    "nvmlDeviceGetGpuInstances": ("NOT_SUPPORTED", "INSUFFICIENT_SIZE"),
    "nvmlDeviceGetGpuInstanceById": ("NOT_FOUND", "NOT_SUPPORTED"),
    "nvmlGpuInstanceGetInfo": ("INVALID_ARGUMENT",),
    "nvmlGpuInstanceGetComputeInstanceProfileInfo": ("NOT_SUPPORTED", "INVALID_ARGUMENT"),
    "nvmlGpuInstanceGetComputeInstances": ("INVALID_ARGUMENT",),
    "nvmlGpuInstanceGetComputeInstanceById": ("NOT_FOUND", "INVALID_ARGUMENT"),
    "nvmlComputeInstanceGetInfo_v2": ("INVALID_ARGUMENT", "ARGUMENT_VERSION_MISMATCH"),
    "nvmlGpuInstanceCreateComputeInstance": ("INSUFFICIENT_RESOURCES", "NOT_SUPPORTED", "IN_USE"),
    "nvmlComputeInstanceDestroy": ("IN_USE", "NOT_FOUND", "NOT_SUPPORTED", "INVALID_ARGUMENT"),
}

#: What the driver can give to any call; 77 is a code that the binding has no class for.
ANY: Final = ("UNKNOWN", "GPU_IS_LOST", "NO_PERMISSION", "77")

#: What is said of an instance that only the fault holds; a busy machine looks at less.
NOBODY: Final = (
    "still there, used by (no process that can be found|not all processes could be looked at)"
)

#: Calls that are asked for each of many numbers, every time in the same way.
ENUMERATED: Final = (
    "nvmlDeviceGetGpuInstanceProfileInfoV",
    "nvmlGpuInstanceGetComputeInstanceProfileInfo",
)

#: Calls that change something: struck at every one.
CHANGING: Final = (
    "nvmlDeviceSetMigMode",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
)

#: The hook's exit code for each NVML code where nothing else is expected: the node's faults.
EXIT: Final = {"GPU_IS_LOST": 14, "NO_PERMISSION": 21, "DRIVER_NOT_LOADED": 12, "IN_USE": 15}
DRIVER_FAULT: Final = 13

DONE: Final = "done"
REFUSED: Final = "refused"
ASIDE: Final = "set aside"


class Injector:
    """Stands where the rule file is: counts in memory, and does anything at a chosen call."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.strike: tuple[str, int, int, str] | None = None
        self.at: dict[tuple[str, int], Callable[[], object]] = {}
        self.struck = 0

    def rules(self) -> list[object]:
        return []

    def clear(self) -> None:
        self.seen.clear()
        self.at.clear()
        self.strike, self.struck = None, 0

    def effects(self, call: str) -> list[str]:
        self.seen[call] += 1
        if (call, self.seen[call]) in self.at:
            self.at[call, self.seen[call]]()
        if self.strike is None:
            return []
        name, first, times, effect = self.strike
        number = self.seen[call] - first + 1
        if name != call or number < 1 or (times and number > times):
            return []
        self.struck += 1
        return [effect]


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Slurm:
    """Takes drains; its jobs ask for a GPU and have ended, so that a refusal leaves them alone."""

    drained: list[str] = field(default_factory=list)

    def drain(self, node: str, reason: str) -> None:
        self.drained.append(reason)

    def job(self, job_id: int) -> JobFacts:
        return JobFacts(job_id, str(job_id), True, True, "COMPLETED", "gres:gpu:1", "n1")

    def node(self, name: str) -> NodeFacts:
        return NodeFacts(name, frozenset(), "", {}, None, "localhost", "127.0.0.1")

    def live_jobs(self, node: str) -> frozenset[int]:
        return frozenset({7, 8})


class Bench:
    """One simulated GPU with a neighbour's slice and a stranger's half-made instance."""

    def __init__(self, root: Path, model: str, injector: Injector, lines: list[str]) -> None:
        self.root, self.injector, self.lines = root, injector, lines
        self.machine: Machine = build_machine(root / "sim", model)
        with self.machine.change(0) as board:
            board.set_mode(True, busy=False)
        self.config = root / "config.toml"
        self.config.write_text(
            f'[driver]\nlibrary = "simulator:{root}/sim"\n'
            f'[paths]\nstate = "{root}/state"\nrun = "{root}/run"\n'
            "[hooks]\ndestroy_timeout = 0.1\n"
        )
        self.slurm = Slurm()
        self._ledger: Ledger | None = None

    def crowd(self) -> None:
        """Job 8 beside, and an instance that nobody of us made and has no compute instance."""
        assert self.hook("prolog", 8, "slurm-mig=1,1g.6gb/14/1:1") == 0
        with self.machine.change(0) as board:
            free = [n for n in range(4) if not board.occupied() >> n & 1]
            board.create(14, Placement(free[0], 1), busy=False)

    def hook(self, name: str, job: int = 7, stamp: str = "") -> int:
        environ = job_environ(job, stamp) | {"SLURM_MIG_CONFIG": str(self.config)}
        self.slurm.drained.clear()
        self.lines.clear()
        # Each reads the profile tables as the first hook of a boot does: those calls fail, too.
        rmtree(self.root / "run/tables", ignore_errors=True)
        return run.run(name, environ)

    def node(self) -> Node:
        return Node(load(self.config, {}), {"SLURMD_NODENAME": "n1"})

    def ledger(self) -> list[Allocation]:
        if self._ledger is None:
            self._ledger = Ledger(self.root / "state/ledger.db")
        return self._ledger.all_open()

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def hardware(self) -> dict[tuple[int, int], int]:
        """(profile id, start) -> serial of each GPU instance: who was there stays the same."""
        return {
            (item.profile_id, item.start): item.serial for item in self.machine.board(0).instances
        }

    def whole(self) -> list[tuple[int, int]]:
        """Instances with exactly one compute instance that fills them."""
        board = self.machine.board(0)
        return [
            (item.profile_id, item.start)
            for item in board.instances
            if [ci.size for ci in item.compute] == [board.row(item.profile_id).slices]
        ]

    def reconcile(self) -> list[str]:
        node = self.node()
        try:
            report = reconcile.reconcile(node.bench(), lambda: frozenset({8}))
            return report.left
        finally:
            node.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Bench]]:
    """In memory, without waiting, and with one library a machine: only the hook is new."""
    shm = Path("/dev/shm")  # no disk: each hook syncs its ledger
    root = Path(tempfile.mkdtemp(prefix="smig-", dir=shm if shm.is_dir() else None))
    injector, clock = Injector(), Clock()
    lines: list[str] = []
    libraries: dict[Path, Library] = {}

    def library(node: Any) -> Library:
        if node._root not in libraries:
            libraries[node._root] = Library(node._root)
        return libraries[node._root]

    def write(line: Any) -> None:
        lines.append(" ".join([*line.words, "; ".join(line.said)]))

    monkeypatch.setattr("slurm_mig.simulator.machine.Faults", lambda _path: injector)
    # What was put off drains with patience; here nobody answers.
    monkeypatch.setattr(run, "DRAIN_TRIES", 1)
    defaults: Any = Workbench.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "sleep", clock.sleep)
    monkeypatch.setitem(defaults, "monotonic", clock)
    monkeypatch.setattr(Node, "_library", library)
    monkeypatch.setattr(log_line.LogLine, "write", write)

    built: list[Bench] = []

    def build(model: str) -> Bench:
        built.append(made := Bench(root / str(len(built)), model, injector, lines))
        monkeypatch.setattr(Node, "slurm", made.slurm)
        return made

    yield build
    for made in built:
        made.close()
    remove_tree(root)


# -- operations ----------------------------------------------------------------------

SLICES: Final = "slurm-mig=1,1g.6gb/14/1:2"


@dataclass(frozen=True)
class Operation:
    """What runs under a fault, on which hardware, and after what."""

    model: str
    before: Callable[[Bench], object]
    run: Callable[[Bench], int]


def nothing(bench: Bench) -> None:
    """The operation starts from rest."""


def _reconcile(bench: Bench) -> int:
    """As the command does: a fault's exit code, 24 for what is left."""
    bench.lines.clear()
    bench.slurm.drained.clear()
    try:
        left = bench.reconcile()
    except SlurmMigError as fault:
        bench.lines.append(str(fault))
        return fault.exit_code
    bench.lines.append("; ".join(left))
    return 24 if left else 0


def given(name: str, *arguments: object) -> Callable[[Bench], int]:
    return lambda bench: bench.hook(name, *arguments)  # type: ignore[arg-type]


OPERATIONS: Final[Mapping[str, Operation]] = {
    "prolog": Operation(A30, nothing, given("prolog", 7, SLICES)),
    "epilog": Operation(A30, given("prolog", 7, SLICES), given("epilog")),
    "whole prolog": Operation(H100, nothing, given("prolog", 7, "")),
    "whole epilog": Operation(H100, given("prolog", 7, ""), given("epilog")),
    "reconcile": Operation(A30, given("prolog", 7, SLICES), _reconcile),
}


# appended temporarily


# -- every code at every call --------------------------------------------------------

ALONE: Final = "left alone"

#: (call, code) -> what may come of it when it strikes once, and for ever. Two ways where it
#: depends on the point: before anything is made or after. Of all else: `EXIT`, at once.
EXPECTED: Final[Mapping[tuple[str, str], tuple[set[object], set[object]]]] = {
    # For ever from the start it is what a GPU without MIG says: not managed, or not to be carved.
    ("nvmlDeviceGetMigMode", "NOT_SUPPORTED"): ({DONE}, {ALONE, 10, DRIVER_FAULT}),
    ("nvmlDeviceSetMigMode", "IN_USE"): ({DONE}, {REFUSED, ASIDE}),
    ("nvmlDeviceGetHandleByUUID", "NOT_FOUND"): ({14}, {14}),
    # For ever a profile is missing, or all that follow: not offered, or not even the table.
    ("nvmlDeviceGetGpuInstanceProfileInfoV", "NOT_SUPPORTED"): (
        {DONE},
        {DONE, REFUSED, DRIVER_FAULT},
    ),
    ("nvmlDeviceGetGpuInstanceProfileInfoV", "INVALID_ARGUMENT"): (
        {DONE},
        {DONE, REFUSED, DRIVER_FAULT},
    ),
    # While instances are listed, the list is read again.
    ("nvmlDeviceGetGpuInstancePossiblePlacements_v2", "NOT_SUPPORTED"): (
        {DONE, DRIVER_FAULT},
        {DRIVER_FAULT},
    ),
    ("nvmlDeviceGetGpuInstancePossiblePlacements_v2", "INVALID_ARGUMENT"): (
        {DONE, DRIVER_FAULT},
        {DRIVER_FAULT},
    ),
    # The planner saw room: there is less than the driver lists. The job waits.
    ("nvmlDeviceCreateGpuInstanceWithPlacement", "INSUFFICIENT_RESOURCES"): ({REFUSED}, {REFUSED}),
    # Whoever has the GPU open may be a user.
    ("nvmlDeviceCreateGpuInstanceWithPlacement", "IN_USE"): ({DONE}, {REFUSED}),
    ("nvmlGpuInstanceCreateComputeInstance", "IN_USE"): ({DONE}, {15}),
    ("nvmlGpuInstanceDestroy", "IN_USE"): ({DONE}, {ASIDE}),
    ("nvmlComputeInstanceDestroy", "IN_USE"): ({DONE}, {ASIDE}),
    ("nvmlDeviceGetGpuInstances", "NOT_SUPPORTED"): ({DONE}, {DRIVER_FAULT}),
    ("nvmlDeviceGetGpuInstanceById", "NOT_FOUND"): (
        {DONE, DRIVER_FAULT},
        {DONE, ASIDE, DRIVER_FAULT},
    ),
    ("nvmlDeviceGetGpuInstanceById", "NOT_SUPPORTED"): (
        {DONE, DRIVER_FAULT},
        {DONE, ASIDE, DRIVER_FAULT},
    ),
    ("nvmlGpuInstanceGetInfo", "INVALID_ARGUMENT"): ({DONE, DRIVER_FAULT}, {DRIVER_FAULT}),
    ("nvmlGpuInstanceGetComputeInstanceProfileInfo", "NOT_SUPPORTED"): (
        {DONE},
        {DONE, ASIDE, DRIVER_FAULT},
    ),
    ("nvmlGpuInstanceGetComputeInstanceProfileInfo", "INVALID_ARGUMENT"): (
        {DONE},
        {DONE, ASIDE, DRIVER_FAULT},
    ),
    ("nvmlGpuInstanceGetComputeInstances", "INVALID_ARGUMENT"): (
        {DONE, DRIVER_FAULT},
        {DRIVER_FAULT},
    ),
    ("nvmlGpuInstanceGetComputeInstanceById", "NOT_FOUND"): ({DONE}, {ASIDE}),
    ("nvmlComputeInstanceGetInfo_v2", "INVALID_ARGUMENT"): ({DONE, DRIVER_FAULT}, {DRIVER_FAULT}),
}


def expected(name: str, call: str, code: str, times: int) -> set[object]:
    if call == "nvmlSystemGetDriverVersion":
        # It tells which kept profile tables are good; without it all are read.
        return {DONE}
    plain: set[object] = {EXIT.get(code, DRIVER_FAULT)}
    once, ever = EXPECTED.get((call, code), (plain, plain))
    outcomes = once if times else ever
    if name == "reconcile":
        # What concerns one GPU stands in the report: the command ends with 24. What a
        # tear-down met once is set aside, and tried again before the command ends.
        return outcomes | ({24} if outcomes - {DONE} else set()) | ({DONE} if times else set())
    return outcomes


def positions(name: str, call: str, code: str, count: int) -> list[int]:
    """Which of the calls are struck: all that change something, and some of those that read.

    With SLURM_MIG_FAULTS=all in the environment every single one. A reconcile reads as
    Prolog and Epilog do, many times over.
    """
    every = list(range(1, count + 1))
    most = 2 if code in ANY[1:] or name == "reconcile" else 3
    if count <= most or call in CHANGING or os.environ.get("SLURM_MIG_FAULTS") == "all":
        return every
    return sorted({1 + round(step * (count - 1) / (most - 1)) for step in range(most)})


def outcome(name: str, code: int, bench: Bench, left: list[Allocation]) -> object:
    """In one word what became of it."""
    if code:
        return code
    found = {record.phase for record in left}
    if "refused" in bench.lines[-1]:
        return REFUSED
    if name.endswith("prolog"):
        return DONE if found == {phases.ACTIVE} else ALONE
    if found == {phases.QUARANTINED}:
        return ASIDE
    return found or DONE


@dataclass
class Rest:
    """What was there before, and has to be there afterwards."""

    bench: Bench
    there: dict[tuple[int, int], int]

    def check_between(self, left: list[Allocation], what: object) -> None:
        """Nobody else's instance was touched; what is new is on record, and closed to others."""
        now = self.bench.hardware()
        assert self.there.items() <= now.items()
        mine = [(item.profile_id, item.start) for record in left for item in record.instances]
        assert set(now) - set(self.there) <= set(mine)
        if what == DONE and mine:
            assert set(mine) <= set(self.bench.whole())
        if left and left[0].phase == phases.ACTIVE and left[0].whole:
            assert not self.bench.machine.board(0).mig_current or what != DONE

    def check_after(self) -> None:
        """One truth: as before."""
        assert self.bench.hardware() == self.there
        assert [record.owner.job_id for record in self.bench.ledger()] in ([], [8])
        assert self.bench.machine.board(0).mig_current


def check_words(bench: Bench, name: str, call: str, code: str, what: object) -> None:
    """One line that names job, GPU, action, NVML's error, and what to do; the node is drained."""
    line = bench.lines[-1]
    assert "internal error" not in line
    if name == "reconcile":
        return
    fault = isinstance(what, int)
    assert len(bench.slurm.drained) == int(fault)
    for text in [line, *bench.slurm.drained] if fault else []:
        assert "job 7: " in text
        assert "GPU" in text or call in ("nvmlInitWithFlags", "nvmlDeviceGetCount_v2")
        if code in ANY:
            assert "(NVML error " in text
    if fault:
        assert "; " in line.partition("job 7: ")[2]
        assert bench.slurm.drained[0].startswith("slurm-mig: job 7: ")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", OPERATIONS)
def test_injections(
    name: str, bench: Callable[[str], Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    """The expected kind of fault; the state afterwards; the words; and one truth in the end."""
    operation = OPERATIONS[name]
    here = bench(operation.model)
    if operation.model == A30:
        here.crowd()
    rest, number = Rest(here, here.hardware()), 0
    counts = dry_run(here, name)
    rest.check_after()

    for call, count in counts.items():
        for code in (*LISTED.get(call, ()), *ANY):
            for first in positions(name, call, code, count):
                for times in (1, 0):
                    case = f"{name}: {call} number {first} says {code}, {times or 'every'} time"
                    try:
                        _inject(here, name, (call, first, times, f"error:{code}"), rest)
                    except AssertionError as problem:
                        raise AssertionError(f"{case}: {here.lines} {problem}") from problem
                    number += 1
    with capsys.disabled():
        if os.environ.get("SLURM_MIG_FAULTS"):
            print(f"\n{name}: {number} injections into {len(counts)} functions")


def _inject(here: Bench, name: str, strike: tuple[str, int, int, str], rest: Rest) -> None:
    operation, injector = OPERATIONS[name], here.injector
    call, _, times, effect = strike
    code = effect.removeprefix("error:")
    operation.before(here)
    injector.clear()
    injector.strike = strike
    ended = operation.run(here)
    assert injector.struck
    injector.clear()
    left = [record for record in here.ledger() if record.owner.job_id == 7]
    what = outcome(name, ended, here, left)
    assert what in expected(name, call, code, times)
    check_words(here, name, call, code, what)
    rest.check_between(left, what)
    if left:
        recover(here, name)
    rest.check_after()


def recover(here: Bench, name: str) -> None:
    """What comes next without the fault: the Epilog after a Prolog, else a reconcile."""
    if name.endswith("prolog"):
        assert here.hook("epilog") == 0
    else:
        assert here.reconcile() == []


# -- drivers that lie, and hardware that changes under a hook -------------------------


@pytest.fixture
def crowded(bench: Callable[[str], Bench]) -> Bench:
    """An A30 with a neighbour's slice and a stranger's half-made instance."""
    made = bench(A30)
    made.crowd()
    return made


def of_seven(here: Bench) -> list[Allocation]:
    return [record for record in here.ledger() if record.owner.job_id == 7]


@pytest.mark.parametrize("call", ["nvmlGpuInstanceDestroy", "nvmlComputeInstanceDestroy"])
@pytest.mark.parametrize("times", [1, 0])
def test_a_destroy_that_claims_success(crowded: Bench, call: str, times: int) -> None:
    """Repeated while there is time; what stays then is set aside, the node is not drained."""
    rest = Rest(crowded, crowded.hardware())
    crowded.hook("prolog", 7, SLICES)
    crowded.injector.clear()
    crowded.injector.strike = (call, 1, times, "lie")
    assert crowded.hook("epilog") == 0
    assert crowded.slurm.drained == []
    if times:
        assert of_seven(crowded) == []
    else:
        assert [record.phase for record in of_seven(crowded)] == [phases.QUARANTINED]
        for item in ("1g.6gb@1", "1g.6gb@2"):
            assert re.search(f"{item} {NOBODY}", crowded.lines[-1])
        why = "the driver said it was destroyed" if "Gpu" in call else "In use by another"
        assert why in crowded.lines[-1]
    crowded.injector.clear()
    assert crowded.reconcile() == []
    rest.check_after()


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("nvmlDeviceCreateGpuInstanceWithPlacement", "read instance: Invalid Argument"),
        ("nvmlGpuInstanceCreateComputeInstance", "read compute instance: Invalid Argument"),
    ],
)
@pytest.mark.parametrize("first", [1, 2])
def test_a_create_that_claims_success(crowded: Bench, call: str, fault: str, first: int) -> None:
    """The node's fault; what was made is gone again, and on record as such."""
    rest = Rest(crowded, crowded.hardware())
    crowded.injector.clear()
    crowded.injector.strike = (call, first, 1, "lie")
    assert crowded.hook("prolog", 7, SLICES) == DRIVER_FAULT
    assert fault in crowded.lines[-1]
    rest.check_after()


def test_made_elsewhere_than_asked(crowded: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken away at once: no record would find it by its placement."""
    rest = Rest(crowded, crowded.hardware())
    create = Board.create

    def elsewhere(
        self: Board, profile_id: int, wanted: Placement | None, *, busy: bool
    ) -> SimInstance:
        free = [n for n in range(4) if not self.occupied() >> n & 1]
        other = next(Placement(n, 1) for n in free if wanted != Placement(n, 1))
        return create(self, profile_id, other, busy=busy)

    monkeypatch.setattr(Board, "create", elsewhere)
    assert crowded.hook("prolog", 7, SLICES) == DRIVER_FAULT
    assert "1g.6gb@1 was asked for, the driver made GPU instance" in crowded.lines[-1]
    rest.check_after()


def test_another_id_read_back(crowded: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver tells of a stranger's instance when ours was made: his is not destroyed."""
    rest = Rest(crowded, crowded.hardware())
    (stranger,) = [item for item in crowded.machine.board(0).instances if not item.compute]
    read = NvmlDriver.create_gpu_instance

    def confused(self: NvmlDriver, gpu: Any, profile_id: int, placement: Placement) -> Any:
        made = read(self, gpu, profile_id, placement)
        place = Placement(stranger.start, stranger.size)
        return replace(made, gi_id=stranger.gi_id, placement=place)

    monkeypatch.setattr(NvmlDriver, "create_gpu_instance", confused)
    assert crowded.hook("prolog", 7, SLICES) == DRIVER_FAULT
    rest.check_after()


def test_in_use_just_after_the_compute_instance_went(crowded: Bench) -> None:
    """Normal (facts/mig.md#bugs): a few tries later it is fine."""
    crowded.hook("prolog", 7, SLICES)
    crowded.injector.clear()
    crowded.injector.strike = ("nvmlGpuInstanceDestroy", 1, 3, "error:IN_USE")
    assert crowded.hook("epilog") == 0
    assert crowded.lines[-1].endswith("released")
    assert of_seven(crowded) == []


def test_compute_instance_gone_and_gpu_instance_busy(crowded: Bench) -> None:
    """Half of it stays: set aside as it is, and finished by the next hook of another job."""
    rest = Rest(crowded, crowded.hardware())
    crowded.hook("prolog", 7, SLICES)
    crowded.injector.clear()
    crowded.injector.strike = ("nvmlGpuInstanceDestroy", 1, 0, "error:IN_USE")
    assert crowded.hook("epilog") == 0
    assert re.search(NOBODY, crowded.lines[-1])
    assert "In use by another client (NVML error 19)" in crowded.lines[-1]
    assert len(crowded.whole()) == 1
    crowded.injector.clear()
    assert crowded.hook("prolog", 9, SLICES) == 0
    assert of_seven(crowded) == []
    assert crowded.hook("epilog", 9) == 0
    rest.check_after()


def test_our_own_half_made_instance(crowded: Bench) -> None:
    """Its compute instance went by other hands: what is left is ours still, the stranger's not."""
    rest = Rest(crowded, crowded.hardware())
    crowded.hook("prolog", 7, SLICES)
    with crowded.machine.change(0) as board:
        for item in board.instances:
            if (item.profile_id, item.start) not in rest.there:
                item.compute.clear()
    assert crowded.hook("epilog") == 0
    rest.check_after()


def dry_run(here: Bench, name: str) -> dict[str, int]:
    """How often each function is called when nothing is wrong."""
    operation = OPERATIONS[name]
    # The first hook of a node also agrees on the order of its GPUs, and asks more for that.
    operation.before(here)
    operation.run(here)
    recover(here, name)
    operation.before(here)
    here.injector.clear()
    assert operation.run(here) == 0
    counts = dict(here.injector.seen)
    here.injector.clear()
    recover(here, name)
    return counts


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_a_stranger_leaves_while_instances_are_read(crowded: Bench, name: str) -> None:
    """A dead handle of somebody else's instance is nobody's fault: the list is read again."""
    counts = dry_run(crowded, name)
    (stranger,) = [item for item in crowded.machine.board(0).instances if not item.compute]
    place = Placement(stranger.start, stranger.size)

    def leave() -> None:
        with crowded.machine.change(0) as board:
            board.instances = [item for item in board.instances if item.start != place.start]

    for call in ("nvmlDeviceGetGpuInstances", "nvmlGpuInstanceGetInfo"):
        for number in range(1, counts[call] + 1):
            OPERATIONS[name].before(crowded)
            crowded.injector.clear()
            crowded.injector.at[call, number] = leave
            assert OPERATIONS[name].run(crowded) == 0, (call, number, crowded.lines)
            crowded.injector.clear()
            recover(crowded, name)
            assert len(crowded.hardware()) == 1
            with crowded.machine.change(0) as board:
                board.create(14, place, busy=False)


@pytest.mark.parametrize("call", ["nvmlGpuInstanceDestroy", "nvmlComputeInstanceDestroy"])
@pytest.mark.parametrize("number", [1, 2])
def test_somebody_was_faster(crowded: Bench, call: str, number: int) -> None:
    """Our instance is destroyed between our look and our call: gone is gone."""
    rest = Rest(crowded, crowded.hardware())
    crowded.hook("prolog", 7, SLICES)

    def destroy() -> None:
        with crowded.machine.change(0) as board:
            board.instances = [
                item for item in board.instances if (item.profile_id, item.start) in rest.there
            ]

    crowded.injector.clear()
    crowded.injector.at[call, number] = destroy
    assert crowded.hook("epilog") == 0
    rest.check_after()


@pytest.mark.parametrize("name", ["prolog", "epilog"])
@pytest.mark.parametrize("back", ["as it was", "by a reboot"])
def test_a_gpu_that_disappears(crowded: Bench, name: str, back: str) -> None:
    """At any call: the node's fault with its own code; and one truth when the GPU is back."""
    rest = Rest(crowded, crowded.hardware())
    counts = dry_run(crowded, name)
    for call, count in counts.items():
        for number in positions(name, call, "GPU_IS_LOST", count):
            OPERATIONS[name].before(crowded)
            crowded.injector.clear()
            crowded.injector.at[call, number] = lambda: crowded.machine.lose(0)
            assert OPERATIONS[name].run(crowded) == 14, (call, number, crowded.lines)
            assert "see dmesg for Xid errors" in crowded.lines[-1]
            assert crowded.slurm.drained[0].startswith("slurm-mig: job 7: ")
            crowded.injector.clear()
            if back == "by a reboot":
                continue
            with crowded.machine.change(0) as board:
                board.lost = False
            recover(crowded, name)
            rest.check_after()
    if back == "by a reboot":
        crowded.machine.reboot()
        assert crowded.reconcile() == []
        assert (crowded.hardware(), crowded.ledger()) == ({}, [])


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_mig_mode_goes_off_under_a_hook(bench: Callable[[str], Bench], name: str) -> None:
    """With a reset, at any call: every instance is gone; nothing of it stays on record."""
    here = bench(A30)
    counts = dry_run(here, name)

    def switch_off() -> None:
        with here.machine.change(0) as board:
            board.instances.clear()
            board.set_mode(False, busy=False)

    for call, count in counts.items():
        for number in positions(name, call, "UNKNOWN", count):
            OPERATIONS[name].before(here)
            here.injector.clear()
            here.injector.at[call, number] = switch_off
            ended = OPERATIONS[name].run(here)
            assert ended in ((DRIVER_FAULT,) if name == "prolog" else (0, DRIVER_FAULT)), (
                call, number, here.lines,
            )  # fmt: skip
            here.injector.clear()
            with here.machine.change(0) as board:
                board.set_mode(True, busy=False)
            assert here.reconcile() == []
            assert (here.hardware(), here.ledger()) == ({}, [])


def test_mig_mode_off_while_jobs_hold_slices(bench: Callable[[str], Bench]) -> None:
    """Their Epilogs find nothing to destroy; the next Prolog says what to do, or does it."""
    for number, (model, stamp) in enumerate(((A30, SLICES), (H100, "slurm-mig=1,3g.40gb/9/14:1"))):
        here = bench(model)
        here.hook("prolog", 7, stamp)
        with here.machine.change(0) as board:
            board.instances.clear()
            board.set_mode(False, busy=False)
        assert here.hook("epilog") == 0
        assert "taken away from outside, or the GPU was reset" in here.lines[-1]
        assert here.ledger() == []
        assert here.hook("prolog", 9, stamp) == (0 if number else DRIVER_FAULT)
        assert number or "run `slurm-mig enable --gpu 0`" in here.lines[-1]


@pytest.mark.parametrize("model", [A30, H100])
def test_a_driver_reloaded_between_prolog_and_epilog(
    bench: Callable[[str], Bench], model: str
) -> None:
    """The boot is the same, the instances are gone; the stranger who came since is not ours."""
    here = bench(model)
    stamp = SLICES if model == A30 else "slurm-mig=1,3g.40gb/9/14:1"
    here.hook("prolog", 7, stamp)
    place = next(iter(here.hardware()))
    here.machine.reload_driver()
    with here.machine.change(0) as board:
        board.set_mode(True, busy=False)
        row = board.row(place[0])
        made = board.create(place[0], Placement(place[1], row.size), busy=False)
        board.create_compute(made, board.ci_profiles(made)[0].profile_id)
        # Another engine, another UUID; the same engine has the same (facts/mig.md#ids).
        made.compute[0].start += 1
    assert here.hook("epilog") == 0
    assert here.ledger() == []
    assert list(here.hardware()) == [place]


STATUSES: Final = ("UNKNOWN", "RESET_REQUIRED", "NOT_SUPPORTED", "NO_PERMISSION", "IN_USE", "77")


@pytest.mark.parametrize("code", STATUSES)
@pytest.mark.parametrize("name", ["whole prolog", "whole epilog"])
@pytest.mark.parametrize("times", [1, 0])
def test_activation_status(bench: Callable[[str], Bench], name: str, code: str, times: int) -> None:
    """SetMigMode succeeds, its status tells otherwise: as if the call had said so."""
    here = bench(H100)
    rest = Rest(here, {})
    OPERATIONS[name].before(here)
    here.injector.clear()
    here.injector.strike = ("nvmlDeviceSetMigMode", 1, times, f"activation:{code}")
    what = outcome(name, OPERATIONS[name].run(here), here, of_seven(here))
    assert what in expected(name, "nvmlDeviceSetMigMode", code, times)
    here.injector.clear()
    recover(here, name)
    rest.check_after()


@pytest.mark.parametrize(("name", "what"), [("whole prolog", REFUSED), ("whole epilog", ASIDE)])
def test_a_mode_that_claims_to_be_set(bench: Callable[[str], Bench], name: str, what: str) -> None:
    """Success and nothing done: read back, and neither believed nor handed out."""
    here = bench(H100)
    OPERATIONS[name].before(here)
    here.injector.clear()
    here.injector.strike = ("nvmlDeviceSetMigMode", 1, 0, "activation:SUCCESS")
    assert outcome(name, OPERATIONS[name].run(here), here, of_seven(here)) == what
    assert "MIG mode " in here.lines[-1]
    here.injector.clear()
    recover(here, name)
    Rest(here, {}).check_after()


def test_a_gpu_kept_open_by_a_user(bench: Callable[[str], Bench]) -> None:
    """It cannot be partitioned: no room, with the pid; no user drains a node so."""
    here = bench(A30)
    here.machine.hold(os.getpid(), here.machine.gpus[0]["uuid"])
    assert here.hook("prolog", 7, SLICES) == 0
    assert "refused: job 7: GPU 0" in here.lines[-1]
    assert f"In use by another client (NVML error 19), used by pid {os.getpid()}" in here.lines[-1]
    assert (here.slurm.drained, here.hardware(), here.ledger()) == ([], {}, [])
    here.machine.let_go(os.getpid())
    assert here.hook("prolog", 7, SLICES) == 0
    assert len(here.hardware()) == 2


# -- an administrator's Ctrl-C ---------------------------------------------------------


@pytest.mark.parametrize("work", ["create", "destroy"])
def test_interrupted_commands(crowded: Bench, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    """Between any two calls: undone, or finished by the next reconcile."""
    rest = Rest(crowded, crowded.hardware())
    plain, left = NvmlDriver._ask, [0]

    def asked(self: NvmlDriver, *arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return plain(self, *arguments, **named)

    monkeypatch.setattr(NvmlDriver, "_ask", asked)
    for number in range(1, 1000):
        left[0] = 0
        node = crowded.node()
        bench, gpu = node.bench(), node.driver.gpus()[0]
        request = Request((Item(Profile.parse("1g.6gb"), 1),))
        admin, record = Owner(None, user="root"), None
        if work == "destroy":
            record = carve.allocate(bench, admin, request, gpu)
        left[0] = number
        try:
            if record:
                release.release(bench, record, "by an administrator")
            else:
                carve.allocate(bench, admin, request, gpu)
        except KeyboardInterrupt:
            done = False
        else:
            done = True
        left[0] = 0
        node.close()
        assert crowded.reconcile() == []
        open_ = [item for item in crowded.ledger() if item.owner.job_id is None]
        if open_:
            # Made and published by then, or not yet begun to be destroyed: still all there.
            assert [item.phase for item in open_] == [phases.ACTIVE]
            node = crowded.node()
            release.release(node.bench(), open_[0], "x")
            node.close()
        rest.check_after()
        if done:
            break
    assert done
    assert number > 20
