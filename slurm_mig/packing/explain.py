"""Every place that a request could have on a node, what each would leave, and which it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from slurm_mig.mig.plan import Score, Slot, candidates, fitting, score_of
from slurm_mig.packing.foresight import NOWHERE, ChoiceRule, NodeState
from slurm_mig.packing.states import CLOSED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurm_mig.packing.foresight import GpuState, RequestKind, Start
    from slurm_mig.packing.states import Need


class Place(NamedTuple):
    """One legal choice: GPU by Slurm's index, starts, what it leaves, and whether it is taken."""

    gpu: int
    starts: tuple[int, ...]
    score: Score
    then_fits: dict[str, int]
    chosen: bool


class View(NamedTuple):
    """A GPU as the request meets it: shards as Slurm counts, what lies there, why not."""

    gpu: int
    used: int
    capacity: int
    there: tuple[str, ...]
    why_not: str


class Answer(NamedTuple):
    """All of it: every GPU, every legal place, and what a start would do now, in one sentence."""

    gpus: list[View]
    places: list[Place]
    verdict: str
    succeeds: bool


#: How each rule chooses, in words.
RULES: Final = {
    ChoiceRule.PACK: "the lowest index with room",
    ChoiceRule.LEAST_LOADED: "the one with fewest shards in use",
    ChoiceRule.NODE: "the node's own choice",
}


def explain(gpus: Sequence[GpuState], kind: RequestKind, rule: ChoiceRule) -> Answer:
    """What a start of this kind would meet now."""
    node = NodeState(gpus, rule)
    start = node.try_start(kind)
    needs = node.needs(kind)
    places = [
        place
        for index, need in enumerate(needs)
        if need is not None
        for place in _places(gpus[index], index, need, start)
    ]
    views = [_view(gpu, index, kind, needs[index], places) for index, gpu in enumerate(gpus)]
    return Answer(views, places, _verdict(node, kind, start, views), start.after != REFUSED)


def _places(gpu: GpuState, index: int, need: Need, start: Start) -> Iterator[Place]:
    space, state = gpu.space, gpu.state
    after = space.after(state, need)
    if after == REFUSED:
        return
    taken = space.slots(state)
    for places, _ in candidates(need.rows, space.occupied(state)):
        new = [Slot(row, place) for row, place in zip(need.rows, places, strict=True)]
        present = [*taken, *new]
        yield Place(
            index,
            tuple(place.start for place in places),
            score_of(space.geometry, present, new),
            {name: n for name, n in fitting(space.geometry, present).items() if n},
            space.state(present) == after and index == start.place,
        )


def _view(
    gpu: GpuState, index: int, kind: RequestKind, need: Need | None, places: Sequence[Place]
) -> View:
    slots = [] if gpu.state == CLOSED else gpu.space.slots(gpu.state)
    there = tuple(str(slot) for slot in sorted(slots, key=lambda slot: slot.placement))
    why_not = ""
    if gpu.state == CLOSED:
        why_not = "out of management, in use as a whole, or it does not answer"
    elif need is None:
        why_not = "it does not have these profiles"
    elif gpu.used + kind.shards > gpu.capacity:
        why_not = f"{gpu.capacity - gpu.used} shards are free, {kind.shards} are needed"
    elif not any(place.gpu == index for place in places):
        why_not = "shards are free, but no place is: fragmented"
    return View(index, gpu.used, gpu.capacity, there, why_not)


def _verdict(node: NodeState, kind: RequestKind, start: Start, views: Sequence[View]) -> str:
    if start.picked == NOWHERE:
        return f"{kind.name}: no GPU has {kind.shards} shards free; Slurm does not start it"
    rule = RULES[node.rule]
    if start.after == REFUSED:
        others = [view.gpu for view in views if not view.why_not]
        hint = f"; GPU {others[0]} has a place, but Slurm does not take it" if others else ""
        return (
            f"{kind.name}: Slurm would take GPU {start.picked} ({rule}), where it is refused{hint}"
        )
    if start.place != start.picked:
        return (
            f"{kind.name}: Slurm counts it on GPU {start.picked}, the node has it on {start.place}"
        )
    return f"{kind.name}: Slurm would take GPU {start.picked} ({rule}), where it starts"
