"""What publishing does with jobs of every shape, restarts, preemption and its own switch.

Two minutes: `make test-publishing` runs it, the suite has test_publishing.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.kit.cluster import ALICE, Site, running
from tests.kit.cluster_jobs import replace_script, saved
from tests.kit.publishing import (
    NODES,
    PREEMPTION,
    THREE,
    empty,
    fill,
    fits,
    has_anchor,
    look,
    look_everywhere,
    nobody_is_held,
    refusals,
    start_look,
    struck,
    take_over,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slurm_mig.sandbox import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one model, that publish, and partitions of which one preempts the other."""
    with running(NODES, publish=True, slurm_conf=PREEMPTION, config="retry_delay = 600\n") as made:
        yield made


def test_jobs_of_every_shape_wait(site: Site) -> None:
    """Pinned, with a feature, arrays, het jobs, reserved: all wait, all run, none is held."""
    for name in ("n1", *(["mig-anchor"] if has_anchor(site) else [])):
        site.run("scontrol", "update", f"nodename={name}", "availablefeatures=f1")
        site.run("scontrol", "update", f"nodename={name}", "activefeatures=f1")
    fill(site)
    script = "sleep 1"
    jobs = [
        site.sbatch(THREE, *words, script=script)
        for words in (
            (), ("-w", "n2"), ("-C", "f1"), ("-x", "n1"), ("-N2",), ("-p", "low,high"),
            ("--array=0-2",), ("--no-requeue",),
        )
    ]  # fmt: skip
    jobs.append(site.sbatch(THREE, ":", "--gres=mig:1g.10gb:1", script=script))
    for _ in range(4):
        time.sleep(1)
        nobody_is_held(site)
    empty(site)
    for job in jobs:
        site.wait(job, "COMPLETED", seconds=90)


def test_a_reservation(site: Site) -> None:
    """A job in one waits for its node's slot, not for another node's."""
    fill(site)
    when = ("users=alice", "starttime=now", "duration=10")
    site.run("scontrol", "create", "reservationname=r1", "nodes=n1", *when)
    job = site.sbatch(THREE, "--reservation=r1", script="sleep 1")
    site.unblock("n2")
    look_everywhere(site)
    time.sleep(2)
    nobody_is_held(site)
    assert site.state(job) in {"PENDING", "COMPLETING"}
    empty(site)
    # Before 23.11 it is not counted: it was refused, and is called by what made room.
    site.wait(job, "COMPLETED")
    site.until(
        lambda: not site.cluster.try_run("scontrol", "delete", "reservationname=r1").returncode,
        "the reservation to go",
    )


def test_restarts_put_counts_back_and_hold_nobody(site: Site) -> None:
    """Each daemon, a reconfigure, a requeue: at worst a refusal, and a look puts them right."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    running_one = site.sbatch("--gres=mig:1g.10gb:1", "-w", "n2", "--requeue")
    site.wait(running_one, "RUNNING")
    look_everywhere(site)
    site.cluster.stop_daemon("slurmctld")
    site.cluster.start_slurmctld()
    site.until(lambda: site.cluster.try_run("sinfo").returncode == 0, "slurmctld")
    site.cluster.stop_daemon("n1")
    site.cluster.start_slurmd("n1")
    site.run("scontrol", "reconfigure")
    site.until(lambda: site.in_service("n1") and site.in_service("n2"), "both nodes")
    time.sleep(1)
    look_everywhere(site)
    assert fits(site)["3g.40gb"] == 0
    nobody_is_held(site)
    site.run("scontrol", "requeue", str(running_one))
    time.sleep(1)
    nobody_is_held(site)
    site.run("scancel", str(running_one))
    empty(site)
    # Had it been refused meanwhile, what makes room calls it.
    site.wait(job, "COMPLETED", seconds=150)


def test_a_higher_partition_preempts(site: Site) -> None:
    """What has the same slice gives it; nobody of both is held."""
    look_everywhere(site)
    low = [site.sbatch(THREE, "-p", "low", "--requeue") for _ in range(6)]
    site.until(lambda: all(site.state(job) == "RUNNING" for job in low), "six 3g")
    high = site.sbatch(THREE, "-p", "high", script="sleep 1")
    site.wait(high, "COMPLETED", seconds=60)
    nobody_is_held(site)


def test_who_is_held_all_the_same_is_let_go(site: Site) -> None:
    """A job whose expression was taken away is held by Slurm; the next look releases it."""
    if has_anchor(site):
        pytest.skip("this release knows no expressions")
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    for name in ("n1", "n2"):
        site.run("scontrol", "update", f"nodename={name}", "extra={}")
    other = site.sbatch("--gres=mig:1g.10gb:1", "-w", "n1", script="sleep 1")
    time.sleep(2)
    empty(site)
    for _ in range(3):
        look_everywhere(site)
    for one in (job, other):
        site.wait(one, "COMPLETED", seconds=60)


def test_another_s_held_job_stays_held(site: Site) -> None:
    """Both lose their feature and are held: ours is released by a look, the other never."""
    for name in (item.name for item in site.cluster.nodes):
        _feature(site, name, "f2")
    lua = site.cluster.conf / "job_submit.lua"
    text = lua.read_text()
    late = ("-C", "f2", "--begin=now+4")
    nothing = "function slurm_job_submit() return 0 end\nfunction slurm_job_modify() return 0 end\n"
    replace_script(site, f"{nothing}return 0\n")
    foreign = site.sbatch("--gres=mig:1g.10gb:1", *late, script="sleep 1")
    replace_script(site, text)
    ours = site.sbatch("--gres=mig:1g.10gb:1", *late, script="sleep 1")
    assert "fit:1g.10gb" in site.show(ours, "TresPerNode")
    assert "slurm-mig=" not in site.show(foreign, "Comment")
    for name in ("n1", "n2"):
        _feature(site, name, "")
    # From 23.11 on ours has an expression, and is not held for this.
    held = (foreign, ours) if has_anchor(site) else (foreign,)
    site.until(lambda: {site.show(job, "Reason") for job in held} == {"BadConstraints"}, "holds")
    for name in ("n1", "n2"):
        _feature(site, name, "f2")
    for _ in range(3):
        look_everywhere(site)
    site.wait(ours, "COMPLETED", seconds=60)
    assert site.show(foreign, "Reason") == "BadConstraints", site.story()


def _feature(site: Site, name: str, word: str) -> None:
    # What is active has to be available at any moment.
    order = ("availablefeatures", "activefeatures")
    for which in order if word else reversed(order):
        site.run("scontrol", "update", f"nodename={name}", f"{which}={word}")


def test_switched_off_and_on_while_jobs_wait(site: Site) -> None:
    """Off: who waited starts blindly, and the gate calls them. On: the counts are right at once."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    time.sleep(2)
    nobody_is_held(site)
    look_everywhere(site, "--off")
    assert fits(site)["3g.40gb"] == 16
    site.until(lambda: refusals(site) > 0, "a blind start")
    nobody_is_held(site)
    site.unblock("n1")
    site.unblock("n2")

    def ended() -> bool:
        look_everywhere(site)
        return site.state(job) == "COMPLETED"

    site.until(ended, "its run")
    look_everywhere(site, "--on")
    assert fits(site)["3g.40gb"] == 4


DEATHS = {
    "before it asks": ("show node -d -o n1", "kill -9 $PPID; exit 1;"),
    "before it tells": ("nodename=n1 gres=", "kill -9 $PPID; exit 1;"),
    "while scontrol runs": ("nodename=n1 gres=", 'kill -9 $PPID; exec "$real" "$@";'),
    "when slurm has it": ("nodename=n1 gres=", '"$real" "$@"; kill -9 $PPID; exit 0;'),
}


def kill_one(site: Site, step: str) -> None:
    dead = struck(site, *DEATHS[step])
    dead.communicate(timeout=60)
    assert dead.returncode == -9
    time.sleep(1)
    nobody_is_held(site)


@pytest.mark.parametrize("step", DEATHS)
def test_a_publisher_is_killed_when_room_comes(site: Site, step: str) -> None:
    """Who waits for it starts: with the next hook or look on that node, whichever comes first."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    time.sleep(1)
    site.unblock("n1")
    kill_one(site, step)
    other = site.sbatch("--gres=mig:1g.10gb:1", "-w", "n1", script="sleep 1")
    site.wait(other, "COMPLETED", seconds=60)
    look(site)
    site.until(lambda: fits(site)["3g.40gb"] == 4, "the counts of an empty node")
    site.wait(job, "COMPLETED", seconds=60)
    empty(site)


@pytest.mark.parametrize("step", DEATHS)
def test_a_publisher_is_killed_when_room_goes(site: Site, step: str) -> None:
    """The counts that stand are too high: a job is refused at worst, and not for good."""
    look_everywhere(site)
    for name, gpu in (("n1", 0), ("n1", 1), ("n2", 0)):
        site.block(gpu, name)
    kill_one(site, step)
    job = site.sbatch(THREE, script="sleep 1")
    time.sleep(2)
    look_everywhere(site)
    assert (fits(site)["3g.40gb"], fits(site, "n2")["3g.40gb"]) == (0, 0)
    nobody_is_held(site)
    for name in ("n1", "n2"):
        site.unblock(name)

    def ended() -> bool:
        look_everywhere(site)
        return site.state(job) == "COMPLETED"

    site.until(ended, "its run")


def test_slurmctld_goes_while_it_is_told(site: Site) -> None:
    """A look fails and says so; when slurmctld is back the next one is right, and nobody held."""
    fill(site)
    job = site.sbatch(THREE, script="sleep 1")
    saved(site, job)
    site.unblock("n1")
    pid = (site.cluster.root / "spool/slurmctld.pid").read_text().strip()
    half = struck(site, "nodename=n1 gres=", f"kill -9 {pid};")
    _, problem = half.communicate(timeout=60)
    assert half.returncode not in {0, -9}
    assert "scontrol update nodename=n1" in problem
    site.cluster.kill_daemon("slurmctld")
    site.cluster.start_slurmctld()
    site.until(lambda: site.cluster.try_run("sinfo").returncode == 0, "slurmctld")
    site.until(lambda: site.in_service("n1") and site.in_service("n2"), "both nodes")
    look_everywhere(site)
    nobody_is_held(site)
    site.wait(job, "COMPLETED", seconds=90)
    empty(site)


def test_many_publishers_at_once(site: Site) -> None:
    """Looks of a timer, an administrator's and hooks': the counts are the node's in the end."""
    look_everywhere(site)
    jobs = [site.sbatch("--gres=mig:1g.10gb:1", script="sleep 1") for _ in range(4)]
    looks = [start_look(site, name=name) for _ in range(4) for name in ("n1", "n2")]
    for one in looks:
        _, problem = one.communicate(timeout=90)
        assert one.returncode == 0, problem
    nobody_is_held(site)
    for job in jobs:
        site.wait(job, "COMPLETED", seconds=60)
    site.until(lambda: fits(site)["3g.40gb"] == 4, "the counts of an empty node")


def test_a_stream_of_small_ones_starves_nobody(site: Site) -> None:
    """The whole GPU of n2 keeps its backfill reservation, for it has no count of its own."""
    look_everywhere(site)
    first = [site.sbatch("--gres=mig:1g.10gb:1", "-w", "n2", "-t1", script="sleep 4") for _ in "12"]
    site.until(lambda: all(site.state(job) == "RUNNING" for job in first), "two small ones")
    large = site.sbatch("--gres=mig:7g.80gb:1", "-w", "n2", "-t1", script="sleep 1", uid=ALICE)
    later = [
        site.sbatch("--gres=mig:1g.10gb:1", "-w", "n2", "-t1", script="sleep 4") for _ in "1234"
    ]
    site.wait(large, "COMPLETED", seconds=60)
    assert any(site.state(job) in {"PENDING", "RUNNING"} for job in later)


def test_switched_on_while_jobs_wait(build: Callable[..., Site]) -> None:
    """In the manual's order, with jobs running and waiting: none is held, refused or lost."""
    site = build(*NODES, config="retry_delay = 600\n")
    site.block(0, "n2")
    running_one = site.sbatch("--gres=mig:7g.80gb:1", "-w", "n1", script="sleep 25")
    blind = site.sbatch(THREE, "-w", "n2", script="sleep 1")
    site.until(lambda: refusals(site) == 1, "a refusal, as before")
    queued = [site.sbatch("--gres=mig:7g.80gb:2", "-w", "n1", script="sleep 1") for _ in "12"]
    take_over(site, slurm_conf=True)
    look_everywhere(site)
    nobody_is_held(site)
    take_over(site, slurm_conf=False)
    # Slurm reads the file again when its time stamp is of a later second.
    time.sleep(1.1)
    counted = site.sbatch(THREE, "-x", "n1", script="sleep 1")
    assert "fit:3g.40gb" in site.show(counted, "TresPerNode")
    time.sleep(3)
    nobody_is_held(site)
    assert refusals(site) == 1
    site.unblock("n2")
    for _ in range(6):
        look_everywhere(site)
        time.sleep(1)
    for job in (counted, blind, running_one, *queued):
        site.wait(job, "COMPLETED", seconds=90)
    assert refusals(site) == 1


def test_who_waits_for_a_place_keeps_nobody_waiting() -> None:
    """Two 3g run and a third has no place; what came later and runs longer starts all the same."""
    with running(NODES[:1], publish=True) as made:
        site = Site(made)
        look(site)
        for profile in ("3g.40gb", "3g.40gb", "4g.40gb", "1g.10gb"):
            job = site.sbatch(f"--gres=mig:{profile}:1", "-t1", script="sleep 50")
            site.wait(job, "RUNNING", seconds=30)
        waits = site.sbatch(THREE, "-t1", script="sleep 1")
        site.until(lambda: fits(site)["3g.40gb"] == 0, "nothing published")
        later = site.sbatch("--gres=mig:1g.10gb:1", "-t5", script="sleep 1")
        site.wait(later, "COMPLETED", seconds=20)
        assert site.state(waits) == "PENDING"
        nobody_is_held(site)
