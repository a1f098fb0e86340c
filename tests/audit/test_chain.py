"""The hash chain: every kind of edit is found, and its row named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.audit.chain import (
    NAMED,
    ChainCheck,
    Head,
    Heads,
    check_allocation,
    check_heads,
)
from slurm_mig.mig.allocation import ACTIVE, PLANNED, RELEASED, RELEASING
from slurm_mig.state.event import Event, digest
from tests.kit.audit_records import record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.audit.findings import AuditFinding
    from slurm_mig.mig.allocation import Allocation


def chain(count: int) -> list[Event]:
    """A true chain."""
    made: list[Event] = []
    for seq in range(1, count + 1):
        event = Event(seq, 1000.0 + seq, "planned", seq, 7, f'{{"n":{seq}}}', "")
        before = made[-1].digest if made else ""
        made.append(replace(event, digest=digest(before, event.content)))
    return made


def look(events: Sequence[Event]) -> list[AuditFinding]:
    checker = ChainCheck(digest)
    for event in sorted(events, key=lambda event: event.seq):
        checker.look(event)
    return checker.findings()


def kinds(found: Sequence[AuditFinding]) -> list[tuple[str, int | None]]:
    return [(item.kind, item.event) for item in found]


@settings(deadline=None)
@given(st.integers(0, 20))
def test_a_true_chain(count: int) -> None:
    """Nothing is found in it."""
    assert look(chain(count)) == []


@settings(deadline=None)
@given(st.integers(1, 9), st.sampled_from(["at", "kind", "allocation", "job_id", "detail"]))
def test_any_change_names_its_row(place: int, column: str) -> None:
    """Whatever the column."""
    events = chain(9)
    value: Any = {"at": 5.0, "kind": "lost", "allocation": 99, "job_id": None, "detail": "{}"}
    events[place - 1] = replace(events[place - 1], **{column: value[column]})
    assert kinds(look(events)) == [("changed", place)]


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 3))
def test_removed_rows_are_named(first: int, more: int) -> None:
    """All of them; the last rows' absence the chain cannot show."""
    events = chain(12)
    del events[first - 1 : first + more]
    found = look(events)
    assert kinds(found) == [("removed", first)]
    last = first + more
    expected = f"event {first} is gone" if last == first else f"events {first} to {last} are gone"
    assert found[0].text == expected


@settings(deadline=None)
@given(st.permutations(range(1, 7)))
def test_reordered_rows_say_where_they_were_written(order: list[int]) -> None:
    """Each row out of its place, and no other."""
    events = chain(6)
    moved = [replace(events[was - 1], seq=now) for now, was in enumerate(order, 1)]
    found = look(moved)
    misplaced = {now for now, was in enumerate(order, 1) if now != was}
    assert {item.event for item in found if item.kind == "reordered"} == misplaced
    for item in found:
        if item.kind == "reordered":
            assert item.text == f"event {item.event} was written as event {order[item.event - 1]}"  # type: ignore[operator]


def test_a_row_hashed_anew_shows_in_the_next() -> None:
    """Either may be the changed one, and the text says so."""
    events = chain(5)
    changed = replace(events[2], detail="{}")
    events[2] = replace(changed, digest=digest(events[1].digest, changed.content))
    (found,) = look(events)
    assert (found.kind, found.event) == ("changed", 4)
    assert found.text == "event 4 does not follow: it was changed, or event 3 with its digest"


def test_a_table_without_any_truth_is_not_listed_in_full() -> None:
    """So many rows are named, the rest counted."""
    events = [replace(event, digest=f"{event.seq:064x}") for event in chain(NAMED + 10)]
    found = look(events)
    assert len(found) == NAMED + 1
    assert found[-1].text == "10 events more do not follow"


def test_a_row_before_the_first() -> None:
    """Added, for the first is number 1."""
    events = chain(3)
    assert ("added", 0) in kinds(look([replace(events[0], seq=0), *events]))


def test_a_clock_set_back_is_seen() -> None:
    """Where, and by how much."""
    checker = ChainCheck(digest)
    for event in chain(5):
        checker.look(replace(event, at=1000.0 - {2: 40, 4: 3}.get(event.seq, 0)))
    assert (checker.set_back, checker.widest_step) == (2, (2, 40.0))


# -- heads ---------------------------------------------------------------------


def lines(*seen: Event, node: str = "n1") -> list[str]:
    """Lines of syslog with these events' heads."""
    return [
        f"Nov 22 10:00:00 {node} slurm-mig[77]: prolog job=7 restart=0 user=alice node={node} "
        f"request=3g.40gb:1 gpu=0 ms=12 head={event.seq}:{event.digest[:16]} carved"
        for event in seen
    ]


def compare(events: Sequence[Event], seen: Sequence[str]) -> list[tuple[str, str]]:
    digests = {event.seq: event.digest for event in events}
    last = max(digests, default=0)
    return [(item.kind, item.text) for item in check_heads(Heads(seen).of("n1"), digests.get, last)]


def test_heads_are_read_from_syslog() -> None:
    """One for each line of ours; others are passed over."""
    events = chain(4)
    text = ["noise head=3:00", *lines(events[1]), *lines(events[3], node="n2"), ""]
    seen = Heads(text)
    assert list(seen.of("n1")) == [Head("n1", 2, events[1].digest[:16])]
    assert list(seen.of("n2")) == [Head("n2", 4, events[3].digest[:16])]
    assert list(seen.of("n3")) == []


WORDS = "prolog job=7 restart=0 user=alice node=n1 gpu=0 ms=12 head=4:00000000deadbeef carved"


@pytest.mark.parametrize(
    "line",
    [
        f"Nov 22 10:00:00 n1 slurm-mig[77]: {WORDS}\n",
        f"2026-11-22T10:00:00.5+01:00 n1 slurm-mig[77]: {WORDS}",
        f"<30>1 2026-11-22T10:00:00Z n1 slurm-mig 77 - - {WORDS}",
    ],
)
def test_plain_text_is_read_and_proves_nothing(line: str) -> None:
    """Which user wrote a line stands in none of the forms of syslog's files."""
    seen = Heads([line])
    assert list(seen.of("n1")) == [Head("n1", 4, "00000000deadbeef")]
    assert not seen.proven


@pytest.mark.parametrize(
    "line",
    [
        WORDS,
        f"Nov 22 10:00:00 n1 alice[8]: {WORDS}",
        f"Nov 22 10:00:00 n1 alice: slurm-mig[77]: {WORDS}",
        f"Nov 22 10:00:00 n1 my-slurm-mig[77]: {WORDS}",
        f"Nov 22 10:00:00 n1 slurm-mig[77]: refused: {WORDS}",
        f"Nov 22 10:00:00 n1 slurmd[77]: slurm-mig: {WORDS}",
    ],
)
def test_lines_of_other_programs(line: str) -> None:
    """What they say is no head, whatever it looks like."""
    assert list(Heads([line]).of("n1")) == []


@pytest.mark.parametrize(
    ("facts", "counts"),
    [
        ({}, True),
        ({"_UID": "64001"}, False),
        ({"_UID": None}, False),
        ({"SYSLOG_IDENTIFIER": "logger"}, False),
        ({"SYSLOG_IDENTIFIER": ["slurm-mig", "x"]}, False),
        ({"MESSAGE": [112, 114]}, False),
        ({"MESSAGE": f"x {WORDS}"}, False),
    ],
)
def test_the_journal_says_who_wrote_a_line(facts: dict[str, object], counts: bool) -> None:
    """`logger -t slurm-mig` of a user's has their uid there, and no user can set that."""
    entry = {"_UID": "0", "_PID": "77", "SYSLOG_IDENTIFIER": "slurm-mig", "MESSAGE": WORDS} | facts
    seen = Heads([json.dumps(entry)])
    assert list(seen.of("n1")) == ([Head("n1", 4, "00000000deadbeef")] if counts else [])
    assert seen.proven


@settings(deadline=None)
@given(st.integers(1, 9), st.sets(st.integers(1, 9), min_size=1))
def test_a_table_hashed_anew_is_found(place: int, logged: set[int]) -> None:
    """If and only if a head from the changed row on was logged; the span it names is right."""
    truth = chain(9)
    seen = lines(*(truth[seq - 1] for seq in logged))
    assert compare(truth, seen) == []
    forged: list[Event] = []
    for event in truth:
        told = replace(event, detail="{}") if event.seq == place else event
        before = forged[-1].digest if forged else ""
        forged.append(replace(told, digest=digest(before, told.content)))
    assert look(forged) == []
    found = compare(forged, seen)
    after = [seq for seq in logged if seq >= place]
    assert bool(found) == bool(after)
    if after:
        first = max([seq for seq in logged if seq < place], default=0) + 1
        assert found[0][0] == "rewritten"
        span = f"events {first} to {min(after)} " if min(after) > first else f"event {first} "
        assert span in found[0][1]


def test_the_last_rows_cut_off() -> None:
    """What the chain cannot show, syslog does."""
    truth = chain(5)
    assert compare(truth[:3], lines(*truth)) == [
        ("removed", "syslog has event 4, the ledger ends with event 3")
    ]


# -- the present truth -----------------------------------------------------------


def life(final: Allocation) -> list[Event]:
    """The events of a released record, as the ledger writes them."""
    steps = []
    for phase in (PLANNED, ACTIVE, RELEASING, RELEASED):
        ended = final.ended if phase == RELEASED else None
        full = replace(final, phase=phase, ended=ended).to_dict()
        facts = (
            full
            if phase == PLANNED
            else {name: full[name] for name in ("phase", "reason", "instances", "ended")}
        )
        steps.append((phase, json.dumps(facts)))
    return [
        Event(seq, 2000.0, phase, final.number, 7, detail, "")
        for seq, (phase, detail) in enumerate(steps, 1)
    ]


def test_a_record_that_is_what_its_events_say() -> None:
    """Nothing is found."""
    final = record()
    assert check_allocation(1, final, life(final)) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"phase": ACTIVE}, 'phase is "active", by event 4 it is "released"'),
        ({"ended": 9000.0}, "ended is 9000.0, by event 4 it is 2000.0"),
        ({"created": 5.0}, "created is 5.0, by event 4 it is 1000.0"),
        ({"gpu_minor": 3}, "gpu_minor is 3"),
        ({"instances": ()}, "instances is []"),
        ({"owner": replace(record().owner, user="eve")}, 'owner.user is "eve"'),
        ({"owner": replace(record().owner, account="x")}, 'owner.account is "x"'),
    ],
)
def test_a_row_edited_without_an_event(change: dict[str, Any], says: str) -> None:
    """Allocation, column, and both values."""
    final = record()
    (found,) = check_allocation(1, replace(final, **change), life(final))
    assert found.kind == "disagrees"
    assert f"allocation 1: {says}" in found.text


def test_an_end_that_no_event_says() -> None:
    """Events of schema version 1: the last was written just after the end."""
    final = record()
    events = [
        replace(
            event,
            detail=json.dumps({k: v for k, v in json.loads(event.detail).items() if k != "ended"}),
        )
        for event in life(final)[1:]
    ]
    events = [life(final)[0], *events]
    assert check_allocation(1, final, events) == []
    assert check_allocation(1, replace(final, ended=1999.0), events) == []
    for ended in (1000.0, 9000.0, None):
        (found,) = check_allocation(1, replace(final, ended=ended), events)
        assert "ended is" in found.text


def test_rows_without_events_and_events_without_rows() -> None:
    """Added and removed, by number."""
    final = record()
    (found,) = check_allocation(1, final, [])
    assert (found.kind, found.allocation) == ("added", 1)
    (found,) = check_allocation(1, None, life(final))
    assert (found.kind, found.event) == ("removed", 1)


@pytest.mark.parametrize("detail", ["no JSON", "[]", "7", "[" * 100_000, '{"owner": 7}'])
def test_an_event_that_cannot_be_read(detail: str) -> None:
    """It is named: where the chain was hashed anew nothing else would say so."""
    final = record()
    events = life(final)
    (found,) = check_allocation(1, final, [replace(events[0], detail=detail), *events[1:]])
    assert (found.kind, found.event) == ("changed", 1)
    assert found.text == "event 1 was changed: its detail is not what slurm-mig writes"
