"""The transaction: all or nothing, and one truth between ledger and hardware."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import (
    BadRequest,
    DriverFault,
    Held,
    NodeFault,
    NoRoom,
    ProfileNotOffered,
    SlurmMigError,
)
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.simulator.faults import Rule
from slurm_mig.transaction import (
    by_hand,
    carve,
    collect,
    reconcile,
    release,
    whereabouts,
    whole_gpu,
)
from tests.kit.gpus import A100, H100
from tests.kit.transaction import ALICE, BOB, ROOT, World, ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.root


# -- allocate ----------------------------------------------------------------------


def test_carved_recorded_closed_and_published(world: World) -> None:
    """After one call, all four places say the same."""
    record = carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())

    assert world.made() == ["1g.10gb@3", "3g.40gb@4"]
    assert world.ledger.open_of_job(7) == [record]
    assert record.phase == phases.ACTIVE
    assert record.uuids == tuple(item.uuid for item in record.instances)
    board = world.machine.board(0)
    told = {board.mig_uuid(gi, gi.compute[0]) for gi in board.instances}
    assert set(record.uuids) == told
    lines = (world.root / "run/env/7.0").read_text().splitlines()
    uuids = [line.split()[1] for line in lines if line.startswith("slice ")]
    assert tuple(uuids) == record.uuids
    nodes = list((world.machine.tree.dev / "nvidia-caps").iterdir())
    assert len(nodes) == 4
    assert {(node.stat().st_uid, node.stat().st_mode & 0o777) for node in nodes} == {(64001, 0o400)}


def test_intent_comes_before_the_first_creating_call(world: World) -> None:
    """Killed before anything was made, the record is there already."""
    world.killed("nvmlDeviceCreateGpuInstanceWithPlacement", "kill-before", "allocate")
    (record,) = world.ledger.all_open()
    assert (record.phase, [str(item) for item in record.instances]) == (
        phases.PLANNED,
        ["3g.40gb@4"],
    )
    assert world.made() == []


def test_neighbours_are_planned_around(world: World) -> None:
    """Ours and strangers' alike."""
    world.strange(start=3)
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == ["1g.10gb@3", "3g.40gb@4"]


def test_no_room_leaves_no_trace_on_the_hardware(world: World) -> None:
    """A job's fault, with job and GPU named; no record stays open."""
    world.strange(start=3)
    world.strange(start=4)
    with pytest.raises(NoRoom, match=r"job 7: GPU 0 .*no placement for 3g.40gb:1"):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == ["1g.10gb@3", "1g.10gb@4"]
    assert world.phases() == []


def test_a_profile_of_another_gpu(world: World) -> None:
    """Not lack of room: waiting would not help."""
    with pytest.raises(ProfileNotOffered):
        carve.allocate(world.bench, ALICE, ask("1g.6gb"), world.gpu())


@pytest.mark.parametrize(
    ("call", "effect", "fault"),
    [
        ("nvmlDeviceCreateGpuInstanceWithPlacement", "error:INSUFFICIENT_RESOURCES", NoRoom),
        ("nvmlDeviceCreateGpuInstanceWithPlacement", "error:UNKNOWN", DriverFault),
        ("nvmlDeviceCreateGpuInstanceWithPlacement", "lie", DriverFault),
        ("nvmlGpuInstanceCreateComputeInstance", "error:INSUFFICIENT_RESOURCES", DriverFault),
        ("nvmlGpuInstanceCreateComputeInstance", "error:UNKNOWN", DriverFault),
        ("nvmlGpuInstanceCreateComputeInstance", "lie", DriverFault),
        ("nvmlComputeInstanceGetInfo_v2", "error:UNKNOWN", DriverFault),
        ("nvmlGpuInstanceGetInfo", "error:UNKNOWN", DriverFault),
    ],
)
@pytest.mark.parametrize("skip", [0, 1])
def test_a_failed_stage_is_undone(
    world: World, call: str, effect: str, fault: type[SlurmMigError], skip: int
) -> None:
    """Of two instances, neither stays; the record is closed, the neighbour untouched."""
    world.strange(start=0)
    world.machine.faults.set([Rule(call, effect, skip=skip)])
    with pytest.raises(fault):
        carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())

    assert world.made() == ["1g.10gb@0"]
    assert world.ledger.all_open() == []
    assert not list((world.root / "run/env").glob("7.*"))
    world.machine.faults.set([])
    carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())


def test_a_node_that_cannot_be_closed_is_undone(world: World) -> None:
    """An instance open to all is never handed out."""
    (world.machine.tree.proc / "devices").unlink()
    with pytest.raises(NodeFault, match="job 7: GPU 0"):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == []
    assert world.phases() == [phases.RELEASED]


def test_an_undo_that_fails_leaves_the_record_open(world: World) -> None:
    """The next hook finishes it: nothing is forgotten."""
    (world.machine.tree.proc / "devices").rename(world.root / "devices")
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:UNKNOWN", times=0)])
    with pytest.raises(DriverFault):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@4"]
    assert world.phases() == [phases.QUARANTINED]

    world.machine.faults.set([])
    (world.root / "devices").rename(world.machine.tree.proc / "devices")
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@4"]
    assert world.phases() == [phases.RELEASED, phases.ACTIVE]


def test_the_same_run_is_not_carved_twice(world: World) -> None:
    """A Prolog that runs twice hands out what it made the first time."""
    first = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    (world.root / "run/env/7.0").unlink()
    again = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert again == first
    assert world.made() == ["3g.40gb@4"]
    assert (world.root / "run/env/7.0").exists()


def test_a_restarted_job_takes_its_old_slice_down(world: World) -> None:
    """Its Epilog never came: the earlier run cannot be alive any more."""
    carve.allocate(world.bench, ALICE, ask("7g.80gb"), world.gpu())
    again = Owner(7, 1, uid=64001, gid=64001)
    record = carve.allocate(world.bench, again, ask("7g.80gb"), world.gpu())
    assert record.owner.restart == 1
    assert world.phases() == [phases.RELEASED, phases.ACTIVE]


def test_a_reused_job_id_is_another_job(world: World) -> None:
    """Where Slurm has a SLUID, it tells them apart even at the same restart count."""
    carve.allocate(world.bench, Owner(7, 0, "s1"), ask("7g.80gb"), world.gpu())
    carve.allocate(world.bench, Owner(7, 0, "s2"), ask("7g.80gb"), world.gpu())
    assert world.phases() == [phases.RELEASED, phases.ACTIVE]


def test_mig_mode_is_switched_on_where_that_is_cheap(public_tmp: Path) -> None:
    """On Hopper the Prolog does it; on Ampere it would reset the GPU, so an administrator must."""
    world = World(public_tmp, H100, A100)
    for index in (0, 1):
        with world.machine.change(index) as board:
            board.mig_current = board.mig_pending = False
    try:
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(0))
        assert world.made(0) == ["3g.40gb@4"]
        with pytest.raises(DriverFault, match="slurm-mig enable --gpu 1"):
            carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(1))
        assert world.phases() == [phases.ACTIVE]
    finally:
        world.close()


def test_an_administrators_instance_is_left_open(world: World) -> None:
    """No job, no environment file, no closed nodes; but on record."""
    record = carve.allocate(world.bench, ROOT, ask("2g.20gb"), world.gpu(), start=2)
    assert str(record.instances[0]) == "2g.20gb@2"
    assert not (world.machine.tree.dev / "nvidia-caps").exists()
    assert not (world.root / "run/env").exists()


# -- release -----------------------------------------------------------------------


def test_release_takes_exactly_what_was_made(world: World) -> None:
    """Neighbours stay; nodes go; the record is closed with the reason."""
    mine = carve.allocate(world.bench, ALICE, ask("1g.10gb", "1g.20gb"), world.gpu())
    carve.allocate(world.bench, BOB, ask("1g.10gb"), world.gpu())
    bobs = world.made()[:1] if len(world.made()) == 1 else None
    ended = release.release(world.bench, mine, "the job ended")
    assert (ended.phase, ended.reason) == (phases.RELEASED, "the job ended")
    assert len(world.made()) == 1
    assert bobs is None
    assert len(list((world.machine.tree.dev / "nvidia-caps").iterdir())) == 2


def test_release_twice_is_release_once(world: World) -> None:
    """Epilogs are repeated."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    first = release.release(world.bench, mine, "x")
    world.strange(start=4, profile_id=9)
    assert release.release(world.bench, mine, "y") == first
    assert world.made() == ["3g.40gb@4"]


def test_a_stranger_in_our_place_is_not_touched(world: World) -> None:
    """Destroyed from outside and replaced: the same profile and place, another instance."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    with world.machine.change(0) as board:
        board.instances.clear()
        gi = board.create(9, Placement(4, 4), busy=False)
        board.create_compute(gi, 1)
        board.create_compute(gi, 0)
        board.destroy_compute(gi, 0, busy=False)
    ended = release.release(world.bench, mine, "x")
    assert (ended.phase, "taken away from outside" in ended.reason) == (phases.LOST, True)
    assert world.made() == ["3g.40gb@4"]


def test_in_use_for_a_moment_is_retried(world: World) -> None:
    """Normal right after a compute instance went (facts/mig.md#bugs)."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=2)])
    assert release.release(world.bench, mine, "x").phase == phases.RELEASED
    assert world.made() == []


def test_in_use_for_good_is_set_aside_with_its_holder(world: World) -> None:
    """The slice, not the node; every later hook tries again."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.machine.hold(os.getpid(), mine.uuids[0])
    ended = release.release(world.bench, mine, "x")
    assert ended.phase == phases.QUARANTINED
    assert f"pid {os.getpid()}" in ended.reason
    assert "In use" in ended.reason

    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@0", "3g.40gb@4"]
    world.machine.let_go(os.getpid())
    release.release(world.bench, world.ledger.open_of_job(8)[0], "x")
    assert world.made() == []
    assert world.phases() == [phases.RELEASED, phases.RELEASED]


def test_a_destroy_that_lies_is_found_out(world: World) -> None:
    """Success without effect (go-nvml#146): believed only when seen."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "lie", times=0)])
    ended = release.release(world.bench, mine, "x")
    assert (ended.phase, "3g.40gb@4 still there" in ended.reason) == (phases.QUARANTINED, True)


def test_mig_mode_that_came_on_while_we_waited_for_the_lock(world: World) -> None:
    """What was carved since is not taken for gone: Prolog, Epilog, reconcile, switch."""
    whole = whole_gpu.give_whole(world.bench, ALICE, world.gpu(), "mig-off", reset=False)
    before = world.gpu()
    assert not before.mig_mode
    release.release(world.bench, whole, "x")
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())

    with pytest.raises(NoRoom):
        carve.allocate(world.bench, ALICE, ask("7g.80gb"), before)
    with pytest.raises(NoRoom):
        whole_gpu.give_whole(world.bench, ALICE, before, "mig-off", reset=False)
    with pytest.raises(Held):
        by_hand.set_mode(world.bench, before, on=False)
    assert collect.collect(world.bench, before, lambda: frozenset({8})) == []
    assert [item.phase for item in world.ledger.open_of_job(8)] == [phases.ACTIVE]


def test_mig_mode_that_went_off_while_we_waited_for_the_lock(world: World) -> None:
    """A job has got the whole GPU since: no room, and no fault of the node."""
    before = world.gpu()
    assert before.mig_mode
    whole_gpu.give_whole(world.bench, ALICE, before, "mig-off", reset=False)
    with pytest.raises(NoRoom, match="job 7 has the whole GPU"):
        carve.allocate(world.bench, BOB, ask("3g.40gb"), before)
    with pytest.raises(NoRoom, match="job 7 has the whole GPU"):
        whole_gpu.give_whole(world.bench, BOB, before, "mig-off", reset=False)


def test_reconcile_sees_each_gpu_under_its_lock(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed while MIG mode was off, locked when a slice was there."""
    whole = whole_gpu.give_whole(world.bench, ALICE, world.gpu(), "mig-off", reset=False)
    stale = world.driver.survey()
    release.release(world.bench, whole, "x")
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    monkeypatch.setattr(world.driver, "survey", lambda: stale)
    report = reconcile.reconcile(world.bench, lambda: frozenset({7, 8}))
    assert (report.done, report.left, report.foreign) == ([], [], [])
    assert [item.phase for item in world.ledger.open_of_job(8)] == [phases.ACTIVE]


def test_files_of_a_killed_epilog_go_with_its_record(world: World) -> None:
    """Slurm does not run it again: the next hook on the GPU takes them away, a later run's not."""
    later = Owner(7, 1, uid=64001, gid=64001)
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.killed("nvmlComputeInstanceDestroy", "kill-before", "release")
    carve.allocate(world.bench, later, ask("1g.10gb"), world.gpu(1))
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    names = {path.name for path in (world.root / "run").glob("[ej]*/*")}
    assert names == {"7.1", "8.0"}


def test_files_stay_while_another_gpu_of_the_run_is_open(world: World) -> None:
    """The job may still live: only half of its Epilog was done."""
    for index in (0, 1):
        whole_gpu.give_whole(world.bench, ALICE, world.gpu(index), "full-profile", reset=False)
    world.killed("nvmlComputeInstanceDestroy", "kill-before", "release")
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    assert (world.root / "run/jobs/7.0").exists()


def test_another_driver_fault_is_the_nodes(world: World) -> None:
    """It stays on record and is not called success."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.machine.faults.set([Rule("nvmlComputeInstanceDestroy", "error:UNKNOWN")])
    with pytest.raises(DriverFault, match="job 7: GPU 0"):
        release.release(world.bench, mine, "x")
    assert world.phases() == [phases.QUARANTINED]
    assert release.release(world.bench, world.ledger.find(1), "x").phase == phases.RELEASED


def test_after_a_reboot(world: World) -> None:
    """Instances died with it; a stranger's new instance in the same place is not ours."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.machine.reboot()
    by_hand.set_mode(world.bench, world.gpu(), on=True)
    world.strange(start=4, profile_id=9)
    world.reopen()
    assert release.release(world.bench, mine, "x").phase == phases.LOST
    assert world.made() == ["3g.40gb@4"]


def test_mig_mode_off_means_gone(world: World) -> None:
    """A driver reload takes instances and mode; the boot id is the same."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.machine.reload_driver()
    assert release.release(world.bench, mine, "x").phase in (phases.RELEASED, phases.LOST)
    assert world.ledger.all_open() == []


# -- whole GPUs ---------------------------------------------------------------------


@pytest.fixture
def pair(public_tmp: Path) -> Iterator[World]:
    """One GPU that switches without a reset, one that does not."""
    world = World(public_tmp, H100, A100)
    yield world
    world.close()


def whole(world: World, gpu: int, policy: str, *, reset: bool = False) -> Allocation:
    return whole_gpu.give_whole(world.bench, ALICE, world.gpu(gpu), policy, reset=reset)


def test_mig_off_while_a_job_has_the_gpu(pair: World) -> None:
    """On record from before the switch, and on again when the job has ended."""
    record = whole(pair, 0, "auto")
    assert (record.request, record.phase) == (phases.WHOLE_MIG_OFF, phases.ACTIVE)
    assert pair.machine.board(0).mig_current is False
    assert whole(pair, 0, "auto") == record
    with pytest.raises(NoRoom, match="job 7 has the whole GPU"):
        carve.allocate(pair.bench, BOB, ask("3g.40gb"), pair.gpu(0))
    with pytest.raises(Held, match="has the whole GPU"):
        by_hand.set_mode(pair.bench, pair.gpu(0), on=True)
    assert release.release(pair.bench, record, "x").phase == phases.RELEASED
    assert pair.machine.board(0).mig_current is True
    carve.allocate(pair.bench, BOB, ask("3g.40gb"), pair.gpu(0))


def test_the_full_profile_where_leaving_mig_needs_a_reset(pair: World) -> None:
    """A job with the whole GPU gets all of it that MIG can give."""
    record = whole(pair, 1, "auto")
    assert [str(item) for item in record.instances] == ["7g.80gb@0"]
    assert whole(pair, 0, "full-profile").instances[0].profile == "7g.80gb"


def test_policies_that_refuse(pair: World) -> None:
    """The job's fault, with a way out; nothing is left."""
    for gpu, policy in ((0, "reject"), (1, "reject"), (1, "mig-off")):
        with pytest.raises(BadRequest, match="in slices only"):
            whole(pair, gpu, policy)
    assert pair.ledger.all_open() == []
    assert [pair.machine.board(gpu).mig_current for gpu in (0, 1)] == [True, True]


def test_a_reset_where_it_is_allowed(pair: World) -> None:
    """Ampere leaves MIG mode by a reset, if the site says so and nothing hinders it."""
    record = whole(pair, 1, "mig-off", reset=True)
    assert pair.machine.board(1).mig_current is False
    release.release(pair.bench, record, "x")
    assert pair.machine.board(1).mig_current is True


def test_a_gpu_that_is_out_of_mig_mode_already(pair: World) -> None:
    """Needs nothing where switching costs a reset; and nothing is switched afterwards."""
    by_hand.set_mode(pair.bench, pair.gpu(1), on=False)
    for policy in ("auto", "mig-off", "full-profile"):
        record = whole(pair, 1, policy)
        assert record.request == phases.WHOLE
        release.release(pair.bench, record, "x")
        assert pair.machine.board(1).mig_current is False


def test_others_instances_are_waited_for(pair: World) -> None:
    """Slurm keeps slices and whole GPUs apart; what an administrator made it does not know."""
    carve.allocate(pair.bench, BOB, ask("3g.40gb"), pair.gpu(0))
    with pytest.raises(NoRoom, match="instances exist"):
        whole(pair, 0, "auto")


def test_a_mode_that_does_not_come_back(pair: World) -> None:
    """Something still uses the GPU: set aside, said why, and tried again by every later hook."""
    record = whole(pair, 0, "auto")
    with pair.used(0):
        ended = release.release(pair.bench, record, "x")
        assert ended.phase == phases.QUARANTINED
        assert "MIG mode is still off" in ended.reason
        with pytest.raises(NoRoom, match="MIG mode is still off"):
            carve.allocate(pair.bench, BOB, ask("3g.40gb"), pair.gpu(0))
        # As a whole it can be had all the same.
        again = whole_gpu.give_whole(pair.bench, BOB, pair.gpu(0), "auto", reset=False)
        assert again.request == phases.WHOLE_MIG_OFF
    # What was in the way has ended, but the GPU is the next job's now: its end brings MIG back.
    assert pair.ledger.find(record.number).phase == phases.RELEASED
    reconcile.reconcile(pair.bench, lambda: frozenset({8}))
    assert pair.machine.board(0).mig_current is False
    assert pair.ledger.find(again.number).phase == phases.ACTIVE
    release.release(pair.bench, again, "x")
    assert pair.machine.board(0).mig_current is True
    carve.allocate(pair.bench, BOB, ask("3g.40gb"), pair.gpu(0))


def test_a_mode_that_cannot_be_left(pair: World) -> None:
    """A monitor keeps the GPU open: the job waits, the node stays, nothing is left open."""
    with pair.used(0), pytest.raises(NoRoom, match=f"used by pid {os.getpid()}"):
        whole(pair, 0, "auto")
    assert pair.ledger.all_open() == []
    assert pair.machine.board(0).mig_current is True


@pytest.mark.parametrize("how", ["sweep", "release", "reconcile"])
def test_a_reboot_while_a_job_had_the_gpu(pair: World, how: str) -> None:
    """Ampere keeps the mode that was meant for the job: it comes on again with the record's end."""
    record = whole(pair, 1, "mig-off", reset=True)
    pair.machine.reboot()
    pair.reopen()
    if how == "sweep":
        carve.allocate(pair.bench, BOB, ask("3g.40gb"), pair.gpu(1))
    elif how == "release":
        release.release(pair.bench, record, "x")
    else:
        reconcile.reconcile(pair.bench, None)
    assert pair.ledger.find(record.number).phase == phases.LOST
    assert pair.machine.board(1).mig_current is True


def test_policies_hold_while_mig_mode_is_off(pair: World) -> None:
    """As it is after a reboot of Hopper and later."""
    by_hand.set_mode(pair.bench, pair.gpu(0), on=False)
    with pytest.raises(BadRequest, match="in slices only"):
        whole(pair, 0, "reject")
    assert [str(item) for item in whole(pair, 0, "full-profile").instances] == ["7g.80gb@0"]


# -- compute instances smaller than their GPU instance -------------------------------


def test_compute_instances_that_share_a_gpu_instance(world: World) -> None:
    """One GPU instance, three MIG devices, each closed to others; and all gone afterwards."""
    request = Request((Item(Profile.parse("1c.3g.40gb"), 3),))
    record = carve.allocate(world.bench, ALICE, request, world.gpu())
    (made,) = world.machine.board(0).instances
    assert [item.size for item in made.compute] == [1, 1, 1]
    assert len(set(record.uuids)) == 3
    assert {item.gi_id for item in record.instances} == {made.gi_id}
    assert [item.ci_id for item in record.instances] == [0, 1, 2]
    assert release.release(world.bench, record, "x").phase == phases.RELEASED
    assert world.machine.board(0).instances == []


def test_a_compute_instance_the_driver_does_not_offer(world: World) -> None:
    """The job's fault, and the GPU instance made for it goes again."""
    request = Request((Item(Profile(7, 80, compute_slices=5)),))
    with pytest.raises(ProfileNotOffered, match="offered: 1c, 2c, 3c"):
        carve.allocate(world.bench, ALICE, request, world.gpu())
    assert world.machine.board(0).instances == []
    assert world.ledger.all_open() == []


# -- administrators -----------------------------------------------------------------


def test_mig_mode_by_hand(world: World) -> None:
    """Not off under anybody's feet."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    with pytest.raises(Held, match="3g.40gb@4"):
        by_hand.set_mode(world.bench, world.gpu(), on=False)
    release.release(world.bench, mine, "x")
    assert by_hand.set_mode(world.bench, world.gpu(), on=False).mig_mode is False


def test_a_stranger_can_be_adopted_and_ended_on_record(world: World) -> None:
    """So that the audit has it."""
    world.strange(start=3)
    (found,) = whereabouts.foreign_instances(world.bench, world.gpu())
    record = by_hand.adopt(world.bench, ROOT, world.gpu(), found)
    assert whereabouts.foreign_instances(world.bench, world.gpu()) == []
    assert release.release(world.bench, record, "x").phase == phases.RELEASED
    assert world.made() == []


# -- reconcile ----------------------------------------------------------------------


def test_nothing_to_do(world: World) -> None:
    """A healthy node is left exactly as it is."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    report = reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert (report.done, report.left, report.foreign) == ([], [], [])
    assert world.made() == ["3g.40gb@4"]
    assert (world.root / "run/env/7.0").exists()


def test_strangers_are_listed_never_touched(world: World) -> None:
    """Also half-made ones."""
    world.strange(start=3)
    with world.machine.change(1) as board:
        board.create(9, Placement(0, 4), busy=False)
    report = reconcile.reconcile(world.bench, frozenset)
    assert len(report.foreign) == 2
    assert "1g.10gb@3) is in no record" in report.foreign[0]
    assert world.made(0) == ["1g.10gb@3"]
    assert world.made(1) == ["3g.40gb@0"]


def test_slices_of_jobs_that_are_gone(world: World) -> None:
    """Only when Slurm said so; a silent slurmctld takes nobody's slice."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    assert reconcile.reconcile(world.bench, None).done == []
    report = reconcile.reconcile(world.bench, lambda: frozenset({8}))
    assert len(report.done) == 1
    assert "no longer on this node" in report.done[0]
    assert world.made() == ["3g.40gb@0"]
    assert not list((world.root / "run").glob("*/7.*"))
    assert list((world.root / "run").glob("*/8.*"))


def test_an_administrators_instance_outlives_jobs(world: World) -> None:
    """It has no job that could be gone."""
    carve.allocate(world.bench, ROOT, ask("3g.40gb"), world.gpu())
    assert reconcile.reconcile(world.bench, frozenset).done == []


def test_after_a_reboot_all_records_are_lost(world: World) -> None:
    """On every GPU, without touching anything."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(0))
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu(1))
    world.machine.reboot()
    world.reopen()
    report = reconcile.reconcile(world.bench, None)
    assert len(report.done) == 2
    assert world.phases() == [phases.LOST, phases.LOST]


def test_what_was_taken_away_by_hand(world: World) -> None:
    """An administrator's nvidia-smi -dgi shows up as lost."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    with world.machine.change(0) as board:
        board.instances.clear()
    report = reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert "taken away from outside" in report.done[0]
    assert world.phases() == [phases.LOST]


def test_nobody_is_left_with_the_nodes_of_what_was_taken_away(world: World) -> None:
    """The next instance with these ids is another's; and the run has no environment any more."""
    (mine,) = carve.allocate(world.bench, ALICE, ask("2g.20gb"), world.gpu(), start=2).instances
    with world.machine.change(0) as board:
        board.instances.clear()
    world.strange(start=2, profile_id=15)
    assert [item.gi_id for item in world.machine.board(0).instances] == [mine.gi_id]
    reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert world.phases() == [phases.LOST]
    assert list((world.machine.tree.dev / "nvidia-caps").iterdir()) == []
    # Its next step is told why, and not where.
    (told,) = (world.root / "run/env").iterdir()
    assert (told.name, (mine.uuid or "?") in told.read_text()) == ("7.0.refused", False)


def test_nodes_that_no_record_names_go_with_their_instance(world: World) -> None:
    """The hook died before it could write down the ids, and somebody took the instance away."""
    record = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    forgotten = tuple(replace(i, gi_id=None, ci_id=None, uuid=None) for i in record.instances)
    world.ledger.save(replace(record, instances=forgotten, phase=phases.PLANNED), phases.PLANNED)
    with world.machine.change(0) as board:
        board.instances.pop(0)
    reconcile.reconcile(world.bench, lambda: frozenset({7, 8}))
    nodes = list((world.machine.tree.dev / "nvidia-caps").iterdir())
    assert [node.stat().st_uid for node in nodes] == [64002, 64002]


def test_the_environment_goes_before_the_slices(world: World) -> None:
    """No task is sent to a slice that is going."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.killed("nvmlComputeInstanceDestroy", "kill-before", "release")
    assert world.made() == ["3g.40gb@4"]
    assert list((world.root / "run/env").iterdir()) == []
    assert release.release(world.bench, mine, "x").phase == phases.RELEASED


def test_the_environment_of_a_later_job_of_that_number_stays(world: World) -> None:
    """What the earlier one left on another GPU is taken down later."""
    carve.allocate(world.bench, Owner(7, uid=64009), ask("3g.40gb"), world.gpu(0))
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(1))
    with world.machine.change(0) as board:
        board.instances.clear()
    reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert world.phases() == [phases.LOST, phases.ACTIVE]
    assert (world.root / "run/env/7.0").exists()


def test_half_taken_away(world: World) -> None:
    """The rest is of no use to the job, and is cleared."""
    carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())
    with world.machine.change(0) as board:
        board.instances.pop()
    reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert world.made() == []
    assert world.phases() == [phases.RELEASED]


def test_a_compute_instance_taken_away(world: World) -> None:
    """The job has nothing left to compute on; the GPU instance is still ours, and goes."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    with world.machine.change(0) as board:
        board.instances[0].compute.clear()
    report = reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert "taken away from outside" in report.done[0]
    assert world.phases() == [phases.RELEASED]
    assert world.made() == []
    assert list((world.machine.tree.dev / "nvidia-caps").iterdir()) == []


def test_a_lost_gpu_is_reported_and_the_others_done(world: World) -> None:
    """One dead GPU does not stop the rest."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(0))
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu(1))
    world.machine.lose(0)
    report = reconcile.reconcile(world.bench, frozenset)
    assert any("does not answer" in line for line in report.left)
    assert world.made(1) == []
