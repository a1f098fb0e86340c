"""The simulator answers what a real GPU answered, call by call."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pynvml  # noqa: TID251  # the library is tested below pynvml
import pytest

from slurm_mig.simulator.library import Library
from tests.kit import recording
from tests.kit.site import build_machine

#: MiB that this driver's profiles of more than one unit have above the driver's of the catalogue.
MORE_MEMORY = {"NVIDIA H200": 256}

RECORDINGS = sorted((Path(__file__).parents[1] / "fixtures").glob("nvml-*.json"))


def test_there_are_recordings() -> None:
    """Of an H100 and an H200, both with driver 580.159.04."""
    assert [path.stem.split("-")[1] for path in RECORDINGS] == ["h100", "h200"]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("uid", [0, 64001])
def test_the_same_answers(path: Path, uid: int, public_tmp: Path) -> None:
    """To root and, as long as there are no instances to see, to anybody."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the simulated machine is root's")
    told = json.loads(path.read_text())
    machine = build_machine(public_tmp / "sim", told["Name"], driver=told["driver"])
    pynvml.nvmlLib = Library(machine.root)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    os.seteuid(uid)
    try:
        heard = recording.answers()
    finally:
        os.seteuid(0)
        pynvml.nvmlLib = None
        pynvml._nvmlGetFunctionPointer_cache.clear()
    for answer in told.values():
        if isinstance(answer, dict) and answer["memorySizeMB"] > 16384:
            answer["memorySizeMB"] -= MORE_MEMORY.get(told["Name"], 0)
    assert {key: (told[key], heard[key]) for key in told if told[key] != heard[key]} == {}
    assert set(told) == set(heard)
