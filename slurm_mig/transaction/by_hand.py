"""What administrators do: adopt, clear, switch the mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import Held
from slurm_mig.mig import allocation as phases
from slurm_mig.transaction.recognise import as_found
from slurm_mig.transaction.sweep import settled
from slurm_mig.transaction.teardown import tear_down
from slurm_mig.transaction.whereabouts import foreign_instances
from slurm_mig.values import replace

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.mig.driver import Gpu, GpuInstance
    from slurm_mig.transaction.workbench import Workbench


def set_mode(bench: Workbench, gpu: Gpu, *, on: bool) -> Gpu:
    """Switch MIG mode; Held while instances exist that switching off would destroy."""
    with settled(bench, gpu, "switch MIG mode") as now:
        _refuse_mode(bench, now, on=on)
        return bench.driver.set_mig_mode(now, on=on)


def may_set_mode(bench: Workbench, gpu: Gpu, *, on: bool) -> None:
    """Held where `set_mode` would be; nothing is changed."""
    with settled(bench, gpu, "look at MIG mode", sweep=False) as now:
        _refuse_mode(bench, now, on=on)


def _refuse_mode(bench: Workbench, gpu: Gpu, *, on: bool) -> None:
    # One that is stuck waits for this very mode, and one of an earlier boot has no job.
    whole = [
        item
        for item in bench.ledger.open_on(gpu.uuid)
        if item.whole and item.phase != phases.QUARANTINED and item.boot_id == bench.boot_id
    ]
    if whole and on:
        raise Held(f"{whole[0].owner} has the whole GPU, without MIG")
    present = [str(slot) for slot in bench.slots(gpu, bench.driver.instances(gpu))]
    if present and not on:
        raise Held(
            f"MIG mode stays on: {', '.join(present)} exist",
            remedy="see `slurm-mig status` for whose they are",
        )


def adopt(bench: Workbench, owner: Owner, gpu: Gpu, found: GpuInstance) -> Allocation:
    """Put a foreign instance on record, so that its end is on record too."""
    with settled(bench, gpu, "adopt", sweep=False) as now:
        return adopt_settled(bench, owner, now, found)


def adopt_settled(bench: Workbench, owner: Owner, gpu: Gpu, found: GpuInstance) -> Allocation:
    """Like `adopt`, for a caller who has the GPU `settled`.

    Held when it is another's by now: a job may have been given the place.
    """
    if found not in foreign_instances(bench, gpu):
        raise Held(
            f"GPU instance {found.gi_id} at {found.placement} is no longer what it was",
            remedy="see `slurm-mig status`, and try again",
        )
    instance = as_found(found, bench.driver.geometry(gpu).by_id(found.profile_id).name)
    record = replace(bench.new_record(owner, gpu, instance.profile), instances=(instance,))
    record = bench.ledger.add(record, "adopted")
    return bench.ledger.move(record, phases.ACTIVE)


def clear(bench: Workbench, record: Allocation, gpu: Gpu, reason: str) -> Allocation:
    """Take down what a record names, for a caller who has the GPU `settled`.

    Returns it as `released`, or `quarantined` if it is in use beyond the deadline.
    """
    return tear_down(bench, record, gpu, reason, bench.monotonic() + bench.destroy_timeout)
