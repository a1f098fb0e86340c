"""Files of learned tables: what each layout of a GPU is worth to a site's own mix of jobs.

`slurm-mig learn` writes them, `optimal:FILE` reads them. A table belongs to the places that a
GPU's profiles have, so one for an H100 serves every GPU of the same places; on others the policy
is `fits`. A layout is written as `class@start` words, classes in the order of `classes`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import NodeFault, UsageFault
from slurm_mig.mig.geometry import Placement
from slurm_mig.system.trust import read_trusted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slurm_mig.mig.geometry import Geometry

#: Where each profile of a GPU can start, and its size.
Places = tuple[tuple[Placement, ...], ...]

#: What the file says it is; a later form gets another number.
FORM: Final = "slurm-mig slot table 1"


def text(geometry: Geometry, values: Mapping[int, float], about: Mapping[str, Any]) -> str:
    """The file of a table; `about` says what it was made from."""
    classes = geometry.classes
    pairs = list(geometry.layout_bits.items())

    def words(layout: int) -> str:
        return " ".join(f"{n}@{place.start}" for (n, place), bit in pairs if layout & bit)

    return json.dumps(
        {
            "form": FORM,
            **about,
            "classes": [[[place.start, place.size] for place in places] for places in classes],
            "values": {words(layout): value for layout, value in values.items()},
        },
        indent=1,
    )


def read(path: Path, *, trust: bool = False) -> dict[Places, dict[int, float]]:
    """The table of a file, by the places it is for; UsageFault for one that cannot be used.

    `trust`: also for one that others than root could have written: hooks read it.
    """
    try:
        data = json.loads(read_trusted(path) if trust else path.read_bytes())
        if data["form"] != FORM:
            raise UsageFault(f"{path}: {data['form']!r}, not {FORM!r}")
        classes = tuple(
            tuple(Placement(int(start), int(size)) for start, size in places)
            for places in data["classes"]
        )
        values = {_layout(words, classes): float(value) for words, value in data["values"].items()}
    except OSError as problem:
        raise UsageFault(f"{path}: {problem.strerror}") from problem
    except NodeFault as fault:
        raise UsageFault(fault.cause, remedy=fault.remedy) from fault
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as problem:
        raise UsageFault(
            f"{path} is no table of slots: {type(problem).__name__}: {problem}",
            remedy="make one with `slurm-mig learn`",
        ) from problem
    return {classes: values}


def _layout(words: str, classes: tuple[tuple[Placement, ...], ...]) -> int:
    layout, before = 0, [0]
    for places in classes:
        before.append(before[-1] + len(places))
    for word in words.split():
        number, _, start = word.partition("@")
        places = classes[int(number)]
        at = [place.start for place in places].index(int(start))
        layout |= 1 << before[int(number)] + at
    return layout
