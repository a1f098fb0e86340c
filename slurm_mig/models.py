"""Catalogue products as other parts need them: for the fleet, and for the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig import catalog
from slurm_mig.fleet import Model
from slurm_mig.simulator import GpuSpec
from slurm_mig.weights import derive

if TYPE_CHECKING:
    from slurm_mig.catalog import Product


def fleet_model(product: Product, type_name: str | None = None) -> Model:
    """A product with geometry, weights and Slurm type name.

    UsageFault when numbers are unknown.
    """
    geometry = product.geometry()
    name = type_name or catalog.type_name(product)
    return Model(name, product.title, geometry, derive(geometry))


def gpu_spec(product: Product, name: str, count: int) -> GpuSpec:
    """What the simulator needs to build a product; UsageFault when numbers are unknown."""
    geometry = product.geometry()
    row = product.row
    ids = row["pci_device_ids"]
    return GpuSpec(
        name=name if name in product.names else product.title,
        product=product.key,
        architecture=product.architecture,
        pci_device_id=int(ids[0], 16) if ids else 0,
        compute_capability=row["compute_capability"],
        total_memory_mib=row["total_memory_mib"],
        geometry=geometry,
        enums={item["profile_id"]: item["nvml_enum_value"] for item in row["profiles"]},
        count=count,
    )
