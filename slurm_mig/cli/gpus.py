"""`slurm-mig gpus`: what this node has, and which products are supported."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig import __version__
from slurm_mig.cli._node import open_node, survey, use_descriptions
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import Columns, cell, mode_text, paint, print_json, table
from slurm_mig.cli._usage import OnePath
from slurm_mig.cli.generate import write_all
from slurm_mig.errors import SlurmMigError, UsageFault
from slurm_mig.mig import catalog, description

if TYPE_CHECKING:
    from slurm_mig.mig.catalog import Product
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.node.node import Node


#: The catalogue's word for numbers that a driver printed (mig-geometry.json, confidence).
RECORDED: Final = "real nvidia-smi output"


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
    if supported:
        if as_json:
            print_json({"supported": products})
        else:
            _print_products(products)
        return
    try:
        here, faults = _here(as_json=as_json)
    except SlurmMigError:
        # A login node has no driver, and people look there for what is supported.
        if not as_json:
            _print_products(products)
        raise
    if as_json:
        print_json({"supported": products, "node": here, "faults": list(map(str, faults))})
    else:
        click.echo()
        _print_products(products)
    for fault in faults:
        raise fault


def _here(*, as_json: bool) -> tuple[list[dict[str, Any]], list[SlurmMigError]]:
    """This node's GPUs, shown at once unless for a program, and what is wrong with others."""
    with open_node(look=True) as node:
        gpus, faults = survey(node)
        here = [_gpu(node, gpu) for gpu in gpus]
        if not as_json:
            _print_gpus(node, here)
    return here, faults


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
    click.echo(paint("Supported products", "head"))
    table(
        ("KEY", "NAME, BEHIND `NVIDIA`", "NUMBERS"),
        [
            (
                item["key"],
                item["names"][0].removeprefix("NVIDIA ") if item["names"] else "?",
                _numbers(item),
            )
            for item in products
        ],
    )
    click.echo(
        "recorded from a real driver, or documented by NVIDIA; by fractions: weights and\n"
        "files for Slurm, but no simulation; unknown: `gpus --describe` on a node writes\n"
        "down what its driver says."
    )


def _numbers(item: dict[str, Any]) -> str:
    if not item["known"]:
        return "by fractions" if item["countable"] else "unknown"
    return "recorded" if item["confidence"] == RECORDED else "documented"


def _print_gpus(node: Node, gpus: list[dict[str, Any]]) -> None:
    click.echo(
        paint(f"GPUs of {node.name} (driver {node.driver.driver_version()})", "head")
        + ("" if gpus else ": none")
    )
    columns = Columns(("GPU", "NVML", "NAME", "MIG MODE", "MANAGED"), cut=("NAME",))
    rows = [
        tuple(
            map(
                cell,
                (
                    item["minor"],
                    item["index"],
                    item["name"],
                    mode_text(item["mig_mode"], item["mig_pending"]),
                    "yes" if item["managed"] else "no",
                ),
            )
        )
        for item in gpus
    ]
    for row in rows:
        columns.learn(row)
    columns.fit()
    if gpus:
        click.echo(columns.head())
    for item, row in zip(gpus, rows, strict=True):
        click.echo(columns.line(row, "good" if item["managed"] else "quiet"))
        click.echo(f"           {item['uuid']}")
