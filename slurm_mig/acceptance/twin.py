"""A simulated GPU of the same model, for comparison: what the simulator answers to the script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.acceptance.place import Place
from slurm_mig.acceptance.script import Script
from slurm_mig.mig import catalog
from slurm_mig.node.node import SIMULATOR
from slurm_mig.simulator import create
from slurm_mig.simulator.spec import gpu_spec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slurm_mig.acceptance.record import Step
    from slurm_mig.mig.catalog import Product

#: What a GPU is compared with.
CATALOGUE: Final = "the catalogue's model"
OWN: Final = "a model made of its own table"


def model_of(name: str, described: Path) -> tuple[Product, str]:
    """The catalogue's product of that NVML name, else what the GPU's own driver describes."""
    known = [item for item in catalog.packaged() if name in item.names and item.known]
    if known:
        return known[0], f"{CATALOGUE}, {known[0].key}"
    return catalog.from_file(described), OWN


def mirrored(steps: Sequence[Step]) -> bool:
    """Whether ids of the halves stand the other way round on this board (facts/mig.md#ids)."""
    for step in steps:
        if step.part == "place" and step.name.endswith(" at 0:4") and "gi_id" in step.answer:
            return bool(step.answer["gi_id"] == 2)
    return False


def play(
    area: Path,
    product: Product,
    name: str,
    *,
    driver: str,
    mig_mode: bool,
    other_order: bool,
    jobs: bool = True,
) -> list[Step]:
    """The script's steps on a simulated GPU, below the new directory `area`."""
    area.mkdir(mode=0o755)
    machine = create(area / "sim", [gpu_spec(product, name, 2)], driver=driver)
    # Of two GPUs of eight units the second one has the other order of ids.
    index = int(other_order)
    with machine.change(index) as board:
        board.set_mode(mig_mode, busy=False)
    facts = machine.gpus[index]
    place = Place(
        area, f"{SIMULATOR}{machine.root}", (facts["uuid"], facts["minor"]), destroy_timeout=0.2
    )
    steps: list[Step] = []
    try:
        Script(place, steps.append, jobs=jobs).run()
    finally:
        place.node.close()
    return steps
