"""The commands, as tests type them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

    from tests.kit.site import Site


def parsed(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def refused(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("slurm-mig: ")
    assert says in line


def commands(site: Site, **bodies: str) -> None:
    """Slurm's commands as short scripts; the real ones answer in tests/cluster."""
    for name, body in bodies.items():
        path = site.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
