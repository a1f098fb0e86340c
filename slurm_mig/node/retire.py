"""Ending the management of a GPU, which is left in a layout that was declared. And back.

The order lets a crash be repeated: the mark in the ledger first, with the layout placed, so
that no hook carves there and what the next `retire` finds there can be told from what is
strange (what an earlier mark stands for goes on record before it is replaced); then our
left-overs go; then MIG mode; then what is missing of the layout is made.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm_mig.errors import BadRequest, Held, NoRoom, UsageFault
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.layout import PlacedInstance
from slurm_mig.mig.plan import Slot, plan, wanted_instances
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.transaction import by_hand, whereabouts
from slurm_mig.transaction.lay_out import lay_out
from slurm_mig.transaction.sweep import settled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.mig.geometry import Geometry, GpuProfile
    from slurm_mig.node.node import Node


@dataclass(frozen=True, slots=True)
class RetirePlan:
    """What retiring a GPU comes to: the layout placed, records and instances that go for it."""

    gpu: Gpu
    slots: tuple[Slot, ...]
    present: tuple[Slot, ...]
    records: tuple[Allocation, ...]
    strays: tuple[GpuInstance, ...]

    @property
    def layout(self) -> str:
        """`3g.40gb@4,1g.10gb@0`; empty for no instances."""
        return ",".join(map(str, self.slots))

    @property
    def layout_built(self) -> list[PlacedInstance]:
        """The layout's instances, each filled by one compute instance."""
        return [PlacedInstance(slot, (slot.row.slices,)) for slot in self.slots]

    @property
    def missing(self) -> list[Slot]:
        """What has still to be made."""
        return [slot for slot in self.slots if slot not in self.present]


def parse_layout(text: str) -> Request | None:
    """`3g.40gb:1,1g.10gb:3`, or `none` for no instances. BadRequest says what is wrong."""
    if text == "none":
        return None
    items = []
    for word in text.split(","):
        name, colon, count = word.partition(":")
        if colon and not (count.isascii() and count.isdigit() and len(count) < 3):
            raise BadRequest(f"layout {text[:80]!r}: {word!r} is not <profile>:<count>")
        profile = Profile.parse(name)
        if profile.compute_slices is not None:
            raise BadRequest(
                f"layout {text[:80]!r}: {name} is a part of an instance; a static layout has "
                "whole ones, each with one compute instance"
            )
        items.append(Item(profile, int(count or 1)))
    return Request(tuple(items))


class Retirement:
    """Retires GPUs of a node, for the administrator `owner`."""

    def __init__(self, node: Node, owner: Owner) -> None:
        self._node = node
        self._owner = owner
        self._driver = node.driver
        self._ledger = node.ledger
        self._bench = node.bench()

    # -- looking -------------------------------------------------------------

    def look(self, gpu: Gpu, layout: Request | None, *, sweep: bool) -> RetirePlan:
        """What retiring it would come to; with `sweep` what dead hooks left is finished first.

        Raises Held while a job has something there or strange instances are in it,
        Unresolved where something of an earlier layout that has to go is in use,
        ProfileNotOffered or NoRoom for a layout that cannot be.
        """
        with settled(self._bench, gpu, "look before retiring", sweep=sweep):
            return self._goal(gpu, layout)

    def _goal(self, gpu: Gpu, layout: Request | None) -> RetirePlan:
        gpu = self._driver.gpu(gpu.uuid)
        records = self._ledger.open_on(gpu.uuid)
        self._check_jobs(records)
        geometry = self._driver.geometry(gpu)
        strange = whereabouts.foreign_instances(self._bench, gpu)
        before = self._marked(gpu, geometry)
        ours = [item for item in strange if slot_of(item, geometry) in before]
        foreign = [item for item in strange if item not in ours]
        slots = self._slots(gpu, layout, geometry, before, foreign)
        strays = [item for item in ours if slot_of(item, geometry) not in slots]
        for item in strays:
            # Jobs on a static layout are Slurm's alone: they are in no record.
            name = str(slot_of(item, geometry))
            self._node.stuck.check_unused(gpu, item, name, "retire")
        complete = [slot_of(item, geometry) for item in strange if item.compute]
        present = tuple(slot for slot in slots if slot in complete)
        return RetirePlan(gpu, slots, present, tuple(records), tuple(strays))

    @staticmethod
    def _slots(
        gpu: Gpu,
        layout: Request | None,
        geometry: Geometry,
        before: Sequence[Slot],
        foreign: Sequence[GpuInstance],
    ) -> tuple[Slot, ...]:
        """The layout's places: those of before if it is the same, else what is there and a plan."""
        rows = [row for row, _ in wanted_instances(layout, geometry)] if layout else []
        same = Counter(s.row.profile_id for s in before) == Counter(r.profile_id for r in rows)
        kept, odd = _sorted_out(foreign, [] if same else rows, geometry)
        if odd:
            raise Held(
                f"{', '.join(map(str, odd))} in no record, and not of that layout",
                remedy=f"`slurm-mig reset --gpu {gpu.minor} --foreign` if nothing else manages it",
                gpu=str(gpu),
            )
        if same:
            return tuple(before)
        rest = Counter(row.name for row in rows) - Counter(slot.row.name for slot in kept)
        if not rest:
            return tuple(kept)
        items = tuple(Item(name, count) for name, count in rest.items())
        try:
            return (*kept, *plan(Request(items), geometry, kept).slots)
        except NoRoom as fault:
            if kept:
                fault.remedy = f"{', '.join(map(str, kept))} are in no record, and in the way"
            raise

    def _marked(self, gpu: Gpu, geometry: Geometry) -> list[Slot]:
        """The layout of an earlier `retire`, which may have been killed before it was made."""
        mark = self._ledger.retired().get(gpu.uuid)
        found = []
        for word in filter(None, mark.layout.split(",") if mark else []):
            name, _, start = word.partition("@")
            row = geometry.resolve(Profile.parse(name))
            found += [Slot(row, place) for place in row.placements if place.start == int(start)]
        return found

    def _check_jobs(self, records: Sequence[Allocation]) -> None:
        for record in records:
            alive = record.boot_id == self._node.boot_id and record.phase == phases.ACTIVE
            if alive and record.owner.is_job:
                raise Held(
                    f"{record.owner} of user {record.owner.user} has {record.made}",
                    remedy="drain the node and let its jobs end, or cancel them",
                )

    # -- doing ---------------------------------------------------------------

    def retire(self, gpu: Gpu, layout: Request | None, *, mig_off: bool) -> RetirePlan:
        """Retire it; called again after a crash, it finishes. Returns what was to be done.

        Raises what `look` does, with nothing changed; afterwards Unresolved when
        something of ours cannot be taken down, DriverFault when the layout cannot be made.
        """
        with settled(self._bench, gpu, "retire"):
            goal = self._goal(gpu, layout)
            # On record before the mark goes that tells them from strange ones.
            adopted = [
                by_hand.adopt_settled(self._bench, self._owner, goal.gpu, item)
                for item in goal.strays
            ]
            mark = self._ledger.retired().get(gpu.uuid)
            if mark is None or mark.layout != goal.layout:
                self._ledger.retire(gpu.uuid, self._owner.user, goal.layout)
            lay_out(
                self._bench,
                goal.gpu,
                (*goal.records, *adopted),
                goal.layout_built,
                mig=False if mig_off else True if goal.slots else None,
                reason="the GPU is retired",
                again="retire again",
            )
        return goal

    # -- and back ------------------------------------------------------------

    def undo(self, gpu: Gpu, *, dry_run: bool = False) -> None:
        """Take it under management again; UsageFault unless retired, Held while it is not empty."""
        with settled(self._bench, gpu, "take back", sweep=not dry_run):
            if gpu.uuid not in self._ledger.retired():
                raise UsageFault("it is not retired", gpu=str(gpu))
            strange = whereabouts.foreign_instances(self._bench, gpu)
            if strange:
                geometry = self._driver.geometry(gpu)
                names = ", ".join(str(slot_of(item, geometry)) for item in strange)
                raise Held(
                    f"{names} exist and are in no record",
                    remedy=f"empty it first: `slurm-mig reset --gpu {gpu.minor} --foreign`",
                )
            if not dry_run:
                self._ledger.readmit(gpu.uuid, self._owner.user)


def slot_of(item: GpuInstance, geometry: Geometry) -> Slot:
    """An instance as the planner names it."""
    return Slot(geometry.by_id(item.profile_id), item.placement)


def _sorted_out(
    foreign: Sequence[GpuInstance], rows: Sequence[GpuProfile], geometry: Geometry
) -> tuple[list[Slot], list[Slot]]:
    """Instances that a layout of these rows can keep as they are, and the others."""
    wanted, kept, odd = list(rows), [], []
    for item in foreign:
        slot = slot_of(item, geometry)
        # Without a compute instance it is no part of a layout, and not ours to complete.
        if slot.row in wanted and item.compute:
            wanted.remove(slot.row)
            kept.append(slot)
        else:
            odd.append(slot)
    return kept, odd
