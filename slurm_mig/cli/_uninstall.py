"""Taking away what `slurm-mig install` wrote, unless Slurm or systemd still count on it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from slurm_mig.doctor.gather import USUAL
from slurm_mig.errors import Held, SlurmFault, Unresolved
from slurm_mig.node.install_manifest import listed, removal, remove
from slurm_mig.node.install_paths import PARTS, below, part_of
from slurm_mig.node.node import Node
from slurm_mig.slurm import conf
from slurm_mig.slurm.commands import CommandClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurm_mig.settings import Config

OUT: Final = (
    "take hook lines and counts out of slurm.conf in one go and restart Slurm's daemons "
    '(docs/admin.md, "Getting rid of it")'
)

#: `scontrol show config` numbers them where there can be several (facts/slurm.md).
_HOOK_KEY: Final = re.compile(r"(prolog|epilog|taskprolog)(\[\d+\])?")


def uninstall(
    manifest: Path,
    root: Path,
    config: Config,
    parts: Sequence[str],
    *,
    force: bool,
    dry_run: bool,
) -> None:
    """Remove exactly what stands in the manifest of these parts.

    Held while slurm.conf names a hook or a unit is enabled: without its Prolog slurmd drains the
    node, and without a unit that it requires it does not start; and while somebody has a slice:
    no Epilog would come for it. Unresolved when files were changed since, which are left.
    """
    there = [Path(name) for name in listed(manifest, parts)]
    hooks = [path for path in there if part_of(path) == "hooks"]
    if not force:
        _check_slurm(hooks, root, config)
        _check_units(there, root)
        if hooks and root == Path("/"):
            _check_slices(config)
        if hooks:
            _check_counts(hooks, root, config)
    plan = (removal if dry_run else remove)(manifest, root, parts)
    for path in plan.gone:
        click.echo(f"{'would be removed' if dry_run else 'removed'}  {path}")
    for path in plan.changed:
        click.echo(f"kept, for it was changed  {path}")
    if not there:
        what = "nothing" if set(parts) == set(PARTS) else f"nothing of {', '.join(parts)}"
        click.echo(f"{what} is installed according to {manifest}")
    if plan.changed:
        raise Unresolved(
            f"{len(plan.changed)} files were changed since they were installed",
            remedy="remove them yourself",
        )


def _check_slurm(hooks: list[Path], root: Path, config: Config) -> None:
    ours = {below(root, path) for path in hooks}
    for where, key, value in _configured(root, config):
        scripts = [(path, text) for path, text in _scripts(root, value) if path not in ours]
        # A directory of the site's with more in it does without our file.
        shared = scripts and any(char in value for char in "*?[")
        for path in hooks:
            if fnmatchcase(str(path), value) and not shared:
                raise Held(
                    f"{where} has {key}={value}, and slurmd drains the node without {path}",
                    remedy=f"{OUT}, or --force",
                )
            name = re.escape(str(path))
            call = re.compile(rf"^[^#\n]*(?<![\w/.-]){name}(?![\w/.-])", re.MULTILINE)
            for script, text in scripts:
                if call.search(text):
                    raise Held(
                        f"{where} has {key}={value}, and {script} calls {path}",
                        remedy="take it out of that script, or --force",
                    )


def _check_counts(hooks: list[Path], root: Path, config: Config) -> None:
    """Held while Slurm counts slices and nobody else carves them: jobs start on bare GPUs."""
    ours = {below(root, path) for path in hooks}
    for _, _, value in _configured(root, config):
        if any("slurm-mig" in text for path, text in _scripts(root, value) if path not in ours):
            return
    for file in _written(root):
        for node in conf.nodes(file):
            if node.managed:
                raise Held(
                    f"{node.entry.where} counts slices of {node.name}, and without the hooks jobs "
                    "that ask for them start on bare GPUs",
                    remedy=f"{OUT}, or --force",
                )


def _scripts(root: Path, value: str) -> Iterator[tuple[Path, str]]:
    """What a line of slurm.conf runs, with its text."""
    pattern = Path(value)
    if pattern.is_absolute() and pattern.name:
        folder = below(root, pattern.parent, follow=True)
        for path in sorted(folder.glob(pattern.name)):
            if path.is_file():
                yield path, _text(path) or ""


def _check_slices(config: Config) -> None:
    """Held while somebody has a slice: where hook lines went out first, no Epilog comes for it."""
    node = Node(config, look=True)
    try:
        taken = [item for item in node.ledger.all_open() if item.boot_id == node.boot_id]
    finally:
        node.close()
    if taken:
        raise Held(
            f"{taken[0].owner} has {taken[0].made}, which nothing takes down without the hooks",
            remedy="let its jobs end, `slurm-mig reset --gpu all`, or --force",
        )


def _configured(root: Path, config: Config) -> Iterator[tuple[str, str, str]]:
    """Hooks that Slurm has: as slurmctld says, and as this node's slurm.conf does.

    slurmd goes by its own file, which may be older, or newer, than what slurmctld has loaded.
    """
    if root == Path("/"):
        client = CommandClient(config.slurm_bin, config.slurm_timeout)
        with suppress(SlurmFault):
            for key, value in client.configuration().items():
                if _HOOK_KEY.fullmatch(key):
                    yield from (("slurmctld", key, word) for word in value.split(","))
    for file in _written(root):
        for key, value in (pair for entry in file.entries for pair in entry.pairs):
            if _HOOK_KEY.fullmatch(key):
                yield file.path, key, value


def _written(root: Path) -> Iterator[conf.Conf]:
    named = os.environ.get("SLURM_CONF")

    def read(path: str) -> str | None:
        # An image's own includes, not the files of that name here.
        return _text(below(root, Path(path), follow=True))

    for path in [Path(named)] if named and root == Path("/") else USUAL:
        yield conf.parse(str(path), read(str(path)) or "", read)


def _text(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _check_units(there: list[Path], root: Path) -> None:
    """Held where systemd would miss a unit (systemctl(1), enable: links below these)."""
    for path in there:
        if path.suffix not in (".service", ".timer"):
            continue
        units = below(root, Path("/etc/systemd/system"), follow=True)
        for directory in units.glob("*.*"):
            link = directory / path.name
            # Below an image's root it leads nowhere, so it must not be followed.
            if directory.suffix in (".wants", ".requires") and link.is_symlink():
                # Stopping what slurmd requires would stop slurmd, and its jobs' Epilogs with it.
                now = "--now " if path.suffix == ".timer" else ""
                raise Held(
                    f"{path.name} is enabled ({link})",
                    remedy=f"run `systemctl disable {now}{path.name}`, or --force",
                )
