"""What users type: the forms of static MIG, the options of everyday scripts, several GPUs.

Collected from public documents and job scripts of computing centres, and restated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: A batch script of one step that has what the job has.
STEP: Final = "srun ./show"


@dataclass(frozen=True, slots=True)
class Form:
    """One thing that a user types.

    `options` belong to `how`: sbatch, srun, salloc or `pty` (srun on a terminal). `script` is
    what a batch script does after it has shown what it sees itself; `head` are its #SBATCH
    lines. `ours` replaces a text in the options where the other world is asked by our own gres.
    """

    group: str
    text: str
    options: tuple[str, ...] = ()
    how: str = "sbatch"
    script: str = STEP
    head: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    ours: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Group and text, which together are unique."""
        return f"{self.group}: {self.text}"


def asked(group: str, text: str, *, script: str = STEP, how: str = "sbatch") -> Form:
    """A form whose text is its options."""
    return Form(group, text, tuple(text.split()), how=how, script=script)


TYPED: Final = (
    "--gres=gpu:1g.10gb:1",
    "--gres=gpu:3g.40gb:1",
    "--gres=gpu:3g.40gb",
    "--gres=gpu:1g.10gb:2",
    "--gres=gpu:1g.10gb=1",
    "--gres=gpu:a100_1g.5gb:1",
    "--gres=gpu:h100_3g.40gb:1",
    "--gres=gpu:a30_2g.12gb:1",
    "--gres=gpu:H100_3g.40gb:1",
    "--gres=gpu:nvidia_h100_80gb_hbm3_1g.10gb:1",
    "--gres=gpu:3g.39gb:1",
    "--gres=gpu:h100_1g.10gb:1,gpu:h100_3g.40gb:1",
    "--gpus=a100_3g.20gb:1",
    "-G h100_1g.10gb:1",
    "-G h100_1g.10gb",
    "--gpus=h100_1g.10gb:2",
    "--gpus-per-node=h100_3g.40gb:1",
    "--gpus-per-node=h100_3g.40gb",
    "-N2 -n2 --gpus-per-node=h100_1g.10gb:2",
    "-N2 -n2 --gpus=h100_1g.10gb:2",
    "-n2 --gpus-per-task=h100_1g.10gb:1",
    "-N2 -n4 --gpus-per-task=h100_1g.10gb:1",
    "-N1 -n2 --gpus-per-task=h100_1g.10gb:2",
    "--sockets-per-node=1 --gpus-per-socket=h100_1g.10gb:1",
    "--tres-per-task=gres/gpu:h100_1g.10gb=1 -n2",
    "--gres=gpu:a100_1g.5gb:1,nvme:20",
    "--gres=nvme:20,gpu:a100_1g.5gb:1",
    "--gpus=1g.20gb:1 --cpus-per-gpu=2",
    "--gpus=1g.10gb:2 --cpus-per-gpu=3",
    "--gpus=1g.20gb:1 --mem-per-gpu=800M",
    "--gres=gpu:1g.10gb:2 --mem-per-gpu=800M",
    "--gres=gpu:1g.10gb:2 --cpus-per-gpu=3",
    "--gpus=1g.10gb:2 --ntasks-per-gpu=1",
    "--gpus=1g.10gb:2 --ntasks-per-gpu=2",
    "-p gpudef --gres=gpu:1g.10gb:1",
    "-p gpudef --gres=gpu:1g.10gb:2",
    "-p gpudef --gpus=1g.10gb:2",
    "-p gpudef -n2 --gpus-per-task=1g.10gb:1",
    "-p mig --gres=gpu:1",
    "-p mig --gres=gpu:2",
    "-p mig --gres=gpu",
    "-p mig --gpus=1",
    "-p mig --gpus-per-node=1",
    "-p mig -n2 --gpus-per-task=1",
    "-p mig -n2 --ntasks-per-gpu=1",
    "-p mig -n4 --ntasks-per-gpu=2",
    "--constraint=mig --gres=gpu:1",
    "--gres=gpu:a100l.1",
    "--gres=gpu:a100l.1:2",
    "--gres=gpu:mig_24gb:1",
    "--gres=gpu:mig-1g.10gb:1",
    "--gres=gpu:h100-40g:1",
    "--gpus=h100-40g:1",
    "--gres=gpu:9g.90gb:1",
    "--gres=gpu:h100_1g.10gb:99",
    "--gres=gpu:h100_1g.10gb:0",
    "-w h1 --gres=gpu:a100_1g.5gb:1",
    "--gres=gpu:1g.10gb:1,",
    "--gres=gpu:1g.10gb:1,,nvme:1",
    "--gres=,gpu:1g.10gb:1",
    "--gres=gpu:h100_1g.10gb:1,",
    "--gpus=h100_1g.10gb:1,",
    "-p mig --gres=gpu:1,",
)


def variables() -> Iterator[Form]:
    """The same by variables, #SBATCH lines, OnDemand's `native` and other commands."""
    for how, name, value in (
        ("sbatch", "SBATCH_GRES", "gpu:h100_1g.10gb:1"),
        ("sbatch", "SBATCH_GPUS", "h100_1g.10gb:1"),
        ("sbatch", "SBATCH_GPUS_PER_NODE", "h100_1g.10gb:1"),
        ("srun", "SLURM_GRES", "gpu:h100_1g.10gb:1"),
        ("srun", "SLURM_GPUS", "h100_1g.10gb:1"),
        ("srun", "SLURM_GPUS_PER_NODE", "h100_1g.10gb:1"),
        ("salloc", "SALLOC_GRES", "gpu:h100_1g.10gb:1"),
        ("salloc", "SALLOC_GPUS", "h100_1g.10gb:1"),
    ):
        yield Form("variable", f"{name}={value}", how=how, environ={name: value})
    for head in (
        ("--gres=gpu:h100_1g.10gb:1",),
        ("--gpus=h100_1g.10gb:1", "--cpus-per-task=2"),
        ("--gpus-per-node=h100_3g.40gb:1", "--mem=600"),
    ):
        yield Form("#SBATCH", " ".join(head), head=head)
    for native in (
        ("--gres=gpu:h100_1g.10gb:1",),
        ("--gres", "gpu:h100_1g.10gb:1", "-n", "1", "-c", "2"),
        ("-N", "1", "-n", "2", "--gpus-per-node", "h100_1g.10gb:1", "--mem", "500M"),
    ):
        # As OnDemand's adapter calls sbatch: its own options first, a form's `native` behind.
        own = ("-J", "ood", "-t", "10", "--export", "NONE", *native)
        yield Form("OnDemand", " ".join(native), own)
    for how in ("srun", "salloc", "pty"):
        for text in ("--gres=gpu:h100_1g.10gb:1", "--gpus=h100_1g.10gb:1", "-p mig --gpus=1"):
            yield Form(how, text, tuple(text.split()), how=how)
    yield asked("srun", "-n2 --gpus-per-task=h100_1g.10gb:1", how="srun")
    yield asked("srun", "-n2 --gpus=h100_1g.10gb:2 --cpus-per-gpu=2", how="srun")
    yield asked("srun", "--gpus=h100_1g.10gb:2 --ntasks-per-gpu=1", how="srun")
    yield asked("srun", "-p gpudef --gres=gpu:1g.10gb:2", how="srun")
    yield asked("srun", "--gpus=h100_1g.10gb:2 --mem-per-gpu=200", how="srun")
    yield asked("salloc", "--gpus=h100_1g.10gb:2 --cpus-per-gpu=2", how="salloc")
    yield asked("salloc", "--gpus=h100_1g.10gb:2 --mem-per-gpu=200", how="salloc")
    yield asked("salloc", "--gpus=h100_1g.10gb:2 --ntasks-per-gpu=1", how="salloc")
    yield asked("salloc", "--gres=gpu:h100_1g.10gb:2 --cpus-per-gpu=2", how="salloc")
    yield asked("salloc", "-p gpudef --gpus=1g.10gb:2", how="salloc")


#: Scripts that centres' users have published, restated.
PUBLIC: Final = (
    "-N 1 -c 1 --gres=gpu:1g.10gb:1 -t 02:00",
    "--ntasks=1 --cpus-per-task=2 --nodes=1 --gres=gpu:1g.10gb:1 --mem=8G",
    "--no-requeue --nodes=1 --ntasks-per-node=1 --gres=gpu:1g.20gb --mem=4G --cpus-per-task=8",
    "--gpus-per-node=h100_80gb_hbm3_1g.10gb:2 --mem=1000",
    "--tasks=1 --mem=800 --cpus-per-task=1 --gpus-per-node=h100-2g.20gb --array=0-1",
    "--gpus-per-node H100-2g.20gb:1 --cpus-per-task 4 --mem 620M",
    "--nodes=1 --ntasks=3 --gres=gpu:a100_3g.20gb:3 --cpus-per-task=2 --mem=6G",
    "--gres=gpu:a100_3g.20gb:1 --ntasks=10 --nodes=1 --time=01:00:00",
    "--ntasks=1 --cpus-per-task=4 --gres=gpu:a100_1g.5gb:3 --mem-per-cpu=200",
    "--gres=gpu:1g.20gb:0 --ntasks=1 --cpus-per-task=4",
    "--export=NIL --no-requeue --gres=gpu:1g.10gb:1",
    "--array=0 --gres=gpu:1g.10gb:1 -c 4 --mem 900M --export=ALL,STAGE=eval",
    "-n 4 --mem=2G -N 1 --gres=gpu:1g.10gb:1",
    "--gpus-per-node=h100_3g.40gb:1 --mem=0",
    "--nodes=1 --ntasks-per-node=1 --gpus-per-node=h100_2g.20gb:1 --mem-per-cpu=160",
    "-c 4 --gpus-per-node=h100_2g.20gb:1 --mem=640 --gres=nvme:6",
    "--gpus-per-node=h100_2g.20gb:1 --mem-per-gpu 790",
    "--ntasks-per-node=8 --mem-per-cpu=24 --gres=gpu:3g.39gb:1",
    "-n 4 --ntasks-per-node=4 --ntasks-per-core=1 --nodelist=a1 --gres=gpu:a100_2g.10gb:1",
    "--array=0-3 -n1 -c6 --mem-per-cpu=10 --gpus-per-node=a100_3g.20gb:1 --signal=B:TERM@300",
    "--array=0-1%2 --exclude=h1 --gpus-per-node=nvidia_h100_80gb_hbm3_1g.10gb:1 -c 8 --mem=640",
    "-G h100_1g.10gb:1 --constraint=mig --requeue --open-mode=append --array=0-1%8 --mem=160",
    "--partition=mig --nodes=1 --ntasks-per-node=1 --gpus-per-task=1 --cpus-per-task=4 --mem=160",
    "--cpus-per-task=7 --gpus-per-node=h100_3g.40gb:1 --mem=1000 --hint=nomultithread",
    "--mem=160 --gpus=h100_1g.10gb:1 --cpus-per-task=8 --tasks-per-node=1 --nodes=1",
    "--ntasks=4 --cpus-per-task=3 --mem=640 --gres=gpu:a100_2g.10gb:2",
)
#: The same on a terminal, in srun and in salloc.
PUBLIC_INTERACTIVE: Final = (
    ("pty", "-p mig -G h100_1g.10gb:1"),
    ("pty", "--gres gpu:h100_1g.10gb:1 -N 1 -n 4 --time=30 --mem=200"),
    ("pty", "--gres=gpu:a100_3g.20gb:1 --cpus-per-gpu=9 --mem=600"),
    ("srun", "--mem=350M --gpus=h100_1g.10gb:1"),
    ("salloc", "--time=30 --mem=160 --cpus-per-task=2 --gpus=a100_1g.5gb:1"),
    ("salloc", "--time=2:30:00 --mem=240 --gpus-per-node=nvidia_h100_80gb_hbm3_1g.10gb:1"),
)

#: Steps in a batch job of two tasks and two slices, and of one.
STEPS: Final = (
    "srun ./show",
    "srun -n1 --gpus=1 ./show",
    "srun -n1 --gres=gpu:1 ./show",
    "srun -n1 --gres=gpu ./show",
    "srun -n1 --gres=gpu:2 ./show",
    "srun -n2 --gpus-per-task=1 ./show",
    "srun -n1 --gpus-per-node=1 ./show",
    "srun -n2 --ntasks-per-gpu=1 ./show",
    "srun -n1 --gres=gpu:h100_1g.10gb:1 ./show",
    "srun -n1 --gpus=h100_1g.10gb:1 ./show",
    "srun -n2 --gpus-per-task=h100_1g.10gb:1 ./show",
    "srun -n1 --exact --gres=gpu:1 ./show",
    "srun -n1 --exact --gpus=1 -c1 ./show",
    "srun -n1 --overlap ./show",
    "srun -n1 --overlap --gpus=1 ./show",
    "srun -n1 --gres=none ./show",
    "srun -n1 --gpus=0 ./show",
    "srun -n1 --gres=gpu:0 ./show",
    "srun -n2 --gpu-bind=none ./show",
    "srun -n2 --gpu-bind=closest ./show",
    "srun -n2 --gpu-bind=single:1 ./show",
    "srun -n2 --gpu-bind=per_task:1 ./show",
    "srun -n2 --gpu-bind=map_gpu:0,1 ./show",
    "SLURM_GPU_BIND=none srun -n2 ./show",
    "srun -n1 --gres=gpu:3 ./show",
    "srun -n1 --gpus=h100_3g.40gb:1 ./show",
    "srun -n1 --gpus=1 --cpus-per-gpu=1 ./show",
    "srun -n1 -c2 --mem=100 ./show",
)

JOBS: Final = (
    "-n2 --gres=gpu:h100_1g.10gb:2",
    "-n2 --gpus=h100_1g.10gb:2",
    "-n2 --gpus-per-task=h100_1g.10gb:1",
)

#: Options that stand in half of all scripts, beside one slice.
OPTIONS: Final = (
    "-c 4",
    "--cpus-per-task=2 -n2",
    "--tres-per-task=cpu=2",
    "--tres-per-task=cpu:2",
    "--gpus=0",
    "--gpus-per-node=0",
    "--mem=500",
    "--mem=0",
    "--mem-per-cpu=200",
    "-n3",
    "-N 1-2",
    "-N1 --ntasks-per-node=2",
    "--exclusive",
    "--exclusive=user",
    "--oversubscribe",
    "--overcommit -n4",
    "--hint=nomultithread",
    "--hint=compute_bound",
    "--distribution=block:cyclic",
    "-m cyclic",
    "--gres-flags=enforce-binding",
    "--gres-flags=disable-binding",
    "--gpu-bind=closest",
    "--gpu-bind=none",
    "--gpu-bind=single:1",
    "--gpu-bind=map_gpu:0",
    "--gpu-bind=per_task:1",
    "--gpu-freq=low",
    "--licenses=matlab:1",
    "--array=0-3%2",
    "--dependency=singleton",
    "--signal=B:USR1@60",
    "--signal=TERM@30",
    "--test-only",
    "--wrap=./show",
    "--export=NONE",
    "--export=NIL",
    "--export=ALL,X=1",
    "--chdir=/tmp",
    "--no-kill",
    "--switches=1",
    "--switches=1@00:01",
    "--stepmgr",
    "--requeue",
    "--no-requeue",
    "--nice=10",
    "--time=5 --time-min=1",
    "--begin=now",
    "--comment=mine",
    "--mail-type=NONE",
    "--threads-per-core=1",
    "--cores-per-socket=2",
    "--contiguous",
    "--spread-job",
    "--use-min-nodes",
    "--tmp=0",
    "--get-user-env",
    "--constraint=mig",
    "-x h1",
    "-w h2",
    "--wait-all-nodes=1",
    "--kill-on-invalid-dep=yes",
    "--profile=none",
    "--acctg-freq=30",
    "--core-spec=0",
    "--reboot=no",
)

#: And options of a step, in a job of two tasks with two slices.
STEP_OPTIONS: Final = (
    "--mpi=none",
    "--mpi=pmi2",
    "--mpi=pmix",
    "--overlap",
    "--exact",
    "-c 1",
    "--cpus-per-task=1",
    "--tres-per-task=cpu=1",
    "--kill-on-bad-exit=1",
    "--label",
    "--unbuffered",
    "--cpu-bind=none",
    "--mem-bind=none",
    "--distribution=cyclic",
    "--hint=nomultithread",
    "--export=NONE",
    "--chdir=/tmp",
    "--gres-flags=allow-task-sharing",
    "--gpu-freq=low",
    "--wait=0",
    "--multi-prog prog.conf",
)

ONE: Final = "gpu:h100_1g.10gb:1"
TWO: Final = "gpu:h100_1g.10gb:2"
#: Our own gres in place of static MIG's.
NATIVE: Final = ("gpu:h100_", "mig:h100_")


def beside() -> Iterator[Form]:
    """Every option beside a slice: in static MIG's words, and in ours."""
    for group, ours in (("option", None), ("option of mig", NATIVE)):
        for text in OPTIONS:
            words = (f"--gres={ONE}", *text.split())
            yield Form(group, text, words, ours=ours)
        for text in ("--gres=gpu:0,", "--gres=nvme:1,"):
            yield Form(group, f"{text}...", (f"{text}{ONE}",), ours=ours)
        yield Form(group, "--pty", (f"--gres={ONE}",), how="pty", ours=ours)
        for text in STEP_OPTIONS:
            words = ("-n2", f"--gres={TWO}")
            show = "" if "multi-prog" in text else " ./show"
            yield Form(group, f"srun {text}", words, script=f"srun {text}{show}", ours=ours)


#: More than the slices of one GPU.
SEVERAL: Final = (
    "-N1 -n8 --gres=gpu:h100_3g.40gb:8",
    "-N2 --ntasks-per-node=4 --gres=gpu:h100_3g.40gb:4",
    "-N1 -n2 --gres=gpu:h100_7g.80gb:2",
    "-N1 -n1 --gres=gpu:h100_7g.80gb:2",
    "-N1 --gres=gpu:h100_2g.20gb:4",
    "-N1 --gres=gpu:4g.40gb:2,gpu:3g.40gb:2",
    "-N1 --gres=gpu:h100_1g.10gb:10",
    "-N1 -n4 --gpus-per-task=h100_3g.40gb:1",
    "-N1 --gpus=h100_3g.40gb:3",
    "--gpus-per-node=h100_3g.40gb:3",
)


def several() -> Iterator[Form]:
    """Typed as static MIG has it, and as ours; and steps on parts of it."""
    for text in SEVERAL:
        yield asked("several GPUs", text)
        if "--gres" in text:
            ours = ("gpu:", "mig:")
            yield Form("several GPUs of mig", text, tuple(text.split()), ours=ours)
    for step in ("--exact --gres=gpu:2", "--exact --gpus=1", "--gpus-per-task=1"):
        text = f"-N1 -n4 --gres=gpu:h100_3g.40gb:4, srun -n1 {step}"
        words = ("-N1", "-n4", "--gres=gpu:h100_3g.40gb:4")
        yield Form("several GPUs", text, words, script=f"srun -n1 {step} ./show")


def every() -> list[Form]:
    """All of them, in the order of the table."""
    forms = [asked("typed", text) for text in TYPED]
    forms += variables()
    forms += [asked("published", text) for text in PUBLIC]
    forms += [asked(f"published {how}", text, how=how) for how, text in PUBLIC_INTERACTIVE]
    for job in JOBS:
        forms += [Form("step", f"{job}: {step}", tuple(job.split()), script=step) for step in STEPS]
    salloc = ("-n2", "--gres=gpu:h100_1g.10gb:2")
    forms += [
        Form("step in salloc", step, salloc, how="salloc", script=step)
        for step in STEPS
        if "=" in step
    ][:8]
    forms += beside()
    forms += several()
    return forms
