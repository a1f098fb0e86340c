"""A queue of processes: each is served in the order it came, and the dead are passed over.

    <name>.turn.<number>    a ticket: a FIFO that its owner keeps open and locked (flock)

The kernel closes and unlocks the ticket of a process however it ends: so a ticket that can
be locked is nobody's any more, and no pid is ever asked about, which may be another
process's by now. Who waits has the ticket before its own open for reading: poll(2) tells
it at once when the writer there is gone (POLLHUP), so a turn is handed over without a pause.

The queue makes the order fair, no more: the lock itself decides who works. So a ticket that
cannot be made (a full file system) costs its place in the order, and nothing else.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from slurm_mig.system.trust import below

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TURN: Final = ".turn."


class Turn:
    """One process's place in the queue `name`, whose tickets lie in `directory`.

    Entering takes the place, leaving gives it up; the next one is told at that moment.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._ticket = -1
        #: Place in the queue; None where no ticket could be made.
        self.number: int | None = None

    def __enter__(self) -> Self:
        try:
            self._take()
        except OSError:
            self._leave()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def wait(self, seconds: float) -> bool:
        """Wait until nobody is before us, for so long at most; whether it is our turn now."""
        until = time.monotonic() + seconds
        while True:
            before = self._nearest(self._ahead())
            if before is None:
                return True
            try:
                gone = _hung_up(before, until - time.monotonic())
            finally:
                os.close(before)
            if not gone and time.monotonic() >= until:
                return False

    def idle(self, seconds: float) -> None:
        """Wait until nobody is in the queue, for so long at most: for who is not in it."""
        until = time.monotonic() + seconds
        while (last := self._nearest(self._numbers())) is not None:
            try:
                gone = _hung_up(last, until - time.monotonic())
            finally:
                os.close(last)
            if not gone and time.monotonic() >= until:
                return

    def first(self) -> int | None:
        """The lowest number in the queue: as long as it changes, somebody is being served."""
        return min(self._numbers(), default=None)

    def before(self) -> int:
        """How many are before us."""
        return len(list(self._ahead()))

    def tidy(self) -> None:
        """Remove what the dead left of this queue. For the holder of the lock alone.

        Were two to do it at once, the second could remove a ticket that has just been made.
        """
        for number in list(self._ahead()):
            descriptor = self._open(number)
            if descriptor is None:
                continue
            try:
                if _unlocked(descriptor):
                    with suppress(OSError):
                        self._path(number).unlink()
            finally:
                os.close(descriptor)
        # Who died before its ticket had a number. Threads have their place in /proc, too.
        for half in below(self._directory, f".{self._name}."):
            thread = half.name.rpartition(".")[2]
            if thread.isdecimal() and not Path(f"/proc/{thread}").exists():
                with suppress(OSError):
                    half.unlink()

    # -- our ticket ------------------------------------------------------------

    def _take(self) -> None:
        # Under another name until it is locked: one that can be locked counts as dead.
        fresh = self._directory / f".{self._name}.{threading.get_native_id()}"
        fresh.unlink(missing_ok=True)
        os.mkfifo(fresh, 0o600)
        try:
            self._ticket = os.open(fresh, os.O_RDWR | os.O_NOFOLLOW)
            fcntl.flock(self._ticket, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while self.number is None:
                number = max(self._numbers(), default=0) + 1
                # A link never replaces: of two who want a number one looks again.
                with suppress(FileExistsError):
                    os.link(fresh, self._path(number))
                    self.number = number
        finally:
            fresh.unlink(missing_ok=True)

    def _leave(self) -> None:
        if self.number is not None:
            with suppress(OSError):
                self._path(self.number).unlink()
            self.number = None
        if self._ticket >= 0:
            os.close(self._ticket)
            self._ticket = -1

    # -- those before us -------------------------------------------------------

    def _nearest(self, numbers: Iterable[int]) -> int | None:
        """The ticket of the last living one of these, open for reading; None for nobody."""
        for number in sorted(numbers, reverse=True):
            descriptor = self._open(number)
            if descriptor is None:
                continue
            if not _unlocked(descriptor):
                return descriptor
            os.close(descriptor)
        return None

    def _ahead(self) -> Iterator[int]:
        mine = self.number
        return (number for number in self._numbers() if mine is not None and number < mine)

    def _numbers(self) -> Iterator[int]:
        beginning = f"{self._name}{_TURN}"
        try:
            names = os.listdir(self._directory)  # noqa: PTH208  # names only
        except OSError:
            return
        for name in names:
            number = name.removeprefix(beginning)
            if number != name and number.isascii() and number.isdecimal():
                yield int(number)

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._name}{_TURN}{number}"

    def _open(self, number: int) -> int | None:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            return os.open(self._path(number), flags)
        except OSError:
            return None


def _unlocked(ticket: int) -> bool:
    """Whether its owner is gone. Shared, so that several may look at the same moment."""
    try:
        fcntl.flock(ticket, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(ticket, fcntl.LOCK_UN)
    return True


def _hung_up(ticket: int, seconds: float) -> bool:
    """Wait for the end of the process that has a FIFO open for writing.

    It had when its lock was seen, after our opening: so the kernel will tell (pipe(7)).
    """
    poll = select.poll()
    poll.register(ticket, 0)
    return bool(poll.poll(max(0.0, seconds) * 1000))
