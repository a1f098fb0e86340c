"""`slurm-mig create`: make one instance by hand, on record."""

from __future__ import annotations

import click

from slurm_mig.cli._common import administrator, choose_gpu, json_option, open_node, print_json
from slurm_mig.node import require_root
from slurm_mig.request import Item, Request


@click.command()
@click.argument("profile", metavar="PROFILE|ID")
@click.option("--gpu", "minor", required=True, help="Device minor or UUID.")
@click.option("--start", type=int, help="Placement unit to start at; the planner's choice else.")
@json_option
def command(profile: str, minor: str, start: int | None, as_json: bool) -> None:  # noqa: FBT001
    """Make a GPU instance with its compute instance, owned by the administrator.

    Slurm does not know of it: use it on GPUs that jobs cannot get, or drain first.
    """
    require_root()
    with open_node() as node:
        gpu = choose_gpu(node.driver.gpus(), minor)
        row = node.driver.geometry(gpu).find(profile)
        request = Request((Item(row.name, 1, row.profile_id),))
        record = node.allocator().allocate(administrator(), request, gpu, start)
    (made,) = record.instances
    if as_json:
        print_json(record.to_dict())
    else:
        click.echo(f"GPU {gpu.minor}: {made} is GPU instance {made.gi_id}, {made.uuid}")
