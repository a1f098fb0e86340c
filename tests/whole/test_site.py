"""The manual as a site, in a real browser: nothing is cut off at any width, and search finds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.browser import STICKING_OUT, ask, needs_chromium

TOP = Path(__file__).parents[2]

#: A phone, a tablet, a window, a large one.
WIDTHS = (360, 800, 1280, 1900)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once."""
    directory = tmp_path_factory.mktemp("manual") / "site"
    subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"),
            *("--config-file", TOP / ".ci/make/mkdocs.yml", "--site-dir", directory),
            "--no-directory-urls",
        ],
        check=True,
    )
    return directory


def test_search_knows_every_page(site: Path) -> None:
    """What the box searches in."""
    index = json.loads((site / "search/search_index.json").read_text())
    pages = {item["location"].partition("#")[0] for item in index["docs"]}
    assert {path.name for path in site.glob("*.html")} - {"404.html", "search.html"} <= pages


@needs_chromium
def test_nothing_is_cut_off(site: Path) -> None:
    """Tables, code and pictures fit, or can be scrolled to; words in narrow cells stay whole."""
    pages = sorted({*site.glob("*.html"), *site.glob("facts/*.html")})
    pages = [path for path in pages if path.name not in ("404.html", "search.html")]
    look = f"""{STICKING_OUT}
      const parts = "table, td, th, pre, img, p, li, h1, h2, h3";
      const out = [...page.querySelectorAll(".wy-nav-content :is(" + parts + ")")].filter(lost);
      // Only a phone may have to scroll inside a table.
      const scrolls = [...page.querySelectorAll("table")].filter(
        (table) => wide >= 800 && table.scrollWidth > table.clientWidth + 1);
      return [...out, ...scrolls].map((one) => one.tagName + " " + one.textContent.slice(0, 60));"""
    found = ask(pages, WIDTHS, look, scripts=False)
    assert {where: lost[:3] for where, lost in found.items() if lost} == {}
