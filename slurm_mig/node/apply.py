"""Putting a declared layout on a GPU that slurm-mig does not carve for jobs.

Only what differs is taken down and made, under the GPU's lock, in an order that lets a
crash be repeated: what goes is put on record first, the mark of a retired GPU is
renewed, then instances go, then MIG mode is switched, then what is missing is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm_mig.errors import Held, about
from slurm_mig.mig.layout import PlacedInstance, built, target
from slurm_mig.transaction import by_hand, recognise
from slurm_mig.transaction.lay_out import lay_out
from slurm_mig.transaction.sweep import settled

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.mig.layout import Declared
    from slurm_mig.node.node import Node


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """What has to be done on one GPU; `mode` None leaves MIG mode as it is."""

    gpu: Gpu
    layout: tuple[PlacedInstance, ...]
    going: tuple[tuple[GpuInstance, PlacedInstance], ...]
    mode: bool | None
    missing: tuple[PlacedInstance, ...]

    @property
    def lines(self) -> list[str]:
        """One line a step, in their order; empty when all is as declared."""
        lines = [f"destroys {item} (GPU instance {found.gi_id})" for found, item in self.going]
        if self.mode is not None:
            lines.append(f"switches MIG mode {'on' if self.mode else 'off'}")
        return [*lines, *(f"makes {item}" for item in self.missing)]


class Static:
    """Applies layouts on a node, for the administrator `owner`."""

    def __init__(self, node: Node, owner: Owner) -> None:
        self._node = node
        self._owner = owner
        self._driver = node.driver
        self._ledger = node.ledger
        self._bench = node.bench()

    def look(self, gpu: Gpu, declared: Declared) -> ApplyPlan:
        """What `apply` would do; nothing is changed.

        Raises Held for a GPU that hooks carve or a job has, Unresolved where an instance that
        has to go is in use, ProfileNotOffered, BadRequest or NoRoom for a layout that cannot be.
        """
        with settled(self._bench, gpu, "look before applying", sweep=False):
            return self._steps(gpu, declared)

    def apply(self, gpu: Gpu, declared: Declared) -> ApplyPlan:
        """Do it; called again after a crash, it finishes. Returns what was to be done.

        Raises what `look` does, with nothing changed; afterwards Unresolved when something
        cannot be taken down, DriverFault when the layout cannot be made.
        """
        with settled(self._bench, gpu, "apply a layout"):
            steps = self._steps(gpu, declared)
            records = [self._recorded(steps.gpu, found) for found, _ in steps.going]
            self._renew_mark(steps)
            lay_out(
                self._bench,
                steps.gpu,
                records,
                steps.layout,
                mig=steps.mode,
                reason="another layout was applied",
                again="apply it again",
            )
        return steps

    # -- looking -------------------------------------------------------------

    def _steps(self, gpu: Gpu, declared: Declared) -> ApplyPlan:
        gpu = self._driver.gpu(gpu.uuid)
        with about(gpu=str(gpu)):
            self._check_static(gpu)
            geometry = self._driver.geometry(gpu)
            there = [(item, built(item, geometry)) for item in self._driver.instances(gpu)]
            layout = target(declared, geometry, [item for _, item in there])
            wanted = {item.key for item in layout}
            going = [pair for pair in there if pair[1].key not in wanted]
            for found, item in going:
                self._node.stuck.check_unused(gpu, found, str(item), "apply")
            seen = {item.key for _, item in there}
            return ApplyPlan(
                gpu,
                tuple(layout),
                tuple(going),
                None if gpu.mig_mode == declared.mig else declared.mig,
                tuple(item for item in layout if item.key not in seen),
            )

    def _check_static(self, gpu: Gpu) -> None:
        # The ledger itself, under the lock: it may just have been taken back.
        if self._node.configured(gpu) and gpu.uuid not in self._ledger.retired():
            raise Held(
                "it is managed: hooks carve it for jobs",
                remedy=f"`slurm-mig retire --gpu {gpu.minor}`, or take it out of `managed` in the "
                "[gpus] table of the config",
            )
        for record in self._ledger.open_on(gpu.uuid):
            if record.owner.is_job and record.boot_id == self._node.boot_id:
                raise Held(
                    f"{record.owner} of user {record.owner.user} has {record.made}",
                    remedy="drain the node and let its jobs end, or cancel them",
                )

    # -- doing ---------------------------------------------------------------

    def _recorded(self, gpu: Gpu, found: GpuInstance) -> Allocation:
        """The record that names an instance, made if there is none: its end is on record, too."""
        record = recognise.owner(self._ledger.open_on(gpu.uuid), found)
        return record or by_hand.adopt_settled(self._bench, self._owner, gpu, found)

    def _renew_mark(self, steps: ApplyPlan) -> None:
        """A later `retire` tells by its mark what is ours of a retired GPU."""
        mark = self._ledger.retired().get(steps.gpu.uuid)
        layout = ",".join(str(item.slot) for item in steps.layout)
        if mark is not None and mark.layout != layout:
            self._ledger.retire(steps.gpu.uuid, self._owner.user, layout)
