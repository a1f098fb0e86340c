"""Every finding: break exactly that on a healthy node, and exactly that is found."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from slurm_mig.doctor import all_checks, gather
from slurm_mig.doctor.nvidia_checks import stop_limit
from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator.faults import Rule

from ..conftest import A30, A100, H100
from ..test_hooks import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .clinic import Clinic

pytestmark = pytest.mark.root

HOOKS = "PrologFlags=Alloc,DeferBatch"


def write(old: str, new: str, name: str = "slurm.conf") -> Callable[[Clinic], None]:
    return lambda clinic: clinic.edit(name, old, new)


def without(start: str, name: str = "slurm.conf") -> Callable[[Clinic], None]:
    return lambda clinic: clinic.drop(name, start)


# -- things that take more than one edit --------------------------------------------


def several_prologs(clinic: Clinic) -> None:
    clinic.release("22.05.8")
    clinic.edit("slurm.conf", ",LL_SHARED_GRES", "")
    clinic.edit("slurm.conf", "Prolog=", "Prolog=/etc/slurm/other\nProlog=")
    clinic.edit("slurm.conf", "TaskProlog=/etc/slurm/other\nProlog=", "TaskProlog=")


def old_release(clinic: Clinic) -> None:
    clinic.release("22.05.8")


def files_only(clinic: Clinic) -> None:
    clinic.live = False
    hooks = clinic.root / "hooks"
    clinic.edit("slurm.conf", f"TaskProlog={hooks}/task_prolog", "TaskProlog=/etc/slurm/tp.sh")


def not_loaded(clinic: Clinic) -> None:
    clinic.loaded(MessageTimeout="950 sec")


def other_counts(clinic: Clinic) -> None:
    clinic.loaded()
    clinic.registered(gres={"mig:3g.40gb": 1})


def one_gpu_a_user(clinic: Clinic) -> None:
    clinic.limits("qos", "normal||||||||||", "gpu|||||||gres/gpu=1||")


def a_gpu_at_least(clinic: Clinic) -> None:
    clinic.limits("qos", "gpu|||||||||gres/gpu=1")


def cpus_for_each_gpu(clinic: Clinic) -> None:
    clinic.add("slurm.conf", "PartitionName=gpu Nodes=ALL DefCpuPerGPU=4 DefMemPerGPU=16000")


def gpus_have_a_price(clinic: Clinic) -> None:
    text = 'TRESBillingWeights="CPU=1,GRES/gpu=8"'
    clinic.add("slurm.conf", f"PartitionName=gpu Nodes=n1 {text}")


def drained(clinic: Clinic) -> None:
    clinic.loaded()
    clinic.registered("IDLE+DRAIN", "slurm-mig: no driver")


def open_config_node(clinic: Clinic) -> None:
    caps = clinic.sim / "dev/nvidia-caps"
    caps.mkdir(exist_ok=True)
    (caps / "nvidia-cap1").touch()
    (caps / "nvidia-cap1").chmod(0o444)


def no_mig(clinic: Clinic) -> None:
    clinic.live = False
    text = clinic.slurm_conf.read_text()
    start = text.index("\nNodeName=n1")
    clinic.slurm_conf.write_text(f"{text[:start]}\nNodeName=n1 Gres=gpu:h100:2\n")


def multiple_files(clinic: Clinic) -> None:
    dev = clinic.site.machine.tree.dev
    clinic.edit(
        "gres.conf",
        f"Name=gpu Type=h100 File={dev}/nvidia1",
        f"Name=gpu Type=h100 MultipleFiles={dev}/nvidia1",
    )


def shards_together(clinic: Clinic) -> None:
    dev = clinic.site.machine.tree.dev
    line = "NodeName=n1 AutoDetect=off Name=shard Type=h100"
    clinic.drop("gres.conf", line)
    clinic.add("gres.conf", f"{line} Count=62 File={dev}/nvidia[0-1]")


def other_weights(clinic: Clinic) -> None:
    clinic.edit("gres.conf", "Count=31", "Count=30")
    clinic.edit("slurm.conf", "shard:h100:62", "shard:h100:60")


def no_file(clinic: Clinic) -> None:
    dev = clinic.site.machine.tree.dev
    clinic.edit("gres.conf", f"Name=gpu Type=h100 File={dev}/nvidia1", "Name=gpu Type=h100")


def other_order(clinic: Clinic) -> None:
    clinic.configure("[gpus]\norder = [1, 0]\n")


def other_names(clinic: Clinic) -> None:
    def rename(facts: dict[str, object]) -> None:
        for gpu in facts["gpus"]:  # type: ignore[attr-defined]
            for row in gpu["profiles"]:
                row["name"] = row["name"].replace("40gb", "39gb").replace("80gb", "79gb")

    clinic.machine_facts(rename)


def swapped_minors(clinic: Clinic) -> None:
    def swap(facts: dict[str, object]) -> None:
        for gpu in facts["gpus"]:  # type: ignore[attr-defined]
            gpu["minor"] = 1 - gpu["minor"]

    clinic.machine_facts(swap)


def own_script(clinic: Clinic) -> None:
    clinic.file("job_submit.lua").write_text("function slurm_job_submit() return 0 end\n")


def other_hook(clinic: Clinic) -> None:
    script = clinic.root / "hooks/task_prolog"
    script.write_text("#!/bin/sh\necho export A=b\n")


def old_hook(clinic: Clinic) -> None:
    script = clinic.root / "hooks/prolog"
    script.write_text(script.read_text() + "# an older line\n")


def lost_python(clinic: Clinic) -> None:
    script = clinic.root / "hooks/epilog"
    lines = script.read_text().splitlines()
    moved = ["python='/gone/bin/python3'" if x.startswith("python=") else x for x in lines]
    script.write_text("\n".join(moved) + "\n")


def stray_file(clinic: Clinic) -> None:
    hooks = clinic.root / "hooks"
    folder = clinic.root / "prolog.d"
    folder.mkdir()
    (folder / "50-slurm-mig").symlink_to(hooks / "prolog")
    (folder / "README").write_text("read me\n")
    clinic.edit("slurm.conf", f"\nProlog={hooks}/prolog", f"\nProlog={folder}/*")


def no_gpu_of_that_number(clinic: Clinic) -> None:
    clinic.configure("[gpus]\nmanaged = [0, 1, 7]\n")


def full_file_system(clinic: Clinic) -> None:
    clinic.monkeypatch.setattr("slurm_mig.system.space.LEAST_BYTES", 1 << 62)


def old_driver(clinic: Clinic) -> None:
    clinic.machine_facts(lambda facts: facts.update(driver="460.32.03"))


def waits_for_reset(clinic: Clinic) -> None:
    with clinic.site.machine.change(0) as board:
        board.mig_pending = False


def without_mig(clinic: Clinic) -> None:
    clinic.configure("[gpus]\nmanaged = [0, 1]\n")
    rule = Rule("nvmlDeviceGetMigMode", "error:NOT_SUPPORTED", skip=1, times=2)
    clinic.site.machine.faults.set([rule])


def strange_instance(clinic: Clinic) -> None:
    with clinic.site.machine.change(0) as board:
        board.create(19, Placement(3, 1), busy=False)


def dcgm(clinic: Clinic) -> None:
    clinic.process(4711, "nv-hostengine", "/dev/null", "/dev/nvidiactl", "/dev/nvidia0")
    clinic.process(4712, "python3", "/dev/nvidia0")


def mig_parted(clinic: Clinic) -> None:
    text = "[Service]\nExecStart=/usr/bin/nvidia-mig-parted apply -f /etc/mig.yaml\n"
    clinic.unit("site-mig.service", text)


def boot_unit_disabled(clinic: Clinic) -> None:
    (clinic.sim / "etc/systemd/system/multi-user.target.wants/slurm-mig-boot.service").unlink()


def boot_unit_unordered(clinic: Clinic) -> None:
    path = clinic.sim / "etc/systemd/system/slurm-mig-boot.service"
    path.write_text("[Unit]\nAfter=local-fs.target\n")


def slurmd_in_a_hurry(clinic: Clinic) -> None:
    clinic.unit("slurmd.service", "[Service]\nExecStart=/usr/sbin/slurmd -D\n")


def counts_elsewhere(clinic: Clinic) -> None:
    """Another node has them; this one's GPUs are whole ones to Slurm."""
    clinic.edit("slurm.conf", "NodeName=n1 ", "NodeName=n1 Gres=gpu:h100:2\nNodeName=n2 ")
    text = clinic.file("gres.conf").read_text()
    clinic.file("gres.conf").write_text(text.replace("NodeName=n1 ", "NodeName=n2 "))


def retired(clinic: Clinic) -> None:
    done = clinic.site.cli("retire", "--gpu", "0", "--layout", "3g.40gb:1", SLURMD_NODENAME="n1")
    assert done.returncode == 0, done.stderr


def newer_ledger(clinic: Clinic) -> None:
    with closing(sqlite3.connect(clinic.root / "state/ledger.db")) as db:
        db.execute("PRAGMA user_version=1003")


def lost_ledger(clinic: Clinic) -> None:
    assert clinic.site.prolog(7, STAMP).returncode == 0
    for path in (clinic.root / "state").glob("ledger.db*"):
        path.unlink()


def two_pythons(clinic: Clinic) -> None:
    """As after the package of an environment whose units are in /etc."""
    other = clinic.root / "python3"
    other.symlink_to(sys.executable)
    unit = clinic.sim / "etc/systemd/system/slurm-mig-boot.service"
    unit.write_text(unit.read_text().replace(sys.executable, str(other)))


def timer_disabled(clinic: Clinic) -> None:
    (clinic.sim / "etc/systemd/system/multi-user.target.wants/slurm-mig-reconcile.timer").unlink()


def boot_unit_gone(clinic: Clinic) -> None:
    (clinic.sim / "etc/systemd/system/slurm-mig-boot.service").unlink()


def module_default(clinic: Clinic) -> None:
    clinic.site.machine.tree.set_modify(on=True)


def other_config(clinic: Clinic) -> None:
    script = clinic.root / "hooks/epilog"
    script.write_text(script.read_text().replace("/config.toml", "/other.toml"))


def public_file(name: str) -> Callable[[Clinic], None]:
    return lambda clinic: clinic.file(name).chmod(0o666)


#: Code -> what breaks exactly that on a node with two H100.
BROKEN: dict[str, Callable[[Clinic], None]] = {
    "SM101": write(HOOKS, "PrologFlags=DeferBatch"),
    "SM102": write(HOOKS, f"{HOOKS},NoHold"),
    "SM103": write(HOOKS, "prologflags=deferbatch,runinjob"),
    "SM104": write(HOOKS, "PrologFlags=Contain"),
    "SM105": write(HOOKS, f"{HOOKS},Serial"),
    "SM106": write("GresTypes=gpu,shard,mig", "GresTypes=gpu,shard"),
    "SM107": write("select/cons_tres", "select/linear"),
    "SM108": write("LL_SHARED_GRES", "LL_SHARED_GRES,MULTIPLE_SHARING_GRES_PJ"),
    "SM109": write(",LL_SHARED_GRES", ""),
    "SM110": old_release,
    "SM111": write("ClusterName", "AcctGatherEnergyType=acct_gather_energy/gpu\nClusterName"),
    "SM112": without("JobAcctGatherParams"),
    "SM113": without("AccountingStorageTRES"),
    "SM114": write("SlurmUser=slurm", "SlurmUser=slurm\nSlurmdUser=slurm"),
    "SM115": write("ClusterName", "Include nothing.conf\nClusterName"),
    "SM116": not_loaded,
    "SM117": other_counts,
    "SM118": drained,
    "SM119": write("NodeName=login", "NodeName=login[1-"),
    "SM121": write("PrologEpilogTimeout=900", "PrologTimeout=20\nPrologEpilogTimeout=900"),
    "SM122": write("PrologEpilogTimeout=900", "EpilogTimeout=20\nPrologEpilogTimeout=900"),
    "SM123": without("BatchStartTimeout"),
    "SM124": without("MessageTimeout"),
    "SM131": without("Prolog="),
    "SM132": without("Epilog="),
    "SM133": without("TaskProlog="),
    "SM134": several_prologs,
    "SM135": files_only,
    "SM141": one_gpu_a_user,
    "SM142": a_gpu_at_least,
    "SM143": cpus_for_each_gpu,
    "SM144": gpus_have_a_price,
    "SM201": no_mig,
    "SM202": write("AutoDetect=off", "AutoDetect=nvml", "gres.conf"),
    "SM203": lambda clinic: clinic.add("gres.conf", "Name=mig Type=3g.40gb Count=4"),
    "SM204": multiple_files,
    "SM205": shards_together,
    "SM206": write("shard:h100:62", "shard:h100:60"),
    "SM207": other_weights,
    "SM208": write("gpu:h100:2", "gpu:h100:1"),
    "SM209": no_file,
    "SM211": write(",mig:3g.40gb:4,", ",mig:3g.40gb:3,"),
    "SM212": write(",mig:3g.40gb:4,", ",mig:3g.40gb:4,mig:3g.39gb:4,"),
    "SM213": write(",mig:3g.40gb:4,", ","),
    "SM221": other_order,
    "SM225": other_names,
    "SM226": swapped_minors,
    "SM227": retired,
    "SM228": counts_elsewhere,
    "SM251": write("JobSubmitPlugins=lua", "JobSubmitPlugins=require_timelimit"),
    "SM252": lambda clinic: clinic.file("job_submit.lua").unlink(),
    "SM253": own_script,
    "SM254": write("weight = 14", "weight = 13", "job_submit.lua"),
    "SM255": lambda clinic: clinic.add("job_submit.lua", "-- mine"),
    "SM256": public_file("job_submit.lua"),
    "SM261": without("CliFilterPlugins"),
    "SM262": lambda clinic: clinic.file("cli_filter.lua").unlink(),
    "SM263": write("generate` 0", "generate` 9", "cli_filter.lua"),
    "SM264": write("weight = 14", "weight = 13", "cli_filter.lua"),
    "SM301": lambda clinic: (clinic.root / "hooks/prolog").unlink(),
    "SM302": stray_file,
    "SM303": other_hook,
    "SM304": old_hook,
    "SM305": lambda clinic: (clinic.root / "hooks/prolog").chmod(0o777),
    "SM306": lost_python,
    "SM307": other_config,
    "SM308": two_pythons,
    "SM401": write("ConstrainDevices=yes", "ConstrainDevices=no", "cgroup.conf"),
    "SM402": write("TaskPlugin=task/affinity,task/cgroup", "TaskPlugin=task/affinity"),
    "SM403": write("proctrack/cgroup", "proctrack/linuxproc"),
    "SM404": lambda clinic: clinic.add("cgroup.conf", "CgroupPlugin=disabled"),
    "SM501": lambda clinic: clinic.configure("[gpu]\nmanaged = [0]\n"),
    "SM502": lambda clinic: clinic.site.config.chmod(0o666),
    "SM503": lambda clinic: (clinic.root / "state").chmod(0o755),
    "SM504": lambda clinic: (clinic.root / "shm").chmod(0o750),
    "SM505": no_gpu_of_that_number,
    "SM506": full_file_system,
    "SM507": newer_ledger,
    "SM508": lost_ledger,
    "SM601": lambda clinic: clinic.site.machine.lose(1),
    "SM602": old_driver,
    "SM604": waits_for_reset,
    "SM605": without_mig,
    "SM606": strange_instance,
    "SM607": lambda clinic: clinic.site.machine.tree.set_persistence(on=False),
    "SM608": dcgm,
    "SM610": module_default,
    "SM611": lambda clinic: (clinic.sim / "dev/nvidia1").unlink(),
    "SM612": lambda clinic: shutil.rmtree(clinic.sim / "proc/driver/nvidia/capabilities"),
    "SM613": open_config_node,
    "SM701": mig_parted,
    "SM702": boot_unit_disabled,
    "SM703": boot_unit_unordered,
    "SM704": slurmd_in_a_hurry,
    "SM705": boot_unit_gone,
    "SM706": timer_disabled,
}

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
