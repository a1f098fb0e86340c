"""What fits on a GPU, for every shape there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import ProfileNotOffered
from slurm_mig.mig import catalog, plan
from slurm_mig.mig.geometry import Geometry, Placement, feasible_multisets, layouts
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from tests.kit.gpus import A30, A100, A100_40, H100, KNOWN, RTX, geometry_of

if TYPE_CHECKING:
    from slurm_mig.mig.plan import Slot

LAYOUTS = json.loads((Path(__file__).parents[1] / "assets/mig-layouts.json").read_text())["layouts"]


@pytest.mark.parametrize(
    ("name", "units", "states", "multisets"),
    [(A100, 8, 723, 78), (H100, 8, 723, 78), (A30, 4, 26, 10), (RTX, 12, 26, 10)],
)
def test_states_and_multisets(name: str, units: int, states: int, multisets: int) -> None:
    """The numbers of the placement study (facts/packing.md#weights), reached by enumeration."""
    geometry = geometry_of(name)

    assert geometry.units == units
    assert len(layouts(geometry)) == states
    assert len(feasible_multisets(geometry)) == multisets


@pytest.mark.parametrize("key", KNOWN)
def test_layouts_never_overlap(key: str) -> None:
    """In every layout of every product each unit is taken at most once."""
    for state in layouts(geometry_of(key)):
        taken = [unit for _, place in state for unit in range(place.start, place.end)]
        assert len(taken) == len(set(taken))


def test_attribute_profiles_share_the_class_of_the_plain_one() -> None:
    """For packing, 1g.10gb and 1g.10gb+me are one thing."""
    geometry = geometry_of(H100)

    assert len(geometry.classes) == 6
    plain, media = geometry.find("1g.10gb"), geometry.find("1g.10gb+me")
    assert geometry.class_of(plain) == geometry.class_of(media)
    assert geometry.class_of(geometry.find("1g.20gb")) != geometry.class_of(plain)


def test_the_whole_gpu_is_the_plain_full_profile() -> None:
    """On RTX PRO 6000 two profiles cover everything; the plain one is the whole."""
    assert str(geometry_of(RTX).whole.name) == "4g.96gb"
    assert str(geometry_of(H100).whole.name) == "7g.80gb"


@pytest.mark.parametrize(
    ("gpu", "names", "possible"),
    [
        (H100, ["1g.10gb+me"], True),
        (H100, ["1g.10gb+me", "1g.10gb+me"], False),
        (H100, ["1g.10gb+me", "7g.80gb"], False),
        (H100, ["3g.40gb", "4g.40gb"], True),
        (A30, ["1g.6gb+me", "2g.12gb+me"], False),
        (RTX, ["1g.24gb+me.all", "1g.24gb-me", "1g.24gb-me", "1g.24gb-me"], True),
        (RTX, ["1g.24gb+me.all", "1g.24gb"], False),
        (RTX, ["1g.24gb+me.all", "1g.24gb+gfx"], False),
        (RTX, ["1g.24gb+me", "1g.24gb", "2g.48gb"], True),
    ],
)
def test_media_engines_bound_what_goes_together(gpu: str, names: list[str], possible: bool) -> None:
    """+me is one per GPU, and +me.all leaves only -me beside it (facts/mig.md#slices)."""
    geometry = geometry_of(gpu)

    rows = [geometry.find(name) for name in names]

    assert (geometry.media_left(rows) and geometry.counts_left(rows)) is possible


def _products(layout: dict[str, Any]) -> list[str]:
    wanted, names = layout["products"], set(layout["mig_devices"])
    return [
        product.key
        for product in catalog.products()
        if product.known
        and (wanted is None or product.key in wanted)
        and names <= {row["name"] for row in product.row["profiles"]}
    ]


def test_layouts_of_mig_parted_are_all_there() -> None:
    """Of 92 shipped layouts, three have names that only early GB200 drivers printed."""
    assert len(LAYOUTS) == 92
    nowhere = [item["config"] for item in LAYOUTS if not _products(item)]
    assert nowhere == ["all-3g.95gb", "all-4g.95gb", "all-7g.189gb"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda item: str(item["config"]))
def test_every_shipped_layout_is_found_one_by_one(layout: dict[str, Any]) -> None:
    """Asked for one instance at a time, large ones first, `fits` never strands the rest."""
    for key in _products(layout):
        geometry = geometry_of(key)
        wanted = [name for name, count in layout["mig_devices"].items() for _ in range(count)]
        wanted.sort(key=lambda name: -geometry.find(name).size)
        present: list[Slot] = []
        for name in wanted:
            row = geometry.find(name)
            made = plan.plan(Request((Item(row.name, 1, row.profile_id),)), geometry, present)
            present += made.slots
        assert len(present) == len(wanted)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda item: str(item["config"]))
def test_every_shipped_layout_is_found_at_once(layout: dict[str, Any]) -> None:
    """The same layouts as one request, where a request may hold that many."""
    for key in _products(layout):
        geometry = geometry_of(key)
        items = tuple(Item(Profile.parse(n), c) for n, c in layout["mig_devices"].items())
        assert plan.plan(Request(items), geometry, []).considered >= 1


def test_names_of_another_driver_are_resolved() -> None:
    """3g.39gb of driver 535 is 3g.40gb; the id decides where memory is far off."""
    geometry = geometry_of(A100)

    assert geometry.resolve(Profile.parse("3g.39gb")).profile_id == 9
    assert geometry.resolve(Profile.parse("7g.79gb")).profile_id == 0
    assert geometry.resolve(Profile.parse("3g.71gb"), 9).profile_id == 9


@pytest.mark.parametrize("name", ["1g.15gb", "2g.40gb", "3g.40gb+me", "5g.40gb", "1g.10gb-me"])
def test_a_profile_the_gpu_lacks(name: str) -> None:
    """The refusal names the profile and what is offered; nothing near is substituted."""
    with pytest.raises(ProfileNotOffered, match="offered: 1g.10gb"):
        geometry_of(A100).resolve(Profile.parse(name))


def test_one_name_means_two_profiles() -> None:
    """1g.10gb is the double-memory profile on an A100-40GB and the small one on an A100-80GB."""
    assert geometry_of(A100_40).resolve(Profile.parse("1g.10gb")).profile_id == 15
    assert geometry_of(A100).resolve(Profile.parse("1g.10gb")).profile_id == 19


def test_find_takes_names_and_ids() -> None:
    """An administrator types either; a part of a GPU instance means the instance."""
    geometry = geometry_of(H100)

    assert geometry.find("19") is geometry.find("1g.10gb")
    with pytest.raises(ProfileNotOffered, match="profile id 77"):
        geometry.find("77")
    assert geometry.find("1c.3g.40gb") is geometry.find("3g.40gb")


def test_an_empty_geometry_is_refused() -> None:
    """A GPU without profiles is a fault of whoever read them, not an empty plan."""
    with pytest.raises(ProfileNotOffered):
        Geometry(())


def test_placements_print_as_nvidia_smi_does() -> None:
    """start:size."""
    assert str(Placement(4, 2)) == "4:2"
    assert Placement(4, 2).mask == 0b110000
