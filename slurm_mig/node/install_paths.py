"""Where installed files go, also below another root, and which belong together."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault
from slurm_mig.system.trust import MAX_LINKS, trusted

if TYPE_CHECKING:
    from collections.abc import Iterable


#: What `install` can put in place; `log` only where it is asked for.
PARTS: Final = ("hooks", "units", "tmpfiles", "completion", "man", "config", "log")

#: Where hooks are put, and looked for, unless a site says otherwise.
DEFAULT_HOOKS: Final = "/etc/slurm-mig/hooks"

#: Shell -> where its completions lie below a share directory (bash-completion's FAQ, zsh's
#: site-functions, fish's vendor_completions.d).
COMPLETIONS: Final = {
    "bash": "bash-completion/completions/slurm-mig",
    "zsh": "zsh/site-functions/_slurm-mig",
    "fish": "fish/vendor_completions.d/slurm-mig.fish",
}

#: Where units may be, of an administrator's and of packages (systemd.unit(5)).
UNIT_PLACES: Final = (
    Path("/etc/systemd/system"),
    Path("/usr/local/lib/systemd/system"),
    Path("/usr/lib/systemd/system"),
)

#: The manifest, beside the hooks; no glob `*` finds a name with a dot before it (glob(7)).
MANIFEST: Final = ".installed"


@dataclass(frozen=True, slots=True)
class File:
    """A file to be: its path without the root, its text and mode."""

    path: Path
    text: str
    mode: int = 0o644

    @property
    def digest(self) -> str:
        """SHA-256 of its text."""
        return hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()


def below(root: Path, path: Path, *, follow: bool = False) -> Path:
    """A path of the installed system as it is found from here.

    Links are taken as a process in the image takes them (chroot(2)): followed from here,
    its absolute ones would have root write into the running system. `follow`: also a link
    that stands at the path itself; NodeFault where links lead in a circle.
    """
    if root == Path("/"):
        return path
    names, found, links = [*reversed(path.parts)], root, 0
    while names:
        name = names.pop()
        if name in ("/", ".."):
            found = root if name == "/" or found == root else found.parent
            continue
        found /= name
        if (names or follow) and found.is_symlink():
            links += 1
            if links > MAX_LINKS:
                raise NodeFault(f"{root / path.relative_to('/')}: {os.strerror(errno.ELOOP)}")
            names += reversed(found.readlink().parts)
            found = found.parent
    return found


def without(root: Path, path: Path) -> Path:
    """The same path as the installed system will know it."""
    with suppress(ValueError):
        return Path("/") / path.relative_to(root)
    # The directory may be named by a link; the file itself (a Python) may well be one.
    with suppress(ValueError):
        return Path("/") / (path.parent.resolve() / path.name).relative_to(root.resolve())
    return path


def part_of(path: Path) -> str:
    """Which of PARTS an installed file is of; its name tells, so a manifest of any age does."""
    if path.suffix in (".service", ".timer") or path.parent.name.endswith(".service.d"):
        return "units"
    if path.parent.name in ("rsyslog.d", "logrotate.d"):
        return "log"
    if path.name == "slurm-mig.conf":
        return "tmpfiles"
    if path.parent.name == "man1":
        return "man"
    if path.name.endswith(".sample"):
        return "config"
    return "completion" if str(path).endswith(tuple(COMPLETIONS.values())) else "hooks"


def check_place(directory: Path, scripts: Iterable[str]) -> None:
    """NodeFault where files of these names cannot stand; the directory is made."""
    try:
        # Slurm and systemd run as root whatever lies there.
        with trusted(directory, make=True):
            pass
    except OSError as problem:
        raise NodeFault(f"make {directory}: {problem.strerror}") from problem
    for script in scripts:
        if (directory / Path(script).name).is_dir():
            raise NodeFault(f"{directory / Path(script).name} is a directory, not a file")
