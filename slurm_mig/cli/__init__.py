"""The command line. One module a verb, loaded only when its verb is called."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn

import click

from slurm_mig import __version__
from slurm_mig.cli._usage import Group, OnePath, one_line
from slurm_mig.errors import EXIT_CODES, NodeFault, SlurmMigError
from slurm_mig.system.causes import unnamed

#: As the shell says of a program that SIGPIPE ended.
CLOSED_PIPE: Final = 141

#: Verb -> module below slurm_mig.cli; the module's click command is named `command`.
VERBS: Final[dict[str, str]] = {
    "acceptance": "acceptance",
    "apply": "apply",
    "archive": "archive",
    "assert": "assert_",
    "audit": "audit",
    "create": "create",
    "demo": "demo",
    "destroy": "destroy",
    "disable": "disable",
    "doctor": "doctor",
    "enable": "enable",
    "explain": "explain",
    "export": "export",
    "generate": "generate",
    "gpus": "gpus",
    "install": "install",
    "job": "job",
    "learn": "learn",
    "metrics": "metrics",
    "profiles": "profiles",
    "publish": "publish",
    "reconcile": "reconcile",
    "report": "report",
    "reset": "reset",
    "retire": "retire",
    "simulate": "simulate",
    "simulator": "simulator",
    "status": "status",
    "verify": "verify",
    "warm": "warm",
    "weights": "weights",
}


class _Group(Group):
    """A group whose commands are imported on demand: each import would cost every call."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in VERBS:
            return None
        command = import_module(f"slurm_mig.cli.{VERBS[cmd_name]}").command
        assert isinstance(command, click.Command)  # noqa: S101  # a verb without command is a bug
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; here, for click itself would end a closed pipe with 1, unnamed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # `slurm-mig audit | head`: not worth a word, but not success either.
            # What is still buffered has no reader; at exit Python would complain of it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CLOSED_PIPE)


def _exit_code_help() -> str:
    lines = "\n".join(f"  {code:2d}  {meaning}" for code, _, meaning in EXIT_CODES)
    return f"\b\nExit codes:\n   0  done\n{lines}"


#: Options for help, of every command: subcommands take them from the first.
HELP: Final = ["-h", "--help"]


@click.command(cls=_Group, epilog=_exit_code_help(), context_settings={"help_option_names": HELP})
@click.option(
    "--config",
    type=OnePath(path_type=Path),
    help="Configuration file; else $SLURM_MIG_CONFIG, else /etc/slurm-mig/config.toml.",
)
@click.version_option(__version__, prog_name="slurm-mig")
@click.pass_context
def cli(ctx: click.Context, config: Path | None) -> None:
    """MIG slices made to measure for Slurm jobs."""
    ctx.obj = config
    # Without it click colours what goes to a terminal, and nothing else (https://no-color.org).
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        ctx.color = False


def main() -> None:
    """Run the command line; a fault is one line on stderr and its own exit code."""
    try:
        cli.main(prog_name="slurm-mig", standalone_mode=False)
    except SlurmMigError as fault:
        _leave(fault)
    except click.ClickException as problem:
        click.echo(_told(problem), err=True)
        sys.exit(problem.exit_code)
    except click.Abort:
        click.echo("slurm-mig: interrupted", err=True)
        sys.exit(130)
    except (OSError, MemoryError, ImportError) as problem:
        _leave(unnamed(problem) or NodeFault(str(problem)))


def _told(problem: click.ClickException) -> str:
    # `slurm-mig` alone: the help is what it says (a class that click 8.1 does not have).
    if type(problem).__name__ == "NoArgsIsHelpError":
        return problem.format_message()
    return f"slurm-mig: {one_line(problem)}"


def _leave(fault: SlurmMigError) -> NoReturn:
    click.echo(f"slurm-mig: {fault}", err=True)
    sys.exit(fault.exit_code)
