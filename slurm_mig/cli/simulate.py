"""`slurm-mig simulate`: what a set-up would have made of a site's own jobs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import age, print_json, table
from slurm_mig.cli._usage import NewFile
from slurm_mig.cli._workload import (
    bar,
    model_option,
    read,
    sacct_option,
    tell_left_out,
    trace_argument,
)
from slurm_mig.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurm_mig.packing.setups import Ran, Setup, Workload

CHOICES: Final = ("pack", "least-loaded", "node")
RETRIES: Final = ("blind", "gate", "publish")


@click.command()
@trace_argument
@sacct_option
@model_option
@click.option(
    "--gpus-per-node", "per_node", type=click.IntRange(1, 64), required=True, help="GPUs of a node."
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 1000),
    help="Nodes; else as many as the trace's GPUs make, of an export one.",
)
@click.option(
    "--weights",
    default="exact",
    show_default=True,
    metavar="exact|memory|compute|FILE",
    help="Shards of each profile; a file as `slurm-mig weights --json` prints it.",
)
@click.option(
    "--policy",
    default="fits",
    show_default=True,
    metavar="fits|first-fit|last-fit|best-fit|driver|mfi|optimal:FILE",
    help="Where on a GPU slices go. mfi is our reading of arXiv 2511.18906; FILE is from "
    "`slurm-mig learn`.",
)
@click.option(
    "--gpu-choice",
    "choice",
    type=click.Choice(CHOICES),
    default="pack",
    show_default=True,
    help="Who chooses the GPU: Slurm (the first with room; with LL_SHARED_GRES the emptiest), or "
    "the node.",
)
@click.option(
    "--retry",
    type=click.Choice(RETRIES),
    default="gate",
    show_default=True,
    help="A refused job comes again after 120 s, or when a start would succeed; publish: Slurm is "
    "told what fits, too.",
)
@click.option(
    "--static",
    metavar="LAYOUT",
    help="Slices of a node that never change instead: 4g.40gb:3,2g.20gb:5; `best` looks for the "
    "layout that suits these jobs.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Run these jobs through the usual set-ups, the one given, the best static layout and a "
    "Slurm that sees slots.",
)
@click.option(
    "--picture",
    type=NewFile(),
    metavar="FILE.svg",
    help="Write waits and utilisation over time as an SVG.",
)
@json_option
def command(
    trace: Path | None,
    sacct: Path | None,
    name: str,
    per_node: int,
    nodes: int | None,
    weights: str,
    policy: str,
    choice: str,
    retry: str,
    static: str | None,
    compare: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Replay jobs through planner, Slurm's counting and a retry rule, without Slurm or a GPU."""
    from slurm_mig.packing.foresight import ChoiceRule
    from slurm_mig.packing.replay import Retry
    from slurm_mig.packing.setups import Setup, run

    if picture is not None and picture.suffix.lower() != ".svg":
        raise UsageFault(f"--picture {picture}: the picture is an SVG; name it so")
    load, found = read(trace, sacct, name)
    nodes = nodes or -(-(found.gpus or per_node) // per_node)
    given = Setup(
        f"{weights}, {policy}, {choice}, {retry}",
        weights,
        policy,
        ChoiceRule(choice),
        Retry(retry),
    )
    if static is not None:
        given = _static(static, load, nodes, per_node)
    setups = _usual(given, load, nodes, per_node) if compare else [given]
    total = len(load.jobs.submit)
    ran = []
    with bar(total * len(setups), "replaying") as tell:
        for number, setup in enumerate(setups):
            ran.append(run(setup, load, nodes, per_node, partial(_passed, tell, number * total)))
    _show(ran, as_json=as_json, compare=compare)
    if picture is not None:
        _draw(ran, picture)
    if not as_json:
        tell_left_out(load)


def _passed(tell: Callable[[int], object], before: int, there: int) -> None:
    tell(before + there)


def _static(text: str, load: Workload, nodes: int, per_node: int) -> Setup:
    from slurm_mig.packing.setups import Setup, best_static, parse_layout

    layout = best_static(load, nodes, per_node) if text == "best" else parse_layout(text)
    words = ",".join(f"{name}:{count}" for name, count in layout.items())
    return Setup(f"static {words}", static=layout)


def _usual(given: Setup, load: Workload, nodes: int, per_node: int) -> list[Setup]:
    """From what is worst to what cannot be had; the given one among them once."""
    from slurm_mig.packing.foresight import ChoiceRule
    from slurm_mig.packing.replay import Retry
    from slurm_mig.packing.setups import Setup

    setups = [
        Setup("exact, first-fit, pack, blind", policy="first-fit", retry=Retry.BLIND),
        Setup("exact, fits, least-loaded, gate", choice=ChoiceRule.LEAST_LOADED, retry=Retry.GATE),
        Setup("exact, fits, pack, publish"),
        Setup("exact, fits, node, publish", choice=ChoiceRule.NODE),
        Setup("Slurm that sees slots (bound)", retry=Retry.AWARE),
    ]
    if given.static is None:
        try:
            setups.insert(0, _static("best", load, nodes, per_node))
        except UsageFault as fault:
            click.echo(f"no static layout: {fault.cause}", err=True)
    alike = [item for item in setups if item[1:] == given[1:]]
    return setups if alike else [given, *setups]


def _show(ran: list[Ran], *, as_json: bool, compare: bool) -> None:
    from slurm_mig.packing.setups import figures

    rows = [figures(item) for item in ran]
    if as_json:
        print_json(rows if compare else rows[0])
        return
    for number, row in enumerate(rows, 1):
        click.echo(
            f"{number}  {row['setup']}{': never ends (livelock)' if row['livelock'] else ''}"
        )
    click.echo()
    table(
        ("", "REQUEUES/1000", "REQUEUED", ">5 TIMES", "USED", "MEAN WAIT", "P95 WAIT", "MAKESPAN"),
        (
            (
                number,
                f"{row['requeues_per_1000']:.1f}",
                f"{row['requeued_percent']:.1f} %",
                f"{row['over_5_percent']:.1f} %",
                f"{100 * row['utilisation']:.1f} %",
                age(row["mean_wait_s"]),
                age(row["p95_wait_s"]),
                f"{row['makespan_h']:.1f} h",
            )
            for number, row in enumerate(rows, 1)
        ),
    )
    click.echo()
    if compare:
        _courses(ran)
    else:
        _waits(rows[0])


def _waits(row: dict[str, Any]) -> None:
    table(
        ("REQUEST", "JOBS", "MEAN WAIT", "P95 WAIT"),
        (
            (name, item["jobs"], age(item["mean_wait_s"]), age(item["p95_wait_s"]))
            for name, item in row["waits"].items()
        ),
    )


def _courses(ran: list[Ran]) -> None:
    """Over time, in text: what is used, and how long jobs wait."""
    from slurm_mig.packing.picture import blocks
    from slurm_mig.packing.setups import course

    courses = [course(item) for item in ran]
    longest = max((wait for item in courses for wait in item.wait_s if wait), default=0.0)
    lines = [blocks(item, 70, longest) for item in courses]
    click.echo("compute in use, from start to end (a full block is all of it)")
    for number, (used, _) in enumerate(lines, 1):
        click.echo(f"{number}  {used}")
    click.echo(f"mean wait of jobs submitted then (a full block is {age(longest)})")
    for number, (_, waits) in enumerate(lines, 1):
        click.echo(f"{number}  {waits}")


def _draw(ran: list[Ran], path: Path) -> None:
    from slurm_mig.packing.picture import svg
    from slurm_mig.system.replace import write_output

    write_output(path, svg(ran))
    click.echo(f"picture: {path}", err=True)
