"""An SVG of replays: how much of the GPUs is used, and how long jobs wait, over time."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Final, NamedTuple

from slurm_mig.packing.replay import Retry
from slurm_mig.packing.setups import course, figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurm_mig.packing.setups import Course, Ran

WIDTH: Final = 900
#: Left and right of the panels; height of one panel; above each.
LEFT, RIGHT, HEIGHT, ABOVE = 70, 20, 200, 40
#: Below a panel, for its hours; height of a line of the legend.
BELOW, LINE = 44, 20


class Style(NamedTuple):
    """How a set-up is drawn; told apart without colour, too, for each has its own dashes."""

    colour: str
    dashes: str
    width: float
    filled: bool = False


#: Of what never changes, of what cannot be had, and of the others (Okabe and Ito's palette).
STATIC: Final = Style("#d55e00", "", 2.2, filled=True)
BOUND: Final = Style("#000000", "", 1.2)
STYLES: Final = (
    Style("#0072b2", "", 1.8),
    Style("#009e73", "8 3", 1.8),
    Style("#cc79a7", "2 2", 1.8),
    Style("#e69f00", "10 3 2 3", 1.8),
    Style("#56b4e9", "4 2", 1.8),
    Style("#7a6a00", "12 4", 1.8),
)

#: Levels of a line of text.
BLOCKS: Final = "▁▂▃▄▅▆▇█"


def svg(runs: Sequence[Ran]) -> str:
    """Two panels, one line each set-up, and what each line is."""
    courses = [course(ran) for ran in runs]
    hours = max(item.hours[-1] for item in courses)
    longest = max((wait for item in courses for wait in item.wait_s if wait), default=60.0) / 60
    used = [[(h, 100 * share) for h, share in zip(c.hours, c.used, strict=True)] for c in courses]
    waits = [
        [(h, wait / 60) for h, wait in zip(c.hours, c.wait_s, strict=True) if wait is not None]
        for c in courses
    ]
    styles = _styles(runs)
    second = ABOVE + HEIGHT + BELOW + ABOVE
    names = second + HEIGHT + BELOW
    body = [
        *_panel(ABOVE, "compute slices in use, percent", hours, 100.0, used, styles),
        *_panel(
            second, "mean wait of the jobs submitted then, minutes", hours, longest, waits, styles
        ),
        *_legend(names, runs, styles),
    ]
    height = names + LINE * len(runs) + LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _styles(runs: Sequence[Ran]) -> list[Style]:
    others, found = 0, []
    for ran in runs:
        if ran.setup.static is not None:
            found.append(STATIC)
        elif ran.setup.retry is Retry.AWARE:
            found.append(BOUND)
        else:
            found.append(STYLES[others % len(STYLES)])
            others += 1
    return found


def _legend(top: float, runs: Sequence[Ran], styles: Sequence[Style]) -> Iterable[str]:
    """Each line's number in the table, what it is, and its mean wait."""
    for number, (ran, style) in enumerate(zip(runs, styles, strict=True)):
        y = top + LINE * (number + 1)
        yield (
            f'<line x1="{LEFT}" x2="{LEFT + 44}" y1="{y - 4}" y2="{y - 4}" '
            f'stroke="{style.colour}" stroke-width="{style.width}" '
            f'stroke-dasharray="{style.dashes}"/>'
        )
        wait = figures(ran)["mean_wait_s"] / 60
        end = "never ends" if ran.outcome.livelock else f"{wait:.3g} minutes on average"
        yield _text(LEFT + 54, y, f"{number + 1}  {ran.setup.label}: {end}")


def round_steps(most: float) -> list[float]:
    """Ticks from 0 to `most` or just above it, four to eight of them, of round size."""
    size = 10.0 ** floor(log10(most / 4))
    step = max(n * size for n in (1, 2, 5) if n * size <= most / 4)
    return [step * part for part in range(ceil(most / step - 1e-9) + 1)]


def _panel(
    top: float,
    title: str,
    hours: float,
    most: float,
    lines: Sequence[Sequence[tuple[float, float]]],
    styles: Sequence[Style],
) -> Iterable[str]:
    ticks = round_steps(most)
    width = WIDTH - LEFT - RIGHT
    yield _text(LEFT, top - 12, title)
    for value in ticks:
        y = top + HEIGHT * (1 - value / ticks[-1])
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(LEFT - 8, y + 4, f"{value:g}", "end")
    for value in round_steps(hours):
        if value <= hours:
            yield _text(LEFT + width * value / hours, top + HEIGHT + 18, f"{value:g}", "middle")
    yield _text(LEFT + width / 2, top + HEIGHT + 36, "hours since the first job", "middle")
    # What is filled lies below the others.
    order = sorted(range(len(lines)), key=lambda number: not styles[number].filled)
    for number in order:
        places = [
            (LEFT + width * hour / hours, top + HEIGHT * (1 - value / ticks[-1]))
            for hour, value in lines[number]
        ]
        yield from _line(places, styles[number], top + HEIGHT)


def _line(places: Sequence[tuple[float, float]], style: Style, floor_y: float) -> Iterable[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    if style.filled and places:
        yield (
            f'<polygon points="{places[0][0]:.1f},{floor_y} {path} {places[-1][0]:.1f},{floor_y}" '
            f'fill="{style.colour}" fill-opacity="0.13"/>'
        )
    yield (
        f'<polyline points="{path}" fill="none" stroke="{style.colour}" '
        f'stroke-width="{style.width}" stroke-dasharray="{style.dashes}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def blocks(found: Course, width: int, longest: float) -> tuple[str, str]:
    """Use and wait as two lines of text; the wait against `longest` seconds."""
    step = max(1, len(found.used) // width)
    used, waits = [], []
    for first in range(0, len(found.used) - step + 1, step):
        part = found.used[first : first + step]
        used.append(_block(sum(part) / len(part)))
        known = [wait for wait in found.wait_s[first : first + step] if wait is not None]
        waits.append(_block(sum(known) / len(known) / longest) if known and longest else " ")
    return "".join(used), "".join(waits)


def _block(share: float) -> str:
    return BLOCKS[max(0, min(len(BLOCKS) - 1, int(share * len(BLOCKS))))]
