"""`slurm-mig generate`: what slurm.conf, gres.conf and the Lua plugins need, from the geometry."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from slurm_mig import catalog, hostlist
from slurm_mig.cli._common import json_option, print_json
from slurm_mig.cli._usage import OnePath
from slurm_mig.errors import NodeFault, UsageFault
from slurm_mig.fleet import Fleet, NodeGroup
from slurm_mig.generator import generate
from slurm_mig.models import fleet_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.catalog import Product
    from slurm_mig.fleet import Model

#: Where `slurm-mig install` puts the hooks unless told otherwise.
DEFAULT_HOOKS = "/etc/slurm-mig/hooks"

_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@click.command()
@click.option(
    "--node",
    "nodes",
    multiple=True,
    required=True,
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
@click.option("--hooks", default=DEFAULT_HOOKS, show_default=True, help="Directory of the hooks.")
@click.option("--out", type=OnePath(path_type=Path, file_okay=False), help="Write files there.")
@json_option
def command(
    nodes: tuple[str, ...],
    types: tuple[str, ...],
    aliases: tuple[str, ...],
    slices_only: tuple[str, ...],
    hooks: str,
    out: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Write the fragments for slurm.conf, gres.conf and cgroup.conf and both Lua plugins."""
    _check_hooks(hooks)
    models = Models(_types(types))
    words = _pairs(aliases, "--alias WORD=PROFILE")
    groups = tuple(models.group(text) for text in nodes)
    models.check_used()
    _check_hosts(groups)
    files = generate(Fleet(groups, words, slices_only), hooks=hooks)
    if as_json:
        print_json(files)
    elif out is None:
        for name, text in files.items():
            click.echo(f"{'#' * 16} {name}\n{text}")
    else:
        write_all(out, files)
        for name in files:
            click.echo(str(out / name))


def write_all(out: Path, files: Mapping[str, str]) -> None:
    """All files or none of them: complete beside their names first, then renamed."""
    fresh = {name: out / f".{name}.{os.getpid()}" for name in files}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if (out / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(out / name))
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


def _types(texts: tuple[str, ...]) -> dict[str, str]:
    """Catalogue key -> type name; UsageFault for one that Slurm could not read."""
    named: dict[str, str] = {}
    for gpu, name in _pairs(texts, "--gpu-type GPU=TYPE").items():
        product = catalog.find(gpu)
        if product.key in named:
            raise UsageFault(f"--gpu-type names {product.title} twice; once is allowed")
        if not _TYPE.fullmatch(name):
            raise UsageFault(
                f"--gpu-type {gpu}={name}: {name!r} is no type name; write a letter or digit, "
                "then letters, digits, _ or -"
            )
        named[product.key] = name
    return named


def _check_hosts(groups: tuple[NodeGroup, ...]) -> None:
    """UsageFault for a host that is named twice: Slurm takes only one line for it."""
    seen: dict[str, str] = {}
    for group in groups:
        for host in hostlist.expand(group.hosts):
            if host in seen:
                raise UsageFault(
                    f"host {host!r} is named twice, in {seen[host]!r} and {group.hosts!r}; "
                    "a host belongs to one --node, once"
                )
            seen[host] = group.hosts


class Models:
    """GPU models by catalogue name, each derived once."""

    def __init__(self, types: dict[str, str]) -> None:
        self._types = types
        self._made: dict[str, Model] = {}

    def check_used(self) -> None:
        """UsageFault for a type name of a GPU model that no group has."""
        for key in self._types:
            if key not in self._made:
                raise UsageFault(
                    f"--gpu-type {key}: no --node has it; they have {', '.join(self._made)}"
                )

    def group(self, text: str) -> NodeGroup:
        """The node group of `HOSTS=GPU:COUNT[,GPU:COUNT]`."""
        hosts, gpus = _split(text, "--node HOSTS=GPU:COUNT")
        hostlist.expand(hosts)
        return NodeGroup(
            hosts, tuple(model for part in gpus.split(",") for model in self.gpus(part))
        )

    def gpus(self, text: str) -> list[Model]:
        """`GPU:COUNT` as that many models; the count may be left out for one."""
        name, count = parse_gpu(text)
        return [self.model(catalog.find(name))] * count

    def model(self, product: Product) -> Model:
        """A product with geometry, weights and Slurm type name."""
        if product.key not in self._made:
            self._made[product.key] = fleet_model(product, self._types.get(product.key))
        return self._made[product.key]


def parse_gpu(text: str) -> tuple[str, int]:
    """`NAME:COUNT`, or `NAME` for one; UsageFault for a count that is none."""
    name, colon, count = text.strip().rpartition(":")
    if not colon:
        return text.strip(), 1
    if not (count.isascii() and count.isdigit() and len(count) < 3 and 1 <= int(count) <= 32):
        raise UsageFault(f"GPU {text!r}: write NAME:COUNT with a count from 1 to 32")
    return name, int(count)


def _pairs(texts: tuple[str, ...], form: str) -> dict[str, str]:
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
