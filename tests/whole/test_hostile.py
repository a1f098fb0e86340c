"""What users try, each attempt with a real unprivileged uid, and what they meet.

`pytest --collect-only -q tests/whole/test_hostile.py` counts the attempts. What a user tries
through Slurm itself is in tests/cluster/test_hostile.py and test_cheats.py.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import NotPermitted, UsageFault
from slurm_mig.mig import allocation as phases
from slurm_mig.simulator.client import open_devices
from tests.kit.gpus import H100
from tests.kit.hooks import STAMP, records, serve, slurm_commands, squeue, task
from tests.kit.ledgers import broken_event, everything
from tests.kit.site import Site, build_site, job_environ, remove_tree
from tests.kit.task_prolog import make_job
from tests.kit.users import ALICE, BOB, as_user, opened_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

pytestmark = pytest.mark.root

PAIR = "slurm-mig=1,1g.10gb/19/4:2"
DENIED = (errno.EACCES, errno.EPERM)


# -- by the file system -------------------------------------------------------------


@dataclass
class Place:
    """A node with Alice's job 7 and Bob's job 8, and a directory of Alice's own beside it."""

    site: Site
    mine: Path

    def path(self, name: str) -> Path:
        """A target by its name in TARGETS."""
        return next(iter(sorted(self.site.root.glob(TARGETS[name]))), self.site.root / "none")


#: Everything that root relies on, and what belongs to Bob.
TARGETS = {
    "state": "state",
    "ledger": "state/ledger.db",
    "ledger-wal": "state/ledger.db-wal",
    "ledger-shm": "state/ledger.db-shm",
    "run": "run",
    "environments": "run/env",
    "marks": "run/jobs",
    "locks": "run/locks",
    "a lock": "run/locks/*.lock",
    "his environment": "run/env/8.0",
    "my environment": "run/env/7.0",
    "his mark": "run/jobs/8.0",
    "configuration": "config.toml",
    "hooks": "hooks",
    "prolog": "hooks/prolog",
    "epilog": "hooks/epilog",
    "task_prolog": "hooks/task_prolog",
    "nodes": "sim/dev/nvidia-caps",
    "his GI node": "sim/dev/nvidia-caps/nvidia-cap12",
    "his CI node": "sim/dev/nvidia-caps/nvidia-cap13",
    "his access file": "sim/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access",
}

#: What is there for everybody, or for its user, to read.
READABLE = {
    "run", "environments", "my environment", "configuration", "hooks", "prolog", "epilog",
    "task_prolog", "nodes", "his access file",
}  # fmt: skip


def _open(flags: int) -> Callable[[Path, Path], object]:
    return lambda path, _: os.close(os.open(path, flags | os.O_NONBLOCK))


def _fresh(make: Callable[[Path], object]) -> Callable[[Path, Path], object]:
    """Something new beside the target, or in it if it is a directory."""

    def work(path: Path, mine: Path) -> object:
        del mine
        return make((path if path.is_dir() else path.parent) / "evil")

    return work


def _lock(path: Path, mine: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _access_list(path: Path, mine: Path) -> None:
    entries = ((1, 7, -1), (2, 7, ALICE), (4, 0, -1), (16, 7, -1), (32, 0, -1))
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


def _linked(path: Path, mine: Path) -> None:
    """A name of one's own for it; what cannot be linked at all is no gain either."""
    os.link(path, mine / "linked")


ACTIONS: dict[str, Callable[[Path, Path], object]] = {
    "read": _open(os.O_RDONLY),
    "append": _open(os.O_WRONLY | os.O_APPEND),
    "truncate": lambda path, _: os.truncate(path, 0),
    "lock": _lock,
    "list": lambda path, _: list(path.iterdir()),
    "remove": lambda path, _: path.rmdir() if path.is_dir() else path.unlink(),
    "move away": lambda path, mine: path.rename(mine / "moved"),
    "replace": lambda path, mine: (mine / "evil").replace(path),
    "link away": _linked,
    "make a file": _fresh(lambda path: path.touch(exist_ok=False)),
    "make a directory": _fresh(lambda path: path.mkdir()),
    "make a link": _fresh(lambda path: path.symlink_to("/etc/passwd")),
    "make a FIFO": _fresh(os.mkfifo),
    "chmod": lambda path, _: path.chmod(0o777),
    "chown": lambda path, _: os.chown(path, ALICE, ALICE),
    "access list": _access_list,
    "date": lambda path, _: os.utime(path, (1, 1)),
}

#: Attempts that make no sense: a directory is not locked for us, a file has no entries.
DIRECTORIES = {"state", "run", "environments", "marks", "locks", "hooks", "nodes"}
POINTLESS = {("list", name) for name in TARGETS if name not in DIRECTORIES}
POINTLESS |= {("lock", name) for name in TARGETS if name != "a lock"}
POINTLESS |= {(action, name) for action in ("read", "list") for name in READABLE}
POINTLESS |= {(action, name) for action in ("read", "append", "truncate") for name in DIRECTORIES}
POINTLESS |= {("truncate", "his GI node"), ("truncate", "his CI node")}

ATTEMPTS = [
    (action, name) for name in TARGETS for action in ACTIONS if (action, name) not in POINTLESS
]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    root = Path(tempfile.mkdtemp(prefix="smig-"))
    root.chmod(0o755)
    mine = root / "mine"
    mine.mkdir()
    (mine / "evil").write_text("evil")
    for path in (mine, mine / "evil"):
        os.chown(path, ALICE, ALICE)
    made = Place(build_site(root / "node", H100, H100), mine)
    made.site.config.chmod(0o644)
    serve(made.site, 7, ALICE)
    serve(made.site, 8, BOB)
    # Keeps the ledger's -wal and -shm there.
    opened = made.site.node()
    assert opened.ledger.all_open()
    yield made
    opened.close()
    remove_tree(root)


def state(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below with owner, mode, size and content's identity."""
    return {
        str(path): (s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_ino, s.st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if (s := path.lstat())
    }


def protected_hardlinks() -> bool:
    return Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"


@pytest.mark.parametrize(("action", "name"), ATTEMPTS)
def test_by_the_file_system(place: Place, action: str, name: str) -> None:
    """Denied, and everything is as it was."""
    before = state(place.site.root)
    path, mine = place.path(name), place.mine
    assert path.exists()
    met = as_user(ALICE, lambda: ACTIONS[action](path, mine))
    linked = mine / "linked"
    if action == "link away" and met is None:
        # fs.protected_hardlinks is 0: a name more, and no right more.
        assert not protected_hardlinks()
        assert not opened_by(ALICE, linked, os.O_RDWR)
        assert as_user(ALICE, lambda: linked.chmod(0o777)) is not None
        linked.unlink()
    else:
        assert isinstance(met, OSError), met
        assert met.errno in DENIED, met
    assert state(place.site.root) == before


@pytest.mark.parametrize("name", sorted(READABLE))
def test_what_may_be_read(place: Place, name: str) -> None:
    """The rest of the table: readable, and the test above shows that it is not more."""
    assert opened_by(ALICE, place.path(name))


@pytest.mark.parametrize("name", ["his environment", "his mark", "ledger", "a lock"])
def test_second_names_where_the_kernel_allows_them(
    make_site: Callable[..., Site], name: str, public_tmp: Path
) -> None:
    """As with fs.protected_hardlinks = 0, here made by root: no right more, no node drained."""
    site = make_site(H100, H100)
    serve(site, 7, ALICE)
    serve(site, 8, BOB)
    mine = public_tmp / "mine"
    mine.mkdir()
    os.chown(mine, ALICE, ALICE)
    (path,) = site.root.glob(TARGETS[name])
    # Below 0700 directories no name can be looked up, so no link can be made.
    reached = as_user(ALICE, path.lstat)
    closed = isinstance(reached, OSError) and reached.errno in DENIED
    assert closed == (name != "his environment")
    if not closed:
        os.link(path, mine / "linked")
        assert not opened_by(ALICE, mine / "linked")
    assert site.epilog(8, SLURM_JOB_UID=str(BOB)).returncode == 0
    assert site.epilog(7).returncode == 0
    assert site.machine.board(0).instances == []


def test_the_node_of_ones_own_outlives_nothing(site: Site, public_tmp: Path) -> None:
    """Alice links her node away, opens it up and ends: the next user of these ids is alone."""
    serve(site, 7, ALICE)
    mine = public_tmp / "mine"
    mine.mkdir()
    os.chown(mine, ALICE, ALICE)
    for node in sorted((site.machine.tree.dev / "nvidia-caps").iterdir()):
        copy = mine / node.name
        assert as_user(ALICE, lambda node=node, copy=copy: os.link(node, copy)) is None  # type: ignore[misc]
        assert as_user(ALICE, lambda copy=copy: copy.chmod(0o666)) is None  # type: ignore[misc]
        assert opened_by(BOB, copy)
    assert site.epilog(7).returncode == 0
    serve(site, 8, BOB)
    for copy in mine.iterdir():
        assert not opened_by(ALICE, copy)
        assert not opened_by(BOB, copy)


# -- by what a job leaves for root -----------------------------------------------------


def leases(site: Site, job: int) -> Path:
    for line in (site.run / f"env/{job}.0").read_text().splitlines():
        if line.startswith("leases "):
            return Path(line.removeprefix("leases "))
    raise AssertionError


def contained(site: Site) -> Site:
    """Its Prologs may mount nothing, as in a container: leases are their user's own then."""
    python, hook = site.root / "python", site.root / "hooks/prolog"
    python.write_text(
        f'#!/bin/sh\nexec setpriv --bounding-set=-sys_admin -- {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    hook.write_text(re.sub("^python=.*$", f"python={python}", hook.read_text(), flags=re.MULTILINE))
    # A helper would have rights of its own.
    (site.run / "warm").unlink(missing_ok=True)
    return site


@pytest.mark.parametrize(
    "kind", ["link to his", "link to root's", "fifo", "socket", "file", "deep"]
)
def test_something_else_for_leases(
    make_site: Callable[..., Site], kind: str, public_tmp: Path
) -> None:
    """The Epilog removes it with Alice's rights, waits for nothing, follows nothing."""
    (public_tmp / "shm").mkdir()
    (public_tmp / "shm").chmod(0o1777)
    site = contained(make_site(H100, config=f'[tasks]\nleases = "{public_tmp}/shm/mig"\n'))
    serve(site, 7, ALICE, stamp=PAIR)
    path = leases(site, 7)
    his, roots = public_tmp / "his", public_tmp / "roots"
    for made, uid in ((his, BOB), (roots, 0)):
        made.mkdir()
        (made / "precious").touch()
        os.chown(made, uid, uid)
        os.chown(made / "precious", uid, uid)

    def plant() -> None:
        import shutil
        import socket

        # The directory that the Prolog made is his.
        shutil.rmtree(path)
        if kind.startswith("link"):
            path.symlink_to(his if kind == "link to his" else roots)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        elif kind == "file":
            path.touch()
        else:
            path.mkdir()
            (path / "link").symlink_to(roots)
            (path / "shut").mkdir()

    assert as_user(ALICE, plant) is None
    began = time.monotonic()
    assert site.epilog(7).returncode == 0
    assert time.monotonic() - began < 10
    until = time.monotonic() + 10
    while os.path.lexists(path) and time.monotonic() < until:
        time.sleep(0.01)
    assert not os.path.lexists(path)
    assert (his / "precious").exists()
    assert (roots / "precious").exists()


def test_leases_of_a_stranger(make_site: Callable[..., Site], public_tmp: Path) -> None:
    """Nobody can be there first, for the Prolog makes it; nor put something else in its place."""
    (public_tmp / "shm").mkdir()
    (public_tmp / "shm").chmod(0o1777)
    site = contained(make_site(H100, config=f'[tasks]\nleases = "{public_tmp}/shm/mig"\n'))
    serve(site, 7, ALICE, stamp=PAIR)
    path = leases(site, 7)
    assert not opened_by(BOB, site.run / "env/7.0")
    for attack in (lambda: path.mkdir(mode=0o777), path.rmdir, lambda: path.rename(f"{path}x")):
        assert isinstance(as_user(BOB, attack), OSError)
    assert not opened_by(BOB, path / "lock")
    assert site.epilog(7).returncode == 0


def test_a_directory_in_the_runs_place(site: Site) -> None:
    """A run directory that is somebody's is refused with its owner, nothing is made in it."""
    site.run.mkdir(exist_ok=True)
    os.chown(site.run, ALICE, ALICE)
    done = site.prolog(7, STAMP)
    assert done.returncode == 10
    assert f"{site.run}" in done.stderr
    assert "is owned by uid 64001" in done.stderr
    assert {path.name for path in site.run.iterdir()} <= {"warm"}
    assert site.machine.board(0).instances == []


@pytest.mark.parametrize("what", ["owner", "mode", "directory", "link"])
@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_a_configuration_of_a_users(site: Site, hook: str, what: str) -> None:
    """His library would be root's code: hooks stop with one line that names the step."""
    evil = site.root / "evil.so"
    evil.write_bytes(b"")
    if what == "owner":
        os.chown(site.config, ALICE, ALICE)
    elif what == "mode":
        site.config.chmod(0o666)
    elif what == "directory":
        site.root.chmod(0o777)
    else:
        site.config.unlink()
        site.config.symlink_to(evil)
        os.chown(site.config, ALICE, ALICE, follow_symlinks=False)
    done = site.hook(hook, job_environ(7, STAMP))
    assert done.returncode == 11
    line = done.stderr.splitlines()[0]
    assert "is owned by uid" in line
    assert "it must" in line or "link must" in line
    assert site.cli("status").returncode == 11


# -- by the environment -------------------------------------------------------------------

#: Code that tells that it ran.
EVIL_PYTHON = "import os; os.close(os.open({marker!r}, os.O_CREAT))\n"


@pytest.fixture
def trap(public_tmp: Path) -> Path:
    """A directory of Alice's with modules, programs and start files that leave a marker."""
    made = public_tmp / "trap"
    made.mkdir()
    marker = str(public_tmp / "marker")
    for name in ("sitecustomize", "usercustomize", "json", "tomllib", "slurm_mig", "sqlite3"):
        (made / f"{name}.py").write_text(EVIL_PYTHON.format(marker=marker))
    for name in ("scontrol", "squeue", "python3", "rm", "sh", "flock", "ldconfig"):
        (made / name).write_text(f"#!/bin/sh\n: >{marker}\n")
        (made / name).chmod(0o755)
    (made / "rc").write_text(f": >{marker}\n")
    (made / "startup.py").write_text(EVIL_PYTHON.format(marker=marker))
    (made / "evil.toml").write_text(f'[driver]\nlibrary = "{made}/evil.so"\n')
    (made / "evil.so").touch()
    for path in (made, *made.iterdir()):
        os.chown(path, ALICE, ALICE)
    return made


#: Variables that would change what a program runs or reads; {trap} is Alice's directory.
INJECTED: list[Mapping[str, str]] = [
    {"PYTHONPATH": "{trap}"},
    {"PYTHONHOME": "{trap}"},
    {"PYTHONSTARTUP": "{trap}/startup.py"},
    {"PYTHONUSERBASE": "{trap}"},
    {"PYTHONINSPECT": "1", "PYTHONSTARTUP": "{trap}/startup.py"},
    {"PYTHONBREAKPOINT": "sitecustomize"},
    {"PYTHONWARNINGS": "error::sitecustomize.X"},
    {"PYTHONPLATLIBDIR": "{trap}"},
    {"PYTHONEXECUTABLE": "{trap}/python3"},
    {"PYTHONPYCACHEPREFIX": "{trap}"},
    {"PYTHONIOENCODING": "nonsense"},
    {"PYTHONHASHSEED": "nonsense"},
    {"PYTHONCOERCECLOCALE": "nonsense", "LC_ALL": "nonsense"},
    {"PYTHONMALLOC": "nonsense"},
    {"PATH": "{trap}"},
    {"PATH": ""},
    {"HOME": "{trap}", "XDG_CONFIG_HOME": "{trap}"},
    {"ENV": "{trap}/rc", "BASH_ENV": "{trap}/rc"},
    {"IFS": "/", "CDPATH": "{trap}"},
    {"PS4": "$(: >{trap}/../marker)", "SHELLOPTS": "xtrace"},
    {"BASH_FUNC_exec%%": "() { : >{trap}/../marker; }"},
    {"SLURM_MIG_CONFIG": "{trap}/evil.toml"},
    {"SLURM_CONF": "{trap}/slurm.conf"},
    {"TMPDIR": "{trap}"},
    {"SQLITE_TMPDIR": "{trap}"},
    {"TZ": "/{trap}/rc"},
    {"LANG": "../../{trap}", "LANGUAGE": "{trap}", "NLSPATH": "{trap}/%N"},
    {"python": "{trap}/python3", "config": "{trap}/evil.toml", "run": "{trap}"},
]


@pytest.mark.parametrize("injected", INJECTED, ids=",".join)
@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_variables_in_a_hooks_environment(
    site: Site, trap: Path, injected: Mapping[str, str], hook: str
) -> None:
    """Even if they came through slurmd: the hook does its work, nothing of Alice's runs."""
    if hook == "epilog":
        serve(site, 7, ALICE)
    extra = {name: value.replace("{trap}", str(trap)) for name, value in injected.items()}
    done = subprocess.run(
        [site.root / "hooks" / hook],
        env=job_environ(7, STAMP) | extra, cwd=trap, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    site.settle()
    assert done.returncode == 0, done.stderr
    assert not (trap.parent / "marker").exists()
    assert [item.phase for item in records(site)] == [
        phases.ACTIVE if hook == "prolog" else phases.RELEASED
    ]


@pytest.mark.parametrize("name", ["prolog", "epilog"])
def test_hooks_run_python_isolated(site: Site, name: str) -> None:
    """-I: no PYTHON* variable, no user site, nothing from the working directory."""
    script = (site.root / "hooks" / name).read_text()
    (call,) = [line for line in script.splitlines() if line.startswith("exec ")]
    assert " -I -c " in call


@pytest.mark.parametrize(
    "forged",
    [
        {"SLURM_JOB_COMMENT": STAMP},
        {"SLURM_JOB_EXTRA": STAMP},
        {"SLURM_SHARDS_ON_NODE": "31", "SLURM_RESTART_COUNT": "0"},
        {"SLURM_JOB_ID": "8"},
        {"SLURM_JOB_ID": "8", "SLURM_STEP_ID": "0"},
        {"SLURM_JOB_ID": "../../env/8"},
        {"SLURM_JOB_ID": "8.0\n"},
        {"SLURM_JOB_ID": "*"},
        {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0/../8.0"},
        {"SLURM_MIG_CONFIG": "/dev/stdin"},
        {"run": "/tmp", "file": "/etc/passwd"},
    ],
    ids=str,
)  # fmt: skip
def test_forged_variables_of_a_task(place: Place, forged: dict[str, str]) -> None:
    """Alice's TaskProlog never tells Bob's slice: his file is closed to her."""
    (his,) = [r.uuids[0] for r in records(place.site) if r.owner.uid == BOB]
    words = {"SLURM_JOB_ID": "7", "SLURM_SHARDS_ON_NODE": "14"} | forged
    told = task(place.site, ALICE, **words)
    assert his not in told.stdout
    assert "root:" not in told.stdout


# -- by words -----------------------------------------------------------------------------

WORDS = [
    "a\nslurm-mig: prolog job=1 carved",
    "a\r\x1b[2K\x1b[1Aroot",
    "\x1b]0;title\x07\x1b[31m",
    "\x9b31m\x85\u2028\u2029x",
    "\u202egnp.exe\u2066",
    "a\tb\vc\fd\be",
    "\udcff\udcfe\udc80",
    "%s%n%d{0}{job}$(id)`id`;|&<>",
    "'\"; DROP TABLE allocation; --",
    "x" * 100_000,
    "-rf /",
    "",
]


def shown(site: Site, *words: str) -> str:
    """What a command prints, as a terminal gets it: no control character in it."""
    done = site.cli(*words)
    assert "Traceback" not in done.stderr
    text = done.stdout + done.stderr
    assert all(char.isprintable() for char in text.replace("\n", "")), words
    return text


@pytest.fixture(scope="module")
def crowded() -> Iterator[Site]:
    """A node where all these jobs come and go."""
    root = Path(tempfile.mkdtemp(prefix="smig-"))
    root.chmod(0o755)
    made = build_site(root / "node", H100)
    slurm_commands(made, squeue=squeue(7, live=[7]))
    yield made
    remove_tree(root)


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
@pytest.mark.parametrize("name", ["COMMENT", "ACCOUNT", "USER", "PARTITION", "WORK_DIR", "NAME"])
def test_words_of_a_job(crowded: Site, name: str, word: str) -> None:
    """One line of printable ASCII in the log, no row more in the picture, a slice that goes."""
    given = {f"SLURM_JOB_{name}": f"{word} {STAMP}" if name == "COMMENT" else word}
    for hook in ("prolog", "epilog"):
        done = crowded.hook(hook, job_environ(7, STAMP) | given)
        assert done.returncode == 0, done.stderr
        (line,) = done.stderr.splitlines()
        assert all(" " <= char <= "~" for char in line)
        assert line.startswith(f"slurm-mig: {hook} job=7 ")
        if hook == "prolog" and name in ("USER", "ACCOUNT"):
            rows = shown(crowded, "status").splitlines()
            assert len([row for row in rows if "job 7" in row]) == 1
            assert not [row for row in rows if row.startswith("slurm-mig: ")]
    assert crowded.machine.board(0).instances == []


def test_words_of_all_those_jobs(crowded: Site) -> None:
    """As many rows as jobs, valid JSON, and a ledger whose events follow from one another."""
    for number, word in enumerate(WORDS):
        crowded.prolog(100 + number, STAMP, SLURM_JOB_USER=word, SLURM_JOB_ACCOUNT=word)
        crowded.epilog(100 + number)
    held = len(records(crowded))
    assert len(shown(crowded, "audit", "--wide").splitlines()) == 2 + held
    assert len(json.loads(crowded.cli("audit", "--json").stdout)) == held
    for words_ in (["verify"], ["reconcile", "--no-slurm"], ["audit", "--check"]):
        shown(crowded, *words_)
    opened = crowded.node()
    assert broken_event(opened.ledger) is None
    assert {item.phase for item in everything(opened.ledger)} == {phases.RELEASED}
    opened.close()


@pytest.mark.parametrize("word", WORDS[:9], ids=range(9))
def test_words_in_a_forged_request(site: Site, word: str) -> None:
    """A stamp that job_submit.lua did not write: refused, its text harmless everywhere."""
    log = slurm_commands(site, squeue=squeue(7, live=[7]))
    done = site.prolog(7, f"slurm-mig=1,{word}")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert all(" " <= char <= "~" for char in line)
    assert "refused" in line
    assert "state=drain" not in log.read_text()
    shown(site, "audit")
    told = task(site, SLURM_SHARDS_ON_NODE="4")
    assert told.returncode == 1
    assert len(told.stdout.splitlines()) == 1


# -- by others' devices ---------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{his}", "{his},{mine}", "{mine},{his}", ",{his},", "{gpu}"])
def test_a_uuid_of_anothers(place: Place, form: str) -> None:
    """In CUDA_VISIBLE_DEVICES: the nodes are closed, whatever is named beside it."""
    mine, his = (
        next(r for r in records(place.site) if r.owner.uid == uid).uuids[0] for uid in (ALICE, BOB)
    )
    visible = form.format(mine=mine, his=his, gpu=place.site.machine.gpus[0]["uuid"])

    def use() -> str:
        try:
            open_devices(place.site.machine, visible)
        except (NotPermitted, UsageFault) as fault:
            return type(fault).__name__
        return "open"

    assert as_user(ALICE, use) == ("UsageFault" if form == "{gpu}" else "NotPermitted")
    visible = mine
    assert as_user(ALICE, use) == "open"


@pytest.mark.parametrize("name", ["gi1/access", "gi1/ci0/access"])
def test_by_nvidia_modprobe(place: Place, name: str) -> None:
    """Whoever calls it: `DeviceFileModify: 0` leaves Bob's nodes as they are."""
    tree = place.site.machine.tree
    before = state(tree.dev)
    tree.modprobe(tree.capabilities / "gpu0/mig" / name)
    assert state(tree.dev) == before


# -- by names of processes --------------------------------------------------------------------

#: A process that takes on a name (prctl(2) PR_SET_NAME by its own comm file), then waits.
RENAMED = "printf '%s' '{name}' >/proc/$$/comm; echo ready; read end"


def renamed(name: str, uid: int) -> subprocess.Popen[str]:
    made = subprocess.Popen(
        ["/bin/sh", "-c", RENAMED.format(name=name)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, user=uid, group=uid, extra_groups=[],
    )  # fmt: skip
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    comm = Path(f"/proc/{made.pid}/comm").read_text().rstrip("\n")
    assert comm == name[:15]
    return made


#: Names that look like a daemon, like a job, or like the fields of /proc/PID/stat behind them.
NAMES = ["slurmstepd", "7.0", "nvidia-smi", "x) Z 1 1 1", ") R 0 0 0 0", "a b) S (c", ")", "((("]


@pytest.mark.parametrize("name", NAMES)
def test_a_holder_is_who_holds(make_site: Callable[..., Site], name: str) -> None:
    """A stuck slice names the driver's pid alone, whoever calls himself like its process."""
    config = "[hooks]\ndefer_teardown = false\ndestroy_timeout = 0.1\n"
    site = make_site(H100, config=f'{config}[stuck]\nremedies = ["kill-job"]\n')
    serve(site, 7, ALICE)
    holder, other = renamed(name, ALICE), renamed(name, BOB)
    try:
        site.machine.hold(holder.pid, records(site)[0].uuids[0])
        done = site.epilog(7)
        assert f"pid {holder.pid}" in done.stderr
        assert str(other.pid) not in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert (holder.poll(), other.poll()) == (None, None)
        shown(site, "status")
        site.machine.let_go(holder.pid)
    finally:
        for process in (holder, other):
            process.communicate("end\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_lease_is_of_who_lives(public_tmp: Path, name: str) -> None:
    """A task that calls itself anything keeps its lease while it lives, and no longer."""
    job = make_job(public_tmp)
    job.publish("1g.10gb", "1g.10gb")
    first, second = renamed(name, ALICE), renamed(name, ALICE)

    def sees(step: int, pid: int) -> str:
        return job.sees(
            SLURM_STEP_ID=str(step), SLURM_TASK_PID=str(pid), SLURM_SHARDS_ON_NODE="4",
            SLURM_STEP_TASKS_PER_NODE="1",
        )  # fmt: skip

    try:
        assert (sees(0, first.pid), sees(1, second.pid)) == ("0", "1")
        first.communicate("end\n")
        assert sees(2, second.pid) == "0"
    finally:
        for process in (first, second):
            if process.poll() is None:
                process.communicate("end\n")


# -- by numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_RESTART_COUNT"])
@pytest.mark.parametrize("value", ["", "x", "7 8", "../7", "٣x", "9" * 30])
def test_numbers_that_are_none(site: Site, name: str, value: str) -> None:
    """Slurm writes these, no user can: were they odd, nothing is made and the node says so."""
    done = site.hook("prolog", job_environ(7, STAMP) | {name: value})
    if name == "SLURM_JOB_RESTART_COUNT" and not value:
        assert done.returncode == 0
        return
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) <= 2
    assert site.machine.board(0).instances == []
    assert not list(site.root.glob("run/env/*"))


def test_the_number_of_attempts() -> None:
    """Said here, so that it is not lost by accident: the table above is as large as it was."""
    assert len(ATTEMPTS) > 250
    assert sys.platform == "linux"
