"""What is tried on a GPU, step by step; the same on a real one and on a simulated one.

A step that fails is written down and the next one follows, from an empty GPU. Only a GPU that
is lost, or that cannot be emptied, ends the script.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.acceptance.client import NO_CUDA
from slurm_mig.acceptance.layouts import full_layouts
from slurm_mig.acceptance.place import FIRST_JOB, OTHER, OWNER
from slurm_mig.acceptance.record import NOT_TRIED, TABLE, WORDS, Step, without_names
from slurm_mig.acceptance.restore import clear
from slurm_mig.errors import GpuLost, NodeFault, SlurmMigError
from slurm_mig.gpu.capabilities import capability_minors, read_access
from slurm_mig.mig.geometry import Placement
from slurm_mig.node.verify import READ, AccessTry, Subject, attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from slurm_mig.acceptance.layouts import Layout
    from slurm_mig.acceptance.place import Place
    from slurm_mig.mig.allocation import Allocation, Instance
    from slurm_mig.mig.driver import ComputeInstance, GpuInstance
    from slurm_mig.mig.geometry import GpuProfile

#: Longest time for what is destroyed between two steps, in seconds.
CLEAR: Final = 10.0

_CODE: Final = re.compile(r"NVML error (\d+)")
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-%s[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"
_FORMS: Final = (
    ("MIG-, version 5", re.compile(f"MIG-{_UUID % '5'}")),
    ("MIG-, another version", re.compile(f"MIG-{_UUID % '[0-9a-f]'}")),
    ("MIG-GPU-uuid/gi/ci", re.compile(f"MIG-GPU-{_UUID % '[0-9a-f]'}/[0-9]+/[0-9]+")),
)

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """A job's slice with its ids and nodes."""

    item: Instance
    gi_id: int
    ci_id: int
    nodes: list[Path]


def failed(fault: BaseException) -> Answer:
    """A fault as an answer: its class, NVML's code, and its text for people."""
    code = _CODE.search(str(fault))
    return {
        "fault": type(fault).__name__,
        "nvml": int(code.group(1)) if code else None,
        WORDS: without_names(str(fault)),
    }


def form_of(uuid: str) -> str:
    """How a MIG UUID is written."""
    return next((name for name, pattern in _FORMS if pattern.fullmatch(uuid)), "unknown")


class Script:
    """Everything that is tried on one GPU; `keep` is handed each step when it is done.

    `jobs`: also the hooks, as jobs, which takes longest on a simulated GPU. `patience`: seconds
    for an instance that is in use.
    """

    def __init__(
        self,
        place: Place,
        keep: Callable[[Step], None],
        *,
        jobs: bool = True,
        patience: float = CLEAR,
    ) -> None:
        self._place = place
        self._keep = keep
        self._jobs = jobs
        self._patience = patience
        self._driver = place.node.driver
        self._gpu = self._driver.gpu(place.uuid)
        self._capabilities = place.node.capabilities
        self._ids: dict[tuple[int, int], int] = {}
        self._job = FIRST_JOB

    def run(self) -> None:
        """All parts, in order; NodeFault where that cannot go on."""
        self._identity()
        self._mode()
        for row in self._geometry.profiles:
            for place in row.placements:
                name = f"{row.name} (id {row.profile_id}) at {place}"
                self._step("place", name, partial(self._at, row, place))
            self._limits(row)
        for layout in self._layouts():
            name = " ".join(f"{row.name}@{place.start}" for row, place in layout)
            self._step("layout", name, partial(self._fill, layout))
        if self._jobs:
            self._as_jobs()

    def _step(self, part: str, name: str, work: Callable[[], Answer]) -> Answer:
        self._place.watch.say(f"{part}: {name}")
        began = time.monotonic()
        over: NodeFault | None = None
        try:
            answer = work()
        except GpuLost as fault:
            answer, over = failed(fault), fault
        except (SlurmMigError, OSError) as fault:
            answer = failed(fault)
        if over is None:
            left, over = self._cleared()
            answer |= left
        self._keep(Step(part, name, answer, round((time.monotonic() - began) * 1000, 1)))
        if over is not None:
            raise over
        return answer

    def _cleared(self) -> tuple[Answer, NodeFault | None]:
        """What is still there after a step, and is taken down; a fault where that fails."""
        try:
            there = [str(item.placement) for item in self._driver.instances(self._gpu)]
            kept = clear(self._driver, self._gpu, self._patience) if there else []
        except NodeFault as fault:
            return {"looking": failed(fault)}, fault
        if kept:
            return {"left": there}, NodeFault(f"what is at {', '.join(kept)} cannot be removed")
        return ({"left": there} if there else {}), None

    def _refusal(self, work: Callable[[], object]) -> Answer:
        """What the driver says to what it should refuse."""
        try:
            work()
        except GpuLost:
            raise
        except SlurmMigError as fault:
            return {"fault": type(fault).__name__, "nvml": failed(fault)["nvml"]}
        return {"fault": None, "nvml": None}

    # -- the GPU as a whole ----------------------------------------------------------

    def _identity(self) -> None:
        self._step(
            "gpu",
            "what it is",
            lambda: {
                "name": self._gpu.name,
                "mode_needs_reset": not self._gpu.resetless,
                "mig_mode": self._gpu.mig_mode,
                "memory_mib": self._driver.memory_mib(self._gpu),
            },
        )
        self._geometry = self._driver.geometry(self._gpu)
        for row in self._geometry.profiles:
            self._step(TABLE, f"profile id {row.profile_id}", partial(_row, row))

    def _mode(self) -> None:
        """MIG mode off and on again, where that needs no reset; on in the end."""
        if not self._gpu.resetless:
            return
        row = min(self._geometry.profiles, key=lambda row: (row.size, row.profile_id))
        if self._gpu.mig_mode:
            self._step("mode", "off", lambda: self._switched(on=False))
        else:
            self._step("mode", "on at first", lambda: self._switched(on=True))
            self._step("mode", "off", lambda: self._switched(on=False))
        place = row.placements[0]
        self._step(
            "mode",
            "an instance without MIG mode",
            lambda: self._refusal(
                lambda: self._driver.create_gpu_instance(self._gpu, row.profile_id, place)
            ),
        )
        self._step("mode", "on", lambda: self._switched(on=True))

    def _switched(self, *, on: bool) -> Answer:
        now = self._driver.set_mig_mode(self._gpu, on=on)
        self._gpu = self._driver.gpu(self._place.uuid)
        return {
            "at once": [now.mig_mode, now.mig_pending],
            "then": [self._gpu.mig_mode, self._gpu.mig_pending],
        }

    # -- every profile at every placement --------------------------------------------

    def _made(self, row: GpuProfile, place: Placement) -> tuple[GpuInstance, ComputeInstance]:
        made = self._driver.create_gpu_instance(self._gpu, row.profile_id, place)
        return made, self._driver.create_compute_instance(self._gpu, made.gi_id)

    def _at(self, row: GpuProfile, place: Placement) -> Answer:
        made, compute = self._made(row, place)
        known = self._ids.setdefault((place.start, place.size), made.gi_id)
        answer = {
            "gi_id": made.gi_id,
            "id of the place": made.gi_id == known,
            "as asked": (made.profile_id, made.placement) == (row.profile_id, place),
            "ci_id": compute.ci_id,
            "ci_profile": compute.profile_id,
            "fills": made.fills == compute.profile_id,
            "uuid": form_of(compute.uuid),
            "listed": [item.gi_id for item in self._driver.instances(self._gpu)] == [made.gi_id],
            "remaining": self._remaining(),
            **self._access(made.gi_id, compute.ci_id),
        }
        return answer | self._taken_down(made.gi_id, compute.ci_id)

    def _remaining(self) -> Answer:
        return {
            str(row.profile_id): self._driver.remaining(self._gpu, row.profile_id)
            for row in self._geometry.profiles
        }

    def _access(self, gi_id: int, ci_id: int) -> Answer:
        """Access files of an instance: how far their minors are from the rule, and modes."""
        rule = capability_minors(self._gpu.minor, gi_id, ci_id)
        found = [
            read_access(path)
            for path in self._capabilities.access_files(self._gpu.minor, gi_id, ci_id)
        ]
        return {
            "minors": [item.minor - minor for item, minor in zip(found, rule, strict=True)],
            "modes": [oct(item.mode) for item in found],
        }

    def _taken_down(self, gi_id: int, ci_id: int) -> Answer:
        self._driver.destroy_compute_instance(self._gpu, gi_id, ci_id)
        half = self._driver.instance(self._gpu, gi_id)
        self._driver.destroy_gpu_instance(self._gpu, gi_id)
        files = self._capabilities.access_files(self._gpu.minor, gi_id, ci_id)
        return {
            "listed without compute instance": half is not None and not half.compute,
            "gone": self._driver.instance(self._gpu, gi_id) is None,
            "access files gone": not any(path.exists() for path in files),
        }

    def _limits(self, row: GpuProfile) -> None:
        """Once a profile: what has to be refused, the same again, smaller compute instances."""
        place = row.placements[0]
        name = f"{row.name} (id {row.profile_id})"
        self._step("again", name, lambda: self._again(row, place))
        if row.slices > 1:
            self._step("compute", name, lambda: self._smaller(row, place))
        self._step("refusal", name, lambda: self._refused(row, place))

    def _again(self, row: GpuProfile, place: Placement) -> Answer:
        """The same place twice: whether id and UUID come again."""
        seen = []
        for _ in range(2):
            made, compute = self._made(row, place)
            seen.append((made.gi_id, compute.ci_id, compute.uuid))
            self._taken_down(made.gi_id, compute.ci_id)
        first, second = seen
        return {"same ids": first[:2] == second[:2], "same UUID": first[2] == second[2]}

    def _smaller(self, row: GpuProfile, place: Placement) -> Answer:
        made = self._driver.create_gpu_instance(self._gpu, row.profile_id, place)
        found: Answer = {}
        for slices in range(1, row.slices + 1):
            try:
                item = self._driver.create_compute_instance(self._gpu, made.gi_id, slices)
            except SlurmMigError as fault:
                found[f"{slices}c"] = type(fault).__name__
                continue
            found[f"{slices}c"] = item.profile_id
            self._driver.destroy_compute_instance(self._gpu, made.gi_id, item.ci_id)
        self._driver.destroy_gpu_instance(self._gpu, made.gi_id)
        return found

    def _refused(self, row: GpuProfile, place: Placement) -> Answer:
        driver, gpu, ident = self._driver, self._gpu, row.profile_id
        made, compute = self._made(row, place)
        odd = Placement(self._geometry.units, row.size)
        answer = {
            "a place that is taken": self._refusal(
                lambda: driver.create_gpu_instance(gpu, ident, place)
            ),
            "a place that is none": self._refusal(
                lambda: driver.create_gpu_instance(gpu, ident, odd)
            ),
            "a second compute instance": self._refusal(
                lambda: driver.create_compute_instance(gpu, made.gi_id)
            ),
            "destroyed before its compute instance": self._refusal(
                lambda: driver.destroy_gpu_instance(gpu, made.gi_id)
            ),
        }
        self._taken_down(made.gi_id, compute.ci_id)
        return answer

    # -- full layouts ----------------------------------------------------------------

    def _layouts(self) -> list[Layout]:
        return full_layouts(self._geometry)

    def _fill(self, layout: Layout) -> Answer:
        made = [self._made(row, place) for row, place in layout]
        uuids = {compute.uuid for _, compute in made}
        listed = {item.gi_id for item in self._driver.instances(self._gpu)}
        answer = {
            "gi_ids": [item.gi_id for item, _ in made],
            "all listed": listed == {item.gi_id for item, _ in made},
            "UUIDs differ": len(uuids) == len(made),
            "remaining": self._remaining(),
        }
        for item, compute in made:
            self._taken_down(item.gi_id, compute.ci_id)
        return answer

    # -- as jobs ---------------------------------------------------------------------

    def _as_jobs(self) -> None:
        rows = self._geometry.profiles
        plain = [row for row in rows if not row.name.attribute] or list(rows)
        small = min(plain, key=lambda row: (row.size, row.slices, row.profile_id))
        self._step("job", "a whole job", lambda: self._whole_job(small))
        self._step("job", "a slice that is held busy", lambda: self._busy(small))
        self._step("job", "left-overs of a killed Prolog", lambda: self._killed(small))

    def _next(self) -> int:
        self._job += 1
        return self._job

    def _record(self, job: int) -> Allocation:
        records = self._place.node.ledger.of_job(job)
        if not records:
            raise NodeFault(f"the hook left no record of job {job}")
        return records[-1]

    def _slice(self, job: int) -> Slice:
        """What the Prolog made for a job; NodeFault where that is nothing."""
        record = self._record(job)
        for item in record.present:
            if item.gi_id is not None and item.ci_id is not None:
                minors = capability_minors(self._gpu.minor, item.gi_id, item.ci_id)
                nodes = [self._capabilities.node(minor) for minor in minors]
                return Slice(item, item.gi_id, item.ci_id, nodes)
        raise NodeFault(f"the Prolog made no slice: {record.phase} {record.reason}")

    def _opened(self, uid: int, paths: list[Path]) -> list[str]:
        tries = attempt(Subject(uid, uid), [AccessTry("node", READ, path) for path in paths])
        return [item.found for item in tries]

    def _hook(self, name: str, job: int, row: GpuProfile | None = None, uid: int = OWNER) -> Answer:
        code, said = self._place.hook(name, job, row, uid)
        return {"exit": code, WORDS: without_names(said)} if code else {"exit": 0}

    def _whole_job(self, row: GpuProfile) -> Answer:
        job, other = self._next(), self._next()
        answer: Answer = {"Prolog": self._hook("prolog", job, row)}
        own = self._slice(job)
        item, nodes = own.item, own.nodes
        answer["slice"] = [item.profile, item.start, item.size, self._record(job).phase]
        code, said = self._place.task_prolog(job)
        answer["TaskProlog"] = [code, f"export CUDA_VISIBLE_DEVICES={item.uuid}" in said]
        answer["nodes"] = [oct(path.stat().st_mode & 0o7777) for path in nodes]
        if row.max_instances > 1:
            answer["second Prolog"] = self._hook("prolog", other, row, OTHER)
            answer["its nodes to the first job's user"] = self._opened(
                OWNER, self._slice(other).nodes
            )
        answer["to its user"] = self._opened(OWNER, nodes)
        answer["to another"] = self._opened(OTHER, nodes)
        for path in self._capabilities.access_files(self._gpu.minor, own.gi_id, own.ci_id):
            self._place.modprobe(path, OTHER)
        answer["to another after nvidia-modprobe"] = self._opened(OTHER, nodes)
        answer["computing"] = self._computing(item.uuid or "")
        answer["Epilog"] = self._hook("epilog", job)
        self._hook("epilog", other)
        return answer | {
            "released": self._record(job).phase,
            "nodes gone": not any(path.exists() for path in nodes),
        }

    def _computing(self, uuid: str) -> Answer:
        with self._place.client(uuid, OTHER) as another, self._place.client(uuid, OWNER) as owner:
            pass
        # Without CUDA nothing is known of either.
        return {} if owner == NO_CUDA else {"its user": owner, "another": another}

    def _busy(self, row: GpuProfile) -> Answer:
        """A process of the job outlives it: the slice is set aside, and goes with the next hook."""
        job, following = self._next(), self._next()
        answer: Answer = {"Prolog": self._hook("prolog", job, row)}
        own = self._slice(job)
        with self._place.client(own.item.uuid or "", OWNER) as said:
            if said == NO_CUDA:
                self._hook("epilog", job)
                return {NOT_TRIED: said}
            answer["client"] = said
            answer["compute instance"] = self._refusal(
                lambda: self._driver.destroy_compute_instance(self._gpu, own.gi_id, own.ci_id)
            )
            answer["Epilog"] = self._hook("epilog", job)
            answer["set aside"] = self._record(job).phase
            answer["nodes to its user"] = self._opened(OWNER, own.nodes)
        answer["next Prolog"] = self._hook("prolog", following, self._geometry.whole)
        answer["afterwards"] = self._record(job).phase
        answer["next job"] = self._record(following).phase
        answer["next Epilog"] = self._hook("epilog", following)
        return answer

    def _killed(self, row: GpuProfile) -> Answer:
        """The next job needs the whole GPU, so what the killed Prolog left has to go first."""
        job, following = self._next(), self._next()
        code = self._place.killed_prolog(job, row)
        left = self._driver.instances(self._gpu)
        answer: Answer = {
            "killed": code,
            "left": [[str(item.placement), len(item.compute)] for item in left],
            "next Prolog": self._hook("prolog", following, self._geometry.whole),
        }
        return answer | {
            "next job": self._record(following).phase,
            "afterwards": self._record(job).phase,
            "next Epilog": self._hook("epilog", following),
            "Epilog": self._hook("epilog", job),
        }


def _row(row: GpuProfile) -> Answer:
    decoders, encoders, jpeg, ofa = row.engines.as_tuple()
    return {
        "name": str(row.name),
        "slices": row.slices,
        "placements": [str(place) for place in sorted(row.placements)],
        "count": row.max_instances,
        "memory_mib": row.memory_mib,
        "multiprocessors": row.multiprocessors,
        "copy_engines": row.copy_engines,
        "decoders": decoders,
        "encoders": encoders,
        "jpeg": jpeg,
        "ofa": ofa,
    }
