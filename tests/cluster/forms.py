"""Every form that users type, on static MIG and on ours, side by side on this machine's Slurm.

`python -m tests.cluster.forms` prints what differs; `--out FILE` writes what both gave as JSON, for
`make forms`, which runs this on every release and prints one table. Exit 1 on a difference that
is not in `forms_excused.py` with its reason.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.sandbox.cluster import USERS, scratch
from tests.cluster.forms_excused import excused
from tests.cluster.forms_list import STEP, Form, every
from tests.cluster.forms_worlds import BRIDGE, NODES, SETTINGS, Ours, Static, World
from tests.kit.cluster import PREFIX, enable_mig

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ALICE: Final = USERS["alice"]

#: What a task says of itself; one line, so that tasks cannot mix their words.
SHOW: Final = """#!/bin/sh
echo "seen who=${1:-task} proc=$SLURM_PROCID node=$SLURMD_NODENAME cvd=$CUDA_VISIBLE_DEVICES \
profiles=$SLURM_MIG_PROFILES gon=$SLURM_GPUS_ON_NODE con=$SLURM_CPUS_ON_NODE \
cpt=$SLURM_CPUS_PER_TASK nt=$SLURM_NTASKS job=$SLURM_JOB_ID"
"""

#: Seconds that a step may take, and a job may wait without anything before it.
STEP_PATIENCE: Final = 10
PENDING_PATIENCE: Final = 6.0
#: Seconds for everything that a job does, and for a client after its job has ended.
JOB_PATIENCE: Final = 120.0
CLIENT_PATIENCE: Final = 60.0
#: Seconds for all forms of a release. Each has a bound of its own, but a fault of this program
#: itself must not hang a night's run either: past this every thread says where it is.
ALL_PATIENCE: Final = 3000.0
#: Jobs at the same time; those that had to wait are asked again alone.
TOGETHER: Final = 3

#: A step that has ended holds its memory for another moment; one with --overlap does not wait.
STEPS_OVER: Final = """\
for _ in 1 2 3 4 5 6 7 8 9; do
    squeue -h -s -j "$SLURM_JOB_ID" -o %i | grep -q '[.][0-9]*$' || break
    sleep 0.2
done"""

#: Outcomes that nothing else on the cluster can bring about.
QUICK: Final = ("runs", "refused", "would run", "step fails")
#: Forms whose result depends on what else runs.
ALONE: Final = re.compile("exclusive|--mem[= ]0|enforce-binding|spread-job|min-nodes|contiguous")

#: Lines that say nothing.
BORING: Final = re.compile(r"ended=|all-done|\d+$")

ENDED: Final = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass
class Gave:
    """What a world gave for a form: in the words that are compared, and those that are shown."""

    outcome: str
    job: dict[str, str] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    said: str = ""

    def same(self, other: Gave) -> bool:
        """Whether a user would notice a difference."""
        return (self.outcome, self.job, self.tasks) == (other.outcome, other.job, other.tasks)

    def text(self) -> str:
        """A line of the table."""
        job = " ".join(f"{key} {value}" for key, value in self.job.items())
        tasks = []
        for same, group in groupby(self.tasks, key=_without_rank):
            ranks = [str(item["proc"]) for item in group]
            where = same["who"] if same["who"] == "batch" else f"task {','.join(ranks)}"
            tasks.append(
                f"{where}: {same['devices'] or 'none'}, on node {same['gon'] or '-'} GPU "
                f"{same['con']} CPU, {same['cpt'] or '-'} a task"
            )
        return "; ".join(filter(None, [self.outcome, job, *tasks]))


def _without_rank(task: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in task.items() if key != "proc"}


def _gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


class Talk:
    """One world, asked as an unprivileged user."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.work = world.work
        self._numbers = count(1)
        show = self.work / "show"
        show.write_text(SHOW)
        show.chmod(0o755)
        self.show = str(show)
        (self.work / "prog.conf").write_text(f"0-1 {show}\n")

    def ask(self, forms: Sequence[Form]) -> list[Gave]:
        """Submit one job; `forms` differ only in the step that its script runs."""
        tag = f"form{next(self._numbers)}"
        first = forms[0]
        options = self._options(first)
        script = self._script(forms)
        environ = {
            "SBATCH_JOB_NAME": tag,
            "SLURM_JOB_NAME": tag,
            "SALLOC_JOB_NAME": tag,
            **first.environ,
        }
        try:
            if first.how == "sbatch":
                refused, job, said = self._batch(options, script, environ, tag)
            else:
                refused, job, said = self._interactive(first, options, script, environ, tag)
            if not refused:
                return self._gave(forms, job, said)
        except subprocess.TimeoutExpired as slow:
            # A command of Slurm's: the form is named with what hangs, and the others go on.
            refused, said = f"hangs ({slow.cmd[0].rpartition('/')[2]})", str(slow)
        return [Gave(refused, said=said) for _ in forms]

    def settle(self) -> None:
        """Wait until nobody else's job is in the way, nor its Epilog."""
        end = time.monotonic() + JOB_PATIENCE
        while not self.world._all_idle() and time.monotonic() < end:
            time.sleep(0.2)

    def _options(self, form: Form) -> list[str]:
        change = form.ours if isinstance(self.world, Ours) else None
        texts = [text.replace(*change) if change else text for text in form.options]
        return [text.replace("./show", self.show) for text in texts]

    def _script(self, forms: Sequence[Form]) -> str:
        first = forms[0]
        lines = ["#!/bin/sh", *(f"#SBATCH {line}" for line in first.head)]
        # A real site's programs find their Slurm without the variables of a private one.
        environ = self.world.environ()
        lines += [f"export {key}='{value}'" for key, value in environ.items() if key != "PATH"]
        if first.how != "salloc":
            lines.append(f"{self.show} batch")
        for number, form in enumerate(forms):
            step = form.script.replace("./show", self.show)
            step = step.replace("prog.conf", f"{self.work}/prog.conf")
            step = step.replace("srun ", f"timeout {STEP_PATIENCE} srun ", 1)
            if number:
                lines.append(STEPS_OVER)
            lines += [f"echo step={number}", f"{step} 2>&1", 'echo "ended=$?"']
        return "\n".join([*lines, "echo all-done", ""])

    def _batch(
        self, options: list[str], script: str, environ: dict[str, str], tag: str
    ) -> tuple[str, str, str]:
        out = ["--parsable", f"-o{self.work}/{tag}.%j.out", "--open-mode=append"]
        stdin = "" if any(text.startswith("--wrap") for text in options) else script
        done = self.world.try_run(
            "sbatch", *out, *options, uid=ALICE, timeout=60, stdin=stdin, **environ
        )
        said = done.stdout + done.stderr
        if done.returncode != 0:
            return "refused", "", said
        if "--test-only" in options:
            return "would run", "", said
        job = re.findall(r"^(\d+)\s*$", done.stdout, re.MULTILINE)[-1]
        state = self._until_over(job)
        if state != "":
            # A node that is out of service says why.
            drained = self.world.try_run("sinfo", "-h", "-N", "-R", "-o", "%N %T %E").stdout
            return state, job, f"{said}\n{drained}"
        texts = [path.read_text() for path in sorted(self.work.glob(f"{tag}.*.out"))]
        return "", job, "\n".join([said, *texts])

    def _interactive(
        self, form: Form, options: list[str], script: str, environ: dict[str, str], tag: str
    ) -> tuple[str, str, str]:
        program = "salloc" if form.how == "salloc" else "srun"
        path = self.work / f"{tag}.sh"
        path.write_text(script)
        path.chmod(0o755)
        what = str(path) if program == "salloc" else self.show
        command = [str(self.world._find(program)), *options, what]
        if form.how == "pty":
            command.insert(1, "--pty")
            command = ["/usr/bin/script", "-qec", shlex.join(command), "/dev/null"]
        # Not a pipe: whoever a killed client leaves behind would hold it open.
        with (self.work / f"{tag}.said").open("w+") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                cwd=self.work, env=self.world.environ() | environ,
                user=ALICE, group=ALICE, extra_groups=[], start_new_session=True,
            )  # fmt: skip
            waiting = self._until_gone(process, tag)
            output.seek(0)
            said = output.read()
        if waiting:
            return waiting, "", said
        found = re.findall(r"\bjob=(\d+)", said)
        if process.returncode != 0 and not found:
            return "refused", "", said
        return "", found[0] if found else "", said

    def _until_gone(self, process: subprocess.Popen[bytes], tag: str) -> str:
        """Wait for a client; returns why its job does not start or it does not end, or nothing."""
        if _gone(process, 5):
            return ""
        jobs = self._jobs("-n", tag)
        waiting = self._until_over(jobs[0][0]) if jobs else ""
        if not _gone(process, CLIENT_PATIENCE):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self.world.try_run("scancel", "-n", tag)
            waiting = waiting or "hangs"
        return waiting

    def _jobs(self, *which: str) -> list[list[str]]:
        done = self.world.try_run("squeue", "-h", "-a", "-t", "all", *which, "-o", "%A|%T|%r")
        return [line.split("|") for line in done.stdout.splitlines()]

    def _until_over(self, job: str) -> str:
        """Wait for all of a job's tasks; returns why it does not start, or nothing."""
        end = time.monotonic() + JOB_PATIENCE
        since: float | None = None
        while time.monotonic() < end:
            lines = self._jobs("-j", job)
            states = {line[1] for line in lines}
            if states <= set(ENDED) and lines:
                return ""
            running = states - {"PENDING"} - set(ENDED)
            since = None if running else since or time.monotonic()
            if since is not None and time.monotonic() - since > PENDING_PATIENCE:
                reason = next(
                    (line[2] for line in lines if line[1] == "PENDING"), "unknown to squeue"
                )
                self.world.try_run("scancel", job)
                return f"waits ({reason})"
            time.sleep(0.15)
        self.world.try_run("scancel", job)
        return "does not end"

    def _gave(self, forms: Sequence[Form], job: str, said: str) -> list[Gave]:
        facts = self._facts(job)
        head, *parts = re.split(r"^step=\d+\s*$", said, flags=re.MULTILINE)
        if not parts:
            return [Gave("runs", facts, self._tasks(head), said) for _ in forms]
        # An array has the same parts in every task's output: take them together.
        if len(parts) > len(forms):
            return [Gave("runs", facts, self._tasks(said), said)]
        found = []
        for part in parts:
            ended = re.search(r"^ended=(\d+)", part, re.MULTILINE)
            code = int(ended[1]) if ended else -1
            step = {0: "runs", 124: "step waits", -1: "cut off"}.get(code, "step fails")
            tasks = self._tasks(head + part if len(forms) == 1 else part)
            found.append(Gave(step, dict(facts), tasks, part))
        found += [Gave("cut off", facts, [], said)] * (len(forms) - len(found))
        return found

    def _facts(self, job: str) -> dict[str, str]:
        """What Slurm has on record for the job."""
        if not job:
            return {}
        text = self._settled(job)
        tres = re.search(r"(?:AllocTRES|[^qc]TRES)=(\S+)", text)
        memory = re.search(r"mem=([^,]+)", tres[1] if tres else "")
        fields = {
            key: match[1] if (match := re.search(rf"\b{key}=(\S+)", text)) else "?"
            for key in ("JobState", "NumNodes", "NumCPUs", "NumTasks")
        }
        return {
            "state": fields["JobState"],
            "nodes": fields["NumNodes"],
            "CPUs": fields["NumCPUs"],
            "tasks": fields["NumTasks"],
            "mem": memory[1] if memory else "-",
        }

    def _settled(self, job: str) -> str:
        """Return `scontrol show job` once the job no longer ends."""
        end = time.monotonic() + JOB_PATIENCE
        while time.monotonic() < end:
            text = self.world.try_run("scontrol", "show", "job", job).stdout
            if "JobState=COMPLETING" not in text and "JobState=RUNNING" not in text:
                break
            time.sleep(0.1)
        return text

    def _tasks(self, text: str) -> list[dict[str, Any]]:
        """Each task's devices, numbered as they first appear, and what it counts by."""
        lines = []
        for line in text.replace("\r", "").splitlines():
            if (at := line.find("seen who=")) >= 0:
                words = (word.partition("=") for word in line[at:].split()[1:])
                lines.append({key: value for key, _, value in words})
        numbers: dict[str, dict[str, int]] = {}
        found = []
        lines.sort(key=lambda item: (item["who"] != "batch", int(item["job"]), int(item["proc"])))
        for item in lines:
            # Tasks of an array are jobs of their own: when each begins is not the form's.
            own = numbers.setdefault(item["job"], {})
            # In whatever order a world lists them: a task's own come with what they are.
            gpus = sorted(self.world.gpus(item), key=lambda gpu: (gpu[1], own.get(gpu[0], 1000)))
            named = [f"{profile}#{own.setdefault(device, len(own))}" for device, profile in gpus]
            found.append(
                {
                    "who": item["who"],
                    "proc": int(item["proc"]),
                    "devices": " ".join(named),
                    **{key: item[key] for key in ("gon", "con", "cpt", "nt")},
                }
            )
        return found


def batches(forms: Sequence[Form]) -> Iterator[list[Form]]:
    """Forms that differ in their step alone share a job."""
    kept: dict[object, list[Form]] = {}
    for form in forms:
        if form.script == STEP:
            yield [form]
        else:
            key = (form.group, form.how, form.options, form.head, form.ours)
            kept.setdefault(key, []).append(form)
    yield from kept.values()


def ask_all(talk: Talk, forms: Sequence[Form]) -> dict[str, Gave]:
    """Some at the same time; what had to wait then, or was in the way, once more alone."""
    groups = list(batches(forms))
    alone = [group for group in groups if ALONE.search(group[0].text)]
    found: dict[str, Gave] = {}

    def one(group: list[Form]) -> None:
        for form, gave in zip(group, talk.ask(group), strict=True):
            found[form.name] = gave

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(one, [group for group in groups if group not in alone]))
    for group in groups:
        if group in alone or any(found[form.name].outcome not in QUICK for form in group):
            talk.settle()
            one(group)
    return {form.name: found[form.name] for form in forms}


@contextmanager
def booted(kind: type[World]) -> Iterator[World]:
    """Boot a world, and remove it."""
    world = kind(scratch("form"), NODES, slurm_conf=SETTINGS, prefix=PREFIX, bridge=BRIDGE)
    try:
        with world:
            if kind is Ours:
                enable_mig(world)
            yield world
    finally:
        world.remove()


def side_by_side(forms: Sequence[Form]) -> tuple[str, dict[str, Gave], dict[str, Gave]]:
    """Slurm's version, what static MIG gave, and what ours gave."""
    # Daemons are started before there are threads: what runs between fork and exec may find a
    # lock that another thread held, and hang.
    with booted(Static) as static, booted(Ours) as ours, ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask_all, Talk(world), forms) for world in (static, ours)]
        version = ours.run("sinfo", "--version").split()[1]
        return version, asked[0].result(), asked[1].result()


def judged(version: str, static: dict[str, Gave], ours: dict[str, Gave]) -> list[dict[str, Any]]:
    """A row for each form: what both gave, and whether that is equal, or why it is not."""
    rows = []
    for name, gave in static.items():
        excuse = (
            None
            if gave.same(ours[name])
            else excused(name, version, gave.text(), ours[name].text())
        )
        verdict = "=" if gave.same(ours[name]) else excuse.kind if excuse else "DIFFERS"
        rows.append(
            {
                "form": name,
                "verdict": verdict,
                "why": excuse.why if excuse else "",
                "static": gave.text(),
                "ours": ours[name].text(),
                "static said": gave.said,
                "ours said": ours[name].said,
            }
        )
    return rows


def show(row: dict[str, Any]) -> str:
    """A row for whoever has to find out why."""
    lines = [f"{row['verdict']} {row['form']}"]
    for who in ("static", "ours"):
        lines.append(f"    {who + ':':8}{row[who]}")
        said = [line for line in row[f"{who} said"].splitlines() if line and "seen " not in line]
        lines += [f"      {who} said: {line}" for line in said[:6] if not BORING.match(line)]
    return "\n".join(lines)


def main() -> int:
    """Run both worlds, then say what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write what both gave, as JSON")
    parser.add_argument("--only", default="", help="a regular expression for the forms' names")
    parser.add_argument("--verbose", action="store_true", help="show what is equal, too")
    asked = parser.parse_args()
    forms = [form for form in every() if re.search(asked.only, form.name)]
    if not forms:
        sys.exit(f"no form matches {asked.only}")
    faulthandler.dump_traceback_later(ALL_PATIENCE, exit=True)
    version, static, ours = side_by_side(forms)
    faulthandler.cancel_dump_traceback_later()
    rows = judged(version, static, ours)
    if asked.out:
        asked.out.write_text(json.dumps({"version": version, "rows": rows}, indent=1))
    for row in rows:
        if asked.verbose or row["verdict"] == "DIFFERS":
            print(show(row))
    counts = Counter(row["verdict"] for row in rows)
    print(f"Slurm {version}: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()))
    return 1 if counts["DIFFERS"] else 0


if __name__ == "__main__":
    sys.exit(main())
