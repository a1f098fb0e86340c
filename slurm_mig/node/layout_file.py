"""Layout files, our TOML and mig-parted's YAML: read, assigned to GPUs, written.

Two forms of file. Our own, TOML, says where each instance is, and what is in it:

    version = 1

    [[gpus]]
    minor = 0
    mig = true
    instances = ["3g.40gb@4", { instance = "2g.20gb@0", compute = [1, 1] }]

`counts = { "1g.10gb" = 7 }` in place of `instances` leaves the places to the planner. The other
is mig-parted's (NVIDIA/mig-parted, version v1: `mig-configs` with `devices`, `device-filter`,
`mig-enabled`, `mig-devices`), which has counts alone.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import BadRequest, Unresolved, UsageFault
from slurm_mig.mig.layout import Declared, DeclaredInstance, PlacedInstance
from slurm_mig.mig.profile import Profile
from slurm_mig.text import unknown_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from slurm_mig.mig.driver import Gpu


#: Names that a layout of mig-parted's can have from us.
CURRENT: Final = "current"


@dataclass(frozen=True, slots=True)
class DeclaredGpu:
    """Which GPUs a declaration is for: by minor, by UUID, or (mig-parted) by NVML index."""

    declared: Declared
    minor: int | None = None
    uuid: str | None = None
    indexes: tuple[int, ...] | None = None
    filters: tuple[str, ...] | None = None


def from_toml(data: Mapping[str, Any], where: str) -> tuple[DeclaredGpu, ...]:
    """Our own form, from what a TOML parser made of it; UsageFault names what is wrong."""
    _known(data, where, ("version", "gpus"))
    if data.get("version") != 1:
        raise UsageFault(f"{where}: version = {data.get('version')!r}; allowed is 1")
    return tuple(_gpu(table, where) for table in _tables(data.get("gpus"), f"{where}: [[gpus]]"))


def _gpu(table: Mapping[str, Any], where: str) -> DeclaredGpu:
    where = f"{where}: [[gpus]]"
    _known(table, where, ("minor", "uuid", "name", "mig", "instances", "counts"))
    minor, uuid = table.get("minor"), table.get("uuid")
    named = (minor is not None and type(minor) is int) or isinstance(uuid, str)
    if not named or type(minor) not in (int, type(None)):
        raise UsageFault(f"{where}: name the GPU by minor = 0, 1, ... or uuid = 'GPU-...'")
    mig = table.get("mig", True)
    if not isinstance(mig, bool):
        raise UsageFault(f"{where} mig = {mig!r}; allowed is true or false")
    if "instances" in table and "counts" in table:
        raise UsageFault(f"{where}: write either instances or counts")
    pieces = [*_placed(table.get("instances", []), where), *_counts(table.get("counts", {}), where)]
    return DeclaredGpu(_declared(pieces, where, mig=mig), minor=minor, uuid=uuid)


def _placed(value: Any, where: str) -> list[DeclaredInstance]:
    if not isinstance(value, list):
        raise UsageFault(f"{where} instances: write a list of 'PROFILE@START'")
    return [_piece(item, where) for item in value]


def _piece(item: Any, where: str) -> DeclaredInstance:
    compute: Any = None
    if isinstance(item, dict):
        _known(item, f"{where} instances", ("instance", "compute"))
        item, compute = item.get("instance"), item.get("compute")
    name, at, start = item.partition("@") if isinstance(item, str) else ("", "", "")
    if not (at and start.isascii() and start.isdigit() and len(start) < 4):
        raise UsageFault(f"{where} instances: {item!r} is not PROFILE@START, such as 3g.40gb@4")
    if compute is not None and not (
        isinstance(compute, list) and all(type(word) is int and 0 < word < 9 for word in compute)
    ):
        raise UsageFault(f"{where} instances: compute = {compute!r}; write slices, such as [1, 2]")
    profile = _profile(name, where)
    if profile.compute_slices is not None:
        raise UsageFault(f"{where} instances: {name}: write its GPU instance, and compute = [...]")
    return DeclaredInstance(profile, int(start), None if compute is None else tuple(compute))


def _counts(value: Any, where: str) -> list[DeclaredInstance]:
    """`{"1g.10gb": 7, "1c.3g.40gb": 3}`, as mig-parted's mig-devices, too."""
    if not isinstance(value, dict):
        raise UsageFault(f"{where}: write counts such as {{ '1g.10gb' = 7 }}, not {value!r}")
    pieces = []
    for name, count in value.items():
        if type(count) is not int or not 0 <= count < 100:
            raise UsageFault(f"{where}: {name} = {count!r}; allowed is a number from 0 to 99")
        profile = _profile(str(name), where)
        slices = profile.compute_slices
        # Small compute instances share a GPU instance, as in a request.
        for first in range(0, count, profile.per_gpu_instance):
            inside = min(count - first, profile.per_gpu_instance)
            compute = None if slices is None else (slices,) * inside
            pieces.append(DeclaredInstance(profile.gpu_instance, None, compute))
    return pieces


def _profile(name: str, where: str) -> Profile:
    try:
        return Profile.parse(name)
    except BadRequest as fault:
        raise UsageFault(f"{where}: {fault}") from None


def _declared(pieces: Iterable[DeclaredInstance], where: str, *, mig: bool) -> Declared:
    found = tuple(pieces)
    if found and not mig:
        raise UsageFault(f"{where}: instances need MIG mode, which is declared as off")
    return Declared(mig, found)


def from_mig_parted(data: Any, name: str | None, where: str) -> tuple[DeclaredGpu, ...]:
    """One of the configurations of a file of mig-parted's; UsageFault names those there are."""
    if not isinstance(data, dict) or data.get("version") != "v1":
        raise UsageFault(f"{where} has no 'version: v1' of mig-parted's")
    _known(data, where, ("version", "mig-configs"))
    configs = data.get("mig-configs")
    if not isinstance(configs, dict) or not configs:
        raise UsageFault(f"{where}: no mig-configs; write a table of them, one with a name each")
    if name is None and len(configs) == 1:
        (name,) = configs
    if name not in configs:
        what = "several mig-configs" if name is None else f"no mig-configs {name!r}"
        known = ", ".join(map(str, configs))
        raise UsageFault(f"{where}: {what}; name one with --name: {known}")
    return tuple(_spec(item, f"{where}: {name}") for item in _tables(configs[name], where))


def _spec(item: Mapping[str, Any], where: str) -> DeclaredGpu:
    _known(item, where, ("device-filter", "devices", "mig-enabled", "mig-devices"))
    devices, mig, filters = item.get("devices"), item.get("mig-enabled"), item.get("device-filter")
    numbers = isinstance(devices, list) and all(type(word) is int for word in devices)
    if devices != "all" and not numbers:
        raise UsageFault(f"{where}: devices: {devices!r}; allowed is all or a list of numbers")
    if not isinstance(mig, bool):
        raise UsageFault(f"{where}: mig-enabled: {mig!r}; allowed is true or false")
    if isinstance(filters, str):
        filters = [filters]
    if filters is not None and not isinstance(filters, list):
        raise UsageFault(f"{where}: device-filter: {filters!r}; allowed is a list of PCI ids")
    pieces = _counts(item.get("mig-devices") or {}, where)
    return DeclaredGpu(
        _declared(pieces, where, mig=mig),
        indexes=None if devices == "all" else tuple(devices or ()),
        filters=None if filters is None else tuple(str(word).upper() for word in filters),
    )


def _known(table: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
    for key in table:
        if key not in keys:
            raise UsageFault(f"{where}: {unknown_key(str(key), keys)}")


def _tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(x, dict) for x in value):
        raise UsageFault(f"{where}: no GPUs are declared there")
    return value


def assigned(
    entries: Sequence[DeclaredGpu], gpus: Sequence[Gpu], pci_ids: Callable[[Gpu], Sequence[str]]
) -> list[tuple[Gpu, Declared]]:
    """The GPUs of this node that the file is about, each once, with what it declares.

    `pci_ids`: a GPU model's device ids as mig-parted writes them (0x233010DE). UsageFault for a
    GPU that is not here or knows no MIG, and for one that is declared twice.
    """
    found: dict[str, tuple[Gpu, Declared]] = {}
    for entry in entries:
        for gpu in _meant(entry, gpus, pci_ids):
            if gpu.uuid in found:
                raise UsageFault("it is declared twice; once is allowed", gpu=str(gpu))
            found[gpu.uuid] = gpu, entry.declared
    return sorted(found.values(), key=lambda pair: pair[0].minor)


def _meant(
    entry: DeclaredGpu, gpus: Sequence[Gpu], pci_ids: Callable[[Gpu], Sequence[str]]
) -> list[Gpu]:
    here = ", ".join(f"{gpu.minor} ({gpu.uuid})" for gpu in gpus) or "none"
    if entry.minor is None and entry.uuid is None:
        wanted = _by_index(entry, gpus, here)
        if entry.filters is None:
            return wanted
        return [gpu for gpu in wanted if _passes(gpu, entry.filters, pci_ids)]
    chosen = [
        gpu for gpu in gpus if (gpu.uuid == entry.uuid if entry.uuid else gpu.minor == entry.minor)
    ]
    if not chosen:
        raise UsageFault(f"no GPU {entry.uuid or entry.minor} here; there are {here}")
    return _with_mig(chosen, entry.declared)


def _by_index(entry: DeclaredGpu, gpus: Sequence[Gpu], here: str) -> list[Gpu]:
    if entry.indexes is None:
        return [gpu for gpu in gpus if gpu.mig_capable]
    by_index = {gpu.index: gpu for gpu in gpus}
    for index in entry.indexes:
        if index not in by_index:
            raise UsageFault(f"no GPU with index {index} here; there are {here}")
    return _with_mig([by_index[index] for index in entry.indexes], entry.declared)


def _with_mig(gpus: list[Gpu], declared: Declared) -> list[Gpu]:
    if not declared.mig:
        # A display's GPU is so as it is: mig-parted's file for a DGX Station declares one.
        return [gpu for gpu in gpus if gpu.mig_capable]
    for gpu in gpus:
        if not gpu.mig_capable:
            raise UsageFault("it knows no MIG", gpu=str(gpu))
    return gpus


def _passes(gpu: Gpu, filters: Sequence[str], pci_ids: Callable[[Gpu], Sequence[str]]) -> bool:
    known = [word.upper() for word in pci_ids(gpu)]
    if not known:
        raise UsageFault(
            f"a device-filter is declared, and the PCI ids of {gpu.name} are not known",
            remedy="name its devices by number in a configuration without device-filter",
        )
    return not set(known).isdisjoint(filters)


def to_toml(gpus: Sequence[tuple[Gpu, Sequence[PlacedInstance]]]) -> str:
    """Our own form, exactly placed."""
    lines = ["# Written by `slurm-mig export`; for `slurm-mig assert` and `apply`.", "version = 1"]
    for gpu, there in gpus:
        lines += ["", "[[gpus]]", f"minor = {gpu.minor}"]
        lines += [f"uuid = {json.dumps(gpu.uuid)}", f"name = {json.dumps(gpu.name)}"]
        lines.append(f"mig = {str(bool(gpu.mig_mode)).lower()}")
        if there:
            lines += ["instances = [", *(f"    {_toml_item(item)}," for item in there), "]"]
    return "\n".join(lines) + "\n"


def _toml_item(item: PlacedInstance) -> str:
    if item.full:
        return json.dumps(str(item.slot))
    return f'{{ instance = "{item.slot}", compute = {list(item.compute)} }}'


def to_mig_parted(gpus: Sequence[tuple[Gpu, Sequence[PlacedInstance]]], name: str) -> str:
    """mig-parted's form; Unresolved for a layout that its counts cannot tell."""
    groups: dict[tuple[bool, tuple[tuple[str, int], ...]], list[int]] = {}
    for gpu, there in gpus:
        counts = _mig_devices(gpu, there)
        key = (bool(gpu.mig_mode), tuple(counts.items()))
        groups.setdefault(key, []).append(gpu.index)
    lines = ["# Written by `slurm-mig export`.", "version: v1", "mig-configs:"]
    lines.append(f"  {json.dumps(name)}:")
    for (mig, counts_of), indexes in groups.items():
        lines.append(f"    - devices: {sorted(indexes)}")
        lines.append(f"      mig-enabled: {str(mig).lower()}")
        lines.append("      mig-devices:" if counts_of else "      mig-devices: {}")
        lines += [f"        {json.dumps(profile)}: {count}" for profile, count in counts_of]
    return "\n".join(lines) + "\n"


def _mig_devices(gpu: Gpu, there: Sequence[PlacedInstance]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for item in there:
        for slices in item.compute:
            counts[str(item.row.name) if item.full else f"{slices}c.{item.row.name}"] += 1
    read_back = Counter((piece.profile, piece.compute) for piece in _counts(dict(counts), str(gpu)))
    told = Counter((item.row.name, None if item.full else item.compute) for item in there)
    if read_back != told:
        odd = ", ".join(str(item) for item in there if not item.full)
        raise Unresolved(
            f"mig-parted's form has counts alone and cannot tell {odd}",
            remedy="export it as TOML",
            gpu=str(gpu),
        )
    return dict(counts)
