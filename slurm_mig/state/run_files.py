"""Files under the run directory by which Prolog, TaskProlog and Epilog meet.

    env/<job>.<restart>                lines for the TaskProlog, root's, readable by the job's user
    env/<leader>.<restart>.het<job>    the same for steps of a heterogeneous job, which carry
                                       their leader's id on every node
    env/... .refused                   why the job was refused, for the TaskProlog
    jobs/<job>.<restart>               the Epilog shim's sign that there is something to do,
                                       and what; for root only
    leases/<job>.<restart>/            which slices the steps of the job have (leases.py)
    head                               the last event that the ledger was seen to have

They vanish with a reboot, as instances do. They steer, they do not decide: the
ledger is the truth. But they tell when it is not the ledger that they were written
beside: marks have the boot, the ledger's head and the record of what was carved.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import NodeFault, NoSpace
from slurm_mig.mig.allocation import Allocation
from slurm_mig.state import leases
from slurm_mig.system.detach import remove_as_owner
from slurm_mig.system.replace import remove_abandoned, replace_file
from slurm_mig.system.space import waiting_for_room
from slurm_mig.system.trust import (
    below,
    private_directory,
    public_directory,
    read_own,
    trusted,
    user_directory,
)
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slurm_mig.mig.allocation import Owner


@dataclass(frozen=True, slots=True)
class Mark:
    """What a run's mark says. Empty and None for what an earlier release did not write.

    `boot` is the boot it was written in, `head` the ledger's head (`<event>:<digits>`) with the
    `records` of what the run has; `ended`: its Epilog came, and could not use the ledger; `fit`:
    what of `fit` the job holds.
    """

    path: Path
    boot: str = ""
    cluster: str = ""
    head: str = ""
    records: tuple[Allocation, ...] = ()
    ended: bool = False
    fit: str = ""

    @property
    def job(self) -> int:
        """Id of its job."""
        return job_of(self.path) or 0

    @classmethod
    def parse(cls, path: Path, text: str) -> Mark:
        """Lines that are not known, or not whole, are passed over."""
        told = {"boot": "", "cluster": "", "head": "", "fit": ""}
        records, ended = [], False
        for word, _, value in (line.partition(" ") for line in text.splitlines()):
            if word in told:
                told[word] = value
            elif word == "record":
                with suppress(ValueError, TypeError, LookupError):
                    records.append(Allocation.from_dict(json.loads(value)))
            ended = ended or word == "ended"
        known = (told["boot"], told["cluster"], told["head"])
        return cls(path, *known, tuple(records), ended, told["fit"])


#: Names of files of jobs (see above), also while they are written: then a dot and a pid more.
#: Whatever else lies in these directories is somebody else's, and stops nothing.
_FILE: Final = re.compile(
    r"\.?(?P<job>[0-9]{1,12})\.[0-9]{1,12}(?:\.het(?P<component>[0-9]{1,12}))?(?:\.refused)?"
    r"(?:\.[0-9]{1,12})?"
)


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of a job's as it was seen: one that was written since is another one."""

    path: Path
    inode: int
    written: int

    job: int

    @classmethod
    def seen(cls, path: Path) -> RunFile | None:
        """The file as it is now; None when a hook has just removed it, or it is no job's."""
        job = job_of(path)
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        return None if job is None else cls(path, status.st_ino, status.st_mtime_ns, job)


class RunFiles:
    """The run directory, `/run/slurm-mig` unless configured otherwise."""

    def __init__(self, root: Path, facts: Mapping[str, str] | None = None) -> None:
        """`facts` stand in every mark that is written: `boot`, and `cluster` where it is known."""
        self._root = root
        self._facts = {word: value for word, value in (facts or {}).items() if value}
        self._head = root / "head"
        self._env = root / "env"
        self._jobs = root / "jobs"
        self._leases = root / "leases"
        #: What of `fit` this hook's job holds, for its mark.
        self.fit = ""
        #: What `marks` met that is no mark of ours, and why.
        self.odd: dict[Path, str] = {}

    def prepare(self) -> None:
        """Make the directories; every job's TaskProlog looks into two of them."""
        public_directory(self._root)
        public_directory(self._env)
        private_directory(self._jobs, 0o700)

    def in_use(self) -> bool:
        """Whether jobs' environments are kept here: then every GPU job needs one."""
        return self._env.is_dir()

    @waiting_for_room()
    def mark(
        self,
        owner: Owner,
        *,
        retry: str = "",
        leases: str = "",
        head: str = "",
        records: Sequence[Allocation] = (),
    ) -> None:
        """Tell the Epilog shim that this run needs the Epilog, before anything is made.

        `retry` is what to postpone, `leases` the directory that the job's steps share their
        slices by, where that is elsewhere; `head` and `records`, once there are some, tell what
        the run has should the ledger be lost. The Epilog trusts these: only root can write them.
        """
        self.prepare()
        # Those below the run directory are found by their name.
        elsewhere = "" if Path(leases).parent == self._leases else leases
        told = {**self._facts, "retry": retry, "leases": elsewhere, "head": head, "fit": self.fit}
        lines = [f"{word} {value}\n" for word, value in told.items() if value]
        lines += [f"record {json.dumps(record.to_dict())}\n" for record in records]
        replace_file(self._jobs / _name(owner), "".join(lines), mode=0o600)

    @waiting_for_room()
    def make_leases(self, owner: Owner, slices: int, elsewhere: str) -> str:
        """The directory by which the steps of this run share so many slices.

        It is made at `elsewhere`, as the user's own, where this node can have none of root's
        (a container without the right to mount). One that is on the run's mark stays: steps
        may have begun there, of an earlier release's Prolog, too.
        """
        told, own = self._elsewhere(owner), self._leases / _name(owner)
        if not told and leases.make(own, owner.uid, slices):
            return str(own)
        path = told or elsewhere
        # On the mark first: what is on none would be left for ever.
        self.mark(owner, leases=path)
        user_directory(Path(path), owner.uid, owner.gid, "lock")
        return path

    def marks(self) -> list[Mark]:
        """Every mark. What somebody put under the name of one says nothing, and is in `odd`.

        One that cannot be believed must not stop the work on all the others.
        """
        return [Mark.parse(path, self._told(path)) for path in _ours(self._jobs)]

    def _told(self, path: Path) -> str:
        try:
            return read_own(path)
        except (NodeFault, OSError) as problem:
            self.odd[path] = str(problem)
            return ""

    def end(self, mark: Mark) -> None:
        """Put down on a mark that its run has ended, and take its environment away.

        The mark stays: it alone says whose its slices were.
        """
        for path in _files_in(self._env):
            if job_of(path) == mark.job:
                path.unlink(missing_ok=True)
        replace_file(mark.path, f"{read_own(mark.path)}ended\n", mode=0o600)

    def renew(self, mark: Mark, head: str, records: Sequence[Allocation]) -> None:
        """Write a mark anew for a ledger with that head, which has its records by now."""
        words = ("head ", "record ")
        lines = [line for line in read_own(mark.path).splitlines() if not line.startswith(words)]
        lines += [f"head {head}", *(f"record {json.dumps(item.to_dict())}" for item in records)]
        replace_file(mark.path, "".join(f"{line}\n" for line in lines), mode=0o600)

    def note_head(self, head: str) -> None:
        """Write down the ledger's head. It only serves a later check: no work fails for it."""
        if head and self._root.is_dir():
            with suppress(NodeFault):
                replace_file(self._head, f"{self._facts.get('boot', '')} {head}\n", mode=0o600)

    def heads(self) -> Iterator[tuple[str, str]]:
        """Heads that the ledger had in this boot: where it stands, and `<event>:<digits>`."""
        boot = self._facts.get("boot", "")
        for mark in self.marks():
            if mark.head and mark.boot == boot:
                yield f"the mark of job {mark.job}", mark.head
        with suppress(NodeFault, FileNotFoundError):
            with trusted(self._root):
                told, _, head = read_own(self._head).strip().partition(" ")
            if head and told == boot:
                yield str(self._head), head

    def leases(self, owner: Owner) -> str:
        """The directory of this very run's leases, empty where there is none."""
        own = self._leases / _name(owner)
        return self._elsewhere(owner) or (str(own) if own.is_dir() else "")

    def _elsewhere(self, owner: Owner) -> str:
        """Leases of a run outside the run directory, by its mark."""
        return next(iter(self._notes(_name(owner), "leases")), "")

    def retries(self, job_id: int) -> list[str]:
        """What runs of a job asked their Epilog to postpone."""
        return self._notes(f"{job_id}.", "retry")

    def _notes(self, names: str, kind: str) -> list[str]:
        """What marks say, of a run or of all runs of `<job>.`.

        NodeFault for a mark that somebody else could have made.
        """
        paths = _ours(self._jobs, names)
        texts = [read_own(path) for path in paths if names.endswith(".") or path.name == names]
        lines = [line.partition(" ") for text in texts for line in text.splitlines()]
        return [value for word, _, value in lines if word == kind]

    @waiting_for_room()
    def publish(self, owner: Owner, lines: str) -> None:
        """Hand the job's tasks their environment."""
        for stem in _stems(owner):
            # A refusal comes first for the TaskProlog: one of an earlier job of this number,
            # whose Epilog never came, would stop this one's tasks.
            _remove(self._env / f"{stem}.refused")
            self._give(self._env / stem, lines, owner)

    def refuse(self, owner: Owner, lines: str) -> None:
        """Leave the reason for the TaskProlog, should a task start after all.

        On a full file system it does without: a task that finds no file stops, too.
        """
        with suppress(NoSpace), waiting_for_room():
            self.prepare()
            self.withdraw_environment(owner)
            for stem in _stems(owner):
                self._give(self._env / f"{stem}.refused", lines, owner)

    @staticmethod
    def _give(path: Path, lines: str, owner: Owner) -> None:
        replace_file(path, lines, mode=0o400, reader=(owner.uid, owner.gid))

    def withdraw(self, job_id: int) -> None:
        """Remove everything of a job, whichever run left it."""
        for path in _files_in(self._env):
            if job_of(path) == job_id:
                _remove(path)
        for told in self._notes(f"{job_id}.", "leases"):
            remove_as_owner(Path(told))
        for path in _ours(self._leases):
            if job_of(path) == job_id:
                leases.remove(path)
        # The marks last: they alone bring an Epilog that died here to do it again.
        for path in _files_in(self._jobs):
            if job_of(path) == job_id:
                _remove(path)

    def runs(self) -> list[RunFile]:
        """Every file of a job as it is now."""
        return [file for file in map(RunFile.seen, self._all()) if file is not None]

    def withdraw_listed(self, files: Sequence[RunFile]) -> None:
        """Remove these files, unless they were written anew since they were listed.

        By the name of their job alone the files of a run that has just begun would go, too.
        """
        same = [file.path for file in files if RunFile.seen(file.path) == file]
        for path in sorted(same, key=lambda item: item.parent == self._jobs):
            told = []
            if path.parent == self._jobs:
                # One that cannot be believed names none, and stops no work on the others.
                with suppress(NodeFault):
                    told = self._notes(path.name, "leases")
            if path.parent == self._leases:
                leases.remove(path)
            else:
                _remove(path)
            for directory in told:
                remove_as_owner(Path(directory))

    def withdraw_run(self, owner: Owner) -> None:
        """Remove everything of one run; a refused one's stays, for its tasks and its Epilog."""
        if any((self._env / f"{stem}.refused").exists() for stem in _stems(owner)):
            return
        told = self._notes(_name(owner), "leases")
        self.withdraw_environment(owner)
        leases.remove(self._leases / _name(owner))
        _remove(self._jobs / _name(owner))
        for directory in told:
            remove_as_owner(Path(directory))

    def withdraw_environment(self, owner: Owner) -> None:
        """Remove one run's environment: its instances are going."""
        for stem in _stems(owner):
            _remove(self._env / stem)
            # What a hook was writing when it died; digits only, for others' names begin alike.
            for half in below(self._env, f".{stem}."):
                if half.name.removeprefix(f".{stem}.").isdecimal():
                    _remove(half)

    def jobs(self) -> set[int]:
        """Ids of all jobs that have a file here."""
        return {job for path in self._all() if (job := job_of(path)) is not None}

    def jobs_of_other_boots(self) -> set[int]:
        """Ids of jobs that nothing here is left of but what an earlier boot, or none, marked.

        A run's mark is written before its other files, and goes after them. One that does
        not name its boot is an earlier release's: it may be of a job that lives.
        """
        # Half-written ones go by their writers' pids: it may be at work.
        found = (*_ours(self._env), *_ours(self._jobs))
        files = {job for path in found if (job := job_of(path)) is not None}
        marks = self.marks()
        boot = self._facts.get("boot", "")
        return files - {mark.job for mark in marks if mark.boot in ("", boot)}

    def remove_abandoned(self) -> list[Path]:
        """Remove half-written files of processes that were killed."""
        return [path for where in (self._env, self._jobs) for path in remove_abandoned(where)]

    def _all(self) -> list[Path]:
        return [
            *_files_in(self._env),
            *_ours(self._leases),
            *_files_in(self._jobs),
        ]


def _files_in(directory: Path) -> list[Path]:
    """Files of jobs, with those that a hook was writing when it died."""
    return [path for path in _inside(directory) if job_of(path) is not None]


def _ours(directory: Path, beginning: str = "") -> list[Path]:
    """Those of a directory's files that we name so: another's must not stop the work on them."""
    found = _inside(directory, beginning)
    return [path for path in found if path.name[0] != "." and job_of(path) is not None]


def _inside(directory: Path, beginning: str = "") -> list[Path]:
    """Files of a directory that root alone changes; none where it does not exist."""
    try:
        with trusted(directory):
            return below(directory, beginning)
    except FileNotFoundError:
        return []


def _stems(owner: Owner) -> list[str]:
    stems = [_name(owner)]
    if owner.het_leader not in (None, owner.job_id):
        stems.append(f"{owner.het_leader}.{owner.restart}.het{owner.job_id}")
    return stems


def job_of(path: Path) -> int | None:
    """The job a file belongs to: a component's alias is not its leader's. None: it is no job's."""
    found = _FILE.fullmatch(path.name)
    return None if found is None else int(found["component"] or found["job"])


def _remove(path: Path) -> None:
    """Remove a file; what somebody made a directory of its name is no file of ours."""
    with suppress(FileNotFoundError, IsADirectoryError):
        path.unlink()


def _name(owner: Owner) -> str:
    return f"{owner.job_id}.{owner.restart}"
