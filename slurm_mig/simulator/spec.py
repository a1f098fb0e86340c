"""What the catalogue knows of a GPU -> what the simulator builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slurm_mig.errors import UsageFault
from slurm_mig.simulator import GpuSpec

if TYPE_CHECKING:
    from slurm_mig.mig.catalog import Product


def gpu_spec(product: Product, name: str, count: int) -> GpuSpec:
    """What the simulator needs to build a product; UsageFault when numbers are unknown."""
    try:
        geometry = product.geometry()
    except UsageFault as fault:
        raise UsageFault(
            fault.cause,
            remedy="take its driver's table (`slurm-mig gpus --describe`), or write a description "
            'with source = "assumed"',
        ) from None
    row = product.row
    ids = row["pci_device_ids"]
    return GpuSpec(
        name=name if name in product.names else product.title,
        product=product.key,
        # By it the driver is asked whether MIG mode needs a reset, and nothing else here.
        architecture=product.architecture or ("Ampere" if product.needs_reset else "Blackwell"),
        pci_device_id=int(ids[0], 16) if ids else 0,
        compute_capability=row["compute_capability"] or "0.0",
        total_memory_mib=row["total_memory_mib"],
        geometry=geometry,
        enums=_enums(row["profiles"]),
        count=count,
    )


def _enums(rows: list[dict[str, Any]]) -> dict[int, int]:
    """Profile id -> number under which the simulator answers for it.

    NVML's own number where it is known; a description has none, for a driver's profiles are
    found by going through all numbers. Any that is free serves then.
    """
    given = {row["profile_id"]: row["nvml_enum_value"] for row in rows}
    free = (number for number in range(64) if number not in given.values())
    return {key: next(free) if value is None else value for key, value in given.items()}
