"""Builds the Debian package.

deb.py DIR    writes DIR/slurm-mig_VERSION_all.deb (`make deb`: dist)

Needs dpkg-deb, and the packages that slurm-mig depends on installed beside this Python.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import textwrap
from email.utils import formatdate
from pathlib import Path
from typing import Final

from stage import (
    ABOUT,
    CONFIG,
    MAINTAINER,
    PACKAGES,
    PYTHONS,
    SET_UP,
    SHELL,
    TAKE_DOWN,
    Licence,
    licences,
    packed,
    put_together,
    source_date,
    write,
)

from slurm_mig import __version__

#: Where Debian's zsh looks for what packages bring; site-functions below /usr/share is upstream's.
ZSH: Final = Path("/usr/share/zsh/vendor-completions/_slurm-mig")

CONTROL: Final = f"""\
Package: slurm-mig
Version: {__version__}
Architecture: all
Maintainer: {MAINTAINER}
Section: admin
Priority: optional
Depends: python3 (>= 3.{PYTHONS[0]}), python3 (<< 3.{PYTHONS[-1] + 1})
Suggests: slurmd, prometheus-node-exporter
Description: MIG slices made to measure for Slurm jobs
 Prolog and Epilog for slurmd that carve a GPU's MIG instances for each job and
 take them down after it, with a ledger of who held which instance when.
"""

POSTINST: Final = f"""{SHELL}
# abort-remove: what a removal that failed half-way has taken away comes back.
if [ "$1" = configure ] || [ "$1" = abort-remove ]; then
    # Who takes it away is not told which lines to put into slurm.conf.
    [ "$1" = configure ] || exec >/dev/null
{textwrap.indent(SET_UP, "    ")}fi
"""

PRERM: Final = f"""{SHELL}
if [ "$1" = remove ]; then
{textwrap.indent(TAKE_DOWN, "    ")}fi
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

#: What lintian finds and we keep.
OVERRIDES: Final = """\
# A unit of that name in /etc is another installation's and stays: debhelper's own lines disable it.
slurm-mig: maintainer-script-calls-systemctl *
# Scripts that run outside of an image (DPKG_ROOT) have the builder's interpreter by it.
slurm-mig: absolute-symlink-in-top-level-folder /usr/bin/python3 *
"""

#: On every Debian system, so it is not repeated.
APACHE: Final = (
    "On Debian systems the text of this licence is in /usr/share/common-licenses/Apache-2.0."
)
COPYRIGHT: Final = f"""\
Upstream-Name: slurm-mig

Files: *
Copyright: 2026 the slurm-mig contributors
License: Apache-2.0
 {APACHE}
"""


def build(directory: Path) -> Path:
    """Build it; returns the package."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"slurm-mig_{__version__}_all.deb"
    with tempfile.TemporaryDirectory() as work:
        stage = Path(work) / "stage"
        stage.mkdir(mode=0o755)
        put_together(stage, Path(work), "/usr/bin/python3", ZSH)
        write(stage, f"{ABOUT}/copyright", "\n".join([COPYRIGHT, *map(stanza, licences())]))
        write(stage, f"{ABOUT}/changelog.gz", packed(changelog()))
        write(stage, "/usr/share/lintian/overrides/slurm-mig", OVERRIDES)
        control_files(stage)
        # The same source gives the same package.
        environ = os.environ | {"SOURCE_DATE_EPOCH": str(source_date())}
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environ)
    return target


def stanza(licence: Licence) -> str:
    """What the copyright file says of somebody else's package."""
    files = "\n ".join(f"{PACKAGES.lstrip('/')}/{name}*" for name in licence.files)
    holders = "\n ".join(licence.holders)
    texts = [APACHE if "Apache License" in text[:200] else text for text in licence.texts]
    lines = "\n\n".join(texts).splitlines()
    text = "\n".join(f" {line}" if line.strip() else " ." for line in lines)
    short = licence.short.replace(" AND ", " and ")
    return (
        f"Files: {files}\nCopyright: {holders}\nLicense: {short}\n{text}\n"
        f"Comment: {licence.name} {licence.version}\n"
    )


def changelog() -> str:
    """In Debian's form; what changed is upstream's to say (deb-changelog(5))."""
    when = formatdate(source_date())
    return (
        f"slurm-mig ({__version__}) unstable; urgency=medium\n\n"
        f"  * What changed is in CHANGELOG.md.gz.\n\n -- {MAINTAINER}  {when}\n"
    )


def control_files(stage: Path) -> None:
    """Everything below DEBIAN/ (deb-control(5), deb-conffiles(5), deb-postinst(5))."""
    files = [path for path in stage.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files) // 1024
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  "
        f"{path.relative_to(stage)}"
        for path in sorted(files)
    ]
    write(
        stage, "/DEBIAN/control", CONTROL.replace("Section:", f"Installed-Size: {size}\nSection:")
    )
    write(stage, "/DEBIAN/conffiles", f"{CONFIG}\n")
    write(stage, "/DEBIAN/md5sums", "\n".join(sums) + "\n")
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        write(stage, f"/DEBIAN/{name}", text, mode=0o755)
    (stage / "DEBIAN").chmod(0o755)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
