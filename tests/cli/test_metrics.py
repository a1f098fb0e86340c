"""What Prometheus reads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.ways import later

if TYPE_CHECKING:
    from tests.kit.site import Site

pytestmark = pytest.mark.root


def numbers(site: Site) -> dict[tuple[str, ...], float]:
    """(name, label values...) -> value, by Prometheus' own parser."""
    done = site.cli("metrics")
    assert done.returncode == 0, done.stderr
    return {
        (sample.name.removeprefix("slurm_mig_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }


def test_slots_and_times(site: Site) -> None:
    """Of what is there now, and of what was."""
    assert site.prolog(7, "slurm-mig=1,3g.40gb/9/14:1").returncode == 0
    found = numbers(site)
    assert found["slices", "0", "active", "3g.40gb"] == 1
    assert found["slices_free", "0", "3g.40gb"] == 1
    assert found["slices_free", "1", "7g.80gb"] == 1
    assert (found["slots", "0"], found["slots_used", "0"]) == (8, 4)
    assert found["quarantined", "0"] == found["gpus_lost",] == 0
    assert found["ledger_bytes",] > 4096
    assert found["carve_seconds_count",] == found["carve_seconds_bucket", "+Inf"] == 1
    assert 0 < found["carve_seconds_sum",] < 30
    assert site.epilog(7).returncode == 0
    found = numbers(site)
    assert found["teardown_seconds_count",] == 1
    assert found["allocations_total", "released"] == 1
    assert ("slices", "0", "active", "3g.40gb") not in found


def test_counters_only_grow(site: Site) -> None:
    """However often they are read; with a new ledger they begin anew."""
    site.prolog(7, "slurm-mig=1,3g.40gb/9/14:1")
    first = numbers(site)
    assert numbers(site)["ledger_events_total",] == first["ledger_events_total",] == 2
    site.epilog(7)
    assert numbers(site)["ledger_events_total",] == 4 + later()
    for path in (site.root / "state").glob("ledger.db*"):
        path.unlink()
    assert numbers(site)["ledger_events_total",] == 0


def test_a_lost_gpu_is_a_number(site: Site) -> None:
    """The others are still told; a monitor must not go blind with the first fault."""
    site.machine.lose(0)
    found = numbers(site)
    assert found["gpus_lost",] == 1
    assert ("slots", "0") not in found
    assert found["slots", "1"] == 8


def test_a_textfile_appears_in_one_step(site: Site) -> None:
    """Readable for node_exporter's user."""
    path = site.root / "x.prom"
    assert site.cli("metrics", "--textfile", str(path)).stdout == ""
    assert "slurm_mig_slots{" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    os.mkfifo(site.root / "fifo")
    for strange, kind in (("fifo", "a FIFO"), ("sim/dev/nvidia0", "a device")):
        before = (site.root / strange).lstat()
        failed = site.cli("metrics", "--textfile", str(site.root / strange))
        assert (failed.returncode, failed.stderr.count("\n")) == (10, 1)
        assert f"it is {kind}" in failed.stderr
        assert (site.root / strange).lstat() == before
    failed = site.cli("metrics", "--textfile", "/proc/x")
    assert (failed.returncode, failed.stderr.count("\n")) == (10, 1)


def test_without_the_library(site: Site) -> None:
    """One line that names the extra."""
    program = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from slurm_mig.cli import main\nsys.argv = ['slurm-mig', 'metrics']\nmain()"
    )
    environ = {"SLURM_MIG_CONFIG": str(site.config), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 10
    assert done.stderr.endswith("pip install 'slurm-mig[metrics]'\n")
