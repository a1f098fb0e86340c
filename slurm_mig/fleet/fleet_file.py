"""A fleet described in one TOML file, for `slurm-mig generate`.

    hooks = "/etc/slurm-mig/hooks"
    slices_only = ["a30"]
    several_gpus = 4

    [types]
    "NVIDIA H100 80GB HBM3" = "h100sxm"

    [aliases]
    small = "1g.10gb"

    [names]
    "1g.10gb" = "h100sxm"

    [words]
    "gpu:a100l.1" = "1g.10gb"

    [[defaults]]
    partitions = "mig"
    slice = "3g.40gb"
    cpus_per_gpu = 4

    [billing]
    by = "largest"
    gpu = { h100sxm = 8, a30 = 2, l40s = 3 }

    [[nodes]]
    hosts = "gpu[01-04]"
    gpus = ["NVIDIA H100 80GB HBM3:6", "l40s:2"]
    whole = [6, 7]
    partitions = "hopper"

GPUs are listed by device minor, by NVML name, catalogue key or a file that describes one
("gpus.d/x200.toml:8", from here); those in `whole` are given out as they are, and one
that is not in the catalogue then stands under Slurm's name for its type. `partitions`
is for prices, where one profile may cost something else in another partition, and for
what a refusal says there is. `[words]`, `[[defaults]]`, `static` and `bridge` say how
requests as for static MIG are read (bridge.py). `names` says who
keeps a plain name that means two things, where it is not who comes first; false: nobody.
`keep_names` are names of before, `compute_parts` the types whose slices are sold in parts.
`several_gpus` is how many GPUs of a node a job may have slices of: true (as many as there
are), false, or a number. `publish`: nodes tell Slurm what still fits (docs/publishing.md).
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import UsageFault
from slurm_mig.fleet.billing import SHARES
from slurm_mig.fleet.bridge import BY, Bridge, Default
from slurm_mig.fleet.naming import NOBODY
from slurm_mig.mig.description import ENDINGS
from slurm_mig.text import unknown_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodeText:
    """One `[[nodes]]` table: `whole` are device minors, None for all of them.

    `partitions` are those of Slurm's that these nodes are in; only prices ask for them.
    """

    hosts: str
    gpus: tuple[str, ...]
    whole: tuple[int, ...] | None = ()
    devices: str = "/dev"
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetText:
    """The file's content, its words not yet looked up."""

    nodes: tuple[NodeText, ...] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    slices_only: tuple[str, ...] = ()
    owners: Mapping[str, str] = field(default_factory=dict)
    compute_parts: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    several_gpus: int | None = None
    publish: bool = False
    hooks: str | None = None
    prices: Mapping[str, float] | float | None = None
    by: str = SHARES[0]
    bridge: Bridge = field(default_factory=Bridge)


def read(path: Path) -> FleetText:
    """Read the file; UsageFault names the key and what is allowed."""
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as problem:
        raise UsageFault(f"fleet {path}: {problem.strerror}") from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise UsageFault(f"fleet {path} is not TOML: {problem}") from problem
    try:
        return _fleet(data, path.parent)
    except _Bad as bad:
        raise UsageFault(f"fleet {path}: {bad}") from None


_KEYS: Final = (
    "hooks",
    "slices_only",
    "compute_parts",
    "keep_names",
    "several_gpus",
    "publish",
    "bridge",
    "static",
    "types",
    "names",
    "aliases",
    "words",
    "defaults",
    "billing",
    "nodes",
)


class _Bad(Exception):
    """What is wrong with a key."""


def _fleet(data: dict[str, Any], home: Path) -> FleetText:
    _known(data, "", _KEYS)
    billing = _get(data, "billing", _table, {})
    _known(billing, "[billing] ", ("by", "gpu"))
    return FleetText(
        nodes=tuple(_node(table, home) for table in _get(data, "nodes", _tables, [])),
        types={_beside(home, gpu): name for gpu, name in _get(data, "types", _words, {}).items()},
        aliases=_get(data, "aliases", _words, {}),
        slices_only=_get(data, "slices_only", _texts, ()),
        owners=_get(data, "names", _owners, {}),
        compute_parts=_get(data, "compute_parts", _all_or_texts, ()),
        keep=_get(data, "keep_names", _texts, ()),
        several_gpus=_get(data, "several_gpus", _several, None),
        publish=_get(data, "publish", _flag, False),  # noqa: FBT003  # as all defaults
        hooks=_get(data, "hooks", _text, None),
        prices=_get(billing, "gpu", _prices, None),
        by=_get(billing, "by", _share, SHARES[0]),
        bridge=Bridge(
            on=_get(data, "bridge", _flag, True),  # noqa: FBT003  # as all defaults
            words=_get(data, "words", _gres_words, {}),
            defaults=tuple(_default(table) for table in _get(data, "defaults", _defaults, [])),
            static=_get(data, "static", _types, ()),
        ),
    )


_DEFAULT_KEYS: Final = (
    "partitions",
    "features",
    "reservations",
    "slice",
    "cpus_per_gpu",
    "memory_per_gpu",
    "by",
)


def _default(table: dict[str, Any]) -> Default:
    _known(table, "[[defaults]] ", _DEFAULT_KEYS)
    what = ("slice", "cpus_per_gpu", "memory_per_gpu")
    if not any(key in table for key in what):
        raise _Bad(f"[[defaults]] says nothing of a GPU; write one of {', '.join(what)}")
    return Default(
        partitions=_get(table, "partitions", _places, ()),
        features=_get(table, "features", _places, ()),
        reservations=_get(table, "reservations", _places, ()),
        slice=_get(table, "slice", _text, None),
        cpus=_get(table, "cpus_per_gpu", _cpus, None),
        memory=_get(table, "memory_per_gpu", _amount, None),
        by=_get(table, "by", _by, BY[0]),
    )


def _node(table: dict[str, Any], home: Path) -> NodeText:
    _known(table, "[[nodes]] ", ("hosts", "gpus", "whole", "devices", "partitions"))
    for key in ("hosts", "gpus"):
        if key not in table or table[key] == []:
            raise _Bad(f"[[nodes]] without {key}")
    return NodeText(
        hosts=_get(table, "hosts", _text, ""),
        gpus=tuple(_beside(home, gpu) for gpu in _get(table, "gpus", _texts, ())),
        whole=_get(table, "whole", _minors, ()),
        devices=_get(table, "devices", _directory, "/dev"),
        partitions=_get(table, "partitions", _partitions, ()),
    )


def _beside(home: Path, gpu: str) -> str:
    """A file that describes a GPU, as seen from the fleet's own file; another name as it is."""
    name, colon, count = gpu.partition(":")
    return f"{home / name}{colon}{count}" if name.endswith(ENDINGS) else gpu


def _known(table: dict[str, Any], where: str, keys: Iterable[str]) -> None:
    for key in table:
        if key not in keys:
            raise _Bad(unknown_key(key, keys, where))


def _get(table: dict[str, Any], key: str, reader: Callable[[Any], Any], default: Any) -> Any:
    if key not in table:
        return default
    try:
        return reader(table[key])
    except ValueError as allowed:
        raise _Bad(f"{key} = {table[key]!r}: allowed is {allowed}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("a text, not empty and without control characters")
    return value


def _directory(value: Any) -> str:
    """Slurm would look for a relative one where slurmd was started, and ends a value at a blank."""
    if not isinstance(value, str) or not re.fullmatch(r"/[^\s,#\[\]]*", value):
        raise ValueError("an absolute path without white space, commas, # and brackets")
    return value


def _words_of(value: Any, extra: str, what: str) -> tuple[str, ...]:
    """One word or a list of them; ValueError says `what` they are and their characters."""
    values = [value] if isinstance(value, str) else value
    allowed = rf"[A-Za-z0-9][\w{re.escape(extra)}]*"
    if not isinstance(values, list) or not all(
        isinstance(item, str) and re.fullmatch(allowed, item, re.ASCII) for item in values
    ):
        raise ValueError(f"{what}: letters, digits, _ {' '.join(extra)}")
    return tuple(dict.fromkeys(values))


def _partitions(value: Any) -> tuple[str, ...]:
    return _words_of(value, ".-", "a name or a list of names")


def _places(value: Any) -> tuple[str, ...]:
    """An empty list would be a rule for every job, not for none."""
    if not value:
        raise ValueError("a name or a list of names; leave it out for any")
    return _partitions(value)


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
        raise ValueError("a text or a list of texts")
    return tuple(values)


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a table")  # noqa: TRY004  # as all readers
    return value


def _tables(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("one [[nodes]] table for each kind of node")
    return value


def _words(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError('a table such as { small = "1g.10gb" }')
    return value


def _owners(value: Any) -> dict[str, str]:
    allowed = 'a table such as { "1g.10gb" = "h100" }, of a GPU type or false: nobody'
    if not isinstance(value, dict):
        raise ValueError(allowed)  # noqa: TRY004  # as all readers
    if not all(item is False or (isinstance(item, str) and item) for item in value.values()):
        raise ValueError(allowed)
    return {name: item or NOBODY for name, item in value.items()}


def _all_or_texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("*",) if value else ()
    try:
        return _texts(value)
    except ValueError:
        raise ValueError("true, false, or a list of GPU types") from None


def _gres_words(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError('a table such as { "gpu:a100l.1" = "1g.10gb" }')
    return value


def _defaults(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("a [[defaults]] table for each kind of job")
    return value


def _types(value: Any) -> tuple[str, ...]:
    return _words_of(value, ".+-", "a GPU type of Slurm's or a list of them")


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004  # as all readers
    return value


def _amount(value: Any) -> int:
    """Slurm's own bound for MB is far above this."""
    if type(value) is not int or not 1 <= value <= 10_000_000:
        raise ValueError("a whole number from 1 to 10000000 (memory in MB)")
    return value


def _cpus(value: Any) -> int:
    """Slurm counts a node's CPUs by 16 bits: more would wrap around to few."""
    if type(value) is not int or not 1 <= value <= 4096:
        raise ValueError("a whole number from 1 to 4096")
    return value


def _by(value: Any) -> str:
    if value not in BY:
        raise ValueError(" or ".join(f'"{name}"' for name in BY))
    return str(value)


def _price(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ValueError
    return float(value)


def _prices(value: Any) -> dict[str, float] | float:
    try:
        if isinstance(value, dict):
            return {name: _price(item) for name, item in value.items()}
        return _price(value)
    except ValueError:
        raise ValueError(
            "units for a whole GPU, from 0 on, or a table of GPU types with them"
        ) from None


def _several(value: Any) -> int | None:
    """GPUs, None for as many as a node has."""
    if isinstance(value, bool):
        return None if value else 1
    if not isinstance(value, int) or not 1 <= value <= 256:
        raise ValueError("true, false, or how many GPUs of a node: 1 to 256")
    return value


def _share(value: Any) -> str:
    if value not in SHARES:
        raise ValueError(" or ".join(f'"{name}"' for name in SHARES))
    return str(value)


def _minors(value: Any) -> tuple[int, ...] | None:
    if value == "all":
        return None
    if not isinstance(value, list) or not all(type(v) is int and 0 <= v < 256 for v in value):
        raise ValueError('"all" or a list of device minors')
    if len(set(value)) != len(value):
        raise ValueError('"all" or a list of device minors, each once')
    return tuple(sorted(value))


#: A sample that `slurm-mig generate` reads, shipped as etc/fleet.toml.
SAMPLE: Final = """\
# The nodes of a cluster, for `slurm-mig generate fleet.toml --out DIR`.

# Slices that one GPU does not hold come from whole GPUs of a node: of as many as they need
# (true), of so many at most, or never (false).
#several_gpus = true
# Nodes tell Slurm what still fits, so that it starts what has a slot. Read docs/publishing.md
# before you switch it on: it has parts in slurm.conf and on the nodes.
#publish = false
# GPU types whose slices are also sold in parts such as 1c.3g.40gb; true for all:
#compute_parts = ["h100"]
# Names of before that nodes go on counting while jobs wait with them:
#keep_names = ["h100_1g.10gb"]
# GPU types of nodes that are not listed here; they are whole GPUs, whatever their name:
#static = ["v100"]
# Whether requests as for static MIG (gpu:1g.10gb:1) are understood:
#bridge = true

[[nodes]]
hosts = "gpu[01-04]"
# By device minor, /dev/nvidia0 first; names as `slurm-mig gpus --supported` lists them.
gpus = ["NVIDIA H100 80GB HBM3:8"]

[[nodes]]
hosts = "a30-[01-02]"
gpus = ["NVIDIA A30:2"]
# GPUs that are not carved: whole = [1], or whole = "all".

# Who keeps a plain name that means two things; without it who comes first in this file:
#[names]
#"1g.10gb" = "h100"

# Your own words for profiles, and Slurm's type name where yours is another:
#[aliases]
#small = "1g.10gb"
#[types]
#"NVIDIA H100 80GB HBM3" = "h100sxm"

# Users of static MIG go on as before: gpu:1g.10gb:1, --gpus=h100_3g.40gb:1 and the like are
# understood. Your own words for slices:
#[words]
#"gpu:a100l.1" = "1g.10gb"
#mig_24gb = "3g.40gb"
# What a GPU without a type is, and what belongs to each GPU (DefCpuPerGPU and DefMemPerGPU,
# which Slurm does not apply to slices), by partition, feature and reservation:
#[[defaults]]
#partitions = ["mig"]
#slice = "3g.40gb"
#cpus_per_gpu = 4
#memory_per_gpu = 16000
#by = "slice"

# What a slice costs: its share of a GPU's price ("largest", "compute" or "memory" share).
#[billing]
#gpu = { h100 = 8, a30 = 2 }
#by = "largest"
# Slurm has one price for a profile in a partition. Where it differs between GPU models,
# each [[nodes]] table says which partitions its nodes are in: partitions = ["hopper"]
"""
