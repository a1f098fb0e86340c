"""The files around a simulated driver: capability tree, device nodes, boot id.

Formats and numbers: facts/mig.md#capabilities (nv-caps.c, nvidia-modprobe-utils.c). One
thing differs on purpose: an access file's `DeviceFileModify` line comes first,
because a plain file keeps what is written at its beginning, and so the product's
write has the same effect as on the kernel's file.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from slurm_mig.system.trust import below

if TYPE_CHECKING:
    from pathlib import Path

    from slurm_mig.simulator.board import Board

#: Majors that Linux reserves for local use (devices.txt 120-127): never a real driver's.
GPU_MAJOR: Final = 120
CAPS_MAJOR: Final = 121

CONTROL_MINOR: Final = 255
UVM_MINOR: Final = 254
GI_SPAN: Final = 9
GPU_SPAN: Final = 135
FIRST_GI: Final = 3


def gi_minor(gpu: int, gi_id: int) -> int:
    """Capability minor of a GPU instance (GPU minor 0..31, GI id 0..14)."""
    return FIRST_GI + GPU_SPAN * gpu + GI_SPAN * gi_id


def ci_minor(gpu: int, gi_id: int, ci_id: int) -> int:
    """Capability minor of a compute instance (CI id 0..7)."""
    return gi_minor(gpu, gi_id) + 1 + ci_id


class Tree:
    """Makes and removes the files below `<machine>/proc` and `<machine>/dev`."""

    def __init__(self, root: Path) -> None:
        self.proc = root / "proc"
        self.dev = root / "dev"
        self.capabilities = self.proc / "driver/nvidia/capabilities"
        self.boot_id_file = self.proc / "sys/kernel/random/boot_id"
        self.params = self.proc / "driver/nvidia/params"
        self.modeset = root / "sys/module/nvidia_drm/parameters/modeset"
        self._no_persistence = root / "no-persistence"

    def make(self, gpu_minors: list[int]) -> None:
        """Everything a freshly booted machine has."""
        self.boot_id_file.parent.mkdir(parents=True)
        self.new_boot_id()
        (self.proc / "devices").write_text(
            "Character devices:\n"
            f"{GPU_MAJOR:3d} nvidia\n{GPU_MAJOR:3d} nvidiactl\n{CAPS_MAJOR:3d} nvidia-caps\n"
            "\nBlock devices:\n",
            "ascii",
        )
        self._make_minors(gpu_minors)
        self.params.parent.mkdir(parents=True, exist_ok=True)
        self.set_modify(on=True)
        for name, minor, mode in (("config", 1, 256), ("monitor", 2, 292)):
            self._write_access(self.capabilities / "mig" / name, minor, mode)
        self.dev.mkdir()
        for gpu in gpu_minors:
            self._node(self.dev / f"nvidia{gpu}", GPU_MAJOR, gpu)
        self._node(self.dev / "nvidiactl", GPU_MAJOR, CONTROL_MINOR)
        self._node(self.dev / "nvidia-uvm", GPU_MAJOR, UVM_MINOR)

    @property
    def persistence(self) -> bool:
        """Whether the driver keeps its state without clients: on, as with nvidia-persistenced."""
        return not self._no_persistence.exists()

    def set_persistence(self, *, on: bool) -> None:
        """What nvidia-persistenced does, or `nvidia-smi -pm`, for every GPU."""
        if on:
            self._no_persistence.unlink(missing_ok=True)
        else:
            self._no_persistence.touch()

    def load_drm(self, *, modeset: bool) -> None:
        """Load nvidia_drm: its parameter shows in /sys, as Y or N."""
        self.modeset.parent.mkdir(parents=True, exist_ok=True)
        self.modeset.write_text("Y\n" if modeset else "N\n", "ascii")

    def set_modify(self, *, on: bool) -> None:
        """The module option NVreg_ModifyDeviceFiles, as /proc/driver/nvidia/params shows it."""
        self.params.write_text(f"ModifyDeviceFiles: {int(on)}\n", "ascii")

    def new_boot_id(self) -> None:
        """What the kernel does at power-on."""
        import uuid

        self.boot_id_file.write_text(f"{uuid.uuid4()}\n", "ascii")

    def forget_instances(self, gpu_minors: list[int]) -> None:
        """Driver unloaded or machine rebooted: entries and nodes are gone."""
        import shutil

        for gpu in gpu_minors:
            shutil.rmtree(self._gpu(gpu), ignore_errors=True)
        shutil.rmtree(self.dev / "nvidia-caps", ignore_errors=True)

    def show(self, gpu: int, board: Board) -> None:
        """Make the access entries of a GPU match its instances."""
        import shutil

        wanted = {f"gi{item.gi_id}": item for item in board.instances}
        base = self._gpu(gpu)
        present = {path.name for path in base.iterdir()} if base.is_dir() else set()
        for name in present - set(wanted):
            shutil.rmtree(base / name)
        for name, item in wanted.items():
            self._write_access(base / name / "access", gi_minor(gpu, item.gi_id), 292)
            kept = {f"ci{compute.ci_id}" for compute in item.compute}
            for path in below(base / name, "ci"):
                if path.name not in kept:
                    shutil.rmtree(path)
            for compute in item.compute:
                self._write_access(
                    base / name / f"ci{compute.ci_id}" / "access",
                    ci_minor(gpu, item.gi_id, compute.ci_id),
                    292,
                )

    def modprobe(self, access: Path) -> Path:
        """What setuid-root `nvidia-modprobe -f ACCESS` does for any user.

        With `DeviceFileModify: 1` it makes the node or puts its mode and owner
        back; with 0 it leaves the node alone and needs it to exist.
        """
        fields = dict(line.split(": ") for line in access.read_text("ascii").splitlines())
        node = self.dev / "nvidia-caps" / f"nvidia-cap{fields['DeviceFileMinor']}"
        if fields["DeviceFileModify"] != "1":
            node.stat()
            return node
        node.parent.mkdir(mode=0o755, exist_ok=True)
        if not node.exists():
            self._node(node, CAPS_MAJOR, int(fields["DeviceFileMinor"]))
        node.chmod(int(fields["DeviceFileMode"]))
        os.chown(node, 0, 0)
        return node

    def _gpu(self, gpu: int) -> Path:
        return self.capabilities / f"gpu{gpu}" / "mig"

    def _make_minors(self, gpu_minors: list[int]) -> None:
        """The static table: every possible entry, whether or not it exists."""
        lines = ["config 1", "monitor 2"]
        for gpu in gpu_minors:
            for gi_id in range(15):
                lines.append(f"gpu{gpu}/gi{gi_id}/access {gi_minor(gpu, gi_id)}")
                lines += [
                    f"gpu{gpu}/gi{gi_id}/ci{ci}/access {ci_minor(gpu, gi_id, ci)}"
                    for ci in range(8)
                ]
        table = self.proc / "driver/nvidia-caps/mig-minors"
        table.parent.mkdir(parents=True)
        table.write_text("\n".join(lines) + "\n", "ascii")

    def _write_access(self, path: Path, minor: int, mode: int) -> None:
        """A new entry starts with the module's option; one that exists stays."""
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Machines that an earlier release made have no such file.
        modify = self.params.read_text("ascii").split()[1] if self.params.exists() else "1"
        path.write_text(
            f"DeviceFileModify: {modify}\nDeviceFileMinor: {minor}\nDeviceFileMode: {mode}\n",
            "ascii",
        )
        path.chmod(0o444)

    @staticmethod
    def _node(path: Path, major: int, minor: int) -> None:
        os.mknod(path, 0o020666, os.makedev(major, minor))
        path.chmod(0o666)
