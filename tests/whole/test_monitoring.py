"""Alerts and dashboard: real metrics, and rules that Prometheus' own checker takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from slurm_mig.mig.geometry import Placement
from tests.kit import prometheus
from tests.kit.hooks import STAMP

if TYPE_CHECKING:
    from tests.kit.site import Site

ETC = Path(__file__).parents[2] / "etc"
RULES = ETC / "prometheus/slurm-mig.rules.yml"
BOARD = ETC / "grafana/slurm-mig.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here (make pages)"
)

#: A node whose slice is stuck, one whose GPU is lost, one that is well.
TRIAL = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'slurm_mig_quarantined{{instance="n1", gpu="0"}}'
        values: '1x60'
      - series: 'slurm_mig_gpus_lost{{instance="n2"}}'
        values: '1x60'
      - series: 'slurm_mig_gpus_lost{{instance="n3"}}'
        values: '0x60'
      - series: 'slurm_mig_refusals_total{{instance="n3", fault="NoRoom"}}'
        values: '0+1x60'
    promql_expr_test:
      - expr: sum by (alertname, instance) (ALERTS{{alertstate="firing"}})
        eval_time: 40m
        exp_samples:
          - labels: '{{alertname="SlurmMigGpuLost", instance="n2"}}'
            value: 1
          - labels: '{{alertname="SlurmMigStuckSlice", instance="n1"}}'
            value: 1
"""


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_are_right(tmp_path: Path) -> None:
    """By their grammar, and by what they say of three nodes."""
    promtool("check", "rules", RULES)
    trial = tmp_path / "trial.yml"
    trial.write_text(TRIAL.format(rules=RULES))
    promtool("test", "rules", trial)


@pytest.mark.root
def test_every_metric_is_one(site: Site) -> None:
    """That alerts and panels name; a name of their own would be silent for ever."""
    site.prolog(7, STAMP)
    printed = site.cli("metrics").stdout
    known = set(re.findall(r"^# TYPE (\S+)", printed, re.MULTILINE))
    for path in (RULES, BOARD):
        named = set(re.findall(r"\b(slurm_mig_[a-z_]+?)(?:_bucket)?\b", path.read_text("utf-8")))
        assert named
        assert named <= known, path


def test_the_dashboard() -> None:
    """Panels with an expression each, none upon another."""
    panels = json.loads(BOARD.read_text("utf-8"))["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def expressions() -> dict[str, str]:
    """Of every panel and every alert; of an alert without its bound, so that it has a value."""
    panels = json.loads(BOARD.read_text("utf-8"))["panels"]
    found = {
        f"panel {panel['title']} {target['refId']}": target["expr"].replace("$node", ".*")
        for panel in panels
        for target in panel["targets"]
    }
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        for rule in group["rules"]:
            found[f"alert {rule['alert']}"] = re.sub(r" > [\de.]+$", "", rule["expr"])
    return found


@pytest.mark.root
@prometheus.needs_prometheus
def test_every_expression_has_data(site: Site, tmp_path: Path) -> None:
    """In a real Prometheus that reads a real node's metrics, beside what node_exporter adds."""
    with site.machine.change(1) as board:
        foreign = board.create(19, Placement(6, 1), busy=False)
        board.create_compute(foreign, 0)
    age = f'node_textfile_mtime_seconds{{file="/x/slurm-mig.prom"}} {time.time()}\n'
    assert site.prolog(7, STAMP).returncode == 0
    site.prolog(8, "slurm-mig=1,7g.80gb/0/31:1")
    with prometheus.running(tmp_path, RULES) as server:
        server.scraped(site.cli("metrics").stdout + age)
        site.epilog(7)
        site.prolog(9, STAMP)
        server.scraped(site.cli("metrics").stdout + age)
        silent = [what for what, text in expressions().items() if not server.values(text)]
        assert silent == []
        rules = server.ask("rules")["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} == {"ok"}
        assert "pending" in {rule["state"] for rule in rules if "ForeignSlice" in rule["name"]}
