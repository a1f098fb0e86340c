"""Slurm over pyslurm, where that serves; the only module that imports it. Never in a hook.

pyslurm 25.11.2 answers what it answers right: jobs, nodes, requeue, notify.
The rest goes to Slurm's commands, each for a reason seen in practice
(docs/slurm.md): it knows jobs by number alone, and the number of an array's
last task means the whole array; `cancel` reports whatever errno was left over;
accounting rows lack their TRES and merge the runs of a requeued job.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm.protocol import (
    ENDED,
    AccountingRow,
    JobFacts,
    JobOnNode,
    NodeFacts,
    Pending,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.slurm.protocol import Slurm

#: Run in a child: without a slurm.conf the import retries for a minute and then ends the
#: process, and a pyslurm of another release may crash it.
PROBE: Final = """
import json, pyslurm
print(json.dumps(pyslurm.__version__), flush=True)
pyslurm.slurmctld.Config.load()
print("true", flush=True)
"""


def installed() -> bool:
    """Whether there is a pyslurm to be tried."""
    return find_spec("pyslurm") is not None


def why_not(commands: Slurm, timeout: float) -> str:
    """Why pyslurm does not serve for the Slurm that runs here, on one line; empty if it does."""
    if not installed():
        return "it is not installed"
    try:
        release = commands.version()
    except SlurmFault as fault:
        return fault.cause
    # -P: what lies in the caller's directory must not be run by root.
    command = [sys.executable, "-P", "-c", PROBE]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"its import did not end within {timeout:g} s"
    version, served = _answers(done.stdout)
    if version and not _fits(version, release):
        return f"version {version} is not for Slurm {release[0]}.{release[1]:02d}"
    if served and done.returncode == 0:
        return ""
    words = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
    return f"its import ended with {ended}: {words[-1][:200]}"


def _answers(output: bytes) -> tuple[str, bool]:
    # pyslurm prints to stdout at times; only our own two lines count.
    words = []
    for line in output.splitlines():
        try:
            words.append(json.loads(line))
        except ValueError:
            continue
    version = next((word for word in words if isinstance(word, str)), "")
    return version, True in words


def _fits(version: str, release: tuple[int, int]) -> bool:
    """It is compiled against one release's structures; with another it could read anything."""
    found = re.match(r"(\d+)\.(\d+)\.", version)
    return found is not None and (int(found[1]), int(found[2])) == release


def _load() -> Any:  # an untyped extension module
    flags = sys.getdlopenflags()
    try:
        import pyslurm  # noqa: TID251  # this is the adapter
    finally:
        # It sets RTLD_GLOBAL and RTLD_DEEPBIND for good; libraries loaded later are not its own.
        sys.setdlopenflags(flags)
    return pyslurm


class LibraryClient:
    """Slurm through pyslurm, and through `commands` where pyslurm cannot or should not."""

    def __init__(self, commands: Slurm) -> None:
        """Only after `why_not` said nothing: the import can end the process."""
        self._commands = commands
        self._library = _load()

    # -- questions -----------------------------------------------------------

    def job(self, job_id: int) -> JobFacts | None:
        """Facts of a job that waits or runs; None when there is none of that id."""
        job = self._find(job_id)
        if job is None:
            return None
        gres = ",".join(f"{name}:{count}" for name, count in job.gres_per_node.items())
        if not gres:
            # It drops a gres without count (`gpu:h100`): no gres may mean one of those.
            return self._commands.job(job_id)
        return JobFacts(
            job_id,
            _reference(job),
            bool(job.is_batch_job),
            bool(job.is_requeueable),
            job.state,
            gres,
            job.allocated_nodes or "",
        )

    def live_jobs(self, node: str) -> frozenset[int]:
        """Ids of jobs that Slurm lists for a node; no proof that others have ended (census.py)."""
        # Of a name that Slurm does not know it would say: no jobs. Slices would be taken down.
        self.node(node)
        jobs = self._ask(self._library.Jobs.load)
        return frozenset(
            job.id
            for job in jobs.values()
            if job.state not in ENDED and node in self._hosts(job.allocated_nodes)
        )

    def state(self, reference: str) -> str:
        """State of a job that waits or runs (`COMPLETING`, too); empty when there is none."""
        if not reference.isdigit():
            return self._commands.state(reference)
        job = self._find(int(reference))
        return "" if job is None else str(job.state)

    def begin(self, reference: str) -> tuple[str, float]:
        """State of a job and when it may start."""
        return self._commands.begin(reference)

    def pending(self) -> list[Pending]:
        """Jobs with slices that wait."""
        return self._commands.pending()

    def release(self, job_id: int) -> None:
        """Let a held job go."""
        self._commands.release(job_id)

    def set_gres(self, node: str, text: str) -> None:
        """Replace a node's Gres."""
        self._commands.set_gres(node, text)

    def set_extra(self, node: str, text: str) -> None:
        """Replace a node's Extra."""
        self._commands.set_extra(node, text)

    def selection(self) -> str:
        """SelectTypeParameters of slurmctld."""
        return self._commands.selection()

    def node(self, name: str) -> NodeFacts:
        """Facts of a node."""
        node = self._ask(lambda: self._library.Node.load(name))
        state = frozenset(word.rstrip("*$#~%-@^!") for word in node.state.split("+"))
        gres = dict(node.configured_gres)
        where = (node.hostname or "", node.address or "")
        return NodeFacts(name, state, node.reason or "", gres, None, *where)

    def nodes(self) -> list[NodeFacts]:
        """Facts of every node, by Slurm's commands: pyslurm has no shards by GPU."""
        return self._commands.nodes()

    def shares(self) -> list[JobOnNode]:
        """What every job that runs has, by Slurm's commands: pyslurm fails on counted gres."""
        return self._commands.shares()

    def accounting(self, since: float, until: float) -> list[AccountingRow]:
        """Runs of all users that existed in that time, as slurmdbd has them."""
        return self._commands.accounting(since, until)

    def number(self, reference: str) -> int | None:
        """The id of a task of an array (`7_3`) or a component (`7+1`); None where it is unknown."""
        return self._commands.number(reference)

    def gpus(self, job_id: int, node: str) -> tuple[int, ...] | None:
        """Indexes of a job's GPUs on a node; None when this Slurm does not tell."""
        return self._commands.gpus(job_id, node)

    def cluster(self) -> str:
        """Name of the cluster."""
        return self._commands.cluster()

    def version(self) -> tuple[int, int]:
        """Slurm's release, such as (22, 5)."""
        return self._commands.version()

    def credential_lifetime(self) -> int:
        """AuthInfo cred_expire in seconds (slurm.conf(5); 120 unless set)."""
        return self._commands.credential_lifetime()

    # -- commands ------------------------------------------------------------

    def requeue(self, reference: str) -> None:
        """Requeue a batch job; already being requeued is success."""
        if not reference.isdigit():
            return self._commands.requeue(reference)
        return self._requeue(int(reference), hold=False)

    def requeue_hold(self, reference: str) -> None:
        """Requeue a batch job and hold it."""
        if not reference.isdigit():
            return self._commands.requeue_hold(reference)
        return self._requeue(int(reference), hold=True)

    def allow_requeue(self, reference: str, *, allow: bool) -> None:
        """Set or clear the job's own wish to be requeued."""
        self._commands.allow_requeue(reference, allow=allow)

    def comment(self, reference: str, text: str) -> None:
        """Replace the job's comment."""
        self._commands.comment(reference, text)

    def comment_of(self, reference: str) -> str:
        """A job's comment with its stamp, to the letter; empty when it is unknown."""
        return self._commands.comment_of(reference)

    def admin_comment(self, reference: str) -> str:
        """What administrators wrote about a job; empty when it is unknown."""
        return self._commands.admin_comment(reference)

    def set_admin_comment(self, reference: str, text: str) -> None:
        """Replace it; slurmdbd keeps it when the job has ended."""
        self._commands.set_admin_comment(reference, text)

    def notify(self, reference: str, text: str) -> None:
        """Show a line to whoever waits in srun or salloc."""
        if not reference.isdigit():
            return self._commands.notify(reference, text)
        self._ask(lambda: self._library.Job(int(reference)).notify(text))
        return None

    def cancel(self, reference: str) -> None:
        """Cancel a job."""
        self._commands.cancel(reference)

    def start_after(self, reference: str, seconds: int) -> None:
        """Let a pending job start no sooner than in `seconds`."""
        self._commands.start_after(reference, seconds)

    def drain(self, node: str, reason: str, *, replace: bool = False) -> None:
        """Drain a node; one that is drained already keeps its reason, unless told otherwise."""
        self._commands.drain(node, reason, replace=replace)

    def undrain(self, node: str) -> None:
        """Take a node's drain and its reason back; one that is down stays down."""
        self._commands.undrain(node)

    def resume(self, node: str) -> None:
        """Take a node's drain and its reason away."""
        self._commands.resume(node)

    # -- pyslurm -------------------------------------------------------------

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._library.PyslurmError as problem:
            raise SlurmFault(f"pyslurm: {problem}") from problem

    def _find(self, job_id: int) -> Any | None:
        try:
            job = self._ask(lambda: self._library.Job.load(job_id))
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return None
            raise
        except KeyError:
            # For an array's id Slurm sends the steps of all its tasks; it stumbles over them.
            jobs = self._ask(self._library.Jobs.load).values()
            job = next((item for item in jobs if item.id == job_id), None)
        # For an array's id it shows the first task, whichever that is. Slurm keeps what has
        # ended for a while; squeue does not show it.
        return None if job is None or job.id != job_id or job.state in ENDED else job

    def _hosts(self, text: str | None) -> list[str]:
        return list(self._library.utils.nodelist_from_range_str(text)) if text else []

    def _requeue(self, job_id: int, *, hold: bool) -> None:
        try:
            self._ask(lambda: self._library.Job(job_id).requeue(hold=hold))
        except SlurmFault as fault:
            if "pending execution" not in fault.cause:
                raise


def _reference(job: Any) -> str:
    if job.heterogeneous_id:
        return f"{job.heterogeneous_id}+{job.heterogeneous_offset or 0}"
    if not job.array_id:
        return str(job.id)
    if job.array_tasks_waiting:
        return f"{job.array_id}_[{job.array_tasks_waiting}]"
    # It takes task 0 for "no task".
    return f"{job.array_id}_{job.array_task_id or 0}"
