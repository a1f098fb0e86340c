"""A private cluster that keeps accounts: MariaDB on a socket, slurmdbd on loopback, no service."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from slurm_mig.fleet import slurm_files
from slurm_mig.sandbox import Cluster
from slurm_mig.sandbox.daemons import free_ports, start_daemon
from tests.kit.cluster import find_daemon

if TYPE_CHECKING:
    from slurm_mig.fleet.fleet import Fleet

PROGRAMS = ("mariadb-install-db", "mariadbd", "slurmdbd", "sacct", "sacctmgr")
MISSING = [name for name in PROGRAMS if find_daemon(name) is None]


class Accounted(Cluster):
    """A cluster with a database of its own; alice is in account physics."""

    def _slurm_conf(self, fleet: Fleet, hooks: object) -> str:
        (self._port,) = free_ports(1)
        text = super()._slurm_conf(fleet, hooks)  # type: ignore[arg-type]
        return (
            f"{text}AccountingStorageType=accounting_storage/slurmdbd\n"
            f"AccountingStorageHost=localhost\nAccountingStoragePort={self._port}\n"
            f"AccountingStoragePass={self.root}/munge/socket\n"
            f"AccountingStorageTRES={','.join(slurm_files.accounting_tres(fleet))}\n"
        )

    def start_slurmctld(self, *options: str) -> None:
        """It does not start without the database's list of TRES."""
        if "slurmdbd" not in self._daemons:
            self._start_mariadb()
            self._start_slurmdbd()
        super().start_slurmctld(*options)

    def _start_mariadb(self) -> None:
        data, socket = self.root / "db", self.root / "db.socket"
        install = str(find_daemon("mariadb-install-db"))
        # Two that install at once take each other's temporary tables away in /tmp.
        spool = self.root / "spool"
        options = ["--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={spool}"]
        subprocess.run([install, *options, "--skip-test-db"], check=True, capture_output=True)
        self._daemons["mariadbd"] = start_daemon(
            [str(find_daemon("mariadbd")), *options, f"--socket={socket}", "--skip-networking"],
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
