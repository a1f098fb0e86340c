"""`slurm-mig gpus`: what this node has, and which products are supported."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slurm_mig import __version__
from slurm_mig.cli._node import open_node, survey, use_descriptions
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import mode_text, print_json, table
from slurm_mig.cli._usage import OnePath
from slurm_mig.cli.generate import write_all
from slurm_mig.errors import UsageFault
from slurm_mig.mig import catalog, description

if TYPE_CHECKING:
    from slurm_mig.mig.catalog import Product
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.node.node import Node


@click.command()
@click.option("--supported", is_flag=True, help="Only the list of products; needs no driver.")
@click.option(
    "--describe",
    is_flag=True,
    help="Write what the driver says about each GPU model here to a file, for where no GPU is.",
)
@click.option(
    "--out",
    type=OnePath(path_type=Path, file_okay=False),
    help="With --describe: write there, not into `gpus` of the [paths] table.",
)
@json_option
def command(
    supported: bool,  # click passes flags
    describe: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Show this node's GPUs and the list of supported products."""
    if out is not None and not describe:
        raise UsageFault("--out goes with --describe")
    if describe:
        _describe(out, as_json=as_json)
        return
    use_descriptions()
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


def _describe(out: Path | None, *, as_json: bool) -> None:
    """One file for each GPU model: all of them or none."""
    with open_node(look=True) as node:
        gpus, faults = survey(node)
        for fault in faults:
            raise fault
        version = node.driver.driver_version()
        models = {gpu.name: gpu for gpu in gpus if gpu.mig_capable}
        if not models:
            raise UsageFault(f"no GPU of {node.name} knows MIG: there is nothing to describe")
        directory = node.config.descriptions if out is None else out
        files = {
            f"{description.slug(name)}.toml": _description(node, gpu, version)
            for name, gpu in models.items()
        }
    write_all(directory, files)
    paths = [str(directory / name) for name in files]
    if as_json:
        print_json({"written": paths})
    else:
        click.echo("\n".join(paths))


def _description(node: Node, gpu: Gpu, version: str) -> str:
    facts: dict[str, str | int | bool | None] = {
        "source": "driver",
        "driver": version,
        "date": time.strftime("%Y-%m-%d"),
        "memory_mib": node.driver.memory_mib(gpu),
        "mode_needs_reset": not gpu.resetless,
    }
    head = f"# Written by `slurm-mig gpus --describe` {__version__} on {node.name}.\n"
    return head + description.write(gpu.name, node.driver.geometry(gpu), facts)


def _product(item: Product) -> dict[str, Any]:
    return {
        "key": item.key,
        "names": list(item.names),
        "architecture": item.architecture,
        "slices": item.slices,
        "mode_needs_reset": item.needs_reset,
        "known": item.known,
        "countable": item.countable,
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
        "Supported products (where only fractions are published there are weights and files\n"
        "for Slurm, but no simulation; where numbers are unknown, `gpus --describe` on a node\n"
        "writes down what its driver says):"
    )
    table(
        ("KEY", "PRODUCT", "ARCH", "SLICES", "MODELLED", "SOURCE OF PROFILES"),
        [
            (
                item["key"],
                item["names"][0] if item["names"] else "?",
                item["architecture"],
                item["slices"],
                _modelled(item),
                item["confidence"],
            )
            for item in products
        ],
    )


def _modelled(item: dict[str, Any]) -> str:
    if item["known"]:
        return "yes"
    return "by fractions" if item["countable"] else "no: numbers unknown"


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
