"""Who lives here: a "no" of Slurm's is believed only when the question was the right one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm.census import CUT, alive
from slurm_mig.slurm.protocol import JobFacts, NodeFacts
from slurm_mig.system import hosts
from tests.kit.cli import parsed
from tests.kit.hooks import NODE, STAMP, slurm_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.kit.site import Site


@dataclass
class Told:
    """A slurmctld: what it lists for a node, and what it says of each job."""

    listed: frozenset[int] = frozenset()
    jobs: dict[int, JobFacts] = field(default_factory=dict)
    name: str = "sun"

    def node(self, name: str) -> NodeFacts:
        return NodeFacts(name, frozenset({"IDLE"}), "", {}, None, "h", "a")

    def live_jobs(self, _: str) -> frozenset[int]:
        return self.listed

    def job(self, job_id: int) -> JobFacts | None:
        return self.jobs.get(job_id)

    def cluster(self) -> str:
        return self.name


def facts(state: str = "RUNNING", nodes: str = "n1") -> JobFacts:
    return JobFacts(7, "7", True, True, state, "gres:shard:4", nodes)


def living(told: Told, *, here: bool = True, clusters: Sequence[str] = ()) -> frozenset[int]:
    return alive(told, "n1", lambda _: here, {7: {"n1"}}, clusters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "lives"),
    [
        (None, False),
        (facts("COMPLETED"), False),
        (facts("PENDING", ""), False),
        (facts("RUNNING", "n2"), False),
        (facts("RUNNING", "n[0-3]"), True),
        (facts("COMPLETING", "n1"), True),
        (facts("SOMETHING_NEW", ""), True),
        # A list that was cut off may have had this node behind its end.
        (facts("RUNNING", "m" * CUT), True),
    ],
)
def test_the_job_itself_is_asked_for(said: JobFacts | None, lives: bool) -> None:
    """What the node's list lacks may be there all the same."""
    assert living(Told(jobs={7: said} if said else {})) == ({7} if lives else frozenset())


def test_a_record_of_another_name_counts_by_its_own() -> None:
    """Two nodes on one host, or one that was renamed: the job runs where its record says."""
    told = Told(jobs={7: facts(nodes="n9")})
    assert alive(told, "n1", lambda _: True, {7: {"n9"}}) == {7}  # type: ignore[arg-type]


def test_another_machine_of_that_name_is_not_asked() -> None:
    """An idle one would say, with success, that nobody lives."""
    with pytest.raises(SlurmFault, match="n1 is not proven to be this machine"):
        living(Told(), here=False)


def test_another_clusters_slurmctld_is_not_believed() -> None:
    """A job that it does not know may well live; of its own cluster it knows."""
    with pytest.raises(SlurmFault, match="of cluster moon, the slurmctld that answers has"):
        living(Told(), clusters=["moon"])
    assert living(Told(), clusters=["sun"]) == frozenset()


@pytest.mark.parametrize(
    ("host", "address", "here"),
    [
        (socket.gethostname(), "", True),
        (socket.gethostname().upper() + ".example.org", "192.0.2.1", True),
        ("localhost", "", True),
        ("elsewhere.invalid", "127.0.0.1", True),
        ("elsewhere.invalid", "192.0.2.1", False),
        ("192.0.2.7", "", False),
        ("", "", False),
        ("\udc80" * 70, "", False),
    ],
)
def test_whether_it_is_this_machine(host: str, address: str, here: bool) -> None:
    """By its own name or an address of its own; where nothing is said nothing is proven."""
    assert hosts.is_here(host, address) is here


# -- reconcile -----------------------------------------------------------------------

#: Job 7 lives on n1; n2 is idle, and exists.
SQUEUE = "case $* in *'-w n1'*) echo 7 ;; *'-j 7'*) {job} ;; esac"
LINE = f"{7:<20}{7:<40}{1:<4}{1:<4}{0:<8}{'RUNNING':<20}{'n1':<1000}x"


def made(site: Site) -> list[str]:
    board = site.machine.board(0)
    return [f"{board.row(item.profile_id).name}@{item.start}" for item in board.instances]


def cluster(site: Site, node: str, job: str = "exit 0") -> None:
    body = f"case $* in 'show node'*) echo '{node}' ;; esac"
    slurm_commands(site, scontrol=body, squeue=SQUEUE.format(job=job))


def reconcile_as(site: Site, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    """On a host of that name, without a word of slurmd's."""
    command = f'hostname {host}; exec "$0" -m slurm_mig reconcile --json "$@"'
    return subprocess.run(
        ["unshare", "--uts", "sh", "-c", command, sys.executable, *words],
        env={"SLURM_MIG_CONFIG": str(site.config), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.root
def test_the_name_is_the_records(site: Site) -> None:
    """Where NodeName is not the host's name the idle node of that name is not asked."""
    cluster(site, NODE)
    assert site.prolog(7, STAMP).returncode == 0
    done = parsed(reconcile_as(site, "n2"))
    assert done == {"done": [], "left": [], "foreign": []}
    assert len(site.machine.board(0).instances) == 1


@pytest.mark.root
@pytest.mark.parametrize(
    "node",
    [
        # An idle node of this name is somewhere else; or nothing is said of where; or Slurm
        # speaks of another node.
        "NodeName=n2 State=IDLE NodeAddr=192.0.2.1 NodeHostName=n9 ",
        "NodeName=n2 State=IDLE ",
        NODE,
    ],
)
def test_a_name_that_is_not_this_machines(site: Site, node: str) -> None:
    """Nothing is taken down, and what to do is said."""
    cluster(site, node)
    assert site.prolog(7, STAMP).returncode == 0
    done = reconcile_as(site, "n9x", "--node", "n2")
    (left,) = parsed(done, 24)["left"]
    assert "n2 is not proven to be this machine" in left
    assert "--node NAME" in left
    assert len(site.machine.board(0).instances) == 1


@pytest.mark.root
def test_an_idle_node_on_the_same_host(site: Site) -> None:
    """Its name is this machine's, too: then the job itself says where it is."""
    cluster(site, NODE.replace("n1", "n2"), job=f"printf '%s\\n' '{LINE}'")
    assert site.prolog(7, STAMP).returncode == 0
    assert parsed(site.cli("reconcile", "--json", SLURMD_NODENAME="n2"))["done"] == []
    assert len(site.machine.board(0).instances) == 1
    # And when it has ended, that is believed.
    cluster(site, NODE.replace("n1", "n2"))
    (done,) = parsed(site.cli("reconcile", "--json", SLURMD_NODENAME="n2"))["done"]
    assert "its job is no longer on this node" in done


@pytest.mark.root
def test_a_prolog_collects_nothing_on_a_wrong_name(site: Site) -> None:
    """What stands in the way of a job is asked about in the same way."""
    assert site.prolog(7, "slurm-mig=1,7g.80gb/0/31:1").returncode == 0
    slurm_commands(site, squeue="exit 0", scontrol="echo 'NodeName=n1 State=IDLE '")
    assert "not proven" in site.prolog(8, STAMP).stderr
    assert made(site) == ["7g.80gb@0"]
    slurm_commands(site, squeue="exit 0")
    assert "collected=7" in site.prolog(9, STAMP).stderr
    assert made(site) == ["3g.40gb@4"]
