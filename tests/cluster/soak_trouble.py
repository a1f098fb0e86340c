"""Trouble on a soak's nodes that breaks nothing, and so must drain nothing.

slow-disk           each forced write of a hook takes its time
clock-jump          the wall clock of a hook is a day and more ahead, or behind
full-run            the run directory, a small file system, has no block or no file left
late-controller     slurmctld is stopped, and goes on
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from tests.kit.bad_disk import library

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.cluster.soak_plan import Act

#: Seconds of a jump: longer than any soak, so that a time tells whether its clock had jumped.
JUMP = 100_000

#: How long a trouble stays, in its act's own seconds.
LASTS = 5

#: What a hook finds in its environment while a trouble is on.
VARIABLES = {"slow-disk": "BAD_DISK_SYNC", "clock-jump": "BAD_CLOCK_STEP"}


class Trouble:
    """What is wrong with each node now, and the means to it: mounts are this process's own."""

    def __init__(self, root: Path, nodes: Iterable[str]) -> None:
        self._root = root
        self._now: dict[str, dict[str, str]] = {node: {} for node in nodes}

    def prepare(self) -> None:
        """A small run directory on each node, and nothing wrong with it yet."""
        for node in self._now:
            run = self._run(node)
            run.mkdir(exist_ok=True)
            size = "size=1m,nr_inodes=400,mode=755"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(run)], check=True)
            self._tell(node)

    def remove(self) -> None:
        """Take the mounts away."""
        for node in self._now:
            subprocess.run(["umount", "--lazy", str(self._run(node))], check=False)

    def line(self) -> str:
        """What a hook runs before it begins."""
        return f". {self._root}/nodes/$SLURMD_NODENAME/trouble"

    def environ(self, node: str) -> dict[str, str]:
        """What a command on the node finds in its environment."""
        found = {VARIABLES[kind]: value for kind, value in self._now[node].items() if value}
        if found:
            found["LD_PRELOAD"] = f"{library('bad_disk')}:{library('bad_clock')}"
        return found

    def begin(self, act: Act) -> bool:
        """Start it; False where it is on already."""
        if act.kind in self._now[act.node]:
            return False
        self._now[act.node][act.kind] = {
            "slow-disk": f"{act.seconds / 4}",
            "clock-jump": f"{JUMP if act.pick < 0.5 else -JUMP}",
        }.get(act.kind, "")
        if act.kind == "full-run":
            self._fill(act)
        self._tell(act.node)
        return True

    def end(self, act: Act) -> None:
        """As it was."""
        del self._now[act.node][act.kind]
        for path in self._run(act.node).glob("filler*"):
            if act.kind == "full-run":
                path.unlink()
        self._tell(act.node)

    def _run(self, node: str) -> Path:
        return self._root / "nodes" / node / "run"

    def _fill(self, act: Act) -> None:
        size = 0 if act.pick < 0.5 else 4096
        with contextlib.suppress(OSError):
            for number in range(1000):
                (self._run(act.node) / f"filler{number}").write_bytes(b"x" * size)

    def _tell(self, node: str) -> None:
        """In one step: a hook may be about to read it."""
        path = self._root / "nodes" / node / "trouble"
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(f"export {k}={v}\n" for k, v in self.environ(node).items()))
        fresh.replace(path)


def without_jump(at: float, began: float) -> float:
    """A time of the ledger's as the machine's clock had it."""
    if at > began + JUMP / 2:
        return at - JUMP
    return at + JUMP if at < began - JUMP / 2 else at
