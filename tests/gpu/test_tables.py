"""Profile tables that hooks keep: right for this GPU, driver and boot, or not used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from slurm_mig.gpu.nvml import NvmlDriver
from slurm_mig.gpu.tables import Tables
from slurm_mig.simulator.faults import Rule
from slurm_mig.simulator.library import Library
from tests.kit.gpus import A30, H100
from tests.kit.site import build_machine, job_environ

if TYPE_CHECKING:
    from pathlib import Path

    from slurm_mig.mig.geometry import Geometry
    from slurm_mig.simulator import Machine
    from tests.kit.site import Site

pytestmark = pytest.mark.root

STAMP = "slurm-mig=1,1g.10gb/19/4:1"
#: Carried out as ever, and counted.
ASKED = Rule("nvmlDeviceGetGpuInstanceProfileInfoV", "hang:0", skip=1 << 30)


@pytest.fixture
def machine(public_tmp: Path) -> Machine:
    """Two GPUs whose tables differ."""
    return build_machine(public_tmp / "sim", H100, A30)


def session(machine: Machine, kept: Tables | None) -> tuple[list[Geometry], int]:
    """All GPUs' tables, read in a session of its own; and what that asked the driver."""
    machine.faults.set([ASKED])
    driver = NvmlDriver(Library(machine.root), None, kept)
    tables = [driver.geometry(item) for item in driver.gpus()]
    driver.close()
    (rule,) = machine.faults.rules()
    machine.faults.set([])
    return tables, rule.seen


def test_what_one_hook_has_read_the_next_does_not_ask(machine: Machine, tmp_path: Path) -> None:
    """To the letter, each GPU's its own; root's alone to read."""
    read, asked = session(machine, None)
    assert asked
    first = Tables(tmp_path / "tables", "boot")
    assert session(machine, first) == (read, asked)
    assert session(machine, Tables(tmp_path / "tables", "boot")) == (read, 0)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "tables").iterdir()}
    assert ((tmp_path / "tables").stat().st_mode & 0o777, modes) == (0o700, {0o600})


def test_of_another_boot_driver_or_release_nothing_is_used(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor without a boot's id, nor what nobody of ours wrote."""
    where = tmp_path / "tables"
    _, all_of_them = session(machine, Tables(where, "boot"))
    for boot in ("another", ""):
        assert session(machine, Tables(where, boot))[1] == all_of_them
    session(machine, Tables(where, "boot"))
    with monkeypatch.context() as other:
        other.setattr(NvmlDriver, "driver_version", lambda _: "999.1")
        assert session(machine, Tables(where, "boot"))[1] == all_of_them
    with monkeypatch.context() as other:
        other.setattr("slurm_mig.gpu.tables.__version__", "999.1")
        assert session(machine, Tables(where, "boot"))[1] == all_of_them
    for path in where.iterdir():
        told = json.loads(path.read_text())
        for damaged in ("", "[]", "{", json.dumps(told | {"profiles": [{}], "of": told["of"]})):
            path.write_text(damaged)
            assert session(machine, Tables(where, "boot"))[1] > 0


def test_the_second_job_of_a_node_costs_half_the_calls(site: Site) -> None:
    """Also of the reading of compute instances' profiles."""
    seen = []
    for job in (7, 8):
        site.machine.faults.set([Rule("*", "hang:0", skip=1 << 30)])
        assert site.prolog(job, STAMP).returncode == 0
        seen.append(site.machine.faults.rules()[0].seen)
    site.machine.faults.set([])
    assert seen[1] < 60 < seen[0]
    assert len(list((site.run / "tables").iterdir())) == 1


def test_a_hook_that_refuses_or_fails_forgets_them(site: Site) -> None:
    """A table that was read wrongly must not refuse job after job."""
    tables = site.run / "tables"
    assert site.prolog(7, STAMP).returncode == 0
    assert "refused" in site.prolog(8, "slurm-mig=1,7g.80gb/0/31:1").stderr
    assert list(tables.iterdir()) == []
    assert site.epilog(7).returncode == 0
    site.machine.faults.set([Rule("nvmlDeviceGetGpuInstances", "error:UNKNOWN", times=0)])
    done = site.hook("prolog", job_environ(9, STAMP))
    site.machine.faults.set([])
    assert done.returncode != 0
    assert list(tables.iterdir()) == []
