"""The simulated library as a file: any program's calls get there and back by the real ABI."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pynvml  # noqa: TID251  # the library is tested below pynvml
import pytest

from slurm_mig.errors import NotPermitted
from slurm_mig.sandbox.prerequisites import place
from slurm_mig.simulator.library import Library
from slurm_mig.simulator.shared import NAME, build
from slurm_mig.simulator.signatures import SIGNATURES, UNTOLD
from tests.kit import recording
from tests.kit.gpus import H100
from tests.kit.site import build_machine
from tests.kit.users import as_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.simulator import Machine
    from tests.kit.site import Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler"),
]

TOP = Path(__file__).parents[2]

#: What nvitop 1.7.2 and gpustat 1.1.1 ask for, by the names that pynvml 13.615 looks up.
ASKED_BY_TOOLS = """
    nvmlInitWithFlags nvmlInit_v2 nvmlShutdown nvmlErrorString nvmlSystemGetDriverVersion
    nvmlDeviceGetCount_v2 nvmlDeviceGetHandleByIndex_v2
    nvmlDeviceGetHandleByUUID nvmlDeviceGetHandleByPciBusId_v2 nvmlDeviceGetIndex
    nvmlDeviceGetUUID nvmlDeviceGetName nvmlDeviceGetPciInfo_v3 nvmlDeviceGetMemoryInfo
    nvmlDeviceGetMemoryInfo_v2 nvmlDeviceGetBAR1MemoryInfo nvmlDeviceGetUtilizationRates
    nvmlDeviceGetEncoderUtilization nvmlDeviceGetDecoderUtilization nvmlDeviceGetFanSpeed
    nvmlDeviceGetTemperature nvmlDeviceGetPowerUsage nvmlDeviceGetEnforcedPowerLimit
    nvmlDeviceGetPowerManagementLimit nvmlDeviceGetPerformanceState nvmlDeviceGetClockInfo
    nvmlDeviceGetMaxClockInfo nvmlDeviceGetPcieThroughput nvmlDeviceGetFieldValues
    nvmlDeviceGetDisplayActive nvmlDeviceGetDisplayMode nvmlDeviceGetPersistenceMode
    nvmlDeviceGetComputeMode nvmlDeviceGetTotalEccErrors nvmlDeviceGetCudaComputeCapability
    nvmlDeviceGetSerial nvmlDeviceGetMigMode nvmlDeviceGetMaxMigDeviceCount
    nvmlDeviceGetMigDeviceHandleByIndex nvmlDeviceGetDeviceHandleFromMigDeviceHandle
    nvmlDeviceIsMigDeviceHandle nvmlDeviceGetGpuInstanceId nvmlDeviceGetComputeInstanceId
    nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v3
    nvmlDeviceGetMPSComputeRunningProcesses_v3 nvmlDeviceGetProcessUtilization
    nvmlDeviceGetDriverModel_v2
""".split()  # noqa: SIM905  # forty lines less


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One machine for all: the compiler takes half a second."""
    with tempfile.TemporaryDirectory(prefix="smig-", dir=place()) as scratch:
        Path(scratch).chmod(0o755)
        made = build_machine(Path(scratch) / "sim", H100)
        build(made.root)
        yield made


def loading(machine: Machine, script: str) -> Any:
    """What a program prints as JSON that loads libnvidia-ml.so.1 as every program does."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, pynvml as n\n{script}"],
        env={"LD_LIBRARY_PATH": str(build(machine.root)), "PYTHONPATH": str(TOP)},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_calls_that_make_and_destroy_by_the_real_abi(machine: Machine) -> None:
    """By pynvml, which knows nothing of us."""
    told = loading(machine, """
n.nvmlInit()
device = n.nvmlDeviceGetHandleByIndex(0)
status = n.nvmlDeviceSetMigMode(device, 1)
where = n.c_nvmlGpuInstancePlacement_t(4, 4)
gi = n.nvmlDeviceCreateGpuInstanceWithPlacement(device, 9, n.byref(where))
ci = n.nvmlGpuInstanceCreateComputeInstance(gi, 2)
info = n.nvmlComputeInstanceGetInfo(ci)
mig = n.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)
told = [status, n.nvmlGpuInstanceGetInfo(gi).id, info.id, n.nvmlDeviceGetUUID(info.device)]
told += [n.nvmlDeviceGetUUID(mig), n.nvmlDeviceGetMemoryInfo(mig).total >> 20]
try:
    n.nvmlGpuInstanceDestroy(gi)
except n.NVMLError_InUse:
    told.append("in use")
n.nvmlComputeInstanceDestroy(ci)
n.nvmlGpuInstanceDestroy(gi)
told.append(n.nvmlDeviceSetMigMode(device, 0))
n.nvmlShutdown()
print(json.dumps(told))
""")  # fmt: skip
    assert told[:3] == [0, 2, 0]
    assert told[3] == told[4]
    assert told[3].startswith("MIG-")
    assert told[5:] == [40448, "in use", 0]
    assert machine.board(0).instances == []


def test_every_answer_is_the_same_as_without_the_abi(machine: Machine) -> None:
    told = loading(machine, "from tests.kit.recording import answers; print(json.dumps(answers()))")
    pynvml.nvmlLib = Library(machine.root)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        heard = json.loads(json.dumps(recording.answers()))
    finally:
        pynvml.nvmlLib = None
        pynvml._nvmlGetFunctionPointer_cache.clear()
    assert {key: (told[key], heard[key]) for key in heard if told[key] != heard[key]} == {}


def test_a_library_for_every_program(machine: Machine) -> None:
    """Whatever it does: without a session, with nowhere to write to, after a fork, with threads."""
    told = loading(machine, """
import ctypes, os, threading
lib = ctypes.CDLL("libnvidia-ml.so.1")
lib.nvmlErrorString.restype = ctypes.c_char_p
count = ctypes.byref(ctypes.c_uint())
told = [lib.nvmlDeviceGetCount_v2(count), lib.nvmlErrorString(19).decode()]
told += [lib.nvmlInit_v2(), lib.nvmlInitWithFlags(0), lib.nvmlDeviceGetCount_v2(None)]
children = [os.fork()]
if not children[0]:
    os._exit(lib.nvmlDeviceGetCount_v2(count))
told.append(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
def ask():
    for _ in range(50):
        told.append(lib.nvmlDeviceGetCount_v2(count))
threads = [threading.Thread(target=ask) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
told[6:] = sorted(set(told[6:]))
told += [lib.nvmlShutdown(), lib.nvmlDeviceGetCount_v2(count), lib.nvmlShutdown()]
told.append(lib.nvmlShutdown())
try:
    os.wait()
except ChildProcessError:
    told.append("no child of ours")
print(json.dumps(told))
""")  # fmt: skip
    assert told == [
        1, "In use by another client",  # no session
        0, 0, 2,  # started twice; a NULL
        1,  # the child has none
        0,  # threads
        0, 0, 0, 1,  # two sessions end
        "no child of ours",
    ]  # fmt: skip


def test_what_peoples_tools_ask_for_is_there() -> None:
    """Nvitop and gpustat stop, or show nothing, where a function is missing."""
    assert [name for name in ASKED_BY_TOOLS if name not in SIGNATURES | UNTOLD] == []


def test_what_is_not_told_is_not_supported(machine: Machine) -> None:
    lib = Library(machine.root)
    pynvml.nvmlLib = lib
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        for name in UNTOLD:
            zeros = [0] * (len(UNTOLD[name].split()) - 1)
            assert getattr(lib, name)(device, *zeros) == pynvml.NVML_ERROR_NOT_SUPPORTED, name
        pynvml.nvmlShutdown()
    finally:
        pynvml.nvmlLib = None
        pynvml._nvmlGetFunctionPointer_cache.clear()


def test_a_user_gets_what_root_has_built(public_tmp: Path) -> None:
    made = build_machine(public_tmp / "sim", H100)
    refused = as_user(64001, lambda: _kind(lambda: build(made.root)))
    assert refused == NotPermitted.__name__
    assert ctypes.CDLL(str(build(made.root) / NAME))
    assert as_user(64001, lambda: str(build(made.root))) == str(made.root / "lib")


def _kind(work: Callable[[], object]) -> str:
    try:
        work()
    except NotPermitted as fault:
        return type(fault).__name__
    return ""


def test_a_shell_that_finds_it(make_site: Callable[..., Site]) -> None:
    site = make_site(H100)
    show = "echo $LD_LIBRARY_PATH"
    done = site.cli("simulator", "shell", str(site.machine.root), "sh", "-c", show)
    assert done.stdout == f"{site.machine.root}/lib\n"
    assert os.access(site.machine.root / "lib" / NAME, os.X_OK)


# -- monitoring tools, by their own rules ----------------------------------------------

#: As plazonic/nvidia_gpu_prometheus_exporter, which jobstats uses, goes through devices: the file
#: of a device's UUID, else, of a whole GPU, that of its ordinal; two numbers, job and uid.
JOBSTATS = """
import os
def owner(*names):
    for name in names:
        if os.path.exists(f"{directory}/{name}"):
            return [int(word) for word in open(f"{directory}/{name}").read().split()[:2]]
    return [0, 0]
n.nvmlInit()
told = {}
for i in range(n.nvmlDeviceGetCount()):
    device = n.nvmlDeviceGetHandleByIndex(i)
    told[f"ordinal {i}"] = owner(n.nvmlDeviceGetUUID(device), str(i))
    if n.nvmlDeviceGetMigMode(device)[0]:
        for j in range(n.nvmlDeviceGetMaxMigDeviceCount(device)):
            try:
                mig = n.nvmlDeviceGetMigDeviceHandleByIndex(device, j)
            except n.NVMLError_NotFound:
                continue
            told[n.nvmlDeviceGetUUID(mig)] = owner(n.nvmlDeviceGetUUID(mig))
print(json.dumps(told))
"""


def test_jobstats_finds_the_job_of_a_slice(
    make_site: Callable[..., Site], public_tmp: Path
) -> None:
    site = make_site(H100, config=f'[feed]\ngpustat = "{public_tmp}/gpustat"\n')
    assert site.prolog(7, "slurm-mig=1,3g.40gb/9/14:1").returncode == 0
    (uuid,) = site.node().ledger.open_of_job(7)[0].uuids
    told = loading(site.machine, f"directory = '{public_tmp}/gpustat'\n{JOBSTATS}")
    assert told == {"ordinal 0": [0, 0], uuid: [7, 64001]}
