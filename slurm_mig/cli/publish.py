"""`slurm-mig publish`: look after who waits for room here, and tell Slurm what fits."""

from __future__ import annotations

import os

import click

from slurm_mig.cli._node import open_node
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json
from slurm_mig.errors import UsageFault
from slurm_mig.node import gate
from slurm_mig.node.node import require_root
from slurm_mig.node.publish import Publisher


@click.command()
@click.option("--on", is_flag=True, help="Publish again on this node after --off.")
@click.option(
    "--off", is_flag=True, help="Publish no more on this node: counts that stop nothing are left."
)
@click.option(
    "--node", "name", help="Slurm's name of this node; by its records, or its host's, if not set."
)
@json_option
def command(on: bool, off: bool, name: str | None, as_json: bool) -> None:
    """Bring forward refused jobs that have room here now, and publish what fits.

    Hooks do both by themselves. Where the site publishes (docs/publishing.md) a timer runs this,
    for restarts of Slurm's daemons put the counts of slurm.conf back. Then it also takes its turn
    for the cluster: jobs of ours that Slurm holds are released, and every node has "mig"
    in its Extra.
    """
    if on and off:
        raise UsageFault("--on and --off exclude each other")
    require_root()
    if name:
        os.environ["SLURMD_NODENAME"] = name
    with open_node() as node:
        publisher = Publisher(node)
        done = publisher.switch(on=on) if on or off else publisher.look()
        done += gate.look(node)
    if as_json:
        print_json({"done": done})
    else:
        click.echo("\n".join(done) or "nothing to do")
