"""Every command that the manual shows is run, and every option, verb and key that it names exists.

A command of a block runs here, as it stands, in a machine of its own with simulated GPUs; with a
Slurm in tests/slurm/test_docs_commands.py; or it is excused below, with the reason. One that is
in none of these fails `test_every_command_is_classified`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from slurm_mig.cli import VERBS, cli
from slurm_mig.settings import SETTINGS

from . import pages, worlds
from .conftest import H100

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.skipif(not (pages.TOP / ".ci").exists(), reason="no .ci/ here")

#: Pages that a test follows as a whole.
FOLLOWED = {"quickstart.md": "tests/slurm/test_quickstart.py"}

#: Commands that no test runs as they stand, and why.
EXCUSED = {
    r"make (demo|test)\b": "tests/slurm/test_demo.py and continuous integration run them",
    r"python3 -m venv \S+$": "tests/slurm/test_quickstart.py makes one",
    r"(.*&& *)?\S*pip install\b": "needs the network; test_quickstart.py installs wheels",
}
#: What only a Slurm can answer.
SLURM = re.compile(
    r"(sbatch|srun|salloc|squeue|scontrol|scancel|sacctmgr|sacct|sinfo)\b|.*\s--(slurm|cluster|reconcile)\b"
    r"|slurm-mig reconcile(?!.*--(no-slurm|boot))"
)
#: What may be run: the rest needs a line above.
PROGRAMS = re.compile(
    r"(/opt/slurm-mig\S*/bin/)?slurm-mig |export |cat >|systemctl |sqlite3 |journalctl |cp |ln "
)
#: Exit codes other than 0: by page and how the command begins, each in turn.
CODES = {
    ("audit.md", "slurm-mig audit --check"): [0, 29],
    ("admin.md", "slurm-mig status --watch"): [124],
}
#: Never end by themselves.
ENDLESS = re.compile(r".*--watch\b")

LEDGER = "/var/lib/slurm-mig/ledger.db"
WEEK = f"""{sys.executable} - <<'PYTHON'
import sys
from pathlib import Path
sys.path.insert(0, "{pages.TOP}/bench")
from slurm_mig.config import load
from slurm_mig.state.ledger import Ledger
from slurm_mig.node.node import Node
from timeline_example import Clock, week
node = Node(load(Path("/etc/slurm-mig/config.toml"), {{}}), {{"SLURMD_NODENAME": "gpu01"}})
clock = Clock()
vars(node)["ledger"] = Ledger(node.config.ledger, clock)
week(node, clock)
node.close()
PYTHON"""
#: A slice for job 4711 of alice's, by the installed Prolog.
HELD = (
    "slurm-mig install",
    (
        "SLURM_JOB_ID=4711 SLURM_JOB_UID=64001 SLURM_JOB_GID=64001 SLURM_JOB_USER=alice "
        "SLURM_JOB_GPUS=0 SLURM_JOB_COMMENT=slurm-mig=1,3g.40gb/9/14:1 SLURMD_NODENAME=gpu01 "
        "SLURM_SCRIPT_CONTEXT=prolog_slurmd /etc/slurm-mig/hooks/prolog 2>>/var/log/slurm-mig.log"
    ),
)
#: What audit.md's second check finds.
EDITS = "; ".join(
    (
        "DROP TRIGGER event_no_update",
        "DROP TRIGGER event_no_delete",
        "UPDATE event SET at = at + 1 WHERE seq = 96",
        "DELETE FROM event WHERE seq = 200",
        "UPDATE allocation SET user = 'eve' WHERE number = 101",
    )
)
#: What a block finds: root's commands before it, by page and number of the block there, or what
#: stands in the block. `fleet.toml` is the page's own description of a fleet.
BEFORE: dict[tuple[str, int | str], Sequence[str]] = {
    ("audit.md", 0): ["export SLURMD_NODENAME=gpu01", WEEK],
    ("audit.md", 3): [
        f"cp -a {Path(LEDGER).parent} /var/lib/kept",
        f'sqlite3 {LEDGER} "{EDITS}"',
    ],
    ("audit.md", 4): [
        f"rm -r {Path(LEDGER).parent} && mv /var/lib/kept {Path(LEDGER).parent}",
        "export SLURMD_NODENAME=gpu01",
        *HELD,
    ],
    ("audit.md", 6): ["mkdir -p /shared/ledgers"],
    ("security.md", 0): HELD,
    ("upgrade.md", "/opt/slurm-mig-new"): ["cp -a /opt/slurm-mig /opt/slurm-mig-new"],
    ("admin.md", "slurm-mig generate fleet.toml"): ["fleet.toml"],
    ("from-static-mig.md", "slurm-mig generate fleet.toml"): ["fleet.toml"],
}
#: GPUs of the machine; two where a page is not here.
GPUS = {"audit.md": 8}


def classified(text: str) -> str:
    """`excused`, `slurm`, `here`, or empty."""
    if any(re.match(pattern, text) for pattern in EXCUSED):
        return "excused"
    if SLURM.match(text):
        return "slurm"
    return "here" if PROGRAMS.match(text) else ""


def found(page: str) -> list[pages.Block]:
    (path,) = [path for path in pages.PAGES if path.name == page]
    return list(pages.blocks(path))


def runnable(block: pages.Block, *kinds: str) -> list[pages.Command]:
    return [item for item in block.commands if classified(item.text) in kinds]


def every() -> Iterator[pages.Command]:
    for path in pages.PAGES:
        for block in pages.blocks(path):
            yield from block.commands


def prepared(block: pages.Block, number: int, *, slurm: bool = False) -> list[str]:
    """Commands that bring about what the block takes for granted."""
    text = "\n".join(item.text for item in block.commands)
    steps: list[str] = []
    for (page, which), commands_ in BEFORE.items():
        if page == block.page and (which == number or (isinstance(which, str) and which in text)):
            # With a Slurm the ledger is that Slurm's own, and nothing is simulated history.
            steps += [step for step in commands_ if not slurm or step.startswith(("mkdir", "cp"))]
    return [fleet_file(block.page) if step == "fleet.toml" else step for step in steps]


def fleet_file(page: str) -> str:
    """The page's own description of a fleet, as the file that it is."""
    (path,) = [path for path in pages.PAGES if path.name == page]
    (text,) = re.findall(
        r"^```toml\n(\[\[nodes\]\].*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE
    )
    return f"cat >fleet.toml <<'FLEET'\n{text}FLEET"


def plain(text: str) -> list[str]:
    """Output without what differs from run to run."""
    text = re.sub(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"\1-*", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


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
@pytest.mark.skipif(bool(worlds.missing()), reason=worlds.missing())
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
    for block_results, items in zip(worlds.run(spec), shown, strict=True):
        for result, item in zip(block_results, items, strict=True):
            check(result, item, expected)


def check(
    result: dict[str, Any],
    item: pages.Command | None,
    expected: dict[tuple[str, str], list[int]],
) -> None:
    """Its exit code and, where the page shows some, its output."""
    code = 0
    if item is not None:
        for (page, start), codes in expected.items():
            if item.page == page and item.text.startswith(start) and codes:
                code = codes.pop(0)
    where = f"{item.page}:{item.line}" if item else "before"
    assert result["code"] == code, f"{where}: {result}"
    if item is not None and item.printed:
        assert plain(result["out"]) == plain(item.printed), where


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
