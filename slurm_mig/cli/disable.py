"""`slurm-mig disable`: switch MIG mode off."""

from __future__ import annotations

import click

from slurm_mig.cli._common import gpu_option, json_option
from slurm_mig.cli._mode import switch


@click.command()
@gpu_option
@json_option
def command(gpu: str, as_json: bool) -> None:  # noqa: FBT001
    """Switch MIG mode off, once no instance exists."""
    switch(gpu, on=False, as_json=as_json)
