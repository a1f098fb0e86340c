"""`slurm-mig status`: every GPU's slots, and who holds them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.allocation import ACTIVE
from slurm_mig.cli._common import (
    json_option,
    open_node,
    print_json,
    root_to_read,
    slurm_of,
    survey,
)
from slurm_mig.cli.destroy import owner_of
from slurm_mig.cli.gpus import mode_text
from slurm_mig.errors import SlurmFault
from slurm_mig.ledger import Retired
from slurm_mig.planner import Slot, fitting

if TYPE_CHECKING:
    from slurm_mig.allocation import Allocation
    from slurm_mig.driver import Gpu, GpuInstance
    from slurm_mig.node import Node

#: Columns of the picture, divided among a GPU's placement units.
WIDTH = 72


@click.command()
@click.option("--slurm", "ask", is_flag=True, help="Ask Slurm, too, for the node and the jobs.")
@json_option
def command(ask: bool, as_json: bool) -> None:  # noqa: FBT001
    """Show who holds what, with a picture of every GPU's slots."""
    with open_node() as node:
        root_to_read(node)
        gpus, faults = survey(node)
        seen = [describe(node, gpu) for gpu in gpus if gpu.mig_capable]
        answer = None
        if ask:
            answer, silence = _ask_slurm(node, seen)
            faults = [*faults, *silence]
        data = {"node": node.name, "gpus": seen, "faults": [str(fault) for fault in faults]}
    if as_json:
        print_json(data | ({"slurm": answer} if ask else {}))
    else:
        if answer:
            click.echo(f"Node {data['node']}  {answer['state']}  {answer['reason']}".rstrip())
        for gpu in seen:
            click.echo(picture(gpu))
    for fault in faults:
        raise fault


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


def describe(node: Node, gpu: Gpu) -> dict[str, Any]:
    """A GPU with its instances and what still fits, as plain data."""
    geometry = node.driver.geometry(gpu)
    found = node.driver.instances(gpu)
    present = [Slot(geometry.by_id(item.profile_id), item.placement) for item in found]
    return {
        "gpu": gpu.minor,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "mig_mode": gpu.mig_mode,
        "mig_pending": gpu.mig_pending,
        "managed": node.managed(gpu),
        "retired": asdict(mark) if (mark := node.retired.get(gpu.uuid)) else None,
        "units": geometry.units,
        "instances": [
            _instance(str(slot.row.name), item, owner_of(node, gpu, item))
            for slot, item in zip(present, found, strict=True)
        ],
        "whole": [_of_record(record) for record in node.ledger.open_on(gpu.uuid) if record.whole],
        "free": fitting(geometry, present),
    }


def _instance(profile: str, item: GpuInstance, record: Allocation | None) -> dict[str, Any]:
    return {
        "profile": profile,
        "start": item.placement.start,
        "size": item.placement.size,
        "gi_id": item.gi_id,
        "uuid": item.compute[0].uuid if item.compute else None,
        "uuids": [compute.uuid for compute in item.compute],
        **_of_record(record),
    }


def _of_record(record: Allocation | None) -> dict[str, Any]:
    return {
        "phase": record.phase if record else "foreign",
        "job_id": record.owner.job_id if record else None,
        "restart": record.owner.restart if record else None,
        "user": record.owner.user if record else None,
        "uid": record.owner.uid if record else None,
        "since": record.created if record else None,
        "reason": record.reason if record and record.phase != ACTIVE else "",
    }


def picture(gpu: dict[str, Any]) -> str:
    """A GPU's slots as text: one cell per placement unit, one box per instance."""
    mode = mode_text(gpu["mig_mode"], gpu["mig_pending"])
    lines = [f"GPU {gpu['gpu']}  {gpu['name']}  MIG {mode}  {gpu['uuid']}"]
    if gpu["retired"]:
        lines += [f"  {Retired(**gpu['retired'])}"]
    lines += [f"  whole GPU        {_who(item)}" for item in gpu["whole"]]
    if gpu["mig_mode"]:
        lines += _boxes(gpu)
        lines += [_holder(item) for item in gpu["instances"]]
        free = ", ".join(f"{name} x{count}" for name, count in gpu["free"].items() if count)
        lines.append(f"  fits now: {free or 'nothing'}")
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
    devices = f"\n  {'':<16} ".join(item["uuids"]) or "no compute instance"
    text = f"  {place:<16} {_who(item)}  {devices}"
    return text + (f"\n    {item['reason']}" if item["reason"] else "")


def _who(item: dict[str, Any]) -> str:
    if item["job_id"] is not None:
        state = f" ({item['job_state']})" if "job_state" in item else ""
        who = f"job {item['job_id']}{state} of {item['user'] or item['uid']}"
    else:
        who = "in no record" if item["phase"] == "foreign" else f"administrator {item['user']}"
    age = "" if item["since"] is None else f" for {_age(time.time() - item['since'])}"
    return f"{item['phase']}, {who}{age}"


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
