"""SM6xx and SM7xx: the NVIDIA side of this node, and what systemd starts. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, NOTE, WARNING, Problem, check
from slurm_mig.doctor.gres_checks import BOOT_UNIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.facts import Facts, GpuFacts

#: First release with UUIDs of the form MIG-<uuid> (facts/mig.md#ids).
UUID_SINCE: Final = (470, 42, 1)

#: Programs that are known to keep GPUs from being changed (facts/mig.md#mode), by the first 15
#: characters of their name, as /proc has it; and what to do about each.
HOLDERS: Final = {
    "nv-hostengine": "systemctl stop nvidia-dcgm while MIG mode is switched",
    "dcgm-exporter": "let it connect to nv-hostengine (-r) and open no GPU itself",
    "nvsm": "systemctl stop nvsm while MIG mode is switched",
    "Xorg": "no display manager on a GPU node: systemctl set-default multi-user.target",
    "gnome-shell": "no display manager on a GPU node: systemctl set-default multi-user.target",
    "nvidia-device-p": "no Kubernetes device plugin beside Slurm on the node",
}

TIMER: Final = "slurm-mig-reconcile.timer"

#: Seconds that systemd gives a unit to stop unless told otherwise (systemd-system.conf(5)).
STOP_DEFAULT: Final = 90.0

#: Words of a time span (systemd.time(7)), in seconds.
_SPANS: Final = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "ms": 0.001}

#: What a unit that lays out MIG by itself has in its text.
_PARTITIONER: Final = re.compile(
    r"^Exec\w*=.*(mig-parted|mig-manager|migedit|nvidia-smi\s+mig\b)", re.MULTILINE
)

_NODE: Final = ("node", "driver")


def _managed(facts: Facts) -> Iterator[GpuFacts]:
    return (gpu for gpu in facts.gpus if gpu.managed)


@check(
    "SM601",
    ERROR,
    "the NVIDIA driver or a GPU does not answer",
    needs=("node",),
    page="docs/exit-codes.md",
)
def driver(facts: Facts) -> Iterator[Problem]:
    """Every job with a GPU fails and drains the node."""
    for fault in facts.driver_faults:
        cause, _, remedy = fault.partition("; ")
        yield Problem(cause, remedy or "see dmesg")


@check(
    "SM602",
    ERROR,
    "the driver is older than 470.42.01",
    needs=_NODE,
    page="NVIDIA MIG user guide: Device Nodes and Capabilities",
)
def version(facts: Facts) -> Iterator[Problem]:
    """Its MIG devices have no UUID of their own, which is what jobs are given."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", facts.driver_version))
    if numbers and numbers < UUID_SINCE:
        yield Problem(f"driver {facts.driver_version}", "install 470.42.01 or later")


@check(
    "SM603",
    ERROR,
    "a managed GPU is not in MIG mode and needs a reset for it",
    needs=_NODE,
    page="docs/admin.md: Setting up; NVIDIA MIG user guide: Enable MIG Mode",
)
def mode(facts: Facts) -> Iterator[Problem]:
    """The Prolog switches it only where no reset is needed: here it fails and drains the node."""
    for gpu in _managed(facts):
        if gpu.mig_mode is False and gpu.mig_pending is False and not gpu.resetless:
            yield Problem(f"{gpu}: MIG mode is off", f"slurm-mig enable --gpu {gpu.minor}")


@check(
    "SM604",
    ERROR,
    "a change of MIG mode waits for a reset",
    needs=_NODE,
    page="NVIDIA MIG user guide: Enable MIG Mode",
)
def pending(facts: Facts) -> Iterator[Problem]:
    """The GPU is in neither mode for good; the next reset or reboot changes it."""
    for gpu in facts.gpus:
        if gpu.mig_mode != gpu.mig_pending:
            words = {True: "on", False: "off", None: "?"}
            yield Problem(
                f"{gpu}: MIG mode {words[gpu.mig_mode]}, pending {words[gpu.mig_pending]}",
                f"drain the node; nvidia-smi --gpu-reset -i {gpu.uuid}, or reboot",
            )


@check(
    "SM605",
    ERROR,
    "a GPU without MIG is listed as managed",
    needs=("node", "driver", "config"),
    page="docs/admin.md: Configuration",
)
def capable(facts: Facts) -> Iterator[Problem]:
    """Its jobs are left alone by the hooks, and slices are never made on it."""
    if facts.config is None:
        return
    for gpu in facts.gpus:
        if gpu.mig_mode is None and gpu.minor in (facts.config.managed or ()):
            yield Problem(f"{gpu} in {facts.config.path}", "take its minor out of [gpus] managed")


@check(
    "SM606",
    WARNING,
    "instances that no record names",
    needs=("node", "driver", "ledger"),
    page="docs/upgrade.md: After a crash",
)
def foreign(facts: Facts) -> Iterator[Problem]:
    """slurm-mig never touches them: Slurm counts room that is not there."""
    for gpu in _managed(facts):
        for text in gpu.foreign:
            yield Problem(f"{gpu}: {text}", f"slurm-mig reset --gpu {gpu.minor} --foreign")


@check(
    "SM607",
    WARNING,
    "persistence mode is off",
    needs=_NODE,
    page="NVIDIA driver persistence; docs/admin.md: Setting up",
)
def persistence(facts: Facts) -> Iterator[Problem]:
    """On Hopper and later MIG mode lasts only while the driver stays loaded for the GPU."""
    for gpu in _managed(facts):
        if gpu.persistence is False:
            yield Problem(str(gpu), "systemctl enable --now nvidia-persistenced")


@check(
    "SM608",
    WARNING,
    "a program that is known to block changes has a GPU open",
    needs=("node", "processes"),
    page="NVIDIA MIG user guide: Enable MIG Mode; docs/jobs.md: Whole GPUs",
)
def holders(facts: Facts) -> Iterator[Problem]:
    """Switching MIG mode, a reset, the first instance or a teardown may fail with In use."""
    for item in facts.holders:
        advice = next(
            (text for name, text in HOLDERS.items() if item.command.startswith(name)), None
        )
        if advice:
            yield Problem(f"pid {item.pid} {item.command} has {item.device} open", advice)


@check(
    "SM609",
    WARNING,
    "nvidia_drm runs with modeset on GPUs that need a reset",
    needs=("node", "driver", "kernel"),
    page="NVIDIA/mig-parted issues 181, 182",
)
def drm(facts: Facts) -> Iterator[Problem]:
    """It holds the GPU: the reset that switching MIG mode needs on Ampere is refused."""
    if facts.kernel and facts.kernel.modeset and any(not g.resetless for g in _managed(facts)):
        yield Problem(
            "/sys/module/nvidia_drm/parameters/modeset is Y",
            "options nvidia-drm modeset=0 in /etc/modprobe.d/, then rebuild the initramfs",
        )


@check(
    "SM610",
    NOTE,
    "the driver changes device nodes by itself",
    needs=("node", "kernel"),
    page="docs/security.md: What it does not do",
)
def modify(facts: Facts) -> Iterator[Problem]:
    """For some milliseconds after its creation an instance's nodes can be opened by any user."""
    if facts.kernel and facts.kernel.params.get("ModifyDeviceFiles") == "1":
        yield Problem(
            f"{facts.kernel.proc}/driver/nvidia/params: ModifyDeviceFiles: 1",
            "options nvidia NVreg_ModifyDeviceFiles=0 in /etc/modprobe.d/; /dev/nvidia* must "
            "then be made at boot by something else",
        )


@check(
    "SM611",
    ERROR,
    "a managed GPU has no device node",
    needs=("node", "driver", "kernel"),
    page="docs/admin.md: What it touches",
)
def device_nodes(facts: Facts) -> Iterator[Problem]:
    """slurmd waits for the file and then does not start; jobs cannot open the GPU."""
    for gpu in _managed(facts):
        if facts.kernel and gpu.minor not in facts.kernel.device_nodes:
            yield Problem(f"{gpu}: no /dev/nvidia{gpu.minor}", f"nvidia-modprobe -c {gpu.minor}")


@check(
    "SM612",
    ERROR,
    "the kernel module shows no MIG capabilities",
    needs=("node", "kernel"),
    page="NVIDIA MIG user guide: Device Nodes and Capabilities",
)
def capabilities(facts: Facts) -> Iterator[Problem]:
    """No instance can be closed to other users: every Prolog that carves fails."""
    kernel = facts.kernel
    if kernel is None:
        return
    if not kernel.capabilities:
        yield Problem(f"no {kernel.proc}/driver/nvidia/capabilities/mig", "load the nvidia module")
    elif not kernel.caps_major:
        yield Problem(f"{kernel.proc}/devices: no nvidia-caps", "load the nvidia module anew")


@check(
    "SM613",
    ERROR,
    "users can open the capability that manages MIG",
    needs=("node", "kernel"),
    page="NVIDIA MIG user guide: Device Nodes and Capabilities; docs/security.md",
)
def config_node(facts: Facts) -> Iterator[Problem]:
    """Whoever can read mig/config's node can make and destroy everybody's instances."""
    node = facts.kernel.config_node if facts.kernel else None
    if node and not node.missing and (node.uid != 0 or node.mode & 0o077):
        yield Problem(
            f"{node.path}: owned by uid {node.uid}, mode {node.mode:04o}",
            f"chown root:root {node.path}; chmod 0400 {node.path}",
        )


# -- systemd ------------------------------------------------------------------------


@check(
    "SM701",
    WARNING,
    "a unit lays out MIG at boot",
    needs=("node", "units"),
    page="docs/admin.md: Setting up; NVIDIA/mig-parted",
)
def partitioner(facts: Facts) -> Iterator[Problem]:
    """What it makes is in no record and takes up room; run again, it clears jobs' slices, too."""
    for unit in facts.units:
        match = _PARTITIONER.search(unit.text)
        if match or unit.name == "nvidia-mig-manager.service":
            yield Problem(
                f"{unit.path}: {match[0] if match else 'enabled'}",
                f"systemctl disable {unit.name}",
            )


@check(
    "SM702",
    WARNING,
    "slurm-mig's boot unit is not enabled",
    needs=("node", "units"),
    page="docs/upgrade.md: At boot",
)
def boot_unit(facts: Facts) -> Iterator[Problem]:
    """After a reboot records of the last boot stay open, and MIG mode off, until a hook comes."""
    if not any(unit.name == BOOT_UNIT for unit in facts.units):
        yield Problem(f"{BOOT_UNIT} is in no target", f"systemctl enable {BOOT_UNIT}")


@check(
    "SM703",
    WARNING,
    "slurm-mig's boot unit does not come before slurmd",
    needs=("node", "units"),
    page="docs/upgrade.md: At boot; systemd.unit(5): Before=",
)
def boot_order(facts: Facts) -> Iterator[Problem]:
    """slurmd could start a job on a GPU that is not looked after yet."""
    before = re.compile(r"^Before=.*\bslurmd\.service\b", re.MULTILINE)
    for unit in facts.units:
        # One that cannot be started at all is SM705's.
        if unit.name == BOOT_UNIT and not unit.fault and not before.search(unit.text):
            yield Problem(f"{unit.path}: no Before=slurmd.service", "Before=slurmd.service")


@check(
    "SM704",
    WARNING,
    "systemd gives slurmd less time to stop than a hook may take",
    needs=("node", "units", "config"),
    page="docs/admin.md: What a hook does; systemd.service(5): TimeoutStopSec",
)
def stop_timeout(facts: Facts) -> Iterator[Problem]:
    """Stopped in a Prolog slurmd is killed, and its job shows RUNNING without a process."""
    if facts.config is None:
        return
    worst = max(facts.config.prolog_worst, facts.config.epilog_worst)
    for unit in facts.units:
        if unit.name == "slurmd.service" and (limit := stop_limit(unit.text)) <= worst:
            yield Problem(
                f"{unit.path}: TimeoutStopSec is {limit:g} s; the longest hook {worst:g} s",
                f"TimeoutStopSec={worst + 10:.0f} in the [Service] part of a drop-in: "
                "`slurm-mig install` writes one",
            )


@check(
    "SM705",
    ERROR,
    "an enabled unit of slurm-mig's cannot be started",
    needs=("machine", "units"),
    page="docs/admin.md: Getting rid of it; systemd.unit(5): Requires=",
)
def startable(facts: Facts) -> Iterator[Problem]:
    """slurmd requires the boot unit, and does not start without it; a timer does nothing."""
    for unit in facts.units:
        if unit.fault:
            yield Problem(
                f"{unit.path}: {unit.fault}",
                f"systemctl disable {unit.name}, or slurm-mig install; unmask it if it is masked",
            )


@check(
    "SM706",
    NOTE,
    "slurm-mig's timer for reconcile is not enabled",
    needs=("node", "units"),
    page="docs/admin.md: Installing",
)
def timer(facts: Facts) -> Iterator[Problem]:
    """On a node without jobs nobody looks after stuck slices, or what a lost job left."""
    if not any(unit.name == TIMER for unit in facts.units):
        yield Problem(f"{TIMER} is in no target", f"systemctl enable --now {TIMER}")


def stop_limit(text: str) -> float:
    """Seconds until a unit that is stopped is killed; infinite where it never is."""
    found = re.findall(r"^Timeout(?:Stop)?Sec=(.*)$", text, re.MULTILINE)
    if not found:
        return STOP_DEFAULT
    last = found[-1].strip()
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", last)
    seconds = sum(float(number) * _SPANS.get(word, 1) for number, word in parts)
    return seconds if parts and seconds else float("inf")
