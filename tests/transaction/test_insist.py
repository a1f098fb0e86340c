"""A slice that stays in use: holders named, remedies used, that slice alone set aside."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import NoRoom
from slurm_mig.gpu.holder_search import Processes
from slurm_mig.gpu.remedies import Stuck
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import GONE, Owner
from slurm_mig.simulator.faults import Rule
from slurm_mig.state.locks import Locks
from slurm_mig.system.held import AskedUnderLock, ask_freely
from slurm_mig.system.services import Services
from slurm_mig.transaction import carve, collect, reconcile, release, whole_gpu
from tests.kit.gpus import A100, H100
from tests.kit.transaction import ALICE, BOB, World, ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from slurm_mig.mig.allocation import Allocation

pytestmark = pytest.mark.root

OF_JOB = {"SLURM_JOB_ID": "7"}


class StuckWorld(World):
    """A node whose slices are used by real processes of job 7's user."""

    remedies: tuple[str, ...] = ("kill-job",)

    def open(self) -> None:
        super().open()
        systemctl = self.root / "systemctl"
        self.bench.stuck = Stuck(
            self.driver,
            self.bench.capabilities,
            remedies=self.remedies,
            timeout=3,
            services=Services((systemctl,)),
        )
        self.users: list[subprocess.Popen[bytes]] = getattr(self, "users", [])

    def process(
        self, environ: Mapping[str, str] = OF_JOB, uid: int = 64001, fd: int = -1
    ) -> subprocess.Popen[bytes]:
        opened = () if fd < 0 else (fd,)
        process = subprocess.Popen(
            ["python train.py", "300"], executable="/bin/sleep", env=dict(environ),
            pass_fds=opened, user=uid, group=uid, extra_groups=[], cwd="/",
        )  # fmt: skip
        self.users.append(process)
        return process

    def hold(
        self, uuid: str, environ: Mapping[str, str] = OF_JOB, uid: int = 64001
    ) -> subprocess.Popen[bytes]:
        process = self.process(environ, uid)
        self.machine.hold(process.pid, uuid)
        return process

    def let_go(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def end(self) -> None:
        for process in self.users:
            self.let_go(process)
        self.close()

    def systemctl(self, body: str) -> Path:
        """A systemctl that does what a script says, and notes what it was asked."""
        path = self.root / "systemctl"
        path.write_text(f'#!/bin/sh\necho "$*" >>{self.root}/asked\n{body}\n')
        path.chmod(0o755)
        return self.root / "asked"


@pytest.fixture
def world(public_tmp: Path) -> Iterator[StuckWorld]:
    made = StuckWorld(public_tmp, H100, H100)
    yield made
    made.end()


def carved(world: World, *names: str, owner: Owner = ALICE) -> Allocation:
    return carve.allocate(world.bench, owner, ask(*names or ("3g.40gb",)), world.gpu())


# -- holders ------------------------------------------------------------------------


def test_who_holds_it_is_told(world: StuckWorld) -> None:
    """Pid, user and command, before anything else: reasons are cut off at their end."""
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    ended = release.release(world.bench, mine, "x")
    assert ended.phase == phases.QUARANTINED
    assert ended.reason.startswith(
        f"3g.40gb@4 still there, used by pid {process.pid} of 64001 (python train.py 300)"
    )
    assert "In use by another client" in ended.reason


def test_a_monitor_that_nvml_does_not_list(world: StuckWorld) -> None:
    """It has the GPU's node open, and the driver says no more than "in use" (DCGM#276)."""
    node = world.machine.tree.dev / "nvidia0"
    node.unlink()
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    descriptor = os.open(node, os.O_RDONLY)
    process = world.process({}, uid=0, fd=descriptor)
    os.close(descriptor)
    mine = carved(world)
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])
    ended = release.release(world.bench, mine, "x", over=True)
    assert f"used by pid {process.pid} of root (python train.py 300), by the GPU" in ended.reason
    assert process.poll() is None


def test_nobody_to_be_found(world: StuckWorld) -> None:
    """A handle that leaked in the driver."""
    mine = carved(world)
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])
    assert "no process that can be found" in release.release(world.bench, mine, "x").reason


def test_a_driver_that_lists_no_processes(world: StuckWorld) -> None:
    """That it fails at this, too, is no reason to drain the node."""
    mine = carved(world)
    world.machine.faults.set(
        [
            Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0),
            Rule("nvmlDeviceGetComputeRunningProcesses_v3", "error:UNKNOWN", times=0),
        ]
    )
    assert release.release(world.bench, mine, "x").phase == phases.QUARANTINED


# -- kill-job -----------------------------------------------------------------------


def test_left_overs_of_the_job_are_killed(world: StuckWorld) -> None:
    """The Epilog's case: freed, and the trail says what was done."""
    mine = carved(world)
    processes = [world.hold(mine.uuids[0]) for _ in range(2)]
    ended = release.release(world.bench, mine, "the job ended", over=True)
    assert ended.phase == phases.RELEASED
    assert [process.wait() for process in processes] == [-9, -9]
    assert ended.reason.startswith("the job ended; killed pid ")
    assert world.made() == []


def test_a_process_of_another_job_of_the_user(world: StuckWorld) -> None:
    """A slice ends with its job: the process goes, what its own job has a right to stays."""
    world.bench.stuck.remedies = ("kill-job", "kill-user")
    mine = carved(world)
    other = carved(world, "1g.10gb", owner=replace(ALICE, job_id=9))
    of_other = {"SLURM_JOB_ID": "9"}
    intruder, login = world.hold(mine.uuids[0], of_other), world.hold(mine.uuids[0], {})
    innocent = world.hold(other.uuids[0], of_other)
    ended = release.release(world.bench, mine, "the job ended", over=True)
    assert ended.phase == phases.RELEASED
    assert [intruder.wait(5), login.wait(5), innocent.poll()] == [-9, -9, None]
    assert f"killed pid {intruder.pid}" in ended.reason
    assert world.ledger.find(other.number).phase == phases.ACTIVE


def test_nobody_is_given_the_place_while_its_user_is_looked_for(
    world: StuckWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a new job of the same user has the same instance, and its process would go."""
    stuck, locked = world.bench.stuck, []
    stuck.remedies = ("kill-user",)
    mine = carved(world)
    world.hold(mine.uuids[0], {"SLURM_JOB_ID": "9"})
    kill = stuck._kill

    def watched(*words: Any, **options: Any) -> list[str]:
        with pytest.raises(AskedUnderLock):
            ask_freely("who else comes?")
        locked.append(options["anywhere"])
        return kill(*words, **options)

    monkeypatch.setattr(stuck, "_kill", watched)
    assert release.release(world.bench, mine, "x", over=True).phase == phases.RELEASED
    assert locked == [True]


@pytest.mark.parametrize(
    ("remedies", "uid", "over"),
    [
        (("kill-job",), 64001, True),
        (("kill-job", "kill-user"), 64002, True),
        (("kill-job", "kill-user"), 0, True),
        (("kill-job", "kill-user"), 64001, False),
    ],
    ids=["not-wanted", "another-user", "root", "the-job-may-live"],
)
def test_who_is_only_named(
    world: StuckWorld, remedies: tuple[str, ...], uid: int, over: bool
) -> None:
    """The slice is set aside, and the node's other slices go on."""
    world.bench.stuck.remedies = remedies
    mine = carved(world)
    carved(world, "1g.10gb", owner=replace(ALICE, job_id=9))
    process = world.hold(mine.uuids[0], {"SLURM_JOB_ID": "9"}, uid=uid)
    ended = release.release(world.bench, mine, "x", over=over)
    assert (ended.phase, process.poll()) == (phases.QUARANTINED, None)
    assert f"used by pid {process.pid}" in ended.reason


def test_a_whole_gpu_is_nobodys_slice(world: StuckWorld) -> None:
    """Who has the GPU open may have a right to it by now: `kill-user` is for slices."""
    world.bench.stuck.remedies = ("kill-user",)
    whole = whole_gpu.give_whole(world.bench, ALICE, world.gpu(), "mig-off", reset=False)
    process = world.hold(world.gpu().uuid, {"SLURM_JOB_ID": "9"})
    ended = release.release(world.bench, whole, "x", over=True)
    assert (ended.phase, process.poll()) == (phases.QUARANTINED, None)


def test_found_and_killed_by_its_descriptor_alone(world: StuckWorld) -> None:
    """NVML lists nobody: the instance's own node is open."""
    mine = carved(world)
    gi_id = mine.instances[0].gi_id or 0
    node = world.machine.tree.dev / f"nvidia-caps/nvidia-cap{3 + 9 * gi_id}"
    node.unlink()
    os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    descriptor = os.open(node, os.O_RDONLY)
    process = world.process(fd=descriptor)
    os.close(descriptor)
    world.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])

    def sleep(_: float) -> None:
        if process.poll() is not None:
            world.machine.faults.set([])

    world.bench.sleep = sleep
    ended = release.release(world.bench, mine, "x", over=True)
    assert (ended.phase, process.wait(5)) == (phases.RELEASED, -9)
    assert f"killed pid {process.pid}" in ended.reason


def test_not_before_the_deadline(world: StuckWorld) -> None:
    """What ends by itself in time is not killed."""
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    world.bench.sleep = lambda _: world.let_go(process)
    ended = release.release(world.bench, mine, "x", over=True)
    assert (ended.phase, ended.reason) == (phases.RELEASED, "x")


def test_not_when_the_site_does_not_want_it(world: StuckWorld) -> None:
    """`ignore`."""
    world.bench.stuck.remedies = ()
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    assert release.release(world.bench, mine, "x", over=True).phase == phases.QUARANTINED
    assert process.poll() is None


def test_not_while_the_job_may_live(world: StuckWorld) -> None:
    """An administrator takes the slice away by force: the processes are the job's business."""
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    assert release.release(world.bench, mine, "by an administrator").phase == phases.QUARANTINED
    assert process.poll() is None


def test_not_while_another_run_of_the_job_lives(world: StuckWorld) -> None:
    """Requeued and started again on another GPU of the node: its processes look the same."""
    mine = carved(world)
    again = replace(ALICE, restart=1)
    carve.allocate(world.bench, again, ask("3g.40gb"), world.gpu(1))
    process = world.hold(mine.uuids[0])
    assert release.release(world.bench, mine, "x", over=True).phase == phases.QUARANTINED
    assert process.poll() is None


def test_not_by_environment_while_the_user_has_another_job(world: StuckWorld) -> None:
    """In doubt it lives; another user's job makes no doubt."""
    mine = carved(world)
    other = carve.allocate(world.bench, replace(ALICE, job_id=9), ask("3g.40gb"), world.gpu(1))
    process = world.hold(mine.uuids[0])
    assert release.release(world.bench, mine, "x", over=True).phase == phases.QUARANTINED
    assert process.poll() is None
    release.release(world.bench, other, "x", over=True)
    carved(world, owner=BOB)
    reconcile.reconcile(world.bench, lambda: frozenset({8}))
    assert process.wait(5) == -9
    assert world.made() == ["3g.40gb@0"]


@pytest.mark.parametrize(
    ("environ", "uid"),
    [({}, 64001), ({"SLURM_JOB_ID": "8"}, 64001), (OF_JOB, 64002), (OF_JOB, 0)],
)
def test_nobody_elses_process(world: StuckWorld, environ: dict[str, str], uid: int) -> None:
    """Whatever it calls itself: the slice is set aside, and it is named."""
    mine = carved(world)
    process = world.hold(mine.uuids[0], environ, uid)
    ended = release.release(world.bench, mine, "x", over=True)
    assert ended.phase == phases.QUARANTINED
    assert f"pid {process.pid} of {'root' if uid == 0 else uid} " in ended.reason
    assert process.poll() is None


def test_a_whole_gpu_of_the_finished_job(world: StuckWorld) -> None:
    """Its left-over keeps MIG mode off; killed, the mode comes on."""
    record = whole_gpu.give_whole(world.bench, ALICE, world.gpu(), "mig-off", reset=False)
    process = world.hold(world.gpu().uuid)
    ended = release.release(world.bench, record, "x", over=True)
    assert (ended.phase, process.wait(5)) == (phases.RELEASED, -9)
    assert world.machine.board(0).mig_current is True


def test_the_sweep_of_another_hook_kills_nobody(world: StuckWorld) -> None:
    """Its own job must not wait, and whether that one is over it has not asked."""
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    world.ledger.move(mine, phases.RELEASING)
    carved(world, owner=BOB)
    assert world.ledger.find(mine.number).phase == phases.QUARANTINED
    assert process.poll() is None


# -- restart ------------------------------------------------------------------------


@pytest.fixture
def restarting(world: StuckWorld, monkeypatch: pytest.MonkeyPatch) -> StuckWorld:
    """`kill-job`, then the restart of the unit in which every process here seems to be."""
    world.bench.stuck.remedies = ("kill-job", "restart:nvidia-dcgm.service")
    real = Processes._read

    def read(self: Processes, pid: int, name: str) -> str:
        return (
            "0::/system.slice/nvidia-dcgm.service\n" if name == "cgroup" else real(self, pid, name)
        )

    monkeypatch.setattr(Processes, "_read", read)
    return world


def test_the_unit_that_holds_it_is_restarted(restarting: StuckWorld) -> None:
    """And the slice is destroyed after that."""
    mine = carved(restarting)
    process = restarting.hold(mine.uuids[0], {}, uid=0)
    asked = restarting.systemctl(f"kill -9 {process.pid}")
    ended = release.release(restarting.bench, mine, "x", over=True)
    assert asked.read_text().splitlines() == [
        "--no-ask-password --no-pager restart -- nvidia-dcgm.service"
    ]
    assert (ended.phase, ended.reason) == (phases.RELEASED, "x; restarted nvidia-dcgm.service")


def test_a_restart_that_fails_or_does_not_help(restarting: StuckWorld) -> None:
    """Both are on record; it is not tried again by every hook."""
    mine = carved(restarting)
    restarting.hold(mine.uuids[0], {}, uid=0)
    asked = restarting.systemctl("echo 'Access denied' >&2; exit 4")
    ended = release.release(restarting.bench, mine, "x", over=True)
    assert ended.phase == phases.QUARANTINED
    assert "of unit nvidia-dcgm.service" in ended.reason
    assert ended.reason.endswith("restarted nvidia-dcgm.service (exit 4: Access denied)")
    carved(restarting, owner=BOB)
    assert len(asked.read_text().splitlines()) == 1


def test_another_unit_is_left_alone(world: StuckWorld) -> None:
    """It is not among the holders."""
    world.bench.stuck.remedies = ("restart:nvidia-dcgm.service",)
    mine = carved(world)
    world.hold(mine.uuids[0], {}, uid=0)
    asked = world.systemctl("exit 0")
    assert release.release(world.bench, mine, "x", over=True).phase == phases.QUARANTINED
    assert not asked.exists()


# -- quarantine -----------------------------------------------------------------------


def test_later_hooks_try_again_and_the_trail_does_not_grow(world: StuckWorld) -> None:
    """The rest of the GPU goes on; nothing is written until the slice goes."""
    world.bench.stuck.remedies = ()
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    stuck = release.release(world.bench, mine, "x")
    count = "SELECT count(*) FROM event WHERE allocation = ?"
    events = world.ledger._db.execute(count, (mine.number,)).fetchone()[0]
    for job in range(10, 13):
        other = carved(world, owner=replace(BOB, job_id=job))
        release.release(world.bench, other, "x")
    assert world.ledger.find(mine.number) == stuck
    assert world.ledger._db.execute(count, (mine.number,)).fetchone()[0] == events
    world.let_go(process)
    carved(world, owner=BOB)
    assert world.ledger.find(mine.number).phase == phases.RELEASED


def test_a_refused_job_is_told_of_it(world: StuckWorld) -> None:
    """Not whose it is: that is no business of his."""
    world.bench.stuck.remedies = ()
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    release.release(world.bench, mine, "x")
    with pytest.raises(NoRoom) as refused:
        carved(world, "7g.80gb", owner=BOB)
    assert "; 3g.40gb@4 of jobs that have ended cannot be taken down yet" in str(refused.value)
    assert str(process.pid) not in str(refused.value)
    with pytest.raises(NoRoom, match="3g.40gb@4 of jobs that have ended"):
        whole_gpu.give_whole(world.bench, BOB, world.gpu(), "mig-off", reset=False)


def test_a_refusal_for_other_reasons_does_not_blame_it(world: StuckWorld) -> None:
    """There would be no room without it either."""
    world.bench.stuck.remedies = ()
    mine = carved(world)
    world.hold(mine.uuids[0])
    release.release(world.bench, mine, "x")
    carved(world, owner=BOB)
    with pytest.raises(NoRoom) as refused:
        carved(world, "7g.80gb", owner=replace(BOB, job_id=9))
    assert "ended" not in str(refused.value)


def test_why_a_whole_gpu_is_not_to_be_had_names_nobody(public_tmp: Path) -> None:
    """The record has it all; the job's user reads only the pid."""
    world = StuckWorld(public_tmp, A100)
    try:
        world.bench.stuck.remedies = ()
        record = whole_gpu.give_whole(world.bench, ALICE, world.gpu(), "mig-off", reset=True)
        world.hold(world.gpu().uuid)
        stuck = release.release(world.bench, record, "x")
        assert "MIG mode is still off, used by pid" in stuck.reason
        assert "train.py" in stuck.reason
        with pytest.raises(NoRoom) as refused:
            carved(world, owner=BOB)
        assert "train.py" not in str(refused.value)
    finally:
        world.end()


def test_the_neighbour_of_a_stuck_instance(world: StuckWorld) -> None:
    """One of two is gone: what the next job gets in its place has the same ids and stays."""
    world.bench.stuck.remedies = ()
    mine = carved(world, "3g.40gb", "1g.10gb")
    process = world.hold(mine.uuids[0])
    stuck = release.release(world.bench, mine, "x")
    assert [item.gi_id == GONE for item in stuck.instances] == [False, True]
    assert stuck.reason.startswith("3g.40gb@4 still there")
    assert stuck.uuids == mine.uuids
    bobs = carved(world, "1g.10gb", owner=BOB)
    assert bobs.uuids[0] == mine.uuids[1]
    nodes = sorted(path.name for path in (world.machine.tree.dev / "nvidia-caps").iterdir())
    world.let_go(process)
    reconcile.reconcile(world.bench, lambda: frozenset({8}))
    assert world.ledger.find(mine.number).phase == phases.RELEASED
    assert world.made() == [str(bobs.instances[0])]
    assert len(nodes) == 4
    assert len(list((world.machine.tree.dev / "nvidia-caps").iterdir())) == 2


def test_a_part_that_goes_later(world: StuckWorld) -> None:
    """Of two stuck instances one is let go: marked, the other stays set aside."""
    world.bench.stuck.remedies = ()
    mine = carved(world, "3g.40gb", "1g.10gb")
    first, second = (world.hold(uuid) for uuid in mine.uuids)
    assert len(release.release(world.bench, mine, "x").present) == 2
    world.let_go(first)
    carved(world, "3g.40gb", owner=BOB)
    now = world.ledger.find(mine.number)
    assert (now.phase, [str(item) for item in now.present]) == (phases.QUARANTINED, [
        str(mine.instances[1])
    ])  # fmt: skip
    world.let_go(second)
    release.release(world.bench, now, "x")
    assert world.made() == ["3g.40gb@4"]


def test_parts_of_one_gpu_instance(world: StuckWorld) -> None:
    """Three compute instances in one stuck GPU instance are one line, not three."""
    world.bench.stuck.remedies = ()
    mine = carve.allocate(world.bench,
        ALICE, replace(ask("1c.3g.40gb"), items=(replace(ask("1c.3g.40gb").items[0], count=3),)),
        world.gpu(),
    )  # fmt: skip
    world.hold(mine.uuids[2])
    stuck = release.release(world.bench, mine, "x")
    assert stuck.phase == phases.QUARANTINED
    assert stuck.reason.count("still there") == 1


def test_reconcile_uses_the_remedies(world: StuckWorld) -> None:
    """An administrator who has changed the config asks for it; only jobs that Slurm has not."""
    world.bench.stuck.remedies = ()
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    release.release(world.bench, mine, "x")
    world.bench.stuck.remedies = ("kill-job",)
    assert reconcile.reconcile(world.bench, None).left
    assert reconcile.reconcile(world.bench, lambda: frozenset({7})).left
    assert process.poll() is None
    report = reconcile.reconcile(world.bench, lambda: frozenset({8}))
    assert "killed pid" in report.done[0]
    assert process.wait(5) == -9


def test_lost_jobs_are_over(world: StuckWorld) -> None:
    """Slurm no longer has them: their left-overs stand in nobody's way."""
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    (done,) = collect.collect(world.bench, world.gpu(), frozenset)
    assert (done.phase, process.wait(5)) == (phases.RELEASED, -9)


def test_nobody_waits_for_the_lock_meanwhile(world: StuckWorld) -> None:
    """Several jobs of a user stuck on one GPU must not run another hook into its lock timeout."""
    world.bench.destroy_timeout = 3
    mine = carved(world)
    world.hold(mine.uuids[0], {}, uid=0)
    free: list[bool] = []
    plain = world.bench.sleep

    def sleep(seconds: float) -> None:
        if world.ledger.find(mine.number).phase == phases.QUARANTINED:
            with Locks(world.root / "run/locks", 0.2).hold([world.gpu().uuid], "another hook"):
                free.append(True)
        plain(seconds)

    def restart(*_: object) -> list[str]:
        with Locks(world.root / "run/locks", 0.2).hold([world.gpu().uuid], "another hook"):
            free.append(True)
        return ["restarted a.service"]

    world.bench.sleep = sleep
    world.bench.stuck.remedies = ("restart:a.service",)
    world.bench.stuck.apply = restart  # type: ignore[method-assign,assignment]
    ended = release.release(world.bench, mine, "x", over=True)
    assert ended.reason.endswith("; restarted a.service")
    assert len(free) > 3


def test_it_goes_while_it_is_waited_for(world: StuckWorld) -> None:
    """By its own end, or by another hook's hand: released, with the Epilog's own reason."""
    world.bench.destroy_timeout = 5
    mine = carved(world)
    process = world.hold(mine.uuids[0])
    plain = world.bench.sleep

    def sleep(seconds: float) -> None:
        if world.ledger.find(mine.number).phase == phases.QUARANTINED:
            world.let_go(process)
        plain(seconds)

    world.bench.sleep = sleep
    ended = release.release(world.bench, mine, "the job ended", over=True)
    assert (ended.phase, ended.reason) == (phases.RELEASED, "the job ended")


def test_the_time_is_bounded(world: StuckWorld) -> None:
    """destroy_timeout, then `timeout` for looking, killing, restarting and trying again."""
    mine = carved(world)
    world.hold(mine.uuids[0], {}, uid=0)
    now = [0.0]
    world.bench.monotonic = world.bench.stuck._monotonic = lambda: now[0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    world.bench.sleep = sleep
    world.bench.stuck.remedies = ("restart:a.service", "kill-job", "restart:b.service")
    world.bench.stuck.apply = lambda *_: ["did something"]  # type: ignore[method-assign]
    assert release.release(world.bench, mine, "x", over=True).phase == phases.QUARANTINED
    assert now[0] <= 0.2 + 3 + 0.5
