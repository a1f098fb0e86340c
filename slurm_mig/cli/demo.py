"""`slurm-mig demo`: real Slurm and simulated GPUs, shown and checked."""

from __future__ import annotations

import click

from slurm_mig.node.node import require_root
from slurm_mig.sandbox.demo import demonstrate


@click.command()
def command() -> None:
    """Boot a private Slurm with simulated GPUs, run MIG jobs on it, show and check it all."""
    require_root()
    demonstrate()
