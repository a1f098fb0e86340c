"""What each slot policy is worth on one GPU, exactly, and what is learnt from a mix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.mig import catalog
from slurm_mig.mig.plan import Slot, plan
from slurm_mig.mig.request import Item, Request
from slurm_mig.packing import tables
from slurm_mig.packing.chain import Chain, Worth
from slurm_mig.packing.learning import learn, turns
from slurm_mig.packing.policies import NAMED, Learned, named
from tests.kit.workloads import H100, MIXES, by_chance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slurm_mig.packing.learning import Lesson

KINDS = [tuple(int(a == b) for b in range(6)) for a in range(6)]
CHAIN = Chain(H100, KINDS)

#: Refusals per 1,000 starts at load 0.8 by the first study, in the order of MIXES.
STUDY = {
    "fits": (42.8, 83.7, 27.5, 21.6),
    "first-fit": (119.2, 96.2, 92.0, 90.4),
    "last-fit": (43.7, 107.8, 28.5, 18.4),
    "driver": (43.7, 107.8, 28.5, 18.4),
    "mfi": (43.2, 82.4, 27.5, 24.2),
}


@pytest.mark.parametrize("name", STUDY)
def test_policies_are_worth_what_the_study_says(name: str) -> None:
    """Another program found the same: the long run of 723 layouts, not a sample."""
    moves = CHAIN.moves(NAMED[name])
    found = [CHAIN.worth(moves, CHAIN.rates(mix, 0.8)).refused for mix in MIXES.values()]
    assert found == pytest.approx(STUDY[name], abs=0.06)


@pytest.mark.parametrize(
    ("mix", "least"),
    [("uniform", 42.7), ("small-heavy", 66.7), ("large-heavy", 27.53), ("bimodal", 13.4)],
)
def test_the_learned_table_is_the_best_there_is(mix: str, least: float) -> None:
    rates = CHAIN.rates(MIXES[mix], 0.8)
    values = dict(zip(CHAIN.layouts, CHAIN.best(rates), strict=True))
    moves = CHAIN.moves(Learned({H100.classes: values}))
    assert CHAIN.worth(moves, rates).refused <= least


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return learn(by_chance("bimodal", 0.8, 8, 400, 1), 0.8)


def test_a_table_is_read_as_it_was_written(lesson: Lesson, tmp_path: Path) -> None:
    """The planner with the file takes the same slots as with the values, in every layout."""
    path = tmp_path / "table.json"
    path.write_text(tables.text(H100, lesson.values, lesson.about()), "utf-8")
    policy = named(f"optimal:{path}")
    assert lesson.table.refused < lesson.fits.refused
    assert CHAIN.moves(policy) == CHAIN.moves(Learned({H100.classes: lesson.values}))
    # Another GPU's places are not in it.
    a30 = catalog.find("a30-24gb").geometry()
    request = Request((Item(a30.find("1g.6gb").name),))
    assert plan(request, a30, [], policy) == plan(request, a30, [])


def test_drift_is_told_in_every_direction(lesson: Lesson) -> None:
    assert [drift.towards for drift in lesson.drifts] == [*lesson.mix, "all kinds alike"]
    assert set(lesson.mix) == {"1g.10gb", "1g.20gb", "4g.40gb", "7g.80gb"}


def test_drift_is_the_first_share_at_which_fits_is_better() -> None:
    """A table that is good for the first kind and bad for the second: even at a half."""

    def worths(mix: Sequence[float]) -> tuple[Worth, Worth]:
        return Worth(100 * mix[1], 1.0), Worth(50.0, 1.0)

    assert turns([1.0, 0.0], [0.0, 1.0], worths) == 0.6
    assert turns([1.0, 0.0], [1.0, 0.0], worths) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"form": "another"}', '{"form": "slurm-mig slot table 1"}']
)
def test_a_file_that_is_no_table_says_so(content: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(content, "utf-8")
    with pytest.raises(UsageFault, match=r"table\.json"):
        named(f"optimal:{path}")
    with pytest.raises(UsageFault, match="No such file"):
        named(f"optimal:{tmp_path}/none")


def test_an_unknown_policy_names_those_there_are() -> None:
    with pytest.raises(UsageFault, match="first-fit, last-fit"):
        named("worst")


def test_every_policy_places_all_of_a_request() -> None:
    """Several slices at once, on a GPU that holds something: legal, or refused like the others."""
    row = H100.find("2g.20gb")
    present = [Slot(row, row.placements[1])]
    request = Request((Item(H100.find("1g.10gb").name, 2), Item(H100.find("1g.20gb").name)))
    for policy in NAMED.values():
        slots = plan(request, H100, present, policy).slots
        masks = [slot.placement.mask for slot in (*present, *slots)]
        assert sum(masks) == sum(mask for mask in masks if mask)
        assert len(slots) == 3
        assert sum(masks).bit_count() == sum(mask.bit_count() for mask in masks)
