"""The manual's pages as commands: what stands in their fenced blocks, by user and in order.

`sh`, or no language: each line is a command of root's. `console`: a line after `# ` is root's, one
after `$ ` an ordinary user's, the rest is what they print. Everything else is no command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOP = Path(__file__).parents[2]
PAGES = (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))
TEXTS = ("text", "toml", "lua", "ini", "yaml", "python", "json")
PROMPTS = {"# ": "root", "$ ": "user"}
#: Name of the user whose lines begin with `$ `.
USER = "alice"


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a page, with what the page says that it prints."""

    page: str
    line: int
    user: str
    text: str
    printed: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block that holds commands."""

    page: str
    line: int
    section: str
    commands: tuple[Command, ...]


def blocks(path: Path) -> Iterator[Block]:
    """Every block of a page that has commands; AssertionError for a language unknown here."""
    lines = path.read_text("utf-8").splitlines()
    section, start = "", 0
    while start < len(lines):
        if heading := re.match(r"#{1,6} (.*)", lines[start]):
            section = heading[1]
        fence = re.match(r"( *)(```+)(\w*)$", lines[start])
        if not fence:
            assert not lines[start].lstrip().startswith("```"), f"{path.name}:{start + 1}"
            start += 1
            continue
        end = lines.index(f"{fence[1]}{fence[2]}", start + 1)
        language = fence[3] or "sh"
        body = [line.removeprefix(fence[1]) for line in lines[start + 1 : end]]
        assert language in ("sh", "console", *TEXTS), f"{path.name}:{start + 1}: {language}"
        if language not in TEXTS:
            read = _script if language == "sh" else _console
            found = tuple(read(path.name, start + 2, body))
            assert found, f"{path.name}:{start + 1}: no command in a block of commands"
            yield Block(path.name, start + 1, section, found)
        start = end + 1


def _script(page: str, line: int, body: Sequence[str]) -> Iterator[Command]:
    for start, end in _statements(body):
        yield Command(page, line + start, "root", "\n".join(body[start:end]))


def _console(page: str, line: int, body: Sequence[str]) -> Iterator[Command]:
    start = 0
    assert body[0][:2] in PROMPTS, f"{page}:{line}: output before a command"
    while start < len(body):
        user = PROMPTS[body[start][:2]]
        rest = [body[start][2:], *body[start + 1 :]]
        _, taken = next(_statements(rest))
        after = taken
        while after < len(rest) and rest[after][:2] not in PROMPTS:
            after += 1
        text, printed = "\n".join(rest[:taken]), "\n".join(rest[taken:after])
        yield Command(page, line + start, USER if user == "user" else user, text, printed)
        start += after


def _statements(body: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First and last line of each command: with its here-document and its continued lines."""
    start = 0
    while start < len(body):
        end = start + 1
        if not body[start].strip() or body[start].lstrip().startswith("#"):
            start = end
            continue
        while body[end - 1].endswith("\\"):
            end += 1
        if here := re.search(r"<<-?\s*['\"]?(\w+)", body[start]):
            end = body.index(here[1], end) + 1
        yield start, end
        start = end


MANUAL = Path(__file__).parents[2] / "docs"
