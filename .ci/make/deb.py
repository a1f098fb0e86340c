"""Builds the Debian package: a Python environment below /usr/lib/slurm-mig, units, man pages.

deb.py DIR    writes DIR/slurm-mig_VERSION_all.deb (`make deb`: dist)

Needs dpkg-deb, and the packages that slurm-mig depends on installed beside this Python: they
go into the package as they are. Nothing is downloaded. The environment has no interpreter of its
own: the node's python3 runs it, whichever of the releases in PYTHONS that is.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from slurm_mig import __version__
from slurm_mig.config import sample
from slurm_mig.node import install_paths, install_texts
from slurm_mig.node.install_texts import Places, Runtime
from slurm_mig.settings import Config

TOP: Final = Path(__file__).parents[2]
#: Not /opt/slurm-mig, where the manual has pip put one: of two in one directory the older may run.
HOME: Final = Path("/usr/lib/slurm-mig")
PACKAGES: Final = f"{HOME}/lib/python3/site-packages"
CONFIG: Final = Path("/etc/slurm-mig/config.toml")

#: Releases whose python3 finds the packages; the tests run on these.
PYTHONS: Final = (11, 12, 13, 14)

#: What goes in beside slurm-mig: what it needs, and what metrics and mig-parted's YAML need.
BUNDLED: Final = ("nvidia-ml-py", "filelock", "click", "prometheus-client", "PyYAML")

#: What the configuration bounds in a unit with its defaults, in seconds (docs/admin.md).
BOUNDED: Final = 130.0

#: What a hook may take with its defaults, in seconds (docs/admin.md).
LONGEST: Final = Config().longest_hook

#: Where Debian's zsh looks for what packages bring; site-functions below /usr/share is upstream's.
ZSH: Final = Path("/usr/share/zsh/vendor-completions/_slurm-mig")

CONTROL: Final = f"""\
Package: slurm-mig
Version: {__version__}
Architecture: all
Maintainer: slurm-mig maintainers <maintainers@users.noreply.r-seed-1b1373df.example>
Section: admin
Priority: optional
Depends: python3 (>= 3.{PYTHONS[0]}), python3 (<< 3.{PYTHONS[-1] + 1})
Suggests: slurmd, prometheus-node-exporter
Description: MIG slices made to measure for Slurm jobs
 Prolog and Epilog for slurmd that carve a GPU's MIG instances for each job and
 take them down after it, with a ledger of who held which instance when.
"""

_SET: Final = f"""\
#!/bin/sh
set -e
root=${{DPKG_ROOT:-}}
slurm_mig() {{ "$root{HOME}/bin/python3" -I -m slurm_mig --config {CONFIG} "$@"; }}
units="slurm-mig-boot.service slurm-mig-reconcile.timer slurm-mig-publish.timer"
units="$units slurm-mig-metrics.timer"
"""

POSTINST: Final = f"""{_SET}
# abort-remove: what a removal that failed half-way has taken away comes back.
if [ "$1" = configure ] || [ "$1" = abort-remove ]; then
    # Who takes it away is not told which lines to put into slurm.conf.
    [ "$1" = configure ] || exec >/dev/null
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
fi
"""

# Stopping the boot unit would stop slurmd, which requires it: it is only disabled.
PRERM: Final = f"""{_SET}
if [ "$1" = remove ]; then
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
fi
"""

POSTRM: Final = """\
#!/bin/sh
set -e
# The ledger is who held what: it stays, whatever is purged. So do hooks that are there still:
# another installation's, which slurm.conf names; slurmd drains the node without them.
if [ "$1" = purge ] && ! [ -e "${DPKG_ROOT:-}/etc/slurm-mig/hooks/prolog" ]; then
    rm -rf "${DPKG_ROOT:-}/etc/slurm-mig"
fi
"""

PROGRAM: Final = f"""\
#!/bin/sh
exec {HOME}/bin/python3 -I -m slurm_mig "$@"
"""

#: Who may do what with it; the licence's text is on every Debian system.
COPYRIGHT: Final = f"""\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: slurm-mig

Files: *
Copyright: the slurm-mig contributors
License: Apache-2.0
 On Debian systems the text of this licence is in /usr/share/common-licenses/Apache-2.0.
Comment: what it needs lies beside it below {HOME}, each with its own licence
 in its .dist-info directory.
"""


def build(directory: Path) -> Path:
    """Build it; returns the package."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"slurm-mig_{__version__}_all.deb"
    with tempfile.TemporaryDirectory() as work:
        stage = Path(work) / "stage"
        stage.mkdir(mode=0o755)
        environment(stage, wheel(Path(work)))
        system_files(stage)
        control_files(stage)
        # The same source gives the same package.
        environ = os.environ | {"SOURCE_DATE_EPOCH": str(source_date())}
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ)
    return target


def source_date() -> int:
    """Seconds since the epoch of the newest source; SOURCE_DATE_EPOCH if that is set."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given) if given else int((TOP / "CHANGELOG.md").stat().st_mtime)


def wheel(work: Path) -> Path:
    """Our own wheel, built without a network."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(work), str(TOP)]
    subprocess.run(command, check=True)
    (made,) = work.glob("*.whl")
    return made


def environment(stage: Path, ours: Path) -> None:
    """A virtual environment without an interpreter (PEP 405), for any python3 of PYTHONS."""
    packages = below(stage, PACKAGES)
    packages.mkdir(parents=True)
    with zipfile.ZipFile(ours) as archive:
        archive.extractall(packages)
    for name in BUNDLED:
        copy_distribution(name, packages)
    for minor in PYTHONS:
        (packages.parents[1] / f"python3.{minor}").symlink_to("python3")
    program = below(stage, f"{HOME}/bin/python3")
    program.parent.mkdir()
    program.symlink_to("/usr/bin/python3")
    write(stage, f"{HOME}/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")


def copy_distribution(name: str, packages: Path) -> None:
    """Its Python files and metadata, without what is for this Python or this machine alone."""
    for file in distribution(name).files or ():
        if ".." in file.parts or file.suffix in (".pyc", ".so") or file.name == "direct_url.json":
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.locate(), target)


def system_files(stage: Path) -> None:
    """Units, man pages and completion as `slurm-mig install` makes them, for Debian's places."""
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
            zsh = file.path == places.share / install_paths.COMPLETIONS["zsh"]
            write(stage, str(ZSH if zsh else file.path), file.text)
    write(stage, str(CONFIG), sample())
    write(stage, "/usr/bin/slurm-mig", PROGRAM, mode=0o755)
    about = "/usr/share/doc/slurm-mig"
    write(stage, f"{about}/copyright", COPYRIGHT)
    write(stage, f"{about}/changelog.gz", packed((TOP / "CHANGELOG.md").read_text("utf-8")))


def packed(text: str) -> bytes:
    """Compressed, without the time."""
    return gzip.compress(text.encode(), 9, mtime=0)


def control_files(stage: Path) -> None:
    """Everything below DEBIAN/ (deb-control(5), deb-conffiles(5), deb-postinst(5))."""
    files = [path for path in stage.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files) // 1024
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  "
        f"{path.relative_to(stage)}"
        for path in sorted(files)
    ]
    for path in stage.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    write(
        stage, "/DEBIAN/control", CONTROL.replace("Section:", f"Installed-Size: {size}\nSection:")
    )
    write(stage, "/DEBIAN/conffiles", f"{CONFIG}\n")
    write(stage, "/DEBIAN/md5sums", "\n".join(sums) + "\n")
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        write(stage, f"/DEBIAN/{name}", text, mode=0o755)
    (stage / "DEBIAN").chmod(0o755)


def below(stage: Path, path: str) -> Path:
    """A path of the installed system below the directory that it is put together in."""
    return stage / path.lstrip("/")


def write(stage: Path, path: str, content: str | bytes, *, mode: int = 0o644) -> None:
    """One file with its mode, whatever the umask is."""
    target = below(stage, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    target.chmod(mode)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
