"""Every command that changes a node says beforehand what it would do, and does nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
import pytest

from slurm_mig.cli import cli
from tests.kit.gpus import A100, H100
from tests.kit.hooks import STAMP, slurm_commands
from tests.kit.ways import helped

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site

pytestmark = pytest.mark.root

#: Verbs that change GPUs or files of the system.
CHANGING = (
    "apply", "create", "destroy", "disable", "enable", "install", "reconcile", "reset", "retire",
)  # fmt: skip


def state(site: Site) -> tuple[object, ...]:
    """Everything that one of them could change."""
    boards = [
        (
            (board.mig_current, board.mig_pending),
            [(item.serial, item.start) for item in board.instances],
        )
        for board in map(site.machine.board, range(len(site.machine.gpus)))
    ]
    node = site.node()
    events = node.ledger.last_event()
    records = [(record.number, record.phase) for record in node.ledger.all_open()]
    node.close()
    files = sorted(str(path) for path in site.run.rglob("*") if "locks" not in path.parts)
    return boards, events, records, files


def dry(site: Site, *arguments: str, code: int = 0) -> str:
    before = state(site)
    done = site.cli(*arguments, "--dry-run", SLURMD_NODENAME="n1")
    assert done.returncode == code, done.stderr
    assert state(site) == before
    return done.stdout + done.stderr


@pytest.mark.parametrize("verb", CHANGING)
def test_every_one_has_it(verb: str) -> None:
    """Under the same name."""
    command = cli.get_command(click.Context(cli), verb)
    assert command
    assert "--dry-run" in [word for item in command.params for word in item.opts]


def test_create(site: Site) -> None:
    """The plan, or the refusal."""
    assert dry(site, "create", "3g.40gb", "-i", "0").startswith("GPU 0: would make 3g.40gb@4 (best")
    assert json.loads(dry(site, "create", "3g.40gb", "--json"))["gpu"] == 0
    site.cli("create", "7g.80gb", "-i", "0")
    assert "no placement for" in dry(site, "create", "3g.40gb", "-i", "0", code=5)


def test_destroy_and_reset(site: Site) -> None:
    """With whose it is; refused as without it."""
    made = json.loads(site.cli("create", "3g.40gb", "-i", "1", "--json").stdout)
    uuid = made["instances"][0]["uuid"]
    assert "GPU 1: 3g.40gb@4 would be destroyed" in dry(site, "destroy", uuid)
    with site.machine.change(0) as board:
        board.create(19, None, busy=False)
    gi_id = site.machine.board(0).instances[0].gi_id
    assert "in no record" in dry(site, "destroy", f"0:{gi_id}", code=23)
    assert "(in no record)" in dry(site, "destroy", f"0:{gi_id}", "--foreign")
    assert dry(site, "reset", "--foreign").count("would be destroyed") == 2
    site.cli("reset", "--foreign")
    assert "nothing to destroy" in dry(site, "reset")
    site.prolog(7, STAMP)
    dry(site, "reset", code=23)
    assert "job 7" in dry(site, "reset", "--force")


def test_enable_and_disable(make_site: Callable[..., Site]) -> None:
    """With the reset that it takes on Ampere; refused while instances exist."""
    site = make_site(H100, A100, mig=False)
    assert dry(site, "enable") == (
        "GPU 0: MIG mode would be switched on\n"
        "GPU 1: MIG mode would be switched on, with a reset of the GPU\n"
    )
    assert "is off already" in dry(site, "disable", "-i", "0")
    site.cli("enable")
    site.cli("create", "1g.10gb", "-i", "0")
    assert "MIG mode stays on: 1g.10gb@6 exist" in dry(site, "disable", "-i", "0", code=23)


def test_reconcile(site: Site) -> None:
    """What it then does is what it said; a job that lives is left out."""
    slurm_commands(site, squeue="echo 7")
    site.prolog(7, STAMP)
    site.prolog(8, STAMP, gpus="1")
    shown = dry(site, "reconcile")
    assert "would be done: job 8" in shown
    assert "would be taken down: its job is no longer on this node" in shown
    assert "job 7" not in shown
    done = site.cli("reconcile")
    assert "done: job 8" in done.stdout
    assert "job 7" not in done.stdout
    assert dry(site, "reconcile") == "ledger and hardware agree\n"
    site.cli("simulator", "reboot", str(site.root / "sim"))
    assert "lost with a reboot" in dry(site, "reconcile")
    dry(site, "reconcile", "--boot", code=2)


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--json"),
        ("metrics",),
        ("verify",),
        ("export",),
        ("gpus",),
        ("profiles",),
        ("enable", "--dry-run"),
        ("disable", "--dry-run"),
        ("create", "1g.10gb", "--dry-run"),
        ("reset", "--dry-run"),
        ("reconcile", "--no-slurm", "--dry-run"),
        ("retire", "--layout", "3g.40gb:2", "--dry-run"),
    ],
    ids=" ".join,
)
def test_looking_makes_nothing(site: Site, words: tuple[str, ...]) -> None:
    """Where no hook has run there is no ledger, and none because somebody looked."""
    done = site.cli(*words)
    # verify finds faults with where this checkout lies.
    assert done.returncode in ((0, 27) if words == ("verify",) else (0,)), done.stderr
    assert (site.root / "state").exists() is False
    # A helper, where there is one, has been there.
    assert site.run.exists() is helped()
