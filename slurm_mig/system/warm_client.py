"""A hook's way to the helper that has everything loaded; the long way where it does not serve.

The hooks run this with bare Python: no site, no package, no module that is not built in. The
helper (`hooks/warm.py`) is asked to take the hook; only when it is told to go on, it begins.
Until then a helper that is absent, old, hung or full costs a moment and nothing else. One that
dies afterwards leaves what a killed hook leaves, and the same hook run again finishes that.
"""

from __future__ import annotations

import _socket
import posix
import sys

#: What the two understand each other by; the helper refuses another one.
PROTOCOL = b"1"

#: Seconds that a helper may take to take a hook.
PATIENCE = 0.5

TAKEN, BEGIN = b"t", b"b"

#: Bytes of an exit code; a signal that ended the hook is negative.
CODE = 4

LONG_WAY = "from slurm_mig.hooks import main; main()"


def taken(path: str, hook: str, environ: dict[bytes, bytes]) -> _socket.socket | None:
    """The link to a helper that has taken the hook, and waits for BEGIN; None without one."""
    link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    link.settimeout(PATIENCE)
    try:
        # By its directory: a whole path may be longer than a socket's may be (unix(7)).
        directory, _, name = path.rpartition("/")
        where = posix.open(directory, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            link.connect(f"/proc/self/fd/{where}/{name}")
        finally:
            posix.close(where)
        # Whoever listens is given the job's environment, and works for root: it must be root.
        peer = link.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], sys.byteorder) == posix.geteuid():
            words = [PROTOCOL, hook.encode(), *(b"%b=%b" % item for item in environ.items())]
            text = b"\0".join(words)
            link.sendall(len(text).to_bytes(4, "little") + text)
            if link.recv(1) == TAKEN:
                return link
    except OSError:
        pass
    link.close()
    return None


def serves(path: str, config: str) -> bool:
    """Whether hooks with that configuration are served there; nothing is begun."""
    link = taken(path, "", {b"SLURM_MIG_CONFIG": config.encode()})
    if link is not None:
        link.close()
    return link is not None


def deaf(path: str, configs: list[str]) -> str:
    """The path of a helper that is there, but takes no hook with the first of these; else empty."""
    try:
        there = posix.stat(path).st_mode & 0o170000 == 0o140000
    except OSError:
        return ""
    return path if there and configs and not serves(path, configs[0]) else ""


def ask(path: str, hook: str) -> int | None:
    """Have the helper run a hook; its exit code, None where the long way is left."""
    link = taken(path, hook, dict(posix.environ))
    if link is None:
        return None
    try:
        link.settimeout(None)
        # Only now its three descriptors: slurmd waits for whoever holds a hook's output, and
        # would for a helper that hangs.
        rights = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
        link.sendmsg([BEGIN], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        told = link.recv(CODE, _socket.MSG_WAITALL)
    except OSError:
        return None
    return int.from_bytes(told, "little", signed=True) if len(told) == CODE else None


def main(path: str, hook: str) -> None:
    """Run a hook, and end as it did."""
    code = ask(path, hook)
    if code is None:
        posix.execv(sys.executable, [sys.executable, "-I", "-c", LONG_WAY, hook])
    elif code < 0:
        posix.kill(posix.getpid(), -code)
    else:
        posix._exit(code)  # noqa: SLF001  # as in os
