"""Who holds an instance: a process, where it belongs, and whether it may be killed. Pure.

Names and command lines are a user's own text: shown, cleaned, and never decided
by. What decides is the kernel's: uids, the start time, the cgroup.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.text import ascii_line
from slurm_mig.values import asdict, dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slurm_mig.mig.allocation import Owner

#: How a process has the instance: the instance itself, or only the GPU it is on.
INSTANCE: Final = "instance"
GPU: Final = "gpu"

#: Longest command line that is shown, in characters.
SHOWN: Final = 80

#: Holders that a text names.
NAMED: Final = 5

#: Slurm's cgroups of a job. v1: `/slurm/uid_U/job_N/...`, `/slurm_NODE/...` with several slurmd
#: on a host; v2: `/system.slice/[NODE_]slurmstepd.scope/job_N/...`. Anchored: below their own
#: user@.service a user gives cgroups any name.
_JOB_V1: Final = r"/slurm(?:_[^/]+)?/uid_(?P<uid>\d+)/job_(?P<job>\d+)(?:/|$)"
_JOB_V2: Final = r"/system\.slice/(?:[^/]+_)?slurmstepd\.scope/job_(?P<job>\d+)(?:/|$)"

#: Parts of a path that speak of a job in a form which the two above do not know.
_LIKE_A_JOB: Final = r"/(?:(?:slurm(?:_[^/]*)?|[^/]*slurmstepd\.scope)(?=/|$)|(?:job|step|uid)_\d)"

#: Where slurmd's own children are when Slurm tracks no job by cgroup (proctrack/linuxproc).
_SLURMD: Final = r"slurmd(?:@[^/]*)?\.service"


@dataclass(frozen=True, slots=True)
class Place:
    """What the cgroups of a process say: `path` for people, system `unit`, Slurm `job`.

    `doubtful`: something in them speaks of a job, but not of one job in a known form.
    """

    path: str = ""
    unit: str = ""
    job: int | None = None
    job_uid: int | None = None
    doubtful: bool = False

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read /proc/PID/cgroup (cgroups(7)): v1, v2, and both at once."""
        lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
        paths = [path for _, _, path in lines]
        found = [match for path in paths for match in _jobs(path)]
        jobs = {int(match["job"]) for match in found}
        uids = {int(match["uid"]) for match in found if "uid" in match.re.groupindex}
        like = any(re.search(_LIKE_A_JOB, path) for path in paths)
        systemd = [path for _, name, path in lines if name == "name=systemd"]
        unified = [path for number, name, path in lines if (number, name) == ("0", "")]
        # systemd keeps its units in a tree of its own where there are v1 controllers.
        main = (systemd or unified or [""])[0]
        shown = next((match.string for match in found), main)
        return cls(
            path=ascii_line(shown),
            unit=ascii_line(_unit(main)),
            job=jobs.pop() if len(jobs) == 1 and len(uids) <= 1 else None,
            job_uid=uids.pop() if len(uids) == 1 else None,
            doubtful=len(jobs) > 1 or len(uids) > 1 or (like and not found),
        )


def _jobs(path: str) -> Iterator[re.Match[str]]:
    for form in (_JOB_V1, _JOB_V2):
        match = re.match(form, path)
        if match:
            yield match


def _unit(path: str) -> str:
    """The system unit: the first part that is no slice. What lies below is a user's to name."""
    for part in path.split("/"):
        if part and not part.endswith(".slice"):
            return part if part.endswith((".service", ".scope")) else ""
    return ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has an instance open, as it was seen.

    `started` in clock ticks since boot (proc(5), field 22 of stat), 0 for one that is
    gone. `uids`: real, effective, saved, file system. `environment_job` and
    `environment_restart` from the environment it was started with, which its user
    could change; so they count for little (see `is_left_of`).
    """

    pid: int
    has: str = INSTANCE
    started: int = 0
    uids: tuple[int, ...] = ()
    user: str = ""
    name: str = ""
    command: str = ""
    place: Place = Place()
    environment_job: int | None = None
    environment_restart: int = 0

    def is_users(self, owner: Owner) -> bool:
        """Whether it has the instance itself and is the user's for certain, in whatever job.

        A slice is paid for by a job, not by its user: once the job is over, nobody has a right
        to it. Every uid counts: what runs with root's, if only in part, is not the user's.
        """
        if self.has != INSTANCE or not owner.is_job or self.pid <= 1:
            return False
        return owner.uid != 0 and set(self.uids) == {owner.uid}

    def is_left_of(self, owner: Owner, *, by_environment: bool) -> bool:
        """Whether it is certainly a left-over of a job that is over; in doubt not.

        It has the instance itself, and every uid of it is the job's user's, never root.
        Its cgroup is the job's; or, only where Slurm keeps jobs in no cgroups, it is in
        none but slurmd's and its first environment names job and restart. For that
        second way `by_environment` must say that the user has no other job here.
        """
        if self.has != INSTANCE or not self.uids or not owner.is_job or self.pid <= 1:
            return False
        if owner.uid == 0 or set(self.uids) != {owner.uid} or self.place.doubtful:
            return False
        if self.place.job is not None:
            return self.place.job == owner.job_id and self.place.job_uid in (None, owner.uid)
        nowhere = self.place.path in ("", "/") or re.fullmatch(_SLURMD, self.place.unit)
        if not by_environment or not nowhere:
            return False
        return (self.environment_job, self.environment_restart) == (owner.job_id, owner.restart)

    def __str__(self) -> str:
        """With all there is to know: for administrators and root's logs."""
        if not self.uids:
            return f"pid {self.pid}, which is gone or not to be seen"
        who = self.user or str(self.uids[0])
        shown = self.command[:SHOWN] or f"[{self.name}]"
        where = f" in {self.place.path}" if self.place.path not in ("", "/") else ""
        if self.place.job is not None:
            where = f" of job {self.place.job}"
        elif self.place.unit:
            where = f" of unit {self.place.unit}"
        only = ", by the GPU" if self.has == GPU else ""
        return f"pid {self.pid} of {who} ({shown}){where}{only}"

    @property
    def public(self) -> str:
        """What another user may read: no command line and no name."""
        return f"pid {self.pid}" + (f" of unit {self.place.unit}" if self.place.unit else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for --json, with nothing of the environment."""
        data = asdict(self)
        del data["environment_job"], data["environment_restart"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Holder:
        """Made again from its fields."""
        fields = dict(data)
        fields["uids"] = tuple(fields["uids"])
        fields["place"] = Place(**fields["place"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Holders:
    """Everybody found; `complete` unless the time was up before all processes were seen."""

    found: tuple[Holder, ...] = ()
    complete: bool = True

    @property
    def nearest(self) -> tuple[Holder, ...]:
        """Who has the instance itself; where nobody has, who has its GPU."""
        direct = tuple(item for item in self.found if item.has == INSTANCE)
        return direct or self.found

    @property
    def units(self) -> frozenset[str]:
        """System units of the nearest."""
        return frozenset(item.place.unit for item in self.nearest if item.place.unit)

    def text(self, *, public: bool = False) -> str:
        """All on one line."""
        names = [item.public if public else str(item) for item in self.nearest[:NAMED]]
        if len(self.nearest) > NAMED:
            names.append(f"{len(self.nearest) - NAMED} more")
        if not self.complete:
            names.append("not all processes could be looked at in time")
        # A handle that leaked in the driver has no process any more (facts/mig.md#bugs).
        return ", ".join(names) or "no process that can be found (see dmesg)"


def named(pids: Sequence[int]) -> Holders:
    """Holders of which nothing but the pid is known."""
    return Holders(tuple(Holder(pid) for pid in pids), complete=False)
