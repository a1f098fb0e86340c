"""Texts for Slurm, all from one `Fleet`: slurm.conf, gres.conf, job_submit.lua, cli_filter.lua.

Which lines Slurm needs and why: facts/design.md#slurms-side; facts/slurm.md#job_submit,
#gresconf, #devices.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from slurm_mig import __version__
from slurm_mig.fleet.bridge import Bridge
from slurm_mig.fleet.packing import lua_table
from slurm_mig.mig.geometry import UNKNOWN_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurm_mig.fleet.fleet import Fleet, GresName, NodeGroup

#: File names below the output directory, and what writes each.
FILES: Final = (
    "slurm.conf.mig",
    "gres.conf.mig",
    "cgroup.conf.mig",
    "job_submit.lua",
    "cli_filter.lua",
)

#: What job_submit.lua and cli_filter.lua have in common, below data/lua, in their order.
_COMMON: Final = ("common.lua", "several.lua", "bridge.lua")

#: A node that is never up, by which releases before 23.11 let jobs wait (docs/publishing.md).
ANCHOR: Final = "mig-anchor"

#: Seconds for BatchStartTimeout: more than a hook takes before it is ended, with the defaults.
BATCH_START: Final = 325


def generate(
    fleet: Fleet,
    *,
    hooks: str,
    billing: Mapping[str, Mapping[str, float]] | None = None,
    bridge: Bridge | None = None,
) -> Mapping[str, str]:
    """All files by name.

    `hooks` is the directory of the installed hooks; `billing` has for each partition ("" where
    none is named) TRES and what one costs; `bridge` the site's words and defaults.
    """
    return {
        "slurm.conf.mig": slurm_conf(fleet, hooks, billing),
        "gres.conf.mig": gres_conf(fleet),
        "cgroup.conf.mig": cgroup_conf(),
        "job_submit.lua": lua(fleet, "job_submit.lua", bridge),
        "cli_filter.lua": lua(fleet, "cli_filter.lua", bridge),
    }


def _head(comment: str, what: str) -> str:
    return f"{comment} {what}, written by `slurm-mig generate` {__version__}. Do not edit.\n"


def slurm_conf(
    fleet: Fleet, hooks: str, billing: Mapping[str, Mapping[str, float]] | None = None
) -> str:
    """Lines for slurm.conf. `Gres=` values are comments: they belong on the site's own lines."""
    lines = [
        "# Take these lines into slurm.conf, and each Gres= value onto that node's NodeName line.",
        f"GresTypes=gpu,shard,mig{',fit' if fleet.publish else ''}",
        "JobSubmitPlugins=lua",
        "CliFilterPlugins=cli_filter/lua",
        "PrologFlags=Alloc,DeferBatch",
        f"Prolog={hooks}/prolog",
        f"Epilog={hooks}/epilog",
        f"TaskProlog={hooks}/task_prolog",
        "# Longer than a Prolog takes at worst: a batch job that waits for its own is else taken",
        "# for lost. With a longer `deadline` in config.toml it has to be longer, too.",
        f"BatchStartTimeout={BATCH_START}",
        "# NVML held open by Slurm's own GPU accounting would block reconfiguration.",
        "JobAcctGatherParams=DisableGPUAcct",
        "# Where slurmdbd runs, this makes sacct and limits speak of profiles:",
        f"#AccountingStorageTRES={','.join(accounting_tres(fleet))}",
        "# From Slurm 23.11 on (an older slurmctld does not start with it), added to the words of",
        "# your own line, this takes the emptiest GPU, not the first: fewer jobs are refused.",
        "#SelectTypeParameters=...,LL_SHARED_GRES",
        *(_publish_lines(fleet) if fleet.publish else ()),
        *_billing_lines(billing or {}),
        "",
    ]
    for group in fleet.groups:
        lines += [f"# NodeName={group.hosts} Gres={fleet.gres(group)}"]
        if group.whole:
            lines.append(f"#   there, in config.toml: [gpus] managed = {group.managed()}")
    return _head("#", "Fragment for slurm.conf") + "\n".join(lines) + "\n"


def _publish_lines(fleet: Fleet) -> list[str]:
    """What keeps jobs that wait for a `fit` count from being held: docs/publishing.md."""
    most: dict[str, int] = {}
    for group in fleet.groups:
        for word in fleet.gres(group).split(","):
            name, _, count = word.rpartition(":")
            most[name] = max(most.get(name, 0), int(count))
    gres = ",".join(f"{name}:{count}" for name, count in most.items())
    return [
        "# Jobs wait for what nodes publish as fitting (docs/publishing.md). From Slurm 23.11 on,",
        "# added to the words of your own line, this keeps them from being held meanwhile:",
        "#SchedulerParameters=...,extra_constraints",
        "# Before 23.11 a node that is never up does it: in every partition with these nodes, with",
        "# every feature, and with the CPUs and memory of the largest node:",
        f"#NodeName={ANCHOR} NodeAddr=127.0.0.1 Port=1 State=DOWN Gres={gres}",
    ]


def _billing_lines(billing: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = []
    for partition, weights in billing.items():
        # sacct and limits keep many digits; four are more than any price has.
        words = ",".join(f"{name}={weight:.4g}" for name, weight in weights.items())
        of = f"partition {partition}" if partition else "the partitions with these nodes"
        lines += [
            f"# Onto the line{'' if partition else 's'} of {of}:",
            f"#TRESBillingWeights={words}",
        ]
    return lines


def accounting_tres(fleet: Fleet) -> list[str]:
    """Values for AccountingStorageTRES: totals, then one per profile and GPU type."""
    every = (name for group in fleet.groups for name, _ in group.by_minor().values())
    types = [f"gres/gpu:{name}" for name in dict.fromkeys(every)]
    return ["gres/gpu", *types, "gres/shard", "gres/mig", *(f"gres/mig:{n}" for n in fleet.counted)]


def gres_conf(fleet: Fleet) -> str:
    """Lines for gres.conf. No mig lines: a count that differs would silently offer one."""
    lines = [line for group in fleet.groups for line in _gres_lines(group)]
    return _head("#", "Fragment for gres.conf") + "\n".join(lines) + "\n"


def _gres_lines(group: NodeGroup) -> Iterator[str]:
    """One gpu and one shard line per GPU: with one line for several, Slurm miscounts."""
    for minor, (name, model) in group.by_minor().items():
        head = f"NodeName={group.hosts} AutoDetect=off"
        file = f"File={group.devices}/nvidia{minor}"
        yield f"{head} Name=gpu Type={name} {file}"
        if model is not None:
            yield f"{head} Name=shard Type={name} Count={model.weights.capacity} {file}"


def cgroup_conf() -> str:
    """Lines for cgroup.conf, and what they protect."""
    return _head("#", "Fragment for cgroup.conf") + (
        "# Keeps a job off GPUs that are not its own. Instances of one GPU are kept apart by\n"
        "# the modes of their capability nodes, which slurm-mig sets either way.\n"
        "ConstrainDevices=yes\n"
    )


def lua(fleet: Fleet, name: str, bridge: Bridge | None = None) -> str:
    """job_submit.lua or cli_filter.lua: the fleet's tables, the common part, the file's own."""
    tables = (bridge or Bridge()).tables(fleet)
    return _head("--", name) + "\n" + tables + lua_table(fleet) + _lua_table(fleet) + lua_code(name)


def lua_code(name: str) -> str:
    """What follows the fleet's table in job_submit.lua or cli_filter.lua: the same for all."""
    folder = resources.files("slurm_mig").joinpath("data/lua")
    parts = [folder.joinpath(part).read_text("utf-8") for part in (*_COMMON, name)]
    return "\n".join(["", *parts])


def _lua_table(fleet: Fleet) -> str:
    rows = "".join(f"  {_lua_row(item)}\n" for item in fleet.names.values())
    known = ", ".join(
        [
            *(name for name, gres in fleet.names.items() if gres.name == gres.base),
            *(f"{alias} ({target})" for alias, target in fleet.aliases.items()),
        ]
    )
    small = next((name for name, gres in fleet.names.items() if gres.name != gres.base), "")
    memory = ", ".join(f'{{ gb = {gb}, name = "{name}" }}' for gb, name in fleet.by_memory)
    unclear = ", ".join(
        f'["{name}"] = "{" or ".join(names)}"' for name, names in fleet.unclear.items()
    )
    # Where every type is kept, a request for any GPU is one for theirs.
    every = ("*",) if set(fleet.models) <= set(fleet.slices_only) else ()
    only = ", ".join(f'["{name}"] = true' for name in dict.fromkeys((*fleet.slices_only, *every)))
    return (
        "-- Weights and capacities in shards; `most` instances on one GPU, `per` on one GPU\n"
        "-- instance; words for them, some of one GPU type only; names that no model keeps; GPU\n"
        "-- types that are never given whole.\n"
        f"local GRES = {{\n{rows}}}\n"
        f"local WORDS = {{\n{_lua_words(fleet)}}}\n"
        f"local UNCLEAR = {{ {unclear} }}\n"
        f"local BY_MEMORY = {{ {memory} }}\n"
        f"local SLICES_ONLY = {{ {only} }}\n"
        "-- Whether nodes publish what fits, and jobs wait for it.\n"
        f"local PUBLISH = {'true' if fleet.publish else 'false'}\n"
        f'local KNOWN = "{known}{f"; parts of them such as {small}" if small else ""}"\n'
    )


def _lua_words(fleet: Fleet) -> str:
    """Each word with the name it stands for, and the GPU type where not all will do."""
    targets = {word: word for word in fleet.words} | fleet.aliases
    lines = []
    for word, target in targets.items():
        item = fleet.meaning(target)
        if item is None:  # the fleet has checked its aliases
            continue
        only = "" if item.types == fleet.names[item.name].types else f', only = "{item.types[0]}"'
        lines.append(f'  ["{word}"] = {{ name = "{item.name}"{only} }},\n')
    return "".join(lines)


def _lua_row(item: GresName) -> str:
    types = ", ".join(f'["{name}"] = true' for name in item.types)
    known_id = '"-"' if item.profile_id == UNKNOWN_ID else item.profile_id
    return (
        f'["{item.name}"] = {{ profile = "{item.profile}", id = {known_id}, '
        f"weight = {item.weight}, capacity = {item.capacity}, most = {item.most}, "
        f"per = {item.per}, types = {{ {types} }} }},"
    )
