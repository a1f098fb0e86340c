"""The quick start and what follows on a booted Debian of each release: one table.

Arguments: suites instead of both. In the environment: CHECKS, names of functions of vm_checks.py
(the quick start comes always); BEFORE, a commit whose wheel is the version before (default: the
newest that is a day older than this one). Exit 0 only if every check of every suite held.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from matrix import CHECKOUT, CannotRun, run_main, table
from roots import SUITES, cache
from vm_checks import CHECKS, Trial
from vm_image import LATER, Image
from vm_machine import Failed, Machine, accelerated

#: Debian releases that are stable enough for an administrator's machine.
BOOTED: Final = ("bookworm", "trixie")

PIP: Final = (
    sys.executable,
    "-m",
    "pip",
    "--quiet",
    "--disable-pip-version-check",
    "wheel",
    "--no-build-isolation",
)


def called(*command: str | Path, cwd: Path = CHECKOUT) -> str:
    """What a command here prints; CannotRun when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"{command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout.strip()


def version_before(place: Path) -> Path:
    """The wheel of an earlier commit."""
    day = int(called("git", "log", "-1", "--format=%ct")) - 86400
    ref = os.environ.get("BEFORE") or called("git", "rev-list", "-1", f"--before={day}", "HEAD")
    ref = ref or called("git", "rev-list", "--max-parents=0", "HEAD").splitlines()[0]
    source = place / "source"
    source.mkdir()
    archive = place / "before.tar"
    called("git", "archive", "-o", archive, ref)
    called("tar", "-x", "-f", archive, "-C", source)
    called(*PIP, "--no-deps", "--wheel-dir", place / "before", source)
    (wheel,) = (place / "before").glob("*.whl")
    return wheel


def prepared(image: Image) -> float:
    """The disk with what the quick start's apt-get installs, made once: its seconds here.

    An emulated machine takes minutes for it, and it is the same each time.
    """
    note = image.directory / "apt-seconds"
    if not note.exists():
        with tempfile.TemporaryDirectory(prefix="slurm-mig-vm-") as name:
            machine = Machine(image, Path(name))
            try:
                machine.boot()
                begin = time.monotonic()
                packages = " ".join(LATER)
                machine.run(
                    f"DEBIAN_FRONTEND=noninteractive apt-get -qq -y install {packages}",
                    timeout=1800,
                )
                took = time.monotonic() - begin
                machine.off()
                shutil.move(machine.disk, image.prepared)
            finally:
                machine.cut()
        note.write_text(f"{took:.0f}")
    return float(note.read_text())


def tried(suite: str, wheels: list[Path], before: Path, package: Path) -> list[list[str]]:
    """A row for each check; after one that fails the next begins on a node put in order."""
    image = Image(suite)
    rows: list[list[str]] = []
    wanted = os.environ.get("CHECKS", "").split()
    with image.held(), tempfile.TemporaryDirectory(prefix="slurm-mig-vm-") as name:
        image.make()
        apt = prepared(image)
        machine = Machine(image, Path(name))
        trial = Trial(machine, wheels, before, package, {"apt": f"{apt:.0f} s"})
        try:
            machine.boot()
            for title, check in CHECKS.items():
                if wanted and rows and check.__name__ not in wanted:
                    continue
                rows.append([suite, title, *row(trial, title)])
                if rows[0][2] != "held":
                    break
        finally:
            machine.cut()
    return rows


def row(trial: Trial, title: str) -> list[str]:
    """Verdict, seconds and remark of a check; the whole of what failed goes to the terminal."""
    begin = time.monotonic()
    try:
        verdict, remark = "held", CHECKS[title](trial)
    except (Failed, CannotRun, KeyError, ValueError) as reason:
        print(f"--- {title}\n{reason!r}\n{reason}", flush=True)
        verdict, remark = "FAILED", str(reason).splitlines()[0][:90]
        trial.settle()
    took = f"{time.monotonic() - begin:.0f}"
    print(f"  {title}: {verdict}, {took} s, {remark}", flush=True)
    return [verdict, took, remark]


def main() -> int:
    """One machine after the other."""
    if os.geteuid() != 0:
        sys.exit("debootstrap needs root")
    print(
        f"{'with' if accelerated() else 'without'} the processor's help; roots in {cache()}",
        flush=True,
    )
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="slurm-mig-wheels-") as name:
        place = Path(name)
        called(*PIP, "--wheel-dir", place / "wheels", f"{CHECKOUT}[metrics]")
        package = Path(called(sys.executable, ".ci/make/deb.py", place))
        wheels = sorted((place / "wheels").glob("*.whl"))
        before = version_before(place)
        for suite in sys.argv[1:] or BOOTED:
            print(f"Debian {suite}, Slurm {SUITES[suite]}", flush=True)
            try:
                rows += tried(suite, wheels, before, package)
            except CannotRun as reason:
                rows.append([suite, "the machine", "FAILED", "-", str(reason)])
    print(f"\n{table(['Debian', 'check', '', 'seconds', ''], rows)}")
    return 0 if all(found[2] == "held" for found in rows) else 1


if __name__ == "__main__":
    run_main(main)
