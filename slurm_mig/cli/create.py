"""`slurm-mig create`: make one instance by hand, on record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from slurm_mig.cli._node import administrator, choose_gpus, open_node
from slurm_mig.cli._options import dry_run_option, json_option
from slurm_mig.cli._print import print_json, working
from slurm_mig.errors import DriverFault, NoRoom, ProfileNotOffered
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.node.node import require_root
from slurm_mig.transaction import carve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.errors import SlurmMigError
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.plan import Plan
    from slurm_mig.node.node import Node


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a dry run found: the GPU and the plan for it."""

    gpu: Gpu
    plan: Plan


@click.command()
@click.argument("profile", metavar="PROFILE|ID")
@click.option(
    "-i", "--gpu", "gpu", default="all", help="Device minor or UUID; else the first with room."
)
@click.option("--start", type=int, help="Placement unit to start at; the planner's choice else.")
@dry_run_option
@json_option
def command(
    profile: str,
    gpu: str,
    start: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a GPU instance with its compute instance, owned by the administrator.

    Slurm does not know of it: use it on GPUs that jobs cannot get, or drain first.
    """
    require_root()
    with open_node(look=dry_run) as node, working("carving"):
        gpus, faults = choose_gpus(node, gpu)
        record = _create(node, gpus, profile, start, faults, dry_run=dry_run)
    if isinstance(record, Foreseen):
        if as_json:
            print_json({"dry_run": True, "gpu": record.gpu.minor, "plan": str(record.plan)})
        else:
            click.echo(f"GPU {record.gpu.minor}: would make {record.plan}")
        return
    (made,) = record.instances
    if as_json:
        print_json(record.to_dict())
    else:
        click.echo(f"GPU {record.gpu_minor}: {made} is GPU instance {made.gi_id}, {made.uuid}")


def _create(
    node: Node,
    gpus: Sequence[Gpu],
    profile: str,
    start: int | None,
    faults: Sequence[SlurmMigError],
    *,
    dry_run: bool,
) -> Allocation | Foreseen:
    """On the first GPU that takes it; the first one's refusal if none does."""
    refusals: list[SlurmMigError] = []
    for gpu in gpus:
        try:
            row = node.driver.geometry(gpu).find(profile)
            name = row.name if profile.isdigit() else Profile.parse(profile)
            request = Request((Item(name, 1, row.profile_id),))
            if gpu.mig_mode and dry_run:
                return Foreseen(gpu, carve.foresee_plan(node.bench(), request, gpu, start))
            if gpu.mig_mode:
                return carve.allocate(node.bench(), administrator(), request, gpu, start)
        except (NoRoom, ProfileNotOffered) as refusal:
            refusals.append(refusal)
    raise [*refusals, *faults, *map(_mode_is_off, gpus)][0]


def _mode_is_off(gpu: Gpu) -> SlurmMigError:
    """The bench would switch it on where it can, which an administrator did not ask for."""
    return DriverFault(
        "MIG mode is off", remedy=f"run `slurm-mig enable --gpu {gpu.minor}`", gpu=str(gpu)
    )
