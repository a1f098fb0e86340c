"""Builds the RPM, by slurm-mig.spec.

rpm.py DIR [PYTHON]    writes DIR/slurm-mig-VERSION-1.noarch.rpm (`make rpm`: dist)

PYTHON is the package that has the node's interpreter: python3.11 on EL 8 and 9, whose python3 is
older; python3 where that is 3.11 or later. Needs rpmbuild (Debian's package rpm has it).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from stage import (
    MAINTAINER,
    SET_UP,
    SHELL,
    TAKE_DOWN,
    TOP,
    licences,
    put_together,
    source_date,
    write,
)

from slurm_mig import __version__

SPEC: Final = Path(__file__).with_name("slurm-mig.spec")
LICENCES: Final = "/usr/share/licenses/slurm-mig"
ZSH: Final = Path("/usr/share/zsh/site-functions/_slurm-mig")

#: $1 is the number of versions that stay: an upgrade takes nothing down.
PREUN: Final = f'{SHELL}\n[ "$1" = 0 ] || exit 0\n{TAKE_DOWN}'


def build(directory: Path, python: str = "python3.11") -> Path:
    """Build it; returns the package."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        stage = work / "stage"
        stage.mkdir(mode=0o755)
        put_together(stage, work, f"/usr/bin/{python}", ZSH)
        write(stage, f"{LICENCES}/LICENSE", (TOP / "LICENSE").read_text("utf-8"))
        for licence in licences():
            write(stage, f"{LICENCES}/LICENSE.{licence.name}", "\n".join(licence.texts))
        write(work, "/scripts/post", f"{SHELL}\n{SET_UP}")
        write(work, "/scripts/preun", PREUN)
        defined = {
            "_topdir": work / "top", "stage": stage, "scripts": work / "scripts",
            "version": __version__, "python": python, "maintainer": MAINTAINER,
            "when": datetime.fromtimestamp(source_date(), UTC).strftime("%a %b %d %Y"),
            # The same source gives the same package, but for what rpmbuild says of itself.
            "use_source_date_epoch_as_buildtime": 1, "clamp_mtime_to_source_date_epoch": 1,
            "_buildhost": "localhost", "_binary_payload": "w9.gzdio", "_build_id_links": "none",
        }  # fmt: skip
        words = [word for key, value in defined.items() for word in ("--define", f"{key} {value}")]
        environ = os.environ | {"SOURCE_DATE_EPOCH": str(source_date())}
        done = subprocess.run(
            ["rpmbuild", "-bb", "--quiet", *words, SPEC],
            capture_output=True, text=True, check=False, env=environ,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"rpmbuild: {done.stderr}")
        (made,) = (work / "top/RPMS").rglob("*.rpm")
        return Path(shutil.copy(made, directory))


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:]))
