"""Slurm over its own commands: scontrol, squeue, scancel and sacct.

The client that hooks use. Every command is bounded in time and gets a clean
environment; what Slurm really answers in each situation: slurm-facts.md 2, 3, 6.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

from slurm_mig.errors import SlurmFault
from slurm_mig.files import SEARCH, find_program
from slurm_mig.slurm import LIVE_STATES, AccountingRow, JobFacts, NodeFacts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class CommandClient:
    """Slurm through scontrol, squeue and scancel, in the form that cannot be forged."""

    def __init__(self, directory: Path | None, timeout: float) -> None:
        self._directory = directory
        self._timeout = timeout

    # -- questions -----------------------------------------------------------

    def job(self, job_id: int) -> JobFacts | None:
        """Facts of a job that waits or runs; None when there is none of that id.

        squeue with fixed widths: the text of `scontrol show job` can be forged by
        a job name with newlines in it (slurm-facts.md 6). Asked for an array's
        id, squeue lists all its tasks: only the line with this very id counts.
        """
        widths = (20, 40, 4, 4, 20, 1000, 1000)
        names = (
            "jobid",
            "jobarrayid",
            "batchflag",
            "requeue",
            "state",
            "tres-per-node",
            "nodelist",
        )
        layout = ",".join(f"{name}:{width}" for name, width in zip(names, widths, strict=True))
        try:
            output = self._run("squeue", "-h", "-a", "-j", str(job_id), "-O", layout)
        except SlurmFault as fault:
            if "Invalid job id" in fault.cause:
                return None
            raise
        for line in output.splitlines():
            ident, array, batch, requeue, state, tres, nodes = _cut(line, widths)
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
        """Ids of jobs that have, or may still have, something on the node."""
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
        line = self._run("scontrol", "show", "node", "-o", name).strip()
        # The first of each: the reason comes last, and may quote anything.
        state = re.search(r" State=(\S+)", line)
        gres = re.search(r" Gres=(\S+)", line)
        reason = re.search(r" Reason=(.*) \[[^\[\]]*@[^\[\]]*\]", line)
        return NodeFacts(
            name,
            frozenset(re.findall("[A-Z_]+", state[1] if state else "")),
            reason[1] if reason else "",
            _configured(gres[1] if gres else ""),
        )

    def accounting(self, since: float, until: float) -> list[AccountingRow]:
        """Runs of all users that existed in that time, as slurmdbd has them."""
        columns = "JobIDRaw,User,Account,NodeList,State,Start,End,AllocTRES"
        # sacct refuses times of the first days of 1970.
        start, end = (f"uts{max(time, 1e6):.0f}" for time in (since, until))
        output = self._run(
            "sacct", "-n", "-P", "-X", "-D", "-a", "-o", columns, "-S", start, "-E", end
        )
        return [_row(line.split("|")) for line in output.splitlines()]

    def version(self) -> tuple[int, int]:
        """Slurm's release, such as (22, 5)."""
        match = re.search(r"(\d+)\.(\d+)", self._run("scontrol", "--version"))
        if match is None:
            raise SlurmFault("scontrol --version printed no version")
        return int(match[1]), int(match[2])

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

    def notify(self, reference: str, text: str) -> None:
        """Show a line to whoever waits in srun or salloc."""
        self._run("scontrol", "notify", reference, text)

    def cancel(self, reference: str) -> None:
        """Cancel a job."""
        self._run("scancel", reference)

    def start_after(self, reference: str, seconds: int) -> None:
        """Let a pending job start no sooner than in `seconds`."""
        self._update(reference, f"starttime=now+{seconds}")

    def drain(self, node: str, reason: str) -> None:
        """Drain a node; a reason that is there already stays."""
        self._run("scontrol", "update", f"nodename={node}", "state=drain", f"reason={reason}")

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

    def _run(self, name: str, *arguments: str) -> str:
        command = [str(self._find(name)), *arguments]
        shown = " ".join(command)[:200]
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
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SlurmFault(f"{shown}: no answer within {self._timeout:g} s") from None
        except OSError as problem:
            raise SlurmFault(f"{shown}: {problem.strerror}") from problem
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip()
            raise SlurmFault(f"{shown}: exit {done.returncode}: {text[:300]}")
        return done.stdout.decode(errors="replace")

    def _find(self, name: str) -> Path:
        found = find_program(name, self._directory)
        if found is not None:
            return found
        raise SlurmFault(
            f"no {name} in {self._directory or ', '.join(SEARCH)}",
            remedy="set `bin` in the [slurm] table of the config",
        )


def _gpu_indexes(detail: str) -> tuple[int, ...]:
    """Indexes in `gpu:a:0(IDX:),gpu:b:2(IDX:1-2)`."""
    found: set[int] = set()
    for ranges in re.findall(r"(?:^|,)gpu(?::[^(,]*)?\(IDX:([0-9,-]*)\)", detail):
        for part in filter(None, ranges.split(",")):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def _cut(line: str, widths: Sequence[int]) -> list[str]:
    parts, at = [], 0
    for width in widths:
        parts.append(line[at : at + width].strip())
        at += width
    return parts


def _configured(text: str) -> dict[str, int]:
    """`gpu:h100:2(S:0-1),mig:1g.10gb:14` as name and count."""
    plain = re.sub(r"\([^)]*\)", "", text)
    pairs = [item.rpartition(":") for item in plain.split(",")]
    return {name: int(count) for name, _, count in pairs if count.isdigit()}


def _row(cells: Sequence[str]) -> AccountingRow:
    job, user, account, nodes, state, start, end, tres = cells
    pairs = [item.partition("=") for item in tres.split(",")]
    return AccountingRow(
        job_id=int(job),
        user=user,
        account=account,
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
