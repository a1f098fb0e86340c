"""Names and words of a fleet with two meanings of 1g.10gb, on real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import ALICE, Site, running
from tests.kit.cluster_jobs import SHOW, seen
from tests.kit.gpus import A100_40, H100

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODES = (SandboxNode("n1", ((H100, 1),)), SandboxNode("n2", ((A100_40, 1),)))

#: Words of all shapes that Slurm takes as a gres type.
ALIASES = {
    "1st": "1g.10gb",
    "2g-class": "h100_2g.20gb",
    "_half.x+y": "3g.40gb",
    "mig_24gb": "a100_3g.20gb",
}


@pytest.fixture(scope="module")
def mixed() -> Iterator[Site]:
    """An H100 and an A100-40GB; nothing is sold in parts."""
    with running(NODES, aliases=ALIASES) as made:
        yield Site(made)


@pytest.mark.parametrize(
    ("asked", "counted", "shards", "node", "profile"),
    [
        ("1g.10gb", "1g.10gb", "shard:h100:4", "n1", "1g.10gb"),
        ("h100_1g.10gb", "1g.10gb", "shard:h100:4", "n1", "1g.10gb"),
        ("a100_40gb_1g.10gb", "a100_40gb_1g.10gb", "shard:a100_40gb:7", "n2", "1g.10gb"),
        ("a100_40gb_3g.20gb", "3g.20gb", "shard:a100_40gb:14", "n2", "3g.20gb"),
        ("a100_3g.20gb", "3g.20gb", "shard:a100_40gb:14", "n2", "3g.20gb"),
        ("10gb", "1g.10gb", "shard:h100:4", "n1", "1g.10gb"),
        ("1st", "1g.10gb", "shard:h100:4", "n1", "1g.10gb"),
        ("2g-class", "2g.20gb", "shard:h100:8", "n1", "2g.20gb"),
        ("_half.x+y", "3g.40gb", "shard:h100:14", "n1", "3g.40gb"),
        ("mig_24gb", "3g.20gb", "shard:a100_40gb:14", "n2", "3g.20gb"),
    ],
)
def test_words(mixed: Site, asked: str, counted: str, shards: str, node: str, profile: str) -> None:
    """By sbatch and by srun, whose text cli_filter.lua has seen first."""
    job = mixed.sbatch(f"--gres=mig:{asked}:1", script=f"{SHOW}; echo at $SLURMD_NODENAME")
    mixed.wait(job, "COMPLETED")
    told = mixed.show(job, "TresPerNode")
    assert f"mig:{counted}:1" in told
    assert shards in told
    text = mixed.output(job)
    assert seen(text)[0][2] == profile
    assert f"at {node}" in text
    text = mixed.run("srun", f"--gres=mig:{asked}:1", "/bin/sh", "-c", SHOW, uid=ALICE)
    assert seen(text)[0][2] == profile


def test_no_wall_of_parts(mixed: Site) -> None:
    """People grep it for what there is."""
    text = mixed.run("sinfo", "-h", "-o", "%G")
    assert "mig:1g.10gb" in text
    assert "c." not in text


def test_a_job_that_waits_with_a_name_of_before(build: Callable[..., Site]) -> None:
    """When its name ends it never starts; while the node counts that name too, it does."""
    site = build(SandboxNode("n1", ((H100, 1),)))
    job = site.sbatch("--gres=mig:1g.10gb:1", "--hold", script=SHOW)
    conf = site.cluster.conf / "slurm.conf"
    text = conf.read_text()
    ended = text.replace("mig:1g.10gb:7", "mig:h100_1g.10gb:7")
    both = ended.replace("mig:h100_1g.10gb:7", "mig:h100_1g.10gb:7,mig:1g.10gb:7")
    assert text != ended != both

    restart(site, ended)
    site.run("scontrol", "release", str(job))
    site.until(lambda: site.show(job, "Reason") == "BadConstraints", "the job to be told")
    assert site.state(job) == "PENDING"

    restart(site, both)
    site.wait(job, "COMPLETED")
    assert seen(site.output(job))[0][2] == "1g.10gb"


def restart(site: Site, slurm_conf: str) -> None:
    """Slurm with another slurm.conf, its jobs kept."""
    site.cluster.stop_daemon("n1")
    site.cluster.stop_daemon("slurmctld")
    (site.cluster.conf / "slurm.conf").write_text(slurm_conf)
    site.cluster.start_slurmctld()
    site.cluster.start_slurmd("n1")
    idle = ("sinfo", "-h", "-o", "%T")
    site.until(lambda: site.cluster.try_run(*idle).stdout.strip() == "idle", "the node to be idle")
