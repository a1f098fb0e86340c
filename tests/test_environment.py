"""What a job's tasks see."""

from __future__ import annotations

from slurm_mig import environment
from slurm_mig.allocation import Allocation, Instance, Owner

RECORD = Allocation(
    owner=Owner(7),
    node="n1",
    gpu_uuid="GPU-1",
    gpu_minor=0,
    gpu_name="x",
    boot_id="b",
    request="1g.10gb:1,3g.40gb:1",
    instances=(
        Instance("1g.10gb", 19, 2, 1, 9, 0, "MIG-a"),
        Instance("3g.40gb", 9, 4, 4, 2, 0, "MIG-b"),
    ),
)


def test_variables_in_the_order_of_the_request() -> None:
    """UUIDs and profiles pair up, whatever order the hardware has."""
    assert environment.task_prolog_lines(RECORD) == (
        "export CUDA_VISIBLE_DEVICES=MIG-a,MIG-b\n"
        "export SLURM_MIG_PROFILES=1g.10gb,3g.40gb\n"
        "export SLURM_MIG_GPU=GPU-1\n"
    )


def test_a_refusal_is_one_print_line() -> None:
    """A newline in a reason would be a second command to slurmd."""
    assert environment.refusal_lines("no\nexport X=1") == "print slurm-mig: no export X=1\n"
