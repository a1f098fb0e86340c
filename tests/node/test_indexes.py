"""Slurm's index means the GPU that it was agreed for, whatever the driver lists just now."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.errors import GpuLost, NodeFault
from slurm_mig.gpu import indexes
from slurm_mig.node.boot import bring_up
from tests.kit.gpus import H100
from tests.kit.hooks import STAMP, records, slurm_commands

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.site import Site

pytestmark = pytest.mark.root


def vanish(site: Site, entry: int) -> None:
    """A GPU leaves the driver's list without an error; the others keep their minors."""
    path = site.root / "sim/machine.json"
    facts = json.loads(path.read_text())
    del facts["gpus"][entry]
    path.write_text(json.dumps(facts))


def up(site: Site) -> list[str]:
    node = site.node()
    try:
        return bring_up(node, 0).mismatches
    finally:
        node.close()


@pytest.fixture
def four(make_site: Callable[..., Site]) -> Site:
    site = make_site(H100, H100, H100, H100)
    slurm_commands(site)
    return site


@pytest.mark.parametrize("first", ["boot", "job"])
def test_a_gpu_that_vanishes_moves_no_other(four: Site, first: str) -> None:
    """Agreed at the boot, or by the first hook: index 2 stays minor 2, and index 1 is a fault."""
    if first == "boot":
        assert up(four) == []
    else:
        assert four.prolog(5, STAMP, gpus="0").returncode == 0
    vanish(four, 1)
    assert four.prolog(7, STAMP, gpus="2").returncode == 0
    assert records(four)[-1].gpu_minor == 2
    done = four.prolog(8, STAMP, gpus="1")
    assert done.returncode == 14
    assert "no GPU with minor 1, which is Slurm's index 1; there are 0, 2, 3" in done.stderr
    assert four.prolog(9, STAMP, gpus="3").returncode == 0
    assert records(four)[-1].gpu_minor == 3


def test_a_gpu_that_was_gone_before_anything_was_agreed(four: Site) -> None:
    """A gap is agreed on by a boot alone: a first hook would count along what is left."""
    vanish(four, 1)
    done = four.prolog(7, STAMP, gpus="2")
    assert done.returncode == 14
    assert "the driver shows no device minor 1, but later ones" in done.stderr
    assert records(four) == []
    assert up(four) == []
    assert four.prolog(8, STAMP, gpus="2").returncode == 0
    assert records(four)[-1].gpu_minor == 3


def test_one_that_does_not_answer_stops_no_job_on_the_others(four: Site) -> None:
    """Only who is sent to it meets its fault."""
    assert four.prolog(5, STAMP, gpus="0").returncode == 0
    four.machine.lose(1)
    assert four.prolog(7, STAMP, gpus="2").returncode == 0
    assert four.prolog(8, STAMP, gpus="1").returncode == 14


def test_a_boot_without_it_says_so(four: Site) -> None:
    """What to do when it is to stay away is said; what was agreed stays."""
    assert up(four) == []
    vanish(four, 1)
    (text,) = up(four)
    assert "agreed for device minors 0, 1, 2, 3, the driver shows 0, 2, 3" in text
    assert f"remove {four.root}/state/gpus" in text
    (four.root / "state/gpus").unlink()
    assert up(four) == []
    assert indexes.read(four.root / "state") == (0, 2, 3)


@pytest.mark.parametrize("words", [f'expected = {{ "{H100}" = 4 }}', "managed = [0, 1, 2, 3]"])
def test_nothing_is_agreed_while_one_is_known_to_be_missing(
    make_site: Callable[..., Site], words: str
) -> None:
    """The first hook of all meets the fault, and not the second GPU."""
    site = make_site(H100, H100, H100, H100, config=f"[gpus]\n{words}\n")
    vanish(site, 1)
    node = site.node()
    with pytest.raises(GpuLost, match="does not show all GPUs"):
        node.gpus_at([2])
    node.close()
    assert indexes.read(site.root / "state") is None


def test_the_configured_order_counts(make_site: Callable[..., Site]) -> None:
    """As ever, and over what was agreed."""
    site = make_site(H100, H100, H100, config="[gpus]\norder = [2, 0, 1]\n")
    indexes.write(site.root / "state", (0, 1, 2))
    node = site.node()
    assert [gpu.minor for gpu in node.gpus_at([0, 2])] == [2, 1]
    assert [gpu.minor for gpu in node.gpus_by_index().values()] == [2, 0, 1]
    with pytest.raises(GpuLost, match="index 3, this node has 3 GPUs"):
        node.gpus_at([3])
    node.close()


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_only_what_comes_behind_is_added(before: set[int], here: set[int]) -> None:
    """No index that means a GPU ever means another one."""
    agreed = tuple(sorted(before))
    found = indexes.beyond(agreed, sorted(here))
    if before <= here and (not before or all(n > max(before) for n in here - before)):
        assert found == tuple(sorted(here))
    else:
        assert found is None


@pytest.mark.parametrize("text", ["{", "[]", '{"minors": [0, -1]}', '{"minors": "01"}', "{}"])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    """It is not read as if nothing had been agreed."""
    assert indexes.read(tmp_path) is None
    indexes.write(tmp_path / "state", (0,))
    (tmp_path / "state/gpus").write_text(text)
    with pytest.raises(NodeFault, match="is damaged.*remove"):
        indexes.read(tmp_path / "state")
