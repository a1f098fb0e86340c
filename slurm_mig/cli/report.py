"""`slurm-mig report`: a page to look at; one file, which needs nothing from elsewhere."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from slurm_mig.audit.spool import DistinctNumbers
from slurm_mig.audit.totals import totals
from slurm_mig.cli import _audit_filters as asked
from slurm_mig.cli import _audit_print as views
from slurm_mig.cli._print import working
from slurm_mig.cli._usage import OnePath
from slurm_mig.cli.audit import (
    Notes,
    absent,
    archives_of,
    at_most,
    contradicted,
    filters,
    gpus_in,
    holdings_in,
)

#: What is shown unless it is told: the last week, in seconds.
LAST_WEEK: Final = 7 * 86400.0


@click.command()
@click.argument("out", metavar="FILE.html", type=OnePath(path_type=Path, dir_okay=False))
@filters
@click.option(
    "--ledger",
    "ledgers",
    multiple=True,
    help="Read these ledgers (a pattern, 'DIR/*.db') instead of this node's. Needs no root.",
)
def command(out: Path, ledgers: tuple[str, ...], **flags: Any) -> None:
    """Write a page: occupancy over time, a timeline, GPU-hours, refusals, waits.

    Of the last seven days, or of --since and --until. The page is one file that asks no network;
    without JavaScript it is read as tables.
    """
    from slurm_mig.audit.page import page
    from slurm_mig.audit.report import report
    from slurm_mig.system.replace import write_output

    wanted = asked.wanted(flags)
    now = time.time()
    until = now if wanted["until"] is None else min(wanted["until"], now)
    if wanted["since"] is None:
        wanted["since"] = until - LAST_WEEK
    with ExitStack() as stack:
        archives = archives_of(stack, ledgers)
        notes = Notes(archives, until, wanted)
        with views.progress(sum(item.size() for item in archives), "table") as passed:
            found = at_most(notes.through(holdings_in(archives, wanted, passed)), "a report")
        gpus = gpus_in(archives, wanted)
        lines = contradicted(archives) + absent(archives, wanted) + notes.clocks()
        lines += notes.cut_short("count until")
    with working("writing the page"):
        shown = report(found, gpus, wanted["since"], until)
        sums = {}
        for by in ("user", "account"):
            jobs = DistinctNumbers()
            sums[by] = totals(found, by, shown.since, shown.until, jobs)
            jobs.close()
        write_output(out, page(shown, sums, lines))
    click.echo(f"{out}: {len(shown.rows)} slices, {len(shown.refusals)} refusals")
    for line in lines:
        views.note(line)
