"""What would start, against trying every start with the planner by hand."""

from __future__ import annotations

import time
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.errors import NoRoom
from slurm_mig.mig import catalog
from slurm_mig.mig.plan import Slot, plan
from slurm_mig.mig.request import Item, Request
from slurm_mig.mig.weights import derive
from slurm_mig.packing.foresight import ChoiceRule, GpuState, RequestKind, foresee
from slurm_mig.packing.states import CLOSED, REFUSED, Space

if TYPE_CHECKING:
    from slurm_mig.mig.geometry import Geometry

H100 = catalog.find("h100-80gb-sxm").geometry()
A30 = catalog.find("a30-24gb").geometry()
SPACES = {id(geometry): Space(geometry) for geometry in (H100, A30)}


def kinds_of(geometry: Geometry, *, whole_counted: bool = False) -> list[RequestKind]:
    """Every profile once, and two of the smallest on one GPU."""
    weights = derive(geometry)
    found = [
        RequestKind(
            str(row.name),
            Request((Item(row.name),)),
            weights.of(geometry, row),
            counted=whole_counted or row is not geometry.whole,
        )
        for row in geometry.profiles
    ]
    small = geometry.profiles[0]
    pair = Request((Item(small.name, 2),))
    return [*found, RequestKind(f"{small.name}x2", pair, 2 * weights.of(geometry, small))]


KINDS = {id(geometry): kinds_of(geometry) for geometry in (H100, A30)}


@st.composite
def nodes(draw: st.DrawFn) -> tuple[Geometry, list[GpuState]]:
    """One to three GPUs in states that jobs could have left; Slurm's count may have drifted."""
    geometry = draw(st.sampled_from([H100, A30]))
    space, weights = SPACES[id(geometry)], derive(geometry)
    gpus = []
    for _ in range(draw(st.integers(1, 3))):
        state, used = 0, 0
        for kind in draw(st.lists(st.sampled_from(KINDS[id(geometry)]), max_size=6)):
            need = space.need(kind.request)
            assert need is not None
            after = space.after(state, need)
            if after != REFUSED:
                state = after
        for slot in space.slots(state):
            if draw(st.booleans()):
                state &= ~space.state([slot])
            else:
                used += weights.of(geometry, slot.row)
        drift = draw(st.sampled_from([0, 0, 0, 1]))
        gpus.append(
            GpuState(
                space,
                draw(st.sampled_from([state, state, state, CLOSED])),
                0 if drift else used,
                weights.capacity,
            )
        )
    return geometry, gpus


class ByHand:
    """The same node with instances, Slurm's sums and the planner itself."""

    def __init__(self, geometry: Geometry, gpus: list[GpuState], rule: ChoiceRule) -> None:
        self.geometry = geometry
        self.rule = rule
        self.used = [gpu.used for gpu in gpus]
        self.capacity = gpus[0].capacity
        self.there: list[list[Slot] | None] = [
            None if gpu.state == CLOSED else gpu.space.slots(gpu.state) for gpu in gpus
        ]

    def start(self, kind: RequestKind) -> bool | None:
        """Whether it succeeds; None where Slurm has no room."""
        room = [i for i, used in enumerate(self.used) if used + kind.shards <= self.capacity]
        if not room:
            return None
        if self.rule is ChoiceRule.LEAST_LOADED:
            room.sort(key=lambda index: self.used[index])
        at = range(len(self.there)) if self.rule is ChoiceRule.NODE else room[:1]
        for place in sorted(at, key=lambda place: (place != room[0], self._cost(kind, place))):
            made = self._plan(kind, place)
            if made is not None:
                self.there[place] = made
                self.used[room[0]] += kind.shards
                return True
        return False

    def _cost(self, kind: RequestKind, place: int) -> tuple[int, ...]:
        there, made = self.there[place], self._plan(kind, place)
        if there is None or made is None:
            return (99,)
        had, has = (
            self.geometry.left(sum(slot.placement.mask for slot in slots))
            for slots in (there, made)
        )
        return (had[0] - has[0], had[1] - has[1], *has)

    def _plan(self, kind: RequestKind, place: int) -> list[Slot] | None:
        there = self.there[place]
        if there is None:
            return None
        try:
            return [*there, *plan(kind.request, self.geometry, there).slots]
        except NoRoom:
            return None


def in_a_row(geometry: Geometry, gpus: list[GpuState], rule: ChoiceRule, kind: RequestKind) -> int:
    hand, count = ByHand(geometry, gpus, rule), 0
    while hand.start(kind):
        count += 1
    return count


def safe(
    geometry: Geometry, gpus: list[GpuState], rule: ChoiceRule, counts: dict[str, int], depth: int
) -> bool:
    """Every sequence of that length, each kind at most as often as its count says."""
    for sequence in product(KINDS[id(geometry)], repeat=depth):
        hand, left = ByHand(geometry, gpus, rule), dict(counts)
        for kind in sequence:
            if kind.counted and left[kind.name] < 1:
                break
            outcome = hand.start(kind)
            if outcome is None:
                break
            if not outcome:
                return False
            if kind.counted:
                left[kind.name] -= 1
    return True


@pytest.mark.parametrize("rule", ChoiceRule)
@settings(max_examples=60, deadline=None)
@given(nodes())
def test_foresight_is_what_trying_gives(
    rule: ChoiceRule, node: tuple[Geometry, list[GpuState]]
) -> None:
    geometry, gpus = node
    kinds = KINDS[id(geometry)]
    seen = foresee(gpus, kinds, rule, 2)

    assert seen.counts == {
        kind.name: in_a_row(geometry, gpus, rule, kind) for kind in kinds if kind.counted
    }
    assert seen.starts == (2 if safe(geometry, gpus, rule, seen.counts, 2) else 1)


def test_the_number_of_safe_starts_grows_to_its_bound() -> None:
    """On empty GPUs anything may start often; the bound alone ends it."""
    space, weights = SPACES[id(H100)], derive(H100)
    gpus = [GpuState(space, 0, 0, weights.capacity)] * 8
    for most in (1, 2, 3):
        assert foresee(gpus, KINDS[id(H100)], ChoiceRule.LEAST_LOADED, most).starts == most


def test_a_kind_of_another_gpu_type_is_counted_there_alone() -> None:
    """A node with two models: shards of a type are not asked of the other."""
    big, small = SPACES[id(H100)], SPACES[id(A30)]
    gpus = [
        GpuState(small, 0, 0, 4, "a30"),
        GpuState(big, 0, 0, 31, "h100"),
        GpuState(big, 0, 0, 31, "h100"),
    ]
    kinds = [
        RequestKind("3g.40gb", Request((Item(H100.find("3g.40gb").name),)), 14, ("h100",)),
        RequestKind("2g.12gb", Request((Item(A30.find("2g.12gb").name),)), 2),
    ]
    assert foresee(gpus, kinds, ChoiceRule.PACK).counts == {"3g.40gb": 4, "2g.12gb": 2}


def test_states_are_the_instances() -> None:
    """Back and forth, and what the planner adds is what `plan` would."""
    space, geometry = SPACES[id(H100)], H100
    row = geometry.find("2g.20gb")
    slots = [Slot(row, row.placements[1])]
    assert space.slots(space.state(slots)) == slots
    need = space.need(Request((Item(geometry.find("1g.10gb").name, 2),)))
    assert need is not None
    made = plan(Request((Item(geometry.find("1g.10gb").name, 2),)), geometry, slots).slots
    assert space.after(space.state(slots), need) == space.state([*slots, *made])


def test_a_hook_does_not_look_for_ever() -> None:
    """Every row succeeds where only small ones come, and 20 kinds have 3 million sets of 8."""
    gpus = [GpuState(SPACES[id(H100)], 0, 0, 31)] * 8
    small = H100.profiles[0].name
    kinds = [RequestKind(f"kind {number}", Request((Item(small),)), 4) for number in range(20)]
    began = time.process_time()
    assert foresee(gpus, kinds, ChoiceRule.PACK, 8).starts in range(2, 8)
    assert time.process_time() - began < 5
