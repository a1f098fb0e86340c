"""SM2xx: counts and weights, in slurm.conf, gres.conf, the geometry and the driver. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, NOTE, WARNING, Problem, check
from slurm_mig.mig.geometry import UNKNOWN_ID
from slurm_mig.slurm.conf import hosts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.facts import Facts, GpuFacts
    from slurm_mig.fleet.fleet import Model
    from slurm_mig.mig.geometry import Geometry, Placement
    from slurm_mig.slurm.conf import GresLine, NodeLine

BOOT_UNIT: Final = "slurm-mig-boot.service"

_DEVICE: Final = re.compile(r".*/nvidia(\d+)")
_ADMIN: Final = "docs/admin.md: Setting up"


def minor_of(file: str) -> int | None:
    """The N of `/dev/nvidiaN`."""
    match = _DEVICE.fullmatch(file)
    return int(match[1]) if match else None


def minors(lines: list[GresLine]) -> list[int]:
    """Minors in the order of the lines: what SLURM_JOB_GPUS counts along."""
    found = [minor_of(file) for line in lines for file in line.files]
    return [minor for minor in found if minor is not None]


@check(
    "SM201",
    ERROR,
    "no node has mig counts in its Gres",
    needs=("slurm.conf",),
    page=_ADMIN,
)
def no_node(facts: Facts) -> Iterator[Problem]:
    """Slices cannot be asked for anywhere; nothing else about nodes could be looked at."""
    if not facts.managed:
        where = f"node {facts.target}" if facts.target else f"{len(facts.nodes)} nodes"
        yield Problem(
            f"{facts.slurm.path}: {where} without mig:<profile> in Gres=",
            "run `slurm-mig generate` and take each Gres= value onto its NodeName line",
        )


@check(
    "SM202",
    ERROR,
    "AutoDetect on a managed node",
    needs=("slurm.conf", "gres.conf"),
    page="gres.conf(5): AutoDetect; gres.html: MIG Management",
)
def auto_detect(facts: Facts) -> Iterator[Problem]:
    """slurmd then counts the instances of the moment: the node drains when they change."""
    for node in facts.managed:
        own = [
            entry
            for entry in facts.gres.entries
            if entry.has("AutoDetect") and node.name in hosts(entry.get("NodeName"))
        ]
        # The node's own word beats the one for all (gres.conf(5)).
        everywhere = [
            entry
            for entry in facts.gres.entries
            if entry.has("AutoDetect") and not entry.has("NodeName")
        ]
        for entry in own or everywhere:
            if entry.get("AutoDetect").lower() != "off":
                yield Problem(str(entry), "AutoDetect=off")


@check(
    "SM203",
    ERROR,
    "a mig line in gres.conf",
    needs=("slurm.conf", "gres.conf"),
    page=_ADMIN,
)
def mig_lines(facts: Facts) -> Iterator[Problem]:
    """A count there that differs from slurm.conf's makes the node offer a single one, silently."""
    for node in facts.managed:
        for line in facts.lines(node.name, "mig"):
            yield Problem(str(line.entry), "take the line out; the counts stand in slurm.conf")


@check(
    "SM204",
    ERROR,
    "MultipleFiles on a managed node",
    needs=("slurm.conf", "gres.conf"),
    page="gres.conf(5): MultipleFiles; docs/admin.md: Setting up",
)
def multiple_files(facts: Facts) -> Iterator[Problem]:
    """Half the shards are lost (22.05), or the node becomes INVAL (24.11 and later)."""
    for node in facts.managed:
        for name in ("gpu", "shard"):
            for line in facts.lines(node.name, name):
                if line.entry.has("MultipleFiles"):
                    yield Problem(str(line.entry), "File=/dev/nvidiaN, on a line for each GPU")


@check(
    "SM205",
    ERROR,
    "shards are not counted GPU by GPU",
    needs=("slurm.conf", "gres.conf"),
    page="gres.html: Sharding; docs/admin.md: Setting up",
)
def shards_per_gpu(facts: Facts) -> Iterator[Problem]:
    """Without one shard line for each GPU, with its File and Count, Slurm divides them itself."""
    for node in facts.managed:
        shards = facts.lines(node.name, "shard")
        for line in shards:
            if len(line.files) != 1 or line.count is None:
                yield Problem(str(line.entry), "Name=shard Count=W File=/dev/nvidiaN for each GPU")
        have = {file for line in shards for file in line.files}
        for line in facts.lines(node.name, "gpu"):
            for file in line.files:
                if shards and file in have:
                    continue
                kind = f"Type={line.type} " if line.type else ""
                yield Problem(
                    f"{line.entry}: no shard line for {file}",
                    f"Name=shard {kind}Count=W File={file}",
                )


@check(
    "SM206",
    ERROR,
    "gres.conf and slurm.conf count different shards",
    needs=("slurm.conf", "gres.conf"),
    page=_ADMIN,
)
def shard_sums(facts: Facts) -> Iterator[Problem]:
    """More in gres.conf: a GPU is overfilled in silence. Fewer: slurmd does not start."""
    for node in facts.managed:
        lines = facts.lines(node.name, "shard")
        said, sums = node.count("shard"), _sums(lines)
        # An untyped count in slurm.conf is the sum of all types.
        found = {"": sum(sums.values())} if "" in said and sums else sums
        for kind, count in found.items():
            want = said.get(kind, 0)
            if count != want:
                name = f"shard:{kind}" if kind else "shard"
                yield Problem(
                    f"{node.entry.where} has {name}:{want}, "
                    f"{', '.join(line.entry.where for line in lines)} add up to {count}",
                    f"Gres=...,{name}:{count} if the lines of gres.conf are right",
                )


def _sums(lines: list[GresLine]) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in lines:
        if line.count is not None:
            found[line.type] = found.get(line.type, 0) + line.count
    return found


@check(
    "SM207",
    ERROR,
    "a GPU's shards are not the weight of its geometry",
    needs=("slurm.conf", "gres.conf", "fleet"),
    page="docs/slurm.md; slurm-mig weights",
)
def shard_weights(facts: Facts) -> Iterator[Problem]:
    """Slurm then accepts sets of slices without a layout, or refuses sets that have one."""
    for node in facts.managed:
        models = {model.type_name: model for model in facts.groups[node.name].gpus}
        for line in facts.lines(node.name, "shard"):
            model = models.get(line.type) or (
                next(iter(models.values())) if len(models) == 1 else None
            )
            if model and line.each is not None and line.each != model.weights.capacity:
                yield Problem(
                    f"{line.entry}; an {model.title} has {model.weights.capacity}",
                    f"Count={model.weights.capacity}",
                )


@check(
    "SM208",
    ERROR,
    "gres.conf and slurm.conf count different GPUs",
    needs=("slurm.conf", "gres.conf"),
    page="gres.conf(5): Type; docs/admin.md: Setting up",
)
def gpu_counts(facts: Facts) -> Iterator[Problem]:
    """The node does not register, is INVAL, or refuses requests for a GPU by type."""
    for node in facts.managed:
        lines = facts.lines(node.name, "gpu")
        found: dict[str, int] = {}
        for line in lines:
            found[line.type] = found.get(line.type, 0) + (line.count or len(line.files) or 1)
        if found != node.count("gpu"):
            yield Problem(
                f"{node.entry.where} has {_gpus(node.count('gpu'))}, gres.conf has {_gpus(found)}",
                f"Gres={_gpus(found)},... if the lines of gres.conf are right",
            )


def _gpus(counts: dict[str, int]) -> str:
    words = [f"gpu:{kind}:{n}" if kind else f"gpu:{n}" for kind, n in counts.items()]
    return ",".join(words) or "no gpu"


@check(
    "SM209",
    ERROR,
    "a gpu line without a File /dev/nvidiaN of its own",
    needs=("slurm.conf", "gres.conf"),
    page="gres.conf(5): File; docs/admin.md: Setting up",
)
def gpu_files(facts: Facts) -> Iterator[Problem]:
    """The minor in the file's name is how slurm-mig knows which GPU Slurm means."""
    for node in facts.managed:
        for line in facts.lines(node.name, "gpu"):
            if not line.files or any(minor_of(file) is None for file in line.files):
                yield Problem(str(line.entry), "File=/dev/nvidiaN")


@check(
    "SM211",
    ERROR,
    "mig counts differ from what the GPUs could hold",
    needs=("slurm.conf", "fleet"),
    page="docs/admin.md: Setting up; slurm-mig generate",
)
def mig_counts(facts: Facts) -> Iterator[Problem]:
    """Too few: slices stay unused though there is room. Too many: jobs start without room."""
    for node in facts.managed:
        expected = _expected(facts, node)
        for name, count in node.count("mig").items():
            if name in expected and count != expected[name]:
                yield Problem(
                    f"{node.entry.where}: mig:{name}:{count}", f"mig:{name}:{expected[name]}"
                )


def _expected(facts: Facts, node: NodeLine) -> dict[str, int]:
    return facts.fleet.counts(facts.groups[node.name]) if facts.fleet else {}


@check(
    "SM212",
    ERROR,
    "a mig profile that no GPU of the node has",
    needs=("slurm.conf", "fleet"),
    page="docs/admin.md: Setting up; slurm-mig generate",
)
def mig_names(facts: Facts) -> Iterator[Problem]:
    """Names depend on the driver (3g.39gb, 3g.40gb); a job that asks for this one never runs."""
    for node in facts.managed:
        expected = _expected(facts, node)
        for name, count in node.count("mig").items():
            if name not in expected:
                offered = ", ".join(word for word in expected if "c." not in word)
                yield Problem(
                    f"{node.entry.where}: mig:{name or count}",
                    f"take it out of Gres=; the GPUs there have {offered}",
                )


@check(
    "SM213",
    NOTE,
    "a profile of the GPUs that the node does not count",
    needs=("slurm.conf", "fleet"),
    page="docs/admin.md: Setting up; slurm-mig generate",
)
def mig_missing(facts: Facts) -> Iterator[Problem]:
    """Slurm refuses requests for it on this node, though job_submit.lua may know it."""
    for node in facts.managed:
        expected, have = _expected(facts, node), node.count("mig")
        missing = [f"mig:{name}:{count}" for name, count in expected.items() if name not in have]
        if missing:
            yield Problem(f"{node.entry.where}: Gres= lacks them", ",".join(missing))


# -- against this machine -------------------------------------------------------


@check(
    "SM221",
    ERROR,
    "gres.conf's order is not the order of the configuration",
    needs=("slurm.conf", "gres.conf", "node", "config"),
    page="docs/admin.md: Configuration",
)
def order(facts: Facts) -> Iterator[Problem]:
    """SLURM_JOB_GPUS counts along gres.conf: a job would be given another job's GPU."""
    if facts.config is None:
        return
    for node in facts.managed:
        listed = minors(facts.lines(node.name, "gpu"))
        assumed = list(facts.config.order or sorted(listed))
        if listed and listed != assumed:
            yield Problem(
                f"{facts.lines(node.name, 'gpu')[0].entry.path} lists minors "
                f"{_list(listed)}, {facts.config.path} assumes {_list(assumed)}",
                f"[gpus] order = [{_list(listed)}]",
            )


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


@check(
    "SM222",
    ERROR,
    "gres.conf names a GPU that the driver does not show",
    needs=("slurm.conf", "gres.conf", "node", "driver"),
    page="gres.conf(5): File; docs/admin.md: Configuration",
)
def absent(facts: Facts) -> Iterator[Problem]:
    """slurmd waits for the file and then does not start, or a job gets a GPU that is not there."""
    here = {gpu.minor for gpu in facts.gpus}
    # A lost GPU has no minor: it may well be the one that is meant (SM601).
    for node in facts.managed if not facts.driver_faults else ():
        for line in facts.lines(node.name, "gpu"):
            gone = [file for file in line.files if minor_of(file) not in here]
            for file in gone:
                yield Problem(
                    f"{line.entry}; the driver shows minors {_list(sorted(here)) or 'none'}",
                    f"see dmesg for {file}, or take the line out on both sides",
                )


@check(
    "SM223",
    WARNING,
    "a managed GPU that gres.conf does not list",
    needs=("slurm.conf", "gres.conf", "node", "driver"),
    page="docs/admin.md: Configuration",
)
def unlisted(facts: Facts) -> Iterator[Problem]:
    """Slurm gives it to nobody; after a renumbering it may be the one that is meant."""
    for node in facts.managed:
        lines = facts.lines(node.name, "gpu")
        listed = minors(lines)
        if len(listed) < sum(max(1, len(line.files)) for line in lines):
            continue  # a line without minor may be the one (SM209)
        for gpu in facts.gpus:
            if lines and gpu.managed and gpu.minor not in listed:
                yield Problem(
                    f"{gpu} is not in {lines[0].entry.path}",
                    f"File=/dev/nvidia{gpu.minor} on a gpu and a shard line, "
                    "or `managed` in the [gpus] table without it",
                )


@check(
    "SM224",
    ERROR,
    "the driver's placements are not those of the GPU type",
    needs=("slurm.conf", "gres.conf", "node", "driver", "fleet"),
    page="docs/admin.md: Setting up; slurm-mig profiles",
)
def geometry(facts: Facts) -> Iterator[Problem]:
    """Weights and counts were derived for another GPU: counting goes wrong."""
    for gpu, shown, model, line in _typed(facts):
        if not _same_places(model.geometry, shown):
            yield Problem(
                f"{line.entry} is {model.title} by type; the driver shows {gpu}",
                f"slurm-mig generate --node '{line.entry.get('NodeName') or 'NODE'}={gpu.name}:N', "
                "with what `slurm-mig gpus --describe` writes here",
            )


def _same_places(ours: Geometry, theirs: Geometry) -> bool:
    """Whether counting by one table is right for the other."""
    if any(row.profile_id == UNKNOWN_ID for row in ours.profiles):
        # Only published fractions are known: each has to be the same part of the GPU.
        return _parts(ours).items() <= _parts(theirs).items()
    return _places(ours) == _places(theirs)


def _places(table: Geometry) -> dict[int, tuple[Placement, ...]]:
    return {row.profile_id: row.placements for row in table.profiles}


def _parts(table: Geometry) -> dict[str, float]:
    return {str(row.name): row.size / table.units for row in table.profiles}


@check(
    "SM225",
    WARNING,
    "the driver calls profiles otherwise than Slurm does",
    needs=("slurm.conf", "gres.conf", "node", "driver", "fleet"),
    page="docs/users.md; slurm-mig profiles",
)
def names(facts: Facts) -> Iterator[Problem]:
    """slurm-mig goes by profile id and carves the right one; nvidia-smi shows another name."""
    for gpu, shown, model, line in _typed(facts):
        # Where no ids are known (SM224) the sets differ as well.
        theirs = {row.profile_id: str(row.name) for row in shown.profiles}
        if {row.profile_id for row in model.geometry.profiles} != theirs.keys():
            continue  # another GPU altogether (SM224)
        odd = [
            f"{row.name} is {theirs[row.profile_id]}"
            for row in model.geometry.profiles
            if theirs[row.profile_id] != str(row.name)
        ]
        if odd:
            yield Problem(
                f"{gpu}, driver {facts.driver_version}: {', '.join(odd)}",
                f"tell users of {line.type or 'this GPU type'}, or change to the driver release "
                "that has the names of Gres=",
            )


def _typed(facts: Facts) -> Iterator[tuple[GpuFacts, Geometry, Model, GresLine]]:
    """Managed GPUs with the model that their gres.conf line stands for."""
    for node in facts.managed:
        models = {model.type_name: model for model in facts.groups[node.name].gpus}
        for line in facts.lines(node.name, "gpu"):
            for gpu in facts.gpus:
                here = gpu.minor in {minor_of(file) for file in line.files}
                if here and gpu.managed and gpu.geometry and line.type in models:
                    yield gpu, gpu.geometry, models[line.type], line


@check(
    "SM226",
    NOTE,
    "NVML's index of a GPU is not its device minor",
    needs=("node", "driver"),
    page="docs/admin.md: Configuration",
)
def index(facts: Facts) -> Iterator[Problem]:
    """slurm-mig goes by minor; `nvidia-smi -i` by index, and so means another GPU."""
    for gpu in facts.gpus:
        if gpu.index != gpu.minor:
            yield Problem(
                f"{gpu} has index {gpu.index}", f"nvidia-smi -i {gpu.uuid} instead of the number"
            )


@check(
    "SM227",
    ERROR,
    "Slurm counts slices on a GPU that is not managed",
    needs=("slurm.conf", "gres.conf", "node", "driver", "config"),
    page="docs/admin.md: Back to static MIG",
)
def unmanaged(facts: Facts) -> Iterator[Problem]:
    """A job that Slurm sends there for a slice drains the node: nothing is carved for it."""
    for node in facts.managed:
        for line in facts.lines(node.name, "shard"):
            listed = minors([line])
            for gpu in facts.gpus:
                if gpu.minor in listed and gpu.geometry and not gpu.managed:
                    yield Problem(
                        f"{line.entry}: {gpu} is retired, or not in `managed` of the [gpus] table",
                        "take its shards and slices out of gres.conf and Gres=, or "
                        f"`slurm-mig retire --gpu {gpu.minor} --undo`",
                    )


@check(
    "SM228",
    ERROR,
    "GPUs are managed on a node that counts no slices",
    needs=("slurm.conf", "machine", "driver", "config"),
    page="docs/admin.md: Getting rid of it",
)
def left_behind(facts: Facts) -> Iterator[Problem]:
    """Jobs that Slurm sends there have a bare GPU, or one in MIG mode that shows them nothing."""
    managed = [gpu for gpu in facts.gpus if gpu.managed and gpu.mig_mode is not None]
    if not facts.uncounted:
        return
    for gpu in managed if "ledger" in facts.paths and not facts.paths["ledger"].missing else ():
        if gpu.mig_mode:
            yield Problem(
                f"{gpu}: MIG mode is on; {facts.slurm.path} has no mig counts for "
                f"{facts.uncounted}",
                f"`slurm-mig disable --gpu {gpu.minor}` (whole GPUs), `slurm-mig retire` (static "
                "MIG), or the lines of `slurm-mig generate`",
            )
    boots = any(unit.name == BOOT_UNIT for unit in facts.units)
    if managed and boots:
        yield Problem(
            f"{BOOT_UNIT} is enabled: the next boot switches MIG mode on",
            f"systemctl disable {BOOT_UNIT}",
        )
