"""`slurm-mig status --cluster`: all nodes, as slurmctld counts them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._node import open_node, slurm_of
from slurm_mig.cli._print import age, cell, folded
from slurm_mig.fleet.overview import overview, total_room
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.fleet.overview import GpuView, NodeView
    from slurm_mig.slurm.protocol import Share

#: Characters of the bar that shows a GPU's shards.
BAR = 20


def show(emit: Callable[[dict[str, Any]], None] | None) -> None:
    """Ask slurmctld and print every node that offers slices; as JSON where `emit` takes it."""
    with open_node() as node:
        slurm = slurm_of(node)
        nodes, shares = slurm.nodes(), slurm.shares()
    models = [fleet_model(product) for product in catalog.products() if product.countable]
    views = overview(nodes, shares, models)
    if emit:
        emit({"nodes": [_plain(view) for view in views], "room": total_room(views)})
        return
    for view in views:
        click.echo("\n".join(_lines(view)) + "\n")
    click.echo(folded(f"room on all nodes, by shards: {_words(total_room(views))}", 4))


def _plain(view: NodeView) -> dict[str, Any]:
    return {
        "node": view.name,
        "state": sorted(view.state),
        "reason": view.reason,
        "gpus": [
            {
                "gpu": gpu.index,
                "type": gpu.type_name,
                "shards_used": gpu.shards[0] if gpu.shards else None,
                "shards": gpu.shards[1] if gpu.shards else None,
                "jobs": [_job(item) for item in gpu.jobs],
            }
            for gpu in view.gpus
        ],
        "jobs_elsewhere": [_job(item) for item in view.elsewhere],
        "room": dict(view.room),
    }


def _job(item: Share) -> dict[str, Any]:
    return {
        "job_id": item.job_id,
        "restart": item.restarts,
        "user": item.user,
        "since": item.since,
        "gres": dict(item.gres),
    }


def _lines(view: NodeView) -> list[str]:
    state = "+".join(sorted(view.state)).lower()
    lines = [f"{view.name}  {state}  {cell(view.reason)}".rstrip()]
    for gpu in view.gpus:
        lines.append(_gpu(gpu))
        lines += [_holder(item) for item in gpu.jobs]
    if view.elsewhere:
        lines.append("  on these GPUs (this Slurm does not say on which):")
        lines += [_holder(item) for item in view.elsewhere]
    lines.append(folded(f"  room, by shards: {_words(view.room)}", 4))
    return lines


def _gpu(gpu: GpuView) -> str:
    head = f"  GPU {gpu.index}  {gpu.type_name}"
    if gpu.shards is None or not gpu.shards[1]:
        return head
    used, full = gpu.shards
    marks = "#" * round(BAR * used / full)
    return f"{head:<24} {used:>3}/{full:<3} shards  [{marks:.<{BAR}}]"


def _holder(item: Share) -> str:
    what = ",".join(
        f"{name.removeprefix('mig:')}" + (f" x{count}" if count > 1 else "")
        for name, count in item.gres.items()
        if not name.startswith("shard")
    )
    since = "" if item.since is None else f" for {age(time.time() - item.since)}"
    return f"    job {item.job_id} of {cell(item.user)}: {what}{since}"


def _words(room: Any) -> str:
    known = [f"{name} x{count}" for name, count in room.items() if count]
    unknown = ["? " + ", ".join(name for name, count in room.items() if count is None)]
    return ", ".join(known + unknown * (None in room.values())) or "nothing"
