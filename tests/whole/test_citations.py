"""Every reason that code cites stands in this repository, under the heading it names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
CODE = ("slurm_mig", "tests", "bench", ".ci", "prolog", "epilog", "etc")
#: `facts/mig.md#bugs`, `exit-codes.md`; more anchors of the same page may follow: `, #calls`.
_CITED = re.compile(r"((?:[\w-]+/)*[\w-]+\.md)\b((?:,?\s*#[a-z][\w-]*)*)")


def cited() -> list[tuple[str, str, list[str]]]:
    """File that cites, page, and anchors on it."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *CODE]
    done = subprocess.run(listing, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    found = []
    for name in done.stdout.splitlines():
        path = CHECKOUT / name
        if path.suffix in {".svg", ".md"} or not path.is_file():
            continue
        for page, anchors in _CITED.findall(path.read_text("utf-8", "replace")):
            found.append((name, page, re.findall(r"#([\w-]+)", anchors)))
    return found


def page_of(name: str) -> Path | None:
    """A page is named from the checkout, or from docs/."""
    places = [CHECKOUT / name, CHECKOUT / "docs" / name]
    return next((place for place in places if place.is_file()), None)


def headings(page: Path) -> set[str]:
    """Anchors that GitHub and MkDocs give the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_there_is_something_to_check() -> None:
    pages = {page for _, page, anchors in cited() if anchors}
    assert {"facts/mig.md", "facts/slurm.md", "facts/design.md", "facts/packing.md"} <= pages


def test_every_citation_resolves() -> None:
    lost = [
        f"{name}: {page}#{'#'.join(anchors)}"
        for name, page, anchors in cited()
        if (at := page_of(page)) is None or not set(anchors) <= headings(at)
    ]
    assert not lost, "\n".join(lost)


@pytest.mark.parametrize(
    ("text", "page", "anchors"),
    [
        ("(facts/mig.md#bugs)", "facts/mig.md", ["bugs"]),
        ("facts/slurm.md#base, #requeue,\n#api.", "facts/slurm.md", ["base", "requeue", "api"]),
        ("docs/exit-codes.md says", "docs/exit-codes.md", []),
    ],
)  # fmt: skip
def test_reading_a_citation(text: str, page: str, anchors: list[str]) -> None:
    ((found, rest),) = _CITED.findall(text)
    assert (found, re.findall(r"#([\w-]+)", rest)) == (page, anchors)
