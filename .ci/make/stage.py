"""What a package of ours holds, put together in a directory: the same for Debian's and for RPM.

A Python environment below /usr/lib/slurm-mig, units, man pages, completion, a configuration,
and the licences of all that is in it. Nothing is downloaded: what slurm-mig depends on is taken
from beside this Python. The environment has no interpreter of its own: the node's runs it.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.config import sample
from slurm_mig.node import install_paths, install_texts
from slurm_mig.node.install_texts import Places, Runtime
from slurm_mig.settings import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP: Final = Path(__file__).parents[2]
#: Not /opt/slurm-mig, where the manual has pip put one: of two in one directory the older may run.
HOME: Final = Path("/usr/lib/slurm-mig")
PACKAGES: Final = f"{HOME}/lib/python3/site-packages"
CONFIG: Final = Path("/etc/slurm-mig/config.toml")
ABOUT: Final = "/usr/share/doc/slurm-mig"

#: Releases whose python3 finds the packages; the tests run on these.
PYTHONS: Final = (11, 12, 13, 14)

#: What goes in beside slurm-mig: what it needs, and what metrics and mig-parted's YAML need.
BUNDLED: Final = ("nvidia-ml-py", "filelock", "click", "prometheus-client", "PyYAML")

#: What the configuration bounds in a unit with its defaults, in seconds (docs/admin.md).
BOUNDED: Final = 130.0

#: What a hook may take with its defaults, in seconds (docs/admin.md).
LONGEST: Final = Config().longest_hook

MAINTAINER: Final = "slurm-mig maintainers <maintainers@users.noreply.r-seed-1b1373df.example>"

#: What the scripts of both packages begin with. `root` is DPKG_ROOT's place, empty on a node.
SHELL: Final = f"""\
#!/bin/sh
set -e
root=${{DPKG_ROOT:-}}
slurm_mig() {{ "$root{HOME}/bin/python3" -I -m slurm_mig --config {CONFIG} "$@"; }}
units="slurm-mig-boot.service slurm-mig-reconcile.timer slurm-mig-publish.timer"
units="$units slurm-mig-metrics.timer slurm-mig-warm.service"
"""

#: When the files are there: bytecode, hooks, and a word about another installation.
SET_UP: Final = f"""\
"$root{HOME}/bin/python3" -I -m compileall -q ${{root:+-s "$root"}} "$root{PACKAGES}"
slurm_mig install --root "${{root:-/}}" --only hooks
for other in /usr/local/bin/slurm-mig /opt/slurm-mig/bin/slurm-mig; do
    if [ -e "$root$other" ]; then
        echo "slurm-mig: $other is another installation, not this package's; the hooks" >&2
        echo "are this package's now, /usr/bin/slurm-mig is its command" >&2
    fi
done
if [ -z "$root" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
"""

#: Before the files go. The boot unit is only disabled: stopping it would stop slurmd, which
#: requires it.
TAKE_DOWN: Final = f"""\
# Hooks that `slurm-mig install` of another environment has written since are that one's.
if grep -qs "^python='{HOME}/" "$root/etc/slurm-mig/hooks/prolog" ||
    ! [ -e "$root/etc/slurm-mig/hooks/prolog" ]; then
    # The list of what is installed is one for all: units of another one's are not ours to take.
    boot="$root/etc/systemd/system/slurm-mig-boot.service"
    set --
    if [ -f "$boot" ] && ! grep -q "^ExecStart={HOME}/" "$boot"; then
        set -- --only hooks
    fi
    # Fails while slurm.conf names the hooks: slurmd would drain the node.
    slurm_mig install --root "${{root:-/}}" --uninstall "$@"
else
    echo "slurm-mig: the hooks are another installation's, and stay" >&2
fi
for unit in $units; do
    # A unit of that name in /etc is another installation's, and counts before ours.
    if command -v systemctl >/dev/null && ! [ -f "$root/etc/systemd/system/$unit" ]; then
        systemctl --quiet ${{root:+--root="$root"}} disable "$unit"
        case $unit:$root in
        *.timer:) ! [ -d /run/systemd/system ] || systemctl stop "$unit" ;;
        esac
    fi
done
find "$root{PACKAGES}" -name __pycache__ -type d -exec rm -rf {{}} +
"""

PROGRAM: Final = f"""\
#!/bin/sh
exec {HOME}/bin/python3 -I -m slurm_mig "$@"
"""

#: A module's own header stands for the licence file that nvidia-ml-py does not ship.
_HEADER: Final = re.compile(r"\A#####\n((?:#.*\n)+?)#####\n")


@dataclass(frozen=True, slots=True)
class Licence:
    """What somebody else's package in ours asks to be said."""

    name: str
    version: str
    short: str
    holders: tuple[str, ...]
    texts: tuple[str, ...]
    files: tuple[str, ...]


def source_date() -> int:
    """Seconds since the epoch of the newest source; SOURCE_DATE_EPOCH if that is set."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int((TOP / "CHANGELOG.md").stat().st_mtime)


def put_together(stage: Path, work: Path, python: str, zsh: Path) -> None:
    """Everything of a package but what its own format asks for.

    `python` is the interpreter's path on the node, `zsh` where that system's zsh looks.
    """
    environment(stage, wheel(work), python)
    system_files(stage, zsh)
    for path in stage.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)


def wheel(work: Path) -> Path:
    """Our own wheel, built without a network."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(work), str(TOP)]
    subprocess.run(command, check=True)
    (made,) = work.glob("*.whl")
    return made


def environment(stage: Path, ours: Path, python: str) -> None:
    """A virtual environment without an interpreter (PEP 405), for any python3 of PYTHONS."""
    packages = below(stage, PACKAGES)
    packages.mkdir(parents=True)
    with zipfile.ZipFile(ours) as archive:
        archive.extractall(packages)
    # A zip file's extraction forgets the modes of the scripts that `install` copies from.
    for name in install_texts.HOOKS.values():
        (packages / "slurm_mig/share" / name).chmod(0o755)
    for name in BUNDLED:
        copy_distribution(distribution(name), packages)
    for minor in PYTHONS:
        (packages.parents[1] / f"python3.{minor}").symlink_to("python3")
    program = below(stage, f"{HOME}/bin/python3")
    program.parent.mkdir()
    # Absolute: scripts outside of an image (DPKG_ROOT) have the builder's interpreter then.
    program.symlink_to(python)
    home = Path(python).parent
    write(stage, f"{HOME}/pyvenv.cfg", f"home = {home}\ninclude-system-site-packages = false\n")


def copy_distribution(found: Distribution, packages: Path) -> None:
    """Its Python files and metadata, without what is for this Python or this machine alone."""
    for file in found.files or ():
        if ".." in file.parts or file.suffix in (".pyc", ".so") or file.name == "direct_url.json":
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Path(str(file.locate())).read_bytes()
        if file.suffix == ".py":
            # Nobody runs a module by its first line, whose `env python` no node needs to have.
            text = re.sub(rb"\A#!.*\n", b"", text)
        target.write_bytes(text)
        target.chmod(0o644)


def system_files(stage: Path, zsh: Path) -> None:
    """Units, man pages and completion as `slurm-mig install` makes them, for a package's places."""
    places = Places(
        hooks=CONFIG.with_name("hooks"),
        units=Path("/usr/lib/systemd/system"),
        share=Path("/usr/share"),
        tmpfiles=Path("/usr/lib/tmpfiles.d"),
    )
    runtime = Runtime(HOME / "bin/python3", CONFIG, Path("/run/slurm-mig"), BOUNDED, LONGEST)
    for file in install_texts.files(
        ["units", "tmpfiles", "completion", "man"], places, runtime, stage
    ):
        if file.path.suffix == ".1":
            write(stage, f"{file.path}.gz", packed(file.text))
        else:
            theirs = file.path == places.share / install_paths.COMPLETIONS["zsh"]
            write(stage, str(zsh if theirs else file.path), file.text)
    write(stage, str(CONFIG), sample())
    write(stage, "/usr/bin/slurm-mig", PROGRAM, mode=0o755)
    write(stage, f"{ABOUT}/CHANGELOG.md.gz", packed((TOP / "CHANGELOG.md").read_text("utf-8")))


def licences() -> Iterator[Licence]:
    """Of everything that is bundled; RuntimeError for one whose licence is nowhere to be read."""
    for name in BUNDLED:
        found = distribution(name)
        files = [file for file in found.files or () if "licenses" in file.parts]
        texts = [Path(str(file.locate())).read_text("utf-8") for file in sorted(files)]
        if not texts:
            header = _HEADER.match(Path(str(found.locate_file("pynvml.py"))).read_text("utf-8"))
            if name != "nvidia-ml-py" or header is None:
                raise RuntimeError(f"{name}: no licence in its distribution")
            texts = [re.sub(r"^# ?", "", header[1], flags=re.MULTILINE)]
        holders = re.findall(r"^ *Copyright(?: \(c\))? (\d.*)$", "\n".join(texts), re.MULTILINE)
        short = found.metadata.get("License-Expression") or found.metadata["License"]
        parts = {file.parts[0] for file in found.files or () if ".." not in file.parts}
        yield Licence(
            name, found.version, short, tuple(holders) or (f"the authors of {name}",), tuple(texts),
            tuple(sorted(part for part in parts if part != "__pycache__")),
        )  # fmt: skip


def packed(text: str) -> bytes:
    """Compressed, without the time."""
    return gzip.compress(text.encode(), 9, mtime=0)


def below(stage: Path, path: str) -> Path:
    """A path of the installed system below the directory that it is put together in."""
    return stage / path.lstrip("/")


def write(stage: Path, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
    """One file with its mode, whatever the umask is."""
    target = below(stage, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    target.chmod(mode)
