"""A simulated machine on disk: made whole or not at all, shared, rebooted."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import NotPermitted, SimulatorFault, UsageFault
from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator import Machine
from slurm_mig.simulator import machine as machine_module
from slurm_mig.simulator.client import devices, open_devices
from slurm_mig.simulator.codes import Refused
from slurm_mig.simulator.faults import Faults, Rule
from slurm_mig.simulator.tree import ci_minor, gi_minor
from tests.kit.gpus import A100, H100
from tests.kit.site import build_machine

if TYPE_CHECKING:
    from slurm_mig.simulator.board import SimInstance

pytestmark = pytest.mark.root


@pytest.fixture
def machine(public_tmp: Path) -> Machine:
    made = build_machine(public_tmp / "sim", H100, A100)
    for index in (0, 1):
        with made.change(index) as board:
            board.set_mode(True, busy=False)
    return made


def carve(machine: Machine, index: int = 0, start: int = 4) -> SimInstance:
    with machine.change(index) as board:
        made = board.create(9, Placement(start, 4), busy=False)
        board.create_compute(made, 2)
    return made


# -- making one -------------------------------------------------------------------


def test_what_a_new_machine_has(machine: Machine) -> None:
    """Device nodes that no real driver answers, capability roots, a boot id."""
    dev = machine.tree.dev
    assert stat.S_ISCHR((dev / "nvidia0").stat().st_mode)
    assert os.major((dev / "nvidia1").stat().st_rdev) == 120
    config = (machine.tree.capabilities / "mig/config").read_text()
    assert "DeviceFileMinor: 1\n" in config
    assert len(machine.tree.boot_id_file.read_text().strip()) == 36
    minors = (machine.tree.proc / "driver/nvidia-caps/mig-minors").read_text().splitlines()
    assert "gpu0/gi1/access 12" in minors
    assert "gpu0/gi1/ci0/access 13" in minors
    assert not (dev / "nvidia-caps").exists()


def test_how_the_modules_were_loaded(machine: Machine) -> None:
    """The option that nvidia-modprobe heeds, nvidia_drm's parameter, and persistence."""
    assert machine.tree.params.read_text() == "ModifyDeviceFiles: 1\n"
    assert (machine.tree.persistence, machine.tree.modeset.exists()) == (True, False)
    machine.tree.set_modify(on=False)
    machine.tree.load_drm(modeset=True)
    machine.tree.set_persistence(on=False)
    assert machine.tree.params.read_text() == "ModifyDeviceFiles: 0\n"
    assert machine.tree.modeset.read_text() == "Y\n"
    assert not machine.tree.persistence


def test_capability_minors() -> None:
    """3 + 135 gpu + 9 gi, then 1 + ci; the last one of all is 4322 (facts/mig.md#capabilities)."""
    assert (gi_minor(0, 1), ci_minor(0, 1, 2)) == (12, 15)
    assert ci_minor(31, 14, 7) == 4322


def test_every_gpu_has_a_uuid_of_its_own(public_tmp: Path, machine: Machine) -> None:
    """Also on another machine: records of two nodes must not meet."""
    other = build_machine(public_tmp / "other", H100)
    uuids = [facts["uuid"] for facts in (*machine.gpus, *other.gpus)]
    assert len(set(uuids)) == 3


def test_a_directory_in_use_is_left_alone(machine: Machine) -> None:
    """Nothing of it is changed."""
    before = sorted(path.name for path in machine.root.iterdir())
    with pytest.raises(SimulatorFault, match="not an empty directory"):
        build_machine(machine.root, H100)
    assert sorted(path.name for path in machine.root.iterdir()) == before


def test_unknown_products_are_refused_with_what_is_unknown(public_tmp: Path) -> None:
    """Before anything is made."""
    with pytest.raises(UsageFault, match="unknown every profile"):
        build_machine(public_tmp / "sim", "NVIDIA A100-SXM-64GB")
    assert not (public_tmp / "sim").exists()


def test_an_unknown_operation(public_tmp: Path) -> None:
    """The message lists the operations."""
    with pytest.raises(SimulatorFault, match="create-gi"):
        build_machine(public_tmp / "sim", H100, latency_ms={"carve": 5})


def test_not_a_machine(tmp_path: Path) -> None:
    """Missing, unreadable, or of another format."""
    with pytest.raises(SimulatorFault, match="simulator create"):
        Machine(tmp_path)
    (tmp_path / "machine.json").write_text("{")
    with pytest.raises(SimulatorFault):
        Machine(tmp_path)
    (tmp_path / "machine.json").write_text('{"format": 99}')
    with pytest.raises(SimulatorFault, match="format 99"):
        Machine(tmp_path)


def test_making_one_needs_root(public_tmp: Path) -> None:
    """Mknod does."""
    public_tmp.chmod(0o777)
    pid = os.fork()
    if pid == 0:
        os.setgid(64001)
        os.setuid(64001)
        try:
            build_machine(public_tmp / "sim", H100)
        except NotPermitted:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- the tree -----------------------------------------------------------------------


def test_entries_live_as_long_as_the_instance(machine: Machine) -> None:
    """A new instance starts with DeviceFileModify 1 again, whatever was written before."""
    carve(machine)
    access = machine.tree.capabilities / "gpu0/mig/gi2/access"
    assert "DeviceFileModify: 1\n" in access.read_text()
    with access.open("r+b", buffering=0) as file:
        file.write(b"DeviceFileModify: 0\n")
    assert "DeviceFileModify: 0\n" in access.read_text()
    assert "DeviceFileMinor: 21\n" in access.read_text()
    with machine.change(0) as board:
        (item,) = board.instances
        board.destroy_compute(item, 0, busy=False)
        board.destroy(item.gi_id, busy=False)
    assert not access.parent.exists()
    carve(machine)
    assert "DeviceFileModify: 1\n" in access.read_text()


def test_nvidia_modprobe_reopens_what_is_not_forbidden(machine: Machine) -> None:
    """A user's helper undoes a chmod, unless the access file says 0: facts/mig.md#capabilities."""
    carve(machine)
    access = machine.tree.capabilities / "gpu0/mig/gi2/access"
    node = machine.tree.modprobe(access)
    assert stat.S_IMODE(node.stat().st_mode) == 0o444
    node.chmod(0o400)
    machine.tree.modprobe(access)
    assert stat.S_IMODE(node.stat().st_mode) == 0o444
    node.chmod(0o400)
    with access.open("r+b", buffering=0) as file:
        file.write(b"DeviceFileModify: 0\n")
    machine.tree.modprobe(access)
    assert stat.S_IMODE(node.stat().st_mode) == 0o400
    node.unlink()
    with pytest.raises(FileNotFoundError):
        machine.tree.modprobe(access)


# -- sharing -------------------------------------------------------------------------


def _fill(root: str, index: int, out: object) -> None:
    machine, made = Machine(Path(root)), 0
    for start in range(7):
        try:
            with machine.change(index) as board:
                board.create(19, Placement(start, 1), busy=False)
                made += 1
        except Refused:
            continue
    out.put(made)  # type: ignore[attr-defined]


def test_processes_share_one_truth(machine: Machine) -> None:
    """Three processes carve one GPU at once: seven instances in all, none twice."""
    context = get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_fill, args=(str(machine.root), 0, queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert sum(queue.get(timeout=60) for _ in workers) == 7
    for worker in workers:
        worker.join()
    assert len(machine.board(0).instances) == 7


def test_a_change_that_fails_is_not_kept(machine: Machine) -> None:
    """Neither in the state nor in the tree."""
    with pytest.raises(Refused), machine.change(0) as board:
        board.create(9, Placement(4, 4), busy=False)
        board.create(9, Placement(4, 4), busy=False)
    assert machine.board(0).instances == []
    assert not (machine.tree.capabilities / "gpu0/mig/gi2").exists()


# -- processes ------------------------------------------------------------------------


def test_a_client_holds_as_long_as_it_lives(machine: Machine) -> None:
    """A recycled pid is another process: the start time tells."""
    uuid = machine.gpus[0]["uuid"]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as client:
        machine.hold(client.pid, uuid)
        assert machine.holders() == [(client.pid, uuid)]
        client.communicate(b"\n")
    assert machine.holders() == []
    (machine.root / "holders" / str(os.getpid())).write_text(f"{uuid}\n1\n")
    assert machine.holders() == []


@pytest.mark.root
def test_a_users_link_among_the_holders_leads_root_nowhere(machine: Machine) -> None:
    """Everybody may make names in that directory; here one that root's note will have."""
    victim = machine.root / "victim"
    victim.write_text("v")
    (machine.root / "holders" / f".{os.getpid()}").symlink_to(victim)
    (machine.root / "holders" / f".{os.getpid()}.{os.getpid()}").symlink_to(victim)
    machine.hold(os.getpid(), machine.gpus[0]["uuid"])
    assert victim.read_text() == "v"
    assert machine.holders() == [(os.getpid(), machine.gpus[0]["uuid"])]


def test_a_dead_process_cannot_hold(machine: Machine) -> None:
    """There would be nothing to wait for."""
    with pytest.raises(SimulatorFault, match="does not exist"):
        machine.hold(2**22 + 1, machine.gpus[0]["uuid"])


@pytest.mark.parametrize("uuid", ["", " ", "GPU-1 2", "GPU-1\n"])
def test_nobody_holds_what_has_no_name(machine: Machine, uuid: str) -> None:
    """It is refused, not noted: the note could not be read, and NVML said 999 from then on."""
    with pytest.raises(SimulatorFault, match="without a UUID"):
        machine.hold(os.getpid(), uuid)
    assert machine.holders() == []


def test_what_is_no_note_of_a_holder(machine: Machine) -> None:
    """Anybody may put something there: it holds nothing, and stops no call of NVML's."""
    place = machine.root / "holders"
    (place / "7").write_text("GPU-1\n")
    (place / "8x").write_text("GPU-1\n1\n")
    (place / "9").write_bytes(b"\xff 1")
    (place / "10").mkdir()
    (place / "11").symlink_to("/nowhere")
    assert machine.holders() == []


def test_cuda_sees_mig_devices_or_whole_gpus(machine: Machine) -> None:
    """A GPU in MIG mode without instances is of no use to CUDA (facts/mig.md#bugs)."""
    assert list(devices(machine)) == []
    carve(machine)
    with machine.change(1) as board:
        board.set_mode(False, busy=False)
    assert [device.name for device in devices(machine)] == [f"{H100} MIG 3g.40gb", A100]


def test_cuda_opens_the_nodes_of_what_is_visible(machine: Machine) -> None:
    """As the user who runs: missing nodes, closed nodes, unknown UUIDs."""
    carve(machine)
    (device,) = devices(machine)
    with pytest.raises(UsageFault, match="no CUDA-capable device"):
        open_devices(machine, "MIG-0")
    with pytest.raises(NotPermitted, match="No such file"):
        open_devices(machine, device.uuid)
    for node in device.nodes[1:]:
        node.parent.mkdir(exist_ok=True)
        os.mknod(node, 0o020600, os.makedev(121, 1))
    assert open_devices(machine, device.uuid) == [device]


# -- life -----------------------------------------------------------------------------


def test_a_reboot(machine: Machine) -> None:
    """Instances and clients gone, a new boot id, MIG mode by architecture, lost GPUs back."""
    carve(machine)
    machine.tree.modprobe(machine.tree.capabilities / "gpu0/mig/gi2/access")
    machine.hold(os.getpid(), machine.gpus[0]["uuid"])
    machine.lose(1)
    before = machine.tree.boot_id_file.read_text()

    machine.reboot()

    boards = [machine.board(index) for index in (0, 1)]
    assert machine.tree.boot_id_file.read_text() != before
    assert [board.instances for board in boards] == [[], []]
    assert [board.mig_current for board in boards] == [False, True]
    assert not boards[1].lost
    assert machine.holders() == []
    assert not (machine.tree.dev / "nvidia-caps").exists()
    assert not (machine.tree.capabilities / "gpu0/mig/gi2").exists()


def test_a_reboot_of_the_machine_that_simulates(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As real GPUs: instances are gone, once, and the boot id is another one."""
    carve(machine)
    before = machine.tree.boot_id_file.read_text()
    machine.follow_kernel()
    assert (machine.tree.boot_id_file.read_text(), len(machine.board(0).instances)) == (before, 1)
    kernel = tmp_path / "boot_id"
    kernel.write_text("another\n")
    monkeypatch.setattr(machine_module, "KERNEL", kernel)
    machine.follow_kernel()
    after = machine.tree.boot_id_file.read_text()
    assert (after != before, machine.board(0).instances) == (True, [])
    machine.follow_kernel()
    assert machine.tree.boot_id_file.read_text() == after
    # One that an earlier release made does not know its kernel's boot: it is taken as it is.
    (machine.root / "kernel").unlink()
    machine.follow_kernel()
    assert machine.tree.boot_id_file.read_text() == after


def test_a_driver_reload(machine: Machine) -> None:
    """Instances gone, the boot id stays: the boot id alone does not tell."""
    carve(machine)
    before = machine.tree.boot_id_file.read_text()
    machine.reload_driver()
    assert machine.board(0).instances == []
    assert machine.tree.boot_id_file.read_text() == before


# -- faults ---------------------------------------------------------------------------


def test_rules_count_calls_across_processes(tmp_path: Path) -> None:
    """Skip two, strike two, then never again; another call does not count."""
    rules = Faults(tmp_path / "faults.json")
    rules.set([Rule("nvmlGpuInstanceDestroy", "error:IN_USE", skip=2, times=2)])
    calls = ["nvmlDeviceGetCount_v2"] + ["nvmlGpuInstanceDestroy"] * 6
    struck = [bool(Faults(tmp_path / "faults.json").effects(call)) for call in calls]
    assert struck == [False, False, False, True, True, False, False]


def test_for_ever_and_for_all(tmp_path: Path) -> None:
    """Times 0 never ends; * means every call."""
    rules = Faults(tmp_path / "faults.json")
    rules.add(Rule("*", "lie", times=0))
    rules.add(Rule("nvmlShutdown", "kill-after"))
    assert rules.effects("a") == ["lie"]
    assert rules.effects("nvmlShutdown") == ["lie", "kill-after"]
    rules.set([])
    assert rules.effects("a") == []
    assert rules.rules() == []


@pytest.mark.parametrize("effect", ["error:NOPE", "boom", "lie:1", "hang:x", "hang:", "error"])
def test_a_bad_effect(effect: str) -> None:
    """Refused when it is set, with the list of effects and codes."""
    with pytest.raises(SimulatorFault, match="IN_USE"):
        Rule("*", effect)
