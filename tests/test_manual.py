"""The manual says what the code does."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (TOP / ".ci/reference.py").exists(), reason="an sdist has no .ci/"
)


def reference() -> Any:
    spec = importlib.util.spec_from_file_location("reference", TOP / ".ci/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_key_is_in_the_manual() -> None:
    """As the code has it: `make generated` writes the page."""
    assert (TOP / "docs/config.md").read_text() == reference().config_page()


def test_every_command_has_its_pages() -> None:
    """A man page and a place in the reference, with every option; click may word them anew."""
    module = reference()
    listed = (TOP / "docs/commands.md").read_text()
    names = set()
    for name, command in module.commands():
        page = (TOP / f"docs/man/{name.replace(' ', '-')}.1").read_text()
        names.add(f"{name.replace(' ', '-')}.1")
        _, _, section = listed.partition(f"\n## {name}\n")
        section = section.partition("\n## ")[0]
        for option in (word for item in command.params for word in item.opts if word[0] == "-"):
            assert option in section, (name, option)
            assert option.replace("-", "\\-") in page, (name, option)
    assert {path.name for path in (TOP / "docs/man").iterdir()} == names | {"slurm-mig.1"}


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff here")
def test_man_pages_are_well_formed() -> None:
    """Groff has nothing to complain about."""
    for path in sorted((TOP / "docs/man").iterdir()):
        command = ["groff", "-man", "-ww", "-z", "-Tutf8", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), path


def test_the_site_builds(tmp_path: Path) -> None:
    """Every link leads somewhere, every page is in the table of contents."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    command += ["--config-file", str(TOP / ".ci/mkdocs.yml"), "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (TOP / "docs").glob("*.md")}
    made = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert pages <= made | {"index"}
    nav = (TOP / ".ci/mkdocs.yml").read_text()
    assert pages == set(re.findall(r": ([\w-]+)\.md$", nav, re.MULTILINE))
