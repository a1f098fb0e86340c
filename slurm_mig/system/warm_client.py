"""A hook's way to the helper that has everything loaded; the long way where it does not serve.

The hooks run this with bare Python: no site, no package, no module that is not built in. The
helper (`hooks/warm.py`) is asked to take the hook; only when it is told to go on, it begins.
Until then a helper that is absent, old, hung or full costs a moment and nothing else. One that
dies afterwards leaves what a killed hook leaves, and the same hook run again finishes that.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal without its names
import _socket
import posix
import sys

#: What the two understand each other by; the helper refuses another one.
PROTOCOL = b"2"

#: Seconds that a helper may take to take a hook.
PATIENCE = 0.5

TAKEN, BEGIN = b"t", b"b"

#: Bytes of an exit code; a signal that ended the hook is negative.
CODE = 4

#: Signals that end a hook from outside; slurmd sends TERM at PrologEpilogTimeout.
ENDINGS = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT)

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
            own = __file__.encode("utf-8", "surrogateescape")
            words = [PROTOCOL, own, hook.encode(), *(b"%b=%b" % item for item in environ.items())]
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
    came = _hand_over_signals(link)
    try:
        link.settimeout(None)
        # Only now its three descriptors: slurmd waits for whoever holds a hook's output, and
        # would for a helper that hangs.
        rights = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))
        link.sendmsg([BEGIN], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        told = link.recv(CODE, _socket.MSG_WAITALL)
    except OSError:
        told = b""
    if len(told) == CODE:
        return int.from_bytes(told, "little", signed=True)
    # Nobody does it again for a Slurm that has given it up.
    return -came[0] if came else None


def _hand_over_signals(link: _socket.socket) -> list[int]:
    """Let the work say what ended it, as a hook without helper does; the signals that came.

    A second one of a kind ends this process: the work may hang.
    """
    came: list[int] = []

    def hand_over(number: int, _: object) -> None:
        _signal.signal(number, _signal.SIG_DFL)
        came.append(number)
        try:
            link.send(bytes([number]), _socket.MSG_DONTWAIT)
        except OSError:
            return  # It has just ended, as the link is about to tell.

    for number in ENDINGS:
        _signal.signal(number, hand_over)
    return came


def main(path: str, hook: str) -> None:
    """Run a hook, and end as it did."""
    code = ask(path, hook)
    if code is None:
        posix.execv(sys.executable, [sys.executable, "-I", "-c", LONG_WAY, hook])
    elif code < 0:
        if -code in ENDINGS:
            _signal.signal(-code, _signal.SIG_DFL)
        posix.kill(posix.getpid(), -code)
    else:
        posix._exit(code)  # noqa: SLF001  # as in os
