"""What other tools read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig.allocation import WHOLE, Allocation, Instance, Owner
from slurm_mig.state.monitoring import Feeds
from tests.kit.gpus import H100
from tests.kit.hooks import slurm_commands, squeue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.site import Site

JOB = Owner(7, uid=64001)
UUIDS = ("MIG-a", "MIG-b", "MIG-c")


def record(*instances: Instance, owner: Owner = JOB, request: str = "3g.40gb:1") -> Allocation:
    return Allocation(owner, "n1", "GPU-x", 0, "H100", "boot", request, instances=instances)


TWO = record(
    Instance("1c.2g.20gb", 14, 0, 2, 3, 0, "MIG-a"),
    Instance("1c.2g.20gb", 14, 0, 2, 3, 1, "MIG-b"),
    Instance("1g.10gb", 19, 4, 1, 11, 0, "MIG-c"),
)


def texts(path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in path.iterdir()}


def test_slices(tmp_path: Path) -> None:
    """One file a MIG UUID for jobstats; one a GPU instance for dcgm-exporter."""
    feeds = Feeds(tmp_path / "gpustat", tmp_path / "dcgm")
    feeds.show(TWO, 5)
    assert texts(tmp_path / "gpustat") == dict.fromkeys(UUIDS, "7 64001\n")
    assert texts(tmp_path / "dcgm") == {"5.3": "7\n", "5.11": "7\n"}
    assert (tmp_path / "dcgm/5.3").stat().st_mode & 0o777 == 0o644
    feeds.hide(TWO, 5)
    assert not texts(tmp_path / "gpustat")
    assert not texts(tmp_path / "dcgm")
    assert feeds.problems == []


def of_dcgm_exporter(directory: Path, gpu: str, gpu_instance: str = "") -> list[str]:
    """Jobs that dcgm-exporter (4.x, transformation/hpc.go) puts on a metric: by its own rule.

    Files, not directories, named by a GPU or a GPU and a GPU instance; each line is a job.
    """
    jobs = {
        file.name: file.read_text().splitlines()
        for file in directory.iterdir()
        if re.fullmatch(r"\d+(\.\d+)?", file.name) and not file.is_dir()
    }
    return jobs.get(f"{gpu}.{gpu_instance}" if gpu_instance else gpu, [])


def test_dcgm_exporter_finds_the_job_of_a_slice(tmp_path: Path) -> None:
    """And of a whole GPU; not on the GPU that a slice is of, nor in what is half-written."""
    feeds = Feeds(None, tmp_path)
    feeds.show(TWO, 5)
    (tmp_path / ".5.11.4711").write_text("8")
    assert of_dcgm_exporter(tmp_path, "5", "3") == ["7"]
    assert of_dcgm_exporter(tmp_path, "5", "11") == ["7"]
    assert of_dcgm_exporter(tmp_path, "5", "12") == of_dcgm_exporter(tmp_path, "5") == []
    feeds.hide(TWO, 5)
    feeds.show(record(request=WHOLE), 5)
    assert of_dcgm_exporter(tmp_path, "5") == ["7"]


def test_a_whole_gpu(tmp_path: Path) -> None:
    """By its UUID, and by its index."""
    feeds = Feeds(tmp_path / "gpustat", tmp_path / "dcgm")
    feeds.show(record(request=WHOLE), 5)
    assert texts(tmp_path / "gpustat") == {"GPU-x": "7 64001\n"}
    assert texts(tmp_path / "dcgm") == {"5": "7\n"}


def test_only_what_the_site_wants(tmp_path: Path) -> None:
    """And nothing for an administrator's instance."""
    Feeds(None, tmp_path / "dcgm").show(TWO, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["dcgm"]
    Feeds(tmp_path / "x", tmp_path / "x").show(record(*TWO.instances, owner=Owner(None)), 0)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["gpustat", "dcgm"])
def test_what_cannot_be_written_is_said(tmp_path: Path, name: str) -> None:
    """No fault: the job keeps its slice."""
    (tmp_path / name).write_text("")
    feeds = Feeds(tmp_path / "gpustat", tmp_path / "dcgm")
    feeds.show(TWO, 0)
    assert f"{tmp_path / name}: " in feeds.problems[0]
    feeds.hide(TWO, 0)
    assert len(feeds.problems) > 1


# -- by the hooks ------------------------------------------------------------------

STAMP = "slurm-mig=1,3g.40gb/9/14:1"


def fed(make_site: Callable[..., Site], directory: Path) -> Site:
    feed = f'[feed]\ngpustat = "{directory}/gpustat"\ndcgm = "{directory}/dcgm"\n'
    return make_site(H100, H100, config=feed)


@pytest.mark.root
def test_a_jobs_slice_from_prolog_to_epilog(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    """There while the slice is, in both tools' words; the other GPU's index is its own."""
    site = fed(make_site, public_tmp)
    assert site.prolog(7, STAMP, "1").returncode == 0
    (uuid,) = site.node().ledger.open_of_job(7)[0].uuids
    assert texts(public_tmp / "gpustat") == {uuid: "7 64001\n"}
    assert list(texts(public_tmp / "dcgm").values()) == ["7\n"]
    (item,) = site.node().ledger.open_of_job(7)[0].instances
    assert list(texts(public_tmp / "dcgm")) == [f"1.{item.gi_id}"]
    assert site.epilog(7, "1").returncode == 0
    assert texts(public_tmp / "gpustat") == texts(public_tmp / "dcgm") == {}


@pytest.mark.root
def test_a_whole_gpu_of_a_job(make_site: Callable[..., Site], public_tmp: Path) -> None:
    """MIG mode is off meanwhile: the GPU's own UUID and index."""
    site = fed(make_site, public_tmp)
    slurm_commands(site, squeue=squeue(7, "gres:gpu:1"))
    assert site.prolog(7, "", "0").returncode == 0
    assert texts(public_tmp / "gpustat") == {site.machine.gpus[0]["uuid"]: "7 64001\n"}
    assert texts(public_tmp / "dcgm") == {"0": "7\n"}
    assert site.epilog(7, "0").returncode == 0
    assert texts(public_tmp / "gpustat") == texts(public_tmp / "dcgm") == {}


@pytest.mark.root
def test_monitoring_costs_no_job_its_slice(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    """The hook says what it could not write, and goes on."""
    site = fed(make_site, public_tmp)
    (public_tmp / "gpustat").write_text("")
    done = site.prolog(7, STAMP)
    assert done.returncode == 0
    assert f"carved; directory {public_tmp}/gpustat: " in done.stderr
    assert list(texts(public_tmp / "dcgm").values()) == ["7\n"]
