"""What users of static MIG type, as jobs and as steps: each gets a slice carved for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .test_main_path import SHOW, seen

if TYPE_CHECKING:
    from .conftest import Site


@pytest.mark.parametrize(
    "beside", [["-c2"], ["--cpus-per-task=1"], ["--gpus=0"], ["--gpus-per-node=0", "-c2"]]
)
def test_options_that_ask_for_no_gpu(site: Site, beside: list[str]) -> None:
    """Beside a slice they change nothing of it: later clients fill a tres field with `cpu=2`."""
    job = site.sbatch("--gres=mig:1g.10gb:1", *beside, script=f"{SHOW}; srun sh -c '{SHOW}'")
    site.wait(job, "COMPLETED")
    assert [line[2] for line in seen(site.output(job))] == ["1g.10gb", "1g.10gb"]
    assert "slurm-mig=1" in site.show(job, "Comment")
