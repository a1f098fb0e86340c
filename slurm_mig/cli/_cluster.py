"""`slurm-mig status --cluster`: all nodes, as slurmctld counts them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.cli._node import open_node, slurm_of
from slurm_mig.cli._print import Columns, age, cell, folded, largest, paint, run_of, working
from slurm_mig.cli._usage import meant
from slurm_mig.errors import UsageFault
from slurm_mig.fleet.overview import overview, total_room
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog
from slurm_mig.slurm.hostlist import expand

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurm_mig.fleet.overview import GpuView, NodeView
    from slurm_mig.slurm.protocol import JobOnNode

#: Characters of the bar that shows a GPU's shards.
BAR = 20

#: Nodes up to this many are shown with their GPUs and jobs.
IN_FULL = 8

#: What the signs of the short form mean.
SIGNS = "GPUs: . free, 1-9 tenths taken, X full, # taken whole, - not carved, ? unknown"


#: Words of Slurm's for a node's state, or how they begin; a typing error would list no node.
STATES: Final = (
    "idle",
    "mixed",
    "allocated",
    "drain",
    "drained",
    "draining",
    "down",
    "fail",
    "maint",
    "reserved",
    "planned",
    "completing",
    "not_responding",
    "power",
    "reboot",
    "invalid_reg",
    "future",
    "unknown",
    "error",
    "cloud",
    "blocked",
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which nodes are meant; None for all."""

    nodes: str | None = None
    state: str | None = None
    user: str | None = None
    fits: str | None = None

    def among(self, views: Sequence[NodeView]) -> list[NodeView]:
        """Those that are; UsageFault for a node or profile that no node has."""
        for name in ("state", "user"):
            if getattr(self, name) == "":
                raise UsageFault(f"--{name} is empty; name one, or leave it out for all")
        found = list(views)
        if self.nodes is not None:
            names = set(expand(self.nodes))
            if missing := sorted(names - {view.name for view in views}):
                raise UsageFault(f"--nodes {self.nodes}: {missing[0]} is no node with slices")
            found = [view for view in found if view.name in names]
        if self.state is not None:
            found = _in_state(self.state, found)
            words = {*STATES, *(word.lower() for view in views for word in view.state)}
            if not found and not any(word.startswith(self.state.lower()) for word in words):
                hint = meant(self.state.lower(), STATES)
                raise UsageFault(
                    f"--state {self.state}: Slurm has no such state{hint}; "
                    f"write {', '.join(STATES)}, or how one begins"
                )
        if self.user is not None:
            found = [view for view in found if self.user in {job.user for job in _jobs(view)}]
        if self.fits is not None:
            known = dict.fromkeys(name for view in views for name in view.room)
            if self.fits not in known:
                hint = meant(self.fits, list(known))
                raise UsageFault(
                    f"--fits {self.fits}: no node offers it{hint}; offered: {', '.join(known)}"
                )
            found = [view for view in found if view.usable and view.room.get(self.fits)]
        return found


def _in_state(text: str, views: Sequence[NodeView]) -> list[NodeView]:
    """Nodes in a state, or one that begins so; sinfo's `drained` and `draining` are made of two."""
    word = text.upper()
    if word not in ("DRAINED", "DRAINING"):
        return [view for view in views if any(state.startswith(word) for state in view.state)]
    busy = {"ALLOCATED", "MIXED", "COMPLETING"}
    drain = [view for view in views if "DRAIN" in view.state]
    return [view for view in drain if bool(busy & set(view.state)) == (word == "DRAINING")]


def show(
    emit: Callable[[dict[str, Any]], None] | None, chosen: Chosen, *, brief: bool = False
) -> None:
    """Ask slurmctld and print the nodes that are meant; as JSON where `emit` takes it."""
    with open_node() as node, working("asking Slurm"):
        slurm = slurm_of(node)
        nodes, shares = slurm.nodes(), slurm.shares()
    models = [fleet_model(product) for product in catalog.products() if product.countable]
    views = chosen.among(overview(nodes, shares, models))
    if emit:
        emit({"nodes": [_plain(view) for view in views], "room": total_room(views)})
        return
    if brief or len(views) > IN_FULL:
        _print_lines(views)
    else:
        for view in views:
            click.echo("\n".join(_lines(view)) + "\n")
    click.echo(folded(f"room on all nodes, by shards: {_words(total_room(views))}", 4))


def _print_lines(views: Sequence[NodeView]) -> None:
    """A line a node: each GPU is one sign, so that hundreds of nodes are looked at in a minute."""
    # Never the name: long ones differ at their end, and cut they would all be the same.
    columns = Columns(
        ("NODE", "GPUS", "JOBS", "FITS UP TO", "TYPE", "STATE"), cut=("TYPE", "STATE")
    )
    rows = [
        [
            view.name,
            "".join(map(_sign, view.gpus)),
            str(len({job.job_id for job in _jobs(view)})),
            largest(view.room) if view.usable else "-",
            ",".join(dict.fromkeys(gpu.type_name for gpu in view.gpus)),
            _state(view),
        ]
        for view in views
    ]
    for row in rows:
        columns.learn(row)
    columns.fit()
    click.echo(columns.head())
    for row, view in zip(rows, views, strict=True):
        click.echo(columns.line(row, "" if view.usable else "bad"))
    out = sum(not view.usable for view in views)
    click.echo(f"{len(views)} nodes, {out} of them take no jobs")
    click.echo(paint(SIGNS, "quiet"))


def _sign(gpu: GpuView) -> str:
    if gpu.whole:
        return "#"
    if gpu.shards is None or not gpu.shards[1]:
        return "?" if gpu.shards is None else "-"
    used, full = gpu.shards
    return "." if not used else "X" if used == full else str(max(1, min(9, 10 * used // full)))


def _state(view: NodeView) -> str:
    return "+".join(sorted(view.state)).lower()


def _jobs(view: NodeView) -> list[JobOnNode]:
    return [*view.elsewhere, *(job for gpu in view.gpus for job in gpu.jobs)]


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
                "whole": gpu.whole,
                "jobs": [_job(item) for item in gpu.jobs],
            }
            for gpu in view.gpus
        ],
        "jobs_elsewhere": [_job(item) for item in view.elsewhere],
        "room": dict(view.room),
    }


def _job(item: JobOnNode) -> dict[str, Any]:
    return {
        "job_id": item.job_id,
        "restart": item.restarts,
        "user": item.user,
        "since": item.since,
        "gres": dict(item.gres),
    }


def _lines(view: NodeView) -> list[str]:
    kind = "head" if view.usable else "bad"
    lines = [paint(folded(f"{view.name}  {_state(view)}  {cell(view.reason)}".rstrip(), 4), kind)]
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
    if gpu.whole:
        return f"{head:<24} taken as a whole  [{'#' * BAR}]"
    if gpu.shards is None or not gpu.shards[1]:
        return head
    used, full = gpu.shards
    marks = "#" * round(BAR * used / full)
    return f"{head:<24} {used:>3}/{full:<3} shards  [{marks:.<{BAR}}]"


def _holder(item: JobOnNode) -> str:
    what = ",".join(
        f"{name.removeprefix('mig:')}" + (f" x{count}" if count > 1 else "")
        for name, count in item.gres.items()
        if not name.startswith("shard")
    )
    since = "" if item.since is None else f" for {age(time.time() - item.since)}"
    job = run_of(item.job_id, item.restarts)
    return folded(f"    job {job} of {cell(item.user)}: {what}{since}", 8)


def _words(room: Any) -> str:
    known = [f"{name} x{count}" for name, count in room.items() if count]
    unknown = ["? " + ", ".join(name for name, count in room.items() if count is None)]
    return ", ".join(known + unknown * (None in room.values())) or "nothing"
