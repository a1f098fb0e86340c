"""The GPU as it was found: no instance, no node of one, its MIG mode. Also after a killed run."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.acceptance.place import remove_area
from slurm_mig.errors import InstanceBusy, NodeFault, SlurmMigError
from slurm_mig.state.locks import Locks
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import private_directory, read_own

if TYPE_CHECKING:
    from slurm_mig.mig.driver import Driver, Gpu
    from slurm_mig.node.node import Node

#: Seconds for instances to go, and for what a killed run's hooks still do.
PATIENCE: Final = 20.0
_PAUSE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Found:
    """How a GPU was found, written down before anything is changed."""

    uuid: str
    mig_mode: bool
    boot: str
    area: str
    began: str


class Journal:
    """The note of the run that is on, or was killed; below the run directory, gone with a boot."""

    def __init__(self, run: Path, uuid: str) -> None:
        self._path = run / "acceptance" / f"{uuid}.json"

    def read(self) -> Found | None:
        """What a run before this one left; NodeFault where it cannot be read."""
        if not self._path.exists():
            return None
        try:
            return Found(**json.loads(read_own(self._path)))
        except (OSError, ValueError, TypeError) as problem:
            raise NodeFault(
                f"{self._path} is damaged: {problem}",
                remedy="look at the GPU with `slurm-mig status`, then remove the file",
            ) from problem

    def write(self, found: Found) -> None:
        """Before the first change."""
        private_directory(self._path.parent.parent, 0o755)
        private_directory(self._path.parent, 0o700)
        replace_file(self._path, json.dumps(asdict(found)), mode=0o600)

    def done(self) -> None:
        """Nothing is left to be restored."""
        self._path.unlink(missing_ok=True)


def clear(
    driver: Driver, gpu: Gpu, patience: float, keep: frozenset[int] = frozenset()
) -> list[str]:
    """Take down every instance but those with the ids to `keep`; placements of what stays."""
    until = time.monotonic() + patience
    while True:
        with suppress(InstanceBusy):
            for item in driver.instances(gpu):
                if item.gi_id not in keep:
                    for compute in item.compute:
                        driver.destroy_compute_instance(gpu, item.gi_id, compute.ci_id)
                    driver.destroy_gpu_instance(gpu, item.gi_id)
        left = [item for item in driver.instances(gpu) if item.gi_id not in keep]
        if not left or time.monotonic() >= until:
            return [str(item.placement) for item in left]
        time.sleep(_PAUSE)


def restore(node: Node, found: Found, patience: float = PATIENCE) -> list[str]:
    """Bring a GPU back to how it was found; what could not be done, one line each.

    The caller has the GPU's lock. What the site's ledger knows by now is left alone.
    `patience`: seconds for instances that are in use.
    """
    with suppress(FileNotFoundError):
        _quiet(Path(found.area), found.uuid)
    problems: list[str] = []
    if found.boot == node.boot_id:
        try:
            problems = _restored(node, found, patience)
        except SlurmMigError as fault:
            problems = [str(fault)]
    if not problems:
        remove_area(Path(found.area))
    return problems


def _restored(node: Node, found: Found, patience: float) -> list[str]:
    driver = node.driver
    gpu = driver.gpu(found.uuid)
    here = node.ledger.open_on(gpu.uuid) if node.config.ledger.exists() else []
    keep = frozenset(
        item.gi_id for record in here for item in record.present if item.gi_id is not None
    )
    kept = [f"instance at {place} stays" for place in clear(driver, gpu, patience, keep)]
    node.capabilities.remove_stale(gpu.minor)
    gpu = driver.gpu(found.uuid)
    if not kept and not here and gpu.mig_mode != found.mig_mode:
        gpu = driver.set_mig_mode(gpu, on=found.mig_mode)
        if gpu.mig_mode != found.mig_mode:
            kept.append(f"MIG mode stays {'on' if gpu.mig_mode else 'off'}")
    return kept


def _quiet(area: Path, uuid: str) -> None:
    """Wait for a hook that a killed run has left running: it has the private lock."""
    locks = area / "run" / "locks"
    if area.is_dir() and area.stat().st_uid == os.geteuid() and locks.is_dir():
        with Locks(locks, PATIENCE).hold([uuid], "restore", ask=True):
            pass
