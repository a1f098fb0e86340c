"""Files by which monitoring tools learn whose a slice is; each switched on by the config.

    <gpustat>/<MIG or GPU UUID>         "<job> <uid>": for jobstats (facts/design.md#monitoring)
    <dcgm>/<GPU index>.<GI id>          one job a line: dcgm-exporter's DCGM_HPC_JOB_MAPPING_DIR
    <dcgm>/<GPU index>                  the same for a whole GPU

Monitoring is a courtesy: a file that cannot be written costs no job its slice. What
went wrong is kept in `problems`, for the hook's log line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import NodeFault
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import private_directory

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from slurm_mig.mig.allocation import Allocation


class Feeds:
    """The mapping directories that the site wants; None for one it does not."""

    def __init__(self, gpustat: Path | None = None, dcgm: Path | None = None) -> None:
        self._gpustat = gpustat
        self._dcgm = dcgm
        self.problems: list[str] = []

    def show(self, record: Allocation, index: int) -> None:
        """Tell whose a record's slices or whole GPU are; `index` is NVML's of the GPU."""
        owner = record.owner
        if not owner.is_job:
            return
        if self._gpustat is not None:
            self._write(self._gpustat, _of_gpustat(record), f"{owner.job_id} {owner.uid}\n")
        if self._dcgm is not None:
            self._write(self._dcgm, _of_dcgm(record, index), f"{owner.job_id}\n")

    def hide(self, record: Allocation, index: int) -> None:
        """Take the files of a record away again."""
        if self._gpustat is not None:
            self._remove(self._gpustat, _of_gpustat(record))
        if self._dcgm is not None:
            self._remove(self._dcgm, _of_dcgm(record, index))

    def _write(self, directory: Path, names: Iterable[str], text: str) -> None:
        try:
            private_directory(directory, 0o755)
            for name in names:
                replace_file(directory / name, text, mode=0o644)
        except (NodeFault, OSError) as fault:
            self.problems.append(str(fault))

    def _remove(self, directory: Path, names: Iterable[str]) -> None:
        for name in names:
            try:
                (directory / name).unlink(missing_ok=True)
            except OSError as problem:
                self.problems.append(f"remove {directory / name}: {problem.strerror}")


def _of_gpustat(record: Allocation) -> tuple[str, ...]:
    """Not of what is gone: the next instance in its place has the same UUID."""
    uuids = tuple(item.uuid for item in record.present if item.uuid)
    return uuids or ((record.gpu_uuid,) if record.whole else ())


def _of_dcgm(record: Allocation, index: int) -> list[str]:
    if record.whole:
        return [str(index)]
    # Compute instances that share a GPU instance have one file.
    ids = dict.fromkeys(item.gi_id for item in record.present if item.gi_id is not None)
    return [f"{index}.{gi_id}" for gi_id in ids]
