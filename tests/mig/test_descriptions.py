"""GPUs that the catalogue does not have: what a driver says, as a file, for every model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog, description
from slurm_mig.mig.geometry import Engines, Geometry, GpuProfile, Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.weights import derive
from tests.kit import lua_host
from tests.kit.described import FUTURE
from tests.kit.gpus import H100, KNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kit.site import Site

FACTS = {"source": "driver", "driver": "580.95.05", "date": "2026-11-29"}


#: Names and memory (MiB) that a GB200's first driver printed in public; ids and places as since.
GB200 = {19: ("1g.24gb", 20480), 20: ("1g.24gb+me", 20480), 15: ("1g.47gb", 46592)}


@pytest.fixture(autouse=True)
def packaged_only() -> Iterator[None]:
    """What a test takes for the site's own is forgotten after it."""
    yield
    catalog.use(Path("/nonexistent"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Put a description into a directory of the test's own."""

    def put(text: str, name: str = "x200.toml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return put


@pytest.mark.parametrize("key", KNOWN)
def test_what_is_written_is_read(key: str, write: Callable[[str], Path]) -> None:
    """Every product of the catalogue, with its unknown numbers still unknown."""
    product = catalog.find(key)
    path = write(description.write(product.title, product.geometry(), FACTS))
    found = catalog.find(str(path))
    assert found.geometry() == product.geometry()
    assert (found.names, found.confidence) == ((product.title,), "driver 580.95.05, 2026-11-29")
    # Its type stays: jobs, limits and prices have it.
    assert catalog.type_name(found) == catalog.type_name(product)


RECORDINGS = sorted((Path(__file__).parents[1] / "fixtures").glob("nvml-*.json"))


def recorded(told: dict[str, Any]) -> Geometry:
    """The table in the answers of a real driver."""
    rows = [v for k, v in told.items() if k.endswith("version 2") and isinstance(v, dict)]
    return Geometry(
        tuple(
            GpuProfile(
                row["id"],
                Profile.parse(row["name"].removeprefix("MIG ")),
                row["sliceCount"],
                tuple(Placement(**place) for place in told[f"placements of {row['id']}"]),
                row["instanceCount"],
                row["memorySizeMB"],
                row["multiprocessorCount"],
                row["copyEngineCount"],
                Engines(*(row[f"{kind}Count"] for kind in ("decoder", "encoder", "jpeg", "ofa"))),
            )
            for row in rows
            if told[f"placements of {row['id']}"]
        )
    )


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_what_a_real_driver_said(path: Path, write: Callable[[str], Path]) -> None:
    """An H100 and an H200: the file's numbers are the driver's, the weights the catalogue's."""
    told = json.loads(path.read_text())
    geometry = recorded(told)
    text = description.write(told["Name"], geometry, FACTS | {"driver": told["driver"]})
    found = catalog.find(str(write(text)))
    assert found.geometry() == geometry
    assert found.confidence == f"driver {told['driver']}, 2026-11-29"
    known = catalog.find(told["Name"]).geometry()
    assert derive(found.geometry()) == derive(known)
    assert {row.profile_id for row in geometry.profiles} == {r.profile_id for r in known.profiles}


def test_there_are_recordings() -> None:
    """Else the test above would have nothing to look at."""
    assert len(RECORDINGS) == 2


def test_the_sites_own_wins_for_its_name(tmp_path: Path, write: Callable[[str], Path]) -> None:
    """A GB200 whose driver names profiles otherwise; its key still means the catalogue."""
    old = catalog.find("gb200-186gb").geometry()
    rows = []
    for row in old.profiles:
        name, memory = GB200.get(row.profile_id, (str(row.name), row.memory_mib))
        rows.append(
            GpuProfile(
                row.profile_id, Profile.parse(name), row.slices, row.placements,
                row.max_instances, memory,
            )
        )  # fmt: skip
    write(description.write("NVIDIA GB200", Geometry(tuple(rows)), FACTS))
    catalog.use(tmp_path)
    found = catalog.find("nvidia gb200")
    fleet = Fleet((NodeGroup("n1", (fleet_model(found),)),))
    assert set(fleet.names) >= {"1g.24gb", "1g.24gb+me", "1g.47gb"}
    assert fleet.names["1g.24gb"].types == ("gb200",)
    assert catalog.find("gb200-186gb").geometry() == old
    assert [item.key for item in catalog.products() if "NVIDIA GB200" in item.names] == ["gb200"]


def test_two_files_of_one_gpu(tmp_path: Path, write: Callable[..., Path]) -> None:
    """Nobody could tell which holds."""
    write(FUTURE)
    write(FUTURE.replace("X200", "x200"), "other.toml")
    catalog.use(tmp_path)
    with pytest.raises(UsageFault, match=r"other.toml and .*x200.toml are both of"):
        catalog.find(H100)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("format = 1", "format = 2", "format = 2; allowed: 1, which this release reads"),
        ("format = 1", "", "format is missing"),
        ('name = "NVIDIA X200 200GB"', 'name = ""', "name = ''; allowed: the name that NVML"),
        ('source = "assumed"', 'source = "me"', 'source = \'me\'; allowed: "driver", "assumed"'),
        ('source = "assumed"', 'source = "driver"', "driver is missing; allowed: the driver's ver"),
        ("memory_mib = 204800", "memory_mib = -1", "memory_mib = -1; allowed: a number, or no"),
        ("memory_mib = 204800", "memory = 1", "unknown key memory; did you mean memory_mib?"),
        ("memory_mib = 204800", 'type = "a b"', "type = 'a b'; allowed: letters, digits and _"),
        ("mode_needs_reset = false", "mode_needs_reset = 0", "mode_needs_reset = 0; allowed: true"),
        ("id = 41", "id = 40", "two profiles with id 40"),
        ("id = 41", "id = true", r"[[profiles]] 2: id = True; allowed: 0 to 99999"),
        ("id = 41", "ids = 41", r"unknown key [[profiles]] 2: ids"),
        ('"2g.40gb"', '"1g.20gb"', "slices = 2, but 1g.20gb has 1"),
        ('"2g.40gb"', '"1c.2g.40gb"', "2: name = '1c.2g.40gb'; allowed: a profile such as"),
        ("slices = 2", "slices = 65", "2: slices = 65; allowed: 1 to 64"),
        ("count = 5", "count = 0", "2: count = 0; allowed: 1 to 64"),
        ("[[0,5],[5,5]]", "[[0,5],[5,4]]", "3: placements = [[0, 5], [5, 4]]; allowed: ["),
        ("[[0,5],[5,5]]", "[[0,5],[0,5]]", "allowed: [start, size] pairs of one size, each once"),
        ("[[0,5],[5,5]]", "[]", "3: placements = []"),
        ("[[0,5],[5,5]]", "[[60,5]]", "within 64 units"),
        ("[[0,5],[5,5]]", "[[0,5,1]]", "3: placements = "),
        ("id = 43", "id = ", "is not TOML"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(old: str, new: str, says: str, write: Callable[[str], Path]) -> None:
    """File, key, value and what is allowed, in one line."""
    assert old in FUTURE
    path = write(FUTURE.replace(old, new, 1))
    with pytest.raises(UsageFault) as fault:
        description.read(path)
    assert str(fault.value).startswith(f"GPU description {path}")
    assert says in str(fault.value)


def test_the_same_in_json(write: Callable[..., Path]) -> None:
    """With the same checks."""
    import tomllib

    data = tomllib.loads(FUTURE)
    path = write(json.dumps(data), "x200.json")
    assert catalog.find(str(path)).geometry().units == 10
    for text, says in (("[1", "is not JSON"), ("[]", "a table"), ("[" * 100_000, "is not JSON")):
        with pytest.raises(UsageFault, match=says):
            description.read(write(text, "x200.json"))


# -- boards of which fractions are published ---------------------------------------------

TWO = [item.key for item in catalog.products() if item.countable and not item.known]


def test_boards_that_have_only_fractions() -> None:
    """The seed's list has them."""
    assert TWO == ["rtx-pro-5000-blackwell-48gb", "rtx-pro-4500-blackwell-32gb"]


@pytest.mark.parametrize("key", TWO)
def test_weights_by_published_fractions(key: str) -> None:
    """Halves and the whole; ids stay unknown, in the table as in the stamp."""
    product = catalog.find(key)
    model = fleet_model(product)
    assert model.weights.capacity == 2
    assert (model.weights.false_accepts, model.weights.false_rejects) == (0, 0)
    fleet = Fleet((NodeGroup("n1", (model, model)),))
    small, large = (f"{n}g.{m}gb" for n, m in zip((1, 2), memory_of(product), strict=True))
    assert fleet.counts(fleet.groups[0])[small] == 4
    assert fleet.counts(fleet.groups[0])[large] == 2
    _, job, _ = lua_host.job_submit("lua53", fleet).submit(tres_per_node=f"gres/mig:{small}:2")
    assert job["comment"] == f"slurm-mig=1,{small}/-/1:2"
    with pytest.raises(UsageFault, match="unknown profile id of"):
        product.geometry()


def memory_of(product: catalog.Product) -> tuple[int, int]:
    """Gigabytes of half the board and of all of it, by its own name of them."""
    found = {Profile.parse(row["name"]) for row in product.row["profiles"]}
    half, whole = (next(p.memory_gb for p in found if p.gpu_slices == n) for n in (1, 2))
    return half, whole


def test_unknown_ids_are_not_the_same_id() -> None:
    """Two boards with such a profile of one name could be anything: no price for both."""
    one = fleet_model(catalog.find(TWO[0]))
    other = fleet_model(catalog.find(TWO[0]), "other")
    fleet = Fleet((NodeGroup("a", (one,)), NodeGroup("b", (other,))))
    assert fleet.names["1g.24gb"].types == (one.type_name,)
    assert "other_1g.24gb" in fleet.names


# -- commands -----------------------------------------------------------------------------


def test_describe_and_take_it_elsewhere(site: Site, tmp_path: Path) -> None:
    """Written on a node, read by everything that takes a model."""
    out = tmp_path / "gpus.d"
    done = site.cli("gpus", "--describe", "--out", str(out))
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    assert done.stdout == f"{path}\n"
    text = path.read_text()
    assert 'driver = "' in text
    assert site.cli("weights", "--gpu", str(path)).stdout.startswith("NVIDIA H100 80GB HBM3: 31 sh")
    done = site.cli("generate", "--node", f"n1={path}:2", "--json")
    assert "shard:h100:62" in json.loads(done.stdout)["slurm.conf.mig"]
    assert site.cli("gpus", "--out", str(out)).returncode == 2

    config = site.config.read_text()
    site.config.write_text(config.replace("[paths]\n", f'[paths]\ngpus = "{out}"\n'))
    assert "gpus =" in site.config.read_text()
    listed = json.loads(site.cli("gpus", "--supported", "--json").stdout)["supported"]
    assert listed[0]["names"] == ["NVIDIA H100 80GB HBM3"]
    path.write_text(text.replace("id = 19", "id = -19"))
    done = site.cli("generate", "--node", f"n1={H100}:2", "--out", str(tmp_path / "files"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"GPU description {path}: [[profiles]] 1: id = -19; allowed: 0 to 99999" in done.stderr
    assert not (tmp_path / "files").exists()


def test_a_fleet_file_with_a_gpu_of_its_own(site: Site, tmp_path: Path) -> None:
    """Named from where the fleet's file is."""
    (tmp_path / "gpus.d").mkdir()
    (tmp_path / "gpus.d/x200.toml").write_text(FUTURE)
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        '[types]\n"gpus.d/x200.toml" = "x2"\n'
        '[[nodes]]\nhosts = "n[1-2]"\ngpus = ["gpus.d/x200.toml:4"]\n'
    )
    done = site.cli("generate", str(fleet), "--json")
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout)["slurm.conf.mig"]
    assert (
        "Gres=gpu:x2:4,shard:x2:40,mig:1g.20gb:32,mig:2g.40gb:20,mig:5g.100gb:8,mig:10g.200gb:4"
        in text
    )


def test_a_board_without_ids_is_simulated_from_an_assumption(site: Site, tmp_path: Path) -> None:
    """And only from one."""
    done = site.cli("simulator", "create", str(tmp_path / "sim"), "--gpu", f"{TWO[1]}:1")
    assert done.returncode == 2
    assert 'write a description with source = "assumed"' in done.stderr
    (tmp_path / "x200.toml").write_text(FUTURE)
    done = site.cli("simulator", "create", str(tmp_path / "sim"), "--gpu", f"{tmp_path}/x200.toml")
    assert done.returncode == 0, done.stderr
