"""Work in a process of its own, watched by a parent that gives it up after a deadline.

A call into the driver can hang in the kernel, where no signal reaches it. So a hook's
work is done by a child: the parent waits, and when the time has come it kills the child
or, where that is not possible, leaves it behind. The child is in a session of its own and
holds nothing of the parent's output, for which slurmd would wait (facts/slurm.md#failures). It
dies with its parent: nobody must go on carving for a hook that Slurm has given up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Final, NoReturn

from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

#: Signals that end a hook from outside; slurmd sends TERM at PrologEpilogTimeout.
ENDINGS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

#: Seconds a killed child has to be gone; in an uninterruptible call it stays.
REAP: Final = 1.0

#: Bytes of a note: what is said at present, in one write.
NOTE: Final = 400

_OURS: Final = (signal.SIGCHLD, *ENDINGS)
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Ended:
    """How watched work ended.

    `code` is its exit code, `killed` the signal that ended it instead; both are None
    when it was given up: at the deadline, or because `by` ended the watcher. `stuck` is
    the pid of a child that could not be killed. `doing` is what the work said last,
    `output` what it wrote to its standard output and error.
    """

    code: int | None
    killed: int | None
    by: signal.Signals | None
    stuck: int | None
    doing: str
    output: str


class Note:
    """A line in memory that the child writes and the parent reads, without waiting; and its end."""

    def __init__(self) -> None:
        self.file = os.memfd_create("slurm-mig-note")
        self.teller = 0

    def tell(self, text: str) -> None:
        """Say what is done now; of what its own children do the teller says nothing."""
        # A detached child has closed this file: the number may be that of another one.
        if os.getpid() == self.teller:
            os.pwrite(self.file, text.encode("utf-8", "replace")[:NOTE].ljust(NOTE), 0)

    def read(self) -> str:
        """What was said last."""
        return os.pread(self.file, NOTE, 0).decode("utf-8", "replace").strip()

    def end(self, code: int, parent: int) -> None:
        """Say that the work is done: taking a process apart takes as long as forking it did."""
        os.pwrite(self.file, bytes([code & 0xFF]), NOTE)
        os.kill(parent, signal.SIGCHLD)

    def status(self) -> int | None:
        """The wait status that is to come from a child whose work is done."""
        code = os.pread(self.file, 1, NOTE)
        return code[0] << 8 if code else None


def watched(
    work: Callable[[Callable[[str], None]], int], deadline: float, caller: socket | None = None
) -> Ended:
    """Do `work` in a child for at most `deadline` seconds; it is handed a way to say what it does.

    `caller` is whom this process works for: SIGHUP tells of the number of a signal that came
    to it, or of its end.

    Signals that end a process are held back until then. When the work came to its end they
    have their default effect again: who goes on to exit with 0 cannot have overlooked one.
    """
    until = time.monotonic() + deadline
    for number in _OURS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    note, output, parent = Note(), os.memfd_create("slurm-mig-output"), os.getpid()
    child = os.fork()
    if child == 0:
        _work(work, note, output, parent)
    ended = _watch(child, until, note, output, caller)
    if ended.code is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    return ended


def _watch(child: int, until: float, note: Note, output: int, caller: socket | None) -> Ended:
    status, by = _wait(child, until, note)
    if by == signal.SIGHUP and caller is not None:
        caller.settimeout(0)
        with contextlib.suppress(OSError):
            by = signal.Signals((caller.recv(1) or bytes([by]))[0])
    stuck = None
    if status is None:
        _kill(child)
        # Slurm's KILL follows its TERM within 10 ms (run_command.c): no time to wait then.
        if by is None and _wait(child, time.monotonic() + REAP, note)[0] is None:
            stuck = child
    exit_code = None if status is None else os.waitstatus_to_exitcode(status)
    text = os.pread(output, os.fstat(output).st_size, 0).decode("utf-8", "replace")
    return Ended(
        code=exit_code if exit_code is not None and exit_code >= 0 and by is None else None,
        killed=-exit_code if exit_code is not None and exit_code < 0 and by is None else None,
        by=by,
        stuck=stuck,
        doing=note.read(),
        output=text,
    )


def _wait(child: int, until: float, note: Note) -> tuple[int | None, signal.Signals | None]:
    """The child's wait status once its work ends, and the signal that came for us."""
    while True:
        pid, told = os.waitpid(child, os.WNOHANG)
        status = told if pid else note.status()
        came = signal.sigtimedwait(ENDINGS, 0)
        if came or status is not None:
            return status, signal.Signals(came.si_signo) if came else None
        left = until - time.monotonic()
        if left <= 0:
            return None, None
        came = signal.sigtimedwait(_OURS, left)
        if came and came.si_signo in ENDINGS:
            return None, signal.Signals(came.si_signo)


def _kill(child: int) -> None:
    # Its group too, for the commands it has started; before setsid() it has none.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)


def _work(
    work: Callable[[Callable[[str], None]], int], note: Note, output: int, parent: int
) -> NoReturn:
    code = 1
    try:
        _die_with(parent)
        note.teller = os.getpid()
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        # slurmd's pipe may have come under other numbers, too.
        os.closerange(3, note.file)
        os.closerange(note.file + 1, 1 << 16)
        code = work(note.tell)
        sys.stdout.flush()
        sys.stderr.flush()
        note.end(code, parent)
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies, also if it has died by now."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
