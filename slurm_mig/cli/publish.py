"""`slurm-mig publish`: look after who waits for room here."""

from __future__ import annotations

import click

from slurm_mig.cli._node import open_node
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json
from slurm_mig.node import gate
from slurm_mig.node.node import require_root


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Bring forward refused jobs for which this node has room now.

    Hooks do that by themselves; this is for who does not want to wait for one.
    """
    require_root()
    with open_node() as node:
        done = gate.look(node)
    if as_json:
        print_json({"done": done})
    else:
        click.echo("\n".join(done) or "nobody waits for what this node has")
