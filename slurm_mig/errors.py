"""Every fault this project can report, and the exit code that goes with it.

Two trees matter. A `JobFault` is the job's doing (a bad request, no room): the
node stays in service and the hook exits 0. A `NodeFault` is the node's doing (no
driver, a broken ledger): the hook exits non-zero and Slurm drains the node. A
fault never changes tree on its way up, so that a user cannot drain a node and a
broken node cannot look like success.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from slurm_mig.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterator


class SlurmMigError(Exception):
    """Base of all faults; its text is one line: job, GPU, cause, what to do next."""

    exit_code = 1

    def __init__(
        self, cause: str, *, remedy: str = "", job: int | None = None, gpu: str | None = None
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.job = job
        self.gpu = gpu

    def __str__(self) -> str:
        parts = []
        if self.job is not None:
            parts.append(f"job {self.job}")
        if self.gpu is not None:
            parts.append(self.gpu)
        text = ": ".join([*parts, self.cause])
        if self.remedy:
            text += f"; {self.remedy}"
        # A newline in a log line would let a user's text forge a second line, an escape
        # sequence rewrite the first.
        return shown(" ".join(text.split()))


@contextmanager
def about(*, job: int | None = None, gpu: str | None = None) -> Iterator[None]:
    """Fill in, on any fault passing through, which job and GPU it concerns."""
    try:
        yield
    except SlurmMigError as fault:
        if fault.job is None:
            fault.job = job
        if fault.gpu is None:
            fault.gpu = gpu
        raise


class UsageFault(SlurmMigError):
    """The command line asks for something that makes no sense here."""

    exit_code = 2


class JobFault(SlurmMigError):
    """The job is at fault or has to wait; the node is healthy."""

    exit_code = 3


class BadRequest(JobFault):
    """A request, profile name or stamp that cannot be read, with what is allowed."""

    exit_code = 3


class ProfileNotOffered(JobFault):
    """A well-formed profile that this GPU does not offer."""

    exit_code = 4


class Later(JobFault):
    """It passes by itself: the same job may start later."""


class NoRoom(Later):
    """The profile exists, but no placement for it is free now."""

    exit_code = 5


class Unknown(Later):
    """What the job asked for cannot be found out now, so it gets nothing."""

    exit_code = 6


class Crowded(Later):
    """So many hooks are before this one on its GPU that its time is up before its turn."""

    exit_code = 7


class NoSpace(Later):
    """The file system that a job's files are written to is full."""

    exit_code = 8


class NodeFault(SlurmMigError):
    """The node cannot do its work; Slurm must stop sending jobs."""

    exit_code = 10


class ConfigFault(NodeFault):
    """The configuration file is missing, unreadable, or has an unknown or bad key."""

    exit_code = 11


class DriverMissing(NodeFault):
    """No NVIDIA management library, or no driver behind it."""

    exit_code = 12


class DriverFault(NodeFault):
    """The driver refused or failed a call for a reason that is not the job's."""

    exit_code = 13


class GpuLost(DriverFault):
    """A GPU that should be there does not answer or is gone."""

    exit_code = 14


class InstanceBusy(DriverFault):
    """An instance is still in use by some process after the deadline."""

    exit_code = 15


class LedgerFault(NodeFault):
    """The ledger cannot be opened, read or written."""

    exit_code = 16


class LedgerTooNew(LedgerFault):
    """The ledger was written by a newer slurm-mig than this one."""

    exit_code = 17


class LedgerSetBack(LedgerFault):
    """The ledger lacks events that it had in this boot: it was replaced by a copy, or lost."""


class LockTimeout(NodeFault):
    """Another process kept a GPU's lock beyond the deadline."""

    exit_code = 18


class DeviceNodeFault(NodeFault):
    """A capability file or device node cannot be read, made or closed."""

    exit_code = 19


class SlurmFault(NodeFault):
    """Slurm did not answer, or refused a command that it should accept."""

    exit_code = 20


class NotPermitted(NodeFault):
    """The caller lacks the right (root) that the driver or the files demand."""

    exit_code = 21


class SimulatorFault(NodeFault):
    """Simulated hardware cannot be made or read as asked."""

    exit_code = 22


class Held(SlurmMigError):
    """An administrator's command would take a slice away from somebody."""

    exit_code = 23


class Unresolved(SlurmMigError):
    """A reconcile or release ran, and something is still not as it should be."""

    exit_code = 24


class SandboxFault(SlurmMigError):
    """The private Slurm of the demo and the tests does not come up or fails."""

    exit_code = 25


class HookDeadline(NodeFault):
    """A hook's work did not come to its end: past the deadline, or ended from outside."""

    exit_code = 26


class Exposed(SlurmMigError):
    """An unprivileged user reaches what is not theirs."""

    exit_code = 27


class HardwareMismatch(NodeFault):
    """After a boot the GPUs are not what the configuration says."""

    exit_code = 28


class AuditFindings(SlurmMigError):
    """An audit ran, and found what should not be."""

    exit_code = 29


class DoctorFindings(SlurmMigError):
    """The doctor found errors, or with --strict warnings; its output names them."""

    exit_code = 30


class NamesChange(SlurmMigError):
    """A changed fleet would take names away from jobs, limits and prices that have them."""

    exit_code = 31


class Unaccepted(SlurmMigError):
    """An acceptance ran, and the GPU did otherwise than expected or was not tried to the end."""

    exit_code = 32


#: exit code, class, meaning; docs/exit-codes.md is checked against this table.
EXIT_CODES: Final[tuple[tuple[int, type[SlurmMigError], str], ...]] = (
    (2, UsageFault, "command line not understood, or a named thing does not exist"),
    (3, BadRequest, "malformed request, profile name or stamp"),
    (4, ProfileNotOffered, "this GPU does not offer the profile"),
    (5, NoRoom, "no free placement for the profile now"),
    (6, Unknown, "Slurm does not say what the job asked for"),
    (
        7,
        Crowded,
        "too many hooks before this one on its GPU, though each is served in turn",
    ),
    (8, NoSpace, "file system of the run directory or of the leases full"),
    (10, NodeFault, "node fault not listed below"),
    (11, ConfigFault, "configuration file missing, unreadable or wrong"),
    (12, DriverMissing, "NVIDIA management library or driver missing"),
    (13, DriverFault, "driver refused or failed a call"),
    (14, GpuLost, "GPU not found or fallen off the bus"),
    (15, InstanceBusy, "instance still in use after the deadline"),
    (16, LedgerFault, "ledger cannot be opened, read or written"),
    (17, LedgerTooNew, "ledger written by a newer slurm-mig"),
    (18, LockTimeout, "GPU lock held by another process beyond the deadline"),
    (19, DeviceNodeFault, "capability file or device node cannot be read, made or closed"),
    (20, SlurmFault, "Slurm did not answer or refused a command"),
    (21, NotPermitted, "root needed"),
    (22, SimulatorFault, "simulated hardware cannot be made or read as asked"),
    (23, Held, "refused: somebody holds the slice"),
    (24, Unresolved, "done, but something is left over (see the output)"),
    (25, SandboxFault, "the private Slurm of the demo does not work"),
    (26, HookDeadline, "a hook passed its deadline, or Slurm ended it before"),
    (27, Exposed, "an unprivileged user reaches what is not theirs (see the output)"),
    (28, HardwareMismatch, "the GPUs are not what the configuration says (see the output)"),
    (29, AuditFindings, "audit found what should not be (see the output)"),
    (30, DoctorFindings, "the doctor found errors, or warnings with --strict (see the output)"),
    (31, NamesChange, "names that jobs ask by would end or change (see the output)"),
    (32, Unaccepted, "an acceptance found what should not be, or was ended (see the output)"),
)
