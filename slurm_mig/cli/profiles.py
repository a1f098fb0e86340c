"""`slurm-mig profiles`: the table of `nvidia-smi mig -lgip`, from the driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._node import choose_gpus, open_node
from slurm_mig.cli._options import gpu_option, json_option
from slurm_mig.cli._print import print_json, table
from slurm_mig.errors import NotPermitted

if TYPE_CHECKING:
    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.geometry import GpuProfile
    from slurm_mig.node.node import Node


@click.command()
@gpu_option
@json_option
def command(gpu: str, as_json: bool) -> None:
    """Show the profiles each GPU offers, and how many are free.

    In MIG mode the driver tells only root how many are free; others see "-" there.
    """
    with open_node(look=True) as node:
        gpus, faults = choose_gpus(node, gpu)
        rows = [row for item in gpus for row in _rows(node, item)]
    if as_json:
        print_json(rows)
    elif rows:
        _print(rows)
    for fault in faults:
        raise fault


def _print(rows: list[dict[str, Any]]) -> None:
    columns = ("decoders", "encoders", "copy_engines", "jpeg", "ofa")
    table(
        (
            "GPU",
            "PROFILE",
            "ID",
            "FREE/TOTAL",
            "GIB",
            "P2P",
            "SM",
            "DEC",
            "ENC",
            "CE",
            "JPEG",
            "OFA",
        ),
        [
            (
                row["gpu"],
                row["profile"],
                row["id"],
                f"{'-' if row['free'] is None else row['free']}/{row['total']}",
                None if row["memory_gib"] is None else f"{row['memory_gib']:.2f}",
                "Yes" if row["p2p"] else "No",
                row["sm"],
                *(row[name] for name in columns),
            )
            for row in rows
        ],
    )


def _rows(node: Node, gpu: Gpu) -> list[dict[str, Any]]:
    return [_row(node, gpu, row) for row in node.driver.offered(gpu)]


def _free(node: Node, gpu: Gpu, row: GpuProfile) -> int | None:
    """None where the driver tells nobody, or nobody but root: the table is for everybody."""
    try:
        return node.driver.remaining(gpu, row.profile_id)
    except NotPermitted:
        return None


def _row(node: Node, gpu: Gpu, row: GpuProfile) -> dict[str, Any]:
    return {
        "gpu": gpu.minor,
        "profile": str(row.name),
        "id": row.profile_id,
        "free": _free(node, gpu, row),
        "total": row.max_instances,
        "memory_gib": None if row.memory_mib is None else row.memory_mib / 1024,
        "p2p": row.p2p,
        "sm": row.multiprocessors,
        "decoders": row.engines.decoders,
        "encoders": row.engines.encoders,
        "copy_engines": row.copy_engines,
        "jpeg": row.engines.jpeg,
        "ofa": row.engines.ofa,
        "placements": [[place.start, place.size] for place in row.placements] or None,
    }
