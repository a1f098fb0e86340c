"""What one hook process costs, against Python that only imports its two libraries.

Run as root: `make bench`, or `.venv/bin/python bench/prolog_cost.py [ROUNDS]`.
The hooks are the installed ones, on one simulated H100 without latency: this is
our own cost, the hardware's comes on top.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from _runs import in_turn, once, report

from slurm_mig.mig import catalog
from slurm_mig.mig.allocation import RELEASED
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.simulator import create
from slurm_mig.simulator.spec import gpu_spec
from slurm_mig.state.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from _runs import Cost

NAME = "NVIDIA H100 80GB HBM3"
BARE = 'python3 -I -c "import pynvml, filelock"'


def build(root: Path) -> None:
    """A node: simulated GPU in MIG mode, configuration, installed hooks."""
    machine = create(root / "sim", [gpu_spec(catalog.find(NAME), NAME, 1)])
    with machine.change(0) as board:
        board.set_mode(True, busy=False)
    config = root / "config.toml"
    config.write_text(
        f'[driver]\nlibrary = "simulator:{root}/sim"\n'
        f'[paths]\nstate = "{root}/state"\nrun = "{root}/run"\n'
    )
    install_hooks(root / "hooks", Path(sys.executable), config, root / "run")


def hook(root: Path, name: str, gpus: str = "0") -> Callable[[int], Cost]:
    """One run of a hook, for a job of its own."""

    def run(number: int) -> Cost:
        environ = {
            "SLURM_JOB_ID": str(1000 + number),
            "SLURM_JOB_UID": "65534",
            "SLURM_JOB_GID": "65534",
            "SLURM_JOB_USER": "nobody",
            "SLURM_JOB_RESTART_COUNT": "0",
            "SLURMD_NODENAME": "bench",
            "SLURM_JOB_GPUS": gpus,
            "SLURM_JOB_COMMENT": "slurm-mig=1,1g.10gb/19/4:1" if gpus else "",
        }
        return once([str(root / "hooks" / name)], environ)

    return run


def step_of_two_slices(root: Path) -> Callable[[int], Cost]:
    """The TaskProlog of a step that asks for one of its job's two slices, each a new step."""
    leases = root / "leases"
    leases.mkdir(mode=0o700)
    (leases / "lock").touch()
    (root / "run/env").mkdir(parents=True)
    (root / "run/env/7.0").write_text(
        "slice MIG-0 1g.10gb 0 GPU-0\nslice MIG-1 1g.10gb 0 GPU-0\n"
        f"shards 8\nshare 4 1g.10gb:1\nbind task\nleases {leases}\n"
    )
    environ = {"SLURM_JOB_ID": "7", "SLURM_SHARDS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "1"}
    hook = str(root / "hooks/task_prolog")
    return lambda number: once([hook], environ | {"SLURM_STEP_ID": str(number)})


def check(root: Path, rounds: int) -> None:
    """A benchmark of hooks that refuse would measure something else."""
    ledger = Ledger(root / "state/ledger.db")
    done = [item for item in ledger.history() if item.phase == RELEASED and item.uuids]
    ledger.close()
    if len(done) != rounds + 1:
        raise SystemExit(f"{len(done)} slices carved and taken down, expected {rounds + 1}")


def python(code: str) -> Callable[[int], Cost]:
    """Python with one line of code."""
    return lambda _: once([sys.executable, "-I", "-c", code], {})


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    root = Path(tempfile.mkdtemp(prefix="smig-bench-"))
    try:
        build(root)
        costs = in_turn(
            {
                BARE: python("import pynvml, filelock"),
                "python3 -I -c pass": python("pass"),
                "Prolog, carves 1g.10gb": hook(root, "prolog"),
                "TaskProlog, its one slice": hook(root, "task_prolog"),
                "Epilog, takes it down": hook(root, "epilog"),
                "TaskProlog, one of two by lease": step_of_two_slices(root),
                "sh -c :": lambda _: once(["/bin/sh", "-c", ":"], {}),
                "Prolog, job without GPU": hook(root, "prolog", gpus=""),
                "Epilog, job without GPU": hook(root, "epilog", gpus=""),
                "TaskProlog, job without slices": hook(root, "task_prolog"),
            },
            rounds,
        )
        report(costs, BARE)
        check(root, rounds)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
