"""The fleet in one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.fleet import fleet_file
from slurm_mig.fleet.fleet_file import FleetText, NodeText

WHOLE = """
hooks = "/opt/hooks"
slices_only = "a30"
[types]
"NVIDIA A30" = "a30x"
[aliases]
small = "1g.10gb"
[billing]
by = "memory"
gpu = { h100 = 8, a30x = 2.5 }
[[nodes]]
hosts = "gpu[01-04]"
gpus = ["NVIDIA H100 80GB HBM3:6", "l40s:2"]
whole = [7, 6]
devices = "/dev/x"
partitions = ["fast", "all", "fast"]
[[nodes]]
hosts = "a"
gpus = "NVIDIA A30"
whole = "all"
"""


def written(path: Path, text: str) -> Path:
    (path / "fleet.toml").write_text(text)
    return path / "fleet.toml"


def test_everything_that_can_stand_there(tmp_path: Path) -> None:
    """Each key, once."""
    assert fleet_file.read(written(tmp_path, WHOLE)) == FleetText(
        nodes=(
            NodeText(
                "gpu[01-04]",
                ("NVIDIA H100 80GB HBM3:6", "l40s:2"),
                (6, 7),
                "/dev/x",
                ("fast", "all"),
            ),
            NodeText("a", ("NVIDIA A30",), None),
        ),
        types={"NVIDIA A30": "a30x"},
        aliases={"small": "1g.10gb"},
        slices_only=("a30",),
        hooks="/opt/hooks",
        prices={"h100": 8, "a30x": 2.5},
        by="memory",
    )


def test_the_shipped_sample() -> None:
    """etc/fleet.toml is what the code holds; with its comments taken off it reads as well."""
    shipped = Path(__file__).parents[2] / "etc/fleet.toml"
    assert shipped.read_text() == fleet_file.SAMPLE
    assert [node.hosts for node in fleet_file.read(shipped).nodes] == ["gpu[01-04]", "a30-[01-02]"]


def test_the_samples_comments_are_keys(tmp_path: Path) -> None:
    """Somebody will take the # away."""
    text = fleet_file.SAMPLE.replace("\n#", "\n")
    lines = [line for line in text.splitlines() if not line.startswith((" ", "GPUs"))]
    found = fleet_file.read(written(tmp_path, "\n".join(lines)))
    assert found.prices == {"h100": 8, "a30": 2}
    assert found.aliases == {"small": "1g.10gb"}
    assert found.several_gpus is None


@pytest.mark.parametrize(("text", "most"), [("true", None), ("false", 1), ("3", 3)])
def test_slices_of_how_many_gpus(tmp_path: Path, text: str, most: int | None) -> None:
    """As many as a node has, one, or what the site says."""
    assert fleet_file.read(written(tmp_path, f"several_gpus = {text}")).several_gpus == most


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("several_gpus = 0", "several_gpus = 0: allowed is true, false, or how many GPUs"),
        ("several_gpus = '2'", "several_gpus = '2': allowed is true, false, or how many GPUs"),
        ("x = 1", "unknown key x; allowed: hooks, "),
        ("alias = {}", "did you mean aliases"),
        ("[[nodes]]\nhost = 'a'", r"unknown key \[\[nodes\]\] host; did you mean hosts"),
        ("[[nodes]]\nhosts = 'a'", r"\[\[nodes\]\] without gpus"),
        ("[[nodes]]\nhosts = 1\ngpus = 'x'", "hosts = 1: allowed is a text"),
        ("[[nodes]]\nhosts = 'a'\ngpus = []", r"\[\[nodes\]\] without gpus"),
        ("[[nodes]]\nhosts = 'a'\ngpus = [1]", "gpus = .1.: allowed is a text or a list"),
        ("[[nodes]]\nhosts = 'a'\ngpus = 'x'\nwhole = [0, 0]", "each once"),
        ("[[nodes]]\nhosts = 'a'\ngpus = 'x'\nwhole = 1", 'whole = 1: allowed is "all" or a list'),
        ("nodes = 1", "one .*nodes.* table for each"),
        ("types = 1", "a table such as"),
        ("billing = 1", "billing = 1: allowed is a table"),
        ("[billing]\nby = 'x'", '"largest" or "compute" or "memory"'),
        ("[billing]\ngpu = -1", "from 0 on"),
        ("[billing]\ngpu = { a = true }", "from 0 on"),
        ("hooks = ''", "hooks = '': allowed is a text, not empty"),
        ("[[nodes]]\nhosts = ''\ngpus = 'x'", "hosts = '': allowed is a text, not empty"),
        ("[[nodes]]\nhosts = 'a'\ngpus = 'x'\ndevices = 'dev'", "'dev': allowed is an absolute"),
        ("[[nodes]]\nhosts = 'a'\ngpus = 'x'\ndevices = '/a b'", "without white space"),
        ("[[nodes]]\nhosts = 'a'\ngpus = 'x'\npartitions = 'a b'", "a name or a list"),
        ("[[nodes]]\nhosts = 'a'\ngpus = 'x'\npartitions = [1]", "a name or a list"),
        ("= 1", "is not TOML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, says: str) -> None:
    """The key, and what is allowed."""
    with pytest.raises(UsageFault, match=says):
        fleet_file.read(written(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    """Named."""
    with pytest.raises(UsageFault, match="fleet .*x: No such file"):
        fleet_file.read(tmp_path / "x")
