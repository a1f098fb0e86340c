"""What a private cluster needs of the machine is said before anything is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slurm_mig.errors import SandboxFault
from slurm_mig.sandbox import prerequisites

pytestmark = pytest.mark.root

#: Words of unshare(1) for a mount namespace of its own.
APART = ("unshare", "--mount", "--propagation", "private", "sh", "-ec")


def apart(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script where other mounts can be made."""
    done = subprocess.run(
        [*APART, script, sys.executable, *options],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("no mounts in here")
    return done


def test_a_tmp_without_device_nodes_is_no_place(tmp_path: Path) -> None:
    """Debian 13 mounts one on a booted machine; where programs may not run is none either."""
    (tmp_path / "next").mkdir()
    code = (
        "from pathlib import Path; from slurm_mig.sandbox import prerequisites as p; "
        f"print(p.place([Path('{tmp_path}/%s'), Path('{tmp_path}/next')]))"
    )
    for option in ("nodev", "noexec"):
        (tmp_path / option).mkdir()
        mount = f'mount -t tmpfs -o {option} tmpfs {tmp_path}/{option}; exec "$0" "$@"'
        assert apart(mount, "-c", code % option).stdout == f"{tmp_path}/next\n"


def test_no_place_at_all(tmp_path: Path) -> None:
    """Each is named with what is against it."""
    code = (
        "from pathlib import Path; from slurm_mig.sandbox import prerequisites as p; "
        f"p.place([Path('{tmp_path}'), Path('/none/x')])"
    )
    done = apart(f'mount -t tmpfs -o nodev tmpfs {tmp_path}; exec "$0" "$@"', "-c", code)
    assert f"{tmp_path}: nodev: no device nodes; /none/x: No such file" in done.stderr


def test_a_simulated_machine_where_no_device_node_works(tmp_path: Path) -> None:
    """Refused with the cause; nothing is left."""
    script = (
        f'mount -t tmpfs -o nodev tmpfs {tmp_path}; "$0" "$@" || echo "rc $?"; ls -A {tmp_path}'
    )
    words = ("-m", "slurm_mig", "simulator", "create", f"{tmp_path}/m", "--gpu", "h100-80gb-sxm:1")
    done = apart(script, *words)
    assert "mounted nodev: no device node works there" in done.stderr
    assert done.stdout.startswith("rc ")
    assert done.stdout.count("\n") == 1


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it at once, with the command that installs it."""
    monkeypatch.setattr(prerequisites, "WRAPPER", "libnone_wrapper.so")
    for name in ("slurmctld", "scontrol", "munged"):
        (tmp_path / name).touch()
    with pytest.raises(SandboxFault, match="apt-get install slurmd libnss-wrapper$"):
        prerequisites.check([tmp_path])


@pytest.mark.slurm
def test_nothing_is_missing_where_the_tests_run() -> None:
    """Else they would not."""
    prerequisites.check([Path("/usr/sbin"), Path("/usr/bin")])
