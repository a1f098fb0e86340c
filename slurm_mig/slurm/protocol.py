"""Slurm as the hooks and commands need it: what can be asked, and what is answered.

SchedMD asks hooks not to call Slurm, so the way through a normal job makes no
call at all. What calls there are (a refusal, a job without stamp, reconcile)
go through this protocol: commands.py answers by Slurm's commands,
pyslurm_client.py by pyslurm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from slurm_mig.text import ascii_line
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

#: How drain reasons of ours begin: one of another beginning is never cleared. What is stuck
#: may become free, and a boot may go well later; these are taken back, a fault's is not.
OURS: Final = "slurm-mig: "
STUCK: Final = "slurm-mig: stuck slices: "
BOOT: Final = "slurm-mig: boot: "

#: Longest drain reason that is set, in characters.
LONGEST_REASON: Final = 250

#: States in which a node is out of service, or going to be, for a reason that somebody has to
#: deal with (sinfo(1), NODE STATE CODES).
OUT_OF_SERVICE: Final = frozenset({"DRAIN", "DOWN", "FAIL", "ERROR", "INVAL", "INVALID_REG"})

#: States beside these in which Slurm sends a node no job.
NO_JOBS: Final = OUT_OF_SERVICE | {"NOT_RESPONDING", "UNKNOWN", "FUTURE"}


#: States in which a job has, or may still have, processes or a hook on the node.
LIVE_STATES: Final = (
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
    "RESIZING",
)


#: States of a job that is over. Every other word counts as alive, known here or not: a slice
#: must not be taken from a job because of a new one. (A job that waits has no nodes.)
ENDED: Final = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)


def drain_reason(text: str, beginning: str = OURS) -> str:
    """One printable line; scontrol(1) takes quotation marks at the end for its own."""
    line = ascii_line(beginning + text).replace('"', "'")
    return line[:LONGEST_REASON].rstrip()


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What slurmctld says of one job.

    `reference` is how commands must name it: the last task of an array has the
    array's own id, so that id alone would hit every task, and a component of a
    heterogeneous job can only be requeued through its leader (facts/slurm.md#failing).
    `tres_per_node` is what the job holds on each of its `nodes` (Slurm's host
    list, empty while it waits): slices can be asked for in no other way. `restarts` is how often
    it was started anew, None where it is not told (pyslurm).
    """

    job_id: int
    reference: str
    batch: bool
    requeue: bool
    state: str
    tres_per_node: str
    nodes: str = ""
    restarts: int | None = None


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What slurmctld says of one node: state words (`IDLE`, `DRAIN`), drain reason, gres.

    `shards` are (used, all) of each GPU by Slurm's index, None where this Slurm does not
    tell them by GPU (22.05, which also counts them wrongly: docs/slurm.md). `host` and
    `address` are NodeHostName and NodeAddr, empty where they are not told. `gres_text` is all of
    Gres as an update has to say it, `extra` the node's Extra (23.02 and later).
    """

    name: str
    state: frozenset[str]
    reason: str
    gres: Mapping[str, int]
    shards: tuple[tuple[int, int], ...] | None = None
    host: str = ""
    address: str = ""
    gres_text: str = ""
    extra: str = ""
    partitions: frozenset[str] = frozenset()

    @property
    def out_of_service(self) -> frozenset[str]:
        """Those of its states that take it out of service; empty while it is in service."""
        return self.state & OUT_OF_SERVICE

    def drained_for(self, beginning: str) -> bool:
        """Whether it is drained now with such a reason: since 24.11 Slurm keeps those of old."""
        return "DRAIN" in self.state and self.reason.startswith(beginning)

    @property
    def keeps_its_reason(self) -> bool:
        """Whether another drain must leave the reason as it is.

        Under ours for stuck slices, which is taken back, a fault would be forgotten with it.
        """
        return "DRAIN" in self.state and bool(self.reason) and not self.drained_for(STUCK)


@dataclass(frozen=True, slots=True)
class JobOnNode:
    """What one job that runs has on one node.

    `since` in seconds since the epoch; `gpus` are Slurm's indexes, None where this Slurm
    does not tell (without squeue's JSON plugin).
    """

    job_id: int
    restarts: int
    user: str
    node: str
    since: float | None
    gres: Mapping[str, int]
    gpus: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Pending:
    """A job with slices that waits: why (Slurm's word), since when it could start, what it wants.

    `since` in seconds since the epoch, 0 where Slurm does not say.
    """

    job_id: int
    reason: str
    since: float
    partition: str
    tres_per_node: str


@dataclass(frozen=True, slots=True)
class AccountingRow:
    """One run of a job in Slurm's database; a requeued job has one for each.

    Times are seconds since the epoch, None while the run has not started or
    ended. `gres` has the tracked ones, such as `mig:3g.40gb`.
    """

    job_id: int
    user: str
    nodes: str
    state: str
    start: float | None
    end: float | None
    gres: Mapping[str, int]


class Slurm(Protocol):
    """Everything asked of Slurm. All of it may raise SlurmFault."""

    def job(self, job_id: int) -> JobFacts | None:
        """Facts of a job that waits or runs; None when there is none of that id."""

    def number(self, reference: str) -> int | None:
        """The id of a task of an array (`7_3`) or a component (`7+1`); None where it is unknown."""

    def gpus(self, job_id: int, node: str) -> tuple[int, ...] | None:
        """Indexes of a job's GPUs on a node; None when this Slurm does not tell."""

    def live_jobs(self, node: str) -> frozenset[int]:
        """Ids of jobs that Slurm lists for a node; no proof that others have ended (census.py)."""

    def state(self, reference: str) -> str:
        """State of a job that waits or runs (`COMPLETING`, too); empty when there is none."""

    def begin(self, reference: str) -> tuple[str, float]:
        """State of a job, empty where there is none, and when it may start; 0 if it always may."""

    def pending(self) -> list[Pending]:
        """Jobs with slices that wait, of all users."""

    def release(self, job_id: int) -> None:
        """Let a held job go."""

    def set_gres(self, node: str, text: str) -> None:
        """Replace a node's Gres, all of it, until it registers again."""

    def set_extra(self, node: str, text: str) -> None:
        """Replace a node's Extra."""

    def selection(self) -> str:
        """SelectTypeParameters of slurmctld, such as `CR_CPU,LL_SHARED_GRES`."""

    def node(self, name: str) -> NodeFacts:
        """Facts of a node."""

    def nodes(self) -> list[NodeFacts]:
        """Facts of every node."""

    def shares(self) -> list[JobOnNode]:
        """What every job that runs has, a row for each of its nodes."""

    def accounting(self, since: float, until: float) -> list[AccountingRow]:
        """Runs of all users that existed in that time, as slurmdbd has them.

        SlurmFault without slurmdbd: no rows would say that nobody ran anything.
        """

    def requeue(self, reference: str) -> None:
        """Requeue a batch job; already being requeued is success."""

    def requeue_hold(self, reference: str) -> None:
        """Requeue a batch job and hold it."""

    def allow_requeue(self, reference: str, *, allow: bool) -> None:
        """Set or clear the job's own wish to be requeued."""

    def comment(self, reference: str, text: str) -> None:
        """Replace the job's comment."""

    def comment_of(self, reference: str) -> str:
        """A job's comment with its stamp, to the letter; empty when it is unknown."""

    def admin_comment(self, reference: str) -> str:
        """What administrators wrote about a job; empty when it is unknown."""

    def set_admin_comment(self, reference: str, text: str) -> None:
        """Replace it; slurmdbd keeps it when the job has ended."""

    def notify(self, reference: str, text: str) -> None:
        """Show a line to whoever waits in srun or salloc."""

    def cancel(self, reference: str) -> None:
        """Cancel a job."""

    def start_after(self, reference: str, seconds: int) -> None:
        """Let a pending job start no sooner than in `seconds`."""

    def drain(self, node: str, reason: str, *, replace: bool = False) -> None:
        """Drain a node; one that is drained already keeps its reason, unless told otherwise."""

    def undrain(self, node: str) -> None:
        """Take a node's drain and its reason back; one that is down stays down."""

    def resume(self, node: str) -> None:
        """Take a node's drain and its reason away."""

    def cluster(self) -> str:
        """Name of the cluster (slurm.conf(5), ClusterName); empty where it has none."""

    def version(self) -> tuple[int, int]:
        """Slurm's release, such as (22, 5)."""

    def credential_lifetime(self) -> int:
        """AuthInfo cred_expire in seconds (slurm.conf(5); 120 unless set)."""
