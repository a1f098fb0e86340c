"""The hooks' helper, for a site of a test's."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kit.site import Site


def soon(done: Callable[[], object], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it does not come"
        time.sleep(0.01)


@contextmanager
def helper(site: Site, code: str = "", **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A helper for a site's hooks; `code` changes it first (`warm` is its module)."""
    text = f"from pathlib import Path\nfrom slurm_mig.hooks import warm\n{code}\nwarm.main()"
    before = site.run / "warm"
    seen = before.stat().st_ino if before.exists() else None
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", text],
        env={"SLURM_MIG_CONFIG": str(site.config), "SLURMD_NODENAME": "n1"} | environ,
        text=True,
    )
    try:
        soon(lambda: before.exists() and before.stat().st_ino != seen)
        yield process
    finally:
        process.kill()
        process.wait()
