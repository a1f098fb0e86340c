"""Drivers that an acceptance has to see through: they differ, refuse, lie, hang, lose the GPU.

`python -m tests.kit.acceptance_drivers` (`make acceptance`) tries all on all models.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slurm_mig.acceptance import twin
from slurm_mig.acceptance.place import Place
from slurm_mig.acceptance.record import compare
from slurm_mig.acceptance.script import Script
from slurm_mig.errors import SlurmMigError
from slurm_mig.mig import catalog
from slurm_mig.sandbox.prerequisites import place as a_place
from slurm_mig.simulator import Machine, create
from slurm_mig.simulator.faults import Rule
from slurm_mig.simulator.spec import gpu_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.acceptance.layouts import Layout
    from slurm_mig.acceptance.record import Difference, Step

MADE = "nvmlDeviceCreateGpuInstanceWithPlacement"


@dataclass(frozen=True)
class Bad:
    """A driver: what it does, by a rule of the simulator's or in its table; what must be told."""

    name: str
    told: str
    rules: tuple[Rule, ...] = ()
    facts: Callable[[dict[str, Any]], object] | None = None


def _rule(call: str, effect: str, skip: int = 0, times: int = 0) -> tuple[Rule, ...]:
    return (Rule(call, effect, skip, times),)


def _last(facts: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = facts["profiles"][0]
    return row


BAD = (
    Bad("another size", "slices", facts=lambda f: _last(f).update(slices=9)),
    Bad("another name", "name", facts=lambda f: _last(f).update(name="1g.99gb")),
    Bad("a place less", "placements", facts=lambda f: _last(f)["placements"].pop()),
    Bad("a profile less", "profile id", facts=lambda f: f["profiles"].pop()),
    Bad("another count", "count", facts=lambda f: _last(f).update(max_instances=1)),
    Bad("refuses one", "DriverFault (999)", _rule(MADE, "error:UNKNOWN", 3, 1)),
    Bad("has no room", "NoRoom (23)", _rule(MADE, "error:INSUFFICIENT_RESOURCES", 3, 1)),
    Bad("no compute instance", "DriverFault (999)",
        _rule("nvmlGpuInstanceCreateComputeInstance", "error:UNKNOWN", 2, 1)),
    Bad("GI destroyed late", "InstanceBusy (19)",
        _rule("nvmlGpuInstanceDestroy", "error:IN_USE", 1, 1)),
    Bad("GI never destroyed", "cannot be removed", _rule("nvmlGpuInstanceDestroy", "error:IN_USE")),
    Bad("lies on destroy", "cannot be removed", _rule("nvmlGpuInstanceDestroy", "lie")),
    Bad("lies once on destroy", "gone", _rule("nvmlGpuInstanceDestroy", "lie", 1, 1)),
    Bad("lies once on CI destroy", "InstanceBusy (19)",
        _rule("nvmlComputeInstanceDestroy", "lie", 1, 1)),
    Bad("lies on creation", "DriverFault", _rule(MADE, "lie", 2, 1)),
    Bad("does not say what is free", "DriverFault (999)",
        _rule("nvmlDeviceGetGpuInstanceRemainingCapacity", "error:UNKNOWN", 5, 1)),
    Bad("loses the GPU", "GPU_IS_LOST", _rule(MADE, "lose:0", 4, 1)),
)  # fmt: skip

#: Of drivers where the mode can be switched.
MODES = (
    Bad("mode stays on", "at once", _rule("nvmlDeviceSetMigMode", "lie", 0, 1)),
    Bad("mode is in use", "InstanceBusy", _rule("nvmlDeviceSetMigMode", "activation:IN_USE", 0, 1)),
)


def machine_of(root: Path, model: str, bad: Bad | None) -> Machine:
    """A machine of one GPU of a model, in MIG mode, with that driver."""
    product = catalog.find(model)
    machine = create(root, [gpu_spec(product, product.title, 1)])
    with machine.change(0) as board:
        board.set_mode(True, busy=False)
    if bad is not None and bad.facts is not None:
        path = root / "machine.json"
        data = json.loads(path.read_text())
        bad.facts(data["gpus"][0])
        path.write_text(json.dumps(data))
    machine = Machine(root)
    machine.faults.set(list(bad.rules) if bad else [])
    return machine


class Short(Script):
    """Without full layouts, in which no driver below is worse than before them."""

    def _layouts(self) -> list[Layout]:
        return []


def tried(area: Path, machine: Machine, kind: type[Script] = Short) -> tuple[list[Step], str]:
    """The script's steps, and how it ended."""
    facts = machine.gpus[0]
    place = Place(area, f"simulator:{machine.root}", (facts["uuid"], facts["minor"]))
    steps: list[Step] = []
    ended = ""
    try:
        kind(place, steps.append, jobs=False, patience=0.3).run()
    except SlurmMigError as fault:
        ended = str(fault)
    finally:
        place.node.close()
    return steps, ended


def told(area: Path, model: str, bad: Bad | None) -> tuple[list[Difference], str]:
    """Differences, and how it ended; of a good driver with layouts, from a machine's twin."""
    area.mkdir(mode=0o755)
    machine = machine_of(area / "sim", model, bad)
    if bad is not None:
        steps, ended = tried(area, machine)
        return compare(steps, good(model)), ended
    steps, ended = tried(area, machine, Script)
    product = catalog.find(model)
    expected = twin.play(
        area / "twin", product, product.title, driver="1.0", mig_mode=True, other_order=False,
        jobs=False,
    )  # fmt: skip
    return compare(steps, expected), ended


@cache
def good(model: str) -> list[Step]:
    """What a good driver answers to the short script."""
    with tempfile.TemporaryDirectory(dir=a_place()) as scratch:
        return tried(Path(scratch), machine_of(Path(scratch) / "sim", model, None))[0]


def seen_through(bad: Bad, found: list[Difference], ended: str) -> bool:
    """Whether the words that must be said are said."""
    words = [f"{d.part} {d.step} {d.what} {d.gpu}" for d in found]
    text = bad.told
    if text == "GPU_IS_LOST":
        return "GPU is lost" in ended
    return any(text in word for word in [*words, ended])


def main() -> None:
    """Every driver on the models named, or on every one: a line for each model."""
    bad_ones = []
    known = [item.key for item in catalog.packaged() if item.known]
    for model in sys.argv[1:] or known:
        began = time.monotonic()
        drivers = (None, *BAD, *(() if catalog.find(model).needs_reset else MODES))
        seen = 0
        for bad in drivers:
            with tempfile.TemporaryDirectory(dir=a_place()) as scratch:
                Path(scratch).chmod(0o755)
                found, ended = told(Path(scratch) / "a", model, bad)
            good = (not found and not ended) if bad is None else seen_through(bad, found, ended)
            seen += good
            if not good:
                bad_ones.append(f"{model}: {bad}: {found[:3]} {ended}")
        took = time.monotonic() - began
        print(f"{model:28} {seen} of {len(drivers)} drivers told right, {took:.0f} s", flush=True)
    print(*bad_ones, sep="\n")
    sys.exit(bool(bad_ones))


if __name__ == "__main__":
    main()
