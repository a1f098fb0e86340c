"""A private Slurm per test process, and words to talk to it.

Every test starts on an idle cluster and leaves one: no job, no slice, no open
record, no drained node.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.sandbox import Cluster, SandboxNode, scratch
from tests.kit.cluster import NODES, PREFIX, Site, enable_mig, find_daemon, running
from tests.kit.site import with_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
    made: list[Cluster] = []

    def start(*nodes: SandboxNode, **options: str) -> Site:
        options["config"] = with_hooks(options.get("config", ""))
        made.append(Cluster(scratch(), nodes or NODES[:1], prefix=PREFIX, **options))  # type: ignore[arg-type]
        made[-1].build()
        made[-1].start()
        enable_mig(made[-1])
        return Site(made[-1])

    yield start
    for item in made:
        item.stop()
        item.remove()
