"""What a look does beside this node's own counts: for the whole cluster in turn, and for who waits.

The publishing nodes take turns, a minute each, so that one that is down costs a minute: every
node has `mig` in its Extra, and no job of ours stays held for a count that was 0.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import BadRequest, SlurmFault
from slurm_mig.mig.request import from_stamp
from slurm_mig.packing.states import CLOSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.packing.foresight import GpuState
    from slurm_mig.slurm.protocol import NodeFacts, Pending, Slurm

#: The type of `fit` that no job holds: it changes against all others, so that their sum stays.
#: slurmctld drains a node that registers while that is another one (facts/slurm.md#fit).
REST: Final = "rest"

#: The type of `fit` that every counted job holds.
START: Final = "start"

#: Seconds of one node's turn.
TURN: Final = 60

#: How Slurm calls it when it holds a job that no node can ever run.
HELD: Final = "BadConstraints"

#: Reasons of jobs that wait for nothing but room.
FOR_ROOM: Final = ("Constraints", "Resources", "Priority", "ReqNodeNotAvail", "None", HELD)

#: States in which a node takes no turn.
_AWAY: Final = frozenset({"DOWN", "NOT_RESPONDING", "FUTURE", "POWERED_DOWN"})

#: What a job waits for that wants all of a GPU: nothing of `fit` counts it.
WHOLE: Final = "whole"

_FIT: Final = re.compile(r"\bfit:([^:,]+)")
_MIG: Final = re.compile(r"\bmig:([^:,]+)")


def turn_of(nodes: Sequence[NodeFacts], name: str) -> tuple[int, int]:
    """This node's number among those that publish and answer, and how many they are."""
    names = sorted(
        facts.name for facts in nodes if "fit:" in facts.gres_text and not facts.state & _AWAY
    )
    return (names.index(name), len(names)) if name in names else (0, 1)


def has_turn(turn: tuple[int, int], now: float) -> bool:
    """Whether it is this node's minute; also where nobody knows how many there are."""
    number, nodes = turn
    return nodes < 1 or int(now // TURN) % nodes == number


def let_go(slurm: Slurm, pending: Sequence[Pending]) -> list[str]:
    """Release jobs of ours that Slurm holds for a count of 0; a line on each."""
    done = []
    for job in pending:
        if job.reason != HELD:
            continue
        # Cancelled meanwhile, or an administrator was faster.
        with suppress(SlurmFault):
            if counted_by_us(job, slurm.comment_of(str(job.job_id))):
                slurm.release(job.job_id)
                done.append(f"job {job.job_id} was held ({HELD}) and is released")
    return done


def counted_by_us(job: Pending, comment: str) -> bool:
    """Whether job_submit.lua has this job counted, by its stamp; it holds what that says.

    Another's job may have slices, too, and be held for what is not ours to judge.
    """
    with suppress(BadRequest):
        request = from_stamp(comment)
        counted = getattr(request, "counted", "")
        return bool(counted) and counted in _FIT.findall(job.tres_per_node)
    return False


def wants(job: Pending) -> str:
    """The type of `fit` that a job waits for, or WHOLE; empty for what has no count of its own.

    One profile is without a count of its own only where it is all of a GPU.
    """
    kinds: list[str] = _FIT.findall(job.tres_per_node)
    own = [kind for kind in kinds if kind != START]
    if own:
        return own[0]
    return WHOLE if kinds and len(_MIG.findall(job.tres_per_node)) == 1 else ""


def who_waits_long(
    pending: Sequence[Pending],
    facts: NodeFacts,
    turn: tuple[int, int],
    now: float,
    after: float,
) -> list[Pending]:
    """Jobs that have waited so long for room, the longest first, as far as they are this node's.

    Each is one node's to care for, and after some time the next one's: all nodes together
    would keep as many GPUs free for one job.
    """
    number, nodes = turn
    shift = int(now / (4 * after))
    return sorted(
        (
            job
            for job in pending
            if job.reason.startswith(FOR_ROOM)
            and 0 < job.since < now - after
            and (not facts.partitions or {*job.partition.split(",")} & facts.partitions)
            and (job.job_id + shift) % max(nodes, 1) == number
        ),
        key=lambda job: job.since,
    )


def gpu_to_keep(gpus: Sequence[GpuState], before: int) -> int:
    """The GPU that is soonest empty: the one kept already, else fewest shards, the last of equals.

    Slurm fills the first ones first. -1 where none can be carved.
    """
    able = [index for index, gpu in enumerate(gpus) if gpu.state != CLOSED and gpu.capacity]
    if before in able:
        return before
    return min(able, key=lambda index: (gpus[index].used, -index), default=-1)
