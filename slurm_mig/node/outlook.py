"""What lies on this node's GPUs and what Slurm counts there, in the words of foresight.

By the records of this boot, and by the driver for what is in none. No GPU's lock is taken: a hook
that works at this moment has its record already, and looks again when it is done.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING

from slurm_mig.errors import SlurmMigError
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.plan import Slot, wanted_instances
from slurm_mig.mig.request import Item, Request
from slurm_mig.mig.weights import derive
from slurm_mig.packing.foresight import ChoiceRule, GpuState, RequestKind
from slurm_mig.packing.states import CLOSED, Space
from slurm_mig.transaction.whereabouts import foreign_instances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurm_mig.mig import driver
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.weights import Weights
    from slurm_mig.node.node import Node

#: Instances in no record, by the GPU's UUID: (driver's profile id, start).
Strangers = dict[str, list[tuple[int, int]]]


def rule_of(select: str) -> ChoiceRule:
    """How Slurm chooses a GPU, by its SelectTypeParameters."""
    return (
        ChoiceRule.LEAST_LOADED
        if "LL_SHARED_GRES" in select.upper().split(",")
        else ChoiceRule.PACK
    )


def strangers(node: Node) -> Strangers:
    """What the driver has on managed GPUs that no record names; only what can be asked."""
    bench, found = node.bench(), {}
    for gpu in filter(node.managed, node.gpus_by_index().values()):
        try:
            there = foreign_instances(bench, gpu)
        except SlurmMigError:
            continue
        if there:
            found[gpu.uuid] = [(item.profile_id, item.placement.start) for item in there]
    return found


class Outlook:
    """This node's GPUs by Slurm's index, as they are at one moment."""

    def __init__(self, node: Node, foreign: Strangers) -> None:
        self._node = node
        self._foreign = foreign
        self._spaces: dict[str, tuple[Space, Weights]] = {}
        self._records: dict[str, list[Allocation]] = defaultdict(list)
        self._ending: dict[str, list[Allocation]] = defaultdict(list)
        found = node.ledger.all_open()
        # What an ended job's Epilog put off is taken down by whoever comes to its place.
        for record in found:
            (self._ending if record.put_off else self._records)[record.gpu_uuid].append(record)
        owners = (item.owner.job_id for item in found)
        self._several = {job for job, count in Counter(owners).items() if job and count > 1}

    @property
    def ending(self) -> bool:
        """Whether Slurm may still count jobs that have nothing here any more."""
        return any(self._ending.values())

    def jobs(self) -> dict[int, Allocation]:
        """Jobs with slices here that Slurm counts, with one record of each."""
        return {
            record.owner.job_id: record
            for records in self._records.values()
            for record in records
            if record.owner.job_id is not None and record.phase in (phases.PLANNED, phases.ACTIVE)
        }

    def gpus(self, *, ending: bool = False) -> list[GpuState]:
        """Each GPU; one that does not answer, or is out of management, takes no slice.

        `ending`: as Slurm counts them while Epilogs have not returned: their jobs' shards are in
        use, though their slices are in nobody's way.
        """
        there: Mapping[int, driver.Gpu] = self._node.gpus_by_index()
        known = [self._space(gpu) for gpu in there.values() if self._node.configured(gpu)]
        if not known:
            return []
        found = []
        for index in range(len(self._node.order)):
            gpu = there.get(index)
            if gpu is None:
                space, weights = known[0]
                found.append(GpuState(space, CLOSED, 0, weights.capacity))
            elif not self._node.configured(gpu):
                found.append(GpuState(known[0][0], CLOSED, 0, 0))
            else:
                found.append(self._one(gpu, self._ending[gpu.uuid] if ending else ()))
        return found

    def _space(self, gpu: driver.Gpu) -> tuple[Space, Weights]:
        if gpu.name not in self._spaces:
            geometry = self._node.driver.geometry(gpu)
            self._spaces[gpu.name] = Space(geometry, self._node.policy), derive(geometry)
        return self._spaces[gpu.name]

    def _one(self, gpu: driver.Gpu, ending: Sequence[Allocation]) -> GpuState:
        space, weights = self._space(gpu)
        records = self._records.get(gpu.uuid, [])
        counted = [*records, *ending]
        used = min(weights.capacity, sum(self._used(item, space, weights) for item in counted))
        closed = gpu.uuid in self._node.retired or any(item.whole for item in records)
        state = CLOSED if closed else self._state(gpu, space, records)
        return GpuState(space, state, used, weights.capacity, gpu.name)

    def _used(self, record: Allocation, space: Space, weights: Weights) -> int:
        """Shards that Slurm counts for a record: none for an administrator's, or an ended job's."""
        if record.owner.job_id is None or record.phase == phases.QUARANTINED:
            return 0
        if record.whole or record.owner.job_id in self._several:
            return weights.capacity
        rows = {item.start: item.profile_id for item in record.instances}
        geometry = space.geometry
        return sum(weights.of(geometry, geometry.by_id(number)) for number in rows.values())

    def _state(self, gpu: driver.Gpu, space: Space, records: Sequence[Allocation]) -> int:
        places = {(item.profile_id, item.start) for one in records for item in one.present}
        places.update((number, start) for number, start in self._foreign.get(gpu.uuid, []))
        slots = []
        for number, start in places:
            row = space.geometry.by_id(number)
            slots += [Slot(row, place) for place in row.placements if place.start == start]
        return space.state(slots)

    def whole_kinds(self) -> list[RequestKind]:
        """The whole of each model as one slice: exact by its shards, so nobody counts it."""
        return [
            RequestKind(
                f"whole {name}",
                Request((Item(space.geometry.whole.name, 1),)),
                weights.capacity,
                counted=False,
            )
            for name, (space, weights) in self._spaces.items()
        ]

    def shards(self, request: Request) -> int | None:
        """What a request costs on the first model here that has it; None where none has."""
        for space, weights in self._spaces.values():
            with suppress(SlurmMigError):
                rows = wanted_instances(request, space.geometry)
                return sum(weights.of(space.geometry, row) for row, _ in rows)
        return None

    def types_of(self, word: str) -> tuple[str, ...]:
        """GPUs that a type of `fit` is for: those of one model, where a model stands before it."""
        kind = word.rpartition("_")[0]
        names = (name for name in self._spaces if kind and kind in _plain(name))
        return tuple(names)


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")
