"""Runs commands in a machine of their own (tests/kit/machine_inside.py)."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

UNSHARE = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child")
_WORLD = Path(__file__).parent / "machine_inside.py"


@functools.cache
def missing() -> str:
    """Why there can be no such machine here; empty where there can be one."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        return run({"host": "probe", "sessions": []}) and "odd answer"
    except (OSError, subprocess.SubprocessError) as problem:
        words = getattr(problem, "stderr", "") or str(problem)
        return f"no namespaces or layers here: {words.strip().splitlines()[-1]}"


def run(spec: dict[str, Any], timeout: float = 600) -> Any:
    """What each statement of each session did; CalledProcessError where there is no world."""
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(_WORLD)],
        input=json.dumps({"keep": [], **spec}), capture_output=True, text=True, check=True,
        timeout=timeout,
    )  # fmt: skip
    return json.loads(done.stdout)
