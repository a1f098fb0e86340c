"""A node that ends its management, and boots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.mig.allocation import Owner
from slurm_mig.node.boot import Boot, bring_up
from slurm_mig.node.retire import Retirement, parse_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site


class Time:
    """A clock that only goes by sleeping, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.happens: dict[float, Callable[[], object]] = {}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.happens.pop(self.now, lambda: None)()

    def monotonic(self) -> float:
        return self.now


def up(site: Site, wait: float = 0, time: Time | None = None) -> Boot:
    time = time or Time()
    node = site.node()
    try:
        return bring_up(node, wait, time.sleep, time.monotonic)
    finally:
        node.close()


ROOT = Owner(None, user="root")


def retire(site: Site, layout: str, index: int = 0, *, mig_off: bool = False) -> str:
    """Retire one GPU; returns its layout."""
    node = site.node()
    try:
        gpu = node.driver.gpus()[index]
        return Retirement(node, ROOT).retire(gpu, parse_layout(layout), mig_off=mig_off).layout
    finally:
        node.close()


def made(site: Site, index: int = 0) -> list[str]:
    board = site.machine.board(index)
    return sorted(
        f"{board.row(item.profile_id).name}@{item.start}" + "!" * (len(item.compute) != 1)
        for item in board.instances
    )


def marks(site: Site) -> dict[str, str]:
    node = site.node()
    try:
        names = {gpu.uuid: gpu.minor for gpu in node.driver.gpus()}
        return {str(names[uuid]): mark.layout for uuid, mark in node.ledger.retired().items()}
    finally:
        node.close()


CHANGING = (
    "nvmlDeviceSetMigMode",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlComputeInstanceDestroy",
    "nvmlGpuInstanceDestroy",
)
