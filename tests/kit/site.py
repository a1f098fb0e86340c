"""One node: its simulated machine, configuration and installed hooks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from slurm_mig.config import load
from slurm_mig.errors import SlurmMigError
from slurm_mig.mig import catalog
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.node.node import Node
from slurm_mig.simulator import Machine, create
from slurm_mig.simulator.spec import gpu_spec
from slurm_mig.state import leases
from tests.kit import ways
from tests.kit.ways import detached, later, soon

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from contextlib import AbstractContextManager


def build_machine(root: Path, *gpus: str, **options: object) -> Machine:
    """A simulated machine with one GPU per name."""
    specs = [gpu_spec(catalog.find(name), name, 1) for name in gpus]
    return create(root, specs, **options)  # type: ignore[arg-type]


@dataclass
class Site:
    """One node: its simulated machine, configuration and installed hooks."""

    root: Path
    machine: Machine
    config: Path
    opened: list[Node] = field(default_factory=list)

    def node(self) -> Node:
        node = Node(load(self.config, {}), {"SLURMD_NODENAME": "n1"})
        self.opened.append(node)
        return node

    def close(self) -> None:
        """End what a test that failed left open: an NVML session would fail all that follow."""
        for node in self.opened:
            with suppress(SlurmMigError, OSError):
                node.close()

    @property
    def run(self) -> Path:
        return self.root / "run"

    def hook(
        self,
        name: str,
        environ: Mapping[str, str],
        *,
        closed: tuple[int, ...] = (),
        wait: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run an installed hook as slurmd does: bare environment, no PATH, no HOME."""

        def close() -> None:
            for descriptor in closed:
                os.close(descriptor)

        before = detached(self.config) if later() else frozenset()
        done = subprocess.run(
            [self.root / "hooks" / name],
            env=dict(environ),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
            preexec_fn=close if closed else None,
        )
        if wait:
            self.settle(before)
        return done

    def settle(self, before: AbstractSet[int] = frozenset()) -> None:
        """Wait for what Epilogs have left to others: tests look at it as soon as they end."""
        if later():
            soon(lambda: detached(self.config) <= before, 120)

    def prolog(
        self, job: int, stamp: str, gpus: str = "0", **more: str
    ) -> subprocess.CompletedProcess[str]:
        return self.hook("prolog", job_environ(job, stamp, gpus) | more)

    def epilog(self, job: int, gpus: str = "0", **more: str) -> subprocess.CompletedProcess[str]:
        return self.hook("epilog", job_environ(job, "", gpus) | more)

    def cli(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "slurm_mig", *arguments],
            env={"SLURM_MIG_CONFIG": str(self.config), "PATH": "/usr/bin:/bin"} | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )


def helper(
    site: Site, code: str = "", **environ: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """A helper for a site's hooks."""
    return ways.helper(site.config, site.run, code, **environ)


def job_environ(job: int, stamp: str, gpus: str = "0") -> dict[str, str]:
    """What slurmd 22.05 gives a Prolog (facts/slurm.md#base)."""
    environ = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_UID": "64001",
        "SLURM_JOB_GID": "64001",
        "SLURM_JOB_USER": "alice",
        "SLURM_JOB_RESTART_COUNT": "0",
        "SLURMD_NODENAME": "n1",
        # For a file that is missing Slurm's commands wait a minute.
        "SLURM_CONF": "/dev/null",
        "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
    }
    if stamp:
        environ["SLURM_JOB_COMMENT"] = stamp
    if gpus:
        environ["SLURM_JOB_GPUS"] = gpus
    return environ


def remove_tree(root: Path) -> None:
    """Remove a directory in which Prologs may have mounted leases."""
    leases.remove_below(root)
    shutil.rmtree(root)


def with_hooks(config: str) -> str:
    """Lines for the way in which this run of the tests has its hooks: tests/kit/ways.py."""
    if "defer_teardown" in config or later():
        return config
    line = "defer_teardown = false\n"
    if "[hooks]\n" in config:
        return config.replace("[hooks]\n", f"[hooks]\n{line}")
    return f"{config}\n[hooks]\n{line}"


def build_site(
    root: Path, *gpus: str, config: str = "", mig: bool = True, **options: object
) -> Site:
    """A node in a new directory `root`."""
    root.mkdir(mode=0o755)
    machine = build_machine(root / "sim", *gpus, **options)
    file = root / "config.toml"
    file.write_text(
        f'[driver]\nlibrary = "simulator:{root}/sim"\n'
        f'[paths]\nstate = "{root}/state"\nrun = "{root}/run"\n'
        f'[slurm]\nbin = "{root}/bin"\ntimeout = 5\n{with_hooks(config)}'
    )
    install_hooks(root / "hooks", Path(sys.executable), file, root / "run")
    if mig:
        for index in range(len(gpus)):
            with machine.change(index) as board:
                board.set_mode(True, busy=False)
    return Site(root, machine, file)
