"""What a driver says about a GPU, as a file: models that the catalogue does not have.

    format = 1
    name = "NVIDIA X200"
    source = "driver"
    driver = "700.10"
    date = "2027-01-31"
    memory_mib = 204800
    mode_needs_reset = false

    [[profiles]]
    id = 19
    name = "1g.20gb"
    slices = 1
    count = 8
    placements = [[0, 1], [1, 1], [2, 1]]
    memory_mib = 20096
    decoders = 1

`slurm-mig gpus --describe` writes it. The same in JSON is read, too. `source` may also be
"assumed": numbers that somebody thinks likely, for the simulator and for trials. A number
that is not there is not known, and none is made up.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import BadRequest, UsageFault
from slurm_mig.mig.profile import Profile
from slurm_mig.text import unknown_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from slurm_mig.mig.geometry import Geometry

FORMAT: Final = 1
ENDINGS: Final = (".toml", ".json")

#: Placement units of a GPU: NVML's largest so far is 12.
_UNITS: Final = 64
_NUMBERS: Final = (
    "memory_mib",
    "multiprocessors",
    "copy_engines",
    "decoders",
    "encoders",
    "jpeg",
    "ofa",
)
_PROFILE_KEYS: Final = ("id", "name", "slices", "count", "placements", *_NUMBERS)
_KEYS: Final = (
    "format",
    "name",
    "type",
    "source",
    "driver",
    "date",
    "memory_mib",
    "mode_needs_reset",
    "profiles",
)


class _Bad(Exception):
    """What is wrong with a key."""


def files(directory: Path) -> list[Path]:
    """Descriptions of a directory by name; none where it does not exist."""
    try:
        return sorted(path for path in directory.iterdir() if path.suffix in ENDINGS)
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise UsageFault(f"GPU descriptions {directory}: {problem.strerror}") from problem


def read(path: Path) -> dict[str, Any]:
    """A product as the catalogue's file has it; UsageFault names file, key and what is allowed."""
    try:
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as problem:
        raise UsageFault(f"GPU description {path}: {problem.strerror}") from problem
    except (ValueError, RecursionError) as problem:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UsageFault(f"GPU description {path} is not {kind}: {problem}") from problem
    try:
        return _product(data)
    except _Bad as bad:
        raise UsageFault(f"GPU description {path}: {bad}") from None


def write(name: str, geometry: Geometry, facts: Mapping[str, str | int | bool | None]) -> str:
    """The file of a GPU by its NVML name and its driver's table; unknown numbers are left out."""
    lines = [_line("format", FORMAT), _line("name", name)]
    lines += [_line(key, facts[key]) for key in _KEYS if facts.get(key) is not None]
    for row in geometry.profiles:
        numbers = (row.memory_mib, row.multiprocessors, row.copy_engines, *row.engines.as_tuple())
        places = [[place.start, place.size] for place in row.placements]
        lines += [
            "",
            "[[profiles]]",
            _line("id", row.profile_id),
            _line("name", str(row.name)),
            _line("slices", row.slices),
            _line("count", row.max_instances),
            f"placements = {places}",
            *(
                _line(key, number)
                for key, number in zip(_NUMBERS, numbers, strict=True)
                if number is not None
            ),
        ]
    return "\n".join(lines) + "\n"


def slug(name: str, between: str = "-") -> str:
    """A GPU's name as part of a file's name, or with `_` as a Slurm type, without its maker."""
    words = re.findall(r"[a-z0-9]+", name.casefold().removeprefix("nvidia"))
    return between.join(words) or "gpu"


def _line(key: str, value: Any) -> str:
    # JSON's texts, numbers and truth values are TOML's as well.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


# -- reading ---------------------------------------------------------------------------


def _product(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _Bad("a table with name, source and profiles is needed")
    _known(data, "", _KEYS)
    _need(data, "", "format", lambda value: value == FORMAT, f"{FORMAT}, which this release reads")
    name = _need(data, "", "name", _is_text, "the name that NVML reports, a text")
    source = _need(data, "", "source", lambda v: v in ("driver", "assumed"), '"driver", "assumed"')
    if source == "driver":
        _need(data, "", "driver", _is_text, "the driver's version, a text")
        _need(data, "", "date", lambda value: _is_text(str(value)), "the day it was asked")
    kind = _maybe(data, "", "type", _is_type, "letters, digits and _, at most 32, a letter first")
    reset = _maybe(data, "", "mode_needs_reset", lambda v: isinstance(v, bool), "true, false")
    tables = _need(data, "", "profiles", _are_tables, "at least one [[profiles]] table")
    rows = [_row(table, place) for place, table in enumerate(tables, 1)]
    for key in ("profile_id", "name"):
        values = [row[key] for row in rows]
        if twice := [value for value in values if values.count(value) > 1]:
            raise _Bad(f"two profiles with {key.removeprefix('profile_')} {twice[0]!r}")
    confidence = "assumed" if source == "assumed" else f"driver {data['driver']}, {data['date']}"
    return {
        "key": slug(name),
        "names": [name],
        "type": kind or slug(name, "_")[:32],
        "architecture": None,
        "compute_capability": None,
        "total_memory_mib": _number(data, "", "memory_mib"),
        "pci_device_ids": [],
        "compute_slices": max(row["compute_slices"] for row in rows),
        "mig_mode_needs_reset": reset,
        "confidence": confidence,
        "placement_confidence": confidence,
        "profiles": rows,
    }


def _row(table: dict[str, Any], place: int) -> dict[str, Any]:
    where = f"[[profiles]] {place}: "
    _known(table, where, _PROFILE_KEYS)
    name = _need(table, where, "name", _is_profile, "a profile such as 1g.10gb+me, no `c` part")
    slices = _need(table, where, "slices", _within(1, _UNITS), f"1 to {_UNITS}")
    if slices != Profile.parse(name).gpu_slices:
        raise _Bad(f"{where}slices = {slices}, but {name} has {Profile.parse(name).gpu_slices}")
    places = _need(table, where, "placements", _are_places, _PLACES)
    return {
        "name": name,
        "profile_id": _need(table, where, "id", _within(0, 99999), "0 to 99999"),
        "nvml_enum_value": None,
        "compute_slices": slices,
        "max_instances": _need(table, where, "count", _within(1, _UNITS), f"1 to {_UNITS}"),
        "placements": [{"start": start, "size": size} for start, size in places],
        "memory_mib": _number(table, where, "memory_mib"),
        "sm": _number(table, where, "multiprocessors"),
        **{key: _number(table, where, key) for key in _NUMBERS[2:]},
    }


_PLACES: Final = f"[start, size] pairs of one size, each once, within {_UNITS} units"


def _are_places(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    pairs = [tuple(pair) for pair in value if isinstance(pair, list) and len(pair) == 2]
    return (
        len(pairs) == len(value)
        and all(type(number) is int for pair in pairs for number in pair)
        and all(start >= 0 and size > 0 and start + size <= _UNITS for start, size in pairs)
        and len({size for _, size in pairs}) == 1
        and len(set(pairs)) == len(pairs)
    )


def _is_profile(value: Any) -> bool:
    try:
        return isinstance(value, str) and Profile.parse(value).compute_slices is None
    except BadRequest:
        return False


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 96 and value.isprintable()


def _is_type(value: Any) -> bool:
    return (
        isinstance(value, str)
        and re.fullmatch(r"[a-z]\w{0,31}", value, re.ASCII | re.IGNORECASE) is not None
    )


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _within(first: int, last: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and first <= value <= last


def _number(table: dict[str, Any], where: str, key: str) -> Any:
    return _maybe(table, where, key, _within(0, 10**9), "a number, or no such line: not known")


def _need(
    table: dict[str, Any], where: str, key: str, fits: Callable[[Any], bool], allowed: str
) -> Any:
    if key not in table:
        raise _Bad(f"{where}{key} is missing; allowed: {allowed}")
    return _maybe(table, where, key, fits, allowed)


def _maybe(
    table: dict[str, Any], where: str, key: str, fits: Callable[[Any], bool], allowed: str
) -> Any:
    if key in table and not fits(table[key]):
        raise _Bad(f"{where}{key} = {table[key]!r}; allowed: {allowed}")
    return table.get(key)


def _known(table: Mapping[str, Any], where: str, keys: Iterable[str]) -> None:
    if unknown := [key for key in table if key not in keys]:
        raise _Bad(unknown_key(unknown[0], keys, where))


def clash(names: Sequence[tuple[str, Path]]) -> None:
    """UsageFault for a GPU that two files describe: nobody could tell which of them holds."""
    seen: dict[str, Path] = {}
    for name, path in names:
        if (other := seen.setdefault(name.casefold(), path)) != path:
            raise UsageFault(f"GPU descriptions {other} and {path} are both of {name!r}; keep one")
