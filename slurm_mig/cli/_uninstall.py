"""Taking away what `slurm-mig install` wrote, unless Slurm or systemd still count on it."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from slurm_mig.doctor import conf
from slurm_mig.doctor.gather import USUAL
from slurm_mig.errors import Held, SlurmFault, Unresolved
from slurm_mig.install import below, read_manifest, removal, remove
from slurm_mig.slurm_commands import CommandClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.config import Config

#: `scontrol show config` numbers them where there can be several (slurm-facts.md).
_HOOK_KEY: Final = re.compile(r"(prolog|epilog|taskprolog)(\[\d+\])?")


def uninstall(manifest: Path, root: Path, config: Config, *, force: bool, dry_run: bool) -> None:
    """Remove exactly what stands in the manifest.

    Held while slurm.conf names a hook or a unit is enabled: without its Prolog slurmd drains the
    node, and without a unit that it requires it does not start. Unresolved when files were
    changed since, which are left.
    """
    listed = [Path(name) for name in read_manifest(manifest)]
    if not force:
        _check_slurm(listed, root, config)
        _check_units(listed, root)
    plan = removal(manifest, root) if dry_run else remove(manifest, root)
    for path in plan.gone:
        click.echo(f"{'would be removed' if dry_run else 'removed'}  {path}")
    for path in plan.changed:
        click.echo(f"kept, for it was changed  {path}")
    if not listed:
        click.echo(f"nothing is installed according to {manifest}")
    if plan.changed:
        raise Unresolved(
            f"{len(plan.changed)} files were changed since they were installed",
            remedy="remove them yourself",
        )


def _check_slurm(listed: list[Path], root: Path, config: Config) -> None:
    for where, key, value in _configured(root, config):
        for path in listed:
            if fnmatchcase(str(path), value):
                raise Held(
                    f"{where} has {key}={value}, and slurmd drains the node without {path}",
                    remedy="take it out of slurm.conf and run `scontrol reconfigure`, or --force",
                )


def _configured(root: Path, config: Config) -> Iterator[tuple[str, str, str]]:
    """Hooks that Slurm has: as slurmctld says, else as the slurm.conf says that it would read."""
    if root == Path("/"):
        client = CommandClient(config.slurm_bin, config.slurm_timeout)
        try:
            loaded = client.configuration()
        except SlurmFault:
            pass
        else:
            for key, value in loaded.items():
                if _HOOK_KEY.fullmatch(key):
                    yield from (("slurmctld", key, word) for word in value.split(","))
            return
    named = os.environ.get("SLURM_CONF")
    paths = [Path(named)] if named and root == Path("/") else [below(root, path) for path in USUAL]
    for path in paths:
        for entry in conf.parse(str(path), _text(str(path)) or "", _text).entries:
            for key, value in entry.pairs:
                if _HOOK_KEY.fullmatch(key):
                    yield str(path), key, value


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return None


def _check_units(listed: list[Path], root: Path) -> None:
    """Held where systemd would miss a unit (systemctl(1), enable: links below these)."""
    for path in listed:
        if path.suffix not in (".service", ".timer"):
            continue
        for directory in below(root, Path("/etc/systemd/system")).glob("*.*"):
            link = directory / path.name
            # Below an image's root it leads nowhere, so it must not be followed.
            if directory.suffix in (".wants", ".requires") and link.is_symlink():
                raise Held(
                    f"{path.name} is enabled ({link})",
                    remedy=f"run `systemctl disable --now {path.name}`, or --force",
                )
