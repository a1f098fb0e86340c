"""Pages in a real browser: headless Chromium, as Debian has it, without a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (make pages)")

#: Opens each page in a frame, at each width runs the steps in it, and writes what they return.
_PAGE: Final = """<!doctype html><meta charset="utf-8"><body><script>
const asked = {asked};
const steps = async (frame, page) => {{ {steps} }};
const told = [];
(async () => {{
  for (const page of asked) {{
    const frame = document.createElement("iframe");
    frame.style.height = "800px";
    frame.src = page;
    if (!{scripts}) frame.sandbox = "allow-same-origin";
    await new Promise((done) => {{ frame.onload = done; document.body.append(frame); }});
    for (const width of {widths}) {{
      frame.style.width = width + "px";
      // A frame is laid out anew when it is looked at; its own listeners hear of it later.
      frame.contentDocument.body.getBoundingClientRect();
      frame.contentWindow.dispatchEvent(new Event("resize"));
      told.push([page, width, await steps(frame.contentWindow, frame.contentDocument)]);
    }}
    frame.remove();
  }}
  document.body.textContent = "TOLD" + JSON.stringify(told) + "TOLD";
}})();
</script>"""


def ask(
    asked: list[Path], widths: tuple[int, ...], steps: str, *, scripts: bool = True
) -> dict[tuple[str, int], Any]:
    """What JavaScript's `steps` return for each page at each width; `frame` and `page` are its.

    Without `scripts` the page runs none of its own.
    """
    assert CHROMIUM
    with tempfile.TemporaryDirectory() as scratch:
        driver = Path(scratch, "driver.html")
        pages = json.dumps([path.absolute().as_uri() for path in asked])
        words = {"widths": json.dumps(widths), "scripts": json.dumps(scripts)}
        driver.write_text(_PAGE.format(asked=pages, steps=steps, **words), "utf-8")
        done = subprocess.run(
            [
                *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--allow-file-access-from-files", f"--user-data-dir={scratch}/data"),
                *("--disable-background-networking", "--proxy-server=127.0.0.1:1"),
                *("--virtual-time-budget=60000", "--dump-dom", driver.as_uri()),
            ],
            # Whoever reads a page may be elsewhere than who wrote it.
            env={"HOME": scratch, "PATH": "/usr/bin:/bin", "TZ": "Asia/Kathmandu"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    match = re.search(r"TOLD(.*)TOLD</body>", done.stdout, re.DOTALL)
    assert match, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(html.unescape(match[1]))
    return {(page.rpartition("/")[2], width): found for page, width, found in told}


#: Elements that stick out of the window, where nothing lets one scroll to them.
STICKING_OUT: Final = """
  const wide = page.documentElement.clientWidth;
  const lost = (element) => {
    if (element.getBoundingClientRect().right <= wide + 1) return false;
    for (let up = element.parentElement; up && up !== page.body; up = up.parentElement) {
      const box = up.getBoundingClientRect();
      const scrolls = /auto|scroll/.test(frame.getComputedStyle(up).overflowX);
      if (scrolls && box.right <= wide + 1) return false;
    }
    return true;
  };
"""
