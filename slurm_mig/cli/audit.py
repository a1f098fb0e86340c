"""`slurm-mig audit`: who held which MIG UUID, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._common import json_option, open_node, parse_time, print_json, table, when
from slurm_mig.errors import Unresolved

if TYPE_CHECKING:
    from slurm_mig.allocation import Allocation


@click.command()
@click.option("--since", help="Only what existed after this time (2026-03-01, 2026-03-01T12:00).")
@click.option("--until", help="Only what existed before this time.")
@click.option("--job", "job_id", type=int, help="Only this Slurm job id.")
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
    with open_node() as node:
        if check:
            return _check(node.ledger.broken_event())
        records = node.ledger.history(
            since=None if since is None else parse_time(since),
            until=None if until is None else parse_time(until),
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
                row["phase"] + (f": {row['reason']}" if row["phase"] != "released" else ""),
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


def _check(broken: int | None) -> None:
    if broken is not None:
        raise Unresolved(
            f"event {broken} of the ledger does not follow from the one before it: "
            "a row was changed, removed or reordered"
        )
    click.echo("every event follows from the one before it")
