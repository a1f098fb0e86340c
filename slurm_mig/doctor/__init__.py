"""The doctor: a table of checks over facts that are gathered beforehand.

`facts` and the `*_checks` modules are pure; `gather` reads; `report` writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.doctor import (  # importing them fills the table
    cgroup_checks,
    gres_checks,
    limit_checks,
    lua_checks,
    node_checks,
    nvidia_checks,
    publish_checks,
    slurm_checks,
)
from slurm_mig.doctor.check import CHECKS

if TYPE_CHECKING:
    from slurm_mig.doctor.check import Check

MODULES = (
    slurm_checks,
    limit_checks,
    gres_checks,
    lua_checks,
    publish_checks,
    node_checks,
    cgroup_checks,
    nvidia_checks,
)


def all_checks() -> list[Check]:
    """Every check, by code."""
    return [CHECKS[code] for code in sorted(CHECKS)]
