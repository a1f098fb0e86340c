"""One lock per GPU, so that GPUs carve in parallel and one GPU never twice.

filelock's flock on a file in a root-only directory: a user can neither hold nor
replace it, and the kernel frees it when its holder dies (facts/design.md#carving). Who
waits is served in the order it came (turns.py), and waits as long as holders come and go.
Beside the lock lies a note that says who holds it, for the message of those who wait.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import Crowded, LockTimeout, NodeFault
from slurm_mig.state.turns import Turn
from slurm_mig.system.causes import out_of_order
from slurm_mig.system.held import holding
from slurm_mig.system.replace import remove_abandoned, replace_file
from slurm_mig.system.space import waiting_for_room
from slurm_mig.system.trust import below, private_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from filelock import UnixFileLock

#: Seconds between two looks at who holds a lock: whether those before us come and go.
LOOK_EVERY: Final = 1.0

#: Seconds between two tries for a lock that is held by who has no place in the queue.
POLL: Final = 0.02


class Locks:
    """Locks in `root`. `patience`: longest wait in seconds while the holder stays the same.

    `until` (on the clock of time.monotonic): nobody waits any longer, whoever comes and goes.
    Without `make` nothing is locked where `root` does not exist: no hook has run there.
    """

    def __init__(
        self, root: Path, patience: float, *, until: float | None = None, make: bool = True
    ) -> None:
        self._make = make
        self._root = root
        self._patience = patience
        self._until = until
        #: Seconds that the last call of `hold` had to wait.
        self.waited = 0.0

    @contextmanager
    def hold(
        self,
        gpus: Sequence[str],
        action: str,
        within: float | None = None,
        *,
        ask: bool = False,
    ) -> Iterator[None]:
        """Hold the locks of these GPU UUIDs, taken in sorted order against deadlock.

        Raises LockTimeout naming the holder once the same one has kept us for the patience,
        or `within` seconds have passed in all; Crowded where holders came and went, but not
        to the end of the queue in time. `ask`: Slurm may be asked under it, for nobody's work
        waits for this lock.
        """
        if not self._make and not self._root.is_dir():
            yield
            return
        # A user who may write above could put another directory in this one's place.
        with waiting_for_room():
            private_directory(self._root.parent, 0o755)
            private_directory(self._root, 0o700)
        began = time.monotonic()
        end = None if within is None else began + within
        with ExitStack() as stack:
            for gpu in sorted(set(gpus)):
                stack.enter_context(self._one(gpu, action, end))
                if not ask:
                    stack.enter_context(holding(gpu))
            self.waited = time.monotonic() - began
            yield

    @contextmanager
    def giving_way(self, gpu: str) -> Iterator[None]:
        """Stand behind whoever wants this GPU's lock now, for half the patience at most.

        For what nobody waits for: of those who give way only the first goes on to the lock's
        own queue, so whoever comes meanwhile finds one of them before itself, not all.
        """
        limit = time.monotonic() + self._patience / 2
        with Turn(self._root, f"{gpu}.late") as turn:
            turn.wait(self._patience / 2)
            turn.tidy()
            Turn(self._root, gpu).idle(limit - time.monotonic())
            yield

    @contextmanager
    def _one(self, gpu: str, action: str, end: float | None) -> Iterator[None]:
        lock = lock_at(self._root / f"{gpu}.lock")
        with Turn(self._root, gpu) as turn:
            with waiting_for_room():
                try:
                    self._acquire(lock, turn, gpu, end)
                except OSError as problem:
                    raise out_of_order(problem, f"lock {self._root / f'{gpu}.lock'}") from problem
            note = self._note(gpu)
            try:
                turn.tidy()
                self._say(note, action)
                yield
            finally:
                with suppress(OSError):
                    note.unlink(missing_ok=True)
                # Before the turn ends: who is next finds it free.
                lock.release()

    def _acquire(self, lock: UnixFileLock, turn: Turn, gpu: str, end: float | None) -> None:
        sign, since, moved = self._sign(gpu, turn), time.monotonic(), False
        while True:
            limit = since + self._patience if end is None else end
            # A holder that hangs is a fault of the node: whoever comes next after it says so,
            # however little time this hook has.
            if end is None and self._until is not None and (moved or turn.before() > 1):
                limit = min(limit, self._until)
            step = max(0.0, min(LOOK_EVERY, limit - time.monotonic()))
            if turn.wait(step) and _taken(lock, step):
                return
            latest, now = self._sign(gpu, turn), time.monotonic()
            if now >= limit and (latest == sign or limit in (end, self._until)):
                raise self._given_up(gpu, turn, now - since, in_time=end is None)
            if latest != sign:
                sign, since, moved = latest, now, True

    def _sign(self, gpu: str, turn: Turn) -> object:
        """What changes with each holder: its note, where it could leave one."""
        try:
            status = self._note(gpu).stat()
        except OSError:
            return turn.first()
        return status.st_ino, status.st_mtime_ns

    def _given_up(
        self, gpu: str, turn: Turn, waited: float, *, in_time: bool
    ) -> LockTimeout | Crowded:
        holder = self._holder(self._note(gpu))
        if in_time and waited < self._patience:
            return Crowded(
                f"{turn.before()} others are still before this one, each served in its turn, now "
                f"{holder}",
                remedy="it is started again by itself",
                gpu=gpu,
            )
        return LockTimeout(
            f"lock not free within {waited:.3g} s, held by {holder}",
            remedy="it hangs in the driver (dmesg has Xid errors then) or on a disk that does not "
            "write (ps shows it in state D)",
            gpu=gpu,
        )

    def _note(self, gpu: str) -> Path:
        return self._root / f"{gpu}.holder"

    def _say(self, note: Path, action: str) -> None:
        """Leave the note. It serves messages alone: no work fails for want of it."""
        with suppress(OSError, NodeFault):
            # Holders that died while they wrote theirs.
            for half in below(self._root, f".{note.name}."):
                half.unlink(missing_ok=True)
            replace_file(note, json.dumps(_self_description(action)), mode=0o600)

    def remove_stale(self) -> list[Path]:
        """Remove notes of holders that are gone, and half-written ones.

        Whose lock can be had has no holder: no clock has to be asked. The locks themselves
        stay: one that is removed could be held twice.
        """
        from filelock import Timeout

        left = remove_abandoned(self._root)
        for note in below(self._root):
            if note.suffix != ".holder":
                continue
            lock = lock_at(note.with_suffix(".lock"))
            # It is held, or is left, with its note taken away, at this very moment.
            with suppress(Timeout, OSError), lock.acquire(timeout=0):
                note.unlink()
                left.append(note)
        return left

    @staticmethod
    def _holder(note: Path) -> str:
        try:
            who = json.loads(note.read_text("utf-8"))
            since = datetime.fromtimestamp(who["since"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            return f"pid {who['pid']} ({who['action']}) since {since}"
        except (OSError, ValueError, TypeError, LookupError, OverflowError):
            # The holder has just taken or is just leaving it, or could not write it.
            return "a process that left no note"


def lock_at(path: Path) -> UnixFileLock:
    """The lock that this file is, not taken yet."""
    # Here, for who only gives way and then finds its work done: it is half of what a hook loads.
    from filelock import UnixFileLock

    return UnixFileLock(str(path), mode=0o600, fallback_to_soft=False)


def _taken(lock: UnixFileLock, seconds: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=seconds, poll_interval=POLL)
    except Timeout:
        return False
    return True


def _self_description(action: str) -> dict[str, object]:
    return {"pid": os.getpid(), "action": action, "since": time.time()}
