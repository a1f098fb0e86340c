"""Injected faults: an error code at the n-th call, a lie, a kill, a hang.

Rules live in `faults.json` of the machine, so that they reach a hook that Slurm
starts. Each rule counts the calls it matches, across processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SimulatorFault
from slurm_mig.simulator.codes import BY_NAME
from slurm_mig.system.replace import replace_file
from slurm_mig.values import asdict, dataclass

if TYPE_CHECKING:
    from pathlib import Path

EFFECTS: Final = (
    "error:<NVML CODE NAME OR NUMBER>",
    "lie",
    "kill-before",
    "kill-after",
    "hang:<SECONDS>",
    "activation:<NVML CODE NAME OR NUMBER>",
    "lose:<NVML INDEX>",
)


@dataclass(slots=True)
class Rule:
    """Let `skip` matching calls pass, then act on `times` of them (0: on all that follow)."""

    call: str
    effect: str
    skip: int = 0
    times: int = 1
    seen: int = 0

    def __post_init__(self) -> None:
        kind, _, argument = self.effect.partition(":")
        good = {
            "error": argument in BY_NAME or _is_number(argument),
            "activation": argument in BY_NAME or _is_number(argument),
            "lose": _is_number(argument),
            "hang": argument.isascii() and argument.replace(".", "", 1).isdigit(),
            "lie": not argument,
            "kill-before": not argument,
            "kill-after": not argument,
        }
        if not good.get(kind, False):
            raise SimulatorFault(
                f"fault effect {self.effect!r}: allowed are {', '.join(EFFECTS)}; "
                f"codes are {', '.join(BY_NAME)}"
            )

    def matches(self, call: str) -> bool:
        """Whether the rule speaks of this NVML function (`*`: of every one)."""
        return self.call in ("*", call)

    def due(self) -> bool:
        """Whether the call counted last is one to act on."""
        number = self.seen - self.skip
        return number > 0 and (self.times == 0 or number <= self.times)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


class Faults:
    """The rule file of one machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = str(path)

    def set(self, rules: list[Rule]) -> None:
        """Replace all rules; an empty list clears them."""
        if rules:
            # In one step, for a hook may be reading it; faults strike users' commands, too.
            replace_file(self._path, json.dumps([asdict(rule) for rule in rules]), mode=0o644)
        else:
            self._path.unlink(missing_ok=True)

    def add(self, rule: Rule) -> None:
        """Add one rule behind those there are."""
        self.set([*self.rules(), rule])

    def rules(self) -> list[Rule]:
        """All rules with their counters."""
        if not self._path.exists():
            return []
        return [Rule(**row) for row in json.loads(self._path.read_text("ascii"))]

    def effects(self, call: str) -> list[str]:
        """Count a call and return what is to happen to it.

        A user's call is struck if it is its turn, but not counted: the file is root's.
        """
        # Every NVML call comes by here, and mostly there is no rule.
        if not os.access(self._name, os.F_OK, effective_ids=True):
            return []
        counted = os.access(self._name, os.W_OK, effective_ids=True)
        try:
            file = self._path.open("r+" if counted else "r", encoding="ascii")
        except FileNotFoundError:
            return []
        with file:
            fcntl.flock(file, fcntl.LOCK_EX if counted else fcntl.LOCK_SH)
            rules = [Rule(**row) for row in json.loads(file.read())]
            hit = [rule for rule in rules if rule.matches(call)]
            for rule in hit:
                rule.seen += 1
            if hit and counted:
                # Counters grow, so the text never gets shorter: who is killed here leaves it whole.
                file.seek(0)
                file.write(json.dumps([asdict(rule) for rule in rules]))
                file.truncate()
        return [rule.effect for rule in hit if rule.due()]


def act_before(effects: list[str]) -> None:
    """Effects that strike before the call does anything."""
    for effect in effects:
        kind, _, argument = effect.partition(":")
        if kind == "kill-before":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(float(argument))


def act_after(effects: list[str]) -> None:
    """Effects that strike when the call has done its work."""
    if "kill-after" in effects:
        os.kill(os.getpid(), signal.SIGKILL)


def code_of(effects: list[str], kind: str) -> int | None:
    """The NVML code that an `error:` or `activation:` effect names."""
    for effect in effects:
        name, _, argument = effect.partition(":")
        if name == kind:
            return BY_NAME[argument] if argument in BY_NAME else int(argument)
    return None


def lost(effects: list[str]) -> list[int]:
    """NVML indexes of GPUs that fall off the bus now."""
    return [int(effect.removeprefix("lose:")) for effect in effects if effect.startswith("lose:")]
