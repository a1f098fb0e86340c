"""Every command that the manual shows is run, and every option, verb and key that it names exists.

A command of a block runs here, as it stands, in a machine of its own with simulated GPUs; with a
Slurm in tests/cluster/test_docs_commands.py; or it is excused below, with the reason. One that is
in none of these fails `test_every_command_is_classified`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
import pytest

from slurm_mig.cli import VERBS, cli
from slurm_mig.settings import SETTINGS
from tests.kit import machine, pages
from tests.kit.gpus import H100
from tests.kit.manual_commands import (
    CODES,
    ENDLESS,
    EXCUSED,
    FOLLOWED,
    check,
    classified,
    found,
    prepared,
    runnable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not (pages.TOP / ".ci").exists(), reason="no .ci/ here")


#: GPUs of the machine; two where a page is not here.
GPUS = {"audit.md": 8}


def every() -> Iterator[pages.Command]:
    for path in pages.PAGES:
        for block in pages.blocks(path):
            yield from block.commands


def test_every_command_is_classified() -> None:
    """Run here, run with a Slurm, followed as a page, or excused; and no excuse is left over."""
    nobody = [
        f"{item.page}:{item.line}: {item.text}"
        for item in every()
        if item.page not in FOLLOWED and not classified(item.text)
    ]
    assert nobody == []
    texts = [item.text for item in every()]
    assert [one for one in EXCUSED if not any(re.match(one, text) for text in texts)] == []


WITH_COMMANDS = [
    path.name
    for path in pages.PAGES
    if path.name not in FOLLOWED and any(runnable(block, "here") for block in pages.blocks(path))
]


@pytest.mark.root
@pytest.mark.timeout(700)
@pytest.mark.skipif(bool(machine.missing()), reason=machine.missing())
@pytest.mark.parametrize("page", WITH_COMMANDS)
def test_commands_that_need_no_slurm(page: str) -> None:
    """In the page's order, each block in a shell of its own, with the exit code it should have."""
    steps: list[list[list[str]]] = []
    shown: list[list[pages.Command | None]] = []
    for number, block in enumerate(found(page)):
        before = prepared(block, number)
        commands = runnable(block, "here")
        steps.append([["root", text] for text in before])
        steps[-1] += [
            [item.user, f"timeout 3 {item.text}" if ENDLESS.match(item.text) else item.text]
            for item in commands
        ]
        shown.append([None] * len(before) + list(commands))
    spec = {"host": "gpu01", "simulate": [H100, GPUS.get(page, 2)], "opt": True, "sessions": steps}
    expected = {key: list(codes) for key, codes in CODES.items()}
    for block_results, items in zip(machine.run(spec), shown, strict=True):
        for result, item in zip(block_results, items, strict=True):
            check(result, item, expected)


# -- names in the text -----------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    """Every command by its words: `simulator create`."""
    found_: dict[str, click.Command] = {}
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command
        found_[verb] = command
        if isinstance(command, click.Group):
            found_ |= {f"{verb} {part}": item for part, item in command.commands.items()}
    return found_


def options(command: click.Command) -> set[str]:
    return {word for item in [*command.params, *cli.params] for word in item.opts} | {"--help"}


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(
        r"^( *)```.*?^\1```$", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_verbs_and_options_in_the_text_exist(path: Path) -> None:
    """`slurm-mig verb --option` and `verb --option` anywhere in a sentence or a table."""
    known = commands()
    for span in re.findall(r"`([^`\n]+)`", prose(path)):
        words = span.split()
        if len(words) > 1 and words[0].endswith("slurm-mig") and words[1].startswith("-"):
            words = [words[0], *words[2:]]
        if words and words[0].endswith("slurm-mig") and not words[0].startswith("/etc"):
            words = words[1:]
        elif not (words and words[0] in known and any(word[:2] == "--" for word in words)):
            continue
        if not words or not re.fullmatch(r"[a-z]+", words[0]):
            continue
        assert words[0] in known, f"{path.name}: `{span}`"
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.partition("=")[0].rstrip(",") in options(known[name]), (path.name, span)


TABLES = {item.table for item in SETTINGS}


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_config_keys_in_the_text_exist(path: Path) -> None:
    """`key` in `[table]`, and [table]s themselves; those of a fleet file are its own."""
    fleet = {"nodes", "types", "aliases", "billing", "words", "defaults"}
    text = prose(path)
    for table in re.findall(r"(?<!\[)`\[(\w+)\]`|\[(\w+)\] table", text):
        assert (table[0] or table[1]) in TABLES | fleet, (path.name, table)
    for key, table in re.findall(r"`(\w+)(?: = [^`]*)?` in (?:the )?`?\[(\w+)\]`?", text):
        assert table in fleet or (table, key) in {(i.table, i.key) for i in SETTINGS}, (
            path.name,
            key,
        )
