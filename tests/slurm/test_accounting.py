"""Accounting rows from a real slurmdbd over a MariaDB of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from slurm_mig import generator
from slurm_mig.allocation import PLANNED, REFUSED
from slurm_mig.errors import SlurmFault
from slurm_mig.sandbox import Cluster, scratch
from slurm_mig.sandbox.processes import free_ports, start_daemon, stop
from slurm_mig.slurm_commands import CommandClient

from .conftest import NODES, PREFIX, Site, _find, enable_mig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.fleet import Fleet
    from slurm_mig.slurm import AccountingRow

PROGRAMS = ("mariadb-install-db", "mariadbd", "slurmdbd", "sacct", "sacctmgr")
MISSING = [name for name in PROGRAMS if _find(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here")


class Accounted(Cluster):
    """A cluster that keeps accounts: MariaDB on a socket, slurmdbd on loopback, no service."""

    def _slurm_conf(self, fleet: Fleet, hooks: object) -> str:
        (self._port,) = free_ports(1)
        text = super()._slurm_conf(fleet, hooks)  # type: ignore[arg-type]
        return (
            f"{text}AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost=localhost\nAccountingStoragePort={self._port}\n"
            f"AccountingStoragePass={self.root}/munge/socket\n"
            f"AccountingStorageTRES={','.join(generator.accounting_tres(fleet))}\n"
        )

    def start_slurmctld(self, *options: str) -> None:
        """It does not start without the database's list of TRES."""
        if "slurmdbd" not in self._daemons:
            self._start_mariadb()
            self._start_slurmdbd()
        super().start_slurmctld(*options)

    def _start_mariadb(self) -> None:
        data, socket = self.root / "db", self.root / "db.socket"
        install = str(_find("mariadb-install-db"))
        options = ["--no-defaults", "--user=root", f"--datadir={data}"]
        subprocess.run([install, *options, "--skip-test-db"], check=True, capture_output=True)
        self._daemons["mariadbd"] = start_daemon(
            [str(_find("mariadbd")), *options, f"--socket={socket}", "--skip-networking"],
            self.root / "log/mariadbd.out",
            self.environ(),
        )
        self._wait(socket.is_socket, "mariadbd", 60)

    def _start_slurmdbd(self) -> None:
        conf = self.conf / "slurmdbd.conf"
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={self.root}/munge/socket\n"
            f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={self._port}\nSlurmUser=root\n"
            "StorageType=accounting_storage/mysql\nStorageUser=root\nStorageLoc=acct\n"
            f"LogFile={self.root}/log/slurmdbd\nPidFile={self.root}/spool/slurmdbd.pid\n"
        )
        conf.chmod(0o600)
        environ = self.environ() | {"MYSQL_UNIX_PORT": f"{self.root}/db.socket"}
        command = [str(self._find("slurmdbd")), "-D"]
        log = self.root / "log/slurmdbd.out"
        self._daemons["slurmdbd"] = start_daemon(command, log, environ)
        self._wait(
            lambda: self.try_run("sacctmgr", "-n", "list", "cluster").returncode == 0,
            "slurmdbd",
            60,
        )
        self.run("sacctmgr", "-i", "add", "cluster", "sandbox")
        self.run("sacctmgr", "-i", "add", "account", "physics")
        self.run("sacctmgr", "-i", "add", "user", "alice", "account=physics")


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


def reconcile(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    """The command on n1, as root types it."""
    environ = site.cluster.environ() | {
        "SLURM_MIG_CONFIG": str(site.cluster.root / "nodes/n1/config.toml"),
        "SLURMD_NODENAME": "n1",
    }
    command = [sys.executable, "-m", "slurm_mig", "audit", "--reconcile", "--tolerance", "4"]
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
    two = accounted.sbatch("--gres=mig:1g.10gb:2,mig:2g.20gb:1", script="sleep 10")
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
    accounted.until(lambda: not reconciled(accounted), "ledger and accounting to agree")
    assert "accounting agree" in reconcile(accounted).stdout
    assert "clock of n1" in reconcile(accounted).stderr

    node = accounted.cluster.node("n1")
    (held,) = [item for item in node.ledger.history() if item.owner.job_id == two]
    owner = replace(held.owner, job_id=999999)
    false = node.ledger.add(replace(held, owner=owner, phase=PLANNED, ended=None), "test")
    assert sorted(reconciled(accounted)) == [("double-use", 999999), ("unknown-job", 999999)]

    # Without its record the job looks as if it had paid for nothing.
    for number in (held.number, false.number):
        node.ledger._db.execute(f"DELETE FROM instance WHERE allocation = {number}")
        node.ledger._db.execute(f"DELETE FROM allocation WHERE number = {number}")
    node.close()
    assert reconciled(accounted) == [("charged-without-slice", two)]


def phases(site: Site, job: int) -> list[str]:
    return [item.phase for item in site.records() if item.owner.job_id == job]


def test_a_database_that_does_not_answer(accounted: Site, client: CommandClient) -> None:
    """A fault: no rows would say that nobody ran anything."""
    stop(accounted.cluster._daemons.pop("slurmdbd"))
    with pytest.raises(SlurmFault, match="sacct .*: exit 1"):
        client.accounting(time.time() - 60, time.time())
    done = reconcile(accounted)
    assert (done.returncode, done.stdout) == (20, "")
