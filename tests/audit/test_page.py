"""The report: its figures, and the page in a real browser."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from slurm_mig.audit.page import page
from slurm_mig.audit.report import PARTS, Report, reason_of, report
from slurm_mig.audit.timeline import COLOURED, Gpu, colours
from slurm_mig.audit.totals import totals
from tests.kit.audit_records import held, record, refusal, whole
from tests.kit.browser import STICKING_OUT, ask, needs_chromium

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3600.0
BEGIN = 1.75e9
GPUS = [Gpu("n1", "GPU-a", 0, "H100", 8), Gpu("n1", "GPU-b", 1, "H100", 8)]


class Counted:
    """Jobs by key."""

    def __init__(self) -> None:
        self.found: dict[str, set[int]] = {}

    def add(self, key: str, number: int) -> None:
        self.found.setdefault(key, set()).add(number)

    def counts(self) -> dict[str, int]:
        return {key: len(numbers) for key, numbers in self.found.items()}


@pytest.fixture
def shown() -> Report:
    """Four hours of two GPUs."""
    items = held(
        record(7, BEGIN, BEGIN + 2 * HOUR, ("3g.40gb", 4)),
        record(8, BEGIN + HOUR, None, ("1g.10gb", 0), user="<b>bob</b>", account="biology"),
        whole(9, BEGIN + 2 * HOUR, BEGIN + 4 * HOUR),
        refusal(
            10, BEGIN + HOUR, reason="job 10: GPU 0 (GPU-a): no placement for 3g.40gb:1: taken x"
        ),
        refusal(11, BEGIN + HOUR, reason="job 11: GPU 1 (GPU-b): no placement for 3g.40gb:1"),
        record(10, BEGIN + 3 * HOUR, None, ("3g.40gb", 0), node="n1", gpu_uuid="GPU-b"),
    )
    return report(items, GPUS, None, BEGIN + 4 * HOUR)


@pytest.fixture
def path(shown: Report, tmp_path: Path) -> Path:
    items = [row.item for row in shown.rows] + list(shown.refusals)
    sums = {
        by: totals(items, by, shown.since, shown.until, Counted()) for by in ("user", "account")
    }
    out = tmp_path / "report.html"
    out.write_text(page(shown, sums, ["what ended before is <elsewhere>"]), "utf-8")
    return out


def test_occupancy(shown: Report) -> None:
    """Of each GPU and profile, in each part of the span."""
    assert len(shown.by_gpu[0]) == PARTS
    assert shown.by_gpu[0][0] == pytest.approx(4 / 8)
    assert shown.by_gpu[0][PARTS // 2 - 1] == pytest.approx(5 / 8)
    assert shown.by_gpu[1][0] == 0
    assert shown.by_gpu[1][-1] == pytest.approx(4 / 8)
    assert shown.by_profile["3g.40gb"][0] == pytest.approx(4 / 16)
    area = 2 * 4 / 8 + 3 / 8 + 2 + 1 * 4 / 8
    assert shown.occupancy == pytest.approx(area / 8)


def test_refusals_and_waits(shown: Report) -> None:
    """Reasons without what is one job's; waits from the first refusal to the slice."""
    assert shown.reasons == [("no placement for 3g.40gb:1", 2, BEGIN + HOUR)]
    (wait,) = shown.waits
    assert (wait.refused, wait.served, wait.median, wait.longest) == (2, 1, 2 * HOUR, 2 * HOUR)
    assert reason_of("") == "-"


def test_nothing_on_record() -> None:
    """An empty week of a GPU is a page, too."""
    empty = report([], GPUS, BEGIN, BEGIN + HOUR)
    assert (empty.occupancy, empty.rows, empty.waits) == (0, [], [])
    assert page(empty, {"user": [], "account": []}, []).count("None.") == 6


def test_colours_stay() -> None:
    """A user's colour does not depend on who else is there, unless two have the same by name."""
    names = [f"user{number}" for number in range(8)]
    alone = {name: colours([name])[name] for name in names}
    together = colours(names)
    assert len(set(together.values())) == len(names)
    first = {place: name for name, place in reversed(alone.items())}
    assert {name: together[name] for name in first.values()} == {
        name: place for place, name in first.items()
    }
    assert len(first) > 3
    assert len(colours(f"u{number}" for number in range(40))) == COLOURED


def test_text_is_text(path: Path) -> None:
    """What users wrote is no markup, and nothing is fetched from anywhere."""
    text = path.read_text("utf-8")
    assert "<b>bob" not in text
    assert "&lt;b&gt;bob" in text
    assert not re.search(r"""(src|href|url|@import)\s*[=(]""", text)
    assert "default-src &#x27;none&#x27;" in text


#: Filters for bob, zooms in twice, shows all again.
STEPS = """
  const count = () => page.querySelectorAll("#drawn rect.slice").length;
  const told = () => page.getElementById("told").textContent;
  const rows = [...page.querySelectorAll("#slices tbody tr")];
  const visible = () => rows.filter((row) => !row.hidden).length;
  const first = [count(), told(), visible()];
  const field = page.getElementById("filter");
  field.value = "BOB"; field.dispatchEvent(new frame.Event("input"));
  const filtered = [count(), told(), visible()];
  field.value = ""; field.dispatchEvent(new frame.Event("input"));
  page.getElementById("in").click(); page.getElementById("in").click();
  const zoomed = count();
  page.getElementById("all").click();
  const again = count();
  const title = page.querySelector("#drawn title").textContent;
  const ticks = [...page.querySelectorAll("#drawn text")].map((one) => one.textContent)
    .filter((text) => text.includes(":"));
  const dark = frame.matchMedia("(prefers-color-scheme: dark)").matches;
"""


@needs_chromium
def test_in_a_browser(path: Path) -> None:
    """The timeline is drawn, filtered and zoomed; nothing sticks out, on a phone neither."""
    widths = (320, 390, 800, 1400)
    look = f"""{STEPS}{STICKING_OUT}
      const out = [...page.querySelectorAll("body *")].filter(lost).map((e) => e.tagName);
      return {{ first, filtered, zoomed, again, title, out, ticks, dark }};"""
    for told in ask([path], widths, look).values():
        assert told["out"] == []
        assert told["first"] == [4, "4 of 4 slices", 4]
        assert told["filtered"] == [1, "1 of 4 slices", 1]
        assert told["zoomed"] < told["again"] == 4
        # By the clock of who wrote the page, as in its tables.
        steps = [time.localtime(BEGIN // 300 * 300 + 300 * step) for step in range(50)]
        assert told["ticks"]
        assert set(told["ticks"]) <= {time.strftime("%m-%d %H:%M", step) for step in steps}
        assert told["title"].startswith("job 7 of alice (physics)\n3g.40gb@4, released\n20")


@needs_chromium
def test_without_a_script(path: Path) -> None:
    """Tables and charts are there, and no empty place for a timeline."""
    look = f"""{STICKING_OUT}
      const out = [...page.querySelectorAll("body *")].filter(lost).map((e) => e.tagName);
      const height = page.getElementById("timeline").offsetHeight;
      return {{ out, height, rows: page.querySelectorAll("#slices tbody tr").length }};"""
    (told,) = ask([path], (390,), look, scripts=False).values()
    assert told == {"out": [], "height": 0, "rows": 4}
