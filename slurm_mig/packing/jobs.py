"""Jobs to replay: traces, and what `sacct -P` wrote at a site.

A trace is JSON with `gpu_model`, `gpus` and `jobs`, each with `submit` and `duration` in
seconds, `profile`, `count` (instances, all on one GPU), and if known `limit`, the time limit. Of a
sacct export any columns in any order serve, as long as the jobs' submit time, run time and gres
are among them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slurm_mig.errors import BadRequest, UsageFault
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

#: No time or length of a job is longer, in seconds: some 3,000 years.
LONGEST: Final = 1e11

#: GPUs of all nodes, and slices of one job, at most.
MOST: Final = 64_000

#: What a job without a usable time limit is expected to run, in seconds.
UNLIMITED: Final = 365 * 86400.0

#: A whole GPU, whatever its largest profile is called.
WHOLE: Final = "gpu"

_SLICE: Final = re.compile(r"(?:[0-9]+c\.)?[0-9]+g\.[0-9]+gb(?:[+-][a-z.]+)*", re.ASCII)
#: `gres/mig:3g.40gb=1`, `gres/gpu:a100_1g.5gb=2`, `gres/gpu=1`; of old releases `gpu:a100:1`.
_TRES: Final = re.compile(r"(?:gres/)?(gpu|mig)(?::([^=:,]+))?[=:]([0-9]{1,9})", re.ASCII)
_ELAPSED: Final = re.compile(
    r"(?:([0-9]{1,6})-)?(?:([0-9]{1,6}):)?([0-9]{1,6})(?::([0-9]{1,6}))?(?:\.[0-9]+)?", re.ASCII
)
#: Seconds or minutes; longer ones are no time, and some become `inf`, which no replay ends.
_RAW: Final = re.compile(r"[0-9]{1,11}", re.ASCII)


class Wanted(NamedTuple):
    """What one job asks of one GPU: (profile, count) pairs, or WHOLE."""

    items: tuple[tuple[str, int], ...]

    def request(self, whole: Profile) -> Request:
        """As the planner takes it; `whole` is the GPU's largest profile."""
        return Request(
            tuple(
                Item(whole if name == WHOLE else Profile.parse(name), count)
                for name, count in self.items
            )
        )

    def __str__(self) -> str:
        return ",".join(f"{name}x{count}" if count > 1 else name for name, count in self.items)


class Job(NamedTuple):
    """One job; times in seconds."""

    submit: float
    wanted: Wanted
    run: float
    limit: float


class Trace(NamedTuple):
    """Jobs in the order of submission; `gpus` where the trace says how many there were.

    `left_out` counts what could not be taken, by reason.
    """

    jobs: list[Job]
    gpus: int | None
    left_out: Counter[str]


def read_trace(path: Path) -> Trace:
    """A trace in JSON; UsageFault names what is wrong with which job."""
    try:
        data = json.loads(path.read_text("utf-8"))
        rows, gpus = list(data["jobs"]), data.get("gpus")
    except OSError as problem:
        raise UsageFault(f"{path}: {problem.strerror}") from problem
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise UsageFault(f"{path} is no trace: {type(problem).__name__}: {problem}") from problem
    if gpus is not None and not _whole(gpus):
        raise UsageFault(f"{path}: gpus {_shown(gpus)}: a whole number from 1 to {MOST}")
    jobs = []
    for number, row in enumerate(rows):
        try:
            jobs.append(_job(row))
        except (KeyError, TypeError, ValueError, BadRequest) as problem:
            raise UsageFault(
                f"{path}: job {number + 1}: {type(problem).__name__}: {problem}"
            ) from problem
    return Trace(sorted(jobs, key=lambda job: job.submit), gpus, Counter())


def _job(row: Mapping[str, Any]) -> Job:
    run, submit = _seconds(row, "duration"), _seconds(row, "submit")
    count = row.get("count", 1)
    if not _whole(count):
        raise ValueError(f"count {_shown(count)}: a whole number from 1 to {MOST}")
    if run == 0:
        raise ValueError("duration 0: a job runs for more than 0 seconds")
    wanted = Wanted(((str(Profile.parse(row["profile"])), count),))
    return Job(submit, wanted, run, max(run, _seconds(row, "limit") if "limit" in row else run))


def _seconds(row: Mapping[str, Any], name: str) -> float:
    """A time of a trace: JSON's NaN and Infinity are none, a replay would never end."""
    value = row[name]
    if isinstance(value, int | float) and 0 <= value <= LONGEST:
        return float(value)
    raise ValueError(f"{name} {_shown(value)}: a number of seconds from 0 to {LONGEST:.0f}")


def _whole(value: object) -> bool:
    return type(value) is int and 1 <= value <= MOST


def _shown(value: object) -> str:
    """The value for a message; an integer of thousands of digits has no text."""
    try:
        text = repr(value)
    except ValueError:
        return "of too many digits"
    return text if len(text) <= 40 else f"{text[:40]}..."


def read_sacct(path: Path, tell: Callable[[int], object] = int) -> Trace:
    """An export of sacct; UsageFault where its columns do not tell enough.

    `tell` hears how many characters of the file were read.
    """
    left_out: Counter[str] = Counter()
    jobs = []
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as lines:
            for row in _rows(path, lines, tell):
                found = _of_row(row)
                if isinstance(found, str):
                    left_out[found] += 1
                else:
                    jobs.append(found)
    except OSError as problem:
        raise UsageFault(f"{path}: {problem.strerror}") from problem
    return Trace(sorted(jobs, key=lambda job: job.submit), None, left_out)


def _rows(
    path: Path, lines: Iterable[str], tell: Callable[[int], object]
) -> Iterator[dict[str, str]]:
    names: list[str] = []
    between, passed = "|", 0
    for line in lines:
        passed += len(line)
        text = line.strip("\r\n")
        if not text.strip():
            continue
        if not names:
            between = next((mark for mark in "|;\t" if mark in text), "|")
            names = [name.strip().lower() for name in text.split(between)]
            _check(path, names)
            continue
        tell(passed)
        yield dict(zip(names, text.split(between), strict=False))


def _check(path: Path, names: list[str]) -> None:
    have = set(names)
    ran = have & {"elapsed", "elapsedraw"} or {"start", "end"} <= have
    gres = have & {"alloctres", "reqtres", "allocgres", "reqgres"}
    if "submit" in have and ran and gres:
        return
    raise UsageFault(
        f"{path}: the first line names {', '.join(filter(None, names))}; needed are Submit, "
        "Elapsed and AllocTRES",
        remedy="sacct -a -X -P -o JobID,Submit,Eligible,ElapsedRaw,TimelimitRaw,NNodes,AllocTRES "
        "-S 2026-01-01 -E 2026-02-01 > jobs.txt",
    )


def _of_row(row: Mapping[str, str]) -> Job | str:
    """The job of a line, or why it is left out."""
    if "." in row.get("jobid", ""):
        return "steps"
    wanted = _wanted(row)
    if isinstance(wanted, str):
        return wanted
    run = _ran(row)
    submit = _time(row.get("submit", ""))
    if submit is None or run is None:
        return "without a time"
    if run <= 0:
        return "that never ran"
    if row.get("nnodes", "1").strip() not in ("", "1"):
        return "on several nodes"
    limit = _limit(row)
    # What waited for another job or a date was not Slurm's to start before.
    return Job(max(submit, _time(row.get("eligible", "")) or 0.0), wanted, run, max(run, limit))


def _wanted(row: Mapping[str, str]) -> Wanted | str:
    texts = (row.get(name, "") for name in ("alloctres", "allocgres", "reqtres", "reqgres"))
    text = next((text for text in texts if text.strip()), "")
    found = [match.groups() for match in map(_TRES.fullmatch, text.strip().split(",")) if match]
    slices: Counter[str] = Counter()
    for kind, name, count in found:
        piece = _SLICE.search(name.lower()) if name else None
        if piece:
            slices[piece[0]] += int(count)
        elif kind == "mig" and name:
            return "with slices of an unknown name"
    if slices:
        return Wanted(tuple(sorted(slices.items())))
    if any(kind == "mig" for kind, _, _ in found):
        return "whose slices were not recorded by kind (AccountingStorageTRES)"
    whole = [int(count) for kind, _, count in found if kind == "gpu"]
    if not whole:
        return "without a GPU"
    return "on several GPUs" if max(whole) > 1 else Wanted(((WHOLE, 1),))


def _ran(row: Mapping[str, str]) -> float | None:
    raw = row.get("elapsedraw", "").strip()
    if _RAW.fullmatch(raw):
        return float(raw)
    if row.get("elapsed", "").strip():
        return _elapsed(row["elapsed"])
    start, end = _time(row.get("start", "")), _time(row.get("end", ""))
    return None if start is None or end is None else end - start


def _limit(row: Mapping[str, str]) -> float:
    raw = row.get("timelimitraw", "").strip()
    if _RAW.fullmatch(raw):
        return 60.0 * int(raw)
    return _elapsed(row.get("timelimit", "")) or UNLIMITED


def _elapsed(text: str) -> float | None:
    """`[D-]HH:MM:SS`, `MM:SS`, `D-HH:MM`; None for `UNLIMITED` and `Partition_Limit`."""
    match = _ELAPSED.fullmatch(text.strip())
    if match is None:
        return None
    days, first, second, third = match.groups()
    numbers = [int(part) for part in (first, second, third) if part is not None]
    if days is not None:
        numbers += [0] * (3 - len(numbers))
    total = 0
    for number in numbers:
        total = 60 * total + number
    return float(total + 86400 * int(days or 0))


def _time(text: str) -> float | None:
    text = text.strip()
    if _RAW.fullmatch(text):
        return float(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None
