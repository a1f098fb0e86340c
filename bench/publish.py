"""Refused starts on real Slurm: with publishing, with the gate alone, with blind retry.

    python bench/publish.py publish|gate|blind [--nodes 1|2] [--jobs 500] [--seed 1] [--mean 12]

As root, on a machine with Slurm's daemons (or inside a root of .ci/roots.py). Eight simulated H100,
on one node or on two, the uniform mix at load 0.8, time-compressed: run times are exponential
around `--mean` seconds. The same seed gives the same arrivals. One line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from slurm_mig.mig import allocation as phases
from slurm_mig.mig import catalog
from slurm_mig.mig.weights import derive
from slurm_mig.sandbox.cluster import USERS, Cluster, SandboxNode, scratch
from slurm_mig.transaction import by_hand

H100 = "NVIDIA H100 80GB HBM3"
NAMES = ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
GPUS, LOAD = 8, 0.8
#: Seconds between two looks of a node: the minute of slurm-mig-publish.timer, compressed too.
LOOK = 15.0


class Crowd(Cluster):
    """A cluster with CPUs for all slices."""

    def _slurm_conf(self, fleet, hooks):  # type: ignore[no-untyped-def]
        return super()._slurm_conf(fleet, hooks).replace("CPUs=16", "CPUs=64")


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
    config = "" if mode == "blind" else "retry_delay = 600\n"
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


def look_on(cluster: Crowd, stop: threading.Event, said: list[str]) -> None:
    """Run it again and again until the end."""
    while not stop.is_set():
        for node in cluster.nodes:
            said += [
                line
                for line in look(cluster, node.name).splitlines()
                if "nothing to do" not in line
            ]
        stop.wait(LOOK)


def submit(cluster: Crowd, plan: list[tuple[float, str, float]]) -> dict[int, tuple[str, float]]:
    """Each job at its time; job -> profile and when it was accepted."""
    begun, given = time.time(), {}
    for at, name, seconds in plan:
        time.sleep(max(0.0, begun + at - time.time()))
        done = cluster.try_run(
            "sbatch", "--parsable", "-o", "/dev/null", "-t", "2", f"--gres=mig:{name}:1",
            uid=USERS["alice"], stdin=f"#!/bin/sh\nsleep {seconds:.2f}\n",
        )  # fmt: skip
        if done.returncode:
            print("not submitted:", done.stderr.strip(), flush=True)
        else:
            given[int(done.stdout)] = (name, time.time())
    return given


def watch(cluster: Crowd, seconds: float) -> tuple[set[str], int]:
    """Until nobody is left: jobs that were held, and how many stayed."""
    held: set[str] = set()
    until = time.time() + seconds
    while True:
        lines = cluster.try_run("squeue", "-h", "-o", "%i %T %r").stdout.splitlines()
        held |= {line for line in lines if re.search(r"BadC|[Hh]eld", line)}
        if not lines or time.time() > until:
            return held, len(lines)
        time.sleep(1)


def figures(cluster: Crowd, given: dict[int, tuple[str, float]]) -> dict[str, object]:
    """Refusals and waits, by the nodes' ledgers."""
    records = []
    for item in cluster.nodes:
        node = cluster.node(item.name)
        records += [record for job in given for record in node.ledger.of_job(job)]
        node.close()
    refused = [r for r in records if r.phase == phases.REFUSED]
    waits: dict[str, list[float]] = {name: [] for name in NAMES}
    for record in records:
        if record.phase != phases.REFUSED and record.owner.job_id in given:
            name, at = given[record.owner.job_id]
            waits[name].append(record.created - at)
    every = [wait for some in waits.values() for wait in some]
    return {
        "refused_starts": len(refused),
        "refused_jobs": len({r.owner.job_id for r in refused}),
        "refused_per_1000": round(1000 * len(refused) / max(1, len(given)), 1),
        "served": len(every),
        "mean_wait_s": round(statistics.mean(every), 2) if every else None,
        "waits_s": {n: round(statistics.mean(w), 1) for n, w in waits.items() if w},
    }


def updates(cluster: Crowd) -> dict[str, object]:
    """What slurmctld was told, by its own statistics."""
    text = cluster.try_run("sdiag").stdout
    found = re.search(r"REQUEST_UPDATE_NODE\s.*?count:(\d+)\s+ave_time:(\d+)", text)
    return {"updates": int(found[1]), "update_us": int(found[2])} if found else {}


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("publish", "gate", "blind"))
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mean", type=float, default=12.0)
    options = parser.parse_args()
    plan = arrivals(options.seed, options.jobs, options.mean)
    cluster, stop, said = build(options.mode, options.nodes), threading.Event(), []  # type: ignore[var-annotated]
    looker = threading.Thread(target=look_on, args=(cluster, stop, said))
    try:
        if options.mode == "publish":
            looker.start()
            time.sleep(2)
        begun = time.time()
        given = submit(cluster, plan)
        held, left = watch(cluster, 120)
        result = {
            "slurm": cluster.run("sinfo", "--version").split()[1],
            "mode": options.mode, "nodes": options.nodes, "seed": options.seed,
            "jobs": len(given), "arrivals_s": round(plan[-1][0]),
            "makespan_s": round(time.time() - begun), "left": left,
            "held": sorted(held)[:5], "drained": cluster.run("sinfo", "-h", "-R").strip()[:200],
            **figures(cluster, given), **updates(cluster), "said": said[-3:],
        }  # fmt: skip
        print(json.dumps(result), flush=True)
    finally:
        stop.set()
        if looker.ident:
            looker.join()
        cluster.stop()
        cluster.remove()


if __name__ == "__main__":
    main()
