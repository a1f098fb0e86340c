"""`slurm-mig enable`: switch MIG mode on."""

from __future__ import annotations

import click

from slurm_mig.cli._common import json_option
from slurm_mig.cli._mode import switch


@click.command()
@click.option("--gpu", "minor", required=True, help="Device minor, UUID, or all.")
@json_option
def command(minor: str, as_json: bool) -> None:  # noqa: FBT001
    """Switch MIG mode on. Ampere resets the GPU for it."""
    switch(minor, on=True, as_json=as_json)
