"""The driver contract: one suite for simulated and for real GPUs, read-only on the latter.

What changes hardware runs on the simulator alone: a real GPU's MIG settings are
not ours to touch in a test.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import (
    DriverFault,
    DriverMissing,
    GpuLost,
    InstanceBusy,
    NoRoom,
    NotPermitted,
)
from slurm_mig.gpu.nvml import NvmlDriver, nominal_gb
from slurm_mig.mig import catalog
from slurm_mig.mig.geometry import Placement, layouts
from slurm_mig.simulator.faults import Rule
from slurm_mig.simulator.library import Library
from tests.kit.gpus import A30, A100, H100, KNOWN, RTX, geometry_of
from tests.kit.site import build_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from slurm_mig.mig.driver import Gpu
    from slurm_mig.simulator import Machine


def _hardware() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(
    params=[
        "simulator",
        pytest.param(
            "hardware",
            marks=pytest.mark.skipif(
                not _hardware(), reason="no libnvidia-ml.so.1: this machine has no NVIDIA GPU"
            ),
        ),
    ]
)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NvmlDriver]:
    if request.param == "simulator":
        build_machine(tmp_path / "sim", H100, A30, RTX)
        opened = NvmlDriver(Library(tmp_path / "sim"))
    else:
        opened = NvmlDriver()
    yield opened
    opened.close()


# -- contract, read-only: simulator and hardware --------------------------------


def test_gpus_have_an_identity(driver: NvmlDriver) -> None:
    """UUID, minor and index are there and distinct; the list goes by minor."""
    gpus = driver.gpus()
    assert gpus
    assert [gpu.minor for gpu in gpus] == sorted({gpu.minor for gpu in gpus})
    assert len({gpu.uuid for gpu in gpus}) == len(gpus)
    assert all(gpu.uuid.startswith("GPU-") for gpu in gpus)
    assert [driver.gpu(gpu.uuid) for gpu in gpus] == gpus


def test_the_survey_has_no_faults_on_a_healthy_machine(driver: NvmlDriver) -> None:
    """And is the same list."""
    gpus, faults = driver.survey()
    assert (gpus, faults) == (driver.gpus(), [])


def test_a_driver_version(driver: NvmlDriver) -> None:
    """Digits and dots."""
    assert driver.driver_version().replace(".", "").isdigit()


def test_persistence(driver: NvmlDriver) -> None:
    """On, off, or not to be told; reading it changes nothing."""
    for gpu in driver.gpus():
        assert driver.persistence(gpu) in (True, False, None)


def test_profile_tables_are_consistent(driver: NvmlDriver) -> None:
    """Ids distinct, placements legal, names readable: with MIG mode on or off."""
    for gpu in driver.gpus():
        if not gpu.mig_capable or os.geteuid() != 0:
            continue
        geometry = driver.geometry(gpu)
        ids = [row.profile_id for row in geometry.profiles]
        assert len(set(ids)) == len(ids)
        for row in geometry.profiles:
            assert {place.size for place in row.placements} == {row.size}
            assert all(place.end <= geometry.units for place in row.placements)
        assert geometry.whole.size == geometry.units


def test_the_driver_agrees_with_the_catalogue(driver: NvmlDriver) -> None:
    """Profile ids and placements of a known board; names may differ by driver."""
    for gpu in driver.gpus():
        known = [item for item in catalog.products() if gpu.name in item.names and item.known]
        if known and os.geteuid() == 0:
            told = {row.profile_id: row.placements for row in driver.geometry(gpu).profiles}
            facts = {row.profile_id: row.placements for row in known[0].geometry().profiles}
            assert told == facts


def test_mig_off_is_no_instances(driver: NvmlDriver) -> None:
    """Asking a GPU without MIG mode is not an error."""
    for gpu in driver.gpus():
        if not gpu.mig_mode:
            assert driver.instances(gpu) == []
            assert driver.remaining(gpu, 0) in (1, None)


def test_capacity_where_the_driver_does_not_tell(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """Not supported is no answer; anything else is a fault."""
    machine, driver, gpu = carve(H100, on=False)
    assert driver.remaining(gpu, 19) == 7
    call = "nvmlDeviceGetGpuInstanceRemainingCapacity"
    machine.faults.set([Rule(call, "error:NOT_SUPPORTED")])
    assert driver.remaining(gpu, 19) is None
    machine.faults.set([Rule(call, "error:UNKNOWN")])
    with pytest.raises(DriverFault, match="read capacity"):
        driver.remaining(gpu, 19)


def test_an_unknown_uuid_is_a_lost_gpu(driver: NvmlDriver) -> None:
    """A record may outlive its GPU."""
    with pytest.raises(GpuLost, match="knows no GPU"):
        driver.gpu("GPU-00000000-0000-0000-0000-000000000000")


def test_one_session_a_process(driver: NvmlDriver) -> None:
    """Pynvml keeps one library a process: a second driver would take over the first's calls."""
    with pytest.raises(DriverFault, match="close it first"):
        NvmlDriver()
    assert driver.gpus()


# -- simulator only ----------------------------------------------------------------


@pytest.fixture
def carve(tmp_path: Path) -> Iterator[Callable[..., tuple[Machine, NvmlDriver, Gpu]]]:
    """A simulated GPU in MIG mode: machine, driver, GPU."""
    opened: list[NvmlDriver] = []

    def build(name: str, *, on: bool = True) -> tuple[Machine, NvmlDriver, Gpu]:
        machine = build_machine(tmp_path / name.replace(" ", "-"), name)
        while opened:
            opened.pop().close()
        opened.append(driver := NvmlDriver(Library(machine.root)))
        gpu = driver.gpus()[0]
        return machine, driver, driver.set_mig_mode(gpu, on=True) if on else gpu

    yield build
    for last in opened:
        last.close()


pytestmark = pytest.mark.root


@pytest.mark.parametrize("key", KNOWN)
def test_every_product_reads_back_as_the_catalogue_has_it(
    key: str, carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]
) -> None:
    """Through pynvml's own structs: every number, unknown ones as None."""
    _, driver, gpu = carve(key, on=False)
    told = {row.profile_id: row for row in driver.geometry(gpu).profiles}
    assert told == {row.profile_id: row for row in geometry_of(key).profiles}


@pytest.mark.parametrize("name", [A30, RTX, A100])
def test_every_layout_can_be_created_and_destroyed(
    name: str, carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]
) -> None:
    """All maximal layouts, placed as asked, read back as placed, and gone afterwards."""
    machine, driver, gpu = carve(name)
    geometry = driver.geometry(gpu)
    plain = {geometry.class_of(row): row for row in geometry.profiles if not row.name.attribute}
    states = layouts(geometry)
    full = {s for s in states if not any(set(s) < set(other) for other in states)}
    for state in sorted(full):
        for number, place in state:
            made = driver.create_gpu_instance(gpu, plain[number].profile_id, place)
            assert made.placement == place
            driver.create_compute_instance(gpu, made.gi_id)
        found = driver.instances(gpu)
        assert [(item.placement, len(item.compute)) for item in found] == sorted(
            (place, 1) for _, place in state
        )
        assert len({ci.uuid for item in found for ci in item.compute}) == len(state)
        for item in found:
            driver.destroy_compute_instance(gpu, item.gi_id, item.compute[0].ci_id)
            driver.destroy_gpu_instance(gpu, item.gi_id)
        assert driver.instances(gpu) == []
    assert machine.board(0).instances == []


@pytest.mark.parametrize(
    ("name", "profile", "ci_profile"),
    [(H100, "1g.10gb", 0), (H100, "1g.20gb", 7), (H100, "2g.20gb", 1), (H100, "7g.80gb", 4)],
)
def test_the_compute_instance_fills_its_gpu_instance(
    name: str,
    profile: str,
    ci_profile: int,
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """The default profile of `nvidia-smi mig -lcip`; REV1 for a double-memory 1g."""
    _, driver, gpu = carve(name)
    row = driver.geometry(gpu).find(profile)
    made = driver.create_gpu_instance(gpu, row.profile_id, row.placements[0])
    assert driver.create_compute_instance(gpu, made.gi_id).profile_id == ci_profile


def test_a_gpu_instance_without_compute_instance_is_seen(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """It has no MIG device, so walking devices would leak it (facts/mig.md#bugs)."""
    _, driver, gpu = carve(H100)
    made = driver.create_gpu_instance(gpu, 9, Placement(4, 4))
    assert driver.instances(gpu) == [made]
    assert made.compute == ()


def test_what_hardware_refuses(carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]) -> None:
    """Taken, illegal, unknown, MIG off: each with its own fault."""
    _, driver, gpu = carve(H100)
    driver.create_gpu_instance(gpu, 9, Placement(4, 4))

    with pytest.raises(NoRoom, match="Insufficient Resources"):
        driver.create_gpu_instance(gpu, 19, Placement(5, 1))
    with pytest.raises(DriverFault, match="Invalid Argument"):
        driver.create_gpu_instance(gpu, 9, Placement(3, 4))
    with pytest.raises(DriverFault, match="Invalid Argument"):
        driver.create_gpu_instance(gpu, 99, Placement(0, 1))


def test_mig_mode_off_refuses_to_create(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """NOT_SUPPORTED, and nothing is made."""
    _, driver, gpu = carve(H100, on=False)
    with pytest.raises(DriverFault, match="Not Supported"):
        driver.create_gpu_instance(gpu, 9, Placement(4, 4))


def test_persistence_is_read(carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]) -> None:
    """As the machine has it; a driver that does not tell is no fault, other refusals are."""
    machine, driver, gpu = carve(H100)
    assert driver.persistence(gpu) is True
    machine.tree.set_persistence(on=False)
    assert driver.persistence(gpu) is False
    machine.faults.set([Rule("nvmlDeviceGetPersistenceMode", "error:NOT_SUPPORTED")])
    assert driver.persistence(gpu) is None
    machine.faults.set([Rule("nvmlDeviceGetPersistenceMode", "error:UNKNOWN")])
    with pytest.raises(DriverFault, match="read persistence mode"):
        driver.persistence(gpu)


def test_busy_instances(carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]) -> None:
    """A client keeps its compute instance, a compute instance its GPU instance."""
    machine, driver, gpu = carve(H100)
    made = driver.create_gpu_instance(gpu, 9, Placement(4, 4))
    compute = driver.create_compute_instance(gpu, made.gi_id)
    with pytest.raises(InstanceBusy, match="In use"):
        driver.destroy_gpu_instance(gpu, made.gi_id)
    machine.hold(os.getpid(), compute.uuid)
    assert driver.processes(gpu) == [(os.getpid(), made.gi_id)]
    with pytest.raises(InstanceBusy, match="In use"):
        driver.destroy_compute_instance(gpu, made.gi_id, compute.ci_id)
    machine.let_go(os.getpid())
    driver.destroy_compute_instance(gpu, made.gi_id, compute.ci_id)
    driver.destroy_gpu_instance(gpu, made.gi_id)


def test_destroying_what_is_gone_is_no_error(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """Teardown is repeated after crashes."""
    _, driver, gpu = carve(H100)
    driver.destroy_gpu_instance(gpu, 3)
    driver.destroy_compute_instance(gpu, 3, 0)
    made = driver.create_gpu_instance(gpu, 9, Placement(4, 4))
    driver.destroy_compute_instance(gpu, made.gi_id, 0)
    off = driver.set_mig_mode
    driver.destroy_gpu_instance(gpu, made.gi_id)
    driver.destroy_gpu_instance(off(gpu, on=False), made.gi_id)


def test_a_process_on_the_whole_gpu_blocks_partitioning(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """The first instance is when the driver really partitions (facts/mig.md#mode)."""
    machine, driver, gpu = carve(H100)
    machine.hold(os.getpid(), gpu.uuid)
    assert driver.processes(gpu) == [(os.getpid(), None)]
    with pytest.raises(InstanceBusy):
        driver.create_gpu_instance(gpu, 9, Placement(4, 4))


def test_mig_mode_is_read_back(carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]) -> None:
    """SetMigMode succeeds while the mode stays: that is a fault with the outcome in it."""
    machine, driver, gpu = carve(A100, on=False)
    machine.hold(os.getpid(), gpu.uuid)
    with pytest.raises(InstanceBusy, match="switch MIG mode on: In use"):
        driver.set_mig_mode(gpu, on=True)
    assert (driver.gpu(gpu.uuid).mig_mode, driver.gpu(gpu.uuid).mig_pending) == (False, True)
    machine.let_go(os.getpid())
    machine.faults.set([Rule("nvmlDeviceSetMigMode", "activation:RESET_REQUIRED")])
    with pytest.raises(DriverFault, match="reset the GPU"):
        driver.set_mig_mode(gpu, on=True)


@pytest.mark.parametrize(
    ("name", "resetless"), [(A100, False), (A30, False), (H100, True), (RTX, True)]
)
def test_architectures(
    name: str, resetless: bool, carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]]
) -> None:
    """Hopper and later switch MIG mode without a reset."""
    assert carve(name, on=False)[2].resetless is resetless


def test_a_lost_gpu_does_not_hide_the_others(tmp_path: Path) -> None:
    """The survey shows the rest; a list that must be whole is a fault."""
    machine = build_machine(tmp_path / "sim", H100, H100)
    machine.lose(0)
    driver = NvmlDriver(Library(machine.root))
    try:
        gpus, faults = driver.survey()
        assert [gpu.minor for gpu in gpus] == [1]
        assert isinstance(faults[0], GpuLost)
        with pytest.raises(GpuLost, match="dmesg"):
            driver.gpus()
        assert driver.gpu(machine.gpus[1]["uuid"]).minor == 1
        with pytest.raises(GpuLost):
            driver.gpu(machine.gpus[0]["uuid"])
    finally:
        driver.close()


def test_drivers_before_the_v2_calls(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No name in the answer: it is derived from memory shares, and agrees with NVIDIA's."""
    from slurm_mig.simulator.signatures import SIGNATURES

    for function in [name for name in SIGNATURES if name.endswith("ProfileInfoV")]:
        monkeypatch.delitem(SIGNATURES, function)
    for name in (A100, H100, A30, RTX):
        _, driver, gpu = carve(name, on=False)
        told = [str(row.name) for row in driver.geometry(gpu).profiles]
        assert set(told) == {str(row.name) for row in geometry_of(name).profiles}


@pytest.mark.parametrize("key", KNOWN)
def test_nominal_sizes(key: str) -> None:
    """The rule that names follow gives every published name whose memory is published."""
    product = catalog.find(key)
    total = product.row["total_memory_mib"]
    if total is None:
        pytest.skip(f"total memory of {key} is not published")
    for row in product.geometry().profiles:
        if row.memory_mib is not None:
            assert nominal_gb(row.memory_mib, total << 20) == row.name.memory_gb


def test_no_library() -> None:
    """Said with what to do about it."""
    if _hardware():
        pytest.skip("this machine has a libnvidia-ml.so.1")
    with pytest.raises(DriverMissing, match=r"\[driver\] table"):
        NvmlDriver()


def test_without_root(public_tmp: Path) -> None:
    """The driver's refusal names the remedy; nothing is made."""
    machine = build_machine(public_tmp / "sim", H100)
    with machine.change(0) as board:
        board.set_mode(True, busy=False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            driver = NvmlDriver(Library(machine.root))
            os.seteuid(64001)
            gpu = driver.gpus()[0]
            try:
                driver.geometry(gpu)
            except NotPermitted as fault:
                code = 0 if "run as root" in str(fault) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert machine.board(0).instances == []


def test_instances_are_listed_once_under_a_lock(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """Until something is changed from here; outside the block each question is asked anew."""
    machine, driver, gpu = carve(H100)
    counted = Rule("nvmlDeviceGetGpuInstances", "hang:0", skip=1 << 20)
    machine.faults.set([counted])

    def lists() -> int:
        before = machine.faults.rules()[0].seen
        driver.instances(gpu)
        return machine.faults.rules()[0].seen - before

    whole = lists()
    assert whole == lists() > 0
    with driver.believing(gpu.uuid):
        assert (lists(), lists()) == (whole, 0)
        made = driver.create_gpu_instance(gpu, 19, Placement(0, 1))
        assert (lists(), lists()) == (whole, 0)
        driver.create_compute_instance(gpu, made.gi_id)
        assert (lists(), lists()) == (whole, 0)
        driver.destroy_compute_instance(gpu, made.gi_id, 0)
        assert (lists(), lists()) == (whole, 0)
        driver.destroy_gpu_instance(gpu, made.gi_id)
        assert (lists(), lists()) == (whole, 0)
    assert whole == lists()


def test_a_second_opinion_that_differs_ends_the_belief(
    carve: Callable[..., tuple[Machine, NvmlDriver, Gpu]],
) -> None:
    """A list that hid something for a moment is not believed any longer than that moment."""
    machine, driver, gpu = carve(H100)
    with driver.believing(gpu.uuid):
        assert driver.instances(gpu) == []
        with machine.change(0) as board:
            made = board.create(19, Placement(0, 1), busy=False)
        assert driver.instances(gpu) == []
        found = driver.instance(gpu, made.gi_id)
        assert driver.instances(gpu) == [found]


def test_only_the_gpus_that_are_asked_for_are_described(tmp_path: Path) -> None:
    machine = build_machine(tmp_path / "sim", *[H100] * 4)
    with closing(NvmlDriver(Library(machine.root))) as driver:
        machine.faults.set([Rule("nvmlDeviceGetMinorNumber", "hang:0", skip=1 << 20)])
        found, faults = driver.survey({2})
        assert ([gpu.minor for gpu in found], faults) == ([2], [])
        assert machine.faults.rules()[0].seen == 1
        machine.faults.set([])
        assert [gpu.minor for gpu in driver.survey({1, 7})[0]] == [1]
