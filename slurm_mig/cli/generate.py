"""`slurm-mig generate`: what slurm.conf, gres.conf and the Lua plugins need, from the geometry."""

from __future__ import annotations

import contextlib
import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig.cli._node import tell_longer, use_descriptions
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json
from slurm_mig.cli._usage import OnePath
from slurm_mig.errors import NamesChange, NodeFault, Unresolved, UsageFault
from slurm_mig.fleet import fleet_file
from slurm_mig.fleet.billing import by_partition, gpu_types
from slurm_mig.fleet.fleet_file import FleetText, NodeText
from slurm_mig.fleet.resolve import fleet_of, parse_gpu
from slurm_mig.fleet.slurm_files import generate
from slurm_mig.node.install_paths import DEFAULT_HOOKS
from slurm_mig.system.replace import check_replaceable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.fleet.fleet import Fleet

#: Where `slurm-mig install` puts the hooks unless told otherwise.


@click.command()
@click.argument("description", type=OnePath(path_type=Path, dir_okay=False), required=False)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="HOSTS=GPU:COUNT[,GPU:COUNT]",
    help='Nodes and their GPUs by device minor, such as "n[1-4]=NVIDIA H100 80GB HBM3:8".',
)
@click.option(
    "--gpu-type",
    "types",
    multiple=True,
    metavar="GPU=TYPE",
    help="Slurm's type name for a GPU model, where yours differs from the default.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="WORD=PROFILE",
    help="A word of yours for a profile: small=1g.10gb lets users write --gres=mig:small.",
)
@click.option(
    "--slices-only",
    "slices_only",
    multiple=True,
    metavar="TYPE",
    help="Refuse whole GPUs of this type (* for all) when they are asked for.",
)
@click.option(
    "--compute-parts",
    "compute_parts",
    multiple=True,
    metavar="TYPE",
    help="Sell slices of this type (* for all) in parts such as 1c.3g.40gb, too.",
)
@click.option("--hooks", help=f"Directory of the hooks; {DEFAULT_HOOKS} if not given.")
@click.option("--out", type=OnePath(path_type=Path, file_okay=False), help="Write files there.")
@click.option(
    "--check", is_flag=True, help="Write nothing; tell whether the files in --out are up to date."
)
@json_option
def command(
    description: Path | None,
    nodes: tuple[str, ...],
    types: tuple[str, ...],
    aliases: tuple[str, ...],
    slices_only: tuple[str, ...],
    compute_parts: tuple[str, ...],
    hooks: str | None,
    out: Path | None,
    check: bool,
    as_json: bool,
) -> None:
    """Write the fragments for slurm.conf, gres.conf and cgroup.conf and both Lua plugins.

    The nodes stand in the TOML file DESCRIPTION (etc/fleet.toml is a sample), or in
    --node options.
    """
    use_descriptions()
    if description is None:
        fleet = FleetText(
            nodes=tuple(_node_option(node) for node in nodes),
            types=pairs(types, "--gpu-type GPU=TYPE"),
            aliases=pairs(aliases, "--alias WORD=PROFILE"),
            slices_only=slices_only,
            compute_parts=compute_parts,
        )
    elif nodes or types or aliases or slices_only or compute_parts:
        raise UsageFault("the fleet stands in a file: put nodes, types and aliases there, too")
    else:
        fleet = fleet_file.read(description)
    if check and out is None:
        raise UsageFault("--check compares with the files of a directory: name it with --out")
    made, files = _files(fleet, hooks)
    changes = [] if out is None else _renames(out, made)
    if check and out is not None:
        _compare(out, files, changes, as_json=as_json)
    elif as_json:
        print_json(files)
    elif out is None:
        for name, text in files.items():
            click.echo(f"{'#' * 16} {name}\n{text}")
    else:
        write_all(out, files)
        for name in files:
            click.echo(str(out / name))
        for change in changes:
            click.echo(f"slurm-mig: {change}", err=True)


def _files(text: FleetText, hooks: str | None) -> tuple[Fleet, Mapping[str, str]]:
    directory = next(name for name in (hooks, text.hooks, DEFAULT_HOOKS) if name is not None)
    _check_hooks(directory)
    if not text.nodes:
        raise UsageFault("no nodes: name a fleet file, or write --node HOSTS=GPU:COUNT")
    fleet = fleet_of(text)
    tell_longer(parse_gpu(part)[0] for node in text.nodes for part in node.gpus)
    bridge = replace(text.bridge, partitions=tuple(node.partitions for node in text.nodes))
    billing = _billing(fleet, text)
    return fleet, generate(fleet, hooks=directory, billing=billing, bridge=bridge)


def _billing(fleet: Fleet, text: FleetText) -> dict[str, dict[str, float]]:
    if text.prices is None:
        return {}
    prices = text.prices
    if isinstance(prices, float):
        prices = dict.fromkeys(gpu_types(fleet), prices)
    return by_partition(fleet, [node.partitions for node in text.nodes], prices, text.by)


def _there(path: Path) -> str:
    """What was written before; nothing where there is none."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as problem:
        raise NodeFault(f"read {path}: {problem}") from problem


def _renames(out: Path, fleet: Fleet) -> list[str]:
    from slurm_mig.cli._renames import renames

    paths = [out / "slurm.conf.mig", out / "job_submit.lua"]
    # Writing refuses what is no regular file; a FIFO would keep us waiting here.
    slurm_conf, job_submit = (_there(path) if path.is_file() else "" for path in paths)
    return renames(slurm_conf, job_submit, fleet)


def _compare(out: Path, files: Mapping[str, str], changes: list[str], *, as_json: bool) -> None:
    """Show how the files differ from what would be written.

    NamesChange when names would end or change, Unresolved for other differences.
    """
    differ = {}
    for name, text in files.items():
        there = _there(out / name)
        if there != text:
            lines = (there.splitlines(), text.splitlines())
            differ[name] = list(
                difflib.unified_diff(*lines, str(out / name), "generated", lineterm="")
            )
    if as_json:
        print_json({"differ": differ, "names": changes})
    else:
        for diff in differ.values():
            click.echo("\n".join(diff))
        for change in changes:
            click.echo(f"names: {change}")
    if changes:
        raise NamesChange(
            f"{len(changes)} names or words of {out} would end or change: {changes[0]}",
            remedy="keep them ([names], keep_names in the fleet file), or run `slurm-mig generate` "
            "without --check when no job waits with them: squeue -t PD -O JobID,tres-per-node:60",
        )
    if differ:
        raise Unresolved(
            f"{', '.join(differ)} in {out}: not what this fleet needs",
            remedy="run `slurm-mig generate` without --check",
        )
    if not as_json:
        click.echo(f"{out} is up to date")


def write_all(out: Path, files: Mapping[str, str]) -> None:
    """All files or none of them: complete beside their names first, then renamed."""
    fresh = {name: out / f".{name}.{os.getpid()}" for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            check_replaceable(out / name)
            # Exclusive: in a directory of others a link may wait under that name.
            with fresh[name].open("x", encoding="utf-8") as file:
                file.write(text)
        for name, path in fresh.items():
            path.replace(out / name)
    except OSError as problem:
        raise NodeFault(f"write {problem.filename or out}: {problem.strerror}") from problem
    finally:
        for path in fresh.values():
            with contextlib.suppress(OSError):
                path.unlink()


def _check_hooks(hooks: str) -> None:
    # slurm.conf ends a value at white space: a hook of that name would never be found.
    if not hooks.startswith("/") or not hooks.isprintable() or " " in hooks:
        raise UsageFault(f"--hooks {hooks!r}: write an absolute path without white space")


def _node_option(text: str) -> NodeText:
    """`HOSTS=GPU:COUNT[,GPU:COUNT]` of an option."""
    hosts, gpus = _split(text, "--node HOSTS=GPU:COUNT")
    return NodeText(hosts, tuple(gpus.split(",")))


def pairs(texts: tuple[str, ...], form: str) -> dict[str, str]:
    """Options of the form WORD=VALUE; UsageFault for a word that is there twice."""
    found: dict[str, str] = {}
    for left, right in (_split(text, form) for text in texts):
        if left in found:
            raise UsageFault(f"{form.partition(' ')[0]} names {left!r} twice; once is allowed")
        found[left] = right
    return found


def _split(text: str, form: str) -> tuple[str, str]:
    left, _, right = (part.strip() for part in text.partition("="))
    if not (left and right):
        raise UsageFault(f"{text!r} is not of the form {form}")
    return left, right
