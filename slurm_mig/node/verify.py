"""What an unprivileged user can reach on this node, found out by trying.

For each job (or one named user) a child process takes on its user's ids and tries to
open every neighbour's capability nodes, to read or change what root's hooks rely on,
and to use what is their own. File modes are what is tried: the child sits in no job's
cgroup, so what ConstrainDevices denies besides does not show.

A try changes nothing: nodes and files are opened and closed again, and a file that
could be made where none may be is removed.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import NodeFault, SlurmMigError, UsageFault
from slurm_mig.gpu.capabilities import read_access
from slurm_mig.gpu.holder_search import until_end
from slurm_mig.mig import allocation as phases
from slurm_mig.settings import LEARNED
from slurm_mig.state.run_files import job_of
from slurm_mig.system.programs import find_program
from slurm_mig.system.trust import trusted
from slurm_mig.transaction import whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.node.node import Node

#: What a try found.
OPEN, CLOSED, ABSENT = "open", "closed", "absent"

#: Ways to reach something.
READ, WRITE, MAKE, LIST = "read", "write", "make a file in", "list"

#: Seconds for all tries as one user.
LONGEST_TRY: Final = 30.0

#: What the hooks run beside this package, as root: modules, and programs of Slurm's.
HOOK_IMPORTS: Final = ("pynvml", "filelock", "os")
SLURM_PROGRAMS: Final = ("scontrol", "squeue", "scancel")

#: Looked at by root: nobody has to be asked for these.
ROOTS: Final = "root's view"

#: Errors that say "you may not"; all others come after the permission check.
_DENIED: Final = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Subject:
    """Who tries: a job's user, or a user without a job."""

    uid: int
    gid: int
    record: Allocation | None = None

    @property
    def job_id(self) -> int | None:
        """Their job, if they are tried as one's user."""
        return self.record.owner.job_id if self.record else None


@dataclass(frozen=True, slots=True)
class AccessTry:
    """One way to one thing; `allowed` is what must be found, empty where either is fine.

    `record` is the allocation that makes it so: once that has ended, nothing follows.
    """

    item: str
    action: str
    path: Path
    allowed: tuple[str, ...] = (CLOSED, ABSENT)
    record: int | None = None
    found: str = ""
    job_id: int | None = None
    uid: int | None = None

    @property
    def verdict(self) -> str:
        """`pass`, `fail`, or `info` where nothing is promised."""
        if not self.allowed:
            return "info"
        # What follows a colon only explains.
        return "pass" if self.found.partition(":")[0] in self.allowed else "fail"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for --json."""
        return {
            "job_id": self.job_id,
            "uid": self.uid,
            "item": self.item,
            "action": self.action,
            "path": str(self.path),
            "allowed": list(self.allowed),
            "found": self.found,
            "verdict": self.verdict,
        }


class Isolation:
    """Everything that is tried on one node; `hooks` is the directory of the hook scripts."""

    def __init__(self, node: Node, hooks: Path) -> None:
        self._node = node
        self._hooks = hooks

    def subjects(self, job_id: int | None, uid: int | None) -> list[Subject]:
        """Users of jobs that hold slices here, of one job, or a user by their number.

        UsageFault for a job that holds none.
        """
        if uid is not None:
            return [Subject(uid, _primary_group(uid))]
        held = [record for record in self._records if _is_a_jobs(record)]
        if job_id is not None and job_id not in [record.owner.job_id for record in held]:
            known = ", ".join(sorted({str(record.owner.job_id) for record in held})) or "none"
            raise UsageFault(f"job {job_id} holds no slice here; jobs that do: {known}")
        return [
            # Group 0 is what a record has that was not told one.
            Subject(record.owner.uid, record.owner.gid or _primary_group(record.owner.uid), record)
            for record in held
            if job_id in (None, record.owner.job_id)
        ]

    def by(self, subject: Subject) -> list[AccessTry]:
        """Everything tried as one user, in the order of the table."""
        wanted = [
            *self._instances(subject),
            *self._management(),
            *self._state(),
            *self._run_files(subject),
            *self._programs(),
        ]
        found = attempt(subject, wanted)
        return [
            replace(item, job_id=subject.job_id, uid=subject.uid)
            for item in map(self._still_meant, found)
        ]

    def by_root(self) -> list[AccessTry]:
        """What needs no user: the way to every file, and what nvidia-modprobe would do."""
        return [*self._helper(), *self._ways()]

    # -- instances -----------------------------------------------------------

    @cached_property
    def _records(self) -> list[Allocation]:
        """What exists now: instances of an earlier boot do not."""
        here = self._node.boot_id
        return [item for item in self._node.ledger.all_open() if item.boot_id == here]

    def _instances(self, subject: Subject) -> Iterator[AccessTry]:
        """Own nodes must open; a neighbour's, and those of a slice that is stuck, must not."""
        for record in self._records:
            for item, nodes in self._nodes_of(record):
                for kind, path in nodes:
                    yield AccessTry(
                        f"{kind} of {record.owner}, {item} on GPU {record.gpu_minor}",
                        READ,
                        path,
                        _promised(record, subject),
                        record.number,
                    )
        yield from self._foreign()

    def _nodes_of(self, record: Allocation) -> Iterator[tuple[str, list[tuple[str, Path]]]]:
        from slurm_mig.gpu.capabilities import capability_minors

        for item in record.present:
            if item.gi_id is not None and item.ci_id is not None:
                minors = capability_minors(record.gpu_minor, item.gi_id, item.ci_id)
                paths = map(self._node.capabilities.node, minors)
                yield str(item), list(zip(("GI node", "CI node"), paths, strict=True))

    def _foreign(self) -> Iterator[AccessTry]:
        """Instances in no record are the driver's to keep: told, not judged."""
        from slurm_mig.gpu.capabilities import capability_minors

        gpus, _ = self._node.driver.survey()
        bench = self._node.bench()
        for gpu in (gpu for gpu in gpus if gpu.mig_capable):
            for found in whereabouts.foreign_instances(bench, gpu):
                minor = capability_minors(gpu.minor, found.gi_id, 0)[0]
                name = f"GI node of GPU instance {found.gi_id} on GPU {gpu.minor}, in no record"
                yield AccessTry(name, READ, self._node.capabilities.node(minor), ())

    def _management(self) -> Iterator[AccessTry]:
        """Who opens mig/config carves and destroys as root does (facts/mig.md#capabilities)."""
        path = self._node.capabilities.management()
        if path.exists():
            node = self._node.capabilities.node(read_access(path).minor)
            yield AccessTry("node of mig/config (GI and CI management)", READ, node)

    def _helper(self) -> Iterator[AccessTry]:
        """Whether nvidia-modprobe, which anybody may call, would open the nodes again."""
        for record in self._records:
            if record.phase != phases.ACTIVE or not _is_a_jobs(record):
                continue
            for item in record.present:
                if item.gi_id is None or item.ci_id is None:
                    continue
                ids = record.gpu_minor, item.gi_id, item.ci_id
                for path in self._node.capabilities.access_files(*ids):
                    name = f"nodes of {record.owner}, {item} on GPU {record.gpu_minor}"
                    made = AccessTry(name, "reopen by nvidia-modprobe", path, record=record.number)
                    yield self._still_meant(replace(made, found=_modifiable(path)))
        path = self._node.capabilities.management()
        if path.exists():
            closed = read_access(path).mode & 0o077 == 0
            name = "node of mig/config (GI and CI management)"
            found = CLOSED if closed else OPEN
            yield AccessTry(name, "make open by nvidia-modprobe", path, found=found)

    # -- files ---------------------------------------------------------------

    def _state(self) -> Iterator[AccessTry]:
        config = self._node.config
        yield AccessTry("state directory", LIST, config.state)
        yield AccessTry("state directory", MAKE, config.state)
        for suffix in ("", "-wal", "-shm"):
            path = config.ledger.with_name(config.ledger.name + suffix)
            yield AccessTry(f"ledger{suffix}", READ, path)
            yield AccessTry(f"ledger{suffix}", WRITE, path)
        if config.source is not None:
            yield AccessTry("configuration", WRITE, config.source)
            yield AccessTry("directory of the configuration", MAKE, config.source.parent)
        if config.policy.startswith(LEARNED):
            yield AccessTry("table of slots", WRITE, Path(config.policy.removeprefix(LEARNED)))

    def _run_files(self, subject: Subject) -> Iterator[AccessTry]:
        run = self._node.config.run
        for name in (".", "env", "jobs", "leases", "locks"):
            yield AccessTry(f"run directory, {name}".removesuffix(", ."), MAKE, run / name)
        yield AccessTry("run directory, locks", LIST, run / "locks")
        for path in sorted((run / "locks").glob("*.lock")):
            # Whoever can open a lock file for reading can hold its lock.
            yield AccessTry("lock", READ, path)
        for path in sorted((run / "jobs").glob("*")):
            yield AccessTry(f"mark {path.name}", READ, path)
            yield AccessTry(f"mark {path.name}", WRITE, path)
        yield from self._environments(subject)
        yield from self._leases(subject)

    def _environments(self, subject: Subject) -> Iterator[AccessTry]:
        for path in sorted((self._node.config.run / "env").glob("[0-9]*")):
            job = job_of(path)
            if job is None:
                continue
            name = f"environment of job {job}"
            known = self._node.ledger.of_job(job)
            number = next((r.number for r in self._records if r.owner.job_id == job), None)
            own = bool(known) and known[-1].owner.uid == subject.uid
            if known:
                # One of a job that has ended since may be gone.
                mine = (OPEN,) if number else (OPEN, ABSENT)
                yield AccessTry(name, READ, path, mine if own else (CLOSED, ABSENT), number)
            yield AccessTry(name, WRITE, path, record=number)

    def _leases(self, subject: Subject) -> Iterator[AccessTry]:
        """By what a job's steps share its slices: its user writes there, and nobody takes it away.

        Where that is their own (run_files.py) what they may do to themselves is not tried.
        """
        for record in self._records:
            path = Path(self._lease_of(record)) if _is_a_jobs(record) else Path()
            own, roots = record.owner.uid == subject.uid, path.parent == self._leases_of_root
            if path == Path() or (own and not roots):
                continue
            name, number = f"leases of {record.owner}", record.number
            use = _promised(record, subject) if own else (CLOSED, ABSENT)
            yield AccessTry(name, LIST, path, use, number)
            yield AccessTry(name, MAKE, path, record=number)
            if roots:
                yield AccessTry(f"lock of {name}", WRITE, path / "lock", use, number)

    @property
    def _leases_of_root(self) -> Path:
        return self._node.config.run / "leases"

    def _lease_of(self, record: Allocation) -> str:
        try:
            return self._node.files.leases(record.owner)
        except NodeFault:
            # The run directory is not root's alone: its own tries and its way say so.
            return ""

    def _programs(self) -> Iterator[AccessTry]:
        """What runs as root: the hooks, their Python, this package, the driver's library."""
        for name, path in self._code().items():
            # It is run, so it is somewhere: where it is not found nothing has been tried.
            yield AccessTry(name, MAKE if path.is_dir() else WRITE, path, allowed=(CLOSED,))

    def _code(self) -> dict[str, Path]:
        found = self._scripts()
        found["directory of the hooks"] = self._hooks
        found["package slurm_mig"] = Path(__file__).parents[1]
        for name in HOOK_IMPORTS:
            path = _file_of(name)
            if path is not None:
                found[f"package {name}"] = path
                found[f"directory of {name}"] = path.parent
        for name in SLURM_PROGRAMS:
            if program := find_program(name, self._node.config.slurm_bin):
                found[f"program {name}"] = program
        if python := _python_of(found["hook prolog"]):
            found["Python of the hooks"] = python
        if self._node.config.library.startswith("/"):
            found["NVIDIA library"] = Path(self._node.config.library)
        return found

    def _scripts(self) -> dict[str, Path]:
        """The hooks, where `install` wrote them: one may be in a directory of the site's."""
        from slurm_mig.node.install_manifest import read_manifest
        from slurm_mig.node.install_paths import MANIFEST
        from slurm_mig.node.install_texts import EPILOG_NAME, PROLOG_NAME

        found = {f"hook {name}": self._hooks / name for name in ("prolog", "epilog", "task_prolog")}
        # Of a list that others could have written the way to the hooks tells.
        with suppress(NodeFault):
            for path in map(Path, read_manifest(self._hooks / MANIFEST)):
                if path.name in (PROLOG_NAME, EPILOG_NAME):
                    found["hook prolog" if path.name == PROLOG_NAME else "hook epilog"] = path
        return found

    def _ways(self) -> Iterator[AccessTry]:
        config = self._node.config
        places = {
            "state directory": config.state,
            "run directory": config.run,
            "directory of leases": config.leases.parent,
            "directory of capability nodes": self._node.capabilities.node(0).parent,
        }
        for name, path in places.items():
            # Not all are there before the first job; hooks make them at the end of that way.
            yield AccessTry(
                f"way to {name}", "replace a part of", path, found=_way_as_far_as_it_goes(path)
            )
        code = self._code() | ({"configuration": config.source} if config.source else {})
        for name, path in code.items():
            item = AccessTry(f"way to {name}", "replace a part of", path, allowed=(CLOSED,))
            yield replace(item, found=_way(path))

    def _still_meant(self, item: AccessTry) -> AccessTry:
        """A job that has ended since then promises nothing any more."""
        if item.verdict != "fail" or item.record is None:
            return item
        before = next(record for record in self._records if record.number == item.record)
        now = self._node.ledger.find(item.record)
        return item if now.phase == before.phase else replace(item, allowed=())


def _promised(record: Allocation, subject: Subject) -> tuple[str, ...]:
    """What a node of a record's instance must be to a user."""
    if not _is_a_jobs(record) or record.phase in (phases.PLANNED, phases.RELEASING):
        return ()
    if record.phase == phases.ACTIVE and record.owner.uid == subject.uid:
        return (OPEN,)
    return (CLOSED, ABSENT)


def _is_a_jobs(record: Allocation) -> bool:
    return record.owner.is_job


def _modifiable(path: Path) -> str:
    try:
        return OPEN if read_access(path).modify else CLOSED
    except SlurmMigError:
        return ABSENT


def _way(path: Path) -> str:
    """Whether every step to a path is root's alone; `open` with the step that is not."""
    try:
        with trusted(path):
            return CLOSED
    except NodeFault as fault:
        return f"{OPEN}: {fault.cause}"
    except OSError as problem:
        return ABSENT if problem.errno == errno.ENOENT else f"{problem.strerror}"


def _way_as_far_as_it_goes(path: Path) -> str:
    found = _way(path)
    if found != ABSENT or path == path.parent:
        return found
    above = _way_as_far_as_it_goes(path.parent)
    return ABSENT if above == CLOSED else above


def _file_of(name: str) -> Path | None:
    """The file of a module of the hooks'; None for one that is not installed.

    Since Python 3.11 `os` and others are frozen into the interpreter; their specification then
    names no file, but the module does, and what stands there is imported by others.
    """
    if find_spec(name) is None:
        return None
    file = import_module(name).__file__
    return Path(file) if file else Path(sys.executable)


def _python_of(hook: Path) -> Path | None:
    """The interpreter that an installed hook names."""
    import shlex

    with suppress(OSError, ValueError):
        for line in hook.read_text("utf-8").splitlines():
            if line.startswith("python="):
                return Path(*shlex.split(line.removeprefix("python=")))
    return None


def _primary_group(uid: int) -> int:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


# -- as another user ---------------------------------------------------------------


def attempt(subject: Subject, wanted: Sequence[AccessTry]) -> list[AccessTry]:
    """Try everything with a user's rights, in a process of its own.

    NodeFault when that process does not come to its end.
    """
    groups = _groups(subject)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _child(subject, groups, wanted, writing)
    os.close(writing)
    try:
        told, ended = until_end(reading, time.monotonic() + LONGEST_TRY)
    finally:
        os.close(reading)
    if not ended:
        # The process is the user's: they can stop it, though not keep it from being killed.
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        how = f"ended with {status}" if ended else f"did not end within {LONGEST_TRY:g} s"
        raise NodeFault(
            f"trying as uid {subject.uid} {how}",
            remedy="see what processes of that user do, and try again",
        )
    return [
        replace(item, found=found) for item, found in zip(wanted, json.loads(told), strict=True)
    ]


def _child(subject: Subject, groups: list[int], wanted: Sequence[AccessTry], writing: int) -> None:
    status = 1
    try:
        os.chdir("/")
        os.setgroups(groups)
        os.setgid(subject.gid)
        os.setuid(subject.uid)
        told = json.dumps([_TRIES[item.action](item.path) for item in wanted])
        with open(writing, "w") as pipe:  # a descriptor, not a name
            pipe.write(told)
        status = 0
    finally:
        # Whatever happened: two of us must not return to the caller.
        os._exit(status)


def _groups(subject: Subject) -> list[int]:
    """Their supplementary groups; none of a user whom this node does not know."""
    import pwd

    try:
        return os.getgrouplist(pwd.getpwuid(subject.uid).pw_name, subject.gid)
    except KeyError:
        return []


def _opened(path: Path, flags: int) -> str:
    # O_NONBLOCK: neither a FIFO nor a device may make the try wait.
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as problem:
        return _meaning(problem)
    return OPEN


def _meaning(problem: OSError) -> str:
    if problem.errno in _DENIED:
        return CLOSED
    if problem.errno == errno.ENXIO:
        # No driver behind the node: said only to those who may open it.
        return OPEN
    return ABSENT if problem.errno == errno.ENOENT else f"{OPEN}: {problem.strerror}"


def _made(path: Path) -> str:
    fresh = path / f".slurm-mig-verify-{secrets.token_hex(8)}"
    found = _opened(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with suppress(OSError):
        fresh.unlink()
    return found


def _listed(path: Path) -> str:
    try:
        next(path.iterdir(), None)
    except OSError as problem:
        return _meaning(problem)
    return OPEN


_TRIES: Final[dict[str, Callable[[Path], str]]] = {
    READ: lambda path: _opened(path, os.O_RDONLY),
    WRITE: lambda path: _opened(path, os.O_WRONLY | os.O_APPEND),
    MAKE: _made,
    LIST: _listed,
}
