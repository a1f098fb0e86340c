"""Slices on several GPUs of a node: carved on each of them, or on none.

What one GPU does not hold is paid for with whole GPUs (job_submit.lua), so the job is
alone on each. GPUs are carved one after the other, each under its own lock: a hook never
holds one lock while it waits for another, and there is a record for each GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import BadRequest, NoRoom, SlurmMigError
from slurm_mig.transaction import carve, handover, release

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from slurm_mig.mig.allocation import Allocation, Owner
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.request import Several
    from slurm_mig.transaction.workbench import Workbench


def carve_each(
    bench: Workbench,
    owner: Owner,
    wanted: Several,
    gpus: Sequence[tuple[int, Gpu]],
    apart: Collection[str] = (),
) -> list[Allocation]:
    """Carve each part on its GPU; `gpus` are (Slurm's index, GPU), in order of the index.

    `apart` are UUIDs of GPUs that are not carved here: Slurm gives them as whole GPUs, and
    cannot know that this job needs slices. Raises what `Workbench.allocate` does, after what
    was made on other GPUs has been taken down; the tasks are told when all is there.
    """
    if not wanted.fill(gpus):
        raise BadRequest(
            f"the job's slices need {len(wanted.parts)} GPUs of this node, it has {len(gpus)}",
            remedy="submit it again",
            job=owner.job_id,
        )
    ordered = sorted(gpus, key=lambda item: item[0])
    for _, gpu in ordered:
        if gpu.uuid in apart:
            raise NoRoom(f"{gpu} is not carved on this node", job=owner.job_id)
    given: list[tuple[int, Allocation]] = []
    try:
        for part, (index, gpu) in zip(wanted.parts, ordered, strict=True):
            given.append((index, carve.allocate(bench, owner, part, gpu, part=True)))
        handover.give_several(bench, owner, given)
    except SlurmMigError:
        made = [record for _, record in given]
        release.release_all(bench, made, "another GPU of the job failed")
        raise
    return [record for _, record in given]
