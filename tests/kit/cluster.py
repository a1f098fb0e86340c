"""A private Slurm, and words to talk to it."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.sandbox import Cluster, SandboxNode, scratch
from slurm_mig.sandbox.cluster import USERS
from slurm_mig.simulator import Machine
from slurm_mig.transaction import by_hand
from tests.kit.gpus import A30, H100, RTX
from tests.kit.ledgers import everything
from tests.kit.site import with_hooks
from tests.kit.ways import helped, helper

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation

ALICE, BOB = USERS["alice"], USERS["bob"]
NODES = (SandboxNode("n1", ((H100, 2),)), SandboxNode("n2", ((RTX, 1), (A30, 1))))

#: Lines of each log that a failure shows.
STORY = 40
PREFIX = Path(os.environ["SLURM_PREFIX"]) if os.environ.get("SLURM_PREFIX") else None


def find_daemon(name: str) -> str | None:
    places = [str(PREFIX / "sbin")] if PREFIX else []
    return shutil.which(name, path=":".join([*places, "/usr/sbin", "/usr/bin"]))


def enable_mig(cluster: Cluster) -> None:
    """Switch MIG mode on where a Prolog may not, as an administrator does once."""
    for item in cluster.nodes:
        node = cluster.node(item.name)
        for gpu in node.driver.gpus():
            by_hand.set_mode(node.bench(), gpu, on=True)
        node.close()


@dataclass
class Site:
    """A running cluster in the words of these tests."""

    cluster: Cluster
    #: What `block` made: node, GPU, GPU instance id.
    strange: list[tuple[str, int, int]] = field(default_factory=list)

    def run(self, *command: str, uid: int = 0) -> str:
        return self.cluster.run(*command, uid=uid)

    def sbatch(self, *options: str, script: str = "sleep 300", uid: int = ALICE) -> int:
        """Submit a script; its output lands in `<job>.out` of the work directory."""
        out = ["-o", "%j.out", "--open-mode=append", "--parsable"]
        text = f"#!/bin/sh\n{script}\n"
        return int(self.cluster.run("sbatch", *out, *options, uid=uid, stdin=text))

    def output(self, job: int | str) -> str:
        path = self.cluster.work / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def until(self, ready: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Wait for something that Slurm does in its own time."""
        end, pause = time.monotonic() + seconds, 0.05
        while not ready():
            if time.monotonic() >= end:
                pytest.fail(f"{what}: not within {seconds} s\n{self.story()}", pytrace=False)
            time.sleep(pause)
            # Most questions start a command of Slurm's: a long wait asks less often.
            pause = min(1.2 * pause, 0.5)

    def story(self) -> str:
        """What whoever reads a failure elsewhere needs: the jobs, the nodes, the logs' ends."""
        lines = [self.cluster.try_run("squeue", "-a", "-t", "all", "-o", "%i %T %r %R").stdout]
        lines.append(self.cluster.try_run("sinfo", "-N", "-o", "%N %T %E").stdout)
        for log in sorted((self.cluster.root / "log").iterdir()):
            lines += [f"-- {log.name}", *log.read_text("utf-8", "replace").splitlines()[-STORY:]]
        return "\n".join(lines)

    def state(self, job: int | str) -> str:
        """A job's state; empty once slurmctld has forgotten it."""
        done = self.cluster.try_run("squeue", "-h", "-a", "-t", "all", "-j", str(job), "-o", "%T")
        return " ".join(sorted(set(done.stdout.split())))

    def wait(self, job: int | str, *states: str, seconds: float = 120) -> str:
        self.until(lambda: self.state(job) in states, f"job {job} to be {states}", seconds)
        return self.state(job)

    def show(self, job: int | str, field: str) -> str:
        """One field of `scontrol show job`."""
        text = self.run("scontrol", "show", "job", "-d", str(job))
        match = re.search(rf"^\s*(?:.* )?{field}=(.*?)(?= [A-Z][A-Za-z]*=|$)", text, re.MULTILINE)
        return match[1] if match else ""

    def node_state(self, name: str = "n1") -> str:
        # All nodes: asked for one, slurmctld 22.05 goes on telling "mixed" of a job that has ended.
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        return next(line.split()[1] for line in lines if line.split()[0] == name)

    def in_service(self, name: str = "n1") -> bool:
        """Not drained, not down: jobs may still be sent there."""
        return not re.search("drain|down|inval", self.node_state(name))

    def drain_reason(self, name: str = "n1") -> str:
        return self.run("sinfo", "-h", "-N", "-n", name, "-o", "%E").strip()

    def records(self, name: str = "n1") -> list[Allocation]:
        node = self.cluster.node(name)
        try:
            return everything(node.ledger)
        finally:
            node.close()

    def record(self, job: int, name: str = "n1") -> Allocation:
        """The last record of a job on a node."""
        return [item for item in self.records(name) if item.owner.job_id == job][-1]

    def machine(self, name: str = "n1") -> Machine:
        return Machine(self.cluster.root / "nodes" / name / "sim")

    def made(self, name: str = "n1", gpu: int = 0) -> list[str]:
        """What the hardware of a node has."""
        board = self.machine(name).board(gpu)
        return sorted(f"{board.row(i.profile_id).name}@{i.start}" for i in board.instances)

    def block(self, gpu: int = 0, name: str = "n1", starts: tuple[int, ...] = (3, 4)) -> None:
        """Strange instances in both halves of a GPU: shards are free, a 3g has no slot."""
        from slurm_mig.mig.geometry import Placement

        # Where a put-off teardown has destroyed a slice and not yet said so, ours in its place
        # with its id would be taken for it, and destroyed.
        self.until(lambda: not self.releasing(name), "all teardowns")
        with self.machine(name).change(gpu) as board:
            # A whole-GPU job of an earlier test may have left MIG mode off.
            board.set_mode(True, busy=False)
            for start in starts:
                made = board.create(19, Placement(start, 1), busy=False)
                self.strange.append((name, gpu, made.gi_id))

    def unblock(self, name: str = "n1") -> None:
        """Take away what `block` made, and no job's instance that has no compute instance yet."""
        for gpu in range(len(self.machine(name).gpus)):
            with self.machine(name).change(gpu) as board:
                board.instances[:] = [
                    item
                    for item in board.instances
                    if item.compute or (name, gpu, item.gi_id) not in self.strange
                ]
        self.strange = [item for item in self.strange if item[0] != name]

    def settle(self) -> None:
        """No job, no completing node, none that a restarted slurmctld has not heard of yet."""
        for user in USERS:
            self.run("scancel", "-u", user)
        self.until(lambda: not self.run("squeue", "-h").strip(), "no jobs")
        busy = re.compile(r"comp|unk|\*")
        # An anchor of a site that publishes is down for ever.
        names = ",".join(item.name for item in self.cluster.nodes)
        ours = ("sinfo", "-h", "-N", "-n", names, "-o", "%T")
        self.until(lambda: not busy.search(self.run(*ours)), "all nodes")
        each = [item.name for item in self.cluster.nodes]
        self.until(lambda: not any(map(self.releasing, each)), "all teardowns")

    def releasing(self, name: str) -> bool:
        """Whether an Epilog has put off what is still to be taken down."""
        return any(item.open and item.put_off for item in self.records(name))

    def check_clean(self) -> None:
        """Nothing of the test is left: hardware, ledger, files, nodes."""
        for item in self.cluster.nodes:
            for gpu in range(len(self.machine(item.name).gpus)):
                assert self.made(item.name, gpu) == []
            assert [record for record in self.records(item.name) if record.open] == []
            run = self.cluster.root / "nodes" / item.name / "run"
            assert not [*run.glob("[ej]*/*"), *run.glob("leases/*")]
            assert self.in_service(item.name), self.drain_reason(item.name)


@contextmanager
def running(nodes: Sequence[SandboxNode], **options: Any) -> Iterator[Cluster]:
    """A cluster with MIG mode on; stopped and removed whatever happens."""
    options["config"] = with_hooks(options.get("config", ""))
    made = Cluster(scratch(), nodes, prefix=PREFIX, **options)
    try:
        with made, helpers(made):
            enable_mig(made)
            yield made
    finally:
        made.remove()


@contextmanager
def helpers(made: Cluster) -> Iterator[None]:
    """Each node has one, where hooks run in that way."""
    with ExitStack() as stack:
        for item in made.nodes if helped() else ():
            home = made.root / "nodes" / item.name
            extra = made.environ() | {"SLURMD_NODENAME": item.name}
            del extra["LD_PRELOAD"]
            stack.enter_context(helper(home / "config.toml", home / "run", **extra))
        yield


def launch(site: Site, *command: str, uid: int = ALICE) -> subprocess.Popen[str]:
    """An interactive command that goes on while the test looks."""
    return site.cluster.launch(*command, uid=uid)
