"""The helper that has everything loaded, and what hooks do where it does not serve."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.simulator.faults import Rule
from slurm_mig.system import warm_client
from tests.kit.gpus import H100
from tests.kit.site import Site, helper, job_environ
from tests.kit.users import as_user
from tests.kit.ways import at_work, children, is_gone, soon

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.root, pytest.mark.alone("helpers of its own, whatever the way")]

STAMP = "slurm-mig=1,1g.10gb/19/4:1"


def forks(process: subprocess.Popen[str]) -> list[int]:
    """Those at work: the youngest waits for a hook."""
    return children(process.pid)[:-1]


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


def test_an_epilog_is_over_before_its_teardown(make_site: Callable[..., Site]) -> None:
    """Nothing that slurmd waits for is held, and its fork counts as long as it is at work."""
    site = make_site(H100, config="[hooks]\ndefer_teardown = true\n")
    with helper(site) as process:
        site.prolog(7, STAMP)
        site.machine.faults.set([Rule("nvmlComputeInstanceDestroy", "hang:1.5")])
        # Returns when nobody has its output any more.
        done = site.epilog(7)
        assert (done.returncode, events(site)[-1]) == (0, "releasing"), done.stderr
        assert len(forks(process)) == 1
        soon(lambda: events(site)[-1] == "released" and not forks(process))


def test_between_hooks_it_holds_nothing(site: Site) -> None:
    """No driver session, no ledger, no lock; and it takes no hook of another's."""
    with helper(site) as process:
        assert "way=helper" in site.prolog(7, STAMP).stderr
        soon(lambda: not forks(process))
        (ready,) = children(process.pid)
        # Its own socket and the ready fork's, which has one end of that.
        for pid, sockets in ((process.pid, 2), (ready, 1)):
            place = Path(f"/proc/{pid}/fd")
            opened = [item.readlink().name for item in place.iterdir() if int(item.name) > 2]
            assert [name.partition(":")[0] for name in opened] == sockets * ["socket"]
            assert "nvidia" not in Path(f"/proc/{pid}/maps").read_text()
        where = site.run / "warm"
        assert stat.S_IMODE(where.stat().st_mode) == 0o600
        assert where.stat().st_uid == 0

        def knock() -> None:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(where))

        assert isinstance(as_user(64001, knock), PermissionError)


def test_the_fork_that_stands_ready(site: Site) -> None:
    """Killed, it costs one hook the long way; it ends with its helper, also with a killed one."""
    with helper(site) as process:
        soon(lambda: children(process.pid))
        (ready,) = children(process.pid)
        os.kill(ready, signal.SIGKILL)
        for _ in "12":
            assert site.prolog(6, STAMP).returncode == 0
            assert site.epilog(6).returncode == 0
        served(site, helped=True)
        soon(lambda: not forks(process))
        (ready,) = children(process.pid)
        process.kill()
        soon(lambda: is_gone(ready))


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


def standing_still(site: Site, seconds: int) -> subprocess.Popen[bytes]:
    """A Prolog of job 7 that waits so long for the driver, once it does."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", f"hang:{seconds}")])
    hook = subprocess.Popen(
        [site.root / "hooks/prolog"], env=job_environ(7, STAMP), stderr=subprocess.PIPE
    )
    soon(lambda: site.machine.faults.rules()[0].seen)
    return hook


def test_a_helper_that_is_stopped_leaves_nothing(site: Site) -> None:
    """As systemd stops it: the hook at work comes to its end, the next one does it all itself."""
    with helper(site) as process:
        hook = standing_still(site, 2)
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
    with helper(site) as process:
        hook = standing_still(site, 60)
        soon(lambda: "planned" in events(site))
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


# -- strangers, and a helper that is not well ---------------------------------------------------


def served(site: Site, *, helped: bool, **more: str) -> None:
    """A job has its slice, carved once, and loses it again."""
    before = len(events(site))
    done = site.prolog(7, STAMP, **more)
    assert (done.returncode, "way=helper" in done.stderr) == (0, helped), done.stderr
    assert site.epilog(7).returncode == 0
    assert events(site)[before:] == ["planned", "active", "releasing", "released"]


def test_another_installations_hooks_run_what_it_has(site: Site, tmp_path: Path) -> None:
    """Two packages on a host, of other versions: the helper of one refuses hooks of the other."""
    package = Path(warm_client.__file__).parents[1]
    shutil.copytree(package, tmp_path / "slurm_mig", ignore=shutil.ignore_patterns("__pycache__"))
    hook = site.root / "hooks/prolog"
    ours = hook.read_text()
    with helper(site):
        served(site, helped=True)
        hook.write_text(ours.replace(str(package), str(tmp_path / "slurm_mig")))
        served(site, helped=False)


@pytest.mark.parametrize("more", [0, 1, 2], ids=["none", "one", "two"])
def test_a_helper_without_descriptors(site: Site, more: int) -> None:
    """It neither dies nor spins; hooks go the long way, once, until it has some again."""
    code = "import resource; real = warm._listen\n"
    code += "def few(path):\n    made = real(path)\n"
    code += f"    resource.setrlimit(resource.RLIMIT_NOFILE, (made.fileno() + {1 + more}, 99))\n"
    code += "    return made\nwarm._listen = few"
    with helper(site, code) as process:
        served(site, helped=False)
        before = Path(f"/proc/{process.pid}/schedstat").read_text().split()[0]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (99, 99))
        time.sleep(1.2)
        # The fork that stood ready has its descriptors from before.
        assert site.prolog(6, STAMP).returncode == 0
        assert site.epilog(6).returncode == 0
        served(site, helped=True)
        assert int(before) < 10e9
        assert process.poll() is None


def request(*parts: bytes, size: int | None = None) -> bytes:
    text = b"\0".join(parts)
    return (len(text) if size is None else size).to_bytes(4, "little") + text


OWN = os.fsencode(warm_client.__file__)

ODD = {
    "nothing": b"",
    "half a length": b"\x10\0",
    "half a request": request(warm_client.PROTOCOL, OWN, b"prolog", size=5000),
    "too long": request(b"", size=(1 << 31) - 1),
    "an older protocol": request(b"1", b"prolog", b"SLURM_JOB_ID=7"),
    "no package": request(warm_client.PROTOCOL, b"/nowhere", b"prolog"),
    "no such hook": request(warm_client.PROTOCOL, OWN, b"nonsense"),
    "a word that is none": request(warm_client.PROTOCOL, OWN, b"prolog", b"word"),
    "bytes": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_an_odd_request_costs_nobody_anything(site: Site, text: bytes) -> None:
    """More of them at once than it takes hooks: it is full for a moment, then as before."""
    with helper(site, "warm.MOST = 4") as process:
        links = []
        for _ in range(6):
            link = socket.socket(socket.AF_UNIX)
            link.connect(str(site.run / "warm"))
            link.sendall(text)
            links.append(link)
        assert site.prolog(7, STAMP).returncode == 0
        soon(lambda: not forks(process))
        assert "way=helper" in site.epilog(7).stderr
        for link in links:
            link.close()
        assert process.poll() is None
    assert events(site) == ["planned", "active", "releasing", "released"]


def test_what_is_asked_after_the_taking(site: Site) -> None:
    """A client that begins without its descriptors, or with other words, has begun nothing."""
    config = b"SLURM_MIG_CONFIG=%b" % os.fsencode(site.config)
    words = [b"%b=%b" % (k.encode(), v.encode()) for k, v in job_environ(7, STAMP).items()]
    with helper(site) as process:
        for answer in (warm_client.BEGIN, b"x", b""):
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(str(site.run / "warm"))
                link.sendall(request(warm_client.PROTOCOL, OWN, b"prolog", config, *words))
                assert link.recv(1) == warm_client.TAKEN
                link.sendall(answer)
            soon(lambda: not forks(process))
    assert events(site) == []


@pytest.mark.parametrize("phase", ["_receive", "_become"])
def test_a_fork_that_stands_still(site: Site, phase: str) -> None:
    """Before it took the hook: the long way. After: a hook that hangs, and ends by two signals."""
    code = f"import os, signal; real = warm.{phase}\n"
    code += "def stop(*a): os.kill(os.getpid(), signal.SIGSTOP); return real(*a)\n"
    code += f"warm.{phase} = stop"
    with helper(site, code) as process:
        hook = subprocess.Popen([site.root / "hooks/prolog"], env=job_environ(7, STAMP))
        soon(lambda: forks(process))
        (fork,) = forks(process)
        if phase == "_become":
            time.sleep(0.5)
            hook.terminate()
            with pytest.raises(subprocess.TimeoutExpired):
                hook.wait(0.5)
            hook.terminate()
        assert hook.wait(20) == (0 if phase == "_receive" else -signal.SIGTERM)
        # Awake again it does not begin.
        os.kill(fork, signal.SIGCONT)
        soon(lambda: not forks(process))
    assert events(site) == (["planned", "active"] if phase == "_receive" else [])


def test_what_a_helper_has_of_its_own(site: Site) -> None:
    """Umask, directory, limits, niceness, signals, time zone, locale: hooks go by none of them."""
    code = "import os, resource, signal; os.umask(0o777); os.chdir('/proc'); os.nice(5)\n"
    code += "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    code += "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    served(site, helped=False)

    def tree() -> list[tuple[str, int]]:
        # A process that is being taken apart still has the ledger open: SQLite's own files go with
        # whoever closes it last.
        soon(lambda: events(site) and not (site.root / "state/ledger.db-wal").exists())
        found = [*site.run.glob("*"), *site.run.glob("*/*"), *(site.root / "state").glob("*")]
        names = [path for path in found if path.name != "warm" and "7.0" not in path.name]
        return sorted((str(path), path.stat().st_mode) for path in names)

    modes = tree()
    odd = {"TZ": "Pacific/Chatham", "LC_ALL": "xx_YY.latin1", "HOME": "/nowhere", "PATH": "/"}
    with helper(site, code, **odd):
        served(site, helped=True)
    assert tree() == modes


def test_a_huge_environment(site: Site) -> None:
    """As much as a process may have: words of 128 KiB, with whatever bytes."""
    word = "\udcff\n=" * 43_000
    with helper(site):
        served(site, helped=True, **{f"WORD{n}": word for n in range(8)})


def test_links_and_files_in_its_way(site: Site, tmp_path: Path) -> None:
    """What lies where it listens is replaced; nothing is written through a link."""
    site.run.mkdir(exist_ok=True)
    target = tmp_path / "target"
    (site.run / "warm").symlink_to(target)
    with helper(site):
        assert not (site.run / "warm").is_symlink()
        served(site, helped=True)
    assert not target.exists()


def test_a_helper_whose_directory_is_not_its_own(site: Site) -> None:
    """Where others can write they could put a socket in its place: it does not serve."""
    site.run.mkdir(exist_ok=True)
    site.run.chmod(0o777)
    environ = {"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"}
    code = [sys.executable, "-I", "-c", "from slurm_mig.hooks import warm; warm.main()"]
    done = subprocess.run(code, env=environ, capture_output=True, timeout=20, check=False)
    assert done.returncode != 0
    assert not (site.run / "warm").exists()


def test_the_helper_dies_and_its_fork_goes_on(site: Site) -> None:
    """As `systemctl restart` has it (KillMode=process): the hook ends as it would have."""
    with helper(site) as process:
        hook = standing_still(site, 1)
        process.kill()
        told = hook.communicate(timeout=20)[1]
    assert hook.returncode == 0
    assert b"way=helper" in told
    assert events(site) == ["planned", "active"]


# -- killed anywhere ------------------------------------------------------------------------------

#: Kills this process before its n-th call of the system, where a file asks for that. The work
#: itself (`run`) does not count: tests/kit/crash_points.py kills that everywhere.
KILLER = """
import os, signal, sys
def killer(who, file):
    try:
        what, number = open(file).read().split()
    except OSError:
        return
    if what != who:
        return
    left, own = int(number), os.getpid()
    def profile(frame, event, argument):
        nonlocal left
        of = getattr(argument, "__self__", None)
        system = getattr(of, "__name__", "") in ("posix", "_signal", "fcntl")
        counts = system or "socket" in type(of).__name__
        # Hundreds of files are looked at, and nothing changes in between.
        if event == "c_call" and counts and argument.__name__ != "stat" and os.getpid() == own:
            left -= 1
            if left < 0:
                os.unlink(file)
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(profile)
"""

#: One in so many points in the ordinary run.
STEP = 1 if os.environ.get("SLURM_MIG_FAULTS") == "all" else 12


@pytest.mark.parametrize("who", ["client", "fork", "helper"])
def test_killed_at_every_point(site: Site, who: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Client, fork and helper: the hook is run to its end, or the Epilog finds what it left."""
    file = site.root / "kill"
    hook = site.root / "hooks/prolog"
    if who == "client":
        text = hook.read_text()
        start = f"{KILLER}killer('client', '{file}')\n".replace("'", '"')
        assert "-c 'import sys\n" in text
        hook.write_text(text.replace("-c 'import sys\n", f"-c '{start}import sys\n"))
    target = {"fork": "_hook", "helper": "_take"}.get(who, "_take")
    code = f"{KILLER}real, work = warm.{target}, warm.run\n"
    code += f"def strike(*a):\n    killer({who!r}, {str(file)!r})\n    given = real(*a)\n"
    code += "    sys.setprofile(None)\n" if who == "helper" else ""
    code += "    return given\n"
    code += "def run(*a, **k):\n    before = sys.getprofile(); sys.setprofile(None)\n"
    code += "    code = work(*a, **k); sys.setprofile(before); return code\n"
    code += f"warm.{target}, warm.run = strike, run" if who != "client" else "pass"
    killed = 0
    for at in range(len(who) % STEP, 400, STEP):
        file.write_text(f"{who} {at}")
        with helper(site, code) as process:
            before = len(events(site))
            done = site.hook("prolog", job_environ(7, STAMP))
            # Struck or not: at the last point there was nothing left to strike.
            struck = not file.exists()
            file.unlink(missing_ok=True)
            soon(lambda: not at_work(site.config))
            if who == "client" and struck:
                assert done.returncode == -signal.SIGKILL
            else:
                assert done.returncode == 0, done.stderr
                assert [kind for kind in events(site)[before:] if kind == "active"] == ["active"]
            if struck and who == "helper":
                assert process.wait(10) == -signal.SIGKILL
            assert site.epilog(7).returncode == 0
        killed += struck
        assert site.machine.board(0).instances == []
        node = site.node()
        assert node.ledger.all_open() == []
        node.close()
        assert not [*(site.run / "env").glob("*"), *(site.run / "jobs").glob("*")]
        if not struck:
            break
    assert killed
    with capsys.disabled():
        print(f"\n{who} killed at {killed} points")
