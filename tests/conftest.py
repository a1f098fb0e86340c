"""Fixtures: simulated machines, configured nodes, and hooks installed as Slurm runs them."""

from __future__ import annotations

import ctypes
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from slurm_mig.sandbox.prerequisites import place
from slurm_mig.state.ledger import Ledger
from tests.kit.bad_disk import library
from tests.kit.gpus import H100
from tests.kit.ledgers import Clock
from tests.kit.site import Site, build_site, helper, remove_tree
from tests.kit.ways import helped, later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.node.node import Node


# How fast examples come says nothing of ours: where all workers want two cores it failed tests.
settings.register_profile("shared cores", suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared cores")

#: Files whose tests share something dear, or look at every process of the machine.
SHARED = ("test_hostile.py", "test_packages.py")

#: Files whose processes would see each other's devices.
SEEING = ("tests/gpu/test_holder_search.py", "tests/transaction/test_insist.py")

#: What takes a worker longest; begun last, one of these would keep all others waiting.
LONG = (
    "tests/cluster/test_crashes.py",
    "tests/cluster/test_cheats.py",
    "tests/cluster/test_requests.py",
    "tests/whole/test_hostile.py",
    "tests/cluster/test_stuck.py",
    "tests/cluster/test_demo.py",
)


#: Files whose tests run hooks without a site of ours.
HOOKED = (
    "test_node_machine.py",
    "test_crash_points.py",
    "test_hostile.py",
    "test_power_cut.py",
)


def group(name: str) -> str:
    """The file of a test that one worker runs as a whole, in order; of others the test itself.

    `name` is its node id; every file of tests/cluster has a cluster.
    """
    file = name.partition("::")[0]
    if file in SEEING:
        return SEEING[0]
    return file if file.startswith("tests/cluster/") or file.endswith(SHARED) else name


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, what needs root; mix what several workers run."""
    for item in items if os.geteuid() != 0 else ():
        if item.get_closest_marker("root") or item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.skip(reason="needs root: device nodes, changing uid"))
    if later():
        one_way(config, items)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = mixed(items)


def one_way(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs no hooks: that is the same in every way. Skip what has its own way."""
    same = [item for item in items if not has_hooks(item)]
    config.hook.pytest_deselected(items=same)
    items[:] = [item for item in items if has_hooks(item)]
    for item in items:
        for marker in item.iter_markers("alone"):
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


def has_hooks(item: pytest.Item) -> bool:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return (
        "make_site" in fixtures
        or item.nodeid.startswith("tests/cluster/")
        or item.path.name in HOOKED
    )


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


@pytest.fixture
def public_tmp() -> Iterator[Path]:
    """A directory that unprivileged users get through to; pytest's own are closed."""
    path = Path(tempfile.mkdtemp(prefix="smig-", dir=place()))
    path.chmod(0o755)
    yield path
    remove_tree(path)


@pytest.fixture
def make_site(public_tmp: Path) -> Iterator[Callable[..., Site]]:
    """Build nodes: `make_site(H100, A30, config="...", latency_ms={...}, mig=True)`.

    Their hooks run in the way of this run of the tests (tests/kit/ways.py).
    """
    made: list[Path] = []
    ends = ExitStack()

    def build(*gpus: str, config: str = "", mig: bool = True, **options: object) -> Site:
        root = public_tmp / f"node{len(made)}"
        made.append(root)
        site = build_site(root, *gpus, config=config, mig=mig, **options)
        ends.callback(site.close)
        if helped():
            # What a test gives its hooks to be loaded, their helper must have loaded before.
            preload = " ".join(map(library, ("bad_disk", "bad_clock")))
            ends.enter_context(helper(site, LD_PRELOAD=preload))
        return site

    with ends:
        yield build


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


@pytest.fixture
def clock() -> Clock:
    """A clock that a test sets."""
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """A new ledger by that clock."""
    opened = Ledger(tmp_path / "state/ledger.db", clock)
    yield opened
    opened.close()
