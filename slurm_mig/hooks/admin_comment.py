"""MIG UUIDs for Slurm's accounting, in the job's AdminComment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import SlurmFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slurm_mig.hooks.job import Job
    from slurm_mig.hooks.log_line import LogLine
    from slurm_mig.node.node import Node


#: How often a job's AdminComment is written before the last look at it.
ADMIN_COMMENT_TRIES: Final = 3


def tell_accounting(node: Node, job: Job, uuids: Sequence[str], line: LogLine) -> None:
    """Add this node's MIG UUIDs to the job's AdminComment; no job is refused for that.

    Another node of the job may write at the same moment: so it is read again.
    """
    ours = f"slurm-mig:{node.name}={','.join(uuids)}"
    try:
        facts = node.slurm.job(job.job_id)
        reference = job.owner.het_leader or (facts.reference if facts else job.job_id)
        for _ in range(ADMIN_COMMENT_TRIES):
            text = node.slurm.admin_comment(str(reference))
            if ours in text.split():
                return
            # What an earlier run of the job had here is in its own row of the accounting.
            # Everything else stays to the letter.
            kept = re.sub(rf" ?(?<!\S)slurm-mig:{re.escape(node.name)}=\S*", "", text)
            node.slurm.set_admin_comment(str(reference), f"{kept} {ours}" if kept else ours)
        if ours not in node.slurm.admin_comment(str(reference)).split():
            line.add(admincomment="overwritten by another node")
    except SlurmFault as fault:
        line.add(admincomment=fault.cause)
