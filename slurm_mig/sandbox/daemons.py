"""Daemons that end with the program that started them, found again by where they work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PR_SET_PDEATHSIG: Final = 1

#: The first and the last port that the kernel gives to clients.
_CLIENTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def start_daemon(
    command: Sequence[str], log: Path, environ: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground that the kernel ends when this process dies."""
    libc = ctypes.CDLL(None)

    def die_with_parent() -> None:
        os.setsid()
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environ),
            preexec_fn=die_with_parent,  # noqa: PLW1509  # this program starts daemons from one thread
        )


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a daemon: politely, then not."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now, and that the kernel gives to no client.

    A daemon that is started again would else find its port taken by a connection.
    """
    lowest = int(_CLIENTS.read_text("ascii").split()[0])
    below = [*range(min(10000, lowest // 2), lowest)]
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.SystemRandom().sample(below, len(below)):
            if len(found) == count:
                break
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
        return found


def working_in(root: Path) -> Iterator[int]:
    """Processes that have their working directory, program or an open file below `root`.

    slurmstepd and jobs leave their daemon's process tree; this finds them.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) != os.getpid() and _touches(entry, str(root)):
            yield int(entry.name)


def _touches(entry: Path, root: str) -> bool:
    links = [entry / "cwd", entry / "exe"]
    with contextlib.suppress(OSError):
        links += list((entry / "fd").iterdir())
    for link in links:
        # Processes come and go while we look.
        with contextlib.suppress(OSError):
            if f"{link.readlink()}/".startswith(f"{root}/"):
                return True
    return False


def kill_all_in(root: Path, patience: float = 10.0) -> list[int]:
    """Kill what still works below `root`; returns what would not die."""
    until = time.monotonic() + patience
    while left := list(working_in(root)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            return left
        time.sleep(0.05)
    return []
