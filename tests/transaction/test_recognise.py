"""Which instance a record means: all that it has is compared, by everybody in the same way."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Instance
from slurm_mig.mig.driver import ComputeInstance, GpuInstance
from slurm_mig.mig.geometry import Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.transaction import by_hand, carve, reconcile, release, whereabouts
from slurm_mig.transaction.recognise import as_found, find, own_compute, strangers
from tests.kit.gpus import H100
from tests.kit.transaction import ALICE, BOB, ROOT, World, ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kit.site import Site

ITEM = Instance("3g.40gb", 9, 4, 4, gi_id=2, ci_id=0, uuid="MIG-a")
OWN = ComputeInstance(0, 2, "MIG-a")
FOUND = GpuInstance(2, 9, Placement(4, 4), (OWN,), fills=2)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, H100)
    yield world
    world.close()


def shrunk(world: World) -> None:
    """Root's hands put a smaller compute instance in the place of a job's own."""
    with world.machine.change(0) as board:
        (item,) = board.instances
        item.compute.clear()
        board.create_compute(item, 0)


CHANGES = {
    "profile_id": st.sampled_from([9, 14, 19]),
    "placement": st.sampled_from([Placement(4, 4), Placement(0, 4)]),
    "gi_id": st.sampled_from([1, 2]),
    "compute": st.lists(
        st.sampled_from(
            [
                OWN,
                replace(OWN, ci_id=1),
                replace(OWN, profile_id=0),
                replace(OWN, uuid="MIG-b"),
            ]
        ),
        max_size=2,
        unique=True,
    ).map(tuple),
}


@given(st.fixed_dictionaries(CHANGES))
def test_whatever_differs_makes_it_another(change: dict[str, object]) -> None:
    """Its own compute instance in its place, or none: nothing else is the record's."""
    found = replace(FOUND, **change)  # type: ignore[arg-type]
    there = (found.gi_id, found.profile_id, found.placement) == (2, 9, Placement(4, 4))
    ours = there and (OWN in found.compute or not found.compute)
    assert (find(ITEM, [found]) is found) == ours
    assert strangers([ITEM], [found]) == ([] if ours else [found])


def test_a_planned_one_is_known_by_its_place() -> None:
    """It has no ids yet; what a dying hook made there is found."""
    planned = Instance("3g.40gb", 9, 4, 4)
    assert find(planned, [FOUND]) is FOUND
    assert find(planned, [replace(FOUND, placement=Placement(0, 4))]) is None


@pytest.mark.parametrize(
    ("name", "fills", "compute", "own"),
    [
        ("3g.40gb", 2, 2, True),
        ("3g.40gb", 2, 1, False),
        ("1c.3g.40gb", 2, 0, True),
        ("1c.3g.40gb", 2, 2, False),
        ("1g.20gb", 7, 7, True),
        # Plain 1c leaves a part of a double-memory 1g unused.
        ("1g.20gb", 7, 0, False),
        # The driver hides a profile: that must cost no living job its slice.
        ("3g.40gb", None, 2, True),
        ("1g.20gb", 0, 7, True),
    ],
)
def test_the_size_that_was_given(name: str, fills: int | None, compute: int, own: bool) -> None:
    """Equal ids are no equality: the compute profile is compared, too."""
    item = replace(ITEM, profile=name)
    one = replace(OWN, profile_id=compute)
    assert (own_compute(item, replace(FOUND, compute=(one,), fills=fills)) is one) == own


@pytest.mark.parametrize("compute", [(), (2,), (0,), (0, 0, 0), (99,)])
def test_what_is_put_on_record_as_found_is_found_again(compute: tuple[int, ...]) -> None:
    """Else an adopted instance could never be destroyed by its record."""
    inside = tuple(ComputeInstance(n, kind, f"MIG-{n}") for n, kind in enumerate(compute))
    found = replace(FOUND, compute=inside)
    item = as_found(found, Profile.parse("3g.40gb"))
    assert find(item, [found]) is found
    assert item.uuid in (None, "MIG-0")


def test_a_smaller_compute_instance_is_not_the_jobs_own(world: World) -> None:
    """The record is closed and says why; what is there stays, as a stranger."""
    record = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    shrunk(world)
    assert [item.gi_id for item in whereabouts.foreign_instances(world.bench, world.gpu())] != []
    report = reconcile.reconcile(world.bench, lambda: frozenset({ALICE.job_id or 0}))
    now = world.ledger.find(record.number)
    assert (now.phase, "taken away from outside" in now.reason) == (phases.LOST, True)
    assert world.made() == ["3g.40gb@4"]
    assert len(report.foreign) == 1


def test_a_second_prolog_does_not_take_it_either(world: World) -> None:
    """The same run gets a slice of the size that it asked for, elsewhere."""
    carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    shrunk(world)
    again = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    assert [str(item) for item in again.instances] == ["3g.40gb@0"]
    assert world.made() == ["3g.40gb@0", "3g.40gb@4"]


def test_an_epilog_leaves_it(world: World) -> None:
    """Nothing is destroyed that is not surely the job's."""
    record = carve.allocate(world.bench, ALICE, ask("3g.40gb"), world.gpu())
    shrunk(world)
    ended = release.release(world.bench, record, "the job ended")
    assert ended.phase in (phases.RELEASED, phases.LOST)
    assert world.made() == ["3g.40gb@4"]


def test_a_stranger_in_the_place_of_a_record_is_adopted_and_goes(world: World) -> None:
    """`destroy --foreign` and `apply` tell it from the record that had the place."""
    carve.allocate(world.bench, BOB, ask("3g.40gb"), world.gpu())
    shrunk(world)
    (found,) = whereabouts.foreign_instances(world.bench, world.gpu())
    adopted = by_hand.adopt(world.bench, ROOT, world.gpu(), found)
    assert adopted.instances[0].profile == "1c.3g.40gb"
    assert release.release(world.bench, adopted, "by hand").phase == phases.RELEASED
    assert world.made() == []


@pytest.mark.root
def test_status_shows_it_as_a_stranger(site: Site) -> None:
    """What it says of the job must be true."""
    assert site.prolog(7, "slurm-mig=1,3g.40gb/9/14:1").returncode == 0
    with site.machine.change(0) as board:
        (item,) = board.instances
        item.compute.clear()
        board.create_compute(item, 0)
    told = json.loads(site.cli("status", "--json").stdout)
    assert [item["phase"] for item in told["gpus"][0]["instances"]] == ["foreign"]
