"""`slurm-mig disable`: switch MIG mode off."""

from __future__ import annotations

import click

from slurm_mig.cli._mode import switch
from slurm_mig.cli._options import dry_run_option, gpu_option, json_option


@click.command()
@gpu_option
@dry_run_option
@json_option
def command(gpu: str, dry_run: bool, as_json: bool) -> None:
    """Switch MIG mode off, once no instance exists."""
    switch(gpu, on=False, dry_run=dry_run, as_json=as_json)
