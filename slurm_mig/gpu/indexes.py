"""Which GPU Slurm means by an index: what was agreed for the node, not what is listed just now.

SLURM_JOB_GPUS counts along gres.conf. A GPU that falls off the bus leaves the driver's list
without an error, and then every later one would be counted one too low: a job would be
carved on a neighbour's GPU. So the device minors are written down when all are there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import private_directory, read_own, trusted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: Name of the file in the state directory.
NAME: Final = "gpus"


def read(state: Path) -> tuple[int, ...] | None:
    """Device minors by Slurm's index, as agreed; None where nothing was agreed yet.

    Raises NodeFault for a file that is damaged, or that somebody else could have written.
    """
    path = state / NAME
    try:
        with trusted(state):
            text = read_own(path)
    except OSError:
        return None
    if not text:
        return None
    try:
        minors = json.loads(text)["minors"]
        if all(type(minor) is int and minor >= 0 for minor in minors):
            return tuple(minors)
    except (ValueError, TypeError, LookupError):
        pass
    raise NodeFault(
        f"{path} is damaged: {text[:60]!r}",
        remedy=f"remove {path} while all GPUs are there, and run `slurm-mig reconcile --boot`",
    )


def write(state: Path, minors: Sequence[int]) -> None:
    """Agree on these minors from now on."""
    private_directory(state, 0o700)
    replace_file(state / NAME, json.dumps({"minors": [*minors]}) + "\n", mode=0o600)


def beyond(agreed: Sequence[int], here: Sequence[int]) -> tuple[int, ...] | None:
    """The agreement with GPUs that came behind the last one; None where one went, or came between.

    `here` are the minors that the driver shows.
    """
    new = sorted(set(here) - set(agreed))
    if set(agreed) - set(here) or (new and agreed and new[0] < max(agreed)):
        return None
    return (*agreed, *new)
