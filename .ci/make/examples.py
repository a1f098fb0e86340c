"""Examples of each command, for its man page: what is typed, and what it is for."""

from __future__ import annotations

from typing import Final

EXAMPLES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "slurm-mig": (
        ("slurm-mig status --brief", "A line a GPU: who has which slots, what still fits."),
        ("slurm-mig job 4711", "One job: where, which slices, why refused, what next."),
        ("slurm-mig doctor", "What is set up wrongly, with the line to write."),
    ),
    "slurm-mig acceptance": (
        ("slurm-mig acceptance --gpu GPU-5fd4f087-86f3-4e2b-8f3c-a3b4c5d6e7f8", "Try an idle GPU."),
    ),
    "slurm-mig apply": (
        ("slurm-mig apply layout.yaml --dry-run", "Say what would be made on static GPUs."),
    ),
    "slurm-mig archive": (
        ("slurm-mig archive --older-than 400 --dry-run", "Say what would leave the ledger."),
        ("slurm-mig archive --before 2026-01-01", "Move what is older into a file of its own."),
    ),
    "slurm-mig assert": (
        ("slurm-mig assert layout.yaml", "Is the layout there? The exit code says it."),
    ),
    "slurm-mig audit": (
        ("slurm-mig audit --since yesterday", "Who held what; what went wrong comes first."),
        ("slurm-mig audit --uuid MIG-22f4ac07 --at 12:30", "Who had this MIG device then."),
        ("slurm-mig audit --totals account --since now-30days --csv", "Sums for a bill."),
        ("slurm-mig audit --check", "Was the ledger edited?"),
        ("slurm-mig audit --timeline week.svg --since now-7days", "A picture of the week."),
    ),
    "slurm-mig create": (("slurm-mig create 3g.40gb --gpu 0", "A slice by hand, on record."),),
    "slurm-mig demo": (("slurm-mig demo", "A private Slurm with simulated GPUs runs MIG jobs."),),
    "slurm-mig destroy": (
        (
            "slurm-mig destroy MIG-22f4ac07-ad3c-5482-a65a-71c7c81c1c1f",
            "Take one down.",
        ),
    ),
    "slurm-mig disable": (("slurm-mig disable --gpu 1", "Switch MIG mode off on one GPU."),),
    "slurm-mig doctor": (
        ("slurm-mig doctor", "Look at this machine, and ask slurmctld."),
        ("slurm-mig doctor --slurm-conf out/slurm.conf --strict", "Files before they are used."),
    ),
    "slurm-mig enable": (("slurm-mig enable --gpu all", "Switch MIG mode on."),),
    "slurm-mig export": (
        ("slurm-mig export --format mig-parted", "What is there, as mig-parted reads it."),
    ),
    "slurm-mig generate": (
        ("slurm-mig generate fleet.toml --out out", "Write the fragments for Slurm."),
        ("slurm-mig generate fleet.toml --out out --check", "Compare only; for a CI."),
    ),
    "slurm-mig gpus": (
        ("slurm-mig gpus", "This node's GPUs, then the supported products."),
        ("slurm-mig gpus --describe --out gpus.d", "What the driver says, as files."),
    ),
    "slurm-mig install": (
        ("slurm-mig install --dry-run", "Each path with new, same or changed."),
        ("slurm-mig install --root /srv/image", "Into an image, with the image's Python."),
    ),
    "slurm-mig job": (("slurm-mig job 4711", "Where, which slices, since when, what next."),),
    "slurm-mig learn": (
        (
            "slurm-mig learn --sacct jobs.txt --gpu 'NVIDIA H100 80GB HBM3' -o table.json",
            "A slot policy for this site's own mix.",
        ),
    ),
    "slurm-mig metrics": (("slurm-mig metrics", "What Prometheus reads, printed."),),
    "slurm-mig profiles": (
        ("slurm-mig profiles --gpu 0", "What one GPU offers, and how many are free."),
    ),
    "slurm-mig publish": (("slurm-mig publish", "Look for who waits for room here."),),
    "slurm-mig reconcile": (
        ("slurm-mig reconcile --dry-run", "Say what is left over."),
        ("slurm-mig reconcile", "Bring ledger, hardware and Slurm to one truth."),
    ),
    "slurm-mig report": (
        ("slurm-mig report week.html", "A page on the last seven days of this node."),
        ("slurm-mig report all.html --ledger 'ledgers/*.db' --since now-30days", "Many nodes."),
    ),
    "slurm-mig reset": (("slurm-mig reset --gpu 0 --dry-run", "Say what would be taken down."),),
    "slurm-mig retire": (
        ("slurm-mig retire --layout 3g.40gb:2 --dry-run", "Back to static MIG: say what it takes."),
    ),
    "slurm-mig simulate": (
        (
            "slurm-mig simulate trace.json --gpu 'NVIDIA H100 80GB HBM3' --gpus-per-node 8",
            "Replay a trace, without GPU and Slurm.",
        ),
    ),
    "slurm-mig simulator": (
        ("slurm-mig simulator create /srv/mig --gpu 'NVIDIA A30:2'", "Two simulated GPUs."),
    ),
    "slurm-mig status": (
        ("slurm-mig status", "A picture of every GPU's slots, and who holds them."),
        ("slurm-mig status --brief --watch 5", "A line a GPU, every five seconds."),
        ("slurm-mig status --cluster --fits 3g.40gb", "Nodes with room for it."),
        ("slurm-mig status --cluster --state drain", "Nodes that are drained."),
    ),
    "slurm-mig verify": (
        ("slurm-mig verify", "Try, as each job's user, to reach what is not theirs."),
        ("slurm-mig verify --job 4711 --all", "As one job's user, with every try."),
    ),
    "slurm-mig weights": (
        ("slurm-mig weights --gpu 'NVIDIA H100 80GB HBM3'", "Shards of each profile, proved."),
    ),
}
