"""A set-up of a site, run over its jobs: weights, slots, choice of GPU, what refusals do."""

from __future__ import annotations

import json
import math
import re
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slurm_mig.errors import BadRequest, UsageFault
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.weights import derive
from slurm_mig.packing import policies
from slurm_mig.packing.foresight import ChoiceRule, GpuState, RequestKind
from slurm_mig.packing.replay import AHEAD, Jobs, Outcome, Replay, Retry
from slurm_mig.packing.states import Need, Space

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slurm_mig.mig.geometry import Geometry, GpuProfile
    from slurm_mig.mig.request import Request
    from slurm_mig.packing.jobs import Job, Wanted

#: Parts into which a replay's time is cut for the picture.
PARTS: Final = 160


class Prices(NamedTuple):
    """Shards of a GPU and of each profile."""

    capacity: int
    by_name: Mapping[str, int]


class Setup(NamedTuple):
    """What is tried: words as the command line has them. `static`: slices per node instead."""

    label: str
    weights: str = "exact"
    policy: str = "fits"
    choice: ChoiceRule = ChoiceRule.PACK
    retry: Retry = Retry.PUBLISH
    static: Mapping[str, int] | None = None
    most: int = AHEAD
    planned: bool = False


class Workload(NamedTuple):
    """Jobs for one GPU model: `wanted` are the kinds, `requests` the same for its planner."""

    geometry: Geometry
    wanted: list[Wanted]
    requests: list[Request]
    jobs: Jobs
    left_out: Counter[str]


class Ran(NamedTuple):
    """A set-up and what came of it."""

    setup: Setup
    workload: Workload
    outcome: Outcome
    gpus: int


def workload(jobs: Sequence[Job], geometry: Geometry, left_out: Counter[str]) -> Workload:
    """The jobs that one GPU of this model can hold; the others are counted in `left_out`.

    UsageFault where none is left.
    """
    kinds: dict[Wanted, int] = {}
    requests: list[Request] = []
    unknown: dict[Wanted, str] = {}
    space = Space(geometry)
    submit, kind, run, limit = array("d"), array("i"), array("d"), array("d")
    for job in jobs:
        if job.wanted not in kinds and job.wanted not in unknown:
            found = _request(job.wanted, space)
            if isinstance(found, str):
                unknown[job.wanted] = found
            else:
                kinds[job.wanted] = len(requests)
                requests.append(found)
        if job.wanted in unknown:
            left_out[unknown[job.wanted]] += 1
            continue
        submit.append(job.submit)
        kind.append(kinds[job.wanted])
        run.append(job.run)
        limit.append(job.limit)
    if not requests:
        reasons = "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        raise UsageFault(f"no job is left to replay: {reasons or 'the file has none'}")
    return Workload(geometry, list(kinds), requests, Jobs(submit, kind, run, limit), left_out)


def _request(wanted: Wanted, space: Space) -> Request | str:
    try:
        request = wanted.request(space.geometry.whole.name)
    except BadRequest:
        return f"with {wanted}: more than one GPU holds"
    need = space.need(request)
    if need is None:
        return f"with {wanted}: not a profile of this GPU"
    return request if space.after(0, need) >= 0 else f"with {wanted}: more than one GPU holds"


def prices(word: str, geometry: Geometry) -> Prices:
    """Weights by name or from a file as `slurm-mig weights --json` prints it."""
    rows = geometry.profiles
    if word == "exact":
        exact = derive(geometry)
        return Prices(exact.capacity, {str(r.name): exact.of(geometry, r) for r in rows})
    if word == "memory":
        return Prices(geometry.units, {str(row.name): row.size for row in rows})
    if word == "compute":
        return Prices(geometry.whole.slices, {str(row.name): row.slices for row in rows})
    try:
        data = json.loads(Path(word).read_text("utf-8"))
        found = Prices(int(data["capacity"]), {k: int(v) for k, v in data["weights"].items()})
    except OSError as problem:
        raise UsageFault(
            f"--weights {word}: {problem.strerror}; or exact, memory, compute"
        ) from problem
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        RecursionError,
        TypeError,
        ValueError,
    ) as problem:
        raise UsageFault(f"--weights {word}: {type(problem).__name__}: {problem}") from problem
    lacking = [str(row.name) for row in rows if str(row.name) not in found.by_name]
    if lacking:
        raise UsageFault(f"--weights {word}: no weight for {', '.join(lacking)}")
    return found


def run(
    setup: Setup, load: Workload, nodes: int, per_node: int, tell: Callable[[int], object] = int
) -> Ran:
    """Replay the jobs on so many nodes; `tell` hears how many were submitted."""
    if setup.static is None:
        gpus, kinds = _carved(setup, load, per_node)
    else:
        gpus, kinds = _static(setup.static, load, per_node)
    replay = Replay(
        [gpus] * nodes,
        kinds,
        load.jobs,
        setup.choice if setup.static is None else ChoiceRule.PACK,
        setup.retry if setup.static is None else Retry.BLIND,
        most=setup.most,
        planned=setup.planned,
    )
    return Ran(setup, load, replay.run(tell), nodes * per_node)


def _carved(
    setup: Setup, load: Workload, per_node: int
) -> tuple[list[GpuState], list[RequestKind]]:
    space = Space(load.geometry, policies.named(setup.policy))
    cost = prices(setup.weights, load.geometry)
    kinds = []
    for wanted, request in zip(load.wanted, load.requests, strict=True):
        need = space.need(request)
        rows = need.rows if need else []
        shards = sum(cost.by_name[str(row.name)] for row in rows)
        # Slurm never starts what its own count cannot hold.
        if shards > cost.capacity:
            raise UsageFault(f"{wanted}: {shards} shards, a GPU has {cost.capacity}")
        counted = setup.choice is ChoiceRule.NODE or load.geometry.whole not in rows
        kinds.append(RequestKind(str(wanted), request, shards, counted=counted))
    return [GpuState(space, 0, 0, cost.capacity)] * per_node, kinds


class _Servers(Space):
    """Slices of one profile that are always there, seen as a GPU: room is all that counts."""

    def __init__(self, geometry: Geometry, row: GpuProfile) -> None:
        super().__init__(geometry)
        self._row = row

    def need(self, request: Request) -> Need | None:
        """A job takes slices of its profile, or larger ones."""
        found = super().need(request)
        if found is None or len({row.profile_id for row in found.rows}) != 1:
            return None
        wanted = found.rows[0]
        fits = self._row.slices >= wanted.slices and self._row.size >= wanted.size
        return found if fits else None

    def after(self, state: int, need: Need) -> int:
        """Nothing is carved."""
        del need
        return state


def _static(
    layout: Mapping[str, int], load: Workload, per_node: int
) -> tuple[list[GpuState], list[RequestKind]]:
    geometry = load.geometry
    rows = sorted((geometry.find(name) for name in layout), key=lambda row: (row.size, row.slices))
    if not holds(layout, geometry, per_node):
        words = ", ".join(f"{name}:{count}" for name, count in layout.items())
        raise UsageFault(f"--static {words}: {per_node} GPUs do not hold that")
    servers = [GpuState(_Servers(geometry, row), 0, 0, layout[str(row.name)]) for row in rows]
    kinds = []
    for wanted, request in zip(load.wanted, load.requests, strict=True):
        count = sum(item.gpu_instances for item in request.items)
        if not any(gpu.space.need(request) and gpu.capacity >= count for gpu in servers):
            raise UsageFault(f"--static: no job with {wanted} could ever start in that layout")
        kinds.append(RequestKind(str(wanted), request, count))
    return servers, kinds


_PIECE: Final = re.compile(r"([^:,\s]+)(?::([0-9]{1,4}))?")


def parse_layout(text: str) -> dict[str, int]:
    """`4g.40gb:3,2g.20gb:5`: slices of one node; UsageFault says what cannot be read."""
    found: dict[str, int] = {}
    for word in text.split(","):
        match = _PIECE.fullmatch(word.strip())
        if match is None:
            raise UsageFault(f"--static: {word!r} is not PROFILE:COUNT")
        name = str(Profile.parse(match[1]))
        found[name] = found.get(name, 0) + int(match[2] or 1)
    return found


def holds(layout: Mapping[str, int], geometry: Geometry, gpus: int) -> bool:
    """Whether so many GPUs hold these slices: each of the largest left on a GPU of its own kind."""
    names = [str(row.name) for row in sorted(map(geometry.find, layout), key=lambda r: -r.size)]
    full = _full_layouts(geometry, names)
    known: dict[tuple[tuple[int, ...], int], bool] = {}

    def fill(left: tuple[int, ...], more: int) -> bool:
        if not any(left):
            return True
        if not more:
            return False
        if (left, more) not in known:
            largest = next(number for number, count in enumerate(left) if count)
            rests = {
                tuple(max(0, count - took) for count, took in zip(left, item, strict=True))
                for item in full
                if item[largest]
            }
            known[left, more] = any(fill(rest, more - 1) for rest in sorted(rests, key=sum))
        return known[left, more]

    return fill(tuple(layout[name] for name in names), gpus)


def figures(ran: Ran) -> dict[str, Any]:
    """What a set-up made of the jobs, by the keys that `simulate --json` has."""
    load, outcome = ran.workload, ran.outcome
    jobs = load.jobs
    begun = [number for number, start in enumerate(outcome.start) if start >= 0]
    waits = array("d", (outcome.start[number] - jobs.submit[number] for number in begun))
    slices = _slices(load)
    first = jobs.submit[0]
    last = max((outcome.start[number] + jobs.run[number] for number in begun), default=first)
    work = math.fsum(slices[jobs.kind[number]] * jobs.run[number] for number in begun)
    size = ran.gpus * load.geometry.whole.slices
    per_kind: dict[str, array[float]] = {}
    for number, wait in zip(begun, waits, strict=True):
        per_kind.setdefault(str(load.wanted[jobs.kind[number]]), array("d")).append(wait)
    starts = max(1, len(begun))
    return {
        "setup": ran.setup.label,
        "jobs": len(outcome.start),
        "requeues_per_1000": 1000 * sum(outcome.refused) / starts,
        "requeued_percent": 100 * sum(count > 0 for count in outcome.refused) / starts,
        "over_5_percent": 100 * sum(count > 5 for count in outcome.refused) / starts,
        "utilisation": work / (size * (last - first)) if last > first else 0.0,
        "mean_wait_s": sum(waits) / starts,
        "p95_wait_s": _p95(waits),
        "makespan_h": (last - first) / 3600,
        "livelock": outcome.livelock,
        "waits": {
            name: {
                "jobs": len(found),
                "mean_wait_s": sum(found) / len(found),
                "p95_wait_s": _p95(found),
            }
            for name, found in sorted(per_kind.items())
        },
        "left_out": dict(load.left_out),
    }


def _p95(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)] if ordered else 0.0


def _slices(load: Workload) -> list[int]:
    space = Space(load.geometry)
    needs = [space.need(request) for request in load.requests]
    return [sum(row.slices for row in need.rows) if need else 0 for need in needs]


class Course(NamedTuple):
    """A replay over time, in equal parts: hours since its start, share of compute, mean wait."""

    hours: list[float]
    used: list[float]
    wait_s: list[float | None]


def course(ran: Ran) -> Course:
    """Utilisation in each part of the time, and how long jobs waited that came in it."""
    load, outcome = ran.workload, ran.outcome
    jobs, slices = load.jobs, _slices(load)
    first = jobs.submit[0]
    begun = [number for number, start in enumerate(outcome.start) if start >= 0]
    last = max((outcome.start[number] + jobs.run[number] for number in begun), default=first)
    width = max(1e-9, (last - first) / PARTS)
    used = [0.0] * (PARTS + 1)
    waits, came = [0.0] * PARTS, [0] * PARTS
    for number in begun:
        start = outcome.start[number]
        _spread(
            used,
            (start - first) / width,
            (start + jobs.run[number] - first) / width,
            slices[jobs.kind[number]],
        )
        part = min(PARTS - 1, int((jobs.submit[number] - first) / width))
        waits[part] += start - jobs.submit[number]
        came[part] += 1
    size = ran.gpus * load.geometry.whole.slices
    return Course(
        [(part + 0.5) * width / 3600 for part in range(PARTS)],
        [value / size for value in used[:PARTS]],
        [wait / count if count else None for wait, count in zip(waits, came, strict=True)],
    )


def _spread(used: list[float], start: float, end: float, amount: float) -> None:
    """Add `amount` to each part between two times, to the outer ones by what is covered."""
    first, last = int(start), int(end)
    if first == last:
        used[first] += amount * (end - start)
        return
    used[first] += amount * (first + 1 - start)
    for part in range(first + 1, last):
        used[part] += amount
    used[last] += amount * (end - last)


def best_static(load: Workload, nodes: int, per_node: int) -> dict[str, int]:
    """The layout of a node that should serve these jobs best, if it never changed.

    Each profile as a queue of its own with so many servers (Erlang's formula), the GPUs' full
    layouts changed one by one as long as the sum of the waits falls.
    """
    names, loads, rates, run = _demand(load)
    full = _full_layouts(load.geometry, names)
    cells = {layout: [nodes * count for count in layout] for layout in full}
    chosen = [max(full, key=lambda item: sum(map(min, item, [1] * len(item))))] * per_node

    def cost(layouts: Sequence[tuple[int, ...]]) -> float:
        totals = [sum(column) for column in zip(*(cells[item] for item in layouts), strict=True)]
        return sum(
            rate * _queue_wait(servers, offered, run)
            for servers, offered, rate in zip(totals, loads, rates, strict=True)
        )

    best, moved = cost(chosen), True
    while moved:
        moved = False
        for place in range(per_node):
            for layout in full:
                tried = [*chosen[:place], layout, *chosen[place + 1 :]]
                value = cost(tried)
                if value < best - 1e-9:
                    best, chosen, moved = value, tried, True
    totals = [sum(column) for column in zip(*chosen, strict=True)]
    return {name: count for name, count in zip(names, totals, strict=True) if count}


def _demand(load: Workload) -> tuple[list[str], list[float], list[float], float]:
    """By plain profile: busy slices on average, arrivals a second; and the mean run time."""
    space, jobs = Space(load.geometry), load.jobs
    rows = [row for row in load.geometry.profiles if not row.name.attribute]
    span = max(jobs.submit[-1] - jobs.submit[0], 1.0)
    busy, count = [0.0] * len(rows), [0.0] * len(rows)
    places = []
    for request in load.requests:
        need = space.need(request)
        assert need is not None  # noqa: S101 - `workload` kept only those
        row = need.rows[0]
        larger = (i for i, r in enumerate(rows) if r.size >= row.size and r.slices >= row.slices)
        places.append((min(larger, key=lambda i: (rows[i].size, rows[i].slices)), len(need.rows)))
    for number, run in zip(jobs.kind, jobs.run, strict=True):
        place, many = places[number]
        busy[place] += many * run / span
        count[place] += many / span
    mean = sum(busy) / max(1e-12, sum(count))
    return [str(row.name) for row in rows], busy, count, mean


def _full_layouts(geometry: Geometry, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Sets of plain slices on one GPU to which none can be added, in the order of the names."""
    from slurm_mig.mig.geometry import feasible_multisets

    classes = [geometry.class_of(geometry.find(name)) for name in names]
    sets = {tuple(item[number] for number in classes) for item in feasible_multisets(geometry)}
    return sorted(
        item
        for item in sets
        if not any((*item[:i], item[i] + 1, *item[i + 1 :]) in sets for i in range(len(item)))
    )


def _queue_wait(servers: int, offered: float, run: float) -> float:
    """Mean wait in a queue with so many servers; steep where they are too few."""
    if offered <= 0:
        return 0.0
    if not servers:
        return 1e9 * run
    if servers <= offered:
        return 1000 * run * (1 + offered - servers)
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    waiting = blocked / (1 - offered / servers * (1 - blocked))
    return waiting * run / (servers - offered)
