"""Tables and JSON, as all verbs print them."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Final

import click

from slurm_mig.text import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

#: Columns of a terminal that everybody has.
COLUMNS: Final = 80

#: A column that is cut keeps this much of what it says.
LEAST: Final = 6

#: How each kind of state is shown; on a terminal only (click takes colour away elsewhere).
_COLOURS: Final[dict[str, dict[str, object]]] = {
    "good": {"fg": "green"},
    "bad": {"fg": "red", "bold": True},
    "warn": {"fg": "yellow"},
    "quiet": {"dim": True},
    "head": {"bold": True},
}


def print_json(data: object) -> None:
    """JSON for programs: stable keys, one document."""
    click.echo(json.dumps(data, indent=2))


def print_json_rows(rows: Iterable[object]) -> None:
    """As `print_json` of a list, of which only one row at a time need be in memory."""
    empty = True
    for row in rows:
        text = json.dumps(row, indent=2).replace("\n", "\n  ")
        click.echo(f"[\n  {text}" if empty else f",\n  {text}", nl=False)
        empty = False
    click.echo("[]" if empty else "\n]")


def paint(text: str, kind: str) -> str:
    """Text in the colour of a kind (`good`, `bad`, `warn`, `quiet`, `head`); else as it is."""
    return click.style(text, **_COLOURS[kind]) if kind in _COLOURS else text  # type: ignore[arg-type]


class Columns:
    """Columns padded to their widest cell, numbers to the right, learnt row by row.

    Those named in `cut` are shortened, widest first, where a line would be longer than a
    terminal: as Slurm's own tables do, `+` stands for what is missing.
    """

    def __init__(self, headers: Sequence[str], cut: Collection[str] = ()) -> None:
        self._headers = headers
        self._widths = [len(header) for header in headers]
        self._right = [True] * len(headers)
        self._cut = [place for place, header in enumerate(headers) if header in cut]
        self._empty = True

    def learn(self, cells: Sequence[str]) -> None:
        """Make room for a row."""
        self._empty = False
        for place, text in enumerate(cells):
            self._widths[place] = max(self._widths[place], len(text))
            self._right[place] = self._right[place] and text.replace(".", "").isdigit()

    def fit(self) -> None:
        """Cut what may be cut until a line fits, once all is learnt."""
        columns = _columns()
        while self._cut and sum(self._widths) + 2 * len(self._widths) - 2 > columns:
            widest = max(self._cut, key=lambda place: self._widths[place])
            if self._widths[widest] <= LEAST:
                return
            self._widths[widest] -= 1

    def line(self, cells: Sequence[str], kind: str = "") -> str:
        """One row; its last cell in the colour of `kind`."""
        padded = [
            text.rjust(width) if right and not self._empty else text.ljust(width)
            for text, width, right in zip(
                map(_shortened, cells, self._widths), self._widths, self._right, strict=True
            )
        ]
        return "  ".join([*padded[:-1], paint(padded[-1].rstrip(), kind)]).rstrip()

    def head(self) -> str:
        """The headers."""
        return paint(self.line(self._headers), "head")

    def show(self, rows: Iterable[Sequence[str]]) -> None:
        """Print the headers and the rows that were learnt."""
        self.fit()
        for line in chain([self.head()], map(self.line, rows)):
            click.echo(line)


def _columns() -> int:
    """Of a terminal that is narrow; else, and where a file is written to, 80."""
    try:
        return min(COLUMNS, os.get_terminal_size(sys.stdout.fileno()).columns or COLUMNS)
    except (OSError, ValueError):
        return COLUMNS


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}+"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns padded to their widest cell; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    columns = Columns(headers)
    for row in cells:
        columns.learn(row)
    columns.show(cells)


def cell(value: object) -> str:
    """A value as one word or phrase of a line; `?` for what is unknown or unprintable."""
    if value is None:
        return "?"
    # A job or user name must not move the cursor or forge a row.
    return shown(str(value))


def slices_of(name: str) -> str:
    """The digit of a profile's name, also behind a GPU type: `h100_3g.40gb` has 3."""
    return name.rpartition("_")[2].rpartition("c.")[2][:1]


def largest(room: Mapping[str, int | None]) -> str:
    """The profile with most slices that has room, plain ones first; `nothing` where none has."""
    fits = [name for name, count in room.items() if count]
    return max(fits, key=lambda name: (slices_of(name), "+" not in name), default="nothing")


def folded(text: str, indent: int) -> str:
    """A line as several of at most 80 columns, of a narrower terminal's; further ones indented."""
    import textwrap

    return textwrap.fill(
        text,
        _columns(),
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def age(seconds: float) -> str:
    """A duration as squeue writes it: `0:09`, `26:03`, `3:26:03`, `1-02:26:03`."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def when(seconds: float | None) -> str:
    """A time as Slurm writes it: local, to the second."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%dT%H:%M:%S")


def run_of(job_id: int | None, restart: int) -> str:
    """A job and, from its second on, the run of it: `7`, `7 run 2`; a dot would be a step."""
    if job_id is None:
        return "-"
    return f"{job_id} run {restart + 1}" if restart else str(job_id)


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on a terminal what takes so long, from the first second on; the line goes again.

    By a timer's signal, not by a thread: what is done meanwhile may fork.
    """
    if not sys.stderr.isatty() or threading.current_thread() is not threading.main_thread():
        yield
        return
    began, erase = time.monotonic(), b""

    def tell(*_: object) -> None:
        nonlocal erase
        erase = b"\r\x1b[K"
        os.write(2, f"\r{what}: {time.monotonic() - began:.0f} s ".encode())

    before = signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        os.write(2, erase)


def mode_text(current: bool | None, pending: bool | None) -> str:
    """MIG mode in words; a pending change needs a GPU reset."""
    if current is None:
        return "not supported"
    text = "on" if current else "off"
    return text if pending == current else f"{text}, {'on' if pending else 'off'} after a reset"
