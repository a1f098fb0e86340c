"""What a report says of a span: occupancy, refusals, waits; not how it looks. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slurm_mig.audit.timeline import Gpu, highest_slots, slots_of
from slurm_mig.mig.allocation import REFUSED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from slurm_mig.audit.holdings import Holding

#: Into how many parts the span is cut for occupancy over time.
PARTS: Final = 120

#: What of a refusal's text is of one job or GPU alone.
_OWN: Final = re.compile(r"^job [0-9]+(?: run [0-9]+)?: |GPU [0-9]+ \(GPU-[^)]*\): ")


@dataclass(frozen=True, slots=True)
class Row:
    """One slice: slots `low` to `high` of the GPU with that place, from `since` to `until`."""

    item: Holding
    gpu: int
    low: float
    high: float
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Jobs that asked for one thing and were refused first; seconds from then to the slice.

    `served` are those that had it within what is on record.
    """

    asked: str
    refused: int
    served: int
    median: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class Queued:
    """What jobs with one profile waited in Slurm's queue, in seconds."""

    profile: str
    jobs: int
    median: float
    most: float
    longest: float


def queued(waits: Iterable[tuple[str, float]]) -> list[Queued]:
    """By profile, in the order of their names; `most` is what 19 of 20 waited at the longest."""
    found: dict[str, list[float]] = defaultdict(list)
    for profile, seconds in waits:
        found[profile].append(max(seconds, 0.0))
    return [
        Queued(profile, len(times), times[len(times) // 2], times[len(times) * 19 // 20], times[-1])
        for profile, times in sorted((name, sorted(each)) for name, each in found.items())
    ]


@dataclass(frozen=True, slots=True)
class Report:
    """All of it; shares of a GPU are of its memory, 0 to 1, a mean over each part of the span."""

    since: float
    until: float
    gpus: Sequence[Gpu]
    rows: Sequence[Row]
    refusals: Sequence[Holding]
    by_gpu: Sequence[Sequence[float]]
    by_profile: dict[str, Sequence[float]]
    reasons: Sequence[tuple[str, int, float]]
    waits: Sequence[Wait]

    @property
    def occupancy(self) -> float:
        """Mean share of all GPUs over the whole span."""
        parts = [share for gpu in self.by_gpu for share in gpu]
        return sum(parts) / len(parts) if parts else 0.0


def report(
    items: Sequence[Holding], gpus: Collection[Gpu], since: float | None, until: float
) -> Report:
    """The figures of these holdings; without a beginning from the first of them on."""
    first = min((item.record.created for item in items), default=until - 1)
    first = min(first if since is None else since, until - 1)
    ordered = sorted(gpus, key=lambda gpu: (gpu.node, gpu.minor, gpu.uuid))
    place = {(gpu.node, gpu.uuid): number for number, gpu in enumerate(ordered)}
    highest = highest_slots(items)
    units = [gpu.units or highest.get((gpu.node, gpu.uuid), 1) for gpu in ordered]
    rows = []
    for item in items:
        gpu = place[item.record.node, item.record.gpu_uuid]
        if item.record.phase != REFUSED and item.seconds(first, until) > 0:
            times = max(item.record.created, first), min(item.ended, until)
            rows.append(Row(item, gpu, *slots_of(item, units[gpu]), *times))
    refusals = [item for item in items if item.record.phase == REFUSED]
    by_gpu = [[0.0] * PARTS for _ in ordered]
    by_profile: dict[str, list[float]] = {}
    for row in rows:
        of_profile = by_profile.setdefault(row.item.profile or "-", [0.0] * PARTS)
        share = (row.high - row.low) / units[row.gpu]
        for part, held in _parts(row, first, until):
            by_gpu[row.gpu][part] += share * held
            of_profile[part] += share * held / len(ordered)
    return Report(
        first,
        until,
        ordered,
        rows,
        refusals,
        by_gpu,
        dict(sorted(by_profile.items(), key=lambda entry: -sum(entry[1]))),
        _reasons(refusals),
        _waits(items),
    )


def _parts(row: Row, since: float, until: float) -> Iterable[tuple[int, float]]:
    """Which parts of the span it touches, and how much of each it lasts, 0 to 1."""
    length = (until - since) / PARTS
    begin, end = (row.since - since) / length, (row.until - since) / length
    for part in range(int(begin), min(int(end) + 1, PARTS)):
        yield part, max(0.0, min(end, part + 1) - max(begin, part))


def reason_of(text: str) -> str:
    """Why, without which job and GPU it was, and without what lay there just then."""
    return _OWN.sub("", _OWN.sub("", text)).partition(": taken ")[0].partition("; ")[0] or "-"


def _reasons(refusals: Iterable[Holding]) -> list[tuple[str, int, float]]:
    """(reason, how often, when last), most frequent first."""
    found: dict[str, list[float]] = defaultdict(list)
    for item in refusals:
        found[reason_of(item.record.reason)].append(item.record.created)
    ranked = [(reason, len(times), max(times)) for reason, times in found.items()]
    return sorted(ranked, key=lambda entry: (-entry[1], entry[0]))


def _waits(items: Iterable[Holding]) -> list[Wait]:
    """By what was asked for, most refused first."""
    first: dict[tuple[str, int | None], float] = {}
    asked: dict[tuple[str, int | None], str] = {}
    served: dict[tuple[str, int | None], float] = {}
    for item in sorted(items, key=lambda item: item.record.created):
        record = item.record
        job = record.node, record.owner.job_id
        if record.phase == REFUSED:
            first.setdefault(job, record.created)
            asked.setdefault(job, record.request)
        elif job in first:
            served.setdefault(job, record.created - first[job])
    found = []
    for request in dict.fromkeys(asked.values()):
        jobs = [job for job, words in asked.items() if words == request]
        times = sorted(served[job] for job in jobs if job in served)
        middle = times[len(times) // 2] if times else None
        found.append(Wait(request, len(jobs), len(times), middle, times[-1] if times else None))
    return sorted(found, key=lambda wait: (-wait.refused, wait.asked))
