"""A node for the transaction's tests; those of another shape make their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.gpus import H100
from tests.kit.transaction import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(public_tmp: Path) -> Iterator[World]:
    """Two H100 in MIG mode."""
    made = World(public_tmp, H100, H100)
    yield made
    made.close()
