"""What the Prolog writes down for a job's tasks."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.mig.allocation import WHOLE_MIG_OFF, Allocation, Instance, Owner
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.state import task_file
from slurm_mig.state.task_file import TaskSettings

RECORD = Allocation(
    owner=Owner(7),
    node="n1",
    gpu_uuid="GPU-1",
    gpu_minor=0,
    gpu_name="x",
    boot_id="b",
    request="1g.10gb:1,3g.40gb:1",
    instances=(
        Instance("1g.10gb", 19, 2, 1, 9, 0, "MIG-a"),
        Instance("3g.40gb", 9, 4, 4, 2, 0, "MIG-b"),
    ),
)
REQUEST = Request(
    (Item(Profile.parse("1g.10gb"), 1, 19, 4), Item(Profile.parse("3g.40gb"), 1, 9, 14))
)


def test_slices_in_the_order_of_the_request() -> None:
    """With all that a step of a part of the job needs."""
    settings = TaskSettings("none", containers=True, scontrol="/usr/bin/scontrol")
    assert task_file.slice_lines(RECORD, REQUEST, settings, "/dev/shm/x y-7.0") == (
        "slice MIG-a 1g.10gb 0 GPU-1\n"
        "slice MIG-b 3g.40gb 0 GPU-1\n"
        "shards 18\n"
        "share 4 1g.10gb:1\n"
        "share 14 3g.40gb:1\n"
        "share 18 1g.10gb:1 3g.40gb:1\n"
        "bind none\n"
        "leases /dev/shm/x y-7.0\n"
        "scontrol /usr/bin/scontrol\n"
        "containers\n"
    )


def test_without_weights_steps_are_asked_for() -> None:
    """A job without a stamp: what a step's shards mean is not known here."""
    request = Request(tuple(replace(item, weight=None) for item in REQUEST.items))
    text = task_file.slice_lines(RECORD, request, TaskSettings(), "/l")
    assert "share" not in text
    assert "leases /l\n" in text


def test_one_price_of_two_meanings() -> None:
    """Two 1g cost as much as one 2g: the step's own words decide then."""
    items = (Item(Profile.parse("1g.10gb"), 2, 19, 4), Item(Profile.parse("2g.20gb"), 1, 14, 8))
    found = task_file.shares(Request(items))
    assert found == {
        4: "1g.10gb:1", 8: "ask", 12: "1g.10gb:1 2g.20gb:1", 16: "1g.10gb:2 2g.20gb:1",
    }  # fmt: skip


def test_parts_of_a_gpu_instance() -> None:
    """Each of three compute instances is worth a third of what the job pays."""
    item = Item(Profile.parse("1c.3g.40gb"), 3, 9, 14)
    assert (item.shards, [item.worth(count) for count in range(4)]) == (14, [0, 4, 9, 14])


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 31)), min_size=1, max_size=4))
def test_every_share_costs_what_it_says(kinds: list[tuple[int, int]]) -> None:
    """And every part of the job has a price that is listed."""
    items = tuple(
        Item(Profile(number + 1, 10), count, number, weight)
        for number, (count, weight) in enumerate(kinds)
        if count <= 2
    )
    if not items:
        return
    request = Request(items)
    found = task_file.shares(request)
    assert max(found) == sum(item.shards or 0 for item in items)
    for price, what in found.items():
        if what != task_file.ASK:
            counts = dict(word.rsplit(":", 1) for word in what.split())
            assert price == sum(
                (item.weight or 0) * int(counts.get(str(item.profile), 0)) for item in items
            )


def test_whole_gpus() -> None:
    """Instances that stand for them carry Slurm's index; without MIG there is nothing to say."""
    without = replace(RECORD, request=WHOLE_MIG_OFF, instances=())
    mixed = [(0, "GPU-0", without), (3, "GPU-1", RECORD), (5, "GPU-2", None)]
    assert task_file.whole_lines(mixed, TaskSettings()) == (
        "whole\nslice GPU-0 whole 0 GPU-0\n"
        "slice MIG-a 1g.10gb 3 GPU-1\nslice MIG-b 3g.40gb 3 GPU-1\n"
        "slice GPU-2 whole 5 GPU-2\nbind task\n"
    )
    for none in ([], [(0, "GPU-0", without), (5, "GPU-2", None)]):
        assert task_file.whole_lines(none, TaskSettings()) == "whole\nbind task\n"


def test_a_refusal_is_one_print_line() -> None:
    """A newline in a reason would be a second command to slurmd."""
    assert task_file.refusal_lines("no\nexport X=1") == "print slurm-mig: no export X=1\n"
