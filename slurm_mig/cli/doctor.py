"""`slurm-mig doctor`: what is wrong with the settings, before jobs find out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slurm_mig.cli._node import check_models, use_descriptions
from slurm_mig.cli._options import json_option
from slurm_mig.cli._print import print_json, working
from slurm_mig.cli._usage import OnePath
from slurm_mig.cli.generate import pairs
from slurm_mig.config import load, locate
from slurm_mig.doctor import all_checks, report
from slurm_mig.doctor.check import ERROR, WARNING, examine
from slurm_mig.doctor.gather import Sources, gather
from slurm_mig.errors import ConfigFault, DoctorFindings, UsageFault
from slurm_mig.node.node import Node
from slurm_mig.settings import Config

if TYPE_CHECKING:
    from os import PathLike

    from slurm_mig.doctor.check import Result


class _RegularFile(OnePath):
    """A file to read that is there; a FIFO would keep the doctor waiting for a writer."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | PathLike[str]:  # the base class's own answer
        """Refuse what cannot be read to its end."""
        path = super().convert(value, param, ctx)
        if not Path(os.fsdecode(path)).is_file():
            self.fail(f"{str(value)!r} is not a regular file; name one", param, ctx)
        return path


_FILE = _RegularFile(path_type=Path, dir_okay=False, exists=True)


@click.command()
@click.option("--slurm-conf", type=_FILE, help="This slurm.conf instead of the machine's own.")
@click.option("--gres-conf", type=_FILE, help="By default gres.conf beside slurm.conf.")
@click.option("--cgroup-conf", type=_FILE, help="By default cgroup.conf beside slurm.conf.")
@click.option("--job-submit", type=_FILE, help="By default job_submit.lua beside slurm.conf.")
@click.option("--cli-filter", type=_FILE, help="By default cli_filter.lua beside slurm.conf.")
@click.option("--node", default="", metavar="NAME", help="Only this node's lines.")
@click.option(
    "--live/--no-live",
    default=None,
    help="Ask slurmctld and look at this machine, or only read files; with --slurm-conf "
    "only files unless --live is given.",
)
@click.option("--slurm-version", metavar="23.11", help="Slurm's release, for files.")
@click.option(
    "--gpu-type",
    "types",
    multiple=True,
    metavar="GPU=TYPE",
    help="The GPU model behind a type name of yours, as with generate.",
)
@click.option("--strict", is_flag=True, help="Exit code 30 for warnings, too.")
@click.option("--list", "listing", is_flag=True, help="List all checks and do none.")
@json_option
def command(
    slurm_conf: Path | None,
    gres_conf: Path | None,
    cgroup_conf: Path | None,
    job_submit: Path | None,
    cli_filter: Path | None,
    node: str,
    live: bool | None,
    slurm_version: str | None,
    types: tuple[str, ...],
    strict: bool,
    listing: bool,
    as_json: bool,
) -> None:
    """Check Slurm's files, the configuration, the hooks and the NVIDIA side; change nothing."""
    if listing:
        _list(as_json=as_json)
        return
    sources = Sources(
        live=slurm_conf is None if live is None else live,
        slurm_conf=slurm_conf,
        gres_conf=gres_conf,
        cgroup_conf=cgroup_conf,
        job_submit=job_submit,
        cli_filter=cli_filter,
        node=node,
        version=_version(slurm_version),
        types={name: gpu for gpu, name in pairs(types, "--gpu-type GPU=TYPE").items()},
    )
    if slurm_conf is not None and sources.live:
        # Slurm's commands find their controller through it.
        os.environ["SLURM_CONF"] = str(slurm_conf.absolute())
    _check(sources, strict=strict, as_json=as_json)


def _check(sources: Sources, *, strict: bool, as_json: bool) -> None:
    config, fault = _config()
    use_descriptions(config)
    node = Node(config)
    try:
        with working("looking"):
            facts = gather(sources, node, fault)
    finally:
        node.close()
    result, reasons = examine(facts, all_checks()), dict(facts.gaps)
    if not result.done:
        # Nothing found because nothing was read must not pass for a sound system.
        raise UsageFault(
            f"nothing to check: slurm.conf: {reasons['slurm.conf']}; name one with --slurm-conf"
        )
    if as_json:
        print_json(report.data(result, reasons))
    else:
        click.echo(report.text(result, reasons))
    _leave(result, strict=strict)


def _config() -> tuple[Config, str]:
    """The configuration, or the defaults and what is wrong with it: a finding like others.

    Raises ConfigFault for one that the command line names: who mistypes it would have the
    defaults checked instead.
    """
    named = click.get_current_context().obj
    try:
        config = load(named)
        check_models(config)
    except ConfigFault as fault:
        if named is not None:
            raise
        return Config(source=locate(named, os.environ)), str(fault)
    return config, ""


def _leave(result: Result, *, strict: bool) -> None:
    errors, warnings = result.count(ERROR), result.count(WARNING)
    if errors or (strict and warnings):
        raise DoctorFindings(f"errors: {errors}, warnings: {warnings}; see the output")


def _version(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if not re.fullmatch(r"\d{2}\.\d{2}(\.\d{1,3})?", text, re.ASCII):
        raise UsageFault(f"--slurm-version {text!r}: write it as 23.11 or 24.11.5")
    return tuple(int(part) for part in text.split("."))


def _list(*, as_json: bool) -> None:
    checks = all_checks()
    if as_json:
        print_json(
            [
                {"code": c.code, "severity": c.severity, "title": c.title, "page": c.page}
                for c in checks
            ]
        )
        return
    click.echo(report.listing(checks))
