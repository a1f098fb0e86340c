"""`slurm-mig retire`: end the management of GPUs, leaving them in a declared layout."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import click

from slurm_mig.cli._node import administrator, choose_gpus, open_node
from slurm_mig.cli._options import gpu_option, json_option
from slurm_mig.cli._print import print_json, working
from slurm_mig.errors import UsageFault
from slurm_mig.node.node import require_root
from slurm_mig.node.retire import Retirement, parse_layout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.request import Request
    from slurm_mig.node.node import Node
    from slurm_mig.node.retire import RetirePlan


@click.command()
@gpu_option
@click.option("--layout", metavar="PROFILE:COUNT,...|none", help="What to leave on each GPU.")
@click.option("--mig-off", is_flag=True, help="With --layout none: switch MIG mode off, too.")
@click.option("--undo", is_flag=True, help="Take retired GPUs, which are empty, back.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
def command(
    gpu: str,
    layout: str | None,
    mig_off: bool,
    undo: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """End the management of GPUs and leave them in a static layout, as Slurm itself supports it.

    Nothing is changed while a job has something on one of them, or something of an earlier
    layout that has to go is in use. After a crash, run it again.
    """
    wanted = _understood(layout, mig_off=mig_off, undo=undo)
    require_root()
    with open_node(look=dry_run) as node, working("going over the GPUs"):
        chosen, faults = choose_gpus(node, gpu)
        gpus = _ours(node, chosen, every=gpu == "all", undo=undo)
        work = Retirement(node, administrator())
        if undo:
            done = _undo(work, gpus, dry_run=dry_run)
            advice = list(TAKEN_BACK)
        else:
            done = _retire(work, gpus, wanted, mig_off=mig_off, dry_run=dry_run)
            advice = advise(node, {item["gpu"]: item["layout"] for item in done})
    if as_json:
        print_json({"gpus": done, "dry_run": dry_run, "advice": advice})
    else:
        for line in (*(item["text"] for item in done), "", *advice):
            click.echo(line)
    for fault in faults:
        raise fault


def _understood(layout: str | None, *, mig_off: bool, undo: bool) -> Request | None:
    if undo == (layout is not None):
        raise UsageFault("name either --layout or --undo")
    if mig_off and layout != "none":
        raise UsageFault("--mig-off goes with --layout none: a layout needs MIG mode")
    return None if layout is None else parse_layout(layout)


def _ours(node: Node, chosen: Sequence[Gpu], *, every: bool, undo: bool) -> list[Gpu]:
    """Of all GPUs those that are managed, or retired; UsageFault for another one."""
    if undo:
        found = [gpu for gpu in chosen if gpu.uuid in node.retired]
        state = "retired"
    else:
        found = [gpu for gpu in chosen if node.configured(gpu) or gpu.uuid in node.retired]
        state = "managed"
    if not found or (not every and len(found) < len(chosen)):
        names = ", ".join(str(gpu.minor) for gpu in chosen)
        raise UsageFault(f"GPU {names}: not {state}", remedy="see `slurm-mig gpus`")
    return found


def _retire(
    work: Retirement, gpus: Sequence[Gpu], layout: Request | None, *, mig_off: bool, dry_run: bool
) -> list[dict[str, Any]]:
    """All are looked at before the first is changed."""
    goals = [work.look(gpu, layout, sweep=not dry_run) for gpu in gpus]
    if not dry_run:
        goals = [work.retire(gpu, layout, mig_off=mig_off) for gpu in gpus]
    return [_described(goal, mig_off=mig_off, dry_run=dry_run) for goal in goals]


def _described(goal: RetirePlan, *, mig_off: bool, dry_run: bool) -> dict[str, Any]:
    gone = [record.made for record in goal.records] + [str(item.gi_id) for item in goal.strays]
    made = [str(slot) for slot in goal.missing]
    steps = [f"takes down {', '.join(gone)}"] * bool(gone)
    steps += ["switches MIG mode off"] * mig_off
    steps += [f"makes {', '.join(made)}"] * bool(made)
    word = "would be retired" if dry_run else "is retired"
    text = f"GPU {goal.gpu.minor} {word} with {goal.layout or 'no instances'}"
    return {
        "gpu": goal.gpu.minor,
        "uuid": goal.gpu.uuid,
        "layout": goal.layout,
        "made": made,
        "taken_down": gone,
        "text": f"{text}: {'; '.join(steps)}" if dry_run and steps else text,
    }


def _undo(work: Retirement, gpus: Sequence[Gpu], *, dry_run: bool) -> list[dict[str, Any]]:
    for gpu in gpus:
        work.undo(gpu, dry_run=True)
    for gpu in () if dry_run else gpus:
        work.undo(gpu)
    word = "would be" if dry_run else "is"
    return [
        {"gpu": gpu.minor, "uuid": gpu.uuid, "text": f"GPU {gpu.minor} {word} managed again"}
        for gpu in gpus
    ]


# -- what Slurm has to be told ---------------------------------------------------

TAKEN_BACK: Final = (
    "config.toml: name it in managed of [gpus] again, if it was taken out there",
    "gres.conf, slurm.conf: put its lines back (`slurm-mig generate`)",
    "MIG mode:    `slurm-mig enable`, where it is off and switching it on needs a GPU reset",
)


def advise(node: Node, layouts: Mapping[int, str]) -> list[str]:
    """Lines for the administrator: configuration, gres.conf, slurm.conf, and what to know.

    `layouts` has the GPUs that are retired now, by minor, beside those of earlier times.
    """
    gpus, _ = node.driver.survey()
    earlier = node.ledger.retired()
    away = {gpu.minor: earlier[gpu.uuid].layout for gpu in gpus if gpu.uuid in earlier}
    away |= layouts
    stay = [gpu.minor for gpu in gpus if node.configured(gpu) and gpu.minor not in away]
    if stay:
        listed = node.config.order or [gpu.minor for gpu in gpus]
        return _partly(sorted(away), stay, [minor for minor in listed if minor not in away])
    words = ",".join(layout for layout in away.values() if layout).split(",")
    counts = Counter(word.partition("@")[0] for word in words if word)
    return ['config.toml: managed = "none" in [gpus]', *_static(node.name, counts)]


def _static(name: str, counts: Counter[str]) -> list[str]:
    """A node that Slurm has to itself (gres.conf(5); gres.html, "MIG Management")."""
    if not counts:
        return [
            f"gres.conf:   take the shard lines of {name} out; its gpu lines stay",
            f"slurm.conf:  take shard and mig out of Gres= of NodeName={name}",
        ]
    types = ",".join(f"gpu:{profile}:{count}" for profile, count in sorted(counts.items()))
    return [
        f"gres.conf:   NodeName={name} AutoDetect=nvml     in place of its gpu and shard lines",
        f"slurm.conf:  NodeName={name} Gres={types}",
        "Slurm needs NVML for that; `slurmd -G` on the node shows what it finds.",
        "Instances do not survive a reboot: let a unit of your own, or mig-parted, make",
        "them before slurmd starts.",
    ]


def _partly(away: Sequence[int], stay: Sequence[int], listed: Sequence[int]) -> list[str]:
    """Static MIG devices beside shards are miscounted or refused (facts/slurm.md#gresconf)."""
    gone, left, order = (", ".join(map(str, minors)) for minors in (away, stay, listed))
    return [
        f"config.toml: managed = [{left}] and order = [{order}] in [gpus]",
        f"gres.conf:   take the gpu and shard lines of GPU {gone} out",
        "slurm.conf:  lower gpu, shard and mig in Gres= of this node accordingly",
        "Slurm cannot have static MIG devices beside shards: for that, retire all GPUs of a node.",
    ]
