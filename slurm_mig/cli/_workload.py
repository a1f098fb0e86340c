"""Jobs for `simulate` and `learn`: a trace or a sacct export, sorted for one GPU model."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._node import use_descriptions
from slurm_mig.cli._usage import OnePath
from slurm_mig.errors import UsageFault
from slurm_mig.mig import catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.packing.jobs import Trace
    from slurm_mig.packing.setups import Workload

trace_argument: Callable[[Any], Any] = click.argument(
    "trace", required=False, type=OnePath(path_type=Path, dir_okay=False)
)
sacct_option: Callable[[Any], Any] = click.option(
    "--sacct",
    type=OnePath(path_type=Path, dir_okay=False),
    help="Jobs as `sacct -a -X -P` wrote them, instead of a trace; needed are at least the "
    "columns Submit, Elapsed and AllocTRES.",
)
model_option: Callable[[Any], Any] = click.option(
    "--gpu",
    "name",
    required=True,
    help="GPU model to run them on: NVML name, catalogue key, or a file that describes it.",
)


def read(trace: Path | None, sacct: Path | None, name: str) -> tuple[Workload, Trace]:
    """The jobs that such a GPU can hold, and the file they are from."""
    from slurm_mig.packing import jobs
    from slurm_mig.packing.setups import workload

    if (trace is None) == (sacct is None):
        raise UsageFault("give a TRACE or --sacct FILE")
    use_descriptions()
    geometry = catalog.find(name).geometry()
    if trace is not None:
        found = jobs.read_trace(trace)
    else:
        assert sacct is not None  # noqa: S101 - one of the two is given
        size = sacct.stat().st_size if sacct.exists() else 0
        with bar(size, "reading") as tell:
            found = jobs.read_sacct(sacct, tell)
    return workload(found.jobs, geometry, found.left_out), found


@contextmanager
def bar(total: int, label: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal's stderr, told how far the work is; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield int
        return
    with click.progressbar(length=max(1, total), label=label, file=sys.stderr) as shown:
        yield lambda there: shown.update(there - shown.pos)


def tell_left_out(load: Workload) -> None:
    """Say what was not taken: figures without it are not the site's."""
    total = len(load.jobs.submit)
    for reason, count in load.left_out.most_common():
        click.echo(f"left out: {count} {reason} ({total} jobs are taken)", err=True)
