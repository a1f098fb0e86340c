"""Writes the hook scripts with this installation's paths in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault
from slurm_mig.files import replace_file, trusted

if TYPE_CHECKING:
    from collections.abc import Mapping

#: slurm.conf key -> script below the source tree, or below `share` of an installed package.
HOOKS: Final = {
    "Prolog": "prolog/prolog",
    "Epilog": "epilog/epilog",
    "TaskProlog": "prolog/task_prolog",
}


def sources() -> Path:
    """The directory that holds `prolog/` and `epilog/`."""
    package = Path(__file__).parent
    for place in (package / "share", package.parent):
        if all((place / script).is_file() for script in HOOKS.values()):
            return place
    raise NodeFault(f"no hook scripts beside {package}", remedy="install slurm-mig again")


def install_hooks(directory: Path, python: Path, config: Path, run: Path) -> Mapping[str, Path]:
    """Write the three scripts into `directory`; returns them by slurm.conf key.

    Each file appears complete and executable under its final name: slurmd may
    run it at that very moment, and drains the node for one that it cannot run.
    Raises NodeFault, with nothing written, where they cannot stand.
    """
    try:
        # Slurm runs as root whatever lies there.
        with trusted(directory, make=True):
            pass
    except OSError as problem:
        raise NodeFault(f"make {directory}: {problem.strerror}") from problem
    for script in HOOKS.values():
        if (directory / Path(script).name).is_dir():
            raise NodeFault(f"{directory / Path(script).name} is a directory, not a hook")
    values = {"python": str(python), "config": str(config), "run": str(run)}
    made = {}
    for key, script in HOOKS.items():
        target = directory / Path(script).name
        text = (sources() / script).read_text("utf-8")
        replace_file(target, fill_in(text, values), mode=0o755)
        made[key] = target
    return made


def fill_in(script: str, values: Mapping[str, str]) -> str:
    """A script with the values of its settings lines (`python=...`) replaced."""

    def filled(line: str) -> str:
        name = line.partition("=")[0]
        return f"{name}={_shell_word(name, values[name])}" if name in values else line

    return "\n".join(map(filled, script.splitlines())) + "\n"


def _shell_word(name: str, value: str) -> str:
    """A path as a shell word; `%n` in the run directory becomes the node's name.

    The configuration's `%n` stays: the Python side puts the name in.
    """
    quoted = "'" + value.replace("'", "'\\''") + "'"
    return quoted.replace("%n", "'\"$SLURMD_NODENAME\"'") if name == "run" else quoted
