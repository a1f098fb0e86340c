"""Slurm's queue over MIG nodes, job after job: what a set-up would have made of these jobs.

The planner, the foresight and the gate are the product's own (`states`, `foresight`); Slurm is
modelled: submit order, EASY backfill (the first job that cannot start reserves the GPU that
has room for it first, by time limits; later ones start if that is not put off), each start on
the GPU that Slurm would take. Left out: docs/packing.md says what.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from enum import Enum
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple

from slurm_mig.packing.foresight import NOWHERE, ChoiceRule, NodeState, Start, safe_starts
from slurm_mig.packing.states import REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurm_mig.packing.foresight import GpuState, RequestKind

#: Jobs that a scheduling pass looks at.
DEPTH: Final = 100

#: Requeues per job, on average, at which a replay ends: it would go on for ever.
LIVELOCK: Final = 25

#: Seconds until a refused job is tried again without a gate.
RETRY_AFTER: Final = 120.0

#: Seconds from a start to the counts that know of it; an end publishes before Slurm knows.
PUBLISHED_AFTER: Final = 0.3

#: Starts between two publications, as nodes have it (`ahead` in config.toml).
AHEAD: Final = 8

#: Events of one time, in this order.
END, PUBLISH, RETRY = range(3)

#: Steps between two calls of `tell`.
STEPS: Final = 2000


class Retry(Enum):
    """What keeps a job from a GPU that has no slot for it, and when a refused one comes again."""

    BLIND = "blind"
    GATE = "gate"
    PUBLISH = "publish"
    #: Not a set-up that exists: Slurm sees slots. What the others are measured by.
    AWARE = "slot-aware"


class Jobs(NamedTuple):
    """Jobs in the order of submission; times in seconds, `limit` what Slurm expects."""

    submit: Sequence[float]
    kind: Sequence[int]
    run: Sequence[float]
    limit: Sequence[float]


class Outcome(NamedTuple):
    """Start of each job (negative: it never started) and how often it was refused."""

    start: list[float]
    refused: list[int]
    livelock: bool


class _Reserved(NamedTuple):
    node: int
    gpu: int
    time: float
    spare: int


class Board:
    """A node in the replay: its GPUs, when Slurm expects room, and what it has published."""

    def __init__(self, gpus: Sequence[GpuState], rule: ChoiceRule) -> None:
        self.now = NodeState(gpus, rule)
        self.capacity = [gpu.capacity for gpu in gpus]
        # By Slurm's index: expected end, shards, bits of the state; earliest first.
        self.ends: list[list[tuple[float, int, int, int]]] = [[] for _ in gpus]
        self._kind_ends: dict[str, list[float]] = {}
        self._room: list[dict[int, tuple[float, int]]] = [{} for _ in gpus]
        self._then = NodeState(gpus, rule)
        self._left: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self._starts = 0
        self.pending = False

    def publish(self) -> None:
        """Counts are what can be foreseen from here on; they are worked out when asked for."""
        self._then.used[:] = self.now.used
        self._then.states[:] = self.now.states
        self._left.clear()
        self._taken.clear()
        self._starts = 0
        self.pending = False

    def lets(self, kind: RequestKind, kinds: Sequence[RequestKind], most: int) -> bool:
        """Whether Slurm's published counts allow one more start of this kind."""
        if kind.counted and self._count(kind) <= self._taken.get(kind.name, 0):
            return False
        if not self._starts:
            return True
        left = {item.name: self._count(item) for item in kinds}
        # Only whether one more is safe.
        soon = self._starts + 1
        return soon <= most and safe_starts(self._then, kinds, left, soon) == soon

    def _count(self, kind: RequestKind) -> int:
        found = self._left.get(kind.name)
        if found is None:
            found = self._left[kind.name] = self._then.in_a_row(kind, 8 * len(self.capacity))
        return found

    def took(self, kind: RequestKind) -> None:
        """Slurm counts its own starts off what was published."""
        self._taken[kind.name] = self._taken.get(kind.name, 0) + 1
        self._starts += 1

    def start(self, kind: RequestKind, start: Start, end: float, job: int) -> int:
        """Put a job there until `end`, as Slurm expects; the bits of its slices."""
        bits = start.after ^ self.now.states[start.place]
        self.now.make(kind, start)
        insort(self.ends[start.picked], (end, kind.shards, bits, job))
        self._room[start.picked].clear()
        insort(self._kind_ends.setdefault(kind.name, []), end)
        return bits

    def end(self, kind: RequestKind, where: tuple[int, int, int], end: float, job: int) -> None:
        """Take a job away: Slurm's index, the GPU it was on, its bits."""
        index, place, bits = where
        self.now.used[index] -= kind.shards
        self.now.states[place] ^= bits
        ends = self.ends[index]
        del ends[bisect_left(ends, (end, kind.shards, bits, job))]
        self._room[index].clear()
        ends_of_kind = self._kind_ends[kind.name]
        del ends_of_kind[bisect_left(ends_of_kind, end)]

    def counted_at(self, kind: RequestKind, now: float, *, planned: bool) -> float:
        """When Slurm expects a published count to be free: at the end of a job that has one.

        Never, where none is in use or none is published: such a job waits for `Constraints`.
        """
        if not kind.counted or self._count(kind) > self._taken.get(kind.name, 0):
            return now
        ends = self._kind_ends.get(kind.name) if planned else None
        return ends[0] if ends else float("inf")

    def room_at(self, index: int, kind: RequestKind, now: float) -> tuple[float, int]:
        """When Slurm expects room on a GPU, and the shards it has left then beside the job."""
        free = self.capacity[index] - self.now.used[index] - kind.shards
        if free >= 0:
            return now, free
        found = self._room[index].get(kind.shards)
        if found is None:
            found = (float("inf"), 0)
            for end, shards, _, _ in self.ends[index]:
                free += shards
                if free >= 0:
                    found = (end, free)
                    break
            self._room[index][kind.shards] = found
        return found

    def slot_at(self, index: int, kind: RequestKind, now: float) -> tuple[float, int]:
        """When a GPU has a slot, for a Slurm that sees slots."""
        need = self.now.needs(kind)[index]
        if need is None:
            return float("inf"), 0
        space, state = self.now.gpus[index].space, self.now.states[index]
        if space.after(state, need) != REFUSED:
            return now, self.capacity[index] - self.now.used[index] - kind.shards
        free = self.capacity[index] - self.now.used[index] - kind.shards
        for end, shards, bits, _ in self.ends[index]:
            state ^= bits
            free += shards
            if space.after(state, need) != REFUSED:
                return end, free
        return float("inf"), 0


class Replay:
    """One run over all jobs."""

    def __init__(
        self,
        nodes: Sequence[Sequence[GpuState]],
        kinds: Sequence[RequestKind],
        jobs: Jobs,
        rule: ChoiceRule,
        retry: Retry,
        *,
        most: int = AHEAD,
        planned: bool = False,
    ) -> None:
        """`most` bounds the starts between two publications of a node.

        `planned`: whether a job whose kind is published as full, rather than as not there at all,
        gets a reservation for the end of a job of its kind, as Slurm does.
        """
        self.boards = [Board(gpus, rule) for gpus in nodes]
        self.kinds = kinds
        self.jobs = jobs
        self.retry = retry
        self.most = most
        self.planned = planned
        self.now = 0.0
        self.begun = [-1.0] * len(jobs.submit)
        self.refused = [0] * len(jobs.submit)
        self.requeues = 0
        self._events: list[tuple[float, int, int, int, tuple[int, int, int]]] = []
        self._window: list[int] = []
        self._rest: deque[int] = deque()
        self._blocked: set[int] = set()
        self._gated: set[int] = set()
        self._reserved: _Reserved | None = None
        # The first place of the window that the last pass has not seen; 0 after any change.
        self._seen = 0

    def run(self, tell: Callable[[int], object] = int) -> Outcome:
        """All jobs to their end, or to a livelock. `tell` hears how many were submitted."""
        submit, total = self.jobs.submit, len(self.jobs.submit)
        coming, steps = 0, 0
        while coming < total or self._events:
            steps += 1
            if steps % STEPS == 0:
                tell(coming)
            soon = submit[coming] if coming < total else float("inf")
            self.now = min(soon, self._events[0][0]) if self._events else soon
            while coming < total and submit[coming] <= self.now:
                self._queue(coming)
                coming += 1
            self._happen()
            if self._window:
                self._pass()
            if self.requeues > LIVELOCK * total:
                return Outcome(self.begun, self.refused, livelock=True)
        tell(total)
        return Outcome(self.begun, self.refused, livelock=False)

    def _queue(self, job: int) -> None:
        if self._rest or len(self._window) >= DEPTH:
            self._rest.append(job)
        else:
            self._window.append(job)

    def _again(self, job: int) -> None:
        """A job that was refused is in the queue again, at its old place."""
        place = bisect_left(self._window, job)
        self._window.insert(place, job)
        self._seen = 0

    def _happen(self) -> None:
        events, changed = self._events, False
        while events and events[0][0] <= self.now:
            _, what, job, node, where = heappop(events)
            if what == RETRY:
                self._again(job)
                continue
            board = self.boards[node]
            if what == END:
                kind = self.kinds[self.jobs.kind[job]]
                board.end(kind, where, self.begun[job] + self.jobs.limit[job], job)
            board.publish()
            changed = True
        if changed:
            self._seen = 0

    def _pass(self) -> None:
        window, kinds = self._window, self.jobs.kind
        at = self._seen
        if at == 0:
            self._blocked.clear()
            self._gated.clear()
            self._reserved = None
        while at < len(window) and at < DEPTH:
            job = window[at]
            number = kinds[job]
            refused = self.refused[job]
            if number in self._blocked or (refused and number in self._gated):
                at += 1
            elif self._try(job, number) and not self._kept(job, refused):
                del window[at]
                if self._rest:
                    window.append(self._rest.popleft())
            else:
                at += 1
        self._seen = at

    def _kept(self, job: int, refused: int) -> bool:
        """Whether a job that was refused just now stays at its place, behind the gate."""
        return self.refused[job] > refused and self.retry is not Retry.BLIND

    def _try(self, job: int, number: int) -> bool:
        """Start a job where Slurm would, if it would; whether it did, also in vain."""
        kind = self.kinds[number]
        room = False
        for node, board in enumerate(self.boards):
            if self.retry is Retry.PUBLISH and not board.lets(kind, self.kinds, self.most):
                continue
            start = self._would(board, kind)
            if start.picked == NOWHERE:
                continue
            if self._puts_off(node, start.picked, kind, self.jobs.limit[job]):
                room = True
            elif start.after != REFUSED:
                self._begin(job, kind, node, start)
                return True
            elif self.refused[job] and self.retry is not Retry.BLIND:
                # The gate: it is kept from a start that would be refused again, and a job
                # that is kept back has no reservation.
                self._gated.add(number)
                return False
            else:
                self._refuse(job)
                return True
        if not room:
            self._blocked.add(number)
        if self._reserved is None:
            self._reserved = self._reserve(kind)
        return False

    def _would(self, board: Board, kind: RequestKind) -> Start:
        return self._slot(board, kind) if self.retry is Retry.AWARE else board.now.try_start(kind)

    @staticmethod
    def _slot(board: Board, kind: RequestKind) -> Start:
        """The first GPU with a slot, for a Slurm that sees slots."""
        node = board.now
        for index, need in enumerate(node.needs(kind)):
            if need is not None and node.used[index] + kind.shards <= board.capacity[index]:
                after = node.gpus[index].space.after(node.states[index], need)
                if after != REFUSED:
                    return Start(index, index, after)
        return Start(NOWHERE)

    def _puts_off(self, node: int, index: int, kind: RequestKind, limit: float) -> bool:
        """Whether a start there would put off the job that has a reservation."""
        held = self._reserved
        if held is None or held.node != node or held.gpu != index:
            return False
        return self.now + limit > held.time and kind.shards > held.spare

    def _reserve(self, kind: RequestKind) -> _Reserved | None:
        best = _Reserved(0, 0, float("inf"), 0)
        aware = self.retry is Retry.AWARE
        for node, board in enumerate(self.boards):
            room_at = board.slot_at if aware else board.room_at
            counted = self.now
            if self.retry is Retry.PUBLISH:
                counted = board.counted_at(kind, self.now, planned=self.planned)
            for index in range(len(board.capacity)):
                time, spare = room_at(index, kind, self.now)
                if max(time, counted) < best.time:
                    best = _Reserved(node, index, max(time, counted), spare)
        return best if best.time < float("inf") else None

    def _begin(self, job: int, kind: RequestKind, node: int, start: Start) -> None:
        board, now = self.boards[node], self.now
        bits = board.start(kind, start, now + self.jobs.limit[job], job)
        board.took(kind)
        self.begun[job] = now
        where = (start.picked, start.place, bits)
        heappush(self._events, (now + self.jobs.run[job], END, job, node, where))
        if self._reserved is not None and self._reserved.node == node:
            self._use_spare(start.picked, kind, now + self.jobs.limit[job])
        if self.retry is Retry.PUBLISH and not board.pending:
            board.pending = True
            heappush(self._events, (now + PUBLISHED_AFTER, PUBLISH, 0, node, where))

    def _use_spare(self, index: int, kind: RequestKind, end: float) -> None:
        held = self._reserved
        if held is not None and held.gpu == index and end > held.time:
            self._reserved = held._replace(spare=held.spare - kind.shards)

    def _refuse(self, job: int) -> None:
        self.requeues += 1
        self.refused[job] += 1
        if self.retry is Retry.BLIND:
            heappush(self._events, (self.now + RETRY_AFTER, RETRY, job, 0, (0, 0, 0)))
