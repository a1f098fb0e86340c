"""SM14x: rules that a site has for GPUs, and that slices pass by or never meet. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, WARNING, Problem, check
from slurm_mig.slurm import conf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurm_mig.doctor.facts import Facts, Limit

#: Defaults for each GPU (slurm.conf(5)), and what stands for them in job_submit.lua.
PER_GPU: Final = {"DefCpuPerGPU": "cpus", "DefMemPerGPU": "memory"}

#: The table of a site's defaults in job_submit.lua, and a row of it.
_DEFAULTS: Final = re.compile(r"^local DEFAULTS = \{\n(.*?)^\}", re.DOTALL | re.MULTILINE)
_PARTITIONS: Final = re.compile(r"partitions = \{(.*?)\}")


def _tres(text: str) -> dict[str, str]:
    """`cpu=4,gres/gpu=1` as a table, names in lower case."""
    pairs = (word.partition("=") for word in conf.words(text))
    return {name.lower(): value for name, _, value in pairs}


def _speaks_of(tres: Mapping[str, object], name: str) -> bool:
    return any(key == name or key.startswith(f"{name}:") for key in tres)


def _most_shards(facts: Facts) -> int:
    """Shards of the fleet's largest GPU."""
    models = facts.fleet.models.values() if facts.fleet else ()
    return max(model.weights.capacity for model in models)


def _several(limit: Limit) -> str:
    more = f" and {limit.others} more" if limit.others else ""
    return f"{limit.where}{more}: {limit.key}={limit.tres}"


@check(
    "SM141",
    WARNING,
    "a limit on gres/gpu that slices do not count for",
    needs=("slurmctld", "limits", "fleet"),
    page="sacctmgr(1): MaxTRES, GrpTRES; docs/from-static-mig.md: Limits and reports",
)
def passed_by(facts: Facts) -> Iterator[Problem]:
    """A slice is gres/mig and gres/shard: who may have one GPU may have slices of any number."""
    for limit in facts.limits:
        tres = _tres(limit.tres)
        sliced = _speaks_of(tres, "gres/mig") or _speaks_of(tres, "gres/shard")
        if limit.key == "MinTRES" or sliced or not _speaks_of(tres, "gres/gpu"):
            continue
        totals = [value for key, value in tres.items() if key.partition(":")[0] == "gres/gpu"]
        number = max((int(value) for value in totals if value.isdigit()), default=1)
        shards = number * _most_shards(facts)
        yield Problem(
            _several(limit),
            f"sacctmgr modify {limit.change} set {limit.key}=gres/shard={shards} "
            f"({_most_shards(facts)} are one GPU), or gres/mig=N for a number of slices",
        )


@check(
    "SM142",
    ERROR,
    "a minimum of gres/gpu that a slice never reaches",
    needs=("slurmctld", "limits"),
    page="sacctmgr(1): MinTRESPerJob; docs/from-static-mig.md: Limits and reports",
)
def never_met(facts: Facts) -> Iterator[Problem]:
    """Jobs with slices wait for ever with the reason QOSMinGRES."""
    for limit in facts.limits:
        tres = _tres(limit.tres)
        if limit.key == "MinTRES" and _speaks_of(tres, "gres/gpu"):
            names = [name for name in tres if name.partition(":")[0] == "gres/gpu"]
            words = ",".join(f"{name}=-1" for name in names)
            yield Problem(
                _several(limit),
                f"sacctmgr modify {limit.change} set MinTRES={words}; or a partition for "
                "slices whose QOS has no such minimum",
            )


@check(
    "SM143",
    WARNING,
    "a default for each GPU that slices do not get",
    needs=("slurm.conf", "job_submit.lua"),
    page="slurm.conf(5): DefCpuPerGPU, DefMemPerGPU; docs/from-static-mig.md",
)
def per_gpu(facts: Facts) -> Iterator[Problem]:
    """Slurm gives them with gres/gpu alone: a slice has one CPU, and maybe its node's memory."""
    text = "\n".join(file.text for file in facts.job_submit.files)
    for entry in facts.slurm.entries:
        partition = entry.get("PartitionName")
        if entry.key not in ("partitionname", "jobdefaults", *map(str.lower, PER_GPU)):
            continue
        # A partition says it by itself, or in JobDefaults.
        given = _tres(entry.get("JobDefaults")) | dict(entry.pairs)
        missing = {
            name: given[name.lower()]
            for name, lua in PER_GPU.items()
            if given.get(name.lower(), "0") not in ("0", "") and not _covered(text, partition, lua)
        }
        if missing and _serves_slices(facts, partition, entry.get("Nodes")):
            keys = {"DefCpuPerGPU": "cpus_per_gpu", "DefMemPerGPU": "memory_per_gpu"}
            lines = "; ".join(f"{keys[name]} = {value}" for name, value in missing.items())
            where = "" if partition.upper() in ("", "DEFAULT") else f'partitions = "{partition}"; '
            yield Problem(str(entry), f"[[defaults]] of the fleet file: {where}{lines}")


def _covered(text: str, partition: str, lua: str) -> bool:
    """Whether job_submit.lua has that default for jobs in the partition; without one, for all."""
    table = _DEFAULTS.search(text)
    for row in table[1].splitlines() if table else ():
        named = _PARTITIONS.search(row)
        if f" {lua} = " in row and (named is None or f'"{partition}"' in named[1]):
            return True
    return False


def _serves_slices(facts: Facts, partition: str, nodes: str) -> bool:
    """Whether the partition has a managed node; what stands for all partitions has."""
    if partition.upper() in ("", "DEFAULT") or nodes.upper() in ("", "ALL"):
        return bool(facts.managed)
    names = set(conf.hosts(nodes))
    return any(node.name in names for node in facts.managed)


@check(
    "SM144",
    WARNING,
    "prices for GPUs and none for slices",
    needs=("slurm.conf",),
    page="slurm.conf(5): TRESBillingWeights; docs/admin.md",
)
def free_of_charge(facts: Facts) -> Iterator[Problem]:
    """Slices cost nothing there: neither billing nor fair share sees them."""
    for entry in facts.slurm.all("PartitionName"):
        weights = _tres(entry.get("TRESBillingWeights"))
        sliced = _speaks_of(weights, "gres/mig") or _speaks_of(weights, "gres/shard")
        if sliced or not _speaks_of(weights, "gres/gpu"):
            continue
        if _serves_slices(facts, entry.get("PartitionName"), entry.get("Nodes")):
            yield Problem(
                str(entry), "[billing] in the fleet file; `slurm-mig generate` writes the weights"
            )
