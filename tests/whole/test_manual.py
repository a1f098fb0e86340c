"""The manual says what the code does."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from slurm_mig import cli

TOP = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not (TOP / ".ci/make/reference.py").exists(), reason="no .ci/ here")


def reference(name: str = "reference") -> Any:
    spec = importlib.util.spec_from_file_location(name, TOP / f".ci/make/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_key_is_in_the_manual() -> None:
    """As the code has it: `make generated` writes the page."""
    assert (TOP / "docs/config.md").read_text() == reference().config_page()


def test_every_file_is_listed() -> None:
    """In its own first sentence, where people look for the place of a line."""
    page = (TOP / "docs/files.md").read_text()
    assert page == reference().files_page()
    assert "| `carve` |" in page


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


def test_examples_can_be_typed() -> None:
    """Each is of commands and options that there are, and says what it is for."""
    module = reference()
    known = dict(module.commands()) | {"slurm-mig": cli.cli}
    assert set(module.EXAMPLES) <= set(known)
    for name, examples in module.EXAMPLES.items():
        for typed, why in examples:
            words = shlex.split(typed)
            full = max((n for n in known if typed.startswith(f"{n} ")), key=len)
            assert typed.startswith(name), typed
            assert why.endswith((".", "?")), typed
            options = {word for item in known[full].params for word in item.opts}
            assert {word for word in words if word.startswith("-")} <= options, typed


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
    command += ["--config-file", str(TOP / ".ci/make/mkdocs.yml")]
    command += ["--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (TOP / "docs").glob("*.md")}
    made = {path.parent.name for path in (tmp_path / "site").glob("*/index.html")}
    assert pages <= made | {"index"}
    nav = (TOP / ".ci/make/mkdocs.yml").read_text()
    assert pages == set(re.findall(r": ([\w-]+)\.md$", nav, re.MULTILINE))


def test_pictures_are_of_this_planner() -> None:
    """`make generated` draws them: another placement or weight would be another picture."""
    drawn = reference("pictures").pictures()
    assert {path.name for path in (TOP / "docs/pictures").iterdir()} == set(drawn)
    for name, text in drawn.items():
        assert (TOP / "docs/pictures" / name).read_text() == text, name
        ElementTree.fromstring(text)


def test_screens_are_of_the_commands_they_name() -> None:
    """Each is there, begins with its command, is linked, and names no place of its origin."""
    screens = reference("screens").SCREENS
    pages = "".join(path.read_text() for path in (TOP / "docs").glob("*.md"))
    assert {path.name for path in (TOP / "docs/screens").iterdir()} == set(screens)
    for name, command in screens.items():
        text = (TOP / "docs/screens" / name).read_text()
        assert text.startswith(f"# {command.partition(' # ')[0]}\n"), name
        assert f"screens/{name}" in pages, name
        assert str(TOP) not in text


#: What a message is made of where the code builds it: words between the values.
SOURCES = [
    *TOP.glob("slurm_mig/**/*.py"),
    *TOP.glob("slurm_mig/data/lua/*.lua"),
    *TOP.glob("prolog/*"),
]
#: In the first column, and not ours: of Slurm, NVIDIA, a library, or no message at all.
NOT_OURS = re.compile(
    r"(Requested node|Invalid generic|Step requested|Prolog error|Epilog error|count reported|"
    r"multiple config|In use by|database disk image|BeginTime|JobHeldAdmin|Resources|Priority|"
    r"database is locked|No space left|Disk quota|Read-only file|Input/output|"
    r"ReqNodeNotAvail|LL_SHARED|MULTIPLE_SHARING|AccountingStorage|gres/mig|sacct|status|srun|"
    r"quarantined|foreign|CUDA_VISIBLE)"
)


def messages() -> list[str]:
    """The parts of what the first columns of docs/troubleshooting.md quote."""
    rows = re.findall(r"^\| (.*?) \| ", (TOP / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    spans = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    ours = [span for span in spans if not NOT_OURS.match(span)]
    return [part.strip() for span in ours for part in span.split("…") if len(part.strip()) > 3]


def test_messages_in_troubleshooting_are_the_codes_own() -> None:
    """A symptom is found by its words, so they have to be the words."""
    text = "".join(path.read_text() for path in SOURCES)
    # Strings that go on in the next line, in Python and in Lua.
    text = re.sub(r"\"\s*(\.\.)?\s*\n\s*(\.\.\s*)?f?\"", "", text)
    missing = [part for part in messages() if part not in text]
    assert len(messages()) > 40
    assert missing == []
