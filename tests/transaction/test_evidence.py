"""A ledger that was set back or lost is found out before anything is torn down on its word."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import LedgerSetBack
from slurm_mig.gpu.capabilities import capability_minors
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.geometry import Placement
from slurm_mig.transaction.evidence import check
from tests.kit.cli import parsed
from tests.kit.hooks import STAMP, records, slurm_commands, squeue
from tests.kit.ledgers import broken_event
from tests.kit.users import opened_by
from tests.kit.ways import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.kit.site import Site

pytestmark = pytest.mark.root

SMALL = "slurm-mig=1,1g.10gb/19/4:1"


def copied(site: Site) -> Path:
    """What docs/audit.md teaches for a backup."""
    path = site.root / "copy.db"
    live = sqlite3.connect(site.root / "state/ledger.db")
    with closing(live) as db, closing(sqlite3.connect(path)) as other:
        db.backup(other)
    return path


def lost(site: Site) -> None:
    for path in (site.root / "state").glob("ledger.db*"):
        path.unlink()


def restored(site: Site, copy: Path) -> None:
    lost(site)
    (site.root / "state/ledger.db").write_bytes(copy.read_bytes())
    (site.root / "state/ledger.db").chmod(0o600)


def made(site: Site, gpu: int = 0) -> list[str]:
    board = site.machine.board(gpu)
    return sorted(f"{board.row(item.profile_id).name}@{item.start}" for item in board.instances)


def nodes(site: Site, gpu: int = 0) -> list[Path]:
    """The capability nodes of every instance of a GPU."""
    return [
        site.machine.root / f"dev/nvidia-caps/nvidia-cap{minor}"
        for item in site.machine.board(gpu).instances
        for minor in capability_minors(gpu, item.gi_id, 0)
    ]


def open_to_alice(site: Site) -> list[bool]:
    return [path.exists() and opened_by(64001, path) for path in nodes(site)]


@pytest.fixture
def set_back(site: Site) -> Site:
    """Job 1 ended, job 2 has its place; the ledger is a copy of the time of job 1."""
    slurm_commands(site, squeue=squeue(2, live=[2]))
    assert site.prolog(1, STAMP).returncode == 0
    copy = copied(site)
    assert site.epilog(1).returncode == 0
    assert site.prolog(2, STAMP).returncode == 0
    restored(site, copy)
    return site


def accept(site: Site, code: int = 0) -> list[str]:
    done = site.cli("reconcile", "--accept-older-ledger", "--json", SLURMD_NODENAME="n1")
    return list(parsed(done, code)["done"])


# -- a ledger that was set back ----------------------------------------------------------


def test_reconcile_destroys_nothing_by_an_older_ledger(set_back: Site) -> None:
    """Job 2 lives in the very place, with the ids and UUID, that the copy gives to job 1."""
    done = set_back.cli("reconcile", SLURMD_NODENAME="n1")
    assert done.returncode == 16
    assert f"job 2 has its event {6 + later()}, the ledger ends with event 2" in done.stderr
    assert "reconcile --accept-older-ledger" in done.stderr
    assert made(set_back) == ["3g.40gb@4"]


@pytest.mark.parametrize(
    "words",
    [
        ("reconcile", "--boot", "--wait", "0"),
        ("reconcile", "--dry-run"),
        ("destroy", "0:1", "--force"),
        ("reset", "--force", "--foreign"),
        ("retire", "--gpu", "0", "--layout", "none"),
        ("disable",),
    ],
)
def test_no_command_acts_on_it(set_back: Site, words: tuple[str, ...]) -> None:
    """Each says the same, with the way out."""
    gi_id = set_back.machine.board(0).instances[0].gi_id
    given = [word.replace("0:1", f"0:{gi_id}") for word in words]
    done = set_back.cli(*given, SLURMD_NODENAME="n1")
    assert done.returncode == 16
    assert "--accept-older-ledger" in done.stderr
    assert made(set_back) == ["3g.40gb@4"]


def test_a_prolog_carves_nothing_by_it(set_back: Site) -> None:
    """The node is at fault, and says what to do."""
    done = set_back.prolog(3, SMALL)
    assert done.returncode == 16
    assert "--accept-older-ledger" in done.stderr
    assert made(set_back) == ["3g.40gb@4"]


def test_accepted_the_living_job_is_on_record_again(set_back: Site) -> None:
    """From its mark; the record that contradicts it is closed, and nothing was destroyed."""
    assert open_to_alice(set_back) == [True, True]
    first, second = accept(set_back)
    assert ("job 1" in first, "taken off record" in first) == (True, True)
    assert ("job 2" in second, "on record again" in second) == (True, True)
    assert made(set_back) == ["3g.40gb@4"]
    assert open_to_alice(set_back) == [True, True]
    assert [item.phase for item in records(set_back)] == [phases.LOST, phases.ACTIVE]
    # From then on all is as ever.
    assert parsed(set_back.cli("reconcile", "--json", SLURMD_NODENAME="n1"))["left"] == []
    assert set_back.prolog(3, SMALL).returncode == 0
    assert set_back.epilog(2).returncode == 0
    assert made(set_back) == ["1g.10gb@3"]
    node = set_back.node()
    assert broken_event(node.ledger) is None
    node.close()
    slurm_commands(set_back, squeue=squeue(3, live=[3]))
    assert accept(set_back) == []


def test_without_slurm_nothing_is_accepted(set_back: Site) -> None:
    """Who lives decides what goes on record."""
    slurm_commands(set_back, squeue="echo no contact >&2; exit 1")
    done = set_back.cli("reconcile", "--accept-older-ledger", SLURMD_NODENAME="n1")
    assert done.returncode == 20
    assert [item.phase for item in records(set_back)] == [phases.ACTIVE]


def test_a_ledger_of_another_history_is_found_out(site: Site) -> None:
    """It may well be longer: the event of that number is another one."""
    assert site.prolog(1, STAMP).returncode == 0
    lost(site)
    node = site.node()
    for _ in range(9):
        node.ledger.note("other", {})
    with pytest.raises(LedgerSetBack, match="the ledger has another one of that number"):
        node.bench()
    node.close()


def test_the_head_of_the_last_hook_tells_too(site: Site) -> None:
    """Also when no mark is left: job 1 is not on record again as one that lives."""
    assert site.prolog(1, STAMP).returncode == 0
    copy = copied(site)
    assert site.epilog(1).returncode == 0
    restored(site, copy)
    done = site.cli("reconcile", "--no-slurm")
    assert done.returncode == 16
    assert f"run/head has its event {4 + later()}, the ledger ends with event 2" in done.stderr


def test_another_boots_marks_prove_nothing(set_back: Site) -> None:
    """What they speak of has gone with that boot, and so have the slices."""
    set_back.machine.reboot()
    done = set_back.cli("reconcile", "--boot", "--wait", "0", SLURMD_NODENAME="n1")
    assert done.returncode == 0, done.stderr
    assert [item.phase for item in records(set_back)] == [phases.LOST]


def test_marks_of_an_earlier_release_prove_nothing(set_back: Site) -> None:
    """They are empty."""
    (set_back.run / "jobs/2.0").write_text("")
    (set_back.run / "head").unlink()
    node = set_back.node()
    node.check_ledger()
    node.close()


# -- a ledger that is gone ---------------------------------------------------------------


def test_an_epilog_without_a_ledger_closes_the_nodes(site: Site) -> None:
    """By the mark; it does not say that there was nothing, and the mark stays."""
    assert site.prolog(1, STAMP).returncode == 0
    assert site.prolog(2, SMALL).returncode == 0
    lost(site)
    done = site.epilog(1)
    assert done.returncode == 16
    assert "closed=3g.40gb@4" in done.stderr
    assert "the ledger ends with event 0" in done.stderr
    assert sorted(open_to_alice(site)) == [False, False, True, True]
    # What its next step would start from is gone as well.
    assert not (site.run / "env/1.0").exists()
    assert made(site) == ["1g.10gb@3", "3g.40gb@4"]
    # And the administrator's word brings the rest in order: job 2 alone lives.
    slurm_commands(site, squeue=squeue(2, live=[2]))
    said = accept(site)
    assert [("on record again" in line) for line in said][:2] == [True, True]
    assert any("its job is no longer on this node" in line for line in said)
    assert made(site) == ["1g.10gb@3"]
    assert not (site.run / "jobs/1.0").exists()
    assert site.epilog(2).returncode == 0
    assert made(site) == []


@pytest.mark.parametrize("why", ["newer", "damaged"])
def test_an_epilog_that_cannot_use_the_ledger_closes_the_nodes(site: Site, why: str) -> None:
    """Nothing of an ended job's stays open to its user; the slice goes once the ledger is right."""
    assert site.prolog(1, STAMP).returncode == 0
    path = site.root / "state/ledger.db"
    copy = copied(site)
    if why == "newer":
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version=1003")
    else:
        lost(site)
        path.write_text("no database" * 400)
    done = site.epilog(1)
    assert done.returncode == (17 if why == "newer" else 16)
    assert "closed=3g.40gb@4" in done.stderr
    assert (open_to_alice(site), made(site)) == ([False, False], ["3g.40gb@4"])
    assert not (site.run / "env/1.0").exists()
    slurm_commands(site, squeue=squeue(0, live=[]))
    restored(site, copy)
    assert site.cli("reconcile", SLURMD_NODENAME="n1").returncode == 0
    assert made(site) == []


def test_a_later_job_of_the_same_user_keeps_its_nodes(site: Site) -> None:
    """An ended job's mark that stayed names the same nodes as the mark of the next one there."""
    assert site.prolog(1, STAMP).returncode == 0
    old = (site.run / "jobs/1.0").read_text()
    assert site.epilog(1).returncode == 0
    assert site.prolog(2, STAMP).returncode == 0
    (site.run / "jobs/1.0").write_text(old)
    lost(site)
    assert site.epilog(1).returncode == 16
    assert open_to_alice(site) == [True, True]


def test_audit_check_says_it(set_back: Site) -> None:
    """The chain of an older copy is whole: only what lies beside it tells."""
    done = set_back.cli("audit", "--check")
    assert done.returncode == 29
    assert f"the mark of job 2 has its event {6 + later()}" in done.stdout + done.stderr
    accept(set_back)
    assert set_back.cli("audit", "--check").returncode == 0


# -- a slice that was taken away ---------------------------------------------------------


def test_whose_slice_was_taken_away_is_told(site: Site) -> None:
    """The next job has the place and the same UUID: the first one's file says what happened."""
    assert site.prolog(7, STAMP).returncode == 0
    (before,) = records(site)
    with site.machine.change(0) as board:
        board.instances.clear()
        board.create(14, Placement(0, 2), busy=False)
    done = site.prolog(8, STAMP, SLURM_JOB_UID="64002", SLURM_JOB_GID="64002")
    assert done.returncode == 0
    assert "job 7 lost its slice: 3g.40gb@4 taken away from outside" in done.stderr
    now = records(site)
    assert [item.phase for item in now] == [phases.LOST, phases.ACTIVE]
    assert now[1].uuids == before.uuids
    assert not (site.run / "env/7.0").exists()
    environ = {"SLURM_JOB_ID": "7", "SLURM_SHARDS_ON_NODE": "14", "SLURMD_NODENAME": "n1"}
    told = site.hook("task_prolog", environ)
    assert told.returncode != 0
    assert "the job has lost its slice: 3g.40gb@4 taken away from outside" in told.stdout
    assert before.uuids[0] not in told.stdout
    assert site.epilog(7).returncode == 0
    assert not list(site.run.glob("*/7.0*"))
    assert made(site) == ["2g.20gb@0", "3g.40gb@4"]


def test_a_hook_that_writes_meanwhile_sets_nothing_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event and its head come after the look at the ledger began: a node was drained for it."""
    assert site.prolog(7, STAMP).returncode == 0
    node, other = site.node(), site.node()
    read = node.files.heads

    def heads() -> Iterator[tuple[str, str]]:
        record = other.ledger.all_open()[0]
        other.ledger.finish(record, phases.LOST, "meanwhile")
        seq, digest = other.ledger.last_event()
        other.files.note_head(f"{seq}:{digest[:16]}")
        yield from read()

    monkeypatch.setattr(type(node.files), "heads", lambda _: heads())
    check(node.ledger, node.files)
    node.close()
    other.close()
