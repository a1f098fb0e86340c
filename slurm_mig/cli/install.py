"""`slurm-mig install`: put the hooks where Slurm can run them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from slurm_mig.cli._usage import OnePath
from slurm_mig.cli.generate import DEFAULT_HOOKS
from slurm_mig.config import chosen, load
from slurm_mig.install import install_hooks
from slurm_mig.node import require_root


@click.command()
@click.option(
    "--hooks",
    type=OnePath(path_type=Path, file_okay=False),
    default=Path(DEFAULT_HOOKS),
    show_default=True,
    help="Directory to put them into.",
)
def command(hooks: Path) -> None:
    """Write Prolog, Epilog and TaskProlog for this Python and this configuration."""
    require_root()
    option = click.get_current_context().obj
    path = chosen(option, os.environ).absolute()
    made = install_hooks(hooks.absolute(), Path(sys.executable), path, load(option).run)
    click.echo("Put these lines into slurm.conf:")
    for key, path in made.items():
        click.echo(f"{key}={path}")
