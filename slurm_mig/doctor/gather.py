"""Reads what the doctor looks at: files, slurmctld, the driver, /proc, systemd's directories.

Nothing is changed. What cannot be read becomes a gap with its reason, and the
checks that need it are named as not done.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import socket
import stat
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig import __version__
from slurm_mig.config import DEFAULT_PATH
from slurm_mig.doctor.facts import (
    SEVERAL_PROLOGS_SINCE,
    ConfigFacts,
    Facts,
    GpuFacts,
    Holder,
    HookFacts,
    KernelFacts,
    Limit,
    LuaFile,
    PathFacts,
    Unit,
)
from slurm_mig.doctor.gres_checks import minor_of
from slurm_mig.doctor.lua_checks import loads
from slurm_mig.doctor.reconstruction import Reconstruction
from slurm_mig.doctor.slurm_checks import loaded_values
from slurm_mig.errors import LedgerFault, NodeFault, SlurmFault, SlurmMigError, UsageFault
from slurm_mig.fleet import slurm_files
from slurm_mig.gpu import indexes
from slurm_mig.node.install_texts import HOOKS, sources
from slurm_mig.node.publish import Publisher
from slurm_mig.packing.policies import unused
from slurm_mig.slurm import conf
from slurm_mig.slurm.commands import CommandClient
from slurm_mig.state.ledger import check_usable, digest_in, newest, recorded, retired
from slurm_mig.system.space import lacking
from slurm_mig.system.warm_client import deaf
from slurm_mig.transaction.evidence import missing
from slurm_mig.transaction.recognise import strangers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slurm_mig.mig.allocation import Instance
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.node.node import Node
    from slurm_mig.settings import Config
    from slurm_mig.slurm.protocol import NodeFacts

#: Where slurm.conf lies unless told otherwise; the last is a configless node's.
USUAL: Final = (
    Path("/etc/slurm/slurm.conf"),
    Path("/etc/slurm-llnl/slurm.conf"),
    Path("/usr/local/etc/slurm.conf"),
    Path("/run/slurm/conf/slurm.conf"),
)

#: Bytes of a script that are read: more than any hook has.
LONGEST_FILE: Final = 1 << 18

#: Directories of units, the first that has one wins; enabled are those linked below the first two.
UNIT_DIRECTORIES: Final = (
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)

#: What names of our own units begin with, and the line that says what one starts.
OURS: Final = "slurm-mig-"
_STARTS: Final = re.compile(r"^ExecStart=(.*-m slurm_mig\b.*)$", re.MULTILINE)

#: Where they lie: below the machine's own root, also where its GPUs are simulated.
MACHINE: Path = Path("/")

#: What is looked at on the node itself.
LOCAL: Final = ("driver", "kernel", "processes", "ledger", "units")

#: Words of AccountingStorageEnforce with which limits hold (slurm.conf(5)).
ENFORCED: Final = ("limits", "safe", "all", "qos")

LUA: Final = ("job_submit.lua", "cli_filter.lua")

#: Slices that one GPU can have at once, and calls that a refusal makes (docs/admin.md).
MOST_SLICES: Final = 7
REFUSAL_CALLS: Final = 5


@dataclass(frozen=True, slots=True)
class Sources:
    """What the command line says. `live`: ask slurmctld and look at this machine."""

    live: bool = True
    slurm_conf: Path | None = None
    gres_conf: Path | None = None
    cgroup_conf: Path | None = None
    job_submit: Path | None = None
    cli_filter: Path | None = None
    node: str = ""
    version: tuple[int, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)


def worst_case(config: Config) -> tuple[float, float]:
    """Longest time in seconds that Prolog and Epilog may take (docs/admin.md).

    A hook that ends itself does so after `longest_hook`. Else: the wait for the lock, then
    for the Prolog a second for each left-over and a refusal's calls, for the Epilog the
    retries for each slice that is in use.
    """
    longest = getattr(config, "longest_hook", None)
    if longest is not None:
        return float(longest), float(longest)
    prolog = config.lock_timeout + MOST_SLICES + REFUSAL_CALLS * config.slurm_timeout
    return prolog, config.lock_timeout + MOST_SLICES * config.destroy_timeout


def gather(sources: Sources, node: Node, config_fault: str = "") -> Facts:
    """Everything that can be read now. UsageFault for a `--gpu-type` that means nothing."""
    return _Gatherer(sources, node, config_fault).facts()


class _Gatherer:
    """One gathering: each part read once, gaps noted on the way."""

    def __init__(self, sources: Sources, node: Node, config_fault: str) -> None:
        self.sources = sources
        self.node = node
        self.config = node.config
        self.config_fault = config_fault
        self.gaps: dict[str, str] = {}
        # Where the driver, the ledger and their machine are stands in the configuration.
        for area in ("config", *LOCAL) if config_fault else ():
            self.gaps[area] = config_fault

    def facts(self) -> Facts:
        """Read in the order in which one part needs another."""
        lines = tuple(conf.gres_lines(self.gres))
        here = self.here
        local = self._local() if here or self._uncounted else {}
        groups = self._groups(lines, local.get("gpus", ()) if here else ())
        version = self.version
        worst = worst_case(self.config)
        return Facts(
            gaps=self.gaps,
            slurm=self.slurm,
            gres=self.gres,
            cgroup=self.cgroup,
            nodes=self.nodes,
            target=self.target,
            uncounted=self._uncounted,
            version=version,
            live=self.live,
            registered=dict(self._registered()),
            limits=self._limits(),
            job_submit=self._job_submit(),
            cli_filter=self._cli_filter(),
            lua_code={name: slurm_files.lua_code(name) for name in LUA},
            release=__version__,
            gres_lines=lines,
            hooks=tuple(self._hooks(here=here)),
            shipped={key: (sources() / path).read_text("utf-8") for key, path in HOOKS.items()},
            config=ConfigFacts(
                path=str(self.config.source or DEFAULT_PATH),
                managed=self.config.managed,
                order=self._order(),
                prolog_worst=worst[0],
                epilog_worst=worst[1],
                reset=self.config.whole_reset,
                table=unused(
                    self.config.policy,
                    {g.name: g.geometry for g in local.get("gpus", ()) if g.managed and g.geometry},
                ),
            ),
            config_fault=self.config_fault,
            **groups,
            **local,
        )

    # -- Slurm's files ---------------------------------------------------------

    @cached_property
    def _slurm_path(self) -> Path:
        chosen = self.sources.slurm_conf or os.environ.get("SLURM_CONF")
        if chosen:
            return Path(chosen).absolute()
        found = next((path for path in USUAL if _may_be(path)), None)
        if found is None:
            self.gaps["slurm.conf"] = f"none of {', '.join(map(str, USUAL))}"
        return found or USUAL[0]

    def _beside(self, option: Path | None, name: str) -> Path:
        return option.absolute() if option else self._slurm_path.with_name(name)

    @cached_property
    def slurm(self) -> conf.Conf:
        """slurm.conf with its includes."""
        return self._conf("slurm.conf", self._slurm_path)

    @cached_property
    def gres(self) -> conf.Conf:
        """gres.conf; on a node one that is not there says nothing, which the checks then see."""
        path = self._beside(self.sources.gres_conf, "gres.conf")
        return self._conf("gres.conf", path, optional=self._may_lack)

    @cached_property
    def cgroup(self) -> conf.Conf:
        """cgroup.conf; without it Slurm's defaults hold."""
        path = self._beside(self.sources.cgroup_conf, "cgroup.conf")
        return self._conf("cgroup.conf", path, optional=self._may_lack)

    @property
    def _may_lack(self) -> bool:
        """Whether a file that is not beside slurm.conf means that Slurm has its defaults."""
        return self.here and "slurm.conf" not in self.gaps

    def _conf(self, area: str, path: Path, *, optional: bool = False) -> conf.Conf:
        try:
            text = _content(path)
        except OSError as problem:
            if not (optional and isinstance(problem, FileNotFoundError)):
                self.gaps.setdefault(area, f"{path}: {problem.strerror}")
            return conf.Conf(str(path), ())
        return conf.parse(str(path), text, _read)

    # -- slurmctld -------------------------------------------------------------

    @cached_property
    def _client(self) -> CommandClient:
        return CommandClient(self.config.slurm_bin, self.config.slurm_timeout)

    @cached_property
    def live(self) -> Mapping[str, str]:
        """What slurmctld has loaded, keys in lower case; empty when it is not asked."""
        if not self.sources.live:
            self.gaps["slurmctld"] = "only files are read (--no-live, or --slurm-conf)"
            return {}
        try:
            return self._client.configuration()
        except SlurmFault as fault:
            self.gaps["slurmctld"] = str(fault)
            return {}

    def _registered(self) -> Iterator[tuple[str, NodeFacts]]:
        """The node to look at, or one node of each line of slurm.conf, as slurmctld has it."""
        if not self.live:
            self.gaps["registered"] = self.gaps["slurmctld"]
            return
        managed = [node for node in self.nodes if node.managed]
        chosen = [node.name for node in managed if node.name == self.target] or list(
            {node.entry.where: node.name for node in reversed(managed)}.values()
        )
        for name in chosen:
            try:
                yield name, self._client.node(name)
            except SlurmFault as fault:
                self.gaps["registered"] = str(fault)

    def _limits(self) -> tuple[Limit, ...]:
        """What slurmdbd has of limits, where they are enforced; equal ones of users together."""
        enforced = self.live.get("accountingstorageenforce", "")
        if not conf.has_word(enforced, *ENFORCED):
            return ()
        found: dict[tuple[str, str, str], Limit] = {}
        try:
            for (kind, *names), key, tres in self._client.limits(self.live.get("clustername", "")):
                limit = _limit(kind, names, key, tres)
                same = (limit.where if kind == "qos" else kind, key, tres)
                known = found.get(same)
                found[same] = replace(known, others=known.others + 1) if known else limit
        except SlurmFault as fault:
            self.gaps["limits"] = str(fault)
        return tuple(found.values())

    @cached_property
    def version(self) -> tuple[int, ...]:
        """Slurm's release: by option, by slurmctld, by the scontrol of this machine."""
        if self.sources.version:
            return self.sources.version
        said = self.live.get("slurm_version", "")
        if said:
            return tuple(int(part) for part in said.split(".") if part.isdigit())
        try:
            return self._client.version()
        except SlurmFault as fault:
            self.gaps["version"] = f"{fault}; name it with --slurm-version"
            return ()

    # -- which node ------------------------------------------------------------

    @cached_property
    def nodes(self) -> tuple[conf.NodeLine, ...]:
        """Every node of slurm.conf. UsageFault when the one asked for is not there."""
        found = tuple(conf.nodes(self.slurm))
        names = [node.name for node in found]
        if self.sources.node and found and self.sources.node not in names:
            raise UsageFault(
                f"--node {self.sources.node!r}: {self.slurm.path} has "
                f"{', '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
            )
        return found

    @cached_property
    def _own_name(self) -> str:
        """This machine's name among the nodes; empty where it is none, or not to be told."""
        named = os.environ.get("SLURMD_NODENAME") or ""
        short = socket.gethostname().partition(".")[0]
        if named or any(node.name == short for node in self.nodes):
            return named or short
        mine = [node.name for node in self.nodes if node.host.partition(".")[0] == short]
        return mine[0] if len(mine) == 1 else ""

    @cached_property
    def here(self) -> bool:
        """Whether this machine is the node to look at, and may be looked at."""
        reason = self._not_here()
        if reason:
            areas = ("node",) if self._uncounted else ("node", "machine", *LOCAL)
            for area in areas:
                self.gaps.setdefault(area, reason)
        return not reason

    @cached_property
    def _uncounted(self) -> str:
        """This machine's name as a node without mig counts; what was ours may be left there."""
        own = self._own_name
        line = next((node for node in self.nodes if node.name == own), None)
        if line is None or line.managed or self.sources.node not in ("", own):
            return ""
        mine = self.sources.live and os.geteuid() == 0 and self._has_driver()
        return own if mine else ""

    def _not_here(self) -> str:
        own = self._own_name
        managed = [node.name for node in self.nodes if node.managed]
        if not self.sources.live:
            return "only files are read (--no-live, or --slurm-conf)"
        if "slurm.conf" in self.gaps and not self.sources.node:
            # Before Slurm is set up the driver's side can be looked at all the same.
            if not self._has_driver():
                return f"neither a slurm.conf nor {self.node.root / 'proc/driver/nvidia'} is here"
        elif not own or own not in managed:
            name = own or socket.gethostname()
            return f"this machine ({name}) is no node with mig counts in {self.slurm.path}"
        if self.sources.node not in ("", own):
            return f"this machine is {own}, not {self.sources.node}"
        return "" if os.geteuid() == 0 else "root needed to look at this machine"

    def _has_driver(self) -> bool:
        return (self.node.root / "proc/driver/nvidia").is_dir()

    @cached_property
    def target(self) -> str:
        """The node to look at; empty for all."""
        return self.sources.node or (self._own_name if self.here else "")

    def _groups(self, lines: tuple[conf.GresLine, ...], gpus: tuple[GpuFacts, ...]) -> Any:
        """The fleet behind the files; a type that nobody knows is a gap."""
        names = {gpu.minor: gpu.name for gpu in gpus}
        shown = {
            line.type: names[minor]
            for line in lines
            if line.name == "gpu" and line.on(self.target)
            for minor in map(minor_of, line.files)
            if minor in names
        }
        rebuilt = Reconstruction(self.sources.types, shown)
        try:
            fleet, groups = rebuilt.fleet([node for node in self.nodes if node.managed], lines)
        except UsageFault as fault:
            self.gaps["fleet"] = str(fault)
            return {}
        return {"fleet": fleet, "groups": groups}

    # -- Lua ---------------------------------------------------------------------

    def _job_submit(self) -> LuaFile:
        """Read on the controller, where it must be; elsewhere only if it is there."""
        path = self._beside(self.sources.job_submit, "job_submit.lua")
        if not _may_be(path) and not (self.sources.job_submit or self._at_controller()):
            self.gaps["job_submit.lua"] = f"no {path}; it lies beside slurm.conf on the controller"
            return LuaFile(())
        return self._lua("job_submit.lua", path)

    def _at_controller(self) -> bool:
        """On a host of slurmctld, or where a set of files is looked at by itself."""
        if self.sources.slurm_conf and not self.sources.live:
            return True
        mine = {socket.gethostname(), socket.gethostname().partition(".")[0]}
        entries = self.slurm.all("SlurmctldHost") + self.slurm.all("ControlMachine")
        return any(entry.get(entry.key).partition("(")[0] in mine for entry in entries)

    def _cli_filter(self) -> LuaFile:
        path = self._beside(self.sources.cli_filter, "cli_filter.lua")
        plugins = self.slurm.last("CliFilterPlugins")
        wanted = plugins and conf.has_word(plugins.get("CliFilterPlugins"), "lua", "cli_filter/lua")
        if not _may_be(path) and not (self.sources.cli_filter or wanted):
            self.gaps["cli_filter.lua"] = f"no {path}"
            return LuaFile(())
        return self._lua("cli_filter.lua", path)

    def _lua(self, area: str, path: Path) -> LuaFile:
        """The script with what it loads; a gap where it is not ours to read, which is not amiss."""
        files = tuple(_lua_files(path))
        for item in files:
            if item.denied:
                self.gaps[area] = f"{item.path}: {item.problem}"
                return LuaFile(())
        return LuaFile(files)

    # -- hooks -------------------------------------------------------------------

    def _hooks(self, *, here: bool) -> Iterator[HookFacts]:
        for key in HOOKS:
            for value, where in self._hook_values(key):
                yield HookFacts(key, value, where, tuple(self._hook_files(value)) if here else ())

    def _hook_values(self, key: str) -> list[tuple[str, str]]:
        """Values in force: several lines of Prolog and Epilog count since 24.05."""
        if self.live:
            values = loaded_values(self.live, key)
            return [(value, f"slurmctld has {key} = {value}") for value in values]
        entries = self.slurm.all(key)
        old = self.version and self.version < SEVERAL_PROLOGS_SINCE
        if key == "TaskProlog" or old:
            entries = entries[-1:]
        return [(entry.get(key), str(entry)) for entry in entries]

    def _hook_files(self, value: str) -> list[PathFacts]:
        """The files in the order in which Slurm runs them: z-a, Z-A, 9-0 (slurm.conf(5))."""
        path = value if value.startswith("/") else str(self._slurm_path.parent / value)
        if not any(char in path for char in "*?["):
            return [look(Path(path), content=True)]
        return [look(Path(item), content=True) for item in sorted(glob(path), reverse=True)]  # noqa: PTH207  # Slurm's own way

    # -- this machine -------------------------------------------------------------

    def _local(self) -> dict[str, Any]:
        local: dict[str, Any] = {
            "pythons": {path: look(Path(word)) for path, word in self._settings("python")},
            "hook_configs": {
                path: word.replace("%n", self._own_name) for path, word in self._settings("config")
            },
            "paths": dict(self._paths()),
        }
        if self.config_fault:
            return local
        # Before the GPUs: what is on record is believed of a sound ledger alone.
        ledger = self._ledger()
        gpus = tuple(self._gpus())
        return local | {
            **ledger,
            "gpus": gpus,
            "driver_faults": tuple(self._driver_faults),
            "driver_version": self._driver_version,
            "kernel": self._kernel(),
            "holders": tuple(self._holders()),
            "deaf_helper": deaf(str(self.config.warm), list(local["hook_configs"].values())),
            "units": tuple(self._units()),
            **self._published(),
        }

    def _published(self) -> dict[str, Any]:
        """When this node last looked at what it publishes, and whether it is to."""
        publisher = Publisher(self.node)
        looked = publisher.last().looked
        return {
            "published_age": max(0.0, time.time() - looked) if looked else None,
            "publish_off": publisher.off,
        }

    def _settings(self, name: str) -> Iterator[tuple[str, str]]:
        """A settings line (`python=`, `config=`) of each installed hook, unquoted."""
        files = {file.path: file.text for hook in self._hooks(here=True) for file in hook.files}
        for path, text in files.items():
            lines = [line for line in text.splitlines() if line.startswith(f"{name}=")]
            if "# slurm-mig" in text and lines:
                words = shlex.split(lines[0].partition("=")[2])
                yield path, words[0] if words else "/"

    @cached_property
    def _driver_faults(self) -> list[str]:
        return []

    @cached_property
    def _driver_version(self) -> str:
        return "" if "driver" in self.gaps else self.node.driver.driver_version()

    def _gpus(self) -> Iterator[GpuFacts]:
        try:
            gpus, faults = self.node.driver.survey()
        except SlurmMigError as fault:
            self.gaps["driver"] = str(fault)
            self._driver_faults.append(str(fault))
            return
        self._driver_faults += [str(fault) for fault in faults]
        for gpu in gpus:
            try:
                yield self._gpu(gpu)
            except SlurmMigError as fault:
                self._driver_faults.append(str(fault))

    def _gpu(self, gpu: Gpu) -> GpuFacts:
        managed = self.node.configured(gpu) and gpu.uuid not in self._retired
        return GpuFacts(
            minor=gpu.minor,
            index=gpu.index,
            uuid=gpu.uuid,
            name=gpu.name,
            resetless=gpu.resetless,
            managed=managed,
            mig_mode=gpu.mig_mode,
            mig_pending=gpu.mig_pending,
            persistence=self.node.driver.persistence(gpu),
            geometry=self.node.driver.geometry(gpu) if gpu.mig_capable else None,
            foreign=tuple(self._foreign(gpu)) if managed and gpu.mig_mode else (),
        )

    def _order(self) -> tuple[int, ...] | None:
        """Device minors along which hooks count Slurm's indexes; None where nothing says so."""
        try:
            return self.config.order or indexes.read(self.config.state)
        except NodeFault:
            return None

    @cached_property
    def _retired(self) -> frozenset[str]:
        """GPUs taken out of management; `_recorded` says what is wrong with the ledger."""
        try:
            return retired(self.config.ledger) if self.config.ledger.exists() else frozenset()
        except LedgerFault:
            return frozenset()

    def _ledger(self) -> dict[str, str]:
        """Why no hook can use the ledger, or what of this boot's marks it lacks (evidence.py)."""
        path = self.config.ledger
        try:
            heads, there = list(self.node.files.heads()), path.exists()
            if there:
                check_usable(path)
            behind = missing(
                heads,
                lambda seq: digest_in(path, seq) if there else None,
                newest(path) if there else 0,
            )
        except NodeFault as fault:
            self.gaps["ledger"] = str(fault)
            return {"ledger_fault": str(fault)}
        if behind:
            self.gaps["ledger"] = f"{path} is older than what lies beside it"
        return {"ledger_behind": behind}

    @cached_property
    def _recorded(self) -> list[tuple[str, Instance]]:
        """GPU UUID and instance on record; without a ledger none is."""
        if not self.config.ledger.exists():
            return []
        try:
            return recorded(self.config.ledger)
        except LedgerFault as fault:
            self.gaps["ledger"] = str(fault)
            return []

    def _foreign(self, gpu: Gpu) -> Iterator[str]:
        """Instances that no record names."""
        geometry = self.node.driver.geometry(gpu)
        known = [item for uuid, item in self._recorded if uuid == gpu.uuid]
        for item in strangers(known, self.node.driver.instances(gpu)):
            name = geometry.by_id(item.profile_id).name
            yield f"{name} at {item.placement}, GPU instance {item.gi_id}"

    def _paths(self) -> Iterator[tuple[str, PathFacts]]:
        if self.config.source is not None:
            yield "configuration", look(self.config.source)
        if self.config_fault:
            return
        yield "state directory", look(self.config.state)
        yield "ledger", look(self.config.ledger)
        yield "run directory", look(self.config.run)
        yield "locks directory", look(self.config.run / "locks")
        yield "directory of leases", look(self.config.leases.parent)

    def _kernel(self) -> KernelFacts:
        root = self.node.root
        proc = root / "proc"
        modeset = _read(str(root / "sys/module/nvidia_drm/parameters/modeset"))
        params = _read(str(proc / "driver/nvidia/params")) or ""
        devices = (root / "dev").glob("nvidia[0-9]*")
        return KernelFacts(
            capabilities=(proc / "driver/nvidia/capabilities/mig").is_dir(),
            caps_major=" nvidia-caps\n" in (_read(str(proc / "devices")) or ""),
            params={
                key.strip(): value.strip()
                for key, _, value in (line.partition(":") for line in params.splitlines())
            },
            modeset=None if modeset is None else modeset.strip() in ("Y", "1"),
            device_nodes=frozenset(
                minor for path in devices for minor in [minor_of(str(path))] if minor is not None
            ),
            config_node=look(root / "dev/nvidia-caps/nvidia-cap1"),
            proc=str(proc),
        )

    def _holders(self) -> Iterator[Holder]:
        """Processes with a GPU's node open, each once, from /proc/PID/fd (proc(5))."""
        for folder in sorted((self.node.root / "proc").glob("[0-9]*")):
            device = next((name for name in _open_files(folder) if _is_gpu(name)), "")
            if device:
                command = (_read(str(folder / "comm")) or "?").strip()
                yield Holder(int(folder.name), command, device)

    def _units(self) -> Iterator[Unit]:
        # A simulated GPU stands in a machine whose systemd is real, unless its tree has one.
        own = (self.node.root / "etc/systemd").is_dir()
        root = self.node.root if own else MACHINE
        # Installed is not booted: sd_booted(3) looks for this.
        if not own and not (root / "run/systemd/system").is_dir():
            self.gaps["units"] = "no systemd: this machine was not booted by it"
            return
        folders = [root / name for name in UNIT_DIRECTORIES]
        links = {
            link.name: link
            for folder in folders[:2]
            for kind in ("wants", "requires")
            for link in folder.glob(f"*.{kind}/*.*")
        }
        for name in sorted(links):
            path = _unit_file(name, folders)
            if name.startswith(OURS):
                yield _own_unit(name, path or links[name], folders)
            elif path is not None and name.endswith(".service"):
                yield Unit(name, str(path), _unit_text(path, folders))


def _unit_file(name: str, folders: Sequence[Path]) -> Path | None:
    return next((item / name for item in folders if (item / name).exists()), None)


def _unit_text(path: Path, folders: Sequence[Path]) -> str:
    return "\n".join(_read(str(item)) or "" for item in (path, *_drop_ins(path.name, folders)))


def _own_unit(name: str, path: Path, folders: Sequence[Path]) -> Unit:
    """One of ours with what it starts, a timer by its service; and why it cannot."""
    text, program = _unit_text(path, folders), ""
    service = _unit_file(f"{name.partition('.')[0]}.service", folders)
    found = _STARTS.search(_unit_text(service, folders)) if service else None
    if found:
        program = found[1].split()[0].strip('"')
    if path.resolve() == Path(os.devnull):
        fault = "it is masked"
    elif not path.exists() or service is None:
        fault = "there is no such unit file"
    else:
        fault = look(Path(program)).problem if program else ""
        fault = f"{program}: {fault}" if fault else ""
    return Unit(name, str(path), text, program, fault)


def _drop_ins(name: str, folders: Sequence[Path]) -> list[Path]:
    """Files that add to a unit, in the order in which they count (systemd.unit(5)).

    By their names, whatever directory they are in; of one name the first directory's.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob(f"{name}.d/*.conf"):
            found.setdefault(path.name, path)
    return [found[key] for key in sorted(found)]


def _limit(kind: str, names: list[str], key: str, tres: str) -> Limit:
    """A limit with the words for it, and those by which sacctmgr changes it."""
    if kind == "qos":
        name = "|".join(names)
        return Limit(f"QOS {name}", f"qos where name={name}", key, tres)
    account, user, partition = (*names, "", "", "")[:3]
    where = f"account {account}" + (f", user {user}" if user else "")
    where += f", partition {partition}" if partition else ""
    change = (
        f"user where name={user} account={account}" if user else f"account where name={account}"
    )
    return Limit(where, change, key, tres)


def look(path: Path, *, content: bool = False) -> PathFacts:
    """A path as it is now, with its text if asked for."""
    try:
        status = path.stat()
        text = _content(path)[:LONGEST_FILE] if content else ""
    except OSError as problem:
        denied = isinstance(problem, PermissionError)
        return PathFacts(str(path), problem.strerror or str(problem), denied)
    return PathFacts(
        path=str(path),
        directory=stat.S_ISDIR(status.st_mode),
        uid=status.st_uid,
        mode=stat.S_IMODE(status.st_mode),
        executable=bool(status.st_mode & 0o111) and not stat.S_ISDIR(status.st_mode),
        unsafe_parent=_unsafe_parent(path),
        lacking=lacking(path),
        text=text,
    )


def _unsafe_parent(path: Path) -> str:
    """The first directory above that others than root can change; sticky ones keep root's files."""
    # A link stands in one directory and leads to another: both count.
    for parent in dict.fromkeys((*path.absolute().parents, *path.resolve().parents)):
        status = parent.stat()
        sticky = status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or (status.st_mode & 0o022 and not sticky):
            return str(parent)
    return ""


def _lua_files(path: Path) -> Iterator[PathFacts]:
    """The script, and what it loads with dofile; each once."""
    waiting, seen = [path], set()
    while waiting:
        item = waiting.pop(0)
        if item in seen:
            continue
        seen.add(item)
        found = look(item, content=True)
        yield found
        waiting += [item.parent / name for name in loads(found.text)]


def _open_files(folder: Path) -> Iterator[str]:
    try:
        for link in (folder / "fd").iterdir():
            yield str(link.readlink())
    except OSError:
        return  # the process has ended


def _is_gpu(name: str) -> bool:
    return name.startswith("/dev/nvidia") and name[len("/dev/nvidia") :].isdigit()


def _read(path: str) -> str | None:
    try:
        return _content(Path(path))
    except OSError:
        return None


def _content(path: Path) -> str:
    """A file's text; OSError for a FIFO or a device, which would keep the doctor waiting."""
    with open(path, "rb", opener=_at_once) as file:  # Path has no opener
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read().decode("utf-8", "replace")


def _at_once(path: str, flags: int) -> int:
    """Open it without waiting for the writer of a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _may_be(path: Path) -> bool:
    """Whether there is something, or may be: a place that is closed to the caller hides it."""
    try:
        return path.exists()
    except OSError:
        return True
