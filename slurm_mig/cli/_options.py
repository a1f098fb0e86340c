"""Options that several verbs have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


class JobId(click.IntRange):
    """A job's own number. `12_3` is an array's task: Python reads it as 123, another job."""

    def __init__(self) -> None:
        super().__init__(1, 2**32 - 1)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # the base class's own answer
        """Refuse what is not digits alone, then as click does."""
        if "_" in str(value) or "+" in str(value):
            self.fail(
                f"{value!r} is an array's task or a component: name its own id, "
                f"`squeue -h -j {value} -O JobID`.",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number within bounds; `nan` lies within any, and all that is reckoned with it is nan."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:  # the base class's own answer
        """Refuse what is no number, then as click does."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


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
