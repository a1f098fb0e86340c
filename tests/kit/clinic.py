"""A node in perfect health: every file as the manual says, on simulated hardware."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slurm_mig.config import load
from slurm_mig.doctor import all_checks
from slurm_mig.doctor.check import Result, examine
from slurm_mig.doctor.gather import Sources, gather
from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog
from slurm_mig.node.node import Node
from slurm_mig.slurm import conf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from slurm_mig.doctor.facts import Facts
    from tests.kit.site import Site

#: What a site writes itself; the rest is the generator's.
OWN_LINES = """\
ClusterName=clinic
SlurmctldHost={host}(127.0.0.1)
SlurmUser=slurm
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,LL_SHARED_GRES
ProctrackType=proctrack/cgroup
TaskPlugin=task/affinity,task/cgroup
JobAcctGatherType=jobacct_gather/cgroup
AccountingStorageType=accounting_storage/slurmdbd
MessageTimeout=900
PrologEpilogTimeout=900
"""

STARTS = f"ExecStart={sys.executable} -I -m slurm_mig --config /etc/slurm-mig/config.toml reconcile"

#: What `install` writes, as far as the doctor reads it.
UNITS = {
    "slurm-mig-boot.service": f"[Unit]\nBefore=slurmd.service\n[Service]\n{STARTS} --boot\n",
    "slurm-mig-reconcile.service": f"[Service]\n{STARTS}\n",
    "slurm-mig-reconcile.timer": "[Timer]\nOnBootSec=5min\n",
}

SCONTROL = """\
#!/bin/sh
here={root}
case "$*" in
    --version) cat "$here/version" ;;
    "show node -d -o n1") cat "$here/node" 2>/dev/null || {{ echo "no node" >&2; exit 1; }} ;;
    "show config") cat "$here/live" 2>/dev/null || {{ echo "no controller" >&2; exit 1; }} ;;
esac
"""


SACCTMGR = """\
#!/bin/sh
# sacctmgr -n -P show KIND ...
cat "{root}/limits-$4" 2>/dev/null
exit 0
"""


@dataclass
class Clinic:
    """A site with all the files that the doctor reads; each test breaks one thing of it."""

    site: Site
    monkeypatch: pytest.MonkeyPatch
    live: bool = True
    options: dict[str, object] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.site.root

    @property
    def sim(self) -> Path:
        return self.site.machine.root

    @property
    def slurm_conf(self) -> Path:
        return self.root / "slurm/slurm.conf"

    def own_lines(self) -> str:
        """What the site wrote itself."""
        return OWN_LINES

    def file(self, name: str) -> Path:
        return self.root / "slurm" / name

    def edit(self, name: str, old: str, new: str) -> None:
        """Change one text of a file of Slurm's; it must be there."""
        path = self.file(name)
        text = path.read_text()
        assert old in text, (old, text)
        path.write_text(text.replace(old, new))

    def add(self, name: str, text: str) -> None:
        with self.file(name).open("a") as file:
            file.write(text + "\n")

    def drop(self, name: str, start: str) -> None:
        """Take out the lines that start so."""
        path = self.file(name)
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not line.startswith(start)]
        assert kept != lines, start
        path.write_text("".join(kept))

    def configure(self, text: str) -> None:
        with self.site.config.open("a") as file:
            file.write(text)

    def release(self, text: str) -> None:
        (self.root / "bin/version").write_text(f"slurm {text}\n")

    def loaded(self, **changes: str) -> None:
        """Let slurmctld answer: what the file says, but for those changes."""
        pairs = dict(
            line.split("=", 1)
            for line in self.slurm_conf.read_text().splitlines()
            if "=" in line and not line.startswith(("#", "NodeName"))
        )
        lines = [f"{key:23} = {value}" for key, value in (pairs | changes).items()]
        version = (self.root / "bin/version").read_text().split()[1]
        text = "\n".join(["Configuration data", *lines, f"SLURM_VERSION = {version}"])
        (self.root / "bin/live").write_text(text + "\n")
        self.registered()

    def registered(
        self, state: str = "IDLE", reason: str = "", gres: dict[str, int] | None = None
    ) -> None:
        """What slurmctld says of the node: as slurm.conf says, but for those counts."""
        text = (
            self.slurm_conf.read_text().partition("\nNodeName=n1 ")[2].split("Gres=")[1].split()[0]
        )
        counts = conf.read_gres(text) | (gres or {})
        words = ",".join(f"{name}:{count}" for name, count in counts.items())
        end = f" Reason={reason} [root@now]" if reason else ""
        line = f"NodeName=n1 State={state} Gres={words}(S:0-1)"
        (self.root / "bin/node").write_text(f"{line}{end}\n")

    def limits(self, kind: str, *lines: str) -> None:
        """Let slurmdbd have limits, and slurmctld enforce them; lines as sacctmgr prints them."""
        self.loaded(AccountingStorageEnforce="associations,limits,qos")
        self.add("slurm.conf", "AccountingStorageEnforce=limits")
        (self.root / f"bin/limits-{kind}").write_text("".join(f"{line}\n" for line in lines))

    def machine_facts(self, change: Callable[[dict[str, object]], None]) -> None:
        """Rewrite what the simulated machine is."""
        path = self.sim / "machine.json"
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))

    def unit(self, name: str, text: str, *, enable: bool = True) -> Path:
        """Put a unit in place and enable it."""
        folder = self.sim / "etc/systemd/system"
        (folder / "multi-user.target.wants").mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        link = folder / "multi-user.target.wants" / name
        if enable:
            link.symlink_to(folder / name)
        return link

    def process(self, pid: int, name: str, *files: str) -> None:
        """A process as /proc shows it."""
        folder = self.sim / "proc" / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "comm").write_text(f"{name}\n")
        for number, file in enumerate(files):
            (folder / "fd" / str(number)).symlink_to(file)

    def facts(self) -> Facts:
        """As the command gathers them."""
        from slurm_mig.errors import ConfigFault

        fault = ""
        try:
            config = load(self.site.config, {})
        except ConfigFault as problem:
            from slurm_mig.settings import Config

            config, fault = Config(source=self.site.config), str(problem)
        node = Node(config, {"SLURMD_NODENAME": "n1"})
        try:
            return gather(Sources(live=self.live, **self.options), node, fault)  # type: ignore[arg-type]
        finally:
            node.close()

    def result(self) -> Result:
        return examine(self.facts(), all_checks())

    def codes(self) -> list[str]:
        return [finding.check.code for finding in self.result().findings]


def build(site: Site, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Clinic:
    """Write what an administrator takes over from generate and install, and no more."""
    clinic = Clinic(site, monkeypatch)
    models = tuple(fleet_model(catalog.find(name)) for name in gpus)
    group = NodeGroup("n1", models, str(site.machine.tree.dev))
    fleet = Fleet((group,))
    clinic.slurm_conf.parent.mkdir()
    for name, text in slurm_files.generate(fleet, hooks=str(site.root / "hooks")).items():
        clinic.file(name.removesuffix(".mig")).write_text(text)
    fragment = clinic.slurm_conf.read_text().replace(
        "#AccountingStorageTRES", "AccountingStorageTRES"
    )
    own = OWN_LINES.format(host=socket.gethostname())
    nodes = f"NodeName=n1 CPUs=16 Gres={fleet.gres(group)}\nNodeName=login CPUs=4\n"
    clinic.slurm_conf.write_text(own + fragment + nodes)
    _programs(clinic)
    _machine(clinic)
    monkeypatch.setenv("SLURM_CONF", str(clinic.slurm_conf))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return clinic


def _programs(clinic: Clinic) -> None:
    folder = clinic.root / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(SCONTROL.format(root=folder))
    (folder / "scontrol").chmod(0o755)
    (folder / "sacctmgr").write_text(SACCTMGR.format(root=folder))
    (folder / "sacctmgr").chmod(0o755)
    clinic.release("24.11.5")


def _machine(clinic: Clinic) -> None:
    clinic.site.machine.tree.set_modify(on=False)
    for name, text in UNITS.items():
        clinic.unit(name, text, enable="reconcile.service" not in name)
    shm = clinic.root / "shm"
    shm.mkdir()
    shm.chmod(0o1777)
    clinic.configure(f'[tasks]\nleases = "{shm}/slurm-mig"\n')
    clinic.site.config.chmod(0o600)
    node = clinic.site.node()
    assert node.ledger
    node.close()
