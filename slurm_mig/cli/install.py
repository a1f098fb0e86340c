"""`slurm-mig install`: put the hooks where Slurm can run them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from slurm_mig.boot import WAIT
from slurm_mig.cli._usage import OnePath
from slurm_mig.cli.generate import DEFAULT_HOOKS
from slurm_mig.config import chosen, load
from slurm_mig.errors import UsageFault
from slurm_mig.install import UNIT, check_place, install_hooks, install_unit
from slurm_mig.node import require_root

#: Where an administrator's units go (systemd.unit(5)).
UNITS = Path("/etc/systemd/system")


@click.command()
@click.option(
    "--units",
    type=OnePath(path_type=Path, file_okay=False),
    help=f"Directory for the systemd unit.  [default: {UNITS}, where there is one]",
)
@click.option("--no-units", is_flag=True, help="Write no systemd unit.")
@click.option(
    "--hooks",
    type=OnePath(path_type=Path, file_okay=False),
    default=Path(DEFAULT_HOOKS),
    show_default=True,
    help="Directory to put them into.",
)
def command(units: Path | None, no_units: bool, hooks: Path) -> None:  # noqa: FBT001
    """Write the hooks and the boot unit for this Python and this configuration."""
    if units and no_units:
        raise UsageFault("--units and --no-units exclude each other")
    require_root()
    option = click.get_current_context().obj
    path = chosen(option, os.environ).absolute()
    config = load(option)
    python = Path(sys.executable)
    place = None if no_units else units or (UNITS if UNITS.is_dir() else None)
    if place is not None:
        check_place(place, [UNIT])
    made = install_hooks(hooks.absolute(), python, path, config.run)
    click.echo("Put these lines into slurm.conf:")
    for key, script in made.items():
        click.echo(f"{key}={script}")
    if place is not None:
        bounded = WAIT + config.lock_timeout + 2 * config.slurm_timeout
        unit = install_unit(place.absolute(), python, path, bounded)
        click.echo(
            f"{unit} readies the GPUs after a boot, before slurmd starts. Switch it on with:"
        )
        click.echo(f"systemctl daemon-reload; systemctl enable {unit.name}")
