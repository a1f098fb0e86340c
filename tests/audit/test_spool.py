"""More rows than fit in memory: put aside and read again, and numbers counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.audit import spool
from slurm_mig.audit.archive import Archive
from slurm_mig.audit.copies import youngest
from slurm_mig.audit.findings import NAMED_OF_A_KIND, AuditFinding, first_of_each
from slurm_mig.audit.spool import DistinctNumbers, Rows
from slurm_mig.cli import _audit_print as views
from tests.kit.ledger_fixture import write

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9))), st.integers(1, 4))
def test_numbers_count_once(pairs: list[tuple[str, int]], at_once: int) -> None:
    """As a set of each key would count them, however many are put down at once."""
    patch = pytest.MonkeyPatch()
    patch.setattr(spool, "AT_ONCE", at_once)
    with closing(DistinctNumbers()) as found:
        for pair in pairs:
            found.add(*pair)
        sets = {key: {number for k, number in pairs if k == key} for key, _ in pairs}
        assert found.counts() == {key: len(numbers) for key, numbers in sets.items()}
    patch.undo()


def test_rows_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, also from the disk, and again."""
    monkeypatch.setattr(spool, "IN_MEMORY", 10)
    rows = [["a\nb", 1, None, "\udcff"], {"x": 0.1}, []]
    with closing(Rows()) as kept:
        for row in rows:
            kept.add(row)
        assert list(kept) == list(kept) == rows


def test_findings_without_end() -> None:
    """Each kind has its first ones, and the number of the others."""
    many = (AuditFinding("removed", "", event=n) for n in range(NAMED_OF_A_KIND + 7))
    found = first_of_each([AuditFinding("changed", "one"), *many])
    assert len(found) == NAMED_OF_A_KIND + 2
    assert found[-1] == AuditFinding("removed", "7 findings more of this kind")


def grown(path: Path, records: int) -> Path:
    """A ledger with that many copies of its records, each of another job."""
    import sqlite3

    write(path)
    with closing(sqlite3.connect(path)) as db, db:
        for table, key in (("allocation", "number"), ("instance", "allocation")):
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            fields = ", ".join(
                f"{name} + 100 * n.value" if name in (key, "job_id") else name for name in columns
            )
            db.execute(
                "WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n "
                f"WHERE value < {records}) INSERT INTO {table} SELECT {fields} FROM {table}, n"
            )
    return path


def peak(path: Path, *words: str) -> int:
    """KiB at the most that an audit of it had in memory."""
    command = [sys.executable, "-m", "slurm_mig", "audit", "--ledger", str(path), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    # The copies are in no event, which `--check` finds.
    assert process.returncode in (0, 29)
    return usage.ru_maxrss


@pytest.mark.parametrize("words", [("--totals", "user"), ("--check",), ("--csv",), ("--json",), ()])
def test_memory_does_not_grow_with_the_ledger(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Ten times the records take no more than what is put aside before it goes to the disk."""
    small = peak(grown(tmp_path / "a/ledger.db", 300), *words)
    large = peak(grown(tmp_path / "b/ledger.db", 3000), *words)
    # As lists the records alone would be 27,000 times 1 KiB.
    assert large - small < 8 << 10


def test_records_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """The first one is there before the last row is read."""
    path = grown(tmp_path / "state/ledger.db", 5)
    with closing(Archive(path)) as archive:
        stream = youngest([archive], {})
        times = [next(stream)[0].created for _ in range(3)]
        assert times == sorted(times)


def test_a_bar_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr; none in a pipe, beside JSON, or for what takes no time."""
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def drawn(err: io.StringIO, total: int, form: str) -> str:
        monkeypatch.setattr("sys.stderr", err)
        with views.progress(total, form) as passed:
            for _ in range(total // 1000):
                passed(1000)
        return err.getvalue()

    total = views.WORTH_A_BAR
    assert "100%" in drawn(Terminal(), total, "table")
    assert "100%" in drawn(Terminal(), total, "csv")
    for err, rows, form in (
        (io.StringIO(), total, "table"),
        (Terminal(), total, "json"),
        (Terminal(), total - 1, "table"),
    ):
        assert drawn(err, rows, form) == ""
