"""What packing brings, beside the studies' figures and what a Slurm that sees slots would do.

    python bench/packing.py --tables DIR [--jobs 2500] [--seeds 3] [--first 0] [--json FILE]

One GPU is exact (`packing/chain.py`); queues are replayed (`packing/replay.py`): four mixes, load
0.8, Poisson arrivals, run times of an hour that Slurm knows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slurm_mig.packing.chain import Chain
from slurm_mig.packing.foresight import ChoiceRule
from slurm_mig.packing.learning import site_of
from slurm_mig.packing.policies import NAMED, Learned
from slurm_mig.packing.replay import Retry
from slurm_mig.packing.setups import Setup, best_static, figures, run
from slurm_mig.packing.tables import text
from tests.kit.workloads import H100, MIXES, NAMES, by_chance

KINDS = [tuple(int(a == b) for b in range(6)) for a in range(6)]

#: Refusals per 1,000 starts on one GPU by the first study, in the order of MIXES.
STUDY_ONE = {
    "first-fit": (119.2, 96.2, 92.0, 90.4),
    "last-fit": (43.7, 107.8, 28.5, 18.4),
    "driver": (43.7, 107.8, 28.5, 18.4),
    "best-fit": (43.3, 99.4, 27.7, 18.9),
    "mfi": (43.2, 82.4, 27.5, 24.2),
    "fits": (42.8, 83.7, 27.5, 21.6),
    "learned": (42.7, 66.7, 27.5, 13.3),
}

#: (requeues per 1,000, wait against a Slurm that sees slots) by the studies: 8 GPUs, 4 x 8.
STUDY_QUEUE = {
    "first-fit, pack, blind": ((2536, 1.43), (5006, 10.41)),
    "fits, least-loaded, gate": ((124, 1.31), (205, 2.72)),
    "fits, pack, publish": ((8.8, 1.32), (0.2, 1.03)),
    "fits, node, publish": ((0.0, 1.23), (0.0, 1.08)),
}

SETUPS = [
    Setup("Slurm sees slots", retry=Retry.AWARE),
    Setup("Slurm sees slots, first-fit", policy="first-fit", retry=Retry.AWARE),
    Setup("first-fit, pack, blind", policy="first-fit", retry=Retry.BLIND),
    Setup("fits, pack, gate", retry=Retry.GATE),
    Setup("fits, least-loaded, gate", choice=ChoiceRule.LEAST_LOADED, retry=Retry.GATE),
    Setup("fits, pack, publish"),
    Setup("fits, pack, publish, planned", planned=True),
    Setup("fits, least-loaded, publish", choice=ChoiceRule.LEAST_LOADED),
    Setup("fits, node, publish", choice=ChoiceRule.NODE),
    Setup("learned, pack, publish", policy="learned"),
    Setup("learned, node, publish", policy="learned", choice=ChoiceRule.NODE),
    Setup("fits, node, publish, loose", "loose", choice=ChoiceRule.NODE),
    Setup("learned, node, publish, loose", "loose", "learned", choice=ChoiceRule.NODE),
]

#: The first study's best static layouts of 8 GPUs, in the order of NAMES.
STUDY_STATIC = {
    "uniform": (2, 3, 4, 2, 4, 3),
    "small-heavy": (14, 5, 8, 2, 2, 1),
    "large-heavy": (0, 1, 3, 3, 3, 4),
    "bimodal": (14, 3, 0, 0, 1, 5),
}

#: Shards for nodes that choose the GPU: no limit but for a whole GPU, as the counts are true.
LOOSE = {
    "1g.10gb": 2,
    "1g.10gb+me": 2,
    "1g.20gb": 4,
    "2g.20gb": 5,
    "3g.40gb": 9,
    "4g.40gb": 10,
    "7g.80gb": 31,
}


def one_gpu() -> dict[str, list[float]]:
    """Each policy's refusals, the learned table's last."""
    chain = Chain(H100, KINDS)
    rates = [chain.rates(mix, 0.8) for mix in MIXES.values()]
    found = {
        name: [chain.worth(moves, rate).refused for rate in rates]
        for name, moves in ((name, chain.moves(policy)) for name, policy in NAMED.items())
    }
    found["learned"] = []
    for rate in rates:
        values = dict(zip(chain.layouts, chain.best(rate), strict=True))
        found["learned"].append(
            chain.worth(chain.moves(Learned({H100.classes: values})), rate).refused
        )
    return found


def tables(directory: Path) -> dict[str, str]:
    """A learned table of each mix, as the policy's name."""
    found = {}
    for name, mix in MIXES.items():
        site = site_of(by_chance(name, 0.8, 1, 2000, 1))
        chain = Chain(H100, KINDS)
        values = dict(zip(chain.layouts, chain.best(chain.rates(mix, 0.8)), strict=True))
        path = directory / f"{name}.json"
        path.write_text(text(H100, values, {"mix": site.names}), "utf-8")
        found[name] = f"optimal:{path}"
    return found


def queue(nodes: int, load: float, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Each set-up over all mixes and seeds: means, and the worst of what must not be."""
    learned = tables(arguments.tables)
    loose = arguments.tables / "loose.json"
    loose.write_text(json.dumps({"capacity": 31, "weights": LOOSE}), "utf-8")
    found: dict[str, dict[str, Any]] = {}
    for setup in SETUPS:
        rows = []
        for mix in MIXES:
            policy = learned[mix] if setup.policy == "learned" else setup.policy
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                work = by_chance(mix, load, 8 * nodes, arguments.jobs, seed)
                weights = str(loose) if setup.weights == "loose" else setup.weights
                ran = run(setup._replace(policy=policy, weights=weights), work, nodes, 8)
                rows.append({**figures(ran), "most": max(ran.outcome.refused)})
        found[setup.label] = {
            "requeues": sum(row["requeues_per_1000"] for row in rows) / len(rows),
            "wait": sum(row["mean_wait_s"] for row in rows) / len(rows),
            "most": max(row["most"] for row in rows),
            "livelocks": sum(row["livelock"] for row in rows),
        }
    return found


def static(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The best static layout of each mix against carving: wait, and makespan of a full queue."""
    found: dict[str, dict[str, Any]] = {}
    for mix in MIXES:
        row: dict[str, Any] = {}
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            work = by_chance(mix, 0.8, 8, arguments.jobs, seed)
            burst = work._replace(jobs=work.jobs._replace(submit=[0.0] * len(work.jobs.submit)))
            layout = best_static(work, 1, 8)
            row["layout"] = layout
            known = {n: count for n, count in zip(NAMES, STUDY_STATIC[mix], strict=True) if count}
            for setup in (
                Setup("static", static=layout),
                Setup("study's static", static=known),
                Setup("publish"),
                Setup("node", choice=ChoiceRule.NODE),
            ):
                wait = figures(run(setup, work, 1, 8))["mean_wait_s"]
                span = figures(run(setup, burst, 1, 8))["makespan_h"]
                old = row.get(setup.label, (0.0, 0.0))
                row[setup.label] = (
                    old[0] + wait / arguments.seeds,
                    old[1] + span / arguments.seeds,
                )
        found[mix] = row
    return found


def show_queue(title: str, found: dict[str, dict[str, Any]], place: int | None) -> None:
    """One table; the study's figures where it has the set-up."""
    print(f"\n{title}\n{'':32}{'per 1000':>9}{'wait s':>8}{'x':>7}{'most':>6}   study: per 1000, x")
    bound = found["Slurm sees slots"]["wait"] or 1.0
    for label, row in found.items():
        known = STUDY_QUEUE.get(label)
        said = ""
        if known is not None and place is not None:
            said = f"{known[place][0]:>12} {known[place][1]:>8}"
        if row["livelocks"]:
            said += f"  livelock: {row['livelocks']}"
        print(
            f"{label:32}{row['requeues']:9.1f}{row['wait']:8.0f}{row['wait'] / bound:7.2f}"
            f"{row['most']:6}{said}"
        )


def main() -> None:
    """Print all tables; the figures as JSON beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--tables", type=Path, required=True, help="directory for learned tables")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    one = one_gpu()
    print("one GPU, load 0.8, refusals per 1,000 starts (exact; in brackets the study)")
    print(f"{'':12}" + "".join(f"{mix:>18}" for mix in MIXES))
    for name, values in one.items():
        pairs = zip(values, STUDY_ONE[name], strict=True)
        print(f"{name:12}" + "".join(f"{value:9.2f} ({said:6.1f})" for value, said in pairs))
    queues = {nodes: queue(nodes, 0.8, arguments) for nodes in (1, 4)}
    show_queue("8 GPUs, load 0.8", queues[1], 0)
    show_queue("4 x 8 GPUs, load 0.8", queues[4], 1)
    hard = queue(1, 1.1, arguments)
    show_queue("8 GPUs, load 1.1", hard, None)
    fixed = static(arguments)
    print(
        "\nbest static layout against carving, 8 GPUs: wait s at load 0.8 / makespan h of a burst"
    )
    for mix, row in fixed.items():
        fixed_ones = ("static", "study's static")
        words = "  ".join(
            f"{name} {row[name][0]:.0f} / {row[name][1]:.1f}"
            for name in (*fixed_ones, "publish", "node")
        )
        best = min(row[name][0] for name in fixed_ones)
        losers = [name for name in ("publish", "node") if row[name][0] > best]
        print(f"{mix:12} {words}  {'static wins over ' + ', '.join(losers) if losers else ''}")
        print(f"{'':12} {row['layout']}")
    print(f"\n{time.monotonic() - began:.0f} s")
    if arguments.json:
        data = {"one_gpu": one, "queues": queues, "load_1.1": hard, "static": fixed}
        arguments.json.write_text(json.dumps(data, indent=1), "utf-8")


if __name__ == "__main__":
    main()
