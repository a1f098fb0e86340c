"""An allocation: one owner's instances on one GPU, and the phases it goes through.

    planned -> active -> releasing -> released
       |          |          +------> quarantined -> releasing
       |          +-> lost (reboot, or instances taken away from outside)
       +-> releasing (rollback)
    refused: a request that was never carved; a record of its own, final

`planned` is written before the first NVML call, because a half-made instance
carries no label: only the record can say whose it is (facts/design.md#state).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import LedgerFault
from slurm_mig.mig.geometry import Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.values import asdict, dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from slurm_mig.mig.plan import Slot

PLANNED: Final = "planned"
ACTIVE: Final = "active"
RELEASING: Final = "releasing"
RELEASED: Final = "released"
REFUSED: Final = "refused"
LOST: Final = "lost"
QUARANTINED: Final = "quarantined"

#: Requests of records without instances: a job that has a GPU as it is, and one for which
#: MIG mode was switched off and comes back afterwards.
WHOLE: Final = "whole GPU"
WHOLE_MIG_OFF: Final = "whole GPU, MIG mode off"

#: Phases in which instances may exist on the hardware.
OPEN: Final = (PLANNED, ACTIVE, RELEASING, QUARANTINED)

TRANSITIONS: Final[dict[str, tuple[str, ...]]] = {
    PLANNED: (ACTIVE, RELEASING, LOST),
    ACTIVE: (RELEASING, LOST),
    RELEASING: (RELEASING, RELEASED, QUARANTINED, LOST),
    QUARANTINED: (RELEASING, LOST),
    RELEASED: (),
    REFUSED: (),
    LOST: (),
}


#: Why what a job had is taken down after its Epilog, whoever does it.
JOB_ENDED: Final = "the job ended"

#: The same from the first call that destroys.
GOING: Final = f"{JOB_ENDED}; it is being taken down"

#: GPU instance id of one that is gone while others of its record are stuck. Its ids and UUID
#: can be those of the next instance in its place: nothing must take that one for it.
GONE: Final = -1


@dataclass(frozen=True, slots=True)
class Owner:
    """Who an allocation is for: one run of a Slurm job, or an administrator.

    A bare job id is not enough: ids are reused after a lost controller state
    (facts/slurm.md#failures), so `restart` (SLURM_JOB_RESTART_COUNT) and, where Slurm
    has one, `sluid` tell runs apart. `job_id` is None for an administrator.
    """

    job_id: int | None
    restart: int = 0
    sluid: str = ""
    uid: int = 0
    gid: int = 0
    user: str = ""
    account: str = ""
    het_leader: int | None = None

    @property
    def is_job(self) -> bool:
        """Whether it is a job's, and no administrator's."""
        return self.job_id is not None

    def __str__(self) -> str:
        return f"job {self.job_id}" if self.is_job else "administrator"

    def same_run(self, other: Owner) -> bool:
        """Whether both name the same run of the same job."""
        return (self.job_id, self.restart, self.sluid, self.uid) == (
            other.job_id,
            other.restart,
            other.sluid,
            other.uid,
        )


@dataclass(frozen=True, slots=True)
class Instance:
    """One compute instance in its GPU instance, as planned and as made.

    Several of one allocation may share a GPU instance; each then has its own
    `ci_id` and MIG UUID. `start` and `size` are the GPU instance's, in units.

    The ids and the MIG UUID are read back from the driver after creation, never
    computed (facts/mig.md#ids); None until then. `gi_id` is GONE once it is gone and
    others of its record are stuck.
    """

    profile: str
    profile_id: int
    start: int
    size: int
    gi_id: int | None = None
    ci_id: int | None = None
    uuid: str | None = None

    @property
    def placement(self) -> Placement:
        """Where it lies, in placement units."""
        return Placement(self.start, self.size)

    @property
    def compute_slices(self) -> int | None:
        """Slices of a compute instance smaller than its GPU instance, else None."""
        return Profile.parse(self.profile).compute_slices

    @classmethod
    def planned(cls, slot: Slot) -> Iterator[Instance]:
        """What a plan's slot will become: one for each compute instance."""
        for slices in slot.compute or (None,):
            name = replace(slot.row.name, compute_slices=slices)
            yield cls(str(name), slot.row.profile_id, slot.placement.start, slot.placement.size)

    def __str__(self) -> str:
        return f"{self.profile}@{self.start}"


@dataclass(frozen=True, slots=True)
class Allocation:
    """The record of an owner's instances on one GPU of this node.

    Times are seconds since the epoch; `ended` is None while the phase is open.
    `number` is the ledger's row, 0 until it has one.
    """

    owner: Owner
    node: str
    gpu_uuid: str
    gpu_minor: int
    gpu_name: str
    boot_id: str
    request: str
    phase: str = PLANNED
    instances: tuple[Instance, ...] = ()
    reason: str = ""
    created: float = 0.0
    ended: float | None = None
    number: int = 0

    @property
    def open(self) -> bool:
        """Whether instances of it may exist."""
        return self.phase in OPEN

    @property
    def whole(self) -> bool:
        """Whether a job has the GPU itself, without instances of ours."""
        return self.request in (WHOLE, WHOLE_MIG_OFF)

    @property
    def present(self) -> tuple[Instance, ...]:
        """Instances that may exist: without those known to be gone."""
        return tuple(item for item in self.instances if item.gi_id != GONE)

    def without(self, gone: Collection[Instance]) -> Allocation:
        """The same allocation, these instances marked as gone; their UUIDs stay on record."""
        marked = (replace(item, gi_id=GONE) if item in gone else item for item in self.instances)
        return replace(self, instances=tuple(marked))

    @property
    def uuids(self) -> tuple[str, ...]:
        """MIG UUIDs in the order of the request."""
        return tuple(instance.uuid for instance in self.instances if instance.uuid)

    @property
    def made(self) -> str:
        """What was made for it, in words: `1g.10gb@6, 3g.40gb@0`, or the whole GPU."""
        return ", ".join(str(item) for item in self.instances) or self.request

    @property
    def put_off(self) -> bool:
        """Whether its job's Epilog left it to be taken down by whoever comes next."""
        return self.phase == RELEASING and self.reason.startswith(JOB_ENDED)

    @property
    def untouched(self) -> bool:
        """Whether all that it names was made, and nothing of it destroyed by us."""
        return self.phase == ACTIVE or (self.put_off and self.reason != GOING)

    def moved(self, phase: str, reason: str = "", ended: float | None = None) -> Allocation:
        """The same allocation in its next phase; LedgerFault for an illegal step."""
        if phase not in TRANSITIONS[self.phase]:
            raise LedgerFault(f"allocation {self.number}: no step from {self.phase} to {phase}")
        return replace(self, phase=phase, reason=reason or self.reason, ended=ended)

    def with_instance(self, place: int, instance: Instance) -> Allocation:
        """The same allocation with instance number `place` replaced."""
        changed = (*self.instances[:place], instance, *self.instances[place + 1 :])
        return replace(self, instances=changed)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for --json and for events."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Allocation:
        """The inverse of `to_dict`; what a later release has added is passed over."""
        found = _known(cls, data)
        found["owner"] = Owner(**_known(Owner, found["owner"]))
        found["instances"] = tuple(Instance(**_known(Instance, row)) for row in found["instances"])
        return cls(**found)


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    names: tuple[str, ...] = kind.__match_args__  # type: ignore[attr-defined]
    return {name: value for name, value in data.items() if name in names}
