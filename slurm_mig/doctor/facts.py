"""What the doctor looks at, gathered beforehand: plain values. Pure.

What could not be read is a gap with its reason: a check that needs it is then
not done, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.fleet.fleet import Fleet, NodeGroup
    from slurm_mig.mig.geometry import Geometry
    from slurm_mig.packing.policies import Unused
    from slurm_mig.slurm.conf import Conf, GresLine, NodeLine
    from slurm_mig.slurm.protocol import NodeFacts

#: What a check can need, and what it is in words.
AREAS: Final = {
    "slurm.conf": "slurm.conf",
    "gres.conf": "gres.conf",
    "cgroup.conf": "cgroup.conf",
    "job_submit.lua": "job_submit.lua",
    "cli_filter.lua": "cli_filter.lua",
    "version": "Slurm's release",
    "slurmctld": "what slurmctld has loaded",
    "registered": "what slurmctld says of the nodes",
    "limits": "limits that slurmdbd keeps",
    "fleet": "the GPU models behind the GPU types",
    "node": "this machine as a node",
    "machine": "what of slurm-mig is on this machine",
    "config": "slurm-mig's configuration",
    "driver": "the NVIDIA driver",
    "kernel": "the NVIDIA kernel module",
    "processes": "processes that hold a GPU",
    "ledger": "the ledger",
    "units": "systemd units",
}

#: Release that first knows an option, by Slurm's tags (src/common/read_config.c, src/plugins).
CONS_TRES_SINCE: Final = (23, 11)
LL_SHARED_GRES_SINCE: Final = (23, 11)
GPU_ACCOUNTING_SINCE: Final = (23, 2)
SEVERAL_PROLOGS_SINCE: Final = (24, 5)


@dataclass(frozen=True, slots=True)
class PathFacts:
    """A path on the disk. `problem` says why it could not be looked at, or is empty.

    `denied`: there may well be something, which the caller has no right to see.
    `unsafe_parent` is the first directory above it that is not root's alone to change, `lacking`
    how little room is left there, if too little.
    """

    path: str
    problem: str = ""
    denied: bool = False
    directory: bool = False
    uid: int = 0
    mode: int = 0
    executable: bool = False
    unsafe_parent: str = ""
    lacking: str = ""
    text: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is nothing, or nothing that can be reached."""
        return bool(self.problem)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of a QOS or an association, as sacctmgr shows it.

    `where` says whose it is, `change` is what `sacctmgr modify` calls it; `others` have the
    same. `tres` is a text such as `cpu=4,gres/gpu=1`.
    """

    where: str
    change: str
    key: str
    tres: str
    others: int = 0


@dataclass(frozen=True, slots=True)
class HookFacts:
    """What one hook line of slurm.conf leads to, in the order in which Slurm runs it."""

    key: str
    value: str
    where: str
    files: tuple[PathFacts, ...]


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A GPU as the driver shows it. `persistence` is None where the driver does not say."""

    minor: int
    index: int
    uuid: str
    name: str
    resetless: bool
    managed: bool
    mig_mode: bool | None
    mig_pending: bool | None
    persistence: bool | None
    geometry: Geometry | None
    foreign: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"GPU {self.minor} ({self.name}, {self.uuid})"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a GPU's device node open."""

    pid: int
    command: str
    device: str


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The NVIDIA kernel module's files; `modeset` is nvidia_drm's, None where it is not loaded."""

    capabilities: bool
    caps_major: bool
    params: Mapping[str, str]
    modeset: bool | None
    device_nodes: frozenset[int]
    config_node: PathFacts
    proc: str = "/proc"


@dataclass(frozen=True, slots=True)
class Unit:
    """An enabled systemd unit with its text, behind it that of its drop-ins.

    Of ours: `program` is what it starts, `fault` why it cannot, or empty.
    """

    name: str
    path: str
    text: str
    program: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """Our configuration: what of it other things must agree with. Times are seconds."""

    path: str
    managed: tuple[int, ...] | None
    order: tuple[int, ...] | None
    prolog_worst: float
    epilog_worst: float
    reset: bool
    table: Unused


@dataclass(frozen=True, slots=True)
class LuaFile:
    """A Lua file of ours or of the site's, and those that it loads with dofile."""

    files: tuple[PathFacts, ...]


@dataclass(frozen=True)
class Facts:
    """Everything; what is None or empty for want of access is in `gaps` with the reason.

    `published_age` are seconds since this node last looked at what it publishes, None for never.
    `uncounted` is this machine's name, where it has GPUs and slurm.conf counts no slices on it.
    """

    gaps: Mapping[str, str]
    slurm: Conf
    gres: Conf
    cgroup: Conf
    nodes: tuple[NodeLine, ...] = ()
    target: str = ""
    uncounted: str = ""
    version: tuple[int, ...] = ()
    live: Mapping[str, str] = field(default_factory=dict)
    registered: Mapping[str, NodeFacts] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    job_submit: LuaFile = LuaFile(())
    cli_filter: LuaFile = LuaFile(())
    lua_code: Mapping[str, str] = field(default_factory=dict)
    release: str = ""
    fleet: Fleet | None = None
    groups: Mapping[str, NodeGroup] = field(default_factory=dict)
    gres_lines: tuple[GresLine, ...] = ()
    hooks: tuple[HookFacts, ...] = ()
    shipped: Mapping[str, str] = field(default_factory=dict)
    pythons: Mapping[str, PathFacts] = field(default_factory=dict)
    hook_configs: Mapping[str, str] = field(default_factory=dict)
    #: Where the hooks' helper should listen, if it is there and takes none.
    deaf_helper: str = ""
    config: ConfigFacts | None = None
    config_fault: str = ""
    paths: Mapping[str, PathFacts] = field(default_factory=dict)
    ledger_fault: str = ""
    ledger_behind: str = ""
    driver_version: str = ""
    driver_faults: tuple[str, ...] = ()
    gpus: tuple[GpuFacts, ...] = ()
    kernel: KernelFacts | None = None
    holders: tuple[Holder, ...] = ()
    units: tuple[Unit, ...] = ()
    published_age: float | None = None
    publish_off: bool = False

    @property
    def managed(self) -> list[NodeLine]:
        """The nodes to look at: those with mig counts, or the one that was asked for."""
        return [
            node
            for node in self.nodes
            if node.managed and (not self.target or node.name == self.target)
        ]

    def lines(self, node: str, name: str) -> list[GresLine]:
        """gres.conf's lines of one gres for a node, in their order."""
        return [line for line in self.gres_lines if line.name == name and line.on(node)]

    def setting(self, key: str) -> tuple[str, str]:
        """Value in force and where it was seen; slurmctld's own word before the file's."""
        if self.live:
            value = self.live.get(key.lower(), "")
            return value, f"slurmctld has {key} = {value or '(none)'}"
        entry = self.slurm.last(key)
        if entry is None:
            return "", f"{self.slurm.path}: no {key}"
        return entry.get(key), str(entry)
