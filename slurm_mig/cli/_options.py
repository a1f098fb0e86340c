"""Options that several verbs have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)

#: As with nvidia-smi: `-i` names a GPU, and without it a command means all of them.
gpu_option: Callable[[Any], Any] = click.option(
    "-i", "--gpu", "gpu", default="all", help="Device minor or UUID; all GPUs if not given."
)
dry_run_option: Callable[[Any], Any] = click.option(
    "--dry-run", is_flag=True, help="Only say what would be done."
)
