"""One simulated machine in a directory: create, load, change, reboot.

`machine.json` holds what never changes (boards, latencies); `gpu<N>.json` the
state of one GPU, replaced atomically under that GPU's own lock, so that GPUs
work in parallel as real ones do and readers never see half a state.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from slurm_mig.errors import NotPermitted, SimulatorFault
from slurm_mig.mig.geometry import Engines, Geometry, GpuProfile, Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.simulator.board import Board
from slurm_mig.simulator.faults import Faults
from slurm_mig.simulator.tree import Tree
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import below
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FORMAT: Final = 1
DEFAULT_DRIVER: Final = "580.95.05"

GONE: Final = "gone"

#: The id of the boot of the machine that simulates (proc(5)).
KERNEL: Final = Path("/proc/sys/kernel/random/boot_id")

#: Operations that may take time, in milliseconds, and the NVML calls they cover.
OPERATIONS: Final[dict[str, tuple[str, ...]]] = {
    "init": ("nvmlInitWithFlags", "nvmlInit_v2"),
    "create-gi": ("nvmlDeviceCreateGpuInstance", "nvmlDeviceCreateGpuInstanceWithPlacement"),
    "destroy-gi": ("nvmlGpuInstanceDestroy",),
    "create-ci": (
        "nvmlGpuInstanceCreateComputeInstance",
        "nvmlGpuInstanceCreateComputeInstanceWithPlacement",
    ),
    "destroy-ci": ("nvmlComputeInstanceDestroy",),
    "mig-mode": ("nvmlDeviceSetMigMode",),
}


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """A board to build: its NVML name, architecture and geometry, and how many."""

    name: str
    product: str
    architecture: str
    pci_device_id: int
    compute_capability: str
    total_memory_mib: int | None
    geometry: Geometry
    #: NVML_GPU_INSTANCE_PROFILE_* value by driver profile id.
    enums: Mapping[int, int]
    count: int = 1


def create(
    root: Path,
    gpus: Sequence[GpuSpec],
    *,
    latency_ms: Mapping[str, float] | None = None,
    driver: str = DEFAULT_DRIVER,
) -> Machine:
    """Build a machine in a new or empty directory.

    Raises SimulatorFault for a directory in use or an unknown operation,
    NotPermitted for a caller who may not make device nodes.
    """
    unknown = set(latency_ms or {}) - set(OPERATIONS)
    if unknown:
        raise SimulatorFault(
            f"latency for {', '.join(sorted(unknown))}: operations are {', '.join(OPERATIONS)}"
        )
    if not gpus:
        raise SimulatorFault("a simulated machine needs at least one GPU")
    if os.geteuid() != 0:
        raise NotPermitted("simulated device nodes are made with mknod; run as root")
    existed = root.exists()
    if existed and (not root.is_dir() or any(root.iterdir())):
        raise SimulatorFault(f"{root} exists and is not an empty directory")
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        _check_devices(root, existed=existed)
        _build(root, gpus, latency_ms or {}, driver)
    except OSError as problem:
        _clear(root, existed=existed)
        raise SimulatorFault(f"make {problem.filename or root}: {problem.strerror}") from problem
    return Machine(root)


def _check_devices(root: Path, *, existed: bool) -> None:
    """Where the mount forbids it no node can be opened: jobs would see no GPU, and nobody why."""
    if os.statvfs(root).f_flag & os.ST_NODEV:
        _clear(root, existed=existed)
        raise SimulatorFault(
            f"{root} lies on a file system that is mounted nodev: no device node works there",
            remedy="name a directory elsewhere, such as below /var/lib",
        )


def _clear(root: Path, *, existed: bool) -> None:
    """Take half a machine away, so that the next try finds an empty directory."""
    import shutil

    left = list(root.iterdir()) if existed and root.is_dir() else [root]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)


def _build(
    root: Path, gpus: Sequence[GpuSpec], latency_ms: Mapping[str, float], driver: str
) -> None:
    boards = [_board_facts(spec) for spec in gpus for _ in range(spec.count)]
    for index, facts in enumerate(boards):
        facts["minor"] = index
        # Both observed orders of ids occur on one machine, so that nothing relies on one.
        facts["mirrored"] = facts["units"] == 8 and index % 2 == 1
    (root / "holders").mkdir(mode=0o1777)
    (root / "holders").chmod(0o1777)
    Tree(root).make([facts["minor"] for facts in boards])
    (root / "kernel").write_text(KERNEL.read_text("ascii").strip(), "ascii")
    for index, facts in enumerate(boards):
        _replace(root / f"gpu{index}.json", _board(facts).to_dict())
    _replace(
        root / "machine.json",
        {"format": FORMAT, "driver": driver, "latency_ms": dict(latency_ms), "gpus": boards},
    )


def _board_facts(spec: GpuSpec) -> dict[str, Any]:
    import uuid

    return {
        "name": spec.name,
        "product": spec.product,
        "uuid": f"GPU-{uuid.uuid4()}",
        "architecture": spec.architecture,
        "pci_device_id": spec.pci_device_id,
        "compute_capability": spec.compute_capability,
        "total_memory_mib": spec.total_memory_mib,
        "units": spec.geometry.units,
        "profiles": [_row_to_dict(row) for row in spec.geometry.profiles],
        "enums": [[spec.enums[row.profile_id], row.profile_id] for row in spec.geometry.profiles],
    }


def _row_to_dict(row: GpuProfile) -> dict[str, Any]:
    return {
        "profile_id": row.profile_id,
        "name": str(row.name),
        "slices": row.slices,
        "placements": [[place.start, place.size] for place in row.placements],
        "max_instances": row.max_instances,
        "memory_mib": row.memory_mib,
        "multiprocessors": row.multiprocessors,
        "copy_engines": row.copy_engines,
        "engines": list(row.engines.as_tuple()),
    }


def _row_from_dict(data: dict[str, Any]) -> GpuProfile:
    return GpuProfile(
        profile_id=data["profile_id"],
        name=Profile.parse(data["name"]),
        slices=data["slices"],
        placements=tuple(Placement(*pair) for pair in data["placements"]),
        max_instances=data["max_instances"],
        memory_mib=data["memory_mib"],
        multiprocessors=data["multiprocessors"],
        copy_engines=data["copy_engines"],
        engines=Engines(*data["engines"]),
    )


def _board(facts: dict[str, Any]) -> Board:
    return Board(
        geometry=Geometry(tuple(_row_from_dict(row) for row in facts["profiles"])),
        uuid=facts["uuid"],
        mirrored=facts["mirrored"],
        resetless=facts["architecture"] != "Ampere",
    )


def _replace(path: Path, data: dict[str, Any]) -> None:
    replace_file(path, json.dumps(data), mode=0o644)


class Machine:
    """A machine that exists in `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            facts = dict(json.loads((root / "machine.json").read_text("ascii")))
        except (OSError, ValueError, TypeError) as problem:
            raise SimulatorFault(
                f"no simulated machine in {root}: {problem}",
                remedy=f"make one with `slurm-mig simulator create {root} --gpu NAME:COUNT`",
            ) from problem
        if facts.get("format") != FORMAT:
            raise SimulatorFault(
                f"simulated machine in {root} has format {facts.get('format')!r}, "
                f"this release reads {FORMAT}"
            )
        self.tree = Tree(root)
        self.faults = Faults(root / "faults.json")
        with _intact(root / "machine.json"):
            self.driver: str = facts["driver"]
            self.latency_ms: dict[str, float] = facts["latency_ms"]
            self.gpus: list[dict[str, Any]] = facts["gpus"]
            self._geometries = [_board(facts) for facts in self.gpus]
        self._states = [root / f"gpu{index}.json" for index in range(len(self.gpus))]
        self._read: dict[int, tuple[tuple[int, int], Board]] = {}

    @property
    def minors(self) -> list[int]:
        """Device minors of all GPUs, by index."""
        return [facts["minor"] for facts in self.gpus]

    def board(self, index: int) -> Board:
        """The present state of one GPU, for reading alone; read again only when it was replaced."""
        with _intact(self._states[index]):
            # Asked for by every NVML call.
            status = self._states[index].stat()
            seen = (status.st_ino, status.st_mtime_ns)
            if index not in self._read or self._read[index][0] != seen:
                self._read[index] = (seen, self._load(index))
        return self._read[index][1]

    def _load(self, index: int) -> Board:
        fixed = self._geometries[index]
        board = Board(fixed.geometry, self.gpus[index]["uuid"], fixed.mirrored, fixed.resetless)
        with _intact(self._states[index]):
            board.load(json.loads(self._states[index].read_text("ascii")))
        return board

    def check(self) -> None:
        """Read every file once: SimulatorFault for a damaged one."""
        for index in range(len(self.gpus)):
            self.board(index)
        with _intact(self.root / "faults.json"):
            self.faults.rules()

    @contextmanager
    def change(self, index: int) -> Iterator[Board]:
        """One GPU's state for writing; kept only when the block ends well."""
        with _opened(self.root / f"gpu{index}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            board = self._load(index)
            yield board
            _replace(self._states[index], board.to_dict())
            self.tree.show(self.gpus[index]["minor"], board)

    # -- processes -----------------------------------------------------------

    def hold(self, pid: int, uuid_text: str) -> None:
        """Let a living process use a GPU or MIG device until it ends."""
        started = _start_time(pid)
        if started == GONE:
            raise SimulatorFault(f"process {pid} does not exist; only a living one can use a GPU")
        if uuid_text.split() != [uuid_text]:
            # What is written down could not be read again, by any later call.
            raise SimulatorFault(f"a process cannot use a device without a UUID: {uuid_text!r}")
        # Everybody may make names there: a link in the way must not lead root elsewhere.
        replace_file(self.root / "holders" / str(pid), f"{uuid_text}\n{started}\n", mode=0o644)

    def let_go(self, pid: int) -> None:
        """End a process's use before the process ends."""
        (self.root / "holders" / str(pid)).unlink(missing_ok=True)

    def holders(self) -> list[tuple[int, str]]:
        """(pid, UUID) of every simulated client whose process still lives."""
        found = []
        for path in below(self.root / "holders"):
            try:
                pid, (uuid_text, started) = int(path.name), path.read_text("ascii").split()
            except (OSError, ValueError):
                # Let go of at this moment, or made by anybody: no reason for NVML to fail.
                continue
            # A recycled pid is another process: compare the start time too.
            if _start_time(pid) == started:
                found.append((pid, uuid_text))
        return found

    # -- life of the machine -------------------------------------------------

    def reboot(self) -> None:
        """Power cycle: new boot id, no instances, no clients, lost GPUs back."""
        self._restart(power=True)
        self.tree.new_boot_id()

    def follow_kernel(self) -> None:
        """Reboot when the machine that simulates it did: its instances are files, and outlive that.

        Only root's processes do it; the first after the boot.
        """
        kernel = KERNEL.read_text("ascii").strip()
        noted = self.root / "kernel"
        if os.geteuid() != 0 or (noted.exists() and noted.read_text("ascii") == kernel):
            return
        with _opened(self.root / "kernel.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = noted.read_text("ascii") if noted.exists() else kernel
            if before != kernel:
                self.reboot()
            noted.write_text(kernel, "ascii")

    def reload_driver(self) -> None:
        """Driver unloaded and loaded again: instances go, the boot id stays."""
        self._restart(power=False)

    def _restart(self, *, power: bool) -> None:
        for path in (self.root / "holders").iterdir():
            path.unlink()
        for index in range(len(self.gpus)):
            with self.change(index) as board:
                board.restart(power=power)
        self.tree.forget_instances(self.minors)

    def lose(self, index: int) -> None:
        """Let a GPU fall off the bus until the next reboot."""
        with self.change(index) as board:
            board.lost = True


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise SimulatorFault(f"read {path}: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise SimulatorFault(
            f"{path} is damaged: {type(problem).__name__} {problem}",
            remedy="make the machine anew with `slurm-mig simulator create`",
        ) from problem


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a")
    except PermissionError as problem:
        raise NotPermitted(f"open {path}: {problem.strerror}", remedy="run as root") from problem


def _start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat, or GONE (proc(5)); unaffected by the process's name."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return GONE
    fields = stat.rpartition(")")[2].split()
    return GONE if fields[0] in ("Z", "X") else fields[19]
