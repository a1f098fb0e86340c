"""Switching MIG mode, for `enable` and `disable`."""

from __future__ import annotations

import click

from slurm_mig.cli._node import choose_gpus, open_node
from slurm_mig.cli._print import print_json, working
from slurm_mig.errors import SlurmMigError
from slurm_mig.node.node import require_root
from slurm_mig.transaction import by_hand


def switch(chosen: str, *, on: bool, dry_run: bool, as_json: bool) -> None:
    """Switch the mode of the chosen GPUs; the first fault is raised after all were tried."""
    require_root()
    if dry_run:
        _foresee(chosen, on=on, as_json=as_json)
        return
    word = "on" if on else "off"
    done, faults = [], []
    with open_node() as node:
        gpus, lost = choose_gpus(node, chosen)
        for gpu in gpus:
            try:
                with working(f"GPU {gpu.minor}"):
                    now = by_hand.set_mode(node.bench(), gpu, on=on)
            except SlurmMigError as problem:
                faults.append(problem)
                continue
            done.append({"gpu": now.minor, "uuid": now.uuid, "mig_mode": now.mig_mode})
            if not as_json:
                click.echo(f"GPU {now.minor} ({now.name}): MIG mode {word}")
    faults += lost
    if as_json:
        print_json({"gpus": done, "faults": [str(fault) for fault in faults]})
    for fault in faults:
        raise fault


def _foresee(chosen: str, *, on: bool, as_json: bool) -> None:
    """What switching would do to each GPU; Held where it would be refused."""
    rows, faults = [], []
    with open_node(look=True) as node:
        gpus, lost = choose_gpus(node, chosen)
        for gpu in gpus:
            try:
                by_hand.may_set_mode(node.bench(), gpu, on=on)
            except SlurmMigError as problem:
                faults.append(problem)
                continue
            switched = gpu.mig_mode != on
            reset = switched and not gpu.resetless
            rows.append({"gpu": gpu.minor, "uuid": gpu.uuid, "switched": switched, "reset": reset})
    if as_json:
        print_json({"dry_run": True, "gpus": rows, "faults": [str(x) for x in (*faults, *lost)]})
    else:
        word = "on" if on else "off"
        for row in rows:
            what = f"would be switched {word}" if row["switched"] else f"is {word} already"
            how = ", with a reset of the GPU" if row["reset"] else ""
            click.echo(f"GPU {row['gpu']}: MIG mode {what}{how}")
    for fault in (*faults, *lost):
        raise fault
