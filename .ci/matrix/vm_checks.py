"""What is looked at on a booted machine, in this order: each check with what its row says."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import textwrap
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vm_machine import PATIENCE, Failed

from tests.kit import pages, quickstart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vm_machine import Machine

MIG: Final = "/srv/mig"
#: The driver's call with which a Prolog makes a slice.
CREATE: Final = "nvmlDeviceCreateGpuInstanceWithPlacement"
#: Every file that a check changes, as the quick start left it.
IN_ORDER: Final = "/root/in-order.tar"
FILES: Final = f"etc/slurm etc/slurm-mig etc/fstab etc/default {MIG[1:]}/machine.json"
PAGE: Final = pages.TOP / "docs/quickstart.md"
#: The page's lines that are for another machine than this one.
OTHERS: Final = ("make demo",)
#: Tries both GPUs of the node; EPERM is the device cgroup's, ENXIO only that nothing is behind it.
PROBE: Final = textwrap.dedent(
    """\
    #!/bin/bash
    for gpu in 0 1; do
        if text=$(exec 2>&1; exec 3</srv/mig/dev/nvidia$gpu); then text=open; fi
        case $text in
        *"No such device"*) text=open ;;
        *"not permitted"*) text=denied ;;
        esac
        echo "$1 gpu$gpu $text"
    done
    """
)
#: Seconds for what Slurm does in a moment: an emulated machine does it in ten.
SOON: Final = 300


@dataclass
class Trial:
    """The machine under trial, and what one asks it again and again."""

    machine: Machine
    wheels: list[Path]
    before: Path | None
    package: Path
    facts: dict[str, str] = field(default_factory=dict)

    def run(self, text: str, *, code: int | None = 0, timeout: float = PATIENCE) -> str:
        """A command of root's."""
        return self.machine.run(text, code=code, timeout=timeout)

    def script(self, text: str, *, timeout: float = PATIENCE) -> str:
        """Commands of root's, one a line; the first that fails ends them."""
        return self.run(f"set -e\n{textwrap.dedent(text)}", timeout=timeout)

    def alice(self, text: str, *, code: int | None = 0) -> str:
        """A command of a user's."""
        return self.machine.run(text, user="alice", code=code)

    def sbatch(self, *words: str, script: str = "sleep 3000") -> int:
        """Submit a job of alice's; its id."""
        said = self.alice(f"sbatch --parsable {shlex.join(words)} --wrap {shlex.quote(script)}")
        return int(said.splitlines()[-1].partition(";")[0])

    def state(self, job: int) -> str:
        """Slurm's word for it; empty once it is forgotten."""
        found = re.search(r"JobState=(\w+)", self.run(f"scontrol show job {job}", code=None))
        return found[1] if found else ""

    def wait(self, job: int, *states: str) -> None:
        """Until it is in one of these states."""
        pattern = "|".join(states)
        self.machine.until(
            f"scontrol show job {job} | grep -qE 'JobState=({pattern}) '", timeout=SOON
        )

    def begun(self, *words: str, script: str = "sleep 3000") -> int:
        """A job at work."""
        job = self.sbatch(*words, script=f"touch begun.$SLURM_JOB_ID; {script}")
        self.machine.until(f"[ -e /home/alice/begun.{job} ]", timeout=SOON)
        return job

    def cancel(self, *jobs: int) -> None:
        """End jobs, and wait for their Epilogs."""
        self.run(f"scancel {' '.join(map(str, jobs))}")
        self.idle()

    def idle(self) -> None:
        """Until the node has nothing to do."""
        self.machine.until('[ -z "$(squeue -h)" ] && sinfo -h -o %T | grep -qx idle', timeout=SOON)

    def output(self, job: int) -> str:
        """What a batch job has said."""
        return self.alice(f"cat slurm-{job}.out")

    def status(self) -> dict[str, Any]:
        """What slurm-mig sees."""
        found: dict[str, Any] = json.loads(self.run("slurm-mig status --json"))
        return found

    def slices(self) -> list[str]:
        """Instances that exist, as PROFILE@START:PHASE."""
        gpus = self.status()["gpus"]
        return sorted(
            f"{item['profile']}@{item['start']}:{item['phase']}"
            for gpu in gpus
            for item in gpu["instances"]
        )

    def left(self, count: int) -> None:
        """Until so many slices are left: nobody waits for what an Epilog has put off."""
        until = time.monotonic() + SOON
        while len(found := self.slices()) > count and time.monotonic() < until:
            time.sleep(1)
        expect(len(found), count, f"slices {found}")

    def clean(self) -> None:
        """Nobody has anything: no slice, no tmpfs, no mark, no drain."""
        self.idle()
        self.left(0)
        left = self.run(
            "find /run/slurm-mig/jobs /run/slurm-mig/env -type f; grep /run/slurm-mig /proc/mounts",
            code=None,
        )
        expect(left, "", "left-overs in /run")

    def settle(self) -> None:
        """After a check that failed the next one begins on a node as the quick start left it."""
        drained = "sinfo -h -n gpu01 -o %T | grep -qE 'drain|down'"
        for text in (
            f"slurm-mig simulator fault {MIG} --clear",
            "scancel -u alice; scancel -u bob",
            "systemctl disable --now slurm-mig-publish.timer slurm-mig-warm.service",
            f"[ ! -e {IN_ORDER} ] || tar -C / -xf {IN_ORDER}",
            "! umount -q /var/lib/slurm-mig || slurm-mig reconcile --accept-older-ledger",
            "/opt/slurm-mig/bin/slurm-mig install",
            "systemctl daemon-reload; systemctl restart slurmctld; systemctl restart slurmd",
            "slurm-mig reconcile",
            f"! {drained} || scontrol update nodename=gpu01 state=resume",
        ):
            with contextlib.suppress(Failed):
                self.run(text, code=None)


def expect(found: object, wanted: object, what: str) -> None:
    """Failed unless both are the same."""
    if found != wanted:
        raise Failed(f"{what}: {found!r}, not {wanted!r}")


def contains(text: str, *words: str) -> None:
    """Failed unless the text has all of them."""
    for word in words:
        if word not in text:
            raise Failed(f"no {word!r} in:\n{text}")


# -- the quick start ------------------------------------------------------------------------


def quick_start(trial: Trial) -> str:
    """Every command of the page, in order, as it stands; the first job's time."""
    machine = trial.machine
    for wheel in trial.wheels:
        machine.put(wheel, f"/root/{wheel.name}")
    trial.run("printf '[global]\\nno-index = true\\nfind-links = /root\\n' >/etc/pip.conf")
    begin = time.monotonic()
    for command in [command for block in pages.blocks(PAGE) for command in block.commands]:
        text = command.text
        if text.startswith(OTHERS):
            continue
        if text.startswith("apt-get install"):
            text = f"DEBIAN_FRONTEND=noninteractive {text.replace('install', 'install -qq -y')}"
        if text in quickstart.PATIENCE:
            machine.until(quickstart.PATIENCE[text], timeout=SOON)
        code = None if "9g.90gb" in text else 0
        user = "alice" if command.user != "root" else "root"
        trial.facts[text] = machine.run(text, user=user, code=code, timeout=1200)
        if text.startswith("srun ") and "first" not in trial.facts:
            trial.facts["first"] = f"{time.monotonic() - begin:.0f} s"
    doctor = trial.facts["slurm-mig doctor"]
    if "SM109" in doctor:
        # As the page says: newer releases know a word more, and the doctor has the line.
        contains(doctor, "0 errors, 1 warning,", "fix  SelectTypeParameters=CR_CORE,LL_SHARED_GRES")
        trial.run(
            "sed -i s/^SelectTypeParameters=.*/SelectTypeParameters=CR_Core,LL_SHARED_GRES/ "
            "/etc/slurm/slurm.conf && systemctl restart slurmctld"
        )
        machine.until(quickstart.PATIENCE["sinfo"], timeout=SOON)
        doctor = trial.run("slurm-mig doctor")
    contains(doctor, "0 errors, 0 warnings")
    audit = trial.facts["slurm-mig audit"]
    if audit.splitlines()[-1] != "4 in all: 4 released":
        log = trial.run("grep -v debug /var/log/slurm/slurmctld.log | tail -n 50")
        hooks = trial.run("journalctl -t slurm-mig --no-pager")
        raise Failed(f"not four slices, released:\n{audit}\n{log}\n{hooks}")
    refused = next(said for text, said in trial.facts.items() if "9g.90gb" in text)
    contains(refused, "unknown MIG profile '9g.90gb', did you mean 1g.10gb")
    trial.run("systemctl is-system-running")
    trial.run(f"tar -C / -cf {IN_ORDER} {FILES}")
    trial.run(f"printf %s {shlex.quote(PROBE)} >/home/alice/probe; chmod 755 /home/alice/probe")
    took = f"{time.monotonic() - begin:.0f} s"
    return f"first job after {trial.facts['first']} and {trial.facts['apt']} of apt-get; all {took}"


# -- systemd --------------------------------------------------------------------------------

UNITS: Final = (
    "slurm-mig-boot.service", "slurm-mig-reconcile.service", "slurm-mig-reconcile.timer",
    "slurm-mig-publish.service", "slurm-mig-publish.timer",
    "slurm-mig-metrics.service", "slurm-mig-metrics.timer", "slurm-mig-warm.service",
)  # fmt: skip


def units(trial: Trial) -> str:
    """Nothing is wrong by systemd's own check; slurmd requires the boot unit, and comes later."""
    said = trial.run(f"systemd-analyze verify --man=no {' '.join(UNITS)} slurmd.service", code=None)
    ours = [line for line in said.splitlines() if "slurm-mig" in line]
    expect(ours, [], "systemd-analyze verify")
    contains(trial.run("systemctl show -P Requires slurmd"), "slurm-mig-boot.service")
    contains(trial.run("systemctl show -P After slurmd"), "slurm-mig-boot.service")
    expect(trial.run("systemctl show -P TimeoutStopUSec slurmd"), "5min 32s", "TimeoutStopSec")
    said = trial.run(
        "systemd-analyze security --no-pager slurm-mig-boot slurm-mig-reconcile slurm-mig-metrics",
        code=None,
    )
    levels = re.findall(r"level for slurm-mig-(\w+).service: ([\d.]+)", said)
    if not levels:
        levels = re.findall(r"slurm-mig-(\w+)\.service +([\d.]+)", said)
    return "exposure " + ", ".join(f"{unit} {level}" for unit, level in levels)


def timer(trial: Trial) -> str:
    """It comes by itself, and what it starts ends well and stands in the journal."""
    trial.script(
        """\
        mkdir -p /run/systemd/system/slurm-mig-reconcile.timer.d
        printf '[Timer]\\nOnActiveSec=2\\nAccuracySec=1\\nRandomizedDelaySec=0\\n' \\
            >/run/systemd/system/slurm-mig-reconcile.timer.d/now.conf
        systemctl daemon-reload
        systemctl restart slurm-mig-reconcile.timer
        """
    )
    show = "systemctl show slurm-mig-reconcile.service -P"
    trial.machine.until(f'[ "$({show} ExecMainExitTimestampMonotonic)" -gt 0 ]', timeout=SOON)
    expect(trial.run(f"{show} Result"), "success", "its result")
    trial.script(
        """\
        rm -r /run/systemd/system/slurm-mig-reconcile.timer.d
        systemctl daemon-reload
        systemctl restart slurm-mig-reconcile.timer
        """
    )
    said = trial.run("journalctl -t slurm-mig -u slurm-mig-reconcile --no-pager")
    contains(said, "slurm-mig[")
    return "result success, its lines under our name"


def tmpfiles(trial: Trial) -> str:
    """What systemd-tmpfiles makes at boot is what the hooks expect."""
    trial.idle()
    trial.run("rm -r /run/slurm-mig && systemd-tmpfiles --create")
    expect(trial.run("stat -c '%a %U:%G' /run/slurm-mig"), "755 root:root", "/run/slurm-mig")
    trial.cancel(trial.begun("--gres=mig:1g.10gb:1"))
    trial.clean()
    return ""


def logs(trial: Trial) -> str:
    """Each hook and unit has its line in the journal, and in the file that rsyslog writes."""
    trial.run("slurm-mig install --only log && systemctl restart rsyslog")
    job = trial.begun("--gres=mig:1g.10gb:1")
    trial.cancel(job)
    trial.clean()
    lines = trial.run("cat /var/log/slurm-mig.log")
    contains(lines, f": prolog job={job} ", f": epilog job={job} ")
    contains(
        trial.run("journalctl -t slurm-mig --no-pager"), *lines.splitlines()[-1].split(": ", 1)[1:]
    )
    expect(trial.run("stat -c '%a' /var/log/slurm-mig.log"), "640", "the file's mode")
    said = trial.run("logrotate -v -f /etc/logrotate.d/slurm-mig")
    if "error" in said:
        raise Failed(said)
    trial.cancel(trial.begun("--gres=mig:1g.10gb:1"))
    contains(trial.run("cat /var/log/slurm-mig.log"), ": epilog job=")
    contains(trial.run("cat /var/log/slurm-mig.log.1"), f"job={job}")
    said = trial.run(
        "journalctl -o json -t slurm-mig --no-pager | slurm-mig audit --check --heads -"
    )
    return said.splitlines()[-1]


# -- the device cgroup ----------------------------------------------------------------------

#: Ways to start tasks: name -> (options of sbatch, script). `step` is the probe as a step.
WAYS: Final = {
    "mig": (
        ["--gres=mig:1g.10gb:2"],
        "srun ./probe step; srun --gres=mig:1g.10gb:1 ./probe part",
    ),
    "words of GPUs": (["--gres=gpu:1g.10gb:1"], "srun ./probe step"),
    "per task": (["-n2", "--gpus-per-task=1g.10gb:1"], "srun ./probe step"),
    "--gpus": (["--gpus=1g.10gb:2"], "srun -n1 --gpus=1 ./probe step"),
    "no environment": (
        ["--gres=mig:1g.10gb:1", "--export=NONE"],
        "srun --export=ALL ./probe step",
    ),
    "overlap": (
        ["--gres=mig:1g.10gb:1"],
        "srun --overlap -n1 ./probe step & srun --overlap -n1 ./probe step; wait",
    ),
    "multi-prog": (
        ["-n2", "--gres=mig:1g.10gb:2"],
        "printf '0-1 ./probe step\\n' >multi; srun --multi-prog multi",
    ),
    "array": (["--gres=mig:1g.10gb:1", "--array=0-0"], "srun ./probe step"),
}


def tried(text: str) -> dict[str, set[str]]:
    """Who -> GPUs that they could open; Failed for an answer that is neither open nor denied."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        words = line.split(None, 2)
        if len(words) == 3 and words[1] in ("gpu0", "gpu1"):
            if words[2] not in ("open", "denied"):
                raise Failed(line)
            found.setdefault(words[0], set()).update({words[1]} if words[2] == "open" else ())
    return found


def devices(trial: Trial) -> str:
    """By eBPF: every task opens its own GPU and no other, however it was started."""
    expect(trial.run("stat -fc %T /sys/fs/cgroup"), "cgroup2fs", "the cgroups")
    count = 0
    for name, (options, script) in WAYS.items():
        job = trial.sbatch(*options, script=f"./probe batch\n{script}")
        trial.machine.until(f"! squeue -h -j {job} 2>/dev/null | grep -q .", timeout=SOON)
        file = f"slurm-{job}_0.out" if name == "array" else f"slurm-{job}.out"
        seen = tried(trial.alice(f"cat {file}"))
        if seen.get("batch", set()) != seen.get("step") or len(seen["batch"]) != 1:
            raise Failed(f"{name}: {seen}\n{trial.alice(f'cat {file}')}")
        count += len(seen)
    for name, text in {
        "srun": "srun -n2 --gres=mig:3g.40gb:1 ./probe step",
        "salloc": "salloc --gres=mig:3g.40gb:1 srun ./probe step",
        "pty": "srun --pty --gres=mig:3g.40gb:1 ./probe step",
        "none": "srun ./probe step",
    }.items():
        seen = tried(trial.alice(f"cd; {text}").replace("\r", ""))
        if len(seen.get("step", {"nothing", "said"})) != (name != "none"):
            raise Failed(f"{name}: {seen}")
        count += 1
    return f"{count} ways, one GPU each; a job without slices none"


def devices_stay(trial: Trial) -> str:
    """A reconfiguration and a restarted slurmd take nothing away and open nothing."""
    job = trial.begun(
        "--gres=mig:1g.10gb:1",
        script="./probe early; until [ -e go ]; do sleep 1; done; ./probe late; srun ./probe step",
    )
    trial.script(
        """\
        systemctl daemon-reload
        until scontrol reconfigure; do sleep 2; done
        systemctl restart slurmd
        until sinfo -h -o %T | grep -qE 'mixed|alloc'; do sleep 2; done
        touch /home/alice/go
        """
    )
    trial.wait(job, "COMPLETED")
    trial.run("rm /home/alice/go")
    seen = tried(trial.output(job))
    if not seen["early"] == seen["late"] == seen["step"] or len(seen["early"]) != 1:
        raise Failed(f"{seen}")
    trial.clean()
    return "before and after: the same one"


# -- who keeps a slice ----------------------------------------------------------------------


def uuid(trial: Trial, job: int) -> str:
    """The MIG UUID of a job's slice."""
    (row,) = json.loads(trial.run(f"slurm-mig audit --job {job} --json"))
    return str(row["uuid"])


def holder(trial: Trial, job: int, *, user: str, unit: str) -> int:
    """A service of that user's that uses the job's slice; its pid."""
    trial.run(f"systemd-run --quiet --collect --uid={user} --unit={unit} sleep 3000")
    pid = int(trial.run(f"systemctl show -P MainPID {unit}"))
    trial.run(f"slurm-mig simulator hold {MIG} --pid {pid} --uuid {uuid(trial, job)}")
    return pid


def holders(trial: Trial) -> str:
    """The user's own go with the slice; another's is named by its unit, and the slice set aside."""
    job = trial.begun("--gres=mig:1g.10gb:1")
    holder(trial, job, user="alice", unit="hers")
    trial.cancel(job)
    trial.machine.until("! systemctl is-active -q hers", timeout=SOON)
    trial.clean()
    job = trial.begun("--gres=mig:1g.10gb:1")
    pid = holder(trial, job, user="root", unit="watcher")
    trial.cancel(job)
    trial.machine.until("slurm-mig status | grep -q stuck", timeout=SOON)
    contains(trial.run("slurm-mig status"), f"pid {pid} of root", "watcher.service")
    trial.run("systemctl stop watcher; systemctl start slurm-mig-reconcile.service")
    trial.clean()
    return "user's killed; root's named by unit, set aside, freed by the timer's service"


def left_in_the_jobs_cgroup(trial: Trial) -> str:
    """A process that Slurm overlooks in the job's v2 cgroup is known as the job's, and ended."""
    job = trial.begun("--gres=mig:1g.10gb:1")
    trial.run("systemd-run --quiet --collect --uid=alice --unit=left sleep 3000")
    pid = int(trial.run("systemctl show -P MainPID left"))
    place = trial.run(f"ls -d /sys/fs/cgroup/system.slice/*slurmstepd.scope/job_{job}")
    trial.run(f"mkdir {place}/left && echo {pid} >{place}/left/cgroup.procs")
    trial.run(f"slurm-mig simulator hold {MIG} --pid {pid} --uuid {uuid(trial, job)}")
    trial.run(f"scancel {job}")
    trial.machine.until(f"! kill -0 {pid} 2>/dev/null", timeout=SOON)
    trial.clean()
    lines = f"journalctl -t slurm-mig --no-pager | grep 'teardown job={job} '"
    trial.machine.until(lines, timeout=SOON)
    said = trial.run(lines)
    trial.run(f"rmdir {place}/left {place}", code=None)
    found = re.search(r"killed[^;]*", said)
    return found[0][:90] if found else "gone with the job"


def killed_hook(trial: Trial) -> str:
    """A Prolog that dies behind the driver's back: its slice is found and taken down."""
    trial.run(f"slurm-mig simulator fault {MIG} --call {CREATE} --effect kill-after --times 1")
    job = trial.sbatch("--gres=mig:1g.10gb:1")
    trial.machine.until("sinfo -h -o %T | grep -q drain", timeout=SOON)
    reason = trial.run("sinfo -h -R -o %E")
    contains(reason, "slurm-mig")
    trial.script(
        f"""\
        scancel {job}
        systemctl start slurm-mig-reconcile.service
        scontrol update nodename=gpu01 state=resume
        """
    )
    trial.clean()
    return reason[:90]


# -- daemons that stop ----------------------------------------------------------------------


def stop_during(trial: Trial, call: str, action: str) -> float:
    """Stop slurmd while a hook waits 8 s for the driver; seconds that the stop took."""
    trial.run(f"slurm-mig simulator fault {MIG} --call {call} --effect hang:8 --times 1")
    trial.run(action)
    trial.machine.until("pgrep -f '[h]ooks import main'", timeout=SOON)
    begin = time.monotonic()
    trial.run("systemctl stop slurmd", timeout=1200)
    took = time.monotonic() - begin
    expect(trial.run("systemctl show -P Result slurmd"), "success", "slurmd's end")
    return took


def slurmd_in_prolog(trial: Trial) -> str:
    """The daemon waits for its Prolog; the job then runs or comes again, and leaves nothing."""
    words = "sbatch --gres=mig:1g.10gb:1 --wrap 'touch seen; sleep 3000'"
    submit = f"runuser -l alice -c {shlex.quote(words)}"
    took = stop_during(trial, CREATE, submit)
    expect(trial.run("pgrep -f '[h]ooks import main'", code=None), "", "hooks that outlived it")
    trial.run("systemctl start slurmd")
    trial.machine.until("sinfo -h -o %T | grep -qE 'mixed|alloc|idle'", timeout=SOON)
    job = int(trial.run("squeue -h -o %i"))
    was = trial.state(job)
    begun = trial.run("ls /home/alice/seen", code=None) == "/home/alice/seen"
    trial.cancel(job)
    trial.clean()
    return (
        f"waited {took:.0f} s; the job was {was}, its script {'had' if begun else 'had not'} begun"
    )


def slurmd_in_epilog(trial: Trial) -> str:
    """What its Epilog has put off outlives the daemon, and comes to its end."""
    job = trial.begun("--gres=mig:1g.10gb:1")
    took = stop_during(trial, "nvmlGpuInstanceDestroy", f"scancel {job}")
    trial.machine.until("! pgrep -f '[h]ooks import main'", timeout=SOON)
    expect(trial.slices(), [], "slices, without slurmd")
    trial.run("systemctl start slurmd")
    trial.clean()
    return f"waited {took:.0f} s"


def slurmctld_restart(trial: Trial) -> str:
    """Jobs go on when slurmctld is restarted, killed and reconfigured; the next one starts."""
    job = trial.begun("--gres=mig:3g.40gb:1")
    for text in (
        "systemctl restart slurmctld",
        "systemctl kill -s KILL slurmctld; sleep 1; systemctl start slurmctld",
        # On a busy machine it is told that nobody answers in time, and is to be said again.
        "until scontrol reconfigure; do sleep 2; done",
    ):
        trial.run(text)
        trial.machine.until(
            "scontrol ping | grep -q UP && sinfo -h -o %T | grep -qE 'mixed|alloc'", timeout=SOON
        )
        expect(trial.state(job), "RUNNING", f"the job after {text}")
    other = trial.begun("--gres=mig:3g.40gb:1")
    expect(len(trial.slices()), 2, "slices")
    trial.cancel(job, other)
    trial.clean()
    return "restart, kill -9, reconfigure"


# -- units that are options -----------------------------------------------------------------


def helped(trial: Trial, words: str) -> bool:
    """A job that opens its own GPU alone; whether the helper took its Prolog and its Epilog."""
    probe = "./probe batch; srun ./probe step; touch probed; sleep 3000"
    job = trial.begun(words, script=probe)
    trial.machine.until("[ -e /home/alice/probed ]", timeout=SOON)
    trial.run("rm /home/alice/probed")
    seen = tried(trial.output(job))
    if seen["batch"] != seen["step"] or len(seen["batch"]) != 1:
        raise Failed(f"{words}: {seen}")
    trial.cancel(job)
    trial.clean()
    said = trial.run(f"journalctl -t slurm-mig --no-pager | grep ' job={job} '")
    return all(
        re.search(rf": {hook} job={job} .*way=helper", said) for hook in ("prolog", "epilog")
    )


def helper(trial: Trial) -> str:
    """Prolog, Epilog and teardown do all they do in slurm-mig-warm's unit, with its hardening."""
    trial.run("systemctl enable --now slurm-mig-warm.service")
    trial.machine.until("[ -S /run/slurm-mig/warm ]", timeout=SOON)
    for words in ("--gres=mig:1g.10gb:2", "--gres=gpu:1"):
        # A hook that is not taken within half a second goes the long way: a busy machine's may.
        if not any(helped(trial, words) for _ in range(4)):
            raise Failed(f"{words}: the helper takes no Prolog, or no Epilog")
    contains(trial.run("slurm-mig doctor"), "0 errors, 0 warnings")
    expect(trial.run("systemctl show -P NRestarts slurm-mig-warm"), "0", "its restarts")
    trial.run("systemctl disable --now slurm-mig-warm.service")
    trial.cancel(trial.begun("--gres=mig:1g.10gb:1"))
    trial.clean()
    return "slices and a whole GPU, in its unit; then without it"


def metrics(trial: Trial) -> str:
    """What node_exporter is to read is written."""
    trial.script(
        """\
        /opt/slurm-mig/bin/pip install --quiet prometheus-client
        mkdir -p /var/lib/prometheus/node-exporter
        systemctl start slurm-mig-metrics.service
        """
    )
    expect(trial.run("systemctl show -P Result slurm-mig-metrics"), "success", "its result")
    said = trial.run("cat /var/lib/prometheus/node-exporter/slurm-mig.prom")
    contains(said, "slurm_mig_")
    return f"{len(re.findall(r'(?m)^slurm_mig_', said))} lines"


def publishing(trial: Trial) -> str:
    """By docs/publishing.md: a job with shards and no slot waits, and starts when it has one."""
    trial.script(
        """\
        cp /etc/slurm/slurm.conf slurm.conf.counted
        (echo 'publish = true'; cat fleet.toml) >fit.toml
        slurm-mig generate fit.toml --out fit
        sed -i 's/^GresTypes=.*/GresTypes=gpu,shard,mig,fit/; /^NodeName=/d' /etc/slurm/slurm.conf
        numbers=$(slurmd -C | head -n 1 | cut -d' ' -f2-)
        if slurmd -V | grep -q ' 22'; then
            echo "$(sed -n 's/^#\\(NodeName=mig-anchor\\)/\\1/p' fit/slurm.conf.mig) $numbers"
        else
            echo SchedulerParameters=extra_constraints
        fi >>/etc/slurm/slurm.conf
        echo "NodeName=gpu01 $numbers $(sed -n 's/^# NodeName=gpu01 //p' fit/slurm.conf.mig)" \\
            >>/etc/slurm/slurm.conf
        systemctl restart slurmctld
        systemctl restart slurmd
        """
    )
    counts = "scontrol show node -o gpu01 | grep -o 'fit:3g[^,]*:[0-9]*'"
    trial.machine.until(f"{counts} && sinfo -h -n gpu01 -o %T | grep -qx idle", timeout=SOON)
    trial.script(
        """\
        systemctl enable --now slurm-mig-publish.timer
        systemctl start slurm-mig-publish.service
        cp fit/job_submit.lua fit/cli_filter.lua /etc/slurm/
        until scontrol reconfigure; do sleep 2; done
        """
    )
    contains(trial.run("slurm-mig doctor"), "0 errors, 0 warnings")
    # A slice in the middle of each GPU: shards for a 3g are left, a place is not.
    made = [
        f"slurm-mig create 1g.10gb --gpu {gpu} --start {start}"
        for gpu in (0, 1)
        for start in (3, 4)
    ]
    trial.run("set -e\n" + "\n".join([*made, "systemctl start slurm-mig-publish.service"]))
    expect(trial.run("systemctl show -P Result slurm-mig-publish"), "success", "the unit's result")
    expect(trial.run(counts).splitlines()[0], "fit:3g.40gb:0", "what fits")
    job = trial.sbatch("--gres=mig:3g.40gb:1", script="touch fitted; sleep 3000")
    small = trial.begun("--gres=mig:1g.10gb:1")
    reason = trial.run(f"squeue -h -j {job} -o '%T %r'")
    if not re.search("^PENDING .*(Constraints|mig-anchor)", reason) or "BadC" in reason:
        raise Failed(f"the job without a slot: {reason}")
    for gpu in trial.status()["gpus"]:
        for item in gpu["instances"]:
            if item["job_id"] is None:
                trial.run(f"slurm-mig destroy {item['uuid']}")
    trial.machine.until("[ -e /home/alice/fitted ]", timeout=SOON)
    expect(
        trial.run(f"scontrol show job {job} | grep -o 'Restarts=[0-9]*'"), "Restarts=0", "starts"
    )
    trial.cancel(job, small)
    trial.script(
        """\
        cp out/job_submit.lua out/cli_filter.lua /etc/slurm/
        slurm-mig publish --off
        cp slurm.conf.counted /etc/slurm/slurm.conf
        systemctl disable --now slurm-mig-publish.timer
        systemctl restart slurmctld
        systemctl restart slurmd
        """
    )
    trial.machine.until("sinfo -h -o %T | grep -qx idle", timeout=SOON)
    trial.clean()
    return f"waited ({reason.split(None, 1)[1]}), then ran without a refusal"


# -- versions -------------------------------------------------------------------------------


def upgrade(trial: Trial) -> str:
    """By docs/upgrade.md: this version ends a job that the one before started, and back."""
    if trial.before is None:
        return "no version before"
    trial.run("mkdir -p /root/before")
    trial.machine.put(trial.before, f"/root/before/{trial.before.name}")
    trial.script(
        """\
        python3 -m venv --without-pip /opt/slurm-mig-old
        /opt/slurm-mig/bin/pip --python /opt/slurm-mig-old/bin/python install /root/before/*.whl
        /opt/slurm-mig-old/bin/slurm-mig install
        """
    )
    old = trial.begun("--gres=mig:2g.20gb:1")
    contains(trial.run("cat /etc/slurm-mig/hooks/prolog"), "/opt/slurm-mig-old")
    for block in pages.blocks(pages.TOP / "docs/upgrade.md"):
        if block.section == "Upgrading":
            for command in block.commands:
                trial.run(re.sub(r"#.*", "", command.text), timeout=1200)
    contains(trial.run("cat /etc/slurm-mig/hooks/prolog"), "/opt/slurm-mig-new")
    new = trial.begun("--gres=mig:2g.20gb:1")
    expect(len(trial.slices()), 2, "slices")
    trial.run(f"scancel {old}")
    trial.machine.until(f"! squeue -h -j {old} 2>/dev/null | grep -q .", timeout=SOON)
    trial.left(1)
    trial.run("/opt/slurm-mig-old/bin/slurm-mig install")
    trial.cancel(new)
    trial.clean()
    trial.script(
        """\
        /opt/slurm-mig/bin/slurm-mig install
        rm -r /opt/slurm-mig-old /opt/slurm-mig-new
        systemctl daemon-reload
        """
    )
    return "forth and back with a job each"


# -- power ----------------------------------------------------------------------------------


def boot_was_good(trial: Trial) -> None:
    """The node is in service, MIG mode is on, nothing is left, and the ledger is whole."""
    trial.machine.until("systemctl is-active -q slurmd", timeout=SOON)
    trial.machine.until("sinfo -h -o %T | grep -qE 'idle|mixed|alloc'", timeout=SOON)
    expect([gpu["mig_mode"] for gpu in trial.status()["gpus"]], [True, True], "MIG mode")
    first, last = (
        int(trial.run(f"systemctl show -P {name} {unit}"))
        for name, unit in (
            ("ExecMainExitTimestampMonotonic", "slurm-mig-boot"),
            ("ExecMainStartTimestampMonotonic", "slurmd"),
        )
    )
    if not 0 < first < last:
        raise Failed(f"slurmd started at {last}, the boot unit ended at {first}")
    trial.run("slurm-mig audit --check")


def power_cut(trial: Trial) -> str:
    """Two jobs at work, one with a tmpfs of leases: their slices are closed as lost."""
    jobs = [trial.begun("--gres=mig:1g.10gb:2"), trial.begun("--gres=mig:3g.40gb:1")]
    trial.machine.cut()
    trial.machine.boot()
    boot_was_good(trial)
    rows = json.loads(trial.run("slurm-mig audit --json"))
    lost = [row["phase"] for row in rows if row["job_id"] in jobs and row["restart"] == 0]
    expect(lost, ["lost"] * 3, "the slices of before")
    trial.run("scancel -u alice")
    trial.clean()
    doctor = trial.run("slurm-mig doctor")
    contains(doctor, "0 errors")
    return "lost on record, node in service"


def reboot(trial: Trial) -> str:
    """`systemctl reboot` with a job at work: its slices are lost on record, the job comes again.

    Controller and node are one machine: slurmctld goes on counting the job (facts/slurm.md), so
    `reconcile`, which the timer runs each five minutes, has to start it anew.
    """
    job = trial.begun("--gres=mig:1g.10gb:2")
    begin = time.monotonic()
    trial.machine.reboot()
    took = time.monotonic() - begin
    boot_was_good(trial)
    rows = json.loads(trial.run(f"slurm-mig audit --job {job} --json"))
    expect([row["phase"] for row in rows if row["restart"] == 0], ["lost"] * 2, "its slices")
    trial.run(f"rm -f /home/alice/begun.{job}")
    was = trial.state(job)
    if was == "RUNNING" and not trial.slices():
        said = trial.run("slurm-mig reconcile")
        contains(said, f"job {job}: requeued, for it ended with an earlier boot")
        was += ", and reconcile requeued it"
        # Slurm would wait two minutes.
        trial.machine.until(f"scontrol update jobid={job} starttime=now", timeout=SOON)
    if not was.startswith("FAILED"):
        trial.machine.until(f"[ -e /home/alice/begun.{job} ]", timeout=3 * SOON)
        expect(len(trial.slices()), 2, "slices of its next run")
        trial.cancel(job)
    trial.clean()
    return f"{took:.0f} s; the job was {was}"


def gpu_missing(trial: Trial) -> str:
    """No slurmd starts, slurmctld is told why; one command brings it back after the repair."""
    config = "/etc/slurm-mig/config.toml"
    trial.script(
        f"""\
        cp {config} /root/config.before
        cp {MIG}/machine.json /root/machine.before
        printf '[gpus]\\nexpected = {{ "NVIDIA H100 80GB HBM3" = 2 }}\\n' >>{config}
        python3 -c 'import json, sys; machine = json.load(sys.stdin); machine["gpus"].pop()
        json.dump(machine, sys.stdout)' </root/machine.before >{MIG}/machine.json
        """
    )
    trial.machine.reboot()
    trial.machine.until("systemctl is-failed -q slurm-mig-boot", timeout=SOON)
    expect(trial.run("systemctl is-active slurmd", code=None), "inactive", "slurmd")
    expect(
        trial.run("systemctl show -P ExecMainStatus slurm-mig-boot"),
        "28",
        "the boot unit's exit code",
    )
    reason = trial.run("sinfo -h -R -o %E")
    contains(reason, "slurm-mig: boot:")
    trial.run(f"cp /root/machine.before {MIG}/machine.json; systemctl start slurmd")
    trial.machine.until("sinfo -h -o %T | grep -qx idle", timeout=SOON)
    trial.run(f"cp /root/config.before {config}")
    return reason[:90]


def stateless(trial: Trial) -> str:
    """A ledger on a tmpfs, as an image without a disk has it: each boot begins a new one."""
    trial.run("echo 'tmpfs /var/lib/slurm-mig tmpfs mode=0700 0 0' >>/etc/fstab")
    trial.machine.reboot()
    trial.machine.until("systemctl is-active -q slurmd", timeout=SOON)
    contains(trial.run("findmnt -n -o FSTYPE /var/lib/slurm-mig"), "tmpfs")
    trial.cancel(trial.begun("--gres=mig:1g.10gb:1"))
    trial.clean()
    contains(trial.run("slurm-mig doctor"), "0 errors")
    trial.run("sed -i '/slurm-mig/d' /etc/fstab; umount /var/lib/slurm-mig")
    # Not without a boot: /run names the ledger that this one has seen, and another is refused.
    trial.machine.reboot()
    boot_was_good(trial)
    return "in service, doctor without errors"


def configless(trial: Trial) -> str:
    """Files by slurmctld alone: hooks are local, the rest comes with slurm.conf."""
    trial.script(
        """\
        cp /etc/slurm/slurm.conf /root/slurm.conf.before
        echo SlurmctldParameters=enable_configless >>/etc/slurm/slurm.conf
        echo 'SLURMD_OPTIONS="--conf-server gpu01"' >>/etc/default/slurmd
        systemctl restart slurmctld
        systemctl restart slurmd
        """
    )
    trial.machine.until("sinfo -h -o %T | grep -qx idle", timeout=SOON)
    cached = trial.run("ls /var/lib/slurm/slurmd/conf-cache")
    contains(cached, "slurm.conf", "gres.conf", "cgroup.conf")
    job = trial.begun("--gres=mig:1g.10gb:1", script="./probe batch; srun ./probe step; sleep 3000")
    trial.machine.until(f"grep -q 'step gpu1' /home/alice/slurm-{job}.out", timeout=SOON)
    seen = tried(trial.output(job))
    if seen["batch"] != seen["step"] or len(seen["batch"]) != 1:
        raise Failed(f"{seen}")
    trial.cancel(job)
    trial.clean()
    trial.script(
        """\
        cp /root/slurm.conf.before /etc/slurm/slurm.conf
        sed -i '/conf-server/d' /etc/default/slurmd
        systemctl restart slurmctld slurmd
        """
    )
    trial.machine.until("sinfo -h -o %T | grep -qx idle", timeout=SOON)
    return "slurmd's files: " + " ".join(cached.split())


# -- verify, doctor, package ----------------------------------------------------------------


def looked_at(trial: Trial) -> str:
    """With jobs of two users at work: nobody reaches what is not theirs, no finding."""
    job = trial.begun("--gres=mig:1g.10gb:2")
    other = int(
        trial.machine.run("sbatch --parsable --gres=mig:3g.40gb:1 --wrap 'sleep 3000'", user="bob")
    )
    trial.wait(other, "RUNNING")
    # Exit code 27 if anything could be reached.
    said = trial.run("slurm-mig verify --all")
    doctor = trial.run("slurm-mig doctor").splitlines()[-1]
    contains(doctor, "0 errors, 0 warnings")
    trial.cancel(job, other)
    trial.clean()
    return f"{said.count('pass')} tries closed; {doctor}"


def package(trial: Trial) -> str:
    """The .deb: beside pip's, alone, upgraded, refused to go, removed, purged; the ledger stays."""
    # The site's own config.toml stays: who installs at a terminal is asked that.
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Options::=--force-confold"
    deb = f"/root/{trial.package.name}"
    trial.machine.put(trial.package, deb)
    trial.run(f"{apt} install {deb}", timeout=1200)
    contains(
        trial.run("cat /etc/slurm-mig/hooks/prolog"), "python='/usr/lib/slurm-mig/bin/python3'"
    )
    # pip's goes, and its units with it.
    trial.script(
        """\
        systemctl disable slurm-mig-boot.service
        systemctl disable --now slurm-mig-reconcile.timer
        /opt/slurm-mig/bin/slurm-mig install --uninstall --only units
        rm -r /opt/slurm-mig /usr/local/bin/slurm-mig
        systemctl daemon-reload
        systemctl enable slurm-mig-boot.service slurm-mig-reconcile.timer
        systemctl restart slurmd
        """
    )
    contains(trial.run("systemctl cat slurm-mig-boot"), "/usr/lib/slurm-mig/bin/python3")
    job = trial.begun("--gres=mig:1g.10gb:1")
    trial.run(f"{apt} install --reinstall {deb}", timeout=1200)
    kept = trial.run(f"{apt} remove slurm-mig", code=None)
    contains(kept, "slurmd drains the node")
    trial.cancel(job)
    trial.clean()
    contains(trial.run("slurm-mig doctor"), "0 errors")
    # The manual's order ("Getting rid of it"), from step 2 on.
    trial.script(
        """\
        scontrol update nodename=gpu01 state=drain reason='leaving slurm-mig'
        slurm-mig reset --gpu all
        slurm-mig disable --gpu all
        ours='(Prolog|Epilog|TaskProlog|GresTypes|JobSubmitPlugins|CliFilterPlugins)='
        sed -i -E "/^$ours/d; s/ Gres=[^ ]+//" /etc/slurm/slurm.conf
        : >/etc/slurm/gres.conf
        systemctl restart slurmctld slurmd
        systemctl disable slurm-mig-boot.service
        systemctl disable --now slurm-mig-reconcile.timer
        """
    )
    trial.run(f"{apt} remove slurm-mig", timeout=1200)
    left = trial.run(
        "systemctl list-unit-files --no-legend 'slurm-mig*'; "
        "ls /etc/slurm-mig/hooks /usr/lib/slurm-mig",
        code=None,
    )
    if "slurm-mig-boot" in left or "prolog" in left:
        raise Failed(left)
    trial.run("scontrol update nodename=gpu01 state=resume; systemctl restart slurmd")
    trial.alice("srun hostname")
    trial.run(
        f"{apt} purge slurm-mig; [ -e /var/lib/slurm-mig/ledger.db ] && ! [ -e /etc/slurm-mig ]"
    )
    trial.run("systemctl is-system-running; systemctl --failed --no-legend", code=None)
    return "installed, upgraded with a job at work, refused, removed, purged"


#: In this order; the first must hold, the last takes everything away.
CHECKS: Final[dict[str, Callable[[Trial], str]]] = {
    "the quick start, word for word": quick_start,
    "units": units,
    "ConstrainDevices (eBPF)": devices,
    "power cut": power_cut,
    "reboot": reboot,
    # Before there is another ledger: its heads would be in the same journal.
    "journal, rsyslog, logrotate": logs,
    "boot with a GPU missing": gpu_missing,
    "state on a tmpfs": stateless,
    "configless": configless,
    "upgrade with jobs": upgrade,
    "option: the helper's unit": helper,
    "option: the publishing unit": publishing,
    "option: the metrics unit": metrics,
    "timer": timer,
    "tmpfiles.d": tmpfiles,
    "ConstrainDevices after restarts": devices_stay,
    "holders of slices": holders,
    "left-overs in a job's cgroup": left_in_the_jobs_cgroup,
    "a killed Prolog": killed_hook,
    "slurmd stopped in a Prolog": slurmd_in_prolog,
    "slurmd stopped in an Epilog": slurmd_in_epilog,
    "slurmctld restarted": slurmctld_restart,
    "verify and doctor": looked_at,
    "Debian package": package,
}
