"""Half-way states of the manual's procedures: the doctor finds each, and nothing beside it."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.kit.broken import BROKEN, boot_unit_gone, counts_elsewhere, lost_ledger, newer_ledger
from tests.kit.hooks import STAMP
from tests.kit.pages import MANUAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.clinic import Clinic

pytestmark = pytest.mark.root

BOOT = "slurm-mig-boot.service"


def hook_lines_out(clinic: Clinic) -> None:
    assert clinic.site.prolog(7, STAMP).returncode == 0
    for key in ("Prolog=", "Epilog=", "TaskProlog="):
        clinic.drop("slurm.conf", key)


def mig_mode_off(clinic: Clinic) -> None:
    """On a node that counts none any more; the unit that would switch it on stays enabled."""
    counts_elsewhere(clinic)
    assert clinic.site.cli("disable", SLURMD_NODENAME="n1").returncode == 0


def masked(clinic: Clinic) -> None:
    boot_unit_gone(clinic)
    (clinic.sim / "etc/systemd/system" / BOOT).symlink_to("/dev/null")


def units_without_package(clinic: Clinic) -> None:
    path = clinic.sim / "etc/systemd/system" / BOOT
    path.write_text(path.read_text().replace("ExecStart=", "ExecStart=/gone"))


def timer_without_service(clinic: Clinic) -> None:
    (clinic.sim / "etc/systemd/system/slurm-mig-reconcile.service").unlink()


def old_shim(clinic: Clinic) -> None:
    """Of an environment that is gone, in the prolog.d that slurm.conf names."""
    folder = clinic.root / "prolog.d"
    folder.mkdir()
    text = (clinic.root / "hooks/prolog").read_text()
    lines = ["python='/gone/python3'" if x.startswith("python=") else x for x in text.splitlines()]
    (folder / "00-slurm-mig.sh").write_text("\n".join(lines) + "\n")
    (folder / "00-slurm-mig.sh").chmod(0o755)
    clinic.edit("slurm.conf", f"\nProlog={clinic.root}/hooks/prolog", f"\nProlog={folder}/*")


def damaged_ledger(clinic: Clinic) -> None:
    for path in (clinic.root / "state").glob("ledger.db*"):
        path.unlink()
    (clinic.root / "state/ledger.db").write_text("no database" * 400)
    (clinic.root / "state/ledger.db").chmod(0o600)


def restored_ledger(clinic: Clinic) -> None:
    ledger, copy = clinic.root / "state/ledger.db", clinic.root / "copy.db"
    with closing(sqlite3.connect(ledger)) as live, closing(sqlite3.connect(copy)) as other:
        live.backup(other)
    lost_ledger(clinic)
    shutil.copy(copy, ledger)
    ledger.chmod(0o600)


def newer_ledger_without_counts(clinic: Clinic) -> None:
    counts_elsewhere(clinic)
    newer_ledger(clinic)


#: States that are one finding's very test: state -> code.
ALONE: dict[str, str] = {
    # Setting up, getting rid of it.
    "GresTypes taken back alone": "SM106",
    "node still drained": "SM118",
    "no node counts slices any more": "SM201",
    "counts gone on this node, MIG mode on": "SM228",
    "script without plugin": "SM251",
    "plugin without script": "SM252",
    "boot unit not enabled": "SM702",
    "boot unit enabled, its file gone": "SM705",
    "timer not enabled": "SM706",
    # From static MIG, and back to it.
    "AutoDetect left": "SM202",
    "GPU retired, its slices still counted": "SM227",
    "static instances under management": "SM606",
    "the unit that made them still enabled": "SM701",
    # Upgrading, going back, two installations.
    "job_submit.lua of another release": "SM255",
    "hook of another release": "SM304",
    "hook whose Python is gone": "SM306",
    "hooks and units of two installations": "SM308",
    "ledger newer than the package": "SM507",
    # Restoring a backup.
    "ledger gone": "SM508",
}

#: State -> what leads there, and the codes.
HALF_WAY: dict[str, tuple[Callable[[Clinic], None], set[str]]] = {
    "hook lines, hooks gone": (lambda clinic: shutil.rmtree(clinic.root / "hooks"), {"SM301"}),
    "counts and a job's slice, hook lines gone": (hook_lines_out, {"SM131", "SM132", "SM133"}),
    "counts gone, MIG mode off, boot unit enabled": (mig_mode_off, {"SM228"}),
    "boot unit enabled and masked": (masked, {"SM705"}),
    "boot unit enabled, its Python gone": (units_without_package, {"SM705"}),
    "timer enabled, its service gone": (timer_without_service, {"SM705"}),
    "old hook in prolog.d, its Python gone": (old_shim, {"SM306"}),
    "ledger newer, counts gone": (newer_ledger_without_counts, {"SM228", "SM507"}),
    "ledger damaged": (damaged_ledger, {"SM507"}),
    "ledger set back": (restored_ledger, {"SM508"}),
}


def test_what_a_findings_own_test_holds() -> None:
    """Each of these is broken in test_findings.py, and exactly that is found."""
    assert set(ALONE.values()) <= set(BROKEN)


def test_the_manual_has_each_state() -> None:
    """With its finding, and no other."""
    page = (MANUAL / "doctor.md").read_text().partition("## Half-way")[2].partition("\n## ")[0]
    found = dict(re.findall(r"^\| (.+) \| (SM.+) \|$", page, re.MULTILINE))
    several = {state: ", ".join(sorted(codes)) for state, (_, codes) in HALF_WAY.items()}
    assert found == ALONE | several


@pytest.mark.parametrize("state", HALF_WAY)
def test_each_half_way_state_is_found(clinic: Clinic, state: str) -> None:
    """With what to do about it."""
    lead, codes = HALF_WAY[state]
    lead(clinic)
    findings = clinic.result().findings
    assert {finding.check.code for finding in findings} == codes, findings


def test_a_boot_unit_is_disabled_where_nothing_is_counted(clinic: Clinic) -> None:
    """It would switch MIG mode on at the next boot, under jobs with whole GPUs."""
    mig_mode_off(clinic)
    (finding,) = clinic.result().findings
    assert "the next boot switches MIG mode on" in finding.evidence
    (clinic.sim / "etc/systemd/system/multi-user.target.wants" / BOOT).unlink()
    assert clinic.codes() == []


def test_a_node_that_was_never_ours(clinic: Clinic) -> None:
    """MIG mode on, no ledger, no unit: static MIG before its turn comes."""
    counts_elsewhere(clinic)
    (clinic.sim / "etc/systemd/system/multi-user.target.wants" / BOOT).unlink()
    (clinic.root / "state/ledger.db").unlink()
    assert clinic.codes() == []
