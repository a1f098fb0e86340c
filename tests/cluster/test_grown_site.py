"""A site that has grown for years: its rules, found by the doctor, mended as it says, at work.

CPUs and memory are counted, partitions have defaults for each GPU and prices, jobs are preempted,
slurmdbd enforces limits (where this release's can run), jobs carry constraints.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.mig import allocation as phases
from slurm_mig.sandbox import Cluster, SandboxNode, scratch
from tests.cluster.accounted import MISSING, Accounted
from tests.kit.cluster import ALICE, PREFIX, Site, enable_mig, find_daemon
from tests.kit.cluster_doctor import codes, deserved, doctor
from tests.kit.cluster_jobs import SHOW, seen
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES = (SandboxNode("n1", ((H100, 2),)), SandboxNode("n2", ((H100, 1),)))

#: Beside what the sandbox writes; of a key that is there twice the last one counts.
SETTINGS = """\
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
Licenses=matlab:10
PartitionName=DEFAULT DefMemPerGPU=300 DefCpuPerGPU=4 State=UP
PartitionName=gpu Nodes=n1,n2 PriorityTier=5 TRESBillingWeights="CPU=1.0,Mem=0.25G,GRES/gpu=8"
PartitionName=urgent Nodes=n1,n2 PriorityTier=50
PartitionName=interactive Nodes=n2 MaxTime=4:00:00 OverSubscribe=NO
"""
ENFORCE = "AccountingStorageEnforce=associations,limits,qos\n"
#: Releases that parse a job's `extra`.
CONSTRAINTS = "SchedulerParameters=extra_constraints,batch_sched_delay=0,sched_interval=1\n"

#: What Slurm knows of prices for gres it has from slurmdbd.
PRICES = ' TRESBillingWeights="CPU=1.0,Mem=0.25G,GRES/gpu=8"'
RULES = {"SM143"} if MISSING else {"SM143", "SM144"}


def _release() -> tuple[int, ...]:
    text = subprocess.run(
        [str(find_daemon("slurmd")), "-V"], capture_output=True, text=True, check=True
    )
    return tuple(int(part) for part in text.stdout.split()[1].split(".")[:2])


def limit(site: Site, words: str) -> None:
    """Give alice's QOS a limit."""
    site.run("sacctmgr", "-i", "modify", "qos", "where", "name=normal", "set", *words.split())


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """With slurmdbd where it runs, with constraints where the release has them."""
    settings = SETTINGS + (CONSTRAINTS if _release() >= (23, 11) else "")
    assert PRICES in settings
    if MISSING:
        kind, settings = Cluster, settings.replace(PRICES, "")
    else:
        kind, settings = Accounted, settings + ENFORCE
    made = kind(scratch(), NODES, prefix=PREFIX, slurm_conf=settings, config="max_requeues = 1\n")
    try:
        with made:
            enable_mig(made)
            yield Site(made)
    finally:
        made.remove()


@pytest.fixture(autouse=True)
def clean(site: Site) -> Iterator[None]:
    """No job and no limit of another test's."""
    yield
    site.run("scancel", "-u", "alice")
    site.until(lambda: not site.run("squeue", "-h").strip(), "no jobs")
    if not MISSING:
        keys = ("MaxTRESPerUser", "MinTRES")
        limit(site, " ".join(f"{key}=gres/gpu=-1,gres/shard=-1" for key in keys))


def finding(data: dict[str, Any], code: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (item for item in data["findings"] if item["code"] == code)
    return found


def mend(site: Site, fix: str) -> None:
    """Do what the doctor says, to the letter: its sacctmgr command, up to the first remark."""
    command = re.split(r" \(|; ", fix)[0].split()
    assert command[0] == "sacctmgr", fix
    site.run(command[0], "-i", *command[1:])


def test_the_doctor_knows_its_rules(site: Site) -> None:
    """No crash, no false alarm; of what is deserved not one is missing."""
    data = doctor(site.cluster)
    assert codes(data) - deserved(site) == RULES
    assert not data["summary"]["error"]
    said = {item["evidence"] for item in data["findings"] if item["code"] in RULES}
    assert any("PartitionName=DEFAULT" in text for text in said), said
    assert [item["area"] for item in data["not_checked"]] == ["units"]


def test_slices_in_every_partition(site: Site) -> None:
    """With memory and CPUs as Slurm counts them, beside other options of such a site."""
    for partition, options in (
        ("gpu", ["-c2", "--mem=200", "-L", "matlab:1"]),
        ("urgent", ["-n2", "--mem-per-cpu=150", "--comment=mine"]),
        ("interactive", ["--exclusive=user"]),
        ("gpu,interactive", []),
    ):
        job = site.sbatch("-p", partition, "--gres=mig:1g.10gb:1", *options, script=SHOW)
        site.wait(job, "COMPLETED")
        assert seen(site.output(job))[0][2] == "1g.10gb", partition


def test_a_slice_is_preempted_and_comes_back(site: Site) -> None:
    """By partition; both restarts of it are no refusals (`max_requeues` is 1)."""
    low = site.sbatch("-p", "gpu", "-w", "n2", "--gres=mig:7g.80gb:1", "--requeue")
    for turn in range(2):
        site.until(lambda: active(site, low), f"run {turn}")
        site.wait(low, "RUNNING")
        high = site.sbatch("-p", "urgent", "-w", "n2", "--gres=mig:7g.80gb:1", script=SHOW)
        site.wait(high, "COMPLETED")
        assert seen(site.output(high))[0][2] == "7g.80gb"
    site.until(lambda: active(site, low), "the last run")
    assert int(site.show(low, "Restarts")) == 2
    assert not [one for one in site.records("n2") if one.phase == phases.REFUSED]


def active(site: Site, job: int) -> bool:
    return any(one.owner.job_id == job and one.open for one in site.records("n2"))


@pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here")
def test_a_limit_that_slices_pass_by(site: Site) -> None:
    """One GPU a user, and two 7g run; after what the doctor says the second one waits."""
    limit(site, "MaxTRESPerUser=gres/gpu=1")
    both = [site.sbatch("--gres=mig:7g.80gb:1") for _ in range(2)]
    for job in both:
        site.wait(job, "RUNNING")
    found = finding(doctor(site.cluster), "SM141")
    assert "QOS normal: MaxTRESPerUser=gres/gpu=1" in found["evidence"]
    site.run("scancel", *map(str, both))
    site.until(lambda: not site.run("squeue", "-h").strip(), "no jobs")
    mend(site, found["fix"])
    first, second = (site.sbatch("--gres=mig:7g.80gb:1") for _ in range(2))
    site.wait(first, "RUNNING")
    site.until(lambda: "QOSMaxGRESPerUser" in site.show(second, "Reason"), "the limit")
    assert "SM141" not in codes(doctor(site.cluster))


@pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here")
def test_a_minimum_that_no_slice_reaches(site: Site) -> None:
    """It waits for ever; after what the doctor says it runs."""
    limit(site, "MinTRES=gres/gpu=1")
    job = site.sbatch("--gres=mig:1g.10gb:1", script=SHOW)
    site.until(lambda: "QOSMinGRES" in site.show(job, "Reason"), "the minimum")
    found = finding(doctor(site.cluster), "SM142")
    assert found["severity"] == "error"
    mend(site, found["fix"])
    site.wait(job, "COMPLETED")
    assert "SM142" not in codes(doctor(site.cluster))


def test_a_job_with_constraints(site: Site) -> None:
    """The stamp is in nobody's way: `extra` is the site's where the release has it."""
    if _release() < (23, 11):
        pytest.skip("this release does not know extra_constraints")
    job = site.sbatch("--gres=mig:1g.10gb:1", script=SHOW)
    site.wait(job, "COMPLETED")
    assert "slurm-mig" not in site.show(job, "Extra")
    done = site.cluster.try_run(
        "sbatch", "--parsable", "--extra=rack=1", "--gres=mig:1g.10gb:1", "--wrap=true", uid=ALICE
    )
    assert done.returncode == 0, done.stderr
