"""What to do about an error of the system's: for whom it is said counts."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from slurm_mig.system import causes

if TYPE_CHECKING:
    import pytest


def test_a_user_is_not_told_of_roots_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who may not write somewhere was told that root itself is kept out."""
    for uid, told in ((0, "root itself is kept out"), (1000, "who may")):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert told in causes.remedy(errno.EACCES)
        assert told in causes.remedy(errno.EPERM)
