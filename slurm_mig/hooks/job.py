"""What Slurm tells a hook of its job, read once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.errors import NodeFault
from slurm_mig.mig import request as requests
from slurm_mig.mig.allocation import Owner
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_mig.mig.request import Request, Several


@dataclass(frozen=True, slots=True)
class Job:
    """What Slurm tells a hook about its job (prolog_epilog.html; facts/slurm.md#base)."""

    owner: Owner
    job_id: int
    gpus: tuple[int, ...]
    comment: str
    extra: str
    nodes: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Job:
        """Read the variables; NodeFault when this is not a hook's environment."""
        # To the letter, for it is written back.
        comment = environ.get("SLURM_JOB_COMMENT", "")
        environ = {name: _readable(value) for name, value in environ.items()}
        try:
            job_id = int(environ["SLURM_JOB_ID"])
            het = environ.get("SLURM_HET_JOB_ID", "")
            owner = Owner(
                job_id=job_id,
                restart=int(environ.get("SLURM_JOB_RESTART_COUNT") or 0),
                sluid=environ.get("SLURM_JOB_SLUID", ""),
                uid=int(environ["SLURM_JOB_UID"]),
                gid=int(environ.get("SLURM_JOB_GID") or 0),
                user=environ.get("SLURM_JOB_USER", ""),
                account=environ.get("SLURM_JOB_ACCOUNT", ""),
                het_leader=int(het) if het else None,
            )
            return cls(
                owner=owner,
                job_id=job_id,
                gpus=tuple(
                    int(word) for word in environ.get("SLURM_JOB_GPUS", "").split(",") if word
                ),
                comment=comment,
                extra=environ.get("SLURM_JOB_EXTRA", ""),
                nodes=environ.get("SLURM_JOB_NODELIST", ""),
            )
        except (KeyError, ValueError) as problem:
            raise NodeFault(
                f"Slurm's variables are missing or odd: {type(problem).__name__}: {problem}",
                remedy="this program is for slurmd to call",
            ) from problem

    @property
    def alone(self) -> bool:
        """Whether it runs on this node only."""
        return not set(self.nodes) & {",", "["}

    def stamped(self) -> Request | Several | None:
        """The request that job_submit.lua stamped on the job; BadRequest if it cannot be read."""
        return requests.from_stamp(self.extra) or requests.from_stamp(self.comment)


def _readable(value: str) -> str:
    """Text that can be written anywhere: users put bytes into account and comment that are none.

    What is not UTF-8 reaches Python as lone surrogates, which no file and no database takes.
    """
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
