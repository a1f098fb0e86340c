"""Whether the ledger is the one that this boot's marks were written beside; what to do if not.

A ledger that was restored from a copy, or is gone, says of a living job's slice that it is
an ended job's, or nobody's. What lies beside it tells: each mark has the ledger's head as
it was when its slices were carved. So nothing is torn down on the word of such a ledger;
an ended job's nodes are closed by its mark, and an administrator has the living ones
put on record again from their marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.errors import LedgerSetBack
from slurm_mig.mig import allocation as phases
from slurm_mig.values import replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from slurm_mig.gpu.capabilities import Capabilities
    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.state.ledger import Ledger
    from slurm_mig.state.run_files import Mark, RunFiles

REMEDY: Final = (
    "put back the ledger that was there, or have the jobs that live put on record again from "
    "their marks: `slurm-mig reconcile --accept-older-ledger`"
)


def missing(
    heads: Iterable[tuple[str, str]], digest_of: Callable[[int], str | None], last: int
) -> str:
    """What of these heads a ledger does not have, in words; empty if it has them all.

    `heads` with where each stands; `digest_of` gives an event's digest, None where the table
    has no such row (it may have been shortened); `last` is the number of its last event.
    """
    for where, head in heads:
        seq, _, digits = head.partition(":")
        if not (seq.isdecimal() and digits):
            continue
        if int(seq) > last:
            return f"{where} has its event {seq}, the ledger ends with event {last}"
        found = digest_of(int(seq))
        if found is not None and not found.startswith(digits):
            return f"{where} has its event {seq}, the ledger has another one of that number"
    return ""


def lacking(ledger: Ledger, files: RunFiles) -> str:
    """What this boot's marks have and the ledger has not, in words; empty if it has all."""
    # All heads first: a hook that adds an event between the two would make a healthy ledger
    # look older than its own marks.
    heads = list(files.heads())
    return missing(heads, ledger.digest_of, ledger.last_event()[0])


def check(ledger: Ledger, files: RunFiles) -> None:
    """LedgerSetBack for a ledger that lacks what it had when this boot's marks were written."""
    text = lacking(ledger, files)
    if text:
        raise LedgerSetBack(
            f"ledger is older than what lies beside it, or another one: {text}", remedy=REMEDY
        )


def shut(job: int, files: RunFiles, capabilities: Capabilities, boot: str) -> list[str]:
    """Close by its marks what an ended job had; says what was closed. The slices stay.

    Whose they are by now no ledger tells. Another job's of the same user, which has the
    same nodes by its own mark, stay open.
    """
    marks = [mark for mark in files.marks() if mark.boot == boot]
    others = {node for mark in marks if mark.job != job for node in _nodes(mark)}
    closed = []
    for mark in marks:
        if mark.job != job:
            continue
        for node in sorted(_nodes(mark) - others):
            minor, gi_id, ci_id, uid = node
            if uid:
                capabilities.remove(minor, gi_id, ci_id, owned_by=uid)
        closed += [str(item) for record in mark.records for item in record.instances]
        files.end(mark)
    return closed


def _nodes(mark: Mark) -> set[tuple[int, int, int, int]]:
    return {
        (record.gpu_minor, item.gi_id, item.ci_id, record.owner.uid)
        for record in mark.records
        for item in record.present
        if item.gi_id is not None and item.ci_id is not None
    }


def rebuild(
    ledger: Ledger, files: RunFiles, boot: str, live: frozenset[int], who: str
) -> list[str]:
    """Put on record what this boot's marks name, and close what contradicts them; a line each.

    The caller holds the locks of all GPUs, and asked Slurm before: `live` may still be here.
    Nothing is destroyed: a slice that is in no record then is listed as foreign.
    """
    heads = [head for _, head in files.heads()]
    marks = [mark for mark in files.marks() if mark.boot == boot and mark.head]
    wanted = [record for mark in marks for record in mark.records]
    done = []
    for record in ledger.all_open():
        if record.boot_id != boot or _kept(record, wanted, live):
            continue
        ledger.finish(record, phases.LOST, "it contradicts the marks beside a ledger set back")
        done.append(f"{record.owner} on GPU {record.gpu_minor} ({record.made}): taken off record")
    known = [record for record in ledger.all_open() if record.boot_id == boot]
    for record in wanted:
        if not any(_same(record, other) for other in known):
            fresh = replace(record, number=0, phase=phases.ACTIVE, ended=None)
            ledger.add(fresh, "rebuilt")
            done.append(
                f"{record.owner} on GPU {record.gpu_minor} ({record.made}): on record again"
            )
    ledger.note("accepted", {"who": who, "beside": heads})
    for mark in marks:
        files.renew(mark, ledger.head(), mark.records)
    files.note_head(ledger.head())
    return done


def _kept(record: Allocation, wanted: Sequence[Allocation], live: frozenset[int]) -> bool:
    """Whether an old record may be true: a mark has it, or its job lives, or an administrator's.

    Never where a mark gives its place to another.
    """
    if any(_same(record, other) for other in wanted):
        return True
    places = {item.placement for item in record.present}
    for other in wanted:
        taken = any(p.mask & item.placement.mask for p in places for item in other.present)
        if other.gpu_uuid == record.gpu_uuid and (taken or record.whole or other.whole):
            return False
    return not record.owner.is_job or record.owner.job_id in live


def _same(one: Allocation, other: Allocation) -> bool:
    return (
        one.owner.same_run(other.owner)
        and one.gpu_uuid == other.gpu_uuid
        and [item.uuid for item in one.present] == [item.uuid for item in other.present]
    )
