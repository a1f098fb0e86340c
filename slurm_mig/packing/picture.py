"""An SVG of replays: how much of the GPUs is used, and how long jobs wait, over time."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from slurm_mig.packing.setups import course

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurm_mig.packing.setups import Course, Ran

WIDTH: Final = 900
#: Left and right of the panels; height of one panel; above each.
LEFT, RIGHT, HEIGHT, ABOVE = 70, 20, 190, 46

#: Told apart also without colour: each line has its own dashes (Okabe and Ito's palette).
STYLES: Final = (
    ("#0072b2", ""),
    ("#d55e00", "7 3"),
    ("#009e73", "2 3"),
    ("#cc79a7", "9 3 2 3"),
    ("#e69f00", "4 2"),
    ("#000000", "1 2"),
)

#: Levels of a line of text.
BLOCKS: Final = "▁▂▃▄▅▆▇█"


def svg(runs: Sequence[Ran]) -> str:
    """Two panels, one line each set-up, and what each line is."""
    courses = [course(ran) for ran in runs]
    hours = max(item.hours[-1] for item in courses)
    longest = max((wait for item in courses for wait in item.wait_s if wait), default=60.0)
    used = [[(h, share) for h, share in zip(c.hours, c.used, strict=True)] for c in courses]
    waits = [
        [(h, wait / 60) for h, wait in zip(c.hours, c.wait_s, strict=True) if wait is not None]
        for c in courses
    ]
    second = ABOVE + HEIGHT + ABOVE
    names = second + HEIGHT + 40
    body = [
        *_panel(ABOVE, "compute slices in use, percent", hours, 100.0),
        *(
            _line([(h, 100 * share) for h, share in points], number, ABOVE, hours, 100.0)
            for number, points in enumerate(used)
        ),
        *_panel(second, "mean wait of jobs submitted then, minutes", hours, longest / 60),
        *(_line(points, n, second, hours, longest / 60) for n, points in enumerate(waits)),
        _text(WIDTH / 2, names - 6, "hours", "middle"),
    ]
    for number, ran in enumerate(runs):
        colour, dashes = STYLES[number % len(STYLES)]
        y = names + 16 + 18 * number
        body.append(
            f'<line x1="{LEFT}" x2="{LEFT + 40}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="2" stroke-dasharray="{dashes}"/>'
        )
        body.append(_text(LEFT + 50, y, ran.setup.label))
    height = names + 18 * len(runs) + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(top: float, title: str, hours: float, most: float) -> Iterable[str]:
    yield _text(LEFT, top - 10, title)
    for part in range(5):
        y = top + HEIGHT * (1 - part / 4)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(LEFT - 8, y + 4, f"{most * part / 4:.4g}", "end")
        x = LEFT + (WIDTH - LEFT - RIGHT) * part / 4
        yield _text(x, top + HEIGHT + 18, f"{hours * part / 4:.4g}", "middle")


def _line(
    points: Sequence[tuple[float, float]], number: int, top: float, hours: float, most: float
) -> str:
    colour, dashes = STYLES[number % len(STYLES)]
    width = WIDTH - LEFT - RIGHT
    path = " ".join(
        f"{LEFT + width * hour / hours:.1f},{top + HEIGHT * (1 - min(1.0, value / most)):.1f}"
        for hour, value in points
    )
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" '
        f'stroke-dasharray="{dashes}"/>'
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
