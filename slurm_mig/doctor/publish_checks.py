"""SM27x: publishing what fits: all of its parts, or none. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, WARNING, Problem, check
from slurm_mig.doctor.lua_checks import ours
from slurm_mig.slurm import conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.facts import Facts
    from slurm_mig.slurm.conf import NodeLine

#: First release with `SchedulerParameters=extra_constraints`.
EXTRA_SINCE: Final = (23, 11)

TIMER: Final = "slurm-mig-publish.timer"

#: Seconds after which counts are old: the timer looks each minute.
OLD: Final = 300

_PAGE: Final = "docs/publishing.md"
_MIG: Final = re.compile(r'"mig"\s*:\s*1\b')


def _counting(facts: Facts) -> list[NodeLine]:
    """Nodes that slurm.conf gives `fit` counts."""
    return [node for node in facts.managed if node.count("fit")]


def _anchors(facts: Facts) -> Iterator[NodeLine]:
    """Nodes that are down for good, with counts that keep jobs waiting."""
    for node in facts.nodes:
        if node.count("fit") and node.entry.get("State").upper() == "DOWN":
            yield node


@check(
    "SM271",
    ERROR,
    "fit is counted without extra_constraints",
    needs=("slurm.conf", "version"),
    page=f"slurm.conf(5): SchedulerParameters; {_PAGE}",
)
def no_expression(facts: Facts) -> Iterator[Problem]:
    """Slurm holds a job for good whose count is 0 everywhere at one moment."""
    value, seen = facts.setting("SchedulerParameters")
    word = "extra_constraints"
    lacks = _counting(facts) and not conf.has_word(value, word)
    if lacks and facts.version[:2] >= EXTRA_SINCE:
        yield Problem(seen, f"SchedulerParameters={conf.with_word(value, word)}")


@check(
    "SM272",
    ERROR,
    "fit is counted before Slurm 23.11 without a node that is never up",
    needs=("slurm.conf", "version"),
    page=_PAGE,
)
def no_anchor(facts: Facts) -> Iterator[Problem]:
    """Slurm refuses, or holds for good, a job whose count is 0 everywhere at one moment."""
    counting = [node for node in _counting(facts) if node not in list(_anchors(facts))]
    if counting and facts.version[:2] < EXTRA_SINCE and not any(_anchors(facts)):
        yield Problem(
            f"{counting[0].entry}: fit counts, and no node with them has State=DOWN",
            "take the line `#NodeName=mig-anchor` of slurm.conf.mig, into every partition",
        )


@check(
    "SM273",
    ERROR,
    "nodes and job_submit.lua do not agree whether fit is counted",
    needs=("slurm.conf", "job_submit.lua"),
    page=_PAGE,
)
def lua_differs(facts: Facts) -> Iterator[Problem]:
    """Jobs wait for what no node has, or nodes publish what no job asks for."""
    file = ours(facts.job_submit)
    if file is None or "local PUBLISH = " not in file.text:
        return
    asked = "local PUBLISH = true" in file.text
    for node in facts.managed:
        if bool(node.count("fit")) != asked:
            word = "asks for fit" if asked else "does not ask for fit"
            yield Problem(
                f"{node.entry.where}: node {node.name}, and {file.path} {word}",
                "set `publish` in the fleet file, run `slurm-mig generate`, and take over both",
            )
            return


@check(
    "SM274",
    ERROR,
    "a node without mig in its Extra where fit is counted",
    needs=("slurm.conf", "version", "registered"),
    page=_PAGE,
)
def no_extra(facts: Facts) -> Iterator[Problem]:
    """Slurm holds jobs for good that may run in such a node's partition."""
    if not _counting(facts) or facts.version[:2] < EXTRA_SINCE:
        return
    for name, found in facts.registered.items():
        if not _MIG.search(found.extra):
            yield Problem(
                f"node {name}: Extra={found.extra or '(none)'}",
                f"run `slurm-mig publish` on a node that publishes, and enable {TIMER}",
            )


@check(
    "SM275",
    WARNING,
    "fit is counted here, and nobody publishes it",
    needs=("slurm.conf", "node"),
    page=_PAGE,
)
def nobody_publishes(facts: Facts) -> Iterator[Problem]:
    """Counts stay as they are: too high, and jobs are refused, or too low, and none starts."""
    if not any(node.name == facts.target for node in _counting(facts)):
        return
    if facts.publish_off:
        yield Problem("`slurm-mig publish --off` was run here", "slurm-mig publish --on")
    elif not any(unit.name == TIMER for unit in facts.units):
        yield Problem(f"{TIMER} is in no target", f"systemctl enable --now {TIMER}")
    elif facts.published_age is None or facts.published_age > OLD:
        age = "never" if facts.published_age is None else f"{facts.published_age:.0f} s ago"
        yield Problem(
            f"what fits was published {age}",
            "run `slurm-mig publish`, and see `systemctl status slurm-mig-publish`",
        )
