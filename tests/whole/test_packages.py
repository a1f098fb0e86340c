"""Wheel, sdist, Debian package and RPM: complete, and working where nothing else of ours is."""

from __future__ import annotations

import gzip
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig import __version__
from slurm_mig.cli import VERBS
from slurm_mig.node import install_manifest, install_paths, install_texts
from tests.kit.gpus import H100
from tests.kit.hooks import STAMP
from tests.kit.site import job_environ

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site

TOP = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]

pytestmark = pytest.mark.root


def run(*command: str | Path, code: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


def shipped() -> set[str]:
    """What a package of ours must have, by its path in the source tree."""
    found = {str(path.relative_to(TOP)) for path in (TOP / "etc").rglob("*") if path.is_file()}
    found |= {str(path.relative_to(TOP)) for path in (TOP / "docs/man").iterdir()}
    return found | set(install_texts.HOOKS.values())


# -- wheel and sdist --------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip does, without a network."""
    directory = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir"]
    run(*PIP, "wheel", *options, directory, TOP)
    (made,) = directory.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend's own hook (PEP 517)."""
    directory = tmp_path_factory.mktemp("sdist")
    code = f"from hatchling.build import build_sdist; build_sdist({str(directory)!r})"
    run(sys.executable, "-c", code, cwd=TOP)
    (made,) = directory.glob("*.tar.gz")
    return made


def test_the_wheel_is_complete(wheel: Path) -> None:
    """Hooks, everything of etc/ and the man pages, below the package."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in shipped():
        place = name.removeprefix("docs/")
        assert f"slurm_mig/share/{place}" in names, name
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


def test_the_sdist_is_complete(sdist: Path) -> None:
    """The same, where they are in the source, with tests, manual and what the Makefile runs."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        modes = {item.name.partition("/")[2]: item.mode for item in archive.getmembers()}
    assert shipped() | {"Makefile", "CHANGELOG.md", "docs/admin.md", "tests/conftest.py"} <= names
    named = set(
        re.findall(r"(?<=\s)(?:\$\(BIN\)/python )?(\.ci/\S+)", (TOP / "Makefile").read_text())
    )
    assert {".ci/packages", ".ci/make/deb.py", ".ci/make/mkdocs.yml"} <= named <= names
    assert {".ci/make/stage.py", ".ci/make/slurm-mig.spec"} <= names
    assert modes[".ci/packages"] & 0o111
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_works_alone(
    wheel: Path, make_site: Callable[..., Site], public_tmp: Path
) -> None:
    """In a new environment: `install` writes everything, and its Prolog carves."""
    home = public_tmp / "opt"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    run(*PIP, "--python", home / "bin/python", "install", "--no-index", "--no-deps", wheel)
    packages = next((home / "lib").glob("python3.*/site-packages"))
    # What it depends on comes from here: nothing is downloaded.
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import slurm_mig; print(slurm_mig.__file__)"
    assert str(packages) in run(home / "bin/python", "-I", "-c", where).stdout
    program = home / "bin/slurm-mig"
    root = public_tmp / "image"
    root.mkdir()
    refused = run(program, "install", "--root", root, env={}, code=2)
    assert "which the image does not have" in refused.stderr
    shutil.copytree(home, root / str(home).lstrip("/"), symlinks=True)
    base = Path(sys.executable).resolve()
    (root / str(base).lstrip("/")).parent.mkdir(parents=True)
    (root / str(base).lstrip("/")).touch()
    run(program, "install", "--root", root, env={})
    units = {path.name for path in (root / "etc/systemd/system").iterdir()}
    assert units == {*(Path(unit).name for unit in install_texts.UNITS), "slurmd.service.d"}
    assert len(list((root / "usr/local/share/man/man1").iterdir())) > len(VERBS)
    site = make_site(H100)
    hooks = site.root / "packaged"
    run(program, "--config", site.config, "install", "--only", "hooks", "--hooks", hooks, env={})
    assert f"python='{home}/bin/python" in (hooks / "prolog").read_text()
    run(hooks / "prolog", env=job_environ(7, STAMP))
    assert len(site.machine.board(0).instances) == STAMP.count(":") > 0


# -- the Debian package ---------------------------------------------------------------------

needs_dpkg = pytest.mark.skipif(
    not (TOP / ".ci/make/deb.py").exists() or shutil.which("dpkg-deb") is None,
    reason="no dpkg-deb or no .ci/ here",
)


def builder(name: str = "deb") -> Any:
    spec = importlib.util.spec_from_file_location(name, TOP / f".ci/make/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Both import what they share by its name alone, as they do when they are run.
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOP / ".ci/make"))
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make deb` does."""
    found: Path = builder().build(tmp_path_factory.mktemp("deb"))
    return found


@pytest.fixture
def image(public_tmp: Path) -> Path:
    """A directory that dpkg takes for a system without packages."""
    root = public_tmp / "image"
    for name in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / name).mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text("")
    # What the package depends on.
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").touch()
    return root


def dpkg(root: Path, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Its scripts run here, with DPKG_ROOT; the python3 they need is this machine's."""
    force = [f"--force-{word}" for word in ("script-chrootless", "depends", "not-root", "confold")]
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
    return run("dpkg", f"--root={root}", *force, *arguments, code=code, env=environ)


@needs_dpkg
def test_what_is_in_the_debian_package(deb: Path) -> None:
    """Root's, in Debian's places; the configuration is a conffile, the ledger is nobody's."""
    info = run("dpkg-deb", "--info", deb).stdout
    assert f"Version: {__version__}" in info
    assert "Depends: python3 (>= 3.11), python3 (<< 3.15)" in info
    lines = run("dpkg-deb", "--contents", deb).stdout.splitlines()
    assert {line.split()[1] for line in lines} == {"root/root"}
    files = [line for line in lines if not line.startswith("l")]
    assert not [line for line in files if "w" in (line[5], line[8])]
    names = {line.split()[5] for line in lines}
    assert {
        "./usr/bin/slurm-mig",
        "./usr/lib/systemd/system/slurm-mig-boot.service",
        "./usr/lib/systemd/system/slurm-mig-reconcile.timer",
        "./usr/lib/tmpfiles.d/slurm-mig.conf",
        "./usr/share/bash-completion/completions/slurm-mig",
        "./usr/share/zsh/vendor-completions/_slurm-mig",
        "./usr/share/man/man1/slurm-mig.1.gz",
        "./etc/slurm-mig/config.toml",
        "./usr/lib/slurm-mig/lib/python3/site-packages/pynvml.py",
        "./usr/lib/slurm-mig/lib/python3/site-packages/slurm_mig/share/prolog/prolog",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".pyc")) or "/var/lib/" in name]
    # Debian's zsh does not look there.
    assert not [name for name in names if "site-functions" in name]


@needs_dpkg
def test_the_same_source_gives_the_same_package(deb: Path, tmp_path: Path) -> None:
    """Byte for byte."""
    again: Path = builder().build(tmp_path)
    assert again.read_bytes() == deb.read_bytes()


@needs_dpkg
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no python3 of the system's")
def test_a_life_of_the_debian_package(
    deb: Path, image: Path, make_site: Callable[..., Site]
) -> None:
    """Installed, used, upgraded, refused to go, removed, purged; the ledger stays."""
    dpkg(image, "-i", deb)
    hooks = image / "etc/slurm-mig/hooks"
    assert "python='/usr/lib/slurm-mig/bin/python3'" in (hooks / "prolog").read_text()
    python = image / "usr/lib/slurm-mig/bin/python3"
    assert run(python, "-I", "-m", "slurm_mig", "--version").stdout.endswith(f"{__version__}\n")
    run(python, "-I", "-c", "import yaml, prometheus_client; yaml.safe_load('a: 1')")
    program = (image / "usr/bin/slurm-mig").read_text().replace("/usr/lib", f"{image}/usr/lib")
    (image / "program").write_text(program)
    asked = {"PATH": "/usr/bin:/bin", "_SLURM_MIG_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    found = run("sh", image / "program", env=asked | {"COMP_WORDS": "slurm-mig stat"}).stdout
    assert found == "plain,status\n"
    page = gzip.decompress((image / "usr/share/man/man1/slurm-mig.1.gz").read_bytes())
    assert page.startswith(b".TH")

    # A hook as it is, but for the two places that a node has at /.
    site = make_site(H100)
    text = (
        (hooks / "prolog")
        .read_text()
        .replace("='/usr/lib/slurm-mig", f"='{image}/usr/lib/slurm-mig")
    )
    copy = site.root / "prolog"
    copy.write_text(text.replace("='/etc/slurm-mig/config.toml'", f"='{site.config}'"))
    copy.chmod(0o755)
    run(copy, env=job_environ(7, STAMP))
    assert len(site.machine.board(0).instances) > 0

    config = image / "etc/slurm-mig/config.toml"
    config.write_text(config.read_text() + "# mine\n")
    ledger = image / "var/lib/slurm-mig/ledger.db"
    ledger.parent.mkdir()
    ledger.write_text("x")
    dpkg(image, "-i", deb)
    assert config.read_text().endswith("# mine\n")

    conf = image / "etc/slurm/slurm.conf"
    conf.parent.mkdir()
    conf.write_text("Prolog=/etc/slurm-mig/hooks/prolog\n")
    kept = dpkg(image, "--remove", "slurm-mig", code=1)
    assert "slurmd drains the node" in kept.stderr
    assert "Put these lines" not in kept.stdout
    assert (hooks / "prolog").exists()
    conf.write_text("")
    dpkg(image, "--remove", "slurm-mig")
    assert (hooks.exists(), (image / "usr/lib/slurm-mig").exists()) == (False, False)
    assert config.exists()
    dpkg(image, "--purge", "slurm-mig")
    assert (config.parent.exists(), ledger.exists()) == (False, True)


#: Units with the directory that enabling each links it into.
ENABLED = (
    ("slurm-mig-boot.service", "slurmd.service.requires"),
    ("slurm-mig-reconcile.timer", "timers.target.wants"),
)


def enabled(units: Path, name: str, kind: str) -> Path:
    """The link that `systemctl enable` makes."""
    link = units / kind / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"/usr/lib/systemd/system/{name}")
    return link


@needs_dpkg
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no python3 of the system's")
def test_the_package_beside_an_environment_of_pips(deb: Path, image: Path) -> None:
    """Neither is in the other's place; each names the other, and leaves what is the other's."""
    other = image / "opt/slurm-mig/bin/slurm-mig"
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\necho old\n")
    hook = image / "etc/slurm-mig/hooks/prolog"
    done = dpkg(image, "-i", deb)
    assert "/opt/slurm-mig/bin/slurm-mig is another installation" in done.stderr
    assert "python='/usr/lib/slurm-mig/bin/python3'" in hook.read_text()
    assert other.read_text() == "#!/bin/sh\necho old\n"
    # Its hooks are the package's by now, its units are not: the list of both is one.
    units = image / "etc/systemd/system"
    boot, timer = (enabled(units, name, kind) for name, kind in ENABLED)
    text = "[Service]\nExecStart=/opt/slurm-mig/bin/python3 -I -m slurm_mig reconcile --boot\n"
    unit = install_paths.File(Path("/etc/systemd/system/slurm-mig-boot.service"), text)
    install_manifest.write([unit], image, hook.with_name(install_paths.MANIFEST))
    dpkg(image, "--remove", "slurm-mig")
    assert (hook.exists(), boot.is_symlink(), timer.is_symlink()) == (False, True, False)
    assert (units / boot.name).read_text() == text
    dpkg(image, "-i", deb)
    timer = enabled(units, *ENABLED[1])
    # As that one's `install` does.
    hook.write_text(hook.read_text().replace("/usr/lib/slurm-mig/bin", "/opt/slurm-mig/bin"))
    done = dpkg(image, "--remove", "slurm-mig")
    assert "the hooks are another installation's, and stay" in done.stderr
    assert (hook.exists(), other.exists()) == (True, True)
    # The package's own unit is disabled; of one name the other's counts.
    assert (boot.is_symlink(), timer.is_symlink()) == (True, False)
    # slurm.conf names these hooks: slurmd would drain the node without them.
    dpkg(image, "--purge", "slurm-mig")
    assert hook.exists()


@needs_dpkg
@pytest.mark.skipif(shutil.which("lintian") is None, reason="no lintian here")
def test_lintian_finds_nothing(deb: Path) -> None:
    """But the one warning that the package itself answers."""
    run("lintian", "--allow-root", "--fail-on", "error,warning", deb)


@needs_dpkg
def test_licences_of_what_is_bundled(deb: Path) -> None:
    """Who made each part and what may be done with it, also where a distribution has no file."""
    told = run("sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -xO "$2"', "sh", deb, COPYRIGHT)
    stanzas = dict.fromkeys(re.findall(r"^Comment: (\S+) ", told.stdout, re.MULTILINE))
    assert set(stanzas) == {"nvidia-ml-py", "filelock", "click", "prometheus-client", "PyYAML"}
    assert re.search(r"^Copyright: 2011-\d+, NVIDIA Corporation", told.stdout, re.MULTILINE)
    assert "Redistributions in binary form must reproduce" in told.stdout
    assert "the authors of" not in told.stdout


COPYRIGHT = "./usr/share/doc/slurm-mig/copyright"

# -- the RPM --------------------------------------------------------------------------------

needs_rpm = pytest.mark.skipif(
    not (TOP / ".ci/make/rpm.py").exists() or shutil.which("rpmbuild") is None,
    reason="no rpmbuild or no .ci/ here",
)


@pytest.fixture(scope="module")
def rpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make rpm` does."""
    found: Path = builder("rpm").build(tmp_path_factory.mktemp("rpm"))
    return found


def asked(rpm: Path, *options: str) -> str:
    return run("rpm", "--query", "--package", *options, rpm).stdout


@needs_rpm
@pytest.mark.skipif(shutil.which("rpmlint") is None, reason="no rpmlint here")
def test_rpmlint_finds_nothing(rpm: Path) -> None:
    """But what .ci/make/rpmlint.toml passes over, each with its reason."""
    told = run("rpmlint", "-c", TOP / ".ci/make/rpmlint.toml", rpm).stdout
    assert "0 errors, 0 warnings" in told, told


@needs_rpm
def test_what_is_in_the_rpm(rpm: Path) -> None:
    """By rpm's own word: root's, nobody else's to write, configuration kept, licences told."""
    head = asked(rpm, "--queryformat", "%{NAME} %{VERSION} %{ARCH}")
    assert head == f"slurm-mig {__version__} noarch"
    needed = {line for line in asked(rpm, "--requires").splitlines() if "rpmlib" not in line}
    assert needed == {"/bin/sh", "python3.11"}
    line = "[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]"
    rows = [row.split(maxsplit=2) for row in asked(rpm, "--queryformat", line).splitlines()]
    assert {owner for _, owner, _ in rows} == {"root:root"}
    assert not [row for row in rows if row[0][0] != "l" and "w" in (row[0][5], row[0][8])]
    names = {name for _, _, name in rows}
    assert {
        "/usr/bin/slurm-mig",
        "/usr/lib/systemd/system/slurm-mig-boot.service",
        "/usr/lib/systemd/system/slurmd.service.d/10-slurm-mig.conf",
        "/usr/lib/tmpfiles.d/slurm-mig.conf",
        "/usr/share/zsh/site-functions/_slurm-mig",
        "/usr/share/man/man1/slurm-mig.1.gz",
        "/usr/lib/slurm-mig/lib/python3/site-packages/pynvml.py",
        "/usr/lib/slurm-mig/lib/python3/site-packages/slurm_mig/share/prolog/prolog",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert asked(rpm, "--configfiles").split() == ["/etc/slurm-mig/config.toml"]
    told = asked(rpm, "--licensefiles").split()
    assert {Path(name).name for name in told} == {
        "LICENSE",
        *(f"LICENSE.{name}" for name in builder("stage").BUNDLED),
    }


@needs_rpm
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="no python3 of the system's")
def test_a_life_of_the_rpm(rpm: Path, public_tmp: Path) -> None:
    """Its files by rpm, its scripts as rpm runs them: hooks, a refusal, an upgrade, a removal."""
    root = public_tmp / "image"
    root.mkdir()
    quiet = ("--root", root, "--noscripts", "--nodeps")
    run("rpm", *quiet, "--install", rpm)
    run("rpm", "--root", root, "--nodeps", "--noscripts", "--verify", "slurm-mig")
    (root / "usr/bin/python3").touch()
    # This machine's python3 in the image's place: the link there leads to the node's.
    (root / "usr/lib/slurm-mig/bin/python3").unlink()
    (root / "usr/lib/slurm-mig/bin/python3").symlink_to("/usr/bin/python3")
    texts = re.split(r"^\w+ scriptlet .*:\n", asked(rpm, "--scripts"), flags=re.MULTILINE)
    post, preun = (text.removeprefix("#!/bin/sh\n") for text in texts[1:])

    def scriptlet(text: str, count: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DPKG_ROOT": str(root)}
        return run("sh", "-c", text, "sh", count, code=code, env=environ)

    scriptlet(post, "1")
    hook = root / "etc/slurm-mig/hooks/prolog"
    assert "python='/usr/lib/slurm-mig/bin/python3'" in hook.read_text()
    conf = root / "etc/slurm/slurm.conf"
    conf.parent.mkdir()
    conf.write_text("Prolog=/etc/slurm-mig/hooks/prolog\n")
    assert "slurmd drains the node" in scriptlet(preun, "0", code=23).stderr
    scriptlet(preun, "1")
    assert hook.exists()
    conf.write_text("")
    scriptlet(preun, "0")
    assert not hook.exists()
    config = root / "etc/slurm-mig/config.toml"
    config.write_text(config.read_text() + "# mine\n")
    run("rpm", *quiet, "--erase", "slurm-mig")
    assert not (root / "usr/lib/slurm-mig").exists()
    assert config.with_name("config.toml.rpmsave").read_text().endswith("# mine\n")
