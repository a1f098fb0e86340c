"""Work on more rows than fit in memory: rows put aside for a second pass, numbers counted once.

Both go to a temporary file of the caller's (TMPDIR) once there is much of them.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import NodeFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Bytes that stay in memory.
IN_MEMORY: Final = 1 << 20

#: Pairs that are put down at once.
AT_ONCE: Final = 10_000


class Rows:
    """Rows of JSON values, written one after the other, then read in the same order."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115  # closed by close()
            max_size=IN_MEMORY, mode="w+", encoding="utf-8", prefix="slurm-mig-"
        )

    def add(self, row: Any) -> None:
        """Put one behind the others."""
        self._file.write(json.dumps(row) + "\n")

    def __iter__(self) -> Iterator[Any]:
        self._file.seek(0)
        return map(json.loads, self._file)

    def close(self) -> None:
        """Forget them."""
        self._file.close()


class DistinctNumbers:
    """How many different numbers each key has (totals.py, Distinct)."""

    def __init__(self) -> None:
        # Without a name SQLite makes a file of its own where its cache does not suffice.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE pair (key TEXT, number INTEGER, PRIMARY KEY (key, number))")
        self._db.execute("BEGIN")
        self._waiting: set[tuple[str, int]] = set()

    def add(self, key: str, number: int) -> None:
        """Take one, maybe once more."""
        self._waiting.add((key, number))
        if len(self._waiting) >= AT_ONCE:
            self._put_down()

    def counts(self) -> Mapping[str, int]:
        """How many different ones each key has."""
        self._put_down()
        with _guarded():
            return dict(self._db.execute("SELECT key, count(*) FROM pair GROUP BY key"))

    def _put_down(self) -> None:
        with _guarded():
            self._db.executemany("INSERT OR IGNORE INTO pair VALUES (?, ?)", sorted(self._waiting))
        self._waiting.clear()

    def close(self) -> None:
        """Forget them."""
        self._db.close()


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as problem:
        raise NodeFault(
            f"count jobs in a temporary file: {problem}",
            remedy="see whether its file system is full, or set TMPDIR to another",
        ) from problem
