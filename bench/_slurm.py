"""Jobs through a real Slurm, with our hooks and with empty ones, in turn.

Two private clusters of the same shape (28 slots: four simulated H100 on one node, or two on
each of two); each round is one array of jobs asking for mig:1g.10gb:1.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from statistics import median
from typing import TYPE_CHECKING

from _site import helped

from slurm_mig.sandbox import Cluster, SandboxNode, scratch
from slurm_mig.sandbox.cluster import USERS
from slurm_mig.transaction import by_hand

if TYPE_CHECKING:
    from pathlib import Path

NAME = "NVIDIA H100 80GB HBM3"


def throughput(
    jobs: int,
    sleep: float,
    create: float,
    destroy: float,
    rounds: int,
    nodes: int = 1,
    *,
    helper: bool = False,
) -> float:
    """Jobs per second with our hooks, against empty ones; median of the rounds.

    `sleep` in seconds, `create` and `destroy` in milliseconds of an instance with its
    compute instance.
    """
    latency = {
        "create-gi": create / 2,
        "create-ci": create / 2,
        "destroy-gi": destroy / 2,
        "destroy-ci": destroy / 2,
    }
    shape = [
        SandboxNode(f"n{number}", ((NAME, 4 // nodes),), latency_ms=latency)
        for number in range(1, nodes + 1)
    ]
    roots = [scratch(), scratch()]
    ours = Cluster(roots[0], shape)
    bare = Cluster(roots[1], shape, hooks=empty_hooks(roots[1] / "empty"))
    try:
        with ours, bare, ExitStack() as helpers:
            if helper:
                help_all(ours, helpers)
            enable(ours)
            enable(bare)
            pairs = [
                (seconds(bare, jobs, sleep), seconds(ours, jobs, sleep)) for _ in range(rounds)
            ]
            made = carved(ours)
    finally:
        for cluster in (ours, bare):
            cluster.remove()
    if made != jobs * rounds:
        raise SystemExit(f"{made} slices carved and taken down, expected {jobs * rounds}")
    return median(a / b for a, b in pairs)


def help_all(cluster: Cluster, until: ExitStack) -> None:
    """What slurm-mig-warm.service is on every node."""
    for node in cluster.nodes:
        home = cluster.root / "nodes" / node.name
        (home / "run").mkdir(mode=0o755, exist_ok=True)
        until.enter_context(
            helped(home / "config.toml", home / "run/warm", SLURMD_NODENAME=node.name)
        )


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


def seconds(cluster: Cluster, jobs: int, sleep: float) -> float:
    """From submission until the last job's Epilog is over."""
    started = time.perf_counter()
    cluster.run(
        "sbatch", "-o", "/dev/null", f"--array=1-{jobs}", "--gres=mig:1g.10gb:1",
        uid=USERS["alice"], stdin=f"#!/bin/sh\nsleep {sleep:g}\n" if sleep else "#!/bin/sh\ntrue\n",
    )  # fmt: skip
    while cluster.run("squeue", "-h").strip():
        time.sleep(0.1)
    return time.perf_counter() - started


def carved(cluster: Cluster) -> int:
    """Slices on record as made and taken down again."""
    count = 0
    for item in cluster.nodes:
        node = cluster.node(item.name)
        while any(record.phase == "releasing" for record in node.ledger.all_open()):
            time.sleep(0.1)
        node.close()
        with closing(cluster.archive(item.name)) as archive:
            count += sum(1 for _ in archive.find(outcome="released"))
    return count
