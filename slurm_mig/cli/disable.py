"""`slurm-mig disable`: switch MIG mode off."""

from __future__ import annotations

import click

from slurm_mig.cli._common import json_option
from slurm_mig.cli._mode import switch


@click.command()
@click.option("--gpu", "minor", required=True, help="Device minor, UUID, or all.")
@json_option
def command(minor: str, as_json: bool) -> None:  # noqa: FBT001
    """Switch MIG mode off, once no instance exists."""
    switch(minor, on=False, as_json=as_json)
