"""The configuration file: every mistake is named, with what is allowed."""

from __future__ import annotations

import os
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from slurm_mig.config import expand, load, locate, sample
from slurm_mig.errors import ConfigFault
from slurm_mig.settings import SETTINGS, Config
from tests.kit.users import as_user


def write(path: Path, text: str) -> Path:
    file = path / "config.toml"
    file.write_text(text)
    return file


def test_every_setting_is_read(tmp_path: Path) -> None:
    """Each key lands in its field."""
    file = write(
        tmp_path,
        """
        [driver]
        library = "simulator:/sim"
        [gpus]
        managed = [0, 2]
        order = [2, 0]
        expected = { "NVIDIA A30" = 2 }
        [paths]
        state = "/s"
        run = "/r"
        gpus = "/x"
        archive = "/a"
        [hooks]
        lock_timeout = 1
        destroy_timeout = 2.5
        deadline = 17
        defer_teardown = false
        [slurm]
        bin = "/b"
        timeout = 3
        client = "commands"
        [refusal]
        no_requeue = "cancel"
        max_requeues = 0
        retry_delay = 4
        retry_delay_max = 5
        [whole_gpus]
        policy = "reject"
        models = { "NVIDIA A30" = "full-profile" }
        reset = true
        [stuck]
        remedies = ["restart:nvidia-dcgm.service", "kill-job"]
        timeout = 6
        drain_slices = 7
        drain_after = 8
        [publish]
        ahead = 16
        hold_back = 60
        [tasks]
        bind = "none"
        containers = true
        leases = "/l"
        [feed]
        gpustat = "/g"
        dcgm = "/d"
        admin_comment = true
        """,
    )
    assert load(file, {}) == Config(
        "simulator:/sim", (0, 2), (2, 0), {"NVIDIA A30": 2}, Path("/s"),
        Path("/r"), 1.0, 2.5, 17.0, False, Path("/b"), 3.0,
        "commands", "cancel", 0, 4.0, 5.0, 16, 60.0, "reject", {"NVIDIA A30": "full-profile"}, True,
        "none", True, Path("/l"), ("restart:nvidia-dcgm.service", "kill-job"), 6.0, 7, 8.0,
        Path("/g"), Path("/d"), True, Path("/a"), file, Path("/x"),
    )  # fmt: skip


def test_every_field_has_a_setting_and_a_text() -> None:
    """Nothing is configurable that the sample does not show."""
    assert {item.field for item in SETTINGS} == {f.name for f in fields(Config)} - {"source"}
    assert all(item.text.endswith(".") and item.allowed for item in SETTINGS)


def test_the_sample_is_the_shipped_one_and_means_the_defaults(tmp_path: Path) -> None:
    """Uncommented, it changes nothing; etc/ has the same text."""
    text = "\n".join(line.lstrip("#") if line[:1] == "#" and line[1:2] != " " else line
                     for line in sample().splitlines())  # fmt: skip
    loaded = load(write(tmp_path, text), {})
    plain = Config(
        slurm_bin=Path("/usr/bin"),
        hold_back=3600.0,
        expected={"NVIDIA H100 80GB HBM3": 8},
        gpustat=Path("/run/gpustat"),
        dcgm=Path("/run/dcgm-job-mapping"),
        archive_directory=Path("/var/lib/slurm-mig/archive"),
        source=loaded.source,
    )
    assert loaded == plain
    assert tomllib.loads(sample()) == {item.table: {} for item in SETTINGS}
    shipped = Path(__file__).parents[1] / "etc/config.toml"
    assert shipped.read_text() == sample()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[driver]\nlibary = 'nvml'",
            r"unknown key \[driver\] libary; did you mean \[driver\] library",
        ),
        ("[drivers]\nlibrary = 'nvml'", r"unknown key \[drivers\] library"),
        ("library = 'nvml'", "unknown key library"),
        ("[driver]\nlibrary = 'simulator:relative'", r"library = 'simulator:relative': allowed is"),
        ("[driver]\nlibrary = 7", "library = 7: allowed is"),
        ("[gpus]\nmanaged = []", "managed = "),
        ("[gpus]\nmanaged = [0, 0]", "managed = "),
        ("[gpus]\nmanaged = [true]", "managed = "),
        ("[gpus]\nmanaged = [[1]]", r"managed = \[\[1\]\]: allowed is"),
        ("[gpus]\norder = [{ a = 1 }]", "order = .*: allowed is"),
        ("[gpus]\nexpected = { 'NVIDIA A30' = 0 }", "expected = .*: allowed is a table"),
        ("[gpus]\nexpected = { 'NVIDIA A30' = true }", "expected = .*: allowed is a table"),
        ("[gpus]\nexpected = {}", "expected = .*: allowed is a table"),
        ("[gpus]\nexpected = 8", "expected = 8: allowed is a table"),
        ("[whole_gpus]\nmodels = { 'NVIDIA A30' = ['x'] }", "models = .*: allowed is"),
        ('[paths]\nrun = "/r\\nPrologFlags=x"', "without control characters"),
        ('[driver]\nlibrary = "/x\\u0000"', "library = .*: allowed is"),
        ("[refusal]\nretry_delay = 4000", "retry_delay = 4000: allowed is at most .* 1800"),
        ("[gpus]\nmanaged = 'some'", "managed = 'some'"),
        ("[gpus]\norder = 'none'", "order = 'none'"),
        ("[paths]\nrun = 'run'", "allowed is an absolute path"),
        ("[hooks]\nlock_timeout = 0", "lock_timeout = 0: allowed is seconds"),
        ("[hooks]\ndeadline = 70", "deadline = 70: allowed is more than .*, which is 70"),
        ("[hooks]\nlock_timeout = 280", "deadline = 300: allowed is more than .* is 320"),
        ("[hooks]\nlock_timeout = true", "lock_timeout = True"),
        ("[hooks]\nlock_timeout = '5'", "lock_timeout = '5'"),
        ("[refusal]\nno_requeue = 'ask'", "no_requeue = 'ask'"),
        ("[refusal]\nmax_requeues = 1.5", "max_requeues = 1.5"),
        *(
            (f"[stuck]\nremedies = {value}", "remedies = .*: allowed is a list of")
            for value in (
                '"kill-job"',
                '["kill"]',
                '["kill-job", "kill-job"]',
                '["ignore", "kill-job"]',
                '["restart:"]',
                '["restart:x"]',
                '["restart:../x.service"]',
                "[7]",
                '["restart:-f.service"]',
                '["restart:a b.service"]',
                '["restart:a\\n.service"]',
                '["restart:slurmd.service"]',
                '["restart:slurmd@n1.service"]',
                '["restart:x.service\\n"]',
                '["restart:x.service; reboot"]',
            )
        ),
        ("[stuck]\ntimeout = 0", "timeout = 0: allowed is seconds"),
        ("[stuck]\ndrain_slices = -1", "drain_slices = -1: allowed is a whole number"),
        ("[driver", "is not TOML"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, says: str) -> None:
    """File, key, value, and what is allowed; in one line."""
    file = write(tmp_path, text)
    with pytest.raises(ConfigFault, match=says) as caught:
        load(file, {})
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_utf8(tmp_path: Path) -> None:
    """A file of another encoding is a mistake like others."""
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigFault, match="is not TOML"):
        load(file, {})


def test_where_it_is_found() -> None:
    """Option before variable before default."""
    assert locate(Path("/a"), {"SLURM_MIG_CONFIG": "/b"}) == Path("/a")
    assert locate(None, {"SLURM_MIG_CONFIG": "/b"}) == Path("/b")
    assert locate(None, {}) == Path("/etc/slurm-mig/config.toml")


def test_a_named_file_must_exist() -> None:
    """Only the default place may be empty: a mistyped path must not mean defaults."""
    with pytest.raises(ConfigFault, match="/nowhere: no such file"):
        load(Path("/nowhere"), {})


def test_an_unreadable_file(tmp_path: Path) -> None:
    """A directory in its place, for one."""
    with pytest.raises(ConfigFault, match="Is a directory"):
        load(tmp_path, {})


def test_the_nodes_name_in_paths(tmp_path: Path) -> None:
    """%n as in slurm.conf, in the file's own path and in the paths it sets."""
    (tmp_path / "n1").mkdir()
    write(tmp_path / "n1", "[paths]\nrun = '/run/%n'")
    config = load(tmp_path / "%n/config.toml", {"SLURMD_NODENAME": "n1"})
    assert config.run == Path("/run/n1")


@pytest.mark.parametrize("name", ["", "../x"])
def test_a_node_name_that_cannot_be_in_a_path(name: str) -> None:
    """%n without a name would lead hooks of two nodes to one place."""
    with pytest.raises(ConfigFault, match="SLURMD_NODENAME"):
        expand(Path("/x/%n"), {"SLURMD_NODENAME": name})


@pytest.mark.parametrize("text", ["[]", '["ignore"]'])
def test_no_remedy_at_all(tmp_path: Path, text: str) -> None:
    """Said by the word, or by an empty list."""
    assert load(write(tmp_path, f"[stuck]\nremedies = {text}"), {}).stuck_remedies == ()


@pytest.mark.root
@pytest.mark.parametrize("how", ["file", "owner", "directory", "above", "link"])
def test_root_obeys_only_what_root_wrote(tmp_path: Path, how: str) -> None:
    """`library` names code: a file that a user can write or replace is refused with its step."""
    (tmp_path / "a/b").mkdir(parents=True)
    file = tmp_path / "a/b/config.toml"
    file.write_text("[gpus]\nmanaged = [1]\n")
    assert load(file, {}).managed == (1,)
    bad = {"directory": file.parent, "above": file.parent.parent}.get(how, file)
    if how == "owner":
        os.chown(file, 64001, 64001)
    elif how == "link":
        file.rename(tmp_path / "real.toml")
        file.symlink_to(tmp_path / "real.toml")
        bad = tmp_path / "real.toml"
        bad.chmod(0o666)
    else:
        bad.chmod(0o777)
    with pytest.raises(ConfigFault) as caught:
        load(file, {})
    assert f"config: {bad} " in str(caught.value)
    assert "is owned by uid" in str(caught.value)
    assert "it must" in str(caught.value)


@pytest.mark.root
def test_a_link_of_roots(tmp_path: Path) -> None:
    """Configuration management makes them."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/c.toml").write_text("[gpus]\nmanaged = [1]\n")
    (tmp_path / "c.toml").symlink_to("real/c.toml")
    assert load(tmp_path / "c.toml", {}).managed == (1,)


@pytest.mark.root
def test_a_users_own_configuration_is_his_business(public_tmp: Path) -> None:
    """`generate` and `simulator` work for everybody."""
    (public_tmp / "c.toml").write_text("[gpus]\nmanaged = [1]\n")
    (public_tmp / "c.toml").chmod(0o666)
    os.chown(public_tmp / "c.toml", 64001, 64001)
    assert as_user(64001, lambda: load(public_tmp / "c.toml", {}).managed) == (1,)


@pytest.mark.root
@pytest.mark.timeout(20)
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    """Named at once."""
    os.mkfifo(tmp_path / "c.toml")
    with pytest.raises(ConfigFault, match="c.toml is not a regular file"):
        load(tmp_path / "c.toml", {})
