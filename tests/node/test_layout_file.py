"""Layout files: read strictly, written so that they are read back as the same."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.errors import BadRequest, NoRoom, SlurmMigError, Unresolved, UsageFault
from slurm_mig.mig import layout
from slurm_mig.mig.driver import Gpu
from slurm_mig.mig.layout import Declared, DeclaredInstance, PlacedInstance
from slurm_mig.mig.plan import Slot
from slurm_mig.mig.profile import Profile
from slurm_mig.node import layout_file
from tests.kit.gpus import A30, H100, geometry_of

if TYPE_CHECKING:
    from collections.abc import Sequence

GEOMETRY = geometry_of(H100)


def gpu(minor: int = 0, *, mig: bool | None = True, name: str = H100) -> Gpu:
    # Index and minor differ: nothing may take one for the other.
    return Gpu(f"GPU-{minor}", 10 + minor, minor, name, True, mig, mig)


def pci(gpu: Gpu) -> list[str]:
    return {H100: ["0x233010DE"]}.get(gpu.name, [])


def made(*words: str) -> list[PlacedInstance]:
    """`3g.40gb@4`, or `3g.40gb@4/1+2` with the slices inside."""
    found = []
    for word in words:
        text, slash, inside = word.partition("/")
        name, _, start = text.partition("@")
        row = GEOMETRY.by_name(Profile.parse(name))
        (place,) = [place for place in row.placements if place.start == int(start)]
        compute = tuple(map(int, inside.split("+"))) if inside else ()
        found.append(PlacedInstance(Slot(row, place), compute if slash else (row.slices,)))
    return found


def toml(text: str) -> Declared:
    (entry,) = layout_file.from_toml(tomllib.loads(text), "layout x")
    return entry.declared


def one(body: str) -> Declared:
    return toml(f"version = 1\n[[gpus]]\nminor = 0\n{body}")


# -- reading --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "version = None"),
        ("version = 2", "version = 2; allowed is 1"),
        ("version = 1", "no GPUs are declared"),
        ("version = 1\nx = 1", "unknown key x; allowed: version, gpus"),
        ("version = 1\n[[gpus]]", "name the GPU by minor"),
        ("version = 1\n[[gpus]]\nminor = true", "name the GPU by minor"),
        ("version = 1\n[[gpus]]\nminor = 0\nmode = 1", "unknown key mode"),
        ("version = 1\n[[gpus]]\nminor = 0\nmig = 1", "mig = 1; allowed is true or false"),
        ("version = 1\n[[gpus]]\nminor = 0\ninstances = ['3g.40gb']", "is not PROFILE@START"),
        ("version = 1\n[[gpus]]\nminor = 0\ninstances = ['3g.40gb@-1']", "is not PROFILE@START"),
        ("version = 1\n[[gpus]]\nminor = 0\ninstances = ['3x@0']", "'3x' is not a MIG profile"),
        ("version = 1\n[[gpus]]\nminor = 0\ninstances = ['1c.3g.40gb@0']", "compute = [...]"),
        ("version = 1\n[[gpus]]\nminor = 0\ninstances = [3]", "3 is not PROFILE@START"),
        ("version = 1\n[[gpus]]\nminor = 0\ninstances = '3g'", "write a list"),
        (
            "version = 1\n[[gpus]]\nminor = 0\ninstances = [{instance='1g.10gb@0', compute=[0]}]",
            "compute = [0]; write slices",
        ),
        ("version = 1\n[[gpus]]\nminor = 0\ncounts = {'1g.10gb' = -1}", "from 0 to 99"),
        ("version = 1\n[[gpus]]\nminor = 0\ncounts = {'1g.10gb' = true}", "from 0 to 99"),
        ("version = 1\n[[gpus]]\nminor = 0\ncounts = {}\ninstances = []", "either instances or"),
        ("version = 1\n[[gpus]]\nminor = 0\nmig = false\ncounts = {'1g.10gb' = 1}", "need MIG"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text: str, says: str) -> None:
    """One line with the value and what is allowed."""
    with pytest.raises(UsageFault) as caught:
        toml(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("layout x")


GOOD: dict[str, Any] = {"devices": "all", "mig-enabled": True, "mig-devices": {"1g.10gb": 7}}


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        ([], None, "no 'version: v1'"),
        ({"version": "v2"}, None, "no 'version: v1'"),
        ({"version": "v1", "mig-configs": {"a": [GOOD], "b": [GOOD]}}, None, "--name: a, b"),
        ({"version": "v1", "mig-configs": {"a": [GOOD], "b": [GOOD]}}, None, "several mig-configs"),
        ({"version": "v1", "mig-configs": {"a": [GOOD]}}, "c", "no mig-configs 'c'"),
        ({"version": "v1", "mig-configs": {}}, None, "no mig-configs; write a table"),
        ({"version": "v1"}, None, "no mig-configs; write a table"),
        ({"version": "v1", "mig-configs": {"a": []}}, None, "no GPUs are declared"),
        ({"version": "v1", "mig-configs": {"a": [GOOD | {"x": 1}]}}, None, "unknown key x"),
        ({"version": "v1", "mig-configs": {"a": [GOOD | {"devices": "0"}]}}, None, "devices: '0'"),
        ({"version": "v1", "mig-configs": {"a": [GOOD | {"mig-enabled": 1}]}}, None, "mig-enabled"),
    ],
)
def test_what_is_wrong_with_mig_parteds(data: Any, name: str | None, says: str) -> None:
    """The same for the other form."""
    with pytest.raises(UsageFault) as caught:
        layout_file.from_mig_parted(data, name, "layout x")
    assert says in str(caught.value)


def test_every_layout_that_mig_parted_ships_is_read() -> None:
    """As counts; small compute instances share a GPU instance."""
    rows = json.loads((Path(__file__).parents[1] / "assets/mig-layouts.json").read_text())[
        "layouts"
    ]
    assert len(rows) > 90
    for row in rows:
        spec = GOOD | {"mig-devices": row["mig_devices"]}
        data = {"version": "v1", "mig-configs": {row["config"]: [spec]}}
        (entry,) = layout_file.from_mig_parted(data, None, "x")
        assert len(entry.declared.pieces) == sum(row["mig_devices"].values())


# -- which GPU ------------------------------------------------------------------------


def where(entries: Sequence[layout_file.DeclaredGpu], *gpus: Gpu) -> list[int]:
    return [found.minor for found, _ in layout_file.assigned(entries, gpus, pci)]


def spec(**more: Any) -> tuple[layout_file.DeclaredGpu, ...]:
    item = GOOD | {key.replace("_", "-"): value for key, value in more.items()}
    return layout_file.from_mig_parted({"version": "v1", "mig-configs": {"a": [item]}}, None, "x")


def test_which_gpus_a_file_is_about() -> None:
    """mig-parted counts as NVML does, we by device minor; a filter has PCI ids."""
    gpus = [gpu(0), gpu(1), gpu(2, mig=None), gpu(3, name=A30)]
    assert where(spec(), *gpus) == [0, 1, 3]
    assert where(spec(devices=[11]), *gpus) == [1]
    assert where(spec(device_filter=["0x233010de"]), *gpus[:3]) == [0, 1]
    assert where(spec(device_filter="0x000010DE"), *gpus[:3]) == []
    with pytest.raises(UsageFault, match="no GPU with index 0 here"):
        where(spec(devices=[0]), *gpus)
    with pytest.raises(UsageFault, match="knows no MIG"):
        where(spec(devices=[12]), *gpus)
    # A DGX Station's display is number 3 of its GPUs, and no filter knows its PCI id.
    off: dict[str, Any] = {"mig_enabled": False, "mig_devices": {}}
    assert where(spec(devices=[12], device_filter="0x1FB010DE", **off), *gpus) == []
    with pytest.raises(UsageFault, match="PCI ids of NVIDIA A30 are not known"):
        where(spec(device_filter=["0x233010DE"]), *gpus)


def test_a_gpu_by_minor_or_uuid() -> None:
    """The UUID counts where both stand; twice is once too often."""
    text = "version = 1\n[[gpus]]\nminor = 1\n[[gpus]]\nminor = 5\nuuid = 'GPU-0'"
    entries = layout_file.from_toml(tomllib.loads(text), "x")
    assert where(entries, gpu(0), gpu(1)) == [0, 1]
    with pytest.raises(UsageFault, match="no GPU 1 here"):
        where(entries, gpu(0))
    with pytest.raises(UsageFault, match="declared twice"):
        where((*entries, *spec()), gpu(0), gpu(1))


# -- comparing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "there", "lines"),
    [
        ("instances = ['3g.40gb@4', '1g.10gb@0']", ["1g.10gb@0", "3g.40gb@4"], []),
        (
            "instances = ['3g.40gb@4']",
            ["3g.40gb@0"],
            ["3g.40gb@4 is missing", "3g.40gb@0 is not declared"],
        ),
        ("counts = {'3g.40gb' = 1}", ["3g.40gb@0"], []),
        ("counts = {'3g.39gb' = 1}", ["3g.40gb@0"], []),
        (
            "counts = {'3g.40gb' = 2}",
            ["3g.40gb@0", "1g.10gb@4"],
            ["3g.40gb: 1 there, 2 declared", "1g.10gb: 1 there, 0 declared"],
        ),
        ("", ["1g.10gb@4"], ["1g.10gb: 1 there, 0 declared"]),
        (
            "instances = ['3g.40gb@4']",
            ["3g.40gb@4/"],
            ["3g.40gb@4 is missing", "3g.40gb@4 with nothing in it is not declared"],
        ),
        (
            "instances = [{instance = '3g.40gb@4', compute = [2, 1]}]",
            ["3g.40gb@4/1+2"],
            [],
        ),
        ("counts = {'1c.3g.40gb' = 3}", ["3g.40gb@4/1+1+1"], []),
        ("mig = false", [], ["MIG mode is on, declared off"]),
    ],
)
def test_differences(body: str, there: list[str], lines: list[str]) -> None:
    """Each on a line; places count only where the file names them."""
    assert layout.differences(gpu(), one(body), made(*there), GEOMETRY) == lines


def test_a_layout_that_cannot_be() -> None:
    """Overlaps, too many of a profile, and more inside than there is room for."""
    with pytest.raises(NoRoom):
        layout.target(one("instances = ['7g.80gb@0', '1g.10gb@0']"), GEOMETRY, [])
    with pytest.raises(NoRoom):
        layout.target(one("counts = {'3g.40gb' = 3}"), GEOMETRY, [])
    with pytest.raises(BadRequest, match=r"3 compute slices, not 4: compute = \[2, 2\]$"):
        layout.target(one("instances = [{instance = '3g.40gb@0', compute = [2, 2]}]"), GEOMETRY, [])


def test_counts_keep_what_is_there() -> None:
    """Unless it is in the way: then the planner begins with an empty GPU."""
    kept = made("1g.10gb@2")
    found = layout.target(one("counts = {'1g.10gb' = 2}"), GEOMETRY, kept)
    assert kept[0] in found
    blocked = layout.target(one("counts = {'4g.40gb' = 1, '1g.10gb' = 1}"), GEOMETRY, kept)
    assert kept[0] not in blocked
    assert sorted(str(item.row.name) for item in blocked) == ["1g.10gb", "4g.40gb"]


# -- writing --------------------------------------------------------------------------


@st.composite
def on_a_gpu(draw: st.DrawFn) -> list[PlacedInstance]:
    """Anything that fits, with one compute instance, several, or none inside."""
    found: list[PlacedInstance] = []
    taken = 0
    for row in draw(st.permutations([row for row in GEOMETRY.profiles if not row.name.attribute])):
        for place in row.placements:
            if not place.mask & taken and draw(st.booleans()):
                full = draw(st.booleans())
                parts = draw(st.lists(st.just(1), max_size=row.slices))
                compute = (row.slices,) if full else tuple(parts)
                found.append(PlacedInstance(Slot(row, place), compute))
                taken |= place.mask
    return found


@settings(deadline=None, max_examples=60)
@given(there=on_a_gpu())
def test_toml_is_read_back_as_the_same(there: list[PlacedInstance]) -> None:
    """What `export` writes, `assert` finds to be so, and its places are the target."""
    text = layout_file.to_toml([(gpu(), there)])
    declared = toml(text)
    assert layout.differences(gpu(), declared, there, GEOMETRY) == []
    found = layout.target(declared, GEOMETRY, [])
    assert {item.key for item in found} == {item.key for item in there}


@settings(deadline=None, max_examples=60)
@given(there=on_a_gpu())
def test_mig_parteds_form_is_read_back_or_refused(there: list[PlacedInstance]) -> None:
    """Counts tell no mixture inside an instance: such a layout is refused, never bent."""
    try:
        text = layout_file.to_mig_parted([(gpu(), there)], "n")
    except Unresolved as fault:
        assert any(not item.full for item in there)
        assert "TOML" in str(fault)
        return
    data = yaml.safe_load(text)
    assert list(data) == ["version", "mig-configs"]
    assert set(data["mig-configs"]["n"][0]) == {"devices", "mig-enabled", "mig-devices"}
    (entry,) = layout_file.from_mig_parted(data, None, "x")
    assert layout.differences(gpu(), entry.declared, there, GEOMETRY) == []


def test_equal_gpus_are_one_entry() -> None:
    """As people write it; the numbers are NVML's."""
    rows = [(gpu(0), made("1g.10gb@0")), (gpu(1), []), (gpu(2), made("1g.10gb@3"))]
    data = yaml.safe_load(layout_file.to_mig_parted(rows, "a b: c"))
    assert data["mig-configs"]["a b: c"] == [
        {"devices": [10, 12], "mig-enabled": True, "mig-devices": {"1g.10gb": 1}},
        {"devices": [11], "mig-enabled": True, "mig-devices": {}},
    ]


@settings(deadline=None)
@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers(-2, 9) | st.sampled_from(["all", "v1", "1g.10gb"]),
        lambda inner: st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["version", "gpus", "minor", "mig", "instances", "counts", "mig-configs", "a",
                 "devices", "mig-enabled", "mig-devices", "device-filter", "1g.10gb", "compute"]
            ),
            inner, max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_no_file_makes_it_fall_over(data: Any) -> None:
    """Whatever stands there is read, or refused as a fault of its own."""
    if isinstance(data, dict):
        with suppress(SlurmMigError):
            layout_file.from_toml(data, "x")
    with suppress(SlurmMigError):
        layout_file.from_mig_parted(data, None, "x")


def test_a_piece_without_its_compute_part() -> None:
    """None fills it: a profile's own slices."""
    row, compute = DeclaredInstance(Profile.parse("3g.40gb")).resolved(GEOMETRY)
    assert (str(row.name), compute) == ("3g.40gb", (3,))
