"""The verbs over the packing room: simulate, learn, explain, and the setting on a node."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from slurm_mig.cli.explain import words
from slurm_mig.packing.picture import round_steps
from tests.kit.workloads import by_chance

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.site import Site

H100 = "h100-80gb-sxm"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    work = by_chance("bimodal", 0.8, 2, 150, 4)
    rows = [
        {"id": n, "submit": s, "profile": str(work.wanted[k]), "count": 1, "duration": r}
        for n, (s, k, r) in enumerate(
            zip(work.jobs.submit, work.jobs.kind, work.jobs.run, strict=True)
        )
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"gpu_model": "H100", "gpus": 2, "jobs": rows}), "utf-8")
    return path


def test_simulate_compares_and_draws(site: Site, trace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "waits.svg"
    size = ("--gpu", H100, "--gpus-per-node", "2")
    done = site.cli("simulate", str(trace), *size, "--compare", "--picture", str(picture), "--json")
    rows = json.loads(done.stdout)
    assert [row["setup"] for row in rows][-1] == "Slurm that sees slots (bound)"
    assert all(row["jobs"] == 150 for row in rows)
    assert ElementTree.fromstring(picture.read_text("utf-8")).tag.endswith("svg")
    drawn = re.findall(r'<polyline .*?stroke="(\S+)" stroke-width="\S+" stroke-dasharray="(.*?)"',
                       picture.read_text("utf-8"))  # fmt: skip
    assert len(drawn) == 2 * len(rows)
    assert len(set(drawn)) == len(rows), "no two set-ups look alike"
    shown = site.cli("simulate", str(trace), *size, "--compare")
    assert "mean wait" in shown.stdout
    assert shown.returncode == 0


@pytest.mark.parametrize("most", [0.003, 0.9, 1.0, 7.3, 100.0, 253.5, 218.1, 40_000.0])
def test_axes_have_round_numbers(most: float) -> None:
    ticks = round_steps(most)
    assert ticks[-2] < most <= ticks[-1] * 1.000001
    assert 4 <= len(ticks) <= 12
    assert all(f"{tick / ticks[1]:g}" == str(n) for n, tick in enumerate(ticks))


def test_what_is_learnt_is_what_a_node_uses(
    make_site: Callable[..., Site], site: Site, trace: Path, public_tmp: Path
) -> None:
    """A table that is gone costs no job its start: slots go by `fits`, and that is said."""
    table = public_tmp / "table.json"
    done = site.cli("learn", str(trace), "--gpu", H100, "-o", str(table))
    assert "fewer" in done.stdout
    node = make_site("NVIDIA H100 80GB HBM3", config=f'[packing]\npolicy = "optimal:{table}"\n')
    plain = site.cli("create", "1g.10gb", "--dry-run").stdout
    learnt = node.cli("create", "1g.10gb", "--dry-run").stdout
    assert "would make 1g.10gb@6" in plain
    assert "would make 1g.10gb@" in learnt
    table.unlink()
    assert node.cli("create", "1g.10gb", "--dry-run").stdout == plain
    assert json.loads(node.cli("create", "1g.10gb", "--json").stdout)["phase"] == "active"


def test_explain_shows_every_place_and_the_one_that_is_taken(site: Site) -> None:
    site.cli("create", "2g.20gb", "--gpu", "0")
    found = json.loads(site.cli("explain", "3g.40gb", "--gpu-choice", "pack", "--json").stdout)
    assert found["succeeds"]
    assert [(p["gpu"], p["starts"], p["chosen"]) for p in found["places"]] == [
        (0, [0], True),
        (1, [0], False),
        (1, [4], False),
    ] or [p["chosen"] for p in found["places"]].count(True) == 1
    shown = site.cli("explain", "1g.10gb:2,3g.40gb", "--gpu-choice", "least-loaded")
    assert "fewest shards in use" in shown.stdout


def test_explain_says_why_nothing_starts(site: Site) -> None:
    """Shards are free, a place is not: two 1g in different halves block each 3g."""
    for start in ("3", "4"):
        for gpu in ("0", "1"):
            site.cli("create", "1g.10gb", "--gpu", gpu, "--start", start)
    found = json.loads(site.cli("explain", "3g.40gb", "--gpu-choice", "pack", "--json").stdout)
    assert not found["succeeds"]
    assert "where it is refused" in found["verdict"]
    assert "fragmented" in found["gpus"][0]["why_not"]


@pytest.mark.parametrize(
    ("reason", "part"),
    [
        ("Constraints", "starts by itself"),
        ("BeginTime", "brought forward"),
        ("BadConstraints", "scontrol release"),
        ("ReqNodeNotAvail, UnavailableNodes:anchor", "anchor"),
        ("SomethingNew", "man squeue"),
    ],
)
def test_slurms_reasons_in_words(reason: str, part: str) -> None:
    assert part in words(reason)


@pytest.mark.parametrize(
    "arguments",
    [(), ("3g.40gb", "--job", "7"), ("--job", "7_x"), ("3g.40gb:x",), ("9g.99gb",), ("2g.12gb",)],
)
def test_explain_refuses_what_it_cannot_read(site: Site, arguments: tuple[str, ...]) -> None:
    assert site.cli("explain", *arguments).returncode != 0
