"""`slurm-mig acceptance`: try everything on one idle GPU, and compare it with the simulator."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig.cli._node import choose_gpus, open_node
from slurm_mig.cli._options import Number
from slurm_mig.cli._print import folded, table
from slurm_mig.cli._usage import NewFile, OnePath
from slurm_mig.config import load
from slurm_mig.errors import Unaccepted, UsageFault
from slurm_mig.mig.description import slug
from slurm_mig.node.node import require_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.acceptance.record import Difference
    from slurm_mig.acceptance.run import Outcome

PLAN = """\
On {gpu}, {name}, driver {driver}, this will:
  make and take down every profile at every placement, and fill full layouts;
  switch MIG mode off and on ({mode});
  run Prolog, TaskProlog and Epilog as jobs of nobody's, with a ledger of their own;
  try as other users to open what is not theirs; keep a slice busy; kill a Prolog.
It touches this GPU and no other, and puts back what it found. Nothing was done yet.
Drain the node, and then say which GPU you mean:
  slurm-mig acceptance --gpu {minor} --confirm {uuid}"""


@click.command()
@click.option("-i", "--gpu", "gpu", help="Device minor or UUID of an idle GPU.")
@click.option("--confirm", metavar="UUID", help="The same GPU's UUID; without it nothing is done.")
@click.option(
    "--out",
    type=NewFile(),
    help="The file to write; acceptance-MODEL.json here if not given.",
)
@click.option(
    "--patience",
    type=Number(0.1, 600),
    default=60.0,
    show_default=True,
    help="Seconds for one call into the driver, at most that for an instance in use.",
)
@click.option("--driver-only", is_flag=True, help="Without hooks and users: the driver alone.")
@click.option(
    "--replay",
    "file",
    type=OnePath(path_type=Path, dir_okay=False),
    help="No GPU: play a file again on the simulator.",
)
def command(
    gpu: str | None,
    confirm: str | None,
    out: Path | None,
    patience: float,
    driver_only: bool,  # click passes flags
    file: Path | None,
) -> None:
    """Prove one idle GPU: try what this software relies on, and compare with the simulator."""
    if (gpu is None) == (file is None):
        raise UsageFault("give --gpu, or --replay with a file")
    require_root()
    if file is not None:
        _replay(file)
    elif gpu is not None:
        _accept(_confirmed(gpu, confirm), out, patience, jobs=not driver_only)


def _confirmed(text: str, confirm: str | None) -> tuple[str, str]:
    """UUID and name of the GPU that is meant; else what would be done is all that is."""
    with open_node(look=True) as node:
        chosen, _ = choose_gpus(node, text)
        if len(chosen) != 1:
            raise UsageFault("name one GPU, by its device minor or UUID")
        gpu = chosen[0]
        if confirm is None:
            mode = "needs no reset" if gpu.resetless else "not here: it needs a reset"
            click.echo(
                PLAN.format(
                    gpu=f"GPU {gpu.minor}",
                    name=gpu.name,
                    driver=node.driver.driver_version(),
                    mode=mode,
                    minor=gpu.minor,
                    uuid=gpu.uuid,
                )
            )
            raise UsageFault("nothing was done without --confirm")
    if confirm != gpu.uuid:
        raise UsageFault(f"--confirm names {confirm}, GPU {gpu.minor} is {gpu.uuid}")
    return gpu.uuid, gpu.name


def _accept(gpu: tuple[str, str], out: Path | None, patience: float, *, jobs: bool) -> None:
    from slurm_mig.acceptance.run import Acceptance
    from slurm_mig.system.replace import write_output

    uuid, name = gpu
    path = out or Path(f"acceptance-{slug(name)}.json")
    config = load(click.get_current_context().obj)
    outcome = Acceptance(config, _say, patience=patience, jobs=jobs).run(uuid)
    write_output(path, outcome.text)
    _print(outcome, path)
    _end(outcome)


def _say(text: str) -> None:
    click.echo(f"slurm-mig: {text}", err=True)


def _print(outcome: Outcome, path: Path) -> None:
    click.echo(f"{outcome.gpu}, driver {outcome.driver}, against {outcome.against}")
    parts = dict.fromkeys(step.part for step in outcome.steps)
    table(
        ("PART", "STEPS", "AS EXPECTED", "MS"),
        [
            (
                part,
                len(mine := [step for step in outcome.steps if step.part == part]),
                len(mine) - len({d.step for d in outcome.differences if d.part == part}),
                round(sum(step.ms for step in mine)),
            )
            for part in parts
        ],
    )
    changing = {
        name: took
        for name, took in outcome.calls.items()
        if re.search("Create|Destroy|SetMigMode", name)
    }
    table(
        ("CALL", "TIMES", "MEDIAN MS", "WORST MS"),
        [
            (name, took["calls"], took["median_ms"], took["worst_ms"])
            for name, took in changing.items()
        ],
    )
    print_differences(outcome.differences)
    for line in outcome.left:
        click.echo(f"not restored: {line}")
    click.echo(f"{outcome.ended}; {'restored' if not outcome.left else 'NOT restored'}")
    click.echo(f"{path} has no serial numbers and no names of this machine: please send it.")


def print_differences(found: Sequence[Difference]) -> None:
    """A line for each; what is only a number of the profile table is marked so."""
    if not found:
        click.echo("no difference")
        return
    click.echo(f"{len(found)} differences, GPU / simulator:")
    for item in found:
        mark = "number " if item.number else ""
        what = f", {item.what}" if item.what else ""
        click.echo(
            folded(f"  {mark}{item.part} {item.step}{what}: {item.gpu} / {item.simulator}", 4)
        )


def _end(outcome: Outcome) -> None:
    if outcome.signal is not None:
        raise SystemExit(128 + outcome.signal)
    if not outcome.accepted:
        odd = [item for item in outcome.differences if not item.number]
        raise Unaccepted(
            f"{outcome.ended}; {len(odd)} differences",
            remedy="see the output and docs/acceptance.md",
        )


def _replay(file: Path) -> None:
    from slurm_mig.acceptance.run import replay

    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError) as problem:
        raise UsageFault(f"read {file}: {problem}") from problem
    facts, found = replay(text, str(file))
    click.echo(f"{facts['gpu']}, driver {facts['driver']}: {facts['ended']}")
    print_differences(found)
    if any(not item.number for item in found):
        raise Unaccepted(
            f"the simulator answers otherwise in {len(found)} things",
            remedy=f"see the output; {os.fspath(file)} is what the GPU answered",
        )
