"""`slurm-mig warm`: the helper that has loaded what hooks need."""

from __future__ import annotations

import os
import sys

import click

from slurm_mig.config import chosen
from slurm_mig.node.node import require_root


@click.command()
def command() -> None:
    """Serve hooks faster: load what they need once, and fork for each.

    For a service manager; it runs until it is ended. Hooks that it does not serve load
    everything themselves, as without it.
    """
    require_root()
    path = chosen(click.get_current_context().obj, os.environ)
    # Without the command line: each fork would carry it.
    words = [sys.executable, "-I", "-c", "from slurm_mig.hooks.warm import main; main()"]
    os.execve(sys.executable, words, {**os.environ, "SLURM_MIG_CONFIG": str(path)})  # noqa: S606
