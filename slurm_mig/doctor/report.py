"""Findings for people and programs. Pure."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.doctor.check import ERROR, NOTE, SEVERITIES, WARNING
from slurm_mig.doctor.facts import AREAS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurm_mig.doctor.check import Check, Finding, Result

WIDTH: Final = 80

_HEADINGS: Final = {ERROR: "ERRORS", WARNING: "WARNINGS", NOTE: "NOTES"}


def text(result: Result, reasons: dict[str, str]) -> str:
    """The findings by severity, what was not looked at, and a line that sums up."""
    lines: list[str] = []
    for severity in SEVERITIES:
        found = [item for item in result.findings if item.check.severity == severity]
        if found:
            lines += [_HEADINGS[severity], *_findings(found)]
    return "\n".join([*lines, *_gaps(result, reasons), summary(result)])


def _findings(found: Sequence[Finding]) -> Iterator[str]:
    """Findings of one check below one title, with what follows from them and who says so."""
    for number, item in enumerate(found):
        new = number == 0 or found[number - 1].check.code != item.check.code
        last = number + 1 == len(found) or found[number + 1].check.code != item.check.code
        if new:
            yield from _wrapped(f"{item.check.code}  ", item.check.title)
            yield from _wrapped("       ", item.check.why)
        yield from _wrapped("  seen ", item.evidence)
        yield from _wrapped("  fix  ", item.fix)
        if last:
            yield from _wrapped("  page ", item.check.page)
            yield ""


def _wrapped(head: str, body: str) -> list[str]:
    # A path or a line for slurm.conf is never broken: it is there to be copied.
    return textwrap.wrap(
        printable(body),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * 7,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]


def printable(body: str) -> str:
    """A file's text must not move the cursor or forge a line."""
    return "".join(char if char.isprintable() else " " for char in body)


def _gaps(result: Result, reasons: dict[str, str]) -> Iterator[str]:
    """What was not looked at, and why: by reason, with the codes of its checks."""
    by_reason: dict[str, list[str]] = {}
    for area in result.skipped:
        by_reason.setdefault(reasons[area], []).append(area)
    if by_reason:
        yield "NOT CHECKED"
    for reason, areas in by_reason.items():
        codes = sorted(code for area in areas for code in result.skipped[area])
        what = ", ".join(AREAS[area] for area in areas)
        yield from _wrapped("", f"{what}: {reason}")
        yield from _wrapped("       ", " ".join(codes))
        yield ""


def summary(result: Result) -> str:
    """One line: how many of each, how many checks were done and how many were not."""
    counts = ", ".join(
        f"{count} {severity}{'' if count == 1 else 's'}"
        for severity in SEVERITIES
        for count in [result.count(severity)]
    )
    left = sum(map(len, result.skipped.values()))
    return f"{counts}; {result.done} checks done, {left} not done"


def data(result: Result, reasons: dict[str, str]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "findings": [
            {
                "code": item.check.code,
                "severity": item.check.severity,
                "title": item.check.title,
                "why": item.check.why,
                "evidence": item.evidence,
                "fix": item.fix,
                "page": item.check.page,
            }
            for item in result.findings
        ],
        "not_checked": [
            {"area": area, "reason": reasons[area], "codes": list(codes)}
            for area, codes in result.skipped.items()
        ],
        "summary": {severity: result.count(severity) for severity in SEVERITIES}
        | {"done": result.done, "not_done": sum(map(len, result.skipped.values()))},
    }


def listing(checks: Sequence[Check]) -> str:
    """Every check with its severity and who says so, two lines each."""
    lines = []
    for item in checks:
        lines += _wrapped(f"{item.code}  {item.severity:7}  ", item.title)
        lines += _wrapped("       ", item.page)
    return "\n".join(lines)


def manual(checks: Sequence[Check]) -> str:
    """The table of docs/doctor.md."""
    rows = [
        f"| {item.code} | {item.severity} | {item.title} | {item.why} | {item.page} |"
        for item in checks
    ]
    head = "| code | severity | finding | what happens | who says so |\n|---|---|---|---|---|"
    return "\n".join([head, *rows]) + "\n"
