"""Differences between static MIG and ours that are meant, each with its reason.

`impossible` is proven not to work; `better` is where static MIG gives less than was asked for
and ours gives it; `ours` is what only somebody who asks by our own gres can meet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Excuse:
    """For forms whose name `form` finds, on releases that `release` finds.

    `gives` has to be found in what ours gave, and `static` in what static MIG did: an excuse
    covers one behaviour, not any.
    """

    kind: str
    form: str
    why: str
    release: str = ""
    gives: str = "^runs"
    static: str = ""


EXCUSES: Final = (
    Excuse(
        "impossible",
        r"^option( of mig)?: --exclusive$",
        "a whole node takes every shard, so that a job with shards, few or all of them, waits "
        "for ever (Resources) on an idle node of 22.05, 24.11 and 26.05; refused",
        gives="^refused",
    ),
    Excuse(
        "impossible",
        r"^option of mig: (srun )?--gpu-freq",
        "the client refuses --gpu-freq without a gres called gpu; beside gpu: words it works",
        gives="^refused",
    ),
    Excuse(
        "better",
        r"(srun|pty|salloc).*--cpus-per-gpu",
        "as many CPUs as asked for (22.05 gives a step of static MIG all of its job's), and "
        "SLURM_CPUS_PER_TASK says how many, too",
        gives=r"^runs.* CPU, [0-9]+ a task",
        static=r"^runs.* CPU, - a task",
    ),
    Excuse(
        "better",
        r"^step: -n2 --gpus-per-task=\S+: srun -n2 --ntasks-per-gpu=1 ",
        "static MIG's steps meet what sbatch leaves behind of tasks' GPUs and fail; ours run",
        static="^step fails",
    ),
    Excuse(
        "better",
        r"^step: -n2 --gpus(-per-task)?=\S+: srun -n1 .*--g(res|pus|pus-per-node)=",
        "static MIG's steps meet the typed request that sbatch leaves behind and fail; ours run",
        static="^step fails",
    ),
    Excuse(
        "better",
        r"^step: -n2 --gpus(-per-task)?=\S+: srun -n1 --g\S+[:=]0 ",
        "static MIG's steps that ask for no GPU get what sbatch leaves behind; ours see none",
        gives="^runs.* task 0: none",
    ),
    Excuse(
        "better",
        r"^option( of mig)?: --gpus(-per-node)?=0$",
        "a wrapper's --gpus=0 beside a slice hides it from static MIG's steps; ours see it",
    ),
    Excuse(
        "better",
        r"typed: --gres=gpu:(3g\.40gb|1g\.10gb=1)$|published: .*--gres=gpu:1g\.20gb --mem",
        "Slurm reads a type that begins with a digit as a count; ours reads the slice",
    ),
    Excuse(
        "better",
        r"^typed: .*--gres=(,\S+|\S+,|\S+,,\S+)$",
        "22.05 refuses what stands empty between commas, later releases and ours pass over it",
        release=r"22\.05",
        static="^refused",
    ),
    Excuse(
        "impossible",
        r"^typed: -N2 -n4 --gpus-per-task=",
        "Slurm puts as many tasks on the first node as it holds, and slices with them; a gres of "
        "each node is as many on each, so ours puts as many tasks on each",
        release=r"24\.11|26\.05",
        static=r"task 3: \S+#3, on node 1 GPU",
    ),
    Excuse(
        "better",
        r"--gpus-per-task=h100_\S+",
        "22.05 binds tasks to GPUs of no type: they see no device list; ours binds each to its own",
        release=r"22\.05",
    ),
    Excuse(
        "better",
        r"^step: -n2 --gpus=\S+: srun -n2 --gpus-per-task=1 ",
        "static MIG's steps meet the typed request that sbatch leaves behind and fail; ours run",
        static="^step fails",
    ),
    Excuse(
        "better",
        r"^step: .*--gpu-bind=map_gpu:0,1 ",
        "Slurm maps GPUs by another count than that of slices and gives the first to all tasks; "
        "ours gives each the one that was asked for",
        gives=r"^runs.*task 0: \S+#0, .*task 1: \S+#1,",
        static=r"^runs.*task 0,1: \S+#0,",
    ),
    Excuse(
        "better",
        r"gpu-bind=none|GPU_BIND=none",
        "22.05 leaves the device list unset; ours names the slices of the step",
        release=r"22\.05",
    ),
    Excuse(
        "ours",
        r"mig: |in salloc|^salloc",
        "asked for by our own gres, or in salloc, whose steps no plugin can tell apart: where a "
        "step has as many slices as tasks each task sees its own, not all of them: CUDA before "
        "R570 uses the first it sees; SLURM_MIG_BIND=none shows all",
        gives=r"^runs.*task 0: \S+#0, .*task 1: \S+#1,",
    ),
)


def excused(form: str, version: str, static: str, ours: str) -> Excuse | None:
    """The excuse for a difference, or None."""
    for excuse in EXCUSES:
        if (
            re.search(excuse.form, form)
            and re.search(excuse.release, version)
            and re.search(excuse.gives, ours)
            and re.search(excuse.static, static)
        ):
            return excuse
    return None
