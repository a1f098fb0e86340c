"""Work that Slurm neither waits for nor kills, and work with another's rights."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def remove_as_owner(path: Path) -> None:
    """See to it that what a user made there goes; neither waits for it nor fails.

    The user can have made anything of it: a link, a million files, a tree deeper than
    the stack. So rm(1) removes it, with no more rights than they have, in a process of
    its own. What root owns is not theirs, and stays, but for an empty directory.
    """
    try:
        status = path.lstat()
    except OSError:
        return
    if status.st_uid == 0:
        with suppress(OSError):
            path.rmdir()
        return

    def as_owner() -> None:
        os.setgroups([])
        os.setgid(status.st_gid)
        os.setuid(status.st_uid)
        os.chdir("/")
        os.execv(  # noqa: S606  # no shell is the point
            "/bin/rm",
            ["rm", "-rf", "--one-file-system", "--", str(path)],
        )

    def remove() -> None:
        child = os.fork()
        if child == 0:
            as_owner()
        os.waitpid(child, 0)
        # Where its parent is root's alone they can empty it, but not remove it.
        with suppress(OSError):
            path.rmdir()

    detach(remove)


def detach(work: Callable[[], object]) -> None:
    """Run `work` in a process of its own that Slurm neither waits for nor kills.

    Slurm waits until every holder of a hook's output is gone, and kills the
    hook's process group when it ends (facts/slurm.md#failures): so new session, no
    inherited descriptors, and the parent returns only when that is done.
    """
    ready, done = os.pipe()
    if os.fork():
        os.close(done)
        os.read(ready, 1)
        os.close(ready)
        os.wait()
        return
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.closerange(3, done)
        os.closerange(done + 1, 1 << 16)
        os.close(done)
        work()
    finally:
        os._exit(0)
