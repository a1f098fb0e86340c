"""Real Slurm runs real jobs on slices carved for them, and they are gone afterwards."""

from __future__ import annotations

import re

from slurm_mig.mig import allocation as phases
from tests.kit.cluster import ALICE, BOB, Site, launch
from tests.kit.cluster_jobs import SHOW, seen, uuids


def test_a_batch_job(site: Site) -> None:
    """Asked without a count; Slurm's gres, our ledger, the hardware and the job agree."""
    job = site.sbatch("--gres=mig:3g.40gb", script=f"{SHOW}; sleep 300")
    site.until(lambda: seen(site.output(job)), "output")
    record = site.record(job)

    assert site.show(job, "TresPerNode").replace("/", ":") == (
        "gres:mig:3g.40gb:1,gres:shard:h100:14"
    )
    assert site.made() == ["3g.40gb@4"]
    assert seen(site.output(job)) == [["0", uuids(record), "3g.40gb", record.gpu_uuid]]
    assert (record.owner.user, record.owner.uid) == ("alice", ALICE)
    nodes = list((site.machine().tree.dev / "nvidia-caps").iterdir())
    assert {(node.stat().st_uid, node.stat().st_mode & 0o777) for node in nodes} == {(ALICE, 0o400)}

    site.run("scancel", str(job))
    site.wait(job, "CANCELLED")
    site.until(lambda: site.record(job).phase == phases.RELEASED, "the Epilog")
    assert site.made() == []


def test_several_profiles_and_instances(site: Site) -> None:
    """On one GPU, in the order of the request."""
    job = site.sbatch("--gres=mig:1g.10gb:2,mig:3g.40gb:1", script=SHOW)
    site.wait(job, "COMPLETED")
    record = site.record(job)
    assert [item.profile for item in record.instances] == ["1g.10gb", "1g.10gb", "3g.40gb"]
    assert seen(site.output(job))[0][1:] == [
        uuids(record),
        "1g.10gb,1g.10gb,3g.40gb",
        record.gpu_uuid,
    ]


def test_srun(site: Site) -> None:
    """Every task of an interactive job its own slice, --export=NONE included."""
    text = site.run(
        "srun", "-n2", "--export=NONE", "--gres=mig:1g.10gb:2", "/bin/sh", "-c", SHOW, uid=ALICE
    )
    record = site.records()[-1]
    assert seen(text) == [
        [str(rank), record.uuids[rank], "1g.10gb", record.gpu_uuid] for rank in range(2)
    ]


def test_what_a_user_sets_does_not_widen_what_he_gets(site: Site) -> None:
    """CUDA_VISIBLE_DEVICES of the submission is replaced."""
    done = site.cluster.try_run(
        "srun", "--gres=mig:1g.10gb:1", "/bin/sh", "-c", SHOW, uid=ALICE,
        CUDA_VISIBLE_DEVICES="MIG-of-somebody", SLURM_MIG_PROFILES="7g.80gb", MINE="kept",
    )  # fmt: skip
    assert seen(done.stdout)[0][2] == "1g.10gb"
    assert "somebody" not in done.stdout


def test_salloc_and_its_steps(site: Site) -> None:
    """A step of an allocation sees the job's slices; one that wants no GPU sees none."""
    shell = launch(site, "salloc", "--gres=mig:2g.20gb:1", "/bin/sh")
    first = shell.communicate(f"srun /bin/sh -c '{SHOW}'\nsrun --gres=none /bin/sh -c '{SHOW}'\n")
    assert shell.returncode == 0, first[1]
    none, plain = seen(first[0])
    assert none[1:] == []
    assert plain[2] == "2g.20gb"


def test_an_array(site: Site) -> None:
    """Every task has a slice of its own; together they fill a GPU."""
    job = site.sbatch("--array=0-6", "--gres=mig:1g.10gb:1", script=f"{SHOW}; sleep 300")
    site.until(lambda: len(site.made()) == 7, "seven slices")
    site.until(
        lambda: len([r for r in site.records() if r.phase == phases.ACTIVE]) == 7, "seven records"
    )
    held = [uuids(record) for record in site.records() if record.phase == phases.ACTIVE]
    assert len(set(held)) == 7
    site.run("scancel", str(job))
    site.until(lambda: site.made() == [], "all to go")


def test_two_nodes(site: Site) -> None:
    """Each node carves its own share; one Slurm job, one record a node."""
    # The nodes have different GPUs, so each component asks for its own profile.
    text = site.run(
        "srun",
        "--gres=mig:1g.10gb:1", "-w", "n1", "/bin/sh", "-c", SHOW,
        ":", "--gres=mig:1g.6gb:2", "-w", "n2", "/bin/sh", "-c", SHOW,
        uid=ALICE,
    )  # fmt: skip
    profiles = sorted(line[2] for line in seen(text))
    assert profiles == ["1g.10gb", "1g.6gb,1g.6gb"]


def test_mixed_models_on_one_node(site: Site) -> None:
    """An A30's slices come from the A30, paid with its own shards."""
    jobs = [
        site.sbatch(f"--gres=mig:{name}", script="sleep 300")
        for name in ("1g.6gb:2", "2g.48gb:1", "1g.24gb-me:1", "2g.12gb+me:1")
    ]
    site.until(lambda: len(site.made("n2", 0)) + len(site.made("n2", 1)) == 5, "five slices")
    names = [sorted(made.split("@")[0] for made in site.made("n2", gpu)) for gpu in (0, 1)]
    assert names == [["1g.24gb-me", "2g.48gb"], ["1g.6gb", "1g.6gb", "2g.12gb+me"]]
    assert all(site.state(job) == "RUNNING" for job in jobs)


def test_slurm_fills_a_gpu_exactly_as_far_as_slots_go(site: Site) -> None:
    """4g + 3g fit and a 1g does not; the 1g goes to the other GPU, a second 4g too."""
    for name in ("4g.40gb", "3g.40gb", "1g.10gb", "4g.40gb"):
        site.wait(site.sbatch(f"--gres=mig:{name}:1"), "RUNNING")
    site.until(lambda: len(site.made("n1", 0)) + len(site.made("n1", 1)) == 4, "four slices")
    assert site.made("n1", 0) == ["3g.40gb@4", "4g.40gb@0"]
    assert len(site.made("n1", 1)) == 2
    waiting = site.sbatch("--gres=mig:4g.40gb:1")
    site.until(lambda: site.show(waiting, "Reason") == "Resources", "the fifth to wait in Slurm")


def test_two_users_side_by_side(site: Site) -> None:
    """Each one's nodes are his own; the neighbour is untouched by the other's end."""
    mine = site.sbatch("--gres=mig:3g.40gb:1")
    other = site.sbatch("--gres=mig:3g.40gb:1", uid=BOB)
    site.until(lambda: len(site.made()) == 2, "two slices")
    site.until(lambda: site.record(other).phase == phases.ACTIVE, "both records")
    before = site.record(other)
    site.run("scancel", str(mine))
    site.until(lambda: site.record(mine).phase == phases.RELEASED, "one to go")
    assert len(site.made()) == 1
    assert site.record(other) == before
    caps = site.machine().tree.dev / "nvidia-caps"
    assert {node.stat().st_uid for node in caps.iterdir()} == {BOB}


def test_ordinary_jobs_are_not_touched(site: Site) -> None:
    """No gres: no variable of ours, no record, no file."""
    before = len(site.records())
    job = site.sbatch(script="env | grep -E 'MIG|CUDA' ; echo done")
    site.wait(job, "COMPLETED")
    assert site.output(job) == "done\n"
    assert len(site.records()) == before


def test_whole_gpus_beside_slices(site: Site) -> None:
    """Slurm keeps them apart; MIG mode goes off for one and comes back for the next slice."""
    slice_ = site.sbatch("--gres=mig:1g.10gb:1")
    site.wait(slice_, "RUNNING")
    whole = site.sbatch("--gres=gpu:h100:1", script="echo gpu $CUDA_VISIBLE_DEVICES; sleep 300")
    site.until(lambda: "gpu" in site.output(whole), "the whole GPU")
    assert site.output(whole) == "gpu 1\n"
    assert site.machine().board(1).mig_current is False
    site.run("scancel", str(whole))
    site.wait(whole, "CANCELLED")
    second = site.sbatch("--gres=mig:7g.80gb:1")
    site.until(lambda: site.made("n1", 1) == ["7g.80gb@0"], "MIG mode back")
    assert site.state(second) == "RUNNING"


def test_a_requeue_by_the_user(site: Site) -> None:
    """The second run has a slice and a record of its own, matched by restart count."""
    job = site.sbatch("--gres=mig:3g.40gb:1", script=f"{SHOW}; sleep 300")
    site.until(lambda: seen(site.output(job)), "the first run")
    site.run("scontrol", "requeue", str(job), uid=ALICE)
    # Past the credential's life: 22.05 restarts sooner ones without a Prolog.
    site.wait(job, "PENDING")
    site.run("scontrol", "update", f"jobid={job}", "starttime=now+10", uid=ALICE)
    site.until(lambda: len(seen(site.output(job))) == 2, "the second run", 90)
    runs = [item for item in site.records() if item.owner.job_id == job]
    assert [(item.owner.restart, item.phase) for item in runs] == [
        (0, phases.RELEASED),
        (1, phases.ACTIVE),
    ]


def test_accounting_counts_profiles(site: Site) -> None:
    """Slurm's own view while a job runs: typed counts on the node, shards of the job."""
    job = site.sbatch("--gres=mig:3g.40gb:1")
    site.wait(job, "RUNNING")
    used = re.search(r"GresUsed=(\S+)", site.run("scontrol", "show", "node", "-d", "n1"))
    assert used
    assert "mig:3g.40gb:1" in used[1]
    held = re.search(r" GRES=(\S+)", site.run("scontrol", "show", "job", "-d", str(job)))
    assert held
    assert held[1].startswith("mig:3g.40gb(CNT:1),shard:h100:14(")


def test_jobs_one_after_the_other_while_slices_are_taken_down(site: Site) -> None:
    """Epilogs end before that, as they do unless a site says otherwise: nobody is refused."""
    file = site.cluster.root / "nodes/n1/config.toml"
    before = file.read_text()
    file.write_text(before.replace("defer_teardown = false", "defer_teardown = true"))
    try:
        job = site.sbatch("--array=1-6", "--gres=mig:7g.80gb:1", script="true")
        site.until(lambda: not site.run("squeue", "-h").strip(), "all jobs to be over")
        site.until(lambda: not [item for item in site.records() if item.open], "all slices gone")
    finally:
        file.write_text(before)
    mine = [item for item in site.records() if item.owner.job_id in range(job, job + 8)]
    assert [(item.phase, item.reason) for item in mine] == [(phases.RELEASED, "the job ended")] * 6
