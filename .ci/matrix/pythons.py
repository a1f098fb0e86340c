"""The hook path and every other test without daemons, on every Python that is here.

Exit 0 only if none failed; a version without an interpreter has a row that says so.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import matrix
from matrix import CHECKOUT, CannotRun, Outcome, Report, measured, pytest, run_main
from roots import SUITES, Root

VERSIONS: Final = ("3.11", "3.12", "3.13", "3.14")
UNIT: Final = ("tests", "--ignore", "tests/cluster")

#: Virtual environments, one per version, beside the programs of the one that runs this.
VENVS: Final = Path(sys.prefix) / "pythons"


def interpreter(version: str) -> tuple[Path, str] | None:
    """Find a Python of a version that can make virtual environments; with its full version."""
    path = [Path(item) for item in os.environ.get("PATH", "").split(":")]
    pyenv = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin"))
    ask = "import ensurepip, venv, platform; print(platform.python_version())"
    for directory in itertools.chain(path, pyenv):
        program = directory / f"python{version}"
        if not program.is_file():
            continue
        # pyenv's shims are there for every version and run only for the chosen one.
        done = subprocess.run([program, "-c", ask], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return program, done.stdout.strip()
    return None


def environment(version: str, program: Path, log: Path) -> Path:
    """Make the virtual environment, unless it is there with the same requirements."""
    directory = VENVS / version
    made_from = "\n".join([str(program), *matrix.requirements()])
    stamp = directory / "made-from"
    if not stamp.exists() or stamp.read_text("utf-8") != made_from:
        shutil.rmtree(directory, ignore_errors=True)
        _logged(log, program, "-m", "venv", directory)
        install = ("-m", "pip", "install", "--quiet", "-e", f"{CHECKOUT}[dev]")
        _logged(log, directory / "bin/python", *install)
        stamp.write_text(made_from, "utf-8")
    return directory


def _logged(log: Path, *command: str | Path) -> None:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        if matrix.end(process) != 0:
            raise CannotRun(f"no environment: {matrix.last_words(log)}")


def run_here(version: str, program: Path, log: Path) -> Outcome:
    """Run the tests with an interpreter of this machine."""

    def start(results: Path) -> subprocess.Popen[bytes]:
        command = pytest(venv / "bin/pytest", results / "junit.xml", *UNIT)
        with log.open("wb") as output:
            return subprocess.Popen(
                command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    try:
        venv = environment(version, program, log)
        return measured(start, log)
    except CannotRun as reason:
        return Outcome(problem=str(reason))


def run_in(root: Root) -> Outcome:
    """Run the tests with the interpreter of a Debian root."""
    command = pytest("/venv/bin/pytest", "/results/junit.xml", *UNIT)
    try:
        with root.held():
            return measured(lambda results: root.start(results, command), root.log("tests"))
    except CannotRun as reason:
        return Outcome(problem=str(reason))


def root_with(version: str) -> Root | None:
    """Find a root made by `make test-slurm-versions` that has a version."""
    for root in map(Root, SUITES):
        if root.made and root.versions()[1].startswith(f"{version}."):
            return root
    return None


def main() -> int:
    """Try every version, one after the other."""
    report = Report(["Python", "from"])
    VENVS.mkdir(exist_ok=True)
    for version in VERSIONS:
        print(f"{version}: testing", flush=True)
        log = VENVS / f"{version}.log"
        found = interpreter(version)
        root = None if found or os.geteuid() != 0 else root_with(version)
        if found:
            report.add([found[1], str(found[0])], run_here(version, found[0], log), log)
        elif root:
            row = [root.versions()[1], f"Debian {root.suite}"]
            report.add(row, run_in(root), root.log("tests"))
        else:
            report.add([version, "-"], Outcome(absent="no interpreter here"), log)
    return report.close()


if __name__ == "__main__":
    run_main(main)
