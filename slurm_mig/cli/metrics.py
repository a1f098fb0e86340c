"""`slurm-mig metrics`: what Prometheus' node exporter reads from a text file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slurm_mig import __version__
from slurm_mig.cli._gpu_view import describe
from slurm_mig.cli._node import open_node, root_to_read, survey
from slurm_mig.cli._usage import OnePath
from slurm_mig.config import DEFAULT_PATH
from slurm_mig.errors import NodeFault
from slurm_mig.mig.allocation import QUARANTINED
from slurm_mig.state.tally import Tally
from slurm_mig.system.replace import replace_file
from slurm_mig.system.warm_client import serves

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slurm_mig.errors import SlurmMigError
    from slurm_mig.node.node import Node
    from slurm_mig.state.tally import Histogram

#: Beside the ledger: how far its events were counted, and what they came to.
KEPT = "metrics.json"


@click.command()
@click.option(
    "--textfile",
    type=OnePath(path_type=Path, dir_okay=False),
    help="Write there in one step instead of printing, for node_exporter's textfile collector.",
)
def command(textfile: Path | None) -> None:
    """Print this node's metrics in Prometheus' text format."""
    render = _renderer()
    with open_node(look=True) as node:
        root_to_read(node)
        tally = count(node)
        gpus, faults = survey(node)
        seen = [describe(node, gpu) for gpu in gpus if gpu.mig_capable]
        text = render(list(_families(node, tally, seen, faults)))
    if textfile is None:
        click.echo(text, nl=False)
    else:
        replace_file(textfile.absolute(), text, mode=0o644)


def _renderer() -> Any:
    """How to print metric families; NodeFault where the library is not installed."""
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        raise NodeFault(
            "metrics are printed by prometheus-client, which is not installed",
            remedy="pip install 'slurm-mig[metrics]'",
        ) from None

    class Given:
        def __init__(self, families: Sequence[Any]) -> None:
            self._families = families

        def collect(self) -> Sequence[Any]:
            return self._families

    def render(families: Sequence[Any]) -> str:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Given(families))
        return generate_latest(registry).decode()

    return render


def count(node: Node) -> Tally:
    """Every event of the ledger, counted once: the numbers only grow from call to call."""
    path = node.config.state / KEPT
    last, _ = node.ledger.last_event()
    try:
        tally = Tally.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        tally = Tally()
    if tally.last > last:
        # The ledger was moved aside and began anew; so do the counters, as Prometheus allows.
        tally = Tally()
    for event in node.ledger.events_after(tally.last):
        tally.add(event)
    if node.config.ledger.exists():
        replace_file(path, json.dumps(tally.to_dict()), mode=0o600)
    return tally


def _families(
    node: Node, tally: Tally, gpus: Sequence[dict[str, Any]], faults: Sequence[SlurmMigError]
) -> Iterator[Any]:
    yield _gauge("info", "This installation.", {(("version", __version__),): 1})
    yield _gauge("gpus_lost", "GPUs that do not answer, and other faults.", {(): len(faults)})
    helper = serves(str(node.config.warm), str(node.config.source or DEFAULT_PATH))
    yield _gauge("helper_up", "Whether the hooks' helper takes hooks.", {(): int(helper)})
    yield from _slots(gpus)
    yield _gauge("ledger_bytes", "Size of the ledger's files.", {(): _bytes(node)})
    yield _counter("ledger_events", "Rows of the event table.", {(): tally.last})
    yield _counter("refusals", "Refused jobs by fault.", _by("fault", tally.refusals))
    yield _counter("allocations", "Allocations that ended, or got stuck.",
                   _by("outcome", tally.outcomes))  # fmt: skip
    yield _histogram("carve_seconds", "From intent to active.", tally.carve)
    yield _histogram("teardown_seconds", "From the first destroy to released.", tally.teardown)
    yield _histogram("lock_wait_seconds", "Prologs' wait for the GPU's lock.", tally.lock_wait)


def _slots(gpus: Sequence[dict[str, Any]]) -> Iterator[Any]:
    used: dict[Any, int] = {}
    free: dict[Any, int] = {}
    stuck, slots, taken, whole = dict(used), dict(used), dict(used), dict(used)
    for gpu in gpus:
        name = ("gpu", str(gpu["gpu"]))
        counts = Counter((item["profile"], item["phase"]) for item in gpu["instances"])
        for (profile, phase), count in counts.items():
            used[name, ("profile", profile), ("phase", phase)] = count
        for profile, count in gpu["free"].items():
            free[name, ("profile", profile)] = count
        phases = [item["phase"] for item in (*gpu["instances"], *gpu["whole"])]
        stuck[name,] = phases.count(QUARANTINED)
        slots[name,] = gpu["units"]
        taken[name,] = sum(item["size"] for item in gpu["instances"])
        whole[name,] = len(gpu["whole"])
    yield _gauge("slices", "GPU instances by profile and phase.", used)
    yield _gauge("slices_free", "Instances of a profile that would still fit.", free)
    yield _gauge("quarantined", "Records whose slice cannot be destroyed.", stuck)
    yield _gauge("slots", "Placement units of the GPU.", slots)
    yield _gauge("slots_used", "Placement units that instances cover.", taken)
    yield _gauge("whole_gpu_jobs", "Jobs that have the GPU without MIG.", whole)


def _bytes(node: Node) -> int:
    ledger = node.config.ledger
    files = (ledger.with_name(ledger.name + end) for end in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.exists())


def _by(label: str, counts: dict[str, int]) -> dict[tuple[tuple[str, str], ...], int]:
    return {((label, name),): count for name, count in sorted(counts.items())}


def _gauge(name: str, text: str, values: Mapping[Any, float]) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily, name, text, values)


def _counter(name: str, text: str, values: Mapping[Any, float]) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily, name, text, values)


def _filled(kind: Any, name: str, text: str, values: Mapping[Any, float]) -> Any:
    labels = [label for label, _ in next(iter(values), ())]
    family = kind(f"slurm_mig_{name}", text, labels=labels)
    for pairs, value in values.items():
        family.add_metric([content for _, content in pairs], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(f"slurm_mig_{name}", text)
    family.add_metric([], buckets=histogram.cumulative(), sum_value=histogram.total)
    return family
