"""Teardown that an Epilog leaves to a process which nobody waits for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.hooks import run as hooks
from slurm_mig.hooks.epilog import epilog, teardown
from slurm_mig.hooks.job import Job
from slurm_mig.hooks.log_line import LogLine
from slurm_mig.mig import allocation as phases
from slurm_mig.simulator.faults import Rule
from slurm_mig.system import detach
from slurm_mig.values import replace
from tests.kit.gpus import H100
from tests.kit.hooks import records, slurm_commands
from tests.kit.site import job_environ
from tests.kit.users import as_user
from tests.kit.ways import at_work, soon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.node.node import Node
    from tests.kit.site import Site

pytestmark = [pytest.mark.root, pytest.mark.alone("Epilogs that put off, whatever the way")]

STAMP = "slurm-mig=1,7g.80gb/0/31:1"


@pytest.fixture
def later(make_site: Callable[..., Site]) -> Iterator[Site]:
    """A node whose Epilogs put their teardown off."""
    config = "[hooks]\ndefer_teardown = true\ndestroy_timeout = 3\n[stuck]\nremedies = ['ignore']\n"
    site = make_site(H100, H100, config=config + "timeout = 1\n")
    slurm_commands(site)
    yield site
    site.machine.faults.set([])
    settle(site)
    # A teardown whose work somebody else has done still writes its line, and goes.
    until = time.monotonic() + 20
    while any(map(mentions(site), Path("/proc").glob("[0-9]*/environ"))):
        assert time.monotonic() < until, "a process has stayed"
        time.sleep(0.02)


def mentions(site: Site) -> Callable[[Path], bool]:
    def found(environ: Path) -> bool:
        with suppress(OSError):
            return os.fsencode(site.config) in environ.read_bytes()
        return False

    return found


def settle(site: Site, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while any(item.phase == phases.RELEASING for item in records(site)):
        assert time.monotonic() < until, "nobody takes it down"
        time.sleep(0.02)


def history(site: Site) -> list[tuple[int | None, str, str]]:
    return [(item.owner.job_id, item.phase, item.reason) for item in records(site)]


def test_slurmd_neither_waits_for_it_nor_kills_it(later: Site) -> None:
    """The Epilog closes the nodes and ends; its group and its output are gone then."""
    assert later.prolog(7, STAMP).returncode == 0
    (mine,) = records(later)[0].instances
    node = later.machine.tree.dev / f"nvidia-caps/nvidia-cap{3 + 9 * (mine.gi_id or 0)}"
    later.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "hang:1.5")])
    hook = subprocess.Popen(
        [later.root / "hooks/epilog"],
        env=job_environ(7, ""),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    told = hook.communicate(timeout=20)[1]
    assert history(later) == [(7, phases.RELEASING, "the job ended")]
    assert (hook.returncode, "closed, to be taken down" in told) == (0, True)
    assert isinstance(as_user(64001, lambda: node.open("rb")), PermissionError)
    assert not list((later.run / "env").iterdir()) + list((later.run / "jobs").iterdir())
    with pytest.raises(ProcessLookupError):
        os.killpg(hook.pid, signal.SIGKILL)
    settle(later)
    assert history(later) == [(7, phases.RELEASED, "the job ended")]
    assert later.machine.board(0).instances == []


def test_a_prolog_waits_for_a_teardown_at_work(later: Site) -> None:
    """In its turn: no job is refused for a place that is about to be free."""
    assert later.prolog(7, STAMP).returncode == 0
    later.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "hang:1")])
    assert later.epilog(7).returncode == 0
    done = later.prolog(8, STAMP)
    assert (done.returncode, "carved" in done.stderr) == (0, True), done.stderr
    assert [item[1] for item in history(later)] == [phases.RELEASED, phases.ACTIVE]


@pytest.mark.parametrize("tries", [20, 0], ids=["goes at last", "stays"])
def test_a_prolog_waits_for_what_is_in_use_as_an_epilog_would(later: Site, tries: int) -> None:
    """Past the moment that a hook spends on others' left-overs; but not for ever."""
    assert later.prolog(7, STAMP).returncode == 0
    in_use = Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=tries)
    later.machine.faults.set([in_use])
    assert later.epilog(7).returncode == 0
    done = later.prolog(8, STAMP)
    assert done.returncode == 0
    assert ("carved" in done.stderr) == bool(tries), done.stderr
    assert ("refused" in done.stderr) == (not tries)
    if not tries:
        # By now it is older than an Epilog could be: nobody waits again.
        began = time.monotonic()
        assert "refused" in later.prolog(9, STAMP).stderr
        assert time.monotonic() - began < 4


def test_a_fault_reaches_the_administrator(later: Site) -> None:
    """The Epilog has said 0 by then: the node is drained with the reason all the same."""
    log = slurm_commands(later)
    assert later.prolog(7, STAMP).returncode == 0
    later.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:UNKNOWN", times=0)])
    assert later.epilog(7).returncode == 0
    until = time.monotonic() + 20
    while "state=drain" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    assert "slurm-mig: " in log.read_text()
    assert [item[1] for item in history(later)] == [phases.QUARANTINED]


def test_a_drain_that_slurm_does_not_hear_is_said_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slurmctld that restarts; a hook has no time for that, and an exit code instead."""
    said: list[str] = []

    class Deaf:
        def drain(self, _node: str, reason: str) -> None:
            said.append(reason)
            if len(said) < 3:
                raise SlurmFault("silent")

    monkeypatch.setitem(node.__dict__, "slurm", Deaf())
    monkeypatch.setattr(hooks, "DRAIN_PAUSE", 0)
    hooks._fail(node, LogLine("teardown"), "it broke")
    assert len(said) == 3
    said.clear()
    hooks._fail(node, LogLine("epilog"), "it broke")
    assert len(said) == 1


def test_without_a_process_to_be_had_it_is_done_at_once(
    later: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert later.prolog(7, STAMP).returncode == 0

    def none(_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(detach, "detach", none)
    environ = {**job_environ(7, ""), "SLURM_MIG_CONFIG": str(later.config)}
    assert as_child(lambda: hooks.run("epilog", environ, watched=True)) == 0
    assert history(later) == [(7, phases.RELEASED, "the job ended")]


def as_child(work: Callable[[], int]) -> int:
    """What a hook's own process ends with: it blocks signals."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_the_next_run_of_the_job_is_not_taken_down(node: Node, site: Site) -> None:
    """It may have begun before the process that takes the earlier one down."""
    node.config = replace(node.config, defer_teardown=True)
    assert site.prolog(7, STAMP).returncode == 0
    job = Job.from_environ(job_environ(7, ""))
    epilog(node, job, LogLine("epilog"))
    assert node.put_off
    assert site.prolog(7, STAMP, "1", SLURM_JOB_RESTART_COUNT="1").returncode == 0
    teardown(node, job, LogLine("teardown"))
    assert [item[1] for item in history(site)] == [phases.RELEASED, phases.ACTIVE]


def test_reconcile_finishes_what_a_killed_process_left(node: Node, site: Site) -> None:
    """A reboot closes it as lost, whatever else comes by takes it down."""
    node.config = replace(node.config, defer_teardown=True)
    assert site.prolog(7, STAMP).returncode == 0
    epilog(node, Job.from_environ(job_environ(7, "")), LogLine("epilog"))
    assert site.cli("reconcile", "--no-slurm").returncode == 0
    assert history(site) == [(7, phases.RELEASED, "the job ended")]


def test_an_epilog_that_puts_off_loads_no_driver(later: Site) -> None:
    """Most of what a hook loads is for the driver and its lock."""
    assert later.prolog(7, STAMP).returncode == 0
    later.machine.faults.set([Rule("nvmlInitWithFlags", "hang:2")])
    began = time.monotonic()
    assert later.epilog(7).returncode == 0
    assert time.monotonic() - began < 2


def test_what_resists_after_its_epilog_reaches_everybody(make_site: Callable[..., Site]) -> None:
    """The Epilog has said 0: status, metrics and, past the threshold, the drain tell of it."""
    config = "[hooks]\ndefer_teardown = true\ndestroy_timeout = 0.5\n[stuck]\ntimeout = 0.5\n"
    config += "remedies = ['ignore']\ndrain_slices = 1\ndrain_after = 0.01\n"
    site = make_site(H100, config=config)
    log = slurm_commands(site)
    assert site.prolog(7, STAMP).returncode == 0
    site.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", times=0)])
    assert site.epilog(7).returncode == 0
    soon(lambda: history(site)[0][1] == phases.QUARANTINED)
    soon(lambda: log.exists() and "state=drain" in log.read_text())
    assert "reason=slurm-mig: stuck" in log.read_text()
    told = json.loads(site.cli("status", "--json", SLURMD_NODENAME="n1").stdout)
    assert [(row["gpu"], row["slices"]) for row in told["stuck"]] == [(0, 1)]
    told = site.cli("metrics", SLURMD_NODENAME="n1").stdout
    assert re.search(r'^slurm_mig_quarantined\{gpu="0"[^}]*\} 1', told, re.MULTILINE), told


@pytest.mark.parametrize("by", ["prolog", "reconcile"])
def test_ended_with_slurmds_unit(later: Site, by: str) -> None:
    """KillMode=control-group: what it left is closed, and the next one to come takes it down."""
    assert later.prolog(7, STAMP).returncode == 0
    later.machine.faults.set([Rule("nvmlGpuInstanceDestroy", "hang:60")])
    assert later.hook("epilog", job_environ(7, ""), wait=False).returncode == 0
    soon(lambda: later.machine.faults.rules()[0].seen)
    for pid in at_work(later.config):
        os.kill(pid, signal.SIGKILL)
    soon(lambda: not at_work(later.config))
    later.machine.faults.set([])
    assert history(later) == [(7, phases.RELEASING, phases.GOING)]
    if by == "prolog":
        assert later.prolog(8, STAMP).returncode == 0
    else:
        assert later.cli("reconcile", "--no-slurm").returncode == 0
    assert history(later)[0] == (7, phases.RELEASED, "the job ended")
