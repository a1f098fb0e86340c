"""What users type, on static MIG and on ours, on every Slurm that Debian has: one table.

Arguments: suites instead of all. Exit 1 on a difference that has no reason in
tests/cluster/forms_excused.py, or when a release could not be asked.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

from matrix import CannotRun, end, last_words, run_main, table
from roots import SUITES, Root

#: A user of the root's own: 26.05 reads a login shell's environment for some options, and
#: without a line in shadow `su` has no account.
COMMAND: Final = (
    "printf 'alice:x:64001:64001::/tmp:/bin/sh\\n' >>/etc/passwd && "
    "printf 'alice:x:64001:\\n' >>/etc/group && "
    "printf 'alice:*:20000:0:99999:7:::\\n' >>/etc/shadow && "
    "exec /venv/bin/python -m tests.cluster.forms --out /results/forms.json"
)
#: Characters of a cell.
WIDE: Final = 120


def ask(root: Root) -> dict[str, Any]:
    """Make a root unless it is there, and run both worlds in it."""
    with root.held(), tempfile.TemporaryDirectory(prefix="slurm-mig-results-") as name:
        root.make()
        code = end(root.start(Path(name), ["sh", "-c", COMMAND]))
        out = Path(name) / "forms.json"
        if not out.exists():
            raise CannotRun(f"no answer (exit {code}): {last_words(root.log('tests'))}")
        found: dict[str, Any] = json.loads(out.read_text("utf-8"))
        return found


def rows(answers: dict[str, dict[str, Any]]) -> list[list[str]]:
    """One row for each form and each set of releases that gave the same."""
    by_form: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for suite, answer in answers.items():
        for row in answer["rows"]:
            key = (row["verdict"], row["static"], row["ours"])
            by_form.setdefault(row["form"], {}).setdefault(key, []).append(SUITES[suite])
    return [
        [form, " ".join(releases), verdict, short(static), "=" if ours == static else short(ours)]
        for form, found in by_form.items()
        for (verdict, static, ours), releases in found.items()
    ]


def short(text: str) -> str:
    """As much as a line of the table takes."""
    return text if len(text) <= WIDE else f"{text[: WIDE - 3]}..."


def main() -> int:
    """Ask all of them, one after the other."""
    if os.geteuid() != 0:
        sys.exit("debootstrap and mounts need root")
    answers: dict[str, dict[str, Any]] = {}
    problems = []
    for suite in sys.argv[1:] or SUITES:
        try:
            answers[suite] = ask(Root(suite))
            print(f"Slurm {answers[suite]['version']}: asked", flush=True)
        except CannotRun as reason:
            problems.append(f"{suite}: {reason}")
    print(table(["form", "release", "", "static MIG gave", "we gave"], rows(answers)))
    print("\nWhy not equal:")
    whys = {(row["verdict"], row["why"]) for a in answers.values() for row in a["rows"]}
    print("\n".join(f"  {verdict}: {why}" for verdict, why in sorted(whys) if why))
    print()
    for answer in answers.values():
        counts = Counter(row["verdict"] for row in answer["rows"])
        lines = ", ".join(f"{number} {verdict}" for verdict, number in counts.items())
        print(f"Slurm {answer['version']}: {len(answer['rows'])} forms: {lines}")
        problems += ["a difference without a reason"] if counts["DIFFERS"] else []
        # Both fail alike, and nothing is compared.
        if any("user env" in row["static"] for row in answer["rows"]):
            problems.append("slurmd could not read the environment of the root's user")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    run_main(main)
