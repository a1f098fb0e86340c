"""Where a site publishes what fits, a job that fits nowhere waits: never refused, held or lost.

What keeps it waiting from 23.11 on is a rule of Slurm's that its authors call a kludge: these tests
fail on a release in which it is gone.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import Site, running
from tests.kit.publishing import (
    NODES,
    PREEMPTION,
    THREE,
    empty,
    fill,
    fits,
    look_everywhere,
    nobody_is_held,
    refusals,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.sandbox import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one model, that publish, and partitions of which one preempts the other."""
    with running(NODES, publish=True, slurm_conf=PREEMPTION, config="retry_delay = 600\n") as made:
        yield made


@pytest.mark.parametrize("switch", ["--on", "--off"])
def test_a_registration_while_counted_jobs_run(site: Site, switch: str) -> None:
    """Each slurmd registers twice an hour: with another sum of `fit` its node was drained then."""
    look_everywhere(site, "--on")
    jobs = [site.sbatch("--gres=mig:1g.10gb:1") for _ in range(3)]
    for job in jobs:
        site.wait(job, "RUNNING")
    look_everywhere(site, switch)
    for name in ("n1", "n2"):
        before = started(site, name)
        time.sleep(1)
        site.cluster.stop_daemon(name)
        site.cluster.start_slurmd(name)
        site.until(lambda name=name, before=before: started(site, name) != before, "it to register")  # type: ignore[misc]
    time.sleep(1)
    assert site.in_service("n1"), site.drain_reason("n1")
    assert site.in_service("n2"), site.drain_reason("n2")
    assert {site.state(job) for job in jobs} == {"RUNNING"}
    look_everywhere(site, "--on")


def started(site: Site, name: str) -> str:
    (found,) = re.findall(r"SlurmdStartTime=(\S+)", site.run("scontrol", "show", "node", name))
    return str(found)


def test_it_waits_for_its_slot_and_starts_with_it(site: Site) -> None:
    """Shards are free on three GPUs: blind, Slurm would send it there three times."""
    fill(site)
    before = refusals(site)
    job = site.sbatch(THREE, script="echo ran")
    time.sleep(3)
    nobody_is_held(site)
    assert site.state(job) == "PENDING"
    empty(site)
    site.wait(job, "COMPLETED")
    assert refusals(site) == before
    site.until(lambda: fits(site)["3g.40gb"] == 4, "the counts of an empty node")


def test_in_step_with_the_jobs(site: Site) -> None:
    """No look between: each Prolog and Epilog says what fits now."""
    look_everywhere(site)
    job = site.sbatch(THREE)
    site.until(lambda: fits(site)["1g.10gb"] == 4 + 7, "what is left beside a 3g")
    assert fits(site)["3g.40gb"] == 1 + 3
    site.run("scancel", str(job))
    site.until(lambda: fits(site)["1g.10gb"] == 14, "an empty node's counts")
