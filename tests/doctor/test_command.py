"""`slurm-mig doctor`: its screens, its exit codes, its page in the manual."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.doctor import MODULES, all_checks, report
from slurm_mig.doctor.check import CHECKS, ERROR, SEVERITIES, check, examine
from slurm_mig.doctor.facts import AREAS
from tests.kit.pages import MANUAL
from tests.kit.users import cli_as

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.kit.clinic import Clinic

pytestmark = pytest.mark.root


def doctor(clinic: Clinic, *options: str) -> subprocess.CompletedProcess[str]:
    return clinic.site.cli(
        "doctor", *options, SLURM_CONF=str(clinic.slurm_conf), SLURMD_NODENAME="n1"
    )


def test_a_healthy_node(clinic: Clinic) -> None:
    """Exit code 0, one line that sums up, and what was not looked at."""
    clinic.loaded()
    done = doctor(clinic)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout
        == f"0 errors, 0 warnings, 0 notes; {len(all_checks())} checks done, 0 not done\n"
    )


def test_errors_have_an_exit_code(clinic: Clinic) -> None:
    """30; warnings alone only with --strict."""
    clinic.drop("slurm.conf", "BatchStartTimeout")
    assert doctor(clinic).returncode == 0
    done = doctor(clinic, "--strict")
    assert (done.returncode, done.stderr) == (
        30,
        "slurm-mig: errors: 0, warnings: 1; see the output\n",
    )
    clinic.edit("slurm.conf", "PrologFlags=Alloc,", "PrologFlags=")
    assert doctor(clinic).returncode == 30


def test_the_screen(clinic: Clinic) -> None:
    """By severity, 80 columns but for what is there to be copied, no colour."""
    clinic.edit("slurm.conf", "PrologFlags=Alloc,", "PrologFlags=")
    clinic.drop("slurm.conf", "BatchStartTimeout")
    screen = doctor(clinic).stdout
    heads = [line for line in screen.splitlines() if re.fullmatch("[A-Z ]+", line)]
    assert heads == ["ERRORS", "WARNINGS", "NOT CHECKED"]
    for line in screen.splitlines():
        assert len(line) <= 80 or len(line.split()) <= 3, line
    assert "\x1b" not in screen
    assert "SM101  PrologFlags without Alloc\n" in screen
    assert re.search(r"^  fix  PrologFlags=DeferBatch,Alloc$", screen, re.MULTILINE)
    assert screen.splitlines()[-1].startswith("1 error, 1 warning, 0 notes; ")


def test_json(clinic: Clinic) -> None:
    """The same for programs, gaps included."""
    clinic.edit("slurm.conf", "PrologFlags=Alloc,", "PrologFlags=")
    done = doctor(clinic, "--json")
    data: dict[str, Any] = json.loads(done.stdout)
    (finding,) = data["findings"]
    assert (finding["code"], finding["severity"]) == ("SM101", ERROR)
    assert finding["evidence"].endswith(": PrologFlags=DeferBatch")
    assert [item["area"] for item in data["not_checked"]] == ["slurmctld", "registered"]
    assert data["summary"]["error"] == 1
    assert done.returncode == 30


def test_a_file_that_forges_a_line(clinic: Clinic) -> None:
    """Escapes and control characters in a file do not reach the terminal."""
    clinic.edit("slurm.conf", "PrologFlags=Alloc,", "PrologFlags=\x1b[2J\x07x,")
    screen = doctor(clinic).stdout
    assert all(char.isprintable() or char == "\n" for char in screen)


def test_files_on_a_login_node_for_anybody(clinic: Clinic) -> None:
    """No GPU, no root, no Slurm: a directory of files is enough."""
    config = clinic.root / "none.toml"
    config.write_text('[slurm]\nbin = "/nonexistent"\n')
    options = ("doctor", "--slurm-conf", str(clinic.slurm_conf), "--slurm-version", "24.11")
    done = cli_as(64001, "--config", str(config), *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "only files are read" in done.stdout
    clinic.edit("gres.conf", "AutoDetect=off", "AutoDetect=nvml")
    done = cli_as(64001, "--config", str(config), *options, "--json")
    assert {item["code"] for item in json.loads(done.stdout)["findings"]} == {"SM202"}


@pytest.mark.parametrize(
    "option", ["--slurm-conf", "--gres-conf", "--cgroup-conf", "--job-submit", "--cli-filter"]
)
def test_a_named_file_that_is_not_there(clinic: Clinic, option: str) -> None:
    """A mistyped path in somebody's CI is no sound system."""
    done = doctor(clinic, option, "/nonexistent")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'{option}': File '/nonexistent' does not exist" in done.stderr


def test_a_named_fifo(clinic: Clinic) -> None:
    """It would be waited for; beside slurm.conf it is a gap."""
    fifo = clinic.root / "fifo"
    os.mkfifo(fifo)
    done = doctor(clinic, "--gres-conf", str(fifo))
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a regular file" in done.stderr
    clinic.file("gres.conf").unlink()
    fifo.rename(clinic.file("gres.conf"))
    assert "gres.conf: not a regular file" in doctor(clinic).stdout


@pytest.mark.parametrize("text", ["", "24", "24.11 ", "24.1\u0661"])
def test_a_release_that_is_none(clinic: Clinic, text: str) -> None:
    """An empty variable in somebody's CI is no release, and no wish for another one."""
    done = doctor(clinic, "--slurm-version", text)
    assert (done.returncode, done.stdout) == (2, "")
    assert "write it as 23.11" in done.stderr


@pytest.mark.parametrize("text", ["odd = 1\n", None])
def test_a_named_configuration_that_is_wrong(clinic: Clinic, text: str | None) -> None:
    """Exit code 11 as with every command; the machine's own one is a finding."""
    config = clinic.root / "named.toml"
    if text is not None:
        config.write_text(text)
    done = clinic.site.cli(
        "--config", str(config), "doctor", "--slurm-conf", str(clinic.slurm_conf)
    )
    assert (done.returncode, done.stdout) == (11, "")
    assert str(config) in done.stderr


def test_a_script_that_is_not_ours_to_read(clinic: Clinic, public_tmp: Path) -> None:
    """No right to see it is no fault of the site's: listed as not checked."""
    copy = shutil.copytree(clinic.slurm_conf.parent, public_tmp / "slurm")
    (copy / "job_submit.lua").chmod(0)
    config = public_tmp / "none.toml"
    config.write_text('[slurm]\nbin = "/nonexistent"\n')
    command = ("--config", str(config), "doctor", "--slurm-version", "24.11")
    done = cli_as(64001, *command, "--slurm-conf", str(copy / "slurm.conf"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"job_submit.lua: {copy}/job_submit.lua: Permission denied" in " ".join(
        done.stdout.split()
    )
    assert "SM252" in done.stdout.partition("NOT CHECKED")[2]
    copy.chmod(0o700)
    done = cli_as(64001, *command, "--slurm-conf", str(copy / "slurm.conf"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_nothing_to_check(clinic: Clinic) -> None:
    """No slurm.conf, no GPU: exit code 2, not 0 findings."""
    clinic.slurm_conf.unlink()
    (clinic.sim / "proc/driver/nvidia").rename(clinic.sim / "proc/driver/other")
    for name in ("job_submit.lua", "cli_filter.lua", "cgroup.conf", "gres.conf"):
        clinic.file(name).unlink()
    for options in ((), ("--json",), ("--no-live",)):
        done = doctor(clinic, *options)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"slurm-mig: nothing to check: slurm.conf: {clinic.slurm_conf}: "
            "No such file or directory; name one with --slurm-conf\n"
        )


def test_slurm_conf_and_live(clinic: Clinic) -> None:
    """--live with --slurm-conf looks at both; --no-live without it at the usual files alone."""
    assert (
        "only files are read"
        not in doctor(clinic, "--slurm-conf", str(clinic.slurm_conf), "--live").stdout
    )
    assert "only files are read" in doctor(clinic, "--no-live").stdout


def test_files_elsewhere(clinic: Clinic, tmp_path: Path) -> None:
    """Each file by its own option."""
    for name in ("gres.conf", "cgroup.conf", "job_submit.lua", "cli_filter.lua"):
        clinic.file(name).rename(tmp_path / name)
    options = ["--slurm-conf", str(clinic.slurm_conf)]
    for name in ("gres.conf", "cgroup.conf", "job_submit.lua", "cli_filter.lua"):
        option = "--" + name.partition(".")[0].replace("_", "-")
        option += "-conf" if name.endswith(".conf") else ""
        options += [option, str(tmp_path / name)]
    done = doctor(clinic, *options)
    assert done.returncode == 0
    assert "gres.conf:" not in done.stdout
    assert "0 errors, 0 warnings, 0 notes" in done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--node", "n9"), "--node 'n9': "),
        (("--slurm-version", "new"), "write it as 23.11 or 24.11.5"),
        (("--gpu-type", "big"), "not of the form --gpu-type GPU=TYPE"),
        (("--gpu-type", "GeForce=big"), "'GeForce' is not in the catalogue"),
        (("--slurm-conf", ""), "is no path"),
    ],
)
def test_odd_options(clinic: Clinic, options: tuple[str, ...], says: str) -> None:
    """One line, exit code 2."""
    done = doctor(clinic, *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_the_list(clinic: Clinic) -> None:
    """Every check with severity and page, in 80 columns; also for programs."""
    lines = doctor(clinic, "--list").stdout.splitlines()
    assert [line[:5] for line in lines if line.startswith("SM")] == sorted(CHECKS)
    assert max(map(len, lines)) <= 80
    rows = json.loads(doctor(clinic, "--list", "--json").stdout)
    assert [row["code"] for row in rows] == sorted(CHECKS)


def test_how_the_kernel_modules_of_a_simulated_machine_were_loaded(clinic: Clinic) -> None:
    """For a trial without GPU: the doctor sees what was set."""
    simulator = ("simulator", "module", str(clinic.sim))
    assert clinic.site.cli(*simulator, "--no-persistence", "--modeset", "--modify").returncode == 0
    # nvidia_drm's modeset is no matter on GPUs that switch without a reset.
    assert clinic.codes() == ["SM607", "SM607", "SM610"]
    assert clinic.site.cli(*simulator, "--persistence", "--no-modify").returncode == 0
    assert clinic.codes() == []


# -- the table ----------------------------------------------------------------------------


def test_every_check_says_what_it_is() -> None:
    """A severity, areas that exist, a page, and what happens if nothing is done."""
    for item in all_checks():
        assert re.fullmatch(r"SM[1-7]\d\d", item.code)
        assert item.severity in SEVERITIES
        assert set(item.needs) <= set(AREAS)
        assert item.page
        assert item.why.endswith(".")
    assert {item.run.__module__ for item in all_checks()} == {module.__name__ for module in MODULES}


def test_a_code_is_given_once() -> None:
    """Two checks of one code would hide each other."""
    with pytest.raises(ValueError, match="SM101"):
        check("SM101", ERROR, "again", needs=(), page="")(lambda _: iter(()))


def test_a_check_whose_need_is_a_gap_is_named(clinic: Clinic) -> None:
    """Done and not done add up to all of them, whatever is missing."""
    facts = clinic.facts()
    for area in AREAS:
        object.__setattr__(facts, "gaps", {area: "because"})
        result = examine(facts, all_checks())
        skipped = result.skipped.get(area, ())
        assert skipped == tuple(item.code for item in all_checks() if area in item.needs)
        assert result.done + len(skipped) == len(all_checks())


def test_pages_of_ours_exist() -> None:
    """`docs/admin.md: Setting up` names a heading that is there."""
    for item in all_checks():
        for page, _, heading in re.findall(r"(docs/[a-z-]+\.md)(: ([^;]+))?", item.page):
            text = (MANUAL.parent / page).read_text()
            assert not heading or re.search(rf"^##+ {re.escape(heading)}", text, re.MULTILINE), (
                page,
                heading,
            )


def test_the_manual_has_the_table() -> None:
    """docs/doctor.md is written from the checks."""
    assert report.manual(all_checks()) in (MANUAL / "doctor.md").read_text()
