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
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import NodeFault, SlurmFault
from slurm_mig.slurm import hostlist
from slurm_mig.slurm.protocol import LIVE_STATES, STUCK, AccountingRow, JobFacts, NodeFacts, Share
from slurm_mig.system.causes import out_of_order
from slurm_mig.system.files import SEARCH, find_program, trusted
from slurm_mig.system.held import ask_freely

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


#: Bytes of squeue's columns for a job's number and for its AdminComment; no argument of a
#: command can be twice as long (execve(2), MAX_ARG_STRLEN).
ID_WIDTH, COMMENT_WIDTH = 20, 65000

#: Limits in TRES that a QOS and an association can have (sacctmgr(1)).
LIMITS: Final = (
    "GrpTRES", "GrpTRESMins", "GrpTRESRunMins", "MaxTRES", "MaxTRESPerNode", "MaxTRESMins",
)  # fmt: skip

#: Columns that sacct is asked for.
SACCT_CELLS = 7


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
        widths = (20, 40, 4, 4, 20, 1000, 1000)
        names = (
            "jobid",
            "jobarrayid",
            "batchflag",
            "requeue",
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
            ident, array, batch, requeue, state, nodes, tres = _cut(line, widths)
            if ident == str(job_id):
                gres = "" if tres == "N/A" else tres
                return JobFacts(job_id, array, batch == "1", requeue == "1", state, gres, nodes)
        return None

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
            return _gpu_indexes(detail)
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

    def node(self, name: str) -> NodeFacts:
        """Facts of a node; nothing in this line is a user's to write."""
        return _node_facts(name, self._run("scontrol", "show", "node", "-d", "-o", name).strip())

    def nodes(self) -> list[NodeFacts]:
        """Facts of every node."""
        lines = self._run("scontrol", "show", "node", "-d", "-o").split("\n")
        named = [(re.match(r"NodeName=(\S+)", line), line) for line in lines]
        return [_node_facts(name[1], line) for name, line in named if name]

    def shares(self) -> list[Share]:
        """What every job that runs has, a row for each of its nodes."""
        states = ",".join(LIVE_STATES)
        try:
            return _shares(self._run("squeue", "--json", "-a", "-t", states))
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
        return [item for line in lines for item in _listed(_cut(line, widths))]

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
        return [_row(line) for line in filter(None, output.split("\n"))]

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
        layout = f"jobid:{ID_WIDTH},admin_comment:{COMMENT_WIDTH}"
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
            raise SlurmFault(
                f"the AdminComment has {COMMENT_WIDTH} bytes or more, and stays as it is"
            )
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

    def drain(self, node: str, reason: str, *, replace: bool = False) -> None:
        """Drain a node; one that is drained already keeps its reason, unless told otherwise.

        Slurm itself would replace it, an administrator's too.
        """
        # Both together within the time of one: hooks have no more when they are given up.
        until = time.monotonic() + self._timeout
        facts = self.node(node)
        # Under ours for stuck slices, which is taken back, a fault would be forgotten with it.
        kept = facts.reason and not facts.reason.startswith(STUCK)
        if "DRAIN" in facts.state and kept and not replace:
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
            raise SlurmFault(f"{shown}: exit {done.returncode}: {text[:300]}")
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


def _check_program(path: Path) -> None:
    """Root runs no program that a user could have put there: as if Slurm did not answer."""
    try:
        with trusted(path):
            return
    except NodeFault as fault:
        raise SlurmFault(f"run {path.name}: {fault.cause}", remedy=fault.remedy) from fault


def _gpu_indexes(detail: str) -> tuple[int, ...]:
    """Indexes in `gpu:a:0(IDX:),gpu:b:2(IDX:1-2)`."""
    found: set[int] = set()
    for ranges in re.findall(r"(?:^|,)gpu(?::[^(,]*)?\(IDX:([0-9,-]*)\)", detail):
        found |= _indexes(ranges)
    return tuple(sorted(found))


def _indexes(ranges: str) -> set[int]:
    """`0,2-3` as numbers; none of an empty text."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _cut(line: str, widths: Sequence[int]) -> list[str]:
    parts, at = [], 0
    for width in widths:
        parts.append(line[at : at + width].strip())
        at += width
    return parts


def _node_facts(name: str, line: str) -> NodeFacts:
    """A line of `scontrol show node -d -o`; nothing in it is a user's to write."""
    # The first of each: the reason comes last, and may quote anything.
    state = re.search(r" State=(\S+)", line)
    gres = re.search(r" Gres=(\S+)", line)
    used = re.search(r" GresUsed=(\S+)", line)
    reason = re.search(r" Reason=(.*) \[[^\[\]]*@[^\[\]]*\]", line)
    # Of another node, whose answer that may be, it is no proof.
    this = line.startswith(f"NodeName={name} ")
    host = re.search(r" NodeHostName=(\S+)", line) if this else None
    address = re.search(r" NodeAddr=(\S+)", line) if this else None
    counts = _configured(gres[1] if gres else "")
    return NodeFacts(
        name,
        frozenset(re.findall("[A-Z_]+", state[1] if state else "")),
        reason[1] if reason else "",
        counts,
        _by_gpu(counts, _details(used[1] if used else "")),
        host[1] if host else "",
        address[1] if address else "",
    )


def _details(text: str) -> list[tuple[str, str]]:
    """`mig:1g.10gb(CNT:2),shard:h100:8(8/31,0/0)` as words with what stands in their brackets."""
    return re.findall(r"([^,()]+)\(([^)]*)\)", text)


def _by_gpu(
    counts: Mapping[str, int], details: Sequence[tuple[str, str]]
) -> tuple[tuple[int, int], ...] | None:
    """(used, all) shards of each GPU; Slurm counts the places within each type of GPU.

    26.05 writes `-/31` for a GPU that a job has as a whole: none of its shards is used.
    """
    places = {
        word.rpartition(":")[0].removeprefix("shard:"): re.findall(r"(\d+|-)/(\d+)", inside)
        for word, inside in details
        if word.startswith("shard:")
    }
    if not any(places.values()):
        return None
    found: list[tuple[int, int]] = []
    for name, count in counts.items():
        if name.startswith("gpu:"):
            pairs = places.get(name.removeprefix("gpu:"), [])
            shards = [(0 if used == "-" else int(used), int(full)) for used, full in pairs]
            found += shards or [(0, 0)] * count
    return tuple(found)


def _shares(output: str) -> list[Share]:
    """What `squeue --json` says; SlurmFault, named after it, where it does not say enough."""
    import json

    try:
        jobs = json.loads(output)["jobs"]
        return [item for job in jobs for item in _share(job)]
    except (ValueError, KeyError, TypeError) as problem:
        raise SlurmFault(f"squeue --json: {type(problem).__name__}: {problem}") from problem


def _share(job: dict[str, Any]) -> Iterator[Share]:
    # 22.05 lists every job, whatever states were asked for.
    states = job["job_state"]
    words = [states] if isinstance(states, str) else states
    if not job["nodes"] or not {*words} & {*LIVE_STATES}:
        return
    nodes = _allocated(job["job_resources"])
    # A job without gres has an empty list.
    for node, detail in zip(nodes, job["gres_detail"] or [""] * len(nodes), strict=True):
        gres, gpus = _held(detail)
        yield Share(
            job["job_id"],
            job["restart_cnt"],
            # A login node may not know every user.
            job["user_name"] or str(job["user_id"]),
            node,
            _start(job["start_time"]),
            gres,
            gpus,
        )


def _allocated(resources: dict[str, Any]) -> list[str]:
    """Names of a job's nodes, in the order of its gres; 22.05 calls the list something else."""
    if "allocated_nodes" in resources:
        return [item["nodename"] for item in resources["allocated_nodes"]]
    return [item["name"] for item in resources["nodes"]["allocation"]]


def _start(value: Any) -> float | None:
    """22.05 writes a plain number, 0 for none."""
    if isinstance(value, int):
        return float(value) or None
    return float(value["number"]) if value["set"] else None


def _held(detail: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """Counts by name, and the indexes of the GPUs that they are on.

    Unlike a node's, a job's shards are told for every GPU of the node, in their order; by
    22.05 as the one GPU that they are of.
    """
    gres: dict[str, int] = {}
    gpus: set[int] = set(_gpu_indexes(detail))
    for word, inside in _details(detail):
        if inside.startswith("CNT:"):
            gres[word] = int(inside.removeprefix("CNT:"))
        else:
            name, _, count = word.rpartition(":")
            # 22.05 tells 0 of each type that a node has and the job does not.
            gres |= {name: int(count)} if int(count) else {}
            gpus |= _indexes(inside[4:] if inside.startswith("IDX:") else "")
            used = enumerate(re.findall(r"(\d+)/\d+", inside))
            gpus |= {place for place, number in used if int(number)}
    return gres, tuple(sorted(gpus))


def _listed(cells: Sequence[str]) -> Iterator[Share]:
    """A line of squeue, which does not tell GPUs."""
    job, restarts, uid, user, start, nodes, tres = cells
    gres = {
        name: int(count)
        for item in tres.split(",")
        for name, _, count in [item.removeprefix("gres:").removeprefix("gres/").rpartition(":")]
        if name and count.isdigit()
    }
    for node in hostlist.expand(nodes) if nodes else ():
        since = float(start) if start.isdigit() else None
        name = uid if user == "nobody" else user
        yield Share(int(job), int(restarts), name, node, since, gres, None)


def _configured(text: str) -> dict[str, int]:
    """`gpu:h100:2(S:0-1),mig:1g.10gb:14` as name and count."""
    plain = re.sub(r"\([^)]*\)", "", text)
    pairs = [item.rpartition(":") for item in plain.split(",")]
    return {name: int(count) for name, _, count in pairs if count.isdigit()}


def _row(line: str) -> AccountingRow:
    cells = line.split("|")
    if len(cells) != SACCT_CELLS or not cells[0].isdecimal():
        raise SlurmFault(
            f"sacct printed {line[:100]!r}, not a run of a job",
            remedy="compare `sacct --version` with that of slurmdbd",
        )
    job, user, nodes, state, start, end, tres = cells
    pairs = [item.partition("=") for item in tres.split(",")]
    return AccountingRow(
        job_id=int(job),
        user=user,
        nodes=nodes,
        # "CANCELLED by 0"
        state=state.partition(" ")[0],
        start=_seconds(start),
        end=_seconds(end),
        gres={
            name.removeprefix("gres/"): int(count)
            for name, _, count in pairs
            if name.startswith("gres/")
        },
    )


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None
