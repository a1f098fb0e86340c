"""The helper: everything that hooks load is loaded, and each hook is a fork of it.

One fork stands ready, so that no hook waits for its making. The helper keeps nothing between
hooks: no driver session (which would be in the way of MIG mode and of resets), no ledger, no
lock. It never works itself, so each fork is as a hook is that has just been started. What it
does not serve, the hook's client (`system/warm_client.py`) does the long way.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import struct
import sys
import time
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from slurm_mig.config import load, locate
from slurm_mig.errors import ConfigFault
from slurm_mig.hooks.run import HELPED, PUT_OFF, run
from slurm_mig.mig.request import from_stamp
from slurm_mig.state.locks import lock_at
from slurm_mig.system import warm_client
from slurm_mig.system.trust import public_directory, without_umask
from slurm_mig.system.warm_client import BEGIN, CODE, PATIENCE, PROTOCOL, TAKEN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurm_mig.settings import Config

    #: Files, and how each was when it was loaded.
    Files = Sequence[tuple[Path, tuple[int, int] | None]]

    #: A fork that waits for a hook: its pid, and the socket on which it is given one.
    Ready = tuple[int, socket.socket]

#: Hooks and put-off teardowns at once; hooks beyond go the long way. Of each a node has 56 at most.
MOST: Final = 112

#: Seconds between two looks whether the socket is still this helper's, and at what has ended.
LOOK_EVERY: Final = 1.0

#: Longest environment that is taken, in bytes; the kernel gives a process no more by default.
LONGEST: Final = 8 << 20

#: How a fork tells its parent that files on the disk are no longer those that it has loaded.
OLD: Final = 75

#: A job's stamp, for what reads one to be made ready.
SAMPLE_STAMP: Final = "slurm-mig=1,1g.10gb/19/4:1"

#: What a hook loads when it comes to it.
LOADED: Final = (
    *("hooks.epilog", "hooks.prolog", "hooks.refusal", "node.fence", "node.node"),
    *("gpu.capabilities", "gpu.indexes", "gpu.nvml", "gpu.remedies", "mig.plan", "slurm.commands"),
    *("state.ledger", "state.locks", "state.monitoring", "state.run_files", "state.task_file"),
    "system.boot",
    *("system.detach", "system.hosts", "system.programs", "system.watchdog"),
    *("transaction.carve", "transaction.collect", "transaction.evidence"),
    *("transaction.several", "transaction.whole_gpu", "transaction.workbench"),
)

_F_SETSIG: Final = 10


def serve(environ: Mapping[str, str]) -> None:
    """Take hooks until another helper does, or the files that this one has loaded were replaced."""
    config = load(environ=environ)
    _load(config)
    files = _files()
    # What is here stays: forks share its memory, and need not look through it.
    gc.collect()
    gc.freeze()
    listener = _listen(config.warm)
    own = _seen(config.warm)
    busy: set[int] = set()
    ready: Ready | None = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        while _seen(config.warm) == own and not _reap(busy):
            ready = ready or _ready(listener, files)
            link = _accepted(listener)
            if link is not None:
                with link:
                    ready = _take(link, ready, busy)
    finally:
        # What was switched off is not to look like a helper that takes no hooks.
        if _seen(config.warm) == own:
            config.warm.unlink(missing_ok=True)


def _accepted(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except TimeoutError:
        return None
    except OSError:
        # No descriptor is to be had at present: hooks go the long way, and nothing spins.
        time.sleep(LOOK_EVERY)
        return None


def _load(config: Config) -> None:
    for name in LOADED:
        import_module(f"slurm_mig.{name}")
    for name in ("filelock", "json", "syslog", "ctypes.util", "encodings.ascii", "tomllib"):
        import_module(name)
    if config.library.startswith("simulator:"):
        import_module("slurm_mig.simulator.library")
        # Its MIG UUIDs are hashes.
        import_module("_sha1")
    # What a process makes once, when it first comes to it: filelock's signatures, expressions.
    lock_at(Path("/"))
    from_stamp(SAMPLE_STAMP)


def _files() -> Files:
    """The files of everything that is loaded, as they are now."""
    names = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    # Of Python's own one stands for all: they are replaced together.
    own = f"{Path(os.__file__).parent}/"
    loaded = [name for name in names if name and (not name.startswith(own) or "-packages" in name)]
    return [(path, _seen(path)) for path in map(Path, [os.__file__, *loaded])]


def _seen(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _listen(path: Path) -> socket.socket:
    """Listen at `path`, in place of whatever helper did; for root alone."""
    public_directory(path.parent)
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(LOOK_EVERY)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    where = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with without_umask():
        os.umask(0o177)
        # By its directory: a whole path may be longer than a socket's may be (unix(7)).
        listener.bind(f"/proc/self/fd/{where}/{fresh.name}")
    os.close(where)
    listener.listen(2 * MOST)
    fresh.rename(path)
    return listener


def _ready(listener: socket.socket, files: Files) -> Ready | None:
    """A fork that waits for one hook, or for this process's end; None where there is no room."""
    with suppress(OSError):
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as failed:
            failed.callback(ours.close)
            child = os.fork()
            if child == 0:
                _wait((listener, ours), theirs, files)
            failed.pop_all()
            return child, ours
    return None


def _wait(parents: Sequence[socket.socket], theirs: socket.socket, files: Files) -> NoReturn:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for link in parents:
            link.close()
        _, descriptors, _, _ = socket.recv_fds(theirs, 1, 1)
        theirs.close()
        if descriptors:
            _hook(socket.socket(fileno=descriptors[0]), files)
    finally:
        os._exit(0)


def _take(link: socket.socket, ready: Ready | None, busy: set[int]) -> Ready | None:
    """Give a hook to the fork that is ready, which is returned if it still is.

    What is not taken is closed, and goes the long way.
    """
    if ready is None or len(busy) >= MOST or not _is_ours(link):
        return ready
    child, ours = ready
    # It may have been killed, for want of memory say.
    with ours, suppress(OSError):
        socket.send_fds(ours, [TAKEN], [link.fileno()])
        busy.add(child)
    return None


def _reap(busy: set[int]) -> bool:
    """Forget forks that have ended; whether one of them found this helper old."""
    old = False
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            busy.discard(ended[0])
            old = old or os.waitstatus_to_exitcode(ended[1]) == OLD
    return old


def _is_ours(link: socket.socket) -> bool:
    """Root's, and where this process is: mounts and paths must mean the same to both."""
    told = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("iII", told)
    if uid != os.geteuid():
        return False
    with suppress(OSError):
        return all(
            Path(f"/proc/{pid}/{name}").samefile(f"/proc/self/{name}")
            for name in ("ns/mnt", "ns/pid", "root")
        )
    return False


def _hook(link: socket.socket, files: Files) -> NoReturn:
    """One hook, in a fork: from what the client hands over to its exit code."""
    # What it makes goes with the process.
    gc.disable()
    end = 1
    try:
        with suppress(ValueError, OSError, ConfigFault):
            end = _run(link, files)
    finally:
        os._exit(end)


def _run(link: socket.socket, files: Files) -> int:
    link.settimeout(PATIENCE)
    hook, environ = _receive(link)
    if any(_seen(path) != seen for path, seen in files):
        return OLD
    link.sendall(TAKEN)
    # A client that has waited too long is gone by now, and has begun without us.
    begin, descriptors, _, _ = socket.recv_fds(link, 1, 3)
    if begin != BEGIN or len(descriptors) != 3:
        return 0
    link.settimeout(None)
    _become(link, environ, descriptors)
    told = {**os.environ, HELPED: "1"}
    code = run(hook, told, watched=True, caller=link)
    sys.stdout.flush()
    put_off = code == PUT_OFF
    if put_off:
        _let_go(link)
    with suppress(OSError):
        link.sendall((0 if put_off else code).to_bytes(CODE, "little", signed=True))
    if put_off:
        # Nobody waits for this process any more.
        run("teardown", told, watched=True)
    return 0


def _let_go(link: socket.socket) -> None:
    """Hold nothing that slurmd waits for, and go on whatever becomes of the client."""
    fcntl.fcntl(link, fcntl.F_SETFL, fcntl.fcntl(link, fcntl.F_GETFL) & ~os.O_ASYNC)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)


def _receive(link: socket.socket) -> tuple[str, dict[bytes, bytes]]:
    """A hook's name and its environment; ValueError for what is not to be served."""
    size = int.from_bytes(_exactly(link, 4), "little")
    if size > LONGEST:
        raise ValueError
    protocol, client, hook, *words = _exactly(link, size).split(b"\0")
    # Of another installation beside this one: its hooks run what it has.
    if protocol != PROTOCOL or not Path(os.fsdecode(client)).samefile(warm_client.__file__):
        raise ValueError
    environ = dict(word.split(b"=", 1) for word in words)
    told = {os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()}
    if locate(None, told) != locate(None, os.environ):
        # Another node's on this host.
        raise ValueError
    return hook.decode(), environ


def _exactly(link: socket.socket, size: int) -> bytes:
    text = b""
    while len(text) < size:
        part = link.recv(size - len(text))
        if not part:
            raise ValueError
        text += part
    return text


def _become(link: socket.socket, environ: dict[bytes, bytes], descriptors: list[int]) -> None:
    """Be the hook that was called: its environment, its output, and an end with its end."""
    os.setsid()
    os.umask(0o022)
    os.environb.clear()
    os.environb.update(environ)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # Nobody must go on carving for a hook that Slurm has given up: when its client is told to
    # end, or dies, something comes on the link, and the kernel tells of that by a signal.
    fcntl.fcntl(link, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(link, _F_SETSIG, signal.SIGHUP)
    fcntl.fcntl(link, fcntl.F_SETFL, fcntl.fcntl(link, fcntl.F_GETFL) | os.O_ASYNC)
    # It may have been so just before.
    with suppress(BlockingIOError):
        link.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        os._exit(1)


def main() -> None:
    """What `slurm-mig warm` runs."""
    serve(os.environ)
