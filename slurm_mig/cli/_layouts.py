"""Layout files and the hardware, for `export`, `assert` and `apply`."""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any

from slurm_mig.errors import NodeFault, NotPermitted, UsageFault
from slurm_mig.mig import catalog, layout
from slurm_mig.node import layout_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slurm_mig.mig.driver import Gpu
    from slurm_mig.mig.layout import Declared, PlacedInstance
    from slurm_mig.node.layout_file import DeclaredGpu
    from slurm_mig.node.node import Node


def root_to_list() -> None:
    """NotPermitted for others: the driver lists instances to root alone (facts/mig.md#calls)."""
    if os.geteuid() != 0:
        raise NotPermitted("root needed to list MIG instances")


def read(path: Path, name: str | None) -> tuple[DeclaredGpu, ...]:
    """A layout file in either form, by its ending; UsageFault says what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as problem:
        raise UsageFault(f"layout {path}: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise UsageFault(f"layout {path} is no text: {problem}") from problem
    if path.suffix in (".yaml", ".yml"):
        return layout_file.from_mig_parted(_yaml(path, text), name, f"layout {path}")
    if name is not None:
        raise UsageFault("--name goes with a file of mig-parted's, whose name ends in .yaml")
    try:
        return layout_file.from_toml(tomllib.loads(text), f"layout {path}")
    except tomllib.TOMLDecodeError as problem:
        raise UsageFault(f"layout {path} is not TOML: {problem}") from problem


def _yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise NodeFault(
            "YAML is read by PyYAML, which is not installed",
            remedy="pip install 'slurm-mig[layouts]', or Debian's python3-yaml",
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise UsageFault(f"layout {path} is not YAML: {problem}") from problem


def meant(node: Node, entries: Sequence[DeclaredGpu]) -> list[tuple[Gpu, Declared]]:
    """The GPUs of this node that a file is about; raises when one does not answer."""
    return layout_file.assigned(entries, node.driver.gpus(), pci_ids)


def pci_ids(gpu: Gpu) -> list[str]:
    """Device ids of a GPU model, as mig-parted writes them; none where they are not known."""
    found = [item for item in catalog.packaged() if gpu.name in item.names]
    return [word for item in found for word in item.row["pci_device_ids"]]


def there(node: Node, gpu: Gpu) -> list[PlacedInstance]:
    """What is on a GPU, by place."""
    geometry = node.driver.geometry(gpu)
    return [layout.built(item, geometry) for item in node.driver.instances(gpu)]
