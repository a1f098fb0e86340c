"""Fleets of catalogue models."""

from __future__ import annotations

from functools import cache

from slurm_mig.fleet.fleet import Model, NodeGroup
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog


@cache
def model_of(name: str) -> Model:
    return fleet_model(catalog.find(name))


def group(hosts: str, *gpus: str) -> NodeGroup:
    return NodeGroup(hosts, tuple(model_of(name) for name in gpus))
