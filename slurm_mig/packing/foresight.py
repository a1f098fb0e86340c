"""Which starts of jobs would succeed now, if Slurm chose the GPU. Pure; nothing is asked.

What a node publishes (facts/packing.md#publishing) and what lets a refused job go again
are answers of `foresee`:

    space = Space(geometry, policy)                       # one for each GPU model, kept
    gpus = [Gpu(space, space.state(slots), used=35, capacity=31), ...]   # by Slurm's index
    kinds = [Kind("3g.40gb", request, shards=14), ..., Kind("7g.80gb", request, 31, counted=False)]
    seen = foresee(gpus, kinds, Rule.PACK, most=2)
    seen.counts["3g.40gb"]      # starts in a row of that kind alone that would succeed
    seen.starts                 # starts in a row of any kinds that would all succeed: 1 to `most`

`used` is what Slurm counts there (a job with the whole GPU has all of `capacity`), `state` what
lies there, slices of ended jobs included. A GPU that cannot be carved has the state CLOSED. A
published total is what is in use of the kind plus `counts`; `fit:start` is the jobs
there plus `starts`. A kind that is not `counted` gets no count, but may start between others, and
`starts` allows for it. Where the node chooses (`Rule.NODE`) every kind has to be counted: Slurm's
shards say no more than that there may be room.

Slurm's choice was measured on 24.11 and 26.05 (facts/slurm.md): the lowest index with room, or
with LL_SHARED_GRES the one with fewest shards in use, of equals the lowest.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from slurm_mig.packing.states import REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slurm_mig.mig.request import Request
    from slurm_mig.packing.states import Need, Space

#: Situations in which `safe_starts` looks at every next start: some 50 ms of a hook's time.
MOST_ROWS: Final = 2000

#: No GPU has shards enough: Slurm does not start the job, and nothing is lost.
NOWHERE: Final = -1


class ChoiceRule(Enum):
    """Who chooses the GPU of a start, and how."""

    PACK = "pack"
    LEAST_LOADED = "least-loaded"
    NODE = "node"


class GpuState(NamedTuple):
    """One GPU of a node, in the order of Slurm's indexes; `used` and `capacity` in shards.

    `type` is Slurm's type name, for kinds whose shards are of a type.
    """

    space: Space
    state: int
    used: int
    capacity: int
    type: str = ""


class RequestKind(NamedTuple):
    """Jobs with one request: how Slurm counts them, and what they pay in shards of one GPU.

    `types`: GPU types whose shards it asks for; empty for any. `counted`: whether the node
    publishes a number of its own for it.
    """

    name: str
    request: Request
    shards: int
    types: tuple[str, ...] = ()
    counted: bool = True


class Foresight(NamedTuple):
    """How many starts in a row succeed: of each counted kind alone, and of any together."""

    counts: dict[str, int]
    starts: int


class Start(NamedTuple):
    """What one start would do: GPU that Slurm picked, GPU with the slices, its state then.

    `picked` is NOWHERE where Slurm has no room, `after` REFUSED where the start fails.
    """

    picked: int
    place: int = NOWHERE
    after: int = REFUSED


class NodeState:
    """The GPUs of a node in the middle of thought: starts can be tried, made and taken back."""

    def __init__(self, gpus: Iterable[GpuState], rule: ChoiceRule) -> None:
        self.gpus = list(gpus)
        self.rule = rule
        self.used = [gpu.used for gpu in self.gpus]
        self.states = [gpu.state for gpu in self.gpus]
        self._needs: dict[str, list[Need | None]] = {}

    def needs(self, kind: RequestKind) -> list[Need | None]:
        """What the kind is on each GPU; None where Slurm does not put it."""
        found = self._needs.get(kind.name)
        if found is None:
            found = self._needs[kind.name] = [
                gpu.space.need(kind.request) if not kind.types or gpu.type in kind.types else None
                for gpu in self.gpus
            ]
        return found

    def pick(self, kind: RequestKind) -> int:
        """The GPU that Slurm would take, or NOWHERE."""
        best, least = NOWHERE, 0
        for index, need in enumerate(self.needs(kind)):
            used = self.used[index]
            if need is None or used + kind.shards > self.gpus[index].capacity:
                continue
            if self.rule is not ChoiceRule.LEAST_LOADED:
                return index
            if best == NOWHERE or used < least:
                best, least = index, used
        return best

    def try_start(self, kind: RequestKind) -> Start:
        """What a start of this kind would do now."""
        index = self.pick(kind)
        if index == NOWHERE:
            return Start(NOWHERE)
        if self.rule is ChoiceRule.NODE:
            return Start(index, *self._own_choice(kind, index))
        need = self.needs(kind)[index]
        assert need is not None  # noqa: S101 - Slurm's pick has the profile
        return Start(index, index, self.gpus[index].space.after(self.states[index], need))

    def _own_choice(self, kind: RequestKind, index: int) -> tuple[int, int]:
        """The node's GPU: Slurm's, if it has a slot; else where least stops being possible.

        Slurm goes on counting by its own choice: each start elsewhere makes its counts less true.
        """
        best: tuple[tuple[int, ...], int, int] | None = None
        needs = self.needs(kind)
        for place in (index, *range(len(needs))):
            need = needs[place]
            after = REFUSED
            if need is not None:
                after = self.gpus[place].space.after(self.states[place], need)
            if after == REFUSED:
                continue
            if place == index:
                return place, after
            cost = self.gpus[place].space.loss(self.states[place], after)
            if best is None or cost < best[0]:
                best = (cost, place, after)
        return (NOWHERE, REFUSED) if best is None else best[1:]

    def make(self, kind: RequestKind, start: Start) -> tuple[int, int, int]:
        """Let a start happen; what `take_back` wants to undo it."""
        before = (start.picked, start.place, self.states[start.place])
        self.used[start.picked] += kind.shards
        self.states[start.place] = start.after
        return before

    def take_back(self, kind: RequestKind, before: tuple[int, int, int]) -> None:
        """Undo the last start that was made."""
        index, place, state = before
        self.used[index] -= kind.shards
        self.states[place] = state

    def in_a_row(self, kind: RequestKind, most: int) -> int:
        """Starts of this kind alone that would succeed one after the other, up to `most`."""
        return self._row(kind, most)[0]

    def before_refused(self, kind: RequestKind, most: int) -> int:
        """The same, but `most` where it is Slurm that starts no more: then none is refused."""
        count, refused = self._row(kind, most)
        return count if refused else most

    def _row(self, kind: RequestKind, most: int) -> tuple[int, bool]:
        """Starts in a row, and whether the next one would be refused."""
        made: list[tuple[int, int, int]] = []
        refused = False
        while len(made) < most:
            start = self.try_start(kind)
            if start.after == REFUSED:
                refused = start.picked != NOWHERE
                break
            made.append(self.make(kind, start))
        for before in reversed(made):
            self.take_back(kind, before)
        return len(made), refused


def foresee(
    gpus: Iterable[GpuState], kinds: Sequence[RequestKind], rule: ChoiceRule, most: int = 2
) -> Foresight:
    """What would succeed now, start after start, with Slurm's or the node's choice of GPU.

    Starts are made only of kinds whose count is above 0, none more often than its count says.
    `most` bounds `starts`, which is at least 1.
    """
    node = NodeState(gpus, rule)
    ceiling = 8 * len(node.gpus)
    left = {kind.name: node.in_a_row(kind, ceiling) for kind in kinds}
    counts = {kind.name: left[kind.name] for kind in kinds if kind.counted}
    return Foresight(counts, safe_starts(node, kinds, left, most))


def safe_starts(
    node: NodeState, kinds: Sequence[RequestKind], left: dict[str, int], most: int
) -> int:
    """Starts in a row of any kinds, each as often as `left` says, that would all succeed.

    Fewer where there are too many rows to try: a hook asks, and a job waits for it.
    """
    rows = _Rows(node, kinds, left)
    starts = 1
    while starts < most and rows.all_succeed(starts + 1):
        starts += 1
    return starts


class _Rows:
    """Sequences of starts that Slurm would make, tried one start after the other."""

    def __init__(self, node: NodeState, kinds: Sequence[RequestKind], left: dict[str, int]) -> None:
        self._node = node
        self._kinds = kinds
        self._left = left
        # Rows of the same starts in another order mostly end alike: tried once.
        self._good: set[tuple[int, ...]] = set()

    def all_succeed(self, depth: int) -> bool:
        """Whether no sequence of so many starts ends in a refusal; False if too many to tell."""
        node, left = self._node, self._left
        here = (depth, *node.states, *node.used, *left.values())
        if here in self._good:
            return True
        if len(self._good) >= MOST_ROWS:
            return False
        for kind in self._kinds:
            # What is not counted nobody holds back.
            if kind.counted and left[kind.name] < 1:
                continue
            start = node.try_start(kind)
            if start.picked == NOWHERE:
                continue
            if start.after == REFUSED or (depth > 1 and not self._rest(depth, kind, start)):
                return False
        self._good.add(here)
        return True

    def _rest(self, depth: int, kind: RequestKind, start: Start) -> bool:
        before = self._node.make(kind, start)
        self._left[kind.name] -= 1
        good = self.all_succeed(depth - 1)
        self._left[kind.name] += 1
        self._node.take_back(kind, before)
        return good
