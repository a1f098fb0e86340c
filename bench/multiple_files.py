"""Whether a job with shards may open every managed GPU of its node, by gres.conf's MultipleFiles.

    sudo .venv/bin/python bench/multiple_files.py

Under ConstrainDevices a job opens the GPU that Slurm chose for its shards, so the node cannot
choose another. One gres record with several device files might let it open them all. Each form
of gres.conf below meets a private Slurm with two GPUs and real device cgroups (v1): what the node
says of itself, and which GPUs the batch script and a step of a shard job can open. Three jobs of 31
shards are sent: two fill the node, the third has to wait. Results: facts/slurm.md#multiplefiles.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from slurm_mig.errors import SandboxFault  # noqa: E402  # of the tree, not of an installed copy
from slurm_mig.sandbox import Cluster, SandboxNode, scratch  # noqa: E402
from slurm_mig.sandbox.cluster import USERS  # noqa: E402

GPU: Final = "NVIDIA H100 80GB HBM3"
BOTH: Final = "MultipleFiles={0},{1}"
SHARDS: Final = ("Name=shard Count=31 File={0}", "Name=shard Count=31 File={1}")

#: What stands in gres.conf, and the value of Gres= in slurm.conf.
FORMS: Final = {
    "as generated": (
        ["Name=gpu Type=h100 File={0}", "Name=gpu Type=h100 File={1}", *SHARDS],
        "gpu:h100:2,shard:h100:62",
    ),
    "one record, both files; shards by count": (
        [f"Name=gpu Type=h100 {BOTH}", "Name=shard Count=62"],
        "gpu:h100:1,shard:62",
    ),
    "two records, both files each; shards by count": (
        [f"Name=gpu Type=h100 {BOTH}"] * 2 + ["Name=shard Count=62"],
        "gpu:h100:2,shard:62",
    ),
    "two records, both files each; shards by file": (
        [f"Name=gpu Type=h100 {BOTH}"] * 2 + list(SHARDS),
        "gpu:h100:2,shard:62",
    ),
}  # fmt: skip

PROBE: Final = """\
#!/bin/bash
for gpu in 0 1; do
    text=$(exec 2>&1; exec 3<DEV/nvidia$gpu) && text=open
    case $text in *"No such device"*) text=open ;; *"not permitted"*) text=denied ;; esac
    echo "$1 gpu$gpu $text"
done
"""
CGROUPS: Final = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainDevices=yes\n"


def tried(lines: list[str], gres: str) -> str:
    """What one form comes to."""
    cluster = Cluster(
        scratch(), [SandboxNode("n1", ((GPU, 2),))],
        slurm_conf="ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup", cgroup_conf=CGROUPS,
    )  # fmt: skip
    try:
        cluster.build()
        bare(cluster, lines, gres)
        try:
            cluster.start()
        except SandboxFault as problem:
            return f"{said(cluster)} does not come up: {str(problem)[-160:]}"
        return asked(cluster)
    finally:
        cluster.stop()
        cluster.remove()


def bare(cluster: Cluster, lines: list[str], gres: str) -> None:
    """Slurm alone, without anything of slurm-mig."""
    dev = [str(cluster.root / f"nodes/n1/sim/dev/nvidia{number}") for number in (0, 1)]
    text = "".join(f"NodeName=n1 {line.format(*dev)}\n" for line in lines)
    (cluster.conf / "gres.conf").write_text(f"AutoDetect=off\n{text}")
    kept = []
    for there in (cluster.conf / "slurm.conf").read_text().splitlines():
        name, line = there.partition("=")[0], there
        if name in ("Prolog", "Epilog", "TaskProlog", "JobSubmitPlugins", "CliFilterPlugins"):
            continue
        if name == "GresTypes":
            line = "GresTypes=gpu,shard"
        kept.append(f"{line.partition(' Gres=')[0]} Gres={gres}" if name == "NodeName" else line)
    (cluster.conf / "slurm.conf").write_text("\n".join(kept) + "\n")
    probe = cluster.work / "probe"
    probe.write_text(PROBE.replace("DEV", str(Path(dev[0]).parent)))
    probe.chmod(0o755)


def asked(cluster: Cluster) -> str:
    """The answers of three jobs, by what runs and what each may open."""
    alice = USERS["alice"]
    script = "#!/bin/sh\n./probe batch\nsrun ./probe step\nsleep 20\n"
    jobs = []
    for _ in range(3):
        command = ("sbatch", "--parsable", "-o", "%j.out", "--gres=shard:31")
        done = cluster.try_run(*command, uid=alice, stdin=script)
        if done.returncode:
            return f"{said(cluster)} {done.stderr.strip().splitlines()[-1]}"
        jobs.append(done.stdout.strip())
    # For jobs that start, or do not.
    time.sleep(8)
    states = dict(line.split() for line in cluster.run("squeue", "-h", "-o", "%i %T").splitlines())
    found = []
    for job in jobs:
        path = cluster.work / f"{job}.out"
        words = path.read_text().split("\n") if path.exists() else []
        opened = [
            "+".join(line.split()[1] for line in words if line.startswith(who) and " open" in line)
            for who in ("batch", "step")
        ]
        found.append(f"{states.get(job, 'ended')} {opened[0] or 'none'}/{opened[1] or 'none'}")
    return f"{said(cluster)} jobs: {'; '.join(found)}"


def said(cluster: Cluster) -> str:
    """The node's state, counts and reason."""
    done = cluster.try_run("sinfo", "-h", "-N", "-O", "StateLong:.16,Gres:.50,Reason:.70")
    return " ".join(done.stdout.split()) + "."


def main() -> None:
    """All forms, one line each."""
    for name, (lines, gres) in FORMS.items():
        print(f"{name}: {tried(lines, gres)}", flush=True)


if __name__ == "__main__":
    main()
