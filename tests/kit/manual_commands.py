"""Which of the manual's commands run where, and what they need."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kit import pages

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Pages that a test follows as a whole.
FOLLOWED = {
    "quickstart.md": "tests/cluster/test_quickstart.py",
    "rollout.md": "tests/cluster/test_rollout.py",
}

#: Commands that no test runs as they stand, and why.
EXCUSED = {
    r"make (demo|test)\b": "tests/cluster/test_demo.py and continuous integration run them",
    r"python3 -m venv \S+$": "tests/cluster/test_quickstart.py makes one",
    r"sacct -a -X -P\b|slurm-mig (learn|simulate) --sacct\b": "a site's own jobs",
    r"(.*&& *)?\S*pip install\b": "needs the network; test_quickstart.py installs wheels",
}

#: What only a Slurm can answer.
SLURM = re.compile(
    r"(sbatch|srun|salloc|squeue|scontrol|scancel|sacctmgr|sacct|sinfo)\b|.*\s--(slurm|cluster|accounting)\b"
    r"|slurm-mig reconcile(?!.*--(no-slurm|boot))|slurm-mig job\b"
)

#: What may be run: the rest needs a line above.
PROGRAMS = re.compile(
    r"(/opt/slurm-mig\S*/bin/)?slurm-mig |export |cat >|systemctl |sqlite3 |journalctl |cp |ln "
)

#: Exit codes other than 0: by page and how the command begins, each in turn.
CODES = {
    ("audit.md", "slurm-mig audit --check"): [0, 29],
    ("admin.md", "slurm-mig status --watch"): [124],
    ("acceptance.md", "slurm-mig acceptance"): [2],
    # There is no job of that number.
    ("admin.md", "slurm-mig job 4711"): [2],
    ("troubleshooting.md", "slurm-mig job 4711"): [2],
}

#: Never end by themselves.
ENDLESS = re.compile(r".*--watch\b")
LEDGER = "/var/lib/slurm-mig/ledger.db"
WEEK = f"""{sys.executable} - <<'PYTHON'
import sys
from pathlib import Path
sys.path.insert(0, "{pages.TOP}/bench")
from slurm_mig.config import load
from slurm_mig.state.ledger import Ledger
from slurm_mig.node.node import Node
from timeline_example import Clock, week
node = Node(load(Path("/etc/slurm-mig/config.toml"), {{}}), {{"SLURMD_NODENAME": "gpu01"}})
clock = Clock()
vars(node)["ledger"] = Ledger(node.config.ledger, clock)
week(node, clock)
node.close()
PYTHON"""

#: A slice for job 4711 of alice's, by the installed Prolog.
HELD = (
    "slurm-mig install",
    (
        "SLURM_JOB_ID=4711 SLURM_JOB_UID=64001 SLURM_JOB_GID=64001 SLURM_JOB_USER=alice "
        "SLURM_JOB_GPUS=0 SLURM_JOB_COMMENT=slurm-mig=1,3g.40gb/9/14:1 SLURMD_NODENAME=gpu01 "
        "SLURM_SCRIPT_CONTEXT=prolog_slurmd /etc/slurm-mig/hooks/prolog 2>>/var/log/slurm-mig.log"
    ),
)

#: What audit.md's second check finds.
EDITS = "; ".join(
    (
        "DROP TRIGGER event_no_update",
        "DROP TRIGGER event_no_delete",
        "UPDATE event SET at = at + 1 WHERE seq = 96",
        "DELETE FROM event WHERE seq = 200",
        "UPDATE allocation SET user = 'eve' WHERE number = 101",
    )
)

#: What a block finds: root's commands before it, by page and number of the block there, or what
#: stands in the block. `fleet.toml` is the page's own description of a fleet.
BEFORE: dict[tuple[str, int | str], Sequence[str]] = {
    ("audit.md", 0): ["export SLURMD_NODENAME=gpu01", WEEK],
    ("audit.md", 3): [
        f"cp -a {Path(LEDGER).parent} /var/lib/kept",
        f'sqlite3 {LEDGER} "{EDITS}"',
    ],
    ("audit.md", 4): [
        f"rm -r {Path(LEDGER).parent} && mv /var/lib/kept {Path(LEDGER).parent}",
        "export SLURMD_NODENAME=gpu01",
        *HELD,
    ],
    ("audit.md", 6): ["mkdir -p /shared/ledgers"],
    ("security.md", 0): HELD,
    ("upgrade.md", "/opt/slurm-mig-new"): ["cp -a /opt/slurm-mig /opt/slurm-mig-new"],
    ("admin.md", "slurm-mig generate fleet.toml"): ["fleet.toml"],
    ("from-static-mig.md", "slurm-mig generate fleet.toml"): ["fleet.toml"],
}


def classified(text: str) -> str:
    """`excused`, `slurm`, `here`, or empty."""
    if any(re.match(pattern, text) for pattern in EXCUSED):
        return "excused"
    if SLURM.match(text):
        return "slurm"
    return "here" if PROGRAMS.match(text) else ""


def found(page: str) -> list[pages.Block]:
    (path,) = [path for path in pages.PAGES if path.name == page]
    return list(pages.blocks(path))


def runnable(block: pages.Block, *kinds: str) -> list[pages.Command]:
    return [item for item in block.commands if classified(item.text) in kinds]


def prepared(block: pages.Block, number: int, *, slurm: bool = False) -> list[str]:
    """Commands that bring about what the block takes for granted."""
    text = "\n".join(item.text for item in block.commands)
    steps: list[str] = []
    for (page, which), commands_ in BEFORE.items():
        if page == block.page and (which == number or (isinstance(which, str) and which in text)):
            # With a Slurm the ledger is that Slurm's own, and nothing is simulated history.
            steps += [step for step in commands_ if not slurm or step.startswith(("mkdir", "cp"))]
    return [fleet_file(block.page) if step == "fleet.toml" else step for step in steps]


def fleet_file(page: str) -> str:
    """The page's own description of a fleet, as the file that it is."""
    (path,) = [path for path in pages.PAGES if path.name == page]
    (text,) = re.findall(
        r"^```toml\n(\[\[nodes\]\].*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE
    )
    return f"cat >fleet.toml <<'FLEET'\n{text}FLEET"


def plain(text: str) -> list[str]:
    """Output without what differs from run to run."""
    text = re.sub(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"\1-*", text)
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def check(
    result: dict[str, Any],
    item: pages.Command | None,
    expected: dict[tuple[str, str], list[int]],
) -> None:
    """Its exit code and, where the page shows some, its output."""
    code = 0
    if item is not None:
        for (page, start), codes in expected.items():
            if item.page == page and item.text.startswith(start) and codes:
                code = codes.pop(0)
    where = f"{item.page}:{item.line}" if item else "before"
    assert result["code"] == code, f"{where}: {result}"
    if item is not None and item.printed:
        assert plain(result["out"]) == plain(item.printed), where
