"""pyslurm when it does not serve, and what it gets wrong; tests/cluster asks the real one."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm.protocol import JobFacts
from slurm_mig.slurm.pyslurm_client import LibraryClient, installed
from tests.kit.cli import parsed, refused
from tests.kit.hooks import NODE, STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site

#: Answers for the Slurm 25.11 that the fake scontrol speaks of; job 7 lives on n1.
SERVES = """
class PyslurmError(Exception): pass
class Config:
    load = staticmethod(lambda: print("a word of its own"))
class slurmctld:
    Config = Config
class utils:
    nodelist_from_range_str = staticmethod(lambda text: text.split(","))
class Node:
    state, reason, configured_gres = "MIXED", None, {}
    hostname, address = "localhost", "127.0.0.1"
    @staticmethod
    def load(name):
        if name != "n1":
            raise PyslurmError(f"Node '{name}' does not exist")
        return Node
class Job:
    id, state, allocated_nodes = 7, "RUNNING", "n0,n1"
    @staticmethod
    def load(number):
        raise PyslurmError("Invalid job id specified")
class Jobs:
    load = staticmethod(lambda: {7: Job})
__version__ = "25.11.2"
"""

#: How it fails, and what is said about it.
FAILURES = {
    "it does not load": (
        "raise ImportError('libslurmfull.so: cannot open shared object file')",
        "exit 1: ImportError: libslurmfull.so: cannot open shared object file",
    ),
    "it ends the process": (
        "import os\nos.write(2, b'error: x\\nfatal: no configuration\\n')\nos._exit(1)",
        "exit 1: fatal: no configuration",
    ),
    "it ends the process in silence": ("import os\nos._exit(0)", "exit 0: no reason given"),
    "it crashes": ("import os\nos.kill(os.getpid(), 11)", "signal 11: no reason given"),
    "it hangs": ("import time\ntime.sleep(60)", "did not end within 1 s"),
    "it is for another Slurm": (
        SERVES.replace("25.11.2", "25.5.0").replace("lambda: print", "lambda: 1 / 0 and print"),
        "version 25.5.0 is not for Slurm 25.11",
    ),
    "slurmctld does not speak to it": (
        SERVES.replace("lambda: print", "lambda: 1 / 0 and print"),
        "exit 1: ZeroDivisionError: division by zero",
    ),
}


@pytest.fixture
def fake(site: Site) -> Callable[[str], dict[str, str]]:
    """Put a pyslurm in reach of the commands, and Slurm's commands of 25.11 beside it."""

    def build(text: str) -> dict[str, str]:
        for name, body in {
            "scontrol": f"case $* in --version) echo slurm 25.11.7 ;; *) echo '{NODE}' ;; esac",
            "squeue": f"echo asked >>{site.root}/asked; echo 7",
        }.items():
            path = site.root / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        path = site.root / "modules/pyslurm.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open('{site.root}/imported', 'w')\n{text}")
        return {"PYTHONPATH": str(path.parent), "PYTHONDONTWRITEBYTECODE": "1"}

    return build


def client_of(site: Site, name: str, timeout: float = 20) -> None:
    text = site.config.read_text().replace("timeout = 5", f"timeout = {timeout}")
    site.config.write_text(text.replace("[slurm]", f'[slurm]\nclient = "{name}"'))


@pytest.mark.root
@pytest.mark.parametrize("failure", FAILURES)
def test_one_line_and_then_the_commands(
    site: Site, fake: Callable[[str], dict[str, str]], failure: str
) -> None:
    """Whatever is wrong with pyslurm, reconcile does its work."""
    text, reason = FAILURES[failure]
    environ = fake(text)
    client_of(site, "auto", 1 if failure == "it hangs" else 20)
    assert site.prolog(7, STAMP).returncode == 0
    done = site.cli("reconcile", **environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("slurm-mig: Slurm's commands are used, not pyslurm: ")
    assert line.endswith(reason)
    assert (site.root / "asked").exists()
    assert len(site.machine.board(0).instances) == 1


@pytest.mark.root
def test_it_serves(site: Site, fake: Callable[[str], dict[str, str]]) -> None:
    """No word about it, no command but scontrol's version; slices of live jobs stay."""
    environ = fake(SERVES) | {"SLURMD_NODENAME": "n1"}
    site.prolog(7, STAMP)
    site.prolog(8, STAMP, gpus="1")
    done = site.cli("reconcile", "--json", **environ)
    assert done.stderr == ""
    assert all(line.startswith("job 8") for line in parsed(done)["done"])
    assert [len(site.machine.board(gpu).instances) for gpu in (0, 1)] == [1, 0]
    assert not (site.root / "asked").exists()


@pytest.mark.root
def test_a_name_that_slurm_does_not_know(site: Site, fake: Callable[[str], dict[str, str]]) -> None:
    """That no job is on it does not mean that none is here: slices stay."""
    site.prolog(7, STAMP)
    environ = fake(SERVES) | {"SLURMD_NODENAME": "otherwise"}
    (left,) = parsed(site.cli("reconcile", "--json", **environ), 24)["left"]
    assert "Node 'otherwise' does not exist" in left
    assert len(site.machine.board(0).instances) == 1


@pytest.mark.root
def test_asked_for_by_name(site: Site, fake: Callable[[str], dict[str, str]]) -> None:
    """Then it is a fault that it does not serve."""
    environ = fake("raise ImportError('odd')")
    client_of(site, "pyslurm")
    refused(site.cli("reconcile", **environ), 20, "pyslurm does not serve: its import ended")
    done = site.cli("status", "--slurm", **environ)
    refused(done, 20, "pyslurm does not serve: its import ended")


@pytest.mark.root
@pytest.mark.skipif(installed(), reason="pyslurm is installed here")
def test_not_there(site: Site, fake: Callable[[str], dict[str, str]]) -> None:
    """`auto` has nothing to say; asked for by name, it is a fault."""
    fake(SERVES)
    assert site.cli("reconcile", SLURMD_NODENAME="n1").stderr == ""
    client_of(site, "pyslurm")
    refused(site.cli("reconcile"), 20, "pyslurm does not serve: it is not installed")


@pytest.mark.root
def test_not_wanted(site: Site, fake: Callable[[str], dict[str, str]]) -> None:
    """Never tried with `commands`."""
    environ = fake(SERVES)
    client_of(site, "commands")
    assert site.cli("reconcile", SLURMD_NODENAME="n1", **environ).stderr == ""
    assert not (site.root / "imported").exists()


@pytest.mark.root
def test_hooks_never_import_it(site: Site, fake: Callable[[str], dict[str, str]]) -> None:
    """Not even to ask about a job without a stamp."""
    environ = fake(SERVES)
    client_of(site, "pyslurm")
    site.prolog(7, "", **environ)
    site.epilog(7, **environ)
    assert (site.root / "asked").exists()
    assert not (site.root / "imported").exists()


@pytest.mark.root
def test_a_pyslurm_in_the_callers_directory_is_not_run(
    site: Site, fake: Callable[[str], dict[str, str]]
) -> None:
    """Root calls commands in directories of users, too."""
    fake(SERVES)
    done = subprocess.run(
        [sys.executable, "-m", "slurm_mig", "reconcile"],
        env={"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"}
        | {"SLURMD_NODENAME": "n1"},
        cwd=site.root / "modules",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (site.root / "imported").exists()


# -- what it gets wrong ---------------------------------------------------------------


class Commands:
    """Notes what the client leaves to Slurm's commands."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **_: self.asked.append((name, *arguments))


class PyslurmError(Exception):
    """Its own base of all faults."""


def job(number: int, **facts: Any) -> SimpleNamespace:
    """A pyslurm.Job, with None where it means nothing."""
    known = {
        "heterogeneous_id": None,
        "heterogeneous_offset": None,
        "array_id": None,
        "array_task_id": None,
        "array_tasks_waiting": None,
        "gres_per_node": {"gres/mig:3g.40gb": 1},
        "is_batch_job": True,
        "is_requeueable": False,
        "state": "RUNNING",
        "allocated_nodes": "n1",
    }
    return SimpleNamespace(id=number, **(known | facts))


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[LibraryClient, Commands]]:
    """A client over a pyslurm whose `Job.load` gives or raises what it is told."""

    def make(loaded: object, *every: SimpleNamespace) -> tuple[LibraryClient, Commands]:
        def answer(*_: object, **__: object) -> object:
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

        single = SimpleNamespace(requeue=answer, notify=answer)
        library = ModuleType("pyslurm")
        library.__dict__.update(
            PyslurmError=PyslurmError,
            Job=type("Job", (), {"load": staticmethod(answer), "__new__": lambda *_: single}),
            Node=SimpleNamespace(
                load=lambda _: SimpleNamespace(
                    state="IDLE", reason=None, configured_gres={}, hostname="n1", address="n1"
                )
            ),
            Jobs=SimpleNamespace(load=lambda: {item.id: item for item in every}),
            utils=SimpleNamespace(nodelist_from_range_str=lambda text: text.split(",")),
        )
        monkeypatch.setitem(sys.modules, "pyslurm", library)
        commands = Commands()
        return LibraryClient(commands), commands  # type: ignore[arg-type]

    return make


def test_task_zero_is_a_task(build: Callable[..., tuple[LibraryClient, Commands]]) -> None:
    """It says None for task 0 and for offset 0."""
    client, _ = build(job(9, array_id=6))
    assert client.job(9) == JobFacts(
        9, "6_0", True, False, "RUNNING", "gres/mig:3g.40gb:1", "n1"
    )  # fmt: skip
    client, _ = build(job(9, heterogeneous_id=9))
    assert client.job(9).reference == "9+0"  # type: ignore[union-attr]


def test_no_gres_may_be_one_without_a_count(
    build: Callable[..., tuple[LibraryClient, Commands]],
) -> None:
    """It drops `gpu:h100`: Slurm's commands know."""
    client, commands = build(job(9, gres_per_node={}))
    assert client.job(9) is None
    assert commands.asked == [("job", 9)]


def test_another_task_of_the_array(build: Callable[..., tuple[LibraryClient, Commands]]) -> None:
    """For an array's id it shows any task, or stumbles over the steps of the others."""
    client, _ = build(job(5, array_id=4))
    assert client.job(4) is None
    client, _ = build(KeyError(4), job(5, array_id=4))
    assert client.job(4) is None
    client, _ = build(KeyError(4), job(5, array_id=4), job(4, array_id=4, array_task_id=2))
    assert client.job(4).reference == "4_2"  # type: ignore[union-attr]


def test_what_is_over_is_unknown(build: Callable[..., tuple[LibraryClient, Commands]]) -> None:
    """As with squeue; a word of which nothing is known here counts as alive."""
    client, _ = build(job(9, state="COMPLETED"))
    assert client.job(9) is None
    assert client.state("9") == ""
    client, _ = build(PyslurmError("Invalid job id specified"))
    assert client.job(9) is None
    client, _ = build(
        None,
        job(1, state="TIMEOUT"),
        job(2, state="NEWWORD"),
        job(3, state="PENDING", allocated_nodes=None),
        job(4, allocated_nodes="n2,n3"),
    )
    assert client.live_jobs("n1") == {2}


def test_its_refusals(build: Callable[..., tuple[LibraryClient, Commands]]) -> None:
    """On the way back already is success; everything else is a fault in Slurm's words."""
    client, _ = build(PyslurmError("Job is pending execution"))
    client.requeue("9")
    client.requeue_hold("9")
    client, _ = build(PyslurmError("Job has already finished"))
    with pytest.raises(SlurmFault, match="pyslurm: Job has already finished"):
        client.requeue("9")
    with pytest.raises(SlurmFault, match="pyslurm: Job has already finished"):
        client.notify("9", "x")
    with pytest.raises(SlurmFault):
        client.state("9")


def test_tasks_are_named_to_the_commands(
    build: Callable[..., tuple[LibraryClient, Commands]],
) -> None:
    """A number alone could be a whole array; and what it reports wrongly is not asked of it."""
    client, commands = build(None)
    client.requeue("4_2")
    client.requeue_hold("4_2")
    client.notify("4_2", "x")
    client.state("4_2")
    client.cancel("9")
    client.comment("9", "x")
    client.allow_requeue("9", allow=True)
    client.start_after("9", 3)
    client.drain("n1", "x")
    client.resume("n1")
    client.accounting(1, 2)
    client.version()
    client.credential_lifetime()
    assert [name for name, *_ in commands.asked] == [
        "requeue", "requeue_hold", "notify", "state", "cancel", "comment", "allow_requeue",
        "start_after", "drain", "resume", "accounting", "version", "credential_lifetime",
    ]  # fmt: skip


def test_later_libraries_load_as_before(
    build: Callable[..., tuple[LibraryClient, Commands]],
) -> None:
    """The import changes how this process loads every later library."""
    before = sys.getdlopenflags()
    build(None)
    assert sys.getdlopenflags() == before
