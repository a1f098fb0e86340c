"""What job_submit.lua has to know of GPUs to put a job's slices on several of them. Pure.

Slices that one GPU does not hold are paid for with whole GPUs of one type, as many as
hold them. That a GPU's part has a placement follows from the shards, which are exact for
every known geometry, from the driver's totals, and from the media engines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slurm_mig.mig.geometry import UNKNOWN_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.fleet.fleet import Fleet, Model

#: Why a site's jobs have slices of one GPU per node only, in words that follow "and".
FORBIDDEN: Final = "this site gives a job slices of one GPU per node"


@dataclass(frozen=True, slots=True)
class Kind:
    """GPUs of one type: how many a job may have slices of on a node, and why only one.

    `total` are a GPU's engines of each kind that bounds what it holds, `engines` what an
    instance of a profile has of them, by the driver's profile id.
    """

    gpus: int = 1
    refused: str = ""
    total: tuple[int, ...] = ()
    engines: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def kinds(fleet: Fleet) -> dict[str, Kind]:
    """Each GPU type of a fleet that is carved."""
    return {name: _kind(fleet, name, model) for name, model in fleet.models.items()}


def _kind(fleet: Fleet, name: str, model: Model) -> Kind:
    total, engines = _engines(model)
    refused = _refused(fleet, name)
    gpus = max(len(group.types().get(name, ())) for group in fleet.groups)
    most = 1 if refused else min(gpus, fleet.several_gpus or gpus)
    return Kind(most, refused, total, engines)


def _refused(fleet: Fleet, name: str) -> str:
    if fleet.several_gpus is not None and fleet.several_gpus < 2:
        return FORBIDDEN
    if any(row.profile_id == UNKNOWN_ID for row in fleet.models[name].geometry.profiles):
        return f"where slices lie on a {name} GPU is not published"
    for group in fleet.groups:
        # Slurm takes any GPU of the type, and the Prolog could not carve that one.
        if name in (other for _, other in group.whole):
            return f"not every {name} GPU of {group.hosts} is carved"
    return ""


def _engines(model: Model) -> tuple[tuple[int, ...], dict[int, tuple[int, ...]]]:
    """Media engines of the GPU and of each profile; a number nobody knows bounds nothing."""
    geometry = model.geometry
    whole = geometry.whole.engines.as_tuple()
    known = [kind for kind, total in enumerate(whole) if total]
    rows = {
        row.profile_id: tuple(row.engines.as_tuple()[kind] or 0 for kind in known)
        for row in geometry.profiles
        if row.profile_id != UNKNOWN_ID
    }
    return tuple(whole[kind] or 0 for kind in known), rows


def lua_table(fleet: Fleet) -> str:
    """The table as text for the generated Lua."""
    rows = "".join(f'  ["{name}"] = {{ {_row(kind)} }},\n' for name, kind in kinds(fleet).items())
    return (
        "-- What a job may have of several GPUs of a node, by GPU type: `gpus` of them at most;\n"
        "-- media engines of one (`total`), and of each profile by its id.\n"
        f"local SEVERAL = {{\n{rows}}}\n"
    )


def _row(kind: Kind) -> str:
    refused = f'refused = "{kind.refused}", ' if kind.refused else ""
    engines = ", ".join(f"[{number}] = {_list(row)}" for number, row in kind.engines.items())
    return f"{refused}gpus = {kind.gpus}, total = {_list(kind.total)}, engines = {{ {engines} }}"


def _list(numbers: tuple[int, ...]) -> str:
    return f"{{ {', '.join(map(str, numbers))} }}"
