"""Draws docs/pictures/*.svg with the real planner and the real weights (`make generated`).

pictures.py DIR    writes them below DIR

Plain SVG, the same bytes each time: no library, no font that a reader may lack.
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NoRoom
from slurm_mig.mig import catalog, weights
from slurm_mig.mig.plan import Slot, fitting, plan, score_of
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.system.replace import write_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.geometry import Geometry

MODEL: Final = "NVIDIA H100 80GB HBM3"
UNIT, HEIGHT, LEFT, PITCH = 70, 34, 150, 62
COLOURS: Final = {
    "1g.10gb": "#66ccee",
    "1g.20gb": "#bbaa22",
    "2g.20gb": "#228833",
    "3g.40gb": "#4477aa",
    "4g.40gb": "#aa3377",
    "7g.80gb": "#ee9944",
}
PALE: Final = ("#66ccee", "#bbaa22", "#ee9944")


def text(
    x: float, y: float, words: str, *, size: int = 13, fill: str = "#222", end: str = ""
) -> str:
    """Words at a place; `end` is an SVG text-anchor."""
    anchor = f' text-anchor="{end}"' if end else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}"{anchor}>{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, colour: str, words: str) -> str:
    """A slice with its name; empty slots are drawn below it."""
    return (
        f'<rect x="{x + 1:g}" y="{y:g}" width="{width - 2:g}" height="{HEIGHT}" rx="4" '
        f'fill="{colour}"/>'
        + text(
            x + width / 2, y + 22, words, fill="#222" if colour in PALE else "#fff", end="middle"
        )
    )


def row(y: float, label: str, slots: Sequence[Slot], units: int, remark: str) -> list[str]:
    """One GPU: its slots, what lies in them, and a remark to the right."""
    lines = [text(LEFT - 12, y + 22, label, end="end")]
    lines += [
        f'<rect x="{LEFT + unit * UNIT + 1:g}" y="{y:g}" width="{UNIT - 2}" height="{HEIGHT}" '
        'rx="4" fill="#f4f4f4" stroke="#bbb" stroke-dasharray="3 3"/>'
        for unit in range(units)
    ]
    for slot in slots:
        place, name = slot.placement, str(slot.row.name)
        lines.append(box(LEFT + place.start * UNIT, y, place.size * UNIT, COLOURS[name], name))
    lines.append(text(LEFT + units * UNIT + 14, y + 22, remark, fill="#555"))
    return lines


def drawing(title: str, width: int, height: float, lines: Sequence[str]) -> str:
    """The file around the lines."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" '
        f'font-family="sans-serif" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height:g}" fill="#fff"/>'
    )
    return "\n".join([head, *lines, "</svg>"]) + "\n"


def scale(units: int, y: float = 20) -> list[str]:
    """The numbers of the memory slots."""
    numbers = [
        text(LEFT + (unit + 0.5) * UNIT, y, str(unit), size=11, fill="#777", end="middle")
        for unit in range(units)
    ]
    return [text(LEFT - 12, y, "memory slot", size=11, fill="#777", end="end"), *numbers]


def rows(title: str, found: Sequence[tuple[str, Sequence[Slot], str]], units: int) -> str:
    """A picture of GPUs, one below the other."""
    lines = scale(units)
    for number, (label, slots, remark) in enumerate(found):
        lines += row(32 + number * PITCH, label, slots, units, remark)
    return drawing(title, 1060, 40 + len(found) * PITCH, lines)


def request(*names: str) -> Request:
    """A request for one slice of each name; a name that comes twice counts twice."""
    return Request(
        tuple(Item(Profile.parse(name), names.count(name)) for name in dict.fromkeys(names))
    )


def wanted(geometry: Geometry, *names: str) -> list[Slot]:
    """The slices of these names, placed by the planner one after the other."""
    present: list[Slot] = []
    for name in names:
        present += plan(request(name), geometry, present).slots
    return present


def at(geometry: Geometry, name: str, start: int) -> Slot:
    """A slice at a slot that somebody else chose."""
    found = geometry.find(name)
    return Slot(found, next(place for place in found.placements if place.start == start))


def geometry_picture(geometry: Geometry) -> str:
    """Where each profile may start."""
    found = []
    for name in COLOURS:
        places = geometry.find(name).placements
        disjoint: list[Slot] = []
        for place in places:
            if all(not place.mask & other.placement.mask for other in disjoint):
                disjoint.append(Slot(geometry.find(name), place))
        starts = ", ".join(str(place.start) for place in places)
        found.append((name, disjoint, f"may start at {starts}"))
    return rows("Where profiles of an 80 GB H100 may start", found, geometry.units)


def counting_picture(geometry: Geometry) -> str:
    """Shards as lengths: what counting accepts fits into the bar."""
    found = weights.derive(geometry)
    wide = 8 * UNIT / found.capacity
    lines = [text(LEFT, 20, f"one GPU = {found.capacity} shards", size=11, fill="#777")]
    sets = (
        ("4g.40gb", "3g.40gb"),
        ("3g.40gb", "3g.40gb"),
        ("1g.10gb",) * 7,
        ("3g.40gb", "2g.20gb", "2g.20gb"),
        ("4g.40gb", "4g.40gb"),
        ("3g.40gb", "3g.40gb", "1g.10gb"),
    )
    for number, names in enumerate(sets):
        y, x = 32 + number * PITCH, float(LEFT)
        lines.append(
            f'<rect x="{LEFT}" y="{y}" width="{8 * UNIT}" height="{HEIGHT}" fill="none" '
            'stroke="#888"/>'
        )
        total = 0
        for name in names:
            cost = found.of(geometry, geometry.find(name))
            total += cost
            lines.append(box(x, y, cost * wide, COLOURS[name], f"{cost}"))
            x += cost * wide
        words = "fits" if _has_layout(geometry, names) else "no layout"
        shown = " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        beside = max(x, LEFT + 8 * UNIT) + 14
        lines.append(text(beside, y + 22, f"{total}: {words}", fill="#555"))
        lines.append(text(LEFT, y + 50, shown, size=11, fill="#777"))
        assert (total <= found.capacity) == (words == "fits")
    return drawing("Counting shards", 1060, 52 + len(sets) * PITCH, lines)


def _has_layout(geometry: Geometry, names: Sequence[str]) -> bool:
    try:
        plan(request(*names), geometry, [])
    except NoRoom:
        return False
    return True


def choices_picture(geometry: Geometry) -> str:
    """The same job in each place it could go to, best first."""
    name = "1g.10gb"
    present = [at(geometry, "2g.20gb", 4)]
    taken = present[0].placement.mask
    choices = []
    for place in geometry.find(name).free(taken):
        slot = Slot(geometry.find(name), place)
        choices.append((score_of(geometry, (*present, slot), (slot,)), slot))
    choices.sort(key=lambda item: item[0], reverse=True)
    chosen = plan(request(name), geometry, present).slots[0]
    assert choices[0][1] == chosen
    found = [("before", present, _room(geometry, present))]
    for number, (score, slot) in enumerate(choices):
        words = f"{score.profiles_left} profiles, {score.placements_left} placements left"
        label = "chosen" if number == 0 else f"at slot {slot.placement.start}"
        found.append((label, [*present, slot], words))
    return rows("A 1g.10gb beside a 2g.20gb: every place, best first", found, geometry.units)


def fragmentation_picture(geometry: Geometry) -> str:
    """Shards are free, a place is not."""
    names = ["1g.10gb"] * 7
    full = wanted(geometry, *names)
    left = [slot for slot in full if slot.placement.start in (1, 5)]
    found = weights.derive(geometry)
    cost = found.of(geometry, geometry.find("1g.10gb"))
    free = found.capacity - len(left) * cost
    whole = found.of(geometry, geometry.find("3g.40gb"))
    assert free >= whole
    for name in ("3g.40gb", "4g.40gb"):
        try:
            plan(request(name), geometry, left)
        except NoRoom:
            continue
        raise AssertionError(f"{name} has room: the picture says it has none")
    together = wanted(geometry, "1g.10gb", "1g.10gb")
    return rows(
        "Fragmentation",
        [
            ("seven jobs", full, f"{7 * cost} of {found.capacity} shards"),
            ("five have ended", left, f"{free} shards free; a 3g.40gb costs {whole}"),
            ("two from the start", together, _room(geometry, together)),
        ],
        geometry.units,
    )


def _room(geometry: Geometry, present: Sequence[Slot]) -> str:
    room = fitting(geometry, present)
    named = [f"{name} x{room[name]}" for name in ("3g.40gb", "4g.40gb", "2g.20gb") if room[name]]
    return "room for " + (" or ".join(named) or "nothing large")


def pictures() -> dict[str, str]:
    """Every picture by its file name."""
    geometry = catalog.find(MODEL).geometry()
    return {
        "geometry.svg": geometry_picture(geometry),
        "counting.svg": counting_picture(geometry),
        "choices.svg": choices_picture(geometry),
        "fragmentation.svg": fragmentation_picture(geometry),
    }


def main(directory: str) -> None:
    """Write them."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, drawn in pictures().items():
        write_output(Path(directory, name), drawn)


if __name__ == "__main__":
    main(sys.argv[1])
