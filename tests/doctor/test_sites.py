"""The doctor on slurm.conf files of many hands: no crash, no false alarm, nothing missed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.sites import SITES, TIMES

if TYPE_CHECKING:
    from tests.kit.clinic import Clinic

pytestmark = pytest.mark.root


@pytest.mark.parametrize("name", SITES)
def test_a_site_before_slurm_mig(clinic: Clinic, name: str) -> None:
    """Its files alone: no node has slices, and nothing else is said of what is not ours."""
    text, _ = SITES[name]
    clinic.slurm_conf.write_bytes(text.encode())
    clinic.live = False
    result = clinic.result()
    codes = {finding.check.code for finding in result.findings}
    assert "SM201" in codes
    assert not {code for code in codes if code.startswith(("SM20", "SM21"))} - {"SM201"}
    assert not codes & {"SM141", "SM142", "SM143", "SM144"}, "there is no slice for a rule to miss"


@pytest.mark.parametrize("name", SITES)
def test_a_site_with_slurm_mig(clinic: Clinic, name: str) -> None:
    """With generate's lines behind its own: what is found is what is amiss there."""
    text, amiss = SITES[name]
    ours = clinic.slurm_conf.read_text()
    fragment = "\n".join(line for line in ours.splitlines() if "=" in line)
    own = {line.partition("=")[0] for line in clinic.own_lines().splitlines()}
    kept = [line for line in fragment.splitlines() if line.partition("=")[0] not in own]
    clinic.slurm_conf.write_bytes((text + "\n".join(kept) + "\n").encode())
    clinic.live = False
    findings = clinic.result().findings
    assert {finding.check.code for finding in findings} - TIMES == amiss, [
        f"{finding.check.code} {finding.evidence}" for finding in findings
    ]
