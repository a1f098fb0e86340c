"""Writes hooks, units and what goes with them, with this installation's paths in them.

Everything is made as text first, then compared with what is there, then written: each
file appears complete under its final name, for slurmd may run it at that very moment.
What was written stands with its digest in a manifest beside the hooks, so that
exactly that can be removed again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NotPermitted
from slurm_mig.system.files import MAX_LINKS, check_replaceable, read_trusted, replace_file, trusted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

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
    "etc/systemd/slurm-mig-metrics.service": (
        "metrics",
        "--textfile",
        "/var/lib/prometheus/node-exporter/slurm-mig.prom",
    ),
    "etc/systemd/slurm-mig-metrics.timer": (),
}

#: What is added to Slurm's own unit, and where it goes below the units.
DROP_IN: Final = ("etc/systemd/slurmd.conf", "slurmd.service.d/10-slurm-mig.conf")

#: What `install` can put in place; `log` only where it is asked for.
PARTS: Final = ("hooks", "units", "tmpfiles", "completion", "man", "config", "log")

#: Shell -> where its completions lie below a share directory (bash-completion's FAQ, zsh's
#: site-functions, fish's vendor_completions.d).
COMPLETIONS: Final = {
    "bash": "bash-completion/completions/slurm-mig",
    "zsh": "zsh/site-functions/_slurm-mig",
    "fish": "fish/vendor_completions.d/slurm-mig.fish",
}

#: Where units may be, of an administrator's and of packages (systemd.unit(5)).
UNIT_PLACES: Final = (
    Path("/etc/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
)

#: Names in a directory of the site's: Slurm takes a glob in reverse alphabetical order
#: (facts/slurm.md#prologd): our Prolog comes last, our Epilog first. With .sh, for globs that ask.
PROLOG_NAME: Final = "00-slurm-mig.sh"
EPILOG_NAME: Final = "zz-slurm-mig.sh"

#: The manifest, beside the hooks; no glob `*` finds a name with a dot before it (glob(7)).
MANIFEST: Final = ".installed"

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
    configuration to begin with.
    """

    python: Path
    config: Path
    run: Path
    bounded: float = 0.0
    longest: float = 0.0
    sample: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """A file to be: its path without the root, its text and mode."""

    path: Path
    text: str
    mode: int = 0o644

    @property
    def digest(self) -> str:
        """SHA-256 of its text."""
        return hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()


def sources() -> Path:
    """The directory that holds `prolog/`, `epilog/` and `etc/`."""
    package = Path(__file__).parents[1]
    for place in (package / "share", package.parent):
        if all((place / script).is_file() for script in (*HOOKS.values(), *UNITS)):
            return place
    raise NodeFault(f"no hook scripts beside {package}", remedy="install slurm-mig again")


def below(root: Path, path: Path, *, follow: bool = False) -> Path:
    """A path of the installed system as it is found from here.

    Links are taken as a process in the image takes them (chroot(2)): followed from here,
    its absolute ones would have root write into the running system. `follow`: also a link
    that stands at the path itself; NodeFault where links lead in a circle.
    """
    if root == Path("/"):
        return path
    names, found, links = [*reversed(path.parts)], root, 0
    while names:
        name = names.pop()
        if name in ("/", ".."):
            found = root if name == "/" or found == root else found.parent
            continue
        found /= name
        if (names or follow) and found.is_symlink():
            links += 1
            if links > MAX_LINKS:
                raise NodeFault(f"{root / path.relative_to('/')}: {os.strerror(errno.ELOOP)}")
            names += reversed(found.readlink().parts)
            found = found.parent
    return found


def without(root: Path, path: Path) -> Path:
    """The same path as the installed system will know it."""
    with suppress(ValueError):
        return Path("/") / path.relative_to(root)
    # The directory may be named by a link; the file itself (a Python) may well be one.
    with suppress(ValueError):
        return Path("/") / (path.parent.resolve() / path.name).relative_to(root.resolve())
    return path


# -- what is written -------------------------------------------------------------------


def files(parts: Iterable[str], places: Places, runtime: Runtime, root: Path) -> list[File]:
    """Everything of these PARTS. What is below `root` is only looked at, for a config."""
    makers: dict[str, Callable[[], Iterable[File]]] = {
        "hooks": lambda: _hooks(places, runtime),
        "units": lambda: _units(places.units, runtime) if places.units else (),
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
    }
    for key, path in places.hook_paths.items():
        text = (sources() / HOOKS[key]).read_text("utf-8")
        yield File(path, fill_in(text, values), 0o755)


def _units(directory: Path, runtime: Runtime) -> Iterator[File]:
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


# -- comparing, writing ------------------------------------------------------------------


def state(file: File, root: Path) -> str:
    """`new`, `same` or `changed`: what is there now, against what would be written."""
    path = below(root, file.path, follow=True)
    try:
        there = path.read_bytes()
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return "new"
    except OSError as problem:
        raise NodeFault(f"read {path}: {problem.strerror}") from problem
    same = there == file.text.encode("utf-8", "replace") and mode == file.mode
    return "same" if same else "changed"


def check(made: Sequence[File], root: Path) -> None:
    """NodeFault where one of them cannot stand; nothing is made."""
    for directory in sorted({below(root, file.path).parent for file in made}):
        try:
            with trusted(_standing(directory)):
                pass
        except OSError as problem:
            raise NodeFault(f"make {directory}: {problem.strerror}") from problem
    for file in made:
        if below(root, file.path, follow=True).is_dir():
            raise NodeFault(f"{below(root, file.path)} is a directory, not a file")
        # A unit that an administrator has masked is a link to /dev/null (systemctl(1), mask).
        check_replaceable(below(root, file.path))


def _standing(path: Path) -> Path:
    """The nearest directory above that exists; a link that leads nowhere counts, too."""
    while not path.exists() and not path.is_symlink() and path != path.parent:
        path = path.parent
    return path


def write(made: Sequence[File], root: Path, manifest: Path, keep: Sequence[Path] = ()) -> None:
    """Write what is not there yet, all checked before; `keep` goes into no manifest.

    Raises NodeFault, with nothing written, where one of them cannot stand.
    """
    check(made, root)
    for directory in {below(root, file.path).parent for file in made}:
        check_place(directory, ())
    every = read_manifest(manifest) | {
        str(file.path): file.digest for file in made if file.path not in keep
    }
    # First: what is written and in no manifest would never be removed.
    _write_manifest(manifest, every)
    for file in made:
        if state(file, root) != "same":
            path = below(root, file.path)
            _remove_own_rests(path)
            replace_file(path, file.text, mode=file.mode)


def _remove_own_rests(path: Path) -> None:
    """What a killed `install` left beside this very file; never anything else of a site's."""
    for rest in path.parent.glob(f".{path.name}.*"):
        pid = rest.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            rest.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, str]:
    """Digests of what was installed, by path; empty where there is none."""
    try:
        # It says what root removes: whoever could write it could have anything removed.
        data = json.loads(read_trusted(path))
        return {str(Path(name)): str(digest) for name, digest in data["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as problem:
        raise NodeFault(
            f"manifest {path}: {problem}", remedy="remove it, and install again"
        ) from problem


def _write_manifest(path: Path, every: Mapping[str, str]) -> None:
    check_place(path.parent, ())
    text = json.dumps({"files": dict(sorted(every.items()))}, indent=1) + "\n"
    replace_file(path, text, mode=0o644)


def others(places: Places, python: Path, root: Path) -> list[str]:
    """What another environment's `install` or package has put in place, one line each.

    Its units would run the old code at the next boot while the hooks run the new one.
    """
    hook = below(root, places.hook_paths["Prolog"], follow=True)
    found = []
    named = re.search(r"^python='?([^'\n]+)", _text(hook), re.MULTILINE)
    if named and named[1] != str(python):
        found.append(f"the hooks were those of {named[1]} until now")
    for directory in UNIT_PLACES:
        path = directory / Path(UNIT).name
        if path.parent == places.units:
            continue
        started = re.search(
            r"^ExecStart=(\S+)", _text(below(root, path, follow=True)), re.MULTILINE
        )
        if started and started[1] != str(python):
            found.append(
                f"{path} runs {started[1]}: of units of one name those in /etc/systemd/system "
                "count; take away what you do not use (`install --uninstall --only units` of that "
                "one, or its package)"
            )
    return found


def _text(path: Path) -> str:
    """A file's beginning; empty where there is none that can be read."""
    try:
        return path.read_text("utf-8", "replace") if path.is_file() else ""
    except OSError:
        return ""


# -- and back --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Removal:
    """What an uninstall takes away, and what it leaves because somebody changed it."""

    gone: tuple[Path, ...]
    changed: tuple[Path, ...]


def part_of(path: Path) -> str:
    """Which of PARTS an installed file is of; its name tells, so a manifest of any age does."""
    if path.suffix in (".service", ".timer") or path.parent.name.endswith(".service.d"):
        return "units"
    if path.parent.name in ("rsyslog.d", "logrotate.d"):
        return "log"
    if path.name == "slurm-mig.conf":
        return "tmpfiles"
    if path.parent.name == "man1":
        return "man"
    if path.name.endswith(".sample"):
        return "config"
    return "completion" if str(path).endswith(tuple(COMPLETIONS.values())) else "hooks"


def listed(manifest: Path, parts: Collection[str] = PARTS) -> dict[str, str]:
    """The manifest's files of these PARTS: a part that nobody named is not taken away."""
    every = read_manifest(manifest)
    return {name: digest for name, digest in every.items() if part_of(Path(name)) in parts}


def removal(manifest: Path, root: Path, parts: Collection[str] = PARTS) -> Removal:
    """What `remove` would do; paths without the root."""
    gone: list[Path] = []
    changed: list[Path] = []
    for name, digest in listed(manifest, parts).items():
        path = below(root, Path(name), follow=True)
        if not path.is_file():
            continue
        same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
        (gone if same else changed).append(Path(name))
    return Removal(tuple(gone), tuple(changed))


def remove(manifest: Path, root: Path, parts: Collection[str] = PARTS) -> Removal:
    """Remove what was installed and is unchanged, then directories of ours that are empty."""
    every, mine = read_manifest(manifest), listed(manifest, parts)
    plan = removal(manifest, root, parts)
    for path in plan.gone:
        below(root, path).unlink()
        if part_of(path) == "units" and path.suffix == ".conf":
            with suppress(OSError):
                below(root, path).parent.rmdir()
    kept = {str(path) for path in plan.changed}
    left = {name: digest for name, digest in every.items() if name in kept or name not in mine}
    if left:
        _write_manifest(manifest, left)
    else:
        manifest.unlink(missing_ok=True)
    with suppress(OSError):
        manifest.parent.rmdir()
    return plan


# -- single parts, for who needs no more -----------------------------------------------


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


def check_place(directory: Path, scripts: Iterable[str]) -> None:
    """NodeFault where files of these names cannot stand; the directory is made."""
    try:
        # Slurm and systemd run as root whatever lies there.
        with trusted(directory, make=True):
            pass
    except OSError as problem:
        raise NodeFault(f"make {directory}: {problem.strerror}") from problem
    for script in scripts:
        if (directory / Path(script).name).is_dir():
            raise NodeFault(f"{directory / Path(script).name} is a directory, not a file")


def install_unit(directory: Path, python: Path, config: Path, bounded: float) -> Path:
    """Write the boot unit into `directory`; returns its path. NodeFault where it cannot stand."""
    check_place(directory, [UNIT])
    runtime = Runtime(python, config, Path("/run/slurm-mig"), bounded)
    (unit,) = [item for item in _units(directory, runtime) if item.path.name == Path(UNIT).name]
    replace_file(unit.path, unit.text, mode=unit.mode)
    return unit.path


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
