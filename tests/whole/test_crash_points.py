"""Killed anywhere, by SIGKILL: the next hook or reconcile brings all to one truth.

`python -m tests.kit.crash_points` prints how many points, states and recoveries that are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.state.ledger import Ledger
from slurm_mig.transaction import carve, sweep
from tests.kit.crash_points import SPOTS, Spot, counts, exhaust, room, watch
from tests.kit.site import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_mig.transaction.workbench import Workbench

# Long on a machine that does other things, too.
pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

BY_NAME = {spot.name: spot for spot in SPOTS}


@pytest.fixture
def space() -> Iterator[Path]:
    path = room()
    yield path
    remove_tree(path)


@pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.name)
def test_killed_at_every_point(spot: Spot) -> None:
    """Prologs, Epilog, reconcile: hardware equals ledger, nothing leaks, nobody else is touched.

    A fifth of the states: all of them takes `python -m tests.kit.crash_points` many minutes.
    """
    done = exhaust(spot, one_in=5)
    # Every call of the driver and of the system counts twice, and each change is a state.
    assert done.points > done.states > 3
    assert done.kills >= done.states // 5
    assert done.recoveries >= 3 * done.kills


def test_every_kind_of_operation_is_seen(space: Path) -> None:
    """The points are found by watching: driver, ledger, files and device nodes are all there."""
    seen = watch(BY_NAME["prolog-first-of-a-node"].build(space / "node"),
                 BY_NAME["prolog-first-of-a-node"].work, space / "seen")  # fmt: skip
    names = {label.partition(" ")[2] for label in seen.labels}
    assert {
        "nvmlInitWithFlags", "nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlShutdown",
        "nvmlGpuInstanceCreateComputeInstance", "execute", "executemany", "flock", "mkdir",
        "open", "write", "close", "replace", "unlink", "mknod", "chown", "chmod", "fchmod",
        "setxattr",
    } <= names  # fmt: skip
    before = [label for label in seen.labels if label.startswith("before ")]
    after = [label for label in seen.labels if label.startswith("after ")]
    assert len(before) == len(after)


def test_what_nobody_thought_of_counts() -> None:
    """The list is one of builtins that touch nothing; all others are crash points."""
    assert all(map(counts, (os.link, os.truncate, os.sendfile, os.fsync, open, os.symlink)))
    assert not any(map(counts, (len, sorted, os.getpid, "".join, [].append)))


def test_a_hook_that_does_not_clean_up_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests can fail: without the sweep the next Prolog leaves what the dead one made."""
    monkeypatch.setattr(sweep, "sweep_gpu", lambda *_, **__: False)
    with pytest.raises(ExceptionGroup) as caught:
        exhaust(BY_NAME["prolog-a30"])
    notes = "".join(note for problem in caught.value.exceptions for note in problem.__notes__)
    assert "killed after nvmlDeviceCreateGpuInstanceWithPlacement" in notes


def test_a_ledger_that_forgets_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may the intent come late: an instance that no record names would stay for ever."""
    add = Ledger.add

    def late(self: Ledger, allocation: Any, kind: str, **facts: Any) -> object:
        self._db.execute("PRAGMA synchronous=OFF")
        return add(self, allocation, kind, **facts)

    def carve_first(bench: Workbench, *arguments: object) -> object:
        owner, request, gpu, chosen, undo = arguments
        slot = chosen.slots[0]  # type: ignore[attr-defined]
        bench.driver.create_gpu_instance(gpu, slot.row.profile_id, slot.placement)  # type: ignore[arg-type]
        bench.driver.destroy_gpu_instance(gpu, bench.driver.instances(gpu)[-1].gi_id)  # type: ignore[arg-type]
        return intend(bench, owner, request, gpu, chosen, undo)  # type: ignore[arg-type]

    intend = carve._intend
    monkeypatch.setattr(Ledger, "add", late)
    monkeypatch.setattr(carve, "_intend", carve_first)
    with pytest.raises(ExceptionGroup):
        exhaust(BY_NAME["prolog-first-of-a-node"])
