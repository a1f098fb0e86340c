"""Writes docs/screens/*.txt: what the commands print on a simulated site, as they print it.

screens.py DIR    writes them below DIR (`make screens`; as root, it makes device nodes)

The site is in a machine of its own (tests/kit/machine_inside.py), with a Slurm as
docs/quickstart.md sets it up.
UUIDs and the days of jobs are this run's; everything else is the same each time.
"""

from __future__ import annotations

import re
import sys
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from slurm_mig.system.replace import write_output
from tests.kit import machine, quickstart

JOBS = (
    ("alice", "sbatch --gres=mig:3g.40gb:1 -J train job.sh"),
    ("bob", "sbatch --gres=mig:1g.10gb:2 -J notebook job.sh"),
    ("bob", "sbatch --gres=mig:2g.20gb:1 -J infer job.sh"),
    ("alice", "sbatch --gres=mig:7g.80gb:1 -J big job.sh"),
)
#: What a screen shows, by its file's name.
SCREENS = {
    "status.txt": "slurm-mig status",
    "status-brief.txt": "slurm-mig status --brief",
    "status-cluster.txt": "slurm-mig status --cluster",
    "doctor.txt": "slurm-mig doctor # again",
    "verify.txt": "slurm-mig verify --job 1",
    "audit.txt": "slurm-mig audit",
}
NO_JOBS = "while squeue -h | grep -q .; do sleep 1; done"
#: Makes two things that a doctor has words for.
ILLNESS = (
    "sed -i 's/^PrologFlags=.*/PrologFlags=Alloc/; /^JobAcctGatherParams/d' /etc/slurm/slurm.conf",
    "chmod 666 /var/lib/slurm-mig/ledger.db",
    "systemctl restart slurmctld",
    "timeout 20 sh -c 'until sinfo -h -o %T | grep -q idle; do sleep 0.2; done'",
)


def steps() -> list[list[str]]:
    """The quick start, some jobs, and the commands while they run and after they have ended."""
    found = quickstart.started()
    for user in ("alice", "bob"):
        found.append([user, "printf '#!/bin/sh\\nsleep 3000\\n' >job.sh"])
    for user, command in JOBS:
        found.append([user, f"{command} && sleep 3"])
    names = ("status.txt", "status-brief.txt", "status-cluster.txt", "verify.txt")
    while_running = [SCREENS[name] for name in names]
    found += [["root", command] for command in while_running]
    found.append(["root", f"scancel -u alice; scancel -u bob; timeout 20 sh -c '{NO_JOBS}'"])
    found.append(["root", SCREENS["audit.txt"]])
    found += [["root", command] for command in ILLNESS]
    found.append(["root", SCREENS["doctor.txt"]])
    return found


def main(directory: str) -> None:
    """Write them."""
    spec = quickstart.SPEC | {"sessions": [steps()]}
    done = {item["statement"]: item for item in machine.run(spec)[0]}
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, command in SCREENS.items():
        text = f"# {command.partition(' # ')[0]}\n{done[command]['out']}"
        for place, usual in (
            # The environment lies in the checkout.
            (sys.prefix, "/opt/slurm-mig"),
            (
                str(Path(__file__).parents[2]),
                f"/opt/slurm-mig/lib/python3.{sys.version_info.minor}/site-packages",
            ),
        ):
            text = text.replace(place, usual)
        write_output(Path(directory, name), text)
        if name == "status.txt":
            write_output(Path(directory).parent / "shots/status.svg", terminal(text))


def terminal(text: str) -> str:
    """A screen as a picture, in the colours that it has on a terminal."""
    lines = ["$ " + text.partition("\n")[0].removeprefix("# "), *text.rstrip().split("\n")[1:]]
    rows = []
    for number, line in enumerate(lines):
        # Blanks that are none would be folded into one.
        plain = escape(line).replace(" ", "\u00a0")
        words = re.sub(r"\bactive\b", '<tspan fill="#7ec87e">active</tspan>', plain)
        bold = ' font-weight="bold"' if line.startswith(("GPU ", "$ ")) else ""
        rows.append(f'<text x="16" y="{26 + 17 * number}"{bold}>{words}</text>')
    high = 17 * len(lines) + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 690 {high}" width="690" '
        f'height="{high}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" '
        'font-size="13" fill="#d8dee4">\n'
        f'<rect width="690" height="{high}" rx="8" fill="#1d2127"/>\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    main(sys.argv[1])
