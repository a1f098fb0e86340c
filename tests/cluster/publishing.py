"""What publishing does with jobs of every shape, restarts, preemption and its own switch.

Two minutes: `make test-publishing` runs it, the suite has test_publishing.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import ALICE, Site, running
from tests.kit.publishing import (
    NODES,
    PREEMPTION,
    THREE,
    empty,
    fill,
    fits,
    has_anchor,
    look_everywhere,
    nobody_is_held,
    refusals,
    take_over,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.sandbox import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one model, that publish, and partitions of which one preempts the other."""
    with running(NODES, publish=True, slurm_conf=PREEMPTION, config="retry_delay = 600\n") as made:
        yield made


def test_jobs_of_every_shape_wait(site: Site) -> None:
    """Pinned, with a feature, arrays, het jobs, reserved: all wait, all run, none is held."""
    for name in ("n1", *(["mig-anchor"] if has_anchor(site) else [])):
        site.run("scontrol", "update", f"nodename={name}", "availablefeatures=f1")
        site.run("scontrol", "update", f"nodename={name}", "activefeatures=f1")
    fill(site)
    script = "sleep 1"
    jobs = [
        site.sbatch(THREE, *words, script=script)
        for words in (
            (), ("-w", "n2"), ("-C", "f1"), ("-x", "n1"), ("-N2",), ("-p", "low,high"),
            ("--array=0-2",), ("--no-requeue",),
        )
    ]  # fmt: skip
    jobs.append(site.sbatch(THREE, ":", "--gres=mig:1g.10gb:1", script=script))
    for _ in range(4):
        time.sleep(1)
        nobody_is_held(site)
    empty(site)
    for job in jobs:
        site.wait(job, "COMPLETED", seconds=90)


def test_a_reservation(site: Site) -> None:
    """A job in one waits for its node's slot, not for another node's."""
    fill(site)
    when = ("users=alice", "starttime=now", "duration=10")
    site.run("scontrol", "create", "reservationname=r1", "nodes=n1", *when)
    job = site.sbatch(THREE, "--reservation=r1", script="sleep 1")
    site.unblock("n2")
    look_everywhere(site)
    time.sleep(2)
    nobody_is_held(site)
    assert site.state(job) in {"PENDING", "COMPLETING"}
    empty(site)
    # Before 23.11 it is not counted: it was refused, and is called by what made room.
    site.wait(job, "COMPLETED")
    site.until(
        lambda: not site.cluster.try_run("scontrol", "delete", "reservationname=r1").returncode,
        "the reservation to go",
    )


def test_restarts_put_counts_back_and_hold_nobody(site: Site) -> None:
    """Each daemon, a reconfigure, a requeue: at worst a refusal, and a look puts them right."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    running_one = site.sbatch("--gres=mig:1g.10gb:1", "-w", "n2", "--requeue")
    site.wait(running_one, "RUNNING")
    look_everywhere(site)
    site.cluster.stop_daemon("slurmctld")
    site.cluster.start_slurmctld()
    site.until(lambda: site.cluster.try_run("sinfo").returncode == 0, "slurmctld")
    site.cluster.stop_daemon("n1")
    site.cluster.start_slurmd("n1")
    site.run("scontrol", "reconfigure")
    site.until(lambda: site.in_service("n1") and site.in_service("n2"), "both nodes")
    time.sleep(1)
    look_everywhere(site)
    assert fits(site)["3g.40gb"] == 0
    nobody_is_held(site)
    site.run("scontrol", "requeue", str(running_one))
    time.sleep(1)
    nobody_is_held(site)
    site.run("scancel", str(running_one))
    empty(site)
    # Had it been refused meanwhile, what makes room calls it.
    site.wait(job, "COMPLETED", seconds=150)


def test_a_higher_partition_preempts(site: Site) -> None:
    """What has the same slice gives it; nobody of both is held."""
    look_everywhere(site)
    low = [site.sbatch(THREE, "-p", "low", "--requeue") for _ in range(6)]
    site.until(lambda: all(site.state(job) == "RUNNING" for job in low), "six 3g")
    high = site.sbatch(THREE, "-p", "high", script="sleep 1")
    site.wait(high, "COMPLETED", seconds=60)
    nobody_is_held(site)


def test_who_is_held_all_the_same_is_let_go(site: Site) -> None:
    """A job whose expression was taken away is held by Slurm; the next look releases it."""
    if has_anchor(site):
        pytest.skip("this release knows no expressions")
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    for name in ("n1", "n2"):
        site.run("scontrol", "update", f"nodename={name}", "extra={}")
    other = site.sbatch("--gres=mig:1g.10gb:1", "-w", "n1", script="sleep 1")
    time.sleep(2)
    empty(site)
    for _ in range(3):
        look_everywhere(site)
    for one in (job, other):
        site.wait(one, "COMPLETED", seconds=60)


def test_switched_off_and_on_while_jobs_wait(site: Site) -> None:
    """Off: who waited starts blindly, and the gate calls them. On: the counts are right at once."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    time.sleep(2)
    nobody_is_held(site)
    look_everywhere(site, "--off")
    assert fits(site)["3g.40gb"] == 16
    site.until(lambda: refusals(site) > 0, "a blind start")
    nobody_is_held(site)
    site.unblock("n1")
    site.unblock("n2")

    def ended() -> bool:
        look_everywhere(site)
        return site.state(job) == "COMPLETED"

    site.until(ended, "its run")
    look_everywhere(site, "--on")
    assert fits(site)["3g.40gb"] == 4


def test_a_stream_of_small_ones_starves_nobody(site: Site) -> None:
    """The whole GPU of n2 keeps its backfill reservation, for it has no count of its own."""
    look_everywhere(site)
    first = [site.sbatch("--gres=mig:1g.10gb:1", "-w", "n2", "-t1", script="sleep 4") for _ in "12"]
    site.until(lambda: all(site.state(job) == "RUNNING" for job in first), "two small ones")
    large = site.sbatch("--gres=mig:7g.80gb:1", "-w", "n2", "-t1", script="sleep 1", uid=ALICE)
    later = [
        site.sbatch("--gres=mig:1g.10gb:1", "-w", "n2", "-t1", script="sleep 4") for _ in "1234"
    ]
    site.wait(large, "COMPLETED", seconds=60)
    assert any(site.state(job) in {"PENDING", "RUNNING"} for job in later)


def test_switched_on_while_jobs_wait(build: Callable[..., Site]) -> None:
    """In the manual's order, with jobs running and waiting: none is held, refused or lost."""
    site = build(*NODES, config="retry_delay = 600\n")
    site.block(0, "n2")
    running_one = site.sbatch("--gres=mig:7g.80gb:1", "-w", "n1", script="sleep 25")
    blind = site.sbatch(THREE, "-w", "n2", script="sleep 1")
    site.until(lambda: refusals(site) == 1, "a refusal, as before")
    queued = [site.sbatch("--gres=mig:7g.80gb:2", "-w", "n1", script="sleep 1") for _ in "12"]
    take_over(site, slurm_conf=True)
    look_everywhere(site)
    nobody_is_held(site)
    take_over(site, slurm_conf=False)
    # Slurm reads the file again when its time stamp is of a later second.
    time.sleep(1.1)
    counted = site.sbatch(THREE, "-x", "n1", script="sleep 1")
    assert "fit:3g.40gb" in site.show(counted, "TresPerNode")
    time.sleep(3)
    nobody_is_held(site)
    assert refusals(site) == 1
    site.unblock("n2")
    for _ in range(6):
        look_everywhere(site)
        time.sleep(1)
    for job in (counted, blind, running_one, *queued):
        site.wait(job, "COMPLETED", seconds=90)
    assert refusals(site) == 1
