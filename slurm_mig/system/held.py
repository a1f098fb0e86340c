"""Which locks this thread holds, and what must not be done under them.

Who holds a GPU's lock keeps every other hook on that GPU waiting. An answer from outside,
slurmctld's above all, can take longer than they may wait: so it is asked for before the
lock is taken, and this module makes a question under it impossible rather than forbidden.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_HELD: Final[ContextVar[tuple[str, ...]]] = ContextVar("held", default=())


class AskedUnderLock(RuntimeError):
    """A fault of this program's own: a question from outside while others wait for the answer."""


@contextmanager
def holding(name: str) -> Iterator[None]:
    """Say that the lock `name` is held in this block."""
    token = _HELD.set((*_HELD.get(), name))
    try:
        yield
    finally:
        _HELD.reset(token)


def ask_freely(question: str) -> None:
    """Raise AskedUnderLock where a question would be asked under a lock."""
    held = _HELD.get()
    if held:
        raise AskedUnderLock(f"{question}: asked while holding {', '.join(held)}")
