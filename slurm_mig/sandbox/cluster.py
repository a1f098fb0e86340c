"""The private cluster: files, daemons, and commands as a user of it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.audit.archive import Archive
from slurm_mig.config import load
from slurm_mig.errors import SandboxFault
from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.fleet import Fleet
from slurm_mig.fleet.fleet_file import FleetText, NodeText
from slurm_mig.fleet.resolve import node_groups
from slurm_mig.fleet.slurm_files import ANCHOR
from slurm_mig.mig import catalog
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.node.node import Node
from slurm_mig.node.publish import EXTRA_SINCE
from slurm_mig.sandbox import prerequisites
from slurm_mig.sandbox.daemons import free_ports, kill_all_in, start_daemon, stop
from slurm_mig.simulator import create
from slurm_mig.simulator.spec import gpu_spec
from slurm_mig.state import leases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from slurm_mig.fleet.bridge import Bridge
    from slurm_mig.fleet.fleet import NodeGroup

#: Seconds a munge credential lives; short, so that a refused job's retry comes soon.
CREDENTIAL_LIFETIME: Final = 5

#: Where Debian puts daemons, and a prefix of one's own.
PROGRAMS: Final = ("/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin")


#: Users of the cluster, by name; unprivileged, and known to nothing outside it.
USERS: Final = {"alice": 64001, "bob": 64002, "carol": 64003}


@dataclass(frozen=True, slots=True)
class SandboxNode:
    """A node and its simulated GPUs: (NVML name or catalogue key, count).

    `whole` are device minors that slurm-mig does not manage.
    """

    name: str
    gpus: tuple[tuple[str, int], ...]
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    whole: tuple[int, ...] = ()


class Cluster:
    """A Slurm of its own below `root`, which must be new, short and on local disk."""

    def __init__(
        self,
        root: Path,
        nodes: Sequence[SandboxNode],
        *,
        hooks: Path | None = None,
        slurm_conf: str = "",
        config: str = "",
        cgroup_conf: str = "",
        aliases: Mapping[str, str] | None = None,
        compute_parts: Sequence[str] = (),
        bridge: Bridge | None = None,
        publish: bool = False,
        prefix: Path | None = None,
    ) -> None:
        """Prepare; `hooks` are others than ours, `aliases` words for profiles.

        `compute_parts` are GPU types whose slices are sold in parts, too; `bridge` is what
        users of static MIG type; `publish`: nodes tell what fits. The texts are
        appended to the files of that name.
        """
        self._aliases = aliases
        self._compute_parts = compute_parts
        self._bridge = bridge
        self._publish = publish
        self.root = root
        self.nodes = tuple(nodes)
        self.conf = root / "conf"
        self._prefix = prefix
        self._hooks = hooks
        self._texts = (slurm_conf, config, cgroup_conf)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.work = root / "work"

    # -- files ---------------------------------------------------------------

    def build(self) -> None:
        """Write everything the daemons need, and the simulated machines.

        SandboxFault, with nothing made, where the machine lacks something.
        """
        prerequisites.check(self._places)
        for name in ("conf", "log", "state", "munge", "spool", "work", "nodes"):
            (self.root / name).mkdir(mode=0o755, parents=True)
        # The top directory may come from mkdtemp: users have to get through to their files.
        self.root.chmod(0o755)
        self.work.chmod(0o1777)
        self._write_users()
        groups = tuple(self._build_node(node) for node in self.nodes)
        fleet = Fleet(
            groups, self._aliases, compute_parts=self._compute_parts, publish=self._publish
        )
        (self.root / "munge/key").write_bytes(secrets.token_bytes(1024))
        (self.root / "munge/key").chmod(0o400)
        hooks = self._install_hooks()
        files = slurm_files.generate(fleet, hooks=str(hooks), bridge=self._bridge)
        for name, text in files.items():
            (self.conf / name.removesuffix(".mig")).write_text(text, "utf-8")
        (self.conf / "slurm.conf").write_text(self._slurm_conf(fleet, hooks), "utf-8")
        (self.conf / "cgroup.conf").write_text(self._texts[2] or self._no_cgroups(), "utf-8")

    def _write_users(self) -> None:
        """Users of this cluster alone: the machine's own list is left as it is."""
        passwd = Path("/etc/passwd").read_text("utf-8")
        group = Path("/etc/group").read_text("utf-8")
        for name, uid in USERS.items():
            passwd += f"{name}:x:{uid}:{uid}::{self.work}:/bin/sh\n"
            group += f"{name}:x:{uid}:\n"
        (self.conf / "passwd").write_text(passwd, "utf-8")
        (self.conf / "group").write_text(group, "utf-8")

    def _build_node(self, node: SandboxNode) -> NodeGroup:
        home = self.root / "nodes" / node.name
        products = [(name, catalog.find(name), count) for name, count in node.gpus]
        specs = [gpu_spec(product, name, count) for name, product, count in products]
        machine = create(home / "sim", specs, latency_ms=node.latency_ms)
        names = tuple(f"{name}:{count}" for name, count in node.gpus)
        text = NodeText(node.name, names, node.whole, str(machine.tree.dev))
        (group,) = node_groups(FleetText((text,)))
        (home / "config.toml").write_text(self._config(home, group), "utf-8")
        (home / "config.toml").chmod(0o600)
        return group

    def _config(self, home: Path, group: NodeGroup) -> str:
        directory = self._find("scontrol").parent
        own = (
            ""
            if "retry_delay =" in self._texts[1]
            else f"retry_delay = {2 * CREDENTIAL_LIFETIME}\n"
        )
        return (
            f'[driver]\nlibrary = "simulator:{home}/sim"\n'
            f"[gpus]\nmanaged = {group.managed()}\n"
            f'[paths]\nstate = "{home}/state"\nrun = "{home}/run"\n'
            f'[slurm]\nbin = "{directory}"\n'
            # Longer than the credential lives: 22.05 restarts sooner ones without a Prolog.
            f"[refusal]\n{own}{self._texts[1]}"
        )

    def _install_hooks(self) -> Path:
        if self._hooks is not None:
            return self._hooks
        nodes = self.root / "nodes/%n"
        directory = self.root / "hooks"
        install_hooks(directory, Path(sys.executable), nodes / "config.toml", nodes / "run")
        return directory

    def _slurm_conf(self, fleet: Fleet, hooks: Path) -> str:
        ctld, *ports = free_ports(1 + len(self.nodes))
        constrained = self._publish and self._version() >= EXTRA_SINCE
        expression = ",extra_constraints" if constrained else ""
        lines = [
            "ClusterName=sandbox",
            "SlurmctldHost=localhost(127.0.0.1)",
            f"SlurmctldPort={ctld}",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            "SlurmUser=root",
            f"AuthInfo=socket={self.root}/munge/socket,cred_expire={CREDENTIAL_LIFETIME}",
            f"StateSaveLocation={self.root}/state",
            f"SlurmdSpoolDir={self.root}/spool/%n",
            f"SlurmctldPidFile={self.root}/spool/slurmctld.pid",
            f"SlurmdPidFile={self.root}/spool/%n.pid",
            f"SlurmctldLogFile={self.root}/log/slurmctld",
            f"SlurmdLogFile={self.root}/log/%n",
            "SlurmdParameters=config_overrides",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU",
            f"SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1{expression}",
            "JobAcctGatherType=jobacct_gather/none",
            "MpiDefault=none",
            "ReturnToService=2",
            "KillWait=2",
            *self._own_lines(fleet, hooks),
            "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE",
        ]
        for node, group, port in zip(self.nodes, fleet.groups, ports, strict=True):
            lines.append(
                f"NodeName={node.name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
                f"CPUs=16 RealMemory=4096 Gres={fleet.gres(group)}"
            )
        if self._publish and not constrained:
            lines.append(self._anchor(fleet))
        return "\n".join(lines) + f"\n{self._texts[0]}\n"

    @staticmethod
    def _anchor(fleet: Fleet) -> str:
        """The node that is never up, by which old releases let jobs wait, as `generate` has it."""
        lines = slurm_files.slurm_conf(fleet, "/").splitlines()
        (line,) = [line for line in lines if line.startswith(f"#NodeName={ANCHOR} ")]
        return f"{line.removeprefix('#')} CPUs=16 RealMemory=4096"

    def _version(self) -> tuple[int, ...]:
        version = self.run("slurmctld", "-V").split()[1].split(".")
        return tuple(map(int, version[:2]))

    def _no_cgroups(self) -> str:
        """Keep slurmd from setting up cgroups, which this machine may not have or not give.

        Since 23.11 there is a word for it; before, v1 does nothing unless told to.
        """
        plugin = "disabled" if self._version() >= (23, 11) else "cgroup/v1"
        return f"CgroupPlugin={plugin}\n"

    @staticmethod
    def _own_lines(fleet: Fleet, hooks: Path) -> list[str]:
        """Our own fragment, as a site would take it over; there is no MPI or slurmdbd here."""
        text = slurm_files.slurm_conf(fleet, str(hooks))
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    # -- life ----------------------------------------------------------------

    def __enter__(self) -> Cluster:
        try:
            self.build()
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start munge, slurmctld and every slurmd, and wait until all nodes are idle."""
        munge = self.root / "munge"
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={munge}/key",
            f"--socket={munge}/socket", f"--pid-file={munge}/pid", f"--seed-file={munge}/seed",
        )  # fmt: skip
        self._wait((munge / "socket").is_socket, "munged", 20)
        self.start_slurmctld("-c")
        for node in self.nodes:
            self.start_slurmd(node.name)
        self._wait(self._all_idle, "slurmctld and slurmd", 60)

    def start_slurmctld(self, *options: str) -> None:
        """Start the controller; `-c` lets it forget a state of before."""
        self._daemon("slurmctld", "-D", *options, "-f", str(self.conf / "slurm.conf"))

    def start_slurmd(self, node: str) -> None:
        """Start one node's slurmd."""
        config = str(self.conf / "slurm.conf")
        self._daemon("slurmd", "-D", "-N", node, "-f", config, name=node)

    def stop_daemon(self, name: str) -> None:
        """End one daemon: `slurmctld`, `munged`, or a node's name."""
        stop(self._daemons.pop(name))

    def kill_daemon(self, name: str) -> None:
        """Let one daemon die by SIGKILL, as by a crash of its own; what it started goes on."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def stop(self) -> None:
        """End every daemon and whatever jobs left, by pid."""
        for name in reversed(list(self._daemons)):
            self.stop_daemon(name)
        left = kill_all_in(self.root)
        if left:
            raise SandboxFault(f"processes {left} of {self.root} do not end")

    def remove(self) -> None:
        """Delete the directory."""
        leases.remove_below(self.root)
        shutil.rmtree(self.root, ignore_errors=True)

    def _daemon(self, program: str, *arguments: str, name: str = "") -> None:
        log = self.root / "log" / f"{name or program}.out"
        command = [str(self._find(program)), *arguments]
        self._daemons[name or program] = start_daemon(command, log, self.environ())

    @property
    def _places(self) -> list[Path]:
        own = [self._prefix / "sbin", self._prefix / "bin"] if self._prefix is not None else []
        return [*own, *map(Path, PROGRAMS)]

    def _find(self, program: str) -> Path:
        for place in self._places:
            if (place / program).is_file():
                return place / program
        raise SandboxFault(
            f"no {program} on this machine",
            remedy="apt-get install slurmctld slurmd slurm-client munge",
        )

    def _all_idle(self) -> bool:
        done = self.try_run("sinfo", "-h", "-N", "-o", "%N %T")
        # A node has a line for each of its partitions.
        idle = {f"{node.name} idle" for node in self.nodes}
        there = {line for line in done.stdout.splitlines() if not line.startswith(ANCHOR)}
        return done.returncode == 0 and there == idle

    def _wait(self, ready: Callable[[], bool], what: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not ready():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > until:
                ended = f", {', '.join(dead)} ended" if dead else ""
                raise SandboxFault(f"{what} did not come up{ended}: {self._last_words()}")
            time.sleep(0.1)

    def _last_words(self) -> str:
        lines = []
        for log in sorted((self.root / "log").iterdir()):
            text = log.read_text("utf-8", "replace").splitlines()
            errors = [line for line in text if "fatal" in line or "error" in line]
            lines += [f"{log.name}: {line}" for line in errors[-2:]]
        return " | ".join(lines) or "the logs have no error"

    # -- use -----------------------------------------------------------------

    def environ(self) -> dict[str, str]:
        """Environment of daemons and commands: nothing of the caller's own."""
        directories = [str(self._find("scontrol").parent), "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        return {
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_PASSWD": str(self.conf / "passwd"),
            "NSS_WRAPPER_GROUP": str(self.conf / "group"),
            # Daemons bind to what their host's name resolves to: not always loopback.
            "NSS_WRAPPER_HOSTNAME": "localhost",
            "PATH": ":".join(dict.fromkeys(directories)),
            "SLURM_CONF": str(self.conf / "slurm.conf"),
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.work),
        }

    def try_run(
        self, *command: str, uid: int = 0, timeout: float = 60, stdin: str = "", **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of this cluster as a user; `extra` are environment variables."""
        return subprocess.run(
            [str(self._find(command[0])) if "/" not in command[0] else command[0], *command[1:]],
            input=stdin, capture_output=True, text=True, check=False, timeout=timeout,
            cwd=self.work, env=self.environ() | extra,
            user=uid, group=uid, extra_groups=[],
        )  # fmt: skip

    def run(self, *command: str, uid: int = 0, timeout: float = 60, stdin: str = "") -> str:
        """Like `try_run`, but SandboxFault when the command fails; returns its output."""
        done = self.try_run(*command, uid=uid, timeout=timeout, stdin=stdin)
        if done.returncode != 0:
            raise SandboxFault(
                f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout

    def launch(self, *command: str, uid: int) -> subprocess.Popen[str]:
        """Start an interactive command as a user and let it run."""
        return subprocess.Popen(
            [str(self._find(command[0])), *command[1:]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.work, env=self.environ(), user=uid, group=uid, extra_groups=[],
        )  # fmt: skip

    def node(self, name: str) -> Node:
        """A node as slurm-mig sees it; the caller closes it."""
        path = self.root / "nodes" / name / "config.toml"
        return Node(
            load(path, {}), {"SLURMD_NODENAME": name, "SLURM_CONF": str(self.conf / "slurm.conf")}
        )

    def archive(self, name: str) -> Archive:
        """A node's ledger as an auditor reads it; the caller closes it."""
        return Archive(self.root / "nodes" / name / "state/ledger.db", live=True)


def scratch(name: str = "smig") -> Path:
    """A new directory for a cluster; short, for the sake of socket paths.

    Its name carries our pid, so that what a killed run left can be told from what
    a running one uses: such left-overs are cleared here.
    """
    parent = prerequisites.place()
    for path in parent.glob(f"{name}-*-*"):
        pid = path.name.split("-")[-2]
        if pid.isdigit() and path.owner() == "root" and not Path(f"/proc/{pid}").exists():
            kill_all_in(path)
            leases.remove_below(path)
            shutil.rmtree(path, ignore_errors=True)
    path = parent / f"{name}-{os.getpid()}-{secrets.token_hex(2)}"
    path.mkdir(mode=0o755)
    return path
