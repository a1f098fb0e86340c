"""Slurm's job list against the ledger, row by row, and every drain against its cause. Pure.

A row is one run of a job on one node. Times are seconds since the epoch; Slurm's
have whole seconds, and a run that ended did so a moment before its Epilog.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slurm_mig import allocation as phases

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from slurm_mig.allocation import Allocation

#: Slurm cuts its times to whole seconds.
ROUNDING = 1.5

#: Seconds of jobs that slurmctld may not have saved when it is killed (SAVE_MAX_WAIT 5,
#: and the time that the writing takes).
UNSAVED = 12.0


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a job on one node, as slurmdbd has it: what it held there."""

    job: int
    node: str
    user: str
    state: str
    start: float
    end: float
    profiles: Mapping[str, int]
    gpus: int = 0


@dataclass(frozen=True)
class Start:
    """A hook that slurmd started."""

    hook: str
    node: str
    job: int
    restart: int
    at: float


@dataclass(frozen=True)
class Seen:
    """What a job's script saw of its devices, and whether it came to its end."""

    job: int
    restart: int
    node: str
    visible: str
    begin: float
    end: float | None


@dataclass(frozen=True)
class Injected:
    """Mischief on a node (`*`: on slurmctld) that may be to blame from `since` to `until`."""

    kind: str
    node: str
    since: float
    until: float
    detail: str = ""

    def covers(self, node: str, since: float, until: float) -> bool:
        """Whether it struck the node at a time between."""
        return self.node in (node, "*") and self.since <= until and self.until >= since


@dataclass(frozen=True)
class Drain:
    """A node seen drained or down."""

    node: str
    state: str
    reason: str
    at: float


@dataclass
class Verdict:
    """Rows by how they compare, and what is wrong."""

    rows: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


# -- drains --------------------------------------------------------------------


def cause_of(drain: Drain, injected: Iterable[Injected]) -> str | None:
    """Which mischief explains a drain; None: it is nobody's, so a user's or our own fault."""
    kinds = {item.kind for item in injected if item.covers(drain.node, drain.at, drain.at)}
    for pattern, causes in _CAUSES:
        if re.search(pattern, drain.reason, re.IGNORECASE):
            found = [kind for kind in causes if kind in kinds]
            return found[0] if found else None
    return None


#: What a reason may say, and which mischief leads to it.
_CAUSES = (
    (r"^slurm-mig: .*lock not free", ("hang",)),
    (r"^slurm-mig: .*(deadline|did not end|hang)", ("hang",)),
    (r"^slurm-mig: .*ended by signal", ("kill-hook", "kill-at-call", "hang")),
    (r"^slurm-mig: .*: internal error", ()),
    (r"^slurm-mig: ", ("driver-error",)),
    (r"(prolog|epilog) (error|hung)", ("hang", "kill-hook", "kill-at-call")),
    (r"duplicate jobid", ("slurmctld-kill",)),
    (r"not responding", ("slurmd-away", "slurmd-kill")),
    (r"batch job complete failure|kill task failed", ()),
)


# -- rows ----------------------------------------------------------------------


def compare(
    runs: Sequence[Run],
    records: Sequence[Allocation],
    active: frozenset[int],
    starts: Sequence[Start],
    seen: Sequence[Seen],
    injected: Sequence[Injected],
) -> Verdict:
    """Every run that had slices has exactly its record, and every record its run.

    `active` are the numbers of records that were active once.
    """
    verdict = Verdict()
    by_place: dict[tuple[int, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        by_place[run.job, run.node].append(run)
    mine: dict[Run, list[Allocation]] = {run: [] for run in runs}
    for record in records:
        if record.owner.job_id is None:
            continue
        run = _run_of(record, by_place[record.owner.job_id, record.node])
        if run is not None:
            mine[run].append(record)
        else:
            _unknown(record, injected, verdict)
    for run, own in mine.items():
        later = [other.start for other in by_place[run.job, run.node] if other.start > run.start]
        _row(run, min(later, default=run.end + 3600), own, active, starts, seen, injected, verdict)
    verdict.violations += overlaps(records)
    verdict.violations += _wrong_devices(seen, records)
    return verdict


def _run_of(record: Allocation, runs: Sequence[Run]) -> Run | None:
    """The last run that had started when the record was made."""
    before = [run for run in runs if run.start <= record.created + ROUNDING]
    return before[-1] if before else None


def _unknown(record: Allocation, injected: Iterable[Injected], verdict: Verdict) -> None:
    """A record without a run: only what slurmctld forgot when it was killed may have one."""
    kills = [item for item in injected if item.kind == "slurmctld-kill"]
    if any(kill.since - UNSAVED <= record.created <= kill.until for kill in kills):
        verdict.rows["run forgotten by a killed slurmctld, slices gone"] += 1
        return
    verdict.violations.append(
        f"record {record.number} of {record.owner} run {record.owner.restart} on {record.node}: "
        "Slurm knows no such run"
    )


def _row(
    run: Run,
    until: float,
    own: Sequence[Allocation],
    active: frozenset[int],
    starts: Sequence[Start],
    seen: Sequence[Seen],
    injected: Sequence[Injected],
    verdict: Verdict,
) -> None:
    name = f"job {run.job} on {run.node} from {run.start:.0f} ({run.state})"
    if not (run.profiles or run.gpus):
        if own:
            verdict.violations.append(f"{name}: has a record, but asked for no GPU")
        verdict.rows["without GPU, no record"] += 1
        return
    carved = [record for record in own if record.phase != phases.REFUSED]
    refused = [record for record in own if record.phase == phases.REFUSED]
    forgot = [item for item in injected if item.kind == "slurmctld-kill"]
    restarts = {record.owner.restart for record in own}
    if len(restarts) > 1 and not any(i.covers(run.node, run.start, until) for i in forgot):
        verdict.violations.append(f"{name}: records of runs {sorted(restarts)}")
    verdict.violations += [
        f"{name}: record {record.number} is of user {record.owner.user}, Slurm says {run.user}"
        for record in own
        if record.owner.user != run.user
    ]
    if carved:
        _carved(name, run, carved, active, injected, verdict)
        if refused and not any(record.reason in _UNDONE for record in carved):
            verdict.violations.append(f"{name}: refused and carved")
    elif refused:
        verdict.rows["refused, on record"] += 1
        if len(refused) > 1:
            verdict.violations.append(f"{name}: {len(refused)} refusals of one run")
    else:
        verdict.rows[_without_record(name, run, until, starts, seen, injected, verdict)] += 1


#: Why a record was closed although nothing of it was ever a job's.
_UNDONE = ("rolled back", "another GPU of the job was refused")


def _carved(
    name: str,
    run: Run,
    carved: Sequence[Allocation],
    active: frozenset[int],
    injected: Sequence[Injected],
    verdict: Verdict,
) -> None:
    """One record for the slices of a run, one for each of its whole GPUs; held to its end."""
    given = [record for record in carved if record.number in active]
    if not given:
        verdict.rows["Prolog failed half-way, undone"] += 1
        if not any(item.covers(run.node, run.start - 60, run.end + 60) for item in injected):
            verdict.violations.append(f"{name}: carving failed without a cause")
        return
    if len(given) != max(run.gpus, 1):
        verdict.violations.append(f"{name}: {len(given)} records, expected {max(run.gpus, 1)}")
    held: Counter[str] = Counter()
    for record in given:
        held.update(item.profile for item in record.instances)
        early = run.end - ROUNDING - (record.ended or run.end)
        if early > 0:
            verdict.violations.append(
                f"{name}: its slices went {early:.1f} s before its end: {record.reason}"
            )
    if not run.gpus and held != Counter(run.profiles):
        verdict.violations.append(f"{name}: Slurm gave {dict(run.profiles)}, carved {dict(held)}")
    verdict.rows["whole GPU, equal" if run.gpus else "slices, equal"] += 1


def _without_record(
    name: str,
    run: Run,
    until: float,
    starts: Sequence[Start],
    seen: Sequence[Seen],
    injected: Sequence[Injected],
    verdict: Verdict,
) -> str:
    """Why a run with GPUs has no record: then none of its tasks may have run, either."""
    ran = [
        item
        for item in seen
        if (item.job, item.node) == (run.job, run.node)
        and run.start - ROUNDING <= item.begin < until
    ]
    if ran:
        verdict.violations.append(f"{name}: its script ran without a record")
    began = [
        item
        for item in starts
        if (item.hook, item.job, item.node) == ("prolog", run.job, run.node)
        and run.start - ROUNDING <= item.at < until
    ]
    if not began:
        return "no Prolog was started by Slurm, nothing ran"
    if any(item.covers(run.node, began[0].at, began[-1].at + 60) for item in injected):
        return "Prolog killed or failed before its first write, nothing ran"
    verdict.violations.append(f"{name}: its Prolog ran and left no record")
    return "no record"


# -- devices -------------------------------------------------------------------


def overlaps(records: Sequence[Allocation]) -> list[str]:
    """Two that had the same units of a GPU at the same time."""
    found = []
    by_gpu: dict[str, list[Allocation]] = defaultdict(list)
    for record in records:
        if record.phase != phases.REFUSED:
            by_gpu[record.gpu_uuid].append(record)
    for own in by_gpu.values():
        own.sort(key=lambda record: record.created)
        for place, first in enumerate(own):
            for second in own[place + 1 :]:
                if first.ended is not None and second.created >= first.ended:
                    continue
                if _same_units(first, second):
                    found.append(
                        f"GPU {first.gpu_minor} of {first.node}: records {first.number} "
                        f"({first.owner}) and {second.number} ({second.owner}) overlap"
                    )
    return found


def _same_units(first: Allocation, second: Allocation) -> bool:
    if first.whole or second.whole:
        return True
    return any(
        one.start < other.start + other.size and other.start < one.start + one.size
        for one in first.instances
        for other in second.instances
    )


def _wrong_devices(seen: Sequence[Seen], records: Sequence[Allocation]) -> Iterator[str]:
    """Each script saw what its record names, as long as it ran."""
    own: dict[tuple[int | None, int, str], list[Allocation]] = defaultdict(list)
    for record in records:
        own[record.owner.job_id, record.owner.restart, record.node].append(record)
    for item in seen:
        name = f"job {item.job} run {item.restart} on {item.node}"
        mine = [
            record
            for record in own[item.job, item.restart, item.node]
            if record.created <= item.begin and item.begin <= (record.ended or item.begin)
        ]
        if not item.visible.startswith("MIG-"):
            if item.visible and not any(record.whole for record in mine):
                yield f"{name} saw {item.visible} without a record of a whole GPU"
            continue
        named = [record for record in mine if ",".join(record.uuids) == item.visible]
        if not named:
            yield f"{name} saw {item.visible}, no record of that time names it"
        elif item.end is not None and item.end > (named[0].ended or item.end):
            yield f"{name}: its slices went while its script ran ({named[0].reason})"
