"""The configuration file: found, read, checked, and written as a sample."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import ConfigFault, NodeFault
from slurm_mig.settings import SETTINGS, Config, Setting
from slurm_mig.system.causes import out_of_order
from slurm_mig.system.trust import read_trusted
from slurm_mig.text import unknown_key

if TYPE_CHECKING:
    from collections.abc import Mapping


DEFAULT_PATH: Final = Path("/etc/slurm-mig/config.toml")
VARIABLE: Final = "SLURM_MIG_CONFIG"


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
        data = tomllib.loads(_content(path).decode("utf-8"))
    except NodeFault as fault:
        raise ConfigFault(f"config: {fault.cause}", remedy=fault.remedy) from fault
    except FileNotFoundError as problem:
        if path == DEFAULT_PATH:
            return Config()
        raise ConfigFault(f"config {path}: no such file") from problem
    except OSError as problem:
        raise out_of_order(problem, f"config {path}", ConfigFault) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigFault(f"config {path} is not TOML: {problem}") from problem
    values = _read(data, path)
    values = {
        name: expand(value, environ) if isinstance(value, Path) else value
        for name, value in values.items()
    }
    config = Config(**values, source=path)
    if config.retry_delay > config.retry_delay_max:
        raise ConfigFault(
            f"config {path}: [refusal] retry_delay = {config.retry_delay:g}: allowed is at most "
            f"retry_delay_max, which is {config.retry_delay_max:g}"
        )
    _check_deadline(config)
    return config


def _check_deadline(config: Config) -> None:
    # A hook that would be ended while it still may wait drains a node that is fine.
    least = (
        config.lock_timeout + config.destroy_timeout + config.stuck_timeout + config.slurm_timeout
    )
    if config.deadline <= least:
        raise ConfigFault(
            f"config {config.source}: [hooks] deadline = {config.deadline:g}: allowed is more than "
            "lock_timeout + destroy_timeout + [stuck] timeout + [slurm] timeout, which is "
            f"{least:g}"
        )


def _content(path: Path) -> bytes:
    """Root obeys only what root alone can write: `library` names code that it would run."""
    return read_trusted(path) if os.geteuid() == 0 else path.read_bytes()


def _read(data: dict[str, Any], path: Path) -> dict[str, Any]:
    known = {(item.table, item.key): item for item in SETTINGS}
    values: dict[str, Any] = {}
    for table, content in data.items():
        if not isinstance(content, dict):
            tables = sorted({f"[{item.table}]" for item in SETTINGS})
            raise ConfigFault(f"config {path}: {unknown_key(table, tables)}")
        for key, value in content.items():
            setting = known.get((table, key))
            if setting is None:
                keys = sorted(f"[{t}] {k}" for t, k in known)
                raise ConfigFault(f"config {path}: {unknown_key(f'[{table}] {key}', keys)}")
            try:
                values[setting.field] = setting.read(value)
            except ValueError:
                raise ConfigFault(
                    f"config {path}: [{table}] {key} = {value!r}: allowed is {setting.allowed}"
                ) from None
    return values


def shown_default(setting: Setting) -> str:
    """The default of a key, as TOML; what the sample shows where it is "not set"."""
    return _toml(_default_of(setting)) if is_set(setting) else setting.unset


def is_set(setting: Setting) -> bool:
    """Whether a key that the file does not have still has a value."""
    # Hooks come here never, and its modules are a tenth of what they load.
    from dataclasses import MISSING

    return _default_of(setting) not in (MISSING, None)


def _default_of(setting: Setting) -> Any:
    from dataclasses import fields

    (item,) = (item for item in fields(Config) if item.name == setting.field)
    return item.default


def sample() -> str:
    """A commented configuration file with every key at its default."""
    lines = ["# slurm-mig configuration. Every key is shown with its default.", ""]
    table = ""
    for item in SETTINGS:
        if item.table != table:
            table = item.table
            lines += ["", f"[{table}]"] if len(lines) > 2 else [f"[{table}]"]
        lines += [f"# {item.text}", f"# Allowed: {item.allowed}."]
        lines.append(f"#{item.key} = {shown_default(item)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"'
