"""Slurm's job list against the ledger, row by row, and every drain against its cause. Pure.

A row is one run of a job on one node. Times are seconds since the epoch; Slurm's
have whole seconds, and a run that ended did so a moment before its Epilog.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slurm_mig.mig import allocation as phases

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from slurm_mig.mig.allocation import Allocation

#: Slurm cuts its times to whole seconds.
ROUNDING = 1.5

#: Longest time from a job's allocation to the end of its Prolog on a busy machine, seconds.
PROLOG = 60.0

#: Seconds of jobs that slurmctld may not have saved when it is killed (SAVE_MAX_WAIT 5,
#: and the time that the writing takes).
UNSAVED = 12.0


UNDONE = "Prolog failed half-way, undone"

#: Longest time from a failing hook's own drain to slurmd's, as looked at, in seconds.
TOLD_TWICE = 5.0

#: Where a job was cancelled while its Prolog ran into a failure, slurmd 22.05 reports that
#: failure again every 15 s, and slurmctld drains the node each time (seen in its log).
REPEATED = "slurmd reported a failed Prolog again"


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a job on one node, as slurmdbd has it: what it held there.

    `restart` counts the rows of the job before this one. Slurm's start is when the
    Prolog had ended, or when it began: that depends.
    """

    job: int
    restart: int
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
    #: SLURM_JOB_GPUS
    gpus: str = ""


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


def causes(drains: Sequence[Drain], injected: Sequence[Injected]) -> list[str | None]:
    """Which mischief explains each drain; None: it is nobody's, so a user's or our own fault."""
    found: list[str | None] = []
    for number, drain in enumerate(drains):
        cause = _cause(drain, injected)
        again = [
            earlier
            for earlier, known in zip(drains[:number], found, strict=True)
            if known and (earlier.node, earlier.reason) == (drain.node, drain.reason)
        ]
        killed = any(
            item.kind == "slurmctld-kill" and item.covers(drain.node, drain.at, drain.at)
            for item in injected
        )
        if cause is None and again and killed:
            cause = "brought back by a slurmctld that was killed before it saved the resume"
        if cause is None and _told_twice(drain, zip(drains, found, strict=False)):
            cause = "resumed between the hook's own drain and slurmd's"
        found.append(cause)
    return found


def _told_twice(drain: Drain, earlier: Iterable[tuple[Drain, str | None]]) -> bool:
    """A hook drains with its reason, and ends; then slurmd drains once more with its own."""
    return bool(re.match("(prolog|epilog) error", drain.reason, re.IGNORECASE)) and any(
        known
        and other.node == drain.node
        and other.reason.startswith("slurm-mig: ")
        and 0 <= drain.at - other.at < TOLD_TWICE
        for other, known in earlier
    )


def _cause(drain: Drain, injected: Iterable[Injected]) -> str | None:
    kinds = {item.kind for item in injected if item.covers(drain.node, drain.at, drain.at)}
    for pattern, causes in _CAUSES:
        if re.search(pattern, drain.reason, re.IGNORECASE):
            found = [kind for kind in causes if kind in kinds]
            return found[0] if found else None
    return None


#: What a reason may say, and which mischief leads to it.
_CAUSES = (
    (r"^slurm-mig: .*lock not free", ("hang",)),
    (r"^slurm-mig: .*not done within", ("hang",)),
    (r"^slurm-mig: .*(killed|ended) by SIG", ("kill-hook", "kill-at-call", "hang")),
    (r"^slurm-mig: internal error", ()),
    (r"^slurm-mig: ", ("driver-error",)),
    (r"prolog error", ("hang", "kill-hook", "kill-at-call", REPEATED)),
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
    refusals: Collection[tuple[int, int]] = (),
) -> Verdict:
    """Every run that had slices has exactly its record, and every record its run.

    `active` are the numbers of records that were active once, `refusals` the runs
    (job, restart) that a Prolog said it refused.
    """
    verdict = Verdict()
    by_place: dict[tuple[int, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.start):
        by_place[run.job, run.node].append(run)
    mine: dict[Run, list[Allocation]] = {run: [] for run in runs}
    for record in records:
        if record.owner.job_id is None:
            continue
        found = _run_of(record, by_place[record.owner.job_id, record.node])
        if found is not None:
            mine[found].append(record)
        else:
            _unknown(record, injected, verdict)
    for run, own in mine.items():
        later = [other.start for other in by_place[run.job, run.node] if other.start > run.start]
        told = (run.job, run.restart) in refusals
        until = min(later, default=run.end + 3600)
        _row(run, until, own, active, starts, seen, injected, verdict, told=told)
    verdict.violations += overlaps(records)
    verdict.violations += _wrong_devices(seen, records)
    return verdict


def _run_of(record: Allocation, runs: Sequence[Run]) -> Run | None:
    """The run of that restart count; after a kill of slurmctld, which forgets, of that time."""
    near = [
        run
        for run in runs
        if run.user == record.owner.user
        and run.start - PROLOG <= record.created <= run.end + PROLOG
    ]
    same = [run for run in near if run.restart == record.owner.restart]
    during = [run for run in near if record.created <= run.end + ROUNDING]
    return next(iter([*same, *during]), None)


def _unknown(record: Allocation, injected: Iterable[Injected], verdict: Verdict) -> None:
    """A record without a run: only what slurmctld forgot when it was killed may have one."""
    if _unsaved(record.created, injected):
        verdict.rows["run forgotten by a killed slurmctld, slices gone"] += 1
        return
    verdict.violations.append(
        f"record {record.number} of {record.owner} run {record.owner.restart} on {record.node}: "
        "Slurm knows no such run"
    )


def _unsaved(at: float, injected: Iterable[Injected]) -> bool:
    """Whether a slurmctld was killed before it had saved what happened then."""
    kills = [item for item in injected if item.kind == "slurmctld-kill"]
    return any(kill.since - UNSAVED <= at <= kill.until for kill in kills)


def _row(
    run: Run,
    until: float,
    own: Sequence[Allocation],
    active: frozenset[int],
    starts: Sequence[Start],
    seen: Sequence[Seen],
    injected: Sequence[Injected],
    verdict: Verdict,
    *,
    told: bool,
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
    if carved:
        ends = [item.at for item in starts if _same_place(item, run) and item.hook == "epilog"]
        _carved(name, run, carved, active, injected, ends, verdict)
        if refused and not any(record.reason in _UNDONE for record in carved):
            verdict.violations.append(f"{name}: refused and carved")
    elif refused:
        verdict.rows["refused, on record"] += 1
        if len(refused) > 1:
            verdict.violations.append(f"{name}: {len(refused)} refusals of one run")
    else:
        row = _without_record(name, run, until, starts, seen, injected, verdict, told=told)
        verdict.rows[row] += 1


def _same_place(start: Start, run: Run) -> bool:
    return (start.job, start.node) == (run.job, run.node)


#: Why a record was closed although nothing of it was ever a job's.
_UNDONE = ("rolled back", "another GPU of the job was refused")


def _carved(
    name: str,
    run: Run,
    carved: Sequence[Allocation],
    active: frozenset[int],
    injected: Sequence[Injected],
    epilogs: Sequence[float],
    verdict: Verdict,
) -> None:
    """One record for the slices of a run, one for each of its whole GPUs; held to its end.

    The end of a heterogeneous job's run, as Slurm has it, is that of its slowest component:
    by then the `epilogs` of the others have run.
    """
    held = [item for item in carved if item.number in active and item.reason not in _UNDONE]
    given = _of_this_run(run, held, injected, verdict)
    if not given:
        again = bool(held)
        row = "id given out again by a killed slurmctld, nothing carved" if again else UNDONE
        verdict.rows[row] += 1
        if not any(item.covers(run.node, run.start - 60, run.end + 60) for item in injected):
            verdict.violations.append(f"{name}: carving failed without a cause")
        return
    if len(given) != max(run.gpus, 1):
        verdict.violations.append(f"{name}: {len(given)} records, expected {max(run.gpus, 1)}")
    profiles: Counter[str] = Counter()
    for record in given:
        profiles.update(item.profile for item in record.instances)
        ended = record.ended or run.end
        begun = [at for at in epilogs if record.created < at <= ended]
        early = min([run.end - ROUNDING, *begun]) - ended
        if early > 0 and _unsaved(ended, injected):
            verdict.rows["ended, brought back by a killed slurmctld, ended again"] += 1
            return
        if early > 0:
            verdict.violations.append(
                f"{name}: its slices went {early:.1f} s before its end: {record.reason}"
            )
    if not run.gpus and profiles != Counter(run.profiles):
        told = f"{name}: Slurm gave {dict(run.profiles)}, carved {dict(profiles)}"
        verdict.violations.append(told)
    verdict.rows["whole GPU, equal" if run.gpus else "slices, equal"] += 1


def _of_this_run(
    run: Run,
    given: list[Allocation],
    injected: Sequence[Injected],
    verdict: Verdict,
) -> list[Allocation]:
    """Without those of a job that a killed slurmctld forgot and whose id it gave out again."""
    fitting = [
        record
        for record in given
        if Counter(item.profile for item in record.instances) == Counter(run.profiles)
    ]
    mine = sorted(fitting, key=lambda record: abs(record.created - run.start))[:1]
    others = [record for record in given if record not in mine]
    if run.gpus or not all(_unsaved(record.created, injected) for record in others):
        return given
    for record in others:
        _unknown(record, injected, verdict)
    return mine


def _without_record(
    name: str,
    run: Run,
    until: float,
    starts: Sequence[Start],
    seen: Sequence[Seen],
    injected: Sequence[Injected],
    verdict: Verdict,
    *,
    told: bool,
) -> str:
    """Why a run with GPUs has no record: then none of its tasks may have run, either."""
    ran = [
        item
        for item in seen
        if (item.job, item.node) == (run.job, run.node)
        and item.restart == run.restart
        and run.start - PROLOG <= item.begin < until
        # A job that slurmctld forgot had this number, too; what it saw is checked elsewhere.
        and not _unsaved(item.begin, injected)
    ]
    if ran:
        verdict.violations.append(f"{name}: its script ran without a record")
    began = [
        item
        for item in starts
        if item.hook == "prolog"
        and _same_place(item, run)
        and item.restart == run.restart
        and run.start - PROLOG <= item.at < until
    ]
    if not began:
        return "no Prolog was started by Slurm, nothing ran"
    if run.gpus and not any(item.gpus for item in began):
        return "whole GPU, of which Slurm had named none, nothing ran"
    if told:
        return "refused, for Slurm had chosen no GPU, nothing ran"
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
    # What of a stuck record was gone already is marked so: only the rest was held on.
    return any(
        one.start < other.start + other.size and other.start < one.start + one.size
        for one in first.present
        for other in second.present
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
