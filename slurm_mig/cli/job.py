"""`slurm-mig job`: one job's slices: where, which, since when, why refused, what next."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.cli._node import open_node, slurm_of
from slurm_mig.cli._options import JobId, json_option
from slurm_mig.cli._print import age, cell, folded, paint, print_json, when, working
from slurm_mig.errors import SlurmFault, UsageFault
from slurm_mig.mig.allocation import ACTIVE, LOST, PLANNED, QUARANTINED, REFUSED, RELEASING

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.node.node import Node
    from slurm_mig.slurm.protocol import JobFacts, JobOnNode

#: What stands for a job's state where there is none.
SILENT: Final = "Slurm does not answer"
GONE: Final = "no longer in Slurm's queue"

_COLOURS: Final = {ACTIVE: "good", REFUSED: "warn", QUARANTINED: "bad", LOST: "bad"}


@click.command()
@click.argument("job_id", metavar="JOBID", type=JobId())
@json_option
def command(job_id: int, as_json: bool) -> None:
    """Show one job: where, which slices, since when, why it was refused, and what comes next.

    Slurm is asked, and root on a node is told what the node's ledger has, too. Of an array's
    task or a heterogeneous job's component JOBID is its own id: squeue -O JobID.
    """
    with open_node(look=True) as node:
        records = _recorded(node, job_id)
        with working("asking Slurm"):
            facts, shares, silence = _asked(node, job_id)
    if not (facts or records or silence):
        raise UsageFault(
            f"job {job_id}: Slurm lists none of that id, and no ledger read here has it",
            remedy=f"`sacct -j {job_id} -o JobID,State,NodeList` says where it ran: ask there",
        )
    if as_json:
        print_json(_plain(job_id, facts, shares, records, silent=bool(silence)))
    else:
        state = SILENT if silence else facts.state if facts else GONE
        click.echo("\n".join(_lines(job_id, state, facts, shares, records)))
    for fault in silence:
        raise fault


def _recorded(node: Node, job_id: int) -> list[Allocation]:
    """What this node's ledger has of the job; nothing for users, whose it is not to read."""
    if os.geteuid() != 0 or not node.config.ledger.exists():
        return []
    return sorted(node.ledger.of_job(job_id), key=lambda record: record.created)


def _asked(node: Node, job_id: int) -> tuple[JobFacts | None, list[JobOnNode], list[SlurmFault]]:
    """What Slurm says; its silence hides no record."""
    try:
        slurm = slurm_of(node)
        facts = slurm.job(job_id)
        shares = slurm.shares() if facts and facts.nodes else []
    except SlurmFault as fault:
        return None, [], [fault]
    return facts, [item for item in shares if item.job_id == job_id], []


def _plain(
    job_id: int,
    facts: JobFacts | None,
    shares: list[JobOnNode],
    records: list[Allocation],
    *,
    silent: bool,
) -> dict[str, Any]:
    state = SILENT if silent else facts.state if facts else GONE
    return {
        "job_id": job_id,
        "state": facts.state if facts else None,
        "nodes": facts.nodes if facts else None,
        "holds": [
            {"node": item.node, "gpus": item.gpus, "since": item.since, "gres": dict(item.gres)}
            for item in shares
        ],
        "records": [record.to_dict() for record in records],
        "next": _next(job_id, state, records),
    }


def _lines(
    job_id: int,
    state: str,
    facts: JobFacts | None,
    shares: list[JobOnNode],
    records: list[Allocation],
) -> list[str]:
    users = [item.user for item in shares] + [record.owner.user for record in records]
    of = f" of {cell(users[0])}" if users else ""
    where = f" on {facts.nodes}" if facts and facts.nodes else ""
    lines = [paint(f"job {job_id}{of}: {state.lower() if facts else state}{where}", "head")]
    # What a node's ledger tells is more than Slurm knows of it.
    told = {record.node for record in records if record.open}
    lines += [_share(item) for item in shares if item.node not in told]
    for record in records:
        lines += _record(record)
    lines.append(folded(f"next: {_next(job_id, state, records)}", 6))
    return lines


def _share(item: JobOnNode) -> str:
    what = ", ".join(
        name.removeprefix("mig:") + (f" x{count}" if count > 1 else "")
        for name, count in item.gres.items()
        if not name.startswith("shard")
    )
    gpus = "" if not item.gpus else f" on GPU {', '.join(map(str, item.gpus))}"
    since = "" if item.since is None else f", since {when(item.since)}"
    return f"  {item.node}: {what or 'no slice'}{gpus}{since}"


def _record(record: Allocation) -> list[str]:
    owner = record.owner
    run = f" (run {owner.restart + 1})" if owner.restart else ""
    ended = record.ended or time.time()
    times = when(record.created)
    if record.phase != REFUSED:
        times = f"since {times}" if record.ended is None else f"{times} to {when(record.ended)}"
        times += f" ({age(ended - record.created)})"
    phase = paint(record.phase, _COLOURS.get(record.phase, ""))
    lines = [f"  {record.node}, GPU {record.gpu_minor}{run}: {phase}, {times}"]
    for made in record.instances:
        lines += [f"    {made!s:<14} {made.uuid or ''}".rstrip()]
    if not record.instances:
        lines.append(f"    {cell(record.request)}")
    if record.reason and record.phase in _COLOURS and record.phase != ACTIVE:
        lines.append(folded(f"    why: {cell(record.reason)}", 9))
    return lines


def _next(job_id: int, state: str, records: list[Allocation]) -> str:
    """What happens without anybody, or what somebody has to do."""
    phases = [record.phase for record in records]
    if QUARANTINED in phases:
        return (
            "its slice could not be taken down and is set aside: `slurm-mig status` says who holds "
            "it, `slurm-mig reconcile` tries again"
        )
    if state == SILENT:
        return "ask again when slurmctld answers"
    if state == GONE:
        if any(record.open for record in records):
            return "its job has ended and its slice is still here: `slurm-mig reconcile`"
        return f"nothing; `slurm-mig audit --job {job_id} --wide` has all of it"
    if state == "PENDING" and phases[-1:] == [REFUSED]:
        return (
            "it starts by itself once a start would succeed; if Slurm holds it "
            f"(`squeue -j {job_id} -o %r`), mend the request, then `scontrol release {job_id}`"
        )
    if state == "PENDING":
        return (
            f"it waits in Slurm's queue: `squeue -j {job_id} -o %r` says for what. Where it was "
            f"refused, `scontrol show job {job_id}` has the reason as Comment"
        )
    if any(phase in (PLANNED, RELEASING) for phase in phases):
        return "a hook is at work; if it stays so, `slurm-mig reconcile` finishes it"
    return "its slices end with the job"
