"""The command: nothing without the word, everything put back, whatever ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator.faults import Rule
from tests.kit.gpus import A30, RTX
from tests.kit.hooks import slurm_commands

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kit.site import Site

pytestmark = pytest.mark.root

MADE = "nvmlDeviceCreateGpuInstanceWithPlacement"


def uuid_of(site: Site) -> str:
    return str(site.machine.gpus[0]["uuid"])


def words(site: Site, *more: str, out: Path) -> list[str]:
    return ["acceptance", "--gpu", "0", "--confirm", uuid_of(site), "--out", str(out), *more]


def untouched(site: Site, *, mig: bool = True) -> bool:
    """Whether the GPU is as it was built, and nothing of a run is left."""
    board = site.machine.board(0)
    caps = site.machine.tree.dev / "nvidia-caps"
    nodes = [*caps.iterdir()] if caps.exists() else []
    notes = site.run / "acceptance"
    left = [*notes.iterdir()] if notes.exists() else []
    return not board.instances and board.mig_current == mig and not nodes and not left


def test_a_whole_run(make_site: Callable[..., Site], public_tmp: Path) -> None:
    """With hooks, users and a busy slice: no difference, nothing left, no names in its file."""
    site, out = make_site(A30), public_tmp / "a.json"
    done = site.cli(*words(site, "--patience", "2", out=out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no difference\nall steps tried; restored\n" in done.stdout
    assert untouched(site)
    # Neither jobs nor instances of a trial stand in the site's ledger.
    assert not (site.root / "state/ledger.db").exists()
    text = out.read_text()
    named = (uuid_of(site), socket.gethostname(), str(site.root))
    assert [word for word in named if re.search(rf"\b{re.escape(word)}\b", text)] == []
    data = json.loads(text)
    assert {step["part"] for step in data["steps"]} == {
        "gpu", "table", "place", "again", "refusal", "compute", "layout", "job",
    }  # fmt: skip


def test_without_the_word_nothing_is_done(make_site: Callable[..., Site], public_tmp: Path) -> None:
    site = make_site(A30)
    done = site.cli("acceptance", "--gpu", "0")
    assert done.returncode == 2
    assert f"--confirm {uuid_of(site)}" in done.stdout
    other = site.cli("acceptance", "--gpu", "0", "--confirm", "GPU-0", "--out", f"{public_tmp}/a")
    assert other.returncode == 2
    assert untouched(site)
    assert not (public_tmp / "a").exists()


def test_a_gpu_that_is_not_idle_is_left_alone(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    site = make_site(A30)
    with site.machine.change(0) as board:
        board.create(14, Placement(0, 1), busy=False)
    done = site.cli(*words(site, out=public_tmp / "a"))
    assert (done.returncode, "not idle: an instance at 0:1" in done.stderr) == (23, True)
    assert len(site.machine.board(0).instances) == 1


def test_a_driver_that_hangs_is_given_up(make_site: Callable[..., Site], public_tmp: Path) -> None:
    """What it did until then is kept, and the GPU is put back."""
    site, out = make_site(RTX, mig=False), public_tmp / "a"
    site.machine.faults.set([Rule(MADE, "hang:60", 9)])
    done = site.cli(*words(site, "--driver-only", "--patience", "2", out=out))
    assert done.returncode == 32, done.stderr
    assert "given up: no answer within 2 s: GPU 0 (GPU-UUID): create instance" in done.stdout
    assert len(json.loads(out.read_text())["steps"]) > 9
    assert untouched(site, mig=False)


def test_a_file_is_played_again(make_site: Callable[..., Site], public_tmp: Path) -> None:
    """As a site sent it: the simulator answers the same, or it is told in what it does not."""
    site, out = make_site(A30), public_tmp / "a"
    assert site.cli(*words(site, "--driver-only", out=out)).returncode == 0
    again = site.cli("acceptance", "--replay", str(out))
    assert (again.returncode, "no difference" in again.stdout) == (0, True), again.stderr
    out.write_text(out.read_text().replace('"gi_id": 3,', '"gi_id": 9,', 1))
    other = site.cli("acceptance", "--replay", str(out))
    assert (other.returncode, ", gi_id: 9 / 3" in other.stdout) == (32, True)


@pytest.mark.parametrize(
    ("state", "code", "word"),
    [("IDLE", 23, "Slurm may send jobs to"), ("IDLE+DRAIN", 23, "not idle")],
)
def test_slurm_must_not_send_jobs_meanwhile(
    make_site: Callable[..., Site], public_tmp: Path, state: str, code: int, word: str
) -> None:
    site = make_site(A30)
    slurm_commands(
        site,
        scontrol=f"echo 'NodeName=n1 State={state} NodeAddr=127.0.0.1 NodeHostName=localhost '",
    )
    if state != "IDLE":
        # Far enough: it is refused by what comes after.
        site.machine.hold(os.getpid(), uuid_of(site))
    done = site.cli(*words(site, out=public_tmp / "a"), SLURMD_NODENAME="n1")
    assert (done.returncode, word in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize("skip", [400, 1907])
def test_a_child_that_is_killed(
    make_site: Callable[..., Site], public_tmp: Path, skip: int
) -> None:
    """While it tries, or while it puts the GPU back: that is done again then."""
    site = make_site(A30)
    site.machine.faults.set([Rule("*", "kill-after", skip)])
    done = site.cli(*words(site, "--driver-only", out=public_tmp / "a"))
    assert (done.returncode, "killed by SIGKILL in GPU 0" in done.stdout) == (
        (32, True) if skip == 400 else (0, False)
    ), done.stdout
    assert untouched(site)


def started(site: Site, out: Path, *more: str) -> subprocess.Popen[str]:
    """A run that is in the middle of its work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm_mig", *words(site, "--driver-only", *more, out=out)],
        env={"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 30
    while not site.machine.board(0).instances and time.monotonic() < until:
        time.sleep(0.01)
    return process


def slow(make_site: Callable[..., Site], **more: Any) -> Site:
    return make_site(A30, latency_ms={"create-ci": 150, "create-gi": 20}, **more)


def test_a_signal_ends_it_and_the_gpu_is_put_back(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    site = slow(make_site)
    process = started(site, public_tmp / "a")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "ended by SIGTERM after" in out
    assert untouched(site)


def test_a_run_after_a_killed_one_says_so_and_restores(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    site = slow(make_site)
    process = started(site, public_tmp / "a")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not untouched(site)
    # One that will not begin: the GPU is restored first all the same.
    site.machine.hold(os.getpid(), uuid_of(site))
    done = site.cli(*words(site, out=public_tmp / "a"))
    assert "was killed; the GPU is restored first" in done.stderr
    assert (done.returncode, "not idle: process" in done.stderr) == (23, True)
    assert untouched(site)


def test_what_the_ledger_knows_by_then_stays(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    """A killed run was forgotten, and the GPU went back to work."""
    site = slow(make_site)
    process = started(site, public_tmp / "a")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    made = site.prolog(7, "slurm-mig=1,1g.6gb/14/8:1")
    assert made.returncode == 0, made.stderr
    there = len(site.machine.board(0).instances)
    done = site.cli(*words(site, out=public_tmp / "a"))
    assert done.returncode == 23, done.stderr
    assert (there, len(site.machine.board(0).instances)) == (2, 1)
