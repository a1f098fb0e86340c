"""What is installed, as text: hooks, units, man pages, with a site's places filled in."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NotPermitted
from slurm_mig.node.install_paths import COMPLETIONS, File, below, check_place
from slurm_mig.system.replace import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping


#: slurm.conf key -> script below the source tree, or below `share` of an installed package.
HOOKS: Final = {
    "Prolog": "prolog/prolog",
    "Epilog": "epilog/epilog",
    "TaskProlog": "prolog/task_prolog",
}

#: systemd unit below the same directory.
UNIT: Final = "etc/systemd/slurm-mig-boot.service"

#: Every unit, with what its ExecStart runs; timers run none.
UNITS: Final[dict[str, tuple[str, ...]]] = {
    UNIT: ("reconcile", "--boot"),
    "etc/systemd/slurm-mig-reconcile.service": ("reconcile",),
    "etc/systemd/slurm-mig-reconcile.timer": (),
    "etc/systemd/slurm-mig-publish.service": ("publish",),
    "etc/systemd/slurm-mig-publish.timer": (),
    "etc/systemd/slurm-mig-metrics.service": (
        "metrics",
        "--textfile",
        "/var/lib/prometheus/node-exporter/slurm-mig.prom",
    ),
    "etc/systemd/slurm-mig-metrics.timer": (),
    "etc/systemd/slurm-mig-warm.service": ("warm",),
}

#: What is added to Slurm's own unit, and where it goes below the units.
DROP_IN: Final = ("etc/systemd/slurmd.conf", "slurmd.service.d/10-slurm-mig.conf")

#: Names in a directory of the site's: Slurm takes a glob in reverse alphabetical order
#: (facts/slurm.md#prologd): our Prolog comes last, our Epilog first. With .sh, for globs that ask.
PROLOG_NAME: Final = "00-slurm-mig.sh"
EPILOG_NAME: Final = "zz-slurm-mig.sh"

#: Seconds that the driver may take in a unit, beside what the configuration bounds:
#: eight GPUs at some 40 s; MIG queries of 5 s each were seen (NVIDIA/gpu-operator#2155).
DRIVER_TIME: Final = 350

#: Seconds that slurmd may take to stop when its last hook has ended.
STOP_MARGIN: Final = 10


@dataclass(frozen=True, slots=True)
class Places:
    """Directories of the system that it is installed for, without the root it lies below.

    `prolog_d`, `epilog_d`: directories of the site's, whose other files are its own.
    """

    hooks: Path
    units: Path | None = None
    share: Path = Path("/usr/local/share")
    tmpfiles: Path = Path("/etc/tmpfiles.d")
    etc: Path = Path("/etc")
    prolog_d: Path | None = None
    epilog_d: Path | None = None

    @property
    def hook_paths(self) -> dict[str, Path]:
        """Where each hook goes, by slurm.conf key."""
        paths = {key: self.hooks / Path(script).name for key, script in HOOKS.items()}
        if self.prolog_d:
            paths["Prolog"] = self.prolog_d / PROLOG_NAME
        if self.epilog_d:
            paths["Epilog"] = self.epilog_d / EPILOG_NAME
        return paths

    @property
    def slurm_lines(self) -> list[str]:
        """The three lines of slurm.conf."""
        paths = self.hook_paths
        shared = {"Prolog": self.prolog_d, "Epilog": self.epilog_d}
        return [
            f"{key}={path.with_name('*') if shared.get(key) else path}"
            for key, path in paths.items()
        ]


@dataclass(frozen=True, slots=True)
class Runtime:
    """What the files name: this Python, the configuration, its run directory.

    `bounded` are the seconds that the configuration bounds in a unit: waiting for the
    hardware, for locks and for Slurm; `longest` those that a hook may take; `sample` is a
    configuration to begin with; `package` is this one.
    """

    python: Path
    config: Path
    run: Path
    bounded: float = 0.0
    longest: float = 0.0
    sample: str = ""
    package: Path = Path(__file__).parents[1]


def sources() -> Path:
    """The directory that holds `prolog/`, `epilog/` and `etc/`."""
    package = Path(__file__).parents[1]
    for place in (package / "share", package.parent):
        if all((place / script).is_file() for script in (*HOOKS.values(), *UNITS)):
            return place
    raise NodeFault(f"no hook scripts beside {package}", remedy="install slurm-mig again")


def files(parts: Iterable[str], places: Places, runtime: Runtime, root: Path) -> list[File]:
    """Everything of these PARTS. What is below `root` is only looked at, for a config."""
    makers: dict[str, Callable[[], Iterable[File]]] = {
        "hooks": lambda: _hooks(places, runtime),
        "units": lambda: unit_files(places.units, runtime) if places.units else (),
        "tmpfiles": lambda: _tmpfiles(places, runtime),
        "completion": lambda: _completions(places.share),
        "man": lambda: _man_pages(places.share),
        "config": lambda: _config(runtime, root),
        "log": lambda: _log(places.etc),
    }
    return [file for part in parts for file in makers[part]()]


def _hooks(places: Places, runtime: Runtime) -> Iterator[File]:
    values = {
        "python": str(runtime.python),
        "config": str(runtime.config),
        "run": str(runtime.run),
        "package": str(runtime.package),
    }
    for key, path in places.hook_paths.items():
        text = (sources() / HOOKS[key]).read_text("utf-8")
        yield File(path, fill_in(text, values), 0o755)


def unit_files(directory: Path, runtime: Runtime) -> Iterator[File]:
    """Units for systemd, for this Python and configuration."""
    python = [str(runtime.python), "-I", "-m", "slurm_mig", "--config", str(runtime.config)]
    for unit, arguments in UNITS.items():
        values = {
            "ExecStart": " ".join(map(_unit_word, (*python, *arguments))),
            "TimeoutStartSec": f"{runtime.bounded + DRIVER_TIME:.0f}",
        }
        text = (sources() / unit).read_text("utf-8")
        yield File(directory / Path(unit).name, _with_values(text, values))
    text = (sources() / DROP_IN[0]).read_text("utf-8")
    values = {"TimeoutStopSec": f"{runtime.longest + STOP_MARGIN:.0f}"}
    yield File(directory / DROP_IN[1], _with_values(text, values))


def _tmpfiles(places: Places, runtime: Runtime) -> Iterator[File]:
    # One file cannot say the name of each of several nodes on a host; the hooks make it.
    if "%n" in str(runtime.run):
        return
    text = (sources() / "etc/tmpfiles.d/slurm-mig.conf").read_text("utf-8")
    path = str(runtime.run).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    word = path if re.fullmatch(r"[\w/.%-]+", path, re.ASCII) else f'"{path}"'
    yield File(places.tmpfiles / "slurm-mig.conf", text.replace("/run/slurm-mig", word))


def _completions(share: Path) -> Iterator[File]:
    """As click writes them. They ask the program, so they need no change with its options."""
    import click
    from click.shell_completion import get_completion_class

    for shell, place in COMPLETIONS.items():
        kind = get_completion_class(shell)
        if kind is not None:
            made = kind(click.Command("slurm-mig"), {}, "slurm-mig", "_SLURM_MIG_COMPLETE")
            # Not `source`, which looks for a bash of its own first.
            text = made.source_template % made.source_vars()
            # fish's splits at every comma: a description would end at its first one.
            yield File(share / place, text.replace('split "," ', 'split --max 1 "," '))


def _man_pages(share: Path) -> Iterator[File]:
    place = sources() / "man"
    for page in sorted((place if place.is_dir() else sources() / "docs/man").glob("*.1")):
        yield File(share / "man/man1" / page.name, page.read_text("utf-8"))


def _config(runtime: Runtime, root: Path) -> Iterator[File]:
    """A sample; under the configuration's own name only where there is none of the site's."""
    config = runtime.config
    if "%n" in str(config):
        return
    there = below(root, config, follow=True)
    with suppress(OSError):
        if there.read_text("utf-8", "replace") == runtime.sample:
            return
    name = f"{config.name}.sample" if there.exists() else config.name
    yield File(config.with_name(name), runtime.sample)


def _log(etc: Path) -> Iterator[File]:
    for name in ("rsyslog.d/slurm-mig.conf", "logrotate.d/slurm-mig"):
        yield File(etc / name, (sources() / "etc" / name).read_text("utf-8"))


def install_hooks(directory: Path, python: Path, config: Path, run: Path) -> Mapping[str, Path]:
    """Write the three scripts into `directory`; returns them by slurm.conf key.

    Each file appears complete and executable under its final name: slurmd may
    run it at that very moment, and drains the node for one that it cannot run.
    Raises NodeFault, with nothing written, where they cannot stand.
    """
    check_place(directory, HOOKS.values())
    places = Places(directory)
    for file in _hooks(places, Runtime(python, config, run)):
        replace_file(file.path, file.text, mode=file.mode)
    return places.hook_paths


def site_faults(directory: Path, ours: str, *, last: bool) -> Iterator[str]:
    """What in a directory of the site's goes against our hook, one line each.

    `last`: ours has to run as the last one, else as the first (facts/slurm.md#prologd).
    """
    try:
        names = sorted(path.name for path in directory.iterdir() if path.name[0] != ".")
    except FileNotFoundError:
        return
    except OSError as problem:
        raise NotPermitted(f"read {directory}: {problem.strerror}") from problem
    for name in names:
        path = directory / name
        if not (path.is_file() and path.stat().st_mode & 0o111):
            yield f"{path} is not an executable file: Slurm drains the node if its glob names it"
        elif name != ours and (name < ours) == last:
            order = "after" if last else "before"
            yield f"{path} runs {order} {ours}, for Slurm goes from Z to A and from 9 to 0"


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """A unit with the values of some of its lines replaced."""

    def filled(line: str) -> str:
        name = line.partition("=")[0]
        return f"{name}={values[name]}" if name in values else line

    return "\n".join(map(filled, text.splitlines())) + "\n"


def _unit_word(text: str) -> str:
    """A word of ExecStart=: quoted, without specifiers and variables (systemd.service(5))."""
    plain = text.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w/.%-]+", plain, re.ASCII):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


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
