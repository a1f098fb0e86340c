"""Ledger against Slurm's accounting: what one of them has and the other has not.

The ledger's times are the nodes', the accounting's are slurmctld's, in whole
seconds; a Prolog takes its time, and an Epilog works after the end of its job.
So times count as different only beyond a tolerance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slurm_mig.audit.findings import AuditFinding
from slurm_mig.errors import BadRequest, UsageFault
from slurm_mig.mig.allocation import REFUSED
from slurm_mig.mig.profile import Profile
from slurm_mig.slurm.hostlist import expand

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.slurm.protocol import AccountingRow

#: Difference of times that is none, in seconds, unless asked otherwise: a Prolog may wait
#: 30 s for a GPU's lock, an Epilog 10 s for each slice in use.
TOLERANCE: Final = 60.0

_MIG: Final = "mig:"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a job on one node: its row, and what the ledger has for it."""

    row: AccountingRow
    node: str
    nodes: int
    start: float
    end: float
    ended: bool

    @property
    def charged(self) -> Counter[str]:
        """Slices it was charged for on this node, by profile; none for whole GPUs.

        A request is per node, the accounting has the sum. A job with whole GPUs may
        be charged for every slice beside them (`--exclusive`).
        """
        return Counter() if self.whole_gpus else self.named

    @property
    def named(self) -> Counter[str]:
        """Slices that stand in its row for this node, by profile, beside whole GPUs or not."""
        return Counter(
            {
                name.removeprefix(_MIG): count // self.nodes
                for name, count in self.row.gres.items()
                if name.startswith(_MIG)
            }
        )

    @property
    def whole_gpus(self) -> int:
        """GPUs it was charged for on all its nodes; not those that shards imply."""
        typed = sum(count for name, count in self.row.gres.items() if name.startswith("gpu:"))
        return max(self.row.gres.get("gpu", 0), typed)


@dataclass(frozen=True, slots=True)
class Question:
    """What is compared: ledgers of these nodes, in this span, with this tolerance (s).

    `until` must not lie in the future: what still runs is compared until then.
    """

    nodes: Collection[str]
    since: float
    until: float
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True)
class Match:
    """A record and the run it was for."""

    record: Allocation
    run: Run


def runs(rows: Iterable[AccountingRow], question: Question) -> list[Run]:
    """Runs that began, one for each node whose ledger is at hand."""
    return [run for row in rows for run in _runs(row, question)]


def _runs(row: AccountingRow, question: Question) -> Iterator[Run]:
    if row.start is None:
        return
    try:
        nodes = expand(row.nodes)
    except UsageFault:
        # "None assigned": it never had one.
        return
    end = question.until if row.end is None else row.end
    for node in nodes:
        if node in question.nodes:
            yield Run(row, node, len(nodes), row.start, end, row.end is not None)


def match(
    records: Iterable[Allocation], found: Sequence[Run], question: Question
) -> tuple[list[Match], list[Allocation]]:
    """Which run each record of a job was for: the one it shares most time with.

    Returns the pairs, and the records without a run. Refusals and
    administrators' records are for none.
    """
    by_job: dict[tuple[int, str], list[Run]] = defaultdict(list)
    for run in found:
        by_job[run.row.job_id, run.node].append(run)
    pairs, alone = [], []
    for record in records:
        if record.owner.job_id is None or record.phase == REFUSED:
            continue
        near = [
            (shared, run)
            for run in by_job[record.owner.job_id, record.node]
            if (shared := _shared(record, run, question.until)) >= -question.tolerance
        ]
        if near:
            pairs.append(Match(record, max(near, key=lambda item: item[0])[1]))
        else:
            alone.append(record)
    return pairs, alone


def _end(record: Allocation, until: float) -> float:
    return until if record.ended is None else record.ended


def _shared(record: Allocation, run: Run, until: float) -> float:
    """Seconds a record and a run have in common; below 0, how far they are apart."""
    return min(_end(record, until), run.end) - max(record.created, run.start)


def compare(
    records: Sequence[Allocation], rows: Sequence[AccountingRow], question: Question
) -> list[AuditFinding]:
    """Everything that ledgers and accounting do not agree on, in order of time.

    Both should reach a tolerance beyond the span, so that what crosses its ends is
    whole; found is only what concerns the span itself.
    """
    found = runs(rows, question)
    pairs, alone = match(records, found, question)
    known = {row.job_id for row in rows}
    findings = [_without_job(record, known, question) for record in alone]
    for pair in pairs:
        findings += _times(pair, question)
        findings += _user(pair)
    by_run: dict[int, list[Allocation]] = defaultdict(list)
    for pair in pairs:
        by_run[id(pair.run)].append(pair.record)
    refused: dict[tuple[int | None, str], list[Allocation]] = defaultdict(list)
    for record in records:
        if record.phase == REFUSED:
            refused[record.owner.job_id, record.node].append(record)
    for run in found:
        said = refused[run.row.job_id, run.node]
        findings += _charges(run, by_run[id(run)], said, question)
    findings += double_use(records, question.until)
    inside = [item for item in findings if _touches(item, question)]
    return sorted(inside, key=lambda item: (item.since or 0, item.node, item.kind, item.text))


def _touches(item: AuditFinding, question: Question) -> bool:
    first, last = item.since or 0.0, item.until
    return first < question.until and (last is None or last >= question.since)


def _without_job(record: Allocation, known: Collection[int], question: Question) -> AuditFinding:
    if record.owner.job_id not in known:
        return _of(record, "unknown-job", "Slurm's accounting has no such job", question)
    return _of(record, "slice-without-job", f"did not run on {record.node} then", question)


def _of(
    record: Allocation, kind: str, what: str, question: Question, **span: float
) -> AuditFinding:
    return AuditFinding(
        kind,
        f"{record.made} on GPU {record.gpu_minor}, {record.owner}: {what}",
        node=record.node,
        allocation=record.number,
        job_id=record.owner.job_id,
        user=record.owner.user,
        since=span.get("since", record.created),
        until=span.get("until", _end(record, question.until)),
    )


def _times(pair: Match, question: Question) -> Iterator[AuditFinding]:
    """A slice may be made shortly after its job's start, and go shortly after its end."""
    record, run = pair.record, pair.run
    if (early := run.start - record.created) > question.tolerance:
        text = f"made {early:.0f} s before the job began"
        yield _of(record, "outside-job", text, question, until=run.start)
    late = _end(record, question.until) - run.end
    if not run.ended or late <= question.tolerance:
        return
    if record.ended is None:
        text = f"the job ended {late:.0f} s ago, the slice is {record.phase}"
        yield _of(record, "open-after-end", text, question, since=run.end)
    else:
        text = f"{record.phase} {late:.0f} s after the job's end"
        yield _of(record, "outside-job", text, question, since=run.end)


def _user(pair: Match) -> Iterator[AuditFinding]:
    record, row = pair.record, pair.run.row
    if record.owner.user and row.user and record.owner.user != row.user:
        text = f"{record.owner}: the ledger says {record.owner.user}, Slurm says {row.user}"
        yield _finding("wrong-user", text, pair.run, (record.created, record.ended))


def _finding(kind: str, text: str, run: Run, span: tuple[float, float | None]) -> AuditFinding:
    first, last = span
    return AuditFinding(
        kind,
        text,
        node=run.node,
        job_id=run.row.job_id,
        user=run.row.user,
        since=first,
        until=last,
    )


# -- what was charged -----------------------------------------------------------


def _charges(
    run: Run, records: Sequence[Allocation], refused: Iterable[Allocation], question: Question
) -> Iterator[AuditFinding]:
    """Compare a run's charge with what it held.

    Whole GPUs may be unmanaged, and then are in no record.
    """
    charged = run.charged
    if records and (why := _differs(run, charged, records)):
        yield _finding("wrong-slices", why, run, (run.start, run.end))
    if not charged:
        return
    held = [(record.created, _end(record, question.until)) for record in records]
    said = _refusals(run, refused, question) if not records else []
    # A job that was refused leaves at once; only what it ran on after that is a charge.
    first = max([run.start, *(record.created for record in said)])
    for since, until in _gaps(held, first, run.end):
        if until - since > question.tolerance:
            text = f"job {run.row.job_id} was charged for {_names(charged)}, "
            text += f"for {until - since:.0f} s without a slice"
            text += f", though refused: {said[-1].reason}" if said else _ends(records)
            yield _finding("charged-without-slice", text, run, (since, until))


def _refusals(run: Run, refused: Iterable[Allocation], question: Question) -> list[Allocation]:
    """Refusals of this very run, of those of its job on its node."""
    return [
        record
        for record in refused
        if -question.tolerance <= record.created - run.start
        and record.created - run.end <= question.tolerance
    ]


def _gaps(
    held: Iterable[tuple[float, float]], first: float, last: float
) -> Iterator[tuple[float, float]]:
    for since, until in sorted(held):
        if since > first:
            yield first, min(since, last)
        first = max(first, until)
    if first < last:
        yield first, last


def _ends(records: Sequence[Allocation]) -> str:
    ends = [f"{record.phase}: {record.reason}" for record in records if record.ended is not None]
    return f" ({ends[-1]})" if ends else ""


def _names(counts: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(counts.items())) or "nothing"


def _differs(run: Run, charged: Counter[str], records: Sequence[Allocation]) -> str:
    """Why what was held is not what was charged; empty when it is."""
    who = f"job {run.row.job_id}"
    held = _most_at_once(records)
    if run.whole_gpus:
        gpus = len({record.gpu_uuid for record in records})
        if gpus > run.whole_gpus:
            return f"{who} was charged for {run.whole_gpus} GPUs and had {gpus}"
        # Whole GPUs that are paid for slices: --exclusive may name more, but nothing less.
        if run.named and not _same(run.named, held, spare=True):
            return f"{who} was charged for {_names(run.named)} and had {_names(held)}"
        return ""
    if any(record.whole for record in records):
        return f"{who} had a whole GPU and was charged for {_names(charged)}"
    if _same(charged, held):
        return ""
    return f"{who} was charged for {_names(charged)} and had {_names(held)}"


def _most_at_once(records: Sequence[Allocation]) -> Counter[str]:
    """A carve that was rolled back and done again is one: only what was held together counts."""
    most: Counter[str] = Counter()
    for record in records:
        now = Counter(
            item.profile
            for other in records
            if other.created <= record.created < _end(other, float("inf"))
            for item in other.instances
        )
        most = max(most, now, key=lambda counts: counts.total())
    return most


def _same(charged: Counter[str], held: Counter[str], *, spare: bool = False) -> bool:
    """Equal counts of profiles, however a driver rounds their memory; `spare`: or fewer held."""
    left = list(held.elements())
    for name in charged.elements():
        same = next((other for other in left if _alike(name, other)), None)
        if same is not None:
            left.remove(same)
        elif not spare:
            return False
    return not left


def _alike(gres: str, held: str) -> bool:
    # Where one name has two meanings in a cluster, the GPU's type stands before it.
    name = gres.rpartition("_")[2]
    try:
        return name == held or Profile.parse(name).alike(Profile.parse(held))
    except BadRequest:
        return False


# -- double use -------------------------------------------------------------------


def double_use(records: Iterable[Allocation], until: float) -> list[AuditFinding]:
    """Pairs of records that had the same slots of a GPU at the same time."""
    by_gpu: dict[tuple[str, str], list[Allocation]] = defaultdict(list)
    for record in records:
        if record.phase != REFUSED:
            by_gpu[record.node, record.gpu_uuid].append(record)
    return [finding for held in by_gpu.values() for finding in _clashes(held, until)]


def _clashes(held: list[Allocation], until: float) -> Iterator[AuditFinding]:
    held.sort(key=lambda record: (record.created, record.number))
    going: list[Allocation] = []
    for record in held:
        going = [other for other in going if _end(other, until) > record.created]
        for other in going:
            if _mask(other) & _mask(record) and _end(record, until) > record.created:
                yield _clash(other, record, until)
        going.append(record)


def _mask(record: Allocation) -> int:
    """The units a record covers; a whole GPU covers all there can be.

    What of a stuck record went before the rest is marked as gone, and was free from then on.
    """
    if record.whole:
        return -1
    mask = 0
    for item in record.present:
        mask |= item.placement.mask
    return mask


def _clash(first: Allocation, second: Allocation, until: float) -> AuditFinding:
    return AuditFinding(
        "double-use",
        f"GPU {second.gpu_minor}: {first.made} of {first.owner} (allocation {first.number}) and "
        f"{second.made} of {second.owner} (allocation {second.number}) at the same time",
        node=second.node,
        allocation=second.number,
        job_id=second.owner.job_id,
        user=second.owner.user,
        since=second.created,
        until=min(_end(first, until), _end(second, until)),
    )
