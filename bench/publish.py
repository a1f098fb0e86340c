"""Refused starts on real Slurm: with publishing, with the gate alone, with blind retry.

    python bench/publish.py publish|gate|blind|all [--nodes 1|2] [--jobs 500] [--seed 1] [--mean 14]
    python bench/publish.py releases [--suites bookworm trixie forky] ...

As root, on a machine with Slurm's daemons. Eight simulated H100, on one node or on two, the uniform
mix at load 0.8, time-compressed: run times are exponential around `--mean` seconds. The same seed
gives the same arrivals. `all` runs the three side by side, so that they share whatever else the
machine does; `releases` does that inside the roots of `make test-slurm-versions`, on one node and
on two, all eighteen at once: nine thousand jobs keep two cores busy for long, so give them
`--mean 72 --helper`, which leaves hooks the same small share of a job's time that they have on a
cluster. `--helper` has slurm-mig-warm.service on every node; the column `busy` says how much of the
machine worked, without what ran at a lower priority (nice).
A table at the end; of one mode a line of JSON, and with `--story` what went before each refused
start.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from _slurm import help_all

from slurm_mig.mig import allocation as phases
from slurm_mig.mig import catalog
from slurm_mig.mig.weights import derive
from slurm_mig.sandbox.cluster import USERS, Cluster, SandboxNode, scratch
from slurm_mig.transaction import by_hand

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation

TOP = Path(__file__).resolve().parents[1]
H100 = "NVIDIA H100 80GB HBM3"
NAMES = ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
GPUS, LOAD = 8, 0.8
#: Seconds between two looks of a node, at most: the minute of slurm-mig-publish.timer. Where jobs
#: are shorter it is their mean, compressed too.
LOOK = 60.0


MODES = ("publish", "gate", "blind")

#: What a mode's nodes have in their config. Blind: slots from the lowest on, and again after the
#: shortest delay that 22.05 allows, never held.
CONFIG = {
    "publish": "",
    "gate": "",
    "blind": "retry_delay = 10\nretry_delay_max = 10\nmax_requeues = 1000\n"
    '[packing]\npolicy = "first-fit"\n',
}

#: Seconds after the last submission in which the queue has to run empty.
PATIENCE = 900.0

#: Seconds of the log before a refused start that a story shows.
BEFORE = 2.5


class Crowd(Cluster):
    """A cluster with CPUs for all slices, and milliseconds in its logs."""

    def _slurm_conf(self, fleet, hooks):  # type: ignore[no-untyped-def]
        text = super()._slurm_conf(fleet, hooks).replace("CPUs=16", "CPUs=64")
        return f"{text}LogTimeFormat=iso8601_ms\n"


def arrivals(seed: int, jobs: int, mean: float) -> list[tuple[float, str, float]]:
    """(when, profile, seconds) of each job, by load 0.8 of eight GPUs in shards."""
    geometry = catalog.find(H100).geometry()
    weights = derive(geometry)
    rows = {str(row.name): row for row in geometry.profiles}
    share = statistics.mean(weights.of(geometry, rows[name]) for name in NAMES) / weights.capacity
    gap = share * mean / (GPUS * LOAD)
    chance, at, found = random.Random(seed), 0.0, []
    for _ in range(jobs):
        at += chance.expovariate(1 / gap)
        seconds = max(2.0, min(5 * mean, chance.expovariate(1 / mean)))
        found.append((at, chance.choice(NAMES), seconds))
    return found


def build(mode: str, nodes: int) -> Crowd:
    """A running cluster with MIG mode on; with `blind` nobody is brought forward."""
    names = [f"n{number + 1}" for number in range(nodes)]
    config = CONFIG[mode] or "retry_delay = 120\n"
    cluster = Crowd(
        scratch(),
        [SandboxNode(name, ((H100, GPUS // nodes),)) for name in names],
        publish=mode == "publish",
        config=config,
    )
    cluster.build()
    cluster.start()
    for name in names:
        node = cluster.node(name)
        for gpu in node.driver.gpus():
            by_hand.set_mode(node.bench(), gpu, on=True)
        node.close()
        if mode == "blind":
            # No file can be made below it, so nobody is brought forward.
            (cluster.root / f"nodes/{name}/state/waiting").write_text("")
    return cluster


def look(cluster: Cluster, name: str) -> str:
    """What the timer runs on a node."""
    config = str(cluster.root / f"nodes/{name}/config.toml")
    done = subprocess.run(
        [sys.executable, "-m", "slurm_mig", "--config", config, "publish", "--node", name],
        env={"SLURM_CONF": str(cluster.conf / "slurm.conf"), "PATH": "/usr/bin:/bin"},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def look_on(cluster: Crowd, every: float, stop: threading.Event, said: list[str]) -> None:
    """Run it again and again until the end."""
    while not stop.is_set():
        for node in cluster.nodes:
            said += [
                line
                for line in look(cluster, node.name).splitlines()
                if "nothing to do" not in line
            ]
        stop.wait(every)


def submit(cluster: Crowd, plan: list[tuple[float, str, float]]) -> dict[int, tuple[str, float]]:
    """Each job at its time; job -> profile and when it was accepted."""
    begun, given = time.time(), {}
    minutes = str(math.ceil(max(seconds for _, _, seconds in plan) / 60) + 1)
    for at, name, seconds in plan:
        time.sleep(max(0.0, begun + at - time.time()))
        done = cluster.try_run(
            "sbatch", "--parsable", "-o", "/dev/null", "-t", minutes, f"--gres=mig:{name}:1",
            uid=USERS["alice"], stdin=f"#!/bin/sh\nsleep {seconds:.2f}\n",
        )  # fmt: skip
        if done.returncode:
            print("not submitted:", done.stderr.strip(), flush=True)
        else:
            given[int(done.stdout)] = (name, time.time())
    return given


def watch(cluster: Crowd) -> tuple[set[str], int]:
    """Until nobody is left: jobs that were held, and how many stayed."""
    held: set[str] = set()
    until = time.time() + PATIENCE
    while True:
        lines = cluster.try_run("squeue", "-h", "-o", "%i %T %r").stdout.splitlines()
        held |= {line for line in lines if re.search(r"BadC|[Hh]eld", line)}
        if not lines or time.time() > until:
            return held, len(lines)
        time.sleep(1)


def figures(records: list[Allocation], given: dict[int, tuple[str, float]]) -> dict[str, object]:
    """Refusals, waits and the makespan, by the nodes' ledgers."""
    refused = [r for r in records if r.phase == phases.REFUSED]
    served = [r for r in records if r.phase != phases.REFUSED]
    waits: dict[str, list[float]] = {name: [] for name in NAMES}
    for record in served:
        name, at = given[record.owner.job_id or 0]
        waits[name].append(record.created - at)
    every = [wait for some in waits.values() for wait in some]
    begun = min(at for _, at in given.values())
    return {
        "refused_starts": len(refused),
        "refused_jobs": len({r.owner.job_id for r in refused}),
        "refused_per_1000": round(1000 * len(refused) / max(1, len(given)), 1),
        "served": len(every),
        "makespan_s": round(max(r.ended or 0.0 for r in served) - begun, 1),
        "mean_wait_s": round(statistics.mean(every), 2) if every else None,
        "waits_s": {n: round(statistics.mean(w), 1) for n, w in waits.items() if w},
    }


def records_of(cluster: Crowd, given: dict[int, tuple[str, float]]) -> list[Allocation]:
    """Every run of these jobs, in order."""
    found = []
    for item in cluster.nodes:
        node = cluster.node(item.name)
        found += [record for job in given for record in node.ledger.of_job(job)]
        node.close()
    return sorted(found, key=lambda record: record.created)


def overhears(cluster: Crowd, stop: threading.Event, heard: list[tuple[float, str]]) -> None:
    """When what was published, and by which node, for a story."""
    last: dict[Path, str] = {}
    while not stop.wait(0.02):
        for path in (cluster.root / "nodes").glob("*/run/published"):
            try:
                told = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            now = f"{path.parents[1].name} {told['wrote']}"
            if last.get(path) != now:
                last[path] = now
                heard.append((path.stat().st_mtime, f"published: {now}"))


def story(
    cluster: Crowd,
    records: list[Allocation],
    given: dict[int, tuple[str, float]],
    heard: list[tuple[float, str]],
) -> None:
    """What went before each refused start: counts, starts, ends."""
    lines = list(heard)
    for text in (cluster.root / "log/slurmctld").read_text("utf-8", "replace").splitlines():
        match = re.match(r"\[(\S+?)\] (.*)", text)
        if match:
            lines.append((datetime.fromisoformat(match[1]).timestamp(), match[2]))
    for record in records:
        what = f"{record.node} GPU {record.gpu_minor} job {record.owner.job_id}"
        lines.append((record.created, f"{what} {record.phase} {record.request} {record.made}"))
        if record.ended and record.phase != phases.REFUSED:
            lines.append((record.ended, f"{what} taken down {record.made}"))
    lines.sort()
    for record in (item for item in records if item.phase == phases.REFUSED):
        name = given[record.owner.job_id or 0][0]
        print(f"\n-- job {record.owner.job_id}, {name}: {record.reason}")
        for at, text in lines:
            if record.created - BEFORE < at < record.created + 0.3:
                print(f"{at - record.created:+7.3f} {text[:230]}")


def updates(cluster: Crowd) -> dict[str, object]:
    """What slurmctld was told, by its own statistics."""
    text = cluster.try_run("sdiag").stdout
    found = re.search(r"REQUEST_UPDATE_NODE\s.*?count:(\d+)\s+ave_time:(\d+)", text)
    return {"updates": int(found[1]), "update_us": int(found[2])} if found else {}


def busy() -> tuple[float, float]:
    """Seconds of CPU that this machine has worked so far, not at nice, and all there were."""
    words = Path("/proc/stat").read_text("utf-8").split("\n", 1)[0].split()[1:9]
    ticks = [int(word) for word in words]
    # user, nice, system, idle, iowait, and the rest (proc_stat(5)).
    return (sum(ticks) - ticks[1] - ticks[3] - ticks[4]) / 100, sum(ticks) / 100


def drained(cluster: Crowd, name: str) -> bool:
    """Whether a node is out of service at the end."""
    return "DRAIN" in cluster.run("scontrol", "show", "node", name)


def one(options: argparse.Namespace) -> dict[str, object]:
    """One run of one mode."""
    plan = arrivals(options.seed, options.jobs, options.mean)
    cluster, stop, said = build(options.mode, options.nodes), threading.Event(), []  # type: ignore[var-annotated]
    helpers = ExitStack()
    heard: list[tuple[float, str]] = []
    threads = []
    if options.mode == "publish":
        every = min(LOOK, options.mean)
        threads.append(threading.Thread(target=look_on, args=(cluster, every, stop, said)))
    if options.story:
        threads.append(threading.Thread(target=overhears, args=(cluster, stop, heard)))
    try:
        if options.helper:
            help_all(cluster, helpers)
        for thread in threads:
            thread.start()
        time.sleep(2)
        worked, there = busy()
        given = submit(cluster, plan)
        held, left = watch(cluster)
        worked, there = (
            after - before for after, before in zip(busy(), (worked, there), strict=True)
        )
        records = records_of(cluster, given)
        if options.story:
            story(cluster, records, given, heard)
        return {
            "slurm": cluster.run("sinfo", "--version").split()[1],
            "mode": options.mode, "nodes": options.nodes, "seed": options.seed,
            "jobs": len(given), "arrivals_s": round(plan[-1][0]), "left": left,
            "held": sorted(held)[:5],
            "drained": [item.name for item in cluster.nodes if drained(cluster, item.name)],
            **figures(records, given), **updates(cluster), "machine_busy": round(worked / there, 2),
            "said": said[-3:],
        }  # fmt: skip
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        helpers.close()
        cluster.stop()
        cluster.remove()


def words(options: argparse.Namespace) -> list[str]:
    """The options of a run that a run below it has, too."""
    names = ("nodes", "jobs", "seed", "mean")
    found = [word for name in names for word in (f"--{name}", str(getattr(options, name)))]
    return [*found, *(["--helper"] if options.helper else [])]


def side_by_side(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All three at the same time, each with daemons of its own."""
    command = [sys.executable, str(Path(__file__).resolve())]
    running = [
        subprocess.Popen([*command, mode, *words(options)], stdout=subprocess.PIPE, text=True)
        for mode in MODES
    ]
    outputs = [process.communicate()[0] for process in running]
    return [json.loads(output.splitlines()[-1]) for output in outputs if output.strip()]


def in_roots(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same inside each release's root, all at once; a root is made where there is none."""
    sys.path.insert(0, str(TOP / ".ci/matrix"))
    from matrix import end
    from roots import Root

    found: list[dict[str, Any]] = []
    with ExitStack() as until:
        going = []
        for suite in options.suites:
            root = Root(suite)
            until.enter_context(root.held())
            root.make()
            for options.nodes in (1, 2):
                place = Path(until.enter_context(tempfile.TemporaryDirectory(prefix="smig-told-")))
                run = " ".join(["/venv/bin/python bench/publish.py all", *words(options)])
                script = f"{run} >/results/told 2>/results/errors"
                going.append((place, root.start(place, ["sh", "-c", script])))
        for place, process in going:
            end(process)
            told = (place / "told").read_text("utf-8").splitlines()
            rows = [json.loads(line) for line in told if line.startswith("{")]
            if len(rows) < len(MODES):
                print((place / "errors").read_text("utf-8")[-2000:], file=sys.stderr)
            found += rows
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """What each said as JSON, then a table."""
    for row in rows:
        print(json.dumps(row), flush=True)
    head = (
        "Slurm", "nodes", "mode", "jobs", "refused starts", "per 1,000", "mean wait s",
        *NAMES, "makespan s", "updates a job", "ms each", "held", "left", "busy",
    )  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        updates_each = "-", "-"
        if row["mode"] == "publish" and "updates" in row:
            updates_each = (
                f"{row['updates'] / row['jobs']:.2f}", f"{row['update_us'] / 1000:.2f}",
            )  # fmt: skip
        cells = (
            row["slurm"], row["nodes"], row["mode"], row["jobs"], row["refused_starts"],
            row["refused_per_1000"], row["mean_wait_s"], *map(row["waits_s"].get, NAMES),
            row["makespan_s"], *updates_each, len(row["held"]), row["left"], row["machine_busy"],
        )  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    """One run, or several and their table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=(*MODES, "all", "releases"))
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mean", type=float, default=14.0)
    parser.add_argument("--helper", action="store_true")
    parser.add_argument("--story", action="store_true")
    parser.add_argument("--suites", nargs="+", default=["bookworm", "trixie", "forky"])
    options = parser.parse_args()
    if options.mode in MODES:
        print(json.dumps(one(options)), flush=True)
    else:
        show({"all": side_by_side, "releases": in_roots}[options.mode](options))


if __name__ == "__main__":
    main()
