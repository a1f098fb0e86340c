"""Fleets of catalogue models."""

from __future__ import annotations

from functools import cache

from slurm_mig.fleet.fleet import GresName, Model, NodeGroup
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog


@cache
def model_of(name: str) -> Model:
    return fleet_model(catalog.find(name))


def group(hosts: str, *gpus: str) -> NodeGroup:
    return NodeGroup(hosts, tuple(model_of(name) for name in gpus))


def shard_of(name: GresName) -> str:
    """The gres that pays for a name: typed where one type alone has it."""
    return f"shard:{name.types[0]}" if len(name.types) == 1 else "shard"
