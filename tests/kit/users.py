"""What an unprivileged user can do, tried with their rights."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import tempfile
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


#: The simulated driver makes MIG UUIDs with it; it is loaded when the first is made.
HASHES = "_sha1"


def cli_as(uid: int, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command as an unprivileged user, in a fork: he may not reach this Python's files."""
    from slurm_mig import cli
    from slurm_mig.cli import VERBS
    from slurm_mig.node import node

    for verb in VERBS:
        cli.cli.get_command(None, verb)  # type: ignore[arg-type]
    assert node
    # What commands import when they need it; below /root the user cannot.
    for name in ("ctypes.util", "pynvml", "slurm_mig.gpu.nvml", "slurm_mig.simulator.library"):
        import_module(name)
    import_module(HASHES)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                os.environ.clear()
                os.environ.update({"PATH": "/usr/bin:/bin"} | environ)
                os.chdir("/")
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
                sys.argv = ["slurm-mig", *arguments]
                cli.main()
            except SystemExit as leaving:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(leaving.code if isinstance(leaving.code, int) else 0)
            except BaseException:  # noqa: BLE001  # a child must not return into pytest
                os._exit(99)
            sys.stdout.flush()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def as_user(uid: int, work: Callable[[], object]) -> object:
    """What `work` returns, or the OSError that it raises, in a fork with a user's rights."""
    import_module(HASHES)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir("/")
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            try:
                told: object = work()
            except OSError as problem:
                told = OSError(problem.errno, problem.strerror)
            os.write(writing, pickle.dumps(told))
        except BaseException as problem:  # noqa: BLE001  # a child must not return into pytest
            os.write(writing, pickle.dumps(AssertionError(repr(problem))))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pickle.load(pipe)
    os.waitpid(pid, 0)
    if isinstance(told, AssertionError):
        raise told
    return told


def opened_by(uid: int, path: Path, flags: int = os.O_RDONLY) -> bool:
    """Whether a user may open it; a device without a driver says ENXIO only once he may."""
    found = as_user(uid, lambda: os.close(os.open(path, flags | os.O_NONBLOCK)))
    return found is None or (isinstance(found, OSError) and found.errno == errno.ENXIO)


ALICE, BOB = 64001, 64002
