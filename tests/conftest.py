"""Fixtures: simulated machines, configured nodes, and hooks installed as Slurm runs them."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.config import load
from slurm_mig.mig import catalog
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.node.node import Node
from slurm_mig.sandbox.prerequisites import place
from slurm_mig.simulator import Machine, create
from slurm_mig.simulator.spec import gpu_spec
from slurm_mig.state import leases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slurm_mig.mig.geometry import Geometry

H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-80GB"
A100_40 = "NVIDIA A100-SXM4-40GB"
A30 = "NVIDIA A30"
RTX = "NVIDIA RTX PRO 6000 Blackwell Server Edition"

KNOWN = [product.key for product in catalog.products() if product.known]


def geometry_of(name: str) -> Geometry:
    return catalog.find(name).geometry()


#: Files whose tests share something dear, or look at every process of the machine.
SHARED = ("test_hostile.py", "test_packages.py")

#: Files whose processes would see each other's devices.
SEEING = ("tests/test_processes.py", "tests/test_stuck.py")

#: What takes a worker longest; begun last, one of these would keep all others waiting.
LONG = (
    "tests/slurm/test_crashes.py",
    "tests/slurm/test_cheats.py",
    "tests/slurm/test_requests.py",
    "tests/test_hostile.py",
    "tests/slurm/test_stuck.py",
    "tests/slurm/test_demo.py",
)


def group(name: str) -> str:
    """The file of a test that one worker runs as a whole, in order; of others the test itself.

    `name` is its node id; every file of tests/slurm has a cluster.
    """
    file = name.partition("::")[0]
    if file in SEEING:
        return SEEING[0]
    return file if "slurm/" in file or file.endswith(SHARED) else name


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give out groups, not tests: `--dist loadgroup` does nothing with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    made = LoadScopeScheduling(config, log)
    made._split_scope = group
    return made


def pytest_configure() -> None:
    """Prologs mount: what tests leave of that goes with this process, and no other sees it.

    Simulated GPUs need device nodes: where /tmp has none, pytest's directories are elsewhere.
    """
    if os.geteuid() == 0:
        library = ctypes.CDLL(None)
        # CLONE_NEWNS; then MS_REC and MS_PRIVATE. Where that is not allowed no Prolog may mount.
        if not library.unshare(0x20000):
            library.mount(None, b"/", None, 0x4000 | 0x40000, None)
    if str(place()) != tempfile.gettempdir():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs root; mix what several workers run."""
    for item in items if os.geteuid() != 0 else ():
        if item.get_closest_marker("root") or item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.skip(reason="needs root: device nodes, changing uid"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = mixed(items)


def mixed(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files that stay together, with an equal share of all other tests behind each.

    Most of those files wait for Slurm: some workers compute meanwhile.
    """
    files: dict[str, list[pytest.Item]] = {}
    single = []
    for item in items:
        name = group(item.nodeid)
        if name == item.nodeid:
            single.append(item)
        else:
            files.setdefault(name, []).append(item)
    if not files:
        return items
    order = sorted(files, key=lambda name: LONG.index(name) if name in LONG else len(LONG))
    return [
        item
        for number, together in enumerate(files[name] for name in order)
        for item in (*together, *single[number :: len(files)])
    ]


def build_machine(root: Path, *gpus: str, **options: object) -> Machine:
    """A simulated machine with one GPU per name."""
    specs = [gpu_spec(catalog.find(name), name, 1) for name in gpus]
    return create(root, specs, **options)  # type: ignore[arg-type]


@dataclass
class Site:
    """One node: its simulated machine, configuration and installed hooks."""

    root: Path
    machine: Machine
    config: Path

    def node(self) -> Node:
        return Node(load(self.config, {}), {"SLURMD_NODENAME": "n1"})

    @property
    def run(self) -> Path:
        return self.root / "run"

    def hook(
        self, name: str, environ: Mapping[str, str], *, closed: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run an installed hook as slurmd does: bare environment, no PATH, no HOME."""

        def close() -> None:
            for descriptor in closed:
                os.close(descriptor)

        return subprocess.run(
            [self.root / "hooks" / name],
            env=dict(environ),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
            preexec_fn=close if closed else None,
        )

    def prolog(
        self, job: int, stamp: str, gpus: str = "0", **more: str
    ) -> subprocess.CompletedProcess[str]:
        return self.hook("prolog", job_environ(job, stamp, gpus) | more)

    def epilog(self, job: int, gpus: str = "0", **more: str) -> subprocess.CompletedProcess[str]:
        return self.hook("epilog", job_environ(job, "", gpus) | more)

    def cli(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "slurm_mig", *arguments],
            env={"SLURM_MIG_CONFIG": str(self.config), "PATH": "/usr/bin:/bin"} | environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )


def cli_as(uid: int, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an unprivileged user, in a fork: he may not reach this Python's files."""
    import tempfile
    from importlib import import_module

    from slurm_mig import cli
    from slurm_mig.cli import VERBS
    from slurm_mig.node import node

    for verb in VERBS:
        cli.cli.get_command(None, verb)  # type: ignore[arg-type]
    assert node
    # What commands import when they need it; below /root the user cannot.
    for name in ("ctypes.util", "pynvml", "slurm_mig.gpu.nvml", "slurm_mig.simulator.library"):
        import_module(name)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.environ.clear()
                os.environ.update({"PATH": "/usr/bin:/bin"} | environ)
                os.chdir("/")
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                sys.argv = ["slurm-mig", *arguments]
                cli.main()
            except SystemExit as leaving:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(leaving.code if isinstance(leaving.code, int) else 0)
            except BaseException:  # noqa: BLE001  # a child must not return into pytest
                os._exit(99)
            sys.stdout.flush()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def as_user(uid: int, work: Callable[[], object]) -> object:
    """What `work` returns, or the OSError that it raises, in a fork with a user's rights."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir("/")
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            try:
                told: object = work()
            except OSError as problem:
                told = OSError(problem.errno, problem.strerror)
            os.write(writing, pickle.dumps(told))
        except BaseException as problem:  # noqa: BLE001  # a child must not return into pytest
            os.write(writing, pickle.dumps(AssertionError(repr(problem))))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pickle.load(pipe)
    os.waitpid(pid, 0)
    if isinstance(told, AssertionError):
        raise told
    return told


def opened_by(uid: int, path: Path, flags: int = os.O_RDONLY) -> bool:
    """Whether a user may open it; a device without a driver says ENXIO only once he may."""
    found = as_user(uid, lambda: os.close(os.open(path, flags | os.O_NONBLOCK)))
    return found is None or (isinstance(found, OSError) and found.errno == errno.ENXIO)


def job_environ(job: int, stamp: str, gpus: str = "0") -> dict[str, str]:
    """What slurmd 22.05 gives a Prolog (facts/slurm.md#base)."""
    environ = {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_UID": "64001",
        "SLURM_JOB_GID": "64001",
        "SLURM_JOB_USER": "alice",
        "SLURM_JOB_RESTART_COUNT": "0",
        "SLURMD_NODENAME": "n1",
        # For a file that is missing Slurm's commands wait a minute.
        "SLURM_CONF": "/dev/null",
        "SLURM_SCRIPT_CONTEXT": "prolog_slurmd",
    }
    if stamp:
        environ["SLURM_JOB_COMMENT"] = stamp
    if gpus:
        environ["SLURM_JOB_GPUS"] = gpus
    return environ


@pytest.fixture
def public_tmp() -> Iterator[Path]:
    """A directory that unprivileged users get through to; pytest's own are closed."""
    path = Path(tempfile.mkdtemp(prefix="smig-", dir=place()))
    path.chmod(0o755)
    yield path
    remove_tree(path)


def remove_tree(root: Path) -> None:
    """Remove a directory in which Prologs may have mounted leases."""
    leases.remove_below(root)
    shutil.rmtree(root)


def build_site(
    root: Path, *gpus: str, config: str = "", mig: bool = True, **options: object
) -> Site:
    """A node in a new directory `root`."""
    root.mkdir(mode=0o755)
    machine = build_machine(root / "sim", *gpus, **options)
    file = root / "config.toml"
    file.write_text(
        f'[driver]\nlibrary = "simulator:{root}/sim"\n'
        f'[paths]\nstate = "{root}/state"\nrun = "{root}/run"\n'
        f'[slurm]\nbin = "{root}/bin"\ntimeout = 5\n{config}'
    )
    install_hooks(root / "hooks", Path(sys.executable), file, root / "run")
    if mig:
        for index in range(len(gpus)):
            with machine.change(index) as board:
                board.set_mode(True, busy=False)
    return Site(root, machine, file)


@pytest.fixture
def make_site(public_tmp: Path) -> Callable[..., Site]:
    """Build nodes: `make_site(H100, A30, config="...", latency_ms={...}, mig=True)`."""
    made: list[Path] = []

    def build(*gpus: str, config: str = "", mig: bool = True, **options: object) -> Site:
        root = public_tmp / f"node{len(made)}"
        made.append(root)
        return build_site(root, *gpus, config=config, mig=mig, **options)

    return build


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """A node with two H100 in MIG mode."""
    return make_site(H100, H100)


@pytest.fixture
def node(site: Site) -> Iterator[Node]:
    """The node of `site`, opened."""
    opened = site.node()
    yield opened
    opened.close()
