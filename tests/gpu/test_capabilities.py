"""Capability nodes: closed to everybody but the job's user."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import DeviceNodeFault
from slurm_mig.gpu.capabilities import Capabilities, capability_minors, instance_of, read_access
from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator.client import open_devices
from slurm_mig.simulator.tree import ci_minor, gi_minor
from tests.kit.gpus import H100
from tests.kit.site import build_machine
from tests.kit.users import as_user, opened_by

if TYPE_CHECKING:
    from pathlib import Path

    from slurm_mig.simulator import Machine

pytestmark = pytest.mark.root


@pytest.fixture
def machine(public_tmp: Path) -> Machine:
    """One GPU with a 3g: GPU instance 2, compute instance 0."""
    made = build_machine(public_tmp / "sim", H100)
    with made.change(0) as board:
        board.set_mode(True, busy=False)
        board.create_compute(board.create(9, Placement(4, 4), busy=False), 2)
    return made


@pytest.fixture
def capabilities(machine: Machine) -> Capabilities:
    return Capabilities(machine.tree.proc, machine.tree.dev)


def opens(machine: Machine, uid: int) -> bool:
    """Whether a user can use the machine's only instance."""
    board = machine.board(0)
    (gi,) = board.instances
    uuid = board.mig_uuid(gi, gi.compute[0])
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        try:
            open_devices(machine, uuid)
        except Exception:  # noqa: BLE001  # a child must not return into pytest
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_user_gets_in_and_nobody_else(machine: Machine, capabilities: Capabilities) -> None:
    """Both nodes, by real opens as unprivileged users."""
    capabilities.close(0, 2, 0, 64001, 64001)

    assert opens(machine, 64001)
    assert not opens(machine, 64002)
    nodes = sorted((machine.tree.dev / "nvidia-caps").iterdir())
    assert [node.name for node in nodes] == ["nvidia-cap21", "nvidia-cap22"]
    assert all(stat.S_IMODE(node.stat().st_mode) == 0o400 for node in nodes)
    assert [os.minor(node.stat().st_rdev) for node in nodes] == [21, 22]


def test_a_closed_node_stays_as_it_is(machine: Machine, capabilities: Capabilities) -> None:
    """A Prolog that runs again must not take it away, not even for a moment."""
    capabilities.close(0, 2, 0, 64001, 64001)
    nodes = sorted((machine.tree.dev / "nvidia-caps").iterdir())
    before = [node.stat().st_ino for node in nodes]
    capabilities.close(0, 2, 0, 64001, 64001)
    assert [node.stat().st_ino for node in nodes] == before
    capabilities.close(0, 2, 0, 64002, 64002)
    assert [node.stat().st_uid for node in nodes] == [64002, 64002]


def test_the_way_to_the_nodes_is_open_to_all(machine: Machine, capabilities: Capabilities) -> None:
    """Also where one who made the directory died before he could open it."""
    (machine.tree.dev / "nvidia-caps").mkdir(mode=0o700)
    capabilities.close(0, 2, 0, 64001, 64001)
    assert opens(machine, 64001)


def test_a_node_that_was_open_to_all_is_closed(
    machine: Machine, capabilities: Capabilities
) -> None:
    """nvidia-modprobe may have been faster."""
    for name in ("gi2/access", "gi2/ci0/access"):
        machine.tree.modprobe(machine.tree.capabilities / "gpu0/mig" / name)
    assert opens(machine, 64002)
    capabilities.close(0, 2, 0, 64001, 64001)
    assert not opens(machine, 64002)


def test_the_helper_cannot_open_it_again(machine: Machine, capabilities: Capabilities) -> None:
    """DeviceFileModify is 0 from then on."""
    capabilities.close(0, 2, 0, 64001, 64001)
    for name in ("gi2/access", "gi2/ci0/access"):
        access = machine.tree.capabilities / "gpu0/mig" / name
        assert read_access(access).modify is False
        machine.tree.modprobe(access)
    assert not opens(machine, 64002)


def test_users_get_through_the_directory_whatever_the_umask(
    machine: Machine, capabilities: Capabilities
) -> None:
    """A hook's umask must not lock the job's own user out."""
    old = os.umask(0o077)
    try:
        capabilities.close(0, 2, 0, 64001, 64001)
    finally:
        os.umask(old)
    assert opens(machine, 64001)


def test_removed_and_closed_for_the_next(machine: Machine, capabilities: Capabilities) -> None:
    """The same ids for another user."""
    capabilities.close(0, 2, 0, 64001, 64001)
    capabilities.remove(0, 2, 0)
    capabilities.remove(0, 2, 0)
    assert list((machine.tree.dev / "nvidia-caps").iterdir()) == []
    capabilities.close(0, 2, 0, 64002, 64002)
    assert not opens(machine, 64001)


def test_taken_from_its_user(machine: Machine, capabilities: Capabilities) -> None:
    """Root's and closed; taking again, or what is not there, is nothing."""
    capabilities.revoke(0, 2, 0)
    assert not (machine.tree.dev / "nvidia-caps").exists()
    capabilities.close(0, 2, 0, 64001, 64001)
    for _ in range(2):
        capabilities.revoke(0, 2, 0)
        assert not opens(machine, 64001)
    nodes = list((machine.tree.dev / "nvidia-caps").iterdir())
    assert {(node.stat().st_uid, stat.S_IMODE(node.stat().st_mode)) for node in nodes} == {(0, 0)}
    for name in ("gi2/access", "gi2/ci0/access"):
        machine.tree.modprobe(machine.tree.capabilities / "gpu0/mig" / name)
    assert not opens(machine, 64001)


@pytest.mark.parametrize("end", ["revoke", "remove", "close"])
def test_a_second_name_is_worth_nothing(
    machine: Machine, capabilities: Capabilities, public_tmp: Path, end: str
) -> None:
    """A user may link what he owns to anywhere on that file system, and keeps the name."""
    capabilities.close(0, 2, 0, 64001, 64001)
    mine = public_tmp / "mine"
    mine.mkdir()
    os.chown(mine, 64001, 64001)
    node = machine.tree.dev / "nvidia-caps/nvidia-cap21"
    assert as_user(64001, lambda: os.link(node, mine / "cap")) is None
    assert opened_by(64001, mine / "cap")
    if end == "close":
        capabilities.close(0, 2, 0, 64002, 64002)
    else:
        getattr(capabilities, end)(0, 2, 0)
    assert not opened_by(64001, mine / "cap")
    assert as_user(64001, lambda: (mine / "cap").chmod(0o444)) is not None


def test_only_a_users_own_are_removed(machine: Machine, capabilities: Capabilities) -> None:
    """The ids may be another instance's by now."""
    capabilities.close(0, 2, 0, 64001, 64001)
    node = machine.tree.dev / "nvidia-caps/nvidia-cap22"
    os.chown(node, 0, 0)
    capabilities.remove(0, 2, 0, owned_by=64001)
    assert [path.name for path in node.parent.iterdir()] == ["nvidia-cap22"]
    capabilities.remove(0, 2, 0, owned_by=64001)


def test_a_directory_that_users_can_write_to(machine: Machine, capabilities: Capabilities) -> None:
    """They could put nodes of their own there: a fault with its mode, and nothing is made."""
    nodes = machine.tree.dev / "nvidia-caps"
    nodes.mkdir()
    nodes.chmod(0o777)
    with pytest.raises(DeviceNodeFault, match="with mode 0777; it must"):
        capabilities.close(0, 2, 0, 64001, 64001)
    assert list(nodes.iterdir()) == []
    nodes.chmod(0o1777)
    with pytest.raises(DeviceNodeFault, match="nvidia-caps is writable by others; it must be"):
        capabilities.close(0, 2, 0, 64001, 64001)
    nodes.rmdir()
    nodes.symlink_to("/tmp")
    with pytest.raises(DeviceNodeFault, match="nvidia-caps"):
        capabilities.close(0, 2, 0, 64001, 64001)


def test_a_directory_that_is_there_keeps_its_mode(
    machine: Machine, capabilities: Capabilities
) -> None:
    """A site may let only a group through."""
    nodes = machine.tree.dev / "nvidia-caps"
    nodes.mkdir(mode=0o750)
    capabilities.close(0, 2, 0, 64001, 64001)
    capabilities.revoke(0, 2, 0)
    assert stat.S_IMODE(nodes.stat().st_mode) == 0o750
    assert not opens(machine, 64001)


@pytest.mark.parametrize("kind", ["file", "link", "directory", "fifo"])
def test_something_else_in_a_nodes_place(
    machine: Machine, capabilities: Capabilities, tmp_path: Path, kind: str
) -> None:
    """Replaced, what a link points to untouched; a directory is a fault with its name."""
    victim = tmp_path / "victim"
    victim.write_text("v")
    nodes = machine.tree.dev / "nvidia-caps"
    nodes.mkdir()
    place = nodes / "nvidia-cap21"
    if kind == "link":
        place.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir() if kind == "directory" else place.touch()
    if kind == "directory":
        with pytest.raises(DeviceNodeFault, match=f"remove {place}: Is a directory"):
            capabilities.close(0, 2, 0, 64001, 64001)
        return
    capabilities.close(0, 2, 0, 64001, 64001)
    assert stat.S_ISCHR(place.lstat().st_mode)
    assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o644)


def test_device_numbers(machine: Machine, capabilities: Capabilities) -> None:
    """Of the nodes that exist, as they are; a file in a node's place is none."""
    assert capabilities.instance_numbers(0, 2, [0]) == frozenset()
    capabilities.close(0, 2, 0, 64001, 64001)
    assert capabilities.instance_numbers(0, 2, [0]) == {os.makedev(121, 21), os.makedev(121, 22)}
    assert capabilities.instance_numbers(0, 2, []) == {os.makedev(121, 21)}
    assert capabilities.numbers(0) == {os.makedev(120, 0)}
    assert capabilities.numbers(7) == frozenset()
    (machine.tree.dev / "nvidia7").write_text("x")
    assert capabilities.numbers(7) == frozenset()


def test_minors_are_those_of_the_kernel() -> None:
    """Computed only when the access file is gone."""
    for gpu, gi, ci in ((0, 1, 0), (3, 14, 7), (31, 0, 2)):
        assert capability_minors(gpu, gi, ci) == (gi_minor(gpu, gi), ci_minor(gpu, gi, ci))


def test_an_instance_that_is_not_there(capabilities: Capabilities) -> None:
    """Named, with what may be wrong."""
    with pytest.raises(DeviceNodeFault, match=r"gi5/access.*\n?|MIG mode"):
        capabilities.close(0, 5, 0, 64001, 64001)


def test_a_kernel_without_the_driver(machine: Machine, capabilities: Capabilities) -> None:
    """No nvidia-caps in /proc/devices."""
    (machine.tree.proc / "devices").write_text("Character devices:\n  1 mem\n")
    with pytest.raises(DeviceNodeFault, match="no line for nvidia-caps"):
        capabilities.close(0, 2, 0, 64001, 64001)
    (machine.tree.proc / "devices").unlink()
    with pytest.raises(DeviceNodeFault, match="read .*/proc/devices"):
        capabilities.close(0, 2, 0, 64001, 64001)


def test_a_write_that_has_no_effect_is_a_fault(
    machine: Machine, capabilities: Capabilities
) -> None:
    """A kernel that ignores the flag leaves the instance open to all: never success."""
    access = machine.tree.capabilities / "gpu0/mig/gi2/access"
    access.chmod(0o644)
    access.write_text("DeviceFileMinor: 21\nDeviceFileMode: 292\nDeviceFileModify: 1\n")
    with pytest.raises(DeviceNodeFault, match="capability file|still says"):
        capabilities.close(0, 2, 0, 64001, 64001)


@pytest.mark.parametrize("text", ["", "DeviceFileMinor: x\n", "nonsense", "DeviceFileMinor: 1\n"])
def test_an_access_file_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    """A format of another driver is not guessed at."""
    file = tmp_path / "access"
    file.write_text(text)
    with pytest.raises(DeviceNodeFault, match=str(file)):
        read_access(file)


@pytest.mark.parametrize("gpu", [0, 1, 31])
def test_minors_can_be_read_backwards(gpu: int) -> None:
    """Every GPU and compute instance that a GPU can have, and no other GPU's."""
    for gi_id in range(15):
        for ci_id in range(8):
            gi, ci = capability_minors(gpu, gi_id, ci_id)
            assert instance_of(gi, gpu) == (gi_id, None)
            assert instance_of(ci, gpu) == (gi_id, ci_id)
            assert instance_of(gi, gpu + 1) is instance_of(gi, gpu - 1) is None
    assert instance_of(1, 0) is instance_of(2, 0) is None


def test_nodes_of_instances_that_are_gone(machine: Machine, capabilities: Capabilities) -> None:
    """Go; those of instances that exist, and what is no node of an instance, stay."""
    capabilities.close(0, 2, 0, 64001, 64001)
    caps = machine.tree.dev / "nvidia-caps"
    before = sorted(caps.iterdir())
    gone = [caps / f"nvidia-cap{minor}" for minor in (3, 4)]
    kept = [caps / name for name in ("nvidia-cap1", "nvidia-cap2", "nvidia-cap9x")]
    for path in (*gone, *kept):
        path.write_text("")
    assert sorted(capabilities.remove_stale(0)) == gone
    assert sorted(caps.iterdir()) == sorted([*before, *kept])
