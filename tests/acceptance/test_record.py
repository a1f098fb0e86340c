"""What was tried, as data: compared, cleared of names, written and read."""

from __future__ import annotations

import pytest

from slurm_mig.acceptance.layouts import full_layouts
from slurm_mig.acceptance.record import Step, cleared, compare, from_json, to_json, without_names
from slurm_mig.errors import UsageFault
from tests.kit.gpus import A30, H100, geometry_of

UUID = "1234abcd-1234-5234-8234-1234567890ab"


def test_names_of_a_machine_do_not_leave_it() -> None:
    text = f"GPU 0 (GPU-{UUID}) at 00000000:C1:00.0 on gpu07: MIG-{UUID} in /srv/site/x"
    told = without_names(text, ["gpu07"])
    assert told == "GPU 0 (GPU-UUID) at BUS on NAME: MIG-UUID in PATH"
    assert without_names("/proc/driver/nvidia/params") == "/proc/driver/nvidia/params"


def test_a_host_called_as_a_word_of_the_file_spoils_nothing() -> None:
    answer = {"gpu": "gpu", "Prolog": {"exit": 1, "says": "on gpu: no"}}
    assert cleared(answer, ["gpu"]) == {
        "gpu": "gpu", "Prolog": {"exit": 1, "says": "on NAME: no"},
    }  # fmt: skip


def test_what_nobody_knows_is_no_difference() -> None:
    heard = [Step("table", "profile id 19", {"memory_mib": 9856, "ofa": 0}, 1.0)]
    same = [Step("table", "profile id 19", {"memory_mib": None, "ofa": 0}, 2.0)]
    assert compare(heard, same) == []
    other = [Step("table", "profile id 19", {"memory_mib": 9728, "ofa": 0}, 2.0)]
    (found,) = compare(heard, other)
    assert (found.what, found.gpu, found.simulator, found.number) == (
        "memory_mib", "9856", "9728", True,
    )  # fmt: skip


def test_steps_that_one_side_lacks() -> None:
    one, two = Step("place", "a", {}, 1), Step("place", "b", {}, 1)
    assert [(d.step, d.gpu, d.simulator) for d in compare([one], [two])] == [
        ("a", "there", "no such step"),
        ("b", "no such step", "there"),
    ]


def test_a_promise_holds_also_where_the_simulator_breaks_it() -> None:
    """A fault of ours that shows on both sides must not pass for agreement."""
    step = Step("job", "a whole job", {"to another": ["open", "open"]}, 1.0)
    (found,) = compare([step], [step])
    assert (found.what, found.simulator) == ("to another", '["closed", "closed"]')


def test_a_step_that_failed_is_one_difference() -> None:
    heard = Step("place", "a", {"fault": "DriverFault", "nvml": 999, "says": "no"}, 1.0)
    (found,) = compare([heard], [Step("place", "a", {"gi_id": 1, "gone": True}, 1.0)])
    assert (found.gpu, found.simulator) == ("DriverFault (999): no", "done")


def test_what_could_not_be_tried_is_no_difference() -> None:
    heard = Step("job", "busy", {"not_tried": "no libcuda.so.1 here"}, 1.0)
    assert compare([heard], [Step("job", "busy", {"client": "works"}, 1.0)]) == []


def test_the_file_can_be_read_again() -> None:
    steps = [Step("gpu", "what it is", {"name": "x"}, 1.5)]
    assert from_json(to_json({"gpu": "x"}, steps), "f")[1] == steps


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "other", "format": 1, "steps": []}', "{}"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(UsageFault, match="f is"):
        from_json(text, "f")


def test_every_set_of_sizes_that_fills_a_gpu_once() -> None:
    """facts/mig.md#slices: 38 on an H100 with double-memory slices, 5 placed on an A30."""
    assert len(full_layouts(geometry_of(H100))) == 38
    names = [
        [f"{row.name}@{p.start}" for row, p in item] for item in full_layouts(geometry_of(A30))
    ]
    assert ["4g.24gb@0"] in names
    assert len(names) == 4
