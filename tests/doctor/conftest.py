"""Healthy nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.clinic import Clinic, build
from tests.kit.gpus import H100

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site


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
