"""`slurm-mig learn`: a table of the best slots for a site's own mix of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slurm_mig.cli._options import Number, json_option
from slurm_mig.cli._print import print_json, table, working
from slurm_mig.cli._usage import NewFile
from slurm_mig.cli._workload import (
    model_option,
    read,
    sacct_option,
    tell_left_out,
    trace_argument,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@trace_argument
@sacct_option
@model_option
@click.option(
    "--load",
    "pressure",
    type=Number(0.05, 5.0),
    default=0.8,
    show_default=True,
    help="Load on each GPU for which the slots are chosen.",
)
@click.option(
    "-o",
    "--output",
    type=NewFile(),
    help='Write the table there, for `policy = "optimal:FILE"` and `simulate --policy`.',
)
@json_option
def command(
    trace: Path | None,
    sacct: Path | None,
    name: str,
    pressure: float,
    output: Path | None,
    as_json: bool,
) -> None:
    """Find the slots that refuse fewest of these jobs, what that gains, and how far it holds."""
    from slurm_mig.packing import tables
    from slurm_mig.packing.learning import learn
    from slurm_mig.system.replace import write_output

    load, _ = read(trace, sacct, name)
    with working("learning"):
        lesson = learn(load, pressure)
    if output is not None:
        about = {"gpu": name, "jobs": len(load.jobs.submit), **lesson.about()}
        write_output(output, tables.text(load.geometry, lesson.values, about))
    if as_json:
        print_json({**lesson.about(), "drift": {d.towards: d.from_share for d in lesson.drifts}})
        return
    gain = 1 - lesson.table.refused / lesson.fits.refused if lesson.fits.refused else 0.0
    click.echo(
        f"one GPU at load {pressure:g}, refusals per 1,000 starts: {lesson.fits.refused:.1f} with "
        f"fits, {lesson.table.refused:.1f} with the table ({100 * gain:.0f} % fewer)\n"
    )
    table(
        ("JOBS ASK FOR", "SHARE", "FITS IS BETTER FROM"),
        (
            (
                drift.towards,
                f"{100 * lesson.mix[drift.towards]:.1f} %" if drift.towards in lesson.mix else "-",
                "never"
                if drift.from_share is None
                else f"{100 * drift.from_share:.0f} % such jobs more",
            )
            for drift in lesson.drifts
        ),
    )
    click.echo(f"\ntable: {output}" if output else "\nnothing written: give -o FILE for the table")
    tell_left_out(load)
