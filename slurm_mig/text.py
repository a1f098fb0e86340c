"""Text of others made fit to be shown: in logs, tables, pictures and drain reasons. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def shown(text: str) -> str:
    """The text with `?` for what is unprintable: nothing moves a cursor or forges a line."""
    return "".join(char if char.isprintable() else "?" for char in text)


def ascii_line(text: str) -> str:
    """Printable ASCII on one line: no newline, escape or odd letter of a user's."""
    return "".join(char if " " <= char <= "~" else "?" for char in " ".join(text.split()))


def unknown_key(key: str, allowed: Iterable[str], where: str = "") -> str:
    """What is wrong with a key that a file must not have, the likeliest one, and all there are."""
    from difflib import get_close_matches

    options = list(dict.fromkeys(allowed))
    close = get_close_matches(key, options, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key {where}{key}; {hint}allowed: {', '.join(options)}"
