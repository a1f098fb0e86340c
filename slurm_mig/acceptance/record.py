"""What was tried and what came, as plain data: compared, cleared of names, kept as one file. Pure.

A step's answer holds no id of this machine: UUIDs are told by their form, minors by how far
they are from the rule, and texts without names.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import UsageFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FORMAT: Final = 1
KIND: Final = "slurm-mig acceptance"

#: Kept to be read, not to be compared.
WORDS: Final = "says"
#: Says why a step could not be tried; then nothing is expected of it.
NOT_TRIED: Final = "not_tried"

#: A part whose numbers the driver tells as it likes: what it says is used, whatever it is.
TABLE: Final = "table"

_CLOSED: Final = ["closed", "closed"]
_DONE: Final = {"exit": 0}

#: What has to be so whatever the simulator says, by part: without it no job may come here.
PROMISED: Final[dict[str, dict[str, Any]]] = {
    "place": {
        "as asked": True,
        "id of the place": True,
        "fills": True,
        "listed": True,
        "minors": [0, 0],
        "listed without compute instance": True,
        "gone": True,
        "access files gone": True,
    },
    "layout": {"all listed": True, "UUIDs differ": True},
    "job": {
        "Prolog": _DONE,
        "second Prolog": _DONE,
        "next Prolog": _DONE,
        "Epilog": _DONE,
        "next Epilog": _DONE,
        "TaskProlog": [0, True],
        "nodes": ["0o400", "0o400"],
        "to its user": ["open", "open"],
        "to another": _CLOSED,
        "to another after nvidia-modprobe": _CLOSED,
        "its nodes to the first job's user": _CLOSED,
        "computing": {"its user": "works", "another": "refused"},
        "client": "works",
        "compute instance": {"fault": "InstanceBusy", "nvml": 19},
        "set aside": "quarantined",
        "nodes to its user": _CLOSED,
        "next job": "active",
        "afterwards": "released",
        "released": "released",
        "nodes gone": True,
        "killed": -9,
    },
}

_NAMES: Final = (
    (re.compile(r"\b(GPU|MIG)-[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), r"\1-UUID"),
    (re.compile(r"\b[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]\b"), "BUS"),
    (re.compile(r"(?<![\w.])/(?!proc/driver|dev/nvidia)[\w.+-]+(/[\w.+-]+)+"), "PATH"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was tried; `ms` is the time of all of it."""

    part: str
    name: str
    answer: dict[str, Any]
    ms: float

    @property
    def key(self) -> tuple[str, str]:
        """By what two runs are compared."""
        return self.part, self.name


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the GPU answered otherwise than the simulator."""

    part: str
    step: str
    what: str
    gpu: str
    simulator: str

    @property
    def number(self) -> bool:
        """Whether only a number of the profile table differs."""
        return self.part == TABLE and bool(self.what)


def without_names(text: str, names: Sequence[str] = ()) -> str:
    """A text without UUIDs, bus addresses, paths, and the names given."""
    for pattern, word in _NAMES:
        text = pattern.sub(word, text)
    for name in filter(None, names):
        text = re.sub(rf"\b{re.escape(name)}\b", "NAME", text)
    return text


def cleared(value: Any, names: Sequence[str], *, words: bool = False) -> Any:
    """An answer whose words for people have none of the names; all else is as it was."""
    if isinstance(value, dict):
        return {key: cleared(item, names, words=key == WORDS) for key, item in value.items()}
    return without_names(value, names) if words else value


def compare(heard: Sequence[Step], expected: Sequence[Step]) -> list[Difference]:
    """Differences from the simulator and from what is promised, in the order of the steps.

    What the simulator does not know counts for nothing.
    """
    known = {step.key: step for step in expected}
    found = []
    for step in heard:
        other = known.pop(step.key, None)
        if other is None:
            found.append(Difference(*step.key, "", "there", "no such step"))
        else:
            found += _between(step, other)
    return found + [Difference(*key, "", "no such step", "there") for key in known]


def _between(step: Step, other: Step) -> Iterator[Difference]:
    if NOT_TRIED in step.answer:
        return
    if "fault" in step.answer and "fault" not in other.answer:
        fault, code = step.answer["fault"], step.answer["nvml"]
        told = f"{fault} ({code}): {step.answer.get(WORDS, '')}"
        yield Difference(step.part, step.name, "", told, "done")
        return
    mine, theirs = _flat(step.answer), _flat(other.answer)
    promised = PROMISED.get(step.part, {})
    theirs |= _flat({key: value for key, value in promised.items() if key in step.answer})
    for what in mine.keys() | theirs.keys() if mine.keys() != theirs.keys() else mine:
        one, two = mine.get(what, "nothing"), theirs.get(what, "nothing")
        if one != two and two is not None and what.rpartition(".")[2] != WORDS:
            yield Difference(step.part, step.name, what, _shown(one), _shown(two))


def _flat(answer: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in answer.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[f"{above}{key}"] = value
    return found


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def times(calls: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """How often each NVML function was called, and how long it took, in ms."""
    return {
        name: {
            "calls": len(took),
            "median_ms": round(median(took), 3),
            "worst_ms": round(max(took), 3),
        }
        for name, took in sorted(calls.items())
        if took
    }


def to_json(facts: Mapping[str, Any], steps: Sequence[Step]) -> str:
    """The file: facts first, then a line for each step."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items()]
    rows = ",\n  ".join(json.dumps(asdict(step)) for step in steps)
    head = {"format": FORMAT, "kind": KIND}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()] + lines
    return "{\n" + ",\n".join(lines) + ',\n "steps": [\n  ' + rows + "\n ]\n}\n"


def from_json(text: str, name: str) -> tuple[dict[str, Any], list[Step]]:
    """The inverse; UsageFault for anything else than such a file."""
    try:
        data = json.loads(text)
        good = data["kind"] == KIND and data["format"] == FORMAT
        steps = [Step(**row) for row in data.pop("steps")] if good else []
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise UsageFault(f"{name} is no file of `slurm-mig acceptance`: {problem}") from problem
    if not good:
        raise UsageFault(f"{name} is of another kind or format; this release reads {FORMAT}")
    return data, steps
