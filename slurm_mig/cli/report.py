"""`slurm-mig report`: a page to look at; one file, which needs nothing from elsewhere."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.audit.spool import DistinctNumbers
from slurm_mig.audit.totals import totals
from slurm_mig.cli import _audit_filters as asked
from slurm_mig.cli import _audit_print as views
from slurm_mig.cli._print import working
from slurm_mig.cli._times import parse_time
from slurm_mig.cli._usage import NewFile
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
from slurm_mig.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: What must be in a text of sacct's.
COLUMNS: Final = ("Eligible", "Start", "AllocTRES")

_PROFILE: Final = re.compile(r"gres/mig:([^=,]+)=")

#: What is shown unless it is told: the last week, in seconds.
LAST_WEEK: Final = 7 * 86400.0


@click.command()
@click.argument("out", metavar="FILE.html", type=NewFile())
@filters
@click.option(
    "--ledger",
    "ledgers",
    multiple=True,
    help="Read these ledgers (a pattern, 'DIR/*.db') instead of this node's. Needs no root.",
)
@click.option(
    "--sacct",
    type=click.File("r", encoding="utf-8-sig", errors="replace"),
    help="Waits in Slurm's queue from this text, as `sacct -a -X -P -o Eligible,Start,AllocTRES` "
    "prints it (- for stdin).",
)
def command(out: Path, ledgers: tuple[str, ...], sacct: Iterable[str] | None, **flags: Any) -> None:
    """Write a page: occupancy over time, a timeline, GPU-hours, refusals, waits.

    Of the last seven days, or of --since and --until. The page is one file that asks no network;
    without JavaScript it is read as tables.
    """
    from slurm_mig.audit.page import page
    from slurm_mig.audit.report import queued, report
    from slurm_mig.system.replace import write_output

    wanted = asked.wanted(flags)
    queue = [] if sacct is None else queued(_waits(sacct))
    now = time.time()
    until = now if wanted["until"] is None else min(wanted["until"], now)
    if wanted["since"] is None:
        wanted["since"] = until - LAST_WEEK
    if wanted["since"] >= until:
        raise UsageFault("--since is not before now and --until: the page would have no time in it")
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
        write_output(out, page(shown, sums, lines, queue))
    click.echo(f"{out}: {len(shown.rows)} slices, {len(shown.refusals)} refusals")
    for line in lines:
        views.note(line)


def _waits(text: Iterable[str]) -> Iterator[tuple[str, float]]:
    """(profile, seconds) of each job that has started; UsageFault for another text.

    A job counts once, by the first of its profiles.
    """
    lines = iter(text)
    names = next(lines, "").rstrip("\r\n").split("|")
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UsageFault(
            f"--sacct: no column {missing[0]} in its first line",
            remedy=f"sacct -a -X -P -o {','.join(COLUMNS)} -S now-7days",
        )
    for line in lines:
        # A file that is cut off ends within a line: what is missing there is empty.
        fields = chain(line.rstrip("\r\n").split("|"), repeat(""))
        row = dict(zip(names, fields, strict=False))
        profile = _PROFILE.search(row["AllocTRES"])
        # `Unknown` or `None`: it waits, or never started.
        if profile and row["Start"][:1].isdigit() and row["Eligible"][:1].isdigit():
            # What was held after its start is eligible later: it did not wait less than nothing.
            yield profile[1], max(0.0, parse_time(row["Start"]) - parse_time(row["Eligible"]))
