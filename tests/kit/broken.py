"""Settings broken on purpose, each with the finding it deserves."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator.faults import Rule
from tests.kit.clinic import UNITS
from tests.kit.hooks import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.clinic import Clinic

HOOKS = "PrologFlags=Alloc,DeferBatch"
EXPRESSION = "SchedulerParameters=extra_constraints"
EXTRA = ' Extra={"mig":1}'


def write(old: str, new: str, name: str = "slurm.conf") -> Callable[[Clinic], None]:
    return lambda clinic: clinic.edit(name, old, new)


def without(start: str, name: str = "slurm.conf") -> Callable[[Clinic], None]:
    return lambda clinic: clinic.drop(name, start)


def publishing(clinic: Clinic, extra: str = EXTRA, looked: float = 0.0) -> None:
    """The same site, publishing what fits, with every part of it."""
    clinic.edit(
        "slurm.conf", "GresTypes=gpu,shard,mig", f"{EXPRESSION}\nGresTypes=gpu,shard,mig,fit"
    )
    clinic.edit("slurm.conf", "\nNodeName=login", ",fit:3g.40gb:4,fit:start:16\nNodeName=login")
    for name in ("job_submit.lua", "cli_filter.lua"):
        clinic.edit(name, "local PUBLISH = false", "local PUBLISH = true")
    clinic.unit("slurm-mig-publish.timer", "[Timer]\nOnBootSec=1min\n")
    service = UNITS["slurm-mig-reconcile.service"].replace(" reconcile", " publish")
    clinic.unit("slurm-mig-publish.service", service, enable=False)
    state = {"wrote": {"start": 2}, "looked": looked or time.time()}
    (clinic.root / "run").mkdir(exist_ok=True)
    (clinic.root / "run/published").write_text(json.dumps(state))
    (clinic.root / "run/published").chmod(0o600)
    clinic.loaded()
    told = clinic.root / "bin/node"
    told.write_text(told.read_text().rstrip("\n") + extra + "\n")


def without_expression(clinic: Clinic) -> None:
    publishing(clinic)
    clinic.edit("slurm.conf", EXPRESSION, "SchedulerParameters=bf_continue")
    clinic.loaded()
    told = clinic.root / "bin/node"
    told.write_text(told.read_text().rstrip("\n") + EXTRA + "\n")


def without_anchor(clinic: Clinic) -> None:
    publishing(clinic)
    clinic.live = False
    clinic.release("22.05.8")
    clinic.edit("slurm.conf", ",LL_SHARED_GRES", "")


def lua_without_fit(clinic: Clinic) -> None:
    publishing(clinic)
    for name in ("job_submit.lua", "cli_filter.lua"):
        clinic.edit(name, "local PUBLISH = true", "local PUBLISH = false")


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


def deaf_helper(clinic: Clinic) -> None:
    """One that was killed, or was started for something else."""
    clinic.site.run.mkdir(mode=0o755, exist_ok=True)
    (clinic.site.run / "warm").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(clinic.site.run / "warm"))


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
    "SM271": without_expression,
    "SM272": without_anchor,
    "SM273": lua_without_fit,
    "SM274": lambda clinic: publishing(clinic, extra=""),
    "SM275": lambda clinic: publishing(clinic, looked=time.time() - 400),
    "SM301": lambda clinic: (clinic.root / "hooks/prolog").unlink(),
    "SM302": stray_file,
    "SM303": other_hook,
    "SM304": old_hook,
    "SM305": lambda clinic: (clinic.root / "hooks/prolog").chmod(0o777),
    "SM306": lost_python,
    "SM307": other_config,
    "SM309": deaf_helper,
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
    "SM509": lambda clinic: clinic.configure('[packing]\npolicy = "optimal:/nowhere.json"\n'),
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
