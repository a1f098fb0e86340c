"""Writes what the manual takes from the code: config keys, commands, man pages, exit codes.

reference.py DIR    writes config.md, commands.md, files.md and man/*.1 below DIR, for
                    `make generated`: docs
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from slurm_mig import __version__
from slurm_mig.cli import HELP, VERBS, cli
from slurm_mig.config import is_set, shown_default
from slurm_mig.errors import EXIT_CODES
from slurm_mig.settings import SETTINGS, Setting
from slurm_mig.system.replace import write_output

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The package, as this checkout has it.
PACKAGE: Final = Path(__file__).parents[2] / "slurm_mig"

#: Command -> what is typed, and what for (examples.py).
EXAMPLES: Final = runpy.run_path(str(Path(__file__).with_name("examples.py")))["EXAMPLES"]

#: Of the first line of every page. Not the day of the build: the same source gives the same file.
HEAD: Final = f'"" "slurm-mig {__version__}" "slurm-mig"'


def config_page() -> str:
    """Every key with its default, what is allowed and what it does."""
    lines = [
        "# Configuration",
        "",
        "`/etc/slurm-mig/config.toml`, or the file that `--config` or `$SLURM_MIG_CONFIG` names.",
        "Every key has a default; an unknown one is an error. `%n` in a path stands for the Slurm",
        "node's name. `etc/config.toml` is a sample with every key as a comment.",
    ]
    table = ""
    for item in SETTINGS:
        if item.table != table:
            table = item.table
            lines += ["", f"## [{table}]"]
        lines += [
            "",
            f"### {item.key}",
            "",
            item.text,
            "",
            f"Allowed: {item.allowed}. {_default(item)}",
        ]
    return "\n".join(lines) + "\n"


def _default(item: Setting) -> str:
    if is_set(item):
        return f"Default: `{shown_default(item)}`."
    return f"Not set by default; such as `{shown_default(item)}`."


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, groups before what they hold."""
    for verb in VERBS:
        command = cli.get_command(click.Context(cli), verb)
        assert command
        yield from _with_parts(f"slurm-mig {verb}", command)


def _with_parts(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for part in command.commands.values():
            yield from _with_parts(f"{name} {part.name}", part)


def commands_page() -> str:
    """What `--help` of each command says."""
    lines = ["# Commands", "", "What `slurm-mig COMMAND --help` says."]
    for name, command in commands():
        context = click.Context(
            command, info_name=name, max_content_width=100, help_option_names=HELP
        )
        lines += ["", f"## {name}", "", "```text", command.get_help(context).rstrip()]
        lines += ["", "Examples:"] if name in EXAMPLES else []
        lines += [f"  {typed}\n      {why}" for typed, why in EXAMPLES.get(name, ())]
        lines.append("```")
    return "\n".join(lines) + "\n"


def man_page(name: str, command: click.Command) -> str:
    """One page in man(7) macros."""
    context = click.Context(command, info_name=name, help_option_names=HELP)
    usage = " ".join(command.collect_usage_pieces(context))
    text = command.help or ""
    lines = [
        f'.TH "{name.upper().replace(" ", "-")}" 1 {HEAD}',
        ".SH NAME",
        f"{_roff(name.replace(' ', '-'))} \\- {_roff(command.get_short_help_str(200))}",
        ".SH SYNOPSIS",
        f".B {_roff(name)}",
        _roff(usage),
        ".SH DESCRIPTION",
        *_paragraphs(text),
        *_options(command, context),
        *_examples(name),
        ".SH EXIT STATUS",
        "0 when done; else the code of the fault:",
        *(line for code in EXIT_CODES for line in (".TP", str(code[0]), _roff(code[2]))),
        ".SH FILES",
        ".I /etc/slurm-mig/config.toml",
        ".br",
        ".I /var/lib/slurm-mig/ledger.db",
        ".SH SEE ALSO",
        ".BR slurm-mig (1),",
        ".BR slurm.conf (5),",
        ".BR gres.conf (5)",
    ]
    return "\n".join(lines) + "\n"


def _options(command: click.Command, context: click.Context) -> list[str]:
    rows = [item.get_help_record(context) for item in command.get_params(context)]
    lines = [".SH OPTIONS"]
    # An argument has a row of its own in some releases of click, and nothing to say in it.
    for names, text in (row for row in rows if row and row[1]):
        lines += [".TP", f"\\fB{_roff(names)}\\fR", _roff(" ".join(text.split()))]
    return lines


def _examples(name: str) -> list[str]:
    lines = [".SH EXAMPLES"] if name in EXAMPLES else []
    for typed, why in EXAMPLES.get(name, ()):
        lines += [".TP", f"\\fB{_roff(typed)}\\fR", _roff(why)]
    return lines


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for part in text.replace("\b", "").split("\n\n"):
        lines += [".PP", _roff(" ".join(part.split()))]
    return lines


def _roff(text: str) -> str:
    """Text as roff takes it: no control lines, no escapes, plain hyphens."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + plain if plain.startswith((".", "'")) else plain


def files_page() -> str:
    """Every file of the package by its room, in the first sentence of its own."""
    lines = [
        "# Files",
        "",
        "Every file of `slurm_mig/` in its own words; [development](development.md) has the rooms.",
    ]
    rooms = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    for room in (PACKAGE, *rooms):
        name = "At the top" if room == PACKAGE else room.name
        lines += ["", f"## {name}", "", "| file | what |", "|---|---|"]
        for path in sorted(room.glob("*.py")):
            words = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            if path.name != "__init__.py":
                first = words.partition("\n")[0].replace("|", "\\|")
                lines.append(f"| `{path.stem}` | {first} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """Everything by its path below the manual's directory."""
    found = {"config.md": config_page(), "commands.md": commands_page(), "files.md": files_page()}
    found["man/slurm-mig.1"] = man_page("slurm-mig", cli)
    for name, command in commands():
        found[f"man/{name.replace(' ', '-')}.1"] = man_page(name, command)
    return found


def main(directory: str) -> None:
    """Write them."""
    for name, text in pages().items():
        path = Path(directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_output(path, text)


if __name__ == "__main__":
    main(sys.argv[1])
