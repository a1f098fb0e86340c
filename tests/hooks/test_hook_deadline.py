"""Hooks that hang or are ended, as slurmd runs them: by path, in a process group of their own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import syslog
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.hooks.log_line import SYSLOG_WAIT, LogLine
from slurm_mig.mig import allocation as phases
from slurm_mig.simulator.faults import Rule
from tests.kit.gpus import H100
from tests.kit.ledgers import everything
from tests.kit.site import Site, job_environ
from tests.kit.ways import at_work, helped

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

STAMP = "slurm-mig=1,3g.40gb/9/14:1"
QUICK = "[hooks]\nlock_timeout = 0.5\ndestroy_timeout = 0.2\ndeadline = 8\n"
# It is the Epilog that hangs here.
QUICK += "defer_teardown = false\n[stuck]\ntimeout = 0.5\n"


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A node whose hooks have eight seconds."""
    made = make_site(H100, config=QUICK)
    made.config.write_text(made.config.read_text().replace("timeout = 5", "timeout = 6", 1))
    (made.root / "bin").mkdir()
    scontrol = made.root / "bin/scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$*" >>{made.root}/asked\n')
    scontrol.chmod(0o755)
    return made


def hanging(site: Site, call: str) -> None:
    site.machine.faults.set([Rule(call, "hang:60")])


def asked(site: Site) -> str:
    path = site.root / "asked"
    return path.read_text() if path.exists() else ""


def phases_of(site: Site) -> list[str]:
    node = site.node()
    found = [record.phase for record in everything(node.ledger)]
    node.close()
    return found


def started(site: Site, name: str) -> subprocess.Popen[str]:
    """A hook in a process group of its own, with slurmd's pipe."""
    return subprocess.Popen(
        [site.root / "hooks" / name],
        env=job_environ(7, STAMP),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def reached(site: Site, call: str) -> Callable[[], bool]:
    """Whether the call that hangs was made."""
    return lambda: any(rule.seen for rule in site.machine.faults.rules() if rule.call == call)


def test_a_slow_slurmctld_does_not_add_to_it(site: Site) -> None:
    """The drain of a hook that is given up is two commands within the time of one."""
    (site.root / "bin/scontrol").write_text("#!/bin/sh\nsleep 5\necho NodeName=n1 State=IDLE\n")
    hanging(site, "nvmlDeviceGetCount_v2")
    begun = time.monotonic()
    assert site.prolog(7, STAMP).returncode == 26
    assert time.monotonic() - begun < 8 + 6 + 2


def test_a_syslog_that_reads_no_longer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As with a journald that hangs: slurmd has the line, and the hook goes on."""
    blocked = threading.Event()
    monkeypatch.setattr(syslog, "syslog", lambda *_: blocked.wait(60))
    line = LogLine("prolog")
    line.say("INFO", "carved")
    begun = time.monotonic()
    line.write()
    assert time.monotonic() - begun < SYSLOG_WAIT + 2
    blocked.set()
    assert capfd.readouterr().err.endswith("carved\n")


def test_a_slurmd_that_reads_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed, and its pipe is broken: syslog has the line all the same."""
    told: list[str] = []
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(syslog, "syslog", lambda _, text: told.append(text))
    with open(writing, "w") as broken:  # noqa: PTH123  # a descriptor, not a name
        monkeypatch.setattr(sys, "stderr", broken)
        line = LogLine("prolog")
        line.say("INFO", "carved")
        line.write()
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            broken.close()
    assert [text.endswith("carved") for text in told] == [True]


def test_a_prolog_that_hangs_while_it_carves(site: Site) -> None:
    """Its own deadline: exit 26, one line, a reason of ours; the Epilog clears what it left."""
    hanging(site, "nvmlGpuInstanceCreateComputeInstance")
    begun = time.monotonic()
    done = site.prolog(7, STAMP)
    assert done.returncode == 26
    assert time.monotonic() - begun < 8 + 6 + 2
    (line,) = done.stderr.splitlines()
    assert re.match(
        r"slurm-mig: prolog job=7 restart=0 user=alice node=n1 (way=helper )?ms=\d+ job 7: ", line
    )
    says = (
        r"job 7: prolog not done within 8 s, in GPU 0 \(GPU-[0-9a-f-]{36}\): create compute "
        r"instance in GPU instance 2 \(nvmlGpuInstanceCreateComputeInstance\); see dmesg"
    )
    assert re.search(says, line)
    assert re.search(f"state=drain reason=slurm-mig: {says}", asked(site))
    assert at_work(site.config) == {}
    assert phases_of(site) == [phases.PLANNED]

    site.machine.faults.set([])
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []
    assert phases_of(site) == [phases.RELEASED]


def test_an_epilog_that_hangs_while_it_destroys(site: Site) -> None:
    """The next Prolog on that GPU finishes it."""
    assert site.prolog(7, STAMP).returncode == 0
    hanging(site, "nvmlGpuInstanceDestroy")
    done = site.epilog(7)
    assert done.returncode == 26
    assert "epilog not done within 8 s, in GPU 0" in done.stderr
    assert "destroy GPU instance 2 (nvmlGpuInstanceDestroy)" in done.stderr
    assert phases_of(site) == [phases.RELEASING]

    site.machine.faults.set([])
    assert site.prolog(8, STAMP).returncode == 0
    assert phases_of(site) == [phases.RELEASED, phases.ACTIVE]


def test_a_driver_that_does_not_even_start(site: Site) -> None:
    """Nothing is known of a GPU then; the call is named all the same."""
    hanging(site, "nvmlInitWithFlags")
    done = site.prolog(7, STAMP)
    assert done.returncode == 26
    assert "in NVML: start NVML (nvmlInit)" in done.stderr


def test_a_ledger_that_is_locked(site: Site) -> None:
    """SQLite's own waiting is longer than the hook's deadline here: it counts, too."""
    assert site.prolog(7, STAMP).returncode == 0
    with contextlib.closing(
        sqlite3.connect(site.root / "state/ledger.db", isolation_level=None)
    ) as db:
        db.execute("BEGIN IMMEDIATE")
        done = site.epilog(7)
        db.execute("ROLLBACK")
    assert done.returncode == 26
    assert "epilog not done within 8 s, in what follows " in done.stderr
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []


def test_slurm_commands_count_too(site: Site) -> None:
    """Each is bounded, and so is their sum."""
    for name in ("squeue", "scontrol"):
        path = site.root / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{site.root}/asked\nexec sleep 5\n')
        path.chmod(0o755)
    done = site.prolog(7, "", SLURM_JOB_EXTRA="")
    assert done.returncode == 26
    assert re.search(r"not done within 8 s, in \S*/bin/(squeue|scontrol) ", done.stderr)
    assert at_work(site.config) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_slurm(site: Site, number: signal.Signals) -> None:
    """TERM to the group at PrologEpilogTimeout: never 0, one line at once, and nobody goes on."""
    call = "nvmlGpuInstanceCreateComputeInstance"
    hanging(site, call)
    hook = started(site, "prolog")
    until(reached(site, call), call)
    os.killpg(hook.pid, number)
    output = hook.communicate(timeout=30)[0]
    assert hook.returncode == 26
    (line,) = output.splitlines()
    assert f"job 7: prolog ended by {number.name} in GPU 0" in line
    assert "PrologEpilogTimeout has to be above 16 s" in line
    until(lambda: "reason=slurm-mig: job 7: prolog ended by" in asked(site), "the drain")
    until(lambda: not at_work(site.config), "the worker's end")
    site.machine.faults.set([])
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []


@pytest.mark.parametrize("both", [True, False])
def test_killed_by_slurm(site: Site, both: bool) -> None:
    """KILL follows within 10 ms, or comes alone: the worker dies with the hook."""
    call = "nvmlGpuInstanceCreateComputeInstance"
    hanging(site, call)
    hook = started(site, "prolog")
    until(reached(site, call), call)
    if both:
        os.killpg(hook.pid, signal.SIGTERM)
        time.sleep(0.01)
    os.killpg(hook.pid, signal.SIGKILL)
    hook.communicate(timeout=30)
    assert hook.returncode != 0
    until(lambda: not at_work(site.config), "the worker's end")
    site.machine.faults.set([])
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []
    assert phases_of(site) == [phases.RELEASED]


def test_a_worker_that_is_killed(site: Site) -> None:
    """By the kernel out of memory, say: the hook ends in the same way, but says so."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "kill-after")])
    done = site.prolog(7, STAMP)
    assert done.returncode == -9
    (line,) = done.stderr.splitlines()
    assert "job 7: prolog killed by SIGKILL in GPU 0" in line
    assert "reason=slurm-mig: job 7: prolog killed by SIGKILL" in asked(site)
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []


def test_a_lock_that_a_stuck_hook_keeps(site: Site) -> None:
    """What hangs in the kernel keeps its GPU's lock: later hooks name it and drain."""
    with site.node().locks.hold([site.machine.gpus[0]["uuid"]], "carve for job 6"):
        done = site.prolog(7, STAMP)
    assert done.returncode == 18
    assert f"held by pid {os.getpid()} (carve for job 6)" in done.stderr


def test_nobody_else_holds_the_hooks_output(site: Site, tmp_path: Path) -> None:
    """Slurm waits until every holder is gone, also of the pipe under another number."""
    hanging(site, "nvmlGpuInstanceCreateComputeInstance")
    read, write = os.pipe()
    hook = subprocess.Popen(
        [site.root / "hooks/prolog"],
        env=job_environ(7, STAMP),
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=write,
        pass_fds=[write],
    )
    os.close(write)
    until(reached(site, "nvmlGpuInstanceCreateComputeInstance"), "the call")
    # A fork of the helper has it beside the hook, and ends with it.
    held = [pid for pid in at_work(site.config) if _holds(pid, read)]
    assert hook.pid in held
    assert len(held) == 1 + helped()
    hook.kill()
    hook.wait()
    until(lambda: not at_work(site.config), "the end of all that hold it")
    os.close(read)


def _holds(pid: int, pipe: int) -> bool:
    wanted = os.fstat(pipe).st_ino
    return any(path.stat().st_ino == wanted for path in Path(f"/proc/{pid}/fd").iterdir())
