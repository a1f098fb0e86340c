"""The helper that has everything loaded, and what hooks do where it does not serve."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from slurm_mig.simulator.faults import Rule
from tests.kit.site import Site, helper, job_environ
from tests.kit.users import as_user
from tests.kit.ways import at_work, soon

pytestmark = pytest.mark.root

STAMP = "slurm-mig=1,1g.10gb/19/4:1"


def forks(process: subprocess.Popen[str]) -> list[int]:
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(word) for word in text.split()]


def events(site: Site) -> list[str]:
    node = site.node()
    found = [event.kind for event in node.ledger.events_after(0)]
    node.close()
    return found


def test_a_helper_serves_hooks_as_they_serve_themselves(site: Site) -> None:
    """The same files, records and exit codes; only the line says which way it was."""
    told = {}
    for job, way in ((7, "alone"), (8, "helper")):
        with helper(site) if way == "helper" else nullcontext():
            done = site.prolog(job, STAMP)
            lines = (site.run / f"env/{job}.0").read_text().splitlines()
            ended = site.epilog(job)
        assert ("way=helper" in done.stderr) == (way == "helper")
        assert ("way=helper" in ended.stderr) == (way == "helper")
        assert not (site.run / f"env/{job}.0").exists()
        words = [line.split()[0] for line in lines]
        told[way] = (done.returncode, done.stdout, ended.returncode, words)
    assert told["alone"] == told["helper"]
    assert events(site) == ["planned", "active", "releasing", "released"] * 2


def test_between_hooks_it_holds_nothing(site: Site) -> None:
    """No driver session, no ledger, no lock; and it takes no hook of another's."""
    with helper(site) as process:
        assert "way=helper" in site.prolog(7, STAMP).stderr
        soon(lambda: not forks(process))
        place = Path(f"/proc/{process.pid}/fd")
        opened = [item.readlink() for item in place.iterdir() if int(item.name) > 2]
        assert len(opened) == 1
        assert opened[0].name.startswith("socket:")
        assert "nvidia" not in Path(f"/proc/{process.pid}/maps").read_text()
        where = site.run / "warm"
        assert stat.S_IMODE(where.stat().st_mode) == 0o600
        assert where.stat().st_uid == 0

        def knock() -> None:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(where))

        assert isinstance(as_user(64001, knock), PermissionError)


@pytest.mark.parametrize("state", ["left behind", "stopped", "full", "another's", "a file"])
def test_without_a_helper_that_serves_a_hook_does_it_all(site: Site, state: str) -> None:
    """At once, and only once, also when a helper that hung wakes up later."""
    where = site.run / "warm"
    code = "warm.MOST = 0" if state == "full" else ""
    with helper(site, code) as process:
        if state == "left behind":
            process.kill()
            process.wait()
        elif state == "stopped":
            process.send_signal(signal.SIGSTOP)
        elif state in ("another's", "a file"):
            where.unlink()
        if state == "a file":
            where.touch()
        with socket.socket(socket.AF_UNIX) as listener:
            if state == "another's":
                listener.bind(str(where))
                os.seteuid(64001)
                listener.listen()
                os.seteuid(0)
            done = site.prolog(7, STAMP)
        assert (done.returncode, "way=helper" in done.stderr) == (0, False), done.stderr
        if state == "stopped":
            process.send_signal(signal.SIGCONT)
            soon(lambda: not forks(process))
    assert events(site) == ["planned", "active"]


def test_an_older_helper_lets_hooks_go_and_ends(site: Site, tmp_path: Path) -> None:
    """After an upgrade: the files that it has loaded are others now."""
    loaded = tmp_path / "module.py"
    loaded.touch()
    code = f"own = warm._files\nfile = Path({str(loaded)!r})\n"
    code += "warm._files = lambda: [*own(), (file, warm._seen(file))]"
    with helper(site, code) as process:
        assert "way=helper" in site.prolog(7, STAMP).stderr
        loaded.unlink()
        loaded.touch()
        assert "way=helper" not in site.epilog(7).stderr
        assert process.wait(20) == 0
    assert events(site)[-1] == "released"


def test_a_helper_that_is_stopped_leaves_nothing(site: Site) -> None:
    """As systemd stops it: the hook at work comes to its end, the next one does it all itself."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "hang:2")])
    with helper(site) as process:
        hook = subprocess.Popen(
            [site.root / "hooks/prolog"], env=job_environ(7, STAMP), stderr=subprocess.PIPE
        )
        soon(lambda: site.machine.faults.rules()[0].seen)
        process.terminate()
        assert process.wait(20) == 0
        assert not (site.run / "warm").exists()
        told = hook.communicate(timeout=60)[1]
        assert (hook.returncode, b"way=helper" in told) == (0, True)
        assert "way=helper" not in site.epilog(7).stderr


def test_a_newer_helper_takes_the_place_of_an_older_one(site: Site) -> None:
    with (
        helper(site, "warm.LOOK_EVERY = 0.1") as old,
        helper(site),
    ):
        assert old.wait(20) == 0
        assert "way=helper" in site.prolog(7, STAMP).stderr


def test_a_helper_serves_its_own_configuration_alone(site: Site, tmp_path: Path) -> None:
    """Several nodes on a host, or one that was installed anew."""
    other = tmp_path / "other.toml"
    other.write_text(site.config.read_text())
    with helper(site, SLURM_MIG_CONFIG=str(other)):
        done = site.prolog(7, STAMP)
    assert (done.returncode, "way=helper" in done.stderr) == (0, False)


def test_a_hook_whose_helper_dies_is_run_again(site: Site) -> None:
    """What it left is what a killed hook leaves: the second run finishes it."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "hang:60")])
    with helper(site) as process:
        hook = subprocess.Popen(
            [site.root / "hooks/prolog"], env=job_environ(7, STAMP), stderr=subprocess.PIPE
        )
        soon(lambda: "planned" in events(site))
        soon(lambda: site.machine.faults.rules()[0].seen)
        for pid in forks(process):
            os.kill(pid, signal.SIGKILL)
        told = hook.communicate(timeout=60)[1]
    assert hook.returncode == 0
    assert b"way=helper" not in told
    assert len([item for item in site.machine.board(0).instances if item.compute]) == 1
    assert events(site)[-1] == "active"


ENDINGS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


@pytest.mark.parametrize("number", ENDINGS, ids=lambda number: number.name)
def test_a_hook_that_slurm_gives_up_ends_in_the_helper_too(
    site: Site, number: signal.Signals
) -> None:
    """Nobody goes on carving for it, and its lock is free; it ends as it does without helper."""
    hang = [Rule("nvmlGpuInstanceCreateComputeInstance", "hang:60")]
    told, codes = [], []
    for job in (7, 8):
        with helper(site) if job == 8 else nullcontext():
            site.machine.faults.set(hang)
            hook = subprocess.Popen(
                [site.root / "hooks/prolog"],
                env=job_environ(job, STAMP),
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            soon(lambda: site.machine.faults.rules()[0].seen)
            os.killpg(hook.pid, number)
            told.append(hook.communicate(timeout=10)[1])
            codes.append(hook.returncode)
            soon(lambda: not at_work(site.config))
            site.machine.faults.set([])
            assert site.epilog(job).returncode == 0
        assert events(site)[-1] == "released"
    assert codes == ([-number] * 2 if number == signal.SIGKILL else [26] * 2)
    ended = f"prolog ended by {number.name} in GPU 0 "
    assert [ended in line for line in told] == [number != signal.SIGKILL] * 2


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_signal_beside_the_work(site: Site, phase: str) -> None:
    """Before its work began, or once it is done: nothing is run a second time."""
    code = {
        "before": "import os, signal, time; real = warm._become\n"
        "def late(*a): time.sleep(1); real(*a)\nwarm._become = late",
        "after": "import time; real = warm.run\n"
        "def run(*a, **k): code = real(*a, **k); time.sleep(1); return code\nwarm.run = run",
    }[phase]
    with helper(site, code):
        hook = subprocess.Popen([site.root / "hooks/prolog"], env=job_environ(7, STAMP))
        soon(lambda: phase == "before" or "active" in events(site))
        time.sleep(0.3)
        hook.terminate()
        assert hook.wait(10) == -signal.SIGTERM
        soon(lambda: not at_work(site.config))
    assert events(site) == ([] if phase == "before" else ["planned", "active"])


def test_faults_have_their_exit_code_by_either_way(site: Site) -> None:
    site.machine.faults.set([Rule("nvmlDeviceGetCount_v2", "error:UNKNOWN", times=0)])
    alone = site.prolog(7, STAMP)
    with helper(site):
        helped = site.prolog(7, STAMP)
        assert "way=helper" in helped.stderr
        assert alone.returncode == helped.returncode != 0
        site.machine.faults.set([Rule("nvmlDeviceGetCount_v2", "kill-before")])
        assert site.prolog(8, STAMP).returncode == -signal.SIGKILL


def test_any_environment_is_handed_over(site: Site) -> None:
    """A user's bytes that are no text, and more of them than one message has."""
    with helper(site):
        plain = job_environ(7, STAMP)
        environ = {key.encode(): value.encode() for key, value in plain.items()}
        environ[b"SLURM_JOB_ACCOUNT"] = b"\xff\xfe"
        environ[b"LONG"] = b"=\n" * 50_000
        done = subprocess.run(
            [site.root / "hooks/prolog"], env=environ, capture_output=True, check=True
        )
        assert b"way=helper" in done.stderr
    node = site.node()
    assert [item.owner.account for item in node.ledger.of_job(7)] == ["\ufffd\ufffd"]
    node.close()
