"""Catalogue products as other parts need them: for the fleet, and for the simulator."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import UsageFault
from slurm_mig.fleet.fleet import Fleet, Model, NodeGroup
from slurm_mig.mig import catalog
from slurm_mig.mig.weights import derive
from slurm_mig.slurm import hostlist

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.fleet.fleet_file import FleetText, NodeText
    from slurm_mig.mig.catalog import Product


_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def fleet_model(product: Product, type_name: str | None = None) -> Model:
    """A product with geometry, weights and Slurm type name.

    UsageFault when neither numbers nor fractions are known.
    """
    geometry = product.counting()
    name = type_name or catalog.type_name(product)
    also = tuple(word for word in catalog.also_called(product) if word != name)
    names = (product.key, *product.names)
    return Model(name, product.title, geometry, derive(geometry), also, names)


def fleet_of(text: FleetText) -> Fleet:
    """The fleet that a description means; UsageFault names what cannot be."""
    return Fleet(
        node_groups(text),
        text.aliases,
        text.slices_only,
        owners=text.owners,
        compute_parts=text.compute_parts,
        keep=text.keep,
        several_gpus=text.several_gpus,
        publish=text.publish,
    )


def node_groups(text: FleetText) -> tuple[NodeGroup, ...]:
    """The nodes of a fleet's description; UsageFault names what cannot be."""
    models = _Models(_type_names(text.types))
    groups = tuple(models.group(node) for node in text.nodes)
    models.check_used()
    _check_hosts(groups)
    return groups


def _type_names(types: Mapping[str, str]) -> dict[str, str]:
    """Catalogue key -> type name; UsageFault for one that Slurm could not read."""
    named: dict[str, str] = {}
    for gpu, name in types.items():
        product = catalog.find(gpu)
        if product.key in named:
            raise UsageFault(f"GPU types name {product.title} twice; once is allowed")
        _check_type(name, f"type {name!r} of {gpu}")
        named[product.key] = name
    return named


def _check_type(name: str, where: str) -> None:
    if not _TYPE.fullmatch(name):
        raise UsageFault(
            f"{where}: {name!r} is no type name; write a letter or digit, "
            "then letters, digits, _ or -"
        )


def _check_hosts(groups: tuple[NodeGroup, ...]) -> None:
    """UsageFault for a host that is named twice: Slurm takes only one line for it."""
    seen: dict[str, str] = {}
    for group in groups:
        for host in hostlist.expand(group.hosts):
            if host in seen:
                raise UsageFault(
                    f"host {host!r} is named twice, in {seen[host]!r} and {group.hosts!r}; "
                    "a host belongs to one group of nodes, once"
                )
            seen[host] = group.hosts


class _Models:
    """GPU models by catalogue name, each derived once."""

    def __init__(self, types: dict[str, str]) -> None:
        self._types = types
        self._made: dict[str, Model] = {}
        self._whole: set[str] = set()

    def check_used(self) -> None:
        """UsageFault for a type name of a GPU model that no group has."""
        for key in self._types:
            if key not in self._made and key not in self._whole:
                raise UsageFault(
                    f"type {self._types[key]!r} of {key}: no node has it; they have "
                    f"{', '.join(sorted({*self._made, *self._whole}))}"
                )

    def group(self, text: NodeText) -> NodeGroup:
        """A node group with its models; UsageFault for a GPU that cannot be carved or named."""
        hostlist.expand(text.hosts)
        names = [name for part in text.gpus for name in _each(part)]
        whole = range(len(names)) if text.whole is None else text.whole
        if beyond := [minor for minor in whole if minor >= len(names)]:
            raise UsageFault(
                f"{text.hosts}: whole names GPU {beyond[0]}; device minors are 0 to "
                f"{len(names) - 1}"
            )
        return NodeGroup(
            text.hosts,
            tuple(
                self.model(_carved(name, text.hosts))
                for minor, name in enumerate(names)
                if minor not in whole
            ),
            text.devices,
            tuple((minor, self._type_of(names[minor])) for minor in whole),
        )

    def _type_of(self, name: str) -> str:
        """Slurm's type of a GPU that is not carved, which the catalogue need not know."""
        try:
            product = catalog.find(name)
        except UsageFault:
            _check_type(
                name, f"GPU {name!r} is not in the catalogue, so Slurm's type stands for it"
            )
            return name
        self._whole.add(product.key)
        return self._types.get(product.key, catalog.type_name(product))

    def model(self, product: Product) -> Model:
        """A product with geometry, weights and Slurm type name."""
        if product.key not in self._made:
            self._made[product.key] = fleet_model(product, self._types.get(product.key))
        return self._made[product.key]


def _carved(name: str, hosts: str) -> Product:
    """The product of a GPU that is to be carved; UsageFault where the catalogue has none."""
    try:
        return catalog.find(name)
    except UsageFault as unknown:
        unknown.remedy = (
            f"{unknown.remedy}; a GPU of {hosts} that is not carved stands in `whole`, too, by its "
            'device minor (whole = "all": none is)'
        )
        raise


def _each(text: str) -> list[str]:
    """`GPU:COUNT` as that many names."""
    name, count = parse_gpu(text)
    return [name] * count


def parse_gpu(text: str) -> tuple[str, int]:
    """`NAME:COUNT`, or `NAME` for one; UsageFault for a count that is none."""
    name, colon, count = text.strip().rpartition(":")
    if not colon:
        return text.strip(), 1
    if not (count.isascii() and count.isdigit() and len(count) < 3 and 1 <= int(count) <= 32):
        raise UsageFault(f"GPU {text!r}: write NAME:COUNT with a count from 1 to 32")
    return name, int(count)
