"""This node's adapters, made from its configuration, each when first needed.

The one place that turns `library = "..."` into a driver; nothing else knows
whether the hardware is real or simulated.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from slurm_mig.errors import DriverMissing, GpuLost, NodeFault, NotPermitted, SlurmFault, UsageFault

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from slurm_mig.errors import SlurmMigError
    from slurm_mig.gpu.capabilities import Capabilities
    from slurm_mig.gpu.remedies import Stuck
    from slurm_mig.gpu.tables import Tables
    from slurm_mig.mig.driver import Driver, Gpu
    from slurm_mig.mig.plan import Policy
    from slurm_mig.node.fence import Fence
    from slurm_mig.settings import Config
    from slurm_mig.slurm.protocol import JobFacts, NodeFacts, Slurm
    from slurm_mig.state.ledger import Ledger, Retired
    from slurm_mig.state.locks import Locks
    from slurm_mig.state.monitoring import Feeds
    from slurm_mig.state.run_files import RunFiles
    from slurm_mig.state.task_file import TaskSettings
    from slurm_mig.state.waiting import WaitingJobs
    from slurm_mig.transaction.workbench import Workbench

SIMULATOR = "simulator:"

#: Seconds between two looks for the processes of a job that Slurm counts here.
LOOK_AGAIN = 2.0


class Node:
    """Adapters of one node; every import is paid only by who uses it."""

    def __init__(
        self, config: Config, environ: Mapping[str, str] | None = None, *, look: bool = False
    ) -> None:
        """`look`: nothing is made that is not there, neither a ledger nor a directory."""
        self.config = config
        self._look = look
        self.environ = os.environ if environ is None else environ
        #: Where adapters say what they are about to do, for who finds this process hanging.
        self.tell: Callable[[str], None] | None = None
        #: When a hook has to have its locks (time.monotonic()), whoever else comes and goes.
        self.locks_until: float | None = None
        #: Whether this process ends right after its work. Then the ledger is left open: closing
        #: it would force its WAL and the file to the disk for nothing but order.
        self.ends = False
        #: Whether an Epilog has left its teardown to a process that nobody waits for.
        self.put_off = False
        #: What the transaction met that an administrator should know of.
        self.notes: list[str] = []
        self._checked = False
        #: Whether profile tables are taken from what hooks of this boot have read.
        self.keeps_tables = False

    @cached_property
    def name(self) -> str:
        """Slurm's name of this node: as slurmd says, or by the records that hooks made here.

        Else the host's short name, which is a guess: nothing that takes something from a job
        may rest on it alone (census.py).
        """
        from slurm_mig.system.hosts import name

        return self.environ.get("SLURMD_NODENAME") or self._recorded_name() or name()

    def _recorded_name(self) -> str:
        """The one name that open records have; empty where there is none."""
        if not self.config.ledger.exists() or os.geteuid() != 0:
            return ""
        with suppress(NodeFault):
            found = {item.node for item in self.ledger.all_open()}
            return found.pop() if len(found) == 1 else ""
        return ""

    @cached_property
    def _root(self) -> Path:
        """What stands before /proc and /dev: nothing, or a simulated machine."""
        if self.config.library.startswith(SIMULATOR):
            root = Path(self.config.library.removeprefix(SIMULATOR))
            if (root / "machine.json").exists():
                from slurm_mig.simulator.machine import Machine

                # Before anything of it is read, its boot id above all.
                Machine(root).follow_kernel()
            return root
        return Path("/")

    @property
    def root(self) -> Path:
        """What stands before /proc, /dev, /sys and /etc/systemd of this node."""
        return self._root

    @cached_property
    def driver(self) -> Driver:
        """The GPU driver; DriverMissing or SimulatorFault when there is none."""
        library = self._library()
        from slurm_mig.gpu.nvml import NvmlDriver

        return NvmlDriver(library, self.tell, self._tables)

    @cached_property
    def _tables(self) -> Tables | None:
        """Profile tables that hooks keep; who is asked what the driver says asks the driver."""
        if not self.keeps_tables:
            return None
        from slurm_mig.gpu.tables import Tables

        return Tables(self.config.run / "tables", self._boot)

    def forget_tables(self) -> None:
        """A hook has failed or refused: should a kept table be wrong, the next reads its own."""
        if self._tables is not None:
            self._tables.forget()

    def _library(self) -> Any:  # ctypes library or its stand-in
        text = self.config.library
        if text == "nvml":
            return None
        if text.startswith(SIMULATOR):
            from slurm_mig.simulator.library import Library

            return Library(self._root)
        import ctypes

        try:
            _check_library(Path(text))
            return ctypes.CDLL(text)
        except OSError as problem:
            raise DriverMissing(f"load {text}: {problem}") from problem

    @cached_property
    def boot_id(self) -> str:
        """Id of this boot."""
        from slurm_mig.system.boot import boot_id

        return boot_id(self._root / "proc/sys/kernel/random/boot_id")

    @property
    def _boot(self) -> str:
        """The same; empty where it cannot be read: the driver's own fault is told then."""
        with suppress(NodeFault):
            return self.boot_id
        return ""

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; made if there is none yet, or an empty one in memory for a mere look."""
        from slurm_mig.state.ledger import Ledger

        absent = self._look and not self.config.ledger.exists()
        return Ledger(None if absent else self.config.ledger, boot=self._boot)

    @cached_property
    def locks(self) -> Locks:
        """One lock per GPU."""
        from slurm_mig.state.locks import Locks

        root, patience = self.config.run / "locks", self.config.lock_timeout
        return Locks(root, patience, until=self.locks_until, make=not self._look)

    @cached_property
    def capabilities(self) -> Capabilities:
        """Capability files and nodes."""
        from slurm_mig.gpu.capabilities import Capabilities

        return Capabilities(self._root / "proc", self._root / "dev")

    @cached_property
    def files(self) -> RunFiles:
        """Environment files and markers."""
        from slurm_mig.state.run_files import RunFiles

        cluster = self.environ.get("SLURM_CLUSTER_NAME", "")
        return RunFiles(self.config.run, {"boot": self._boot, "cluster": cluster})

    @cached_property
    def waiting(self) -> WaitingJobs:
        """Refused jobs that wait for room here."""
        from slurm_mig.state.waiting import WaitingJobs

        return WaitingJobs(self.config.state / "waiting")

    @cached_property
    def feeds(self) -> Feeds:
        """Files for monitoring tools, where the site wants them."""
        from slurm_mig.state.monitoring import Feeds

        return Feeds(self.config.gpustat, self.config.dcgm)

    @cached_property
    def slurm(self) -> Slurm:
        """Slurm's commands."""
        from slurm_mig.slurm.commands import CommandClient

        return CommandClient(self.config.slurm_bin, self.config.slurm_timeout, self.tell)

    def check_ledger(self) -> None:
        """LedgerSetBack where the ledger is not the one that this boot's marks were made by."""
        from slurm_mig.transaction.evidence import check

        if not self._checked:
            check(self.ledger, self.files)
            self.notes += self.files.odd.values()
            self._checked = True

    def accept_ledger(self, live: frozenset[int], who: str) -> list[str]:
        """Bring a ledger that was set back to what this boot's marks say; a line on each step.

        `live`: jobs that may still be here, as Slurm says.
        """
        from slurm_mig.transaction.evidence import rebuild

        gpus, _ = self.driver.survey()
        with self.locks.hold([gpu.uuid for gpu in gpus], "accept a ledger"):
            done = rebuild(self.ledger, self.files, self.boot_id, live, who)
        self._checked = True
        return done

    def bench(self) -> Workbench:
        """The transaction over these adapters, with a ledger that can be believed."""
        from slurm_mig.transaction.workbench import Workbench

        self.check_ledger()
        bench = Workbench(
            # An Epilog that puts its teardown off needs neither: they cost most of what it loads.
            driver=cast("Driver", _Late(lambda: self.driver)),
            ledger=self.ledger,
            locks=cast("Locks", _Late(lambda: self.locks)),
            capabilities=self.capabilities,
            files=self.files,
            feeds=self.feeds,
            node=self.name,
            boot_id=self.boot_id,
            destroy_timeout=self.config.destroy_timeout,
            tasks=self.tasks,
            stuck=self.stuck,
            tell=self.notes.append,
        )
        bench.policy = self.policy
        return bench

    @cached_property
    def policy(self) -> Policy:
        """Where on a GPU slices go. A table that cannot be read costs no job its start."""
        from slurm_mig.mig.plan import fits

        if self.config.policy == "fits":
            return fits
        from slurm_mig.packing import policies

        try:
            return policies.named(self.config.policy, trust=True)
        except UsageFault as fault:
            self.notes.append(f"[packing] policy: {fault.cause}; slots are chosen by fits")
            return fits

    @cached_property
    def stuck(self) -> Stuck:
        """What the site wants done about slices that stay in use."""
        from slurm_mig.gpu.remedies import Stuck

        return Stuck(
            cast("Driver", _Late(lambda: self.driver)),
            self.capabilities,
            remedies=self.config.stuck_remedies,
            timeout=self.config.stuck_timeout,
        )

    def fence(self) -> Fence:
        """The drain for stuck slices."""
        from slurm_mig.node.fence import Fence

        return Fence(
            self.ledger,
            self.slurm,
            self.locks,
            node=self.name,
            mark=self.config.drain_mark,
            slices=self.config.drain_slices,
            after=self.config.drain_after,
        )

    @property
    def tasks(self) -> TaskSettings:
        """What the site decided about tasks."""
        from slurm_mig.state.task_file import TaskSettings
        from slurm_mig.system.programs import find_program

        config = self.config
        return TaskSettings(
            bind=config.bind,
            containers=config.containers,
            leases=str(config.leases),
            scontrol=str(find_program("scontrol", config.slurm_bin) or ""),
        )

    def live_jobs(self, slurm: Slurm | None = None) -> frozenset[int]:
        """Jobs that have, or may have, something here; all others are over for certain.

        Asked of `slurm`, else of Slurm's commands. SlurmFault when it does not answer, or
        answers for another machine.
        """
        from slurm_mig.slurm import census

        named: dict[int, set[str]] = {job: set() for job in self.files.jobs()}
        clusters = {mark.cluster for mark in self.files.marks() if mark.cluster}
        for record in self.ledger.all_open():
            if record.owner.job_id is not None:
                named.setdefault(record.owner.job_id, set()).add(record.node)
        return census.alive(slurm or self.slurm, self.name, self._is_here, named, clusters)

    def ghosts(self, slurm: Slurm, sleep: Callable[[float], None]) -> list[JobFacts]:
        """Jobs with shards that Slurm counts here, without a process or a record of this boot.

        Looked at twice, for a job's Prolog may be about to begin. Raises SlurmFault.
        """
        from slurm_mig.mig.request import holds_shards
        from slurm_mig.slurm.ghosts import without_process

        def found(jobs: Iterable[int]) -> set[int]:
            open_now = self.ledger.all_open()
            here = {item.owner.job_id for item in open_now if item.boot_id == self.boot_id}
            return without_process(set(jobs) - here)

        suspects = found(slurm.live_jobs(self.name))
        if not suspects:
            return []
        sleep(LOOK_AGAIN)
        suspects = found(suspects & slurm.live_jobs(self.name))
        # By Slurm's commands: pyslurm does not tell which run of a job it is.
        told = [self.slurm.job(job) for job in sorted(suspects)]
        return [facts for facts in told if facts and holds_shards(facts.tres_per_node)]

    def start_again(self, ghost: JobFacts) -> bool:
        """Requeue a job of `ghosts`, where a boot has ended this very run of it; whether it was.

        slurmctld would do it at a registration of the node past BatchStartTimeout, half an hour
        later (facts/slurm.md#failures). Raises SlurmFault.
        """
        from slurm_mig.mig.allocation import LOST

        lost = {
            record.owner.restart
            for record in self.ledger.of_job(ghost.job_id)
            if record.phase == LOST and record.node == self.name and record.boot_id != self.boot_id
        }
        if not (ghost.batch and ghost.requeue and ghost.restarts in lost):
            return False
        self.slurm.requeue(ghost.reference)
        return True

    @staticmethod
    def _is_here(facts: NodeFacts) -> bool:
        from slurm_mig.system.hosts import is_here

        return is_here(facts.host, facts.address)

    def not_elsewhere(self, facts: NodeFacts) -> None:
        """SlurmFault where Slurm says that the node of this name is another machine."""
        if (facts.host or facts.address) and not self._is_here(facts):
            raise SlurmFault(
                f"Slurm's node {facts.name} is another machine (host {facts.host}, address "
                f"{facts.address})",
                remedy="name this one as Slurm does: --node NAME",
            )

    # -- GPUs ----------------------------------------------------------------

    def configured(self, gpu: Gpu) -> bool:
        """Whether the configuration wants a GPU carved for jobs."""
        chosen = self.config.managed
        return gpu.mig_capable and (chosen is None or gpu.minor in chosen)

    @cached_property
    def retired(self) -> Mapping[str, Retired]:
        """GPUs that `slurm-mig retire` took out of management, by UUID."""
        # Without a ledger there are none, and whoever only asks makes no ledger.
        return self.ledger.retired() if self.config.ledger.exists() else {}

    def managed(self, gpu: Gpu) -> bool:
        """Whether a GPU is carved for jobs here."""
        return self.configured(gpu) and gpu.uuid not in self.retired

    def manages(self) -> bool:
        """Whether any GPU is carved for jobs here; the driver is asked only where some retired."""
        if self.config.managed == () or not self.retired:
            return self.config.managed != ()
        return any(self.managed(gpu) for gpu in self.driver.gpus())

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Device minors in the order of this node's gres.conf lines, whatever is there now.

        SLURM_JOB_GPUS counts along that list, not along NVML's; gres.conf names device
        files, so the bridge is the minor (facts/design.md#slurms-side). As configured, else
        as agreed at a boot; else agreed now, and raises while a GPU is known to be missing.
        """
        from slurm_mig.gpu import indexes

        order = self.config.order or indexes.read(self.config.state)
        if order is None:
            gpus = self.driver.gpus()
            self._check_complete(gpus)
            order = tuple(sorted(gpu.minor for gpu in gpus))
            if not self._look:
                self._check_gaps(order)
                indexes.write(self.config.state, order)
        return order

    def _check_gaps(self, order: Sequence[int]) -> None:
        """GpuLost where a minor is missing below others: the GPU that had it may just be gone.

        A boot agrees on a gap, an administrator by `order`; a hook would shift what Slurm counts.
        """
        lost = sorted(set(range(max(order, default=-1))) - set(order))
        if lost:
            raise GpuLost(
                "nothing says which GPU Slurm means by an index: the driver shows no device minor "
                f"{', '.join(map(str, lost))}, but later ones",
                remedy="see dmesg; where that is right, run `slurm-mig reconcile --boot`, or set "
                "`order` in the [gpus] table of the config",
            )

    def _check_complete(self, gpus: Sequence[Gpu]) -> None:
        """GpuLost where the configuration tells of GPUs that the driver does not show."""
        here = {gpu.minor for gpu in gpus}
        lost = [minor for minor in self.config.managed or () if minor not in here]
        names = [gpu.name for gpu in gpus]
        few = [name for name, n in (self.config.expected or {}).items() if names.count(name) < n]
        if lost or few:
            missing = [*(f"device minor {minor}" for minor in lost), *few]
            raise GpuLost(
                f"the driver does not show all GPUs of the [gpus] table: {', '.join(missing)}",
                remedy="a GPU fell off the bus (see dmesg), or correct the configuration",
            )

    def gpus_by_index(self) -> Mapping[int, Gpu]:
        """GPUs that answer, by Slurm's index."""
        gpus = {gpu.minor: gpu for gpu in self.driver.survey()[0]}
        return {index: gpus[minor] for index, minor in enumerate(self.order) if minor in gpus}

    def gpus_at(self, indexes: Sequence[int]) -> list[Gpu]:
        """The GPUs that Slurm means by these indexes; GpuLost for one that is not there.

        What became of the others is nothing to these.
        """
        if not indexes:
            return []
        minors = {self.order[index] for index in indexes if index < len(self.order)}
        there, faults = self.driver.survey(minors)
        if len(there) < len(minors) and not faults:
            # What is there instead is said, too.
            there, faults = self.driver.survey()
        gpus = {gpu.minor: gpu for gpu in there}
        return [self._gpu_at(index, gpus, faults) for index in indexes]

    def _gpu_at(self, index: int, gpus: Mapping[int, Gpu], faults: Sequence[SlurmMigError]) -> Gpu:
        if index >= len(self.order):
            raise GpuLost(
                f"Slurm gave the job GPU index {index}, this node has {len(self.order)} GPUs: "
                f"device minors {', '.join(map(str, self.order))}",
                remedy="gres.conf lists too many, or GPUs came since: run "
                "`slurm-mig reconcile --boot`",
            )
        minor = self.order[index]
        if minor in gpus:
            return gpus[minor]
        if faults:
            raise faults[0]
        raise GpuLost(
            f"no GPU with minor {minor}, which is Slurm's index {index}; there are "
            f"{', '.join(map(str, sorted(gpus))) or 'none'}",
            remedy="it fell off the bus (see dmesg); or compare `order` in the [gpus] table of the "
            f"config, or {self.config.state}/gpus, with gres.conf",
        )

    def close(self) -> None:
        """Close what was opened."""
        if self._checked and not self._look and "ledger" in self.__dict__:
            self.files.note_head(self.ledger.head())
        for name in ("driver",) if self.ends else ("driver", "ledger"):
            adapter = self.__dict__.pop(name, None)
            if adapter is not None:
                adapter.close()


class _Late:
    """Something that is opened when it is first asked for anything."""

    def __init__(self, opened: Callable[[], object]) -> None:
        self._opened = opened

    def __getattr__(self, name: str) -> object:
        return getattr(self._opened(), name)


def _check_library(path: Path) -> None:
    """What root loads runs as root; DriverMissing where somebody else could have written it."""
    from slurm_mig.system.trust import trusted

    if os.geteuid() != 0:
        return
    try:
        with trusted(path):
            pass
    except NodeFault as fault:
        raise DriverMissing(f"load {path}: {fault.cause}", remedy=fault.remedy) from fault


def require_root() -> None:
    """Refuse to change anything without root, before anything is touched."""
    if os.geteuid() != 0:
        raise NotPermitted("this command changes the node", remedy="run it as root")


def minors_not_there(config: Config, here: Collection[int]) -> Iterator[str]:
    """A sentence for each list of the [gpus] table that names device minors which are not there."""
    for key, minors in (("managed", config.managed), ("order", config.order)):
        if missing := [str(minor) for minor in minors or () if minor not in here]:
            there = ", ".join(map(str, sorted(here))) or "none"
            yield f"[gpus] {key} names {', '.join(missing)}; device minors here: {there}"
