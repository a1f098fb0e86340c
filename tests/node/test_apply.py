"""`export`, `assert`, `apply`: what was written is what is found, and nobody loses anything."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from slurm_mig.cli._layouts import meant, read
from slurm_mig.mig.allocation import Owner
from slurm_mig.node.apply import Static
from slurm_mig.simulator.faults import Rule
from tests.kit.gpus import A100, H100
from tests.kit.hooks import STAMP, records
from tests.kit.retirement import CHANGING, made, marks, retire
from tests.kit.users import cli_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site

pytestmark = pytest.mark.root

STATIC = '[gpus]\nmanaged = "none"\n'
ROOT = Owner(None, user="root")


def layout(site: Site, body: str, name: str = "layout.toml") -> str:
    path = site.root / name
    path.write_text(f"version = 1\n{body}" if name.endswith("toml") else body)
    return str(path)


def put(site: Site, body: str) -> None:
    done = site.cli("apply", layout(site, body))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def static(make_site: Callable[..., Site]) -> Site:
    """Two H100 that nobody carves."""
    return make_site(H100, H100, config=STATIC)


PLACED = (
    '[[gpus]]\nminor = 0\ninstances = ["3g.40gb@4", { instance = "2g.20gb@0", compute = [1, 1] }]\n'
)


def test_from_nothing_and_round(static: Site) -> None:
    """Applied, asserted, exported, asserted again; applied again it does nothing."""
    path = layout(static, PLACED)
    assert static.cli("assert", path).returncode == 24
    done = static.cli("apply", path)
    assert done.stdout.splitlines() == [
        "GPU 0: makes 3g.40gb@4",
        "GPU 0: makes 2g.20gb@0 with 1c+1c in it",
    ]
    assert static.cli("assert", path).stdout == f"1 GPUs are as {path} says\n"
    exported = static.root / "out.toml"
    exported.write_text(static.cli("export").stdout)
    assert static.cli("assert", str(exported)).returncode == 0
    ids = [item.gi_id for item in static.machine.board(0).instances]
    assert static.cli("apply", str(exported)).stdout == (
        "GPU 0 is as declared\nGPU 1 is as declared\n"
    )
    assert [item.gi_id for item in static.machine.board(0).instances] == ids


def test_mig_parteds_file(static: Site) -> None:
    """Written, read, and applied elsewhere; its numbers are NVML's."""
    put(static, "[[gpus]]\nminor = 1\ncounts = { '1g.10gb' = 3, '3g.40gb' = 1 }\n")
    text = static.cli("export", "-i", "1", "--format", "mig-parted", "--name", "mine").stdout
    devices = {"1g.10gb": 3, "3g.40gb": 1}
    assert yaml.safe_load(text)["mig-configs"]["mine"] == [
        {"devices": [1], "mig-enabled": True, "mig-devices": devices}
    ]
    path = layout(static, text, "layout.yaml")
    assert static.cli("assert", path, "--name", "mine").returncode == 0
    both = layout(static, text.replace("devices: [1]", "devices: all"), "both.yml")
    done = static.cli("assert", both, "--json")
    rows = {row["gpu"]: row["differences"] for row in json.loads(done.stdout)}
    assert (done.returncode, rows[1]) == (24, [])
    assert rows[0] == ["1g.10gb: 0 there, 3 declared", "3g.40gb: 0 there, 1 declared"]
    assert static.cli("apply", both).returncode == 0
    assert len(made(static, 0)) == 4


def test_only_what_differs_is_touched(static: Site) -> None:
    """The others are the same instances afterwards; a dry run has said it and done nothing."""
    put(static, PLACED)
    before = {item.serial: item.start for item in static.machine.board(0).instances}
    path = layout(static, '[[gpus]]\nminor = 0\ninstances = ["3g.40gb@4", "1g.10gb@0"]\n')
    shown = static.cli("apply", path, "--dry-run").stdout.splitlines()
    assert [line.partition(" (")[0] for line in shown] == [
        "GPU 0: destroys 2g.20gb@0 with 1c+1c in it",
        "GPU 0: makes 1g.10gb@0",
    ]
    assert {item.serial: item.start for item in static.machine.board(0).instances} == before
    assert static.cli("apply", path).returncode == 0
    after = {item.serial: item.start for item in static.machine.board(0).instances}
    assert [serial for serial in after if serial in before] == [
        serial for serial, start in before.items() if start == 4
    ]
    rows = json.loads(static.cli("audit", "--json").stdout)
    assert "another layout was applied" in json.dumps(rows)


def test_a_managed_gpu_is_refused(site: Site) -> None:
    """Hooks carve it; nothing is changed on the others either."""
    path = layout(site, "[[gpus]]\nminor = 0\ncounts = { '1g.10gb' = 1 }\n")
    for more in ([], ["--dry-run"]):
        done = site.cli("apply", path, *more)
        assert (done.returncode, "is managed" in done.stderr) == (23, True)
    assert made(site) == []


def test_a_retired_gpu_keeps_its_mark_true(site: Site) -> None:
    """A later `retire` still knows what is ours there."""
    retire(site, "3g.40gb:1")
    put(site, "[[gpus]]\nminor = 0\ncounts = { '1g.10gb' = 2 }\n")
    assert marks(site)["0"].count("1g.10gb@") == 2
    assert retire(site, "7g.80gb:1") == "7g.80gb@0"
    assert made(site) == ["7g.80gb@0"]


def test_a_job_that_is_still_there(make_site: Callable[..., Site]) -> None:
    """The GPU was taken out of `managed` under it: its slice stays."""
    site = make_site(H100)
    site.prolog(7, STAMP)
    before = made(site)
    site.config.write_text(site.config.read_text() + STATIC)
    done = site.cli("apply", layout(site, "[[gpus]]\nminor = 0\n"))
    assert (done.returncode, "job 7" in done.stderr) == (23, True)
    assert made(site) == before


def test_an_instance_in_use_stays(static: Site) -> None:
    """Named with its holder, before anything is changed on any GPU."""
    put(static, "[[gpus]]\nminor = 1\ncounts = { '1g.10gb' = 1 }\n")
    node = static.node()
    (found,) = node.driver.instances(node.driver.gpus()[1])
    node.close()
    uuid = found.compute[0].uuid
    home = str(static.root / "sim")
    assert static.cli(
        "simulator", "hold", home, "--pid", str(os.getpid()), "--uuid", uuid
    ).returncode == 0  # fmt: skip
    path = layout(
        static,
        "[[gpus]]\nminor = 0\ncounts = { '7g.80gb' = 1 }\n"
        "[[gpus]]\nminor = 1\ncounts = { '7g.80gb' = 1 }\n",
    )
    for more in ([], ["--dry-run"]):
        done = static.cli("apply", path, *more)
        assert done.returncode == 24, done.stderr
        assert "has to go and is in use by" in done.stderr
    assert (made(static, 0), [name.partition("@")[0] for name in made(static, 1)]) == (
        [], ["1g.10gb"],
    )  # fmt: skip


def test_mig_mode_as_declared(make_site: Callable[..., Site]) -> None:
    """On where it is off, and off once nothing is left in it."""
    site = make_site(H100, config=STATIC, mig=False)
    path = layout(site, "[[gpus]]\nminor = 0\ncounts = { '7g.80gb' = 1 }\n")
    assert "switches MIG mode on" in site.cli("apply", path, "--dry-run").stdout
    assert site.cli("apply", path).returncode == 0
    assert made(site) == ["7g.80gb@0"]
    put(site, "[[gpus]]\nminor = 0\nmig = false\n")
    assert site.cli("assert", layout(site, "[[gpus]]\nminor = 0\nmig = false\n")).returncode == 0


def test_mig_mode_that_needs_a_reset(make_site: Callable[..., Site]) -> None:
    """On Ampere: done where the GPU is idle, else refused by the driver and said."""
    site = make_site(A100, config=STATIC, mig=False)
    path = layout(site, "[[gpus]]\nminor = 0\ncounts = { '1g.10gb' = 1 }\n")
    user = subprocess.Popen(["sleep", "600"])
    site.machine.hold(user.pid, site.machine.gpus[0]["uuid"])
    try:
        done = site.cli("apply", path)
    finally:
        user.kill()
        user.wait()
    # As `enable` says it.
    assert (done.returncode, "In use by another client" in done.stderr) == (15, True), done.stderr
    assert site.cli("assert", path).returncode == 24
    assert site.cli("apply", path).returncode == 0
    assert [name.partition("@")[0] for name in made(site)] == ["1g.10gb"]


@pytest.mark.parametrize("effect", ["kill-before", "kill-after"])
@pytest.mark.parametrize("call", CHANGING)
def test_killed_and_applied_again(make_site: Callable[..., Site], call: str, effect: str) -> None:
    """Wherever it stops, the second time finishes, and every record is closed."""
    site = make_site(H100, config=STATIC)
    target = "[[gpus]]\nminor = 0\ninstances = ['4g.40gb@0', '1g.10gb@4']\n"
    for skip in range(4):
        # Something of each kind that goes; MIG mode off at first where it has to be switched.
        with site.machine.change(0) as board:
            board.instances.clear()
            board.set_mode(call != "nvmlDeviceSetMigMode", busy=False)
        if call != "nvmlDeviceSetMigMode":
            put(site, PLACED)
        site.machine.faults.add(Rule(call, effect, skip, 1))
        code = site.cli("apply", layout(site, target)).returncode
        site.machine.faults.set([])
        assert code in (0, -9)
        put(site, target)
        assert made(site) == ["1g.10gb@4", "4g.40gb@0"]
        assert [record for record in records(site) if record.open] == []
        if code == 0:
            break
    assert 1 <= skip < 4


def test_not_for_users(static: Site, public_tmp: Path) -> None:
    """The driver lists instances to root alone."""
    file = public_tmp / "x.toml"
    file.write_text("version = 1\n[[gpus]]\nminor = 0\n")
    static.config.chmod(0o644)
    for verb in (["export"], ["assert", str(file)], ["apply", str(file)]):
        done = cli_as(64001, *verb, SLURM_MIG_CONFIG=str(static.config))
        assert done.returncode == 21, (verb, done.stderr)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "version = ", "is not TOML"),
        ("a.yaml", "a: [", "is not YAML"),
        ("a.toml", "version = 1\n[[gpus]]\nminor = 9\n", "no GPU 9 here; there are 0 ("),
    ],
)
def test_files_that_say_nothing(static: Site, name: str, text: str, says: str) -> None:
    """One line, exit code 2."""
    path = static.root / name
    path.write_text(text)
    done = static.cli("assert", str(path))
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert static.cli("assert", str(path.with_name("none.toml"))).returncode == 2


def test_looking_changes_nothing(static: Site) -> None:
    """`look` is what a dry run calls."""
    node = static.node()
    entries = read(Path(layout(static, PLACED)), None)
    ((gpu, declared),) = meant(node, entries)
    steps = Static(node, ROOT).look(gpu, declared)
    node.close()
    assert [str(item) for item in steps.missing] == ["3g.40gb@4", "2g.20gb@0 with 1c+1c in it"]
    assert made(static) == []
