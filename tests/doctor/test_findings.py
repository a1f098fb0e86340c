"""Every finding: break exactly that on a healthy node, and exactly that is found."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from slurm_mig.doctor import all_checks, gather
from slurm_mig.doctor.nvidia_checks import stop_limit
from slurm_mig.mig import catalog
from slurm_mig.packing.tables import text
from tests.kit.broken import BROKEN, cpus_for_each_gpu, one_gpu_a_user, publishing
from tests.kit.gpus import A30, A100, H100

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.clinic import Clinic

pytestmark = pytest.mark.root


# -- things that take more than one edit --------------------------------------------


#: Those that need other hardware, with their own tests below.
OTHER_HARDWARE = {"SM222", "SM223", "SM224", "SM603", "SM609"}


def test_a_healthy_node_has_no_finding(clinic: Clinic) -> None:
    """What generate and install make, and the manual says, is right in the doctor's eyes."""
    result = clinic.result()
    assert result.findings == ()
    assert set(result.skipped) == {"slurmctld", "registered"}


def test_nor_when_slurmctld_answers(clinic: Clinic) -> None:
    """Its words for the same settings differ from the file's."""
    clinic.loaded(BatchStartTimeout="325 sec", PrologFlags="Alloc,DeferBatch")
    result = clinic.result()
    assert (result.findings, dict(result.skipped)) == ((), {})


def test_a_table_of_slots_of_another_model(clinic: Clinic) -> None:
    """Nothing is wrong with it, and nothing goes by it here."""
    path = clinic.root / "slots.json"
    path.write_text(text(catalog.find(A30).geometry(), {}, {}))
    path.chmod(0o644)
    clinic.configure(f'[packing]\npolicy = "optimal:{path}"\n')
    (found,) = clinic.result().findings
    assert (found.check.code, "no layouts of NVIDIA H100" in found.evidence) == ("SM509", True)


def test_nor_where_what_fits_is_published(clinic: Clinic) -> None:
    """All of its parts; and each way in which a node can have stopped is told apart."""
    publishing(clinic)
    assert clinic.result().findings == ()
    (clinic.root / "run/published").unlink()
    assert "published never" in clinic.result().findings[0].evidence
    wants = clinic.sim / "etc/systemd/system/multi-user.target.wants"
    (wants / "slurm-mig-publish.timer").unlink()
    assert "is in no target" in clinic.result().findings[0].evidence
    (clinic.root / "state").mkdir(exist_ok=True)
    (clinic.root / "state/publish-off").write_text("")
    assert [(f.check.code, f.fix) for f in clinic.result().findings] == [
        ("SM275", "slurm-mig publish --on")
    ]


def test_every_check_has_a_test_that_breaks_it() -> None:
    """No finding without one."""
    assert set(BROKEN) | OTHER_HARDWARE == {item.code for item in all_checks()}


@pytest.mark.parametrize("code", BROKEN)
def test_exactly_what_is_broken_is_found(clinic: Clinic, code: str) -> None:
    """That finding, and no other; it says where, what to do and who says so, a line each."""
    BROKEN[code](clinic)
    findings = clinic.result().findings
    assert {finding.check.code for finding in findings} == {code}
    for finding in findings:
        assert finding.evidence
        assert finding.fix
        assert "\n" not in finding.evidence + finding.fix


# -- other hardware ------------------------------------------------------------------


def test_a_gpu_of_gres_conf_that_is_not_there(admit: Callable[..., Clinic]) -> None:
    """SM222."""
    assert set(admit(H100, H100, files=(H100,) * 3).codes()) == {"SM222"}


def test_a_gpu_that_gres_conf_does_not_have(admit: Callable[..., Clinic]) -> None:
    """SM223."""
    assert set(admit(H100, H100, files=(H100,)).codes()) == {"SM223"}


def test_files_made_for_another_gpu(admit: Callable[..., Clinic]) -> None:
    """SM224."""
    assert set(admit(A30, A30, files=(H100, H100)).codes()) == {"SM224"}


def test_an_ampere_without_mig_mode(admit: Callable[..., Clinic]) -> None:
    """SM603: the Prolog cannot switch it. On an H100 it can, so nothing is said."""
    assert set(admit(A30, mig=False).codes()) == {"SM603"}
    assert admit(H100, mig=False).codes() == []


def test_nvidia_drm_beside_an_ampere(admit: Callable[..., Clinic]) -> None:
    """SM609: only with modeset, and only where a reset is needed."""
    for name, modeset, found in (
        (A100, True, {"SM609"}),
        (A100, False, set()),
        (H100, True, set()),
    ):
        clinic = admit(name)
        clinic.site.machine.tree.load_drm(modeset=modeset)
        assert set(clinic.codes()) == found


# -- limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        # Slices are limited, too, or nothing of GPUs is.
        ("qos", ["gpu|gres/gpu=4,gres/shard=124||||||||"]),
        ("qos", ["gpu|gres/gpu=4,gres/mig:3g.40gb=2||||||||"]),
        ("qos", ["cpu|cpu=100||||||||"]),
        ("assoc", ["physics|alice||||||||"]),
    ],
)
def test_limits_that_are_in_order(clinic: Clinic, kind: str, lines: list[str]) -> None:
    """No false alarm."""
    clinic.limits(kind, *lines)
    assert clinic.codes() == []


def test_limits_of_many_users_are_one_finding(clinic: Clinic) -> None:
    """A thousand users with the same limit; a name with Slurm's separator in it."""
    users = [f"physics|user{number}||gres/gpu=2|||||" for number in range(1000)]
    clinic.limits("assoc", *users, "root|||gres/gpu:h100=8|||||")
    first, second = clinic.result().findings
    assert first.check.code == second.check.code == "SM141"
    assert "account physics, user user0 and 999 more: GrpTRES=gres/gpu=2" in first.evidence
    assert "user where name=user0 account=physics set GrpTRES=gres/shard=62" in first.fix
    assert "account root: GrpTRES=gres/gpu:h100=8" in second.evidence
    clinic.limits("assoc")
    clinic.limits("qos", "a|b|||||||gres/gpu=1||")
    assert "QOS a|b: MaxTRESPerUser=gres/gpu=1" in clinic.result().findings[0].evidence


def test_limits_that_nobody_enforces(clinic: Clinic) -> None:
    """Slurm does not heed them, so they are no finding."""
    one_gpu_a_user(clinic)
    clinic.drop("slurm.conf", "AccountingStorageEnforce")
    clinic.loaded()
    assert clinic.codes() == []


def test_a_slurmdbd_that_does_not_answer(clinic: Clinic) -> None:
    """What could not be looked at is named, never good."""
    one_gpu_a_user(clinic)
    (clinic.root / "bin/sacctmgr").write_text("#!/bin/sh\necho down >&2\nexit 1\n")
    result = clinic.result()
    assert result.findings == ()
    assert dict(result.skipped) == {"limits": ("SM141", "SM142")}


def test_defaults_that_the_fleet_file_has(clinic: Clinic) -> None:
    """For the partition, or for all; a partition of other nodes does not matter."""
    cpus_for_each_gpu(clinic)
    text = clinic.file("job_submit.lua").read_text()
    for row in (
        'partitions = { ["gpu"] = true }, cpus = 4, memory = 16000',
        "cpus = 4, memory = 9",
    ):
        table = f"local DEFAULTS = {{\n  {{ {row} }},\n}}\n"
        clinic.file("job_submit.lua").write_text(f"{table}{text}")
        assert "SM143" not in clinic.codes()
    clinic.file("job_submit.lua").write_text(text)
    clinic.drop("slurm.conf", "PartitionName=gpu")
    clinic.add("slurm.conf", "PartitionName=v100 Nodes=login DefCpuPerGPU=4")
    assert "SM143" not in clinic.codes()
    clinic.add("slurm.conf", "PartitionName=mig Nodes=n1,login JobDefaults=DefCpuPerGPU=4")
    assert "SM143" in clinic.codes()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 90),
        ("TimeoutStopSec=5min 20s\n", 320),
        ("TimeoutSec=400\n#TimeoutStopSec=1", 400),
        ("TimeoutStopSec=infinity", float("inf")),
        ("TimeoutStopSec=0", float("inf")),
        ("TimeoutStopSec=400\n[Service]\nTimeoutStopSec=1.5 m\n", 90),
    ],
)
def test_how_long_a_unit_may_take_to_stop(text: str, seconds: float) -> None:
    """As systemd reads it: of several the last, and the last file's name decides."""
    assert stop_limit(text) == seconds


def test_what_install_adds_to_slurmds_unit_is_enough(clinic: Clinic) -> None:
    """A drop-in counts, from whatever directory; one behind it by name has the last word."""
    clinic.unit("slurmd.service", "[Service]\nTimeoutStopSec=5\n")
    assert clinic.codes() == ["SM704"]
    ours = clinic.sim / "usr/lib/systemd/system/slurmd.service.d/10-slurm-mig.conf"
    ours.parent.mkdir(parents=True)
    ours.write_text("[Service]\nTimeoutStopSec=332\n")
    assert clinic.codes() == []
    site = clinic.sim / "etc/systemd/system/slurmd.service.d/override.conf"
    site.parent.mkdir()
    site.write_text("[Service]\nTimeoutStopSec=30\n")
    assert clinic.codes() == ["SM704"]


def test_units_are_the_machines_also_where_its_gpus_are_simulated(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is simulated is the GPU, not systemd."""
    shutil.rmtree(clinic.sim / "etc/systemd")
    monkeypatch.setattr(gather, "MACHINE", tmp_path)
    assert "not booted by it" in clinic.facts().gaps["units"]
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    facts = clinic.facts()
    assert ("units" in facts.gaps, facts.units) == (False, ())
    assert clinic.codes() == ["SM702", "SM706"]
