"""Healthy nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..conftest import H100, Site
from .clinic import Clinic, build

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def admit(make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clinic]:
    """Build a clinic: `admit(A30, files=(H100,), mig=False)`."""

    def make(*gpus: str, files: tuple[str, ...] = (), mig: bool = True) -> Clinic:
        return build(make_site(*gpus, mig=mig), files or gpus, monkeypatch)

    return make


@pytest.fixture
def clinic(admit: Callable[..., Clinic]) -> Clinic:
    """Two H100 in MIG mode, and every file as it should be."""
    return admit(H100, H100)
