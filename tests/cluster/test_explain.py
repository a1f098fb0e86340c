"""`slurm-mig explain --job` on real Slurm: why a job runs where it does, waits, or was refused."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.cluster import Site, running
from tests.kit.publishing import NODES, THREE, empty, fill, has_anchor, look_everywhere, refusals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.sandbox import Cluster

PINNED = ("-w", "n1")
SMALL = "--gres=mig:1g.10gb:1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes that publish."""
    with running(NODES, publish=True, config="retry_delay = 600\n") as made:
        # From 23.11 on nobody starts before a look has written every node's Extra.
        look_everywhere(Site(made))
        yield made


def ask(site: Site, *words: str, name: str = "n1") -> subprocess.CompletedProcess[str]:
    """What an administrator types on a node."""
    config = site.cluster.root / "nodes" / name / "config.toml"
    return subprocess.run(
        [sys.executable, "-m", "slurm_mig", "--config", str(config), "explain", *words],
        env={
            "SLURM_CONF": str(site.cluster.conf / "slurm.conf"), "PATH": "/usr/bin:/bin",
            "SLURMD_NODENAME": name,
        },
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def told(site: Site, job: int | str, name: str = "n1") -> dict[str, Any]:
    done = ask(site, "--job", str(job), "--json", name=name)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"text": "\n".join(found["lines"])}


def test_a_job_that_runs_and_has_ended(site: Site) -> None:
    """Where it lies and why; afterwards where it lay."""
    job = site.sbatch(THREE, *PINNED)
    site.wait(job, "RUNNING")
    site.until(lambda: "placed on GPU" in told(site, job)["text"], "its Prolog")
    while_it_runs = told(site, job)
    assert while_it_runs["state"] == "RUNNING"
    assert "running on n1" in while_it_runs["text"]
    assert "3g.40gb@4" in while_it_runs["text"]
    site.run("scancel", str(job))
    site.until(lambda: "no more" in told(site, job)["text"], "its end")
    assert "placed on GPU 0 as 3g.40gb@4" in told(site, job)["text"]


def test_a_job_that_waits_for_a_count(site: Site) -> None:
    """Slurm's "Constraints" in words, or its anchor; and what a start would meet on this node."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    site.until(lambda: "waits for" in told(site, job)["text"], "a reason")
    time.sleep(2)
    found = told(site, job)
    assert found["state"] == "PENDING"
    word = "ReqNodeNotAvail" if has_anchor(site) else "waits for Constraints: Slurm would take"
    assert word in found["text"], found["text"]
    assert not found["succeeds"]
    assert "where it is refused" in found["verdict"]
    assert "fragmented" in ask(site, "--job", str(job)).stdout
    empty(site)
    site.wait(job, "COMPLETED")


def test_a_job_that_the_gate_has(site: Site) -> None:
    """It was refused: why, and until when it waits for a place."""
    look_everywhere(site)
    before = refusals(site)
    for gpu in (0, 1):
        site.block(gpu)
    # Nobody has told Slurm, so it starts blindly.
    job = site.sbatch(THREE, "-x", "n2", script="sleep 1")
    site.until(lambda: refusals(site) > before, "a refusal")
    # slurmctld gives a reason with its next pass after the Epilog.
    for words in ("in any case", "waits for BeginTime"):
        site.until(lambda words=words: words in told(site, job)["text"], words)  # type: ignore[misc]
    assert "refused on GPU 0" in told(site, job)["text"]
    site.unblock("n1")

    def ended() -> bool:
        look_everywhere(site)
        return site.state(job) == "COMPLETED"

    site.until(ended, "its run")
    assert "placed on GPU 0" in told(site, job)["text"]


def test_a_job_that_was_refused_for_good(site: Site) -> None:
    """An interactive one is cancelled: Slurm has nothing more to say, the ledger has the reason."""
    look_everywhere(site)
    for gpu in (0, 1):
        site.block(gpu)
    done = site.cluster.try_run("srun", "-x", "n2", THREE, "true", uid=64001)
    assert done.returncode != 0
    job = max(r.owner.job_id or 0 for r in site.records())
    assert "refused on GPU 0" in told(site, job)["text"]


def test_tasks_of_arrays_and_components(site: Site) -> None:
    """By the names that users know them by."""
    array = site.sbatch(SMALL, *PINNED, "--array=0-1")
    site.wait(f"{array}_1", "RUNNING")
    site.until(lambda: "placed on GPU" in told(site, f"{array}_1")["text"], "its Prolog")
    assert told(site, f"{array}_1")["job"] != told(site, f"{array}_0")["job"]
    het = site.sbatch(SMALL, ":", "--gres=mig:2g.20gb:1")
    site.wait(f"{het}+1", "RUNNING")
    parts = ((str(het), "1g.10gb@"), (f"{het}+1", "2g.20gb@"))
    for part, made in parts:
        site.until(
            lambda: any(made in told(site, part, name)["text"] for name in ("n1", "n2")),  # noqa: B023
            f"{part}: its Prolog",
        )


def test_what_nobody_knows(site: Site) -> None:
    done = ask(site, "--job", "4000000")
    assert done.returncode != 0
    assert "ledger neither" in done.stderr
    done = ask(site, "--job", "4000000_1")
    assert "JobIDRaw" in done.stderr
