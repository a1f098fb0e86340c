"""Whose an instance is, where a place had several owners: none is taken for another's.

GI ids and MIG UUIDs are the same for whatever lies in one place, so a record that could not
be closed looks like the owner of what the next job has there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import DriverFault, GpuLost, Held, InstanceBusy, LockTimeout, NoRoom
from slurm_mig.gpu.holder import GPU, INSTANCE, Holder, Holders
from slurm_mig.gpu.nvml import NvmlDriver
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import GONE
from slurm_mig.simulator.faults import Rule
from slurm_mig.state.monitoring import Feeds
from slurm_mig.transaction import by_hand, carve, reconcile, release, whereabouts, whole_gpu
from slurm_mig.transaction.workbench import Workbench
from tests.kit.gpus import A100
from tests.kit.transaction import ALICE, BOB, ROOT, World, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slurm_mig.mig.driver import Gpu

pytestmark = pytest.mark.root


def alive(world: World) -> None:
    """Bob's job has what it was given."""
    (record,) = world.ledger.open_of_job(8)
    assert record.phase == phases.ACTIVE
    board = world.machine.board(0)
    there = {board.mig_uuid(gi, ci) for gi in board.instances for ci in gi.compute}
    assert set(record.uuids) <= there


# -- a teardown that fails half-way -----------------------------------------------------


def test_a_stuck_record_never_takes_the_next_jobs_slice(world: World) -> None:
    """One of two instances went, the driver failed on the other: the free place is given away."""
    mine = carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())
    rule = Rule("nvmlGpuInstanceDestroy", "error:RESET_REQUIRED", skip=1, times=0)
    world.machine.faults.set([rule])
    with pytest.raises(DriverFault):
        release.release(world.bench, mine, "x")
    assert [item.gi_id == GONE for item in world.ledger.find(mine.number).instances] == [
        True,
        False,
    ]
    # The same place, and so the same ids and UUID.
    his = carve.allocate(world.bench, BOB, ask("1g.10gb"), world.gpu())
    assert his.uuids[0] == mine.uuids[0]
    world.machine.faults.set([])
    reconcile.reconcile(world.bench, lambda: frozenset({8}))
    alive(world)
    assert world.ledger.find(mine.number).phase == phases.RELEASED
    assert world.made() == [str(item) for item in his.instances]


def test_what_was_set_aside_unseen_is_looked_at_before_its_place_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook died after its destroy, and the next one could not look: nothing is marked yet."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    world.killed("nvmlGpuInstanceDestroy", "kill-after", "release")
    listed, failing = NvmlDriver.instances, iter([DriverFault("not now"), DriverFault("nor now")])

    def instances(self: NvmlDriver, gpu: Gpu) -> list[Any]:
        if sys._getframe(1).f_code.co_name in ("seen_after", "_save_stuck"):
            for fault in failing:
                raise fault
        return listed(self, gpu)

    monkeypatch.setattr(NvmlDriver, "instances", instances)
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    assert next(failing, None) is None
    world.reopen()
    reconcile.reconcile(world.bench, lambda: frozenset({8}))
    alive(world)
    assert world.ledger.of_job(7)[0].phase == phases.RELEASED


def test_a_place_that_went_on_is_no_longer_the_records(world: World) -> None:
    """Whatever the ledger of an older version says of it: the newer record has the better claim."""
    mine = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    release.release(world.bench, mine, "x")
    his = carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    # As if it had never been closed, nor marked.
    with world.ledger._db:
        world.ledger._db.execute(
            "UPDATE allocation SET phase = 'quarantined', ended = NULL WHERE number = ?",
            (mine.number,),
        )
    old = world.ledger.find(mine.number)
    assert (old.instances, old.phase) == (his.instances, phases.QUARANTINED)
    release.release(world.bench, old, "again")
    reconcile.reconcile(world.bench, lambda: frozenset({8}))
    alive(world)
    assert world.ledger.find(mine.number).phase == phases.RELEASED
    nodes = list((world.machine.tree.dev / "nvidia-caps").iterdir())
    assert {(node.stat().st_uid, node.stat().st_mode & 0o777) for node in nodes} == {(64002, 0o400)}


def test_feeds_of_what_is_gone_are_not_taken_away_again(world: World, tmp_path: Path) -> None:
    """The file has the name of the UUID, which is the next job's by now."""
    mine = carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())
    feeds = Feeds(tmp_path / "gpustat", tmp_path / "dcgm")
    feeds.show(mine, 0)
    gone = mine.without([mine.instances[0]])
    feeds.hide(gone, 0)
    assert (tmp_path / "gpustat" / mine.uuids[0]).exists()
    assert not (tmp_path / "gpustat" / mine.uuids[1]).exists()
    assert len(list((tmp_path / "dcgm").iterdir())) == 1


# -- a carve that fails -----------------------------------------------------------------


def test_a_refused_carve_leaves_alone_who_was_faster(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An administrator's nvidia-smi makes the same profile in the planned place meanwhile."""
    create = NvmlDriver.create_gpu_instance

    def late(self: NvmlDriver, gpu: Gpu, profile_id: int, place: Any) -> object:
        monkeypatch.undo()
        world.strange(start=place.start, profile_id=profile_id)
        return create(self, gpu, profile_id, place)

    monkeypatch.setattr(NvmlDriver, "create_gpu_instance", late)
    with pytest.raises(NoRoom):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@4"]
    assert world.ledger.all_open() == []


def test_what_was_made_before_the_refusal_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own ids; only what was never made is somebody else's."""
    create = NvmlDriver.create_gpu_instance

    def late(self: NvmlDriver, gpu: Gpu, profile_id: int, place: Any) -> object:
        if profile_id == 9:
            world.strange(start=place.start, profile_id=profile_id)
        return create(self, gpu, profile_id, place)

    monkeypatch.setattr(NvmlDriver, "create_gpu_instance", late)
    with pytest.raises(NoRoom):
        carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@4"]


def test_a_list_without_a_neighbour_gives_away_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment the driver shows an empty GPU; the ledger knows better."""
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    listed = NvmlDriver.instances

    def instances(self: NvmlDriver, gpu: Gpu) -> list[Any]:
        return [] if sys._getframe(1).f_code.co_name == "allocate" else listed(self, gpu)

    monkeypatch.setattr(NvmlDriver, "instances", instances)
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@0", "3g.40gb@4"]
    alive(world)


def test_made_elsewhere_and_busy(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver made in the wrong place is destroyed as patiently as anything else."""
    create, destroy = NvmlDriver.create_gpu_instance, NvmlDriver.destroy_gpu_instance
    busy = iter([InstanceBusy("in use")])

    def elsewhere(self: NvmlDriver, gpu: Gpu, profile_id: int, _place: Any) -> object:
        row = self.geometry(gpu).by_id(profile_id)
        return create(self, gpu, profile_id, min(row.placements))

    def at_first_not(self: NvmlDriver, gpu: Gpu, gi_id: int) -> None:
        for fault in busy:
            raise fault
        destroy(self, gpu, gi_id)

    monkeypatch.setattr(NvmlDriver, "create_gpu_instance", elsewhere)
    monkeypatch.setattr(NvmlDriver, "destroy_gpu_instance", at_first_not)
    with pytest.raises(DriverFault, match="was asked for"):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == []


@pytest.mark.parametrize("held", [True, False])
def test_a_compute_instance_that_is_refused_as_in_use(world: World, *, held: bool) -> None:
    """A user who opened the new instance's node is in the way; without one the driver is."""
    rule = Rule("nvmlGpuInstanceCreateComputeInstance", "error:IN_USE", times=0)
    world.machine.faults.set([rule])
    if held:
        world.machine.hold(os.getpid(), world.gpu().uuid)
        rules = [rule, Rule("nvmlDeviceGetComputeRunningProcesses_v3", "error:UNKNOWN", times=0)]
        world.machine.faults.set(rules)
        world.machine.let_go(os.getpid())
        world.bench.stuck = Crowd(INSTANCE, 64003)  # type: ignore[assignment]
    with pytest.raises(NoRoom if held else InstanceBusy):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == []


class Crowd:
    """A process has something open."""

    timeout = look = 0.1
    remedies = ()

    def __init__(self, has: str, uid: int) -> None:
        self.holder = Holder(4242, has, 1, (uid,), name="squatter")

    def holders(self, *_: object) -> Holders:
        return Holders((self.holder,), complete=True)


def test_a_gpu_in_use_while_its_mig_mode_comes_on(world: World) -> None:
    """Hopper after a driver reload: whoever uses the GPU may be a user, and the node stays."""
    with world.machine.change(0) as board:
        board.set_mode(False, busy=False)
    with world.used(0), pytest.raises(NoRoom, match=f"used by pid {os.getpid()}"):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())


def test_in_use_may_hide_that_it_was_made(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try made it and said "in use", the second finds no room: it is ours, and goes."""
    create = NvmlDriver.create_gpu_instance
    lies = iter([InstanceBusy("in use")])

    def lying(self: NvmlDriver, gpu: Gpu, profile_id: int, place: Any) -> object:
        made = create(self, gpu, profile_id, place)
        for lie in lies:
            raise lie
        return made

    monkeypatch.setattr(NvmlDriver, "create_gpu_instance", lying)
    with pytest.raises(NoRoom):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert (world.made(), world.ledger.all_open()) == ([], [])


def test_what_was_not_tried_yet_is_nobodys(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first instance's compute instance fails; the second's place is an administrator's now."""

    def late(*_: object) -> object:
        monkeypatch.undo()
        world.strange(start=4, profile_id=9)
        raise DriverFault("no compute instance")

    monkeypatch.setattr(NvmlDriver, "create_compute_instance", late)
    with pytest.raises(DriverFault, match="no compute instance"):
        carve.allocate(world.bench, ALICE, ask("1g.10gb", "3g.40gb"), world.gpu())
    assert world.made() == ["3g.40gb@4"]


def test_made_elsewhere_and_busy_for_good(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on record under the place that it has: the next hook takes it down."""
    create = NvmlDriver.create_gpu_instance

    def elsewhere(self: NvmlDriver, gpu: Gpu, profile_id: int, _place: Any) -> object:
        return create(self, gpu, profile_id, min(self.geometry(gpu).by_id(profile_id).placements))

    monkeypatch.setattr(NvmlDriver, "create_gpu_instance", elsewhere)
    monkeypatch.setattr(Workbench, "create_patience", 0.1)
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])
    with pytest.raises(DriverFault, match="was asked for"):
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    (record,) = world.ledger.all_open()
    assert [str(item) for item in record.instances] == world.made() == ["3g.40gb@0"]
    world.machine.faults.set([])
    reconcile.reconcile(world.bench, None)
    assert (world.made(), world.ledger.all_open()) == ([], [])


def test_a_monitor_is_no_excuse_for_the_driver(world: World) -> None:
    """Root's, or a neighbour's, with the GPU open: "in use" for ever is the node's fault."""
    rule = Rule("nvmlGpuInstanceCreateComputeInstance", "error:IN_USE", times=0)
    world.machine.faults.set([rule])
    for crowd in (Crowd(GPU, 64002), Crowd(INSTANCE, 0)):
        world.bench.stuck = crowd  # type: ignore[assignment]
        with pytest.raises(InstanceBusy):
            carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert world.made() == []


# -- administrators ---------------------------------------------------------------------


def test_a_foreign_instance_that_became_a_jobs(world: World) -> None:
    """`destroy --foreign` looked, and then a job was given the place: its slice is not adopted."""
    world.strange(start=4, profile_id=9)
    (seen,) = whereabouts.foreign_instances(world.bench, world.gpu())
    with world.machine.change(0) as board:
        board.instances.clear()
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    with pytest.raises(Held, match="no longer what it was"):
        by_hand.adopt(world.bench, ROOT, world.gpu(), seen)
    alive(world)


# -- several GPUs -----------------------------------------------------------------------


def test_a_lost_gpu_does_not_keep_the_others_slices(world: World) -> None:
    """The Epilog takes down what it can, and then says what it cannot."""
    records = [carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(n)) for n in (0, 1)]
    world.machine.lose(0)
    world.reopen()
    with pytest.raises(GpuLost):
        release.release_all(world.bench, records, "the job ended", over=True)
    assert world.made(1) == []
    assert world.ledger.find(records[1].number).phase == phases.RELEASED


def test_several_stuck_records_share_one_hooks_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left-overs of one user on all GPUs must not add up to a hook that is given up."""
    records = [carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(n)) for n in (0, 1)]
    clock = [0.0]
    monkeypatch.setattr(world.bench, "monotonic", lambda: clock[0])
    monkeypatch.setattr(world.bench, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setattr(world.bench, "destroy_timeout", 5.0)
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])
    ended = release.release_all(world.bench, records, "the job ended")
    assert [record.phase for record in ended] == [phases.QUARANTINED] * 2
    assert 5.0 <= clock[0] < 7.0


def test_one_stuck_record_does_not_make_the_next_one_stuck(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be in use for a moment is normal: each has its moment before the first has the rest."""
    records = [carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(n)) for n in (0, 1)]
    second, busy, destroy = world.gpu(1).uuid, iter(range(3)), NvmlDriver.destroy_gpu_instance

    def sometimes(self: NvmlDriver, gpu: Gpu, gi_id: int) -> None:
        if gpu.uuid != second or next(busy, None) is not None:
            raise InstanceBusy("in use")
        destroy(self, gpu, gi_id)

    monkeypatch.setattr(NvmlDriver, "destroy_gpu_instance", sometimes)
    monkeypatch.setattr(world.bench, "destroy_timeout", 1.0)
    ended = release.release_all(world.bench, records, "the job ended")
    assert [record.phase for record in ended] == [phases.QUARANTINED, phases.RELEASED]


def test_locks_are_waited_for_once(world: World) -> None:
    """Another hook hangs on each GPU: an Epilog must not wait for one after the other."""
    records = [carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(n)) for n in (0, 1)]
    world.bench.locks._patience = 1.0
    held = [other_lock(world, index) for index in (0, 1)]
    begun = time.monotonic()
    with pytest.raises(LockTimeout):
        release.release_all(world.bench, records, "the job ended")
    assert time.monotonic() - begun < 1.8
    for descriptor in held:
        os.close(descriptor)


@pytest.mark.parametrize("fault", ["lock", "driver"])
def test_reconcile_goes_on_with_the_other_gpus(world: World, fault: str) -> None:
    """Somebody holds one GPU's lock, or its driver fails: said, and no reason to stop."""
    world.close()
    pid = os.fork()
    if pid == 0:
        world.open()
        world.machine.faults.set([Rule("nvmlDeviceCreateGpuInstanceWithPlacement", "kill-after")])
        carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu(1))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    world.machine.faults.set([])
    world.open()
    uuid = world.gpu(0).uuid
    world.bench.locks._patience = 0.2
    if fault == "driver":
        world.machine.faults.set([Rule("nvmlDeviceGetGpuInstances", "error:UNKNOWN", times=1)])
        report = reconcile.reconcile(world.bench, None)
    else:
        held = other_lock(world)
        report = reconcile.reconcile(world.bench, None)
        os.close(held)
    assert list(report.faults) == [uuid]
    assert world.made(1) == []


def other_lock(world: World, index: int = 0) -> int:
    """A GPU's lock, held beside us."""
    import fcntl

    uuid = world.gpu(index).uuid
    with world.bench.locks.hold([uuid], "make it"):
        pass
    path = world.root / f"run/locks/{uuid}.lock"
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


# -- MIG mode over a reboot ---------------------------------------------------------------


@pytest.fixture
def ampere(public_tmp: Path) -> Iterator[World]:
    made = World(public_tmp, A100)
    yield made
    made.close()


def given(world: World) -> Callable[[], str]:
    """Alice has the whole GPU, without MIG; her record's phase."""
    record = whole_gpu.give_whole(world.bench, ALICE, world.gpu(), "mig-off", reset=True)
    assert record.request == phases.WHOLE_MIG_OFF
    return lambda: world.ledger.find(record.number).phase


def test_a_mode_that_cannot_come_back_after_a_reboot_stays_due(ampere: World) -> None:
    """Busy at the first look: else the next Prolog would find MIG off and drain the node."""
    phase = given(ampere)
    ampere.machine.reboot()
    ampere.reopen()
    with ampere.used(0):
        reconcile.reconcile(ampere.bench, None)
        assert phase() == phases.QUARANTINED
        with pytest.raises(NoRoom, match="MIG mode is still off"):
            carve.allocate(ampere.bench, BOB, ask("3g.40gb"), ampere.gpu())
    carve.allocate(ampere.bench, BOB, ask("3g.40gb"), ampere.gpu())
    assert phase() == phases.LOST


def test_a_gpu_that_was_replaced(ampere: World) -> None:
    """Another card answers since the reboot: what waits for the old one's mode is over."""
    phase = given(ampere)
    ampere.close()
    ampere.machine.reboot()
    facts = ampere.machine.root / "machine.json"
    new = "GPU-11111111-2222-3333-4444-555555555555"
    facts.write_text(facts.read_text().replace(ampere.machine.gpus[0]["uuid"], new))
    ampere.open()
    report = reconcile.reconcile(ampere.bench, None)
    assert (phase(), report.left) == (phases.LOST, [])


def test_a_mode_that_is_due_is_no_job(ampere: World) -> None:
    """`enable` and the boot unit wait for what is in the way, not for a job that is long gone."""
    given(ampere)
    ampere.machine.reboot()
    ampere.reopen()
    with ampere.used(0):
        reconcile.reconcile(ampere.bench, None)
        with pytest.raises(InstanceBusy):
            by_hand.set_mode(ampere.bench, ampere.gpu(), on=True)
    assert by_hand.set_mode(ampere.bench, ampere.gpu(), on=True).mig_mode


# -- ids that are used again ---------------------------------------------------------------


def test_files_of_a_later_job_with_that_number_stay(world: World) -> None:
    """Alice's 7.0 is stuck, numbers begin anew, Bob's job is 7.0: what was hers goes, his stays."""
    mine = carve.allocate(world.bench, ALICE, ask("1g.10gb"), world.gpu())
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])
    release.release(world.bench, mine, "the job ended")
    world.bench.files.withdraw(7)
    carve.allocate(world.bench, replace(BOB, job_id=7), ask("3g.40gb"), world.gpu())
    world.machine.faults.set([])
    reconcile.reconcile(world.bench, lambda: frozenset({7}))
    assert world.ledger.find(mine.number).phase == phases.RELEASED
    assert (world.root / "run/env/7.0").exists()
    assert (world.root / "run/jobs/7.0").exists()


def test_a_look_after_a_reboot(world: World) -> None:
    """What went with it takes no room, though no hook has closed its record yet."""
    carve.allocate(world.bench, ALICE, ask("7g.80gb"), world.gpu())
    world.machine.reboot()
    with world.machine.change(0) as board:
        board.set_mode(True, busy=False)
    world.reopen()
    assert carve.foresee_plan(world.bench, ask("3g.40gb"), world.gpu()).slots
