"""A node's workbench on a simulated machine, in the words of the transaction's tests."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slurm_mig.gpu.capabilities import Capabilities
from slurm_mig.gpu.nvml import NvmlDriver
from slurm_mig.gpu.remedies import Stuck
from slurm_mig.mig.allocation import Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.simulator.faults import Rule
from slurm_mig.simulator.library import Library
from slurm_mig.state.ledger import Ledger
from slurm_mig.state.locks import Locks
from slurm_mig.state.monitoring import Feeds
from slurm_mig.state.run_files import RunFiles
from slurm_mig.state.task_file import TaskSettings
from slurm_mig.system.boot import boot_id
from slurm_mig.transaction import carve, release
from slurm_mig.transaction.workbench import Workbench
from tests.kit.ledgers import everything
from tests.kit.site import build_machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_mig.mig.driver import Gpu
    from slurm_mig.simulator import Machine

ALICE = Owner(7, uid=64001, gid=64001, user="alice")
BOB = Owner(8, uid=64002, gid=64002, user="bob")
ROOT = Owner(None, user="root")


def ask(*names: str) -> Request:
    """`ask("1g.10gb", "3g.40gb")`."""
    return Request(tuple(Item(Profile.parse(name)) for name in names))


class World:
    """One simulated node with everything the transaction works on."""

    def __init__(self, root: Path, *gpus: str) -> None:
        self.root = root
        self.machine: Machine = build_machine(root / "sim", *gpus)
        for index in range(len(gpus)):
            with self.machine.change(index) as board:
                board.set_mode(True, busy=False)
        self.open()

    def open(self) -> None:
        """What a hook does at its start."""
        self.driver = NvmlDriver(Library(self.machine.root))
        self.ledger = Ledger(self.root / "state/ledger.db")
        capabilities = Capabilities(self.machine.tree.proc, self.machine.tree.dev)
        self.bench = Workbench(
            driver=self.driver,
            ledger=self.ledger,
            locks=Locks(self.root / "run/locks", 10),
            capabilities=capabilities,
            files=RunFiles(self.root / "run"),
            feeds=Feeds(),
            stuck=Stuck(self.driver, capabilities),
            node="n1",
            boot_id=boot_id(self.machine.tree.boot_id_file),
            destroy_timeout=0.2,
            # Else beside what the tests were started from.
            tasks=TaskSettings(leases=str(self.root / "leases")),
        )

    def close(self) -> None:
        """What a hook does at its end."""
        self.driver.close()
        self.ledger.close()

    def reopen(self) -> None:
        """The next hook."""
        self.close()
        self.open()

    @contextmanager
    def used(self, index: int) -> Iterator[None]:
        """This very process has the GPU open."""
        self.machine.hold(os.getpid(), self.gpu(index).uuid)
        try:
            yield
        finally:
            self.machine.let_go(os.getpid())

    def gpu(self, index: int = 0) -> Gpu:
        return self.driver.gpus()[index]

    def made(self, index: int = 0) -> list[str]:
        """The hardware's own truth."""
        board = self.machine.board(index)
        return sorted(f"{board.row(i.profile_id).name}@{i.start}" for i in board.instances)

    def strange(self, index: int = 0, start: int = 0, profile_id: int = 19) -> None:
        """An instance that nobody of us made."""
        with self.machine.change(index) as board:
            row = board.row(profile_id)
            board.create_compute(
                board.create(profile_id, Placement(start, row.size), busy=False), 0
            )

    def phases(self) -> list[str]:
        return [record.phase for record in everything(self.ledger)]

    def killed(self, call: str, effect: str, work: str) -> None:
        """Run a piece of work in a process that is killed at an NVML call."""
        self.close()
        pid = os.fork()
        if pid == 0:
            try:
                self.open()
                self.machine.faults.set([Rule(call, effect)])
                if work == "allocate":
                    carve.allocate(self.bench, ALICE, ask("3g.40gb"), self.gpu())
                else:
                    release.release(self.bench, self.ledger.open_of_job(7)[0], "x")
            finally:
                os._exit(99)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.machine.faults.set([])
        self.open()
        assert status == -9
