"""Checks and their findings: one table, in which every check has a code. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from slurm_mig.doctor.facts import Facts

ERROR: Final = "error"
WARNING: Final = "warning"
NOTE: Final = "note"

#: error: jobs fail, a node drains or isolation has a hole. warning: it will, in a situation
#: that comes. note: worth knowing.
SEVERITIES: Final = (ERROR, WARNING, NOTE)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a check saw, and the line to write or the command to run."""

    evidence: str
    fix: str


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at.

    `needs` are areas (facts.AREAS); where one of them is a gap the check is not
    done. `page` is who says so: a manual page, or a page of ours.
    """

    code: str
    severity: str
    title: str
    needs: tuple[str, ...]
    page: str
    run: Callable[[Facts], Iterator[Problem]]

    @property
    def why(self) -> str:
        """What happens if nothing is done."""
        return " ".join((self.run.__doc__ or "").split())


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with the check that saw it."""

    check: Check
    evidence: str
    fix: str


@dataclass(frozen=True, slots=True)
class Result:
    """Findings by severity and code; skipped checks by the gap that hid them."""

    findings: tuple[Finding, ...]
    skipped: Mapping[str, tuple[str, ...]]
    done: int

    def count(self, severity: str) -> int:
        """How many findings of that severity."""
        return sum(item.check.severity == severity for item in self.findings)


#: Every check there is, by code.
CHECKS: Final[dict[str, Check]] = {}


def check(
    code: str, severity: str, title: str, *, needs: tuple[str, ...], page: str
) -> Callable[[Callable[[Facts], Iterator[Problem]]], Callable[[Facts], Iterator[Problem]]]:
    """Put a function into the table; its docstring says what happens if nothing is done."""

    def register(
        run: Callable[[Facts], Iterator[Problem]],
    ) -> Callable[[Facts], Iterator[Problem]]:
        if code in CHECKS:
            raise ValueError(code)
        CHECKS[code] = Check(code, severity, title, needs, page, run)
        return run

    return register


def examine(facts: Facts, checks: Sequence[Check]) -> Result:
    """Run every check whose needs are met; the same finding is told once."""
    found: dict[tuple[str, str, str], Finding] = {}
    skipped: dict[str, list[str]] = {}
    done = 0
    for item in checks:
        gap = next((area for area in item.needs if area in facts.gaps), None)
        if gap is not None:
            skipped.setdefault(gap, []).append(item.code)
            continue
        done += 1
        for problem in item.run(facts):
            key = (item.code, problem.evidence, problem.fix)
            found.setdefault(key, Finding(item, problem.evidence, problem.fix))
    ordered = sorted(
        found.values(), key=lambda one: (SEVERITIES.index(one.check.severity), one.check.code)
    )
    return Result(tuple(ordered), {area: tuple(codes) for area, codes in skipped.items()}, done)
