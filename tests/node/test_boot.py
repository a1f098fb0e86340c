"""Between a boot and slurmd: hardware as configured, one truth, or a reason and no slurmd."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import HardwareMismatch, LedgerFault
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import WHOLE, WHOLE_MIG_OFF
from slurm_mig.mig.geometry import Placement
from slurm_mig.node import install_texts
from slurm_mig.node.boot import LOOK_EVERY, Boot, keep_out, let_in
from slurm_mig.node.install_texts import UNIT, Runtime, unit_files
from slurm_mig.simulator.faults import Rule
from slurm_mig.slurm.protocol import BOOT as REASON
from slurm_mig.state.locks import Locks
from slurm_mig.transaction import whole_gpu
from tests.kit.gpus import A30, A100, H100
from tests.kit.hooks import STAMP, records, slurm_commands
from tests.kit.retirement import Time, up
from tests.kit.ways import helped

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site

pytestmark = pytest.mark.root


def modes(site: Site) -> list[bool]:
    return [site.machine.board(index).mig_current for index in range(len(site.machine.gpus))]


# -- what is brought in order -------------------------------------------------------


def test_a_reboot(site: Site) -> None:
    """Records are lost, files go, Hopper's MIG mode is on again, and jobs are served."""
    assert site.prolog(7, STAMP).returncode == 0
    assert site.prolog(8, STAMP, gpus="1").returncode == 0
    site.machine.reboot()
    assert modes(site) == [False, False]
    found = up(site)
    assert (found.mismatches, found.left, found.foreign) == ([], [], [])
    assert [item.phase for item in records(site)] == [phases.LOST] * 2
    assert modes(site) == [True, True]
    assert not list(site.run.glob("[ej]*/*"))
    assert [line.split(": ")[1] for line in found.done] == [
        "lost with a reboot", "lost with a reboot", "MIG mode switched on",
        "MIG mode switched on", "left-over files removed", "left-over files removed",
    ]  # fmt: skip
    assert up(site) == Boot()
    assert site.prolog(9, STAMP).returncode == 0


def test_by_hand_on_a_node_at_work(site: Site) -> None:
    """Slices of jobs that live, their files, a whole GPU without MIG: all as before."""
    slurm_commands(site)
    assert site.prolog(7, STAMP).returncode == 0
    assert site.prolog(8, "slurm-mig=1,1g.10gb/19/4:2").returncode == 0
    node = site.node()
    owner = records(site)[0].owner
    whole_gpu.give_whole(node.bench(), owner, node.driver.gpus()[1], "mig-off", reset=False)
    node.close()
    files = {path: path.read_bytes() for path in site.run.glob("[ej]*/*")}
    # As if the clock had been set since; and a release before this one named no boot.
    for path in files:
        os.utime(path, (1, 1))
    (site.run / "jobs/9.0").write_text("")
    files[site.run / "jobs/9.0"] = b""
    assert up(site) == Boot()
    assert [item.phase for item in records(site)] == [phases.ACTIVE] * 3
    assert modes(site) == [True, False]
    assert {path: path.read_bytes() for path in site.run.glob("[ej]*/*")} == files
    assert len(site.machine.board(0).instances) == 3


@pytest.mark.parametrize("request_", [WHOLE, WHOLE_MIG_OFF])
def test_a_whole_gpu_of_the_last_boot(make_site: Callable[..., Site], request_: str) -> None:
    """Ampere keeps the mode that was switched off for it: it comes back, too."""
    site = make_site(A100, mig=request_ == WHOLE_MIG_OFF)
    node = site.node()
    from tests.kit.transaction import ALICE

    whole_gpu.give_whole(node.bench(), ALICE, node.driver.gpus()[0], "mig-off", reset=True)
    node.close()
    assert modes(site) == [False]
    site.machine.reboot()
    assert up(site).mismatches == []
    assert [item.phase for item in records(site)] == [phases.LOST]
    assert modes(site) == [True]


def test_gpus_that_are_not_managed_are_left_alone(make_site: Callable[..., Site]) -> None:
    """By the configuration, or retired."""
    site = make_site(H100, H100, H100, config="[gpus]\nmanaged = [0, 1]\n", mig=False)
    node = site.node()
    node.ledger.retire(node.driver.gpus()[1].uuid, "root", "")
    node.close()
    assert up(site).mismatches == []
    assert modes(site) == [True, False, False]


def test_strange_instances_are_told_and_no_reason_to_stay_down(site: Site) -> None:
    """The planner goes around them, and a job finds room beside them."""
    with site.machine.change(0) as board:
        board.create(19, Placement(3, 1), busy=False)
    found = up(site)
    assert found.mismatches == []
    (line,) = found.foreign
    assert "(1g.10gb@3) is in no record" in line


def test_left_overs(site: Site) -> None:
    """Notes of dead holders, half-written files, nodes of instances that are gone."""
    assert site.prolog(7, STAMP).returncode == 0
    kept = {path.name for path in (site.machine.root / "dev/nvidia-caps").iterdir()}
    pid = subprocess.Popen(["true"])
    pid.wait()
    gone = [
        site.run / f"env/.9.0.{pid.pid}",
        site.run / f"jobs/.9.0.{pid.pid}",
        site.run / f"locks/.GPU-x.holder.{pid.pid}",
        site.run / "locks/GPU-x.holder",
        site.machine.root / "dev/nvidia-caps/nvidia-cap3",
        site.machine.root / "dev/nvidia-caps/nvidia-cap6",
    ]
    stays = [
        site.run / f"env/.9.0.{os.getpid()}",
        # Of a GPU that is not here: whose it is, nobody knows.
        site.machine.root / "dev/nvidia-caps/nvidia-cap4000",
    ]
    for path in (*gone, *stays):
        path.write_text("")
    (site.run / "locks/GPU-y.holder").write_text("")
    os.utime(site.run / "locks/GPU-y.holder", (1, 1))
    with Locks(site.run / "locks", 1).hold(["GPU-y"], "work"):
        assert sorted(up(site).done) == sorted(f"{path} removed" for path in gone)
        assert (site.run / "locks/GPU-y.holder").exists()
    assert all(path.exists() for path in stays)
    assert not any(path.exists() for path in gone)
    assert kept <= {path.name for path in (site.machine.root / "dev/nvidia-caps").iterdir()}


def test_the_run_directory_is_there_before_the_first_job(site: Site) -> None:
    """With the modes that hooks want."""
    assert site.run.exists() is helped()
    up(site)
    assert [(site.run / name).stat().st_mode & 0o777 for name in ("", "env", "jobs", "locks")] == [
        0o755, 0o755, 0o700, 0o700,
    ]  # fmt: skip


@pytest.mark.parametrize("effect", ["kill-before", "kill-after"])
@pytest.mark.parametrize("skip", [0, 1])
def test_killed_in_the_middle(site: Site, effect: str, skip: int) -> None:
    """At each call that changes something: the next one finishes it."""
    assert site.prolog(7, STAMP).returncode == 0
    site.machine.reboot()
    site.machine.faults.set([Rule("nvmlDeviceSetMigMode", effect, skip)])
    slurm_commands(site)
    assert site.cli("reconcile", "--boot", "--wait", "0").returncode == -9
    site.machine.faults.set([])
    assert up(site).mismatches == []
    assert modes(site) == [True, True]
    assert [item.phase for item in records(site)] == [phases.LOST]


# -- is it what the configuration says? ----------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (f'expected = {{ "{H100}" = 3 }}', [f"expected has 3 x {H100}, the driver shows 2"]),
        (f'expected = {{ "{H100}" = 1 }}', [f"expected has 1 x {H100}, the driver shows 2"]),
        (
            f'expected = {{ "{A30}" = 2 }}',
            [
                f"expected has 2 x {A30}, the driver shows 0",
                f"expected has no {H100}, the driver shows 2",
            ],
        ),
        ("managed = [0, 4]", ["[gpus] managed names 4; device minors here: 0, 1"]),
        ("order = [5, 0]", ["[gpus] order names 5; device minors here: 0, 1"]),
        (f'managed = "none"\nexpected = {{ "{H100}" = 3 }}', ["expected has 3 x"]),
        (f'expected = {{ "{H100}" = 2 }}', []),
        ('managed = "none"', []),
    ],
)
def test_differences(make_site: Callable[..., Site], config: str, says: list[str]) -> None:
    """A line each; the first is the fault."""
    found = up(make_site(H100, H100, config=f"[gpus]\n{config}\n"))
    assert len(found.mismatches) == len(says)
    assert all(text in line for text, line in zip(says, found.mismatches, strict=True))
    if says:
        with pytest.raises(HardwareMismatch, match="reconcile --boot"):
            found.check()
    else:
        found.check()


def test_a_lost_gpu(site: Site) -> None:
    """Named; the other one is ready all the same."""
    site.machine.reboot()
    site.machine.lose(1)
    found = up(site)
    (line,) = found.mismatches
    assert "see dmesg for Xid errors" in line
    assert modes(site)[0] is True
    assert found.left == []


def test_a_gpu_without_mig(make_site: Callable[..., Site]) -> None:
    """Managed by number: said. Managed by `all`: left out, unless there is no other."""
    site = make_site(H100, H100, config="[gpus]\nmanaged = [0, 1]\n")
    site.machine.faults.set([Rule("nvmlDeviceGetMigMode", "error:NOT_SUPPORTED", times=0)])
    assert len(up(site).mismatches) == 2
    plain = make_site(H100)
    plain.machine.faults.set([Rule("nvmlDeviceGetMigMode", "error:NOT_SUPPORTED", times=0)])
    assert up(plain).mismatches == [
        'every GPU is managed, but none here knows MIG (managed = "none" says so)'
    ]


def test_no_driver(site: Site) -> None:
    """Waited for, then said; where nothing is managed or expected, nobody cares."""
    site.machine.faults.set([Rule("nvmlInitWithFlags", "error:DRIVER_NOT_LOADED", times=0)])
    time = Time()
    (line,) = up(site, 5, time).mismatches
    assert "load the NVIDIA kernel module" in line
    assert time.now == 5
    with site.config.open("a") as file:
        file.write('[gpus]\nmanaged = "none"\n')
    assert up(site) == Boot()


def test_modules_that_load_late(site: Site) -> None:
    """The driver after three seconds, the second GPU after five: no difference is left."""
    site.machine.faults.set([Rule("nvmlInitWithFlags", "error:DRIVER_NOT_LOADED", times=0)])
    time = Time()
    time.happens[3.0] = lambda: site.machine.faults.set(
        [Rule("nvmlDeviceGetHandleByIndex_v2", "error:GPU_IS_LOST", times=0)]
    )
    time.happens[5.0] = lambda: site.machine.faults.set([])
    assert up(site, 60, time).mismatches == []
    assert time.now == 5


def test_a_gpu_that_something_holds_for_a_while(make_site: Callable[..., Site]) -> None:
    """Ampere whose mode is off: tried again while there is time, then said."""
    site = make_site(A100, mig=False)
    site.machine.faults.set([Rule("nvmlDeviceSetMigMode", "activation:IN_USE", times=2)])
    time = Time()
    assert up(site, 60, time).mismatches == []
    assert (time.now, modes(site)) == (2 * LOOK_EVERY, [True])
    other = make_site(A100, mig=False)
    other.machine.faults.set([Rule("nvmlDeviceSetMigMode", "activation:IN_USE", times=0)])
    (line,) = up(other, 3, Time()).mismatches
    assert "switch MIG mode on" in line


def test_a_gpu_that_cannot_be_brought_in_order(site: Site) -> None:
    """Its first job would drain the node: so slurmd is not started, and an old drain stays."""
    site.machine.faults.set([Rule("nvmlDeviceGetGpuInstances", "error:UNKNOWN", times=0)])
    found = up(site)
    assert any("list instances" in line for line in found.mismatches)
    with pytest.raises(HardwareMismatch):
        found.check()


def test_a_mode_that_only_a_reset_brings(make_site: Callable[..., Site]) -> None:
    """The wish alone is success to NVML: said, with what to do."""
    site = make_site(A100, mig=False)
    site.machine.faults.set([Rule("nvmlDeviceSetMigMode", "lie", times=0)])
    (line,) = up(site).mismatches
    assert "MIG mode is off until the GPU is reset" in line
    assert "nvidia-smi --gpu-reset -i 0" in line


# -- the command ----------------------------------------------------------------------


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return dict(json.loads(done.stdout))


def test_the_command(site: Site) -> None:
    """Done, differences, exit code 28 with one line, and the reason for sinfo."""
    node = "NodeName=n1 Arch=x State=IDLE Gres=gpu:2"
    log = slurm_commands(site, scontrol=f"echo '{node}'")
    done = site.cli("reconcile", "--boot", "--wait", "0", "--node", "n1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "hardware, configuration and ledger agree\n"
    assert log.read_text().splitlines() == ["scontrol show node -d -o n1"]
    log.unlink()
    site.machine.lose(1)
    done = site.cli("reconcile", "--boot", "--wait", "0", "--node", "n1")
    assert done.returncode == 28
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["mismatch"]
    (line,) = done.stderr.splitlines()
    assert line.startswith("slurm-mig: ")
    drain = log.read_text().splitlines()[-1]
    assert drain.startswith(f"scontrol update nodename=n1 state=drain reason={REASON}")
    assert "squeue" not in log.read_text()
    assert told(site.cli("reconcile", "--boot", "--wait", "0", "--json"))["mismatches"]


def test_slurmctld_that_is_down(site: Site) -> None:
    """A line, and the outcome is the hardware's."""
    slurm_commands(site, scontrol="echo no contact >&2; exit 1")
    done = site.cli("reconcile", "--boot", "--wait", "0")
    assert done.returncode == 0
    assert "slurm-mig: Slurm was not told: " in done.stderr
    site.machine.lose(0)
    done = site.cli("reconcile", "--boot", "--wait", "0")
    assert done.returncode == 28
    assert len(done.stderr.splitlines()) == 2


def test_a_broken_ledger_keeps_the_node_out_too(site: Site) -> None:
    """Its own code, and its own reason."""
    log = slurm_commands(site, scontrol="echo 'NodeName=n1 State=IDLE'")
    (site.root / "state").mkdir(mode=0o700)
    (site.root / "state/ledger.db").write_bytes(b"garbage" * 500)
    (site.root / "state/ledger.db").chmod(0o600)
    done = site.cli("reconcile", "--boot", "--wait", "0", "--node", "n1")
    assert done.returncode == LedgerFault.exit_code
    assert f"reason={REASON}open ledger" in log.read_text()


def test_a_configuration_that_cannot_be_read(site: Site) -> None:
    """Code 11 before anything else; the search for scontrol is then the usual one."""
    site.config.write_text("[gpus]\nmanagd = 1\n")
    done = site.cli("reconcile", "--boot", "--wait", "0", SLURM_CONF="/dev/null")
    assert done.returncode == 11


@pytest.mark.parametrize(
    "words", [["--wait", "3"], ["--boot", "--dry-run"], ["--boot", "--wait", "-1"]]
)
def test_options_that_do_not_go_together(site: Site, words: list[str]) -> None:
    """Said in one line."""
    done = site.cli("reconcile", *words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


# -- the drain is ours, or left ---------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "reason", "drains", "resumes"),
    [
        ("IDLE", "", True, False),
        ("DOWN", "Not responding [slurm@2026-11-22T10:00:00]", True, False),
        ("DOWN", "fan broken [root@2026-11-22T10:00:00]", False, False),
        ("FAIL", "fan broken [root@2026-11-22T10:00:00]", False, False),
        ("IDLE+DRAIN", "disk [root@2026-11-22T10:00:00]", False, False),
        ("DOWN+DRAIN", f"{REASON}a GPU [root@2026-11-22T10:00:00]", True, True),
        ("IDLE+DRAIN", "slurm-mig: no driver [root@2026-11-22T10:00:00]", False, False),
    ],
)
def test_whose_drain_it_is(
    site: Site, state: str, reason: str, drains: bool, resumes: bool
) -> None:
    """Another's is neither replaced nor taken back."""
    said = f" Reason={reason}" if reason else ""
    log = slurm_commands(site, scontrol=f"echo 'NodeName=n1 State={state} Gres=x{said}'")
    node = site.node()
    keep_out(node, HardwareMismatch("a GPU\nis \x1b[1m gone" + "x" * 400))
    assert let_in(node) is resumes
    node.close()
    lines = [line for line in log.read_text().splitlines() if "update" in line]
    assert [f"state={word}" in " ".join(lines) for word in ("drain", "resume")] == [drains, resumes]
    if drains:
        text = lines[0].partition("reason=")[2]
        assert text.startswith(f"{REASON}a GPU is ?[1m gonexxx")
        assert len(text) <= 250


# -- the unit ----------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(path.read_text())
    return parsed


def written(directory: Path, config: str = "/etc/c.toml", python: str = sys.executable) -> Path:
    runtime = Runtime(Path(python), Path(config), Path("/run/slurm-mig"), 130.0)
    (unit,) = [item for item in unit_files(directory, runtime) if item.path.name == Path(UNIT).name]
    unit.path.write_text(unit.text)
    return unit.path


def test_what_the_unit_says(tmp_path: Path) -> None:
    """Before slurmd, which does not start without it; time for all that is bounded."""
    parsed = unit(written(tmp_path))
    assert parsed["Unit"]["Before"] == "slurmd.service"
    assert parsed["Install"]["RequiredBy"] == "slurmd.service"
    assert (parsed["Service"]["Type"], parsed["Service"]["RemainAfterExit"]) == ("oneshot", "yes")
    assert parsed["Service"]["TimeoutStartSec"] == "480"
    assert parsed["Service"]["ExecStart"] == (
        f"{sys.executable} -I -m slurm_mig --config /etc/c.toml reconcile --boot"
    )
    assert (tmp_path / "slurm-mig-boot.service").stat().st_mode & 0o777 == 0o644


def test_the_shipped_unit_has_the_defaults(tmp_path: Path) -> None:
    """What `install` writes for the places of the manual is what is in etc/."""
    path = written(tmp_path, "/etc/slurm-mig/config.toml", "/opt/slurm-mig/bin/python3")
    assert path.read_text() == (install_texts.sources() / install_texts.UNIT).read_text()


ANALYZE = shutil.which("systemd-analyze")


@pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("config", ["/etc/c.toml", '/a b/%n/it\'s $HOME "x".toml'])
def test_systemd_understands_it(public_tmp: Path, config: str) -> None:
    """No word of complaint, whatever the paths are."""
    path = written(public_tmp, config)
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    mine = [line for line in done.stderr.splitlines() if "slurm-mig" in line]
    assert (done.returncode, mine) == (0, [])


def test_install_writes_the_unit(site: Site, tmp_path: Path) -> None:
    """On demand elsewhere, or not at all; nothing is written where one of both cannot stand."""
    hooks, units = tmp_path / "hooks", tmp_path / "units"
    both = ["install", "--only", "hooks", "--only", "units"]
    both += ["--hooks", str(hooks), "--units", str(units)]
    done = site.cli(*both)
    assert done.returncode == 0
    assert "systemctl enable slurm-mig-boot.service" in done.stdout
    command = unit(units / "slurm-mig-boot.service")["Service"]["ExecStart"]
    assert command.split()[:4] == [sys.executable, "-I", "-m", "slurm_mig"]
    assert str(site.config) in command
    shutil.rmtree(hooks)
    (units / "slurm-mig-boot.service").unlink()
    (units / "slurm-mig-boot.service").mkdir()
    done = site.cli(*both)
    assert (done.returncode, hooks.exists()) == (10, False)
    done = site.cli("install", "--units", str(units), "--no-units")
    assert done.returncode == 2


def test_the_units_command_runs(site: Site, tmp_path: Path) -> None:
    """The very words, in the environment that systemd gives."""
    slurm_commands(site, scontrol="echo 'NodeName=n1 State=IDLE Gres=x'")
    path = written(tmp_path, str(site.config))
    command = unit(path)["Service"]["ExecStart"].split()
    done = subprocess.run(
        command, env={}, cwd="/", capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
