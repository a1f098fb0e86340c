"""What is on a GPU as one number, and what the planner would make of it, remembered.

The planner looks at instances; foresight and simulation ask it the same question over and
over. A *state* is the set of (profile, place) pairs on a GPU, one bit each; 0 is the
empty GPU. `Space.after` asks the product's planner once for each state and request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.errors import ProfileNotOffered
from slurm_mig.mig.plan import Slot, choose, fits, wanted_instances

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurm_mig.mig.geometry import Geometry, GpuProfile
    from slurm_mig.mig.plan import Policy
    from slurm_mig.mig.request import Request

#: The state of a GPU on which every start fails: it does not answer, or is out of management.
CLOSED: Final = -1

#: What `Space.after` says where the planner refuses.
REFUSED: Final = -1


class Need:
    """A request on the GPUs of one space: the rows it becomes, and what was answered before."""

    def __init__(self, rows: Sequence[GpuProfile], limited: tuple[int, ...]) -> None:
        self.rows = rows
        self.limited = limited
        self.after: dict[int, int] = {CLOSED: REFUSED}


class Space:
    """All states of one GPU model under one slot policy."""

    def __init__(self, geometry: Geometry, policy: Policy = fits) -> None:
        self.geometry = geometry
        self.policy = policy
        pairs = [(row, place) for row in geometry.profiles for place in row.placements]
        self._slots = [Slot(row, place) for row, place in pairs]
        self._bits = {
            (number, place.start): 1 << bit
            for bit, (number, place) in enumerate(
                (number, place)
                for number, row in enumerate(geometry.profiles)
                for place in row.placements
            )
        }
        self._numbers = {id(row): number for number, row in enumerate(geometry.profiles)}
        engines = geometry.whole.engines.as_tuple()
        self._kinds = [kind for kind, total in enumerate(engines) if total is not None]
        self._bound = [row for row in geometry.profiles if row.name.attribute]
        self._limits = self._sum_limits()
        self._facts: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._needs: dict[str, Need | None] = {}

    def _sum_limits(self) -> tuple[int, ...]:
        """What a GPU has of media engines, and of each profile that the driver bounds."""
        engines = self.geometry.whole.engines.as_tuple()
        return (
            *(engines[kind] or 0 for kind in self._kinds),
            *(row.max_instances for row in self._bound),
        )

    def _limited(self, rows: Iterable[GpuProfile]) -> tuple[int, ...]:
        """What these rows take of it; `Geometry.media_left` and `counts_left` as one sum."""
        rows = list(rows)
        engines = [row.engines.as_tuple() for row in rows]
        return (
            *(sum(item[kind] or 0 for item in engines) for kind in self._kinds),
            *(sum(row.profile_id == other.profile_id for row in rows) for other in self._bound),
        )

    def state(self, present: Iterable[Slot]) -> int:
        """The state of a GPU that holds these instances."""
        found = 0
        for slot in present:
            row = self.geometry.by_id(slot.row.profile_id)
            found |= self._bits[self._numbers[id(row)], slot.placement.start]
        return found

    def slots(self, state: int) -> list[Slot]:
        """The instances of a state."""
        return [slot for bit, slot in enumerate(self._slots) if state >> bit & 1]

    def occupied(self, state: int) -> int:
        """Units that a state covers, as a bit set."""
        return self._known(state)[0]

    def need(self, request: Request) -> Need | None:
        """The request on these GPUs; None where they do not have its profiles."""
        text = str(request)
        if text not in self._needs:
            try:
                rows = [row for row, _ in wanted_instances(request, self.geometry)]
            except ProfileNotOffered:
                self._needs[text] = None
            else:
                self._needs[text] = Need(rows, self._limited(rows))
        return self._needs[text]

    def after(self, state: int, need: Need) -> int:
        """The state once the planner has placed it there, or REFUSED."""
        found = need.after.get(state)
        if found is None:
            found = need.after[state] = self._plan(state, need)
        return found

    def loss(self, before: int, after: int) -> tuple[int, ...]:
        """What stops being possible by a start: profiles, places; then what is left anyway."""
        had, has = (
            self.geometry.left(self.occupied(before)),
            self.geometry.left(self.occupied(after)),
        )
        return (had[0] - has[0], had[1] - has[1], *has)

    def _plan(self, state: int, need: Need) -> int:
        occupied, limited = self._known(state)
        for use, more, limit in zip(limited, need.limited, self._limits, strict=True):
            if use + more > limit:
                return REFUSED
        # What is there matters to a learned table alone: the list is made for it.
        present = () if self.policy is fits else self.slots(state)
        places, _ = choose(need.rows, occupied, self.policy(self.geometry, need.rows, present))
        if places is None:
            return REFUSED
        for row, place in zip(need.rows, places, strict=True):
            state |= self._bits[self._numbers[id(row)], place.start]
        return state

    def _known(self, state: int) -> tuple[int, tuple[int, ...]]:
        found = self._facts.get(state)
        if found is None:
            slots = self.slots(state)
            mask = sum(slot.placement.mask for slot in slots)
            found = self._facts[state] = (mask, self._limited(slot.row for slot in slots))
        return found
