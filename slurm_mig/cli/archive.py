"""`slurm-mig archive`: move what ended long ago out of the ledger, where `audit` still finds it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from slurm_mig.audit import archiving
from slurm_mig.cli._audit_print import note, progress
from slurm_mig.cli._node import administrator, open_node
from slurm_mig.cli._options import dry_run_option, json_option
from slurm_mig.cli._print import print_json, when
from slurm_mig.cli._times import parse_time
from slurm_mig.cli.metrics import KEPT, count
from slurm_mig.errors import LedgerFault, UsageFault
from slurm_mig.node.node import require_root

if TYPE_CHECKING:
    from slurm_mig.node.node import Node

#: The youngest that anything is when it is moved, in days: a job that lives may have ended records.
YOUNGEST: Final = 1

DAY: Final = 86400.0


@click.command()
@click.option("--before", help="Move what is older than this time (2026-03-01).")
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(YOUNGEST, 36500),
    metavar="DAYS",
    help="Move what is older than so many days.",
)
@dry_run_option
@json_option
def command(
    before: str | None,
    days: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move events and records from before a time out of the ledger, into a file of their own.

    What is open stays. Hooks go on meanwhile. `slurm-mig audit` reads the files, too.
    """
    require_root()
    limit = _limit(before, days)
    with open_node(look=dry_run) as node:
        path = node.config.ledger
        if not path.exists():
            raise LedgerFault(f"no ledger at {path}: no hook has run here")
        assert node.ledger  # noqa: S101  # opened, and so migrated, by being asked for
        events, records = archiving.foresee(path, limit)
        if dry_run:
            words = f"{events} events and {records} records from before {when(limit)}"
            _tell(as_json, f"would be moved: {words}", {"events": events, "records": records})
            return
        done = _move(node, limit, events, "json" if as_json else "table")
    if done.note:
        note(done.note)
    if done.file is None:
        _tell(as_json, f"nothing is older than {when(limit)}", archiving.summary(done))
        return
    text = f"{done.events} events and {done.records} records moved to {done.file}"
    if done.saved:
        text += f"; the ledger's file is {done.saved / 2**20:.1f} MiB smaller"
    _tell(as_json, text, archiving.summary(done))


def _limit(before: str | None, days: int | None) -> float:
    if (before is None) == (days is None):
        raise UsageFault("give one of --before TIME and --older-than DAYS")
    now = time.time()
    limit = now - (days or 0) * DAY if before is None else parse_time(before)
    if limit > now - YOUNGEST * DAY + 1:
        raise UsageFault(f"--before {before}: the last {YOUNGEST * 24} hours stay in the ledger")
    return limit


def _move(node: Node, limit: float, events: int, form: str) -> archiving.Archived:
    with node.locks.hold(["archive"], "archive events of the ledger"):
        if (node.config.state / KEPT).exists():
            # What leaves before it is counted would be missing in every sum.
            count(node)
        with progress(events, form) as passed:
            config, who = node.config, administrator().user
            return archiving.move(node.ledger, config.ledger, config.archives, limit, who, passed)


def _tell(as_json: bool, text: str, data: dict[str, object]) -> None:
    if as_json:
        print_json(data)
    else:
        click.echo(text)
