"""How long `slurm-mig audit` takes for a question to a ledger with a million events.

Builds the ledger (a year of eight GPUs; a real chain, so that --check is content),
then asks questions whose answer is a few rows, in turn with a bare interpreter.

    python bench/audit_million.py [--events 1000000] [--rounds 5] [--keep FILE]
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from _runs import in_turn, once, report

from slurm_mig.mig.allocation import (
    ACTIVE,
    PLANNED,
    REFUSED,
    RELEASED,
    RELEASING,
    Allocation,
    Owner,
)
from slurm_mig.mig.allocation import Instance as Slice
from slurm_mig.state.event import digest
from slurm_mig.state.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    #: Time, allocation, place among its events, job id, kind, detail.
    Step = tuple[float, int, int, int | None, str, str]

YEAR = 365 * 86400
BEGIN = 1.75e9
USERS = 200
#: Layouts of one H100: (profile, driver's id, start, size).
LAYOUTS = (
    (("7g.80gb", 0, 0, 8),),
    (("3g.40gb", 9, 0, 4), ("3g.40gb", 9, 4, 4)),
    (("4g.40gb", 5, 0, 4), ("2g.20gb", 14, 4, 2), ("1g.10gb", 19, 6, 1)),
    tuple(("1g.10gb", 19, start, 1) for start in range(7)),
)
#: Steps of a released allocation: what is changed, and its event.
STEPS = (PLANNED, ACTIVE, RELEASING, RELEASED)


def allocations(count: int, seed: int = 1) -> Iterator[Allocation]:
    """Closed allocations in the order of their creation; every hundredth a refusal."""
    chance = random.Random(seed)
    seconds = YEAR / count
    for number in range(1, count + 1):
        gpu = chance.randrange(8)
        layout = LAYOUTS[int(number / count * 52) % len(LAYOUTS)]
        profile, ident, start, size = layout[chance.randrange(len(layout))]
        uuid = f"MIG-{number:08x}-0000-5000-8000-{gpu:012x}"
        user = chance.randrange(USERS)
        made = Slice(profile, ident, start, size, chance.randrange(7, 14), 0, uuid)
        created = round(BEGIN + number * seconds, 6)
        refused = number % 100 == 0
        yield Allocation(
            owner=Owner(
                1000 + number,
                uid=20000 + user,
                gid=100,
                user=f"user{user:03d}",
                account=f"project{user % 20:02d}",
            ),
            node="gpu01",
            gpu_uuid=f"GPU-{gpu:08x}-0000-4000-8000-000000000000",
            gpu_minor=gpu,
            gpu_name="NVIDIA H100 80GB HBM3",
            boot_id="6a1e3a4e-0000-4000-8000-000000000000",
            request=f"{profile}:1",
            phase=REFUSED if refused else RELEASED,
            instances=() if refused else (made,),
            reason=f"no placement for {profile}:1" if refused else "the job ended",
            created=created,
            ended=created if refused else round(created + 1 + chance.expovariate(1 / 600), 6),
            number=number,
        )


def events(record: Allocation) -> Iterator[tuple[float, str, dict[str, object]]]:
    """Time, kind and facts of every event that leads to a record."""
    full = record.to_dict()
    if record.phase == REFUSED:
        yield record.created, REFUSED, full
        return
    ended = record.ended or record.created
    times = (record.created, record.created + 0.2, ended - 0.1, ended)
    for at, phase in zip(times, STEPS, strict=True):
        # The phase and the end as they were then; the ids came with the second step.
        then = {"phase": phase, "ended": record.ended if phase == RELEASED else None}
        if phase == PLANNED:
            bare = replace(record.instances[0], gi_id=None, ci_id=None, uuid=None)
            yield at, phase, replace(record, instances=(bare,)).to_dict() | then
        else:
            yield at, phase, {name: full[name] for name in ("reason", "instances")} | then


def build(path: Path, count: int) -> None:
    """A ledger with at least that many events."""
    Ledger(path).close()
    plain = [name for name in Allocation.__dataclass_fields__ if name not in ("owner", "instances")]
    owner = list(Owner.__dataclass_fields__)
    parts = list(Slice.__dataclass_fields__)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA synchronous=OFF")
        for record in allocations(count // 4 + count // 100):
            row = [getattr(record.owner, name) for name in owner]
            row += [getattr(record, name) for name in plain]
            marks = ", ".join("?" * len(row))
            db.execute(
                f"INSERT INTO allocation ({', '.join(owner + plain)}) VALUES ({marks})",
                row,
            )
            for place, item in enumerate(record.instances):
                cells = [record.number, place, *(getattr(item, name) for name in parts)]
                db.execute(
                    f"INSERT INTO instance (allocation, place, {', '.join(parts)}) "
                    f"VALUES ({', '.join('?' * len(cells))})",
                    cells,
                )
        _write_events(db, count)


def _write_events(db: sqlite3.Connection, count: int) -> None:
    """In the order of time, as hooks write them."""
    before = ""
    for seq, (at, number, _, job, kind, detail) in enumerate(_in_time(count), 1):
        content = (seq, round(at, 6), kind, number, job, detail)
        before = digest(before, content)
        db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", (*content, before))


def _in_time(count: int) -> Iterator[Step]:
    ahead: list[Step] = []
    for record in allocations(count // 4 + count // 100):
        while ahead and ahead[0][0] <= record.created:
            yield heapq.heappop(ahead)
        for place, (at, kind, facts) in enumerate(events(record)):
            detail = json.dumps(facts, sort_keys=True, separators=(",", ":"))
            step = (at, record.number, place, record.owner.job_id, kind, detail)
            heapq.heappush(ahead, step)
    while ahead:
        yield heapq.heappop(ahead)


def questions(count: int) -> Mapping[str, list[str]]:
    """Options whose answer is a few rows: from the middle of the year."""
    number = count // 4 // 2 + 1
    uuid = next(
        record.instances[0].uuid
        for record in allocations(count // 4 + count // 100)
        if record.number >= number and record.instances
    )
    middle = BEGIN + YEAR / 2
    return {
        "by job": ["--job", str(1000 + number)],
        "by MIG UUID": ["--uuid", str(uuid)],
        "by MIG UUID and instant": ["--uuid", str(uuid), "--at", str(middle)],
        "at an instant": ["--at", str(middle)],
        "ten minutes in the middle": ["--since", str(middle), "--until", str(middle + 600)],
        "the last ten minutes": ["--since", str(BEGIN + YEAR - 600)],
        "one user, one day": ["--user", "user007", "--at", str(middle)],
        "one GPU, one hour": ["--gpu", "3", "--since", str(middle), "--until", str(middle + 3600)],
        "a user's year, 1/200 of all": ["--user", "user007"],
        "totals by user, one day": [
            *("--totals", "user", "--since", str(middle), "--until", str(middle + 86400)),
        ],
    }


def main() -> None:
    """Build, ask, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--keep", type=Path, help="build the ledger there, or take the one there")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = given.keep or Path(scratch, "state/ledger.db")
        if not path.exists():
            started = time.perf_counter()
            build(path, given.events)
            print(f"built in {time.perf_counter() - started:.0f} s")
        with closing(sqlite3.connect(path)) as db:
            (rows,) = db.execute("SELECT count(*) FROM event").fetchone()
        print(f"{path.name}: {rows} events, {path.stat().st_size >> 20} MiB")
        audit = [sys.executable, "-m", "slurm_mig", "audit", "--ledger", str(path)]
        environ = {"PATH": os.defpath}
        contenders = {"python3 -I -c pass": [sys.executable, "-I", "-c", "pass"]}
        contenders |= {name: [*audit, *words] for name, words in questions(given.events).items()}
        costs = in_turn(
            {
                name: lambda _, words=words: once(words, environ)  # type: ignore[misc]
                for name, words in contenders.items()
            },
            given.rounds,
        )
        report(costs, "python3 -I -c pass")
        print(f"\n{'all of it, once':34} {'wall s':>8} {'peak MiB':>8}")
        for words in (["--check"], ["--totals", "user"], ["--csv"], ["--json"], []):
            cost = once([*audit, *words], environ)
            print(f"{' '.join(words) or 'rows':34} {cost.wall:8.1f} {cost.peak:8.0f}", flush=True)


if __name__ == "__main__":
    main()
