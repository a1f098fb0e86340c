"""The installed hooks, run as slurmd runs them: as root, bare environment, by path."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import syslog
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import NodeFault
from slurm_mig.hooks.job import Job
from slurm_mig.hooks.log_line import LogLine
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.geometry import Placement
from slurm_mig.simulator.faults import Rule
from tests.kit.gpus import A30, A100, H100
from tests.kit.hooks import STAMP, became, records, slurm_commands, squeue, task
from tests.kit.ledgers import broken_event
from tests.kit.site import Site, job_environ
from tests.kit.users import opened_by
from tests.kit.ways import helped, later

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.root

REFUSED = "slurm-mig=1,7g.80gb/0/31:1"


def blocked(site: Site) -> None:
    """One instance in each half: no 3g, no 7g fits."""
    with site.machine.change(0) as board:
        for start in (3, 4):
            board.create(19, Placement(start, 1), busy=False)


# -- prolog ------------------------------------------------------------------------


def test_a_job_without_gpu_is_left_alone_at_once(site: Site) -> None:
    """No program is started: the shim's Python does not even exist here."""
    script = (site.root / "hooks/prolog").read_text()
    (site.root / "hooks/prolog").write_text(re.sub("python='[^']*'", "python=/none", script))
    done = site.hook("prolog", job_environ(7, "", gpus=""))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert site.run.exists() is helped()
    if not helped():
        assert site.hook("prolog", job_environ(7, STAMP)).returncode == 127


def test_hooks_that_an_earlier_version_installed(site: Site) -> None:
    """Nodes keep their hooks over an upgrade, with jobs in flight: what they call stays."""

    def run(hook: str) -> subprocess.CompletedProcess[str]:
        program = ["-I", "-c", "from slurm_mig.hooks import main; main()", hook]
        return subprocess.run(
            [sys.executable, *program],
            env=job_environ(7, STAMP) | {"SLURM_MIG_CONFIG": str(site.config)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run("prolog")
    assert (done.returncode, "made=3g.40gb@4" in done.stderr) == (0, True)
    # The Epilog of after the upgrade ends what it made, and the other way round.
    assert site.epilog(7).returncode == 0
    assert site.prolog(8, STAMP).returncode == 0
    assert run("epilog").returncode == 0
    assert [item.owner.job_id for item in records(site) if item.open] == [8]


def test_carves_and_says_so_in_one_line(site: Site) -> None:
    """To stderr, as to syslog: job, user, node, GPU, what and how long."""
    done = site.prolog(7, f"my words {STAMP}")
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"slurm-mig: prolog job=7 restart=0 user=alice node=n1 (way=helper )?request=3g\.40gb:1 "
        r"gpu=0 made=3g\.40gb@4 uuids=MIG-[0-9a-f-]{36} ms=\d+ head=2:[0-9a-f]{16} carved",
        line,
    )
    (record,) = records(site)
    assert (record.phase, record.owner.uid, record.owner.user) == (phases.ACTIVE, 64001, "alice")


def test_the_second_gpu(site: Site) -> None:
    """SLURM_JOB_GPUS decides, not what is free elsewhere."""
    assert site.prolog(7, STAMP, gpus="1").returncode == 0
    assert site.machine.board(0).instances == []
    assert len(site.machine.board(1).instances) == 1


def test_the_stamp_of_later_releases(site: Site) -> None:
    """SLURM_JOB_EXTRA carries it; a comment with no stamp is the user's."""
    later = {"SLURM_JOB_EXTRA": f"owner {STAMP}", "SLURM_JOB_SLUID": "s7"}
    done = site.hook("prolog", job_environ(7, "just words") | later)
    assert done.returncode == 0
    (record,) = records(site)
    assert (record.request, record.owner.sluid) == ("3g.40gb:1", "s7")


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2), (2,)])
def test_closed_descriptors(site: Site, closed: tuple[int, ...]) -> None:
    """Nothing the hook opens lands on a standard descriptor: no log line in the ledger."""
    assert site.hook("prolog", job_environ(7, STAMP), closed=closed).returncode == 0
    assert [item.phase for item in records(site)] == [phases.ACTIVE]
    node = site.node()
    assert broken_event(node.ledger) is None
    node.close()


def test_without_a_stamp_slurmctld_is_asked_once(site: Site) -> None:
    """In the form that cannot be forged, and the log says that it was the fallback."""
    log = slurm_commands(site, squeue=squeue(7, "gres:mig:3g.40gb:1,gres:shard:h100:14"))
    done = site.prolog(7, "")
    assert done.returncode == 0
    assert "stamp=none request=3g.40gb:1" in done.stderr
    (asked,) = log.read_text().splitlines()
    assert asked.startswith("squeue -h -a -j 7 -O jobid")


def test_with_a_stamp_nobody_is_asked(site: Site) -> None:
    """SchedMD's rule: hooks do not call Slurm."""
    log = slurm_commands(site)
    assert site.prolog(7, STAMP).returncode == 0
    assert site.epilog(7).returncode == 0
    assert not log.exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "Unable to contact"),
        ("true", "Slurm does not know the job"),
    ],
)
def test_no_stamp_and_no_answer(site: Site, answer: str, says: str) -> None:
    """What the job may have cannot be known: it gets nothing, and the node stays in service."""
    slurm_commands(site, squeue=answer)
    done = site.prolog(7, "")
    assert done.returncode == 0
    assert "refused: job 7: " in done.stderr
    assert says in done.stderr
    assert [item.phase for item in records(site)] == [phases.REFUSED]
    told = task(site, SLURM_GPUS_ON_NODE="1")
    assert (told.returncode, says in told.stdout) == (1, True)


@pytest.mark.parametrize(
    "comment",
    [
        "slurm-mig=1,3g.40gb/9/14:1 slurm-mig=1,7g.80gb/0/31:1",
        "slurm-mig=9,3g.40gb/9/14:1",
        "slurm-mig=1,banana",
        "slurm-mig=1,1g.6gb/14/1:1",
    ],
)
def test_a_bad_stamp_is_the_jobs_fault(site: Site, comment: str) -> None:
    """Held with the reason; the node stays, nothing is made."""
    log = slurm_commands(site, squeue=squeue(7))
    done = site.prolog(7, comment)
    assert done.returncode == 0
    assert "outcome=held" in done.stderr
    assert "scontrol requeuehold 7" in log.read_text()
    assert "state=drain" not in log.read_text()
    assert site.machine.board(0).instances == []


def test_no_room_is_a_refusal(site: Site) -> None:
    """Exit 0, requeued, reason in comment, ledger, log and for the TaskProlog; no drain."""
    blocked(site)
    log = slurm_commands(site, squeue=squeue(7))
    done = site.prolog(7, f"mine {REFUSED}")
    assert done.returncode == 0
    assert "outcome=requeued" in done.stderr
    assert "refused: job 7: GPU 0" in done.stderr
    asked = log.read_text()
    assert "scontrol requeue 7" in asked
    assert "comment=mine [slurm-mig: job 7: GPU 0" in asked
    (record,) = records(site)
    assert record.phase == phases.REFUSED
    assert "no placement for 7g.80gb:1: taken 1g.10gb@3, 1g.10gb@4" in record.reason
    assert (site.run / "env/7.0.refused").read_text().startswith("print slurm-mig: job 7: GPU 0")


def test_room_that_a_lost_job_still_takes(site: Site) -> None:
    """No Epilog came for it: what Slurm no longer has is taken down before this one is refused."""
    site.prolog(5, STAMP)
    site.prolog(6, STAMP)
    slurm_commands(site, squeue=squeue(7, live=[6, 7]))
    done = site.prolog(7, STAMP)
    assert done.returncode == 0
    assert "collected=5" in done.stderr
    assert done.stderr.strip().endswith("carved")
    assert {item.owner.job_id for item in records(site) if item.open} == {6, 7}
    # All of them live: refused as ever, and nothing of theirs is touched.
    slurm_commands(site, squeue=squeue(8, live=[6, 7, 8]))
    assert "outcome=requeued" in site.prolog(8, STAMP).stderr
    assert {item.owner.job_id for item in records(site) if item.open} == {6, 7}


def test_a_whole_gpu_that_a_lost_job_still_has(site: Site) -> None:
    """Its record would keep MIG mode off for ever."""
    slurm_commands(site, squeue=squeue(5, "gres:gpu:1"))
    site.prolog(5, "")
    slurm_commands(site, squeue=squeue(7, live=[7]))
    assert site.prolog(7, STAMP).returncode == 0
    assert {item.owner.job_id for item in records(site) if item.open} == {7}
    assert site.machine.board(0).mig_current is True


def test_bytes_that_are_no_text(site: Site) -> None:
    """A user's account or comment of any bytes: carved or refused, and on record; no drain."""
    odd = {"SLURM_JOB_ACCOUNT": "\udcff\udcfe", "SLURM_JOB_USER": "a\udc80"}
    assert site.prolog(7, f"\udcff {STAMP}", **odd).returncode == 0
    (record,) = records(site)
    assert (record.owner.account, record.phase) == ("\ufffd\ufffd", phases.ACTIVE)
    asked = slurm_commands(site, squeue=squeue(8, live=[7, 8]))
    assert site.prolog(8, f"\udcff {REFUSED}", **odd).returncode == 0
    # What is written back is what was read.
    assert b"comment=\xff [slurm-mig: " in asked.read_bytes()
    assert site.epilog(7).returncode == 0


def test_a_job_id_used_again(site: Site) -> None:
    """After a lost controller state: the old job's slices go, whoever's and whatever they were."""
    assert site.prolog(7, "slurm-mig=1,7g.80gb/0/31:1").returncode == 0
    assert "made=3g.40gb@4" in site.prolog(7, STAMP).stderr
    assert "made=1g.10gb@6" in site.prolog(
        7, "slurm-mig=1,1g.10gb/19/4:1", SLURM_JOB_UID="64002", SLURM_JOB_USER="bob"
    ).stderr  # fmt: skip
    (now,) = [item for item in records(site) if item.open]
    assert (now.owner.uid, now.request) == (64002, "1g.10gb:1")
    assert len(site.machine.board(0).instances) == 1
    slurm_commands(site, squeue=squeue(7, "gres:gpu:1"))
    assert site.prolog(7, "", SLURM_JOB_UID="64002").returncode == 0
    assert site.machine.board(0).mig_current is False
    assert "made=1g.10gb@6" in site.prolog(
        7, "slurm-mig=1,1g.10gb/19/4:1", SLURM_JOB_UID="64002"
    ).stderr  # fmt: skip


def test_what_an_earlier_job_still_has_keeps_no_lost_slices_file(site: Site) -> None:
    """A number used again while the job before has a slice on another GPU: it is no heir."""
    assert site.prolog(7, STAMP, gpus="1").returncode == 0
    bob = {"SLURM_JOB_UID": "64002", "SLURM_JOB_USER": "bob"}
    assert site.prolog(7, STAMP, **bob).returncode == 0
    with site.machine.change(0) as board:
        board.instances.clear()
    # It gets the place, and with it the UUID, of the slice that is gone.
    assert site.prolog(8, STAMP).returncode == 0
    assert not (site.run / "env/7.0").exists()
    assert "the job has lost its slice" in (site.run / "env/7.0.refused").read_text()


def test_refused_while_slurmctld_is_silent(site: Site) -> None:
    """The TaskProlog is left to stop the job; the node is fine."""
    blocked(site)
    slurm_commands(site, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    done = site.prolog(7, REFUSED)
    assert done.returncode == 0
    assert "outcome=left?to?the?TaskProlog" in done.stderr.replace(" ", "?")
    task = site.hook("task_prolog", {"SLURM_JOB_ID": "7", "SLURM_SHARDS_ON_NODE": "31"})
    assert task.returncode == 1
    assert task.stdout.startswith("print slurm-mig: job 7: GPU 0")


def test_slices_without_a_gpu(site: Site) -> None:
    """A stamp without shards is an error of submission, not of the node."""
    slurm_commands(site, squeue=squeue(7))
    done = site.prolog(7, STAMP, gpus="")
    assert done.returncode == 0
    assert "no shards" in done.stderr


def test_shards_of_no_gpu(site: Site) -> None:
    """What slurmctld gives before a node has registered again: the job waits, it is not held."""
    log = slurm_commands(site, squeue=squeue(7, "gres:mig:3g.40gb:1,gres:shard:h100:14"))
    done = site.prolog(7, STAMP, gpus="")
    assert done.returncode == 0
    assert "Slurm chose no GPU for the job's shards" in done.stderr
    assert "outcome=requeued" in done.stderr
    assert "requeuehold" not in log.read_text()


def test_no_gpu_and_no_answer(site: Site) -> None:
    """Whether the job has shards cannot be found out: it waits, too."""
    slurm_commands(site, squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    done = site.prolog(7, STAMP, gpus="")
    assert done.returncode == 0
    assert "Slurm does not say which GPU the job has" in done.stderr


def test_shards_over_two_gpus(site: Site) -> None:
    """A setting of Slurm's that breaks every job: the node's fault, with the remedy."""
    log = slurm_commands(site)
    done = site.prolog(7, STAMP, gpus="0,1")
    assert done.returncode == 10
    assert "MULTIPLE_SHARING_GRES_PJ" in done.stderr
    assert "scontrol update nodename=n1 state=drain reason=slurm-mig: job 7" in log.read_text()


def _driver_says(call: str, code: str) -> Callable[[Site], None]:
    return lambda site: site.machine.faults.set([Rule(call, f"error:{code}")])


@pytest.mark.parametrize(
    ("break_", "code", "says"),
    [
        (lambda site: site.machine.lose(0), 14, "GPU is lost"),
        (lambda site: (site.root / "sim").rename(site.root / "x"), 22, "no simulated machine"),
        (lambda site: site.config.write_text("[driver]\nlibary = 'x'"), 11, "unknown key"),
        (lambda site: (site.root / "state").touch(), 10, "directory"),
        (_driver_says("nvmlInitWithFlags", "DRIVER_NOT_LOADED"), 12, "load the NVIDIA kernel"),
        (
            _driver_says("nvmlDeviceCreateGpuInstanceWithPlacement", "UNKNOWN"),
            13,
            "Unknown Error",
        ),
    ],
)
def test_a_broken_node_drains_itself(
    site: Site, break_: Callable[[Site], object], code: int, says: str
) -> None:
    """Non-zero, one line that names it, a drain reason that starts with our name."""
    log = slurm_commands(site)
    break_(site)
    done = site.prolog(7, STAMP)
    assert done.returncode == code
    assert says in done.stderr.splitlines()[0]
    if code == 11:
        # The place of Slurm's commands was in the file that could not be read.
        assert "the drain reason could not be set" in done.stderr
    else:
        assert "reason=slurm-mig: " in log.read_text()
        assert len(done.stderr.splitlines()) == 1


def test_a_drain_reason_that_cannot_be_set(site: Site) -> None:
    """Slurm drains anyhow, for the exit code; the log says both."""
    site.machine.lose(0)
    done = site.prolog(7, STAMP)
    assert done.returncode == 14
    assert len(done.stderr.splitlines()) == 1
    assert "the drain reason could not be set" in done.stderr


def test_a_ledger_from_the_future(site: Site) -> None:
    """Exit code and remedy of its own; nothing is carved."""
    import sqlite3

    assert site.prolog(7, STAMP).returncode == 0
    with closing(sqlite3.connect(site.root / "state/ledger.db")) as db, db:
        db.execute("PRAGMA user_version=1000")
    done = site.prolog(8, STAMP, gpus="1")
    assert done.returncode == 17
    assert "install the slurm-mig again that wrote it" in done.stderr
    assert site.machine.board(1).instances == []


def test_not_a_hooks_environment(site: Site) -> None:
    """Run by hand, it says who should run it."""
    done = site.hook("prolog", {"SLURM_JOB_GPUS": "0"})
    assert done.returncode == 10
    assert "for slurmd to call" in done.stderr


def test_users_texts_cannot_forge_log_lines(site: Site) -> None:
    """Newlines and escapes from a name or comment are spelled out of the log."""
    slurm_commands(site, squeue=squeue(7))
    environ = job_environ(7, "slurm-mig=1,x\x1b[2J") | {
        "SLURM_JOB_USER": "a\nslurm-mig: prolog job=1"
    }
    done = site.hook("prolog", environ)
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr


def test_unmanaged_gpus_are_left_alone(make_site: Callable[..., Site]) -> None:
    """Without asking Slurm or switching anything."""
    site = make_site(H100, H100, config="[gpus]\nmanaged = [1]\n")
    assert site.prolog(7, "").returncode == 0
    assert site.machine.board(0).mig_current is True
    none = make_site(H100, config='[gpus]\nmanaged = "none"\n')
    (none.root / "sim").rename(none.root / "gone")
    assert none.prolog(7, "").returncode == 0


def test_slices_of_an_unmanaged_gpu(make_site: Callable[..., Site]) -> None:
    """gres.conf and config contradict each other: the node's fault."""
    site = make_site(H100, H100, config="[gpus]\nmanaged = [1]\n")
    done = site.prolog(7, STAMP)
    assert done.returncode == 10
    assert "not managed here" in done.stderr


def test_whole_gpus(make_site: Callable[..., Site]) -> None:
    """On record, both ways: MIG mode off where that is cheap, else the largest profile."""
    site = make_site(H100, A100)
    with site.machine.change(1) as board:
        board.set_mode(True, busy=False)
    slurm_commands(site, squeue=squeue(7, "gres:gpu:2"))
    done = site.prolog(7, "", gpus="0,1")
    assert "0: whole GPU, MIG mode off; 1: 7g.80gb@0" in done.stderr
    assert site.machine.board(0).mig_current is False
    (uuid,) = [uuid for record in records(site) for uuid in record.uuids]
    told = task(site, SLURM_GPUS_ON_NODE="2").stdout
    bare = site.machine.gpus[0]["uuid"]
    assert f"export CUDA_VISIBLE_DEVICES={bare},{uuid}\n" in told
    step = task(site, SLURM_STEP_ID="0", SLURM_STEP_GPUS="1").stdout
    assert f"export CUDA_VISIBLE_DEVICES={uuid}\n" in step
    assert site.epilog(7, gpus="0,1").returncode == 0
    assert [site.machine.board(gpu).mig_current for gpu in (0, 1)] == [True, True]
    assert site.machine.board(1).instances == []
    assert {item.phase for item in records(site)} == {phases.RELEASED}


SEVERAL = "slurm-mig=2,3g.40gb/9/14:2;3g.40gb/9/14:1,1g.10gb/19/4:1"


def test_slices_on_several_gpus(make_site: Callable[..., Site]) -> None:
    """A part on each GPU, whatever order Slurm names them in; MIG mode as for slices."""
    site = make_site(H100, H100, H100)
    with site.machine.change(2) as board:
        board.set_mode(False, busy=False)
    log = slurm_commands(site)
    done = site.prolog(7, SEVERAL, gpus="2,1")
    assert (done.returncode, log.exists()) == (0, False), done.stderr
    assert "request=3g.40gb:2;3g.40gb:1,1g.10gb:1" in done.stderr
    assert "carved on 2 GPUs" in done.stderr
    assert [len(site.machine.board(gpu).instances) for gpu in range(3)] == [0, 2, 2]
    found = records(site)
    assert [(item.gpu_minor, item.request, item.phase) for item in found] == [
        (1, "3g.40gb:2", phases.ACTIVE), (2, "3g.40gb:1,1g.10gb:1", phases.ACTIVE),
    ]  # fmt: skip
    uuids = [uuid for record in found for uuid in record.uuids]
    assert f"export CUDA_VISIBLE_DEVICES={','.join(uuids)}\n" in task(site).stdout
    step = task(site, SLURM_STEP_ID="0", SLURM_STEP_GPUS="2").stdout
    assert f"export CUDA_VISIBLE_DEVICES={','.join(found[1].uuids)}\n" in step
    assert site.prolog(7, SEVERAL, gpus="2,1").returncode == 0
    assert records(site) == found
    assert site.epilog(7, gpus="1,2").returncode == 0
    assert {item.phase for item in records(site)} == {phases.RELEASED}
    assert [site.machine.board(gpu).instances for gpu in range(3)] == [[], [], []]
    assert not list(site.run.glob("*/7.*"))


def test_several_gpus_or_none(make_site: Callable[..., Site]) -> None:
    """One GPU has no room: the job is refused, what was made on the other goes again."""
    site = make_site(H100, H100)
    with site.machine.change(1) as board:
        for start in (3, 4):
            board.create(19, Placement(start, 1), busy=False)
    slurm_commands(site, squeue=squeue(7))
    done = site.prolog(7, SEVERAL, gpus="0,1")
    assert done.returncode == 0
    assert "no placement for 3g.40gb:1,1g.10gb:1: taken" in done.stderr
    assert site.machine.board(0).instances == []
    assert [item.phase for item in records(site)] == [phases.RELEASED, phases.REFUSED]
    assert "print slurm-mig: " in task(site).stdout


def test_several_gpus_and_a_driver_that_fails(make_site: Callable[..., Site]) -> None:
    """The node is drained, and nothing half made is left on the GPU that worked."""
    site = make_site(H100, H100)
    slurm_commands(site)
    site.machine.faults.set(
        [Rule("nvmlDeviceCreateGpuInstanceWithPlacement", "error:UNKNOWN", skip=3)]
    )
    done = site.prolog(7, SEVERAL, gpus="0,1")
    assert done.returncode == 13
    assert site.machine.board(0).instances == site.machine.board(1).instances == []
    assert [item.phase for item in records(site)] == [phases.RELEASED] * 2
    assert not (site.run / "env/7.0").exists()


@pytest.mark.parametrize(
    ("gpus", "says"),
    [
        ("0", "the job's slices need 2 GPUs of this node, it has 1"),
        ("0,1,2", "the job's slices need 2 GPUs of this node, it has 3"),
        ("0,2", "is not carved on this node"),
    ],
)
def test_other_gpus_than_the_slices_need(
    make_site: Callable[..., Site], gpus: str, says: str
) -> None:
    """Refused with a sentence: whole GPUs that are not carved here are rightly Slurm's to give."""
    site = make_site(H100, H100, H100, config="[gpus]\nmanaged = [0, 1]\n")
    slurm_commands(site, squeue=squeue(7))
    done = site.prolog(7, SEVERAL, gpus=gpus)
    assert (done.returncode, says in done.stderr) == (0, True), done.stderr
    assert all(site.machine.board(gpu).instances == [] for gpu in range(3))


def test_several_gpus_without_a_stamp(make_site: Callable[..., Site]) -> None:
    """Nothing says which GPU is for which: nobody guesses."""
    site = make_site(H100, H100)
    slurm_commands(site, squeue=squeue(7, "gres/gpu:h100:2,gres/mig:1g.10gb:14"))
    done = site.prolog(7, "", gpus="0,1")
    assert (done.returncode, site.machine.board(0).instances) == (0, [])
    assert "the job has whole GPUs for slices" in done.stderr


def test_programs_that_somebody_else_could_change(site: Site) -> None:
    """As if Slurm did not answer: root runs none of them, and no user drains the node by it."""
    log = slurm_commands(site, squeue=squeue(7, "gres:gpu:1"))
    (site.root / "bin").chmod(0o777)
    done = site.prolog(7, "")
    assert (done.returncode, log.exists()) == (0, False)
    (line,) = done.stderr.splitlines()
    assert "Slurm does not say what the job asked for: run squeue: " in line
    assert f"{site.root}/bin on the way to" in line
    assert site.prolog(8, "slurm-mig=1,9g.90gb/9/14:1").returncode == 0
    site.machine.faults.set([Rule("nvmlDeviceGetCount_v2", "error:UNKNOWN")])
    done = site.prolog(9, STAMP)
    assert (done.returncode, done.stderr.count("could not be set: run scontrol: ")) == (13, 1)
    (site.root / "bin").chmod(0o755)
    assert site.prolog(7, "").returncode == 0


def test_shards_alone_are_no_whole_gpu(site: Site) -> None:
    """job_submit.lua refuses such a job; where it is not loaded the node does."""
    slurm_commands(site, squeue=squeue(7, "gres:shard:14"))
    done = site.prolog(7, "")
    assert done.returncode == 0
    assert "the job has shards of a GPU, but no slice" in done.stderr
    assert records(site)[0].phase == phases.REFUSED
    slurm_commands(site, squeue=squeue(8, "gres:shard:14,gres:gpu:1"))
    assert "whole GPU" in site.prolog(8, "").stderr


def test_a_whole_gpu_that_is_its_largest_slice_is_told_to_accounting(
    make_site: Callable[..., Site],
) -> None:
    """The job has a MIG UUID like others: sacct alone answers for it, too."""
    site = make_site(A100, config="[feed]\nadmin_comment = true\n")
    log = slurm_commands(site, squeue=squeue(7, "gres:gpu:1"))
    assert site.prolog(7, "").returncode == 0
    (record,) = records(site)
    assert "admincomment=" in log.read_text()
    assert f"slurm-mig:n1={record.uuids[0]}" in log.read_text()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("two  blanks\nand a line", "two  blanks\nand a line "),
        ("a slurm-mig:n1=MIG-old  b\n", "a  b\n "),
        ("slurm-mig:n1=MIG-old slurm-mig:n12=MIG-x", " slurm-mig:n12=MIG-x "),
    ],
)
def test_an_admin_comment_keeps_what_is_not_ours(
    make_site: Callable[..., Site], text: str, kept: str
) -> None:
    """To the letter; what this node wrote for an earlier run is replaced."""
    site = make_site(A100, config="[feed]\nadmin_comment = true\n")
    answer = f"""case $* in *admin_comment*) printf '%-20s%-65000s\\n' 7 '{text}' ;;
        *) printf '%s\\n' '{7:<20}{7:<40}1   1   RUNNING' ;; esac"""
    slurm_commands(site, squeue=answer, scontrol=f'printf "%s|" "$@" >>{site.root}/told')
    assert site.prolog(7, "slurm-mig=1,3g.20gb/9/14:1").returncode == 0
    (record,) = records(site)
    assert (
        f"|admincomment={kept}slurm-mig:n1={record.uuids[0]}|" in (site.root / "told").read_text()
    )


def test_an_admin_comment_that_is_too_long_stays(make_site: Callable[..., Site]) -> None:
    """Nothing is cut off; the job has its slice, the log says why accounting is not told."""
    site = make_site(A100, config="[feed]\nadmin_comment = true\n")
    answer = f"""case $* in *admin_comment*) printf '%-20s%065000d\\n' 7 1 ;;
        *) printf '%s\\n' '{7:<20}{7:<40}1   1   RUNNING' ;; esac"""
    log = slurm_commands(site, squeue=answer)
    done = site.prolog(7, "slurm-mig=1,3g.20gb/9/14:1")
    assert (done.returncode, records(site)[0].phase) == (0, phases.ACTIVE)
    assert "65000 bytes or more" in done.stderr
    assert "admincomment=" not in log.read_text()


def test_a_whole_gpu_job_gets_all_its_gpus_or_none(make_site: Callable[..., Site]) -> None:
    """The second GPU is refused: what was given of the first is taken back, the job is held."""
    site = make_site(H100, A30)
    with site.machine.change(1) as board:
        board.set_mode(True, busy=False)
    config = site.root / "config.toml"
    config.write_text(config.read_text() + '[whole_gpus]\nmodels = { "NVIDIA A30" = "reject" }\n')
    log = slurm_commands(site, squeue=squeue(7, "gres:gpu:2"))
    refused = site.prolog(7, "", gpus="0,1")
    assert refused.returncode == 0
    assert "this GPU is given out in slices only" in refused.stderr
    assert "scontrol requeuehold 7" in log.read_text()
    assert site.machine.board(0).mig_current is True
    assert [item.phase for item in records(site)] == [phases.RELEASED, phases.REFUSED]


def test_a_refusal_takes_back_what_tasks_were_told(make_site: Callable[..., Site]) -> None:
    """Slurm does not answer: TaskProlog is the only stop, and names no slice that is gone."""
    site = make_site(A100, A100)
    for gpu in (0, 1):
        with site.machine.change(gpu) as board:
            board.set_mode(True, busy=False)
            if gpu == 1:
                board.create(9, Placement(4, 4), busy=False)
    asked = squeue(7, "gres:gpu:2")
    slurm_commands(site, squeue=asked, scontrol="exit 1", scancel="exit 1")
    assert "refused" in site.prolog(7, "", gpus="0,1").stderr
    told = task(site, SLURM_GPUS_ON_NODE="2")
    assert (told.returncode, "MIG-" in told.stdout) == (1, False)
    assert site.machine.board(0).instances == []


def test_slices_of_a_node_that_manages_none(site: Site) -> None:
    """Slurm's configuration and ours disagree: the bare GPU is not what the job paid for."""
    config = site.root / "config.toml"
    config.write_text(config.read_text() + '[gpus]\nmanaged = "none"\n')
    done = site.prolog(7, STAMP)
    assert done.returncode == 10
    assert "compare `managed`" in done.stderr


def test_a_bad_stamp_on_a_node_that_manages_none(site: Site) -> None:
    """The job's fault here, too: held with the reason, no drain."""
    log = slurm_commands(site, squeue=squeue(7))
    config = site.root / "config.toml"
    config.write_text(config.read_text() + '[gpus]\nmanaged = "none"\n')
    done = site.prolog(7, "slurm-mig=1,banana")
    assert (done.returncode, "outcome=held" in done.stderr) == (0, True)
    assert "state=drain" not in log.read_text()


def test_gpus_that_are_no_longer_managed(site: Site) -> None:
    """TaskProlog looks for a file of every GPU job once there was one; so there is one."""
    assert site.prolog(7, STAMP).returncode == 0
    config = site.root / "config.toml"
    config.write_text(config.read_text() + '[gpus]\nmanaged = "none"\n')
    assert site.prolog(8, "").returncode == 0
    assert task(site, SLURM_JOB_ID="8", SLURM_GPUS_ON_NODE="1").returncode == 0
    assert task(site, SLURM_JOB_ID="9", SLURM_GPUS_ON_NODE="1").returncode == 1


# -- epilog ------------------------------------------------------------------------


def test_the_epilog_takes_down_what_was_made(site: Site) -> None:
    """Slices, files and marks; the neighbour stays."""
    site.prolog(7, STAMP)
    site.prolog(8, STAMP)
    done = site.epilog(7)
    assert done.returncode == 0
    end = "closed, to be taken down" if later() else r"head=\S+ released"
    assert re.search(rf"epilog job=7 .* slices=3g\.40gb@4 ms=\d+ {end}$", done.stderr.strip())
    assert len(site.machine.board(0).instances) == 1
    assert [item.phase for item in records(site)] == [phases.RELEASED, phases.ACTIVE]
    assert sorted(p.name for p in site.run.glob("[ej]*/*")) == ["8.0", "8.0"]


def test_the_epilog_trusts_the_ledger_not_its_environment(site: Site) -> None:
    """After a slurmctld restart SLURM_JOB_GPUS is empty or wrong (facts/slurm.md#failures)."""
    site.prolog(7, STAMP)
    assert site.epilog(7, gpus="").returncode == 0
    site.prolog(8, STAMP)
    assert site.epilog(8, gpus="1").returncode == 0
    assert site.machine.board(0).instances == []


def test_epilogs_are_repeatable_and_run_where_no_prolog_ran(site: Site) -> None:
    """Nothing to release is not an error, with or without a GPU."""
    site.prolog(7, STAMP)
    for _ in range(2):
        assert site.epilog(7).returncode == 0
    done = site.epilog(99)
    assert (done.returncode, "nothing to release" in done.stderr) == (0, True)
    silent = site.epilog(99, gpus="")
    assert (silent.returncode, silent.stderr) == (0, "")


def test_an_epilog_without_anything_starts_no_program(site: Site) -> None:
    """Other jobs' marks do not matter."""
    site.prolog(7, STAMP)
    script = (site.root / "hooks/epilog").read_text()
    (site.root / "hooks/epilog").write_text(re.sub("python='[^']*'", "python=/none", script))
    assert site.epilog(77, gpus="").returncode == 0
    assert site.epilog(7, gpus="").returncode == 127


def test_a_stuck_slice_does_not_drain_the_node(make_site: Callable[..., Site]) -> None:
    """Set aside with its holder in the log."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.2\n")
    site.prolog(7, STAMP)
    site.machine.hold(os.getpid(), records(site)[0].uuids[0])
    done = site.epilog(7)
    assert done.returncode == 0
    assert "quarantined: 3g.40gb@4 still there, used by pid" in became(site, done)
    assert f"pid {os.getpid()}" in became(site, done)
    site.machine.let_go(os.getpid())
    site.prolog(8, STAMP)
    assert [item.phase for item in records(site)] == [phases.RELEASED, phases.ACTIVE]


def sleeper(site: Site, **environ: str) -> subprocess.Popen[bytes]:
    """A process of alice's that uses the first slice there is."""
    process = subprocess.Popen(
        ["python train.py", "300"], executable="/bin/sleep", env=environ, cwd="/",
        user=64001, group=64001, extra_groups=[],
    )  # fmt: skip
    site.machine.hold(process.pid, records(site)[-1].uuids[0])
    return process


def test_left_overs_of_the_ended_job_are_killed(make_site: Callable[..., Site]) -> None:
    """By default, and the log says whom."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.2\n")
    site.prolog(7, STAMP)
    process = sleeper(site, SLURM_JOB_ID="7")
    done = site.epilog(7)
    assert (done.returncode, process.wait(5)) == (0, -9)
    assert f"killed pid {process.pid} of 64001 (python train.py 300)" in became(site, done)
    assert [item.phase for item in records(site)] == [phases.RELEASED]


def test_drained_and_resumed_for_stuck_slices(make_site: Callable[..., Site]) -> None:
    """By the hooks themselves, at exit code 0; a silent slurmctld is tried again."""
    limits = (
        "[hooks]\ndestroy_timeout = 0.2\n"
        '[stuck]\nremedies = ["kill-job"]\ndrain_slices = 1\ndrain_after = 0.001\n'
    )
    site = make_site(H100, config=limits)
    site.prolog(7, STAMP)
    process = sleeper(site)
    try:
        slurm_commands(site, scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
        silent = site.epilog(7)
        assert silent.returncode == 0
        if not later():
            assert "stuck slices: " in silent.stderr
            assert "Unable to contact" in silent.stderr
        # A node that shows whatever it was last given.
        log = slurm_commands(
            site,
            scontrol=f"""
case $* in
*state=drain*)
    echo "NodeName=n1 State=IDLE+DRAIN Reason=${{4#reason=}} [root@1]" >{site.root}/now ;;
*undrain*) rm {site.root}/now ;;
*) cat {site.root}/now 2>/dev/null || echo "NodeName=n1 State=IDLE" ;;
esac""",
        )
        done = site.prolog(8, "slurm-mig=1,1g.10gb/19/4:1")
        assert done.returncode == 0
        assert "drained: slurm-mig: stuck slices: GPU 0 3g.40gb@4 still there" in done.stderr
        assert f"pid {process.pid} of 64001" in (site.root / "now").read_text()
        log.unlink()
        assert site.prolog(9, "slurm-mig=1,1g.10gb/19/4:1").returncode == 0
        assert not log.exists()
    finally:
        process.kill()
        process.wait()
    done = site.epilog(8)
    assert later() or "resumed: its slices are no longer stuck" in done.stderr
    assert not (site.root / "now").exists()


def test_a_stuck_slice_drains_nothing_by_default(make_site: Callable[..., Site]) -> None:
    """Nor does Slurm hear of it, however many hooks come by."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.2\n")
    log = slurm_commands(site)
    site.prolog(7, STAMP)
    process = sleeper(site)
    try:
        assert site.epilog(7).returncode == 0
        assert site.prolog(8, STAMP).returncode == 0
        assert site.epilog(8).returncode == 0
    finally:
        process.kill()
        process.wait()
    assert not log.exists()


def test_a_dead_driver_drains_in_the_epilog(site: Site) -> None:
    """Whether the slice is gone cannot be known: never success, but where it is found out later."""
    log = slurm_commands(site)
    site.prolog(7, STAMP)
    site.machine.lose(0)
    done = site.epilog(7)
    assert done.returncode == (0 if later() else 14)
    assert "state=drain" in log.read_text()
    assert [item.phase for item in records(site)] == [
        phases.RELEASING if later() else phases.ACTIVE
    ]


def test_a_refused_jobs_epilog_postpones_it(site: Site) -> None:
    """In a process that outlives the Epilog, once the job is pending."""
    blocked(site)
    state = site.root / "state-of-7"
    state.write_text("COMPLETING")
    body = f'case "$*" in *%T*) cat {state};; *) {squeue(7)};; esac'
    version = 'case "$*" in --version) echo slurm 24.11.5;; esac'
    log = slurm_commands(site, squeue=body, scontrol=version)
    site.prolog(7, REFUSED)
    started = time.monotonic()
    # Slurm has raised the count by then; the delay is that of the first refusal.
    environ = job_environ(7, "") | {"SLURM_JOB_RESTART_COUNT": "1"}
    done = site.hook("epilog", environ, wait=False)
    assert done.returncode == 0
    assert "starttime" not in log.read_text()
    assert not list(site.run.glob("[ej]*/*"))
    state.write_text("PENDING")
    while "starttime" not in log.read_text():
        assert time.monotonic() - started < 30
        time.sleep(0.05)
    assert "scontrol update jobid=7 starttime=now+120" in log.read_text()


def test_the_last_run_of_a_killed_prolog_is_cleared_by_the_epilog(site: Site) -> None:
    """SIGKILL in the middle of carving: Slurm runs the Epilog then."""
    site.machine.faults.set([Rule("nvmlGpuInstanceCreateComputeInstance", "kill-after")])
    assert site.prolog(7, STAMP).returncode == -9
    assert len(site.machine.board(0).instances) == 1
    assert site.epilog(7, gpus="").returncode == 0
    assert site.machine.board(0).instances == []
    assert not (site.machine.tree.dev / "nvidia-caps").exists()


def test_two_prologs_at_once_on_one_gpu(site: Site) -> None:
    """The lock serialises them; each gets its own slice."""
    slow = [
        subprocess.Popen(
            [site.root / "hooks/prolog"],
            env=job_environ(job, STAMP),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for job in (7, 8)
    ]
    assert [process.wait(60) for process in slow] == [0, 0]
    for process in slow:
        process.communicate()
    assert len({uuid for record in records(site) for uuid in record.uuids}) == 2


# -- task prolog -----------------------------------------------------------------------


def test_a_task_is_told_its_slices(site: Site) -> None:
    """As the job's user, with no PATH; exactly the export lines."""
    site.prolog(7, "slurm-mig=1,1g.10gb/19/4:2")
    uuids = ",".join(records(site)[0].uuids)
    done = task(site, SLURM_SHARDS_ON_NODE="8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"export CUDA_VISIBLE_DEVICES={uuids}\n"
        "export SLURM_MIG_PROFILES=1g.10gb,1g.10gb\n"
        f"export SLURM_MIG_GPU={site.machine.gpus[0]['uuid']}\n"
        "export SLURM_MIG_JOB=7\n"
        "export SLURM_GPUS_ON_NODE=2\n"
    )


def test_a_task_of_an_ordinary_job(site: Site) -> None:
    """Nothing printed, nothing refused: also where no run directory exists."""
    assert (task(site).returncode, task(site).stdout) == (0, "")


def test_shards_without_this_runs_file_fail_closed(site: Site) -> None:
    """22.05 can restart a job without its Prolog: the task stops, with the reason."""
    site.prolog(7, STAMP)
    done = task(site, SLURM_SHARDS_ON_NODE="14", SLURM_RESTART_COUNT="1")
    assert done.returncode == 1
    assert done.stdout.startswith("print slurm-mig: job 7 has no GPU of its own on n1")
    site.epilog(7)
    assert task(site, SLURM_SHARDS_ON_NODE="14").returncode == 1


def test_the_run_is_matched(site: Site) -> None:
    """Restart 1's tasks read restart 1's file."""
    site.prolog(7, STAMP, SLURM_JOB_RESTART_COUNT="1")
    assert task(site, SLURM_SHARDS_ON_NODE="14", SLURM_RESTART_COUNT="1").returncode == 0
    assert task(site, SLURM_SHARDS_ON_NODE="14").returncode == 1


def test_a_step_that_lost_the_restart_count(site: Site) -> None:
    """Srun --export may drop it; the step of the one run that has a file gets it."""
    site.prolog(7, STAMP, SLURM_JOB_RESTART_COUNT="3")
    done = task(site, SLURM_SHARDS_ON_NODE="14", SLURM_STEP_ID="0")
    assert done.returncode == 0
    assert "MIG-" in done.stdout


def test_a_step_of_a_heterogeneous_job(site: Site) -> None:
    """It carries the leader's id on every node; this node's component left its files there."""
    site.prolog(9, STAMP, SLURM_HET_JOB_ID="7")
    done = task(site, SLURM_SHARDS_ON_NODE="14", SLURM_STEP_ID="0")
    assert (done.returncode, "MIG-" in done.stdout) == (0, True)
    assert task(site, SLURM_JOB_ID="9", SLURM_SHARDS_ON_NODE="14").returncode == 0
    site.epilog(7)
    assert task(site, SLURM_SHARDS_ON_NODE="14").returncode == 0
    site.epilog(9)
    assert task(site, SLURM_SHARDS_ON_NODE="14").returncode == 1
    assert not list(site.run.glob("[ej]*/*"))


@pytest.mark.parametrize("step", ["", "-5"])
def test_a_batch_script_never_loses_it(site: Site, step: str) -> None:
    """Its step id is unset before 26.05 and -5 since."""
    site.prolog(7, STAMP, SLURM_JOB_RESTART_COUNT="3")
    # The empty one stands for unset: the script treats both alike.
    assert task(site, SLURM_SHARDS_ON_NODE="14", SLURM_STEP_ID=step).returncode == 1


def test_other_users_cannot_read_the_file(site: Site) -> None:
    """Root's, and theirs alone to read; without it the task of a forged job id fails closed."""
    site.prolog(7, STAMP)
    assert (site.run / "env/7.0").stat().st_uid == 0
    assert opened_by(64001, site.run / "env/7.0")
    assert not opened_by(64002, site.run / "env/7.0")
    done = task(site, uid=64002, SLURM_SHARDS_ON_NODE="14")
    assert (done.returncode, "MIG-" in done.stdout) == (1, False)


def test_job_ids_that_begin_alike(site: Site) -> None:
    """7 is not 77."""
    site.prolog(77, STAMP)
    assert task(site, SLURM_SHARDS_ON_NODE="14", SLURM_STEP_ID="0").returncode == 1


def test_the_task_prolog_starts_no_program(site: Site) -> None:
    """Shell built-ins only: it runs for every task."""
    site.prolog(7, STAMP)
    done = subprocess.run(
        ["/bin/sh", "-c", f"PATH=/none; enable() {{ :; }}; . {site.root}/hooks/task_prolog"],
        env={"SLURM_JOB_ID": "7"}, capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("export ") == 5


# -- parts ---------------------------------------------------------------------------


def test_two_models_on_one_node(make_site: Callable[..., Site]) -> None:
    """Each GPU by its own table."""
    site = make_site(H100, A30)
    assert site.prolog(7, "slurm-mig=1,1g.6gb/14/1:2", gpus="1").returncode == 0
    assert [item.size for item in site.machine.board(1).instances] == [1, 1]


def test_what_slurm_tells() -> None:
    """Missing or odd variables are the caller's fault, with their name."""
    with pytest.raises(NodeFault, match="SLURM_JOB_ID"):
        Job.from_environ({})
    with pytest.raises(NodeFault, match="ValueError"):
        Job.from_environ({"SLURM_JOB_ID": "x"})
    job = Job.from_environ(job_environ(7, "", "0,2") | {"SLURM_HET_JOB_ID": "5"})
    assert (job.gpus, job.owner.het_leader) == ((0, 2), 5)


def test_the_line_goes_to_syslog_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under our name, as a daemon's, with its level."""
    sent: list[tuple[object, ...]] = []
    monkeypatch.setattr("syslog.openlog", lambda *words: sent.append(words))
    monkeypatch.setattr("syslog.syslog", lambda *words: sent.append(words))
    line = LogLine("prolog")
    line.add(job=7)
    line.say("ERR", "broken\nthing")
    line.say("INFO", "and more")
    line.write()
    assert sent[0] == ("slurm-mig", syslog.LOG_PID, syslog.LOG_DAEMON)
    assert sent[1][0] == syslog.LOG_ERR
    assert re.fullmatch(r"prolog job=7 ms=\d+ broken thing; and more", str(sent[1][1]))


def test_log_words_are_bounded() -> None:
    """A kilobyte of comment does not fill syslog."""
    line = LogLine("prolog")
    line.add(x="y" * 5000)
    assert len(line.words[0]) == 1002
