"""One lock per GPU, so that GPUs carve in parallel and one GPU never twice.

filelock's flock on a file in a root-only directory: a user can neither hold nor
replace it, and the kernel frees it when its holder dies (facts/design.md#carving). Beside the
lock lies a note that says who holds it, for the message of those who wait.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from filelock import Timeout, UnixFileLock

from slurm_mig.errors import LockTimeout
from slurm_mig.files import private_directory, remove_abandoned, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Locks:
    """Locks in `root`; `deadline` is the longest wait in seconds.

    Without `make` nothing is locked where `root` does not exist: no hook has run there.
    """

    def __init__(self, root: Path, deadline: float, *, make: bool = True) -> None:
        self._make = make
        self._root = root
        self._deadline = deadline
        #: Seconds that the last call of `hold` had to wait.
        self.waited = 0.0

    @contextmanager
    def hold(self, gpus: Sequence[str], action: str, within: float | None = None) -> Iterator[None]:
        """Hold the locks of these GPU UUIDs, taken in sorted order against deadlock.

        Raises LockTimeout naming the holder once `deadline` seconds, or `within`, have
        passed in all.
        """
        patience = self._deadline if within is None else within
        if not self._make and not self._root.is_dir():
            yield
            return
        # Who may write above could put a directory of his own in this one's place.
        private_directory(self._root.parent, 0o755)
        private_directory(self._root, 0o700)
        began = time.monotonic()
        with ExitStack() as stack:
            for gpu in sorted(set(gpus)):
                stack.enter_context(self._one(gpu, action, began + patience))
            self.waited = time.monotonic() - began
            yield

    @contextmanager
    def _one(self, gpu: str, action: str, until: float) -> Iterator[None]:
        note = self._root / f"{gpu}.holder"
        path = str(self._root / f"{gpu}.lock")
        lock = UnixFileLock(path, mode=0o600, fallback_to_soft=False)
        try:
            lock.acquire(timeout=max(0.0, until - time.monotonic()), poll_interval=0.02)
        except Timeout:
            raise LockTimeout(
                f"lock not free within {self._deadline:g} s, held by {self._holder(note)}",
                remedy="if that process hangs in the driver, see dmesg for Xid errors",
                gpu=gpu,
            ) from None
        try:
            # Holders that died while they wrote theirs.
            for half in self._root.glob(f".{note.name}.*"):
                half.unlink(missing_ok=True)
            replace_file(note, json.dumps(_self_description(action)), mode=0o600)
            yield
        finally:
            note.unlink(missing_ok=True)
            lock.release()

    def remove_stale(self, before: float) -> list[Path]:
        """Remove notes from before a time (seconds since the epoch), and half-written ones.

        The locks themselves stay: one that is removed could be held twice.
        """
        left = remove_abandoned(self._root)
        for note in self._root.glob("*.holder"):
            # A hook may leave its lock, and take its note away, at this very moment.
            with suppress(FileNotFoundError):
                if note.lstat().st_mtime < before:
                    note.unlink()
                    left.append(note)
        return left

    @staticmethod
    def _holder(note: Path) -> str:
        try:
            who = json.loads(note.read_text("utf-8"))
        except (OSError, ValueError):
            # The holder has just taken or is just leaving it: nothing to name.
            return "a process that left no note"
        since = datetime.fromtimestamp(who["since"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"pid {who['pid']} ({who['action']}) since {since}"


def _self_description(action: str) -> dict[str, object]:
    return {"pid": os.getpid(), "action": action, "since": time.time()}
