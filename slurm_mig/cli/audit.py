"""`slurm-mig audit`: who held which MIG UUID, and when; and whether that is the truth."""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import ExitStack
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import click

from slurm_mig.audit import clocks
from slurm_mig.audit.archive import ARCHIVES, Archive, collected
from slurm_mig.audit.copies import contradictions, youngest
from slurm_mig.audit.holdings import FOREVER, Size, holdings
from slurm_mig.audit.spool import DistinctNumbers
from slurm_mig.audit.totals import BY, totals
from slurm_mig.cli import _audit_filters as asked
from slurm_mig.cli import _audit_print as views
from slurm_mig.cli._node import open_node, root_to_read, slurm_of
from slurm_mig.cli._options import JobId
from slurm_mig.cli._print import when, working
from slurm_mig.cli._usage import NewFile
from slurm_mig.errors import AuditFindings, LedgerFault, UsageFault
from slurm_mig.mig.allocation import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from slurm_mig.audit.chain import Heads
    from slurm_mig.audit.copies import Contradiction
    from slurm_mig.audit.findings import AuditFinding
    from slurm_mig.audit.holdings import Holding
    from slurm_mig.audit.timeline import Gpu
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.node.node import Node


class _Closed(Protocol):
    def close(self) -> object: ...


T = TypeVar("T", bound=_Closed)

#: What `--accounting` compares unless it is told: the last day, in seconds.
LAST_DAY: Final = 86400.0

#: Most slices and refusals in one picture: beyond it a page has no room for them, and drawing
#: takes minutes.
MOST_DRAWN: Final = 20_000

#: Options that mean something in one mode alone.
BELONGS: Final = {"heads": "--check", "tolerance": "--accounting", "colour_by": "--timeline"}

PICTURES: Final = (".png", ".svg", ".html")


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which records are meant, of `audit` and of `report`."""
    for option in reversed(
        (
            click.option("--since", help="Only what existed after this time (2026-03-01T12:00)."),
            click.option("--until", help="Only what existed before this time."),
            click.option("--at", help="Only what existed at this time."),
            click.option("--job", "job_id", type=JobId(), help="Only this Slurm job id."),
            click.option("--user", help="Only this user's."),
            click.option("--account", help="Only this account's."),
            click.option("--node", help="Only on this node."),
            click.option("--gpu", help="Only on this GPU, by minor or start of its UUID."),
            click.option("--uuid", help="Only this MIG UUID, or its start; all of a GPU by its."),
            click.option("--profile", help="Only this profile, or `whole GPU`."),
            click.option("--outcome", type=click.Choice(list(TRANSITIONS)), help="Only this."),
        )
    ):
        function = option(function)
    return function


@click.command()
@filters
@click.option(
    "--ledger",
    "ledgers",
    multiple=True,
    help="Read these ledgers (a pattern, 'DIR/*.db') instead of this node's. Needs no root.",
)
@click.option("--totals", "by", type=click.Choice(list(BY)), help="Sums by this.")
@click.option("--check", is_flag=True, help="Was the ledger edited? Exit code 29 if so.")
@click.option(
    "--heads",
    type=click.File("r", encoding="utf-8", errors="replace"),
    help="With --check: compare with the heads in this text of syslog (- for stdin).",
)
@click.option(
    "--accounting",
    "--reconcile",
    "reconcile",
    is_flag=True,
    help="Compare with sacct. Exit code 29 on findings.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    help="With --accounting: seconds by which times may differ.",
)
@click.option(
    "--timeline",
    type=NewFile(),
    help="Draw the slots of each GPU over time: .png, .svg or .html.",
)
@click.option(
    "--colour-by",
    type=click.Choice(["user", "profile"]),
    default="user",
    show_default=True,
    help="With --timeline.",
)
@click.option("--wide", is_flag=True, help="All columns, MIG UUIDs among them, on one line each.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV instead of a table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    ledgers: tuple[str, ...],
    by: str | None,
    heads: Iterable[str] | None,
    tolerance: float,
    timeline: Path | None,
    colour_by: str,
    wide: bool,
    **flags: Any,  # the filters, and what is plain yes or no
) -> None:
    """Show who held which slice from when to when, refusals included.

    Without root it reads collected ledgers (--ledger) alone.
    """
    check, reconcile = flags.pop("check"), flags.pop("reconcile")
    form = _form(as_csv=flags.pop("as_csv"), as_json=flags.pop("as_json"))
    modes = {"--totals": by, "--check": check, "--accounting": reconcile, "--timeline": timeline}
    mode = _one_of(modes)
    _check_mode(mode, form, asked.given(flags))
    if wide and (mode or form != "table"):
        raise UsageFault(f"--wide is of the table alone: leave it or {mode or f'--{form}'} out")
    _check_tolerance(tolerance)
    if timeline is not None and timeline.suffix not in PICTURES:
        raise UsageFault(f"--timeline {timeline}: allowed endings are {', '.join(PICTURES)}")
    wanted = asked.wanted(flags)
    with ExitStack() as stack:
        if reconcile:
            return _reconcile(stack, ledgers, wanted, tolerance, form)
        seen = _heads(heads) if check and heads is not None else None
        with ExitStack() as reading:
            archives = archives_of(reading, ledgers)
            if check:
                return _check(archives, seen, form)
            span = span_for_sums(wanted)
            notes = Notes(archives, span[1], wanted)
            with views.progress(sum(item.size() for item in archives), form) as passed:
                found = notes.through(holdings_in(archives, wanted, passed))
                # All is read before anything is printed: a fault after half an answer would be
                # overlooked, and whoever pages through it would hold the ledger.
                if timeline is not None:
                    tell = _draw(timeline, archives, found, wanted, colour_by)
                elif by is None:
                    tell = views.rows(stack, found, form, wide=wide)
                else:
                    jobs = _closing(stack, DistinctNumbers())
                    tell = partial(views.print_totals, totals(found, by, *span, jobs), by, form)
            lines = contradicted(archives) + absent(archives, wanted) + notes.clocks()
            lines += notes.again()
            if timeline is not None or by is not None:
                lines = notes.cut_short("count until") + lines
        tell()
        for line in lines:
            views.note(line)
    return None


def _form(*, as_csv: bool, as_json: bool) -> str:
    if as_csv and as_json:
        raise UsageFault("--csv and --json: choose one")
    return "csv" if as_csv else "json" if as_json else "table"


def _one_of(options: dict[str, object]) -> str:
    """The one that is given; empty for none."""
    given = [name for name, value in options.items() if value]
    if len(given) > 1:
        raise UsageFault(f"{' and '.join(given)}: choose one")
    return "".join(given)


def _check_tolerance(seconds: float) -> None:
    # Click's range has room for what compares with nothing.
    if not math.isfinite(seconds):
        raise UsageFault(f"--tolerance {seconds}: write seconds from 0 to {LAST_DAY:.0f}")


# -- what is asked for -----------------------------------------------------------


def _check_mode(mode: str, form: str, filters: Sequence[str]) -> None:
    """UsageFault for an option that would be passed over, and with it what was meant by it."""
    context = click.get_current_context()
    for name, its in BELONGS.items():
        typed = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if typed and mode != its:
            raise UsageFault(f"--{name.replace('_', '-')} belongs to {its}")
    if mode == "--timeline" and form != "table":
        raise UsageFault(f"--timeline draws and prints no rows: leave --{form} out")
    if mode == "--check" and filters:
        raise UsageFault(f"--check looks at every event: leave {', '.join(filters)} out")


def span_for_sums(wanted: dict[str, Any]) -> tuple[float, float]:
    """The span in which hours count: what is held now counts until now."""
    now = time.time()
    since, until = wanted["since"], wanted["until"]
    return (0.0 if since is None else since, now if until is None else min(until, now))


# -- reading ------------------------------------------------------------------------


def archives_of(
    stack: ExitStack, ledgers: Sequence[str], node: Node | None = None
) -> list[Archive]:
    """Collected ledgers, or this node's own, which is brought up to date if need be.

    Where there is none an empty answer would say that nobody ever held anything.
    """
    if ledgers:
        return [_closing(stack, Archive(path)) for path in collected(ledgers)]
    if node is None:
        node = stack.enter_context(open_node())
    root_to_read(node)
    if not node.config.ledger.exists():
        raise LedgerFault(
            f"no ledger at {node.config.ledger}: no hook has run here",
            remedy="`--ledger` reads copies of other nodes' ledgers",
        )
    assert node.ledger  # noqa: S101  # opened, and so migrated, by being asked for
    # The ledger first: what `slurm-mig archive` moves after this moment is then met twice, and
    # counts once. The other way round it would be met nowhere.
    ledger = _closing(stack, Archive(node.config.ledger, live=True))
    beside = sorted(node.config.archives.glob(ARCHIVES))
    return [ledger, *(_closing(stack, Archive(path, live=True)) for path in beside)]


def _closing(stack: ExitStack, item: T) -> T:
    stack.callback(item.close)
    return item


def holdings_in(
    archives: Sequence[Archive], wanted: dict[str, Any], passed: Callable[[int], object]
) -> Iterator[Holding]:
    """Holdings; of a record with several instances only those that are asked for."""
    known = _known(archives)
    for record, archive in youngest(archives, wanted):
        passed(1)
        for item in holdings(record, size_of(record.gpu_name), known[id(archive)]):
            if _meant(item, wanted):
                yield item


class Notes:
    """What is worth a word about the records of an answer, learnt while they pass by."""

    def __init__(self, archives: Sequence[Archive], until: float, wanted: dict[str, Any]) -> None:
        self._archives = archives
        self._until = until
        self._newest = [archive.last()[1] for archive in archives]
        self._last: Allocation | None = None
        self._cut = 0
        self._oldest = FOREVER
        nodes = {name for archive in archives for name in archive.nodes()}
        # One node alone has nothing to be compared with, and most questions are about one.
        self._between = clocks.BetweenNodes() if len(nodes) > 1 else None
        self._uuid = str(wanted.get("uuid") or "").startswith("MIG-")
        self._times: Counter[str] = Counter()

    def through(self, found: Iterable[Holding]) -> Iterator[Holding]:
        """The same holdings; those of one record stand together."""
        for item in found:
            if item.record is not self._last:
                self.look(item.record, item.known)
            if self._uuid and item.instance is not None:
                self._times[str(item.instance.uuid)] += 1
            yield item

    def look(self, record: Allocation, known: float) -> None:
        """Take the next record, of which its ledger tells until then."""
        self._last = record
        if record.ended is None and known < self._until:
            self._cut += 1
            self._oldest = min(self._oldest, known)
        if self._between is not None:
            self._between.look(record)

    def again(self) -> list[str]:
        """A line on MIG UUIDs that were asked for and had by several, one after the other."""
        return [
            f"{uuid} was held {count} times, for a driver may give the next slice in a place the "
            "same UUID again: ask with --at TIME who had it then"
            for uuid, count in self._times.items()
            if count > 1
        ]

    def clocks(self) -> list[str]:
        """Beside collected ledgers, what is known of the clocks they were written by."""
        lines = [] if self._between is None else self._between.lines()
        now = time.time()
        for archive, newest in zip(self._archives, self._newest, strict=True):
            written = archive.path.stat().st_mtime
            # Whose it is takes a look at every row.
            if max(newest, written) > now:
                lines += clocks.in_the_future(_name(archive), newest, written, now)
        return lines

    def cut_short(self, what: str) -> list[str]:
        """A line on what is open in a copy: nobody knows how long it was held after that."""
        if not self._cut:
            return []
        count = f"{self._cut} open records of copied ledgers {what} the newest event of their copy"
        return [f"{count}, the oldest of these at {when(self._oldest)}"]


def _meant(item: Holding, wanted: dict[str, Any]) -> bool:
    made, uuid = item.instance, wanted["uuid"]
    if made is None:
        return True
    if uuid is not None and uuid.startswith("MIG-") and not (made.uuid or "").startswith(uuid):
        return False
    return wanted["profile"] in (None, made.profile)


@cache
def size_of(gpu_name: str) -> Size:
    """Slices and units of a GPU model, as far as anybody has published them."""
    from slurm_mig.mig import catalog

    for product in catalog.products():
        if gpu_name in product.names:
            return Size(product.slices, product.geometry().units if product.known else None)
    return Size()


def contradicted(archives: Sequence[Archive]) -> list[str]:
    """A line on what another copy denies, so that nobody takes it for certain."""
    found = contradictions(archives)
    if not found:
        return []
    more = f" (and {len(found) - 1} copies more)" if len(found) > 1 else ""
    return [f"{_contradiction(found[0])}{more}; see `slurm-mig audit --check`"]


def _contradiction(found: Contradiction[Archive]) -> str:
    return (
        f"{found.other.path} and {found.one.path} are copies of one ledger and differ from "
        f"event {found.event} on"
    )


def absent(archives: Sequence[Archive], wanted: dict[str, Any]) -> list[str]:
    """Lines on archives that are not here, where they may have what is asked for."""
    since = wanted["since"]
    return [
        f"what ended before {when(archive.before)} on {_name(archive)} is in the archive "
        f"{archive.earlier}, which is not here: this answer lacks it"
        for archive in archives
        if (since is None or since < archive.before) and not _leads_to(archives, archive)
    ]


def _leads_to(archives: Sequence[Archive], later: Archive) -> bool:
    """Whether one of these ledgers has the event that a shortened one goes on from."""
    return later.start == 0 or _before(archives, later) is not None


def _known(archives: Sequence[Archive]) -> dict[int, float]:
    """Until when each of them tells what was held: a copy until its newest event."""
    return {id(archive): FOREVER if archive.live else archive.last()[1] for archive in archives}


def _name(archive: Archive) -> str:
    return ", ".join(archive.nodes()) or str(archive.path)


# -- integrity ------------------------------------------------------------------------


def _heads(text: Iterable[str]) -> Heads:
    from slurm_mig.audit.chain import Heads

    return Heads(text)


def _check(archives: Sequence[Archive], seen: Heads | None, form: str) -> None:
    from slurm_mig.audit.findings import AuditFinding, first_of_each
    from slurm_mig.cli._beside import beside

    found: list[AuditFinding] = []
    counts, notes = [], []
    with views.progress(2 * sum(item.length() - item.first() for item in archives), form) as passed:
        for archive in archives:
            looked, findings = archive.check(passed)
            findings += beside(archive, looked.last)
            found += _placed(findings, archive, several=len(archives) > 1)
            beginning = f" from event {archive.start + 1} on" if archive.start else ""
            counts.append(f"{_name(archive)}: {looked.events} events{beginning}")
            notes += clocks.set_back(_name(archive), looked.set_back, looked.widest_step)
    heads, behind = [], []
    if seen is not None:
        compared = _check_heads(archives, seen)
        found += compared[0]
        heads.append(compared[1])
        if not seen.proven:
            behind.append(
                "--heads: that text does not say which user wrote a line, so a false one may raise "
                "an alarm; `journalctl -t slurm-mig -o json` says it"
            )
    for archive in archives:
        lost, told = _link(archives, archive)
        found += lost
        behind += told
    found += [
        AuditFinding("contradicts", _contradiction(item), _name(item.one), event=item.event)
        for item in contradictions(archives)
    ]
    found = first_of_each(found)
    broken = next((item.event for item in found if item.event is not None), None)
    views.print_findings(found, form, broken_event=broken)
    for line in behind:
        views.note(line)
    if found:
        # Times of a table that was edited say nothing of clocks.
        raise AuditFindings(_summary(found))
    for line in notes:
        views.note(line)
    if form == "table":
        said = f"{'; '.join(counts)}: every event follows from the one before it"
        click.echo("; ".join((said, *heads)))


def _link(archives: Sequence[Archive], later: Archive) -> tuple[list[AuditFinding], list[str]]:
    """Whether what was moved out of a ledger leads to what is left there; a line if it is not here.

    Each file's chain is checked from its first event on. That the events before are those of an
    archive shows in the digest that both know.
    """
    from slurm_mig.audit.findings import AuditFinding

    if _leads_to(archives, later):
        return [], []
    known = next((item for item in archives if item.path.name == later.earlier), None)
    if known is None or known is later:
        which = f"events 1 to {later.start} of {_name(later)} are in the archive {later.earlier}"
        return [], [f"{which}, which is not here: what follows them was checked alone"]
    if known.length() < later.start:
        text = f"{known.path} ends with event {known.length()}, {later.path} goes on after event "
        lost = AuditFinding(
            "removed", f"{text}{later.start}", _name(later), event=known.length() + 1
        )
        return [lost], []
    text = f"event {later.start} of {known.path} is not the one that {later.path} goes on from"
    return [AuditFinding("rewritten", text, _name(later), event=later.start)], []


def _check_heads(archives: Sequence[Archive], seen: Heads) -> tuple[list[AuditFinding], str]:
    """What heads of syslog say of each ledger, and how many were compared."""
    from slurm_mig.audit.chain import HeadCheck

    found: list[AuditFinding] = []
    # What was moved away is compared through the ledger that goes on from it, if that is here.
    ends = [item for item in archives if not item.archived] or list(archives)
    checks = []
    for item in ends:
        digest_of = partial(_digest, archives, item)
        check = HeadCheck(digest_of, item.length(), _reach(archives, item))
        checks.append((item, check))
        end = item.length() if item.archived else None
        for node in item.nodes():
            for head in seen.of(node):
                if end is None or head.seq <= end:
                    check.look(head)
    for archive, check in checks:
        if not check.compared:
            raise UsageFault(
                f"--heads: no line of {_name(archive)} with a head (`head=...`) is in that text",
                remedy="try `journalctl -t slurm-mig -o json | slurm-mig audit --check --heads -`",
            )
        found += _placed(check.findings(), archive, several=len(archives) > 1)
    compared = sum(check.compared for _, check in checks)
    beyond = sum(check.beyond for _, check in checks)
    more = f", {beyond} more are of events that are not here" if beyond else ""
    return found, f"they agree with {compared} heads of syslog{more}"


def _digest(archives: Sequence[Archive], ledger: Archive, seq: int) -> str | None:
    """Digest of an event in a ledger, or in the archives that lead to it."""
    while seq < ledger.start:
        before = _before(archives, ledger)
        if before is None:
            return None
        ledger = before
    return ledger.digest_of(seq)


def _reach(archives: Sequence[Archive], ledger: Archive) -> int:
    """The event after which everything is here, in a ledger or in archives that lead to it."""
    while (before := _before(archives, ledger)) is not None:
        ledger = before
    return ledger.start


def _before(archives: Sequence[Archive], later: Archive) -> Archive | None:
    """One of these that has earlier events, and the one that a shortened ledger goes on from."""
    for other in archives:
        if other.start < later.start and other.digest_of(later.start) == later.begins_with:
            return other
    return None


def _placed(
    found: Iterable[AuditFinding], archive: Archive, *, several: bool
) -> list[AuditFinding]:
    from dataclasses import replace

    node = _name(archive)
    where = f"{archive.path}: " if several else ""
    return [replace(item, node=item.node or node, text=where + item.text) for item in found]


def _summary(found: Sequence[AuditFinding]) -> str:
    kinds = {kind: sum(item.kind == kind for item in found) for kind in {i.kind for i in found}}
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    first = "" if len(found) > 1 else f": {found[0].text}"
    return f"audit found {counts}{first}"


# -- against Slurm ------------------------------------------------------------------------


def _reconcile(
    stack: ExitStack, ledgers: Sequence[str], wanted: dict[str, Any], tolerance: float, form: str
) -> None:
    from slurm_mig.audit.accounting import Question, compare, match, runs

    _only_times(wanted)
    node = stack.enter_context(open_node())
    if not ledgers:
        root_to_read(node)
    # Where no hook has ever run a job may have been charged all the same.
    recorded = bool(ledgers) or node.config.ledger.exists()
    archives = archives_of(stack, ledgers, node) if recorded else []
    now = time.time()
    until = now if wanted["until"] is None else min(wanted["until"], now)
    since = until - LAST_DAY if wanted["since"] is None else wanted["since"]
    here = {name for archive in archives for name in archive.nodes()}
    # Its own name counts although it has recorded nothing: a job may be charged all the same.
    own = set() if ledgers else {node.name}
    question = Question(here | own, since, until, tolerance)
    span_read = {"since": since - tolerance, "until": until + tolerance}
    known, seen = _known(archives), Notes(archives, until, wanted)
    records = []
    for record, archive in youngest(archives, wanted | span_read):
        seen.look(record, known[id(archive)])
        records.append(record)
    notes = contradicted(archives) + absent(archives, {"since": since})
    notes += seen.cut_short("are compared beyond")
    with working("asking sacct"):
        rows = slurm_of(node).accounting(since - tolerance, until + tolerance)
    found = compare(records, rows, question)
    matched = runs(rows, question)
    pairs, _ = match(records, matched, question)
    offsets = clocks.against_slurm(pairs)
    told = [str(item) for item in offsets] + clocks.between_nodes(records)
    span = {"since": since, "until": until, "tolerance": tolerance, "nodes": sorted(question.nodes)}
    views.print_findings(found, form, **span, runs=len(matched), records=len(records), clocks=told)
    for line in notes + (told if form != "json" else []):
        views.note(line)
    _tell_untracked(rows, records)
    if found:
        raise AuditFindings(_summary(found))
    if form == "table":
        views.agree(since, until, len(records), len(matched))


def _only_times(wanted: dict[str, Any]) -> None:
    other = [name for name in asked.given(wanted) if name not in ("--since", "--until")]
    if other:
        raise UsageFault(
            f"--accounting compares everything in a span: leave {', '.join(other)} out"
        )


def _tell_untracked(rows: Iterable[Any], records: Sequence[Allocation]) -> None:
    """Without the TRES in slurm.conf every slice would look as if nobody paid."""
    if records and not any("mig" in name for row in rows for name in row.gres):
        views.note(
            "no row of the accounting names a slice: is AccountingStorageTRES set as "
            "`slurm-mig generate` writes it?"
        )


# -- the picture ------------------------------------------------------------------------


def _draw(
    out: Path,
    archives: Sequence[Archive],
    items: Iterable[Holding],
    wanted: dict[str, Any],
    by: str,
) -> Callable[[], object]:
    found = at_most(items, "--timeline")
    from slurm_mig.audit.paint import paint
    from slurm_mig.audit.timeline import picture

    now = time.time()
    gpus = gpus_in(archives, wanted)
    drawn = picture(found, gpus, by, since=wanted["since"], until=wanted["until"], now=now)
    paint(drawn, out)
    return partial(click.echo, f"{out}: {len(drawn.boxes)} slices, {len(drawn.marks)} refusals")


def gpus_in(archives: Sequence[Archive], wanted: dict[str, Any]) -> set[Gpu]:
    """The GPUs on record that are meant; UsageFault where there is none."""
    from slurm_mig.audit.timeline import Gpu

    gpus = {
        Gpu(node, uuid, minor, name, size_of(name).units)
        for archive in archives
        for node, uuid, minor, name in archive.gpus()
        if wanted["node"] in (None, node) and _is_gpu(wanted["gpu"], uuid, minor)
    }
    if not gpus:
        raise UsageFault("no GPU is on record here, so there is nothing to draw")
    return gpus


def at_most(items: Iterable[Holding], what: str) -> list[Holding]:
    """All of them; UsageFault where a picture has no room for so many."""
    items = iter(items)
    found = list(islice(items, MOST_DRAWN))
    if more := sum(1 for _ in items):
        raise UsageFault(
            f"{what} draws at most {MOST_DRAWN} slices and refusals, these are "
            f"{MOST_DRAWN + more}: ask for less, by --since and --until, --node, --gpu or --user"
        )
    return found


def _is_gpu(wanted: str | None, uuid: str, minor: int) -> bool:
    return wanted in (None, str(minor)) or uuid.lower().startswith(str(wanted).lower())
