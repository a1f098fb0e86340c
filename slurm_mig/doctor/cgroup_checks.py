"""SM4xx: whether jobs are kept to their GPUs and their processes found. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.doctor.check import WARNING, Problem, check
from slurm_mig.slurm import conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.facts import Facts


def _cgroup(facts: Facts, key: str) -> tuple[str, str]:
    entry = facts.cgroup.last(key)
    if entry is None:
        return "", f"{facts.cgroup.path}: no {key}"
    return entry.get(key).lower(), str(entry)


@check(
    "SM401",
    WARNING,
    "ConstrainDevices is not yes",
    needs=("cgroup.conf",),
    page="cgroup.conf(5): ConstrainDevices; docs/security.md",
)
def constrain(facts: Facts) -> Iterator[Problem]:
    """A job can open GPUs that it does not have. Slices stay closed by their nodes' modes."""
    value, seen = _cgroup(facts, "ConstrainDevices")
    if value != "yes":
        yield Problem(seen, "ConstrainDevices=yes")


@check(
    "SM402",
    WARNING,
    "ConstrainDevices=yes without task/cgroup",
    needs=("cgroup.conf", "slurm.conf"),
    page="slurm.conf(5): TaskPlugin; cgroup.conf(5): ConstrainDevices",
)
def task_plugin(facts: Facts) -> Iterator[Problem]:
    """cgroup.conf is then without effect: nothing is constrained."""
    value, seen = facts.setting("TaskPlugin")
    if _cgroup(facts, "ConstrainDevices")[0] == "yes" and not conf.has_word(
        value, "task/cgroup", "cgroup"
    ):
        rest = conf.without_word(value, ("task/none", "none"))
        yield Problem(seen, f"TaskPlugin={conf.with_word(rest, 'task/cgroup')}")


@check(
    "SM403",
    WARNING,
    "ProctrackType is not proctrack/cgroup",
    needs=("slurm.conf",),
    page="slurm.conf(5): ProctrackType",
)
def proctrack(facts: Facts) -> Iterator[Problem]:
    """A process that leaves its session outlives the job and keeps the slice in use."""
    value, seen = facts.setting("ProctrackType")
    # Unset is proctrack/cgroup (slurm.conf(5)).
    if value and value.lower() not in ("proctrack/cgroup", "cgroup"):
        yield Problem(seen, "ProctrackType=proctrack/cgroup")


@check(
    "SM404",
    WARNING,
    "ConstrainDevices=yes with CgroupPlugin=disabled",
    needs=("cgroup.conf",),
    page="cgroup.conf(5): CgroupPlugin",
)
def plugin(facts: Facts) -> Iterator[Problem]:
    """No cgroup is made at all, so no device is constrained."""
    value, seen = _cgroup(facts, "CgroupPlugin")
    if value == "disabled" and _cgroup(facts, "ConstrainDevices")[0] == "yes":
        yield Problem(seen, "CgroupPlugin=autodetect")
