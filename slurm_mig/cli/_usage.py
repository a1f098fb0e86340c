"""The command line's own mistakes, in one line each that names what is allowed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike


#: Longer than any sentence.
WHOLE: Final = 1000


class Group(click.Group):
    """A group that lists its commands when it is given another word."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command names those there are."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            known = self.list_commands(ctx)
            hint = meant(args[0], known)
            raise click.UsageError(
                f"no command {args[0]!r}{hint}; commands: {', '.join(known)}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, each with its whole first sentence: click cuts it at the edge."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, item.get_short_help_str(WHOLE)) for name, item in found if item is not None]
            )


def meant(word: str, known: Sequence[str]) -> str:
    """`, did you mean ...?` where one of these is much like the word, or begins with it."""
    alike = [name for name in known if len(word) > 1 and name.startswith(word)]
    close = alike or difflib.get_close_matches(word, known, 2)
    return f", did you mean {' or '.join(close)}?" if close else ""


class OnePath(click.Path):
    """A path of one printable line; an empty one would mean the working directory."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | PathLike[str]:  # the base class's own answer
        """Refuse what is no name of a file, then as click does."""
        text = str(value)
        if not text or not text.isprintable():
            self.fail(f"{text!r} is no path; write one line of printable characters", param, ctx)
        return super().convert(value, param, ctx)


class NewFile(OnePath):
    """A file to be written; refused at once where no directory is, not after the work."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Refuse a name below what is no directory."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{path}: there is no directory {path.parent}", param, ctx)
        return path


def one_line(problem: click.ClickException) -> str:
    """Click's message on one line: which command, what is wrong, what it takes."""
    text = " ".join(problem.format_message().split())
    context = getattr(problem, "ctx", None)
    if context is None:
        return text
    if isinstance(problem, click.NoSuchOption):
        known = _options(context)
        hint = meant(problem.option_name, known)
        text = f"no option {problem.option_name}{hint or '.'} Allowed: {', '.join(known)}"
    if isinstance(problem, click.BadParameter) and isinstance(
        kind := getattr(problem.param, "type", None), click.IntRange
    ):
        text += f" Allowed: whole numbers from {kind.min}"
        text += "" if kind.max is None else f" to {kind.max}"
    usage = " ".join(context.get_usage().removeprefix("Usage:").split())
    return f"{text.rstrip('.')}; usage: {usage}"


def _options(context: click.Context) -> list[str]:
    params = context.command.get_params(context)
    return [name for item in params if isinstance(item, click.Option) for name in item.opts]
