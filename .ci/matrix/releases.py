"""The real Slurm tests against every Slurm that Debian has, each in a root of its own.

Arguments: suites to run instead of all. Exit 0 only if all ran and none failed.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from matrix import CannotRun, Outcome, Report, measured, pytest, run_main
from roots import SUITES, Root

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

COMMAND: Final = pytest("/venv/bin/pytest", "/results/junit.xml", "tests/cluster")


def run(root: Root) -> Outcome:
    """Make a root unless it is there, and run the tests in it."""

    def start(results: Path) -> subprocess.Popen[bytes]:
        return root.start(results, COMMAND)

    try:
        with root.held():
            root.make()
            return measured(start, root.log("tests"))
    except CannotRun as reason:
        return Outcome(problem=str(reason))


def main() -> int:
    """Run all of them, one after the other."""
    if os.geteuid() != 0:
        sys.exit("debootstrap and mounts need root")
    report = Report(["Slurm", "Debian", "Python"])
    for suite in sys.argv[1:] or SUITES:
        root = Root(suite)
        print(f"{suite}: {'testing' if root.made else 'making its root, testing'}", flush=True)
        outcome = run(root)
        slurm, python = root.versions() if root.made else (SUITES.get(suite, "?"), "?")
        report.add([slurm, suite, python], outcome, root.log("tests"))
    return report.close()


if __name__ == "__main__":
    run_main(main)
