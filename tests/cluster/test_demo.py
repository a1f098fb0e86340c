"""The demonstration itself: it holds, it can be interrupted, and nothing is left either way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm_mig.sandbox import scratch
from slurm_mig.sandbox.daemons import working_in
from slurm_mig.sandbox.prerequisites import place


def demo(*ignored: signal.Signals) -> subprocess.Popen[str]:
    """Started with these signals ignored, as a script's background job has SIGINT."""

    def ignore() -> None:
        for sign in ignored:
            signal.signal(sign, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, "-m", "slurm_mig", "demo"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        preexec_fn=ignore,  # noqa: PLW1509  # no threads here
    )  # fmt: skip


def roots(pid: int) -> list[Path]:
    return list(place().glob(f"smig-demo-{pid}-*"))


def test_every_check_holds_within_three_minutes() -> None:
    """Exit 0, at least twelve submissions, an empty machine, no directory left."""
    started = time.monotonic()
    process = demo()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert time.monotonic() - started < 180
    assert "FAILED" not in out
    assert "All checks held." in out
    assert (
        sum(line.lstrip().startswith(("alice$", "bob$", "carol$")) for line in out.splitlines())
        >= 12
    )
    assert roots(process.pid) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_stops_its_cluster(sign: signal.Signals) -> None:
    """In order, and it does not claim success."""
    process = demo(sign)
    _wait_for_jobs(process)
    process.send_signal(sign)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert roots(process.pid) == []


def test_killed_its_daemons_end_and_the_next_run_clears_the_rest() -> None:
    """The kernel ends the daemons; jobs and files are swept by whoever comes next."""
    process = demo()
    _wait_for_jobs(process)
    (root,) = roots(process.pid)
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while any(_is_daemon(pid) for pid in working_in(root)):
        assert time.monotonic() < until
        time.sleep(0.1)
    # What was just being started when its daemons ended is for the run after the next one.
    while root.exists():
        assert time.monotonic() < until
        scratch("smig-demo").rmdir()
    while list(working_in(root)):
        assert time.monotonic() < until
        time.sleep(0.1)


def _wait_for_jobs(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if "|1g.10g" in line:
            return
    pytest.fail("the demonstration ended before its jobs ran")


def _is_daemon(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return False
    return name in ("slurmctld", "slurmd", "munged") and os.path.exists(f"/proc/{pid}/cwd")  # noqa: PTH110
