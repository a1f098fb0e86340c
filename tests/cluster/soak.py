"""A soak on real Slurm: jobs of all shapes, and everything that goes wrong at random.

Run as root: `make soak JOBS=2000 SEED=1`, or `python -m tests.cluster.soak --jobs 2000`.
A private cluster of two nodes with simulated GPUs and a database of its own takes
jobs of three users, while jobs are cancelled and requeued, hooks killed and hung,
daemons killed and restarted, drivers made to fail. In the end nothing may be left,
and Slurm's list of runs must equal the ledger row by row. Exit code 1 otherwise.

With `--trouble` (`make soak VARIANT=--trouble`) nothing is broken, but disks and slurmctld are
slow, run directories full, and clocks jump: then no node may be drained at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm_mig.hooks.run import DRAIN_PAUSE, DRAIN_TRIES
from slurm_mig.sandbox import SandboxNode, scratch
from slurm_mig.sandbox.cluster import USERS
from slurm_mig.sandbox.daemons import start_daemon
from slurm_mig.simulator import Machine
from slurm_mig.slurm.commands import CommandClient
from slurm_mig.slurm.hostlist import expand
from tests.cluster.accounted import MISSING, Accounted
from tests.cluster.soak_checks import (
    REPEATED,
    Drain,
    Injected,
    Run,
    Seen,
    Start,
    Verdict,
    causes,
    compare,
)
from tests.cluster.soak_plan import MISCHIEF, NODES, TROUBLE, Act, Submit, plan
from tests.cluster.soak_trouble import LASTS, Trouble, without_jump
from tests.kit.cluster import PREFIX, Site, enable_mig
from tests.kit.ledgers import everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation

#: Seconds between two looks at the queue, and two at the nodes.
LOOK = 0.7
LOOK_NODES = 1.5
#: Refusals of `scontrol release` before a job is given up.
RELEASES = 3

#: Tries of a mischief that found nobody to strike, in seconds.
PATIENCE = 20.0

#: Seconds after a fault in which a hook that it struck may still drain its node.
AFTERMATH = 20.0

SCRIPT = """#!/bin/sh
echo "begin $SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}} $SLURMD_NODENAME" \\
    "${{CUDA_VISIBLE_DEVICES:--}} $(date +%s.%N)"
sleep {seconds}
echo "end $SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}} $SLURMD_NODENAME - $(date +%s.%N)"
"""


@dataclass(frozen=True)
class Queued:
    """A line of squeue."""

    job: int
    reference: str
    state: str
    nodes: str
    reason: str


class Soak:
    """One cluster, one plan, one loop; daemons are started by this thread alone."""

    def __init__(self, args: argparse.Namespace, root: Path) -> None:
        self.args = args
        self.steps = [
            step
            for step in plan(args.seed, args.jobs, trouble=args.trouble)
            if isinstance(step, Submit) or step.kind not in args.without
        ]
        self.root = root
        latency = {"create-gi": 20.0, "create-ci": 10.0, "destroy-ci": 10.0, "destroy-gi": 20.0}
        nodes = [
            SandboxNode(name, tuple((gpu, 1) for gpu in gpus), latency)
            for name, gpus in NODES.items()
        ]
        self.cluster = Accounted(
            root,
            nodes,
            prefix=PREFIX,
            compute_parts=("*",),
            # Jobs are forgotten soon, and with them what slurmd reports of them again and again.
            slurm_conf=f"PrologEpilogTimeout={args.timeout}\nMinJobAge=20\n"
            f"SlurmdTimeout={args.away - 10}\nUnkillableStepTimeout=120\n",
            config=f"retry_delay_max = 20\n[hooks]\ndestroy_timeout = 3\n{args.hooks}",
        )
        self.trouble = Trouble(root, NODES) if args.trouble else None
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.injected: list[Injected] = []
        self.drains: list[Drain] = []
        self.waiting: list[tuple[float, Act]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.clients: list[tuple[float, subprocess.Popen[str]]] = []
        self.helpers: list[subprocess.Popen[bytes]] = []
        #: How often slurmctld refused to release a job.
        self.releases: Counter[str] = Counter()
        self.queue: list[Queued] = []
        self.away: set[str] = set()
        self.rules: dict[str, tuple[float, Act]] = {}
        self.sacct = ""
        self.began = time.time()
        self.looked = self.looked_nodes = self.reconciled = 0.0

    # -- set up --------------------------------------------------------------

    def prepare(self) -> None:
        """MIG mode on; hooks say when they start; users belong to an account."""
        if self.trouble:
            self.trouble.prepare()
        enable_mig(self.cluster)
        for user in ("bob", "carol"):
            self.cluster.run("sacctmgr", "-i", "add", "user", user, "account=physics")
        log = self.root / "log/hooks"
        for name in ("prolog", "epilog"):
            hook = self.root / "hooks" / name
            first, rest = hook.read_text().split("\n", 1)
            note = (
                f'read up rest </proc/uptime; echo "start {name} $SLURMD_NODENAME $SLURM_JOB_ID '
                f'${{SLURM_JOB_RESTART_COUNT:-0}} $up ${{SLURM_JOB_GPUS:--}}" >>{log}'
            )
            if self.trouble:
                note = f"{note}\n{self.trouble.line()}"
            hook.write_text(
                f"{first}\n{note}\n{rest.replace('</dev/null', f'</dev/null 2>>{log}')}"
            )

    def machine(self, node: str) -> Machine:
        return Machine(self.root / "nodes" / node / "sim")

    # -- the loop ------------------------------------------------------------

    def run(self) -> None:
        """Every step of the plan, then until nothing is left in the queue."""
        started = time.monotonic()
        for number, step in enumerate(self.steps):
            if self.args.minutes and time.monotonic() - started > 60 * self.args.minutes:
                self.counts["steps left out for lack of time"] = len(self.steps) - number
                break
            while len(self.queue) >= self.args.busy:
                self.turn()
            if isinstance(step, Submit):
                self.submit(step)
            else:
                self.waiting.append((time.monotonic() + PATIENCE, step))
            self.turn()
            if number % 100 == 99:
                self.progress(number + 1, started)
        self.finish()
        self.progress(len(self.steps), started)
        self.seconds = time.monotonic() - started

    def progress(self, steps: int, started: float) -> None:
        spent = time.monotonic() - started
        print(
            f"{spent:6.0f} s  step {steps}/{len(self.steps)}  submitted {self.counts['submitted']}"
            f"  in the queue {len(self.queue)}  drains {len(self.drains)}",
            flush=True,
        )

    def turn(self) -> None:
        """Look at the queue and the nodes, do what is due."""
        time.sleep(0.02)
        now = time.monotonic()
        if now - self.looked >= LOOK:
            self.look()
        for item in [item for item in self.later if item[0] <= now]:
            self.later.remove(item)
            item[1]()
        for until, act in list(self.waiting):
            if self.do(act):
                self.waiting.remove((until, act))
                self.counts[act.kind] += 1
            elif now > until:
                self.waiting.remove((until, act))
                self.counts[f"{act.kind}, nobody there"] += 1
        if now - self.looked_nodes >= LOOK_NODES:
            self.look_at_nodes()
        if now - self.reconciled >= self.args.reconcile:
            self.reconcile()
        self.clients = [(at, item) for at, item in self.clients if item.poll() is None]
        self.helpers = [item for item in self.helpers if item.poll() is None]

    def look(self) -> None:
        """The queue as slurmctld has it; while it is down, as it was."""
        self.looked = time.monotonic()
        done = self.cluster.try_run("squeue", "-h", "-a", "-r", "-o", "%A|%i|%T|%N|%r")
        if done.returncode == 0:
            rows = [line.split("|", 4) for line in done.stdout.splitlines()]
            self.queue = [Queued(int(row[0]), *row[1:]) for row in rows]

    def look_at_nodes(self) -> None:
        """Note each drain, and bring the node back, as an administrator would."""
        self.looked_nodes = time.monotonic()
        self.end_rules()
        for line in self.cluster.try_run("sinfo", "-h", "-N", "-o", "%N|%T|%E").stdout.splitlines():
            node, state, reason = line.split("|", 2)
            if not re.search("drain|down|fail|inval", state) or node in self.away:
                continue
            self.drains.append(Drain(node, state, reason, time.time()))
            if "*" not in state:
                self.cluster.try_run("scontrol", "update", f"nodename={node}", "state=resume")
        for job in self.queue:
            if job.state == "PENDING" and job.reason == "launch failed requeued held":
                self.release(job)

    def release(self, job: Queued) -> None:
        """Let a job go that is held since its Prolog failed.

        A slurmctld that is restarted while slurmdbd is about to answer loses the job's
        database index, and refuses to change the job ever after: it can only be cancelled.
        """
        if self.releases[job.reference] >= RELEASES:
            self.cluster.try_run("scancel", job.reference)
            self.counts["cancelled, for slurmctld would not release it"] += 1
            return
        done = self.cluster.try_run("scontrol", "release", job.reference)
        self.releases[job.reference] += done.returncode != 0
        self.counts["released after a failed Prolog"] += done.returncode == 0

    # -- submissions ---------------------------------------------------------

    def submit(self, step: Submit) -> None:
        uid = USERS[step.user]
        script = SCRIPT.format(seconds=step.seconds)
        out = f"s{step.number}-%j-%N.out"
        self.counts["submitted"] += step.jobs
        self.counts[f"shape {step.shape}"] += 1
        if step.shape in ("srun", "salloc"):
            command = ["srun", "-o", out, *step.options, "/bin/sh", "-c", script]
            if step.shape == "salloc":
                command = ["salloc", *step.options, "srun", "-o", out, "/bin/sh", "-c", script]
            client = self.cluster.launch(*command, uid=uid)
            self.clients.append((time.monotonic(), client))
            return
        if step.shape == "two-nodes":
            path = self.cluster.work / f"s{step.number}.sh"
            path.write_text(script)
            path.chmod(0o755)
            script = f"#!/bin/sh\nexec srun -o {out} {path}\n"
        options = ["-o", out, "--open-mode=append", "--parsable", *step.options]
        done = self.cluster.try_run("sbatch", *options, uid=uid, stdin=script)
        if step.shape == "bad":
            self.counts["turned away at submission"] += done.returncode != 0
            if done.returncode == 0:
                raise SystemExit(f"a bad request was taken: {step.options}")
        elif done.returncode != 0:
            # slurmctld is being restarted: the user would submit again.
            self.counts["submission failed, repeated"] += 1
            self.counts["submitted"] -= step.jobs
            self.counts[f"shape {step.shape}"] -= 1
            self.refusals[f"{step.options} {done.stderr.strip().splitlines()[-1][-60:]}"] += 1
            self.later.append((time.monotonic() + 2, lambda: self.submit(step)))

    # -- mischief ------------------------------------------------------------

    def do(self, act: Act) -> bool:
        """Try one mischief; False when there is nobody to strike now."""
        method: Callable[[Act], bool] = getattr(self, f"do_{act.kind.replace('-', '_')}")
        return method(act)

    def _among(self, act: Act, *states: str, reason: str | None = None) -> Queued | None:
        found = [
            job
            for job in self.queue
            if job.state in states and (reason is None or job.reason == reason)
        ]
        return found[int(act.pick * len(found))] if found else None

    def _cancel(self, act: Act, *states: str, reason: str | None = None) -> bool:
        if self._among(act, *states, reason=reason) is None:
            return False
        self.look()
        job = self._among(act, *states, reason=reason)
        if job is not None:
            self.cluster.try_run("scancel", job.reference)
        return job is not None

    def do_cancel_pending(self, act: Act) -> bool:
        return self._cancel(act, "PENDING")

    def do_cancel_prolog(self, act: Act) -> bool:
        return self._cancel(act, "RUNNING", "CONFIGURING", reason="Prolog")

    def do_cancel_running(self, act: Act) -> bool:
        return self._cancel(act, "RUNNING")

    def do_cancel_completing(self, act: Act) -> bool:
        return self._cancel(act, "COMPLETING")

    def do_requeue(self, act: Act) -> bool:
        job = self._among(act, "RUNNING")
        if job is None:
            return False
        return self.cluster.try_run("scontrol", "requeue", job.reference).returncode == 0

    def do_kill_hook(self, act: Act) -> bool:
        """SIGKILL from outside, whatever the hook is at."""
        hooks = [(pid, node) for pid, node in self.hooks() if node not in self.away]
        if not hooks:
            return False
        pid, node = hooks[int(act.pick * len(hooks))]
        since = time.time()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.note("kill-hook", node, since, since + self.args.timeout + AFTERMATH)
        return True

    def hooks(self) -> list[tuple[int, str]]:
        """Pid and node of every hook of this cluster that runs Python now."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"slurm_mig.hooks" not in (entry / "cmdline").read_bytes():
                    continue
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                environ = dict(item.partition("=")[::2] for item in variables)
                if environ.get("SLURM_MIG_CONFIG", "").startswith(f"{self.root}/"):
                    found.append((int(entry.name), environ.get("SLURMD_NODENAME", "")))
        return found

    def do_kill_at_call(self, act: Act) -> bool:
        return self._rule(act, act.detail)

    def do_driver_error(self, act: Act) -> bool:
        return self._rule(act, f"error:{act.detail}")

    def do_hang(self, act: Act) -> bool:
        return self._rule(act, f"hang:{self.args.timeout + 5}")

    def _rule(self, act: Act, effect: str) -> bool:
        """One injected fault on a node at a time; it ends when it has struck, or not in time."""
        if act.node in self.rules or act.node in self.away:
            return False
        self._write_rules(
            act.node,
            [{"call": act.call, "effect": effect, "skip": act.skip, "times": 1, "seen": 0}],
        )
        self.rules[act.node] = (time.time(), act)
        return True

    def _write_rules(self, node: str, rules: list[dict[str, Any]]) -> None:
        # In one piece: hooks read it at every call. Never taken away: they may be about to.
        path = self.root / "nodes" / node / "sim/faults.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(rules))
        fresh.replace(path)

    def end_rules(self, *, all_of_them: bool = False) -> None:
        for node, (since, act) in list(self.rules.items()):
            text = (self.root / "nodes" / node / "sim/faults.json").read_text()
            # A hook that counts a call is writing just now.
            struck = bool(text) and json.loads(text)[0]["seen"] > act.skip
            if not (struck or all_of_them or time.time() > since + PATIENCE):
                continue
            self._write_rules(node, [])
            del self.rules[node]
            until = time.time() + self.args.timeout + AFTERMATH
            self.note(act.kind, node, since, until, f"{act.call} {act.detail}")
            self.counts[f"{act.kind}, struck"] += struck

    def note(self, kind: str, node: str, since: float, until: float, detail: str = "") -> None:
        self.injected.append(Injected(kind, node, since, until, detail))

    def do_hold_slice(self, act: Act) -> bool:
        """A process of the user's keeps a slice busy beyond its job's end."""
        machine = self.machine(act.node)
        uuids = [
            board.mig_uuid(item, compute)
            for board in map(machine.board, range(len(machine.gpus)))
            for item in board.instances
            for compute in item.compute
        ]
        if not uuids:
            return False
        process = subprocess.Popen(["sleep", str(2 * act.seconds)], cwd=self.root)
        self.helpers.append(process)
        machine.hold(process.pid, uuids[int(act.pick * len(uuids))])
        return True

    def do_admin_slice(self, act: Act) -> bool:
        """An administrator makes a slice that Slurm knows nothing of: jobs are refused."""
        made = self._tool(act.node, "create", "--json", "1g.10gb", "--gpu", str(int(2 * act.pick)))
        if made.returncode != 0:
            return False

        def destroy() -> None:
            uuid = json.loads(made.stdout)["instances"][0]["uuid"]
            if self._tool(act.node, "destroy", uuid).returncode != 0:
                self.later.append((time.monotonic() + 2, destroy))

        self.later.append((time.monotonic() + 2 * act.seconds, destroy))
        return True

    def do_slow_disk(self, act: Act) -> bool:
        return self._trouble(act)

    def do_clock_jump(self, act: Act) -> bool:
        return self._trouble(act)

    def do_full_run(self, act: Act) -> bool:
        return self._trouble(act)

    def _trouble(self, act: Act) -> bool:
        trouble, since = self.trouble, time.time()
        if trouble is None or not trouble.begin(act):
            return False

        def end() -> None:
            trouble.end(act)
            if act.kind == "full-run":
                self.note(act.kind, act.node, since, time.time() + AFTERMATH)

        self.later.append((time.monotonic() + LASTS * act.seconds, end))
        return True

    def do_late_controller(self, act: Act) -> bool:
        """Sometimes for longer than anybody waits for its answer (MessageTimeout, 10 s)."""
        daemon = self.cluster._daemons["slurmctld"]
        daemon.send_signal(signal.SIGSTOP)
        # Not by the loop: it asks slurmctld, too.
        threading.Timer(4 * act.seconds, daemon.send_signal, (signal.SIGCONT,)).start()
        return True

    def _command(self, node: str, *words: str) -> tuple[list[str], dict[str, str]]:
        config = self.root / "nodes" / node / "config.toml"
        command = [sys.executable, "-m", "slurm_mig", *words]
        trouble = self.trouble.environ(node) if self.trouble else {}
        if "LD_PRELOAD" in trouble:
            trouble["LD_PRELOAD"] += f":{self.cluster.environ()['LD_PRELOAD']}"
        return command, {"SLURM_MIG_CONFIG": str(config), "SLURMD_NODENAME": node, **trouble}

    def _tool(self, node: str, *words: str) -> subprocess.CompletedProcess[str]:
        command, variables = self._command(node, *words)
        return self.cluster.try_run(*command, timeout=120, **variables)  # type: ignore[arg-type]

    def reconcile(self) -> None:
        """As from cron; two nodes in turn."""
        self.reconciled = time.monotonic()
        self.counts["reconcile runs"] += 1
        node = list(NODES)[self.counts["reconcile runs"] % len(NODES)]
        command, variables = self._command(node, "reconcile")
        log = self.root / "log/reconcile"
        self.helpers.append(start_daemon(command, log, self.cluster.environ() | variables))

    def do_slurmd_kill(self, act: Act) -> bool:
        """Kill -9 while a Prolog or a job runs there, and start it again at once."""
        wanted = {"prolog": ("Prolog",), "running": ("None",)}.get(act.detail)
        there = [
            job
            for job in self.queue
            if act.node in _expanded(job.nodes) and (wanted is None or job.reason in wanted)
        ]
        if not there or act.node in self.away:
            return False
        since = time.time()
        self.cluster.kill_daemon(act.node)
        self.cluster.start_slurmd(act.node)
        self.note("slurmd-kill", act.node, since, since + self.args.away + AFTERMATH)
        return True

    def do_slurmd_away(self, act: Act) -> bool:
        """Gone for longer than SlurmdTimeout: its jobs are requeued, and it returns."""
        if self.away:
            return False
        self.away.add(act.node)
        since = time.time()
        self.cluster.kill_daemon(act.node)

        def back() -> None:
            self.cluster.start_slurmd(act.node)
            self.away.remove(act.node)
            self.note("slurmd-away", act.node, since, time.time() + AFTERMATH)

        self.later.append((time.monotonic() + self.args.away + 5, back))
        return True

    def do_slurmctld_restart(self, act: Act) -> bool:
        self.cluster.stop_daemon("slurmctld")
        self._start_slurmctld()
        return True

    def do_slurmctld_kill(self, act: Act) -> bool:
        if not (self.cluster.root / "state/assoc_usage").exists():
            # From 25.05 on it does not start again if it was killed before it saved that once.
            self.do_slurmctld_restart(act)
        since = time.time()
        self.cluster.kill_daemon("slurmctld")
        self._start_slurmctld()
        self.note("slurmctld-kill", "*", since, time.time() + AFTERMATH)
        return True

    def _start_slurmctld(self) -> None:
        self.cluster.start_slurmctld()
        until = time.monotonic() + 60
        while self.cluster.try_run("scontrol", "ping").stdout.find("is UP") < 0:
            if time.monotonic() > until:
                raise SystemExit("slurmctld does not come up again")
            time.sleep(0.1)
        self.looked = 0.0

    # -- the end -------------------------------------------------------------

    def finish(self) -> None:
        """Let the queue drain; what would wait for ever is cancelled after a while."""
        self.look()
        patience = time.monotonic() + self.args.drain
        said = time.monotonic()
        while (self.queue or self.later or self.rules) and time.monotonic() < patience:
            self.turn()
            self.finish_held()
            if time.monotonic() > said + 20:
                said = time.monotonic()
                self.look()
                words = Counter(f"{job.state} {job.reason}" for job in self.queue)
                print(f"        still there: {dict(words)}", flush=True)
        self.end_rules(all_of_them=True)
        self.counts["cancelled at the end"] += len(self.queue)
        for user in USERS:
            self.cluster.try_run("scancel", "-u", user)
        patience = time.monotonic() + 240
        while self.queue and time.monotonic() < patience:
            self.turn()
        for _, client in self.clients:
            # It waits for a job that a killed slurmctld no longer knows, or for a held one.
            self.counts["srun that did not end"] += 1
            client.kill()
            client.wait(60)
        for helper in self.helpers:
            helper.wait(60)
        # A teardown whose drain slurmctld does not hear says it again for a minute.
        patience = time.monotonic() + DRAIN_TRIES * DRAIN_PAUSE + self.args.timeout
        while self.hooks() and time.monotonic() < patience:
            time.sleep(0.1)
        self.look_at_nodes()

    def finish_held(self) -> None:
        """Jobs that were held for their own fault wait for nobody here."""
        for job in self.queue:
            if job.state == "PENDING" and re.search("held|dependency", job.reason, re.IGNORECASE):
                self.cluster.try_run("scancel", job.reference)
                self.counts["held, cancelled at the end"] += 1

    def left_over(self) -> Iterator[str]:
        """What must not be there after the last reconcile."""
        for job in self.queue:
            yield f"job {job.reference} is still {job.state} ({job.reason})"
        for node in NODES:
            done = self._tool(node, "reconcile")
            if done.returncode != 0:
                yield f"{node}: reconcile ended with {done.returncode}: {done.stdout}{done.stderr}"
            check = self._tool(node, "audit", "--check")
            if check.returncode != 0:
                yield f"{node}: audit --check: {check.stderr}"
            yield from self._left_on(node)
        for pid, node in self.hooks():
            yield f"{node}: hook {pid} still runs"
        for path in self.cluster.root.glob("nodes/*/run/leases/*"):
            yield f"leases left: {path}"

    def _left_on(self, node: str) -> Iterator[str]:
        machine = self.machine(node)
        for index in range(len(machine.gpus)):
            board = machine.board(index)
            for item in board.instances:
                yield f"{node} GPU {index}: instance {board.row(item.profile_id).name}@{item.start}"
            if not board.mig_current:
                yield f"{node} GPU {index}: MIG mode is off"
        for path in (machine.tree.dev / "nvidia-caps").iterdir():
            yield f"{node}: device node {path.name}"
        run = self.root / "nodes" / node / "run"
        for path in [*run.glob("[ej]*/*"), *run.glob("leases/*"), *run.glob("locks/*.holder")]:
            yield f"{node}: file {path.relative_to(run)}"
        for record in self.records(node):
            if record.open:
                yield f"{node}: record {record.number} of {record.owner} is {record.phase}"
        state = self.last_state(node)
        if state != "idle":
            yield f"{node} is {state}"

    def last_state(self, node: str) -> str:
        """A node's state, once a restarted slurmctld has heard of it."""
        until = time.monotonic() + 60
        while True:
            state = Site(self.cluster).node_state(node)
            if not re.search(r"comp|unk|\*", state) or time.monotonic() > until:
                return state
            time.sleep(0.5)

    # -- what is compared ----------------------------------------------------

    def records(self, node: str) -> list[Allocation]:
        found = self.cluster.node(node)
        try:
            history = everything(found.ledger)
        finally:
            found.close()
        return [
            replace(
                record,
                created=without_jump(record.created, self.began),
                ended=record.ended and without_jump(record.ended, self.began),
            )
            for record in history
        ]

    def active(self, node: str) -> set[int]:
        """Records that were active once."""
        database = self.root / "nodes" / node / "state/ledger.db"
        with contextlib.closing(sqlite3.connect(database)) as db:
            rows = db.execute("SELECT DISTINCT allocation FROM event WHERE kind = 'active'")
            return {int(row[0]) for row in rows}

    def runs(self, since: float) -> list[Run]:
        """Slurm's own list, a row for each node of a run that started."""
        os.environ["SLURM_CONF"] = self.cluster.environ()["SLURM_CONF"]
        client = CommandClient(self.cluster._find("scontrol").parent, 60)
        found = []
        before: Counter[tuple[int, str]] = Counter()
        for row in client.accounting(since, time.time() + 60):
            restart = before[row.job_id, row.user]
            before[row.job_id, row.user] += 1
            end = row.end if row.end is not None else time.time()
            # Requeued before slurmdbd had heard that it started, if it did.
            start = row.start if row.start is not None else end
            if row.nodes in ("", "None assigned"):
                continue
            nodes = expand(row.nodes)
            mig = {
                name.removeprefix("mig:"): count // len(nodes)
                for name, count in row.gres.items()
                if name.startswith("mig:")
            }
            gpus = row.gres.get("gpu", 0) // len(nodes)
            found += [
                Run(row.job_id, restart, node, row.user, row.state, start, end, mig, gpus)
                for node in nodes
            ]
        return found

    def starts(self) -> list[Start]:
        """Every hook that slurmd started, from the note at the head of the script."""
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        text = (self.root / "log/hooks").read_text(errors="replace")
        pattern = r"^start (\w+) (\S+) (\d+) (\d+) ([\d.]+) ([-\d,]+)$"
        return [
            Start(hook, node, int(job), int(restart), boot + float(up), gpus.strip("-"))
            for hook, node, job, restart, up, gpus in re.findall(pattern, text, re.MULTILINE)
        ]

    def refusals_of(self, node: str) -> set[tuple[int, int]]:
        """Runs refused by their Prolog, by its own line: some before a GPU was known."""
        text = (self.root / "log/hooks").read_text(errors="replace")
        pattern = rf"prolog job=(\d+) restart=(\d+) .*node={node} .*refused: "
        return {(int(job), int(run)) for job, run in re.findall(pattern, text)}

    def seen(self) -> list[Seen]:
        """What scripts wrote, from every output file."""
        found: dict[tuple[int, int, str], Seen] = {}
        pattern = r"^(begin|end) (\d+) (\d+) (\S+) (\S+) ([\d.]+)$"
        for path in self.cluster.work.glob("s*.out"):
            text = path.read_text(errors="replace")
            for word, job, restart, node, visible, at in re.findall(pattern, text, re.MULTILINE):
                key = (int(job), int(restart), node)
                if word == "begin":
                    found[key] = Seen(
                        *key, visible.replace("-", "", visible == "-"), float(at), None
                    )
                elif key in found:
                    found[key] = replace(found[key], end=float(at))
        return list(found.values())

    def repeated(self) -> Iterator[Injected]:
        """When slurmd told slurmctld once more of a Prolog that had failed."""
        pattern = r"^\[([\dT:-]+)[\d.]*\] _rpc_prolog: Retrying prolog complete RPC"
        for node in NODES:
            text = (self.root / "log" / node).read_text(errors="replace")
            for stamp in re.findall(pattern, text, re.MULTILINE):
                at = time.mktime(time.strptime(stamp, "%Y-%m-%dT%H:%M:%S"))
                # It waits 15 s for an answer; the last try, which is answered, has no line.
                yield Injected(REPEATED, node, at - 1, at + 20)

    def verdict(self, since: float) -> Verdict:
        """All checks."""
        self.injected += self.repeated()
        left = list(self.left_over())
        records = {node: self.records(node) for node in NODES}
        runs = self.runs(since)
        total = Verdict()
        for node in NODES:
            part = compare(
                [run for run in runs if run.node == node],
                records[node],
                frozenset(self.active(node)),
                self.starts(),
                [item for item in self.seen() if item.node == node],
                self.injected,
                self.refusals_of(node),
            )
            total.rows += part.rows
            total.violations += part.violations
        total.violations += left
        self.causes: Counter[str] = Counter()
        for drain, cause in zip(self.drains, causes(self.drains, self.injected), strict=True):
            self.causes[cause or "unexplained"] += 1
            if cause is None:
                total.violations.append(f"{drain.node} {drain.state}, unexplained: {drain.reason}")
        self.sacct = self.cluster.run(
            "sacct", "-n", "-P", "-X", "-D", "-a", "-S", "now-1days", "-o",
            "JobIDRaw,JobID,User,NodeList,State,Submit,Start,End,AllocTRES",
        )  # fmt: skip
        self.jobs = len({run.job for run in runs})
        self.outcomes = Counter(run.state for run in runs)
        self.phases = Counter(record.phase for node in NODES for record in records[node])
        return total

    def keep(self, directory: Path) -> None:
        """What an investigation needs."""
        shutil.copytree(self.root / "log", directory / "log", dirs_exist_ok=True)
        shutil.copytree(self.root / "work", directory / "work", dirs_exist_ok=True)
        for node in NODES:
            state = self.root / "nodes" / node / "state"
            shutil.copytree(state, directory / node, dirs_exist_ok=True)
        lines = [*map(str, self.injected), *map(str, self.drains), self.sacct]
        (directory / "noted").write_text("\n".join(lines) + "\n")


def _expanded(nodes: str) -> Sequence[str]:
    return expand(nodes) if nodes else ()


def summary(soak: Soak, verdict: Verdict) -> str:
    """Everything that was counted."""
    head = f"soak of seed {soak.args.seed}: {soak.counts['submitted']} jobs submitted"
    lines = [f"{head}, {soak.jobs} job ids started, in {soak.seconds:.0f} s"]
    shapes = {name: n for name, n in sorted(soak.counts.items()) if name.startswith("shape ")}
    acts = {
        name: n
        for name, n in sorted(soak.counts.items())
        if n and name not in (*shapes, "submitted")
    }
    for title, counts in (
        ("submissions", {name.removeprefix("shape "): n for name, n in shapes.items()}),
        ("actions", acts),
        ("submissions that Slurm did not take at first", soak.refusals),
        ("runs by Slurm's state", soak.outcomes),
        ("ledger records by phase", soak.phases),
        ("rows, Slurm against ledger", verdict.rows),
        ("drains by cause", soak.causes),
    ):
        lines.append(f"{title}: {sum(counts.values())}")
        lines += [f"  {n:6} {name}" for name, n in sorted(counts.items(), key=lambda x: -x[1])]
    lines.append(f"nodes drained for a user's fault: {soak.causes['unexplained']}")
    lines.append(f"violations: {len(verdict.violations)}")
    lines += [f"  {text}" for text in verdict.violations[:50]]
    return "\n".join(lines)


def own_mounts() -> None:
    """Begin anew where mounts are this program's own: whatever ends it, they go with it."""
    if "SOAK_OWN_MOUNTS" not in os.environ:
        command = ["unshare", "--mount", sys.executable, "-m", "tests.cluster.soak", *sys.argv[1:]]
        os.execvpe(command[0], command, os.environ | {"SOAK_OWN_MOUNTS": "yes"})


def main() -> int:
    """Run, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=2000, help="jobs to submit at least (2000)")
    parser.add_argument("--seed", type=int, default=1, help="of the plan (1)")
    parser.add_argument("--busy", type=int, default=80, help="jobs in the queue at once (80)")
    parser.add_argument("--timeout", type=int, default=30, help="PrologEpilogTimeout, s (30)")
    parser.add_argument("--away", type=int, default=40, help="absence of a slurmd, s (40)")
    parser.add_argument("--reconcile", type=float, default=15, help="seconds between two (15)")
    parser.add_argument("--drain", type=float, default=180, help="longest wait at the end, s (180)")
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=(*MISCHIEF, *TROUBLE),
        help="leave this mischief out",
    )
    parser.add_argument("--trouble", action="store_true", help="slow, full and late, not broken")
    parser.add_argument("--minutes", type=float, default=0, help="submit no longer than (no limit)")
    parser.add_argument("--under", type=Path, help="make the cluster's directory there (/tmp)")
    parser.add_argument("--keep", type=Path, help="copy logs, ledgers and outputs to DIR")
    args = parser.parse_args()
    args.hooks = f"lock_timeout = {args.timeout / 2}\n"
    if args.trouble:
        own_mounts()
        # As the manual asks for (SM121): where no hook is to fail, none may have too little time.
        args.hooks, args.timeout = "lock_timeout = 30\ndeadline = 80\n", 110
    if MISSING:
        parser.error(f"no {', '.join(MISSING)} on this machine")
    soak = Soak(args, scratch() if args.under is None else args.under / f"smig-{os.getpid()}")
    since = time.time()
    try:
        with soak.cluster:
            soak.prepare()
            soak.run()
            verdict = soak.verdict(since)
    finally:
        if args.keep:
            soak.keep(args.keep)
        if soak.trouble:
            soak.trouble.remove()
        soak.cluster.remove()
    print(summary(soak, verdict))
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
