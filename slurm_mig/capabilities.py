"""Capability files and device nodes: who may open an instance.

A process that computes on an instance opens the GPU instance's and the compute
instance's node in /dev/nvidia-caps. The kernel makes no nodes; the setuid
`nvidia-modprobe` makes them for whoever asks, open to all, as long as the
access file says `DeviceFileModify: 1`. So: write 0 there first, then give the
node to the job's user. The flag dies with the instance (mig-facts.md c).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import DeviceNodeFault

if TYPE_CHECKING:
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
        for path in self._access_files(gpu_minor, gi_id, ci_id):
            self._forbid_changes(path)
            self._give(self.node(read_access(path)), major, read_access(path).minor, uid, gid)

    def remove(self, gpu_minor: int, gi_id: int, ci_id: int) -> None:
        """Take the nodes away again; made anew for the next owner of these ids."""
        for minor in capability_minors(gpu_minor, gi_id, ci_id):
            self.remove_node(self._nodes / f"nvidia-cap{minor}")

    def remove_orphans(self, gpu_minor: int) -> None:
        """Take away a GPU's nodes whose instance is gone, whoever made them.

        A hook that dies before it has written down the ids of what it made leaves
        nodes that no record names: the next instance with these ids would be open
        to the user of the dead one.
        """
        if not self._nodes.is_dir():
            return
        first = capability_minors(gpu_minor, 0, 0)[0]
        for node in self._nodes.glob("nvidia-cap[0-9]*"):
            gi_id, place = divmod(int(node.name.removeprefix("nvidia-cap")) - first, 9)
            if not 0 <= gi_id < 15:
                continue
            gi, ci = self._access_files(gpu_minor, gi_id, place - 1)
            if not (ci if place else gi).exists():
                self.remove_node(node)

    @staticmethod
    def remove_node(node: Path) -> None:
        """Remove one node; gone already is success."""
        try:
            node.unlink(missing_ok=True)
        except OSError as problem:
            raise DeviceNodeFault(f"remove {node}: {problem.strerror}") from problem

    def node(self, access: Access) -> Path:
        """The device node of a capability."""
        return self._nodes / f"nvidia-cap{access.minor}"

    def _access_files(self, gpu_minor: int, gi_id: int, ci_id: int) -> tuple[Path, Path]:
        base = self._proc / f"driver/nvidia/capabilities/gpu{gpu_minor}/mig/gi{gi_id}"
        return base / "access", base / f"ci{ci_id}" / "access"

    def _major(self) -> int:
        """Major of the capability nodes: dynamic, so read from /proc/devices."""
        path = self._proc / "devices"
        try:
            lines = path.read_text("ascii").splitlines()
        except OSError as problem:
            raise DeviceNodeFault(f"read {path}: {problem.strerror}") from problem
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
            raise DeviceNodeFault(f"write {path}: {problem.strerror}") from problem
        if read_access(path).modify:
            raise DeviceNodeFault(
                f"{path} still says DeviceFileModify: 1 after 0 was written",
                remedy="any user could open the instance; see docs/security.md",
            )

    def _give(self, node: Path, major: int, minor: int, uid: int, gid: int) -> None:
        try:
            self._nodes.mkdir(exist_ok=True)
            # Every job's user has to get through, whatever the umask was, and also where the
            # one who made it died before this line.
            self._nodes.chmod(0o755)
            if _is_closed(node, os.makedev(major, minor), uid, gid):
                # Made anew it would be missing for a moment, and for good if this hook dies in it.
                return
            # Always a fresh node: one that nvidia-modprobe made is open to all.
            node.unlink(missing_ok=True)
            os.mknod(node, stat.S_IFCHR, os.makedev(major, minor))
            os.chown(node, uid, gid)
            node.chmod(CLOSED)
        except OSError as problem:
            raise DeviceNodeFault(f"make {node}: {problem.strerror}") from problem


def _is_closed(node: Path, device: int, uid: int, gid: int) -> bool:
    try:
        there = node.lstat()
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
    """Minors of a GPU instance's and a compute instance's node (mig-facts.md c).

    Needed once the instance, and with it the access file, is gone.
    """
    gi = 3 + 135 * gpu_minor + 9 * gi_id
    return gi, gi + 1 + ci_id
