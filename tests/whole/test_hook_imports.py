"""What a hook loads: each import is paid on every GPU job (`make bench`)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.kit.gpus import H100
from tests.kit.site import Site, job_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

pytestmark = pytest.mark.root

#: Beside what pynvml and filelock load by themselves.
LIBRARY = {
    *("gc", "_contextvars", "contextvars", "_json", "json", "json.decoder", "json.encoder"),
    *("json.scanner", "_sqlite3", "sqlite3", "sqlite3.dbapi2", "syslog", "tomllib"),
    *("tomllib._parser", "tomllib._re", "tomllib._types", "_datetime", "datetime"),
    *("_sha2", "_sha256"),
    # The simulator's.
    *("_sha1", "encodings.ascii"),
}
ROOMS = {
    "": {"config", "errors", "settings", "text", "values"},
    "hooks": {"job", "log_line", "run"},
    "mig": {"allocation", "driver", "geometry", "plan", "profile", "request"},
    "system": {
        *("boot", "causes", "detach", "elapsed", "held", "hosts", "programs", "replace"),
        *("space", "trust"),
    },
    "state": {
        *("event", "leases", "ledger", "locks", "monitoring", "run_files", "schema"),
        *("task_file", "turns"),
    },
    "gpu": {"capabilities", "holder", "indexes", "nvml", "remedies", "tables"},
    "node": {"node"},
    "transaction": {
        *("access", "evidence", "handover", "mig_mode", "recognise", "sweep", "teardown"),
        *("whereabouts", "workbench"),
    },
}
MORE = {
    "prolog": {"hooks.prolog", "transaction.carve"},
    "epilog": {"hooks.epilog", "transaction.release", "transaction.insist", "state.waiting"},
}

SPY = """
import json, sys
import pynvml, filelock
bare = set(sys.modules)
import os
from slurm_mig.hooks import run as hooks
first = hooks.run
# Of an Epilog itself, not of what it puts off.
hooks.run = lambda *_: 0
assert first(sys.argv[1], os.environ) == 0
compiled = [
    f"{name}.{item.__name__}"
    for name, module in sys.modules.items() if name.startswith("slurm_mig")
    for item in vars(module).values()
    if isinstance(item, type) and item.__module__ == name and hasattr(item, "__dataclass_params__")
]
print(json.dumps([sorted(set(sys.modules) - bare), compiled]))
"""


def loaded(site: Site, hook: str, environ: Mapping[str, str]) -> tuple[set[str], list[str]]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", SPY, hook],
        env={**environ, "SLURM_MIG_CONFIG": str(site.config)},
        capture_output=True,
        text=True,
        check=True,
    )
    modules, compiled = json.loads(done.stdout)
    return set(modules), compiled


def test_a_hook_loads_what_it_needs(site: Site) -> None:
    """One that is new here is imported where it is needed, or named here with its cost measured.

    A class that `dataclasses` makes costs half a millisecond: see `slurm_mig/values.py`.
    """
    environ = job_environ(7, "slurm-mig=1,1g.10gb/19/4:1")
    for hook in ("prolog", "epilog"):
        modules, compiled = loaded(site, hook, environ)
        ours = {name for name in modules if name.split(".")[0] == "slurm_mig"}
        rooms = {f"slurm_mig.{room}" if room else "slurm_mig" for room in ROOMS}
        listed = {
            ".".join(filter(None, ("slurm_mig", room, name)))
            for room, names in ROOMS.items()
            for name in names
        } | {f"slurm_mig.{name}" for name in MORE[hook]}
        simulator = {name for name in ours if name.startswith("slurm_mig.simulator")}
        assert modules - ours <= LIBRARY
        assert ours - simulator - rooms <= listed
        assert compiled == []


def test_an_epilog_that_puts_its_teardown_off_loads_half(make_site: Callable[..., Site]) -> None:
    """Neither the driver's binding nor the lock: they are most of what a hook loads."""
    site = make_site(H100, config="[hooks]\ndefer_teardown = true\n")
    environ = job_environ(7, "slurm-mig=1,1g.10gb/19/4:1")
    loaded(site, "prolog", environ)
    modules, _ = loaded(site, "epilog", environ)
    assert not {"slurm_mig.gpu.nvml", "slurm_mig.state.locks"} & modules
