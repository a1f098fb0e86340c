"""The configuration file: TOML, every key with type, default, text; unknown keys refused.

Found at `--config`, else `$SLURM_MIG_CONFIG`, else /etc/slurm-mig/config.toml.
A path may contain `%n` for the Slurm node name (SLURMD_NODENAME), as slurm.conf
allows for its own, so that several slurmd of one host keep apart.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import ConfigFault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_PATH: Final = Path("/etc/slurm-mig/config.toml")
VARIABLE: Final = "SLURM_MIG_CONFIG"
NO_REQUEUE_POLICIES: Final = ("requeue", "cancel")


@dataclass(frozen=True, slots=True)
class Config:
    """Effective settings. Times are seconds; `source` is the file they come from."""

    library: str = "nvml"
    managed: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None
    state: Path = Path("/var/lib/slurm-mig")
    run: Path = Path("/run/slurm-mig")
    lock_timeout: float = 30.0
    destroy_timeout: float = 10.0
    slurm_bin: Path | None = None
    slurm_timeout: float = 20.0
    no_requeue: str = "requeue"
    max_requeues: int = 20
    retry_delay: float = 120.0
    retry_delay_max: float = 1800.0
    source: Path | None = None

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.state / "ledger.db"


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file: `[table] key`, the field it sets, how to read it, its text."""

    table: str
    key: str
    field: str
    read: Callable[[Any], Any]
    allowed: str
    text: str
    #: What the sample shows for a key whose default is "not set".
    unset: str = '"all"'


def _text(value: Any) -> str:  # whatever TOML holds
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _library(value: Any) -> str:
    text = _text(value)
    if text != "nvml" and not text.startswith(("simulator:/", "/")):
        raise ValueError
    return text


def _path(value: Any) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise ValueError
    return path


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 86400:
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1000:
        raise ValueError
    return value


def _minors(value: Any) -> tuple[int, ...] | None:
    if value == "all":
        return None
    if not isinstance(value, list) or not value or len(set(value)) != len(value):
        raise ValueError
    if not all(type(item) is int and 0 <= item < 256 for item in value):
        raise ValueError
    return tuple(value)


def _managed(value: Any) -> tuple[int, ...] | None:
    return () if value == "none" else _minors(value)


def _no_requeue(value: Any) -> str:
    if value not in NO_REQUEUE_POLICIES:
        raise ValueError
    return str(value)


_A_PATH: Final = "an absolute path"
_A_TIME: Final = "seconds, more than 0, at most 86400"

SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "driver",
        "library",
        "library",
        _library,
        '"nvml", "simulator:/DIR" or the absolute path of a libnvidia-ml.so.1',
        "Where the NVIDIA management library comes from.",
    ),
    Setting(
        "gpus",
        "managed",
        "managed",
        _managed,
        '"all", "none" or a list of device minors',
        "GPUs that are carved for jobs, by the N of /dev/nvidiaN. Others are left alone.",
    ),
    Setting(
        "gpus",
        "order",
        "order",
        _minors,
        '"all" or a list of device minors',
        "Device minors in the order of this node's lines in gres.conf, where that order is not "
        "ascending: SLURM_JOB_GPUS is an index into it.",
    ),
    Setting(
        "paths", "state", "state", _path, _A_PATH, "Directory of the ledger; survives reboots."
    ),
    Setting("paths", "run", "run", _path, _A_PATH, "Directory of locks and environment files."),
    Setting(
        "hooks",
        "lock_timeout",
        "lock_timeout",
        _seconds,
        _A_TIME,
        "Longest wait for a GPU that another hook works on.",
    ),
    Setting(
        "hooks",
        "destroy_timeout",
        "destroy_timeout",
        _seconds,
        _A_TIME,
        "Longest time to retry the destruction of an instance that is in use.",
    ),
    Setting(
        "slurm",
        "bin",
        "slurm_bin",
        _path,
        _A_PATH,
        "Directory of scontrol, squeue and scancel; searched in the usual places if not set.",
        '"/usr/bin"',
    ),
    Setting(
        "slurm",
        "timeout",
        "slurm_timeout",
        _seconds,
        _A_TIME,
        "Longest time one Slurm command may take.",
    ),
    Setting(
        "refusal",
        "no_requeue",
        "no_requeue",
        _no_requeue,
        " or ".join(f'"{name}"' for name in NO_REQUEUE_POLICIES),
        "What happens to a refused job that was submitted with --no-requeue.",
    ),
    Setting(
        "refusal",
        "max_requeues",
        "max_requeues",
        _count,
        "a whole number from 0 to 1000",
        "A job refused after this many restarts is held for an administrator.",
    ),
    Setting(
        "refusal",
        "retry_delay",
        "retry_delay",
        _seconds,
        _A_TIME,
        "Wait before a refused job may start again; doubled at each further refusal.",
    ),
    Setting(
        "refusal",
        "retry_delay_max",
        "retry_delay_max",
        _seconds,
        _A_TIME,
        "Longest such wait.",
    ),
)


def chosen(option: Path | None, environ: Mapping[str, str]) -> Path:
    """The file as it was named: by option, variable or default; `%n` not filled in yet."""
    return option or Path(environ.get(VARIABLE) or DEFAULT_PATH)


def locate(option: Path | None, environ: Mapping[str, str]) -> Path:
    """The file to read, with `%n` filled in."""
    return expand(chosen(option, environ), environ)


def expand(path: Path, environ: Mapping[str, str]) -> Path:
    """Put the node's name for `%n`; ConfigFault when Slurm did not say it."""
    if "%n" not in str(path):
        return path
    node = environ.get("SLURMD_NODENAME", "")
    if not node or "/" in node:
        raise ConfigFault(f"path {path} has %n, but SLURMD_NODENAME is {node!r}")
    return Path(str(path).replace("%n", node))


def load(option: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the settings; without a file at the default place the defaults hold.

    Raises ConfigFault naming file, key and what is allowed.
    """
    environ = os.environ if environ is None else environ
    path = locate(option, environ)
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except FileNotFoundError as problem:
        if path == DEFAULT_PATH:
            return Config()
        raise ConfigFault(f"config {path}: no such file") from problem
    except OSError as problem:
        raise ConfigFault(f"config {path}: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigFault(f"config {path} is not TOML: {problem}") from problem
    values = _read(data, path)
    values = {
        name: expand(value, environ) if isinstance(value, Path) else value
        for name, value in values.items()
    }
    return Config(**values, source=path)


def _read(data: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {(item.table, item.key): item for item in SETTINGS}
    values: dict[str, Any] = {}
    for table, content in data.items():
        if not isinstance(content, dict):
            raise _unknown(path, table, [f"[{item.table}]" for item in SETTINGS])
        for key, value in content.items():
            setting = known.get((table, key))
            if setting is None:
                raise _unknown(path, f"[{table}] {key}", [f"[{t}] {k}" for t, k in known])
            try:
                values[setting.field] = setting.read(value)
            except ValueError:
                raise ConfigFault(
                    f"config {path}: [{table}] {key} = {value!r}: allowed is {setting.allowed}"
                ) from None
    return values


def _unknown(path: Path, name: str, allowed: list[str]) -> ConfigFault:
    options = sorted(set(allowed))
    close = difflib.get_close_matches(name, options, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigFault(f"config {path}: unknown key {name}; {hint}allowed: {', '.join(options)}")


def sample() -> str:
    """A commented configuration file with every key at its default."""
    defaults = {item.name: item.default for item in fields(Config)}
    lines = ["# slurm-mig configuration. Every key is shown with its default.", ""]
    table = ""
    for item in SETTINGS:
        if item.table != table:
            table = item.table
            lines += ["", f"[{table}]"] if len(lines) > 2 else [f"[{table}]"]
        lines += [f"# {item.text}", f"# Allowed: {item.allowed}."]
        default = defaults[item.field]
        lines.append(f"#{item.key} = {item.unset if default is None else _toml(default)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{value:g}"
    return f'"{value}"'
