"""Text of others made fit to be shown: in logs, tables, pictures and drain reasons. Pure."""

from __future__ import annotations


def shown(text: str) -> str:
    """The text with `?` for what is unprintable: nothing moves a cursor or forges a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def ascii_line(text: str) -> str:
    """Printable ASCII on one line: no newline, escape or odd letter of a user's."""
    return "".join(char if " " <= char <= "~" else "?" for char in " ".join(text.split()))
