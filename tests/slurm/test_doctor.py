"""The doctor on a real Slurm: what slurmctld says is in force is what it goes by."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.sandbox import Cluster, SandboxNode

from ..conftest import H100
from .conftest import Site, running

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What the private cluster deserves: short times, no cgroups, a kernel module as it comes.
DESERVED = {"SM124", "SM401", "SM403", "SM610"}

#: And where Slurm is new enough to have the option.
SINCE_23_11 = {"SM109"}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A cluster of one node, asked and never used."""
    with running((SandboxNode("n1", ((H100, 2),)),)) as cluster:
        yield Site(cluster)


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


def shown(data: dict[str, Any]) -> list[str]:
    return [f"{item['code']} {item['evidence']}" for item in data["findings"]]


def codes(data: dict[str, Any]) -> set[str]:
    return {item["code"] for item in data["findings"]}


def test_the_sandbox_has_what_it_deserves(site: Site) -> None:
    """No less, no more; slurmctld answers, and everything but systemd is looked at."""
    data = doctor(site.cluster)
    assert codes(data) == deserved(site), shown(data)
    assert [item["area"] for item in data["not_checked"]] == ["units"]


def test_files_and_slurmctld_agree(site: Site) -> None:
    """Read from the file alone, the same things are found."""
    conf = str(site.cluster.conf / "slurm.conf")
    version = site.run("scontrol", "--version").split()[1].split("-")[0]
    data = doctor(site.cluster, "--slurm-conf", conf, "--slurm-version", version)
    assert codes(data) == deserved(site) - {"SM610"}


def test_a_file_that_is_not_loaded(site: Site) -> None:
    """What holds is slurmctld's; after a reconfiguration it is the file's."""
    path = site.cluster.conf / "slurm.conf"
    before = path.read_text()
    try:
        path.write_text(before.replace("PrologFlags=Alloc,DeferBatch", "PrologFlags=Alloc"))
        found = doctor(site.cluster)
        assert codes(found) == deserved(site) | {"SM116"}
        site.run("scontrol", "reconfigure")
        site.until(lambda: "SM104" in codes(doctor(site.cluster)), "the new flags")
        assert codes(doctor(site.cluster)) == deserved(site) | {"SM104"}
    finally:
        path.write_text(before)


def test_without_slurmctld(site: Site) -> None:
    """The files still are looked at, and the silence is said."""
    site.cluster.stop_daemon("slurmctld")
    try:
        data = doctor(site.cluster)
        (silent,) = [item for item in data["not_checked"] if item["area"] == "slurmctld"]
        assert "scontrol" in silent["reason"]
        assert codes(data) == deserved(site)
    finally:
        site.cluster.start_slurmctld()
