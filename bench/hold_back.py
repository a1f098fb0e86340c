"""How long a large job waits behind a stream of small ones, on real Slurm that publishes.

    python bench/hold_back.py 4g.40gb|7g.80gb [--hold-back 20]

As root, on a machine with Slurm's daemons. Two simulated H100; a 1g.10gb of half a minute comes
every 1.8 s, more than the fourteen places take; after 40 s the large one. With
`--hold-back` the publisher keeps a GPU for who has waited so many seconds. One line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from publish import H100, look

from slurm_mig.sandbox.cluster import USERS, Cluster, SandboxNode, scratch
from slurm_mig.transaction import by_hand

GAP, SECONDS, LARGE_AT, UNTIL = 1.8, 30, 40.0, 180.0
#: Seconds between two looks: the minute of slurm-mig-publish.timer, compressed.
LOOK = 5.0


def submit(cluster: Cluster, name: str, seconds: int) -> int:
    """A job of one slice that sleeps."""
    done = cluster.run(
        "sbatch", "--parsable", "-o", "/dev/null", "-t", "1", f"--gres=mig:{name}:1",
        uid=USERS["alice"], stdin=f"#!/bin/sh\nsleep {seconds}\n",
    )  # fmt: skip
    return int(done)


def waits(cluster: Cluster, given: dict[int, tuple[str, float]]) -> dict[str, list[float]]:
    """Seconds each job waited for its slice, by profile; the run's end where it still waits."""
    node = cluster.node("n1")
    found: dict[str, list[float]] = {}
    for job, (name, at) in given.items():
        begun = [record.created for record in node.ledger.of_job(job) if record.instances]
        found.setdefault(name, []).append((begun[0] if begun else time.time()) - at)
    node.close()
    return found


def run(cluster: Cluster, large: str) -> dict[str, object]:
    """The stream with the large one in it."""
    begun, given, late = time.time(), {}, True
    while time.time() < begun + UNTIL:
        given[submit(cluster, "1g.10gb", SECONDS)] = ("1g.10gb", time.time())
        if late and time.time() > begun + LARGE_AT:
            given[submit(cluster, large, 5)] = (large, time.time())
            late = False
        time.sleep(GAP)
    found = waits(cluster, given)
    return {
        "large": large,
        "large_wait_s": round(found[large][0], 1),
        "small": len(found["1g.10gb"]),
        "small_mean_wait_s": round(sum(found["1g.10gb"]) / len(found["1g.10gb"]), 1),
    }


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("large")
    parser.add_argument("--hold-back", type=float)
    options = parser.parse_args()
    hold = options.hold_back
    config = "" if hold is None else f"[publish]\nhold_back = {hold}\n"
    cluster = Cluster(scratch(), [SandboxNode("n1", ((H100, 2),))], publish=True, config=config)
    stop = threading.Event()

    def look_on() -> None:
        while not stop.wait(LOOK):
            look(cluster, "n1")

    looker = threading.Thread(target=look_on)
    try:
        cluster.build()
        cluster.start()
        node = cluster.node("n1")
        for gpu in node.driver.gpus():
            by_hand.set_mode(node.bench(), gpu, on=True)
        node.close()
        looker.start()
        print(json.dumps({"hold_back": hold, **run(cluster, options.large)}), flush=True)
    finally:
        stop.set()
        if looker.ident:
            looker.join()
        cluster.stop()
        cluster.remove()


if __name__ == "__main__":
    main()
