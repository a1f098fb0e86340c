"""Capability nodes: closed to everybody but the job's user."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from slurm_mig.capabilities import Capabilities, capability_minors, read_access
from slurm_mig.errors import DeviceNodeFault
from slurm_mig.geometry import Placement
from slurm_mig.simulator.client import open_devices
from slurm_mig.simulator.tree import ci_minor, gi_minor

from .conftest import H100, build_machine

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
