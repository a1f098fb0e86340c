"""A private Slurm per test process, and words to talk to it.

Every test starts on an idle cluster and leaves one: no job, no slice, no open
record, no drained node.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import NODES, Site, find_daemon, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.sandbox import Cluster, SandboxNode


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs Slurm's daemons."""
    here = Path(__file__).parent
    missing = [name for name in ("slurmctld", "slurmd", "munged") if find_daemon(name) is None]
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(240))
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"no {', '.join(missing)} here"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes: two H100; an RTX PRO 6000 and an A30."""
    with running(NODES, aliases={"small": "1g.10gb"}, compute_parts=("*",)) as made:
        yield made


@pytest.fixture
def site(cluster: Cluster) -> Iterator[Site]:
    """The cluster, idle before and after."""
    talk = Site(cluster)
    yield talk
    talk.settle()
    for item in cluster.nodes:
        talk.unblock(item.name)
    talk.check_clean()


@pytest.fixture
def build() -> Iterator[Callable[..., Site]]:
    """A cluster of the test's own, with other settings."""
    with ExitStack() as made:

        def start(*nodes: SandboxNode, **options: str) -> Site:
            return Site(made.enter_context(running(nodes or NODES[:1], **options)))

        yield start
