"""A driver that does otherwise than the simulator is told apart, whatever it does."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from slurm_mig.mig import catalog
from tests.kit.acceptance_drivers import BAD, MODES, Bad, seen_through, told

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

ALL = os.environ.get("SLURM_MIG_ACCEPTANCE") == "all"
MODELS = [item.key for item in catalog.packaged() if item.known] if ALL else ["a30-24gb"]


@pytest.mark.parametrize("model", MODELS)
def test_a_good_driver_differs_in_nothing(model: str, public_tmp: Path) -> None:
    assert told(public_tmp / "a", model, None) == ([], "")


@pytest.mark.parametrize("bad", BAD if ALL else BAD[::3], ids=lambda bad: bad.name)
def test_a_bad_driver_is_seen_through(bad: Bad, public_tmp: Path) -> None:
    """A third of them on the smallest model; `make acceptance` tries all on all."""
    found, ended = told(public_tmp / "a", "a30-24gb", bad)
    assert seen_through(bad, found, ended), (found, ended)


@pytest.mark.parametrize("bad", MODES if ALL else MODES[:1], ids=lambda bad: bad.name)
def test_a_mode_that_does_not_switch_is_told(bad: Bad, public_tmp: Path) -> None:
    found, ended = told(public_tmp / "a", "rtx-pro-6000-blackwell", bad)
    assert seen_through(bad, found, ended), (found, ended)
