"""`slurm-mig install`: images, a site's own directories, and back without a trace."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import slurm_mig
from slurm_mig.cli import VERBS
from slurm_mig.config import sample
from slurm_mig.doctor.node_checks import reinstalled
from slurm_mig.node import install_manifest, install_paths, install_texts
from slurm_mig.node.install_texts import Places, Runtime
from slurm_mig.settings import Config
from tests.kit.gpus import H100
from tests.kit.hooks import STAMP, slurm_commands
from tests.kit.site import Site, job_environ

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

#: A configuration that the image does not have: defaults hold.
IMAGE = {"SLURM_MIG_CONFIG": "/etc/slurm-mig/config.toml", "SLURM_CONF": ""}


def tree(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    return found - {sys.executable.lstrip("/")}


def into(site: Site, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Into an image that has this Python and this slurm-mig."""
    if root.is_dir():
        python = root / sys.executable.lstrip("/")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.touch()
        (root / str(Path(slurm_mig.__file__).parent).lstrip("/")).mkdir(parents=True, exist_ok=True)
    return site.cli("install", "--root", str(root), *more, **IMAGE)


@pytest.mark.parametrize("lacks", ["Python", "slurm-mig"])
def test_an_image_without_this_python(site: Site, tmp_path: Path, lacks: str) -> None:
    """Its hooks would name what is not there, and each job would drain its node."""
    if lacks == "slurm-mig":
        python = tmp_path / sys.executable.lstrip("/")
        python.parent.mkdir(parents=True)
        python.touch()
    for words in ([], ["--dry-run"], ["--only", "hooks"]):
        done = site.cli("install", "--root", str(tmp_path), *words, **IMAGE)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"hooks would name this {lacks}, /" in done.stderr
        assert "which the image does not have" in done.stderr
    assert tree(tmp_path) == set()
    assert site.cli("install", "--root", str(tmp_path), "--only", "man", **IMAGE).returncode == 0


def test_an_image(site: Site, tmp_path: Path) -> None:
    """Everything below the root, and its contents do not know of it."""
    done = into(site, tmp_path)
    assert done.returncode == 0, done.stderr
    found = tree(tmp_path)
    assert {
        "etc/slurm-mig/hooks/prolog",
        "etc/slurm-mig/config.toml",
        "etc/systemd/system/slurm-mig-boot.service",
        "etc/systemd/system/slurm-mig-reconcile.timer",
        "etc/systemd/system/slurm-mig-metrics.service",
        "etc/tmpfiles.d/slurm-mig.conf",
        "usr/local/share/bash-completion/completions/slurm-mig",
        "usr/local/share/zsh/site-functions/_slurm-mig",
        "usr/local/share/fish/vendor_completions.d/slurm-mig.fish",
        "usr/local/share/man/man1/slurm-mig-install.1",
    } <= found
    for name in found:
        assert str(tmp_path) not in (tmp_path / name).read_text(), name
    assert [line for line in done.stdout.splitlines() if "=" in line] == [
        "Prolog=/etc/slurm-mig/hooks/prolog",
        "Epilog=/etc/slurm-mig/hooks/epilog",
        "TaskProlog=/etc/slurm-mig/hooks/task_prolog",
    ]


def test_a_python_of_the_image(tmp_path: Path) -> None:
    """It is named as the image will know it, also where the root is named by a link."""
    (tmp_path / "image/opt/bin").mkdir(parents=True)
    (tmp_path / "link").symlink_to("image")
    for root in (tmp_path / "image", tmp_path / "link"):
        found = install_paths.without(root, tmp_path / "image/opt/bin/python3")
        assert found == Path("/opt/bin/python3")
    assert install_paths.without(tmp_path / "image", Path("/usr/bin/python3")) == Path(
        "/usr/bin/python3"
    )


def test_a_dry_run_writes_nothing(site: Site, tmp_path: Path) -> None:
    """And says of each path what would become of it."""
    fresh = into(site, tmp_path, "--dry-run")
    assert fresh.returncode == 0, fresh.stderr
    assert {line.split()[0] for line in fresh.stdout.splitlines()} == {"new"}
    assert tree(tmp_path) == set()
    into(site, tmp_path)
    hook = tmp_path / "etc/slurm-mig/hooks/prolog"
    hook.chmod(0o644)
    words = {
        line.split()[1]: line.split()[0]
        for line in into(site, tmp_path, "--dry-run").stdout.splitlines()
    }
    assert words.pop(str(hook)) == "changed"
    assert set(words.values()) == {"same"}
    assert hook.stat().st_mode & 0o777 == 0o644
    into(site, tmp_path)
    assert hook.stat().st_mode & 0o777 == 0o755


def test_a_unit_that_is_masked_stays_so(site: Site, tmp_path: Path) -> None:
    """A link to /dev/null is an administrator's word; nothing else is written either."""
    unit = tmp_path / "etc/systemd/system/slurm-mig-reconcile.timer"
    unit.parent.mkdir(parents=True)
    unit.symlink_to("/dev/null")
    for words in ([], ["--dry-run"]):
        done = into(site, tmp_path, *words)
        assert done.returncode == 10
        assert f"write {unit}: it is a symbolic link" in done.stderr
    assert tree(tmp_path) == {"etc/systemd/system/slurm-mig-reconcile.timer"}
    assert unit.readlink() == Path("/dev/null")


def test_a_sites_configuration_stays(site: Site, tmp_path: Path) -> None:
    """The sample lies beside it then, and its run directory is in the files."""
    config = tmp_path / "etc/slurm-mig/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[paths]\nrun = "/run/else where"\n')
    assert into(site, tmp_path).returncode == 0
    assert config.read_text() == '[paths]\nrun = "/run/else where"\n'
    assert config.with_name("config.toml.sample").read_text() == sample()
    line = (tmp_path / "etc/tmpfiles.d/slurm-mig.conf").read_text().splitlines()[-1]
    assert line == 'd "/run/else where" 0755 root root -'


def test_uninstall_leaves_what_is_not_ours(site: Site, tmp_path: Path) -> None:
    """Configuration and other files stay; afterwards nothing of ours is left."""
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/systemd/system/site.service").write_text("[Unit]\n")
    into(site, tmp_path, "--log-file")
    shown = into(site, tmp_path, "--uninstall", "--dry-run")
    assert "would be removed  /etc/slurm-mig/hooks/prolog" in shown.stdout
    assert "etc/logrotate.d/slurm-mig" in tree(tmp_path)
    assert into(site, tmp_path, "--uninstall").returncode == 0
    assert tree(tmp_path) == {"etc/slurm-mig/config.toml", "etc/systemd/system/site.service"}
    assert "nothing is installed" in into(site, tmp_path, "--uninstall").stdout


def test_uninstall_keeps_what_was_changed(site: Site, tmp_path: Path) -> None:
    """It is somebody's work by now: named, with an exit code of its own."""
    into(site, tmp_path)
    unit = tmp_path / "etc/systemd/system/slurm-mig-boot.service"
    unit.write_text(unit.read_text() + "# mine\n")
    done = into(site, tmp_path, "--uninstall")
    assert done.returncode == 24
    assert "changed  /etc/systemd/system/slurm-mig-boot.service" in done.stdout
    assert unit.exists()
    assert not (tmp_path / "etc/slurm-mig/hooks/prolog").exists()


def test_uninstall_of_one_part(site: Site, tmp_path: Path) -> None:
    """Nothing else goes, nor is forgotten: a removed Prolog drains the node."""
    into(site, tmp_path, "--log-file")
    before = tree(tmp_path)
    assert into(site, tmp_path, "--uninstall", "--only", "man").returncode == 0
    assert {Path(name).suffix for name in before - tree(tmp_path)} == {".1"}
    again = into(site, tmp_path, "--uninstall", "--only", "man")
    assert (again.returncode, "nothing of man is installed" in again.stdout) == (0, True)
    assert into(site, tmp_path, "--uninstall").returncode == 0
    assert tree(tmp_path) == {"etc/slurm-mig/config.toml"}


def test_what_slurm_counts_on_holds_only_its_part(site: Site, tmp_path: Path) -> None:
    """Man pages go although slurm.conf names a hook; the hook does not."""
    into(site, tmp_path)
    conf = tmp_path / "etc/slurm/slurm.conf"
    conf.parent.mkdir()
    conf.write_text("Prolog=/etc/slurm-mig/hooks/prolog\n")
    assert into(site, tmp_path, "--uninstall", "--only", "man").returncode == 0
    assert into(site, tmp_path, "--uninstall", "--only", "hooks").returncode == 23


def test_each_file_tells_its_part(tmp_path: Path) -> None:
    """By its name alone, wherever a site lets it lie: an old manifest says no more."""
    runtime = Runtime(Path(sys.executable), Path("/etc/c.toml"), Path("/run/m"), sample="#")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/c.toml").write_text("")
    for site_dirs in ({}, {"prolog_d": Path("/p"), "epilog_d": Path("/e")}):
        places = Places(Path("/h"), Path("/u"), Path("/s"), Path("/t"), Path("/c"), **site_dirs)
        for part in install_paths.PARTS:
            made = install_texts.files([part], places, runtime, tmp_path)
            assert made, part
            assert {install_paths.part_of(file.path) for file in made} == {part}


def test_links_of_an_image_stay_in_it(site: Site, tmp_path: Path) -> None:
    """An absolute link means the image's own directory: the host's would be written to as root."""
    image, host = tmp_path / "image", tmp_path / "host"
    for path in (image / "data/config", image / "usr", host):
        path.mkdir(parents=True)
    (image / "etc").symlink_to("/data/config")
    (image / "usr/local").symlink_to(f"../../..{host}")
    (image / "data/config/systemd").symlink_to(host)
    done = into(site, image)
    assert done.returncode == 0, done.stderr
    assert list(host.iterdir()) == []
    assert (image / "data/config/slurm-mig/hooks/prolog").is_file()
    assert (image / str(host)[1:] / "share/man/man1/slurm-mig.1").is_file()
    assert (image / str(host)[1:] / "system/slurm-mig-boot.service").is_file()
    assert into(site, image, "--uninstall").returncode == 0
    assert tree(image) == {"etc", "usr/local", "data/config/slurm-mig/config.toml"}


def test_linked_directories_of_an_image_are_its_own(site: Site, tmp_path: Path) -> None:
    """What is looked at there is the image's too: a prolog.d, and what enables a unit."""
    image = tmp_path / "image"
    for name in ("own/prolog.d", "own/system/slurmd.service.requires", "etc/systemd"):
        (image / name).mkdir(parents=True)
    (image / "own/prolog.d/README").write_text("x")
    (image / "etc/prolog.d").symlink_to("/own/prolog.d")
    (image / "etc/systemd/system").symlink_to("/own/system")
    done = into(site, image, "--prolog-d", "/etc/prolog.d")
    assert "prolog.d/README is not an executable file" in done.stdout, done.stderr
    unit = "slurm-mig-boot.service"
    link = image / "own/system/slurmd.service.requires" / unit
    link.symlink_to(f"/etc/systemd/system/{unit}")
    assert into(site, image, "--uninstall").returncode == 23


def test_a_linked_configuration_of_an_image(site: Site, tmp_path: Path) -> None:
    """It is the site's: read where the image has it, and not replaced by a sample."""
    directory = tmp_path / "etc/slurm-mig"
    directory.mkdir(parents=True)
    (directory / "config.toml").symlink_to("/site.toml")
    (tmp_path / "site.toml").write_text('[paths]\nrun = "/run/site"\n')
    assert into(site, tmp_path).returncode == 0
    assert (directory / "config.toml").is_symlink()
    assert "/run/site " in (tmp_path / "etc/tmpfiles.d/slurm-mig.conf").read_text()


def test_links_in_a_circle(site: Site, tmp_path: Path) -> None:
    """One line, not an endless walk."""
    (tmp_path / "etc").symlink_to("/etc")
    done = into(site, tmp_path)
    assert done.returncode == 10
    assert "Too many levels of symbolic links" in done.stderr


@pytest.mark.parametrize("root", ["none", "image", "."])
def test_a_root_that_is_no_image(site: Site, tmp_path: Path, root: str) -> None:
    """A mistyped path would become a tree of its own, and the image would stay without hooks."""
    named = root if root == "." else str(tmp_path / root)
    if root == "image":
        (tmp_path / root).write_text("")
    done = into(site, Path(named))
    assert (done.returncode, "--root" in done.stderr) == (2, True)
    assert not (tmp_path / "none").exists()


def test_includes_of_an_image(site: Site, tmp_path: Path) -> None:
    """Its slurm.conf names files as the image has them."""
    into(site, tmp_path)
    conf = tmp_path / "etc/slurm/slurm.conf"
    conf.parent.mkdir()
    conf.write_text("Include /etc/slurm/hooks-of-the-image.conf\n")
    conf.with_name("hooks-of-the-image.conf").write_text("Prolog=/etc/slurm-mig/hooks/prolog\n")
    assert into(site, tmp_path, "--uninstall").returncode == 23


@pytest.mark.parametrize(
    "line", ["Prolog=/etc/slurm-mig/hooks/prolog", "TASKPROLOG=/etc/slurm-mig/hooks/*"]
)
def test_uninstall_while_slurm_counts_on_it(site: Site, tmp_path: Path, line: str) -> None:
    """A Prolog that is missing drains the node: refused, unless forced."""
    into(site, tmp_path)
    conf = tmp_path / "etc/slurm/slurm.conf"
    conf.parent.mkdir()
    conf.write_text("Include more.conf\n")
    conf.with_name("more.conf").write_text(line + "\n")
    before = tree(tmp_path)
    done = into(site, tmp_path, "--uninstall")
    assert done.returncode == 23
    assert "slurm.conf has" in done.stderr
    assert tree(tmp_path) == before
    assert into(site, tmp_path, "--uninstall", "--force").returncode == 0


def test_uninstall_while_a_unit_is_enabled(site: Site, tmp_path: Path) -> None:
    """Slurmd would not start without a unit that it requires."""
    into(site, tmp_path)
    link = tmp_path / "etc/systemd/system/slurmd.service.requires/slurm-mig-boot.service"
    link.parent.mkdir()
    link.symlink_to("/etc/systemd/system/slurm-mig-boot.service")
    done = into(site, tmp_path, "--uninstall")
    assert done.returncode == 23
    # With --now slurmd would stop.
    assert "systemctl disable slurm-mig-boot.service" in done.stderr


def test_a_manifest_of_somebody_elses(site: Site, tmp_path: Path) -> None:
    """It says what root removes: one that a user could have written is not read."""
    victim = tmp_path / "victim"
    victim.write_text("x")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    digest = hashlib.sha256(b"x").hexdigest()
    (hooks / ".installed").write_text(json.dumps({"files": {str(victim): digest}}))
    (hooks / ".installed").chmod(0o666)
    done = site.cli("install", "--uninstall", "--hooks", str(hooks), SLURM_CONF="/none")
    assert (done.returncode, "must not be writable" in done.stderr) == (10, True)
    assert victim.exists()


def test_slurmctld_is_asked_first(site: Site, tmp_path: Path) -> None:
    """What it has loaded counts, not what a file says by now."""
    hooks = tmp_path / "hooks"
    only = ("install", "--only", "hooks", "--hooks", str(hooks))
    assert site.cli(*only).returncode == 0
    slurm_commands(site, scontrol=f"echo 'Epilog[0]               = {hooks}/epilog'")
    done = site.cli(*only, "--uninstall", SLURM_CONF="/none")
    assert (done.returncode, "slurmctld has epilog[0]=" in done.stderr) == (23, True)
    slurm_commands(site, scontrol="echo 'Epilog                  = (null)'")
    assert site.cli(*only, "--uninstall", SLURM_CONF="/none").returncode == 0
    assert not hooks.exists()


def test_a_nodes_own_file_counts_as_well(site: Site, tmp_path: Path) -> None:
    """Slurmd goes by it, whatever slurmctld has loaded by now."""
    hooks, conf = tmp_path / "hooks", tmp_path / "slurm.conf"
    only = ("install", "--only", "hooks", "--hooks", str(hooks))
    assert site.cli(*only).returncode == 0
    slurm_commands(site, scontrol="echo 'Epilog                  = (null)'")
    conf.write_text(f"Epilog={hooks}/epilog\n")
    assert site.cli(*only, "--uninstall", SLURM_CONF=str(conf)).returncode == 23
    assert (hooks / "epilog").exists()


def test_uninstall_while_a_sites_script_calls_a_hook(site: Site, tmp_path: Path) -> None:
    """Slurm.conf names the script alone; without the hook a job would start on a bare GPU."""
    into(site, tmp_path)
    conf, script = tmp_path / "etc/slurm/slurm.conf", tmp_path / "etc/slurm/prolog.d/10-site"
    script.parent.mkdir(parents=True)
    conf.write_text("Prolog=/etc/slurm/prolog.d/*\n")
    script.write_text('#!/bin/sh\n"/etc/slurm-mig/hooks/prolog"\nexit 0\n')
    done = into(site, tmp_path, "--uninstall")
    assert (done.returncode, "10-site calls /etc/slurm-mig/hooks/prolog" in done.stderr) == (
        23,
        True,
    )
    script.write_text("#!/bin/sh\n# not /etc/slurm-mig/hooks/prolog any more\n")
    assert into(site, tmp_path, "--uninstall").returncode == 0


def test_uninstall_from_a_prolog_d_of_the_sites(site: Site, tmp_path: Path) -> None:
    """Its line stays, for the site's own files: ours goes once no slices are counted."""
    conf, folder = tmp_path / "etc/slurm/slurm.conf", tmp_path / "etc/slurm/prolog.d"
    folder.mkdir(parents=True)
    into(site, tmp_path, "--prolog-d", "/etc/slurm/prolog.d")
    counts = "NodeName=n1 Gres=gpu:1,shard:31,mig:1g.10gb:7\n"
    conf.write_text(f"Prolog=/etc/slurm/prolog.d/*\n{counts}")
    # Alone in it: Slurm drains the node for a glob that finds nothing.
    assert "drains the node without" in into(site, tmp_path, "--uninstall").stderr
    (folder / "10-site.sh").write_text("#!/bin/sh\n")
    assert "start on bare GPUs" in into(site, tmp_path, "--uninstall").stderr
    conf.write_text("Prolog=/etc/slurm/prolog.d/*\n")
    assert into(site, tmp_path, "--uninstall").returncode == 0
    assert [path.name for path in folder.iterdir()] == ["10-site.sh"]


def test_uninstall_while_slices_are_counted(site: Site, tmp_path: Path) -> None:
    """Jobs that ask for them would start on bare GPUs, unless hooks in another place carve."""
    into(site, tmp_path)
    conf, other = tmp_path / "etc/slurm/slurm.conf", tmp_path / "etc/slurm/hooks/prolog"
    other.parent.mkdir(parents=True)
    conf.write_text("NodeName=n1 Gres=gpu:1,shard:31,mig:1g.10gb:7\n")
    done = into(site, tmp_path, "--uninstall")
    assert (done.returncode, "start on bare GPUs" in done.stderr) == (23, True)
    shutil.copy(tmp_path / "etc/slurm-mig/hooks/prolog", other)
    conf.write_text(f"Prolog=/etc/slurm/hooks/prolog\n{conf.read_text()}")
    assert into(site, tmp_path, "--uninstall").returncode == 0


def test_uninstall_while_a_job_has_a_slice(site: Site, tmp_path: Path) -> None:
    """Where the hook lines went out first: no Epilog would ever come for it."""
    only = ("install", "--only", "hooks", "--hooks", str(tmp_path / "hooks"))
    assert site.cli(*only).returncode == 0
    slurm_commands(site)
    assert site.prolog(7, STAMP).returncode == 0
    done = site.cli(*only, "--uninstall", SLURM_CONF="/none")
    assert (done.returncode, "job 7 has 3g.40gb@4, which nothing takes down" in done.stderr) == (
        23,
        True,
    )
    assert (tmp_path / "hooks/epilog").exists()
    assert site.epilog(7).returncode == 0
    assert site.cli(*only, "--uninstall", SLURM_CONF="/none").returncode == 0


def test_a_prolog_d_of_the_sites(site: Site, tmp_path: Path) -> None:
    """Ours is the last of the Prologs and the first of the Epilogs in Slurm's order."""
    for name in ("prolog.d", "epilog.d"):
        (tmp_path / name).mkdir()
        for other in ("10-health.sh", "99-mount.sh", "Zeta.sh", "site.sh"):
            (tmp_path / name / other).write_text("#!/bin/sh\n")
            (tmp_path / name / other).chmod(0o755)
    more = ("--prolog-d", str(tmp_path / "prolog.d"), "--epilog-d", str(tmp_path / "epilog.d"))
    command = ("install", "--only", "hooks", "--hooks", str(tmp_path / "hooks"), *more)
    done = site.cli(*command)
    assert done.returncode == 0, done.stderr
    assert f"Prolog={tmp_path}/prolog.d/*\n" in done.stdout
    # Slurm's order: glob(3) sorts, and the list is taken from its end (facts/slurm.md#prologd).
    prologs, epilogs = (
        sorted(glob(f"{tmp_path}/{name}/*"), reverse=True)  # noqa: PTH207  # as Slurm's
        for name in ("prolog.d", "epilog.d")
    )
    assert Path(prologs[-1]).name == install_texts.PROLOG_NAME
    assert Path(epilogs[0]).name == install_texts.EPILOG_NAME
    assert all(os.access(path, os.X_OK) for path in (*prologs, *epilogs))
    assert sorted(path.name for path in (tmp_path / "hooks").iterdir()) == [
        ".installed", "task_prolog",
    ]  # fmt: skip
    assert site.cli(*command, "--uninstall", SLURM_CONF="/none").returncode == 0
    assert len(list((tmp_path / "prolog.d").iterdir())) == 4


def test_what_goes_against_it_there(site: Site, tmp_path: Path) -> None:
    """A file that drains the node, and one in the wrong order, are named and left alone."""
    (tmp_path / "README").write_text("x")
    (tmp_path / "00-early.sh").write_text("#!/bin/sh\n")
    (tmp_path / "00-early.sh").chmod(0o755)
    hooks = ("--hooks", str(tmp_path / "h"), "--prolog-d", str(tmp_path))
    done = site.cli("install", "--only", "hooks", *hooks)
    assert "README is not an executable file" in done.stdout
    assert "00-early.sh runs after 00-slurm-mig.sh" in done.stdout
    assert (tmp_path / "README").read_text() == "x"


def test_no_moment_of_a_glob_shows_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary file that slurmd's glob finds would be run, or drain the node."""
    seen: list[list[str]] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        seen.append(glob(f"{tmp_path}/prolog.d/*"))  # noqa: PTH207  # Path.glob finds dot files
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    places = Places(tmp_path / "hooks", prolog_d=tmp_path / "prolog.d")
    runtime = Runtime(Path(sys.executable), Path("/etc/c.toml"), Path("/run/m"))
    made = install_texts.files(["hooks"], places, runtime, Path("/"))
    install_manifest.write(made, Path("/"), tmp_path / "hooks/.installed")
    # The manifest, then the three files: before each rename only whole ones are to be seen.
    assert [len(names) for names in seen] == [0, 0, 1, 1]


def test_the_rest_of_a_killed_install_goes(tmp_path: Path) -> None:
    """Of ours, under a pid that is no more; a site's own dot file is not looked at."""
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    for name in (f".prolog.{dead.pid}", f".site.{dead.pid}", f".prolog.{os.getppid()}"):
        (tmp_path / name).write_text("")
    places = Places(tmp_path)
    runtime = Runtime(Path(sys.executable), Path("/etc/c.toml"), Path("/run/m"))
    made = install_texts.files(["hooks"], places, runtime, Path("/"))
    install_manifest.write(made, Path("/"), tmp_path / ".installed")
    assert {path.name for path in tmp_path.glob(".*")} == {
        ".installed", f".site.{dead.pid}", f".prolog.{os.getppid()}",
    }  # fmt: skip


def test_the_shipped_units_have_the_defaults(tmp_path: Path) -> None:
    """What `install` writes for the places of the manual is what is in etc/."""
    runtime = Runtime(
        Path("/opt/slurm-mig/bin/python3"),
        Path("/etc/slurm-mig/config.toml"),
        Path("/run/slurm-mig"),
        130.0,
        Config().longest_hook,
    )
    places = Places(tmp_path, units=Path("/etc/systemd/system"))
    made = install_texts.files(["units", "tmpfiles", "log"], places, runtime, Path("/"))
    assert len(made) == 12
    for file in made:
        if file.path.parent.name == "slurmd.service.d":
            assert file.text == (install_texts.sources() / "etc/systemd/slurmd.conf").read_text()
            continue
        (shipped,) = (
            (install_texts.sources() / "etc").glob(f"*/{file.path.name}")
            if (file.path.name != "slurm-mig.conf")
            else [install_texts.sources() / "etc" / file.path.parent.name / file.path.name]
        )
        assert file.text == shipped.read_text(), file.path


# -- completion -------------------------------------------------------------------------


def complete(site: Site, words: str, *, shell: str = "bash") -> list[str]:
    """What the shell's function asks for, with a program called slurm-mig."""
    program = site.root / "slurm-mig"
    program.write_text(
        f"#!{sys.executable} -I\nimport sys\nfrom slurm_mig.cli import main\nmain()\n"
    )
    program.chmod(0o755)
    count = len(words.split(" ")) - 1
    environ = {
        "_SLURM_MIG_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(count),
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([program], env=environ, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_verbs_options_and_values_complete(site: Site) -> None:
    """Verbs that are loaded only when they are called, too."""
    assert {line.partition(",")[2] for line in complete(site, "slurm-mig ")} == set(VERBS)
    assert complete(site, "slurm-mig stat") == ["plain,status"]
    assert "plain,--dry-run" in complete(site, "slurm-mig install --d")
    assert complete(site, "slurm-mig install --only comp") == ["plain,completion"]
    assert complete(site, "slurm-mig simulator rebo") == ["plain,reboot"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_takes_the_completion(site: Site, tmp_path: Path) -> None:
    """Sourced by a real bash, its function answers."""
    into(site, tmp_path)
    assert complete(site, "slurm-mig retir") == ["plain,retire"]
    script = tmp_path / "usr/local/share" / install_paths.COMPLETIONS["bash"]
    ask = (
        f'. "{script}"; COMP_WORDS=(slurm-mig retir); COMP_CWORD=1; '
        f'PATH="{site.root}:$PATH"; _slurm_mig_completion slurm-mig; echo "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["retire"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_takes_the_completion(site: Site, tmp_path: Path) -> None:
    """With a description to its end: it has commas."""
    into(site, tmp_path)
    complete(site, "slurm-mig instal")
    script = tmp_path / "usr/local/share" / install_paths.COMPLETIONS["fish"]
    ask = f"source {script}; complete -C 'slurm-mig instal'"
    environ = {"PATH": f"{site.root}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["fish", "-c", ask], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("install\tWrite hooks, units, ")


def test_an_installed_hook_runs(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """From a prolog.d, as Slurm would run it."""
    site = make_site(H100)
    more = ("--hooks", str(tmp_path / "h"), "--prolog-d", str(tmp_path / "p"))
    assert site.cli("install", "--only", "hooks", *more).returncode == 0
    done = subprocess.run(
        [tmp_path / "p" / install_texts.PROLOG_NAME],
        env=job_environ(7, STAMP), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(site.machine.board(0).instances) > 0


def test_what_the_doctor_says_of_a_stale_hook() -> None:
    """In a prolog.d only the Prolog is written: Slurm would run the other hooks there, too."""
    for name, option in (
        (install_texts.PROLOG_NAME, "--prolog-d"),
        (install_texts.EPILOG_NAME, "--epilog-d"),
    ):
        assert (
            reinstalled(f"/etc/x.d/{name}") == f"slurm-mig install --only hooks {option} /etc/x.d"
        )
    assert reinstalled("/a/prolog") == "slurm-mig install --only hooks --hooks /a"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("config", ["/etc/c.toml", '/a b/%n/it\'s $HOME "x".toml'])
def test_systemd_understands_every_unit(public_tmp: Path, config: str) -> None:
    """No word of complaint, whatever the paths are."""
    runtime = Runtime(Path(sys.executable), Path(config), Path("/run/m"), 130.0)
    places = Places(public_tmp / "hooks", units=public_tmp / "units")
    made = install_texts.files(["units"], places, runtime, Path("/"))
    install_manifest.write(made, Path("/"), public_tmp / ".installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
         *(str(file.path) for file in made if file.path.suffix != ".conf")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    mine = [line for line in done.stderr.splitlines() if "slurm-mig" in line]
    assert (done.returncode, mine) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="no systemd-tmpfiles here")
@pytest.mark.parametrize("run", ["/run/slurm-mig", '/run/a b/"c" %d'])
def test_systemd_tmpfiles_makes_the_directory(tmp_path: Path, run: str) -> None:
    """That very one, with its mode, below a root."""
    runtime = Runtime(Path(sys.executable), Path("/etc/c.toml"), Path(run))
    made = install_texts.files(["tmpfiles"], Places(Path("/h")), runtime, Path("/"))
    install_manifest.write(made, tmp_path, tmp_path / ".installed")
    done = subprocess.run(
        ["systemd-tmpfiles", f"--root={tmp_path}", "--create", "slurm-mig.conf"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / run.lstrip("/")).stat().st_mode & 0o777 == 0o755


def test_slurmd_has_time_to_stop(site: Site, tmp_path: Path) -> None:
    """More than the longest hook of this configuration; a site's own file has the last word."""
    config = tmp_path / "etc/slurm-mig/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[hooks]\ndeadline = 400\n[slurm]\ntimeout = 30\n")
    assert into(site, tmp_path).returncode == 0
    drop_in = tmp_path / "etc/systemd/system/slurmd.service.d/10-slurm-mig.conf"
    assert "\n[Service]\nTimeoutStopSec=442\n" in drop_in.read_text()
    assert into(site, tmp_path, "--uninstall", "--only", "tmpfiles").returncode == 0
    assert drop_in.exists()
    assert into(site, tmp_path, "--uninstall", "--only", "units").returncode == 0
    assert not drop_in.parent.exists()


def test_another_environment_is_named(site: Site, tmp_path: Path) -> None:
    """Its hooks are ours from now on; its units would run the old code at the next boot."""
    assert into(site, tmp_path).returncode == 0
    assert "until now" not in into(site, tmp_path).stdout
    hook = tmp_path / "etc/slurm-mig/hooks/prolog"
    hook.write_text(hook.read_text().replace(sys.executable, "/usr/lib/slurm-mig/bin/python3"))
    unit = tmp_path / "usr/lib/systemd/system/slurm-mig-boot.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/lib/slurm-mig/bin/python3 -I -m slurm_mig\n")
    said = into(site, tmp_path).stdout
    assert "# the hooks were those of /usr/lib/slurm-mig/bin/python3 until now\n" in said
    assert "system/slurm-mig-boot.service runs /usr/lib/slurm-mig/bin/python3: of units" in said
