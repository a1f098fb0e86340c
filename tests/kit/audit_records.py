"""Records and rows as these tests need them, in one line each."""

from __future__ import annotations

from slurm_mig.audit.holdings import Holding, Size, holdings
from slurm_mig.mig.allocation import ACTIVE, REFUSED, RELEASED, WHOLE, Allocation, Instance, Owner
from slurm_mig.slurm.protocol import AccountingRow

H100_SIZE = Size(7, 8)

#: Profile -> driver's id and units on an 80 GB H100.
IDS = {"1g.10gb": (19, 1), "2g.20gb": (14, 2), "3g.40gb": (9, 4), "7g.80gb": (0, 8)}


def record(
    job: int | None = 7,
    created: float = 1000.0,
    ended: float | None = 2000.0,
    *slices: tuple[str, int],
    **more: object,
) -> Allocation:
    """A record of an H100; by default one 3g.40gb at slot 0, released if it has an end."""
    user, account, restart = more.pop("user", "alice"), more.pop("account", "physics"), 0
    number = int(str(more.pop("number", 1)))
    made = tuple(
        Instance(
            profile,
            *(IDS[profile][0], start, IDS[profile][1]),
            gi_id=place,
            ci_id=0,
            uuid=f"MIG-{number}-{place}",
        )
        for place, (profile, start) in enumerate(slices or (("3g.40gb", 0),))
    )
    fields: dict[str, object] = {
        "node": "n1",
        "gpu_uuid": "GPU-a",
        "gpu_minor": 0,
        "gpu_name": "NVIDIA H100 80GB HBM3",
        "boot_id": "boot",
        "request": ",".join(f"{profile}:1" for profile, _ in slices) or "3g.40gb:1",
        "phase": ACTIVE if ended is None else RELEASED,
        "instances": made,
        "reason": "the job ended",
    }
    owner = Owner(job, restart, uid=64001, user=str(user), account=str(account))
    return Allocation(owner=owner, created=created, ended=ended, number=number, **fields | more)  # type: ignore[arg-type]


def refusal(job: int = 7, at: float = 1000.0, **more: object) -> Allocation:
    """A refused request for a 3g.40gb."""
    more = {"phase": REFUSED, "instances": (), "reason": "no room"} | more
    return record(job, at, at, **more)


def whole(job: int = 7, created: float = 1000.0, ended: float | None = 2000.0) -> Allocation:
    """A GPU as it is."""
    return record(job, created, ended, instances=(), request=WHOLE)


def held(*records: Allocation, size: Size = H100_SIZE) -> list[Holding]:
    """The holdings of records."""
    return [item for one in records for item in holdings(one, size)]


def row(
    job: int = 7,
    start: float | None = 1000.0,
    end: float | None = 2000.0,
    *,
    nodes: str = "n1",
    user: str = "alice",
    state: str = "COMPLETED",
    gres: dict[str, int] | None = None,
) -> AccountingRow:
    """A run in the accounting; charged for a 3g.40gb unless told otherwise."""
    charged = {"mig:3g.40gb": 1, "mig": 1, "shard": 14} if gres is None else gres
    return AccountingRow(job, user, nodes, state, start, end, charged)
