"""Jobs from files that nobody here wrote: refused in a sentence, or left out by reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.mig import catalog
from slurm_mig.packing import tables
from slurm_mig.packing.jobs import read_sacct, read_trace
from slurm_mig.packing.setups import prices

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "Submit|ElapsedRaw|AllocTRES"
ROW = "2026-03-01T12:00:00|60|gres/mig:1g.10gb=1"
MANY = "9" * 5000


def trace(path: Path, **other: str) -> Path:
    row = {"submit": "0", "duration": "10", "profile": '"1g.10gb"'} | other
    jobs = ",".join(f'"{name}":{value}' for name, value in row.items())
    path.write_text(f'{{"gpus":8,"jobs":[{{{jobs}}}]}}')
    return path


@pytest.mark.parametrize("name", ["submit", "duration", "limit"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1", "1e400", "1" + "0" * 400, '"1"'])
def test_a_time_of_a_trace(tmp_path: Path, name: str, value: str) -> None:
    """With NaN a replay never ended, with -1 or Infinity its figures were wrong."""
    with pytest.raises(UsageFault, match=rf"job 1: .*{name} .*: a number of seconds"):
        read_trace(trace(tmp_path / "t", **{name: value}))


@pytest.mark.parametrize("value", ["0", "-1", "1.7", "1e400", '"2"', "true", "1" + "0" * 400])
def test_a_count_of_a_trace(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageFault, match=r"job 1: .*count .*: a whole number from 1"):
        read_trace(trace(tmp_path / "t", count=value))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"jobs":5}', "is no trace"),
        ('{"jobs":null}', "is no trace"),
        ("[" * 100_000, "is no trace"),
        ('{"gpus":"8","jobs":[]}', "gpus '8': a whole number"),
        ('{"gpus":-1,"jobs":[]}', "gpus -1: a whole number"),
        ('{"gpus":1e9,"jobs":[]}', "gpus 1000000000.0: a whole number"),
    ],
)
def test_what_is_no_trace(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(UsageFault, match=told):
        read_trace(path)


@pytest.mark.parametrize(
    "row",
    [
        ROW.replace("60", "\u00b2"),
        ROW.replace("60", MANY),
        ROW.replace("60", f"{MANY}-00:00:00"),
        ROW.replace("2026-03-01T12:00:00", "\u00b2"),
        ROW.replace("2026-03-01T12:00:00", MANY),
        ROW.replace("b=1", f"b={MANY}"),
    ],
)
def test_a_line_of_sacct_without_sense(tmp_path: Path, row: str) -> None:
    """Left out and counted; the others are taken."""
    path = tmp_path / "s"
    path.write_text(f"\ufeff{HEAD}\n{row}\n{ROW}\n", "utf-8")
    found = read_sacct(path)
    assert len(found.jobs) == 1
    assert found.left_out.total() == 1


def test_other_files_of_json(tmp_path: Path) -> None:
    """What json takes and no number is: nesting, and 1e400, which it reads as infinity."""
    path = tmp_path / "f"
    geometry = catalog.find("h100-80gb-sxm").geometry()
    for text in ("[" * 100_000, '{"capacity":1e400,"weights":{}}'):
        path.write_text(text)
        with pytest.raises(UsageFault, match="--weights"):
            prices(str(path), geometry)
    for text in (
        "[" * 100_000,
        f'{{"form":"{tables.FORM}","classes":[[[1e400,1]]],"values":{{}}}}',
    ):
        path.write_text(text)
        with pytest.raises(UsageFault, match="no table of slots"):
            tables.read(path)
