"""How `slurm-mig audit` prints what it has: tables, CSV, JSON."""

from __future__ import annotations

import csv
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.audit.spool import Rows
from slurm_mig.cli._print import (
    Columns,
    age,
    cell,
    folded,
    paint,
    print_json,
    print_json_rows,
    run_of,
    table,
    when,
)
from slurm_mig.mig.allocation import ACTIVE, GONE, LOST, QUARANTINED, REFUSED
from slurm_mig.text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import ExitStack

    from slurm_mig.audit.findings import AuditFinding
    from slurm_mig.audit.holdings import Holding
    from slurm_mig.audit.totals import Total

#: Rows that are read so fast that a bar would only flicker.
WORTH_A_BAR: Final = 20_000

#: How often a bar moves from its beginning to its end, at most.
STEPS: Final = 200

#: Phases whose reason says what went wrong; else it is the plan's own explanation.
EXPLAINED: Final = (REFUSED, QUARANTINED, LOST)

#: What a spreadsheet takes for a formula when a cell begins with it.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def progress(total: int, form: str) -> Iterator[Callable[[int], object]]:
    """What to call with each count of rows that are done, of `total`; it draws a bar on a terminal.

    On stderr, and none beside JSON, for which a program waits, or for what is done at once.
    """
    if form == "json" or total < WORTH_A_BAR or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=total, label="reading", file=sys.stderr) as bar:
        # Drawing it for each row would take longer than reading the row.
        waiting = [0]

        def passed(count: int) -> None:
            waiting[0] += count
            if waiting[0] >= total // STEPS:
                bar.update(waiting[0])
                waiting[0] = 0

        yield passed
        bar.update(waiting[0])


def rows(
    stack: ExitStack, items: Iterable[Holding], form: str, *, wide: bool
) -> Callable[[], None]:
    """Read who held what, one line each; the answer prints them."""
    kept = Rows()
    stack.callback(kept.close)
    if form != "table":
        for item in items:
            kept.add(_row(item))
        return partial(_print, form, kept, list(_COLUMNS))
    nodes: set[str] = set()
    names = WIDE if wide else NARROW
    both = [
        Columns([name for name in names if several or name != "NODE"], cut=() if wide else CUT)
        for several in (False, True)
    ]
    phases: Counter[str] = Counter()
    for item in items:
        nodes.add(item.record.node)
        phases[item.record.phase] += 1
        cells = _cells(item, names)
        kept.add([item.record.phase, _reason(item), *cells])
        both[1].learn(cells)
        both[0].learn(_without_node(cells, names))
    return partial(_show, kept, both[len(nodes) > 1], phases, names, several=len(nodes) > 1)


def _show(
    kept: Rows, columns: Columns, phases: Counter[str], names: Sequence[str], *, several: bool
) -> None:
    """What went wrong first, then the rest, each in its order; and how many of each."""
    columns.fit()
    click.echo(columns.head())
    for first in (True, False) if len({phase in FAILED for phase in phases}) > 1 else (None,):
        for phase, reason, *cells in kept:
            if first is None or first == (phase in FAILED):
                shown = cells if several else _without_node(cells, names)
                click.echo(columns.line(shown, _PAINTED.get(phase, "")))
                if reason and names is NARROW:
                    click.echo(folded(f"    {reason}", 4))
    click.echo(_counted(phases))


def _counted(phases: Counter[str]) -> str:
    """`2 refused, 1 quarantined, 12 released`: failures first."""
    words = [
        paint(f"{phases[phase]} {phase}", _PAINTED.get(phase, ""))
        for phase in (*FAILED, *(name for name in phases if name not in FAILED))
        if phases[phase]
    ]
    return f"{sum(phases.values())} in all" + (f": {', '.join(words)}" if words else "")


#: What went other than it was asked for.
FAILED: Final = (QUARANTINED, LOST, REFUSED)

_PAINTED: Final = {QUARANTINED: "bad", LOST: "bad", REFUSED: "warn", ACTIVE: "good"}

#: Columns that fit a terminal, and all of them; CUT: names of any length.
NARROW: Final = ("JOB", "USER", "NODE", "GPU", "SLICE", "FROM", "TIME", "OUTCOME")
WIDE: Final = (
    *("JOB", "USER", "ACCOUNT", "NODE", "GPU", "SLICE", "GI/CI"),
    *("MIG UUID", "FROM", "TO", "TIME", "OUTCOME"),
)
CUT: Final = ("USER", "NODE", "SLICE")


def _without_node(cells: Sequence[str], names: Sequence[str]) -> list[str]:
    place = names.index("NODE")
    return [*cells[:place], *cells[place + 1 :]]


def _reason(item: Holding) -> str:
    record = item.record
    return cell(record.reason) if record.phase in EXPLAINED and record.reason else ""


def _cells(item: Holding, names: Sequence[str]) -> list[str]:
    record, made = item.record, item.instance
    owner = record.owner
    known = made is not None and made.gi_id not in (None, GONE)
    ended = min(item.ended, time.time())
    told: dict[str, object] = {
        "JOB": run_of(owner.job_id, owner.restart),
        "USER": owner.user or "-",
        "ACCOUNT": owner.account or "-",
        "NODE": record.node,
        "GPU": record.gpu_minor,
        "SLICE": str(made) if made else record.request,
        "GI/CI": f"{made.gi_id}/{_or(made.ci_id, '-')}" if made and known else "-",
        "MIG UUID": (made.uuid if made else None) or "-",
        "FROM": when(record.created),
        "TO": when(record.ended),
        "TIME": "-" if record.phase == REFUSED else age(ended - record.created),
        "OUTCOME": record.phase + (f": {why}" if names is WIDE and (why := _reason(item)) else ""),
    }
    return [cell(told[name]) for name in names]


def _or(value: object, other: object) -> object:
    return other if value is None else value


def _row(item: Holding) -> dict[str, Any]:
    record, made, owner = item.record, item.instance, item.record.owner
    return {
        "allocation": record.number,
        "job_id": owner.job_id,
        "restart": owner.restart,
        "sluid": owner.sluid,
        "uid": owner.uid,
        "user": owner.user,
        "account": owner.account,
        "node": record.node,
        "gpu_uuid": record.gpu_uuid,
        "gpu_minor": record.gpu_minor,
        "gpu_name": record.gpu_name,
        "request": record.request,
        "from": record.created,
        "to": record.ended,
        "phase": record.phase,
        "reason": record.reason,
        "slice": str(made) if made else "",
        "profile": made.profile if made else None,
        "start": made.start if made else None,
        "size": made.size if made else None,
        "gi_id": made.gi_id if made else None,
        "ci_id": made.ci_id if made else None,
        "uuid": made.uuid if made else None,
        "compute_share": _rounded(item.compute),
        "memory_share": _rounded(item.memory),
    }


_COLUMNS: Final = (
    *("allocation", "job_id", "restart", "sluid", "uid", "user", "account", "node", "gpu_uuid"),
    *("gpu_minor", "gpu_name", "request", "from", "to", "phase", "reason", "slice", "profile"),
    *("start", "size", "gi_id", "ci_id", "uuid", "compute_share", "memory_share"),
)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


# -- totals --------------------------------------------------------------------


def print_totals(found: Sequence[Total], by: str, form: str) -> None:
    """Sums, one line for each user, account, profile or node."""
    rows = [
        {
            by: total.key,
            "jobs": total.jobs,
            "slices": total.slices,
            "slice_hours": round(total.slice_hours, 4),
            "gpu_hours_compute": round(total.compute_hours, 4),
            "gpu_hours_memory": round(total.memory_hours, 4),
            "unknown_hours": round(total.unknown_hours, 4),
            "refused": total.refused,
        }
        for total in found
    ]
    if form != "table":
        return _print(form, rows, [by, *_SUMS])
    headers = ("JOBS", "SLICES", "SLICE-H", "GPU-H COMPUTE", "GPU-H MEMORY", "REFUSED")
    table((by.upper(), *headers), [_total_cells(row, by) for row in rows])
    hidden = sum(total.unknown_hours for total in found)
    if hidden:
        note(f"{hidden:.2f} slice-hours on GPUs of unknown size are in no GPU-hours (`?`)")
    return None


_SUMS: Final = (
    *("jobs", "slices", "slice_hours", "gpu_hours_compute", "gpu_hours_memory"),
    *("unknown_hours", "refused"),
)


def _total_cells(row: dict[str, Any], by: str) -> list[object]:
    mark = "?" if row["unknown_hours"] else ""
    return [
        row[by] or "-",
        row["jobs"],
        row["slices"],
        f"{row['slice_hours']:.2f}",
        f"{row['gpu_hours_compute']:.2f}{mark}",
        f"{row['gpu_hours_memory']:.2f}{mark}",
        row["refused"],
    ]


# -- findings ------------------------------------------------------------------


def print_findings(found: Sequence[AuditFinding], form: str, **more: object) -> None:
    """What should not be; in JSON beside `more`."""
    rows = [asdict(item) for item in found]
    if form == "json":
        print_json({**more, "findings": rows})
    elif form == "csv":
        _print(form, rows, list(_FINDING))
    elif found:
        for item in found:
            since = "" if item.since is None else f"  {when(item.since)}"
            click.echo(f"{paint(item.kind, 'bad')}  {item.node or '-'}{since}")
            click.echo(folded(f"    {cell(item.text)}", 4))
        kinds = Counter(item.kind for item in found)
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        click.echo(f"{len(found)} findings: {words}")


_FINDING: Final = (
    *("kind", "text", "node", "event", "allocation", "job_id", "user", "since", "until"),
)


def agree(since: float, until: float, records: int, runs: int) -> None:
    """Say what was compared, and that it agrees."""
    click.echo(
        f"{when(since)} to {when(until)}: {records} records of the ledger and {runs} runs of the "
        "accounting agree"
    )


def note(text: str) -> None:
    """Something worth knowing that is no finding: to stderr, so that no output is spoilt."""
    click.echo(f"slurm-mig: {text}", err=True)


def _print(form: str, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    if form == "json":
        print_json_rows(rows)
        return
    writer = csv.writer(sys.stdout)
    writer.writerow(columns)
    writer.writerows(_csv_cells(row, columns) for row in rows)


def _csv_cells(row: dict[str, Any], columns: Iterable[str]) -> list[object]:
    return [_csv_cell(row[name]) for name in columns]


def _csv_cell(value: object) -> object:
    """A user's or account's name must be no formula to whoever opens the file."""
    if not isinstance(value, str):
        return value
    text = shown(value)
    return f"'{text}" if value.startswith(_FORMULA) else text
