"""`slurm-mig gpus`: what this node has, and which products are supported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from slurm_mig import catalog
from slurm_mig.cli._common import json_option, open_node, print_json, survey, table

if TYPE_CHECKING:
    from slurm_mig.catalog import Product
    from slurm_mig.driver import Gpu
    from slurm_mig.node import Node


@click.command()
@click.option("--supported", is_flag=True, help="Only the list of products; needs no driver.")
@json_option
def command(supported: bool, as_json: bool) -> None:  # noqa: FBT001  # click passes flags
    """Show this node's GPUs and the list of supported products."""
    products = [_product(item) for item in catalog.products()]
    if not as_json:
        _print_products(products)
    if supported:
        if as_json:
            print_json({"supported": products})
        return
    with open_node(look=True) as node:
        gpus, faults = survey(node)
        here = [_gpu(node, gpu) for gpu in gpus]
        if as_json:
            print_json({"supported": products, "node": here, "faults": list(map(str, faults))})
        else:
            _print_gpus(node, here)
        for fault in faults:
            raise fault


def _product(item: Product) -> dict[str, Any]:
    return {
        "key": item.key,
        "names": list(item.names),
        "architecture": item.architecture,
        "slices": item.slices,
        "mode_needs_reset": item.needs_reset,
        "known": item.known,
        "unknown": item.unknown(),
        "profiles": [row["name"] for row in item.row["profiles"]],
        "confidence": item.confidence,
        "placement_confidence": item.placement_confidence,
    }


def _gpu(node: Node, gpu: Gpu) -> dict[str, Any]:
    known = [item.key for item in catalog.products() if gpu.name in item.names]
    return {
        "index": gpu.index,
        "minor": gpu.minor,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "product": known[0] if known else None,
        "mig_mode": gpu.mig_mode,
        "mig_pending": gpu.mig_pending,
        # The ledger, which knows of retired GPUs, is for root.
        "managed": node.managed(gpu) if os.geteuid() == 0 else node.configured(gpu),
    }


def _print_products(products: list[dict[str, Any]]) -> None:
    click.echo(
        "Supported products (those with unknown numbers cannot be simulated, weighed or generated\n"
        "for; on a node the driver has the numbers):"
    )
    table(
        ("KEY", "PRODUCT", "ARCH", "SLICES", "MODELLED", "SOURCE OF PROFILES"),
        [
            (
                item["key"],
                item["names"][0] if item["names"] else "?",
                item["architecture"],
                item["slices"],
                "yes" if item["known"] else "no: numbers unknown",
                item["confidence"],
            )
            for item in products
        ],
    )


def _print_gpus(node: Node, gpus: list[dict[str, Any]]) -> None:
    click.echo(f"\nGPUs of {node.name} (driver {node.driver.driver_version()}):")
    table(
        ("GPU", "NVML", "NAME", "MIG MODE", "MANAGED", "UUID"),
        [
            (
                item["minor"],
                item["index"],
                item["name"],
                mode_text(item["mig_mode"], item["mig_pending"]),
                "yes" if item["managed"] else "no",
                item["uuid"],
            )
            for item in gpus
        ],
    )


def mode_text(current: bool | None, pending: bool | None) -> str:  # noqa: FBT001
    """MIG mode in words; a pending change needs a GPU reset."""
    if current is None:
        return "not supported"
    text = "on" if current else "off"
    return text if pending == current else f"{text}, {'on' if pending else 'off'} after a reset"
