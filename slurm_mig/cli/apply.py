"""`slurm-mig apply`: put a declared layout on GPUs under static management."""

from __future__ import annotations

from pathlib import Path

import click

from slurm_mig.cli._layouts import meant, read
from slurm_mig.cli._node import administrator, open_node
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json, working
from slurm_mig.cli._usage import OnePath
from slurm_mig.node.apply import Static
from slurm_mig.node.node import require_root


@click.command()
@click.argument("file", type=OnePath(path_type=Path, dir_okay=False))
@click.option("--name", help="Which of the configurations in a file of mig-parted's.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def command(file: Path, name: str | None, dry_run: bool, as_json: bool) -> None:
    """Make the GPUs as FILE says; only those that hooks do not carve, and only what differs.

    Nothing is changed while one of them is managed or something that has to go is in use.
    After a crash, run it again.
    """
    entries = read(file, name)
    require_root()
    with open_node(look=dry_run) as node, working("going over the GPUs"):
        work = Static(node, administrator())
        pairs = meant(node, entries)
        # All are looked at before the first is changed.
        done = [work.look(*pair) for pair in pairs]
        if not dry_run:
            done = [work.apply(*pair) for pair in pairs]
    if as_json:
        print_json(
            {
                "dry_run": dry_run,
                "gpus": [
                    {"gpu": item.gpu.minor, "uuid": item.gpu.uuid, "steps": item.lines}
                    for item in done
                ],
            }
        )
        return
    for item in done:
        for line in item.lines:
            click.echo(f"GPU {item.gpu.minor}: {line}")
        if not item.lines:
            click.echo(f"GPU {item.gpu.minor} is as declared")
