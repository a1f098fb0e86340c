"""The simulated GPU refuses what hardware refuses, and gives the ids hardware gives."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator import codes
from slurm_mig.simulator.board import Board, sorted_devices
from slurm_mig.simulator.codes import Refused
from tests.kit.gpus import A30, A100, H100, RTX, geometry_of


def board(name: str, *, mirrored: bool = False, on: bool = True) -> Board:
    made = Board(geometry_of(name), f"GPU-{uuid.uuid4()}", mirrored, resetless=name != A100)
    made.mig_current = made.mig_pending = on
    return made


def put(on: Board, name: str, start: int) -> int:
    row = on.geometry.find(name)
    return on.create(row.profile_id, Placement(start, row.size), busy=False).gi_id


@pytest.mark.parametrize(
    ("name", "mirrored", "ids"),
    [
        (H100, False, {("7g.80gb", 0): 0, ("4g.40gb", 0): 1, ("3g.40gb", 0): 1, ("3g.40gb", 4): 2}),
        (H100, True, {("7g.80gb", 0): 0, ("4g.40gb", 0): 2, ("3g.40gb", 0): 2, ("3g.40gb", 4): 1}),
        (H100, False, {("2g.20gb", start): gi for start, gi in ((0, 3), (2, 4), (4, 5))}),
        (H100, True, {("2g.20gb", start): gi for start, gi in ((0, 5), (2, 6), (4, 3))}),
        (H100, False, {("1g.10gb", start): 7 + start for start in range(7)}),
        (
            H100,
            True,
            {("1g.10gb", s): gi for s, gi in enumerate((11, 12, 13, 14, 7, 8, 9))},
        ),
        (RTX, False, {("1g.24gb", s): gi for s, gi in ((0, 3), (3, 4), (6, 5), (9, 6))}),
        (RTX, False, {("2g.48gb", 0): 1}),
        (A30, False, {("1g.6gb", 0): 3, ("1g.6gb", 1): 4, ("2g.12gb", 2): 2}),
    ],
)
def test_ids_as_observed(name: str, mirrored: bool, ids: dict[tuple[str, int], int]) -> None:
    """Both orders of ids that real boards show (facts/mig.md#ids)."""
    for (profile, start), gi_id in ids.items():
        assert put(board(name, mirrored=mirrored), profile, start) == gi_id


@pytest.mark.parametrize(
    ("name", "profile", "starts"),
    [
        (H100, "1g.10gb", [6, 4, 5, 0, 1, 2, 3]),
        (H100, "2g.20gb", [4, 0, 2]),
        (H100, "3g.40gb", [4, 0]),
        (H100, "1g.20gb", [6, 4, 0, 2]),
        (RTX, "1g.24gb", [0, 3, 6, 9]),
    ],
)
def test_the_drivers_default_order(name: str, profile: str, starts: list[int]) -> None:
    """Creation without a placement fills a GPU as seen in published outputs."""
    target = board(name)
    row = target.geometry.find(profile)
    got = [target.create(row.profile_id, None, busy=False).start for _ in starts]
    assert got == starts
    with pytest.raises(Refused) as caught:
        target.create(row.profile_id, None, busy=False)
    assert caught.value.code == codes.INSUFFICIENT_RESOURCES


def test_a_bad_order_strands_the_last() -> None:
    """19,19,14,9 without placements fails for the 3g, as in the MIG guide."""
    target = board(H100)
    for profile_id in (19, 19, 14):
        target.create(profile_id, None, busy=False)
    with pytest.raises(Refused) as caught:
        target.create(9, None, busy=False)
    assert caught.value.code == codes.INSUFFICIENT_RESOURCES


def test_uuids() -> None:
    """Version 5, the same for the same place, different for GI and CI."""
    target = board(H100)
    put(target, "3g.40gb", 4)
    (gi,) = target.instances
    first, second = (target.create_compute(gi, 0) for _ in range(2))
    names = [target.mig_uuid(gi, ci) for ci in (first, second)]
    assert len(set(names)) == 2
    assert all(uuid.UUID(name.removeprefix("MIG-")).version == 5 for name in names)
    target.destroy_compute(gi, first.ci_id, busy=False)
    assert target.mig_uuid(gi, target.create_compute(gi, 0)) == names[0]


def test_compute_instances_share_a_gpu_instance() -> None:
    """Slices are counted, ids are the lowest free, a full one takes no more."""
    target = board(H100)
    put(target, "3g.40gb", 0)
    (gi,) = target.instances
    assert [target.create_compute(gi, profile).ci_id for profile in (1, 0)] == [0, 1]
    assert target.ci_capacity(gi, 0) == 0
    with pytest.raises(Refused) as caught:
        target.create_compute(gi, 0)
    assert caught.value.code == codes.INSUFFICIENT_RESOURCES
    target.destroy_compute(gi, 0, busy=False)
    assert target.create_compute(gi, 1).ci_id == 0
    with pytest.raises(Refused) as caught:
        target.create_compute(gi, 4)
    assert caught.value.code == codes.NOT_SUPPORTED


def test_mig_mode_by_architecture() -> None:
    """Ampere keeps a wish while busy and the mode over a reboot; later parts neither."""
    ampere, hopper = board(A100, on=False), board(H100, on=False)
    assert [item.set_mode(True, busy=True) for item in (ampere, hopper)] == [codes.IN_USE] * 2
    assert (ampere.mig_pending, hopper.mig_pending) == (True, False)
    for item in (ampere, hopper):
        assert item.set_mode(True, busy=False) == 0
        put(item, "3g.40gb", 0)
        assert item.set_mode(False, busy=False) == codes.IN_USE
        item.restart(power=True)
    assert (ampere.mig_current, hopper.mig_current) == (True, False)
    assert ampere.instances == hopper.instances == []


def test_an_odd_sequence_of_devices_is_sorted() -> None:
    """MIG devices go by GI id, then CI id, whatever the order of creation."""
    target = board(H100)
    for start in (6, 2, 4):
        put(target, "1g.10gb", start)
    for item in target.instances:
        target.create_compute(item, 0)
    assert [gi.gi_id for gi, _ in sorted_devices(target)] == [9, 11, 13]


class BoardMachine(RuleBasedStateMachine):
    """Anything an administrator could try on one GPU, in any order."""

    @initialize(name=st.sampled_from([A30, A100, H100, RTX]), mirrored=st.booleans())
    def start(self, name: str, mirrored: bool) -> None:
        self.board = board(name, mirrored=mirrored and name in (A100, H100))

    @rule(data=st.data(), busy=st.booleans(), chosen=st.booleans())
    def create(self, data: st.DataObject, busy: bool, chosen: bool) -> None:
        row = data.draw(st.sampled_from(self.board.geometry.profiles))
        place = data.draw(st.sampled_from(row.placements)) if chosen else None
        capacity = self.board.capacity(row.profile_id)
        before = self.board.to_dict()
        try:
            made = self.board.create(row.profile_id, place, busy=busy)
        except Refused:
            assert self.board.to_dict() == before
            assert busy or chosen or capacity == 0 or not self.board.mig_current
        else:
            assert capacity > 0
            assert place is None or made.start == place.start

    @precondition(lambda self: self.board.instances)
    @rule(data=st.data(), busy=st.booleans())
    def destroy(self, data: st.DataObject, busy: bool) -> None:
        item = data.draw(st.sampled_from(self.board.instances))
        try:
            self.board.destroy(item.gi_id, busy=busy)
        except Refused as refusal:
            assert refusal.code == codes.IN_USE
            assert busy or item.compute

    @precondition(lambda self: self.board.instances)
    @rule(data=st.data())
    def create_compute(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.board.instances))
        profile = data.draw(st.sampled_from(sorted(self.board.ci_profiles(item))))
        room = self.board.ci_capacity(item, profile)
        try:
            self.board.create_compute(item, profile)
        except Refused:
            assert room == 0
        else:
            assert room > 0

    @precondition(lambda self: any(item.compute for item in self.board.instances))
    @rule(data=st.data(), busy=st.booleans())
    def destroy_compute(self, data: st.DataObject, busy: bool) -> None:
        pairs = sorted_devices(self.board)
        gi, ci = data.draw(st.sampled_from(pairs))
        try:
            self.board.destroy_compute(gi, ci.ci_id, busy=busy)
        except Refused as refusal:
            assert busy
            assert refusal.code == codes.IN_USE

    @rule(on=st.booleans(), busy=st.booleans())
    def set_mode(self, on: bool, busy: bool) -> None:
        self.board.set_mode(on, busy=busy)

    @rule(power=st.booleans())
    def restart(self, power: bool) -> None:
        self.board.restart(power=power)
        self.board.set_mode(True, busy=False)

    @invariant()
    def nothing_overlaps(self) -> None:
        masks = [Placement(item.start, item.size).mask for item in self.board.instances]
        assert sum(mask.bit_count() for mask in masks) == self.board.occupied().bit_count()

    @invariant()
    def ids_are_distinct(self) -> None:
        ids = [item.gi_id for item in self.board.instances]
        assert len(set(ids)) == len(ids) <= 8
        assert all(0 <= gi <= 14 for gi in ids)

    @invariant()
    def engines_suffice(self) -> None:
        rows = [self.board.row(item.profile_id) for item in self.board.instances]
        assert self.board.geometry.media_left(rows)

    @invariant()
    def the_state_file_loses_nothing(self) -> None:
        other = board(H100)
        other.load(self.board.to_dict())
        assert other.to_dict() == self.board.to_dict()


TestBoardMachine = BoardMachine.TestCase
TestBoardMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
