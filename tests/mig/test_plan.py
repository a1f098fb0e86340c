"""The plan: legal, complete, deterministic, and by the `fits` policy."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.errors import NoRoom, ProfileNotOffered
from slurm_mig.mig import plan
from slurm_mig.mig.geometry import layouts
from slurm_mig.mig.plan import Slot
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from tests.kit.gpus import A30, H100, KNOWN, RTX, geometry_of

if TYPE_CHECKING:
    from slurm_mig.mig.geometry import Geometry, Placement

    Situation = tuple[Geometry, list[Slot], Request]


def one(gpu: str, name: str, count: int = 1) -> Request:
    return Request((Item(geometry_of(gpu).find(name).name, count),))


def place(gpu: str, *spots: tuple[str, int]) -> list[Slot]:
    geometry = geometry_of(gpu)
    return [
        Slot(row := geometry.find(name), next(p for p in row.placements if p.start == start))
        for name, start in spots
    ]


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    """A GPU in some reachable state, and a request for it."""
    geometry = geometry_of(draw(st.sampled_from(KNOWN)))
    present: list[Slot] = []
    for row in draw(st.lists(st.sampled_from(geometry.profiles), max_size=4)):
        taken = plan.occupied_units(present)
        free = [place for place in row.placements if not place.mask & taken]
        rows = [*(slot.row for slot in present), row]
        if free and geometry.media_left(rows) and geometry.counts_left(rows):
            present.append(Slot(row, draw(st.sampled_from(free))))
    rows = draw(st.lists(st.sampled_from(geometry.profiles), min_size=1, max_size=3, unique=True))
    items = tuple(Item(row.name, draw(st.integers(1, 2)), row.profile_id) for row in rows)
    return geometry, present, Request(items)


def brute_force(
    geometry: Geometry, present: list[Slot], request: Request
) -> list[tuple[Placement, ...]]:
    """All legal placements of the request, by trying every combination."""
    rows = [row for row, _ in plan.wanted_instances(request, geometry)]
    every = [*(slot.row for slot in present), *rows]
    if not (geometry.media_left(every) and geometry.counts_left(every)):
        return []
    found = []
    for places in product(*(row.placements for row in rows)):
        masks = [slot.placement.mask for slot in present] + [place.mask for place in places]
        if sum(mask.bit_count() for mask in masks) == _union(masks).bit_count():
            found.append(places)
    return found


def _union(masks: list[int]) -> int:
    total = 0
    for mask in masks:
        total |= mask
    return total


@settings(max_examples=300, deadline=None)
@given(situations())
def test_a_plan_is_legal_and_best_or_there_is_none(situation: Situation) -> None:
    """Against every combination: refused only if none is legal, and no legal one scores higher."""
    geometry, present, request = situation
    legal = brute_force(geometry, present, request)
    try:
        made = plan.plan(request, geometry, present)
    except NoRoom as refusal:
        assert not legal
        assert "room for" in str(refusal)
        return

    chosen = tuple(slot.placement for slot in made.slots)
    assert chosen in legal
    rows = [row for row, _ in plan.wanted_instances(request, geometry)]
    for places in legal:
        slots = [Slot(row, place) for row, place in zip(rows, places, strict=True)]
        assert plan.score_of(geometry, [*present, *slots], slots) <= made.score


@settings(max_examples=100, deadline=None)
@given(situations())
def test_the_same_situation_gives_the_same_plan(situation: Situation) -> None:
    """Whatever order the driver lists instances in."""
    geometry, present, request = situation
    try:
        first = plan.plan(request, geometry, present)
    except NoRoom:
        return
    assert plan.plan(request, geometry, list(reversed(present))) == first


@pytest.mark.parametrize("key", [H100, A30, RTX])
def test_never_a_false_refusal_of_one_instance(key: str) -> None:
    """In all states of a GPU: one more is refused exactly when no legal start is free."""
    geometry = geometry_of(key)
    plain = {geometry.class_of(row): row for row in geometry.profiles if not row.name.attribute}
    for state in layouts(geometry):
        present = [Slot(plain[number], spot) for number, spot in state]
        taken = plan.occupied_units(present)
        for row in plain.values():
            free = any(not spot.mask & taken for spot in row.placements)
            try:
                plan.plan(Request((Item(row.name),)), geometry, present)
                planned = True
            except NoRoom:
                planned = False
            assert planned is free


def test_small_ones_gather_where_they_hurt_least() -> None:
    """Three 1g on an empty H100 share its upper half; a 4g and a 3g@0 stay possible."""
    geometry, present = geometry_of(H100), list[Slot]()
    for _ in range(3):
        present += plan.plan(one(H100, "1g.10gb"), geometry, present).slots

    assert sorted(slot.placement.start for slot in present) == [4, 5, 6]
    assert plan.fitting(geometry, present)["4g.40gb"] == 1


def test_a_mixed_request_is_placed_as_a_whole() -> None:
    """Two 1g and a 3g on one GPU leave most when the 1g stand side by side."""
    request = Request((*one(H100, "1g.10gb", 2).items, *one(H100, "3g.40gb").items))
    made = plan.plan(request, geometry_of(H100), [])

    assert [str(slot) for slot in made.slots] == ["1g.10gb@2", "1g.10gb@3", "3g.40gb@4"]


def test_fragmentation_is_refused_with_what_is_there() -> None:
    """Two 1g in different halves block every 3g, though six of eight units are free."""
    present = place(H100, ("1g.10gb", 3), ("1g.10gb", 4))
    with pytest.raises(NoRoom, match="taken 1g.10gb@3, 1g.10gb@4; room for 1g.10gb x5"):
        plan.plan(one(H100, "3g.40gb"), geometry_of(H100), present)


def test_a_profile_that_is_not_there_is_another_fault() -> None:
    """Waiting would not help: it is not lack of room."""
    with pytest.raises(ProfileNotOffered):
        plan.plan(one(A30, "1g.6gb"), geometry_of(H100), [])


def test_media_engines_are_respected() -> None:
    """A second +me has slots but no engine."""
    present = place(H100, ("1g.10gb+me", 0))
    with pytest.raises(NoRoom):
        plan.plan(one(H100, "1g.10gb+me"), geometry_of(H100), present)
    assert plan.fitting(geometry_of(H100), present)["1g.10gb+me"] == 0


@pytest.mark.parametrize(
    ("key", "present", "room"),
    [
        (H100, (), {"1g.10gb": 7, "1g.10gb+me": 1, "1g.20gb": 4, "2g.20gb": 3, "3g.40gb": 2}),
        (H100, (("1g.10gb+me", 6),), {"1g.10gb": 6, "1g.10gb+me": 0, "3g.40gb": 1, "7g.80gb": 0}),
        (H100, (("1g.10gb", 3), ("1g.10gb", 4)), {"1g.10gb": 5, "2g.20gb": 1, "3g.40gb": 0}),
        (A30, (), {"1g.6gb": 4, "1g.6gb+me": 1, "2g.12gb": 2, "4g.24gb": 1}),
    ],
)
def test_room_is_counted_in_instances(
    key: str, present: tuple[tuple[str, int], ...], room: dict[str, int]
) -> None:
    """Not in placements: an empty GPU takes one `+me`, wherever it starts."""
    assert plan.fitting(geometry_of(key), place(key, *present)).items() >= room.items()


def test_an_administrators_own_start() -> None:
    """Legal and free, or refused with the starts there are or what is taken."""
    geometry = geometry_of(H100)
    wanted = one(H100, "2g.20gb")
    assert str(plan.plan_at(wanted, 2, geometry, []).slots[0]) == "2g.20gb@2"
    with pytest.raises(ProfileNotOffered, match="it can at 0, 2, 4"):
        plan.plan_at(wanted, 1, geometry, [])
    with pytest.raises(NoRoom, match="1g.10gb@3"):
        plan.plan_at(wanted, 2, geometry, place(H100, ("1g.10gb", 3)))


@pytest.mark.parametrize(
    ("name", "count", "inside"),
    [
        ("1c.3g.40gb", 1, [(1,)]),
        ("1c.3g.40gb", 3, [(1, 1, 1)]),
        ("1c.3g.40gb", 4, [(1, 1, 1), (1,)]),
        ("2c.3g.40gb", 2, [(2,), (2,)]),
        ("3g.40gb", 2, [(), ()]),
    ],
)
def test_small_compute_instances_share_gpu_instances(
    name: str, count: int, inside: list[tuple[int, ...]]
) -> None:
    """As many as fill one, then the next."""
    request = Request((Item(Profile.parse(name), count),))
    slots = plan.plan(request, geometry_of(H100), []).slots
    assert [slot.compute for slot in slots] == inside
    assert {str(slot.row.name) for slot in slots} == {"3g.40gb"}


def test_a_plan_explains_itself() -> None:
    """Why there: how many it was chosen from, and what it leaves."""
    text = str(plan.plan(one(H100, "3g.40gb"), geometry_of(H100), []))
    assert text == "3g.40gb@4 (best of 2: leaves 5 profiles, 10 placements)"
