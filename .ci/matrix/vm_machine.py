"""One emulated machine: booted, asked by ssh, switched off as a power cut does."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matrix import CannotRun
from vm_image import last_line, overlay

if TYPE_CHECKING:
    from vm_image import Image

#: Seconds for a boot. An emulated one takes 15 on a calm machine.
BOOT: Final = 600

#: Seconds for a command, unless it is told otherwise.
PATIENCE: Final = 480


def accelerated() -> bool:
    """Whether the processor helps: a /dev/kvm alone proves nothing."""
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return flags is not None and Path("/dev/kvm").exists()


class Failed(AssertionError):
    """A command in the machine ended otherwise than it should."""


class Machine:
    """A disk over an image, and the process that is the machine."""

    def __init__(self, image: Image, place: Path) -> None:
        self.image = image
        self.place = place
        base, form = (image.prepared, "qcow2") if image.prepared.exists() else (image.disk, "raw")
        self.disk = overlay(base, place / "disk.qcow2", form=form)
        self.console = place / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    # -- power ------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on, and wait until it lets root in."""
        self._port = _free_port()
        kernel, initial = self.image.kernel()
        engine = ["-accel", "kvm", "-cpu", "host"] if accelerated() else [
            "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off",
        ]  # fmt: skip
        command: list[str | Path] = [
            "qemu-system-x86_64", *engine, "-m", "2048", "-smp", "2",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-serial", f"file:{self.console}",
            "-drive", f"file={self.disk},if=virtio,format=qcow2",
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
            "-kernel", kernel, "-initrd", initial,
            "-append", "root=/dev/vda rw console=ttyS0 mitigations=off quiet",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.wait()

    def wait(self) -> None:
        """Until it lets root in; CannotRun when it does not, with its console's last line."""
        deadline = time.monotonic() + BOOT
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._ssh("true", timeout=20).returncode == 0:
                    return
            if time.monotonic() > deadline or self._over():
                text = self.console.read_text("utf-8", "replace") if self.console.exists() else ""
                raise CannotRun(f"the machine does not boot: {last_line(text)}")
            time.sleep(1)

    def cut(self) -> None:
        """The power is gone at this moment."""
        self._hang_up()
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def reboot(self) -> None:
        """As an administrator does it; the boot after it is another one."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh("systemctl reboot", timeout=20)
        self._hang_up()
        deadline = time.monotonic() + BOOT
        while time.monotonic() < deadline:
            self.wait()
            with contextlib.suppress(Failed, subprocess.TimeoutExpired):
                if self.run("cat /proc/sys/kernel/random/boot_id") != before:
                    return
            self._hang_up()
            time.sleep(1)
        raise CannotRun("the machine does not reboot")

    def off(self) -> None:
        """Everything written, then off; a machine that hangs is switched off all the same."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh("sync; systemctl poweroff", timeout=20)
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(90)
        self.cut()

    # -- commands ---------------------------------------------------------------------------

    def run(
        self, text: str, *, user: str = "root", code: int | None = 0, timeout: float = PATIENCE
    ) -> str:
        """What a command says, on both of its streams; Failed for another exit code."""
        if user != "root":
            text = f"runuser -l {user} -c {shlex.quote(text)}"
        try:
            done = self._ssh(f"exec 2>&1 </dev/null; {text}", timeout=timeout)
        except subprocess.TimeoutExpired as hung:
            raise Failed(f"{text}\nstill not done after {timeout:.0f} s") from hung
        if code is not None and done.returncode != code:
            raise Failed(f"{text}\nexit {done.returncode}, not {code}:\n{done.stdout}{done.stderr}")
        return done.stdout.rstrip("\n")

    def until(self, text: str, *, timeout: float = PATIENCE) -> None:
        """Wait until a shell condition holds."""
        # Each look takes an emulated processor's time from what is waited for.
        loop = f"until {{ {text}\n}}; do sleep 2; done"
        self.run(f"timeout {timeout:.0f} sh -c {shlex.quote(loop)}", timeout=timeout + 60)

    def put(self, source: Path, target: str) -> None:
        """A file into the machine."""
        with source.open("rb") as content:
            done = subprocess.run(
                [*self._words(), f"cat >{shlex.quote(target)}"], stdin=content, capture_output=True,
                timeout=PATIENCE, check=False,
            )  # fmt: skip
        if done.returncode:
            raise Failed(f"{source.name} could not be copied: {done.stderr.decode()}")

    def _words(self) -> list[str]:
        options = {
            "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "LogLevel": "ERROR",
            "BatchMode": "yes", "ConnectTimeout": "15", "ControlMaster": "auto",
            "ControlPath": f"{self.place}/ssh", "ControlPersist": "600",
            "ServerAliveInterval": "20", "ServerAliveCountMax": "6",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [
            "ssh",
            "-F",
            "none",
            "-i",
            str(self.image.key),
            "-p",
            str(self._port),
            *words,
            "root@127.0.0.1",
        ]

    def _ssh(self, text: str, *, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._words(), text], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=timeout, check=False,
        )  # fmt: skip

    def _hang_up(self) -> None:
        """The shared connection ends, or the next command would wait for a machine that is gone."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*self._words(), "-O", "exit"], capture_output=True, timeout=10, check=False
            )
        (self.place / "ssh").unlink(missing_ok=True)

    def _over(self) -> bool:
        return self._process is None or self._process.poll() is not None


def _free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
