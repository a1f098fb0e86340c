"""`slurm-mig explain`: why a request lands where it does, or a job waits, or was refused."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.cli._node import open_node
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import cell, folded, print_json, table, working
from slurm_mig.errors import SlurmFault, UsageFault
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request, from_gres

if TYPE_CHECKING:
    from slurm_mig.node.node import Node
    from slurm_mig.packing.explain import Answer
    from slurm_mig.packing.foresight import ChoiceRule, GpuState
    from slurm_mig.slurm.protocol import JobFacts

#: What Slurm's words for a waiting job mean here.
REASONS: Final = {
    "Constraints": "Slurm would take GPUs for it on which no slot of this kind is free now, by "
    "what the nodes say; it starts by itself with the first that says otherwise",
    "BeginTime": "it was refused for want of a place, or told to start later; it is brought "
    "forward when a start would succeed",
    "Resources": "it is next, and waits until enough is free; later jobs do not put it off",
    "Priority": "jobs of higher priority wait before it",
    "ReqNodeNotAvail": "the nodes that it could have are down, drained or reserved; with an anchor "
    "node also: no node has a place for it now",
    "BadConstraints": "Slurm believes that no node could ever run it, and holds it: `slurm-mig "
    "doctor` says why, `scontrol release` lets it go again. Where that is for a count of ours, a "
    "node does it within minutes",
    "JobHeldAdmin": "an administrator holds it, or it was refused too often",
    "JobHeldUser": "its user holds it",
    "launch failed requeued held": "a hook failed and Slurm holds it: see the node's log",
    "Dependency": "it waits for another job",
    "QOSMaxGRESPerUser": "its user has as many slices as the site allows",
    "AssocGrpGRES": "its account has as many slices as the site allows",
}

_JOB: Final = re.compile(r"[1-9][0-9]{0,9}(?:[_+][0-9]{1,9})?", re.ASCII)


@click.command()
@click.argument("request", required=False)
@click.option("--job", "reference", metavar="JOB", help="A job instead: 4711, 4711_3 or 4711+1.")
@click.option(
    "--gpu-choice",
    "choice",
    type=click.Choice(("pack", "least-loaded", "node")),
    help="Who chooses the GPU; else as this Slurm does.",
)
@json_option
def command(request: str | None, reference: str | None, choice: str | None, as_json: bool) -> None:
    """Show every place that a REQUEST (3g.40gb, or 1g.10gb:2,3g.40gb) has on this node's GPUs.

    With each what would still fit, which GPU Slurm would take, and why. Of a job: why it was placed
    where it is, why it waits, or why it was refused; `slurm-mig job` has the rest.
    """
    if (request is None) == (reference is None):
        raise UsageFault("give a REQUEST or --job JOB")
    with open_node(look=True) as node:
        told: dict[str, Any] = {}
        if reference is not None:
            told, wanted = _job(node, reference)
        else:
            wanted = parse(request or "")
        answer = None if wanted is None else _answer(node, wanted, choice)
    if as_json:
        print_json({**told, "node": node.name, **(_plain(answer) if answer else {})})
        return
    for line in told.get("lines", ()):
        click.echo(folded(line, 2))
    if answer is not None:
        _show(answer)


def parse(text: str) -> Request:
    """A request, profile by profile; BadRequest or UsageFault names a wrong word."""
    items = []
    for word in text.split(","):
        name, _, count = word.strip().removeprefix("mig:").partition(":")
        if count and not (count.isascii() and count.isdigit() and len(count) < 5):
            raise UsageFault(f"{word!r} is not PROFILE or PROFILE:COUNT")
        items.append(Item(Profile.parse(name), int(count or 1)))
    return Request(tuple(items))


def _answer(node: Node, request: Request, choice: str | None) -> Answer:
    from slurm_mig.mig.weights import derive
    from slurm_mig.node.outlook import Outlook, strangers
    from slurm_mig.packing.explain import explain
    from slurm_mig.packing.foresight import RequestKind

    gpus = Outlook(node, strangers(node)).gpus()
    shards = 0
    for space in {id(gpu.space): gpu.space for gpu in gpus}.values():
        need = space.need(request)
        if need is not None:
            weights = derive(space.geometry)
            shards = sum(weights.of(space.geometry, row) for row in need.rows)
    if not shards:
        raise UsageFault(f"{request}: no GPU of node {node.name} that is carved has these profiles")
    return explain(gpus, RequestKind(str(request), request, shards), _rule(node, choice, gpus))


def _rule(node: Node, choice: str | None, gpus: list[GpuState]) -> ChoiceRule:
    from slurm_mig.node.outlook import rule_of
    from slurm_mig.packing.foresight import ChoiceRule

    if choice is not None or len(gpus) == 1:
        return ChoiceRule(choice or "pack")
    try:
        return rule_of(node.slurm.selection())
    except SlurmFault as fault:
        click.echo(f"{fault.cause}: Slurm's default choice of GPU is assumed", err=True)
        return ChoiceRule.PACK


def _job(node: Node, reference: str) -> tuple[dict[str, Any], Request | None]:
    """What there is to say of a job, and what it asks for while it waits."""
    if not _JOB.fullmatch(reference):
        raise UsageFault(f"--job {reference}: write 4711, 4711_3 (of an array) or 4711+1 (het)")
    with working("asking Slurm"):
        job_id = int(reference) if reference.isdigit() else node.slurm.number(reference)
        if job_id is None:
            raise UsageFault(
                f"job {reference}: Slurm no longer lists it; give its number as sacct has it "
                "(JobIDRaw)"
            )
        facts = node.slurm.job(job_id)
        waiting = node.slurm.pending() if facts and facts.state == "PENDING" else []
    reason = next((item.reason for item in waiting if item.job_id == job_id), "")
    lines = _history(node, job_id)
    if facts is None and not lines:
        raise UsageFault(
            f"job {job_id}: Slurm lists none of that id, and this node's ledger neither"
        )
    where = f" on {facts.nodes}" if facts and facts.nodes else ""
    state = facts.state.lower() if facts else "no longer in the queue"
    lines.insert(0, f"job {reference}: {state}{where}")
    if reason:
        lines.append(f"waits for {cell(reason)}: {words(reason)}")
        lines += _called(node, job_id)
    lines.append(f"the job itself: `slurm-mig job {job_id}`")
    wanted = _wanted(facts)
    return {"job": job_id, "state": facts.state if facts else None, "lines": lines}, wanted


def _history(node: Node, job_id: int) -> list[str]:
    """What became of a job's starts on this node, the oldest first; only root may read it."""
    from slurm_mig.mig.allocation import REFUSED

    if os.geteuid() != 0 or not node.config.ledger.exists():
        return []
    lines = []
    for record in sorted(node.ledger.of_job(job_id), key=lambda record: record.created):
        if record.phase == REFUSED:
            lines.append(f"refused on GPU {record.gpu_minor}: {cell(record.reason)}")
            continue
        why = f": {cell(record.reason)}" if record.open else ", and no more"
        lines.append(f"placed on GPU {record.gpu_minor} as {record.made}{why}")
    return lines


def _called(node: Node, job_id: int) -> list[str]:
    """When a job that was refused here may start again."""
    item = next((item for item in node.waiting.all() if item.job == job_id), None)
    if item is None or not item.latest:
        return []
    if item.called:
        return ["it was brought forward: a place is kept for it for some seconds"]
    at = time.strftime("%H:%M:%S", time.localtime(item.latest))
    return [f"this node brings it forward when a start would succeed, and at {at} in any case"]


def words(reason: str) -> str:
    """Slurm's reason in a sentence; of one without a meaning of ours, where to read."""
    for word, meaning in REASONS.items():
        if reason.lower().startswith(word.lower()):
            return meaning
    return "see `man squeue`, JOB REASON CODES"


def _wanted(facts: JobFacts | None) -> Request | None:
    if facts is None or facts.state != "PENDING":
        return None
    return from_gres(facts.tres_per_node)


def _plain(answer: Answer) -> dict[str, Any]:
    return {
        "verdict": answer.verdict,
        "succeeds": answer.succeeds,
        "gpus": [view._asdict() for view in answer.gpus],
        "places": [
            {
                "gpu": place.gpu,
                "starts": place.starts,
                "profiles_left": place.score.profiles_left,
                "placements_left": place.score.placements_left,
                "then_fits": place.then_fits,
                "chosen": place.chosen,
            }
            for place in answer.places
        ],
    }


def _show(answer: Answer) -> None:
    click.echo(folded(answer.verdict, 2))
    click.echo()
    table(
        ("GPU", "SHARDS", "HOLDS", "NO PLACE BECAUSE"),
        (
            (
                view.gpu,
                f"{view.used}/{view.capacity}",
                ", ".join(view.there) or "-",
                view.why_not or "-",
            )
            for view in answer.gpus
        ),
    )
    if not answer.places:
        return
    click.echo()
    table(
        ("GPU", "START", "TAKEN", "PROFILES LEFT", "PLACES LEFT", "THEN FITS"),
        (
            (
                place.gpu,
                "+".join(map(str, place.starts)),
                "yes" if place.chosen else "-",
                place.score.profiles_left,
                place.score.placements_left,
                " ".join(f"{n}x{c}" for n, c in place.then_fits.items() if "+" not in n)
                or "nothing",
            )
            for place in answer.places
        ),
    )
