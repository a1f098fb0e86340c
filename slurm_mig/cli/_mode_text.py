"""MIG mode in words."""

from __future__ import annotations


def mode_text(current: bool | None, pending: bool | None) -> str:
    """MIG mode in words; a pending change needs a GPU reset."""
    if current is None:
        return "not supported"
    text = "on" if current else "off"
    return text if pending == current else f"{text}, {'on' if pending else 'off'} after a reset"
