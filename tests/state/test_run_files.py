"""Files by which Prolog, TaskProlog and Epilog meet."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import NodeFault, NoSpace
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Owner
from slurm_mig.state.run_files import RunFiles
from tests.kit.ledgers import planned
from tests.kit.users import opened_by

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

ALICE = Owner(7, 0, uid=64001, gid=64001)


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path / "run")


def test_an_environment_is_its_users_alone(public_tmp: Path) -> None:
    """Root's, so that he cannot make it grow, and read by him alone."""
    run = RunFiles(public_tmp / "run")
    run.mark(ALICE)
    run.publish(ALICE, "export A=1\n")
    status = (public_tmp / "run/env/7.0").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o440, 0)
    assert opened_by(64001, public_tmp / "run/env/7.0")
    assert not opened_by(64001, public_tmp / "run/env/7.0", os.O_WRONLY)
    assert not opened_by(64002, public_tmp / "run/env/7.0")
    assert stat.S_IMODE((public_tmp / "run/env").stat().st_mode) == 0o755


def test_without_access_lists_he_owns_it(
    run: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without them: closed to others all the same. Other errors are no success."""

    def no_lists(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "setxattr", no_lists)
    run.mark(ALICE)
    run.publish(ALICE, "a")
    status = (tmp_path / "run/env/7.0").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o400, 64001)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "setxattr", full)
    with pytest.raises(NoSpace, match="No space left"):
        run.publish(ALICE, "b")
    assert (tmp_path / "run/env/7.0").read_text() == "a"


def test_runs_are_kept_apart(run: RunFiles, tmp_path: Path) -> None:
    """A restart has an environment of its own."""
    again = Owner(7, 1, uid=64001)
    run.mark(ALICE)
    run.publish(ALICE, "a")
    run.publish(again, "b")
    run.withdraw_environment(ALICE)
    assert [path.name for path in (tmp_path / "run/env").iterdir()] == ["7.1"]


def test_withdrawing_takes_everything_of_a_job_and_nothing_else(
    run: RunFiles, tmp_path: Path
) -> None:
    """Job 7, not job 77 or 7's namesake."""
    for owner in (ALICE, Owner(7, 1), Owner(77, 0), Owner(17, 0)):
        run.mark(owner)
        run.publish(owner, "x")
    run.refuse(Owner(7, 2), "x")
    run.refuse(Owner(77, 2), "x")
    run.withdraw(7)
    assert run.jobs() == {77, 17}
    assert len(list((tmp_path / "run/env").iterdir())) == 3


def test_what_dead_hooks_were_writing_goes_too(run: RunFiles, tmp_path: Path) -> None:
    """With its job, or with its run's environment; what others are writing stays."""
    run.mark(ALICE)
    run.publish(ALICE, "x")
    env = tmp_path / "run/env"
    halves = [".7.0.123", ".7.0.refused.5", ".7.1.9", ".70.0.123", ".7.0.het9.4", ".5.0.het7.4"]
    for name in halves:
        (env / name).touch()
    (tmp_path / "run/jobs/.7.0.123").touch()
    run.withdraw_environment(ALICE)
    assert {path.name for path in env.iterdir()} == set(halves) - {".7.0.123"}
    assert run.jobs() == {7, 70, 9}
    run.withdraw(7)
    assert {path.name for path in env.iterdir()} == {".70.0.123", ".7.0.het9.4"}
    assert list((tmp_path / "run/jobs").iterdir()) == []


def test_what_tasks_are_told_replaces_a_refusal(run: RunFiles, tmp_path: Path) -> None:
    """One of an earlier job of that number, or TaskProlog would stop this one's tasks."""
    run.refuse(ALICE, "no")
    run.publish(ALICE, "x")
    assert [path.name for path in (tmp_path / "run/env").iterdir()] == ["7.0"]


def test_the_mark_goes_last(run: RunFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings the Epilog back that died before it had removed the rest."""
    run.mark(ALICE, leases="/nowhere")
    run.publish(ALICE, "x")
    there: list[bool] = []

    def look(_: Path) -> None:
        there.append((tmp_path / "run/jobs/7.0").exists())
        there.append((tmp_path / "run/env/7.0").exists())

    monkeypatch.setattr("slurm_mig.state.run_files.remove_as_owner", look)
    run.withdraw(7)
    assert there == [True, False]
    assert not (tmp_path / "run/jobs/7.0").exists()


def test_a_component_leaves_its_files_under_its_leaders_id_too(
    run: RunFiles, tmp_path: Path
) -> None:
    """And takes them away with its own; the leader's are another job's."""
    component, leader = Owner(9, 1, het_leader=7), Owner(7, 1, het_leader=7)
    for owner in (component, leader):
        run.mark(owner)
        run.refuse(owner, "x")
    env = tmp_path / "run/env"
    names = {"9.1", "7.1.het9", "7.1"}
    assert {path.name for path in env.iterdir()} == {f"{name}.refused" for name in names}
    for owner in (component, leader):
        run.publish(owner, "x")
    assert {path.name for path in env.iterdir()} == names
    run.withdraw(7)
    assert run.jobs() == {9}
    run.withdraw_environment(component)
    assert not (tmp_path / "run/env/7.1.het9").exists()
    run.withdraw(9)
    assert run.jobs() == set()


def test_a_refusal_replaces_what_tasks_were_told(run: RunFiles, tmp_path: Path) -> None:
    """Only the reason is left."""
    run.mark(ALICE)
    run.publish(ALICE, "x")
    run.refuse(ALICE, "no")
    assert [path.name for path in (tmp_path / "run/env").iterdir()] == ["7.0.refused"]


def test_retries(run: RunFiles) -> None:
    """What one run asked its Epilog to postpone; a plain mark asks nothing."""
    run.mark(ALICE)
    assert run.retries(7) == []
    run.mark(Owner(7, 1), retry="7 0")
    assert run.retries(7) == ["7 0"]
    assert run.retries(8) == []
    run.withdraw(7)
    assert run.retries(7) == []


def test_nothing_there(run: RunFiles) -> None:
    """Before the first job, and after a reboot."""
    run.withdraw(7)
    assert run.jobs() == set()
    assert run.retries(7) == []


def test_one_run_is_withdrawn(run: RunFiles, public_tmp: Path, tmp_path: Path) -> None:
    """With its leases; another run of the job keeps what it has."""
    leases = public_tmp / "shm/leases"
    leases.mkdir(parents=True)
    for path in (leases.parent, leases):
        os.chown(path, 64001, 64001)
    again = Owner(7, 1, uid=64001)
    for owner in (ALICE, again):
        run.mark(owner, leases=str(leases) if owner is ALICE else "")
        run.publish(owner, "x")
    run.withdraw_run(ALICE)
    assert {path.name for path in (tmp_path / "run").glob("[ej]*/*")} == {"7.1"}
    until = time.monotonic() + 20
    while leases.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not leases.exists()


def test_a_refused_run_keeps_its_files(run: RunFiles, tmp_path: Path) -> None:
    """Its tasks still have to be told why, and its Epilog whom to postpone."""
    run.refuse(ALICE, "print no room\n")
    run.mark(ALICE, retry="7 0")
    run.withdraw_run(ALICE)
    assert run.retries(7) == ["7 0"]
    assert (tmp_path / "run/env/7.0.refused").exists()


@pytest.mark.parametrize("kind", ["directory", "file", "link", "deep", "nothing"])
def test_leases_go_with_the_job(run: RunFiles, public_tmp: Path, kind: str) -> None:
    """Whatever the user made of the path, with his rights; what a link points to stays."""
    place, precious = public_tmp / "shm", public_tmp / "precious"
    leases = place / "leases-7.0-x"
    for made in (place, precious):
        made.mkdir()
        os.chown(made, 64001, 64001)
    (precious / "file").touch()
    if kind in ("directory", "deep"):
        leases.mkdir()
        (leases / "step.0").touch()
        (leases / "link").symlink_to(precious)
    elif kind == "file":
        leases.touch()
    elif kind == "link":
        leases.symlink_to(precious)
    if kind == "deep":
        # Deeper than Python recurses, and than one path reaches.
        program = "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')"
        subprocess.run([sys.executable, "-c", program], cwd=leases, check=True)
    subprocess.run(["/bin/chown", "-Rh", "64001:64001", str(place)], check=True)
    run.mark(ALICE, leases=str(leases))
    run.withdraw(7)
    until = time.monotonic() + 20
    while os.path.lexists(leases) and time.monotonic() < until:
        time.sleep(0.01)
    assert not os.path.lexists(leases)
    assert (precious / "file").exists()
    assert run.jobs() == set()


def test_what_root_owns_is_nobodys_lease(run: RunFiles, public_tmp: Path) -> None:
    """A path that is not the user's is left alone."""
    mine = public_tmp / "mine"
    mine.mkdir()
    (mine / "file").touch()
    run.mark(ALICE, leases=str(mine))
    run.withdraw(7)
    assert (mine / "file").exists()


def test_a_prolog_run_twice_finds_its_leases(run: RunFiles) -> None:
    """Running steps would lose theirs with a new path."""
    run.mark(ALICE, leases="/dev/shm/x y")
    assert run.leases(ALICE) == "/dev/shm/x y"
    assert run.leases(Owner(7, 1)) == ""


def test_only_root_says_where_leases_are(run: RunFiles, tmp_path: Path) -> None:
    """The user can rewrite his environment file; nothing is removed for what stands there."""
    precious = tmp_path / "precious"
    precious.mkdir()
    run.mark(ALICE)
    run.publish(ALICE, f"leases {precious}\n")
    run.withdraw(7)
    assert precious.exists()
    assert (tmp_path / "run/jobs").stat().st_uid == 0


def test_files_of_a_run_that_has_just_begun_stay(run: RunFiles, tmp_path: Path) -> None:
    """They were listed before: only what is still the same file goes."""
    run.refuse(ALICE, "print x\n")
    run.mark(ALICE, leases=str(tmp_path / "none"))
    listed = run.runs()
    later = Owner(7, 1, uid=64001, gid=64001)
    run.mark(later)
    run.publish(later, "a")
    run.mark(ALICE)
    run.withdraw_listed(listed)
    left = sorted(path.name for path in tmp_path.glob("run/*/*"))
    assert left == ["7.0", "7.1", "7.1"]
    run.withdraw_listed(run.runs())
    assert list(tmp_path.glob("run/*/*")) == []


def test_leases_of_a_listed_run_go_with_it(run: RunFiles, public_tmp: Path) -> None:
    """Its user made them; nothing else brings them away."""
    leases = public_tmp / "leases"
    leases.mkdir()
    os.chown(public_tmp, 64001, 64001)
    os.chown(leases, 64001, 64001)
    run.mark(ALICE, leases=str(leases))
    run.withdraw_listed(run.runs())
    end = time.monotonic() + 10
    while leases.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_file_that_goes_while_it_is_looked_at(
    run: RunFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Epilog at work beside us is no reason to fail."""
    run.mark(ALICE)
    listed = run._all()
    run.withdraw(7)
    monkeypatch.setattr(run, "_all", lambda: listed)
    assert run.runs() == []


def test_leases_of_an_earlier_release_stay(run: RunFiles, public_tmp: Path) -> None:
    """Steps may have begun there: for the user alone, with the lock that nobody has cleaned."""
    path = public_tmp / "leases-7.0-x"
    owner = Owner(7, 0, uid=64001, gid=64001)
    run.mark(owner, leases=str(path))
    assert run.make_leases(owner, 2, "/nowhere") == str(path) == run.leases(owner)
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (64001, 0o700)
    assert (path / "lock").stat().st_uid == 64001
    assert run.make_leases(owner, 2, "/nowhere") == str(path)


def test_leases_that_cannot_be_made(run: RunFiles, public_tmp: Path) -> None:
    """The node's fault, named: tasks would stop for want of them."""
    run.mark(ALICE, leases=str(public_tmp / "none/x"))
    with pytest.raises(NodeFault, match=f"make {public_tmp}/none/x: No such file"):
        run.make_leases(ALICE, 2, "/nowhere")


def test_what_is_left_of_other_boots(tmp_path: Path) -> None:
    """By the boot that a mark names, by no clock; what names none may be of a job that lives."""
    for number, boot in ((7, "old"), (8, "new"), (9, "")):
        made = RunFiles(tmp_path / "run", {"boot": boot})
        made.mark(Owner(number, uid=64001, gid=64001))
        made.publish(Owner(number, uid=64001, gid=64001), "a")
    (tmp_path / "run/env/10.0").write_text("no mark: its Epilog died over it\n")
    now = RunFiles(tmp_path / "run", {"boot": "new"})
    assert now.jobs_of_other_boots() == {7, 10}


def test_a_mark_tells_what_its_run_has(run: RunFiles, tmp_path: Path) -> None:
    """Boot, cluster, head and records; lines of other releases are passed over."""
    made = RunFiles(tmp_path / "run", {"boot": "b1", "cluster": "sun"})
    record = replace(planned(7), phase=phases.ACTIVE)
    made.mark(ALICE, leases="/x y", head="3:abc", records=[record])
    (mark,) = made.marks()
    assert (mark.job, mark.boot, mark.cluster, mark.head) == (7, "b1", "sun", "3:abc")
    assert mark.records == (record,)
    assert made.leases(ALICE) == "/x y"
    mark.path.write_text(f"colour green\nrecord nothing\n{mark.path.read_text()}record {{}}\n")
    assert made.marks()[0].records == (record,)
    made.end(mark)
    assert made.marks()[0].ended
    made.renew(mark, "9:def", [])
    (mark,) = made.marks()
    assert (mark.head, mark.records, mark.ended) == ("9:def", (), True)


def test_a_later_releases_mark_tells_it_too(tmp_path: Path) -> None:
    """Its additions are passed over: an older hook that goes back to work closes by it."""
    made = RunFiles(tmp_path / "run", {"boot": "b1"})
    record = replace(planned(7), phase=phases.ACTIVE)
    told = record.to_dict() | {"colour": "green"}
    told["owner"] |= {"shoe": 42}
    told["instances"] = [row | {"shape": "round"} for row in told["instances"]]
    made.mark(ALICE, head="3:abc")
    (mark,) = made.marks()
    mark.path.write_text(f"{mark.path.read_text()}record {json.dumps(told)}\n")
    assert made.marks()[0].records == (record,)


@pytest.mark.parametrize("name", ["12abc", "7", "7.0.x", "7.0.het", "\u0667.0"])
def test_another_ones_file_stops_nothing(run: RunFiles, tmp_path: Path, name: str) -> None:
    """It is neither read nor removed."""
    run.mark(ALICE)
    for part in ("env", "jobs"):
        (tmp_path / "run" / part / name).write_text("boot x\n")
    assert run.jobs() == {7}
    assert [mark.job for mark in run.marks()] == [7]
    run.withdraw(7)
    assert run.jobs() == set()
    assert (tmp_path / "run/env" / name).exists()
