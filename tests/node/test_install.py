"""Installed hooks: complete, executable, with this installation's paths."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from slurm_mig.errors import NodeFault
from slurm_mig.node import install_texts

pytestmark = pytest.mark.root


def put(directory: Path, **paths: str) -> None:
    values = {"python": "/usr/bin/python3", "config": "/etc/c.toml", "run": "/run/m"} | paths
    install_texts.install_hooks(
        directory, *(Path(values[name]) for name in ("python", "config", "run"))
    )


def test_three_scripts_and_nothing_else(tmp_path: Path) -> None:
    """A stray file in a prolog.d drains nodes (facts/slurm.md#prologd)."""
    put(tmp_path / "hooks")
    assert sorted(path.name for path in (tmp_path / "hooks").iterdir()) == [
        "epilog", "prolog", "task_prolog",
    ]  # fmt: skip
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o755 for p in (tmp_path / "hooks").iterdir())


def test_installing_again_changes_nothing(tmp_path: Path) -> None:
    """And replaces whole files, for one may be running."""
    put(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    put(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("odd", ["/a b/c", "/it's", "/$(touch x)/`y`", '/"q"', "/a\\b"])
def test_odd_paths_stay_paths(tmp_path: Path, odd: str) -> None:
    """Quoted for the shell, whatever they contain."""
    put(tmp_path, python=odd, config=odd, run=odd)
    script = (tmp_path / "epilog").read_text()
    head = script[: script.index("# After a restart")]
    show = f'{head}\nprintf "%s\\n" "$python" "$config" "$run"'
    done = subprocess.run(["/bin/sh", "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [odd] * 3


def test_the_nodes_name_in_the_run_directory(tmp_path: Path) -> None:
    """%n is filled in by the shell from SLURMD_NODENAME, and by Python in the config's path."""
    put(tmp_path, run="/x/%n/run", config="/x/%n/c.toml")
    head = (tmp_path / "epilog").read_text().split("# After")[0]
    show = f'{head}\nprintf "%s\\n" "$config" "$run"'
    environ = os.environ | {"SLURMD_NODENAME": "n 1"}
    done = subprocess.run(
        ["/bin/sh", "-c", show], capture_output=True, text=True, check=True, env=environ
    )
    assert done.stdout.splitlines() == ["/x/%n/c.toml", "/x/n 1/run"]


def test_the_shipped_scripts_are_plain_sh() -> None:
    """Dash accepts them, and they run without any setting changed."""
    for script in install_texts.HOOKS.values():
        path = install_texts.sources() / script
        subprocess.run(["/bin/sh", "-n", path], check=True)
        assert os.access(path, os.X_OK)
        assert path.read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("bad", ["a", "a/hooks"])
def test_a_directory_that_users_can_write_to(tmp_path: Path, bad: str) -> None:
    """Slurmd runs as root whatever lies there: refused, nothing written."""
    (tmp_path / "a/hooks").mkdir(parents=True)
    (tmp_path / bad).chmod(0o777)
    with pytest.raises(NodeFault, match=f"{tmp_path / bad}.* with mode 0777"):
        put(tmp_path / "a/hooks")
    assert list((tmp_path / "a/hooks").iterdir()) == []


#: Each gives a unit mounts of its own: what it unmounts there, the node keeps (systemd.exec(5)).
OWN_MOUNTS = (
    "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateMounts", "ReadOnlyPaths",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
    "ProtectProc", "ProcSubset", "PrivateDevices", "InaccessiblePaths", "TemporaryFileSystem",
)  # fmt: skip
#: Either lists the devices that a unit may open; NVIDIA's are none of them.
OWN_DEVICES = ("DeviceAllow", "DevicePolicy", "PrivateDevices", "ProtectClock")


@pytest.mark.parametrize(
    "unit", [name for name in install_texts.UNITS if name.endswith(".service")]
)
def test_what_units_bear(unit: str) -> None:
    """Their lines have our name, exec gains nothing, GPUs and the node's mounts are there."""
    text = (install_texts.sources() / unit).read_text()
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] != "#")
    assert lines["SyslogIdentifier"] == "slurm-mig"
    assert not lines.keys() & set(OWN_DEVICES)
    # Metrics unmounts nothing; the others take down leases of ended jobs.
    assert bool(lines.keys() & set(OWN_MOUNTS)) == ("metrics" in unit)
    if "warm" in unit:
        # Hooks run in it: it has slurmd's rights, as they have elsewhere.
        return
    assert lines["NoNewPrivileges"] == "yes"
    taken = lines["CapabilityBoundingSet"].removeprefix("~").split()
    assert not {"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_KILL", "CAP_SYS_PTRACE"} & set(taken)
