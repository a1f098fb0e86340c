"""Files by which monitoring tools learn whose a slice is; each switched on by the config.

    <gpustat>/<MIG or GPU UUID>         "<job> <uid>": what jobstats' exporter reads (peers.md 1.10)
    <dcgm>/<GPU index>.<GI id>          one job a line: dcgm-exporter's DCGM_HPC_JOB_MAPPING_DIR
    <dcgm>/<GPU index>                  the same for a whole GPU

Monitoring is a courtesy: a file that cannot be written costs no job its slice. What
went wrong is kept in `problems`, for the hook's log line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import NodeFault
from slurm_mig.files import private_directory, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_mig.allocation import Allocation


class Feeds:
    """The mapping directories that the site wants; None for one it does not."""

    def __init__(self, gpustat: Path | None = None, dcgm: Path | None = None) -> None:
        self._gpustat = gpustat
        self._dcgm = dcgm
        self.problems: list[str] = []

    def show(self, record: Allocation, index: int) -> None:
        """Tell whose a record's slices or whole GPU are; `index` is NVML's of the GPU."""
        owner = record.owner
        if owner.job_id is None:
            return
        texts = (f"{owner.job_id} {owner.uid}\n", f"{owner.job_id}\n")
        for directory, text in zip((self._gpustat, self._dcgm), texts, strict=True):
            if directory is not None:
                self._write(directory, self._names(record, index, directory), text)

    def hide(self, record: Allocation, index: int) -> None:
        """Take the files of a record away again."""
        for directory in (self._gpustat, self._dcgm):
            if directory is not None:
                for name in self._names(record, index, directory):
                    self._remove(directory / name)

    def _names(self, record: Allocation, index: int, directory: Path) -> list[str]:
        names = _of_dcgm(record, index) if directory == self._dcgm else _of_gpustat(record)
        return list(dict.fromkeys(names))

    def _write(self, directory: Path, names: list[str], text: str) -> None:
        try:
            private_directory(directory, 0o755)
            for name in names:
                replace_file(directory / name, text, mode=0o644)
        except NodeFault as fault:
            self.problems.append(fault.cause)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            self.problems.append(f"remove {path}: {problem.strerror}")


def _of_gpustat(record: Allocation) -> Iterator[str]:
    yield from record.uuids or ([record.gpu_uuid] if record.whole else [])


def _of_dcgm(record: Allocation, index: int) -> Iterator[str]:
    for item in record.instances:
        if item.gi_id is not None:
            yield f"{index}.{item.gi_id}"
    if record.whole:
        yield str(index)
