"""Slurm over its own commands: scontrol, squeue, scancel and sacct.

The client that hooks use. Every command is bounded in time and gets a clean
environment; what Slurm really answers in each situation: facts/slurm.md#failing, #requeue,
#reading-gres.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, SlurmFault
from slurm_mig.slurm.answers import (
    COMMENT_WIDTH,
    ID_WIDTH,
    LIMITS,
    accounting_row,
    cut,
    gpu_indexes,
    listed,
    node_facts,
    shares_of,
)
from slurm_mig.slurm.protocol import (
    LIVE_STATES,
    AccountingRow,
    JobFacts,
    JobOnNode,
    NodeFacts,
    Pending,
)
from slurm_mig.system.causes import out_of_order
from slurm_mig.system.held import ask_freely
from slurm_mig.system.programs import SEARCH, find_program
from slurm_mig.system.trust import trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


#: As much of a command's arguments as a message about its failure quotes.
LONG_COMMAND: Final = 40


class CommandClient:
    """Slurm through scontrol, squeue and scancel, in the form that cannot be forged."""

    def __init__(
        self,
        directory: Path | None,
        timeout: float,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """`tell` hears of each command before it is run."""
        self._directory = directory
        self._timeout = timeout
        self._tell = tell

    # -- questions -----------------------------------------------------------

    def job(self, job_id: int) -> JobFacts | None:
        """Facts of a job that waits or runs; None when there is none of that id.

        squeue with fixed widths: the text of `scontrol show job` can be forged by
        a job name with newlines in it (facts/slurm.md#reading-gres). Asked for an array's
        id, squeue lists all its tasks: only the line with this very id counts.
        """
        widths = (20, 40, 4, 4, 8, 20, 1000, 1000)
        names = (
            "jobid",
            "jobarrayid",
            "batchflag",
            "requeue",
            "restartcnt",
            "state",
            "nodelist",
            # Last, for it has a user's own words.
            "tres-per-node",
        )
        layout = ",".join(f"{name}:{width}" for name, width in zip(names, widths, strict=True))
        try:
            output = self._run("squeue", "-h", "-a", "-j", str(job_id), "-O", layout)
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return None
            raise
        for line in output.split("\n"):
            ident, array, batch, requeue, count, state, nodes, tres = cut(line, widths)
            if ident == str(job_id):
                gres = "" if tres == "N/A" else tres
                again = int(count) if count.isdigit() else None
                may = requeue == "1"
                return JobFacts(job_id, array, batch == "1", may, state, gres, nodes, again)
        return None

    def number(self, reference: str) -> int | None:
        """The id of a task of an array (`7_3`) or a component (`7+1`); None where it is unknown."""
        # Asked for a component, squeue lists all of them; an array's task it lists alone.
        leader, _, offset = reference.partition("+")
        try:
            output = self._run("squeue", "-h", "-a", "-j", leader, "-O", "jobid:20,hetjoboffset:20")
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return None
            raise
        rows = [line.split() for line in output.splitlines()]
        found = [row[0] for row in rows if not offset or row[1:] == [offset]]
        return int(found[0]) if len(found) == 1 and found[0].isdigit() else None

    def gpus(self, job_id: int, node: str) -> tuple[int, ...] | None:
        """Indexes of a job's GPUs on a node; None when this Slurm does not tell.

        JSON, for the text of `scontrol show job` can be forged (see `job`).
        """
        import json

        try:
            output = self._run("scontrol", "--json", "show", "job", str(job_id))
        except SlurmFault as fault:
            # 22.05 has no JSON, and hooks whose variables name every GPU.
            if "unrecognized option" in fault.cause:
                return None
            raise
        try:
            (job,) = [job for job in json.loads(output)["jobs"] if job["job_id"] == job_id]
            nodes = [item["name"] for item in job["job_resources"]["nodes"]["allocation"]]
            detail = dict(zip(nodes, job["gres_detail"], strict=True)).get(node, "")
            return gpu_indexes(detail)
        except (ValueError, KeyError, TypeError) as problem:
            raise SlurmFault(
                f"scontrol --json show job {job_id}: {type(problem).__name__}: {problem}"
            ) from problem

    def live_jobs(self, node: str) -> frozenset[int]:
        """Ids of jobs that Slurm lists for a node; no proof that others have ended (census.py)."""
        output = self._run(
            "squeue", "-h", "-a", "-w", node, "-t", ",".join(LIVE_STATES), "-o", "%A"
        )
        try:
            return frozenset(int(word) for word in output.split())
        except ValueError:
            raise SlurmFault(f"squeue -w {node} printed {output[:100]!r}, not job ids") from None

    def state(self, reference: str) -> str:
        """State of a job that waits or runs (`COMPLETING`, too); empty when there is none."""
        try:
            return (self._run("squeue", "-h", "-a", "-j", reference, "-o", "%T").split() or [""])[0]
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return ""
            raise

    def begin(self, reference: str) -> tuple[str, float]:
        """State of a job, empty where there is none, and when it may start; 0 if it always may."""
        layout = "state:20,eligibletime:30"
        try:
            output = self._run("squeue", "-h", "-a", "-j", reference, "-O", layout)
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return "", 0.0
            raise
        state, begin = cut(output.split("\n")[0], (20, 30))
        return state, float(begin) if begin.isdigit() else 0.0

    def pending(self) -> list[Pending]:
        """Jobs with slices that wait, of all users.

        In columns of fixed widths, for the last one has a user's own words.
        """
        widths = (20, 60, 30, 200, 1000)
        names = ("jobid", "reason", "eligibletime", "partition", "tres-per-node")
        layout = ",".join(f"{name}:{width}" for name, width in zip(names, widths, strict=True))
        output = self._run("squeue", "-h", "-a", "-t", "PENDING", "-O", layout)
        rows = (cut(line, widths) for line in output.split("\n"))
        return [
            Pending(int(job), reason, float(since) if since.isdigit() else 0.0, partition, tres)
            for job, reason, since, partition, tres in rows
            if job.isdigit() and re.search(r"\bmig:", tres)
        ]

    def selection(self) -> str:
        """SelectTypeParameters of slurmctld, such as `CR_CPU,LL_SHARED_GRES`."""
        return self.configuration().get("selecttypeparameters", "")

    def node(self, name: str) -> NodeFacts:
        """Facts of a node; nothing in this line is a user's to write."""
        return node_facts(name, self._run("scontrol", "show", "node", "-d", "-o", name).strip())

    def nodes(self) -> list[NodeFacts]:
        """Facts of every node."""
        lines = self._run("scontrol", "show", "node", "-d", "-o").split("\n")
        named = [(re.match(r"NodeName=(\S+)", line), line) for line in lines]
        return [node_facts(name[1], line) for name, line in named if name]

    def shares(self) -> list[JobOnNode]:
        """What every job that runs has, a row for each of its nodes."""
        states = ",".join(LIVE_STATES)
        try:
            return shares_of(self._run("squeue", "--json", "-a", "-t", states))
        except SlurmFault as fault:
            # Without the JSON plugin: squeue's columns have no GPUs.
            if not fault.cause.startswith("squeue --json"):
                raise
        widths = (20, 8, 12, 40, 24, 1000, 400)
        names = [
            "jobid",
            "restartcnt",
            "userid",
            "username",
            "starttime",
            "nodelist",
            # Last, for it has a user's own words.
            "tres-per-node",
        ]
        layout = ",".join(f"{name}:{width}" for name, width in zip(names, widths, strict=True))
        output = self._run("squeue", "-h", "-a", "-t", states, "-O", layout)
        lines = filter(None, output.split("\n"))
        return [item for line in lines for item in listed(cut(line, widths))]

    def accounting(self, since: float, until: float) -> list[AccountingRow]:
        """Runs of all users that existed in that time, as slurmdbd has them.

        Of what users write sacct is asked for nothing. Where associations are not enforced an
        account can be any text: with `|` and newlines in it, whole rows of another user's.
        """
        columns = "JobIDRaw,User,NodeList,State,Start,End,AllocTRES"
        # sacct refuses times of the first days of 1970.
        start, end = (f"uts{max(time, 1e6):.0f}" for time in (since, until))
        output = self._run(
            "sacct", "-n", "-P", "-X", "-D", "-a", "-o", columns, "-S", start, "-E", end
        )
        return [accounting_row(line) for line in filter(None, output.split("\n"))]

    def cluster(self) -> str:
        """Name of the cluster (slurm.conf(5), ClusterName); empty where it has none."""
        return self.configuration().get("clustername", "")

    def version(self) -> tuple[int, int]:
        """Slurm's release, such as (22, 5)."""
        match = re.search(r"(\d+)\.(\d+)", self._run("scontrol", "--version"))
        if match is None:
            raise SlurmFault("scontrol --version printed no version")
        return int(match[1]), int(match[2])

    def configuration(self) -> dict[str, str]:
        """What slurmctld has loaded, keys in lower case; `(null)` is empty (scontrol(1))."""
        lines = self._run("scontrol", "show", "config").splitlines()
        pairs = (line.partition("=") for line in lines if "=" in line)
        return {
            key.strip().lower(): "" if value.strip() == "(null)" else value.strip()
            for key, _, value in pairs
        }

    def limits(self, cluster: str) -> Iterator[tuple[tuple[str, ...], str, str]]:
        """Limits that slurmdbd keeps: whose, which, and its TRES (sacctmgr(1)).

        Whose: `("qos", name)`, or `("assoc", account, user, partition)`. What stands behind the
        names has a fixed number of columns: they are counted from the end.
        """
        every = (
            ("qos", (), "Name", (*LIMITS, "MaxTRESPerUser", "MaxTRESPerAccount", "MinTRES")),
            ("assoc", ("where", f"cluster={cluster}"), "Account,User,Partition", LIMITS),
        )
        for kind, which, names, keys in every:
            layout = ",".join((names, *keys))
            output = self._run("sacctmgr", "-n", "-P", "show", kind, *which, f"format={layout}")
            for line in filter(None, output.split("\n")):
                head, *values = line.rsplit("|", len(keys))
                for key, tres in zip(keys, values, strict=False):
                    if tres:
                        yield (kind, *head.split("|")), key, tres

    def credential_lifetime(self) -> int:
        """AuthInfo cred_expire in seconds (slurm.conf(5); 120 unless set)."""
        output = self._run("scontrol", "show", "config")
        match = re.search(r"^AuthInfo\s*=.*\bcred_expire=(\d+)", output, re.MULTILINE)
        return int(match[1]) if match else 120

    # -- commands ------------------------------------------------------------

    def requeue(self, reference: str) -> None:
        """Requeue a batch job; already being requeued is success."""
        self._tolerating("pending execution", "scontrol", "requeue", reference)

    def requeue_hold(self, reference: str) -> None:
        """Requeue a batch job and hold it."""
        self._tolerating("pending execution", "scontrol", "requeuehold", reference)

    def allow_requeue(self, reference: str, *, allow: bool) -> None:
        """Set or clear the job's own wish to be requeued."""
        self._update(reference, f"requeue={int(allow)}")

    def comment(self, reference: str, text: str) -> None:
        """Replace the job's comment."""
        self._update(reference, f"comment={text}")

    def admin_comment(self, reference: str) -> str:
        """What administrators wrote about a job, to the letter; empty when it is unknown.

        SlurmFault where it is longer than can be read: who writes it back would cut it.
        """
        return self._long_text(reference, "admin_comment", "AdminComment")

    def comment_of(self, reference: str) -> str:
        """A job's comment with its stamp, to the letter; empty when it is unknown."""
        return self._long_text(reference, "comment", "comment")

    def _long_text(self, reference: str, column: str, name: str) -> str:
        layout = f"jobid:{ID_WIDTH},{column}:{COMMENT_WIDTH}"
        try:
            data = self._output("squeue", "-h", "-a", "-j", reference, "-O", layout)
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return ""
            raise
        # By bytes, as squeue pads, for there may be newlines in it. A heterogeneous job's leader
        # stands for all its components.
        size = ID_WIDTH + COMMENT_WIDTH + 1
        rows = [data[at : at + size] for at in range(0, len(data), size)]
        mine = [row for row in rows if row[:ID_WIDTH].strip() == os.fsencode(reference)]
        row = next(iter(mine or rows), b"")
        text = row[ID_WIDTH:].removesuffix(b"\n").rstrip(b" ")
        if len(text) >= COMMENT_WIDTH:
            raise SlurmFault(f"the {name} has {COMMENT_WIDTH} bytes or more, and stays as it is")
        # As arguments are encoded again: what is written back is what was read.
        return "" if text == b"(null)" else os.fsdecode(text)

    def set_admin_comment(self, reference: str, text: str) -> None:
        """Replace it; slurmdbd keeps it when the job has ended."""
        self._update(reference, f"admincomment={text}")

    def notify(self, reference: str, text: str) -> None:
        """Show a line to whoever waits in srun or salloc."""
        self._run("scontrol", "notify", reference, text)

    def cancel(self, reference: str) -> None:
        """Cancel a job."""
        self._run("scancel", reference)

    def start_after(self, reference: str, seconds: int) -> None:
        """Let a pending job start no sooner than in `seconds`."""
        self._update(reference, f"starttime=now+{seconds}")

    def release(self, job_id: int) -> None:
        """Let a held job go."""
        self._run("scontrol", "release", str(job_id))

    def set_gres(self, node: str, text: str) -> None:
        """Replace a node's Gres, all of it, until it registers again."""
        self._run("scontrol", "update", f"nodename={node}", f"gres={text}")

    def set_extra(self, node: str, text: str) -> None:
        """Replace a node's Extra."""
        self._run("scontrol", "update", f"nodename={node}", f"extra={text}")

    def drain(self, node: str, reason: str, *, replace: bool = False) -> None:
        """Drain a node; one that is drained already keeps its reason, unless told otherwise.

        Slurm itself would replace it, an administrator's too.
        """
        # Both together within the time of one: hooks have no more when they are given up.
        until = time.monotonic() + self._timeout
        facts = self.node(node)
        if facts.keeps_its_reason and not replace:
            return
        command = ("scontrol", "update", f"nodename={node}", "state=drain", f"reason={reason}")
        self._run(*command, until=until)

    def undrain(self, node: str) -> None:
        """Take a node's drain and its reason back; one that is down stays down."""
        self._run("scontrol", "update", f"nodename={node}", "state=undrain")

    def resume(self, node: str) -> None:
        """Take a node's drain and its reason away."""
        self._run("scontrol", "update", f"nodename={node}", "state=resume")

    def _update(self, reference: str, assignment: str) -> None:
        self._run("scontrol", "update", f"jobid={reference}", assignment)

    def _tolerating(self, text: str, *command: str) -> None:
        try:
            self._run(*command)
        except SlurmFault as fault:
            if text not in fault.cause:
                raise

    def _run(self, name: str, *arguments: str, until: float | None = None) -> str:
        """A command's output as text; see `_output`."""
        return self._output(name, *arguments, until=until).decode(errors="replace")

    def _output(self, name: str, *arguments: str, until: float | None = None) -> bytes:
        """A command's output; no longer than the timeout, or than `until` if that comes first."""
        ask_freely(name)
        left = self._timeout if until is None else max(0.1, until - time.monotonic())
        command = [str(self._find(name)), *arguments]
        shown = " ".join(command)[:200]
        if self._tell is not None:
            self._tell(shown)
        # A message is about what failed; squeue's fields would hide it.
        words = " ".join(arguments)
        words = words if len(words) <= LONG_COMMAND else f"{words[:LONG_COMMAND]}..."
        shown = f"{command[0]} {words}"
        # Only what Slurm needs: nothing that came with the job reaches a root command.
        environment = {"PATH": ":".join(SEARCH), "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
        if "SLURM_CONF" in os.environ:
            environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                timeout=left,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlurmFault(f"{shown}: no answer within {round(left, 1):g} s") from None
        except OSError as problem:
            raise out_of_order(problem, shown, SlurmFault) from problem
        if done.returncode != 0:
            # scontrol says some of it on its standard output: "Node n9 not found".
            text = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
            raise SlurmFault(f"{shown}: exit {done.returncode}: {_cause(text)[:300]}")
        return done.stdout

    def _find(self, name: str) -> Path:
        found = find_program(name, self._directory)
        if found is not None:
            if os.geteuid() == 0:
                _check_program(found)
            return found
        raise SlurmFault(
            f"no {name} in {self._directory or ', '.join(SEARCH)}",
            remedy="set `bin` in the [slurm] table of the config",
        )


def _cause(text: str) -> str:
    """Of a command's complaints the one line to go by: without slurm.conf it has four."""
    told = [line for line in text.splitlines() if re.search("error:|fatal:", line)]
    return told[-1] if told else text


def _check_program(path: Path) -> None:
    """Root runs no program that a user could have put there: as if Slurm did not answer."""
    try:
        with trusted(path):
            return
    except NodeFault as fault:
        raise SlurmFault(f"run {path.name}: {fault.cause}", remedy=fault.remedy) from fault
