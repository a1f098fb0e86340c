"""A job with a managed GPU as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.errors import BadRequest, NoRoom, SlurmMigError
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.request import Item, Request
from slurm_mig.transaction.carve import (
    carve_here,
    held_already,
    refuse_retired,
    refuse_whole,
    stuck_slots,
    stuck_words,
)
from slurm_mig.transaction.handover import promise
from slurm_mig.transaction.mig_mode import leave_mig_mode
from slurm_mig.transaction.sweep import settled
from slurm_mig.transaction.teardown import tear_down

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


_SLICES_ONLY: Final = "this GPU is given out in slices only"


_ASK_LARGEST: Final = "ask for its largest profile with --gres=mig:<profile>:1"


def give_whole(bench: Workbench, owner: Owner, gpu: Gpu, policy: str, *, reset: bool) -> Allocation:
    """Let a job have a whole managed GPU; never in MIG mode without an instance.

    `policy` is `mig-off`, `full-profile`, `reject`, or `auto` (mig-off where that
    needs no GPU reset, else full-profile); `reset` allows mig-off to reset an
    Ampere GPU (facts/mig.md#mode). Raises NoRoom while others' instances exist
    there, BadRequest where the policy says no.
    """
    if policy == "auto":
        policy = "mig-off" if gpu.resetless else "full-profile"
    row = bench.driver.geometry(gpu).whole
    largest = Request((Item(row.name, 1, row.profile_id),))
    with settled(bench, gpu, "whole GPU", owner) as now:
        refuse_retired(bench, now, owner)
        held = held_already(bench, owner, gpu, phases.WHOLE, phases.WHOLE_MIG_OFF, str(largest))
        if held is not None:
            return held
        refuse_whole(bench, gpu, owner, stuck=False)
        gpu = bench.fresh(gpu.uuid)
        if policy == "reject":
            raise BadRequest(_SLICES_ONLY, remedy=_ASK_LARGEST)
        # MIG mode is off after a reboot of Hopper and later: the policy holds all the same.
        if not gpu.mig_mode and not (policy == "full-profile" and gpu.resetless):
            return _taken_over(bench, owner, gpu) or _without_mig(bench, owner, gpu, phases.WHOLE)
        if policy == "mig-off":
            return _switched_off(bench, owner, gpu, reset=reset)
        return carve_here(bench, owner, largest, gpu)


def _switched_off(bench: Workbench, owner: Owner, gpu: Gpu, *, reset: bool) -> Allocation:
    if bench.driver.instances(gpu):
        stuck = stuck_slots(bench, gpu)
        words = f"; {stuck_words(stuck)}" if stuck else ""
        raise NoRoom(f"a whole GPU was asked for, but MIG instances exist on it{words}")
    if not (gpu.resetless or reset):
        raise BadRequest(_SLICES_ONLY, remedy=_ASK_LARGEST)
    return _without_mig(bench, owner, gpu, phases.WHOLE_MIG_OFF)


def _taken_over(bench: Workbench, owner: Owner, gpu: Gpu) -> Allocation | None:
    """Let the next job's end bring MIG mode back, where that is due since an earlier one.

    Else it would come back under the job, as soon as what was in its way has ended.
    """
    due = [
        record
        for record in bench.ledger.open_on(gpu.uuid)
        if record.request == phases.WHOLE_MIG_OFF and record.phase == phases.QUARANTINED
    ]
    return _without_mig(bench, owner, gpu, phases.WHOLE_MIG_OFF, due) if due else None


def _without_mig(
    bench: Workbench, owner: Owner, gpu: Gpu, request: str, due: Sequence[Allocation] = ()
) -> Allocation:
    """Record first, then switch: a hook that dies here leaves what the next one undoes."""
    promise(bench, owner)
    record = bench.ledger.add(bench.new_record(owner, gpu, request), phases.PLANNED)
    for earlier in due:
        going = bench.ledger.move(earlier, phases.RELEASING)
        bench.ledger.finish(going, phases.RELEASED, f"the GPU went on to {owner}")
    if request == phases.WHOLE_MIG_OFF and not due:
        try:
            leave_mig_mode(bench, gpu)
        except SlurmMigError:
            tear_down(bench, record, gpu, "rolled back")
            raise
    record = bench.ledger.move(record, phases.ACTIVE)
    bench.feeds.show(record, gpu.index)
    return record
