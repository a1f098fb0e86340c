"""Tables and JSON, as all verbs print them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING

import click

from slurm_mig.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


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


class Columns:
    """Columns padded to their widest cell, numbers to the right, learnt row by row."""

    def __init__(self, headers: Sequence[str]) -> None:
        self._headers = headers
        self._widths = [len(header) for header in headers]
        self._right = [True] * len(headers)
        self._empty = True

    def learn(self, cells: Sequence[str]) -> None:
        """Make room for a row."""
        self._empty = False
        for place, text in enumerate(cells):
            self._widths[place] = max(self._widths[place], len(text))
            self._right[place] = self._right[place] and text.replace(".", "").isdigit()

    def show(self, rows: Iterable[Sequence[str]]) -> None:
        """Print the headers and the rows that were learnt."""
        for line in chain([self._headers], rows):
            padded = [
                text.rjust(width) if right and not self._empty else text.ljust(width)
                for text, width, right in zip(line, self._widths, self._right, strict=True)
            ]
            click.echo("  ".join(padded).rstrip())


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


def folded(text: str, indent: int) -> str:
    """A line as several of at most 80 columns, the further ones indented."""
    import textwrap

    return textwrap.fill(
        text, 80, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def age(seconds: float) -> str:
    """A duration for people: `26:03:09`, in hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def when(seconds: float | None) -> str:
    """A time for people: local, to the second."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def mode_text(current: bool | None, pending: bool | None) -> str:
    """MIG mode in words; a pending change needs a GPU reset."""
    if current is None:
        return "not supported"
    text = "on" if current else "off"
    return text if pending == current else f"{text}, {'on' if pending else 'off'} after a reset"
