"""The demonstration: real Slurm, real jobs, simulated GPUs; every claim is checked.

The story: many ways to ask, side by side; then a request that cannot fit now,
refused and run later; then a whole GPU. What each job saw is held against the
ledger, the hardware and Slurm's own count of gres.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import click

from slurm_mig.errors import SandboxFault
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import allocation as phases
from slurm_mig.mig import catalog
from slurm_mig.sandbox.cluster import USERS, Cluster, SandboxNode, scratch
from slurm_mig.sandbox.daemons import working_in
from slurm_mig.simulator import Machine
from slurm_mig.transaction import by_hand

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from slurm_mig.mig.allocation import Allocation

H100: Final = "NVIDIA H100 80GB HBM3"
NODES: Final = (
    SandboxNode("n1", ((H100, 2),), {"create-gi": 60, "create-ci": 30, "destroy-gi": 60}),
    SandboxNode("n2", (("NVIDIA RTX PRO 6000 Blackwell Server Edition", 1), ("NVIDIA A30", 1))),
)

#: What every task does: say what it sees, try all capability nodes, wait to be let go. The
#: wait has an end, should the demonstration be killed.
SCRIPT: Final = r"""#!/bin/sh
cd {work} || exit 9
open=0 own=0 all=0
for node in {sim}/dev/nvidia-caps/*; do
    [ -e "$node" ] || continue
    all=$((all + 1))
    [ -O "$node" ] && own=$((own + 1))
    (exec 3<"$node") 2>&1 | grep -q "Permission denied" || open=$((open + 1))
done
rank=${{SLURM_ARRAY_TASK_ID:-$SLURM_PROCID}}
echo "seen {key} $rank ${{CUDA_VISIBLE_DEVICES:--}} $open/$own/$all" >>seen
left=600
while [ ! -e go.{key} ] && [ ! -e go.{key}.$rank ] && [ $left -gt 0 ]; do
    sleep 0.2
    left=$((left - 1))
done
"""


@cache
def weights() -> dict[str, int]:
    """Shards of each profile of the demo's GPUs."""
    models = [fleet_model(catalog.find(name)) for node in NODES for name, _ in node.gpus]
    return {
        str(row.name): model.weights.of(model.geometry, row)
        for model in models
        for row in model.geometry.profiles
    }


def weight_of(profile: str) -> int:
    """Shards that one instance costs, by the geometry and not by what Slurm was told."""
    return weights()[profile]


def allocated(text: str) -> str:
    """`mig:3g.40gb(CNT:1),shard:h100:14(14/31,0/31)` as `mig:3g.40gb:1,shard:h100:14`."""
    found = re.findall(r"((?:gpu|mig|shard):[^(,]*)\((?:CNT:([0-9]+))?", text)
    return ",".join(f"{name}:{count}" if count else name for name, count in found)


def reach(opened: int, mine: int, all_: int) -> str:
    """What a task could open, in words; its user's other jobs have nodes that they may, too."""
    text = f"could open {opened} of {all_} device nodes of slices"
    others = opened - mine
    if others <= 0:
        return text
    return f"{text}, {others} of them of other slices of its user's, which users may open"


@dataclass(slots=True)
class DemoJob:
    """One submission: how it was asked, which jobs came of it, and what they should get."""

    key: str
    title: str
    node: str
    slices: tuple[str, ...]
    gpus: str = ""
    tasks: int = 1
    number: int = 0
    process: subprocess.Popen[str] | None = None
    gres: str = ""

    def counted(self) -> bool:
        """Whether Slurm's gres of the job names exactly its slices, their shards, its GPUs."""
        words = [word for word in self.gres.split(",") if word]
        mig = sorted(word for word in words if word.startswith("mig:"))
        rest = [word for word in words if not word.startswith(("mig:", "shard:"))]
        shards = [int(word.rpartition(":")[2]) for word in words if word.startswith("shard:")]
        counts = {name: self.slices.count(name) for name in self.slices}
        return (
            mig == sorted(f"mig:{name}:{count}" for name, count in counts.items())
            and shards == ([sum(map(weight_of, self.slices))] if self.slices else [])
            and rest == ([self.gpus] if self.gpus else [])
        )


class Demo:
    """Runs the story on one cluster and remembers which checks failed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.jobs: list[DemoJob] = []
        self.failed: list[str] = []
        self.started = time.monotonic()
        self._drawn = ""
        # One file for all users; made by root, so that each of them may append to it.
        self.heard = cluster.work / "seen"
        self.heard.touch()
        self.heard.chmod(0o666)

    # -- the story -----------------------------------------------------------

    def run(self) -> None:
        """Everything, in order."""
        self.say("A private Slurm is up: " + self.cluster.run("sinfo", "--version").strip())
        self.enable()
        self.many_ways()
        self.no_room()
        self.whole_gpu()
        self.compare()
        self.aftermath()

    def enable(self) -> None:
        """Switch MIG mode on, as an administrator does once."""
        for item in self.cluster.nodes:
            node = self.cluster.node(item.name)
            for gpu in node.driver.gpus():
                by_hand.set_mode(node.bench(), gpu, on=True)
                self.say(f"{item.name}: {gpu.name}: MIG mode on")
            node.close()

    def many_ways(self) -> None:
        """Batch, array, several profiles, tasks, steps, two nodes, srun, salloc."""
        self.title("Many ways to ask")
        self.batch("array", "seven tasks of an array", "n1", ["1g.10gb"], "--array=0-6")
        self.batch("large", "one 3g", "n1", ["3g.40gb"], user="bob")
        self.batch("mixed", "two profiles at once", "n1", ["1g.10gb", "1g.10gb+me"], user="carol")
        self.batch("tasks", "two tasks, a slice each", "n2", ["1g.6gb", "1g.6gb"], "-n2", tasks=2)
        self.batch("nomedia", "no media engines", "n2", ["1g.24gb-me"], user="bob")
        self.batch("gfx", "graphics", "n2", ["1g.24gb+gfx"], user="carol")
        self.two_nodes()
        self.interactive("srun", "srun", "n2", ["1g.24gb"])
        self.interactive("salloc", "salloc with a step", "n2", ["2g.12gb+me"], "salloc")
        self.batch("cpu", "no GPU at all", "n1", [])
        self.nonsense()
        self.watch(lambda: self.seen_by("array") == 7 and self.all_seen(), "all jobs to run")
        self.note_gres()
        self.let_go("large", "mixed", "tasks", "nomedia", "gfx", "nodes", "srun", "salloc", "cpu")
        self.watch(lambda: self.open_slices() == 7, "all but the array to end")

    def no_room(self) -> None:
        """Free shards, but no slot: refused, requeued, run once there is room."""
        self.title("A request that cannot fit now")
        self.batch("all", "fills the second H100", "n1", ["7g.80gb"])
        self.watch(lambda: self.seen_by("all") == 1, "the 7g to run")
        keep = self.tasks_at(3, 4)
        self.let_go(*(f"array.{task}" for task in range(7) if task not in keep))
        self.watch(lambda: self.open_slices() == 3, "five tasks to end")
        self.say("GPU 0 has 23 of 31 shards free, but one small slice in each half")
        job = self.batch("later", "asks for half a GPU", "n1", ["3g.40gb"])
        self.watch(lambda: self.refusals(job), "the refusal")
        self.say(f"refused: {self.refusals(job)[0].reason}")
        self.check("its script did not start", self.seen_by("later") == 0)
        state = self.cluster.run("sinfo", "-h", "-n", "n1", "-o", "%T")
        self.check("the node was not drained", "drain" not in state)
        self.watch(lambda: self.comment(job), "the comment")
        self.say(f"its comment now: {self.comment(job)}")
        self.let_go("array")
        self.watch(lambda: self.seen_by("later") == 1, "the same job to run", 90)
        self.check("it ran once there was room", len(self.refusals(job)) == 1)
        self.note_gres()
        self.let_go("all", "later")
        self.watch(lambda: self.open_slices() == 0, "both to end")

    def whole_gpu(self) -> None:
        """Slurm's plain GPUs live beside slices: MIG mode steps aside."""
        self.title("A whole GPU beside slices")
        whole = self.batch("whole", "one whole H100", "n1", [], "--gres=gpu:h100:1")
        whole.gpus = "gpu:h100:1"
        self.batch("beside", "a slice on the other", "n1", ["2g.20gb"])
        self.watch(self.all_seen, "both to run")
        self.note_gres()
        self.let_go("whole", "beside")
        self.watch(lambda: self.open_slices() == 0, "both to end")

    # -- asking --------------------------------------------------------------

    def batch(
        self,
        key: str,
        title: str,
        node: str,
        slices: Sequence[str],
        *options: str,
        user: str = "alice",
        tasks: int = 1,
    ) -> DemoJob:
        """Submit a batch job for these slices."""
        job = self.add(key, title, node, slices)
        job.tasks = tasks
        script = self.script(key, node)
        text = script.read_text() if tasks == 1 else f"#!/bin/sh\nsrun {script}\n"
        command = ["sbatch", "--parsable", f"--job-name={key}", "-o", f"{key}.%a.out", "-w", node]
        words = [*command, *self.gres(slices), *options]
        job.number = int(self.cluster.run(*words, uid=USERS[user], stdin=text))
        self.asked(words[1:], user)
        return job

    def interactive(
        self, key: str, title: str, node: str, slices: Sequence[str], program: str = "srun"
    ) -> None:
        """Ask with srun, or with salloc and a step inside."""
        job = self.add(key, title, node, slices)
        inner = ["srun"] if program == "salloc" else []
        words = [program, f"--job-name={key}", "-w", node, *self.gres(slices), *inner]
        job.process = self.cluster.launch(*words, str(self.script(key, node)), uid=USERS["alice"])
        self.asked(words, "alice")

    def two_nodes(self) -> None:
        """One job on two nodes, each with slices of its own GPUs."""
        job = self.add("nodes", "two nodes, two models", "n1", ["1g.20gb"])
        other = DemoJob("nodes2", "... its other node", "n2", ("1g.24gb+gfx",))
        self.jobs.append(other)
        first, second = self.script("nodes", "n1"), self.script("nodes2", "n2")
        words = ["srun", "--job-name=nodes", "-w", "n1", *self.gres(["1g.20gb"]), str(first), ":"]
        words += ["--job-name=nodes2", "-w", "n2", *self.gres(["1g.24gb+gfx"]), str(second)]
        job.process = self.cluster.launch(*words, uid=USERS["alice"])
        self.asked(words, "alice")

    def nonsense(self) -> None:
        """A profile that does not exist."""
        words = ["sbatch", "--gres=mig:9g.90gb:1"]
        self.asked(words[1:], "alice")
        done = self.cluster.try_run(*words, uid=USERS["alice"], stdin="#!/bin/sh\n")
        answer = done.stderr.splitlines()[0] if done.stderr else "accepted"
        self.say(f"  {answer[:150]} ...")
        self.check("nonsense is refused when it is submitted", "unknown MIG profile" in answer)

    def add(self, key: str, title: str, node: str, slices: Sequence[str]) -> DemoJob:
        """Remember a submission."""
        job = DemoJob(key, title, node, tuple(slices))
        self.jobs.append(job)
        return job

    @staticmethod
    def gres(slices: Sequence[str]) -> list[str]:
        """The --gres option for these slices."""
        counts = {name: slices.count(name) for name in slices}
        words = ",".join(f"mig:{name}:{count}" for name, count in counts.items())
        return [f"--gres={words}"] if words else []

    def script(self, key: str, node: str) -> Path:
        """The script of a job, on disk for srun."""
        path = self.cluster.work / f"{key}.sh"
        sim = self.cluster.root / "nodes" / node / "sim"
        path.write_text(SCRIPT.format(key=key, work=self.cluster.work, sim=sim))
        path.chmod(0o755)
        return path

    def let_go(self, *keys: str) -> None:
        """Let jobs, or single tasks of the array, come to their end."""
        for key in keys:
            (self.cluster.work / f"go.{key}").touch()
            if key == "nodes":
                (self.cluster.work / "go.nodes2").touch()

    # -- looking -------------------------------------------------------------

    def lines(self) -> list[list[str]]:
        """What tasks said: key, rank, CUDA_VISIBLE_DEVICES, capability nodes.

        Of these: how many the task could open, how many are its user's, how many there are.
        """
        return [line.split()[1:] for line in self.heard.read_text().splitlines()]

    def seen_by(self, key: str) -> int:
        """How many tasks of a job have spoken."""
        return sum(line[0] == key for line in self.lines())

    def all_seen(self) -> bool:
        """Whether every job has."""
        return all(self.seen_by(job.key) for job in self.jobs)

    def records(self, node: str) -> list[Allocation]:
        """A node's ledger."""
        with closing(self.cluster.archive(node)) as archive:
            return list(archive.find())

    def refusals(self, job: DemoJob) -> list[Allocation]:
        """Refusals of a job."""
        return [
            record
            for record in self.records(job.node)
            if record.phase == phases.REFUSED and record.owner.job_id == job.number
        ]

    def comment(self, job: DemoJob) -> str:
        """A job's comment, once our reason is in it."""
        text = self.cluster.run("scontrol", "show", "job", str(job.number))
        found = re.search(r"\[slurm-mig: [^\]]*\]", text)
        return found[0] if found else ""

    def open_slices(self) -> int:
        """Instances on record as existing, on both nodes."""
        names = [item.name for item in self.cluster.nodes]
        return sum(
            len(record.instances) for name in names for record in self.records(name) if record.open
        )

    def tasks_at(self, *starts: int) -> list[int]:
        """Array tasks whose slices start at these units."""
        held = {
            record.uuids[0]: record.instances[0].start
            for record in self.records("n1")
            if record.phase == phases.ACTIVE
        }
        lines = [line for line in self.lines() if line[0] == "array"]
        return [int(rank) for _, rank, uuid, _ in lines if held.get(uuid) in starts]

    def note_gres(self) -> None:
        """Ask Slurm what it has allocated to each running job: not what was asked for."""
        lines = self.cluster.run("scontrol", "-d", "-o", "show", "job").splitlines()
        for line in lines:
            name = re.search(r" JobName=(\S+)", line)
            held = re.findall(r" GRES=(\S+)", line)
            for job in self.jobs:
                if name and name[1] == job.key and held and "JobState=RUNNING" in line:
                    job.gres = allocated(held[0])

    def watch(self, ready: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait, and draw the slots whenever they change."""
        until = time.monotonic() + seconds
        while not ready():
            self.draw()
            if time.monotonic() > until:
                queue = self.cluster.run("squeue", "-h", "-o", "%i %j %T %r;")
                silent = [job.key for job in self.jobs if not self.seen_by(job.key)]
                raise SandboxFault(
                    f"waited {seconds:g} s in vain for {what}: {queue} silent: {silent}"
                )
            time.sleep(0.15)
        self.draw()

    def draw(self) -> None:
        """One line per GPU, straight from the hardware."""
        rows = []
        for node in self.cluster.nodes:
            machine = Machine(self.cluster.root / "nodes" / node.name / "sim")
            for index, facts in enumerate(machine.gpus):
                board = machine.board(index)
                made = {
                    item.start: (item.size, str(board.row(item.profile_id).name))
                    for item in board.instances
                }
                text = _slots(board.geometry.units, made) if board.mig_current else "MIG off"
                rows.append(f"    {node.name} {facts['name'].split()[1]:<5} {text}")
        picture = "\n".join(rows)
        if picture != self._drawn:
            self._drawn = picture
            click.echo(f"  {time.monotonic() - self.started:5.1f} s\n{picture}")

    # -- checking ------------------------------------------------------------

    def compare(self) -> None:
        """Each job: what it saw, what the ledger says, what Slurm counted."""
        self.title("What each job saw, against ledger and Slurm")
        ledger = [record for item in self.cluster.nodes for record in self.records(item.name)]
        for job in self.jobs:
            self._compare(job, [r for r in ledger if r.node == job.node and r.uuids])

    def _compare(self, job: DemoJob, ledger: list[Allocation]) -> None:
        said = [line for line in self.lines() if line[0] == job.key]
        click.echo(f"  {job.title} ({job.key}); Slurm counted {job.gres or 'no gres'}")
        for _, rank, devices, nodes in said:
            opened, own, all_ = (int(word) for word in nodes.split("/"))
            held = [i for r in ledger for i in r.instances if i.uuid in devices.split(",")]
            names = sorted(item.profile for item in held)
            click.echo(f"    task {rank} saw {'no GPU' if devices == '-' else devices}")
            click.echo(f"      {reach(opened, 2 * len(names), all_)}")
            # With as many slices as tasks each task has its own.
            slices = job.slices if job.tasks == 1 else job.slices[int(rank) : int(rank) + 1]
            self.check(f"{job.key}, task {rank}: the ledger agrees", names == sorted(slices))
            closed = opened == own >= 2 * len(names)
            self.check(f"{job.key}, task {rank}: other users' slices are closed", closed)
        if job.tasks > 1:
            apart = len({devices for _, _, devices, _ in said}) == job.tasks == len(said)
            self.check(f"{job.key}: no two tasks have the same slice", apart)
        self.check(f"{job.key}: Slurm counted the same", job.counted())

    def aftermath(self) -> None:
        """Nothing is left."""
        self.title("Afterwards")
        for job in self.jobs:
            if job.process is not None:
                self.check(f"{job.key}: the command ended well", job.process.wait(30) == 0)
        self.watch(lambda: not self.cluster.run("squeue", "-h").strip(), "an empty queue")
        self.watch(self._taken_down, "the last slices to be taken down")
        for item in self.cluster.nodes:
            node = self.cluster.node(item.name)
            made = [i for gpu in node.driver.gpus() for i in node.driver.instances(gpu)]
            open_ = node.ledger.all_open()
            node.close()
            with closing(self.cluster.archive(item.name)) as archive:
                damage = archive.check()[1]
            self.check(f"{item.name}: no instance on any GPU", made == [])
            self.check(f"{item.name}: no open record", open_ == [])
            self.check(f"{item.name}: every event follows from the one before", not damage)
        states = set(self.cluster.run("sinfo", "-h", "-N", "-o", "%T").split())
        self.check("no node is drained", not any("drain" in state for state in states))

    def _taken_down(self) -> bool:
        """Whether nothing is left that an Epilog has put off."""
        nodes = [self.cluster.node(item.name) for item in self.cluster.nodes]
        left = [record for node in nodes for record in node.ledger.all_open() if record.put_off]
        for node in nodes:
            node.close()
        return not left

    def check(self, claim: str, true: object) -> None:
        """Print a claim with its verdict; a false one fails the demonstration."""
        if not true:
            self.failed.append(claim)
        # What every single task confirms would only fill the screen.
        if not true or ", task" not in claim:
            click.echo(f"    {'ok' if true else 'FAILED'}: {claim}")

    # -- words ---------------------------------------------------------------

    def title(self, text: str) -> None:
        """A heading."""
        click.echo(f"\n== {text}")

    def say(self, text: str) -> None:
        """A sentence."""
        click.echo(f"  {text}")

    def asked(self, words: Sequence[str], user: str) -> None:
        """A command as its user typed it."""
        hidden = ("--parsable", "-o", "-w", "n1", "n2")
        shown = [w for w in words if w not in hidden and not w.endswith((".out", ".sh"))]
        self.say(f"{user}$ {' '.join(shown)}")


def _slots(units: int, made: Mapping[int, tuple[int, str]]) -> str:
    cell, row, unit = 60 // units, "", 0
    while unit < units:
        size, name = made.get(unit, (1, ""))
        width = size * cell - 1
        row += "|" + (name[:width].ljust(width) if name else "." * width)
        unit += size
    return row + "|"


def demonstrate() -> None:
    """Run it; SandboxFault when a check did not hold or something is left running."""
    # Told to end, end in order: the cluster is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A shell without job control starts what goes into the background with this one ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root = scratch("smig-demo")
    cluster = Cluster(root, NODES)
    failed: list[str] = []
    try:
        with cluster:
            demo = Demo(cluster)
            demo.run()
            failed = demo.failed
        left = list(working_in(root))
        click.echo(f"    {'FAILED' if left else 'ok'}: the cluster is stopped, nothing runs")
        if left:
            failed.append(f"processes {left} are left")
    finally:
        cluster.remove()
    if failed:
        raise SandboxFault(f"{len(failed)} checks failed: {'; '.join(failed)}")
    click.echo(f"\nAll checks held. {time.monotonic() - demo.started:.0f} s")
