"""A node to measure on: simulated H100 in MIG mode, configuration, installed hooks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from _runs import once

from slurm_mig.config import load
from slurm_mig.mig import catalog
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.node.node import Node
from slurm_mig.simulator import create
from slurm_mig.simulator.machine import Machine
from slurm_mig.simulator.spec import gpu_spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from _runs import Cost

NAME = "NVIDIA H100 80GB HBM3"
STAMP = "slurm-mig=1,1g.10gb/19/4:1"


@contextmanager
def helped(config: Path, where: Path, **environ: str) -> Iterator[int]:
    """A helper for hooks of that configuration, once it listens at `where`; its pid."""
    command = [sys.executable, "-m", "slurm_mig", "--config", str(config), "warm"]
    process = subprocess.Popen(command, env={"PATH": os.defpath, **environ})
    try:
        while not where.exists():
            time.sleep(0.01)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


class Site:
    """One node below `root`. `latency` in milliseconds of the driver's operations."""

    def __init__(
        self,
        root: Path,
        gpus: int = 1,
        latency: Mapping[str, float] | None = None,
        config: str = "",
    ) -> None:
        self.root = root
        root.mkdir(parents=True)
        machine = create(
            root / "sim", [gpu_spec(catalog.find(NAME), NAME, gpus)], latency_ms=latency or {}
        )
        for index in range(gpus):
            with machine.change(index) as board:
                board.set_mode(True, busy=False)
        self.config = root / "config.toml"
        self.config.write_text(
            f'[driver]\nlibrary = "simulator:{root}/sim"\n'
            f'[paths]\nstate = "{root}/state"\nrun = "{root}/run"\n{config}'
        )
        install_hooks(root / "hooks", Path(sys.executable), self.config, root / "run")

    @property
    def machine(self) -> Machine:
        """Its simulated machine."""
        return Machine(self.root / "sim")

    def node(self) -> Node:
        """The node, for who looks at its ledger; to be closed."""
        return Node(load(self.config, {}), {"SLURMD_NODENAME": "bench"})

    def environ(self, job: int, gpus: str = "0", stamp: str = STAMP) -> dict[str, str]:
        """What slurmd gives a hook."""
        return {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_UID": "65534",
            "SLURM_JOB_GID": "65534",
            "SLURM_JOB_USER": "nobody",
            "SLURM_JOB_RESTART_COUNT": "0",
            "SLURMD_NODENAME": "bench",
            "SLURM_JOB_GPUS": gpus,
            "SLURM_JOB_COMMENT": stamp if gpus else "",
        }

    def hook(self, name: str, job: int, gpus: str = "0", stamp: str = STAMP) -> Cost:
        """Run a hook to its end; it must succeed."""
        return once([str(self.root / "hooks" / name)], self.environ(job, gpus, stamp))

    def start(self, name: str, job: int, gpus: str = "0") -> subprocess.Popen[bytes]:
        """Start a hook and let it run."""
        return subprocess.Popen(
            [self.root / "hooks" / name],
            env=self.environ(job, gpus),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @contextmanager
    def helper(self) -> Iterator[int]:
        """The helper at work, by its pid."""
        with helped(self.config, self.root / "run/warm") as pid:
            yield pid

    def settle(self) -> None:
        """Wait until nothing is half-way: what Epilogs have put off is done."""
        node = self.node()
        while any(item.phase == "releasing" for item in node.ledger.all_open()):
            time.sleep(0.01)
        node.close()
