"""Restarting a unit: no shell, nothing of the job's environment, bounded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from slurm_mig.system.services import Services

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def fake(tmp_path: Path, body: str) -> Services:
    """A systemctl that does what a script says."""
    path = tmp_path / "systemctl"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Services((tmp_path / "none", path))


def test_called_with_the_unit_and_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came with the job reaches no root command."""
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("SYSTEMD_PAGER", "sh")
    log = tmp_path / "log"
    services = fake(tmp_path, f'echo "$@" >{log}; /usr/bin/env >>{log}')
    assert services.restart("nvidia-dcgm.service", 10) == ""
    asked, *environment = log.read_text().splitlines()
    assert asked == "--no-ask-password --no-pager restart -- nvidia-dcgm.service"
    names = {line.partition("=")[0] for line in environment}
    assert names - {"PWD", "_", "SHLVL", "OLDPWD"} == {"PATH", "LC_ALL"}


def test_why_it_failed(tmp_path: Path) -> None:
    """On one line, with systemd's words."""
    done = fake(tmp_path, "echo 'Unit x.service\nnot found.' >&2; exit 5").restart("x.service", 10)
    assert done == "exit 5: Unit x.service not found."
    assert Services((tmp_path / "none",)).restart("x.service", 10) == "there is no systemctl"
    (tmp_path / "systemctl").chmod(0o644)
    assert "Permission denied" in Services((tmp_path / "systemctl",)).restart("x.service", 10)


def test_one_that_does_not_end(tmp_path: Path) -> None:
    """Left to systemd after the time it was given."""
    started = time.monotonic()
    assert fake(tmp_path, "exec sleep 30").restart("x.service", 0.2) == "not done within 0.2 s"
    assert time.monotonic() - started < 5
