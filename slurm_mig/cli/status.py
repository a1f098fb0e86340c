"""`slurm-mig status`: every GPU's slots, and who holds them."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._gpu_view import describe
from slurm_mig.cli._node import open_node, root_to_read, slurm_of, survey
from slurm_mig.cli._options import Number, json_option
from slurm_mig.cli._print import (
    COLUMNS,
    Columns,
    age,
    cell,
    folded,
    largest,
    mode_text,
    paint,
    print_json,
    run_of,
    slices_of,
    when,
    working,
)
from slurm_mig.errors import SlurmFault, SlurmMigError, UsageFault
from slurm_mig.mig.allocation import ACTIVE, QUARANTINED
from slurm_mig.node.fence import numbers, stuck_records
from slurm_mig.state.ledger import Retired
from slurm_mig.system.space import lacking

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.node.node import Node


#: Columns of the picture, divided among a GPU's placement units.
WIDTH = 72


@click.command()
@click.option("--slurm", "ask", is_flag=True, help="Ask Slurm, too, for the node and the jobs.")
@click.option(
    "--brief", is_flag=True, help="A line a GPU; with --cluster a line a node, as beyond 8 nodes."
)
@click.option("--cluster", is_flag=True, help="All nodes, as slurmctld counts them; for everybody.")
@click.option("--nodes", metavar="n[01-16]", help="With --cluster: only these nodes.")
@click.option("--state", metavar="WORD", help="With --cluster: only nodes in it (idle, drain).")
@click.option("--user", help="With --cluster: only nodes where this user has something.")
@click.option("--fits", metavar="PROFILE", help="With --cluster: only nodes with room for it.")
@click.option(
    "--watch",
    type=Number(0.1, 86400),
    metavar="SECONDS",
    help="Show it again and again, until interrupted; with --json one line each time.",
)
@json_option
def command(
    ask: bool,
    brief: bool,
    cluster: bool,
    watch: float | None,
    as_json: bool,
    **only: str | None,
) -> None:
    """Show who holds what, with a picture of every GPU's slots."""
    if cluster and ask:
        raise UsageFault("--cluster asks Slurm already; leave --slurm out")
    if given := [f"--{name}" for name, value in only.items() if value is not None and not cluster]:
        raise UsageFault(f"{', '.join(given)}: choose among nodes, which takes --cluster")
    emit = (print_json if watch is None else _line) if as_json else None
    if cluster:
        from slurm_mig.cli import _cluster

        chosen = _cluster.Chosen(**only)
        _again(lambda: _cluster.show(emit, chosen, brief=brief), watch, as_json=as_json)
    else:
        _again(lambda: _show(emit, ask=ask, brief=brief), watch, as_json=as_json)


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


def _show(emit: Callable[[dict[str, Any]], None] | None, *, ask: bool, brief: bool) -> None:
    with open_node(look=True) as node:
        root_to_read(node)
        with working("looking"):
            gpus, faults = survey(node)
            seen = [describe(node, gpu) for gpu in gpus if gpu.mig_capable]
        answer = None
        if ask:
            with working("asking Slurm"):
                answer, silence = _ask_slurm(node, seen)
            faults = [*faults, *silence]
        data: dict[str, Any] = {
            "node": node.name,
            "gpus": seen,
            "stuck": numbers(stuck_records(node.ledger), node.ledger.now()),
            "full": _full(node),
            "faults": [str(fault) for fault in faults],
        }
    if emit:
        emit(data | ({"slurm": answer} if ask else {}))
    else:
        _print(data, answer, brief=brief)
    for fault in faults:
        raise fault


def _print(data: dict[str, Any], answer: dict[str, str] | None, *, brief: bool) -> None:
    if answer:
        click.echo(f"Node {data['node']}  {answer['state']}  {answer['reason']}".rstrip())
    if brief:
        _print_brief(data["gpus"])
    else:
        for gpu in data["gpus"]:
            click.echo(picture(gpu))
    for row in data["stuck"]:
        text = f"stuck: {row['slices']} on GPU {row['gpu']}, the oldest for {age(row['oldest'])}"
        click.echo(paint(text, "bad"))
    for text in data["full"]:
        click.echo(paint(f"full: {text}; no job of slices can start here", "bad"))


def _print_brief(gpus: list[dict[str, Any]]) -> None:
    columns = Columns(
        ("GPU", "MODEL", "SLOTS", "JOBS", "FITS UP TO", "STATE"), cut=("MODEL", "JOBS")
    )
    rows = [_brief(gpu) for gpu in gpus]
    for row in rows:
        columns.learn(row)
    columns.fit()
    click.echo(columns.head())
    for row in rows:
        click.echo(columns.line(row, _COLOUR_OF.get(row[-1].partition(" ")[0], "")))
    click.echo(paint(SIGNS, "quiet"))


#: Signs of `--brief`, as its last line tells them.
SIGNS = "slots: 3 of a 3g slice, . free, # whole GPU, x stuck, ? in no record"

_COLOUR_OF = {"free": "good", "stuck": "bad", "foreign": "warn", "MIG": "quiet"}


def _brief(gpu: dict[str, Any]) -> list[str]:
    """One line of `--brief`: the last cell is the worst that can be said of the GPU."""
    holders = gpu["instances"] + gpu["whole"]
    jobs = dict.fromkeys(str(item["job_id"]) for item in holders if item["job_id"] is not None)
    return [
        str(gpu["gpu"]),
        cell(gpu["name"].removeprefix("NVIDIA ")),
        f"[{_signs(gpu)}]" if gpu["mig_mode"] or gpu["whole"] else "-",
        " ".join(jobs) or "-",
        largest({} if gpu["whole"] else gpu["free"]) if gpu["mig_mode"] else "-",
        _state(gpu, holders),
    ]


def _signs(gpu: dict[str, Any]) -> str:
    if gpu["whole"]:
        return "#" * int(gpu["units"])
    signs = ["."] * gpu["units"]
    for item in gpu["instances"]:
        sign = {QUARANTINED: "x", "foreign": "?"}.get(item["phase"], slices_of(item["profile"]))
        signs[item["start"] : item["start"] + item["size"]] = sign * item["size"]
    return "".join(signs)


def _state(gpu: dict[str, Any], holders: list[dict[str, Any]]) -> str:
    phases = [item["phase"] for item in holders]
    if QUARANTINED in phases:
        return f"stuck {phases.count(QUARANTINED)}"
    if "foreign" in phases:
        return f"foreign {phases.count('foreign')}"
    if gpu["retired"]:
        return "retired"
    if gpu["whole"]:
        return "whole"
    if not gpu["mig_mode"]:
        return f"MIG {mode_text(gpu['mig_mode'], gpu['mig_pending'])}"
    if not holders:
        return "free"
    return "in use" if any(gpu["free"].values()) else "full"


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
    lines = [f"{paint(head, 'head')}{apart}{gpu['uuid']}"]
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
        job = run_of(item["job_id"], item["restart"] or 0)
        who = f"job {job}{state} of {cell(item['user'] or item['uid'])}"
    else:
        who = (
            "in no record" if item["phase"] == "foreign" else f"administrator {cell(item['user'])}"
        )
    since = "" if item["since"] is None else f" for {age(time.time() - item['since'])}"
    return f"{paint(item['phase'], _PHASES.get(item['phase'], ''))}, {who}{since}"


_PHASES = {ACTIVE: "good", QUARANTINED: "bad", "foreign": "warn"}
