"""The commands: right answers, one line per mistake, documented exit codes, nothing half done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.cli import VERBS
from slurm_mig.mig.allocation import WHOLE_MIG_OFF, Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.transaction import whole_gpu
from tests.kit.cli import commands, parsed, refused
from tests.kit.gpus import A30, A100, A100_40, H100, RTX
from tests.kit.hooks import STAMP, slurm_commands, squeue
from tests.kit.site import Site
from tests.kit.users import cli_as

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root


# -- profiles ---------------------------------------------------------------------


def test_profiles_of_an_h100_digit_for_digit(make_site: Callable[..., Site]) -> None:
    """What `nvidia-smi mig -lgip` prints on an H100 80GB HBM3."""
    lines = make_site(H100).cli("profiles").stdout.splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "GPU PROFILE ID FREE/TOTAL GIB P2P SM DEC ENC CE JPEG OFA",
        "0 1g.10gb 19 7/7 9.75 No 16 1 0 1 1 0",
        "0 1g.10gb+me 20 1/1 9.75 No 16 1 0 1 1 1",
        "0 1g.20gb 15 4/4 19.62 No 26 1 0 1 1 0",
        "0 2g.20gb 14 3/3 19.62 No 32 2 0 2 2 0",
        "0 3g.40gb 9 2/2 39.50 No 60 3 0 3 3 0",
        "0 4g.40gb 5 1/1 39.50 No 64 4 0 4 4 0",
        "0 7g.80gb 0 1/1 79.25 No 132 7 0 8 7 1",
    ]


def test_profiles_for_everybody(site: Site) -> None:
    """In MIG mode the driver tells placements and what is free to root alone: the rest is shown."""
    mine, roots = (
        [run("--config", str(site.config), "profiles", *more) for more in ((), ("--json",))]
        for run in (lambda *words: cli_as(64001, *words), site.cli)
    )
    assert [(done.returncode, done.stderr) for done in mine] == [(0, "")] * 2
    rows = [line.split() for line in mine[0].stdout.splitlines()]
    assert [row[3] for row in rows[1:3]] == ["-/7", "-/1"]
    hidden = {"free": None, "placements": None}
    assert parsed(mine[1]) == [row | hidden for row in parsed(roots[1])]


def test_profiles_as_json(make_site: Callable[..., Site]) -> None:
    """The same, for programs; unknown numbers are null."""
    rows = parsed(make_site("h20-96gb", mig=False).cli("profiles", "--json"))
    first = rows[0]
    assert (first["profile"], first["id"], first["total"]) == ("1g.12gb", 19, 7)
    assert (first["free"], first["memory_gib"], first["sm"]) == (7, None, None)
    text = make_site("h20-96gb", mig=False).cli("profiles").stdout
    assert " ".join(text.splitlines()[1].split()) == "0 1g.12gb 19 7/7 ? No ? ? ? ? ? ?"


def test_free_counts_follow_what_is_there(site: Site) -> None:
    """As the driver counts, not as we do."""
    site.prolog(7, STAMP)
    rows = {r["profile"]: r["free"] for r in parsed(site.cli("profiles", "--gpu", "0", "--json"))}
    assert (rows["1g.10gb"], rows["3g.40gb"], rows["4g.40gb"], rows["7g.80gb"]) == (4, 1, 1, 0)


# -- gpus, weights ------------------------------------------------------------------


def test_gpus(make_site: Callable[..., Site]) -> None:
    """What is supported, and what this node has."""
    site = make_site(H100, RTX, config="[gpus]\nmanaged = [0]\n")
    data = parsed(site.cli("gpus", "--json"))
    assert len(data["supported"]) == 23
    assert [(gpu["product"], gpu["managed"]) for gpu in data["node"]] == [
        ("h100-80gb-sxm", True),
        ("rtx-pro-6000-blackwell", False),
    ]
    shown = site.cli("gpus").stdout
    assert re.match(r"GPUs of \S+ \(driver 580", shown)
    assert re.search(r"^thor-igpu +\? +unknown$", shown, re.MULTILINE)


def test_the_list_of_products_needs_no_driver(tmp_path: Path) -> None:
    """On a login node."""
    site = Site(tmp_path, None, tmp_path / "config.toml")  # type: ignore[arg-type]
    site.config.write_text('[driver]\nlibrary = "/none.so"\n')
    assert site.cli("gpus", "--supported").returncode == 0
    done = site.cli("gpus")
    assert done.returncode == 12
    assert "a30-24gb" in done.stdout
    assert "/none.so" in done.stderr


@pytest.mark.parametrize("name", [H100, A100])
def test_weights(site: Site, name: str) -> None:
    """In the form other tools read."""
    data = parsed(site.cli("weights", "--gpu", name, "--json"))
    assert set(data) == {"capacity", "weights", "false_accepts", "false_rejects"}
    assert (data["capacity"], data["false_accepts"], data["false_rejects"]) == (31, 0, 0)
    assert data["weights"]["3g.40gb"] == 14
    assert "31 shards" in site.cli("weights", "--gpu", name).stdout


def test_a_name_that_begins_others(site: Site) -> None:
    """Is taken for the GPU with exactly that name, and that is said."""
    done = site.cli("weights", "--gpu", "NVIDIA H100")
    assert done.stdout.startswith("NVIDIA H100: 31 shards")
    assert "is taken for h100-64gb-sxm" in done.stderr
    assert "NVIDIA H100 80GB HBM3" in done.stderr
    assert site.cli("weights", "--gpu", H100).stderr == ""


def test_weights_of_an_unknown_product(site: Site) -> None:
    """Which numbers are missing."""
    refused(site.cli("weights", "--gpu", "thor-igpu"), 2, "unknown the name NVML reports")
    refused(site.cli("weights", "--gpu", "GeForce"), 2, "'GeForce' is not in the catalogue")


# -- create, destroy, reset, enable, disable -------------------------------------------


def test_a_life_by_hand(site: Site) -> None:
    """Made by name or id, shown, audited, destroyed by UUID or by GPU and id."""
    made = parsed(site.cli("create", "3g.40gb", "--gpu", "0", "--json"))
    uuid = made["instances"][0]["uuid"]
    assert (
        "1g.10gb@0 is GPU instance" in site.cli("create", "19", "--gpu", "0", "--start", "0").stdout
    )
    shown = parsed(site.cli("status", "--json"))["gpus"][0]
    assert [(i["profile"], i["start"], i["phase"]) for i in shown["instances"]] == [
        ("1g.10gb", 0, "active"),
        ("3g.40gb", 4, "active"),
    ]
    assert parsed(site.cli("destroy", uuid, "--json"))[0]["phase"] == "released"
    gi_id = shown["instances"][0]["gi_id"]
    assert site.cli("destroy", f"0:{gi_id}").returncode == 0
    assert site.machine.board(0).instances == []
    rows = parsed(site.cli("audit", "--json"))
    assert [(row["slice"], row["phase"]) for row in rows] == [
        ("3g.40gb@4", "released"),
        ("1g.10gb@0", "released"),
    ]


#: Nobody else's, so that what is there was made by the command.
NOWHERE = f"/tmp/slurm-mig-never-made-{os.getpid()}"
NEW = ["simulator", "create", NOWHERE, "--gpu"]
FOR = ["generate", "--node"]
ONE = [*FOR, f"n1={H100}:1"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["create", "9g.90gb", "--gpu", "0"], 4, "9g.90gb is not offered here; offered: 1g.10gb"),
        (["create", "banana", "--gpu", "0"], 3, "'banana' is not a MIG profile name; write"),
        (["create", "77", "--gpu", "0"], 4, "profile id 77"),
        (["create", "3g.40gb", "--gpu", "5"], 2, "device minors here: 0, 1"),
        (["create", "3g.40gb", "--gpu", "0", "--start", "1"], 4, "it can at 0, 4"),
        (["create", "5c.7g.80gb", "--gpu", "0"], 4, "no compute instance of 5 slices here"),
        (["destroy", "MIG-0"], 2, "no instance 'MIG-0' here"),
        (["destroy", "0:9"], 2, "no instance '0:9' here"),
        (["profiles", "--gpu", "x"], 2, "no MIG-capable GPU 'x'"),
        (["audit", "--since", "yesteryear"], 2, "time 'yesteryear': write 2026-03-01"),
        (["generate", "--node", "n1"], 2, "HOSTS=GPU:COUNT"),
        (["generate", "--node", f"n1={H100}:0"], 2, "a count from 1 to 32"),
        (["generate", "--node", f"n1={H100}:x"], 2, "a count from 1 to 32"),
        (["generate", "--node", "n1=GeForce:1"], 2, "not in the catalogue"),
        ([*FOR, f"n1={H100}:" + "9" * 5000], 2, "a count from 1 to 32"),
        ([*FOR, f"n 1={H100}:1"], 2, "'n 1' is no host name"),
        ([*FOR, f"n[1-={H100}:1"], 2, "host list 'n[1-'"),
        ([*FOR, f"n[3-1]={H100}:1"], 2, "range 3-1 goes down"),
        ([*FOR, f"n1;rm={H100}:1"], 2, "'n1;rm' is no host name"),
        ([*ONE, "--node", f"n1={A30}:1"], 2, "host 'n1' is named twice"),
        ([*FOR, f"n[1-3]={H100}:1", "--node", f"n2={A30}:1"], 2, "in 'n[1-3]' and 'n2'"),
        ([*ONE, "--gpu-type", f"{H100}=bad type"], 2, "'bad type' is no type name; write"),
        ([*ONE, "--gpu-type", f"{H100}=a:b"], 2, "'a:b' is no type name"),
        ([*ONE, "--gpu-type", f"{A30}=x"], 2, "no node has it; they have h100-80gb-sxm"),
        ([*ONE, "--gpu-type", f"{H100}=x", "--gpu-type", "h100-80gb-sxm=y"], 2, "twice"),
        ([*ONE, "--alias", "a=1g.10gb", "--alias", "a=2g.20gb"], 2, "names 'a' twice"),
        ([*ONE, "--hooks", "rel"], 2, "--hooks 'rel': write an absolute path"),
        ([*ONE, "--hooks", ""], 2, "--hooks '': write an absolute path"),
        ([*ONE, "--hooks", "/a\nb"], 2, "write an absolute path"),
        ([*ONE, "--out", "/proc/x"], 10, "write /proc/x: "),
        ([*ONE, "--out", ""], 2, "'' is no path"),
        (["install", "--only", "hooks", "--hooks", "/proc/x"], 10, "make /proc/x: "),
        (["create", "9" * 5000, "--gpu", "0"], 3, "is not a MIG profile name"),
        (["audit", "--job", "9" * 23], 2, "is not in the range 1<=x<=4294967295"),
        (["audit", "--job", "x"], 2, "Allowed: whole numbers from 1 to 4294967295"),
        (["audit", "--since", "nan"], 2, "time 'nan': write 2026-03-01"),
        (["learn", "t", "--gpu", "NVIDIA A30", "--load", "nan"], 2, "nan is not in the range"),
        (["acceptance", "--gpu", "0", "--patience", "nan"], 2, "nan is not in the range"),
        (["learn", "t", "--gpu", "NVIDIA A30", "-o", ""], 2, "is no path"),
        (["audit", "--until", "inf"], 2, "time 'inf'"),
        (["audit", "--since", "20260302", "--until", "20260301"], 2, "is after --until 20260301"),
        (["audit", "--user", ""], 2, "--user is empty"),
        (["audit", "--uuid", "\udcff"], 2, "--uuid '\\udcff' is not UTF-8"),
        (["--config", "", "status"], 2, "'' is no path"),
        (["--config", "/", "status"], 11, "config /: Is a directory"),
        (["stauts"], 2, "no command 'stauts', did you mean status?; commands: acceptance, apply"),
        (["simulator", "hol"], 2, "did you mean hold?"),
        (["status", "--breif"], 2, "no option --breif, did you mean --brief?"),
        (["status", "--nodes", "n1"], 2, "--nodes: choose among nodes, which takes --cluster"),
        (["frobnicate"], 2, "no command 'frobnicate'; commands: acceptance, apply, archive"),
        (["simulator", "frob"], 2, "no command 'frob'; commands: create, "),
        (["reset", "--frob"], 2, "Allowed: -i, --gpu, --force, --foreign, --dry-run"),
        (["weights"], 2, "Missing option '--gpu'; usage: "),
        (["weights", "--gpu", "h100-80gb"], 2, "did you mean h100-80gb-"),
        (["simulator", "create", "/proc/x", "--gpu", H100], 22, "make /proc/x: "),
        ([*NEW, H100, "--driver", ""], 2, "driver '': write a version such as 580"),
        ([*NEW, H100, "--driver", "xyz"], 2, "driver 'xyz'"),
        (["simulator", "create", "/tmp", "--gpu", f"{H100}:1"], 22, "not an empty directory"),
        ([*NEW, "NVIDIA RTX PRO 4500 Blackwell"], 2, "unknown profile id"),
        ([*NEW, H100, "--latency", "carve=1"], 22, "operations are"),
        ([*NEW, H100, "--latency", "init=-1"], 2, "0 to 600000"),
        (["simulator", "show", "/nowhere"], 22, "no simulated machine in /nowhere"),
    ],
)  # fmt: skip
def test_mistakes(site: Site, arguments: list[str], code: int, says: str) -> None:
    """One line naming the value and what is allowed; a documented code; nothing made."""
    refused(site.cli(*arguments), code, says)
    assert site.machine.board(0).instances == []
    assert not Path(NOWHERE).exists()


def test_weights_by_a_key_in_any_case(site: Site) -> None:
    """Named as NVML names it in the answer."""
    assert site.cli("weights", "--gpu", "H100-80GB-sxm").stdout.startswith(f"{H100}: 31 shards")


def test_create_leaves_the_mode_alone(make_site: Callable[..., Site]) -> None:
    """A GPU whose MIG mode is off is passed over, and named only when none is left."""
    site = make_site(A100, H100)
    for index in (0, 1):
        with site.machine.change(index) as board:
            board.set_mode(index == 1, busy=False)
            board.restart(power=True)
    assert site.cli("disable", "-i", "1").returncode == 0
    says = "MIG mode is off; run `slurm-mig enable --gpu"
    refused(site.cli("create", "9", "-i", "1"), 13, f"{says} 1`")
    refused(site.cli("create", "9"), 13, f"{says} 0`")
    assert site.machine.board(1).mig_current is False
    site.cli("enable", "-i", "1")
    assert "GPU 1: 3g.40gb@4" in site.cli("create", "9").stdout
    refused(site.cli("create", "0"), 5, "GPU 1")


def test_a_lost_gpu_stops_no_work_on_others(site: Site) -> None:
    """Neither by its number nor by `all`; meant itself, it is the fault."""
    site.machine.lose(0)
    made = site.cli("create", "3g.40gb")
    assert (made.returncode, made.stdout[:13]) == (0, "GPU 1: 3g.40g")
    assert site.cli("profiles", "-i", "1").returncode == 0
    assert len(parsed(site.cli("profiles", "--json"), 14)) == 7
    refused(site.cli("create", "9", "-i", "0"), 14, "GPU is lost")
    refused(site.cli("destroy", "0:1"), 14, "GPU is lost")
    refused(site.cli("destroy", "1:14"), 2, "no instance '1:14' here")
    refused(site.cli("profiles", "-i", "7"), 2, "device minors here: 1")
    assert site.cli("destroy", "1:1").returncode == 0
    site.cli("create", "3g.40gb")
    assert "GPU 1: 3g.40gb@4: released" in (done := site.cli("reset")).stdout
    assert done.returncode == 14
    assert parsed(site.cli("disable", "--json"), 14)["gpus"][0]["gpu"] == 1


def test_without_a_gpu_named_the_first_with_room_is_taken(make_site: Callable[..., Site]) -> None:
    """By profile, too: an A30's comes from the A30."""
    site = make_site(H100, A30)
    assert "GPU 0: 7g.80gb@0" in site.cli("create", "7g.80gb").stdout
    assert "GPU 1: 2g.12gb@" in site.cli("create", "2g.12gb").stdout
    refused(site.cli("create", "1g.10gb"), 5, "GPU 0")
    assert site.cli("reset").returncode == 0
    assert site.cli("disable").stdout.count("MIG mode off") == 2
    assert site.cli("enable", "-i", "1").stdout.count("MIG mode on") == 1


def test_no_room_by_hand(site: Site) -> None:
    """Its own code, and what is in the way."""
    site.cli("create", "7g.80gb", "--gpu", "0")
    refused(site.cli("create", "1g.10gb", "--gpu", "0"), 5, "taken 7g.80gb@0")


def test_a_jobs_slice_is_not_taken(site: Site) -> None:
    """Not by destroy, reset or disable, unless forced."""
    site.prolog(7, STAMP)
    for arguments in (["destroy", "0:2"], ["reset", "--gpu", "0"]):
        refused(site.cli(*arguments), 23, "job 7 of user alice holds it")
    refused(site.cli("disable", "--gpu", "0"), 23, "3g.40gb@4 exist")
    assert len(site.machine.board(0).instances) == 1
    assert site.cli("destroy", "0:2", "--force").returncode == 0
    assert site.machine.board(0).instances == []


def test_a_strangers_instance_is_not_taken(site: Site) -> None:
    """Something else may manage it; taken on request, it is on record."""
    with site.machine.change(0) as board:
        board.create(9, Placement(4, 4), busy=False)
    refused(site.cli("destroy", "0:2"), 23, "is in no record of slurm-mig's; add --foreign")
    refused(site.cli("reset", "--gpu", "all"), 23, "instances 0:2 are in no record")
    assert parsed(site.cli("status", "--json"))["gpus"][0]["instances"][0]["phase"] == "foreign"
    assert "in no record" in site.cli("status").stdout
    assert site.cli("reset", "--gpu", "all", "--foreign").returncode == 0
    assert site.machine.board(0).instances == []
    assert parsed(site.cli("audit", "--json"))[0]["slice"] == "3g.40gb@4"


def test_reset_asks_slurm_who_lives(site: Site) -> None:
    """An ended job whose Epilog never came, for the hooks were taken out; not one that runs."""
    site.prolog(7, STAMP)
    refused(site.cli("reset", "--gpu", "all"), 23, "Slurm does not say who lives")
    slurm_commands(site, squeue=squeue(7))
    refused(site.cli("reset", "--gpu", "all"), 23, "job 7 of user")
    slurm_commands(site, squeue="exit 0")
    done = site.cli("reset", "--gpu", "all")
    assert done.returncode == 0, done.stderr
    assert site.machine.board(0).instances == []


def test_reset_is_all_or_nothing(site: Site) -> None:
    """One held slice on one GPU, and nothing is touched on any."""
    site.cli("create", "3g.40gb", "--gpu", "0")
    site.prolog(7, STAMP, gpus="1")
    assert site.cli("reset", "--gpu", "all").returncode == 23
    assert len(site.machine.board(0).instances) == 1
    assert site.cli("reset", "--gpu", "all", "--force").returncode == 0
    assert [site.machine.board(index).instances for index in (0, 1)] == [[], []]


def test_a_stuck_instance(make_site: Callable[..., Site]) -> None:
    """Not success: what holds it is named, and it stays on record as quarantined."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.2\n")
    made = parsed(site.cli("create", "3g.40gb", "--gpu", "0", "--json"))
    site.machine.hold(os.getpid(), made["instances"][0]["uuid"])
    done = site.cli("reset", "--gpu", "0")
    assert done.returncode == 24
    assert f"pid {os.getpid()}" in done.stderr
    shown = site.cli("status").stdout
    assert "quarantined" in shown
    words = " ".join(shown.split())
    assert re.search(rf"stuck for \d+:\d\d, held now by pid {os.getpid()} of root \(", words)
    assert re.search(r"^stuck: 1 on GPU 0, the oldest for 0:\d\d$", shown, re.MULTILINE)
    data = parsed(site.cli("status", "--json"))
    (row,) = data["stuck"]
    assert (row["gpu"], row["slices"], 0 <= row["oldest"] < 60) == (0, 1, True)
    (item,) = data["gpus"][0]["instances"]
    assert [holder["pid"] for holder in item["holders"]] == [os.getpid()]
    assert item["holders"][0]["uids"] == [0, 0, 0, 0]
    assert item["stuck_since"] <= time.time()
    assert f"used by pid {os.getpid()}" in item["reason"]
    site.machine.let_go(os.getpid())
    assert "held now by no process that can be found" in site.cli("status").stdout
    assert site.cli("reconcile", "--no-slurm").returncode == 0
    assert site.machine.board(0).instances == []


def test_mig_mode(make_site: Callable[..., Site]) -> None:
    """On and off, one or all; what cannot be switched is said after the rest was."""
    site = make_site(H100, A100, mig=False)
    assert site.cli("enable", "--gpu", "all").stdout.count("MIG mode on") == 2
    assert parsed(site.cli("disable", "--gpu", "0", "--json"))["gpus"][0]["mig_mode"] is False
    site.machine.hold(os.getpid(), site.machine.gpus[1]["uuid"])
    done = site.cli("disable", "--gpu", "all", "--json")
    data = parsed(done, 15)
    assert [gpu["gpu"] for gpu in data["gpus"]] == [0]
    assert "GPU 1" in data["faults"][0]
    assert "off after a reset" in site.cli("status").stdout


def test_ampere_is_reset_at_once(make_site: Callable[..., Site]) -> None:
    """As the quick start says: MIG mode is on when `enable` ends, unless a process has the GPU."""
    site = make_site(A100, mig=False)
    site.machine.hold(os.getpid(), site.machine.gpus[0]["uuid"])
    assert site.cli("enable").returncode == 15
    site.machine.let_go(os.getpid())
    assert "MIG mode on" in site.cli("enable").stdout
    assert site.prolog(7, "slurm-mig=1,3g.40gb/9/14:1").returncode == 0
    page = (Path(__file__).parents[2] / "docs/quickstart.md").read_text("utf-8")
    promise = "on Ampere it resets the GPU for that, at once, and refuses where a process uses it"
    assert promise in " ".join(page.split())


# -- status, reconcile, audit ---------------------------------------------------------


def test_a_picture_of_the_slots(make_site: Callable[..., Site]) -> None:
    """One cell per unit, one box per instance, within 80 columns, whatever the GPU."""
    site = make_site(H100, A30, RTX)
    site.prolog(12, "slurm-mig=1,3g.40gb/9/14:1,1g.10gb/19/4:1")
    site.prolog(13, "slurm-mig=1,2g.48gb/5/2:1", gpus="2")
    lines = site.cli("status").stdout.splitlines()
    assert "  |........|........|........|1g.10gb |3g.40gb 12                         |" in lines
    assert "  |.................|.................|.................|.................|" in lines
    assert "  |.....|.....|.....|.....|.....|.....|2g.48gb 13                         |" in lines
    boxes = [line for line in lines if line.startswith("  |")]
    assert all(len(line) == 75 for line in boxes)
    assert any("active, job 12 of alice for 0:" in line for line in lines)
    assert any(line.startswith("  fits now: 1g.10gb x3") for line in lines)


def test_a_whole_gpu_in_status_and_audit(site: Site) -> None:
    """Who has it, though there is no instance to show."""
    node = site.node()
    owner = Owner(7, uid=64001, user="alice")
    record = whole_gpu.give_whole(node.bench(), owner, node.driver.gpus()[0], "auto", reset=False)
    node.close()
    assert record.request == WHOLE_MIG_OFF
    assert "  whole GPU        active, job 7 of alice for 0:" in site.cli("status").stdout
    (held,) = parsed(site.cli("status", "--json"))["gpus"][0]["whole"]
    assert (held["job_id"], held["user"]) == (7, "alice")
    assert "whole GPU, MIG mode off" in site.cli("audit").stdout


def test_parts_of_an_instance_in_status(site: Site) -> None:
    """Every MIG device of a GPU instance that several compute instances share."""
    site.prolog(7, "slurm-mig=1,1c.3g.40gb/9/14:2")
    lines = site.cli("status").stdout.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "active, job 7" in line]
    for line in lines[place + 1 : place + 3]:
        assert line.strip().startswith("MIG-")
    assert all(len(line) <= 80 for line in lines)


def test_status_with_what_slurm_says(site: Site) -> None:
    """The node, and each holder's job; one of a job that has gone is told from one that runs."""
    site.prolog(7, STAMP)
    site.prolog(8, STAMP)
    commands(
        site,
        scontrol="echo 'NodeName=n1 Gres=gpu:h100:2 State=IDLE+DRAIN Reason=slurm-mig: x [root@1]'",
        squeue=f"[ $4 != 7 ] || echo '{7:<20}{7:<40}1   1   0       {'RUNNING':<20}'",
    )
    lines = site.cli("status", "--slurm", SLURMD_NODENAME="n1").stdout.splitlines()
    assert lines[0] == "Node n1  DRAIN+IDLE  slurm-mig: x"
    assert any("active, job 7 (RUNNING) of alice" in line for line in lines)
    commands(site, squeue="exit 0")
    data = parsed(site.cli("status", "--slurm", "--json", SLURMD_NODENAME="n1"))
    assert data["slurm"] == {"state": "DRAIN+IDLE", "reason": "slurm-mig: x"}
    assert {item["job_state"] for item in data["gpus"][0]["instances"]} == {"unknown to Slurm"}


def test_status_while_slurm_is_silent(site: Site) -> None:
    """The GPUs are shown all the same; the silence is the exit code."""
    commands(site, scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
    data = parsed(site.cli("status", "--slurm", "--json"), 20)
    assert (data["slurm"], len(data["gpus"])) == (None, 2)
    assert "Unable to contact" in data["faults"][0]
    assert "slurm" not in parsed(site.cli("status", "--json"))


def test_status_with_a_lost_gpu(site: Site) -> None:
    """The others are shown; the loss is the exit code."""
    site.machine.lose(0)
    done = site.cli("status", "--json")
    data = parsed(done, 14)
    assert [gpu["gpu"] for gpu in data["gpus"]] == [1]
    assert "GPU is lost" in data["faults"][0]


def test_reconcile(site: Site) -> None:
    """What it did, what is left, what is foreign; Slurm's silence is not success."""
    site.prolog(7, STAMP)
    with site.machine.change(1) as board:
        board.create(9, Placement(4, 4), busy=False)
    silent = site.cli("reconcile", "--json")
    data = parsed(silent, 24)
    assert (data["done"], len(data["foreign"])) == ([], 1)
    assert "Slurm does not say who lives" in data["left"][0]
    plain = site.cli("reconcile")
    assert (plain.stdout + plain.stderr).count("Slurm does not say who lives") == 1
    assert len(site.machine.board(0).instances) == 1

    site.machine.reboot()
    done = site.cli("reconcile", "--no-slurm")
    assert done.returncode == 0
    assert done.stdout == "done: job 7 on GPU 0 (3g.40gb@4): lost with a reboot\n"
    assert site.cli("reconcile", "--no-slurm").stdout == "ledger and hardware agree\n"


def test_audit(site: Site) -> None:
    """Who held which UUID, from when to when, refusals with their reason."""
    site.prolog(7, STAMP)
    site.epilog(7)
    site.prolog(8, "slurm-mig=1,7g.80gb/0/31:1", SLURM_JOB_USER="bob")
    site.prolog(9, STAMP)
    rows = parsed(site.cli("audit", "--json"))
    assert [(row["job_id"], row["user"], row["phase"]) for row in rows] == [
        (7, "alice", "released"),
        (8, "bob", "active"),
        (9, "alice", "refused"),
    ]
    assert "no placement for 3g.40gb:1: taken 7g.80gb@0" in rows[2]["reason"]
    assert rows[0]["from"] < rows[0]["to"]
    assert parsed(site.cli("audit", "--uuid", rows[0]["uuid"], "--json")) == rows[:1]
    assert parsed(site.cli("audit", "--job", "8", "--json")) == rows[1:2]
    assert parsed(site.cli("audit", "--user", "bob", "--json")) == rows[1:2]
    assert parsed(site.cli("audit", "--since", "2999-01-01", "--json")) == rows[1:2]
    assert parsed(site.cli("audit", "--until", "2000-01-01", "--json")) == []
    lines = site.cli("audit").stdout.splitlines()
    assert lines[1].endswith("  refused")
    assert lines[2].startswith("    job 9: GPU 0")
    assert lines[-2].endswith("  active")
    assert lines[-1] == "3 in all: 1 refused, 1 released, 1 active"


def test_the_chain_is_checked(site: Site) -> None:
    """A changed row is found and named."""
    import sqlite3

    site.prolog(7, STAMP)
    assert site.cli("audit", "--check").returncode == 0
    assert parsed(site.cli("audit", "--check", "--json")) == {"broken_event": None, "findings": []}
    with closing(sqlite3.connect(site.root / "state/ledger.db")) as db, db:
        name = "event_no_update"
        (guard,) = db.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        db.execute(f"DROP TRIGGER {name}")
        db.execute("UPDATE event SET at = 5 WHERE seq = 2")
        db.execute(guard)
    refused(site.cli("audit", "--check"), 29, "event 2 does not follow")
    assert parsed(site.cli("audit", "--check", "--json"), 29)["broken_event"] == 2


def test_a_users_texts_do_not_move_the_cursor(site: Site) -> None:
    """Tables spell out what is not printable."""
    site.prolog(7, STAMP, SLURM_JOB_USER="a\x1b[2J\nb")
    assert "\x1b" not in site.cli("audit").stdout
    assert len(site.cli("audit").stdout.splitlines()) == 3


# -- generate, install, simulator -------------------------------------------------------


def test_generate(site: Site, tmp_path: Path) -> None:
    """To a directory, to the terminal, as JSON: the same files."""
    node = ["--node", f"n[1-4]={H100}:2,{A30}:1", "--gpu-type", f"{H100}=h100sxm"]
    listed = site.cli("generate", *node, "--out", str(tmp_path / "out"))
    assert len(listed.stdout.splitlines()) == 5
    data = parsed(site.cli("generate", *node, "--json"))
    assert {n: (tmp_path / "out" / n).read_text() for n in data} == data
    assert "gpu:h100sxm:2,gpu:a30:1,shard:h100sxm:62,shard:a30:4," in data["slurm.conf.mig"]
    assert data["gres.conf.mig"] in site.cli("generate", *node).stdout


def test_watch_as_json(site: Site) -> None:
    """A reading a line, each with its time: a stamp between them would be no JSON."""
    command = [sys.executable, "-m", "slurm_mig", "status", "--json", "--watch", "0.1"]
    environ = {"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"}
    watching = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
    assert watching.stdout
    first, second = (json.loads(watching.stdout.readline()) for _ in range(2))
    watching.kill()
    watching.communicate(timeout=30)
    assert [gpu["gpu"] for gpu in first["gpus"]] == [gpu["gpu"] for gpu in second["gpus"]]
    assert 0 < second["time"] - first["time"] < 60


def test_watch(site: Site) -> None:
    """One picture after the other, a fault among them; Ctrl-C ends it."""
    command = [sys.executable, "-m", "slurm_mig", "status", "--watch", "0.1"]
    environ = {"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"}
    watching = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    assert watching.stdout
    for _ in range(2):
        while not watching.stdout.readline().startswith("GPU 1"):
            pass
    site.machine.lose(1)
    while watching.stdout.readline().startswith("GPU 1"):
        pass
    site.machine.reboot()
    while not watching.stdout.readline().startswith("GPU 1"):
        pass
    watching.send_signal(signal.SIGINT)
    _, said = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert said.endswith("slurm-mig: interrupted\n")
    for text in ("0", "nan", "-inf", "inf"):
        refused(site.cli("status", "--watch", text), 2, "0.1<=x<=86400")
    refused(site.cli("status", "--cluster", "--slurm"), 2, "leave --slurm out")


FLEET = f"""
[billing]
gpu = {{ h100 = 8, l40s = 3 }}
[[nodes]]
hosts = "n[1-4]"
gpus = ["{H100}:2", "l40s"]
whole = [2]
"""


def test_generate_from_a_file(site: Site, tmp_path: Path) -> None:
    """The same twice; --check tells what differs and writes nothing."""
    (tmp_path / "fleet.toml").write_text(FLEET)
    words = ["generate", str(tmp_path / "fleet.toml"), "--out", str(tmp_path / "out")]
    refused(site.cli(*words, "--check"), 24, "slurm.conf.mig, gres.conf.mig")
    assert not (tmp_path / "out").exists()
    assert site.cli(*words).returncode == 0
    assert "up to date" in site.cli(*words, "--check").stdout
    first = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert site.cli(*words).returncode == 0
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == first
    assert "GRES/gpu:l40s=3,GRES/mig:1g.10gb=1.143," in first["slurm.conf.mig"]
    (tmp_path / "fleet.toml").write_text(FLEET.replace("h100 = 8", "h100 = 7"))
    differs = site.cli(*words, "--check")
    assert "+#TRESBillingWeights=GRES/gpu:h100=7" in differs.stdout
    assert differs.returncode == 24
    assert differs.stderr.count("\n") == 1
    assert list(parsed(site.cli(*words, "--check", "--json"), 24)["differ"]) == ["slurm.conf.mig"]


def test_generate_says_which_names_end(site: Site, tmp_path: Path) -> None:
    """Another node first, a name that is the site's no more: nothing is written by --check."""
    path, out = tmp_path / "fleet.toml", tmp_path / "out"
    words = ["generate", str(path), "--out", str(out)]
    nodes = [f'[[nodes]]\nhosts = "{name[-3:]}"\ngpus = ["{name}"]\n' for name in (H100, A100_40)]
    small = '[aliases]\nsmall = "1g.10gb"\n'
    path.write_text("".join(nodes[:1]) + small)
    assert site.cli(*words).stderr == ""
    first = {item.name: item.read_text() for item in out.iterdir()}

    # A node more takes no name away.
    path.write_text("".join(nodes) + small)
    refused(site.cli(*words, "--check"), 24, "not what this fleet needs")
    assert parsed(site.cli(*words, "--check", "--json"), 24)["names"] == []

    path.write_text("".join(reversed(nodes)))
    refused(site.cli(*words, "--check"), 31, "mig:1g.10gb means something else")
    names = parsed(site.cli(*words, "--check", "--json"), 31)["names"]
    assert names == [
        (
            "mig:1g.10gb means something else: 1g.10gb of h100 (id 19, 4 of 31 shards) before, "
            "1g.10gb of a100_40gb (id 15, 7 of 31 shards) now; jobs that wait with it hold "
            "the old shards and are refused on the new nodes"
        ),
        "the word small is unknown to new jobs",
    ]
    assert {item.name: item.read_text() for item in out.iterdir()} == first
    path.write_text('[names]\n"1g.10gb" = "h100"\n' + "".join(reversed(nodes)) + small)
    refused(site.cli(*words, "--check"), 24, "not what this fleet needs")
    done = site.cli(*words)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fleet_of_before_with_types_before_its_names(site: Site, tmp_path: Path) -> None:
    """The first release called both models' 1g.10gb by type: the way from there, step by step."""
    path, out = tmp_path / "fleet.toml", tmp_path / "out"
    words = ["generate", str(path), "--out", str(out)]
    nodes = "".join(f'[[nodes]]\nhosts = "{n[-3:]}"\ngpus = ["{n}"]\n' for n in (H100, A100_40))
    path.write_text('[names]\n"1g.10gb" = false\n' + nodes)
    site.cli(*words)
    assert "mig:h100_1g.10gb:7" in (out / "slurm.conf.mig").read_text()
    assert "mig:1g.10gb:" not in (out / "slurm.conf.mig").read_text()

    path.write_text(nodes)
    refused(site.cli(*words, "--check"), 31, "mig:h100_1g.10gb is counted no longer")
    path.write_text('keep_names = ["h100_1g.10gb"]\n' + nodes)
    refused(site.cli(*words, "--check"), 24, "not what this fleet needs")
    assert site.cli(*words).stderr == ""
    text = (out / "slurm.conf.mig").read_text()
    assert "mig:h100_1g.10gb:7" in text
    assert "mig:1g.10gb:7" in text
    path.write_text(nodes)
    told = site.cli(*words).stderr
    assert told.startswith("slurm-mig: mig:h100_1g.10gb is counted no longer")
    assert "new jobs get mig:1g.10gb on h100 for it" in told


@pytest.mark.parametrize(
    ("fleet", "options", "says"),
    [
        (FLEET, ["--node", f"n1={H100}"], "the fleet stands in a file"),
        (FLEET, ["--check"], "--check compares with the files of a directory"),
        ("", [], "no nodes: name a fleet file"),
        (FLEET.replace("[2]", "[3]"), [], "whole names GPU 3; device minors are 0 to 2"),
        (FLEET.replace("[2]", "[1]"), [], "GPU 'l40s' is not in the catalogue"),
        (FLEET.replace('"l40s"', '"l4:x:1"'), [], "'l4:x' is no type name"),
        (FLEET.replace("l40s = 3", "x = 3"), [], "no GPU type 'x'"),
    ],
)
def test_fleets_that_cannot_be(
    site: Site, tmp_path: Path, fleet: str, options: list[str], says: str
) -> None:
    """One line each."""
    (tmp_path / "fleet.toml").write_text(fleet)
    refused(site.cli("generate", str(tmp_path / "fleet.toml"), *options), 2, says)


def test_a_state_directory_of_the_site_keeps_its_mode(make_site: Callable[..., Site]) -> None:
    """`[paths] state` may name one that others look into."""
    site = make_site("a100-40gb", mig=False)
    config = site.config.read_text()
    there = site.root / "there"
    there.mkdir()
    there.chmod(0o755)
    site.config.write_text(config.replace(f'"{site.root}/state"', f'"{there}"'))
    assert site.cli("enable").returncode == 0
    assert site.cli("create", "1g.5gb").returncode == 0
    assert (there / "ledger.db").stat().st_mode & 0o777 == 0o600
    assert there.stat().st_mode & 0o777 == 0o755


def test_generate_writes_all_or_nothing(site: Site, tmp_path: Path) -> None:
    """One file that cannot stand, and none is written."""
    (tmp_path / "job_submit.lua").mkdir()
    refused(site.cli(*ONE, "--out", str(tmp_path)), 10, "job_submit.lua: it is a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["job_submit.lua"]


def test_install_writes_all_or_nothing(site: Site, tmp_path: Path) -> None:
    """The same for the hooks."""
    (tmp_path / "task_prolog").mkdir()
    done = site.cli("install", "--only", "hooks", "--hooks", str(tmp_path))
    refused(done, 10, "task_prolog is a dir")
    assert [path.name for path in tmp_path.iterdir()] == ["task_prolog"]


def test_install(site: Site, tmp_path: Path) -> None:
    """Prints what slurm.conf needs; the hooks are this configuration's."""
    done = site.cli("install", "--only", "hooks", "--hooks", str(tmp_path / "hooks"))
    assert f"Prolog={tmp_path}/hooks/prolog" in done.stdout
    script = (tmp_path / "hooks/prolog").read_text()
    assert f"config='{site.config}'" in script
    assert f"python='{sys.executable}'" in script


def test_simulated_machines(site: Site, tmp_path: Path) -> None:
    """Made, shown, held, broken and mended from the command line."""
    home = str(tmp_path / "sim")
    made = site.cli("simulator", "create", home, "--gpu", f"{H100}:2", "--gpu", f"{A30}:1")
    assert f'library = "simulator:{home}"' in made.stdout
    shown = parsed(site.cli("simulator", "show", home, "--json"))
    assert [gpu["name"] for gpu in shown] == [H100, H100, A30]
    assert site.cli("simulator", "lose", home, "--gpu", "1").returncode == 0
    assert "lost" in site.cli("simulator", "show", home).stdout
    refused(site.cli("simulator", "lose", home, "--gpu", "7"), 2, "no GPU 7")
    for verb in ("reboot", "reload"):
        assert site.cli("simulator", verb, home).returncode == 0
    assert "lost" not in site.cli("simulator", "show", home).stdout
    uuid = shown[0]["uuid"]
    hold = ["simulator", "hold", home, "--pid", str(os.getpid()), "--uuid", uuid]
    assert site.cli(*hold).returncode == 0
    refused(site.cli(*hold[:4], str(2**22 + 1), *hold[5:]), 22, "does not exist")
    fault = ["simulator", "fault", home, "--call", "nvmlInit_v2", "--effect"]
    assert site.cli(*fault, "error:IN_USE").returncode == 0
    refused(site.cli(*fault, "error:NOPE"), 22, "codes are")
    refused(site.cli("simulator", "fault", home), 2, "--call and --effect")
    assert site.cli("simulator", "fault", home, "--clear").returncode == 0
    refused(site.cli(*hold[:-1], "MIG-nope"), 2, f"no device 'MIG-nope' in {home}; there are GPU-")
    refused(site.cli(*hold[:-1], ""), 2, "no device ''")
    wrong = [*fault[:4], "nvmlFoo", "--effect", "lie"]
    refused(site.cli(*wrong), 2, "no NVML function 'nvmlFoo'")
    refused(site.cli(*fault, "lie", "--skip", "-3"), 2, "-3 is not in the range x>=0")
    refused(site.cli("simulator", "run", home, "/nope"), 2, "run '/nope': ")
    refused(site.cli("simulator", "run", home, ""), 2, "run '': ")
    refused(site.cli(*fault, "hang:²"), 22, "fault effect 'hang:²'")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"instances": [{}]}'])
def test_a_damaged_simulated_machine(site: Site, content: str) -> None:
    """Named, also when it is met through the driver; no traceback."""
    (site.root / "sim/gpu0.json").write_text(content)
    for verb in (["profiles"], ["simulator", "show", f"{site.root}/sim"]):
        refused(site.cli(*verb), 22, "gpu0.json is damaged")
    (site.root / "sim/machine.json").write_text('{"format": 1}')
    refused(site.cli("profiles"), 22, "machine.json is damaged")


def test_a_simulated_cuda_process(site: Site) -> None:
    """It sees its slice and holds it; another user does not get in."""
    site.prolog(7, STAMP)
    node = site.node()
    uuid = node.ledger.all_open()[0].uuids[0]
    node.close()

    def run(uid: int, visible: str) -> subprocess.CompletedProcess[str]:
        words = ["simulator", "run", f"{site.root}/sim", "true"]
        return cli_as(uid, *words, CUDA_VISIBLE_DEVICES=visible)

    mine = run(64001, uuid)
    assert mine.stdout == f"CUDA device: {H100} MIG 3g.40gb ({uuid})\n"
    refused(run(64002, uuid), 21, "Permission denied")
    refused(run(64001, "MIG-0"), 2, "no CUDA-capable device")


# -- the frame -------------------------------------------------------------------------


def test_every_verb_has_help_and_nothing_else_is_loaded(site: Site) -> None:
    """--help of each; an unknown verb is a usage error."""
    for verb in VERBS:
        done = site.cli(verb, "--help")
        assert done.returncode == 0, verb
        assert "Usage: " in done.stdout
    assert site.cli("frobnicate").returncode == 2
    text = site.cli("--help").stdout
    assert "Exit codes:" in text
    assert " 5  no free placement" in text


def test_a_configuration_that_is_wrong(site: Site) -> None:
    """By option as by variable; the option wins."""
    bad = site.root / "bad.toml"
    bad.write_text("[driver]\nlibary = 'x'")
    refused(site.cli("--config", str(bad), "status"), 11, "did you mean [driver] library?")
    refused(site.cli("status", SLURM_MIG_CONFIG=str(bad)), 11, "unknown key")
    assert (
        site.cli("--config", str(site.config), "status", SLURM_MIG_CONFIG=str(bad)).returncode == 0
    )
    refused(site.cli("--config", "/none.toml", "status"), 11, "/none.toml: no such file")


def test_without_root(site: Site) -> None:
    """Commands that change the node say so before touching it."""
    site.config.chmod(0o644)
    done = cli_as(64001, "reset", "--gpu", "all", SLURM_MIG_CONFIG=str(site.config))
    refused(done, 21, "run it as root")
    for verb in ("status", "audit"):
        done = cli_as(64001, verb, SLURM_MIG_CONFIG=str(site.config))
        refused(done, 21, f"root needed to read {site.root}/state/ledger.db")
    for words in (["reboot"], ["reload"], ["lose", "--gpu", "0"], ["fault", "--clear"]):
        refused(cli_as(64001, "simulator", words[0], f"{site.root}/sim", *words[1:]), 21, "root")
    refused(cli_as(64001, *ONE, "--out", "/etc/zz"), 10, "write /etc/zz: Permission denied")


def test_the_gpus_that_the_configuration_names(make_site: Callable[..., Site]) -> None:
    """Those that are not there are said, beside what is."""
    site = make_site(H100, config="[gpus]\nmanaged = [0, 7]\norder = [0, 8]\n")
    for verb in ("gpus", "status"):
        done = site.cli(verb, "--json")
        data = parsed(done, 11)
        assert "[gpus] managed names 7; device minors here: 0" in data["faults"][0]
        assert "[gpus] order names 8" in data["faults"][1]
        assert len(done.stderr.splitlines()) == 1


def test_a_gpu_model_that_does_not_exist(make_site: Callable[..., Site]) -> None:
    """In the table of policies: it would never apply."""
    site = make_site(H100, config='[whole_gpus]\nmodels = { "NVIDIA A31" = "reject" }\n')
    refused(site.cli("profiles"), 11, "no GPU is called 'NVIDIA A31'; did you mean NVIDIA A30")


def test_a_fault_without_a_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system refuses is one line, too."""
    from slurm_mig import cli

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 10


def test_a_closed_pipe(site: Site) -> None:
    """`slurm-mig gpus | true` ends without a word, and with the code of a closed pipe."""
    done = subprocess.run(
        f"{sys.executable} -m slurm_mig gpus --supported | true; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, check=False,
        env={"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "141"


@pytest.mark.parametrize("words", ["report", "learn -o", "simulate --picture", "audit --timeline"])
def test_a_file_to_write_where_no_directory_is(site: Site, words: str) -> None:
    """Refused at once: not after the work, and not as a fault of the node."""
    done = site.cli(*words.split(), "/nowhere/at/all/out.svg")
    refused(done, 2, "there is no directory /nowhere/at/all")
