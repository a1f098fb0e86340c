"""`slurm-mig assert`: whether the hardware is as a layout file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slurm_mig.cli._layouts import meant, read, root_to_list, there
from slurm_mig.cli._node import open_node
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json, working
from slurm_mig.cli._usage import OnePath
from slurm_mig.errors import Unresolved
from slurm_mig.mig import layout


@click.command()
@click.argument("file", type=OnePath(path_type=Path, dir_okay=False))
@click.option("--name", help="Which of the configurations in a file of mig-parted's.")
@json_option
def command(file: Path, name: str | None, as_json: bool) -> None:
    """Compare the GPUs with FILE, which is ours (.toml) or mig-parted's (.yaml).

    Where the file names places they have to agree; else how many there are of each profile.
    """
    entries = read(file, name)
    root_to_list()
    with open_node(look=True) as node, working("looking"):
        rows: list[dict[str, Any]] = [
            {
                "gpu": gpu.minor,
                "uuid": gpu.uuid,
                "differences": layout.differences(
                    gpu, declared, there(node, gpu), node.driver.geometry(gpu)
                ),
            }
            for gpu, declared in meant(node, entries)
        ]
    differ = [row for row in rows if row["differences"]]
    if as_json:
        print_json(rows)
    else:
        for row in differ:
            for line in row["differences"]:
                click.echo(f"GPU {row['gpu']}: {line}")
        if not differ:
            click.echo(f"{len(rows)} GPUs are as {file} says")
    if differ:
        raise Unresolved(f"{len(differ)} of {len(rows)} GPUs are not as {file} says")
