"""Retiring: a declared layout, nothing of a job's taken, and a crash that can be repeated."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import BadRequest, Held, NodeFault, NoRoom, Unresolved, UsageFault
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.node.retire import Retirement
from slurm_mig.simulator.faults import Rule
from slurm_mig.transaction import carve, whole_gpu
from tests.kit.gpus import A30, A100, H100, RTX
from tests.kit.hooks import STAMP, records, slurm_commands, squeue
from tests.kit.ledgers import Moments
from tests.kit.retirement import CHANGING, ROOT, made, marks, retire, up
from tests.kit.transaction import ask

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from slurm_mig.node.node import Node
    from tests.kit.site import Site

pytestmark = pytest.mark.root


# -- layouts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "layout", "count"),
    [
        (H100, "1g.10gb:7", 7),
        (H100, "3g.40gb,2g.20gb:2", 3),
        (H100, "2g.20gb:2,3g.40gb:1", 3),
        (H100, "4g.40gb,2g.20gb,1g.10gb", 3),
        (H100, "7g.80gb", 1),
        (H100, "1g.10gb+me,1g.10gb:6", 7),
        (H100, "1g.20gb:4", 4),
        (A30, "2g.12gb,1g.6gb:2", 3),
        (RTX, "1g.24gb:4", 4),
        (H100, "none", 0),
    ],
)
def test_a_layout_is_made(
    make_site: Callable[..., Site], model: str, layout: str, count: int
) -> None:
    """Each instance with one compute instance, in whatever order it is written."""
    site = make_site(model)
    placed = retire(site, layout)
    assert ",".join(sorted(filter(None, placed.split(",")))) == ",".join(made(site))
    assert len(made(site)) == count
    assert marks(site) == {"0": placed}
    before = [item.gi_id for item in site.machine.board(0).instances]
    assert retire(site, layout) == placed
    assert [item.gi_id for item in site.machine.board(0).instances] == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", BadRequest), ("1g.10gb:", BadRequest), ("1g.10gb:x", BadRequest),
        ("1g.10gb:0", BadRequest), ("1g.10gb:9", BadRequest), ("1c.3g.40gb:1", BadRequest),
        ("9g", BadRequest), ("1g.10gb,1g.10gb", BadRequest), ("3g.40gb:3", NoRoom),
        ("4g.40gb:2", NoRoom),
    ],
)  # fmt: skip
def test_layouts_that_cannot_be(site: Site, text: str, fault: type[Exception]) -> None:
    """One line, and nothing is changed."""
    with pytest.raises(fault):
        retire(site, text)
    assert (made(site), marks(site)) == ([], {})


def test_another_layout_takes_the_place_of_the_first(site: Site) -> None:
    """What was made for the first is ours to take down, on record."""
    retire(site, "1g.10gb:7")
    retire(site, "3g.40gb:2")
    assert made(site) == ["3g.40gb@0", "3g.40gb@4"]
    assert {record.phase for record in records(site)} == {phases.RELEASED}
    assert len(records(site)) == 7
    retire(site, "none", mig_off=True)
    assert made(site) == []
    assert site.machine.board(0).mig_current is False


# -- what is there ------------------------------------------------------------------------


def test_a_job_is_not_robbed(site: Site) -> None:
    """Held, with its name; slices and whole GPUs; nothing is changed, the other GPU neither."""
    assert site.prolog(7, STAMP, gpus="1").returncode == 0
    done = site.cli("retire", "--layout", "1g.10gb:7")
    assert done.returncode == 23
    assert "job 7 of user alice has 3g.40gb@" in done.stderr
    assert (made(site), marks(site)) == ([], {})
    slurm_commands(site)
    assert site.epilog(7).returncode == 0
    node = site.node()
    whole_gpu.give_whole(
        node.bench(),
        Owner(8, uid=64001, user="alice"),
        node.driver.gpus()[1],
        "mig-off",
        reset=False,
    )
    node.close()
    with pytest.raises(Held, match="job 8 of user alice has whole GPU"):
        retire(site, "none", 1)


def test_what_dead_hooks_and_administrators_left_goes(site: Site) -> None:
    """A record of a Prolog that was killed, and what was made by hand."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "kill-after")])
    assert site.prolog(7, STAMP).returncode != 0
    site.machine.faults.set([])
    assert site.cli("create", "1g.10gb", "--gpu", "0").returncode == 0
    retire(site, "2g.20gb:3")
    assert made(site) == ["2g.20gb@0", "2g.20gb@2", "2g.20gb@4"]
    assert [record.open for record in records(site)] == [False, False]


def test_what_is_in_use_stays_and_is_named(make_site: Callable[..., Site]) -> None:
    """The GPU is retired, but not done; again when it is free."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.1\n")
    assert site.cli("create", "1g.10gb", "--gpu", "0").returncode == 0
    (uuid,) = records(site)[0].uuids
    site.machine.hold(os.getpid(), uuid)
    with pytest.raises(Unresolved, match=f"used by pid {os.getpid()}"):
        retire(site, "7g.80gb")
    assert list(marks(site)) == ["0"]
    site.machine.let_go(os.getpid())
    retire(site, "7g.80gb")
    assert made(site) == ["7g.80gb@0"]


def test_a_static_slice_that_is_in_use(make_site: Callable[..., Site]) -> None:
    """A job on it is in no record of ours: found before the first instance goes."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.1\n")
    retire(site, "3g.40gb:2")
    board = site.machine.board(0)
    late = max(board.instances, key=lambda item: item.start)
    site.machine.hold(os.getpid(), board.mig_uuid(late, late.compute[0]))
    before = marks(site)
    with pytest.raises(Unresolved, match=r"3g\.40gb@4 has to go and is in use by pid"):
        retire(site, "none")
    assert (made(site), marks(site)) == (["3g.40gb@0", "3g.40gb@4"], before)
    site.machine.let_go(os.getpid())
    retire(site, "none")
    assert made(site) == []


def test_strange_instances(site: Site) -> None:
    """Part of the layout: kept as they are. Not part of it: refused, untouched."""
    with site.machine.change(0) as board:
        board.create(19, Placement(3, 1), busy=False)
    with pytest.raises(Held, match=r"1g\.10gb@3 in no record.*reset --gpu 0 --foreign"):
        retire(site, "1g.10gb:1")
    with site.machine.change(0) as board:
        board.create_compute(board.instances[0], 0)
    with pytest.raises(Held):
        retire(site, "3g.40gb:2")
    with pytest.raises(NoRoom, match="in no record"):
        retire(site, "3g.40gb:2,1g.10gb:1")
    assert marks(site) == {}
    retire(site, "1g.10gb:1,2g.20gb:1")
    assert made(site)[0] == "1g.10gb@3"
    assert len(made(site)) == 2


def test_a_lying_driver(site: Site) -> None:
    """A creation that was none is not believed."""
    site.machine.faults.set(
        [Rule("nvmlDeviceCreateGpuInstanceWithPlacement", "error:INSUFFICIENT_RESOURCES")]
    )
    with pytest.raises(NoRoom):
        retire(site, "1g.10gb:2")
    site.machine.faults.set([])
    retire(site, "1g.10gb:2")
    assert len(made(site)) == 2


def test_ampere_that_cannot_be_reset(make_site: Callable[..., Site]) -> None:
    """MIG mode stays: said, with what to do; again after the reset."""
    site = make_site(A100)
    site.machine.faults.set([Rule("nvmlDeviceSetMigMode", "lie", times=0)])
    with pytest.raises(Unresolved, match="MIG mode is on until the GPU is reset"):
        retire(site, "none", mig_off=True)
    site.machine.faults.set([])
    retire(site, "none", mig_off=True)
    assert site.machine.board(0).mig_current is False


# -- crashes -----------------------------------------------------------------------------


def crashed(site: Site, layout: str, call: str, effect: str, skip: int) -> bool:
    """Retire in a process that is killed at one NVML call; whether it got that far."""
    site.machine.faults.set([Rule(call, effect, skip)])
    pid = os.fork()
    if pid == 0:
        try:
            retire(site, layout)
        except BaseException as problem:  # noqa: BLE001  # a child must not return into pytest
            os.write(2, f"{type(problem).__name__}: {problem}\n".encode())
            os._exit(99)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    site.machine.faults.set([])
    assert code in (0, -9)
    return code == -9


@pytest.mark.parametrize("effect", ["kill-before", "kill-after"])
@pytest.mark.parametrize("call", CHANGING)
@pytest.mark.parametrize("then", ["the same", "another", "undo"])
def test_killed_at_every_call_that_changes_something(
    make_site: Callable[..., Site], call: str, effect: str, then: str
) -> None:
    """Run again, with whatever layout, it finishes; a neighbour GPU is never touched."""
    site = make_site(H100, H100)
    assert site.prolog(9, STAMP, gpus="1").returncode == 0
    neighbour = made(site, 1)
    killed = 0
    # One of ours that goes, or MIG mode off at first: each call comes at least once.
    for skip in range(4):
        with site.machine.change(0) as board:
            board.instances.clear()
            board.set_mode(call != "nvmlDeviceSetMigMode", busy=False)
        node = site.node()
        node.ledger.readmit(node.driver.gpus()[0].uuid, "test")
        node.close()
        if "Destroy" in call:
            assert site.cli("create", "1g.10gb", "--gpu", "0").returncode == 0
        reached = crashed(site, "3g.40gb,2g.20gb", call, effect, skip)
        if then == "undo":
            assert site.cli("reset", "--gpu", "0", "--foreign").returncode == 0
            assert site.cli("retire", "--gpu", "0", "--undo").returncode in (0, 2)
            assert (made(site), marks(site)) == ([], {})
        elif then == "another":
            retire(site, "1g.10gb:7")
            assert len(made(site)) == 7
        else:
            placed = retire(site, "3g.40gb,2g.20gb")
            assert made(site) == sorted(placed.split(","))
        assert made(site, 1) == neighbour
        assert [record.owner.job_id for record in records(site) if record.open] == [9]
        if not reached:
            break
        killed += 1
    assert 1 <= killed < 4


def at_transaction(site: Site, layout: str, number: int) -> bool:
    """Retire in a process that is killed before it begins, or ends, its n-th transaction."""
    pid = os.fork()
    if pid == 0:
        try:
            Transactions(number).watch()
            retire(site, layout)
        except BaseException as problem:  # noqa: BLE001  # a child must not return into pytest
            os.write(2, f"{type(problem).__name__}: {problem}\n".encode())
            os._exit(99)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -9)
    return code == -9


class Transactions(Moments):
    """Those of a process that dies at one of them."""

    def __init__(self, number: int) -> None:
        super().__init__(number, -1, -1)

    def reached(self, statement: str) -> None:
        # Within a transaction every moment leaves the same.
        if statement.startswith(("BEGIN", "COMMIT")):
            super().reached(statement)

    def stop(self) -> None:
        os.kill(os.getpid(), 9)


def by_hand(site: Site) -> None:
    """One instance of an administrator's."""
    node = site.node()
    carve.allocate(node.bench(), ROOT, ask("1g.10gb"), node.driver.gpus()[0])
    node.close()


def test_killed_around_every_transaction_of_the_ledger(site: Site) -> None:
    """With something of ours to take down and an earlier layout to replace: again finishes."""
    number, killed = 0, True
    while killed:
        retire(site, "1g.10gb:2")
        by_hand(site)
        killed = at_transaction(site, "3g.40gb,2g.20gb", number)
        placed = retire(site, "3g.40gb,2g.20gb")
        assert made(site) == sorted(placed.split(","))
        assert marks(site) == {"0": placed}
        assert [record.phase for record in records(site) if record.open] == []
        number += 1
    assert number > 20
    assert site.cli("audit", "--check").returncode == 0


def test_killed_between_two_writes(site: Site) -> None:
    """The mark comes before anything is made: from then on no hook carves there."""
    assert crashed(site, "1g.10gb:7", "nvmlDeviceCreateGpuInstanceWithPlacement", "kill-before", 0)
    assert list(marks(site)) == ["0"]
    slurm_commands(site)
    done = site.prolog(7, STAMP)
    assert (done.returncode, made(site)) == (10, [])


# -- hooks, reconcile, status -----------------------------------------------------------------


def test_hooks_on_a_retired_gpu(site: Site) -> None:
    """Slices there are the node's fault, with a word of `retire`; the other GPU works."""
    log = slurm_commands(site)
    retire(site, "1g.10gb:7")
    done = site.prolog(7, STAMP)
    assert done.returncode == 10
    assert "retired since 20" in done.stderr
    assert "slurm-mig retire --undo" in done.stderr
    assert "state=drain" in log.read_text()
    assert site.prolog(8, STAMP, gpus="1").returncode == 0
    assert site.epilog(8).returncode == 0
    assert len(made(site)) == 7


def test_a_node_that_is_retired_wholly(site: Site) -> None:
    """Jobs with GPUs of Slurm's own are passed, whatever index they have."""
    slurm_commands(site)
    for index in (0, 1):
        retire(site, "1g.10gb:7", index)
    assert site.prolog(7, "", gpus="13").returncode == 0
    assert site.epilog(7, gpus="13").returncode == 0
    done = site.prolog(8, STAMP)
    assert done.returncode == 10
    assert "no GPU is managed here" in done.stderr


def test_retired_while_a_prolog_waits_for_the_lock(node: Node) -> None:
    """It looks again under the lock."""
    from tests.kit.transaction import ALICE

    gpu = node.driver.gpus()[0]
    bench = node.bench()
    node.ledger.retire(gpu.uuid, "root", "")
    with pytest.raises(NodeFault, match="retired since"):
        carve.allocate(bench, ALICE, ask("1g.10gb"), gpu)
    with pytest.raises(NodeFault, match="retired since"):
        whole_gpu.give_whole(bench, ALICE, gpu, "auto", reset=False)
    assert node.driver.instances(gpu) == []


def test_reconcile_leaves_it_alone(site: Site) -> None:
    """Not a word of its instances; after a reboot its MIG mode stays as it is."""
    retire(site, "1g.10gb:7")
    done = site.cli("reconcile", "--no-slurm")
    assert (done.returncode, done.stdout) == (0, "ledger and hardware agree\n")
    assert len(made(site)) == 7
    site.machine.reboot()
    assert up(site).foreign == []
    assert [site.machine.board(index).mig_current for index in (0, 1)] == [False, True]


def test_status_and_gpus_say_so(site: Site) -> None:
    """Since when, by whom, with what."""
    retire(site, "3g.40gb")
    text = site.cli("status").stdout
    assert f"  retired since {time.strftime('%Y-')}" in text
    assert "by root, with 3g.40gb@4" in text
    shown = json.loads(site.cli("status", "--json").stdout)["gpus"]
    assert [(gpu["managed"], bool(gpu["retired"])) for gpu in shown] == [
        (False, True),
        (True, False),
    ]
    listed = json.loads(site.cli("gpus", "--json").stdout)["node"]
    assert [gpu["managed"] for gpu in listed] == [False, True]


def test_it_is_in_the_chain(site: Site) -> None:
    """Who retired what and when is audited like everything else."""
    retire(site, "3g.40gb")
    assert site.cli("audit", "--check").returncode == 0
    assert site.cli("audit").returncode == 0


def test_what_it_costs_a_hook(node: Node) -> None:
    """One query: far below a millisecond, of some hundreds that a Prolog takes."""
    gpu = node.driver.gpus()[0]
    node.ledger.retire(gpu.uuid, "root", "")
    began = time.perf_counter()
    for _ in range(200):
        node.ledger.retired()
    assert (time.perf_counter() - began) / 200 < 0.002


# -- the command ------------------------------------------------------------------------------


def said(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_the_whole_node(site: Site) -> None:
    """What is left on each GPU, and the lines for Slurm and for our configuration."""
    done = site.cli("retire", "--layout", "3g.40gb,1g.10gb:3", SLURMD_NODENAME="n1")
    assert done.returncode == 0
    assert 'managed = "none"' in done.stdout
    assert "NodeName=n1 AutoDetect=nvml" in done.stdout
    assert "NodeName=n1 Gres=gpu:1g.10gb:6,gpu:3g.40gb:2" in done.stdout
    assert "survive a reboot" in done.stdout
    assert len(made(site, 0)) == len(made(site, 1)) == 4


def test_one_gpu(site: Site) -> None:
    """The others stay; static devices beside shards are no way."""
    done = site.cli("retire", "--gpu", "0", "--layout", "none")
    assert "managed = [1] and order = [1]" in done.stdout
    assert "lines of GPU 0 out" in done.stdout
    assert marks(site) == {"0": ""}
    done = site.cli("retire", "--gpu", "1", "--layout", "none", "--mig-off")
    assert "shard lines" in done.stdout
    assert site.machine.board(1).mig_current is False


def test_a_dry_run_changes_nothing(site: Site) -> None:
    """Not even what a dead hook left; and says what the real one does."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "kill-before")])
    assert site.prolog(7, STAMP).returncode != 0
    site.machine.faults.set([])
    before = (made(site), records(site), marks(site))
    words = ("retire", "--gpu", "0", "--layout", "7g.80gb")
    done = site.cli(*words, "--dry-run")
    assert "GPU 0 would be retired with 7g.80gb@0: takes down 3g.40gb@" in done.stdout
    assert "makes 7g.80gb@0" in done.stdout
    assert (made(site), records(site), marks(site)) == before
    planned = said(site.cli(*words, "--dry-run", "--json"))
    real = said(site.cli(*words, "--json"))
    assert planned["gpus"][0]["layout"] == real["gpus"][0]["layout"] == "7g.80gb@0"
    assert planned["advice"] == real["advice"]


def test_and_back(site: Site) -> None:
    """Only once it is empty; then jobs are carved there again."""
    retire(site, "1g.10gb:2")
    done = site.cli("retire", "--gpu", "0", "--undo")
    assert done.returncode == 23
    assert "slurm-mig reset --gpu 0 --foreign" in done.stderr
    assert marks(site) != {}
    assert site.cli("reset", "--gpu", "0", "--foreign").returncode == 0
    assert site.cli("retire", "--undo", "--dry-run").returncode == 0
    assert marks(site) != {}
    assert site.cli("retire", "--undo").returncode == 0
    assert marks(site) == {}
    assert site.prolog(7, STAMP).returncode == 0
    assert site.cli("retire", "--undo").returncode == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "--layout or --undo"),
        (["--layout", "none", "--undo"], 2, "--layout or --undo"),
        (["--layout", "1g.10gb:7", "--mig-off"], 2, "--layout none"),
        (["--layout", "1g.10gb:x"], 3, "'1g.10gb:x'"),
        (["--layout", "1g.10gb:7", "--gpu", "7"], 2, "device minors here: 0, 1"),
        (["--layout", "1g.10gb:7", "--gpu", "1"], 2, "GPU 1: not managed"),
        (["--layout", "1g.5gb:7"], 4, "1g.5gb"),
        (["--undo"], 2, "not retired"),
    ],
)
def test_mistakes(make_site: Callable[..., Site], words: list[str], code: int, says: str) -> None:
    """One line, its code, nothing done."""
    site = make_site(H100, H100, config="[gpus]\nmanaged = [0]\n")
    done = site.cli("retire", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, 1)
    assert says in done.stderr
    assert (made(site), marks(site)) == ([], {})


def test_a_model_that_does_not_offer_the_layout_stops_all(make_site: Callable[..., Site]) -> None:
    """Looked at before the first GPU is changed."""
    site = make_site(H100, A30)
    assert site.cli("retire", "--layout", "1g.10gb:7").returncode == 4
    assert (made(site), marks(site)) == ([], {})


def test_a_lost_gpu_stops_no_work_on_others(site: Site) -> None:
    """Done, then its own code."""
    site.machine.lose(1)
    done = site.cli("retire", "--layout", "1g.10gb:7")
    assert done.returncode == 14
    assert len(made(site)) == 7


def test_not_retired(node: Node) -> None:
    """Nothing to take back."""
    with pytest.raises(UsageFault, match="it is not retired"):
        Retirement(node, ROOT).undo(node.driver.gpus()[0])


def test_a_squeue_is_never_asked(site: Site) -> None:
    """The ledger knows who has something there; slurmctld may be down."""
    log = slurm_commands(site, squeue=squeue(7))
    retire(site, "1g.10gb:7")
    assert not log.exists()
