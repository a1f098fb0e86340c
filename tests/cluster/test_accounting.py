"""Accounting rows from a real slurmdbd over a MariaDB of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig.audit.accounting import Question, compare
from slurm_mig.errors import SlurmFault
from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.billing import billing, gpu_types
from slurm_mig.mig.allocation import ACTIVE, PLANNED, REFUSED
from slurm_mig.sandbox import scratch
from slurm_mig.sandbox.daemons import stop
from slurm_mig.slurm.commands import CommandClient
from tests.cluster.accounted import MISSING, Accounted
from tests.kit.cluster import NODES, PREFIX, Site, enable_mig
from tests.kit.ledgers import everything

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.fleet.fleet import Fleet
    from slurm_mig.slurm.protocol import AccountingRow

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here")


class Billed(Accounted):
    """With the prices that the generator writes."""

    def _slurm_conf(self, fleet: Fleet, hooks: object) -> str:
        text = super()._slurm_conf(fleet, hooks)
        return text.replace("PartitionName=all ", f"PartitionName=all {_weights(fleet)} ")


def _weights(fleet: Fleet) -> str:
    """The line that the generator writes for partitions."""
    prices = billing(fleet, dict.fromkeys(gpu_types(fleet), 700.0), "compute")
    text = slurm_files.slurm_conf(fleet, "/x", {"": prices})
    (line,) = (line for line in text.splitlines() if "TRESBillingWeights=" in line)
    return line.removeprefix("#")


@pytest.fixture(scope="module")
def accounted() -> Iterator[Site]:
    """A cluster with a database."""
    made = Billed(scratch(), NODES[:1], prefix=PREFIX, config="[feed]\nadmin_comment = true\n")
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
    assert (first.user, first.nodes) == ("alice", "n1")
    assert first.start is not None
    assert before - 1 <= first.start <= first.end <= time.time() + 1  # type: ignore[operator]
    mig = {name: count for name, count in first.gres.items() if name.startswith("mig")}
    assert mig == {"mig": 3, "mig:1g.10gb+me": 1, "mig:1g.10gb": 2}
    assert rows[1].start is None or rows[1].gres == {}


def test_slices_are_billed_by_their_share(accounted: Site) -> None:
    """Slurm reads the weights that the generator writes, dots and plus signs included."""
    found = {}
    for gres in ("mig:1g.10gb:2", "mig:3g.40gb:1", "mig:1g.10gb+me:1", "gpu:1", "mig:3g.40gb:3"):
        job = accounted.sbatch(f"--gres={gres}")
        accounted.wait(job, "RUNNING")
        words = accounted.show(job, "(?:Alloc|)TRES").split(",")
        found[gres] = next(word for word in words if word.startswith("billing="))
        # The last one takes all GPUs of the node.
        accounted.settle()
    assert found == {
        "mig:1g.10gb:2": "billing=200",
        "mig:3g.40gb:1": "billing=300",
        "mig:1g.10gb+me:1": "billing=100",
        "gpu:1": "billing=700",
        # Two whole GPUs, and the slices on them: docs/jobs.md says how a site has one of both.
        "mig:3g.40gb:3": "billing=2300",
    }


def test_slices_on_several_gpus_stand_in_the_row(accounted: Site, client: CommandClient) -> None:
    """As the GPUs that nobody else could use, and as the slices; the ledger agrees."""
    before = time.time()
    job = accounted.sbatch("--gres=mig:3g.40gb:3", script="true")
    accounted.wait(job, "COMPLETED")
    rows: list[AccountingRow] = []

    def written() -> bool:
        found = client.accounting(before - 60, before + 600)
        rows[:] = [row for row in found if row.job_id == job and row.end is not None]
        return bool(rows)

    accounted.until(written, "its row")
    gres = rows[0].gres
    assert (gres["gpu"], gres["gpu:h100"], gres["mig"], gres["mig:3g.40gb"]) == (2, 2, 3, 3)
    assert not gres.get("shard")
    question = Question(("n1",), before - 1, time.time(), 60)
    records = [record for record in accounted.records() if record.owner.job_id == job]
    assert len(records) == 2
    assert compare(records, rows, question) == []


def test_sacct_alone_tells_the_uuid(accounted: Site, client: CommandClient) -> None:
    """In the job's AdminComment, for good; what an administrator wrote there stays."""
    job = accounted.sbatch("--gres=mig:3g.40gb:1", "--hold")
    text = "ticket  12\n" + 5000 * "x"
    accounted.run("scontrol", "update", f"jobid={job}", f"admincomment={text}")
    accounted.run("scontrol", "release", str(job))
    accounted.until(lambda: [r for r in accounted.records() if r.owner.job_id == job], "a record")
    accounted.until(lambda: accounted.record(job).phase == ACTIVE, "the slice")
    (uuid,) = accounted.record(job).uuids
    accounted.until(lambda: uuid in client.admin_comment(str(job)), "the comment")
    accounted.settle()

    def told() -> str:
        return accounted.run("sacct", "-n", "-P", "-X", "-j", str(job), "-o", "AdminComment")

    accounted.until(lambda: told().strip(), "the row")
    assert told().strip() == f"{text} slurm-mig:n1={uuid}"


def test_a_time_in_which_nothing_ran(client: CommandClient) -> None:
    """No rows, and no fault."""
    assert client.accounting(0, 1e9) == []


def reconcile(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """The command on n1, as root types it."""
    environ = site.cluster.environ() | {
        "SLURM_MIG_CONFIG": str(site.cluster.root / "nodes/n1/config.toml"),
        "SLURMD_NODENAME": "n1",
    }
    command = [sys.executable, "-m", "slurm_mig", "audit", "--reconcile", "--tolerance", "15"]
    return subprocess.run(
        [*command, *words], env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def reconciled(site: Site) -> list[tuple[str, int]]:
    """Kind and job of each finding; exit code 29 if and only if there is one."""
    done = reconcile(site, "--json")
    found = [(item["kind"], item["job_id"]) for item in json.loads(done.stdout)["findings"]]
    assert done.returncode == (29 if found else 0), done.stderr
    return found


def test_the_ledger_against_the_accounting(accounted: Site, client: CommandClient) -> None:
    """Real jobs agree: ended, refused and put back, cancelled, whole; edits do not."""
    two = accounted.sbatch("--gres=mig:1g.10gb:2,mig:2g.20gb:1", script="sleep 18")
    whole = accounted.sbatch("--gres=gpu:1", script="sleep 2")
    accounted.wait(whole, "COMPLETED")
    accounted.wait(two, "COMPLETED")
    for gpu in (0, 1):
        accounted.block(gpu)
    refused = accounted.sbatch("--gres=mig:3g.40gb:1")
    accounted.until(lambda: REFUSED in phases(accounted, refused), "a refusal")
    client.cancel(str(refused))
    accounted.unblock()
    accounted.settle()
    until = time.monotonic() + 60
    while reconciled(accounted) and time.monotonic() < until:
        time.sleep(0.5)
    done = reconcile(accounted)
    assert "accounting agree" in done.stdout, done.stdout
    assert "clock of n1" in done.stderr

    node = accounted.cluster.node("n1")
    (held,) = [item for item in everything(node.ledger) if item.owner.job_id == two]
    owner = replace(held.owner, job_id=999999)
    false = node.ledger.add(replace(held, owner=owner, phase=PLANNED, ended=None), "test")
    assert sorted(reconciled(accounted)) == [("double-use", 999999), ("unknown-job", 999999)]

    # Without its record the job looks as if it had paid for nothing.
    for number in (held.number, false.number):
        node.ledger._db.execute(f"DELETE FROM instance WHERE allocation = {number}")
        node.ledger._db.execute(f"DELETE FROM allocation WHERE number = {number}")
    node.close()
    assert reconciled(accounted) == [("charged-without-slice", two)]


def test_a_users_account_forges_no_rows(accounted: Site, client: CommandClient) -> None:
    """Nor does it end the comparison for everybody: where nothing is enforced it is any text."""
    forged = "a|b\n1|root|n1|COMPLETED|1700000000|1700000060|gres/mig:7g.80gb=1\n2|x"
    before = time.time()
    words = [f"--{name}={forged}" for name in ("account", "comment", "job-name", "wckey")]
    job = accounted.sbatch("--gres=mig:1g.10gb:1", *words, script="true")
    accounted.settle()
    rows: list[AccountingRow] = []

    def written() -> bool:
        rows[:] = client.accounting(before - 1, before + 600)
        return [row.end is not None for row in rows if row.job_id == job] == [True]

    accounted.until(written, "the row")
    assert {row.user for row in rows} == {"alice"}
    done = reconcile(accounted, "--since", f"{before:.0f}")
    assert "Traceback" not in done.stderr
    accounted.until(lambda: not [item for item in reconciled(accounted) if item[1] == job], "it")


def phases(site: Site, job: int) -> list[str]:
    return [item.phase for item in site.records() if item.owner.job_id == job]


def test_a_database_that_does_not_answer(accounted: Site, client: CommandClient) -> None:
    """A fault: no rows would say that nobody ran anything."""
    stop(accounted.cluster._daemons.pop("slurmdbd"))
    with pytest.raises(SlurmFault, match="sacct .*: exit 1"):
        client.accounting(time.time() - 60, time.time())
    done = reconcile(accounted)
    assert (done.returncode, done.stdout) == (20, "")
