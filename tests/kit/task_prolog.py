"""A job for the TaskProlog."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from slurm_mig.mig.allocation import Allocation, Instance, Owner
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.state import task_file
from slurm_mig.state.run_files import RunFiles
from slurm_mig.state.task_file import TaskSettings

UID = 64001
OWNER = Owner(7, uid=UID, gid=UID)
WEIGHTS = {"1g.10gb": 4, "2g.20gb": 8, "3g.40gb": 14}

#: A slurmstepd that starts tasks as it is told: each line is one, "end" its end. A task is a
#: process between it and the TaskProlog that lives on until the step ends.
STEPD = r"""
while read -r line; do
    case $line in
    end) break ;;
    linger) kill $tasks; wait; tasks=; echo lingering; continue ;;
    esac
    sh -c "$line; echo done; exec 1>&-; exec sleep 1000" &
    tasks="$tasks $!"
done
[ -z "$tasks" ] || kill $tasks
wait
"""


@dataclass
class Job:
    """A job's environment file, and steps of it."""

    root: Path
    task_prolog: Path
    steps: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    scontrol: str = ""
    shell: str = "sh"
    #: As an earlier release's Prolog made them, and where nobody may mount.
    elsewhere: bool = False

    @property
    def leases(self) -> Path:
        return self.root / ("shm/leases" if self.elsewhere else "run/leases/7.0")

    def make_leases(self, files: RunFiles, owner: Owner, slices: int) -> str:
        files.mark(owner, leases=str(self.leases) if self.elsewhere else "")
        return files.make_leases(owner, slices, "/nowhere")

    def publish(self, *profiles: str, owner: Owner = OWNER, **options: object) -> Allocation:
        """What the Prolog leaves for a job with these slices."""
        names = list(dict.fromkeys(profiles))
        request = Request(
            tuple(
                Item(Profile.parse(name), profiles.count(name), 0, WEIGHTS[name]) for name in names
            )
        )
        record = Allocation(
            owner, "n1", "GPU-1", 0, "x", "b", str(request),
            instances=tuple(
                Instance(name, 0, place, 1, place, 0, f"MIG-{place}")
                for place, name in enumerate(profiles)
            ),
        )  # fmt: skip
        files = RunFiles(self.root / "run")
        leases = self.make_leases(files, owner, len(profiles))
        settings = TaskSettings(scontrol=self.scontrol, **options)  # type: ignore[arg-type]
        files.publish(owner, task_file.slice_lines(record, request, settings, leases))
        return record

    def run(self, **environ: str) -> subprocess.CompletedProcess[str]:
        """The TaskProlog alone."""
        return subprocess.run(
            [self.shell, str(self.task_prolog)],
            env={"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"} | environ,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
            user=UID, group=UID, extra_groups=[],
        )  # fmt: skip

    def sees(self, **environ: str) -> str:
        """The slices a task sees, by number."""
        done = self.run(**environ)
        assert (done.returncode, done.stderr) == (0, ""), done
        return slices(done.stdout)

    def task(self, step: int, shards: int, **environ: str) -> str:
        """The slices that a task of a running step sees; the step begins with its first task."""
        if step not in self.steps:
            self.steps[step] = subprocess.Popen(
                ["sh", "-c", STEPD], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                user=UID, group=UID, extra_groups=[],
            )  # fmt: skip
        words = {
            "SLURM_JOB_ID": "7", "SLURM_STEP_ID": str(step), "SLURM_SHARDS_ON_NODE": str(shards),
            "SLURM_STEP_TASKS_PER_NODE": "1", **environ,
        }  # fmt: skip
        line = " ".join(f"{name}={value}" for name, value in words.items())
        daemon = self.steps[step]
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        daemon.stdin.write(f"env {line} {self.shell} {self.task_prolog} 2>&1\n")
        daemon.stdin.flush()
        text = ""
        while (line := daemon.stdout.readline()) != "done\n":
            text += line
        return slices(text)

    def end(self, step: int) -> None:
        """The step's daemon goes, and its tasks with it."""
        daemon = self.steps.pop(step)
        daemon.communicate("end\n")

    def linger(self, step: int) -> None:
        """The tasks have ended, the daemon has not yet."""
        daemon = self.steps[step]
        assert daemon.stdin is not None
        assert daemon.stdout is not None
        daemon.stdin.write("linger\n")
        daemon.stdin.flush()
        assert daemon.stdout.readline() == "lingering\n"


def slices(text: str) -> str:
    assert "slurm-mig:" not in text, text
    for line in text.splitlines():
        if line.startswith("export CUDA_VISIBLE_DEVICES="):
            return line.partition("=")[2].replace("MIG-", "")
    return ""


def make_job(root: Path) -> Job:
    install_hooks(root / "hooks", Path(sys.executable), root / "config.toml", root / "run")
    (root / "shm").mkdir()
    (root / "shm").chmod(0o1777)
    return Job(root, root / "hooks/task_prolog")
