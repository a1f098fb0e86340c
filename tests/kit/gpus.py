"""Names of GPUs that tests use, and what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.mig import catalog

if TYPE_CHECKING:
    from slurm_mig.mig.geometry import Geometry

H100 = "NVIDIA H100 80GB HBM3"
A100 = "NVIDIA A100-SXM4-80GB"
A100_40 = "NVIDIA A100-SXM4-40GB"
A30 = "NVIDIA A30"
RTX = "NVIDIA RTX PRO 6000 Blackwell Server Edition"
KNOWN = [product.key for product in catalog.products() if product.known]


def geometry_of(name: str) -> Geometry:
    return catalog.find(name).geometry()
