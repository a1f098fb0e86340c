"""Writes a ledger with a record of every kind, by the code of the release that it is run with.

    python -m tests.kit.ledger_fixture tests/fixtures/ledger-<release>.db

Run once for each release, and the file kept: later releases must read it (test_migrations.py).
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Instance, Owner
from slurm_mig.state.ledger import Ledger

START = 1_790_000_000.0
GPU = "GPU-00000000-0000-4000-8000-00000000000"


def record(
    owner: Owner, request: str, *names: tuple[str, int, int, int], gpu: int = 0
) -> Allocation:
    """A planned record; each name with profile id, start and size."""
    return Allocation(
        owner=owner,
        node="gpu01",
        gpu_uuid=f"{GPU}{gpu}",
        gpu_minor=gpu,
        gpu_name="NVIDIA H100 80GB HBM3",
        boot_id="boot-1",
        request=request,
        instances=tuple(Instance(*name) for name in names),
        reason="the planner's words",
    )


def write(path: Path) -> None:
    """One record of each kind, with a clock that goes a second a look."""
    ticks = itertools.count()
    ledger = Ledger(path, lambda: START + next(ticks))

    def active(item: Allocation) -> Allocation:
        planned = ledger.add(item, phases.PLANNED)
        made = tuple(
            replace(one, gi_id=place + 1, ci_id=0, uuid=f"MIG-{planned.number}-{place}")
            for place, one in enumerate(planned.instances)
        )
        return ledger.move(replace(planned, instances=made), phases.ACTIVE)

    def releasing(item: Allocation) -> Allocation:
        return ledger.move(item, phases.RELEASING)

    alice = Owner(11, 0, "s11", 64001, 64001, "alice", "physics")
    bob = Owner(12, 2, "", 64002, 64002, "bob", "", 10)
    three, one = ("3g.40gb", 9, 4, 4), ("1g.10gb", 19, 0, 1)
    ledger.finish(releasing(active(record(alice, "3g.40gb:1", three))), phases.RELEASED, "ended")
    active(record(bob, "3g.40gb:1,1g.10gb:2", three, one, ("1g.10gb", 19, 1, 1)))
    refused = replace(record(alice, "7g.80gb:1"), phase=phases.REFUSED, reason="no room")
    ledger.add(refused, phases.REFUSED)
    stuck = releasing(active(record(replace(alice, job_id=13), "1g.10gb:1", one, gpu=1)))
    ledger.move(stuck, phases.QUARANTINED, "1g.10gb@0 in use")
    gone = active(record(replace(bob, job_id=14), "3g.40gb:1", three, gpu=1))
    ledger.finish(gone, phases.LOST, "the node was rebooted")
    active(record(replace(bob, job_id=15), phases.WHOLE_MIG_OFF, gpu=2))
    active(record(Owner(None, user="root"), "1c.3g.40gb:2", three, three, gpu=3))
    ledger.add(record(replace(alice, job_id=16), "1g.10gb:1", one, gpu=4), phases.PLANNED)
    ledger.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]).absolute())
