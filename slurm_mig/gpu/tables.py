"""Profile tables of GPUs, kept for the hooks of one boot: to read them was half their calls.

They follow from the GPU and its driver, not from what is on the GPU, so they are not asked
anew under its lock as instances are. A hook that fails or refuses forgets them: should they
have been read wrongly, the next one has its own.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slurm_mig import __version__
from slurm_mig.errors import NodeFault, NoSpace, SlurmMigError
from slurm_mig.mig.geometry import Engines, Geometry, GpuProfile, Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import private_directory, read_own
from slurm_mig.values import asdict, dataclass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ComputeRow:
    """A profile of compute instances, as the driver numbers it; None for what it does not say."""

    profile_id: int
    slices: int
    multiprocessors: int | None


@dataclass(frozen=True, slots=True)
class Table:
    """A GPU's profiles, and those of compute instances by the profile that they are made in."""

    geometry: Geometry
    compute: Mapping[int, tuple[ComputeRow, ...]]


class Tables:
    """One file a GPU in `directory`, which is root's, good for this boot."""

    def __init__(self, directory: Path, boot: str) -> None:
        self._directory = directory
        self._boot = boot
        self._off = not boot

    def read(self, uuid: str, driver: str) -> Table | None:
        """What was kept of that GPU under a driver of that version; None for nothing good."""
        with suppress(OSError, NodeFault, ValueError, TypeError, LookupError, AttributeError):
            told = json.loads(read_own(self._directory / uuid))
            if not self._off and told["of"] == self._of(uuid, driver):
                compute = {
                    int(number): tuple(ComputeRow(*row) for row in rows)
                    for number, rows in told["compute"].items()
                }
                return Table(Geometry(tuple(map(_row, told["profiles"]))), compute)
        return None

    def keep(self, uuid: str, driver: str, table: Table) -> None:
        """Keep it for later hooks; nothing fails for want of it."""
        told = {
            "of": self._of(uuid, driver),
            "profiles": [asdict(row) for row in table.geometry.profiles],
            "compute": {
                str(number): [[row.profile_id, row.slices, row.multiprocessors] for row in rows]
                for number, rows in table.compute.items()
            },
        }
        if not self._off:
            with suppress(OSError, NodeFault, NoSpace):
                private_directory(self._directory, 0o700)
                replace_file(self._directory / uuid, json.dumps(told), mode=0o600)

    def forget(self) -> None:
        """Something went wrong: keep nothing of this hook's, and nothing of before."""
        self._off = True
        with suppress(OSError):
            for path in self._directory.iterdir():
                path.unlink(missing_ok=True)

    def _of(self, uuid: str, driver: str) -> list[str]:
        return [__version__, self._boot, driver, uuid]


class Memory:
    """What one session knows of profile tables: what was kept, and what it has read."""

    def __init__(self, kept: Tables | None) -> None:
        self._kept = kept
        self._version = ""
        self.geometries: dict[str, Geometry] = {}
        #: By the GPU's UUID and the profile of the GPU instance.
        self.compute: dict[tuple[str, int], tuple[ComputeRow, ...]] = {}
        #: GPUs of which something has been read that is not kept yet, by UUID.
        self.unkept: set[str] = set()

    def has(self, uuid: str, version: Callable[[], str]) -> bool:
        """Whether a GPU's table is known; `version` asks for the driver's."""
        if uuid in self.geometries or self._kept is None:
            return uuid in self.geometries
        try:
            self._version = self._version or version()
        except SlurmMigError:
            # No work fails for what only saves calls; those that follow say what is wrong.
            self._kept = None
            return False
        found = self._kept.read(uuid, self._version)
        if found is None:
            return False
        self.geometries[uuid] = found.geometry
        self.compute |= {(uuid, number): rows for number, rows in found.compute.items()}
        return True

    def keep(self) -> None:
        """Keep what has been read."""
        if self._kept is None:
            return
        for uuid in self.unkept:
            compute = {number: rows for (of, number), rows in self.compute.items() if of == uuid}
            self._kept.keep(uuid, self._version, Table(self.geometries[uuid], compute))


def _row(told: dict[str, Any]) -> GpuProfile:
    return GpuProfile(
        **told
        | {
            "name": Profile(**told["name"]),
            "placements": tuple(Placement(**place) for place in told["placements"]),
            "engines": Engines(**told["engines"]),
        }
    )
