"""MIG mode, as the transaction needs it: on for slices, off for a whole GPU, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import DriverFault, InstanceBusy, NoRoom

if TYPE_CHECKING:
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.transaction.workbench import Workbench


def ensure_mig_mode(bench: Workbench, gpu: Gpu) -> Gpu:
    """Have MIG mode on; switched on here only where that costs no GPU reset."""
    gpu = bench.fresh(gpu.uuid)
    if gpu.mig_mode:
        return gpu
    if not gpu.resetless:
        raise DriverFault(
            "MIG mode is off, and switching it on resets this GPU",
            remedy=f"run `slurm-mig enable --gpu {gpu.minor}` while it is idle",
        )
    gpu, busy = _switch(bench, gpu, bench.monotonic() + bench.create_patience, on=True)
    if busy is not None:
        raise occupied(bench, gpu, busy) from busy
    if not gpu.mig_mode:
        raise DriverFault(
            "MIG mode is off, and still is after the driver switched it on",
            remedy=f"run `slurm-mig enable --gpu {gpu.minor}`, or reset the GPU",
        )
    return gpu


def _switch(
    bench: Workbench, gpu: Gpu, until: float, *, on: bool
) -> tuple[Gpu, InstanceBusy | None]:
    """Try it until then; the GPU as it is afterwards, and what was in the way to the last."""
    busy = bench.retry(lambda: bench.driver.set_mig_mode(gpu, on=on), until)
    return bench.fresh(gpu.uuid), busy


def occupied(bench: Workbench, gpu: Gpu, busy: InstanceBusy) -> NoRoom:
    """Whoever has the GPU open may be a user: that must not drain the node."""
    users = bench.stuck.holders(gpu, None).text(public=True)
    return NoRoom(f"{busy.cause}, used by {users}", remedy=busy.remedy)


def leave_mig_mode(bench: Workbench, gpu: Gpu) -> None:
    """Switch MIG mode off; NoRoom while something (a monitor, say) keeps the GPU open."""
    now, busy = _switch(bench, gpu, bench.monotonic() + bench.destroy_timeout, on=False)
    if busy is not None:
        raise occupied(bench, gpu, busy) from busy
    # On Ampere the wish alone is success to NVML: without its reset the mode stays.
    if now.mig_mode:
        raise NoRoom("MIG mode stays on: something keeps the GPU from being reset")


def restore_mig_mode(bench: Workbench, gpu: Gpu, until: float) -> str:
    """MIG mode on again; says why it is not, for a later hook to try again.

    What uses the GPU may be a user's: it is no fault of the node, unlike all else.
    """
    now = bench.fresh(gpu.uuid)
    if not (now.mig_mode and now.mig_pending):
        now, busy = _switch(bench, gpu, until, on=True)
        if busy is not None:
            return busy.cause
    return "" if now.mig_mode else "the GPU could not be reset"
