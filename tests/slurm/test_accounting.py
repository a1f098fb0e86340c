"""Accounting rows from a real slurmdbd over a MariaDB of the test's own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.sandbox import scratch
from slurm_mig.sandbox.processes import stop
from slurm_mig.slurm_commands import CommandClient

from .accounted import MISSING, Accounted
from .conftest import NODES, PREFIX, Site, enable_mig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.slurm import AccountingRow

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here")


@pytest.fixture(scope="module")
def accounted() -> Iterator[Site]:
    """A cluster with a database."""
    made = Accounted(scratch(), NODES[:1], prefix=PREFIX)
    try:
        with made:
            enable_mig(made)
            yield Site(made)
    finally:
        made.remove()


@pytest.fixture
def client(accounted: Site, monkeypatch: pytest.MonkeyPatch) -> CommandClient:
    monkeypatch.setenv("SLURM_CONF", accounted.cluster.environ()["SLURM_CONF"])
    return CommandClient(accounted.cluster._find("scontrol").parent, 20)


def test_a_run_and_what_it_held(accounted: Site, client: CommandClient) -> None:
    """Who, where, when, what; each run of a requeued job for itself."""
    before = time.time()
    job = accounted.sbatch("--gres=mig:1g.10gb+me:1,mig:1g.10gb:2")
    accounted.wait(job, "RUNNING")
    client.requeue(str(job))
    accounted.until(lambda: client.state(str(job)) == "PENDING", "it to wait again")
    client.cancel(str(job))
    rows: list[AccountingRow] = []

    def written() -> bool:
        rows[:] = client.accounting(before - 60, before + 600)
        return [row.state for row in rows] == ["REQUEUED", "CANCELLED"]

    accounted.until(written, "a row for each run")
    assert {row.job_id for row in rows} == {job}
    first = rows[0]
    assert (first.user, first.account, first.nodes) == ("alice", "physics", "n1")
    assert first.start is not None
    assert before - 1 <= first.start <= first.end <= time.time() + 1  # type: ignore[operator]
    mig = {name: count for name, count in first.gres.items() if name.startswith("mig")}
    assert mig == {"mig": 3, "mig:1g.10gb+me": 1, "mig:1g.10gb": 2}
    assert rows[1].start is None or rows[1].gres == {}


def test_a_time_in_which_nothing_ran(client: CommandClient) -> None:
    """No rows, and no fault."""
    assert client.accounting(0, 1e9) == []


def test_a_database_that_does_not_answer(accounted: Site, client: CommandClient) -> None:
    """A fault: no rows would say that nobody ran anything."""
    stop(accounted.cluster._daemons.pop("slurmdbd"))
    with pytest.raises(SlurmFault, match="sacct .*: exit 1"):
        client.accounting(time.time() - 60, time.time())
