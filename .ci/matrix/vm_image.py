"""Debian as a disk: a root made once by debootstrap, kept, and turned into a file system."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from matrix import CannotRun
from roots import Root, cache

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: A small system that boots; Slurm comes with the quick start.
PACKAGES: Final = (
    "systemd-sysv", "dbus", "udev", "linux-image-cloud-amd64", "openssh-server", "iproute2",
    "rsyslog", "logrotate", "python3", "procps", "zstd",
)  # fmt: skip

#: What the quick start's apt-get takes from here, for the machine has no network.
LATER: Final = ("slurmctld", "slurmd", "slurm-client", "munge", "python3-venv", "acl")

#: The machine's name in the quick start, and its users.
HOST: Final = "gpu01"
USERS: Final = {"alice": 64001, "bob": 64002}

#: Bytes of the disk; only what is written takes room.
SIZE: Final = 6 << 30

#: As Debian's installer leaves a machine: its own name is not at localhost's address.
FILES: Final = {
    "etc/hostname": f"{HOST}\n",
    "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOST}\n",
    "etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
    "etc/systemd/network/all.network": "[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n",
    # Before the power is cut: what was said stays.
    "var/log/journal/.keep": "",
    # An emulated machine is slow: nothing else of Debian's is wanted meanwhile.
    "etc/apt/apt.conf.d/20auto-upgrades": 'APT::Periodic::Enable "0";\n',
}
#: Timers that would work while a check looks.
OFF: Final = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer",
    "dpkg-db-backup.timer", "systemd-tmpfiles-clean.timer",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Image(Root):
    """A root that boots, and the disk that is made of it."""

    @property
    def directory(self) -> Path:
        """Another recipe is another root."""
        recipe = repr((PACKAGES, LATER, USERS, SIZE, FILES, OFF))
        return cache() / f"{self.suite}-vm{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"

    @property
    def packages(self) -> list[str]:
        """What is installed in it."""
        return list(PACKAGES)

    @property
    def disk(self) -> Path:
        """The file system; overlays lie over it, so it stays as it is."""
        return self.directory / "disk.img"

    @property
    def prepared(self) -> Path:
        """A layer over it with the quick start's Debian packages (vm.py)."""
        return self.directory / "prepared.qcow2"

    @property
    def key(self) -> Path:
        """The private key with which root is let in."""
        return self.directory / "key"

    def kernel(self) -> tuple[Path, Path]:
        """Kernel and initial file system, for a boot without a boot loader."""
        return self.directory / "vmlinuz", self.directory / "initrd.img"

    def _clear(self) -> None:
        """Only what is half made: an image is big, and its recipe rarely changes."""
        for path in cache().glob(f"{self.suite}-vm*"):
            if path.suffix == ".new" or path != self.directory:
                shutil.rmtree(path)

    def _build(self, new: Path, archive: str) -> None:
        new.mkdir()
        root = new / "root"
        with self.log("make").open("wb") as output:
            self._tool(output, "make", root, self.suite, archive, *self.packages)
            fetch = ["apt-get", "-qq", "-y", "--download-only", "install", *LATER]
            self._run(output, ["chroot", root, *fetch])
            self._run(output, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", new / "key"])
            settle(root, (new / "key.pub").read_text())
            for name in ("vmlinuz", "initrd.img"):
                (found,) = (root / "boot").glob(f"{name}-*")
                shutil.copy(found, new / name)
            with (new / "disk.img").open("wb") as disk:
                disk.truncate(SIZE)
            self._run(output, ["mkfs.ext4", "-q", "-F", "-d", root, new / "disk.img"])
        shutil.rmtree(root)
        new.rename(self.directory)


def settle(root: Path, key: str) -> None:
    """What an installer would have asked: names, users, network, who may come in."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with contextlib.suppress(FileNotFoundError):
        (root / "usr/sbin/policy-rc.d").unlink()
    (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    (root / "root/.ssh/authorized_keys").write_text(key)
    for user, uid in USERS.items():
        inside(root, "useradd", "--create-home", "--shell", "/bin/bash", "--uid", str(uid), user)
    for unit in ("systemd-networkd.service", "ssh.service"):
        inside(root, "systemctl", "--quiet", "enable", unit)
    inside(root, "systemctl", "--quiet", "mask", *OFF)


def inside(root: Path, *command: str) -> None:
    """A command in the root; CannotRun when it fails."""
    done = subprocess.run(["chroot", root, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"{command[0]} in the root: {done.stderr.strip()}")


def overlay(base: Path, top: Path, *, form: str) -> Path:
    """An empty layer: what a machine writes is in `top`, `base` stays as it is."""
    command: Sequence[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        base,
        "-F",
        form,
        top,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"no layer over {base.name}: {last_line(done.stderr)}")
    return top


def last_line(text: str) -> str:
    """The line that most likely says why."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]
