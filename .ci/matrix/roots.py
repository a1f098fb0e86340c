"""Debian roots: made once, kept, and used through a layer that is thrown away."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from matrix import CHECKOUT, CannotRun, checkout, end, last_words, requirements

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Debian's name of a release, and the Slurm that was in it when this was written.
SUITES: Final = {"bookworm": "22.05", "trixie": "24.11", "forky": "26.05"}

#: Seconds after which a root that nobody used is removed: the recipe has changed since.
KEPT: Final = 30 * 86400

PACKAGES: Final = (
    "slurmctld", "slurmd", "slurmdbd", "slurm-client", "munge", "libnss-wrapper",
    "mariadb-server", "sqlite3", "python3", "python3-venv", "iproute2", "gcc", "libc6-dev",
)  # fmt: skip

#: What a release does without: these slurmdbd end with error 5027 of their MariaDB 11.8.
LEFT_OUT: Final = dict.fromkeys(("trixie", "forky"), frozenset({"slurmdbd", "mariadb-server"}))

_TOOL: Final = CHECKOUT / ".ci/matrix/root"


def cache() -> Path:
    """Where roots are kept: $SLURM_MIG_ROOTS, else the user's cache directory."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SLURM_MIG_ROOTS") or Path(home) / "slurm-mig/roots")


@dataclass(frozen=True, slots=True)
class Root:
    """One Debian release with its Slurm, its Python and what our tests need."""

    suite: str

    @property
    def directory(self) -> Path:
        """Another recipe is another root."""
        recipe = "\n".join(
            [*self.packages, *requirements(), _TOOL.read_text("utf-8").split("\nrun)")[0]]
        )
        return cache() / f"{self.suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"

    @property
    def packages(self) -> list[str]:
        """What is installed in it."""
        return [name for name in PACKAGES if name not in LEFT_OUT.get(self.suite, ())]

    @property
    def made(self) -> bool:
        """A root has its final name only once it is whole."""
        return self.directory.is_dir()

    def log(self, what: str) -> Path:
        """Where the output of a step goes."""
        return cache() / f"{self.suite}.{what}.log"

    def versions(self) -> tuple[str, str]:
        """Slurm's and Python's, as they call themselves."""
        about = json.loads((self.directory / "about.json").read_text("utf-8"))
        return about["slurm"], about["python"]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else makes, uses or removes this suite's roots meanwhile."""
        cache().mkdir(parents=True, exist_ok=True)
        with (cache() / f"{self.suite}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def make(self) -> None:
        """Make the root unless it is there; CannotRun when it cannot be made."""
        self._clear()
        if not self.made:
            new = self.directory.with_name(f"{self.directory.name}.new")
            try:
                self._build(new, mirror())
            finally:
                shutil.rmtree(new, ignore_errors=True)
        os.utime(self.directory)

    def _clear(self) -> None:
        """Half-made roots of runs that were killed, and roots that nobody has used for long."""
        for path in cache().glob(f"{self.suite}-*"):
            if path.suffix == ".new" or time.time() - path.stat().st_mtime > KEPT:
                shutil.rmtree(path)

    def _build(self, new: Path, mirror: str) -> None:
        log = self.log("make")
        with log.open("wb") as output:
            self._tool(output, "make", new, self.suite, mirror, *self.packages)
            python = _said(new, "python3", "--version")
            wheels = cache() / f"{self.suite}.wheels"
            shutil.rmtree(wheels, ignore_errors=True)
            self._run(output, _download(wheels, python))
            self._tool(output, "venv", new, wheels, *requirements())
            shutil.rmtree(wheels)
        about = {"slurm": _said(new, "slurmctld", "-V"), "python": python}
        (new / "about.json").write_text(json.dumps(about), "utf-8")
        new.rename(self.directory)

    def _tool(self, output: object, verb: str, *arguments: str | Path) -> None:
        self._run(output, [_TOOL, verb, *arguments])

    def _run(self, output: object, command: Sequence[str | Path]) -> None:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # type: ignore[call-overload]
        if end(process) != 0:
            raise CannotRun(f"no root: {last_words(self.log('make'))}")

    def start(self, results: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Run a command in `/src`, a copy of the checkout; `/results` is `results`."""
        with self.log("tests").open("wb") as output, checkout() as files:
            return subprocess.Popen(
                [_TOOL, "run", self.directory, results, *command],
                stdin=files,
                stdout=output,
                stderr=subprocess.STDOUT,
            )


def _said(root: Path, program: str, option: str) -> str:
    """Return the version that a program in a root prints."""
    done = subprocess.run(
        ["chroot", root, program, option], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


def _download(wheels: Path, python: str) -> list[str | Path]:
    """By this machine's pip, which knows the way to its index; roots have no network."""
    short = ".".join(python.split(".")[:2])
    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
        "--implementation", "cp", "--python-version", short, "--abi", f"cp{short.replace('.', '')}",
        "--dest", wheels, *requirements(),
    ]  # fmt: skip


def mirror() -> str:
    """Debian's archive as this machine's apt knows it, or $DEBIAN_MIRROR."""
    given = os.environ.get("DEBIAN_MIRROR")
    if given:
        return given
    listing = [
        "apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]  # fmt: skip
    done = subprocess.run(listing, capture_output=True, text=True, check=False)
    found = re.search(r"^Debian Debian (\S+)$", done.stdout, re.MULTILINE)
    if found is None:
        raise CannotRun("apt knows no Debian archive here; set DEBIAN_MIRROR")
    return found[1]
