"""A declared layout onto a GPU that no job has: clear, switch the mode, make, look again.

Each step looks first at what is there, so that after a crash the same call finishes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import DriverFault, Unresolved
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.layout import built
from slurm_mig.transaction.by_hand import clear

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.layout import PlacedInstance
    from slurm_mig.transaction.workbench import Workbench


def lay_out(
    bench: Workbench,
    gpu: Gpu,
    going: Sequence[Allocation],
    layout: Sequence[PlacedInstance],
    *,
    mig: bool | None,
    reason: str,
    again: str,
) -> None:
    """Take down what is `going`, and have exactly `layout`; for a caller who has it `settled`.

    `mig` None leaves the mode as it is; `again` is what an administrator does after a fault.
    Raises Unresolved when something cannot be taken down or the mode waits for a reset,
    DriverFault when the layout cannot be made.
    """
    for record in going:
        _clear_away(bench, record, gpu, reason, again, mig=mig)
    gpu = _have_mode(bench, gpu, mig, again)
    _make_missing(bench, gpu, layout)
    _look_again(bench, gpu, layout, again)


def _clear_away(
    bench: Workbench, record: Allocation, gpu: Gpu, reason: str, again: str, *, mig: bool | None
) -> None:
    if mig is False and record.whole:
        # MIG mode need not come back for it.
        bench.ledger.finish(bench.ledger.move(record, phases.RELEASING), phases.RELEASED, reason)
        return
    ended = clear(bench, record, gpu, reason)
    if ended.phase == phases.QUARANTINED:
        raise Unresolved(ended.reason, remedy=f"end what uses it, and {again}", gpu=str(gpu))


def _have_mode(bench: Workbench, gpu: Gpu, mig: bool | None, again: str) -> Gpu:  # noqa: FBT001  # a wish of three values
    gpu = bench.driver.gpu(gpu.uuid)
    if mig is not None and gpu.mig_mode != mig:
        gpu = bench.driver.set_mig_mode(gpu, on=mig)
    if mig is not None and gpu.mig_mode != mig:
        raise Unresolved(
            f"MIG mode is {'on' if gpu.mig_mode else 'off'} until the GPU is reset",
            remedy=f"reset it while nothing uses it (nvidia-smi --gpu-reset), and {again}",
            gpu=str(gpu),
        )
    return gpu


def _make_missing(bench: Workbench, gpu: Gpu, layout: Sequence[PlacedInstance]) -> None:
    geometry = bench.driver.geometry(gpu)
    there = {built(item, geometry).slot: item for item in bench.driver.instances(gpu)}
    for item in layout:
        found = there.get(item.slot) or bench.driver.create_gpu_instance(
            gpu, item.row.profile_id, item.slot.placement
        )
        # A hook or command that was killed can have left it without one.
        for slices in () if found.compute else item.compute:
            bench.driver.create_compute_instance(gpu, found.gi_id, None if item.full else slices)


def _look_again(bench: Workbench, gpu: Gpu, layout: Sequence[PlacedInstance], again: str) -> None:
    """Believe what is seen, not what creation returned (go-nvml#146)."""
    geometry = bench.driver.geometry(gpu)
    seen = [built(item, geometry) for item in bench.driver.instances(gpu)]
    if {item.key for item in seen} != {item.key for item in layout}:
        raise DriverFault(
            f"the layout is to be {', '.join(map(str, layout)) or 'empty'}, but the driver lists "
            f"{', '.join(map(str, seen)) or 'nothing'}",
            remedy=again,
            gpu=str(gpu),
        )
