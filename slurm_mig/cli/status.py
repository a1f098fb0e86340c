"""`slurm-mig status`: every GPU's slots, and who holds them."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._gpu_view import describe
from slurm_mig.cli._node import open_node, root_to_read, slurm_of, survey
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import age, cell, folded, mode_text, print_json, when
from slurm_mig.errors import SlurmFault, SlurmMigError, UsageFault
from slurm_mig.node.fence import numbers, set_aside
from slurm_mig.state.ledger import Retired
from slurm_mig.system.space import lacking

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.node.node import Node


#: Columns of the picture, divided among a GPU's placement units.
WIDTH = 72

#: Columns of a terminal that everybody has.
COLUMNS = 80


class _Seconds(click.FloatRange):
    """Seconds within bounds; `nan` lies within any, and no clock waits for it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # the base class's own answer
        """Refuse what is no number, then as click does."""
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return seconds


@click.command()
@click.option("--slurm", "ask", is_flag=True, help="Ask Slurm, too, for the node and the jobs.")
@click.option("--cluster", is_flag=True, help="All nodes, as slurmctld counts them; for everybody.")
@click.option(
    "--watch",
    type=_Seconds(0.1, 86400),
    metavar="SECONDS",
    help="Show it again and again, until interrupted; with --json one line each time.",
)
@json_option
def command(
    ask: bool,
    cluster: bool,
    watch: float | None,
    as_json: bool,
) -> None:
    """Show who holds what, with a picture of every GPU's slots."""
    if cluster and ask:
        raise UsageFault("--cluster asks Slurm already; leave --slurm out")
    emit = (print_json if watch is None else _line) if as_json else None
    if cluster:
        from slurm_mig.cli import _cluster

        _again(lambda: _cluster.show(emit), watch, as_json=as_json)
    else:
        _again(lambda: _show(emit, ask=ask), watch, as_json=as_json)


def _again(show: Callable[[], None], watch: float | None, *, as_json: bool) -> None:
    """Show once, or every so many seconds; a fault is shown, too, and does not end the watch."""
    if watch is None:
        return show()
    while True:
        if not as_json:
            # Does nothing where the output is no terminal: there one picture follows the other.
            click.clear()
            click.echo(when(time.time()))
        try:
            show()
        except SlurmMigError as fault:
            click.echo(f"slurm-mig: {fault}", err=True)
        time.sleep(watch)


def _line(data: dict[str, Any]) -> None:
    """One reading of a watch for programs: a line each, with its time in it."""
    click.echo(json.dumps({"time": time.time()} | data))


def _show(emit: Callable[[dict[str, Any]], None] | None, *, ask: bool) -> None:
    with open_node(look=True) as node:
        root_to_read(node)
        gpus, faults = survey(node)
        seen = [describe(node, gpu) for gpu in gpus if gpu.mig_capable]
        answer = None
        if ask:
            answer, silence = _ask_slurm(node, seen)
            faults = [*faults, *silence]
        data: dict[str, Any] = {
            "node": node.name,
            "gpus": seen,
            "stuck": numbers(set_aside(node.ledger), node.ledger.now()),
            "full": _full(node),
            "faults": [str(fault) for fault in faults],
        }
    if emit:
        emit(data | ({"slurm": answer} if ask else {}))
    else:
        if answer:
            click.echo(f"Node {data['node']}  {answer['state']}  {answer['reason']}".rstrip())
        for gpu in seen:
            click.echo(picture(gpu))
        for row in data["stuck"]:
            click.echo(
                f"stuck: {row['slices']} on GPU {row['gpu']}, the oldest for {age(row['oldest'])}"
            )
        for text in data["full"]:
            click.echo(f"full: {text}; no job of slices can start here")
    for fault in faults:
        raise fault


def _full(node: Node) -> list[str]:
    """Where hooks write and there is no room: the node stays in service and refuses each job."""
    config = node.config
    return [
        f"{path}: {text}"
        for path in (config.run, config.leases.parent, config.state)
        if (text := lacking(path))
    ]


def _ask_slurm(
    node: Node, gpus: list[dict[str, Any]]
) -> tuple[dict[str, str] | None, list[SlurmFault]]:
    """The node as Slurm sees it, and each holder's job; a silent Slurm hides no GPU."""
    slurm = slurm_of(node)
    try:
        found = slurm.node(node.name)
        for item in (item for gpu in gpus for item in gpu["instances"] + gpu["whole"]):
            if item["job_id"] is not None:
                job = slurm.job(item["job_id"])
                item["job_state"] = job.state if job else "unknown to Slurm"
    except SlurmFault as fault:
        return None, [fault]
    return {"state": "+".join(sorted(found.state)), "reason": found.reason}, []


def picture(gpu: dict[str, Any]) -> str:
    """A GPU's slots as text: one cell per placement unit, one box per instance."""
    mode = mode_text(gpu["mig_mode"], gpu["mig_pending"])
    head = f"GPU {gpu['gpu']}  {gpu['name']}  MIG {mode}"
    apart = "  " if len(head) + 2 + len(gpu["uuid"]) <= COLUMNS else "\n  "
    lines = [f"{head}{apart}{gpu['uuid']}"]
    if gpu["retired"]:
        lines += [f"  {Retired(**gpu['retired'])}"]
    lines += [f"  whole GPU        {_who(item)}{_why(item)}" for item in gpu["whole"]]
    if gpu["mig_mode"]:
        lines += _boxes(gpu)
        lines += [_holder(item) for item in gpu["instances"]]
        free = ", ".join(f"{name} x{count}" for name, count in gpu["free"].items() if count)
        lines.append(folded(f"  fits now: {free or 'nothing'}", 4))
    return "\n".join(lines) + "\n"


def _boxes(gpu: dict[str, Any]) -> list[str]:
    units = gpu["units"]
    cell = WIDTH // units
    scale = "".join(str(unit).ljust(cell) for unit in range(units)).rstrip()
    starts = {item["start"]: item for item in gpu["instances"]}
    row, unit = "", 0
    while unit < units:
        item = starts.get(unit)
        size = item["size"] if item else 1
        text = _label(item) if item else ""
        fill = " " if item else "."
        row += "|" + text[: size * cell - 1].ljust(size * cell - 1, fill)
        unit += size
    return [f"   {scale}", f"  {row}|"]


def _label(item: dict[str, Any]) -> str:
    job = f" {item['job_id']}" if item["job_id"] is not None else ""
    return f"{item['profile']}{job}"


def _holder(item: dict[str, Any]) -> str:
    place = f"{item['profile']}@{item['start']}"
    lines = [f"  {place:<16} {_who(item)}"]
    lines += [f"  {'':<16} {device}" for device in item["uuids"] or ["no compute instance"]]
    return "\n".join(lines) + _why(item)


def _why(item: dict[str, Any]) -> str:
    lines = [cell(item["reason"])] if item["reason"] else []
    if "stuck_for" in item:
        since = age(item["stuck_for"])
        lines.append(f"stuck for {since}, held now by {item['held_now']}")
    return "".join("\n" + folded(f"    {line}", 4) for line in lines)


def _who(item: dict[str, Any]) -> str:
    if item["job_id"] is not None:
        state = f" ({item['job_state']})" if "job_state" in item else ""
        who = f"job {item['job_id']}{state} of {cell(item['user'] or item['uid'])}"
    else:
        who = (
            "in no record" if item["phase"] == "foreign" else f"administrator {cell(item['user'])}"
        )
    since = "" if item["since"] is None else f" for {age(time.time() - item['since'])}"
    return f"{item['phase']}, {who}{since}"
