"""One test run after the other, each in another surrounding, and one table of them all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHECKOUT: Final = Path(__file__).resolve().parents[2]


class CannotRun(Exception):  # a reason for the table, not a defect
    """A surrounding could not be made, or no test ran there; the text says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What pytest counted, or the reason why there is nothing to count."""

    passed: int = 0
    failed: int = 0
    seconds: float = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problem: str = ""
    absent: str = ""

    @property
    def good(self) -> bool:
        """Tests ran and none failed, or there was nothing to run them with."""
        return bool(self.absent) or (not self.problem and self.failed == 0 and self.passed > 0)

    def sentence(self) -> str:
        """Return the same for a line of its own."""
        if self.problem or self.absent:
            return self.problem or self.absent
        skipped = self.skipped.total()
        return f"{self.passed} passed, {self.failed} failed, {skipped} skipped"

    def cells(self) -> list[str]:
        """Columns passed, failed, skipped, seconds, and a remark."""
        if self.problem or self.absent:
            return ["-", "-", "-", "-", self.absent or f"FAILED: {self.problem}"]
        counts = [self.passed, self.failed, self.skipped.total(), round(self.seconds)]
        return [*map(str, counts), "" if self.good else "FAILED"]


def measured(run: Callable[[Path], subprocess.Popen[bytes]], log: Path) -> Outcome:
    """Run tests that leave `junit.xml` in the directory they are given."""
    with tempfile.TemporaryDirectory(prefix="slurm-mig-results-") as name:
        results = Path(name)
        started = time.monotonic()
        code = end(run(results))
        report = results / "junit.xml"
        if not report.exists():
            raise CannotRun(f"no tests ran (exit {code}): {last_words(log)}")
        outcome = _read(report, time.monotonic() - started)
    # pytest also ends with 2 to 5 when it was interrupted or found nothing.
    if code not in (0, 1) or outcome.passed + outcome.failed == 0:
        raise CannotRun(f"pytest ended with {code}: {last_words(log)}")
    return outcome


def _read(report: Path, seconds: float) -> Outcome:
    passed = failed = 0
    skipped: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):  # written by our own pytest
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif reason is not None:
            skipped[reason.get("message", "")] += 1
        else:
            passed += 1
    return Outcome(passed, failed, seconds, skipped)


def end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; when we are interrupted, it ends before we do."""
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        raise


def last_words(log: Path) -> str:
    """Return the line of a log that is most likely the reason."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if line.startswith(("E:", "ERROR", "error:", "FATAL"))]
    return (errors or lines or ["it said nothing"])[-1]


@dataclass
class Report:
    """Lines while the runs go on, and the table when all are done."""

    heads: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)

    def add(self, row: Sequence[str], outcome: Outcome, log: Path) -> None:
        """One run is over; `row` is what identifies it."""
        self.rows.append([*row, *outcome.cells()])
        self.outcomes.append((row[0], outcome))
        print(f"  {' '.join(row)}: {outcome.sentence()}", flush=True)
        if outcome.failed:
            print(f"{failures(log)}\n  all of it: {log}", flush=True)

    def close(self) -> int:
        """Print the table; exit code 0 only if everything ran and nothing failed."""
        heads = [*self.heads, "passed", "failed", "skipped", "seconds", ""]
        print(f"\n{table(heads, self.rows)}")
        skipped = reasons(self.outcomes)
        if skipped:
            print(f"\n{skipped}")
        return 0 if all(outcome.good for _, outcome in self.outcomes) else 1


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)


def reasons(outcomes: Sequence[tuple[str, Outcome]]) -> str:
    """Why tests were skipped, how many, and where if not everywhere."""
    lines = []
    for reason in dict.fromkeys(text for _, outcome in outcomes for text in outcome.skipped):
        counts = [(name, outcome.skipped[reason]) for name, outcome in outcomes]
        if len({count for _, count in counts}) == 1:
            where = f"{counts[0][1]} each"
        else:
            where = ", ".join(f"{name}: {count}" for name, count in counts if count)
        lines.append(f"skipped ({where}): {reason}")
    return "\n".join(lines)


def failures(log: Path) -> str:
    """Return the lines with which pytest names what failed."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return "\n".join(line for line in lines if line.startswith(("FAILED ", "ERROR ")))


def requirements() -> list[str]:
    """Everything to build, run and test this project, as its pyproject.toml says."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))
    groups = (
        project["build-system"]["requires"],
        ["editables"],
        project["project"]["dependencies"],
        project["project"]["optional-dependencies"]["dev"],
    )
    return [requirement for group in groups for requirement in group]


def pytest(program: Path | str, report: Path | str, *what: str) -> list[str]:
    """Command line of one run; PYTEST in the environment adds options of one's own."""
    workers = os.environ.get("WORKERS", "2")
    options = ["-q", "-n", workers, "-p", "no:cacheprovider"]
    own = os.environ.get("PYTEST", "").split()
    return [str(program), *options, f"--junitxml={report}", *what, *own]


def checkout() -> IO[bytes]:
    """Pack the working tree without what git ignores, so that editing may go on meanwhile."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, check=True).stdout
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in filter(None, names.decode().split("\0")):
            # git still lists what was deleted and not committed.
            if (CHECKOUT / name).is_file():
                archive.add(CHECKOUT / name, name)
    file.seek(0)
    return file


def run_main(main: Callable[[], int]) -> None:
    """End with the code of `main`; SIGTERM ends as orderly as Ctrl-C does."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
