"""Processes that have a device open: found in /proc, and killed when they are left-overs.

NVML lists processes that compute. DCGM, a monitor, a leaked handle hold the
device without being listed, so descriptors are looked at, too (facts/design.md#in-use).

All of it happens in a child with a time limit: a file of /proc can keep its reader
waiting while its process hangs in the driver, and so can the question for a user's name.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.gpu.holder import GPU, INSTANCE, Holder, Holders, Place, named
from slurm_mig.text import ascii_line
from slurm_mig.values import asdict, dataclass, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from slurm_mig.mig.allocation import Owner

#: Most that is read of one file of /proc, in bytes: a user decides how long they are.
MOST: Final = 1 << 20

#: Descriptors of a process that is looked at after all others.
MANY: Final = 1000

#: Capability minors below this one are no instance's: config, monitor (facts/mig.md#capabilities).
FIRST_INSTANCE_MINOR: Final = 3

_O_PATH: Final = getattr(os, "O_PATH", 0o10000000)


@dataclass(frozen=True, slots=True)
class Target:
    """What is looked for: device numbers of the instance's nodes and of its GPU's node.

    `listed` is what NVML says of the GPU: pid and GPU instance id. `gi_id` None: the
    GPU as a whole is meant, and all who have anything of it open.
    """

    instance: frozenset[int] = frozenset()
    gpu: frozenset[int] = frozenset()
    listed: tuple[tuple[int, int | None], ...] = ()
    gi_id: int | None = None

    def has(self, pid: int, devices: Iterable[int]) -> str:
        """How a process has it: INSTANCE, GPU, or not at all (empty)."""
        opened = set(devices)
        mine = {gi_id for item, gi_id in self.listed if item == pid}
        if self.gi_id is None:
            return INSTANCE if mine or opened & (self.gpu | self.instance) else ""
        if self.gi_id in mine or opened & self.instance:
            return INSTANCE
        return GPU if None in mine or opened & self.gpu else ""

    def elsewhere(self, pid: int, devices: Iterable[int]) -> bool:
        """Whether it uses a neighbouring instance: then it has the GPU's node open, too."""
        if any(gi_id not in (None, self.gi_id) for item, gi_id in self.listed if item == pid):
            return True
        majors = {os.major(device) for device in self.instance}
        return any(
            os.major(device) in majors and os.minor(device) >= FIRST_INSTANCE_MINOR
            for device in devices
            if device not in self.gpu
        )


class Processes:
    """Processes below `proc` (`/proc`, also where the GPUs are simulated)."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc

    def holding(self, target: Target, timeout: float) -> Holders:
        """Everybody who has the target open, after at most `timeout` seconds."""
        listed = dict(target.listed)

        def look(tell: Callable[[Holder], None]) -> None:
            found = []
            # Those that NVML knows come first: the time may be up before all were seen.
            for pid in [*listed, *(pid for pid in self._pids() if pid not in listed)]:
                holder = self._seen(pid, target)
                if holder is not None:
                    found.append(holder)
                    tell(holder)
            # What may keep its reader waiting comes last.
            for holder in sorted(found, key=lambda item: item.has == GPU):
                tell(self._in_full(holder))

        lines, complete = _in_child(look, timeout)
        if not lines and not complete:
            return named([pid for pid, gi_id in target.listed if gi_id == target.gi_id])
        latest = {line["pid"]: Holder.from_dict(dict(line)) for line in lines}
        return Holders(tuple(latest.values()), complete)

    def kill(
        self,
        holders: Iterable[Holder],
        target: Target,
        owner: Owner,
        timeout: float,
        *,
        by_environment: bool = False,
        anywhere: bool = False,
    ) -> list[Holder]:
        """SIGKILL those of `holders` that are certainly left-overs of the job; returns these.

        `anywhere`: those that are certainly the job's user's, in whatever job they are. Each is
        pinned by a pidfd first and looked at again through it: the pid may be another
        process's by now. A kernel without pidfd_open (before 5.3) kills nobody.
        """

        def goes(holder: Holder) -> bool:
            if anywhere:
                return holder.is_users(owner)
            return holder.is_left_of(owner, by_environment=by_environment)

        chosen = [item for item in holders if goes(item)]

        def kill(tell: Callable[[Holder], None]) -> None:
            for holder in chosen:
                if self._kill(holder, target, goes):
                    tell(holder)

        if not chosen or not hasattr(os, "pidfd_open"):
            return []
        lines, _ = _in_child(kill, timeout)
        return [Holder.from_dict(dict(line)) for line in lines]

    def _kill(self, holder: Holder, target: Target, goes: Callable[[Holder], bool]) -> bool:
        try:
            descriptor = os.pidfd_open(holder.pid)
        except OSError:
            return False
        try:
            now = self._seen(holder.pid, target)
            if now is None or now.started != holder.started:
                return False
            if not goes(self._in_full(now)):
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    # -- one process ---------------------------------------------------------

    def _pids(self) -> Iterator[int]:
        own = (os.getpid(), os.getppid())
        later = []
        for name in os.listdir(self._proc):  # noqa: PTH208  # names only, and many
            if not name.isdigit() or int(name) in own:
                continue
            if self._crowded(name):
                later.append(int(name))
            else:
                yield int(name)
        yield from later

    def _crowded(self, pid: str) -> bool:
        """Whether a process has so many descriptors that it could hide others for want of time."""
        try:
            # Not all of them: to count millions takes the very time.
            with os.scandir(f"{self._proc}/{pid}/fd") as found:
                return next(islice(found, MANY, None), None) is not None
        except OSError:
            return False

    def _seen(self, pid: int, target: Target) -> Holder | None:
        """What the kernel says without touching the process's memory; None for no holder."""
        devices = self._devices(pid, target)
        has = target.has(pid, devices)
        if not has:
            return None
        name, started = self._stat(pid)
        uids = self._uids(pid) if started else ()
        place = Place.parse(self._read(pid, "cgroup")) if started else Place()
        # A monitor of root's sees all instances, and may be the one that lets none go.
        if has == GPU and 0 not in uids and target.elsewhere(pid, devices):
            return None
        return Holder(pid, has, started, uids, name=name, place=place)

    def _in_full(self, holder: Holder) -> Holder:
        command = self._bytes(holder.pid, "cmdline")[:4096].replace(b"\0", b" ")
        job, restart = _job_of(self._bytes(holder.pid, "environ"))
        # Asked last: the answer may come from a directory server.
        user = _user(holder.uids[0]) if holder.uids else ""
        return replace(
            holder,
            user=user,
            command=ascii_line(command.decode("utf-8", "replace")),
            environment_job=job,
            environment_restart=restart,
        )

    def _devices(self, pid: int, target: Target) -> set[int]:
        """Numbers of the devices like the target's that a process can really use.

        Up to the first that is the target's own: a user can open a node any number of times.
        """
        majors = {os.major(device) for device in target.instance | target.gpu}
        enough = target.instance or target.gpu
        found: set[int] = set()
        directory = f"{self._proc}/{pid}/fd"
        try:
            names = os.listdir(directory)  # noqa: PTH208
        except OSError:
            return found
        for name in names:
            try:
                # By name first: the status of a file on a dead file server never comes.
                if "nvidia" not in os.readlink(f"{directory}/{name}"):  # noqa: PTH115
                    continue
                status = os.stat(f"{directory}/{name}")  # noqa: PTH116
                device = status.st_rdev if stat.S_ISCHR(status.st_mode) else 0
                if os.major(device) not in majors or device in found:
                    continue
                if self._usable(pid, name):
                    found.add(device)
                    if device in enough:
                        break
            except OSError:
                continue
        return found

    def _usable(self, pid: int, name: str) -> bool:
        """Not opened with O_PATH: that needs no permission, and holds nothing."""
        for line in self._read(pid, f"fdinfo/{name}").splitlines():
            if line.startswith("flags:"):
                return not int(line.split()[1], 8) & _O_PATH
        return False

    def _stat(self, pid: int) -> tuple[str, int]:
        """Name and start time (proc(5)); the name may hold brackets, blanks and newlines."""
        text = self._read(pid, "stat")
        before, _, after = text.rpartition(")")
        fields = after.split()
        if len(fields) < 20 or fields[0] in ("Z", "X"):
            return "", 0
        return ascii_line(before.partition("(")[2]), int(fields[19])

    def _uids(self, pid: int) -> tuple[int, ...]:
        for line in self._read(pid, "status").splitlines():
            if line.startswith("Uid:"):
                return tuple(int(word) for word in line.split()[1:])
        return ()

    def _read(self, pid: int, name: str) -> str:
        return self._bytes(pid, name).decode("utf-8", "replace")

    def _bytes(self, pid: int, name: str) -> bytes:
        """A file of a process; empty when the process, or the right to see it, is gone."""
        try:
            with open(f"{self._proc}/{pid}/{name}", "rb") as file:  # noqa: PTH123
                return file.read(MOST)
        except OSError:
            return b""


def _job_of(environ: bytes) -> tuple[int | None, int]:
    """Job and restart count that a first environment names."""
    pairs = dict(item.partition(b"=")[::2] for item in reversed(environ.split(b"\0")))
    job, restart = pairs.get(b"SLURM_JOB_ID", b""), pairs.get(b"SLURM_RESTART_COUNT", b"0")
    if not (job.isdigit() and restart.isdigit() and len(job) < 12 and len(restart) < 12):
        return None, 0
    return int(job), int(restart)


def _user(uid: int) -> str:
    import pwd

    try:
        return ascii_line(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return ""


def _in_child(
    work: Callable[[Callable[[Holder], None]], None], timeout: float
) -> tuple[list[Mapping[str, Any]], bool]:
    """Run `work` in a child for at most `timeout` seconds; what it told, and whether it ended.

    A child that cannot be killed, for the kernel keeps it waiting, is left behind; it has
    none of our descriptors, so it keeps no lock and no output of a hook.
    """
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        _tell_parent(work, done)
    os.close(done)
    try:
        text, ended = until_end(ready, time.monotonic() + timeout)
    finally:
        os.close(ready)
        end(child)
    lines = text.split(b"\n")
    # The last one is empty, or cut off.
    told = [json.loads(line) for line in lines[:-1]]
    whole = bool(told) and told[-1] is None
    return [line for line in told if line is not None], ended and whole


def _tell_parent(work: Callable[[Callable[[Holder], None]], None], pipe: int) -> None:
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.closerange(3, pipe)
        os.closerange(pipe + 1, 1 << 16)
        # What the hook does when it is told to end is not for the child to do.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)

        def tell(holder: Holder | None) -> None:
            line = json.dumps(None if holder is None else asdict(holder)).encode() + b"\n"
            while line:
                line = line[os.write(pipe, line) :]

        work(tell)
        tell(None)
    finally:
        os._exit(0)


def until_end(pipe: int, until: float) -> tuple[bytes, bool]:
    """What comes through a pipe till `until`, and whether that was all."""
    text = b""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while True:
        left = until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return text, False
        part = os.read(pipe, 1 << 16)
        if not part:
            return text, True
        text += part


def end(child: int, patience: float = 0.5) -> None:
    """Kill and reap it, unless it hangs in the kernel."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    until = time.monotonic() + patience
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < until:
        time.sleep(0.005)
