"""Which full layouts are worth filling: each set of sizes that fills a GPU, once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.mig.geometry import layouts

if TYPE_CHECKING:
    from slurm_mig.mig.geometry import Geometry, GpuProfile, Placement

#: One layout: rows with their placements, in the order of the units.
Layout = tuple[tuple["GpuProfile", "Placement"], ...]


def full_layouts(geometry: Geometry) -> list[Layout]:
    """Layouts to which nothing can be added, one for each set of sizes.

    Of profiles that differ in engines alone the plain one stands for all.
    """
    rows = [_plain(geometry, number) for number in range(len(geometry.classes))]
    chosen: dict[tuple[int, ...], Layout] = {}
    for state in sorted(layouts(geometry)):
        taken = 0
        for _, place in state:
            taken |= place.mask
        free = any(not place.mask & taken for places in geometry.classes for place in places)
        if not free and state:
            ordered = sorted(state, key=lambda item: item[1])
            layout = tuple((rows[number], place) for number, place in ordered)
            if geometry.media_left([row for row, _ in layout]):
                chosen.setdefault(tuple(sorted(number for number, _ in state)), layout)
    return [chosen[key] for key in sorted(chosen)]


def _plain(geometry: Geometry, number: int) -> GpuProfile:
    rows = [row for row in geometry.profiles if geometry.class_of(row) == number]
    return min(rows, key=lambda row: (row.name.attribute != "", row.name.memory_gb, row.profile_id))
