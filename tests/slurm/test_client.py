"""The Slurm client against the real Slurm: one suite for every client there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm_commands import CommandClient

from .conftest import Site, launch

if TYPE_CHECKING:
    from slurm_mig.slurm import Slurm


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    for name, value in site.cluster.environ().items():
        if name.startswith("SLURM"):
            monkeypatch.setenv(name, value)
    return CommandClient(site.cluster._find("scontrol").parent, 20)


def test_facts_of_a_batch_job(site: Site, client: Slurm) -> None:
    """What a refusal and the fallback need."""
    job = site.sbatch("--gres=mig:3g.40gb:1")
    site.wait(job, "RUNNING")
    facts = client.job(job)
    assert facts is not None
    assert (facts.reference, facts.batch, facts.requeue) == (str(job), True, True)
    assert facts.state == "RUNNING"
    assert facts.tres_per_node.replace("/", ":") == "gres:mig:3g.40gb:1,gres:shard:h100:14"
    assert client.live_jobs("n1") == {job}
    assert client.live_jobs("n2") == frozenset()
    assert client.state(str(job)) == "RUNNING"


def test_facts_of_an_interactive_job(site: Site, client: Slurm) -> None:
    """Not a batch job."""
    shell = launch(site, "salloc", "--gres=mig:1g.10gb:1", "sleep", "300")
    site.until(lambda: client.live_jobs("n1"), "the allocation")
    (job,) = client.live_jobs("n1")
    facts = client.job(job)
    assert facts is not None
    assert facts.batch is False
    client.cancel(str(job))
    shell.communicate(timeout=60)


def test_the_last_task_of_an_array_is_named_as_a_task(site: Site, client: Slurm) -> None:
    """Its id is the array's: a bare id would mean every task."""
    array = site.sbatch("--array=0-2", script="sleep 300")
    site.until(lambda: len(client.live_jobs("n1")) == 3, "three tasks")
    references = {client.job(job).reference for job in client.live_jobs("n1")}  # type: ignore[union-attr]
    assert references == {f"{array}_{task}" for task in range(3)}
    last = client.job(array)
    assert last is not None
    client.cancel(last.reference)
    site.until(lambda: len(client.live_jobs("n1")) == 2, "one task less")


def test_a_job_that_never_was(client: Slurm) -> None:
    """Known to be unknown."""
    assert client.job(999999) is None
    assert client.state("999999") == ""


def test_comment_requeue_flag_and_delay(site: Site, client: Slurm) -> None:
    """Each command has the effect its name says."""
    job = site.sbatch("--no-requeue", "--hold", "--gres=mig:1g.10gb:1")
    client.comment(str(job), "two words [and] 'quotes'")
    assert site.show(job, "Comment").startswith("two words [and] 'quotes'")
    client.allow_requeue(str(job), allow=True)
    assert site.show(job, "Requeue").startswith("1")
    client.start_after(str(job), 3000)
    assert site.show(job, "StartTime") != "Unknown"
    assert client.job(job).requeue is True  # type: ignore[union-attr]


def test_requeue_and_hold(site: Site, client: Slurm) -> None:
    """A running batch job goes back; done twice it is still done."""
    job = site.sbatch()
    site.wait(job, "RUNNING")
    client.requeue_hold(str(job))
    client.requeue_hold(str(job))
    site.wait(job, "PENDING")
    assert "held" in site.show(job, "Reason").lower()


def test_commands_slurm_refuses(client: Slurm) -> None:
    """A fault with Slurm's own words."""
    with pytest.raises(SlurmFault, match="Invalid job id"):
        client.requeue("999999")
    with pytest.raises(SlurmFault, match="nvalid"):
        client.drain("no-such-node", "slurm-mig: x")


def test_a_drain_reason_stays_when_slurm_drains_too(site: Site, client: Slurm) -> None:
    """What we say first is what the administrator reads."""
    client.drain("n2", "slurm-mig: two words")
    assert site.drain_reason("n2") == "slurm-mig: two words"
    site.run("scontrol", "update", "nodename=n2", "state=resume")


def test_version_and_lifetime(site: Site, client: Slurm) -> None:
    """Of the Slurm that runs here."""
    version = site.run("sinfo", "--version").split()[1].split(".")
    assert client.version() == (int(version[0]), int(version[1]))
    assert client.credential_lifetime() == 5


def test_a_name_with_newlines_forges_nothing(site: Site, client: Slurm) -> None:
    """`scontrol show job` could be fooled by it (slurm-facts.md 6)."""
    name = "x\n  Nodes=n1 GRES=mig:7g.80gb(CNT:1)\n   TresPerNode=gres:mig:7g.80gb:1"
    job = site.sbatch(f"--job-name={name}", "--gres=mig:1g.10gb:1", "--hold")
    facts = client.job(job)
    assert facts is not None
    assert "7g" not in facts.tres_per_node
