"""Which jobs may still have something on this node: asked so that a "no" can be believed. Pure.

Slurm answers "no jobs" with success for every node that it knows, whoever asks. So before
a job's slices go, two things are proven: that the node asked for is this machine, and, by
the job's own number, that the job is not there either, on whatever node it may be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm import hostlist
from slurm_mig.slurm.protocol import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from slurm_mig.slurm.protocol import JobFacts, NodeFacts, Slurm

#: Characters after which a list of nodes may have been cut off (commands.py, job).
CUT: Final = 1000


def alive(
    slurm: Slurm,
    node: str,
    is_here: Callable[[NodeFacts], bool],
    named: Mapping[int, Collection[str]],
    clusters: Collection[str] = (),
) -> frozenset[int]:
    """Ids of jobs that have, or may have, something on this machine, which Slurm calls `node`.

    `named` has the jobs that something here is on record for, with the names of the node
    that their records have; of these only those are left out that Slurm says are over.
    `clusters` are those that the jobs' marks name. SlurmFault where Slurm's answers would be
    about another node or another cluster.
    """
    prove(slurm, node, is_here)
    listed = slurm.live_jobs(node)
    missing = sorted(named.keys() - listed)
    if missing and clusters:
        _prove_cluster(slurm, clusters)
    return listed | {job for job in missing if _still(slurm.job(job), {node, *named[job]})}


def prove(slurm: Slurm, node: str, is_here: Callable[[NodeFacts], bool]) -> None:
    """SlurmFault unless slurmctld knows a node of that name, and it is this machine."""
    facts = slurm.node(node)
    if is_here(facts):
        return
    where = f"host {facts.host or '?'}, address {facts.address or '?'}"
    raise SlurmFault(
        f"Slurm's node {node} is not proven to be this machine ({where})",
        remedy="name the node as Slurm does: `slurm-mig reconcile --node NAME`",
    )


def _prove_cluster(slurm: Slurm, clusters: Collection[str]) -> None:
    asked = slurm.cluster()
    others = sorted(set(clusters) - {asked})
    if asked and others:
        raise SlurmFault(
            f"jobs here are of cluster {', '.join(others)}, the slurmctld that answers has "
            f"cluster {asked}",
            remedy="set SLURM_CONF to the slurm.conf of the jobs' cluster",
        )


def _still(facts: JobFacts | None, names: Collection[str]) -> bool:
    """Whether a job that Slurm does not list for the node may be there all the same."""
    if facts is None or facts.state in ENDED:
        return False
    if not facts.nodes:
        return facts.state != "PENDING"
    return len(facts.nodes) >= CUT or not set(names).isdisjoint(hostlist.expand(facts.nodes))
