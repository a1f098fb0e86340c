"""Sizes that the house keeps: a module that outgrows them wants a second room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "slurm_mig"
MODULES = sorted(HOUSE.rglob("*.py"))

#: Lines. Today's largest just fit.
MODULE, CLASS, FUNCTION = 780, 530, 60


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_nothing_is_too_large(path: Path) -> None:
    """Modules, classes and functions that can be read at one go."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= (CLASS if isinstance(node, ast.ClassDef) else FUNCTION), node.name


def test_each_room_says_what_it_is() -> None:
    """A folder's first line answers a reader's question in one sentence."""
    rooms = [path for path in HOUSE.iterdir() if (path / "__init__.py").exists()]
    assert len(rooms) > 10
    for room in rooms:
        words = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
        assert words.splitlines()[0].endswith("."), room
        assert f"{room.name} ." in (HOUSE.parent / "docs/development.md").read_text("utf-8")
