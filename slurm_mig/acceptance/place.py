"""A private node around the one GPU that is tried: its own ledger, run directory and hooks.

Nothing of it reaches the site's ledger or Slurm: a job that is tried has a number that Slurm
does not give, and the private configuration names no Slurm commands.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.config import load
from slurm_mig.errors import NodeFault
from slurm_mig.mig.request import Item, Request
from slurm_mig.node.install_texts import install_hooks
from slurm_mig.node.node import SIMULATOR, Node
from slurm_mig.sandbox.prerequisites import place
from slurm_mig.simulator import Machine
from slurm_mig.state import leases
from slurm_mig.system.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.mig.geometry import GpuProfile

PREFIX: Final = "slurm-mig-acceptance-"
NAME: Final = "acceptance"

#: Users of the jobs, each of whom tries to reach what is the other's: nobody, and one of no name.
OWNER, OTHER = 65534, 65533

#: Above every number that Slurm gives a job (slurm.conf(5), MaxJobId).
FIRST_JOB: Final = 0x03FF_0000 + 1

#: Seconds that a hook may take here beyond its own deadline.
MARGIN: Final = 30

_CONFIG: Final = """\
[driver]
library = {library}
[gpus]
managed = [{minor}]
order = [{minor}]
[paths]
state = {state}
run = {run}
[hooks]
# What an Epilog leaves is looked at as soon as it ends.
defer_teardown = false
lock_timeout = 5
destroy_timeout = {destroy}
deadline = {deadline}
[slurm]
bin = {none}
timeout = 1
client = "commands"
[stuck]
remedies = ["ignore"]
timeout = {destroy}
[tasks]
leases = {leases}
"""


@dataclass(slots=True)
class Stopwatch:
    """Times of NVML's functions, and what is asked at present; `say` hears it, too."""

    say: Callable[[str], None]
    times: dict[str, list[float]] = field(default_factory=dict)
    asked: str = ""
    since: float = 0.0

    def tell(self, text: str) -> None:
        """As the driver's adapter says it: before a call, and after it."""
        now = time.monotonic()
        if text.startswith("what follows "):
            function = self.asked.rpartition("(")[2].rstrip(")")
            self.times.setdefault(function, []).append((now - self.since) * 1000)
            self.asked = ""
        else:
            self.since, self.asked = now, text
        self.say(text)

    def hangs(self, patience: float) -> str:
        """The call that has not come back for so many seconds; empty where there is none."""
        asked, since = self.asked, self.since
        return asked if asked and time.monotonic() - since > patience else ""


def make_area() -> Path:
    """A directory where device nodes work, that other users get through to."""
    area = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place()))
    area.chmod(0o755)
    return area


def remove_area(area: Path) -> None:
    """Take it away, with what Prologs mounted in it."""
    if area.name.startswith(PREFIX) and area.is_dir() and not area.is_symlink():
        leases.remove_below(area)
        shutil.rmtree(area)


@contextmanager
def scratch_area() -> Iterator[Path]:
    """Such a directory for so long."""
    area = make_area()
    try:
        yield area
    finally:
        remove_area(area)


class Place:
    """One GPU in its private node, below `area`."""

    def __init__(
        self,
        area: Path,
        library: str,
        gpu: tuple[str, int],
        *,
        say: Callable[[str], None] = lambda _: None,
        destroy_timeout: float = 5.0,
        deadline: float = 60.0,
    ) -> None:
        """`gpu`: UUID and device minor. Times in seconds, of the hooks that are run."""
        self.library = library
        self.uuid, self.minor = gpu
        self.watch = Stopwatch(say)
        self._area = area
        self._hooks = area / "hooks"
        self._timeout = deadline + MARGIN
        self._config = area / "config.toml"
        paths = {"state": "state", "run": "run", "none": "no-slurm", "leases": "leases"}
        self._config.write_text(
            _CONFIG.format(
                library=json.dumps(library),
                minor=self.minor,
                destroy=destroy_timeout,
                deadline=deadline,
                **{key: json.dumps(str(area / name)) for key, name in paths.items()},
            ),
            "utf-8",
        )
        install_hooks(self._hooks, Path(sys.executable), self._config, area / "run")
        self.node = Node(load(self._config, {}), {"SLURMD_NODENAME": NAME})
        self.node.tell = self.watch.tell

    @property
    def machine(self) -> Machine | None:
        """The simulated machine that it is of; None for a real GPU."""
        if not self.library.startswith(SIMULATOR):
            return None
        return Machine(Path(self.library.removeprefix(SIMULATOR)))

    # -- as slurmd does --------------------------------------------------------------

    def environ(self, job: int, row: GpuProfile | None, uid: int = OWNER) -> dict[str, str]:
        """What slurmd tells a hook of a job with one slice, or of one that ends."""
        words = {
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_UID": str(uid),
            "SLURM_JOB_GID": str(uid),
            "SLURM_JOB_USER": f"acceptance-{uid}",
            "SLURM_JOB_RESTART_COUNT": "0",
            "SLURM_JOB_GPUS": "0",
            "SLURMD_NODENAME": NAME,
            "SLURM_MIG_CONFIG": str(self._config),
        }
        if row is not None:
            item = Item(row.name, 1, row.profile_id, 1)
            words["SLURM_JOB_COMMENT"] = Request((item,)).stamp()
        return words

    def hook(
        self, name: str, job: int, row: GpuProfile | None = None, uid: int = OWNER
    ) -> tuple[int, str]:
        """Exit code and words of an installed hook, run as slurmd runs it."""
        return self._run([str(self._hooks / name)], self.environ(job, row, uid))

    def killed_prolog(self, job: int, row: GpuProfile) -> int:
        """A Prolog that is killed between the GPU instance and its compute instance."""
        program = [sys.executable, "-I", "-m", "slurm_mig.acceptance.killed"]
        return self._run(program, self.environ(job, row))[0]

    def task_prolog(self, job: int) -> tuple[int, str]:
        """The same of the TaskProlog, which runs as the job's user."""
        environ = {
            "SLURM_JOB_ID": str(job),
            "SLURM_RESTART_COUNT": "0",
            "SLURM_GPUS_ON_NODE": "1",
            "SLURM_SHARDS_ON_NODE": "1",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "1",
            "SLURMD_NODENAME": NAME,
        }
        return self._run([str(self._hooks / "task_prolog")], environ, uid=OWNER)

    def _run(self, command: list[str], environ: dict[str, str], uid: int = 0) -> tuple[int, str]:
        try:
            done = subprocess.run(  # our own programs
                command,
                env=environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                timeout=self._timeout,
                user=uid,
                group=uid,
                extra_groups=[],
            )
        except subprocess.TimeoutExpired as problem:
            raise NodeFault(f"{command[0]} not done in {self._timeout:g} s") from problem
        return done.returncode, done.stdout.strip()

    # -- as users do -----------------------------------------------------------------

    @contextmanager
    def client(self, uuid: str, uid: int) -> Iterator[str]:
        """A process of a user that computes on a device for so long; what it says (client.py)."""
        program = [sys.executable, "-I", "-m", "slurm_mig.acceptance.client"]
        process = subprocess.Popen(  # our own program
            [*program, self.library, uuid, str(uid)],
            env={"CUDA_VISIBLE_DEVICES": uuid, "PATH": "/usr/bin:/bin"},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout  # noqa: S101  # asked for above
            yield process.stdout.readline().strip() or "ended without a word"
        finally:
            with suppress(OSError):
                process.communicate()

    def modprobe(self, access: Path, uid: int) -> None:
        """What a user can do about a closed node: have the setuid nvidia-modprobe make it."""
        machine = self.machine
        if machine is not None:
            machine.tree.modprobe(access)
        elif program := find_program("nvidia-modprobe", None):
            self._run([str(program), "-f", str(access)], {}, uid=uid)
