"""Pictures: the same bytes each time, everything told, nothing from elsewhere."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from slurm_mig.audit.paint import paint
from slurm_mig.audit.timeline import Gpu, picture
from slurm_mig.errors import NodeFault, UsageFault
from slurm_mig.mig.allocation import QUARANTINED
from tests.kit.audit_records import held, record, refusal, whole

if TYPE_CHECKING:
    from pathlib import Path

    from slurm_mig.audit.timeline import Picture

DAY = 86400.0
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def drawn() -> Picture:
    """A day of two GPUs, with a name that would be markup, a formula and a control character."""
    items = held(
        record(7, 1.75e9, 1.75e9 + DAY / 2, user="<b>$x$&\x1b"),
        record(8, 1.75e9 + DAY / 3, None, ("1g.10gb", 4), phase=QUARANTINED),
        whole(9, 1.75e9 + DAY / 2, 1.75e9 + DAY),
        refusal(10, 1.75e9 + 10),
    )
    gpus = [Gpu("n1", "GPU-a", 0, "H100", 8), Gpu("n2", "GPU-b", 0, "A30", 4)]
    return picture(items, gpus, "user", since=None, until=None, now=1.75e9 + DAY)


def test_svg(drawn: Picture, tmp_path: Path) -> None:
    """Well-formed; each slice and refusal says whose, what, from when to when."""
    out = tmp_path / "t.svg"
    paint(drawn, out)
    tree = ET.parse(out)
    titles = [str(item.text) for item in tree.iter(f"{SVG}title")]
    assert len(titles) == 4
    assert titles[0].startswith("job 7 (<b>$x$&?, physics)\n3g.40gb@0\nMIG-1-0\nreleased\n20")
    assert titles[1].endswith(" to now")
    assert any(text.startswith("job 10 (") and "\nno room\n" in text for text in titles)
    text = out.read_text("utf-8")
    assert "<script" not in text
    assert "<image" not in text


@pytest.mark.parametrize("ending", [".svg", ".png", ".html"])
def test_the_same_picture_is_the_same_file(drawn: Picture, tmp_path: Path, ending: str) -> None:
    """So that a page kept under version control does not change by itself."""
    one, other = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    paint(drawn, one)
    paint(drawn, other)
    assert one.read_bytes() == other.read_bytes()


def test_png(drawn: Picture, tmp_path: Path) -> None:
    """A picture that grows with the GPUs."""
    sizes = []
    for number, bands in enumerate((drawn.bands, [*drawn.bands, *drawn.bands])):
        out = tmp_path / f"{number}.png"
        paint(replace(drawn, bands=bands), out)
        data = out.read_bytes()
        assert data.startswith(b"\x89PNG")
        sizes.append(int.from_bytes(data[20:24]))
    assert sizes[1] > sizes[0]


def test_html(drawn: Picture, tmp_path: Path) -> None:
    """One page that needs nothing else."""
    out = tmp_path / "t.html"
    paint(drawn, out)
    text = out.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("<svg") == 1
    assert "<script" not in text
    assert "<b>" not in text


def test_without_matplotlib(
    drawn: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the extra; no file."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageFault, match=r'pip install "slurm-mig\[timeline\]"'):
        paint(drawn, tmp_path / "t.svg")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".svg", ".png", ".html"])
def test_what_is_no_file_is_left_alone(drawn: Picture, tmp_path: Path, ending: str) -> None:
    """A FIFO that nobody reads would keep the command waiting for ever."""
    os.mkfifo(tmp_path / f"t{ending}")
    with pytest.raises(NodeFault, match="it is a FIFO"):
        paint(drawn, tmp_path / f"t{ending}")
