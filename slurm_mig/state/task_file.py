"""Allocation -> the file by which a job's tasks learn what they see. Pure.

The Prolog writes it under the run directory. The TaskProlog, a plain shell script
that runs as the user for every task, reads it, picks the task's share and tells
slurmd. Lines, each a word and its values:

    slice UUID PROFILE INDEX GPU   one MIG device; INDEX is its GPU's in Slurm's count
    whole                          the slices stand for whole GPUs: a step sees its GPUs' ones
    several PROFILE:COUNT;...      whole GPUs that are paid for slices, and what is on each: a
                                   step sees as many slices of its GPUs as it asked for
    shards N                       what the job pays: a step with fewer sees a part
    share N PROFILE:COUNT ...      what a step with N shards asked for; `ask` if that is not
                                   the only combination of that price
    bind task|none                 the site's default for binding tasks to slices
    leases PATH                    where steps write down which slices they took
    scontrol PATH                  whom to ask
    containers                     say it to container runtimes, too
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Final

from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.mig.request import Request

#: A step's request that its shards do not tell.
ASK: Final = "ask"


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What a site decides about tasks.

    `bind` is `task` or `none`; `containers` whether NVIDIA_VISIBLE_DEVICES is
    exported; `leases` the beginning of a path that users may write, where there is none of
    root's; `scontrol` the program, or empty where it was not found.
    """

    bind: str = "task"
    containers: bool = False
    leases: str = ""
    scontrol: str = ""


def slice_lines(record: Allocation, request: Request, settings: TaskSettings, leases: str) -> str:
    """The file of a job with slices; `leases` is a path of its own, empty for a single slice."""
    lines = [*_slices(record, 0)]
    prices = [item.shards for item in request.items]
    if None not in prices:
        lines += [f"shards {sum(filter(None, prices))}"]
        if len(record.instances) > 1:
            lines += [f"share {price} {what}" for price, what in sorted(shares(request).items())]
    lines += [f"bind {settings.bind}"]
    if leases:
        lines += [f"leases {leases}"]
    if settings.scontrol:
        lines += [f"scontrol {settings.scontrol}"]
    return _text(lines, settings)


def several_lines(
    given: Sequence[tuple[int, Allocation]], settings: TaskSettings, leases: str
) -> str:
    """The file of a job with slices on several GPUs: (Slurm's index, allocation) of each GPU.

    What a step asked for stands in no variable: its GPUs do, and Slurm tells the rest.
    """
    parts = ";".join(record.request for _, record in given)
    lines = [f"several {parts}"]
    lines += [line for index, record in given for line in _slices(record, index)]
    lines += [f"bind {settings.bind}", f"leases {leases}"]
    if settings.scontrol:
        lines += [f"scontrol {settings.scontrol}"]
    return _text(lines, settings)


def whole_lines(gpus: Sequence[tuple[int, str, Allocation | None]], settings: TaskSettings) -> str:
    """The file of a job with whole GPUs: (Slurm's index, UUID, allocation of a managed GPU).

    Where none of them is in MIG mode there is nothing to say: Slurm's own variables hold.
    Where some are, all are named by UUID, for indexes and MIG UUIDs do not mix.
    """
    lines = ["whole"]
    if any(record and record.instances for _, _, record in gpus):
        for index, uuid, record in gpus:
            if record is not None and record.instances:
                lines += _slices(record, index)
            else:
                lines += [f"slice {uuid} whole {index} {uuid}"]
    return _text([*lines, f"bind {settings.bind}"], settings)


def _slices(record: Allocation, index: int) -> Iterator[str]:
    for item in record.instances:
        yield f"slice {item.uuid} {item.profile} {index} {record.gpu_uuid}"


def _text(lines: Sequence[str], settings: TaskSettings) -> str:
    return "".join(f"{line}\n" for line in (*lines, *(["containers"] * settings.containers)))


def shares(request: Request) -> dict[int, str]:
    """What each number of shards can mean to a step: its profiles and counts, or `ask`."""
    found: dict[int, str] = {}
    for counts in product(*(range(item.count + 1) for item in request.items)):
        chosen = [(item, count) for item, count in zip(request.items, counts, strict=True) if count]
        price = sum(item.worth(count) or 0 for item, count in chosen)
        what = " ".join(f"{item.profile}:{count}" for item, count in chosen)
        if chosen:
            found[price] = ASK if price in found else what
    return found


def refusal_lines(reason: str) -> str:
    """The text for slurmd when the job was refused: the user reads why."""
    return f"print slurm-mig: {' '.join(reason.split())}\n"
