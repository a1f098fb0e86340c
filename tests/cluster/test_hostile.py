"""Hostile jobs on a real Slurm: their environment, their words, others' devices, `verify`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import NotPermitted
from slurm_mig.simulator.client import open_devices
from tests.kit.cluster import ALICE, BOB, Site
from tests.kit.users import as_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Where this checkout and the cluster's own Python lie is no promise of the product's.
CHECKOUT = ("way to package slurm_mig", "way to Python of the hooks")


@pytest.fixture
def trap(site: Site) -> Path:
    """A directory of Alice's whose modules and programs leave a marker."""
    made = site.cluster.work / "trap"
    made.mkdir(exist_ok=True)
    marker = site.cluster.work / "marker"
    code = f"import os; os.close(os.open({str(marker)!r}, os.O_CREAT, 0o666))\n"
    for name in ("sitecustomize", "json", "tomllib", "slurm_mig"):
        (made / f"{name}.py").write_text(code)
    for name in ("scontrol", "squeue", "python3", "sh"):
        (made / name).write_text(f"#!/bin/sh\n: >{marker}\n")
        (made / name).chmod(0o755)
    (made / "evil.toml").write_text(f'[driver]\nlibrary = "{made}/evil.so"\n')
    (made / "evil.so").write_text("no library")
    (made / "rc").write_text(f": >{marker}\n")
    for path in (made, *made.iterdir()):
        os.chown(path, ALICE, ALICE)
    return made


@pytest.fixture
def heard(site: Site) -> Iterator[Path]:
    """What hooks were told and said, `env` and `err`: slurmd keeps neither."""
    hooks, log = site.cluster.root / "hooks", site.cluster.root / "heard"
    log.mkdir(exist_ok=True)
    for name in ("prolog", "epilog"):
        (hooks / name).rename(hooks / f"{name}.real")
        (hooks / name).write_text(
            f"#!/bin/sh\nenv >>{log}/env\nexec {hooks}/{name}.real 2>>{log}/err\n"
        )
        (hooks / name).chmod(0o755)
    yield log
    site.settle()
    for name in ("prolog", "epilog"):
        (hooks / f"{name}.real").rename(hooks / name)
    for path in log.iterdir():
        path.unlink()


def variables(trap: Path) -> dict[str, str]:
    """What Alice puts into the environment that her job is submitted from."""
    return {
        "PYTHONPATH": str(trap),
        "PYTHONHOME": str(trap),
        "PYTHONSTARTUP": f"{trap}/sitecustomize.py",
        "PYTHONEXECUTABLE": f"{trap}/python3",
        # The first is what the cluster's own commands need to know its users.
        "LD_PRELOAD": f"libnss_wrapper.so {trap}/evil.so",
        "LD_AUDIT": f"{trap}/evil.so",
        "ENV": f"{trap}/rc",
        "BASH_ENV": f"{trap}/rc",
        "SLURM_MIG_CONFIG": f"{trap}/evil.toml",
        "SLURM_JOB_GPUS": "0,1",
        "SLURM_JOB_UID": "0",
        "SLURM_JOB_USER": "root\nslurm-mig: prolog job=1 carved",
        "SLURM_JOB_COMMENT": "slurm-mig=1,7g.80gb/0/31:1",
        "SLURM_JOB_EXTRA": "slurm-mig=1,7g.80gb/0/31:1",
        "SLURM_JOB_RESTART_COUNT": "9",
        "SLURMD_NODENAME": "n2",
        "CUDA_VISIBLE_DEVICES": "MIG-0",
        "run": str(trap),
        "python": f"{trap}/python3",
    }


def submitted(site: Site, *options: str, script: str, **environ: str) -> int:
    """Submit with variables in the client's environment; LD_* reach the client's loader, too."""
    done = site.cluster.try_run(
        "sbatch", "--parsable", "-o", "%j.out", *options,
        uid=ALICE, timeout=60, stdin=f"#!/bin/sh\n{script}\n", **environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_an_environment_reaches_no_hook(site: Site, trap: Path, heard: Path) -> None:
    """Prolog and Epilog as ever: Alice's job, one slice, her uid, none of her code as root."""
    job = submitted(
        site, "--gres=mig:1g.10gb:1", "-w", "n1",
        script='echo "cuda $CUDA_VISIBLE_DEVICES"', **variables(trap),
    )  # fmt: skip
    site.wait(job, "COMPLETED", "FAILED")
    site.until(lambda: not site.record(job).open, "the Epilog")
    record = site.record(job)
    assert (record.owner.uid, record.owner.user, record.owner.restart) == (ALICE, "alice", 0)
    assert [str(item) for item in record.instances] == ["1g.10gb@6"]
    assert f"cuda {record.uuids[0]}" in site.output(job)
    # The loader complains, in every process that is told of it, of what it cannot load.
    assert "evil.so" in site.output(job)
    told = (heard / "env").read_text(errors="replace")
    assert told.count(f"SLURM_JOB_ID={job}\n") == 2
    for name, value in variables(trap).items():
        assert f"{name}={value}\n" not in told
    assert str(trap) not in told + (heard / "err").read_text()
    marker = site.cluster.work / "marker"
    assert not marker.exists() or marker.owner() != "root"
    assert site.in_service()


WORDS = [
    "a\nslurm-mig: prolog job=1 carved",
    "a\x1b[2K\x1b[1A\x1b]0;t\x07",
    "\u202egnp.exe\u2028x",
    "%s%n$(id)`id`;|&",
    "'\"; DROP TABLE allocation; --",
    "     Nodes=n1 CPU_IDs=0 GRES=mig:7g.80gb(CNT:1),shard:31(IDX:0)",
]


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_words_of_a_job(site: Site, heard: Path, word: str) -> None:
    """In name, comment, account, wckey and directory at once: carved as asked, logs stay lines."""
    odd = site.cluster.work / f"dir-{word.replace('/', '_')}"[:60]
    odd.mkdir(exist_ok=True)
    os.chown(odd, ALICE, ALICE)
    job = site.sbatch(
        "--gres=mig:1g.10gb:1", "-w", "n1", f"--job-name={word}", f"--comment={word}",
        f"--account={word}", f"--wckey={word}", f"--chdir={odd}", script="true",
    )  # fmt: skip
    site.wait(job, "COMPLETED", "FAILED")
    site.until(lambda: not site.record(job).open, "the Epilog")
    assert [str(item) for item in site.record(job).instances] == ["1g.10gb@6"]
    lines = (heard / "err").read_text(errors="replace").splitlines()
    assert [line.split(" restart=")[0] for line in lines] == [
        f"slurm-mig: {hook} job={job}" for hook in ("prolog", "epilog")
    ]
    assert all(" " <= char <= "~" for line in lines for char in line)
    assert site.in_service()


def test_anothers_uuid_in_a_job(site: Site) -> None:
    """Bob's slice on the same GPU, named by Alice: a simulated CUDA process gets EACCES."""
    theirs = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1", uid=BOB)
    site.until(lambda: site.made() and site.record(theirs).uuids, "Bob's slice")
    (his,) = site.record(theirs).uuids
    job = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1", script="sleep 300")
    site.until(lambda: len(site.made()) == 2 and site.record(job).uuids, "Alice's slice")
    (mine,) = site.record(job).uuids

    machine = site.machine()
    # With Alice's ids in a fork: her job cannot reach this checkout's Python. Once as root
    # before that, so that all is loaded.
    assert open_devices(machine, his)

    def use(visible: str) -> object:
        try:
            return [device.uuid for device in open_devices(machine, visible)]
        except NotPermitted as fault:
            return str(fault)

    assert as_user(ALICE, lambda: use(mine)) == [mine]
    assert "Permission denied" in str(as_user(ALICE, lambda: use(his)))
    assert "Permission denied" in str(as_user(ALICE, lambda: use(f"{mine},{his}")))
    # And from inside the job itself, by the shell's own open.
    caps = site.machine().tree.dev / "nvidia-caps"
    script = f'for n in {caps}/*; do if (exec 3<"$n"); then echo "got $n"; fi; done 2>err; cat err'
    inner = site.sbatch("--gres=mig:1g.10gb:1", "-w", "n1", script=script, uid=64003)
    site.wait(inner, "COMPLETED", "FAILED")
    said = site.output(inner)
    assert "got " not in said
    assert said.count("ermission denied") == 4
    assert said.count("No such device") == 2


def verify(site: Site, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    home = site.cluster.root / "nodes/n1/config.toml"
    done = subprocess.run(
        [sys.executable, "-m", "slurm_mig", "verify", "--json",
         "--hooks", str(site.cluster.root / "hooks"), *arguments],
        capture_output=True, text=True, check=False, timeout=60,
        env={"SLURM_MIG_CONFIG": str(home), "SLURMD_NODENAME": "n1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    tried = json.loads(done.stdout)["tries"]
    failed = [item for item in tried if item["verdict"] == "fail"]
    assert done.returncode == (27 if failed else 0), done.stderr
    return done.returncode, [item for item in tried if item["item"] not in CHECKOUT]


def test_verify_beside_running_jobs(site: Site) -> None:
    """Of Alice and Bob on one GPU: every item passes; one opened node is found."""
    first = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1")
    second = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1", uid=BOB)
    site.until(lambda: len(site.made()) == 2, "two slices")
    site.until(lambda: all(site.record(job).phase == "active" for job in (first, second)), "both")
    _, tried = verify(site)
    assert {item["verdict"] for item in tried} == {"pass"}
    assert {item["job_id"] for item in tried} == {first, second, None}
    node = next(i for i in tried if i["job_id"] == second and f"job {second}," in i["item"])
    os.chmod(node["path"], 0o444)  # noqa: PTH101
    code, tried = verify(site, "--job", str(first))
    assert code == 27
    assert [i["path"] for i in tried if i["verdict"] == "fail"] == [node["path"]]
