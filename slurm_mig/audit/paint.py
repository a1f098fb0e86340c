"""Paints a timeline with matplotlib (the extra `slurm-mig[timeline]`): PNG, SVG or HTML.

All three are one drawing. SVG and HTML tell who had a slice when the pointer
rests on it; they need nothing from elsewhere, and run no script. The same
picture is always the same bytes.
"""

from __future__ import annotations

import html
import io
import logging
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.audit.timeline import OTHERS, colours
from slurm_mig.errors import UsageFault
from slurm_mig.system.replace import write_output
from slurm_mig.text import shown

if TYPE_CHECKING:
    from pathlib import Path

    from slurm_mig.audit.timeline import Band, Box, Picture

#: Apart for the colour-blind, too; as many as `timeline.COLOURED`.
PALETTE: Final = (
    *("#4477aa", "#ee9944", "#228833", "#aa3377", "#66ccee", "#bbaa22", "#885533", "#8888dd"),
    "#55bb99",
)
_OTHER: Final = "#b5b5b5"
_REFUSED: Final = "#77797c"

#: Heights, in units of one GPU's slots: the strip above them for refusals, and a gap.
_STRIP: Final = 0.24
_GAP: Final = 0.16
_PITCH: Final = 1 + _STRIP + _GAP

_LEGEND_COLUMNS: Final = 6

_STYLE: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "slurm-mig",
    "hatch.linewidth": 0.6,
}

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{margin:1em;font-family:sans-serif}}svg{{width:100%;height:auto}}</style></head>
<body>
{svg}</body></html>
"""


def paint(picture: Picture, out: Path) -> None:
    """Write the picture as its file name's ending says; UsageFault without matplotlib."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib as mpl
    except ImportError:
        raise UsageFault(
            "--timeline needs matplotlib, which is not installed",
            remedy='pip install "slurm-mig[timeline]"',
        ) from None
    with mpl.rc_context(_STYLE):
        figure = _figure(picture)
        if out.suffix == ".png":
            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
            write_output(out, png.getvalue())
            return
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    text = _with_titles(svg.getvalue(), picture)
    if out.suffix == ".html":
        text = _PAGE.format(title=html.escape(_title(picture)), svg=text[text.index("<svg") :])
    write_output(out, text)


def _figure(picture: Picture) -> Any:
    from matplotlib.figure import Figure

    tall = 0.8 * len(picture.bands)
    height = tall + 1.45
    figure = Figure(figsize=(13, height))
    axes = figure.add_axes((0.09, 0.95 / height, 0.86, tall / height))
    axes.set_xlim(_day(picture.since), _day(picture.until))
    axes.set_ylim(len(picture.bands) * _PITCH - _GAP / 2, -_GAP / 2)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([])
    for number, band in enumerate(picture.bands):
        _band(axes, number, band, picture)
    painted = _colours(picture)
    for number, box in enumerate(picture.boxes):
        _box(axes, number, box, painted[box.key], picture)
    for number, mark in enumerate(picture.marks):
        top = mark.band * _PITCH + _STRIP / 2
        axes.plot(
            [_day(mark.at)],
            [top],
            marker="v",
            markersize=3,
            markeredgewidth=0,
            color=_REFUSED,
            gid=f"mark-{number}",
        )
    _time_axis(axes, picture)
    axes.set_title(_title(picture), loc="left", fontsize=11, pad=8)
    _legend(figure, picture, painted)
    return figure


def _day(seconds: float) -> float:
    # Matplotlib counts days since 1970-01-01 UTC.
    return seconds / 86400


def _band(axes: Any, number: int, band: Band, picture: Picture) -> None:
    from matplotlib.patches import Rectangle

    top = number * _PITCH + _STRIP
    left, wide = _day(picture.since), _day(picture.until - picture.since)
    axes.add_patch(Rectangle((left, top), wide, 1, facecolor="#f1f1f1", edgecolor="none", zorder=0))
    for unit in range(1, band.units):
        axes.axhline(top + unit / band.units, color="white", linewidth=0.8, zorder=0.5)
    several = len({item.node for item in picture.bands}) > 1
    where = f"{band.node} " if several else ""
    axes.annotate(
        f"{where}GPU {band.minor}",
        (0, top + 0.5),
        xycoords=("axes fraction", "data"),
        xytext=(-14, 0),
        textcoords="offset points",
        ha="right",
        va="center",
    )
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": "#555555"}
    place = ("axes fraction", "data")
    for unit in range(band.units):
        # As nvidia-smi counts them; as large as the slot is high.
        height = (0, top + (unit + 0.5) / band.units)
        size = min(5.0, 40.0 / band.units)
        axes.annotate(str(unit), height, (-4, 0), place, ha="right", fontsize=size, **beside)
    held = f"{100 * band.occupancy:.0f} %"
    axes.annotate(held, (1, top + 0.5), (5, 0), place, ha="left", fontsize=8, **beside)


def _box(axes: Any, number: int, box: Box, colour: str, picture: Picture) -> None:
    from matplotlib.patches import Rectangle

    units = picture.bands[box.band].units
    top = box.band * _PITCH + _STRIP
    wide = _day(box.until - box.since)
    # A white edge would hide what is a few pixels wide; its own makes it visible.
    narrow = box.until - box.since < (picture.until - picture.since) / 250
    axes.add_patch(
        Rectangle(
            (_day(box.since), top + box.low / units),
            wide,
            (box.high - box.low) / units,
            facecolor=colour,
            edgecolor=colour if narrow else "white",
            linewidth=0.3 if narrow else 0.6,
            hatch="////" if box.quarantined else None,
            zorder=2,
            gid=f"box-{number}",
        )
    )


def _colours(picture: Picture) -> dict[str, str]:
    """By name, not by rank: users keep their colour from one week to the next."""
    places = colours(key for key, _ in picture.legend)
    return {key: PALETTE[place] for key, place in places.items()} | {OTHERS: _OTHER}


def _time_axis(axes: Any, picture: Picture) -> None:
    from dateutil.tz import tzlocal
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    zone = tzlocal()
    locator = AutoDateLocator(tz=zone, minticks=5, maxticks=12)
    axes.xaxis_date(tz=zone)
    axes.xaxis.set_major_locator(locator)
    # Years, months, days, hours, minutes, seconds: as a tick says each, and as its first does.
    ticks = ["%Y", "%b %Y", "%a %d %b", "%H:%M", "%H:%M", "%S.%f"]
    firsts = ["", "%b %Y", "%a %d %b", "%a %d %b", "%H:%M", "%H:%M"]
    axes.xaxis.set_major_formatter(
        ConciseDateFormatter(
            locator, tz=zone, formats=ticks, zero_formats=firsts, show_offset=False
        )
    )
    axes.grid(axis="x", color="#d5d5d5", linewidth=0.6, zorder=1)
    axes.set_axisbelow(False)
    names = dict.fromkeys(_local(time).strftime("%Z") for time in (picture.since, picture.until))
    axes.set_xlabel(f"local time ({', '.join(names)})", fontsize=8, loc="right")


def _legend(figure: Any, picture: Picture, painted: dict[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Patch(
            facecolor=painted[key],
            label=_plain(key) + ("" if hours is None else f" ({hours:.1f} GPU-h)"),
        )
        for key, hours in picture.legend
    ]
    if any(box.quarantined for box in picture.boxes):
        handles.append(Patch(facecolor="white", edgecolor="#555555", hatch="////", label="stuck"))
    if picture.marks:
        label = f"refused ({len(picture.marks)})"
        sign: dict[str, Any] = {"marker": "v", "markersize": 4, "color": _REFUSED, "linestyle": ""}
        handles.append(Line2D([], [], label=label, **sign))
    columns = min(len(handles), _LEGEND_COLUMNS)
    if handles:
        figure.legend(
            # Matplotlib fills column by column; people read line by line.
            handles=[item for place in range(columns) for item in handles[place::columns]],
            loc="lower left",
            bbox_to_anchor=(0.085, 0.0),
            ncols=columns,
            frameon=False,
            fontsize=8,
            handlelength=1.2,
            columnspacing=1.6,
        )


def _title(picture: Picture) -> str:
    nodes = sorted({band.node for band in picture.bands})
    models = sorted({band.name for band in picture.bands})
    what = (
        f"{len(picture.bands)} x {models[0]}" if len(models) == 1 else f"{len(picture.bands)} GPUs"
    )
    names = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
    first, last = (
        _local(time).strftime("%Y-%m-%d %H:%M") for time in (picture.since, picture.until)
    )
    return _plain(f"{names}: {what}, slices by {picture.by}, {first} to {last}")


def _plain(text: str) -> str:
    """One printable line, in which `$` does not begin a formula."""
    return shown(text).replace("$", r"\$")


def _local(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()


def _with_titles(svg: str, picture: Picture) -> str:
    """Put what the pointer shows behind each slice and refusal."""

    def titled(match: re.Match[str]) -> str:
        kind, number = match[1], int(match[2])
        lines = _box_lines(picture.boxes[number]) if kind == "box" else _mark_lines(picture, number)
        # A form feed or an escape is no XML, not even as an entity.
        text = "\n".join(map(shown, lines))
        return f"{match[0]}<title>{html.escape(text)}</title>"

    return re.sub(r'<g id="(box|mark)-(\d+)">', titled, svg)


def _box_lines(box: Box) -> list[str]:
    first, last = box.held
    ended = "now" if last is None else f"{_local(last):%Y-%m-%d %H:%M:%S}"
    return [*box.lines, f"{_local(first):%Y-%m-%d %H:%M:%S} to {ended}"]


def _mark_lines(picture: Picture, number: int) -> list[str]:
    mark = picture.marks[number]
    return [*mark.lines, f"{_local(mark.at):%Y-%m-%d %H:%M:%S}"]
