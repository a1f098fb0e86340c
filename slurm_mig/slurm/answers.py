"""What Slurm's commands print -> values. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm import hostlist
from slurm_mig.slurm.protocol import LIVE_STATES, AccountingRow, JobOnNode, NodeFacts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


#: Bytes of squeue's columns for a job's number and for its AdminComment; no argument of a
#: command can be twice as long (execve(2), MAX_ARG_STRLEN).
ID_WIDTH, COMMENT_WIDTH = 20, 65000

#: Limits in TRES that a QOS and an association can have (sacctmgr(1)).
LIMITS: Final = (
    "GrpTRES", "GrpTRESMins", "GrpTRESRunMins", "MaxTRES", "MaxTRESPerNode", "MaxTRESMins",
)  # fmt: skip

#: Columns that sacct is asked for.
SACCT_CELLS = 7


def gpu_indexes(detail: str) -> tuple[int, ...]:
    """Indexes in `gpu:a:0(IDX:),gpu:b:2(IDX:1-2)`."""
    found: set[int] = set()
    for ranges in re.findall(r"(?:^|,)gpu(?::[^(,]*)?\(IDX:([0-9,-]*)\)", detail):
        found |= _indexes(ranges)
    return tuple(sorted(found))


def _indexes(ranges: str) -> set[int]:
    """`0,2-3` as numbers; none of an empty text."""
    found: set[int] = set()
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def cut(line: str, widths: Sequence[int]) -> list[str]:
    """A line of columns with fixed widths, cut at them: what users typed crosses no separator."""
    parts, at = [], 0
    for width in widths:
        parts.append(line[at : at + width].strip())
        at += width
    return parts


def node_facts(name: str, line: str) -> NodeFacts:
    """A line of `scontrol show node -d -o`; nothing in it is a user's to write."""
    # The first of each: the reason comes last, and may quote anything.
    state = re.search(r" State=(\S+)", line)
    gres = re.search(r" Gres=(\S+)", line)
    used = re.search(r" GresUsed=(\S+)", line)
    reason = re.search(r" Reason=(.*) \[[^\[\]]*@[^\[\]]*\]", line)
    # Of another node, whose answer that may be, it is no proof.
    this = line.startswith(f"NodeName={name} ")
    host = re.search(r" NodeHostName=(\S+)", line) if this else None
    address = re.search(r" NodeAddr=(\S+)", line) if this else None
    partitions = re.search(r" Partitions=(\S+)", line) if this else None
    extra = re.search(r" Extra=(.*?)(?= [A-Z][A-Za-z]*=|$)", line) if this else None
    counts = _configured(gres[1] if gres else "")
    return NodeFacts(
        name,
        frozenset(re.findall("[A-Z_]+", state[1] if state else "")),
        reason[1] if reason else "",
        counts,
        _by_gpu(counts, _details(used[1] if used else "")),
        host[1] if host else "",
        address[1] if address else "",
        # Which sockets a GPU belongs to is slurmd's to say, in an update it has no place.
        re.sub(r"\([^)]*\)", "", gres[1]) if gres else "",
        extra[1] if extra else "",
        frozenset(partitions[1].split(",") if partitions else ()),
    )


def _details(text: str) -> list[tuple[str, str]]:
    """`mig:1g.10gb(CNT:2),shard:h100:8(8/31,0/0)` as words with what stands in their brackets."""
    return re.findall(r"([^,()]+)\(([^)]*)\)", text)


def _by_gpu(
    counts: Mapping[str, int], details: Sequence[tuple[str, str]]
) -> tuple[tuple[int, int], ...] | None:
    """(used, all) shards of each GPU; Slurm counts the places within each type of GPU.

    26.05 writes `-/31` for a GPU that a job has as a whole: none of its shards is used.
    """
    places = {
        word.rpartition(":")[0].removeprefix("shard:"): re.findall(r"(\d+|-)/(\d+)", inside)
        for word, inside in details
        if word.startswith("shard:")
    }
    if not any(places.values()):
        return None
    found: list[tuple[int, int]] = []
    for name, count in counts.items():
        if name.startswith("gpu:"):
            pairs = places.get(name.removeprefix("gpu:"), [])
            shards = [(0 if used == "-" else int(used), int(full)) for used, full in pairs]
            found += shards or [(0, 0)] * count
    return tuple(found)


def shares_of(output: str) -> list[JobOnNode]:
    """What `squeue --json` says; SlurmFault, named after it, where it does not say enough."""
    import json

    try:
        jobs = json.loads(output)["jobs"]
        return [item for job in jobs for item in _share(job)]
    except (ValueError, KeyError, TypeError) as problem:
        raise SlurmFault(f"squeue --json: {type(problem).__name__}: {problem}") from problem


def _share(job: dict[str, Any]) -> Iterator[JobOnNode]:
    # 22.05 lists every job, whatever states were asked for.
    states = job["job_state"]
    words = [states] if isinstance(states, str) else states
    if not job["nodes"] or not {*words} & {*LIVE_STATES}:
        return
    nodes = _allocated(job["job_resources"])
    # A job without gres has an empty list.
    for node, detail in zip(nodes, job["gres_detail"] or [""] * len(nodes), strict=True):
        gres, gpus = _held(detail)
        yield JobOnNode(
            job["job_id"],
            job["restart_cnt"],
            # A login node may not know every user.
            job["user_name"] or str(job["user_id"]),
            node,
            _start(job["start_time"]),
            gres,
            gpus,
        )


def _allocated(resources: dict[str, Any]) -> list[str]:
    """Names of a job's nodes, in the order of its gres; 22.05 calls the list something else."""
    if "allocated_nodes" in resources:
        return [item["nodename"] for item in resources["allocated_nodes"]]
    return [item["name"] for item in resources["nodes"]["allocation"]]


def _start(value: Any) -> float | None:
    """22.05 writes a plain number, 0 for none."""
    if isinstance(value, int):
        return float(value) or None
    return float(value["number"]) if value["set"] else None


def _held(detail: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """Counts by name, and the indexes of the GPUs that they are on.

    Unlike a node's, a job's shards are told for every GPU of the node, in their order; by
    22.05 as the one GPU that they are of.
    """
    gres: dict[str, int] = {}
    gpus: set[int] = set(gpu_indexes(detail))
    for word, inside in _details(detail):
        if inside.startswith("CNT:"):
            gres[word] = int(inside.removeprefix("CNT:"))
        else:
            name, _, count = word.rpartition(":")
            # 22.05 tells 0 of each type that a node has and the job does not.
            gres |= {name: int(count)} if int(count) else {}
            gpus |= _indexes(inside[4:] if inside.startswith("IDX:") else "")
            used = enumerate(re.findall(r"(\d+)/\d+", inside))
            gpus |= {place for place, number in used if int(number)}
    return gres, tuple(sorted(gpus))


def listed(cells: Sequence[str]) -> Iterator[JobOnNode]:
    """A line of squeue, which does not tell GPUs."""
    job, restarts, uid, user, start, nodes, tres = cells
    gres = {
        name: int(count)
        for item in tres.split(",")
        for name, _, count in [item.removeprefix("gres:").removeprefix("gres/").rpartition(":")]
        if name and count.isdigit()
    }
    for node in hostlist.expand(nodes) if nodes else ():
        since = float(start) if start.isdigit() else None
        name = uid if user == "nobody" else user
        yield JobOnNode(int(job), int(restarts), name, node, since, gres, None)


def _configured(text: str) -> dict[str, int]:
    """`gpu:h100:2(S:0-1),mig:1g.10gb:14` as name and count."""
    plain = re.sub(r"\([^)]*\)", "", text)
    pairs = [item.rpartition(":") for item in plain.split(",")]
    return {name: int(count) for name, _, count in pairs if count.isdigit()}


def accounting_row(line: str) -> AccountingRow:
    """One line of sacct as a row; SlurmFault for one that is none."""
    cells = line.split("|")
    if len(cells) != SACCT_CELLS or not cells[0].isdecimal():
        raise SlurmFault(
            f"sacct printed {line[:100]!r}, not a run of a job",
            remedy="compare `sacct --version` with that of slurmdbd",
        )
    job, user, nodes, state, start, end, tres = cells
    pairs = [item.partition("=") for item in tres.split(",")]
    return AccountingRow(
        job_id=int(job),
        user=user,
        nodes=nodes,
        # "CANCELLED by 0"
        state=state.partition(" ")[0],
        start=_seconds(start),
        end=_seconds(end),
        gres={
            name.removeprefix("gres/"): int(count)
            for name, _, count in pairs
            if name.startswith("gres/")
        },
    )


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None
