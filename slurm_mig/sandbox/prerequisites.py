"""What a private cluster needs of the machine, asked before anything is started.

Without it a daemon fails a minute later, and what is said then blames the daemon.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SandboxFault

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Parents of clusters' directories, the first that serves: short, for a socket's path must stay
#: below 108 bytes. Debian 13 mounts a tmpfs without device nodes on /tmp.
PLACES: Final = (Path("/tmp"), Path("/var/tmp"), Path("/var/lib"), Path("/opt"))  # noqa: S108

#: Mount options that a cluster cannot live with, and what they keep from it.
FORBIDDEN: Final = {os.ST_NODEV: "nodev: no device nodes", os.ST_NOEXEC: "noexec: no hooks"}

#: Users of the private cluster, without touching the machine's own.
WRAPPER: Final = "libnss_wrapper.so"

#: Debian's package of each program, and the program that stands for it.
PACKAGES: Final = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "scontrol": "slurm-client",
    "munged": "munge",
}


def place(places: Sequence[Path] = PLACES) -> Path:
    """The first directory where device nodes can be used and programs run.

    SandboxFault, with what is against each of them.
    """
    against = {path: _against(path) for path in places}
    for path, why in against.items():
        if not why:
            return path
    told = "; ".join(f"{path}: {why}" for path, why in against.items())
    raise SandboxFault(
        f"no directory for a private cluster: {told}",
        remedy="mount a file system without nodev and noexec on one of them",
    )


def _against(path: Path) -> str:
    try:
        flags = os.statvfs(path).f_flag
    except OSError as problem:
        return problem.strerror or str(problem)
    return ", ".join(text for flag, text in FORBIDDEN.items() if flags & flag)


def check(programs: Sequence[Path]) -> None:
    """SandboxFault that names every package to install; `programs` are directories of Slurm's."""
    missing = [
        package
        for program, package in PACKAGES.items()
        if not any((directory / program).is_file() for directory in programs)
    ]
    if _cannot_preload(WRAPPER):
        missing.append("libnss-wrapper")
    if missing:
        raise SandboxFault(
            f"this machine lacks what a private Slurm needs: {', '.join(missing)}",
            remedy=f"apt-get install {' '.join(missing)}",
        )


def _cannot_preload(library: str) -> bool:
    """The dynamic linker says so on stderr, and runs the program without it (ld.so(8))."""
    done = subprocess.run(
        ["/bin/sh", "-c", ":"],
        env={"LD_PRELOAD": library, "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    return library.encode() in done.stderr
