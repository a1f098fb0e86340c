"""`slurm-mig audit`: who held which MIG UUID, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_mig.allocation import LOST, QUARANTINED, REFUSED
from slurm_mig.cli._common import (
    json_option,
    open_node,
    parse_time,
    print_json,
    root_to_read,
    table,
    when,
)
from slurm_mig.errors import Unresolved, UsageFault

if TYPE_CHECKING:
    from slurm_mig.allocation import Allocation

#: Phases whose reason says what went wrong; else it is the plan's own explanation.
EXPLAINED = (REFUSED, QUARANTINED, LOST)


@click.command()
@click.option("--since", help="Only what existed after this time (2026-03-01, 2026-03-01T12:00).")
@click.option("--until", help="Only what existed before this time.")
@click.option("--job", "job_id", type=click.IntRange(1, 2**32 - 1), help="Only this Slurm job id.")
@click.option("--user", help="Only this user's.")
@click.option("--uuid", help="Only this MIG UUID.")
@click.option("--check", is_flag=True, help="Verify the hash chain of the event table instead.")
@json_option
def command(
    since: str | None,
    until: str | None,
    job_id: int | None,
    user: str | None,
    uuid: str | None,
    check: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Show who held which slice from when to when, refusals included."""
    first, last = _span(since, until)
    _check_names({"--user": user, "--uuid": uuid})
    with open_node() as node:
        root_to_read(node)
        if check:
            return _check(node.ledger.broken_event(), as_json=as_json)
        records = node.ledger.history(
            since=first,
            until=last,
            job_id=job_id,
            user=user,
            uuid=uuid,
        )
    rows = [row for record in records for row in _rows(record)]
    if as_json:
        print_json(rows)
        return None
    table(
        ("JOB", "USER", "GPU", "SLICE", "MIG UUID", "FROM", "TO", "OUTCOME"),
        [
            (
                "-" if row["job_id"] is None else f"{row['job_id']}.{row['restart']}",
                row["user"],
                row["gpu_minor"],
                row["slice"] or row["request"],
                row["uuid"] or "-",
                when(row["from"]),
                when(row["to"]),
                row["phase"] + (f": {row['reason']}" if row["phase"] in EXPLAINED else ""),
            )
            for row in rows
        ],
    )
    return None


def _rows(record: Allocation) -> list[dict[str, Any]]:
    """One row per instance; one for a refusal, which has none."""
    common = {
        "allocation": record.number,
        "job_id": record.owner.job_id,
        "restart": record.owner.restart,
        "uid": record.owner.uid,
        "user": record.owner.user,
        "account": record.owner.account,
        "node": record.node,
        "gpu_uuid": record.gpu_uuid,
        "gpu_minor": record.gpu_minor,
        "request": record.request,
        "from": record.created,
        "to": record.ended,
        "phase": record.phase,
        "reason": record.reason,
    }
    return [
        common
        | {
            "slice": str(item) if item else "",
            "profile": item.profile if item else None,
            "start": item.start if item else None,
            "size": item.size if item else None,
            "gi_id": item.gi_id if item else None,
            "uuid": item.uuid if item else None,
        }
        for item in record.instances or (None,)
    ]


def _span(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    first = None if since is None else parse_time(since)
    last = None if until is None else parse_time(until)
    if first is not None and last is not None and first > last:
        raise UsageFault(f"--since {since} is after --until {until}: nothing can be between them")
    return first, last


def _check_names(options: dict[str, str | None]) -> None:
    for option, name in options.items():
        if name == "":
            raise UsageFault(f"{option} is empty; name one, or leave it out for all")
        # A byte that is no UTF-8 stands as half a surrogate pair, which SQLite does not take.
        if name and any("\ud800" <= char <= "\udfff" for char in name):
            raise UsageFault(f"{option} {name!r} is not UTF-8")


def _check(broken: int | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"broken_event": broken})
    if broken is not None:
        raise Unresolved(
            f"event {broken} of the ledger does not follow from the one before it: "
            "a row was changed, removed or reordered"
        )
    if not as_json:
        click.echo("every event follows from the one before it")
