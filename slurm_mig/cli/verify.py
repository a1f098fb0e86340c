"""`slurm-mig verify`: try, as users, to reach what is not theirs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slurm_mig.cli._node import open_node
from slurm_mig.cli._options import JobId, json_option
from slurm_mig.cli._print import folded, paint, print_json, table, working
from slurm_mig.cli._usage import OnePath
from slurm_mig.errors import Exposed, UsageFault
from slurm_mig.node.install_paths import DEFAULT_HOOKS
from slurm_mig.node.node import require_root
from slurm_mig.node.verify import ROOTS, Isolation

if TYPE_CHECKING:
    from slurm_mig.node.verify import AccessTry, Subject

#: nobody, where no job holds a slice (Linux's overflow uid; proc(5), overflowuid).
NOBODY = 65534

MORE = "; --all lists each"

NOTE = (
    "File modes were tried, the guard that always holds; this process is in no job's cgroup, "
    "so what ConstrainDevices denies besides does not show."
)


@click.command()
@click.option("--job", "job_id", type=JobId(), help="Only as this job's user.")
@click.option(
    "--uid",
    type=click.IntRange(1, 2**32 - 2),
    help="As this user; as nobody (65534) if no job holds a slice.",
)
@click.option(
    "--hooks",
    default=DEFAULT_HOOKS,
    show_default=True,
    type=OnePath(path_type=Path),
    help="Directory of the hooks.",
)
@click.option("--all", "everything", is_flag=True, help="Each try, also those that went well.")
@json_option
def command(
    job_id: int | None, uid: int | None, hooks: Path, everything: bool, as_json: bool
) -> None:
    """Try, as the user of each job, to open every neighbour's slice and what hooks rely on."""
    require_root()
    if job_id is not None and uid is not None:
        raise UsageFault("--job and --uid both say who tries; give one of them")
    with open_node(look=True) as node:
        isolation = Isolation(node, hooks.absolute())
        subjects = isolation.subjects(job_id, uid) or isolation.subjects(None, NOBODY)
        with working("trying"):
            tried = [item for subject in subjects if subject.uid for item in isolation.by(subject)]
            tried += isolation.by_root()
    notes = [NOTE, *_of_root(subjects)]
    if as_json:
        print_json({"node": node.name, "tries": [t.to_dict() for t in tried], "notes": notes})
    else:
        _print(tried, notes, everything=everything)
    failed = [item for item in tried if item.verdict == "fail"]
    if failed:
        first = failed[0]
        raise Exposed(
            f"{len(failed)} of {len(tried)} tries failed, the first: {first.action} {first.path} "
            f"({first.item}) is {first.found}",
            remedy="see the output and docs/security.md",
        )


def _of_root(subjects: list[Subject]) -> list[str]:
    return [
        f"Job {item.job_id} runs as root: nothing is closed to root."
        for item in subjects
        if not item.uid
    ]


def _print(tried: list[AccessTry], notes: list[str], *, everything: bool) -> None:
    """Failures first, each in full; what went well as a count for each who tried, or in full."""
    for item in sorted(tried, key=lambda item: item.verdict != "fail"):
        if everything or item.verdict == "fail":
            click.echo("\n".join(_lines(item)))
    counts = Counter((_who(item), item.verdict) for item in tried)
    table(
        ("AS", "FAILED", "PASSED", "NOT PROMISED"),
        [
            (who, *(counts[who, verdict] for verdict in ("fail", "pass", "info")))
            for who in dict.fromkeys(map(_who, tried))
        ],
    )
    failed = sum(item.verdict == "fail" for item in tried)
    words = f"{failed} of {len(tried)} tries failed"
    click.echo(paint(words, "bad" if failed else "good") + ("" if everything else MORE))
    for note in notes:
        click.echo(folded(note, 0))


def _lines(item: AccessTry) -> list[str]:
    colour = {"fail": "bad", "pass": "good"}.get(item.verdict, "quiet")
    return [
        f"{paint(item.verdict, colour)}  {folded(f'{item.item}: {item.action}', 6)}",
        # A path stays one word, so that it can be taken over.
        f"      {item.path}",
        f"      as {_who(item)}: {item.found}",
    ]


def _who(item: AccessTry) -> str:
    if item.uid is None:
        return ROOTS
    return f"uid {item.uid}" if item.job_id is None else f"job {item.job_id} (uid {item.uid})"
