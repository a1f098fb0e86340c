"""What a CUDA process does before it computes: find its devices and open their nodes.

A MIG device needs the GPU's node, the GPU instance's and the compute instance's
capability node, each opened for reading (facts/mig.md#capabilities). Simulated nodes have no
driver behind them: ENXIO on open means that the permission check passed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slurm_mig.errors import NotPermitted, UsageFault
from slurm_mig.simulator.board import sorted_devices
from slurm_mig.simulator.tree import ci_minor, gi_minor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_mig.simulator.machine import Machine


@dataclass(frozen=True, slots=True)
class Device:
    """A device that CUDA would show, with the nodes it takes."""

    uuid: str
    name: str
    nodes: tuple[Path, ...]


def devices(machine: Machine) -> Iterator[Device]:
    """All MIG devices, and GPUs that are not in MIG mode."""
    for index, facts in enumerate(machine.gpus):
        board, minor = machine.board(index), facts["minor"]
        node = machine.tree.dev / f"nvidia{minor}"
        if not board.mig_current:
            yield Device(facts["uuid"], facts["name"], (node,))
        caps = machine.tree.dev / "nvidia-caps"
        for gi, ci in sorted_devices(board):
            yield Device(
                board.mig_uuid(gi, ci),
                f"{facts['name']} MIG {board.row(gi.profile_id).name}",
                (
                    node,
                    caps / f"nvidia-cap{gi_minor(minor, gi.gi_id)}",
                    caps / f"nvidia-cap{ci_minor(minor, gi.gi_id, ci.ci_id)}",
                ),
            )


def open_devices(machine: Machine, visible: str) -> list[Device]:
    """The devices named by CUDA_VISIBLE_DEVICES, opened as the calling user may.

    Raises UsageFault for a device that does not exist, NotPermitted for one that
    the caller may not open.
    """
    known = {device.uuid: device for device in devices(machine)}
    chosen = []
    for uuid in filter(None, visible.split(",")):
        if uuid not in known:
            raise UsageFault(f"no CUDA-capable device {uuid!r} is detected")
        for node in known[uuid].nodes:
            reach(node)
        chosen.append(known[uuid])
    return chosen


def reach(node: Path) -> None:
    """Open a device node for reading; NotPermitted says who may."""
    try:
        os.close(os.open(node, os.O_RDONLY))
    except OSError as problem:
        if problem.errno == errno.ENXIO:
            return
        raise NotPermitted(f"open {node}: {problem.strerror}") from problem
