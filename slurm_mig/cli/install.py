"""`slurm-mig install`: put hooks, units and what goes with them in place."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import slurm_mig
from slurm_mig.cli._usage import OnePath
from slurm_mig.config import chosen, load, sample
from slurm_mig.errors import UsageFault
from slurm_mig.node import install_manifest, install_paths, install_texts
from slurm_mig.node.boot import WAIT
from slurm_mig.node.install_paths import DEFAULT_HOOKS
from slurm_mig.node.install_texts import Places, Runtime
from slurm_mig.node.node import require_root
from slurm_mig.settings import Config

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where an administrator's units go (systemd.unit(5)).
UNITS = Path("/etc/systemd/system")

SHARE = Path("/usr/local/share")

_DIRECTORY = OnePath(path_type=Path, file_okay=False)


@click.command()
@click.option(
    "--hooks",
    type=_DIRECTORY,
    default=Path(DEFAULT_HOOKS),
    show_default=True,
    help="Directory for the hooks.",
)
@click.option("--prolog-d", type=_DIRECTORY, help="A prolog.d of yours for the Prolog instead.")
@click.option("--epilog-d", type=_DIRECTORY, help="An epilog.d of yours for the Epilog instead.")
@click.option(
    "--units",
    type=_DIRECTORY,
    help=f"Directory for the systemd units.  [default: {UNITS}, where there is one]",
)
@click.option("--no-units", is_flag=True, help="Write no systemd units.")
@click.option(
    "--share",
    type=_DIRECTORY,
    default=SHARE,
    show_default=True,
    help="Directory for man pages and shell completion.",
)
@click.option(
    "--only",
    "parts",
    type=click.Choice(install_paths.PARTS),
    multiple=True,
    help="Only this part; may be given several times.",
)
@click.option("--log-file", is_flag=True, help="Also /var/log/slurm-mig.log: rsyslog, logrotate.")
@click.option("--root", type=_DIRECTORY, default=Path("/"), help="Install into the image there.")
@click.option("--uninstall", "away", is_flag=True, help="Remove what was installed.")
@click.option("--force", is_flag=True, help="Uninstall although Slurm or a job counts on it.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written or removed.")
def command(
    hooks: Path,
    prolog_d: Path | None,
    epilog_d: Path | None,
    units: Path | None,
    no_units: bool,
    share: Path,
    parts: tuple[str, ...],
    log_file: bool,
    root: Path,
    away: bool,
    force: bool,
    dry_run: bool,
) -> None:
    """Write hooks, units, tmpfiles.d, completion, man pages and a config sample.

    They name this Python and this configuration. What the site has changed in its
    configuration, and other files in its directories, stay as they are.
    """
    if units and no_units:
        raise UsageFault("--units and --no-units exclude each other")
    if force and not away:
        raise UsageFault("--force goes with --uninstall")
    _check_root(root)
    require_root()
    places = Places(
        hooks=hooks.absolute(),
        units=None if no_units else _units(units, root),
        share=share.absolute(),
        prolog_d=prolog_d and prolog_d.absolute(),
        epilog_d=epilog_d and epilog_d.absolute(),
    )
    # The log's files are put there only on request; what is taken away is everything.
    usual = (
        install_paths.PARTS
        if away
        else tuple(part for part in install_paths.PARTS if part != "log")
    )
    wanted = parts or usual
    wanted += ("log",) if log_file and "log" not in wanted else ()
    _run(wanted, places, root, away=away, force=force, dry_run=dry_run)


def _check_root(root: Path) -> None:
    """UsageFault for an image that is not there: a mistyped path would become a new tree."""
    if not root.is_absolute() or not root.is_dir():
        raise UsageFault(
            f"--root {root}: {'no such directory' if root.is_absolute() else 'a relative path'}",
            remedy="name an existing directory by its absolute path",
        )


def _run(
    parts: Sequence[str], places: Places, root: Path, *, away: bool, force: bool, dry_run: bool
) -> None:
    config, runtime = _runtime(root)
    manifest = install_paths.below(root, places.hooks / install_paths.MANIFEST)
    if away:
        from slurm_mig.cli._uninstall import uninstall

        uninstall(manifest, root, config, parts, force=force, dry_run=dry_run)
        return
    _check_runtime(runtime, root, parts)
    made = install_texts.files(parts, places, runtime, root)
    if dry_run:
        _show(made, root)
        return
    others = install_manifest.others(places, runtime.python, root)
    install_manifest.write(made, root, manifest, keep=[runtime.config])
    for line in others:
        click.echo(f"# {line}")
    _advise(places, made, root)


def _units(named: Path | None, root: Path) -> Path | None:
    if named is not None:
        return named.absolute()
    # An image gets them; a machine without systemd does not.
    return UNITS if root != Path("/") or UNITS.is_dir() else None


def _runtime(root: Path) -> tuple[Config, Runtime]:
    """The configuration of the system below `root`, and what its files name."""
    option = click.get_current_context().obj
    path = install_paths.without(root, chosen(option, os.environ).absolute())
    if root == Path("/"):
        config = load(option)
    else:
        there = install_paths.below(root, path, follow=True)
        config = load(there) if there.exists() else Config()
    bounded = WAIT + config.lock_timeout + 2 * config.slurm_timeout
    python = install_paths.without(root, Path(sys.executable))
    package = install_paths.without(root, Path(slurm_mig.__file__).parent)
    longest = config.longest_hook
    return config, Runtime(python, path, config.run, bounded, longest, sample(), package)


def _check_runtime(runtime: Runtime, root: Path, parts: Sequence[str]) -> None:
    """UsageFault where hooks and units would name a Python, or its slurm-mig, that is not there.

    The image would boot, and every GPU job's Prolog would fail and drain its node.
    """
    if root == Path("/") or not {"hooks", "units"} & {*parts}:
        return
    for what, path in (("Python", runtime.python), ("slurm-mig", runtime.package)):
        if not install_paths.below(root, path, follow=True).exists():
            raise UsageFault(
                f"--root {root}: hooks would name this {what}, {path}, "
                "which the image does not have",
                remedy="install slurm-mig in the image, and run the image's own: "
                f"{root}/opt/slurm-mig/bin/slurm-mig install --root {root}",
            )


def _show(made: Sequence[install_paths.File], root: Path) -> None:
    install_manifest.check(made, root)
    for file in made:
        click.echo(f"{install_manifest.state(file, root):8}{install_paths.below(root, file.path)}")


def _advise(places: Places, made: Sequence[install_paths.File], root: Path) -> None:
    paths = [file.path for file in made]
    if places.hook_paths["Prolog"] in paths:
        click.echo("Put these lines into slurm.conf:")
        for line in places.slurm_lines:
            click.echo(line)
        if not (places.prolog_d and places.epilog_d):
            click.echo(
                "# Where there is a Prolog or Epilog already: before Slurm 24.05 a second line\n"
                "# takes its place; see --prolog-d and --epilog-d."
            )
        for line in _site_faults(places, root):
            click.echo(f"# {line}")
    if places.units and places.units / Path(install_texts.UNIT).name in paths:
        click.echo(
            f"{places.units}/slurm-mig-boot.service readies the GPUs\nafter a boot, before slurmd "
            "starts; slurm-mig-reconcile.timer looks for left-overs\non nodes without jobs. "
            "Switch them on with:\nsystemctl daemon-reload\n"
            "systemctl enable slurm-mig-boot.service\n"
            "systemctl enable --now slurm-mig-reconcile.timer"
        )


def _site_faults(places: Places, root: Path) -> list[str]:
    found: list[str] = []
    for directory, ours, last in (
        (places.prolog_d, install_texts.PROLOG_NAME, True),
        (places.epilog_d, install_texts.EPILOG_NAME, False),
    ):
        if directory is not None:
            there = install_paths.below(root, directory, follow=True)
            found += install_texts.site_faults(there, ours, last=last)
    return found
