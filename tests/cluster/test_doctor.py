"""The doctor on a real Slurm: what slurmctld says is in force is what it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import Site, running
from tests.kit.cluster_doctor import codes, deserved, doctor
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A cluster of one node, asked and never used."""
    with running((SandboxNode("n1", ((H100, 2),)),)) as cluster:
        yield Site(cluster)


def shown(data: dict[str, Any]) -> list[str]:
    return [f"{item['code']} {item['evidence']}" for item in data["findings"]]


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
