"""A picture of who had which slots of which GPU, and when; what to draw, not how. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from zlib import crc32

from slurm_mig.mig.allocation import QUARANTINED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from slurm_mig.audit.holdings import Holding

#: Users (or profiles) that get a colour of their own; the rest share one.
COLOURED: Final = 9

OTHERS: Final = "others"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of some ledger; `units` None where its model's are not known."""

    node: str
    uuid: str
    minor: int
    name: str
    units: int | None


@dataclass(frozen=True, slots=True)
class Band:
    """The row of one GPU: its slots, as many as it has units, and the share that was held."""

    node: str
    minor: int
    name: str
    units: int
    occupancy: float = 0.0


@dataclass(frozen=True, slots=True)
class Box:
    """One slice: slots `low` to `high` of a band, from `since` to `until`.

    `key` says the colour, `lines` who and what. Parts of one GPU instance lie
    side by side, so `low` and `high` may be fractions.
    """

    band: int
    low: float
    high: float
    since: float
    until: float
    key: str
    lines: tuple[str, ...]
    held: tuple[float, float | None]
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A refusal."""

    band: int
    at: float
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it; `legend` has each colour's key with its GPU-hours, most slice-hours first.

    None stands for hours on GPUs whose size nobody published.
    """

    since: float
    until: float
    by: str
    bands: Sequence[Band]
    boxes: Sequence[Box]
    marks: Sequence[Mark]
    legend: Sequence[tuple[str, float | None]]


def picture(
    items: Sequence[Holding],
    gpus: Collection[Gpu],
    by: str,
    *,
    since: float | None,
    until: float | None,
    now: float,
) -> Picture:
    """What to draw of these holdings; without a span, from the first of them until now.

    `by` is `user` or `profile`. GPUs that nobody held anything of have an empty
    band: that, too, is worth seeing.
    """
    last = now if until is None else min(until, now)
    first = min((item.record.created for item in items), default=last - 1)
    first = min(first if since is None else since, last - 1)
    ordered = sorted(gpus, key=lambda gpu: (gpu.node, gpu.minor, gpu.uuid))
    place = {(gpu.node, gpu.uuid): number for number, gpu in enumerate(ordered)}
    ends = highest_slots(items)
    bands = [
        Band(gpu.node, gpu.minor, gpu.name, gpu.units or ends.get((gpu.node, gpu.uuid), 1))
        for gpu in ordered
    ]
    legend = _legend(items, by, first, last)
    keys = {key for key, _ in legend}
    boxes, marks = [], []
    for item in items:
        band = place[item.record.node, item.record.gpu_uuid]
        if item.record.phase == REFUSED:
            marks.append(Mark(band, item.record.created, _lines(item)))
        elif item.seconds(first, last) > 0:
            boxes.append(_box(item, band, bands[band].units, keys, by, (first, last)))
    held = [0.0] * len(bands)
    for box in boxes:
        held[box.band] += (box.high - box.low) * (box.until - box.since)
    bands = [
        replace(band, occupancy=area / band.units / (last - first))
        for band, area in zip(bands, held, strict=True)
    ]
    return Picture(first, last, by, bands, boxes, marks, legend)


def _key(item: Holding, by: str) -> str:
    return (item.record.owner.user if by == "user" else item.profile) or "-"


def colours(keys: Iterable[str]) -> dict[str, int]:
    """Each key's place among `COLOURED` colours: by its name, whoever else is there.

    So a user has the same colour from week to week. Where two names fall on one place, the first
    in the alphabet has it, and the other one of those that are nobody's.
    """
    names = sorted(set(keys) - {OTHERS})[:COLOURED]
    own = {name: crc32(name.encode("utf-8", "replace")) % COLOURED for name in names}
    found: dict[str, int] = {}
    for name in names:
        if own[name] not in found.values():
            found[name] = own[name]
    for name in names:
        free = (place for place in range(COLOURED) if place not in found.values())
        found.setdefault(name, next(free, own[name]))
    return found


def highest_slots(items: Iterable[Holding]) -> dict[tuple[str, str], int]:
    """The last slot in use, for GPUs of which nobody published how many there are."""
    ends: dict[tuple[str, str], int] = {}
    for item in items:
        if item.instance is not None:
            gpu = (item.record.node, item.record.gpu_uuid)
            ends[gpu] = max(ends.get(gpu, 1), item.instance.placement.end)
    return ends


def _legend(
    items: Iterable[Holding], by: str, first: float, last: float
) -> list[tuple[str, float | None]]:
    hours: dict[str, float] = defaultdict(float)
    weighed: dict[str, float | None] = {}
    for item in items:
        if item.record.phase != REFUSED and (held := item.seconds(first, last)) > 0:
            key = _key(item, by)
            hours[key] += held / 3600
            weighed[key] = _added(weighed.get(key, 0.0), item.compute, held / 3600)
    ranked = sorted(hours, key=lambda key: (-hours[key], key))
    known = [(key, weighed[key]) for key in ranked]
    if len(known) <= COLOURED:
        return known
    rest: float | None = 0.0
    for _, value in known[COLOURED:]:
        rest = _added(rest, value, 1.0)
    return [*known[:COLOURED], (OTHERS, rest)]


def _added(total: float | None, share: float | None, hours: float) -> float | None:
    """Unknown where either of them is."""
    return None if total is None or share is None else total + share * hours


def _box(
    item: Holding,
    band: int,
    units: int,
    keys: Collection[str],
    by: str,
    span: tuple[float, float],
) -> Box:
    record, key = item.record, _key(item, by)
    low, high = slots_of(item, units)
    return Box(
        band,
        low,
        high,
        max(record.created, span[0]),
        min(item.ended, span[1]),
        key if key in keys else OTHERS,
        _lines(item),
        (record.created, record.ended),
        quarantined=record.phase == QUARANTINED,
    )


def slots_of(item: Holding, units: int) -> tuple[float, float]:
    """From which slot up to which one it has, of so many."""
    made = item.instance
    if made is None:
        return 0.0, float(units)
    sharing = [other for other in item.record.instances if other.placement == made.placement]
    part = made.size / len(sharing)
    low = made.start + part * sharing.index(made)
    return low, low + part


def _lines(item: Holding) -> tuple[str, ...]:
    record, made = item.record, item.instance
    account = f", {record.owner.account}" if record.owner.account else ""
    what = [f"{made}", *([made.uuid] if made.uuid else [])] if made else [record.request]
    why = [record.reason] if record.phase == REFUSED else []
    return (f"{record.owner} ({record.owner.user}{account})", *what, record.phase, *why)
