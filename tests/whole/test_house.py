"""Sizes that the house keeps: a module that outgrows them wants a second room."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

HOUSE = Path(__file__).parents[2] / "slurm_mig"
MODULES = sorted(HOUSE.rglob("*.py"))

#: Lines. Today's largest just fit.
MODULE, CLASS, FUNCTION = 786, 530, 60


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_nothing_is_too_large(path: Path) -> None:
    """Modules, classes and functions that can be read at one go."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= (CLASS if isinstance(node, ast.ClassDef) else FUNCTION), node.name


def test_no_modules_import_in_a_circle() -> None:
    """Also below one room, where the layers say nothing: whoever reads one would need the other."""
    graph = grimp.build_graph("slurm_mig")
    arrows = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert sum(map(len, arrows.values())) > 500
    TopologicalSorter(arrows).prepare()


def test_each_room_says_what_it_is() -> None:
    """A folder's first line answers a reader's question in one sentence."""
    rooms = [path for path in HOUSE.iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) > 10
    for room in rooms:
        words = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
        assert words.splitlines()[0].endswith("."), room
        assert f"{room.name} ." in (HOUSE.parent / "docs/development.md").read_text("utf-8")


def test_no_test_imports_from_another() -> None:
    """What two tests need stands in tests/kit: a change of one test file breaks no other."""
    tests = HOUSE.parent / "tests"
    files = sorted(tests.rglob("*.py"))
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [f"{node.module}.{item.name}" for item in node.names]
                assert not any(".test_" in f".{name}" for name in names if "tests" in name), path
                assert not any("conftest" in name for name in names), path


def test_each_room_has_its_tests() -> None:
    """A folder of tests/ is a room of the package, or one of the three that are none."""
    tests = HOUSE.parent / "tests"
    rooms = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").exists()}
    folders = {path.name for path in tests.iterdir() if (path / "__init__.py").exists()}
    assert folders - rooms == {"kit", "cluster", "whole"}
    assert rooms <= folders
