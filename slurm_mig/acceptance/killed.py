"""A Prolog that is killed at the worst moment: the GPU instance is there, its compute instance not.

The environment is a Prolog's.
"""

from __future__ import annotations

import os
import signal

from slurm_mig.config import load
from slurm_mig.hooks.job import Job
from slurm_mig.hooks.log_line import LogLine
from slurm_mig.hooks.prolog import prolog
from slurm_mig.node.node import Node


def die_before_compute(text: str) -> None:
    """Called with what the driver is asked for next."""
    if "nvmlGpuInstanceCreateComputeInstance" in text:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Carve as the Prolog does, until then."""
    os.umask(0o022)
    node = Node(load(environ=os.environ), os.environ)
    node.tell = die_before_compute
    prolog(node, Job.from_environ(os.environ), LogLine("prolog"))


if __name__ == "__main__":
    main()
