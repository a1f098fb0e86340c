"""GPUs that are not carved beside ones that are, on real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster import Site, running
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def mixed() -> Iterator[Site]:
    """Three GPUs, of which the middle one is given out whole."""
    with running((SandboxNode("n1", ((H100, 3),), whole=(1,)),)) as cluster:
        yield Site(cluster)


def test_slices_come_from_carved_gpus_alone(mixed: Site) -> None:
    """Fourteen of them run at once, none on the whole GPU; it has no shards to give."""
    asked = [mixed.sbatch("--gres=mig:1g.10gb:7") for _ in range(2)]
    for job in asked:
        mixed.wait(job, "RUNNING")
    mixed.until(lambda: len(mixed.made(gpu=0)) + len(mixed.made(gpu=2)) == 14, "the slices")
    assert mixed.made(gpu=1) == []
    waits = mixed.sbatch("--gres=mig:1g.10gb:1")
    whole = mixed.sbatch("--gres=gpu:1", script="echo $CUDA_VISIBLE_DEVICES; sleep 300")
    mixed.wait(whole, "RUNNING")
    assert mixed.state(waits) == "PENDING"
    mixed.until(lambda: mixed.output(whole), "its output")
    assert mixed.output(whole).strip() == "1"
    mixed.settle()
    mixed.check_clean()
