"""Time that job_submit.lua takes for one job, before the bridge and with it.

    .venv/bin/python bench/lua_time.py [COMMIT]

Both are the sample that is generated into etc/, for the same fleet: this tree's, and that of
COMMIT (the last one without the bridge unless another is named). Medians and worst of many
jobs under Lua 5.1, which Debian's Slurm is built with; then how the time grows with the length
of what users write. Exit 1 when a median is not below a millisecond or growth is not linear.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE))

from tests.kit.lua_host import Host  # noqa: E402  # of the tree, not of an installed copy

BEFORE = "5f72d4b"
ROUNDS = 300
LIMIT_MS = 1.0
#: Twice the length may take this much longer than twice as long.
SLACK = 1.5

JOBS: dict[str, dict[str, Any]] = {
    "no GPU": {"partition": "all", "num_tasks": 4},
    "no GPU, -c 4": {"tres_per_task": "cpu=4", "cpus_per_task": 4},
    "whole GPU": {"tres_per_node": "gres/gpu:h100:1"},
    "mig:3g.40gb:1": {"tres_per_node": "gres/mig:3g.40gb:1"},
    "gpu:1g.10gb:1": {"tres_per_node": "gres/gpu:1g.10gb:1"},
    "gpu:nvidia_h100_80gb_hbm3_1g.10gb": {
        "tres_per_node": "gres/gpu:nvidia_h100_80gb_hbm3_1g.10gb:1"
    },
    "--gpus-per-task, 7 tasks": {"tres_per_task": "gres/gpu:h100_1g.10gb=1", "num_tasks": 7},
    "a word that is unknown": {"tres_per_node": "gres/mig:3g.40gbb:1"},
    "eight GPUs' worth": {"tres_per_node": "gres/mig:3g.40gb:16"},
}

LONG: dict[str, Callable[[int], dict[str, Any]]] = {
    "gres of many tokens": lambda n: {"tres_per_node": "gres/nvme:1," * (n // 12)},
    "gres of one token": lambda n: {"tres_per_node": "gres/gpu:" + "1g." * (n // 3)},
    "comment": lambda n: {"tres_per_node": "gres/mig:1g.10gb", "comment": "a " * (n // 2)},
    "partitions": lambda n: {"tres_per_node": "gres/gpu:1", "partition": "p," * (n // 2)},
    "features": lambda n: {"tres_per_node": "gres/gpu:1", "features": "a|" * (n // 2)},
}


def seconds(host: Host, job: dict[str, Any], rounds: int) -> list[float]:
    """Each round with a fresh job, as slurmctld hands one over."""
    g, found = host.lua.globals(), []
    for _ in range(rounds):
        table = host.lua.table_from({"shared": 65534} | job)
        start = time.perf_counter()
        g.slurm_job_submit(table, None, 1000)
        found.append(time.perf_counter() - start)
    return found


def main() -> int:
    """Both tables; whether a limit is passed."""
    commit = sys.argv[1] if len(sys.argv) > 1 else BEFORE
    show = ["git", "-C", str(HERE), "show", f"{commit}:etc/job_submit.lua"]
    old = Host("lua51", subprocess.run(show, check=True, capture_output=True, text=True).stdout)
    new = Host("lua51", (HERE / "etc/job_submit.lua").read_text())
    bad = False
    print(
        f"{'one job, microseconds':36}{'before: median':>16}{'worst':>8}"
        f"{'after: median':>16}{'worst':>8}"
    )
    for name, job in JOBS.items():
        cells = []
        for host in (old, new):
            times = [1e6 * item for item in seconds(host, job, ROUNDS)]
            cells += [statistics.median(times), max(times)]
        bad = bad or cells[2] >= 1e3 * LIMIT_MS
        print(f"{name:36}{cells[0]:16.1f}{cells[1]:8.0f}{cells[2]:16.1f}{cells[3]:8.0f}")
    print(f"\n{'characters, milliseconds':36}{'25,000':>10}{'50,000':>10}{'100,000':>10}")
    for name, make in LONG.items():
        times = [1e3 * min(seconds(new, make(n), 5)) for n in (25_000, 50_000, 100_000)]
        # Below a tenth of a millisecond it is noise.
        steep = times[2] > 0.1 and times[2] > 4 * SLACK * max(times[0], 0.05)
        bad = bad or steep
        print(
            f"{name:36}{times[0]:10.2f}{times[1]:10.2f}{times[2]:10.2f}{'  steep' if steep else ''}"
        )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
