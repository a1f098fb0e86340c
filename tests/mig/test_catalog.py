"""The list of supported products, with what is known of each."""

from __future__ import annotations

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.mig import catalog
from slurm_mig.mig.geometry import Engines
from tests.kit.gpus import KNOWN, geometry_of

#: Products that nobody has published enough about; each may leave this list, none may join it.
UNKNOWN = {
    "a100-64gb": "every profile",
    "pg506-96gb": "every profile",
    "rtx-pro-5000-blackwell-48gb": "profile id of 1g.24gb",
    "rtx-pro-5000-blackwell-72gb": "every profile",
    "rtx-pro-4500-blackwell-32gb": "profile id of 1g.16gb",
    "thor-igpu": "the name NVML reports",
}


def test_ampere_to_blackwell() -> None:
    """23 products, 17 of them known well enough to be modelled."""
    assert len(catalog.products()) == 23
    assert {item.key for item in catalog.products() if not item.known} == set(UNKNOWN)
    assert {item.architecture for item in catalog.products()} == {"Ampere", "Hopper", "Blackwell"}
    assert {geometry_of(key).units for key in KNOWN} == {4, 8, 12}


@pytest.mark.parametrize(("key", "what"), UNKNOWN.items())
def test_an_unknown_product_says_what_is_unknown(key: str, what: str) -> None:
    """A sentence with the missing numbers, not a guess."""
    with pytest.raises(UsageFault, match=f"cannot be modelled: unknown {what}"):
        catalog.find(key).geometry()


def test_an_unpublished_number_stays_none() -> None:
    """H20: ids and placements are documented, memory and SMs are not."""
    row = geometry_of("h20-96gb").find("3g.48gb")
    assert (row.memory_mib, row.multiprocessors) == (None, None)
    assert row.engines == Engines(None, None, None, None)
    assert row.profile_id == 9


def test_a_product_is_found_by_every_name() -> None:
    """NVML's names and the key lead to the same entry."""
    for product in catalog.products():
        for name in (*product.names, product.key):
            assert catalog.find(name) is product


def test_an_unknown_name_lists_the_known_ones() -> None:
    """So that a typing error is seen at once."""
    with pytest.raises(UsageFault, match="did you mean .*h100-80gb-sxm.*known: a30-24gb, "):
        catalog.find("NVIDIA H1000")


def test_type_names_are_distinct_and_fit_slurm() -> None:
    """Slurm separates with colons, commas and equals signs."""
    names = [catalog.type_name(product) for product in catalog.products()]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() for name in names)


def test_names_that_begin_others() -> None:
    """`NVIDIA H100` is a GPU, and how the names of others begin."""
    others = catalog.longer("nvidia h100")
    assert "NVIDIA H100 80GB HBM3" in others
    assert "NVIDIA H100" not in others
    assert catalog.longer("NVIDIA H100 80GB HBM3") == catalog.longer("no such") == []
