"""`slurm-mig weights`: shard weights of a GPU model, derived and proved."""

from __future__ import annotations

import click

from slurm_mig.cli._node import tell_longer, use_descriptions
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json, table
from slurm_mig.mig import catalog
from slurm_mig.mig.weights import derive


@click.command()
@click.option(
    "--gpu",
    "name",
    required=True,
    help="NVML name of the GPU, its catalogue key, or a file that describes it.",
)
@json_option
def command(name: str, as_json: bool) -> None:
    """Show how many shards a GPU and each of its profiles count for."""
    use_descriptions()
    product = catalog.find(name)
    tell_longer([name])
    geometry = product.counting()
    weights = derive(geometry)
    by_name = {str(row.name): weights.of(geometry, row) for row in geometry.profiles}
    if as_json:
        print_json(
            {
                "capacity": weights.capacity,
                "weights": by_name,
                "false_accepts": weights.false_accepts,
                "false_rejects": weights.false_rejects,
            }
        )
        return
    click.echo(
        f"{product.title}: {weights.capacity} shards; counting accepts {weights.false_accepts} "
        f"sets that have no layout and refuses {weights.false_rejects} that have one"
    )
    table(("PROFILE", "SHARDS"), by_name.items())
