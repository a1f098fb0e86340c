"""`slurm-mig export`: the current layout as a file."""

from __future__ import annotations

import click

from slurm_mig.cli._layouts import root_to_list, there
from slurm_mig.cli._node import choose_gpus, open_node
from slurm_mig.cli._options import gpu_option
from slurm_mig.cli._print import working
from slurm_mig.node import layout_file


@click.command()
@gpu_option
@click.option(
    "--format",
    "form",
    type=click.Choice(("toml", "mig-parted")),
    default="toml",
    show_default=True,
    help="toml has the place of each instance; mig-parted's YAML has counts.",
)
@click.option(
    "--name", default=layout_file.CURRENT, show_default=True, help="Name in mig-parted's."
)
def command(gpu: str, form: str, name: str) -> None:
    """Print the layout of GPUs, for `assert` and `apply`, or for mig-parted."""
    root_to_list()
    with open_node(look=True) as node, working("looking"):
        gpus, faults = choose_gpus(node, gpu)
        found = [(one, there(node, one)) for one in gpus]
    # A layout without the GPU that is lost would be taken for the whole.
    for fault in faults:
        raise fault
    text = layout_file.to_toml(found) if form == "toml" else layout_file.to_mig_parted(found, name)
    click.echo(text, nl=False)
