"""Allocation -> what the job's tasks see. Pure.

The Prolog writes these lines to a file under the run directory; the TaskProlog,
a plain shell script that runs as the user for every task, repeats them to
slurmd, which understands `export NAME=value` and `print text`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slurm_mig.allocation import Allocation


def variables(allocation: Allocation) -> dict[str, str]:
    """Variables of a job's tasks.

    CUDA_VISIBLE_DEVICES: MIG UUIDs in the order of the request. SLURM_MIG_PROFILES:
    their profiles in the same order. SLURM_MIG_GPU: UUID of the GPU they are on.
    """
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(allocation.uuids),
        "SLURM_MIG_PROFILES": ",".join(item.profile for item in allocation.instances),
        "SLURM_MIG_GPU": allocation.gpu_uuid,
    }


def task_prolog_lines(allocation: Allocation) -> str:
    """The text for slurmd: one `export` a line.

    Slurm sets further vendors' variables for the same GPU index
    (slurm-facts.md 5); they say nothing about MIG and stay as they are.
    """
    return "".join(f"export {name}={value}\n" for name, value in variables(allocation).items())


def refusal_lines(reason: str) -> str:
    """The text for slurmd when the job was refused: the user reads why."""
    return f"print slurm-mig: {' '.join(reason.split())}\n"
