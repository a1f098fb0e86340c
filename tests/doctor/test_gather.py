"""What is read where: a node, a login node, a directory of files."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from slurm_mig.doctor import all_checks
from slurm_mig.doctor.gather import LOCAL, worst_case
from slurm_mig.errors import UsageFault
from tests.kit.gpus import A30, A100, H100, RTX
from tests.kit.hooks import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

    from slurm_mig.settings import Config
    from tests.kit.clinic import Clinic

pytestmark = pytest.mark.root


def test_a_login_node(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has no GPU: its files are checked, the rest is said to be not done; no check is silent."""
    monkeypatch.setenv("SLURMD_NODENAME", "login")
    (clinic.sim / "proc/driver/nvidia").rename(clinic.sim / "proc/driver/other")
    result = clinic.result()
    assert result.findings == ()
    reasons = clinic.facts().gaps
    for area in ("node", *LOCAL):
        assert "this machine (login) is no node with mig counts" in reasons[area]
    assert "SM601" in result.skipped["node"]
    assert result.done + sum(map(len, result.skipped.values())) == len(all_checks())


def test_the_machine_is_found_by_its_host_name(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NodeName, or NodeHostname where exactly one node has it."""
    monkeypatch.delenv("SLURMD_NODENAME")
    monkeypatch.setattr(socket, "gethostname", lambda: "box7.example.org")
    assert "box7" in clinic.facts().gaps["node"]
    clinic.edit("slurm.conf", "NodeName=n1", "NodeName=n1 NodeHostname=box7")
    assert clinic.facts().target == "n1"
    clinic.edit("slurm.conf", "NodeName=login", "NodeName=login NodeHostname=box7")
    assert "node" in clinic.facts().gaps


def test_a_node_before_its_slurm(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's side is looked at on its own; no file of Slurm's counts as left out."""
    monkeypatch.setenv("SLURM_CONF", str(clinic.root / "none.conf"))
    monkeypatch.setenv("SLURMD_NODENAME", "")
    facts = clinic.facts()
    assert [gpu.minor for gpu in facts.gpus]
    assert {"slurm.conf", "gres.conf", "cgroup.conf"} <= set(facts.gaps)
    assert not {"node", *LOCAL} & set(facts.gaps)
    assert clinic.codes() == []
    (clinic.sim / "proc/driver/nvidia").rename(clinic.sim / "proc/driver/other")
    assert "neither a slurm.conf nor" in clinic.facts().gaps["node"]


def test_where_slurm_conf_is_looked_for(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place is named."""
    monkeypatch.delenv("SLURM_CONF")
    monkeypatch.setattr("slurm_mig.doctor.gather.USUAL", (clinic.root / "a", clinic.root / "b"))
    gap = clinic.facts().gaps["slurm.conf"]
    assert gap == f"none of {clinic.root}/a, {clinic.root}/b"
    clinic.slurm_conf.rename(clinic.root / "b")
    assert "slurm.conf" not in clinic.facts().gaps


def test_a_directory_that_is_closed(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may lie there is a gap with its reason, not the end of the report."""
    real = Path.exists

    def exists(self: Path) -> bool:
        if self.parent == clinic.slurm_conf.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return real(self)

    def opened(path: str | Path, *more: int, **where: int) -> int:
        if Path(path).parent == clinic.slurm_conf.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return os_open(path, *more, **where)

    os_open = os.open
    monkeypatch.setattr(Path, "exists", exists)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.delenv("SLURM_CONF")
    monkeypatch.setattr("slurm_mig.doctor.gather.USUAL", (clinic.slurm_conf,))
    gaps = clinic.facts().gaps
    for area, name in (("slurm.conf", "slurm.conf"), ("job_submit.lua", "job_submit.lua")):
        assert gaps[area] == f"{clinic.file(name)}: Permission denied"


@pytest.mark.parametrize("name", ["gpu[01-0", "gpu[01-99999999]", "gpu[2-1]"])
@pytest.mark.parametrize("file", ["slurm.conf", "gres.conf"])
def test_hosts_that_cannot_be_read(clinic: Clinic, file: str, name: str) -> None:
    """A line that names no node would else pass for a node that is sound."""
    path = clinic.file(file)
    path.write_text(f"{path.read_text()}NodeName={name} Name=gpu Type=x File=/dev/nvidia0\n")
    (finding,) = [item for item in clinic.result().findings if item.check.code == "SM119"]
    number = len(path.read_text().splitlines())
    assert finding.evidence.startswith(f"{path}:{number}: host list {name!r}")


def test_without_root(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files can be looked at; the node not."""
    monkeypatch.setattr(os, "geteuid", lambda: 64001)
    facts = clinic.facts()
    assert facts.gaps["driver"] == "root needed to look at this machine"
    assert facts.gpus == ()


def test_another_node(clinic: Clinic) -> None:
    """Its lines, without what only it could show; a name that is none is refused."""
    clinic.options = {"node": "login"}
    assert clinic.codes() == ["SM201"]
    clinic.options = {"node": "n9"}
    with pytest.raises(UsageFault, match=r"--node 'n9': .* has n1, login"):
        clinic.facts()


def test_files_alone(clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of files is a whole: what is missing there is missing."""
    monkeypatch.delenv("SLURM_CONF")
    monkeypatch.setenv("SLURMD_NODENAME", "")
    clinic.live = False
    clinic.options = {"slurm_conf": clinic.slurm_conf, "version": (24, 11)}
    assert clinic.codes() == []
    clinic.file("job_submit.lua").unlink()
    clinic.file("gres.conf").unlink()
    assert clinic.codes() == ["SM252"]
    assert "No such file" in clinic.facts().gaps["gres.conf"]
    clinic.options |= {"slurm_conf": tmp_path / "none.conf"}
    assert "none.conf: No such file" in clinic.facts().gaps["slurm.conf"]


def test_job_submit_lua_lies_on_the_controller(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine its absence is no finding, and not passed over either."""
    clinic.edit("slurm.conf", f"SlurmctldHost={socket.gethostname()}", "SlurmctldHost=ctl")
    clinic.file("job_submit.lua").unlink()
    assert clinic.codes() == []
    assert "lies beside slurm.conf on the controller" in clinic.facts().gaps["job_submit.lua"]


def test_a_script_that_loads_ours(clinic: Clinic) -> None:
    """A site's own job_submit.lua may load ours with dofile; ours is then looked at."""
    ours = clinic.file("job_submit.lua").rename(clinic.file("slurm-mig.lua"))
    clinic.file("job_submit.lua").write_text(f'dofile("{ours}")\n')
    assert clinic.codes() == []
    clinic.edit("slurm-mig.lua", "weight = 14", "weight = 15")
    assert clinic.codes() == ["SM254"]


def test_a_hook_that_calls_ours(clinic: Clinic) -> None:
    """A site's own prolog may run ours; one that only speaks of it does not."""
    hooks = clinic.root / "hooks"
    own = clinic.root / "own-prolog"
    clinic.edit("slurm.conf", f"\nProlog={hooks}/prolog", f"\nProlog={own}")
    own.write_text("#!/bin/sh\n/etc/slurm-mig/hooks/prolog\n")
    own.chmod(0o755)
    assert clinic.codes() == []
    own.write_text("#!/bin/sh\n# /etc/slurm-mig/hooks/prolog\n")
    assert clinic.codes() == ["SM303"]


def test_hooks_in_a_directory_of_others(clinic: Clinic) -> None:
    """A pattern is looked at as Slurm runs it; an empty one drains the node."""
    folder = clinic.root / "prolog.d"
    folder.mkdir()
    hooks = clinic.root / "hooks"
    clinic.edit("slurm.conf", f"\nProlog={hooks}/prolog", f"\nProlog={folder}/*")
    assert clinic.codes() == ["SM301"]
    (folder / "10-mig").symlink_to(hooks / "prolog")
    assert clinic.codes() == []
    folder.chmod(0o777)
    assert clinic.codes() == ["SM305"]


def test_what_slurmctld_has_counts(clinic: Clinic) -> None:
    """Not the file, where the two differ; that they differ is a finding of its own."""
    clinic.loaded(PrologFlags="DeferBatch")
    assert clinic.codes() == ["SM101", "SM116"]
    evidence = clinic.result().findings[0].evidence
    assert evidence == "slurmctld has PrologFlags = DeferBatch"


def test_prologs_as_24_11_lists_them(clinic: Clinic) -> None:
    """`Prolog[0]`, `Prolog[1]` in scontrol show config."""
    clinic.loaded()
    live = clinic.root / "bin/live"
    hooks = clinic.root / "hooks"
    line = f"{'Prolog':23} = {hooks}/prolog"
    live.write_text(
        live.read_text().replace(line, f"Prolog[0] = /none\nProlog[1] = {hooks}/prolog")
    )
    # The file has one of the two only; /none is not there.
    assert clinic.codes() == ["SM301", "SM116"]


def test_without_scontrol_the_release_is_unknown(clinic: Clinic) -> None:
    """What depends on it is not done, unless it is named."""
    (clinic.root / "bin/scontrol").unlink()
    of_slurm, of_fit = {"SM109", "SM110", "SM134"}, {"SM271", "SM272", "SM274"}
    assert set(clinic.result().skipped["version"]) == of_slurm | of_fit
    clinic.options = {"version": (24, 11)}
    assert "version" not in clinic.facts().gaps


# -- GPU types ---------------------------------------------------------------------------


def test_a_type_name_of_the_sites_own(clinic: Clinic) -> None:
    """Found by what the driver shows, by the profiles, or by option; never guessed."""
    for name in ("slurm.conf", "gres.conf"):
        clinic.edit(name, "h100", "big")
    clinic.edit("job_submit.lua", '["h100"]', '["big"]')
    clinic.edit("cli_filter.lua", '["h100"]', '["big"]')
    assert clinic.codes() == []
    clinic.live = False
    assert clinic.codes() == []
    clinic.edit("slurm.conf", ",mig:4g.40gb:2", "")
    assert "no model of the catalogue" in clinic.facts().gaps["fleet"]
    clinic.options = {"types": {"big": H100}}
    assert clinic.codes() == ["SM213"]
    clinic.options = {"types": {"big": "GeForce"}}
    with pytest.raises(UsageFault, match="GeForce"):
        clinic.facts()


def test_a_node_of_several_models(admit: Callable[..., Clinic]) -> None:
    """Counts and weights model by model."""
    clinic = admit(RTX, A30, A100)
    assert clinic.codes() == []
    clinic.edit("gres.conf", "Type=a30 Count=4", "Type=a30 Count=5")
    assert clinic.codes() == ["SM206", "SM207"]


def test_untyped_shards(clinic: Clinic) -> None:
    """An untyped count is the sum."""
    clinic.edit("slurm.conf", "shard:h100:62", "shard:62")
    assert clinic.codes() == []
    clinic.edit("slurm.conf", "shard:62", "shard:60")
    assert clinic.codes() == ["SM206"]


# -- odds and ends ------------------------------------------------------------------------


def test_worst_cases() -> None:
    """What the configuration calls the longest, else the sum of the waits."""
    waits = {"lock_timeout": 30.0, "destroy_timeout": 10.0, "slurm_timeout": 20.0}
    sums = cast("Config", SimpleNamespace(**waits))
    assert worst_case(sums) == (30 + 7 + 5 * 20, 30 + 7 * 10)
    assert worst_case(cast("Config", SimpleNamespace(longest_hook=50.0))) == (50, 50)


def test_words_that_slurmctld_leaves_out(clinic: Clinic) -> None:
    """24.11 shows task/none as nothing: no difference, and no task/cgroup either."""
    clinic.edit("slurm.conf", "TaskPlugin=task/affinity,task/cgroup", "TaskPlugin=task/none")
    clinic.loaded(TaskPlugin="(null)")
    (finding,) = clinic.result().findings
    assert (finding.check.code, finding.fix) == ("SM402", "TaskPlugin=task/cgroup")


@pytest.mark.parametrize("ledger", [True, False])
def test_nothing_is_changed(clinic: Clinic, ledger: bool) -> None:
    """Not a file, not a mode, not even one that is wrong; no ledger is made."""
    clinic.site.prolog(7, STAMP)
    (clinic.root / "state").chmod(0o755)
    if not ledger:
        for path in (clinic.root / "state").glob("ledger.db*"):
            path.unlink()

    def look() -> dict[str, tuple[int, int, float]]:
        return {
            str(path): (path.lstat().st_mode, path.lstat().st_uid, path.lstat().st_mtime)
            for path in clinic.root.rglob("*")
            # What SQLite keeps beside a file that somebody reads.
            if not path.name.endswith((".lock", "-shm", "-wal")) and path.name != "state"
        }

    before = look()
    assert set(clinic.codes()) == ({"SM503"} if ledger else {"SM503", "SM508"})
    assert look() == before
    assert (clinic.root / "state").stat().st_mode & 0o777 == 0o755


def test_slices_of_jobs_are_no_strangers(clinic: Clinic) -> None:
    """What the ledger has on open record is known; a ledger that cannot be read is a gap."""
    assert clinic.site.prolog(7, STAMP).returncode == 0
    assert clinic.codes() == []
    (clinic.root / "state/ledger.db").write_bytes(b"no database at all" * 100)
    assert "read ledger" in clinic.facts().gaps["ledger"]
    assert clinic.result().skipped["ledger"] == ("SM606",)


def test_a_process_that_ends_meanwhile(clinic: Clinic) -> None:
    """Is no error: /proc is read as it goes."""
    (clinic.sim / "proc/99").mkdir()
    clinic.process(100, "nvsm_core", "/dev/nvidia1")
    facts = clinic.facts()
    assert [(item.pid, item.command, item.device) for item in facts.holders] == [
        (100, "nvsm_core", "/dev/nvidia1")
    ]
