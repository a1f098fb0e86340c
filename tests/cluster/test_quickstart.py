"""docs/quickstart.md as a new administrator follows it: every command, in order, as it stands."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest

from tests.kit import machine, pages, quickstart

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(machine.missing()), reason=machine.missing()),
]


def wheels(directory: Path) -> Path:
    """Our wheel, and those of what it needs, made from what is installed here."""
    if importlib.util.find_spec("hatchling"):
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    else:
        build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(directory), "."]
    subprocess.run(build, cwd=pages.TOP, check=True, capture_output=True)
    for name in ("click", "filelock", "nvidia-ml-py"):
        repack(metadata.distribution(name), directory)
    return directory


def repack(found: metadata.Distribution, directory: Path) -> None:
    tag = next(
        line.partition(": ")[2]
        for line in (found.read_text("WHEEL") or "").splitlines()
        if line.startswith("Tag: ")
    )
    files = [file for file in found.files or () if ".." not in file.parts and file.suffix != ".pyc"]
    stem = next(part for file in files for part in file.parts if part.endswith(".dist-info"))
    with zipfile.ZipFile(directory / f"{stem.removesuffix('.dist-info')}-{tag}.whl", "w") as wheel:
        for file in files:
            wheel.write(str(file.locate()), str(file))


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each step did."""
    place = wheels(tmp_path_factory.mktemp("wheels"))
    steps = quickstart.script()
    steps.append(["root", "cat /var/log/slurm/*.log /var/log/slurm*.service.log # look"])
    spec = {"host": "gpu01", "sessions": [steps], "wheels": str(place), "keep": [str(place)]}
    return machine.run(spec)[0]  # type: ignore[no-any-return]


def said(walked: list[dict[str, Any]], text: str) -> str:
    (found,) = [item["out"] for item in walked if item["statement"] == text]
    return str(found)


def test_every_step_works(walked: list[dict[str, Any]]) -> None:
    """Exit code 0, but for the request that is to be refused."""
    for item in walked:
        refused = "9g.90gb" in item["statement"]
        assert (item["code"] != 0) == refused, f"{item}\n{walked[-1]['out']}"


def test_the_first_job_has_its_slice(walked: list[dict[str, Any]]) -> None:
    """Seen by root while it runs, closed to others, and on record afterwards."""
    status = said(walked, "slurm-mig status")
    assert "3g.40gb" in status
    assert status.count("1g.10gb") >= 2
    assert "alice" in status
    assert re.search(r"^0 of \d+ tries failed", said(walked, "slurm-mig verify"), re.MULTILINE)
    rows = said(walked, "slurm-mig audit").splitlines()
    assert [row.split()[-1] for row in rows[1:-1]] == ["released"] * 4
    assert rows[-1] == "4 in all: 4 released"
    assert "unknown MIG profile" in said(walked, "sbatch --gres=mig:9g.90gb:1 job.sh")


def test_the_doctor_has_no_errors(walked: list[dict[str, Any]]) -> None:
    """What it finds on such a node are the missing cgroups alone."""
    found = said(walked, "slurm-mig doctor")
    print(found)
    assert "0 errors" in found
