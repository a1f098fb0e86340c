"""The fleet behind slurm.conf and gres.conf: GPU types -> models -> weights and counts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import UsageFault
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.naming import NOBODY
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slurm_mig.fleet.fleet import Model
    from slurm_mig.mig.catalog import Product
    from slurm_mig.slurm.conf import GresLine, NodeLine

#: A compute instance smaller than its GPU instance.
_PART: Final = re.compile(r"[0-9]+c\.")


class Reconstruction:
    """Models by GPU type, each found and derived once."""

    def __init__(self, named: Mapping[str, str], shown: Mapping[str, str]) -> None:
        """`named`: type -> GPU model by option; `shown`: type -> NVML name by the driver here.

        Raises UsageFault for a GPU model that is not in the catalogue.
        """
        self._products = {name: catalog.find(gpu) for name, gpu in named.items()}
        self._shown = shown
        self._models: dict[str, Model] = {}

    def fleet(
        self, nodes: Sequence[NodeLine], lines: Sequence[GresLine]
    ) -> tuple[Fleet, dict[str, NodeGroup]]:
        """The fleet, and the group of each node; UsageFault for a type that means no model."""
        groups: dict[tuple[str, tuple[str, ...]], NodeGroup] = {}
        of_node = {}
        for node in nodes:
            types = gpu_types(node, lines)
            key = (node.entry.where, types)
            if key not in groups:
                models = tuple(self._model(name, node) for name in types)
                groups[key] = NodeGroup(node.name, models)
            of_node[node.name] = groups[key]
        counts = {of_node[node.name]: node.count("mig") for node in nodes}
        return _as_counted(counts), of_node

    def _model(self, name: str, node: NodeLine) -> Model:
        if name not in self._models:
            self._models[name] = fleet_model(self._product(name, node), name)
        return self._models[name]

    def _product(self, name: str, node: NodeLine) -> Product:
        if name in self._products:
            return self._products[name]
        known = [product for product in catalog.products() if product.countable]
        meant = [product for product in known if catalog.type_name(product) == name]
        shown = [product for product in known if self._shown.get(name, "") in product.names]
        if meant or shown:
            return (meant or shown)[0]
        offered = {word.removeprefix(f"{name}_") for word in node.count("mig") if "c." not in word}
        for product in known:
            # Products with the same profiles have the same weights: any of them will do.
            if {str(row["name"]) for row in product.row["profiles"]} == offered:
                return product
        raise UsageFault(
            f"GPU type {name or '(none)'!r} of node {node.name} is no model of the catalogue",
            remedy=f"name it: --gpu-type 'NVIDIA ...={name}'",
        )


def _as_counted(counts: Mapping[NodeGroup, Mapping[str, int]]) -> Fleet:
    """The fleet in which these nodes have these names: only its file says who came first."""
    holders: dict[str, str] = {}
    both, typed_only, parts = set(), set(), set()
    apart: dict[NodeGroup, int] = dict.fromkeys(counts, 0)
    for group, names in counts.items():
        for kind, profile in _rows(group):
            plain, typed = profile in names, f"{kind}_{profile}" in names
            others = [other for other, same in _rows(group) if same == profile and other != kind]
            if plain and not (typed and others):
                holders.setdefault(profile, kind)
            elif typed and not plain:
                apart[group] += 1
                typed_only.add(profile)
            if plain and typed:
                both.add(f"{kind}_{profile}")
        parts |= {kind for kind in group.types() if _sells_parts(kind, names)}
    counted = {name for names in counts.values() for name in names}
    owners = dict.fromkeys(typed_only - counted, NOBODY) | holders
    # Who has most names of their own came last; else the lines' own order tells it, or its reverse.
    by_names = sorted(counts, key=lambda group: apart[group])
    every = [
        _fleet(order, owners, sorted(parts), both)
        for order in (by_names, [*counts], [*counts][::-1])
    ]
    right = (f for f in every if all(f.counts(one).keys() == counts[one].keys() for one in counts))
    return next(right, every[0])


def _fleet(
    order: Sequence[NodeGroup], owners: Mapping[str, str], parts: Sequence[str], both: Iterable[str]
) -> Fleet:
    fleet = Fleet(tuple(order), owners=owners, compute_parts=parts)
    kept = sorted(name for name in both if name in fleet.words)
    return Fleet(tuple(order), owners=owners, compute_parts=parts, keep=kept) if kept else fleet


def _rows(group: NodeGroup) -> list[tuple[str, str]]:
    """GPU type and profile of all that a node could be cut into."""
    models = {model.type_name: model for model in group.gpus}
    return [(kind, str(row.name)) for kind, m in models.items() for row in m.geometry.profiles]


def _sells_parts(kind: str, names: Iterable[str]) -> bool:
    return any(_PART.match(word.removeprefix(f"{kind}_")) for word in names)


def gpu_types(node: NodeLine, lines: Sequence[GresLine]) -> tuple[str, ...]:
    """GPU types of a node in the order of gres.conf, else as slurm.conf counts them."""
    own = [line for line in lines if line.name == "gpu" and line.on(node.name)]
    listed = [line.type for line in own for _ in range(line.count or len(line.files) or 1)]
    counted = [name for name, count in node.count("gpu").items() for _ in range(count)]
    # gres.conf without types: slurm.conf may have them.
    return tuple(listed if listed and all(listed) else counted)
