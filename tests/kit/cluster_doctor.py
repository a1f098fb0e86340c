"""The doctor on a real Slurm."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slurm_mig.sandbox import Cluster
    from tests.kit.cluster import Site

#: What the private cluster deserves: short times, no cgroups, a kernel module as it comes.
DESERVED = {"SM124", "SM401", "SM403", "SM610"}

#: And where Slurm is new enough to have the option.
SINCE_23_11 = {"SM109"}


def doctor(cluster: Cluster, *options: str) -> dict[str, Any]:
    environ = cluster.environ() | {
        "SLURM_MIG_CONFIG": str(cluster.root / "nodes/n1/config.toml"),
        "SLURMD_NODENAME": "n1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "slurm_mig", "doctor", "--json", *options],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    data: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (30 if data["summary"]["error"] else 0), done.stderr
    return data


def deserved(site: Site) -> set[str]:
    version = site.run("scontrol", "--version").split()[1].split(".")
    return DESERVED | (SINCE_23_11 if tuple(map(int, version[:2])) >= (23, 11) else set())


def codes(data: dict[str, Any]) -> set[str]:
    return {item["code"] for item in data["findings"]}
