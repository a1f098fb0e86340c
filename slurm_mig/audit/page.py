"""A report as one HTML file: charts as SVG, everything as tables; a script adds zoom and filter.

The file asks no network, and says so to the browser. What users wrote is only ever text.
"""

from __future__ import annotations

import html
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.audit.report import PARTS, reason_of
from slurm_mig.audit.timeline import COLOURED, colours
from slurm_mig.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurm_mig.audit.report import Queued, Report, Row
    from slurm_mig.audit.totals import Total

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

#: Width and height of a chart in its own units; the page scales it.
_WIDE: Final = 600
_HIGH: Final = 60


def page(
    report: Report,
    sums: Mapping[str, Sequence[Total]],
    notes: Iterable[str],
    queue: Sequence[Queued] = (),
) -> str:
    """The whole file; `sums` by user and by account, `notes` on what is not on record.

    `queue` is what sacct knows of waits; nothing where nobody asked it.
    """
    nodes = sorted({gpu.node for gpu in report.gpus})
    title = f"MIG slices on {nodes[0] if len(nodes) == 1 else f'{len(nodes)} nodes'}"
    span = f"{_when(report.since)} to {_when(report.until)}, local time"
    users = colours(total.key for total in sums["user"])
    parts = [
        f'<header><h1>{_text(title)}</h1><p class="quiet">{_text(span)}</p>',
        *(f'<p class="note">{_text(line)}</p>' for line in notes),
        _cards(report, sums),
        "</header>",
        _section("Occupancy", _occupancy(report), OCCUPANCY),
        f'<section id="timeline" hidden>{TOOLS}{_named(users)}<div id="drawn"></div></section>',
        _section("GPU-hours", _hours(sums), HOURS),
        _section("Refusals", _refusals(report), "By reason; what was taken just then is left out."),
        _section("Waits", _waits(report) + _queue(queue), WAITS),
        _section("Every slice", _slices(report, users), "Times are local. The newest come last."),
    ]
    style, script = _asset("report.css"), _asset("report.js")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style></head>\n"
        f'<body data-since="{report.since:.0f}" data-until="{report.until:.0f}" '
        f'data-offset="{_offset(report.since):.0f}">\n'
        + "\n".join(parts)
        + f"\n<script>\n{script}</script>\n</body></html>\n"
    )


OCCUPANCY: Final = (
    "The share of GPU memory that slices had, a mean over each of "
    f"{PARTS} parts of the span. A whole GPU counts as all of it."
)
HOURS: Final = (
    "Hours of slices weighed by their share of a GPU's compute: seven hours of a 1g slice, of "
    "seven, are one."
)
WAITS: Final = (
    "Jobs that were refused for want of room and came back, from the first refusal to the slice. "
    "What jobs wait in Slurm's queue, only sacct knows (--sacct)."
)


#: Of the timeline, which is there with a script alone.
TOOLS: Final = (
    '<h2>Timeline</h2><p class="tools"><input id="filter" type="search" '
    'placeholder="filter: user, job, profile" aria-label="filter"> '
    '<button id="in">+</button> <button id="out">-</button> <button id="all">all</button> '
    '<span id="told" class="quiet"></span></p>'
    '<p class="quiet">Drag to move, double-click or Ctrl and the wheel to zoom.</p>'
)


def _asset(name: str) -> str:
    return resources.files("slurm_mig").joinpath("data", name).read_text("utf-8")


def _text(value: object) -> str:
    return html.escape(shown(str(value)))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%dT%H:%M:%S")


def _offset(seconds: float) -> float:
    """Seconds that this machine's clock is ahead of UTC."""
    ahead = datetime.fromtimestamp(seconds).astimezone().utcoffset()
    return ahead.total_seconds() if ahead else 0.0


def _lasting(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _section(title: str, body: str, note: str) -> str:
    return f'<section><h2>{title}</h2><p class="quiet">{_text(note)}</p>{body}</section>'


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]], **attributes: str) -> str:
    """Cells are text; headers that begin with `#` are of numbers."""
    kinds = [' class="number"' if name[:1] == "#" else "" for name in headers]
    head = "".join(
        f"<th{kind}>{_text(name.lstrip('#'))}</th>"
        for name, kind in zip(headers, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{_text(value)}</td>" for value, kind in zip(row, kinds, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return _framed(head, body, **attributes)


def _framed(head: str, body: str, **attributes: str) -> str:
    more = "".join(f' {name}="{value}"' for name, value in attributes.items())
    if not body:
        return '<p class="quiet">None.</p>'
    return (
        f'<div class="scroll"><table{more}><thead><tr>{head}</tr></thead><tbody>\n'
        f"{body}</tbody></table></div>"
    )


def _cards(report: Report, sums: Mapping[str, Sequence[Total]]) -> str:
    hours = sum(total.compute_hours for total in sums["user"])
    cards = (
        (len(report.gpus), "GPUs"),
        (f"{100 * report.occupancy:.0f} %", "mean occupancy"),
        (f"{hours:.1f}", "GPU-hours"),
        (len(report.rows), "slices"),
        (len({row.item.record.owner.user for row in report.rows}), "users"),
        (len(report.refusals), "refusals"),
    )
    return (
        '<dl class="cards">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for value, name in cards)
        + "</dl>"
    )


# -- charts ----------------------------------------------------------------------


def _occupancy(report: Report) -> str:
    profiles = list(report.by_profile)[:COLOURED]
    stacked, ground = [], [0.0] * PARTS
    for place, name in enumerate(profiles):
        top = [low + share for low, share in zip(ground, report.by_profile[name], strict=True)]
        stacked.append(f'<path class="c{place}" d="{_area(ground, top)}"/>')
        ground = top
    legend = "".join(
        f'<li><i class="c{place}"></i>{_text(name)} {_percent(report.by_profile[name])}</li>'
        for place, name in enumerate(profiles)
    )
    charts = [
        _figure("".join(stacked), "all GPUs, by profile", f"<b>{100 * report.occupancy:.0f} %</b>"),
        f'<ul class="legend">{legend}</ul>',
        '<div class="grid">',
        *(
            _figure(
                f'<path class="one" d="{_area([0.0] * PARTS, shares)}"/>',
                f"{gpu.node} GPU {gpu.minor}",
                f"<b>{_percent(shares)}</b>",
            )
            for gpu, shares in zip(report.gpus, report.by_gpu, strict=True)
        ),
        "</div>",
    ]
    return "".join(charts)


def _named(users: Mapping[str, int]) -> str:
    """The colours of the timeline."""
    rest = [("others", COLOURED)] if len(users) == COLOURED else []
    names = "".join(
        f'<li><i class="c{place}"></i>{_text(name or "-")}</li>'
        for name, place in [*sorted(users.items()), *rest]
    )
    return f'<ul class="legend">{names}</ul>'


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * sum(shares) / len(shares):.0f} %"


def _figure(inside: str, label: str, beside: str) -> str:
    caption = f"<figcaption>{_text(label)} {beside}</figcaption>"
    return f'<figure class="chart">{_svg(inside, _text(label))}{caption}</figure>'


def _svg(inside: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" preserveAspectRatio="none" role="img" '
        f'aria-label="occupancy of {label}"><rect class="ground" width="{_WIDE}" height="{_HIGH}"/>'
        f"{inside}</svg>"
    )


def _area(low: Sequence[float], top: Sequence[float]) -> str:
    """The area between two rows of shares, as steps."""
    step = _WIDE / PARTS

    def edge(shares: Sequence[float]) -> list[str]:
        heights = [_HIGH * (1 - min(share, 1.0)) for share in shares]
        return [
            f"{x:g} {height:.1f}"
            for part, height in enumerate(heights)
            for x in (part * step, (part + 1) * step)
        ]

    return f"M{'L'.join([*edge(top), *reversed(edge(low))])}Z"


# -- tables -----------------------------------------------------------------------


def _hours(sums: Mapping[str, Sequence[Total]]) -> str:
    found = []
    for by, rows in sums.items():
        headers = (by.title(), "#GPU-hours", "#slice-hours", "#jobs", "#refused")
        found.append(
            _table(
                headers,
                [
                    (
                        total.key or "-",
                        f"{total.compute_hours:.2f}{'?' if total.unknown_hours else ''}",
                        f"{total.slice_hours:.2f}",
                        total.jobs,
                        total.refused,
                    )
                    for total in rows
                ],
            )
        )
    return f'<div class="grid tables">{"".join(found)}</div>'


def _refusals(report: Report) -> str:
    by_reason = _table(
        ("Reason", "#times", "last"),
        [(reason, count, _when(last)) for reason, count, last in report.reasons],
    )
    single = _table(
        ("At", "Job", "User", "Asked for", "Reason"),
        [
            (
                _when(item.record.created),
                item.record.owner.job_id or "-",
                item.record.owner.user or "-",
                item.record.request,
                reason_of(item.record.reason),
            )
            for item in report.refusals
        ],
    )
    return f"{by_reason}<details><summary>each refusal</summary>{single}</details>"


def _waits(report: Report) -> str:
    return _table(
        ("Asked for", "#jobs refused", "#served later", "#median wait", "#longest wait"),
        [
            (wait.asked, wait.refused, wait.served, _lasting(wait.median), _lasting(wait.longest))
            for wait in report.waits
        ],
    )


def _queue(queue: Sequence[Queued]) -> str:
    if not queue:
        return ""
    headers = ("In Slurm's queue", "#jobs", "#median", "#19 of 20 within", "#longest")
    rows = [
        (each.profile, each.jobs, *map(_lasting, (each.median, each.most, each.longest)))
        for each in queue
    ]
    return f"<br>{_table(headers, rows)}"


def _slices(report: Report, users: Mapping[str, int]) -> str:
    headers = ("Job", "User", "Account", "Node", "GPU", "Slice", "From", "To", "Outcome")
    rows = [(row, _cells(report, row)) for row in report.rows]
    body = "".join(
        f"<tr{_data(report, row, users)}>"
        + "".join(f"<td>{_text(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for row, cells in rows
    )
    return _framed("".join(f"<th>{name}</th>" for name in headers), body, id="slices")


def _data(report: Report, row: Row, users: Mapping[str, int]) -> str:
    """What the script draws a slice from."""
    gpu = report.gpus[row.gpu]
    values: dict[str, Any] = {
        "gpu": row.gpu,
        "units": gpu.units or "",
        "low": f"{row.low:g}",
        "high": f"{row.high:g}",
        "since": f"{row.since:.0f}",
        "until": f"{row.until:.0f}",
        "colour": users.get(row.item.record.owner.user, COLOURED),
    }
    return "".join(f' data-{name}="{value}"' for name, value in values.items())


def _cells(report: Report, row: Row) -> list[object]:
    record, made = row.item.record, row.item.instance
    run = f" run {record.owner.restart + 1}" if record.owner.restart else ""
    return [
        f"{record.owner.job_id}{run}" if record.owner.is_job else "-",
        record.owner.user or "-",
        record.owner.account or "-",
        record.node,
        report.gpus[row.gpu].minor,
        str(made) if made else record.request,
        _when(record.created),
        "now" if record.ended is None else _when(record.ended),
        record.phase,
    ]
