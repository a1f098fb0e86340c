"""`slurm-mig simulator`: make simulated hardware, look at it, do things to it."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path

import click

from slurm_mig.cli._node import tell_longer, use_descriptions
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json, table
from slurm_mig.cli._usage import Group, OnePath
from slurm_mig.errors import UsageFault
from slurm_mig.fleet.resolve import parse_gpu
from slurm_mig.mig import catalog
from slurm_mig.node.node import require_root
from slurm_mig.simulator import Machine, create
from slurm_mig.simulator.client import devices, open_devices
from slurm_mig.simulator.faults import EFFECTS, Rule
from slurm_mig.simulator.machine import DEFAULT_DRIVER, OPERATIONS
from slurm_mig.simulator.shared import build
from slurm_mig.simulator.signatures import SIGNATURES
from slurm_mig.simulator.spec import gpu_spec

DIRECTORY = click.argument("directory", type=OnePath(path_type=Path, file_okay=False))

#: The words after DIRECTORY are the program's own, options too.
ITS_OWN = {"allow_interspersed_args": False}


@click.group(cls=Group)
def command() -> None:
    """Simulated GPUs, for trying and testing without any.

    Select them with `library = "simulator:DIR"` in the [driver] table of the
    configuration.
    """


@command.command("create")
@DIRECTORY
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    required=True,
    metavar="NAME:COUNT",
    help="GPUs to have; a file that describes one serves for its name.",
)
@click.option(
    "--latency",
    "latencies",
    multiple=True,
    metavar="OPERATION=MS",
    help=f"Time an operation takes: {', '.join(OPERATIONS)}.",
)
@click.option(
    "--driver", default=DEFAULT_DRIVER, show_default=True, help="Driver version to report."
)
def create_machine(
    directory: Path, gpus: tuple[str, ...], latencies: tuple[str, ...], driver: str
) -> None:
    """Make a simulated machine in an empty or new directory."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+){1,3}", driver):
        raise UsageFault(f"driver {driver!r}: write a version such as {DEFAULT_DRIVER}")
    use_descriptions()
    wanted = [parse_gpu(text) for text in gpus]
    tell_longer(name for name, _ in wanted)
    specs = [gpu_spec(catalog.find(name), name, count) for name, count in wanted]
    machine = create(
        directory.absolute(), specs, latency_ms=dict(map(_latency, latencies)), driver=driver
    )
    click.echo(f"{len(machine.gpus)} GPUs in {directory}; use them with:")
    click.echo(f'[driver]\nlibrary = "simulator:{directory.absolute()}"')


def _latency(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        time_ms = float(value)
    except ValueError:
        time_ms = -1.0
    if not 0 <= time_ms <= 600_000:
        raise UsageFault(f"latency {text!r}: write OPERATION=MS with 0 to 600000 ms")
    return name, time_ms


@command.command("show")
@DIRECTORY
@json_option
def show(directory: Path, as_json: bool) -> None:
    """Show the hardware's own truth, without driver, ledger or Slurm."""
    machine = Machine(directory)
    boards = [(facts, machine.board(index)) for index, facts in enumerate(machine.gpus)]
    if as_json:
        print_json([facts | board.to_dict() for facts, board in boards])
        return
    table(
        ("GPU", "NAME", "MIG", "INSTANCES"),
        [
            (
                facts["minor"],
                facts["name"],
                "lost" if board.lost else "on" if board.mig_current else "off",
                ", ".join(
                    f"{board.row(item.profile_id).name}@{item.start}" for item in board.instances
                )
                or "-",
            )
            for facts, board in boards
        ],
    )


@command.command("module")
@DIRECTORY
@click.option("--persistence/--no-persistence", default=None, help="As nvidia-persistenced does.")
@click.option("--modeset/--no-modeset", default=None, help="Load nvidia_drm with or without it.")
@click.option(
    "--modify/--no-modify",
    default=None,
    help="NVreg_ModifyDeviceFiles, as /proc/driver/nvidia/params shows it.",
)
def module(
    directory: Path,
    persistence: bool | None,
    modeset: bool | None,
    modify: bool | None,
) -> None:
    """Set how the kernel modules were loaded: what `slurm-mig doctor` looks at."""
    require_root()
    tree = Machine(directory).tree
    if persistence is not None:
        tree.set_persistence(on=persistence)
    if modeset is not None:
        tree.load_drm(modeset=modeset)
    if modify is not None:
        tree.set_modify(on=modify)


@command.command("hold")
@DIRECTORY
@click.option("--pid", type=click.IntRange(1), required=True, help="A living process.")
@click.option("--uuid", required=True, help="MIG UUID or GPU UUID it shall use.")
def hold(directory: Path, pid: int, uuid: str) -> None:
    """Let a process use an instance, or a whole GPU, until it ends."""
    machine = Machine(directory)
    known = [facts["uuid"] for facts in machine.gpus]
    known += [device.uuid for device in devices(machine) if device.uuid not in known]
    if uuid not in known:
        raise UsageFault(f"no device {uuid!r} in {directory}; there are {', '.join(known)}")
    machine.hold(pid, uuid)


@command.command("run", context_settings=ITS_OWN)
@DIRECTORY
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
def run(directory: Path, program: tuple[str, ...]) -> None:
    """Run a program as a CUDA process would run: open what CUDA_VISIBLE_DEVICES names, hold it."""
    machine = Machine(directory)
    for device in open_devices(machine, os.environ.get("CUDA_VISIBLE_DEVICES", "")):
        click.echo(f"CUDA device: {device.name} ({device.uuid})")
        machine.hold(os.getpid(), device.uuid)
    _become(program)


@command.command("shell", context_settings=ITS_OWN)
@DIRECTORY
@click.argument("program", nargs=-1, type=click.UNPROCESSED)
def shell(directory: Path, program: tuple[str, ...]) -> None:
    """Run a shell, or a program, that finds the simulated library as libnvidia-ml.so.1.

    Any program does: nvitop, gpustat, what is written in Go or C. The library is compiled by cc
    when root first asks for it.
    """
    Machine(directory)
    place = build(directory.absolute())
    there = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{place}:{there}" if there else str(place)
    _become(program or (os.environ.get("SHELL") or "/bin/sh",))


def _become(program: tuple[str, ...]) -> None:
    sys.stdout.flush()
    try:
        os.execvp(program[0], program)  # noqa: S606  # the user's own program
    except (OSError, ValueError) as problem:
        raise UsageFault(f"run {program[0]!r}: {problem}") from problem


@command.command("reboot")
@DIRECTORY
def reboot(directory: Path) -> None:
    """Power cycle: new boot id, no instances; MIG mode stays on Ampere only."""
    require_root()
    Machine(directory).reboot()


@command.command("reload")
@DIRECTORY
def reload(directory: Path) -> None:
    """Unload and load the driver: no instances, the same boot id."""
    require_root()
    Machine(directory).reload_driver()


@command.command("lose")
@DIRECTORY
@click.option("--gpu", "index", type=int, required=True, help="NVML index.")
def lose(directory: Path, index: int) -> None:
    """Let a GPU fall off the bus until the next reboot."""
    require_root()
    machine = Machine(directory)
    if index not in range(len(machine.gpus)):
        raise UsageFault(f"no GPU {index} in {directory}; there are {len(machine.gpus)}")
    machine.lose(index)


@command.command("fault")
@DIRECTORY
@click.option("--call", help="NVML function, or * for every one.")
@click.option("--effect", help=f"One of {', '.join(EFFECTS)}.")
@click.option(
    "--skip", type=click.IntRange(0), default=0, show_default=True, help="Calls to let pass first."
)
@click.option(
    "--times",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Calls to strike; 0 for all that follow.",
)
@click.option("--clear", is_flag=True, help="Take all faults out again.")
def fault(
    directory: Path,
    call: str | None,
    effect: str | None,
    skip: int,
    times: int,
    clear: bool,
) -> None:
    """Inject a fault into NVML calls of every process."""
    require_root()
    machine = Machine(directory)
    if clear:
        machine.faults.set([])
    elif call and effect:
        _check_call(call)
        machine.faults.add(Rule(call, effect, skip, times))
    else:
        raise UsageFault("name --call and --effect, or --clear")


def _check_call(call: str) -> None:
    if call != "*" and call not in SIGNATURES:
        close = difflib.get_close_matches(call, SIGNATURES, 3)
        known = ", ".join(close or SIGNATURES)
        raise UsageFault(
            f"no NVML function {call!r} in the simulator; "
            f"{'did you mean' if close else 'allowed are'} {known}, or * for every one"
        )
