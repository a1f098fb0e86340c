"""The C side: pynvml's own calls against it, its own structs, its own errors."""

from __future__ import annotations

import ctypes
import os
import time
from ctypes import byref, c_uint, sizeof
from typing import TYPE_CHECKING, Any

import pynvml  # noqa: TID251  # the library is tested below pynvml
import pytest

from slurm_mig.simulator import abi
from slurm_mig.simulator.faults import Rule
from slurm_mig.simulator.library import Library
from slurm_mig.simulator.signatures import SIGNATURES, UNTOLD
from tests.kit.gpus import H100
from tests.kit.site import build_machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slurm_mig.simulator import Machine

pytestmark = pytest.mark.root


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = build_machine(tmp_path / "sim", H100, H100)
    with made.change(0) as board:
        board.set_mode(True, busy=False)
    return made


@pytest.fixture
def device(machine: Machine) -> Iterator[Any]:
    pynvml.nvmlLib = Library(machine.root)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    pynvml.nvmlLib = None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (abi.Placement, pynvml.c_nvmlGpuInstancePlacement_t),
        (abi.GpuInstanceProfileInfo, pynvml.c_nvmlGpuInstanceProfileInfo_t),
        (abi.GpuInstanceProfileInfoV2, pynvml.c_nvmlGpuInstanceProfileInfo_v2_t),
        (abi.GpuInstanceInfo, pynvml.c_nvmlGpuInstanceInfo_t),
        (abi.ComputeInstanceProfileInfo, pynvml.c_nvmlComputeInstanceProfileInfo_t),
        (abi.ComputeInstanceProfileInfoV2, pynvml.c_nvmlComputeInstanceProfileInfo_v2_t),
        (abi.ComputeInstanceInfo, pynvml.c_nvmlComputeInstanceInfo_t),
        (abi.ProcessInfo, pynvml.c_nvmlProcessInfo_t),
        (abi.Attributes, pynvml.c_nvmlDeviceAttributes),
        (abi.Memory, pynvml.c_nvmlMemory_t),
        (abi.PciInfo, pynvml.nvmlPciInfo_t),
    ],
)
def test_structs_are_laid_out_as_pynvml_has_them(ours: Any, theirs: Any) -> None:
    """Same size, same offsets, field by field."""
    assert sizeof(ours) == sizeof(theirs)
    mine = [getattr(ours, name).offset for name, *_ in ours._fields_]
    other = [getattr(theirs, name).offset for name, *_ in theirs._fields_]
    assert mine == other


def test_every_signature_has_a_function_that_pynvml_or_nvml_knows(machine: Machine) -> None:
    """No function is claimed and missing."""
    library = Library(machine.root)
    for name in (*SIGNATURES, *UNTOLD):
        assert callable(getattr(library, name))
    with pytest.raises(AttributeError):
        library.nvmlDeviceGetAPIRestriction  # noqa: B018


def test_a_missing_function_is_what_an_old_driver_shows(device: Any) -> None:
    """Pynvml turns it into FUNCTION_NOT_FOUND."""
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetBrand(device)


def test_identity_calls(device: Any, machine: Machine) -> None:
    """Names, ids and sizes through pynvml's own buffers."""
    facts = machine.gpus[0]
    assert pynvml.nvmlDeviceGetName(device) == H100
    assert pynvml.nvmlDeviceGetUUID(device) == facts["uuid"]
    assert pynvml.nvmlDeviceGetMinorNumber(device) == 0
    assert pynvml.nvmlDeviceGetCount() == 2
    assert pynvml.nvmlDeviceGetCudaComputeCapability(device) == (9, 0)
    assert pynvml.nvmlDeviceGetMemoryInfo(device).total == 81559 << 20
    assert pynvml.nvmlDeviceGetPciInfo(device).busId == "00000000:01:00.0"
    assert pynvml.nvmlSystemGetDriverVersion() == "580.95.05"
    assert pynvml.nvmlErrorString(19) == "In use by another client"
    assert pynvml.nvmlDeviceGetMigMode(device) == [1, 1]


@pytest.mark.parametrize("text", ["00000000:02:00.0", "0000:02:00.0", "0:2:0", "02:00.0"])
def test_a_bus_address_in_each_form_of_nvml(text: str, device: Any) -> None:
    """In sysfs it has a domain of four digits; mig-parted found no GPU here by it."""
    found = pynvml.nvmlDeviceGetHandleByPciBusId(text)
    assert pynvml.nvmlDeviceGetMinorNumber(found) == 1


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("0000:ff:00.0", pynvml.NVML_ERROR_NOT_FOUND),
        ("0001:02:00.0", pynvml.NVML_ERROR_NOT_FOUND),
        ("02", pynvml.NVML_ERROR_INVALID_ARGUMENT),
        ("hello", pynvml.NVML_ERROR_INVALID_ARGUMENT),
    ],
)
def test_a_bus_address_of_nobody(text: str, error: int, device: Any) -> None:
    """As the H100 and H200 that were read answered, and as nvml.h says."""
    with pytest.raises(pynvml.NVMLError) as refused:
        pynvml.nvmlDeviceGetHandleByPciBusId(text)
    assert refused.value.value == error


def carve(device: Any, start: int = 4) -> tuple[Any, Any]:
    place = pynvml.c_nvmlGpuInstancePlacement_t(start, 4)
    gi = pynvml.nvmlDeviceCreateGpuInstanceWithPlacement(device, 9, byref(place))
    return gi, pynvml.nvmlGpuInstanceCreateComputeInstance(gi, 2)


def test_mig_devices(device: Any) -> None:
    """By index, by UUID, back to their GPU, with attributes of their own."""
    gi, ci = carve(device)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
    assert pynvml.nvmlDeviceGetName(mig) == f"{H100} MIG 3g.40gb"
    uuid = pynvml.nvmlDeviceGetUUID(mig)
    assert uuid == pynvml.nvmlDeviceGetUUID(pynvml.nvmlComputeInstanceGetInfo(ci).device)
    assert pynvml.nvmlDeviceGetGpuInstanceId(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == 2
    assert pynvml.nvmlDeviceIsMigDeviceHandle(mig).value == 1
    parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)
    assert pynvml.nvmlDeviceGetIndex(parent) == 0
    attributes = pynvml.nvmlDeviceGetAttributes_v2(mig)
    assert (attributes.multiprocessorCount, attributes.memorySizeMB) == (60, 40448)
    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(device) == 7
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 1)
    assert pynvml.nvmlGpuInstanceGetInfo(gi).placement.start == 4


def test_handles_of_the_dead(device: Any) -> None:
    """INVALID_ARGUMENT, even when an heir has the same ids."""
    gi, ci = carve(device)
    mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
    pynvml.nvmlComputeInstanceDestroy(ci)
    pynvml.nvmlGpuInstanceDestroy(gi)
    heir, _ = carve(device)
    for call, handle in (
        (pynvml.nvmlGpuInstanceGetInfo, gi),
        (pynvml.nvmlGpuInstanceDestroy, gi),
        (pynvml.nvmlComputeInstanceGetInfo, ci),
        (pynvml.nvmlDeviceGetUUID, mig),
    ):
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            call(handle)
    assert pynvml.nvmlGpuInstanceGetInfo(heir).id == 2


def test_enumeration_ends_with_invalid_argument(device: Any) -> None:
    """NOT_SUPPORTED for a profile this GPU lacks, INVALID_ARGUMENT past the last."""
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, 10)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, 99)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetHandleByIndex(2)


def test_a_wrong_struct_version(device: Any) -> None:
    """The version word is checked, as the driver does."""
    info = pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
    info.version = 1
    call = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetGpuInstanceProfileInfoV")
    assert call(device, 0, byref(info)) == 25


def test_an_array_that_is_too_small(device: Any) -> None:
    """INSUFFICIENT_SIZE, with the number that is needed."""
    count = c_uint(3)
    array = (pynvml.c_nvmlGpuInstancePlacement_t * 3)()
    with pytest.raises(pynvml.NVMLError_InsufficientSize):
        pynvml.nvmlDeviceGetGpuInstancePossiblePlacements(device, 19, array, byref(count))
    assert count.value == 7


def test_a_session_is_needed(machine: Machine) -> None:
    """UNINITIALIZED before init and after shutdown."""
    library = Library(machine.root)
    count = c_uint()
    assert library.nvmlDeviceGetCount_v2(byref(count)) == 1
    assert library.nvmlShutdown() == 1


def test_a_handle_from_nowhere(device: Any) -> None:
    """Not a crash."""
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetName(ctypes.cast(12345, pynvml.c_nvmlDevice_t))


def test_a_defect_of_the_simulator_is_never_success(
    device: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An exception in a callback would otherwise be 0 to ctypes."""
    monkeypatch.setattr("slurm_mig.simulator.library._read_uint", lambda *_: 1 / 0)
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlDeviceGetGpuInstanceProfileInfo(device, 0)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_injected_codes_and_lies(device: Any, machine: Machine) -> None:
    """A code is answered without doing anything; a lie claims to have done it."""
    gi, ci = carve(device)
    machine.faults.set([Rule("nvmlComputeInstanceDestroy", "error:UNKNOWN")])
    with pytest.raises(pynvml.NVMLError_Unknown):
        pynvml.nvmlComputeInstanceDestroy(ci)
    pynvml.nvmlComputeInstanceDestroy(ci)
    machine.faults.set([Rule("nvmlGpuInstanceDestroy", "lie")])
    pynvml.nvmlGpuInstanceDestroy(gi)
    assert len(machine.board(0).instances) == 1


@pytest.mark.parametrize(("effect", "left"), [("kill-before", 0), ("kill-after", 1)])
def test_killed_at_a_call(device: Any, machine: Machine, effect: str, left: int) -> None:
    """Before it did anything, or when it was done."""
    machine.faults.set([Rule("nvmlDeviceCreateGpuInstanceWithPlacement", effect)])
    pid = os.fork()
    if pid == 0:
        carve(device)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert len(machine.board(0).instances) == left


def test_latency(tmp_path: Path) -> None:
    """An operation takes at least as long as it was told to."""
    machine = build_machine(tmp_path / "slow", H100, latency_ms={"init": 50})
    library = Library(machine.root)
    started = time.monotonic()
    library.nvmlInitWithFlags(0)
    assert time.monotonic() - started >= 0.05


def test_faults_strike_users_too(public_tmp: Path) -> None:
    """Who may not write the rules is struck by them, with a code and not with a traceback."""
    machine = build_machine(public_tmp / "sim", H100)
    machine.faults.set([Rule("nvmlDeviceGetCount_v2", "error:UNKNOWN", skip=0, times=1)])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            library = Library(machine.root)
            os.seteuid(64001)
            count = c_uint()
            library.nvmlInit_v2()
            # Not counted: the file is root's.
            codes = [library.nvmlDeviceGetCount_v2(ctypes.addressof(count)) for _ in range(2)]
            code = 0 if codes == [999, 999] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [rule.seen for rule in machine.faults.rules()] == [0]


def test_codes_by_number_and_gpus_lost_at_a_call(device: Any, machine: Machine) -> None:
    """Also a code that nobody has a name for; and a GPU that goes in the middle."""
    machine.faults.set([Rule("nvmlDeviceGetCount_v2", "error:77")])
    with pytest.raises(pynvml.NVMLError) as caught:
        pynvml.nvmlDeviceGetCount()
    assert caught.value.value == 77
    machine.faults.set([Rule("nvmlDeviceGetMigMode", "lose:0", skip=1)])
    assert pynvml.nvmlDeviceGetMigMode(device) == [1, 1]
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetMigMode(device)
    assert machine.board(0).lost
