"""`slurm-mig generate`: what slurm.conf, gres.conf and the Lua plugins need, from the geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig import catalog
from slurm_mig.cli._common import json_option, print_json
from slurm_mig.errors import UsageFault
from slurm_mig.fleet import Fleet, NodeGroup
from slurm_mig.generator import generate
from slurm_mig.models import fleet_model

if TYPE_CHECKING:
    from slurm_mig.catalog import Product
    from slurm_mig.fleet import Model

#: Where `slurm-mig install` puts the hooks unless told otherwise.
DEFAULT_HOOKS = "/etc/slurm-mig/hooks"


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
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write files there.")
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
    named = dict(_split(text, "=", "--gpu-type GPU=TYPE") for text in types)
    models = Models({catalog.find(gpu).key: name for gpu, name in named.items()})
    words = dict(_split(text, "=", "--alias WORD=PROFILE") for text in aliases)
    fleet = Fleet(tuple(models.group(text) for text in nodes), words, slices_only)
    files = generate(fleet, hooks=hooks)
    if as_json:
        print_json(files)
    elif out is None:
        for name, text in files.items():
            click.echo(f"{'#' * 16} {name}\n{text}")
    else:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, "utf-8")
            click.echo(str(out / name))


class Models:
    """GPU models by catalogue name, each derived once."""

    def __init__(self, types: dict[str, str]) -> None:
        self._types = types
        self._made: dict[str, Model] = {}

    def group(self, text: str) -> NodeGroup:
        """The node group of `HOSTS=GPU:COUNT[,GPU:COUNT]`."""
        hosts, gpus = _split(text, "=", "--node HOSTS=GPU:COUNT")
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
    if not (count.isascii() and count.isdigit() and 1 <= int(count) <= 32):
        raise UsageFault(f"GPU {text!r}: write NAME:COUNT with a count from 1 to 32")
    return name, int(count)


def _split(text: str, mark: str, form: str) -> tuple[str, str]:
    left, found, right = text.partition(mark)
    if not (left and found and right):
        raise UsageFault(f"{text!r} is not of the form {form}")
    return left.strip(), right.strip()
