"""Which boot of this machine it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.system.causes import out_of_order

if TYPE_CHECKING:
    from pathlib import Path


def boot_id(path: Path) -> str:
    """The kernel's id of this boot (proc(5), /proc/sys/kernel/random/boot_id)."""
    try:
        return path.read_text("ascii").strip()
    except OSError as problem:
        raise out_of_order(problem, f"read boot id from {path}") from problem
