"""Files under the run directory by which Prolog, TaskProlog and Epilog meet.

    env/<job>.<restart>                lines for the TaskProlog, root's, readable by the job's user
    env/<leader>.<restart>.het<job>    the same for steps of a heterogeneous job, which carry
                                       their leader's id on every node
    env/... .refused                   why the job was refused, for the TaskProlog
    jobs/<job>.<restart>               the Epilog shim's sign that there is something to do,
                                       and what; for root only

They vanish with a reboot, as instances do. They steer, they do not decide: the
ledger is the truth.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slurm_mig.files import (
    private_directory,
    public_directory,
    read_own,
    remove_abandoned,
    remove_as_owner,
    replace_file,
    trusted,
    user_directory,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.allocation import Owner


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

    def __init__(self, root: Path) -> None:
        self._root = root
        self._env = root / "env"
        self._jobs = root / "jobs"

    def prepare(self) -> None:
        """Make the directories; every job's TaskProlog looks into two of them."""
        public_directory(self._root)
        public_directory(self._env)
        private_directory(self._jobs, 0o700)

    def in_use(self) -> bool:
        """Whether jobs' environments are kept here: then every GPU job needs one."""
        return self._env.is_dir()

    def mark(self, owner: Owner, *, retry: str = "", leases: str = "") -> None:
        """Tell the Epilog shim that this run needs the Epilog, before anything is made.

        `retry` is what to postpone, `leases` the directory that the job's steps may
        make for themselves. The Epilog trusts these, so only root can write them.
        """
        self.prepare()
        lines = [f"retry {retry}\n"] * bool(retry) + [f"leases {leases}\n"] * bool(leases)
        replace_file(self._jobs / _name(owner), "".join(lines), mode=0o600)

    def make_leases(self, owner: Owner, path: str) -> str:
        """The directory of this run's leases: the one that is on its mark, else made at `path`.

        Its lock is a sign: where that is gone, somebody has cleaned, and no lease does not mean
        that no step has a slice.
        """
        path = self.leases(owner) or path
        # On the mark first: what is on none would be left for ever.
        self.mark(owner, leases=path)
        user_directory(Path(path), owner.uid, owner.gid, "lock")
        return path

    def leases(self, owner: Owner) -> str:
        """The directory of this very run's leases, empty where there is none."""
        return next(iter(self._notes(_name(owner), "leases")), "")

    def retries(self, job_id: int) -> list[str]:
        """What runs of a job asked their Epilog to postpone."""
        return self._notes(f"{job_id}.*", "retry")

    def _notes(self, names: str, kind: str) -> list[str]:
        """What marks say; NodeFault for a mark that somebody else could have made."""
        marks = [path for path in _inside(self._jobs, names) if job_of(path) is not None]
        texts = [read_own(path) for path in marks]
        lines = [line.partition(" ") for text in texts for line in text.splitlines()]
        return [value for word, _, value in lines if word == kind]

    def publish(self, owner: Owner, lines: str) -> None:
        """Hand the job's tasks their environment."""
        for stem in _stems(owner):
            # A refusal comes first for the TaskProlog: one of an earlier job of this number,
            # whose Epilog never came, would stop this one's tasks.
            _remove(self._env / f"{stem}.refused")
            self._give(self._env / stem, lines, owner)

    def refuse(self, owner: Owner, lines: str) -> None:
        """Leave the reason for the TaskProlog, should a task start after all."""
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
        for directory in self._notes(f"{job_id}.*", "leases"):
            remove_as_owner(Path(directory))
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
            leases = self._notes(path.name, "leases") if path.parent == self._jobs else []
            _remove(path)
            for directory in leases:
                remove_as_owner(Path(directory))

    def withdraw_run(self, owner: Owner) -> None:
        """Remove everything of one run; a refused one's stays, for its tasks and its Epilog."""
        if any((self._env / f"{stem}.refused").exists() for stem in _stems(owner)):
            return
        leases = self._notes(_name(owner), "leases")
        self.withdraw_environment(owner)
        _remove(self._jobs / _name(owner))
        for directory in leases:
            remove_as_owner(Path(directory))

    def withdraw_environment(self, owner: Owner) -> None:
        """Remove one run's environment: its instances are going."""
        for stem in _stems(owner):
            _remove(self._env / stem)
            # What a hook was writing when it died; digits only, for others' names begin alike.
            for half in self._env.glob(f".{stem}.[0-9]*"):
                _remove(half)

    def jobs(self) -> set[int]:
        """Ids of all jobs that have a file here."""
        return {job for path in self._all() if (job := job_of(path)) is not None}

    def jobs_before(self, time: float) -> set[int]:
        """Ids of jobs all of whose files are older than that (seconds since the epoch)."""
        found = [(file.job, file.written / 1e9) for file in self.runs()]
        return {job for job, _ in found} - {job for job, at in found if at >= time}

    def remove_abandoned(self) -> list[Path]:
        """Remove half-written files of processes that were killed."""
        return [path for where in (self._env, self._jobs) for path in remove_abandoned(where)]

    def _all(self) -> list[Path]:
        return [*_files_in(self._env), *_files_in(self._jobs)]


def _files_in(directory: Path) -> list[Path]:
    """Files of jobs, with those that a hook was writing when it died; others' are left alone."""
    found = [*_inside(directory, "[0-9]*"), *_inside(directory, ".[0-9]*")]
    return [path for path in found if job_of(path) is not None]


def _inside(directory: Path, names: str) -> list[Path]:
    """Files of a directory that root alone changes; none where it does not exist."""
    try:
        with trusted(directory):
            return sorted(directory.glob(names))
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
