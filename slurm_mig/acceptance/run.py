"""One acceptance from beginning to end: idle, tried by a watched child, restored, compared.

The child tries; this process has the GPU's lock and waits. Whatever ends the child, a call
that hangs, a signal or its own death, another child restores the GPU afterwards. A run that
was killed has left its journal: the next one restores first, and says so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from slurm_mig import __version__
from slurm_mig.acceptance import twin
from slurm_mig.acceptance.place import Place, make_area, scratch_area
from slurm_mig.acceptance.record import (
    Difference,
    Step,
    cleared,
    compare,
    from_json,
    times,
    to_json,
    without_names,
)
from slurm_mig.acceptance.restore import PATIENCE as IN_USE
from slurm_mig.acceptance.restore import Found, Journal, restore
from slurm_mig.acceptance.script import CLEAR, Script
from slurm_mig.errors import Held, SlurmMigError, Unresolved, UsageFault
from slurm_mig.mig import catalog, description
from slurm_mig.node.node import Node
from slurm_mig.system import hosts, watchdog
from slurm_mig.system.programs import find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slurm_mig.mig.driver import Gpu
    from slurm_mig.settings import Config
    from slurm_mig.system.watchdog import Ended

#: Seconds for the whole script, for one NVML call, and for putting everything back.
LONGEST: Final = 1800.0
PATIENCE: Final = 60.0
RESTORING: Final = 120.0

#: How often it is tried to put everything back, where the process that does it is killed.
TRIES: Final = 2

#: Longest time for an instance in use in a hook that is tried, in seconds.
IN_HOOKS: Final = 5.0

#: How often the child looks whether its own call hangs, in seconds.
LOOK: Final = 0.05

#: How the words of a child begin that ended itself over a call.
HANGS: Final = "no answer"
DONE: Final = "all steps tried"
_OFF_DUTY: Final = frozenset({"DRAIN", "DRAINED", "DRAINING", "DOWN"})


@dataclass(slots=True)
class Outcome:
    """What came of it. `ended` says how the script ended, `left` what could not be restored."""

    gpu: str
    driver: str
    against: str
    ended: str
    steps: list[Step]
    differences: list[Difference]
    calls: dict[str, dict[str, float]]
    left: list[str] = field(default_factory=list)
    signal: int | None = None
    text: str = ""

    @property
    def accepted(self) -> bool:
        """Whether everything was tried, and nothing but numbers of the table differs."""
        odd = [item for item in self.differences if not item.number]
        return self.ended == DONE and not odd and not self.left


class Acceptance:
    """One GPU of this node, by the site's configuration."""

    def __init__(
        self,
        config: Config,
        say: Callable[[str], None],
        *,
        patience: float = PATIENCE,
        jobs: bool = True,
    ) -> None:
        """`say` hears a line on what happens; `patience` in seconds, for one NVML call."""
        self._config = config
        self._say = say
        self._patience = patience
        self._jobs = jobs

    def run(self, uuid: str) -> Outcome:
        """Try the GPU of that UUID, which has to be idle; Held where it is not."""
        node = Node(self._config)
        journal = Journal(self._config.run, uuid)
        with node.locks.hold([uuid], "acceptance", 5, ask=True):
            self._finish(node, journal, uuid)
            try:
                gpu, facts = self._look(node, uuid)
                found = Found(
                    uuid, bool(gpu.mig_mode), node.boot_id, str(make_area()), time.strftime("%F %T")
                )
                journal.write(found)
            finally:
                # The child opens a session of its own.
                node.close()
            ended = watchdog.watched(partial(self._try, found, gpu), LONGEST)
            steps, calls = _heard(Path(found.area))
            left = self._restored(found, journal)
        _take_signals()
        facts["mirrored"] = twin.mirrored(steps)
        outcome = Outcome(
            gpu=gpu.name,
            driver=facts["driver"],
            against="nothing",
            ended=_how(ended, steps),
            steps=steps,
            differences=[],
            calls=times(calls),
            left=left,
            signal=ended.by,
        )
        if ended.by is None:
            self._compare(outcome, facts, found)
        names = [hosts.name(), os.uname().nodename, os.uname().nodename.partition(".")[0]]
        outcome.text = _text(outcome, facts, found, names)
        return outcome

    # -- before ----------------------------------------------------------------------

    def _finish(self, node: Node, journal: Journal, uuid: str) -> None:
        """What a run that was killed left behind."""
        found = journal.read()
        if found is None:
            return
        self._say(f"a run that began {found.began} was killed; the GPU is restored first")
        try:
            left = restore(node, found)
        finally:
            node.close()
        if left:
            raise Unresolved(
                f"not restored: {'; '.join(left)}",
                remedy="see who holds it with `slurm-mig status`, and run this again",
                gpu=uuid,
            )
        journal.done()

    def _look(self, node: Node, uuid: str) -> tuple[Gpu, dict[str, Any]]:
        """The GPU, which nobody uses, and what is told of it."""
        driver = node.driver
        gpu = driver.gpu(uuid)
        _check_mode(gpu)
        _check_slurm(node)
        taken = [f"an instance at {item.placement}" for item in driver.instances(gpu)]
        taken += [f"process {pid}" for pid, _ in driver.processes(gpu)]
        if self._config.ledger.exists():
            taken += [f"{record.owner}" for record in node.ledger.open_on(uuid)]
        if taken:
            raise Held(
                f"it is not idle: {', '.join(taken)}",
                remedy="see `slurm-mig status`; nothing was touched",
                gpu=str(gpu),
            )
        version = driver.driver_version()
        facts: dict[str, str | int | bool | None] = {
            "source": "driver",
            "driver": version,
            "date": time.strftime("%Y-%m-%d"),
            "memory_mib": driver.memory_mib(gpu),
            "mode_needs_reset": not gpu.resetless,
        }
        table = description.write(gpu.name, driver.geometry(gpu), facts)
        return gpu, {"driver": version, "description": table}

    # -- the script ------------------------------------------------------------------

    def _try(self, found: Found, gpu: Gpu, tell: Callable[[str], None]) -> int:
        """In the child: 0 when the script came to its end; else it says why not."""
        area = Path(found.area)
        # What this process prints is kept until it ends: progress goes past that.
        aloud = _aloud()

        place = Place(
            area,
            self._config.library,
            (gpu.uuid, gpu.minor),
            say=tell,
            destroy_timeout=min(IN_HOOKS, self._patience),
        )
        watcher = threading.Thread(
            target=_watch, args=(place, self._patience, tell), daemon=True, name="patience"
        )
        watcher.start()
        with (area / "steps.jsonl").open("w", encoding="utf-8") as file:

            def keep(step: Step) -> None:
                file.write(json.dumps(asdict(step)) + "\n")
                file.flush()
                (area / "calls.json").write_text(json.dumps(place.watch.times), "utf-8")
                aloud(step)

            try:
                patience = min(CLEAR, self._patience)
                Script(place, keep, jobs=self._jobs, patience=patience).run()
            except SlurmMigError as fault:
                sys.stdout.write(f"{fault}\n")
                return 1
        return 0

    # -- afterwards ------------------------------------------------------------------

    def _restored(self, found: Found, journal: Journal) -> list[str]:
        self._say("putting the GPU back as it was found")
        for _ in range(TRIES):
            ended = watchdog.watched(partial(self._restore, found), RESTORING)
            if ended.code == 0:
                journal.done()
                return []
            if ended.killed is None:
                break
        said = ended.output.strip().splitlines() or [_unfinished(ended)]
        return [*said, "run the same command again to restore it"]

    def _restore(self, found: Found, tell: Callable[[str], None]) -> int:
        node = Node(self._config)
        node.tell = tell
        left = restore(node, found, min(IN_USE, self._patience))
        sys.stdout.write("".join(f"{line}\n" for line in left))
        return int(bool(left))

    def _compare(self, outcome: Outcome, facts: dict[str, Any], found: Found) -> None:
        self._say("comparing with the simulator")
        with scratch_area() as area:
            described = area / "gpu.toml"
            described.write_text(facts["description"], "utf-8")
            product, outcome.against = twin.model_of(outcome.gpu, described)
            expected = twin.play(
                area / "twin",
                product,
                outcome.gpu,
                driver=outcome.driver,
                mig_mode=found.mig_mode,
                other_order=facts["mirrored"],
                jobs=self._jobs,
            )
        outcome.differences = compare(
            outcome.steps, _come_to(outcome.steps, expected, outcome.ended)
        )


def _come_to(steps: Sequence[Step], expected: Sequence[Step], ended: str) -> Sequence[Step]:
    """What was not come to is no difference: how it ended says it."""
    tried = {step.key for step in steps}
    return expected if ended == DONE else [step for step in expected if step.key in tried]


def _take_signals() -> None:
    """As Python has them: the watchdog leaves them to the system, or held back."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, watchdog.ENDINGS)


def _check_mode(gpu: Gpu) -> None:
    if not gpu.mig_capable:
        raise UsageFault("this GPU knows no MIG", gpu=str(gpu))
    if gpu.mig_mode != gpu.mig_pending:
        raise Held("its MIG mode waits for a reset", remedy="reset it first", gpu=str(gpu))
    if not (gpu.mig_mode or gpu.resetless):
        raise Held(
            "MIG mode is off, and this GPU needs a reset to switch it",
            remedy="switch it on first: `slurm-mig enable`, then `nvidia-smi --gpu-reset`",
            gpu=str(gpu),
        )


def _check_slurm(node: Node) -> None:
    """Slurm must not send a job meanwhile; where there is no Slurm nobody does."""
    if find_program("scontrol", node.config.slurm_bin) is None:
        return
    facts = node.slurm.node(node.name)
    if not facts.state & _OFF_DUTY:
        raise Held(
            f"Slurm may send jobs to {node.name}",
            remedy=f"scontrol update NodeName={node.name} State=DRAIN Reason=acceptance",
        )
    if jobs := node.slurm.live_jobs(node.name):
        raise Held(
            f"jobs still run on {node.name}: {', '.join(map(str, sorted(jobs)))}",
            remedy="wait until it is drained",
        )


def _watch(place: Place, patience: float, tell: Callable[[str], None]) -> None:
    """End this process when one of its calls hangs: it cannot be waited for, nor taken back."""
    while True:
        if hangs := place.watch.hangs(patience):
            tell(f"{HANGS} within {patience:g} s: {hangs}")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(LOOK)


def _aloud() -> Callable[[Step], None]:
    """A line on a terminal for each step, if our parent's standard error is one."""
    try:
        out = open(f"/proc/{os.getppid()}/fd/2", "w", encoding="utf-8")  # noqa: SIM115, PTH123
    except OSError:
        return lambda _: None
    if not out.isatty():
        return lambda _: None

    def say(step: Step) -> None:
        with suppress(OSError):
            out.write(f"\r\x1b[K{step.part}: {step.name}"[:200])
            out.flush()

    return say


def _heard(area: Path) -> tuple[list[Step], dict[str, list[float]]]:
    """Steps and times that the child wrote down, as far as it came."""
    steps: list[Step] = []
    calls: dict[str, list[float]] = {}
    with suppress(FileNotFoundError):
        for line in (area / "steps.jsonl").read_text("utf-8").splitlines():
            with suppress(ValueError):
                steps.append(Step(**json.loads(line)))
    with suppress(FileNotFoundError, ValueError):
        calls = json.loads((area / "calls.json").read_text("utf-8"))
    return steps, calls


def _how(ended: Ended, steps: Sequence[Step]) -> str:
    last = steps[-1].name if steps else "nothing"
    if ended.code == 0:
        return DONE
    if ended.by is not None:
        return f"ended by {ended.by.name} after {last}"
    if ended.code is None:
        return without_names(_unfinished(ended))
    words = ended.output.strip().splitlines() or [f"exit code {ended.code}"]
    return without_names(f"ended at {last}: {words[-1]}")


def _unfinished(ended: Ended) -> str:
    """Why a child did not come to its end."""
    if ended.stuck is not None:
        return f"pid {ended.stuck} cannot be killed in {ended.doing}"
    if ended.killed is None:
        return f"ended in {ended.doing}"
    if ended.doing.startswith(HANGS):
        return f"given up: {ended.doing}"
    return f"killed by {signal.Signals(ended.killed).name} in {ended.doing}"


def _text(outcome: Outcome, facts: dict[str, Any], found: Found, names: Sequence[str]) -> str:
    """The file that a site can send."""
    told = {
        "slurm_mig": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "gpu": outcome.gpu,
        "driver": outcome.driver,
        "mig_mode": found.mig_mode,
        "mirrored": facts["mirrored"],
        "against": outcome.against,
        "ended": without_names(outcome.ended, names),
        "restored": not outcome.left,
        "calls": outcome.calls,
        "differences": [
            asdict(replace(item, gpu=without_names(item.gpu, names)))
            for item in outcome.differences
        ],
        "description": facts["description"],
    }
    steps = [replace(step, answer=cleared(step.answer, names)) for step in outcome.steps]
    return without_names(to_json(told, steps))


def replay(text: str, name: str) -> tuple[dict[str, Any], list[Difference]]:
    """A site's file again, on a simulated GPU made of the table in it: facts and differences."""
    facts, steps = from_json(text, name)
    try:
        with scratch_area() as area:
            described = area / "gpu.toml"
            described.write_text(facts["description"], "utf-8")
            expected = twin.play(
                area / "twin",
                catalog.from_file(described),
                facts["gpu"],
                driver=facts["driver"],
                mig_mode=facts["mig_mode"],
                other_order=facts["mirrored"],
                jobs=any(step.part == "job" for step in steps),
            )
        return facts, compare(steps, _come_to(steps, expected, facts["ended"]))
    except KeyError as problem:
        raise UsageFault(f"{name} lacks {problem}") from problem
