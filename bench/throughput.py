"""Jobs per second through a real Slurm, with our hooks and with empty ones, in one run.

Run as root: `make bench`, or `.venv/bin/python bench/throughput.py [JOBS [ROUNDS]]`.
Two private clusters of the same shape (two nodes, two simulated H100 each: 28
slots) take turns; each round is one array of `true` asking for mig:1g.10gb:1.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import TYPE_CHECKING

from slurm_mig.sandbox import Cluster, SandboxNode, scratch
from slurm_mig.sandbox.cluster import USERS
from slurm_mig.transaction import by_hand

if TYPE_CHECKING:
    from pathlib import Path

GPUS = (("NVIDIA H100 80GB HBM3", 2),)
NODES = (SandboxNode("n1", GPUS), SandboxNode("n2", GPUS))


def empty_hooks(directory: Path) -> Path:
    """Hooks that do nothing: what Slurm itself costs."""
    directory.mkdir()
    for name in ("prolog", "epilog", "task_prolog"):
        (directory / name).write_text("#!/bin/sh\nexit 0\n")
        (directory / name).chmod(0o755)
    return directory


def enable(cluster: Cluster) -> None:
    """MIG mode on, as an administrator does once."""
    for item in cluster.nodes:
        node = cluster.node(item.name)
        for gpu in node.driver.gpus():
            by_hand.set_mode(node.bench(), gpu, on=True)
        node.close()


def seconds(cluster: Cluster, jobs: int) -> float:
    """From submission until the last job's Epilog is over."""
    started = time.perf_counter()
    cluster.run(
        "sbatch", "-o", "/dev/null", f"--array=1-{jobs}", "--gres=mig:1g.10gb:1",
        uid=USERS["alice"], stdin="#!/bin/sh\ntrue\n",
    )  # fmt: skip
    while cluster.run("squeue", "-h").strip():
        time.sleep(0.1)
    return time.perf_counter() - started


def carved(cluster: Cluster) -> int:
    """Slices on record as made and taken down again."""
    count = 0
    for item in cluster.nodes:
        node = cluster.node(item.name)
        count += sum(record.phase == "released" for record in node.ledger.history())
        node.close()
    return count


def main() -> None:
    """Measure and print."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    roots = [scratch(), scratch()]
    ours = Cluster(roots[0], NODES)
    bare = Cluster(roots[1], NODES, hooks=empty_hooks(roots[1] / "empty"))
    try:
        with ours, bare:
            enable(ours)
            enable(bare)
            pairs = [(seconds(bare, jobs), seconds(ours, jobs)) for _ in range(rounds)]
            made = carved(ours)
            version = ours.run("sinfo", "--version").strip()
    finally:
        for cluster in (ours, bare):
            cluster.remove()
    print(f"{version}, {jobs} jobs of mig:1g.10gb:1, 2 nodes, 28 slots, {rounds} rounds in turn")
    for name, place in (("empty hooks", 0), ("slurm-mig hooks", 1)):
        rates = [jobs / pair[place] for pair in pairs]
        print(f"{name:16} {median(rates):6.1f} jobs/s   ({', '.join(f'{r:.1f}' for r in rates)})")
    print(f"ratio            {median(a / b for a, b in pairs):6.2f}   (ours / empty, median)")
    print(f"slices carved and taken down: {made} of {jobs * rounds}")


if __name__ == "__main__":
    main()
