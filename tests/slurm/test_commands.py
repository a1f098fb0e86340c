"""The command client when Slurm misbehaves; tests/cluster asks the real one."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm.commands import CommandClient
from slurm_mig.slurm.protocol import JobOnNode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def client(tmp_path: Path) -> Callable[..., CommandClient]:
    """A client whose commands are the given shell scripts."""

    def build(timeout: float = 10, **scripts: str) -> CommandClient:
        for name, body in scripts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        return CommandClient(tmp_path, timeout)

    return build


def squeue_line(ident: str, array: str, tres: str) -> str:
    """What squeue -O prints with our widths, on 22.05 to 26.05."""
    return f"{ident:<20}{array:<40}{'1':<4}{'1':<4}{'0':<8}{'RUNNING':<20}{'':<1000}{tres}"


def test_only_the_line_of_the_job_itself_counts(client: Callable[..., CommandClient]) -> None:
    """Asked for the last task of an array, squeue lists all of them (facts/slurm.md#failing)."""
    lines = [
        squeue_line("5", "4_0", "gres:mig:1g.10gb:1"),
        squeue_line("4", "4_2", "gres:mig:3g.40gb:1"),
    ]
    facts = client(squeue="cat <<'END'\n" + "\n".join(lines) + "\nEND").job(4)
    assert facts is not None
    assert (facts.reference, facts.tres_per_node) == ("4_2", "gres:mig:3g.40gb:1")
    assert (facts.batch, facts.requeue, facts.state) == (True, True, "RUNNING")


def test_a_job_slurm_does_not_know(client: Callable[..., CommandClient]) -> None:
    """No fault: None, and an empty state."""
    unknown = client(squeue="echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert unknown.job(4) is None
    assert unknown.state("4") == ""
    assert client(squeue="exit 0").job(4) is None


@pytest.mark.parametrize(
    ("line", "drained"),
    [
        ("NodeName=n1 State=IDLE Reason=looked at [root@1]", True),
        ("NodeName=n1 State=IDLE+DRAIN", True),
        ("NodeName=n1 State=IDLE+DRAIN Reason=fan broken [root@1]", False),
        ("NodeName=n1 State=IDLE+DRAIN Reason=slurm-mig: GPU 1 is lost [root@1]", False),
        # Ours for stuck slices is taken back, and a fault would go with it.
        ("NodeName=n1 State=IDLE+DRAIN Reason=slurm-mig: stuck slices: GPU 0 x [root@1]", True),
    ],
)
def test_a_drained_node_keeps_its_reason(
    client: Callable[..., CommandClient], tmp_path: Path, line: str, drained: bool
) -> None:
    """Slurm would put ours in its place."""
    script = f"case $* in *update*) echo $* >{tmp_path}/asked ;; *) echo '{line}' ;; esac"
    client(scontrol=script).drain("n1", "slurm-mig: x")
    assert (tmp_path / "asked").exists() is drained


def test_a_drain_takes_no_longer_than_one_command(client: Callable[..., CommandClient]) -> None:
    """A hook that is given up has time for one; a slow slurmctld answers the first of two."""
    slow = client(timeout=1.5, scontrol="sleep 1; echo 'NodeName=n1 State=IDLE'")
    begun = time.monotonic()
    with pytest.raises(SlurmFault, match=r"no answer within 0\.\d s"):
        slow.drain("n1", "slurm-mig: x")
    assert time.monotonic() - begun < 2.5


@pytest.mark.root
@pytest.mark.parametrize("place", ["program", "directory"])
def test_root_runs_no_program_of_a_users(
    client: Callable[..., CommandClient], tmp_path: Path, place: str
) -> None:
    """The one he put into Slurm's directory least of all."""
    scripts = client(squeue=f"touch {tmp_path}/ran")
    os.chown(tmp_path / "squeue" if place == "program" else tmp_path, 64001, 64001)
    try:
        with pytest.raises(SlurmFault, match=r"run squeue: .* owned by uid 64001"):
            scripts.job(4)
    finally:
        os.chown(tmp_path, 0, 0)
    assert not (tmp_path / "ran").exists()


def test_gpus_of_a_job_on_one_of_its_nodes(client: Callable[..., CommandClient]) -> None:
    """As 24.11 and 26.05 print them; another task of the array is in the list, too."""
    jobs = [
        {"job_id": 6, "job_resources": {}, "gres_detail": []},
        {
            "job_id": 5,
            "job_resources": {"nodes": {"allocation": [{"name": "n1"}, {"name": "n2"}]}},
            "gres_detail": ["gpu:a:0(IDX:),gpu:b:1(IDX:1)", "gpu:a:2(IDX:0,2-3),gpu:b:1(IDX:1)"],
        },
    ]
    asked = client(scontrol=f"cat <<'END'\n{json.dumps({'jobs': jobs})}\nEND")
    assert asked.gpus(5, "n1") == (1,)
    assert asked.gpus(5, "n2") == (0, 1, 2, 3)
    assert asked.gpus(5, "n3") == ()


def test_the_json_of_22_05(client: Callable[..., CommandClient]) -> None:
    """Its words differ: states as one text, plain numbers for times, one GPU for shards."""

    def job(number: int, state: str, nodes: str, *detail: str, start: int = 1000) -> object:
        names = {"n[1-2]": ["n1", "n2"], "n2": ["n2"]}.get(nodes, [])
        return {
            "job_id": number, "job_state": state, "nodes": nodes, "restart_cnt": 2,
            "name": "n2\n     Nodes=n2 GRES=shard:h100:8(IDX:1)",
            "user_name": "alice", "user_id": 7, "start_time": start, "gres_detail": [*detail],
            **({"job_resources": {"allocated_nodes": [{"nodename": name} for name in names]}}
               if names else {}),
        }  # fmt: skip

    both = ("mig:3g.40gb(CNT:1),shard:h100:14(IDX:1)", "gpu:rtx:1(IDX:0),gpu:a30:0(IDX:)")
    jobs = [
        job(1, "RUNNING", "n[1-2]", *both),
        job(2, "COMPLETING", "n2", start=0),
        job(3, "PENDING", ""),
        job(4, "COMPLETED", "n2", "gpu:rtx:1(IDX:0)"),
    ]
    answers = client(squeue=f"cat <<'END'\n{json.dumps({'jobs': jobs})}\nEND").shares()
    assert answers == [
        JobOnNode(1, 2, "alice", "n1", 1000.0, {"mig:3g.40gb": 1, "shard:h100": 14}, (1,)),
        JobOnNode(1, 2, "alice", "n2", 1000.0, {"gpu:rtx": 1}, (0,)),
        JobOnNode(2, 2, "alice", "n2", None, {}, ()),
    ]


def test_a_slurm_without_json(client: Callable[..., CommandClient]) -> None:
    """22.05: not known, which is no fault; nonsense and a silent slurmctld are one."""
    old = client(scontrol="""echo "scontrol: unrecognized option '--json'" >&2; exit 1""")
    assert old.gpus(5, "n1") is None
    for body in ("echo '{}'", "echo '[1]'", "echo no", "echo down >&2; exit 1"):
        with pytest.raises(SlurmFault, match="scontrol"):
            client(scontrol=body).gpus(5, "n1")


def test_a_command_that_hangs(client: Callable[..., CommandClient]) -> None:
    """Bounded: a hook must not outlive Slurm's patience with it."""
    started = time.monotonic()
    with pytest.raises(SlurmFault, match="no answer within 0.3 s"):
        client(timeout=0.3, scontrol="exec sleep 30").requeue("4")
    assert time.monotonic() - started < 10


def test_a_command_that_fails_is_quoted(client: Callable[..., CommandClient]) -> None:
    """Its own words, on one line, never as a format."""
    with pytest.raises(SlurmFault, match="exit 3: bad %s thing") as caught:
        client(scontrol="printf 'bad %%s\\nthing\\n\\377' >&2; exit 3").comment("4", "x")
    assert "\n" not in str(caught.value)


def test_a_missing_command(tmp_path: Path) -> None:
    """The message says where it was looked for and how to say where it is."""
    with pytest.raises(SlurmFault, match=rf"no squeue in {tmp_path}.*\[slurm\]"):
        CommandClient(tmp_path, 1).live_jobs("n1")


def test_already_requeued_is_success(client: Callable[..., CommandClient]) -> None:
    """The second node of a job comes late (facts/slurm.md#failing); another refusal is a fault."""
    client(scontrol="echo 'Job is pending execution for job 4' >&2; exit 1").requeue("4")
    with pytest.raises(SlurmFault):
        client(scontrol="echo 'Job has already finished' >&2; exit 1").requeue_hold("4")


def test_commands_get_a_clean_environment(
    client: Callable[..., CommandClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that came with a job reaches a command that root runs."""
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    client(scancel=f"/usr/bin/env > {tmp_path}/env").cancel("4")
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    ours = {"PATH", "LC_ALL", "SLURM_CONF", "SLURM_TIME_FORMAT"}
    assert names <= ours | {"PWD", "_", "SHLVL", "OLDPWD"}


def test_versions_and_lifetimes(client: Callable[..., CommandClient]) -> None:
    """As scontrol prints them."""
    config = "AuthInfo                = socket=/x,cred_expire=77\nOther = cred_expire=5"
    fine = client(scontrol=f"[ $1 = --version ] && echo 'slurm 22.05.8' || echo '{config}'")
    assert fine.version() == (22, 5)
    assert fine.credential_lifetime() == 77
    assert client(scontrol="echo 'AuthInfo = (null)'").credential_lifetime() == 120
    with pytest.raises(SlurmFault, match="no version"):
        client(scontrol="echo slurm").version()


def test_the_configuration_in_force(client: Callable[..., CommandClient]) -> None:
    """Keys in lower case; what is not set is empty, and a value may have an = of its own."""
    lines = ["Configuration data as of now", "PrologFlags             = Alloc"]
    lines += ["Prolog[0]               = /x", "TaskPlugin = (null)", "AuthInfo = socket=/s", ""]
    asked = client(scontrol="cat <<'END'\n" + "\n".join(lines) + "\nEND").configuration()
    assert asked == {
        "prologflags": "Alloc",
        "prolog[0]": "/x",
        "taskplugin": "",
        "authinfo": "socket=/s",
    }


def test_live_jobs(client: Callable[..., CommandClient]) -> None:
    """Ids of all states in which something may be on the node."""
    assert client(squeue="printf '7\\n8\\n'").live_jobs("n1") == {7, 8}
    assert client(squeue="exit 0").live_jobs("n1") == frozenset()


NODE = (
    "NodeName=n1 Arch=x86_64 AvailableFeatures=(null) Gres=gpu:h100:2(S:0-1),mig:1g.10gb+me:2,odd "
    "NodeAddr=h OS=Linux #1 SMP State=IDLE*+DRAIN ThreadsPerCore=1 AllocTRES=cpu=6 "
    "Comment=x Reason=slurm-mig: [a] Gres=gpu:9 State=IDLE b@c] [root@1700000000] "
)


def test_a_node(client: Callable[..., CommandClient]) -> None:
    """The first state and gres, whatever the reason says; there may be no gres and no reason."""
    facts = client(scontrol=f"cat <<'END'\n{NODE}\nEND").node("n1")
    assert facts.state == frozenset({"IDLE", "DRAIN"})
    assert facts.gres == {"gpu:h100": 2, "mig:1g.10gb+me": 2}
    assert facts.reason == "slurm-mig: [a] Gres=gpu:9 State=IDLE b@c]"
    bare = client(scontrol="echo 'NodeName=n2 Gres=(null) State=DOWN'").node("n2")
    assert (bare.state, bare.reason, bare.gres) == (frozenset({"DOWN"}), "", {})


def test_accounting_rows(client: Callable[..., CommandClient]) -> None:
    """One for each run; what has not begun or ended has no time."""
    tres = "billing=1,cpu=1,gres/mig:3g.40gb=1,gres/shard=14,node=1"
    rows = [
        f"7|alice|n1|CANCELLED by 0|1700000000|1700000060|{tres}",
        "7|alice|None assigned|PENDING|Unknown|Unknown|",
    ]
    asked = '[ "$SLURM_TIME_FORMAT" = %s ] &&'
    first, second = client(sacct=f"{asked} cat <<'END'\n" + "\n".join(rows) + "\nEND").accounting(
        0, 1800000000
    )
    assert (first.job_id, first.user, first.nodes) == (7, "alice", "n1")
    assert (first.state, first.start, first.end) == ("CANCELLED", 1700000000, 1700000060)
    assert first.gres == {"mig:3g.40gb": 1, "shard": 14}
    assert (second.state, second.start, second.end, second.gres) == ("PENDING", None, None, {})


@pytest.mark.parametrize(
    "row",
    [
        "7|alice|a|b|n1|RUNNING|1700000000|Unknown|",
        "7|alice|n1|RUNNING",
        "x|alice|n1|RUNNING|1700000000|Unknown|",
    ],
)
def test_a_row_that_is_none(client: Callable[..., CommandClient], row: str) -> None:
    """One line that says so, whoever has brought a separator into it."""
    with pytest.raises(SlurmFault, match="sacct printed '.*', not a run of a job"):
        client(sacct=f"echo '{row}'").accounting(0, 1800000000)


def test_sacct_is_asked_for_nothing_that_users_write(
    client: Callable[..., CommandClient], tmp_path: Path
) -> None:
    """Each column is Slurm's or the administrators' own."""
    client(sacct=f'echo "$*" >{tmp_path}/asked').accounting(0, 1800000000)
    asked = (tmp_path / "asked").read_text().lower()
    for column in (
        "account",
        "comment",
        "jobname",
        "workdir",
        "submitline",
        "wckey",
        "constraints",
    ):
        assert column not in asked


def test_an_admin_comment_to_the_letter(client: Callable[..., CommandClient]) -> None:
    """Lines, blanks and bytes that are no text; of a heterogeneous job's rows the asked one's."""
    text = " two\n  lines \\303\\244 \\351".replace("\n", "\\n")
    script = f"""printf '%-20s%-65000s\\n' 8 other; printf '%-20s' 7
        printf '%b' '{text}'; printf '%{65000 - 16}s\\n' ''"""
    read = client(squeue=script).admin_comment("7")
    assert os.fsencode(read) == b" two\n  lines \xc3\xa4 \xe9"
    assert client(squeue="printf '%-20s%-65000s\\n' 7 '(null)'").admin_comment("7_1") == ""
    assert client(squeue="echo 'Invalid job id' >&2; exit 1").admin_comment("7") == ""
    with pytest.raises(SlurmFault, match="65000 bytes or more, and stays as it is"):
        client(squeue="printf '%-20s' 7; printf '%065000d\\n' 1").admin_comment("7")


@pytest.mark.parametrize(
    ("told", "shards"),
    [
        ("gpu:h100:1(IDX:1),shard:h100:14(14/31,0/31)", ((14, 31), (0, 31))),
        # 26.05, where a job has the second GPU as a whole.
        ("gpu:h100:1(IDX:1),shard:h100:14(14/31,-/31)", ((14, 31), (0, 31))),
        ("gpu:h100:1(IDX:1),shard:h100:14", None),
    ],
)
def test_shards_of_each_gpu_of_a_node(
    client: Callable[..., CommandClient], told: str, shards: object
) -> None:
    """No GPU is left out: the next one's would be taken for its own."""
    line = f"NodeName=n1 State=MIXED Gres=gpu:h100:2,shard:h100:62 GresUsed={told},mig:3g.40gb:1"
    assert client(scontrol=f"echo '{line}'").node("n1").shards == shards
