"""Slurm's host lists, `n[01-04,7],login`, written out. Pure.

What scontrol(1) calls a hostlist expression: words separated by commas, each with
any number of bracketed lists of numbers and ranges. As Slurm 22.05 reads it, nothing
follows the last bracket of a word.
"""

from __future__ import annotations

import re
from itertools import product
from typing import Final

from slurm_mig.errors import UsageFault

#: Hosts that one list may name (MAX_RANGE of Slurm's hostlist.c).
MAX_HOSTS: Final = 65536

_WORD: Final = re.compile(r"(?:[^\[\],]|\[[^\[\]]*\])+")
_PART: Final = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")

_ALLOWED: Final = "write names such as n1 or n[01-04,7], several separated by commas"


def expand(text: str) -> list[str]:
    """All hosts of a list, in its order; UsageFault names the part that cannot be read."""
    hosts: list[str] = []
    at = 0
    while True:
        word = _WORD.match(text, at)
        if word is None:
            raise UsageFault(f"host list {text!r}: {_ALLOWED}")
        hosts += _word(word[0], text)
        _limit(len(hosts), text)
        at = word.end()
        if at == len(text):
            return hosts
        if text[at] != ",":
            raise UsageFault(f"host list {text!r}: odd bracket at {text[at:]!r}; {_ALLOWED}")
        at += 1


def _word(word: str, text: str) -> list[str]:
    """The hosts of one word: every combination of what its brackets list."""
    if "[" in word and not word.endswith("]"):
        raise UsageFault(f"host list {text!r}: {word!r} goes on behind its brackets; {_ALLOWED}")
    choices = [
        [plain] if plain else _numbers(inside, text) for inside, plain in _PART.findall(word)
    ]
    count = 1
    for choice in choices:
        count *= len(choice)
    _limit(count, text)
    names = ["".join(parts) for parts in product(*choices)]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageFault(f"host list {text!r}: {name!r} is no host name; {_ALLOWED}")
    return names


def _numbers(inside: str, text: str) -> list[str]:
    """`01-04,7` as 01, 02, 03, 04, 7; leading zeros give the width."""
    found: list[str] = []
    for part in inside.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise UsageFault(f"host list {text!r}: [{inside}] is no list of numbers; {_ALLOWED}")
        first, last = match[1], match[2] or match[1]
        if int(first) > int(last):
            raise UsageFault(f"host list {text!r}: range {part} goes down; {_ALLOWED}")
        _limit(int(last) - int(first) + 1, text)
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found


def _limit(count: int, text: str) -> None:
    if count > MAX_HOSTS:
        raise UsageFault(f"host list {text!r} names more than {MAX_HOSTS} hosts")
