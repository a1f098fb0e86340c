"""`slurm-mig enable`: switch MIG mode on."""

from __future__ import annotations

import click

from slurm_mig.cli._common import gpu_option, json_option
from slurm_mig.cli._mode import switch


@click.command()
@gpu_option
@json_option
def command(gpu: str, as_json: bool) -> None:  # noqa: FBT001
    """Switch MIG mode on. Ampere resets the GPU for it."""
    switch(gpu, on=True, as_json=as_json)
