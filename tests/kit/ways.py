"""The ways in which hooks run: tests that look at hooks hold in each of them.

SLURM_MIG_WAY says which: `alone` (each hook loads everything, an Epilog does all of its work),
`later` (an Epilog leaves the teardown to another process), `helper` (that, and a helper runs
all hooks).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAYS: Final = ("alone", "later", "helper")

#: Helpers that run now.
HELPERS: Final[set[int]] = set()


def way() -> str:
    return os.environ.get("SLURM_MIG_WAY", WAYS[0])


def later() -> bool:
    """Whether Epilogs leave the teardown to another process."""
    return way() != "alone"


def helped() -> bool:
    return way() == "helper"


def soon(done: Callable[[], object], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Of a process, the youngest last; none of one that has ended. A helper's youngest is ready."""
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def is_gone(pid: int) -> bool:
    """Whether a process is gone, or would be if somebody waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def at_work(config: Path) -> dict[int, int]:
    """Living processes of hooks with this configuration, and their parents.

    Not the helper itself, which waits, nor its fork that stands ready; what it does is done by
    its other forks, for clients.
    """
    found: dict[int, int] = {}
    idle = {*HELPERS, *(pid for helper in HELPERS for pid in children(helper)[-1:])}
    for entry in Path("/proc").glob("[0-9]*"):
        # Processes come and go while we look.
        with suppress(OSError):
            if (
                int(entry.name) not in idle
                and re.search(rb"slurm_mig\.hooks|warm_client", (entry / "cmdline").read_bytes())
                and config_of(entry / "environ") == str(config)
            ):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    found[int(entry.name)] = int(parent)
    return found


def config_of(environ: Path) -> str:
    """The configuration that a process was given, for its node."""
    words = environ.read_bytes().decode("utf-8", "surrogateescape").split("\0")
    told = dict(word.partition("=")[::2] for word in words)
    return told.get("SLURM_MIG_CONFIG", "").replace("%n", told.get("SLURMD_NODENAME", "%n"))


def detached(config: Path) -> set[int]:
    """Those that hooks have left behind, for which nobody waits; a helper's forks go on so."""
    left = {1, *HELPERS}
    return {pid for pid, parent in at_work(config).items() if parent in left}


@contextmanager
def helper(
    config: Path, run: Path, code: str = "", **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """A helper for hooks of a configuration; `code` changes it first (`warm` is its module)."""
    text = f"from pathlib import Path\nfrom slurm_mig.hooks import warm\n{code}\nwarm.main()"
    before = run / "warm"
    seen = before.stat().st_ino if before.exists() else None
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", text],
        env={"SLURM_MIG_CONFIG": str(config), "SLURMD_NODENAME": "n1"} | environ,
        text=True,
    )
    HELPERS.add(process.pid)
    try:
        soon(lambda: before.exists() and before.stat().st_ino != seen)
        yield process
    finally:
        process.kill()
        process.wait()
        HELPERS.discard(process.pid)
