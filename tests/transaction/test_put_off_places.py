"""What was put off on a GPU, and whoever comes there next: each takes down what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.gpu.capabilities import Capabilities
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Owner
from slurm_mig.simulator.faults import Rule
from slurm_mig.transaction import carve, release
from tests.kit.transaction import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.kit.transaction import World

pytestmark = pytest.mark.root

#: A driver call that the driver carries out as ever, and that is counted.
DESTROYED = Rule("nvmlGpuInstanceDestroy", "hang:0", skip=1 << 30)


def put_off(world: World, *names: str) -> None:
    """Jobs 101, 102, ... with these profiles, all of them over."""
    jobs = [Owner(101 + n, uid=64001, gid=64001) for n in range(len(names))]
    for owner, name in zip(jobs, names, strict=True):
        carve.allocate(world.bench, owner, ask(name), world.gpu())
    for owner in jobs:
        release.put_off(world.bench, world.ledger.open_of_job(owner.job_id or 0))


@pytest.fixture
def counted(world: World) -> Iterator[World]:
    yield world
    world.machine.faults.set([])


def start(world: World, *names: str) -> int:
    """Carve for one more job; how many instances were destroyed for it."""
    world.machine.faults.set([DESTROYED])
    carve.allocate(world.bench, Owner(8, uid=64002, gid=64002), ask(*names), world.gpu())
    (rule,) = world.machine.faults.rules()
    return rule.seen


@pytest.mark.parametrize(
    ("over", "asked", "gone"),
    [
        (["1g.10gb"] * 7, ["1g.10gb"], 1),
        (["1g.10gb"] * 7, ["2g.20gb"], 2),
        (["7g.80gb"], ["1g.10gb"], 1),
        (["3g.40gb", "3g.40gb"], ["3g.40gb"], 1),
        (["1g.10gb+me"], ["3g.40gb"], 1),
        # Elsewhere, but the engines are all with the one that goes.
        (["1g.10gb+me"], ["1g.10gb+me"], 1),
        (["1g.10gb"] * 7, ["7g.80gb"], 7),
    ],
)
def test_only_what_is_in_the_way_goes(
    counted: World, over: list[str], asked: list[str], gone: int
) -> None:
    """Seven that end at once cost the first job after them one teardown, not seven."""
    put_off(counted, *over)
    assert start(counted, *asked) == gone
    assert counted.phases().count(phases.RELEASING) == len(over) - gone
    assert counted.phases()[-1] == phases.ACTIVE
    assert len(counted.made()) == len(over) - gone + len(asked)


def test_the_place_is_the_one_it_had_when_all_was_gone(counted: World) -> None:
    """What is about to go must not make a slice land where it splits the GPU."""
    put_off(counted, "1g.10gb")
    before = counted.made()
    assert start(counted, "1g.10gb") == 1
    assert counted.made() == before


def test_of_two_places_as_good_the_free_one_is_taken(counted: World) -> None:
    """On a GPU that is nearly full one slot is as good as another: none has to be freed."""
    for job in range(1, 6):
        carve.allocate(counted.bench, Owner(job, uid=64001), ask("1g.10gb"), counted.gpu())
    put_off(counted, "1g.10gb")
    assert start(counted, "1g.10gb") == 0
    assert len(counted.made()) == 7


def test_what_resists_is_left_and_another_place_taken(counted: World) -> None:
    """In use, or a driver that fails: it stays on record as before, and is tried once."""
    put_off(counted, *["1g.10gb"] * 7)
    counted.bench.sweep_patience = 0.0
    counted.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=1)])
    carve.allocate(counted.bench, Owner(8, uid=64002), ask("1g.10gb"), counted.gpu())
    found = [item for item in counted.phases() if item != phases.RELEASING]
    assert found == [phases.QUARANTINED, phases.RELEASED, phases.ACTIVE]


def test_what_nobody_has_taken_down_in_its_time_is_swept(counted: World) -> None:
    """The process that was left with it has died: whoever comes ends it, in the way or not."""
    put_off(counted, *["1g.10gb"] * 3)
    counted.bench.destroy_timeout = -counted.bench.stuck.timeout
    assert start(counted, "1g.10gb") == 3
    assert phases.RELEASING not in counted.phases()


def test_a_teardown_leaves_others_theirs(counted: World) -> None:
    """Whoever waits for the lock waits for one of them, not for all."""
    put_off(counted, *["1g.10gb"] * 4)
    released = release.release_all(
        counted.bench, counted.ledger.open_of_job(102), "x", over=True, late=True
    )
    assert [item.phase for item in released] == [phases.RELEASED]
    assert counted.phases().count(phases.RELEASING) == 3


def test_what_a_prolog_has_taken_down_is_looked_at_no_more(counted: World) -> None:
    """Neither the lock nor the driver: a process that comes late costs next to nothing."""
    put_off(counted, "7g.80gb")
    late = counted.ledger.open_of_job(101)
    start(counted, "7g.80gb")
    counted.machine.faults.set([Rule("*", "error:UNKNOWN", times=0)])
    (done,) = release.release_all(counted.bench, late, "x", over=True, late=True)
    assert (done.phase, done.reason) == (phases.RELEASED, phases.JOB_ENDED)


def test_a_place_that_has_a_later_job_meanwhile_stays_open_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between an Epilog's look and its closing: lost, found so by a Prolog, and carved anew."""
    first, second = (Owner(number, uid=64001, gid=64001) for number in (101, 102))
    record = carve.allocate(world.bench, first, ask("3g.40gb"), world.gpu())
    revoke = Capabilities.revoke

    def late(*arguments: object, **options: object) -> None:
        monkeypatch.setattr(Capabilities, "revoke", revoke)
        with world.machine.change(0) as board:
            board.instances.clear()
        again = carve.allocate(world.bench, second, ask("3g.40gb"), world.gpu())
        assert [item.gi_id for item in again.instances] == [i.gi_id for i in record.instances]
        revoke(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Capabilities, "revoke", late)
    (left,) = release.put_off(world.bench, [record])
    assert left.phase == phases.LOST
    nodes = list((world.machine.tree.dev / "nvidia-caps").iterdir())
    assert {(node.stat().st_uid, node.stat().st_mode & 0o777) for node in nodes} == {(64001, 0o400)}
