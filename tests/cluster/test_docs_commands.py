"""Every command of the manual that needs a Slurm, as it stands, on the quick start's own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.cluster.accounted import MISSING
from tests.kit import machine, pages, quickstart
from tests.kit.manual_commands import CODES, ENDLESS, FOLLOWED, check, found, prepared, runnable

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(machine.missing()), reason=machine.missing()),
    pytest.mark.skipif(not (pages.TOP / ".ci").exists(), reason="an sdist has no .ci/"),
]

#: Whose commands submissions are, where the page does not say.
SUBMISSIONS = re.compile("sbatch|srun|salloc")
FILES = (
    "printf '#!/bin/sh\\nsleep 1\\n' >job.sh",
    "echo 'import os; print(os.environ[\"CUDA_VISIBLE_DEVICES\"])' >train.py",
    "cp job.sh rank && chmod +x rank",
)
#: Pages that speak of accounting.
DATABASE = ("admin.md", "audit.md", "from-static-mig.md")


def wanted(page: str) -> Iterator[tuple[int, pages.Block]]:
    """Blocks of a page with a command for Slurm."""
    for number, block in enumerate(found(page)):
        if runnable(block, "slurm"):
            yield number, block


PAGES = [path.name for path in pages.PAGES if path.name not in FOLLOWED and [*wanted(path.name)]]


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_need_slurm(page: str) -> None:
    """With the others of their block, in its order, with the exit code they should have."""
    database = page in DATABASE
    if database and MISSING:
        pytest.skip(f"no {', '.join(MISSING)} here")
    setup = quickstart.started(database=database)
    setup.append(["root", "ln -s /usr/bin/python3 /usr/local/bin/python"])
    setup += [["alice", text] for text in FILES]
    sessions = [setup]
    shown: list[list[pages.Command | None]] = [[None] * len(setup)]
    for number, block in wanted(page):
        before = prepared(block, number, slurm=True)
        commands = runnable(block, "here", "slurm")
        steps = [["root", text] for text in before]
        for item in commands:
            user = pages.USER if SUBMISSIONS.match(item.text) else item.user
            steps.append(
                [user, f"timeout 3 {item.text}" if ENDLESS.match(item.text) else item.text]
            )
        sessions.append(steps)
        shown.append([])
        shown[-1] += [None] * len(before)
        shown[-1] += commands
    expected = {key: list(codes) for key, codes in CODES.items()}
    results = machine.run(quickstart.SPEC | {"sessions": sessions}, timeout=150)
    for block_results, items in zip(results, shown, strict=True):
        for result, shown_item in zip(block_results, items, strict=True):
            check(result, shown_item, expected)
