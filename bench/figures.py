"""What the hooks cost, as ratios: each figure against something measured in the same run.

Run as root: `make bench`, or

    .venv/bin/python bench/figures.py [--only WORD ...] [--rounds N] [--scale X] [--json FILE]

One table on the screen and the same as JSON (default: bench.json). Medians of rounds taken in
turn. `--scale` makes the large ones smaller (jobs through Slurm, mixed hooks, rows); `--only`
chooses by the first word of a figure. The driver is simulated: with latency 0 what is measured
is our own cost, and the simulator's Python is in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

import _slurm
import audit_million
from _runs import in_turn, once
from _site import Site

from slurm_mig.audit.archive import Archive
from slurm_mig.simulator.faults import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from _runs import Cost

#: Latencies of a GPU at work, milliseconds (docs/facts/mig.md, "Times").
CREATE, DESTROY, SLOW_DESTROY = 300.0, 150.0, 1000.0
BARE = "pynvml, filelock imported"
#: How a row is named without the helper, and with it.
HELPED = ("", ", helper")


@dataclass(frozen=True)
class Figure:
    """One line of the table; `value` is a ratio unless `unit` says otherwise."""

    name: str
    against: str
    value: float
    reach: str
    aim: str
    unit: str = "x"
    note: str = ""


@dataclass(frozen=True)
class Run:
    """What was asked for on the command line, and a directory."""

    root: Path
    rounds: int
    scale: float
    fresh: Iterator[int]

    def site(self, *more: object, **options: object) -> Site:
        """A node of its own."""
        return Site(self.root / f"n{next(self.fresh)}", *more, **options)  # type: ignore[arg-type]


def python(code: str) -> Callable[[int], Cost]:
    """Python with one line of code."""
    return lambda _: once([sys.executable, "-I", "-c", code], {})


def shell(_: int) -> Cost:
    """The least that a hook can be."""
    return once(["/bin/sh", "-c", ":"], {})


def hooks(run: Run) -> Iterator[Figure]:
    """Processes: Prolog, Epilog, TaskProlog, jobs without GPU; wall, CPU, memory."""
    site = run.site()
    leased = step_of_two_slices(run.site())
    costs = in_turn(
        {
            "bare": python("import pynvml, filelock"),
            "Prolog": lambda n: site.hook("prolog", 1000 + n),
            "Epilog": lambda n: site.hook("epilog", 1000 + n),
        },
        run.rounds,
    )
    check(site, run.rounds + 1)
    site.hook("prolog", 500)
    costs |= in_turn(
        {
            "sh": shell,
            "task": lambda _: site.hook("task_prolog", 500),
            "leased": leased,
            "Prolog without": lambda n: site.hook("prolog", 1000 + n, gpus=""),
            "Epilog without": lambda n: site.hook("epilog", 1000 + n, gpus=""),
            "TaskProlog without": lambda n: site.hook("task_prolog", 9000 + n),
        },
        5 * run.rounds,
    )

    def wall(name: str, against: str = "bare") -> float:
        return ratio(costs, name, against, lambda cost: cost.wall)

    for name in ("Prolog", "Epilog"):
        yield Figure(f"hooks: {name}, cold, wall", BARE, wall(name), "1.4", "1.2")
        cpu = ratio(costs, name, "bare", lambda cost: cost.cpu)
        yield Figure(f"hooks: {name}, cold, CPU", BARE, cpu, "1.4", "1.2")
    for name in ("Prolog without", "Epilog without", "TaskProlog without"):
        yield Figure(f"hooks: {name} GPU", "/bin/sh -c :", wall(name, "sh"), "1.1", "1.0")
    yield Figure("hooks: TaskProlog, one slice", "/bin/sh -c :", wall("task", "sh"), "1.5", "1.3")
    yield Figure("hooks: TaskProlog, leased", "/bin/sh -c :", wall("leased", "sh"), "4", "2")
    peak = max(ratio(costs, name, "bare", lambda cost: cost.peak) for name in ("Prolog", "Epilog"))
    yield Figure("hooks: peak memory", BARE, peak, "1.15", "1.1")
    yield Figure(f"hooks: {BARE}", "", 1e3 * median(c.wall for c in costs["bare"]), "", "", "ms")


def warm(run: Run) -> Iterator[Figure]:
    """The same with the helper; and the memory of 50 of its hooks at once."""
    site = run.site(latency={"create-gi": 3000.0})
    quick = run.site()
    with quick.helper():
        costs = in_turn(
            {
                "bare": python("import pynvml, filelock"),
                "Prolog": lambda n: quick.hook("prolog", 1000 + n),
                "Epilog": lambda n: quick.hook("epilog", 1000 + n),
            },
            run.rounds,
        )
        check(quick, run.rounds + 1)
    for name in ("Prolog", "Epilog"):
        value = ratio(costs, name, "bare", lambda cost: cost.wall)
        yield Figure(f"warm: {name}, wall", BARE, value, "0.5", "0.3")
    with site.helper() as pid:
        going = [site.start("prolog", 100 + n) for n in range(50)]
        together = 0
        while any(process.poll() is None for process in going[:7]):
            together = max(together, shared(pid, [process.pid for process in going]))
            time.sleep(0.05)
        for process in going:
            process.kill()
            process.wait()
    bare = 50 * 1024 * median(cost.peak for cost in costs["bare"])
    yield Figure(
        "warm: memory, helper and 50 hooks", f"50 x {BARE}", together / bare, "1.15", "1.1"
    )


def shared(helper: int, clients: Sequence[int]) -> int:
    """KiB that the helper, what it has forked, and their clients have, shared pages once."""
    below, pids = [helper], [helper, *clients]
    while below:
        with suppress(OSError):
            pid = below.pop()
            words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            below += [int(word) for word in words]
            pids += [int(word) for word in words]
    found = 0
    for pid in pids:
        with suppress(OSError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            found += int(re.findall(r"^Pss: +(\d+)", text, re.MULTILINE)[0])
    return found


def ratio(
    costs: Mapping[str, Sequence[Cost]], name: str, against: str, of: Callable[[Cost], float]
) -> float:
    """The median of the ratios, round by round."""
    pairs = zip(costs[name], costs[against], strict=True)
    return median(of(mine) / of(other) for mine, other in pairs)


def step_of_two_slices(site: Site) -> Callable[[int], Cost]:
    """The TaskProlog of a step that asks for one of its job's two slices, each a new step."""
    leases = site.root / "leases"
    leases.mkdir(mode=0o700)
    (leases / "lock").touch()
    (site.root / "run/env").mkdir(parents=True)
    (site.root / "run/env/7.0").write_text(
        "slice MIG-0 1g.10gb 0 GPU-0\nslice MIG-1 1g.10gb 0 GPU-0\n"
        f"shards 8\nshare 4 1g.10gb:1\nbind task\nleases {leases}\n"
    )
    environ = {"SLURM_JOB_ID": "7", "SLURM_SHARDS_ON_NODE": "4", "SLURM_STEP_TASKS_PER_NODE": "1"}
    # A task that has ended: the next step may have its slice.
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    environ["SLURM_TASK_PID"] = str(gone.pid)
    hook = str(site.root / "hooks/task_prolog")
    return lambda number: once([hook], environ | {"SLURM_STEP_ID": str(number)})


def check(site: Site, count: int) -> None:
    """A benchmark of hooks that refuse would measure something else."""
    site.settle()
    with closing(Archive(site.root / "state/ledger.db", live=True)) as archive:
        done = [item for item in archive.find(outcome="released") if item.uuids]
    if len(done) != count:
        raise SystemExit(f"{len(done)} slices carved and taken down, expected {count}")


def calls(run: Run) -> Iterator[Figure]:
    """Driver calls and forced disk writes of one hook, the second on a node."""
    site = run.site()
    for name in ("prolog", "epilog"):
        site.hook(name, 1)
    site.settle()
    for name in ("prolog", "epilog"):
        never = Rule("*", "hang:0", skip=1 << 30)
        site.machine.faults.set([never])
        trace = site.root / "trace"
        words = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(trace)]
        once([*words, str(site.root / "hooks" / name)], site.environ(2))
        site.settle()
        (rule,) = site.machine.faults.rules()
        site.machine.faults.set([])
        forced = len(re.findall(r"^\d+ +f(?:data)?sync\(", trace.read_text(), re.MULTILINE))
        yield Figure(f"calls: driver calls, {name}", "", rule.seen, "60", "40", "calls")
        yield Figure(f"calls: forced disk writes, {name}", "", forced, "4", "3", "calls")


def completing(run: Run) -> Iterator[Figure]:
    """How long slurmd waits for the Epilog: so long the whole node takes no new job."""
    rounds = max(3, run.rounds // 4)
    for destroy, helper in itertools.product((DESTROY, SLOW_DESTROY), (False, True)):
        site = run.site(latency={"destroy-gi": destroy})

        def epilog(number: int, site: Site = site) -> Cost:
            site.hook("prolog", 1000 + number)
            cost = site.hook("epilog", 1000 + number)
            site.settle()
            return cost

        contenders = {"bare": python("import pynvml, filelock"), "epilog": epilog}
        with site.helper() if helper else nullcontext():
            costs = in_turn(contenders | {"python": python("pass")}, rounds)
        name = f"completing: destroy {destroy:g} ms{HELPED[helper]}"
        value = ratio(costs, "epilog", "python", lambda cost: cost.wall)
        yield Figure(name, "Epilog that only starts Python", value, "1.5", "0.7")
        value = ratio(costs, "epilog", "bare", lambda cost: cost.wall)
        yield Figure(name, "Epilog that imports pynvml, filelock", value, "", "")


def million(run: Run) -> Iterator[Figure]:
    """A hook on a ledger of a million events."""
    full, empty = run.site(), run.site()
    rows = int(1_000_000 * run.scale)
    audit_million.build(full.root / "state/ledger.db", rows)

    def both(site: Site) -> Callable[[int], Cost]:
        def one(number: int) -> Cost:
            first = site.hook("prolog", 10_000_000 + number)
            second = site.hook("epilog", 10_000_000 + number)
            return type(first)(first.wall + second.wall, first.cpu + second.cpu)

        return one

    costs = in_turn({"full": both(full), "empty": both(empty)}, run.rounds)
    value = ratio(costs, "full", "empty", lambda cost: cost.cpu)
    yield Figure(f"million: {rows} events, CPU", "empty ledger", value, "1.05", "1.0")


def crowd(run: Run) -> Iterator[Figure]:
    """56 Prologs at once on 8 GPUs: 7 after each other on each."""
    latency = {"create-gi": CREATE / 2, "create-ci": CREATE / 2}
    for helper in (False, True):
        ones, alls, waits = [], [], []
        for _ in range(max(1, run.rounds // 8)):
            site = run.site(8, latency)
            with site.helper() if helper else nullcontext():
                ones.append(site.hook("prolog", 1).wall)
                site.hook("epilog", 1)
                site.settle()
                alls.append(all_at_once(site))
            waits += [waited for waited in waited_for(site) if waited > 0.02]
        name = f"crowd: 56 Prologs, 8 GPUs, create 300 ms{HELPED[helper]}"
        yield Figure(name, "7 x one Prolog", median(alls) / (7 * median(ones)), "1.25", "1.1")
        name = f"crowd: lock wait, longest{HELPED[helper]}"
        yield Figure(name, "mean lock wait", max(waits) / mean(waits), "5", "3")


def all_at_once(site: Site) -> float:
    """Seconds that 56 Prologs take, seven on each GPU."""
    started = time.perf_counter()
    going = [site.start("prolog", 100 + n, str(n % 8)) for n in range(56)]
    if any(process.wait() for process in going):
        raise SystemExit("a Prolog failed")
    return time.perf_counter() - started


def waited_for(site: Site) -> list[float]:
    """Seconds that each carve waited for its GPU's lock."""
    node = site.node()
    found = [event.facts for event in node.ledger.events_after(0) if event.kind == "planned"]
    node.close()
    return [facts["waited"] for facts in found]


def mixed(run: Run) -> Iterator[Figure]:
    """Jobs come and go on 8 GPUs: the time of all hooks against the driver's on the fullest GPU."""
    each = round(500 * run.scale / 8)
    latency = {"create-gi": 75.0, "create-ci": 75.0, "destroy-gi": 75.0, "destroy-ci": 75.0}
    for helper in (False, True):
        site = run.site(8, latency)
        with site.helper() if helper else nullcontext():
            value = come_and_go(site, each) / (0.15 * 2 * each)
        name = f"mixed: {16 * each} hooks, 8 GPUs, 150 ms each{HELPED[helper]}"
        yield Figure(name, "driver time of the fullest GPU", value, "1.3", "1.15")


def come_and_go(site: Site, each: int) -> float:
    """Seconds that so many jobs on each of 8 GPUs take, three hooks at once on a GPU at most."""
    chance, left = random.Random(1), [each] * 8
    going: list[tuple[subprocess.Popen[bytes], int, int, str]] = []
    running: list[list[int]] = [[] for _ in range(8)]
    job, started = 0, time.perf_counter()
    while any(left) or going or any(running):
        for process, gpu, number, name in [item for item in going if item[0].poll() is not None]:
            going.remove((process, gpu, number, name))
            if process.returncode:
                raise SystemExit(f"{name} of job {number} failed")
            if name == "prolog":
                running[gpu].append(number)
        for gpu in range(8):
            mine = [item for item in going if item[1] == gpu]
            if running[gpu] and (chance.random() < 0.5 or not left[gpu]) and len(mine) < 3:
                number = running[gpu].pop(chance.randrange(len(running[gpu])))
                going.append((site.start("epilog", number, str(gpu)), gpu, number, "epilog"))
            elif left[gpu] and len(mine) < 3 and len(mine) + len(running[gpu]) < 7:
                left[gpu], job = left[gpu] - 1, job + 1
                going.append((site.start("prolog", job, str(gpu)), gpu, job, "prolog"))
        time.sleep(0.002)
    site.settle()
    return time.perf_counter() - started


def slurm(run: Run) -> Iterator[Figure]:
    """Jobs through real Slurm, beside a cluster with empty hooks (static MIG)."""
    jobs, sleep = max(28, round(112 * run.scale)), max(1.0, 10 * run.scale)
    rounds = 1 if run.scale >= 1 else 2
    for create, destroy, reach, aim in (
        (150.0, 150.0, "0.93", "0.98"),
        (CREATE, SLOW_DESTROY, "0.90", "0.97"),
    ):
        for helper in (False, True):
            value = _slurm.throughput(jobs, sleep, create, destroy, rounds, helper=helper)
            name = f"slurm: {jobs} x {sleep:g} s, {create:g}, {destroy:g} ms{HELPED[helper]}"
            yield Figure(name, "empty hooks (static MIG)", value, reach, aim)


def rate(run: Run) -> Iterator[Figure]:
    """Jobs per second, `true`, no latency, two nodes on this machine's cores."""
    jobs = max(40, round(200 * run.scale))
    for helper in (False, True):
        value = _slurm.throughput(jobs, 0, 0, 0, 2, nodes=2, helper=helper)
        name = f"rate: {jobs} x true, 2 nodes, no latency{HELPED[helper]}"
        yield Figure(name, "empty hooks", value, "0.35", "0.6")


GROUPS = (hooks, warm, completing, calls, million, crowd, mixed, slurm, rate)


def main() -> None:
    """Measure, print, write."""
    given = options()
    root = Path(tempfile.mkdtemp(prefix="smig-bench-"))
    run = Run(root, given.rounds, given.scale, iter(range(1 << 30)))
    found: list[Figure] = []
    head = f"{'figure':52} {'against':38} {'value':>9} {'reach':>6} {'aim':>6}"
    print(head)
    try:
        for group in GROUPS:
            if given.only and group.__name__ not in given.only:
                continue
            for figure in group(run):
                found.append(figure)
                value = f"{figure.value:.2f}" if figure.unit == "x" else f"{figure.value:.0f}"
                words = f"{value} {figure.unit if figure.unit == 'ms' else ''}".strip()
                print(
                    f"{figure.name:52} {figure.against:38} {words:>9} "
                    f"{figure.reach:>6} {figure.aim:>6}",
                    flush=True,
                )
    finally:
        shutil.rmtree(root)
        cores = len(os.sched_getaffinity(0))
        told = {"cores": cores, "python": sys.version.split()[0], **vars(given)}
        told["json"] = str(given.json)
        text = json.dumps({"run": told, "figures": [asdict(item) for item in found]}, indent=1)
        given.json.write_text(f"{text}\n")
    print(f"medians of {given.rounds} rounds in turn, {cores} cores; as JSON in {given.json}")


def options() -> argparse.Namespace:
    """The command line."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [group.__name__ for group in GROUPS]
    words.add_argument("--only", nargs="+", choices=names, metavar="WORD", help=", ".join(names))
    words.add_argument("--rounds", type=int, default=20)
    words.add_argument("--scale", type=float, default=1.0)
    words.add_argument("--json", type=Path, default=Path("bench.json"))
    return words.parse_args()


if __name__ == "__main__":
    main()
