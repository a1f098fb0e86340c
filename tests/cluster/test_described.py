"""A GPU that nobody has seen yet, from its description to a job on real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.sandbox import SandboxNode
from tests.kit.cluster_jobs import SHOW, seen
from tests.kit.described import FUTURE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.cluster import Site


def test_a_gpu_of_ten_slices(build: Callable[..., Site], tmp_path: Path) -> None:
    """Counted, carved, told to the job, and taken down; with parts that no GPU had so far."""
    (tmp_path / "x200.toml").write_text(FUTURE)
    site = build(SandboxNode("n1", ((str(tmp_path / "x200.toml"), 1),)), compute_parts=("*",))
    job = site.sbatch("--gres=mig:5g.100gb:1,mig:2g.40gb:2", script=SHOW)
    site.wait(job, "COMPLETED")
    assert "shard:x200_200gb:9" in site.show(job, "TresPerNode")
    assert seen(site.output(job))[0][2] == "5g.100gb,2g.40gb,2g.40gb"
    assert [item.profile_id for item in site.record(job).instances] == [42, 41, 41]
    # By model, by memory, and in parts.
    for words, profile in (
        ("mig:x200_200gb_10g.200gb", "10g.200gb"),
        ("mig:30gb", "2g.40gb"),
        ("mig:1c.5g.100gb:2", "1c.5g.100gb,1c.5g.100gb"),
    ):
        job = site.sbatch(f"--gres={words}", script=SHOW)
        site.wait(job, "COMPLETED")
        assert seen(site.output(job))[0][2] == profile
    site.settle()
    site.check_clean()
