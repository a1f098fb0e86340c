"""Every key of the configuration once: its type, default, limits and meaning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.values import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


NO_REQUEUE_POLICIES: Final = ("requeue", "cancel")
WHOLE_POLICIES: Final = ("auto", "mig-off", "full-profile", "reject")
BINDINGS: Final = ("task", "none")
SLURM_CLIENTS: Final = ("auto", "commands", "pyslurm")
POLICIES: Final = ("fits", "first-fit", "last-fit", "best-fit", "driver", "mfi")
#: What stands before the file of a learned table.
LEARNED: Final = "optimal:"


@dataclass(frozen=True, slots=True)
class Config:
    """Effective settings. Times are seconds; `source` is the file they come from."""

    library: str = "nvml"
    managed: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    expected: Mapping[str, int] | None = None
    state: Path = Path("/var/lib/slurm-mig")
    run: Path = Path("/run/slurm-mig")
    lock_timeout: float = 30.0
    destroy_timeout: float = 10.0
    deadline: float = 300.0
    defer_teardown: bool = True
    slurm_bin: Path | None = None
    slurm_timeout: float = 20.0
    slurm_client: str = "auto"
    no_requeue: str = "requeue"
    max_requeues: int = 20
    retry_delay: float = 120.0
    retry_delay_max: float = 1800.0
    ahead: int = 8
    hold_back: float | None = None
    whole_policy: str = "auto"
    whole_models: Mapping[str, str] = field(default_factory=dict)
    whole_reset: bool = False
    bind: str = "task"
    containers: bool = False
    leases: Path = Path("/dev/shm/slurm-mig")  # noqa: S108  # a user's own name is put behind it
    stuck_remedies: tuple[str, ...] = ("kill-job", "kill-user")
    stuck_timeout: float = 10.0
    drain_slices: int = 0
    drain_after: float = 300.0
    gpustat: Path | None = None
    dcgm: Path | None = None
    admin_comment: bool = False
    archive_directory: Path | None = None
    source: Path | None = None
    descriptions: Path = Path("/etc/slurm-mig/gpus.d")
    policy: str = "fits"

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.state / "ledger.db"

    @property
    def longest_hook(self) -> float:
        """Seconds after which a hook has ended, whatever hangs: PrologEpilogTimeout is above it.

        The deadline, then a moment to kill what hangs and at most one Slurm command: the drain.
        """
        return self.deadline + self.slurm_timeout + 2

    @property
    def queue_limit(self) -> float:
        """Seconds after a hook's start in which it may still begin its work on a GPU.

        What is left of its deadline then is enough for the work, and for the five commands by
        which a job is refused.
        """
        work = self.destroy_timeout + self.stuck_timeout + 5 * self.slurm_timeout
        return max(self.lock_timeout, self.deadline - work)

    @property
    def archives(self) -> Path:
        """Directory of what `slurm-mig archive` moved out of the ledger."""
        return self.archive_directory or self.state / "archive"

    @property
    def warm(self) -> Path:
        """Where a helper that has everything loaded is asked, if there is one."""
        return self.run / "warm"

    @property
    def drain_mark(self) -> Path:
        """The reason with which the node was drained for stuck slices; there while it is."""
        return self.state / "drained"

    def whole_policy_of(self, model: str) -> str:
        """What a job with a whole GPU gets on a GPU of that NVML name."""
        return self.whole_models.get(model, self.whole_policy)


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file: `[table] key`, the field it sets, how to read it, its text."""

    table: str
    key: str
    field: str
    read: Callable[[Any], Any]
    allowed: str
    text: str
    #: What the sample shows for a key whose default is "not set".
    unset: str = '"all"'


def _text(value: Any) -> str:  # whatever TOML holds
    # A newline or NUL would tear a hook script or fail in the kernel, far from its cause.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError
    return value


def _library(value: Any) -> str:
    text = _text(value)
    if text != "nvml" and not text.startswith(("simulator:/", "/")):
        raise ValueError
    return text


def _path(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 86400:
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        raise ValueError
    return value


def _few(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 16:
        raise ValueError
    return value


def _minors(value: Any) -> tuple[int, ...] | None:
    if value == "all":
        return None
    if not isinstance(value, list) or not value:
        raise ValueError
    if not all(type(item) is int and 0 <= item < 256 for item in value):
        raise ValueError
    if len(set(value)) != len(value):
        raise ValueError
    return tuple(value)


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not value:
        raise ValueError
    for name, count in value.items():
        _text(name)
        if type(count) is not int or not 1 <= count < 256:
            raise ValueError
    return dict(value)


def _managed(value: Any) -> tuple[int, ...] | None:
    return () if value == "none" else _minors(value)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return read


def _policy(value: Any) -> str:
    text = _text(value)
    if text not in POLICIES and not text.startswith(f"{LEARNED}/"):
        raise ValueError
    return text


def _whole_models(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or any(item not in WHOLE_POLICIES for item in value.values()):
        raise ValueError
    return dict(value)


def _remedies(value: Any) -> tuple[str, ...]:
    """The list without `ignore`, which stands alone and means nothing is done."""
    if value == ["ignore"]:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError
    good = all(item in ("kill-job", "kill-user") or re.fullmatch(_RESTART, item) for item in value)
    if not good or len(set(value)) != len(value):
        raise ValueError
    return tuple(value)


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004  # every reader says so by ValueError
    return value


def _words(allowed: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in allowed)


#: A service by the characters that systemd allows in its name (systemd.unit(5)). Not slurmd: a
#: hook is a child of it, and would end itself half-way.
_RESTART: Final = r"restart:(?!slurmd(?:@|\.))[A-Za-z0-9_][A-Za-z0-9:_.\\@-]*\.service"
_A_PATH: Final = "an absolute path without control characters"
_A_TIME: Final = "seconds, more than 0, at most 86400"
SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "driver",
        "library",
        "library",
        _library,
        '"nvml", "simulator:/DIR" or the absolute path of a libnvidia-ml.so.1',
        "Where the NVIDIA management library comes from.",
    ),
    Setting(
        "gpus",
        "managed",
        "managed",
        _managed,
        '"all", "none" or a list of device minors',
        "GPUs that are carved for jobs, by the N of /dev/nvidiaN. Others are left alone.",
    ),
    Setting(
        "gpus",
        "order",
        "order",
        _minors,
        '"all" or a list of device minors',
        "Device minors in the order of this node's lines in gres.conf, where that order is not "
        "ascending: SLURM_JOB_GPUS is an index into it.",
    ),
    Setting(
        "gpus",
        "expected",
        "expected",
        _counts,
        'a table of NVML names and counts from 1 to 255, { "NVIDIA H100 80GB HBM3" = 8 }',
        "GPUs that this node has; `reconcile --boot` refuses to go on with others. Names as "
        "`nvidia-smi -L` prints them; not compared if not set.",
        '{ "NVIDIA H100 80GB HBM3" = 8 }',
    ),
    Setting(
        "paths", "state", "state", _path, _A_PATH, "Directory of the ledger; survives reboots."
    ),
    Setting(
        "paths",
        "archive",
        "archive_directory",
        _path,
        _A_PATH,
        "Directory of what `slurm-mig archive` moves out of the ledger, where `slurm-mig audit` "
        "finds it. Unset: `archive` below the directory of the ledger.",
        '"/var/lib/slurm-mig/archive"',
    ),
    Setting("paths", "run", "run", _path, _A_PATH, "Directory of locks and environment files."),
    Setting(
        "paths",
        "gpus",
        "descriptions",
        _path,
        _A_PATH,
        "Directory of GPU descriptions (`slurm-mig gpus --describe`), for models that the "
        "catalogue does not have; no hook reads it.",
    ),
    Setting(
        "hooks",
        "lock_timeout",
        "lock_timeout",
        _seconds,
        _A_TIME,
        "Longest wait for one and the same hook that works on the GPU. As long as hooks come and "
        "go there, each in its turn, a hook waits until its own deadline leaves just enough time "
        "for its work.",
    ),
    Setting(
        "hooks",
        "destroy_timeout",
        "destroy_timeout",
        _seconds,
        _A_TIME,
        "Longest time to retry the destruction of an instance that is in use.",
    ),
    Setting(
        "hooks",
        "deadline",
        "deadline",
        _seconds,
        f"{_A_TIME}, and more than lock_timeout + destroy_timeout + [stuck] timeout + "
        "[slurm] timeout",
        "A hook that is not done by then, whatever it hangs in, is ended and drains the node. "
        "PrologEpilogTimeout has to be above this + [slurm] timeout + 2 s.",
    ),
    Setting(
        "hooks",
        "defer_teardown",
        "defer_teardown",
        _yes,
        "true or false",
        "Whether an Epilog closes what its job had and ends, while another process takes it down. "
        "Slurm gives a node no job while an Epilog runs there; a job that comes to the place "
        "before it is free waits for it in its Prolog.",
    ),
    Setting(
        "slurm",
        "bin",
        "slurm_bin",
        _path,
        _A_PATH,
        "Directory of scontrol, squeue and scancel; searched in the usual places if not set.",
        '"/usr/bin"',
    ),
    Setting(
        "slurm",
        "timeout",
        "slurm_timeout",
        _seconds,
        _A_TIME,
        "Longest time one Slurm command may take.",
    ),
    Setting(
        "slurm",
        "client",
        "slurm_client",
        _one_of(*SLURM_CLIENTS),
        _words(SLURM_CLIENTS),
        "How commands of slurm-mig ask Slurm: by pyslurm where it serves, only by Slurm's "
        "commands, only by pyslurm. Hooks always use Slurm's commands.",
    ),
    Setting(
        "refusal",
        "no_requeue",
        "no_requeue",
        _one_of(*NO_REQUEUE_POLICIES),
        _words(NO_REQUEUE_POLICIES),
        "What happens to a refused job that was submitted with --no-requeue.",
    ),
    Setting(
        "refusal",
        "max_requeues",
        "max_requeues",
        _count,
        "a whole number from 0 to 1000",
        "A job refused more often than this is held for an administrator. Restarts for other "
        "reasons, such as preemption, do not count.",
    ),
    Setting(
        "refusal",
        "retry_delay",
        "retry_delay",
        _seconds,
        _A_TIME,
        "Longest wait of a refused job; doubled at each further refusal, at most retry_delay_max. "
        "A job that was refused for want of room is brought forward as soon as a start would "
        "succeed.",
    ),
    Setting(
        "refusal",
        "retry_delay_max",
        "retry_delay_max",
        _seconds,
        _A_TIME,
        "Longest such wait.",
    ),
    Setting(
        "packing",
        "policy",
        "policy",
        _policy,
        f"{_words(POLICIES)}, or optimal: and the absolute path of a table",
        "Where on a GPU slices go: fits keeps most profiles startable; optimal:FILE takes what "
        "`slurm-mig learn` found best for the jobs of this site, and is fits while that file "
        "cannot be read. The others are there to be compared.",
    ),
    Setting(
        "publish",
        "ahead",
        "ahead",
        _few,
        "a whole number from 1 to 16",
        "Where the site publishes what fits (docs/publishing.md): jobs that Slurm may start here "
        "before it hears of the node again, at most; it is fewer where not so many would succeed "
        "in any order.",
    ),
    Setting(
        "publish",
        "hold_back",
        "hold_back",
        _seconds,
        _A_TIME,
        "Where the site publishes: once a job has waited so long for a slice that no GPU of this "
        "node has free, smaller ones are kept off one GPU until it has started. Not done if not "
        "set.",
        "3600",
    ),
    Setting(
        "whole_gpus",
        "policy",
        "whole_policy",
        _one_of(*WHOLE_POLICIES),
        _words(WHOLE_POLICIES),
        "What a job with a whole GPU (--gres=gpu:1, --exclusive) gets on a managed GPU: MIG mode "
        "off while it runs, one instance of the largest profile, or a refusal. auto: MIG mode off "
        "where that needs no GPU reset (Hopper and later), else the largest profile.",
    ),
    Setting(
        "whole_gpus",
        "models",
        "whole_models",
        _whole_models,
        'a table of NVML names and policies, { "NVIDIA A30" = "reject" }',
        "Other policies for single GPU models; names as `slurm-mig gpus --supported` lists them.",
        "{}",
    ),
    Setting(
        "whole_gpus",
        "reset",
        "whole_reset",
        _yes,
        "true or false",
        "Whether mig-off may reset a GPU that cannot switch without (Ampere).",
    ),
    Setting(
        "stuck",
        "remedies",
        "stuck_remedies",
        _remedies,
        'a list of "kill-job", "kill-user" and "restart:NAME.service" (not slurmd\'s own), each '
        'once, or ["ignore"]',
        "What is tried, in this order, when a slice is still in use after destroy_timeout. "
        "kill-job: SIGKILL to processes of the job that has ended, and to no others. kill-user: "
        "SIGKILL to processes of its user that have this very slice open, whatever job they "
        "belong to, for the slice was that job's; nothing else of theirs is touched. restart: that "
        "service is restarted if it holds the slice. What none of these frees is stuck: it stays, "
        "with the names of who holds it.",
    ),
    Setting(
        "stuck",
        "timeout",
        "stuck_timeout",
        _seconds,
        _A_TIME,
        "Longest time for looking who holds a slice and for all remedies together.",
    ),
    Setting(
        "stuck",
        "drain_slices",
        "drain_slices",
        _count,
        "a whole number from 0 to 1000",
        "The node is drained while at least so many slices are stuck; 0: never. A user who leaves "
        "processes behind can cause it, so think about it before you set it.",
    ),
    Setting(
        "stuck",
        "drain_after",
        "drain_after",
        _seconds,
        _A_TIME,
        "How long a slice must have been stuck to count for drain_slices.",
    ),
    Setting(
        "tasks",
        "bind",
        "bind",
        _one_of(*BINDINGS),
        _words(BINDINGS),
        "task: with as many slices as tasks on the node each task sees its own; none: every task "
        "sees all. SLURM_MIG_BIND overrides it for a job.",
    ),
    Setting(
        "tasks",
        "containers",
        "containers",
        _yes,
        "true or false",
        "Export NVIDIA_VISIBLE_DEVICES with the same UUIDs, for enroot, pyxis and Apptainer.",
    ),
    Setting(
        "tasks",
        "leases",
        "leases",
        _path,
        _A_PATH,
        "Where root may not mount (slurmd in a container): beginning of the path of a directory "
        "that the Prolog makes for a job's user, so that steps share its slices. Elsewhere if "
        "something cleans there while jobs run.",
    ),
    Setting(
        "feed",
        "gpustat",
        "gpustat",
        _path,
        _A_PATH,
        "Directory of files named after MIG and GPU UUIDs that say whose they are, for jobstats. "
        "None are written if not set.",
        '"/run/gpustat"',
    ),
    Setting(
        "feed",
        "dcgm",
        "dcgm",
        _path,
        _A_PATH,
        "Directory of such files for dcgm-exporter (its DCGM_HPC_JOB_MAPPING_DIR). None are "
        "written if not set.",
        '"/run/dcgm-job-mapping"',
    ),
    Setting(
        "feed",
        "admin_comment",
        "admin_comment",
        _yes,
        "true or false",
        "Write a job's MIG UUIDs into its AdminComment at its start, so that sacct alone tells "
        "them. Costs some Slurm commands for each job.",
    ),
)
