"""Capability files and device nodes: who may open an instance.

A process that computes on an instance opens the GPU instance's and the compute
instance's node in /dev/nvidia-caps. The kernel makes no nodes; the setuid
`nvidia-modprobe` makes them for whoever asks, open to all, as long as the
access file says `DeviceFileModify: 1`. So: write 0 there first, then give the
node to the job's user. The flag dies with the instance, and so must the node: it is
taken from the user before their instance is destroyed, and removed afterwards
(facts/mig.md#capabilities). That is how a booted machine looks; whoever needs a node again has
nvidia-modprobe make it.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import DeviceNodeFault, NodeFault
from slurm_mig.system.causes import out_of_order
from slurm_mig.system.trust import below, private_directory, trusted
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: Mode of a closed node: its owner may open it for reading, nobody else.
CLOSED: Final = 0o400


@dataclass(frozen=True, slots=True)
class Access:
    """What a capability's access file says."""

    path: Path
    minor: int
    mode: int
    modify: bool


class Capabilities:
    """The capability tree below `proc` (`/proc`) and its nodes below `dev` (`/dev`)."""

    def __init__(self, proc: Path, dev: Path) -> None:
        self._proc = proc
        self._nodes = dev / "nvidia-caps"

    def close(self, gpu_minor: int, gi_id: int, ci_id: int, uid: int, gid: int) -> None:
        """Let only `uid` open this instance; raises DeviceNodeFault when that fails."""
        major = self._major()
        for path in self.access_files(gpu_minor, gi_id, ci_id):
            self._forbid_changes(path)
            self._give(read_access(path), major, uid, gid)

    def revoke(
        self, gpu_minor: int, gi_id: int, ci_id: int, *, owned_by: int | None = None
    ) -> None:
        """Take the nodes from whoever has them, whatever names they have; root keeps them.

        An ended job's user cannot start anything on an instance that resists its end.
        `owned_by`: only nodes of that user.
        """
        if not self._nodes.exists():
            return
        with self._directory() as nodes:
            for minor in capability_minors(gpu_minor, gi_id, ci_id):
                name = f"nvidia-cap{minor}"
                if owned_by is None or self._owner(nodes, name) == owned_by:
                    self._take(nodes, name)

    def remove(
        self, gpu_minor: int, gi_id: int, ci_id: int, *, owned_by: int | None = None
    ) -> None:
        """Take the nodes away again; made anew for the next owner of these ids.

        `owned_by`: only nodes of that user, for the ids are another instance's by now.
        """
        if not self._nodes.exists():
            return
        with self._directory() as nodes:
            for minor in capability_minors(gpu_minor, gi_id, ci_id):
                name = f"nvidia-cap{minor}"
                if owned_by is None or self._owner(nodes, name) == owned_by:
                    self._take(nodes, name)
                    self._unlink(nodes, name)

    def numbers(self, gpu_minor: int) -> frozenset[int]:
        """Device number of a GPU's node; empty when there is none."""
        return _numbers([self._nodes.parent / f"nvidia{gpu_minor}"])

    def instance_numbers(self, gpu_minor: int, gi_id: int, ci_ids: Iterable[int]) -> frozenset[int]:
        """Device numbers of an instance's nodes, those that exist: nobody opened another."""
        minors = {capability_minors(gpu_minor, gi_id, 0)[0]}
        minors |= {capability_minors(gpu_minor, gi_id, ci_id)[1] for ci_id in ci_ids}
        return _numbers(self._nodes / f"nvidia-cap{minor}" for minor in minors)

    def remove_stale(self, gpu_minor: int) -> list[Path]:
        """Remove nodes of instances that a GPU no longer has; the caller holds its lock.

        The kernel has an access file for each instance that exists, and for no other.
        """
        base = self._proc / f"driver/nvidia/capabilities/gpu{gpu_minor}/mig"
        left: list[Path] = []
        if not self._nodes.exists():
            return left
        with self._directory() as nodes:
            for path in below(self._nodes, "nvidia-cap"):
                number = path.name.removeprefix("nvidia-cap")
                place = instance_of(int(number), gpu_minor) if number.isdecimal() else None
                if place is not None and not _exists(base, *place):
                    self._take(nodes, path.name)
                    self._unlink(nodes, path.name)
                    left.append(path)
        return left

    def node(self, minor: int) -> Path:
        """The device node of a capability."""
        return self._nodes / f"nvidia-cap{minor}"

    def management(self) -> Path:
        """Access file of mig/config: whoever may open its node can carve instances."""
        return self._proc / "driver/nvidia/capabilities/mig/config"

    def access_files(self, gpu_minor: int, gi_id: int, ci_id: int) -> tuple[Path, Path]:
        """What the driver shows of the GPU instance and the compute instance while they exist."""
        base = self._proc / f"driver/nvidia/capabilities/gpu{gpu_minor}/mig/gi{gi_id}"
        return base / "access", base / f"ci{ci_id}" / "access"

    def _major(self) -> int:
        """Major of the capability nodes: dynamic, so read from /proc/devices."""
        path = self._proc / "devices"
        try:
            lines = path.read_text("ascii").splitlines()
        except OSError as problem:
            raise out_of_order(problem, f"read {path}", DeviceNodeFault) from problem
        for line in lines:
            words = line.split()
            if words[1:] == ["nvidia-caps"]:
                return int(words[0])
        raise DeviceNodeFault(
            f"{path} has no line for nvidia-caps", remedy="load the NVIDIA kernel module"
        )

    @staticmethod
    def _forbid_changes(path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.write(descriptor, b"DeviceFileModify: 0\n")
            finally:
                # The kernel parses what was written when the file is closed.
                os.close(descriptor)
        except OSError as problem:
            raise out_of_order(problem, f"write {path}", DeviceNodeFault) from problem
        if read_access(path).modify:
            raise DeviceNodeFault(
                f"{path} still says DeviceFileModify: 1 after 0 was written",
                remedy="any user could open the instance; see docs/security.md",
            )

    def _give(self, access: Access, major: int, uid: int, gid: int) -> None:
        name = f"nvidia-cap{access.minor}"
        with self._directory() as nodes:
            if _is_closed(nodes, name, os.makedev(major, access.minor), uid, gid):
                # Made anew it would be missing for a moment, and for good if this hook dies in it.
                return
            # Always a fresh node: one that nvidia-modprobe made is open to all.
            self._take(nodes, name)
            self._unlink(nodes, name)
            with self._saying(f"make {self._nodes / name}"):
                device = os.makedev(major, access.minor)
                os.mknod(name, stat.S_IFCHR, device, dir_fd=nodes)
                os.chown(name, uid, gid, dir_fd=nodes, follow_symlinks=False)
                os.chmod(name, CLOSED, dir_fd=nodes)  # relative to a descriptor

    @contextmanager
    def _directory(self) -> Iterator[int]:
        """The nodes' directory, which nobody but root may change; made where there is none.

        Open to every job's user, who has to get through, whatever the umask; a mode that a
        site chose stays.
        """
        with ExitStack() as stack:
            try:
                if not self._nodes.exists():
                    private_directory(self._nodes, 0o755)
                nodes = stack.enter_context(trusted(self._nodes))
            except NodeFault as fault:
                raise DeviceNodeFault(fault.cause, remedy=fault.remedy) from fault
            except OSError as problem:
                raise out_of_order(problem, f"open {self._nodes}", DeviceNodeFault) from problem
            mode = os.fstat(nodes).st_mode
            if not mode & 0o077:
                # Who made it died before it was open to those who have a node in it.
                self._nodes.chmod(0o755)
            if mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise DeviceNodeFault(
                    f"{self._nodes} is writable by others", remedy="it must be root's, mode 0755"
                )
            yield nodes

    def _take(self, nodes: int, name: str) -> None:
        """Root's and closed. A second name that its user gave it elsewhere is so, too."""
        with self._saying(f"take {self._nodes / name} from its user"), suppress(FileNotFoundError):
            os.chown(name, 0, 0, dir_fd=nodes, follow_symlinks=False)
            if not stat.S_ISLNK(os.lstat(name, dir_fd=nodes).st_mode):
                os.chmod(name, 0, dir_fd=nodes)  # relative to a descriptor

    def _unlink(self, nodes: int, name: str) -> None:
        with self._saying(f"remove {self._nodes / name}"), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=nodes)  # relative to a descriptor

    @staticmethod
    def _owner(nodes: int, name: str) -> int | None:
        try:
            return os.lstat(name, dir_fd=nodes).st_uid
        except FileNotFoundError:
            return None

    @staticmethod
    @contextmanager
    def _saying(action: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise out_of_order(problem, action, DeviceNodeFault) from problem


def _exists(base: Path, gi_id: int, ci_id: int | None) -> bool:
    """Whether the kernel shows that instance of the GPU whose capabilities are in `base`."""
    inner = f"gi{gi_id}" if ci_id is None else f"gi{gi_id}/ci{ci_id}"
    return (base / inner / "access").exists()


def _numbers(nodes: Iterable[Path]) -> frozenset[int]:
    found = set()
    for node in nodes:
        try:
            status = node.lstat()
        except OSError:
            continue
        if stat.S_ISCHR(status.st_mode):
            found.add(status.st_rdev)
    return frozenset(found)


def _is_closed(nodes: int, name: str, device: int, uid: int, gid: int) -> bool:
    try:
        there = os.lstat(name, dir_fd=nodes)
    except FileNotFoundError:
        return False
    wanted = (stat.S_IFCHR | CLOSED, device, uid, gid)
    return (there.st_mode, there.st_rdev, there.st_uid, there.st_gid) == wanted


def read_access(path: Path) -> Access:
    """Parse an access file: `DeviceFileMinor`, `DeviceFileMode`, `DeviceFileModify`, decimal."""
    try:
        lines = path.read_text("ascii").splitlines()
        fields = dict(line.split(": ", 1) for line in lines if ": " in line)
        return Access(
            path,
            int(fields["DeviceFileMinor"]),
            int(fields["DeviceFileMode"]),
            fields["DeviceFileModify"].strip() != "0",
        )
    except (OSError, KeyError, ValueError) as problem:
        raise DeviceNodeFault(
            f"capability file {path}: {type(problem).__name__}: {problem}",
            remedy="is the NVIDIA kernel module loaded, and is MIG mode on?",
        ) from problem


def capability_minors(gpu_minor: int, gi_id: int, ci_id: int) -> tuple[int, int]:
    """Minors of a GPU instance's and a compute instance's node (facts/mig.md#capabilities).

    Needed once the instance, and with it the access file, is gone.
    """
    gi = 3 + 135 * gpu_minor + 9 * gi_id
    return gi, gi + 1 + ci_id


def instance_of(minor: int, gpu_minor: int) -> tuple[int, int | None] | None:
    """GI id and CI id (None: the GI's own) of a capability minor, if it is one of that GPU's.

    The inverse of `capability_minors`.
    """
    inside = minor - 3 - 135 * gpu_minor
    if not 0 <= inside < 135:
        return None
    gi_id, rest = divmod(inside, 9)
    return gi_id, rest - 1 if rest else None
