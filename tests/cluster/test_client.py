"""The Slurm client against the real Slurm: one suite for every client there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import SlurmFault
from slurm_mig.slurm import pyslurm_client
from slurm_mig.slurm.commands import CommandClient
from tests.kit.cluster import ALICE, BOB, Site, launch

if TYPE_CHECKING:
    from pathlib import Path

    from slurm_mig.slurm.protocol import Slurm


@pytest.fixture(params=["commands", "pyslurm"])
def client(request: pytest.FixtureRequest, site: Site, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    for name, value in site.cluster.environ().items():
        if name.startswith("SLURM"):
            monkeypatch.setenv(name, value)
    commands = CommandClient(site.cluster._find("scontrol").parent, 20)
    if request.param == "commands":
        return commands
    reason = pyslurm_client.why_not(commands, 20)
    if reason:
        pytest.skip(f"pyslurm: {reason}")
    return pyslurm_client.LibraryClient(commands)


def test_facts_of_a_batch_job(site: Site, client: Slurm) -> None:
    """What a refusal and the fallback need."""
    job = site.sbatch("--gres=mig:3g.40gb:1")
    site.wait(job, "RUNNING")
    facts = client.job(job)
    assert facts is not None
    assert (facts.reference, facts.batch, facts.requeue) == (str(job), True, True)
    assert facts.state == "RUNNING"
    assert facts.tres_per_node.replace("/", ":") == "gres:mig:3g.40gb:1,gres:shard:h100:14"
    assert facts.nodes == "n1"
    assert client.live_jobs("n1") == {job}
    assert client.live_jobs("n2") == frozenset()
    assert client.state(str(job)) == "RUNNING"


def test_facts_of_an_interactive_job(site: Site, client: Slurm) -> None:
    """Not a batch job."""
    shell = launch(site, "salloc", "--gres=mig:1g.10gb:1", "sleep", "300")
    site.until(lambda: client.live_jobs("n1"), "the allocation")
    (job,) = client.live_jobs("n1")
    facts = client.job(job)
    assert facts is not None
    assert facts.batch is False
    client.cancel(str(job))
    shell.communicate(timeout=60)


def test_the_last_task_of_an_array_is_named_as_a_task(site: Site, client: Slurm) -> None:
    """Its id is the array's: a bare id would mean every task."""
    array = site.sbatch("--array=0-2", script="sleep 300")
    site.until(lambda: len(client.live_jobs("n1")) == 3, "three tasks")
    references = {client.job(job).reference for job in client.live_jobs("n1")}  # type: ignore[union-attr]
    assert references == {f"{array}_{task}" for task in range(3)}
    last = client.job(array)
    assert last is not None
    client.cancel(last.reference)
    site.until(lambda: len(client.live_jobs("n1")) == 2, "one task less")


def test_a_task_whose_array_id_lives_on(site: Site, client: Slurm) -> None:
    """The id of an array whose last task has ended is no job, whatever other tasks do."""
    array = site.sbatch("--array=0-1", script='[ "$SLURM_ARRAY_TASK_ID" = 1 ] || sleep 300')
    site.wait(f"{array}_0", "RUNNING")
    site.wait(f"{array}_1", "COMPLETED")
    site.until(lambda: client.job(array) is None, "the last task to end")
    (first,) = client.live_jobs("n1")
    assert client.job(first).reference == f"{array}_0"  # type: ignore[union-attr]


def test_tasks_that_wait(site: Site, client: Slurm) -> None:
    """One record for all of them, on no node."""
    array = site.sbatch("--array=0-3", "--hold")
    facts = client.job(array)
    assert facts is not None
    assert (facts.reference, facts.state, facts.nodes) == (f"{array}_[0-3]", "PENDING", "")


def test_components_of_a_heterogeneous_job(site: Site, client: Slurm) -> None:
    """Named by their leader and their place."""
    leader = site.sbatch("-n1", ":", "-n1")
    site.wait(leader, "RUNNING")
    references = [client.job(job).reference for job in (leader, leader + 1)]  # type: ignore[union-attr]
    assert references == [f"{leader}+0", f"{leader}+1"]
    assert client.live_jobs("n1") | client.live_jobs("n2") == {leader, leader + 1}


def test_gres_on_several_nodes(site: Site, client: Slurm) -> None:
    """What is held on each of the nodes, with and without a count."""
    both = site.sbatch("-N2", "--gres=gpu:1")
    site.wait(both, "RUNNING")
    facts = client.job(both)
    assert facts is not None
    assert facts.nodes == "n[1-2]"
    assert facts.tres_per_node.replace("/", ":") == "gres:gpu:1"
    assert client.live_jobs("n1") == client.live_jobs("n2") == {both}
    site.settle()
    one = site.sbatch("--gres=gpu:h100")
    site.wait(one, "RUNNING")
    assert client.job(one).tres_per_node.replace("/", ":") == "gres:gpu:h100"  # type: ignore[union-attr]


def test_a_job_that_never_was_or_is_over(site: Site, client: Slurm) -> None:
    """Known to be unknown, though slurmctld keeps what has ended for a while."""
    over = site.sbatch(script="true")
    site.wait(over, "COMPLETED")
    for job in (999999, over):
        assert client.job(job) is None
        assert client.state(str(job)) == ""
    assert client.live_jobs("n1") == frozenset()


def test_facts_of_a_node(site: Site, client: Slurm) -> None:
    """Configured gres by name and count; state words; the drain reason as it was set."""
    facts = client.node("n1")
    assert (facts.name, facts.state) == ("n1", frozenset({"IDLE"}))
    assert facts.gres["gpu:h100"] == 2
    assert facts.gres["mig:1g.10gb+me"] == 2
    client.drain("n1", "slurm-mig: State=IDLE [sic] Gres=none")
    try:
        facts = client.node("n1")
        assert facts.state == frozenset({"IDLE", "DRAIN"})
        assert facts.reason == "slurm-mig: State=IDLE [sic] Gres=none"
        assert facts.gres["gpu:h100"] == 2
    finally:
        site.run("scontrol", "update", "nodename=n1", "state=resume")
    with pytest.raises(SlurmFault, match="no-such-node"):
        client.node("no-such-node")


def test_jobs_of_a_node_that_is_not_there(client: Slurm) -> None:
    """A fault: that none lives there would take the slices of all."""
    with pytest.raises(SlurmFault, match="no-such-node"):
        client.live_jobs("no-such-node")


def test_accounting_without_a_database(client: Slurm) -> None:
    """A fault: no rows would say that nobody ran anything."""
    with pytest.raises(SlurmFault, match="accounting storage is disabled"):
        client.accounting(0, 2e9)


def test_comment_requeue_flag_and_delay(site: Site, client: Slurm) -> None:
    """Each command has the effect its name says."""
    job = site.sbatch("--no-requeue", "--hold", "--gres=mig:1g.10gb:1")
    client.comment(str(job), "two words [and] 'quotes'")
    assert site.show(job, "Comment").startswith("two words [and] 'quotes'")
    client.allow_requeue(str(job), allow=True)
    assert site.show(job, "Requeue").startswith("1")
    client.start_after(str(job), 3000)
    assert site.show(job, "StartTime") != "Unknown"
    assert client.job(job).requeue is True  # type: ignore[union-attr]


def test_requeue_and_hold(site: Site, client: Slurm) -> None:
    """A running batch job goes back; done twice it is still done."""
    job = site.sbatch()
    site.wait(job, "RUNNING")
    client.requeue_hold(str(job))
    client.requeue_hold(str(job))
    site.wait(job, "PENDING")
    assert "held" in site.show(job, "Reason").lower()
    assert client.live_jobs("n1") == frozenset()


def test_requeue(site: Site, client: Slurm) -> None:
    """Back into the queue, and again while it is on its way; what has ended is refused."""
    job = site.sbatch()
    site.wait(job, "RUNNING")
    client.requeue(str(job))
    client.requeue(str(job))
    site.until(lambda: client.state(str(job)) == "PENDING", "it to wait again")
    assert site.show(job, "Restarts") == "1"


def test_one_task_is_requeued_alone(site: Site, client: Slurm) -> None:
    """By its reference; by its id, the last one would take all others with it."""
    array = site.sbatch("--array=0-1")
    site.until(lambda: len(client.live_jobs("n1")) == 2, "both tasks")
    client.requeue(client.job(array).reference)  # type: ignore[union-attr]
    site.until(lambda: len(client.live_jobs("n1")) == 1, "one task")
    (left,) = client.live_jobs("n1")
    assert left != array
    assert client.state(f"{array}_0") == "RUNNING"
    assert client.state(f"{array}_1") == "PENDING"


def test_notify(site: Site, client: Slurm) -> None:
    """The line reaches whoever waits."""
    shell = launch(site, "srun", "sleep", "300")
    site.until(lambda: client.live_jobs("n1") | client.live_jobs("n2"), "the job")
    (job,) = client.live_jobs("n1") | client.live_jobs("n2")
    site.until(lambda: "0" in site.run("squeue", "-h", "-s", "-j", str(job), "-o", "%i"), "a step")
    client.notify(str(job), "slurm-mig: two words")
    client.cancel(str(job))
    assert "slurm-mig: two words" in shell.communicate(timeout=60)[1]


def test_commands_slurm_refuses(client: Slurm) -> None:
    """A fault with Slurm's own words."""
    with pytest.raises(SlurmFault, match="Invalid job id"):
        client.requeue("999999")
    with pytest.raises(SlurmFault, match="Invalid job id"):
        client.requeue_hold("999999")
    with pytest.raises(SlurmFault, match="Invalid job id"):
        client.notify("999999", "text")
    with pytest.raises(SlurmFault, match="not found"):
        client.drain("no-such-node", "slurm-mig: x")


def test_a_drain_reason_stays_when_slurm_drains_too(site: Site, client: Slurm) -> None:
    """What we say first is what the administrator reads."""
    client.drain("n2", "slurm-mig: two words")
    assert site.drain_reason("n2") == "slurm-mig: two words"
    site.run("scontrol", "update", "nodename=n2", "state=resume")


def test_version_and_lifetime(site: Site, client: Slurm) -> None:
    """Of the Slurm that runs here."""
    version = site.run("sinfo", "--version").split()[1].split(".")
    assert client.version() == (int(version[0]), int(version[1]))
    assert client.credential_lifetime() == 5


def test_a_name_with_newlines_forges_nothing(site: Site, client: Slurm) -> None:
    """`scontrol show job` could be fooled by it (facts/slurm.md#reading-gres)."""
    name = "x\n  Nodes=n1 GRES=mig:7g.80gb(CNT:1)\n   TresPerNode=gres:mig:7g.80gb:1"
    job = site.sbatch(f"--job-name={name}", "--gres=mig:1g.10gb:1", "--hold")
    facts = client.job(job)
    assert facts is not None
    assert "7g" not in facts.tres_per_node


def test_our_own_commands_ask_by_it(site: Site, client: Slurm, tmp_path: Path) -> None:
    """Status and reconcile, told to use this client and no other."""
    name = "commands" if isinstance(client, CommandClient) else "pyslurm"
    text = (site.cluster.root / "nodes/n1/config.toml").read_text()
    (tmp_path / "config.toml").write_text(text.replace("[slurm]", f'[slurm]\nclient = "{name}"'))
    environ = site.cluster.environ() | {
        "SLURM_MIG_CONFIG": f"{tmp_path}/config.toml",
        "SLURMD_NODENAME": "n1",
    }

    def ours(*arguments: str) -> Any:
        command = [sys.executable, "-m", "slurm_mig", *arguments, "--json"]
        done = subprocess.run(
            command,
            env=site.cluster.environ() | environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        return json.loads(done.stdout)

    job = site.sbatch("--gres=mig:3g.40gb:1")
    site.wait(job, "RUNNING")
    site.until(lambda: site.made("n1"), "the slice")
    seen = ours("status", "--slurm")
    # slurmctld counts a node's CPUs a moment after it has given them.
    assert seen["slurm"]["state"] in ("MIXED", "ALLOCATED")
    (holder,) = seen["gpus"][0]["instances"]
    assert (holder["job_id"], holder["job_state"]) == (job, "RUNNING")
    assert ours("reconcile") == {"done": [], "left": [], "foreign": []}
    assert site.made("n1") == ["3g.40gb@4"]


def test_what_every_job_has_on_every_node(site: Site, client: Slurm) -> None:
    """With the GPU where this Slurm tells it; the same from all sides."""
    one = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1", "-J", "a\nn2 9 (gpu:9)")
    two = site.sbatch("--gres=gpu:1", "-w", "n1")
    three = site.sbatch("--gres=mig:1g.6gb:2", "-w", "n2", uid=BOB)
    for job in (one, two, three):
        site.wait(job, "RUNNING")
    found = {item.job_id: item for item in client.shares()}
    assert set(found) == {one, two, three}
    assert [found[job].node for job in (one, two, three)] == ["n1", "n1", "n2"]
    # Numbers where Slurm leaves names to this process, which is not among the cluster's users.
    assert (found[one].user, found[three].user) in ((str(ALICE), str(BOB)), ("alice", "bob"))
    assert found[one].restarts == 0
    assert abs((found[one].since or 0) - time.time()) < 60
    assert found[one].gres["mig:3g.40gb"] == 1
    assert found[three].gres["mig:1g.6gb"] == 2
    nodes = {node.name: node for node in client.nodes()}
    assert nodes["n1"].gres["shard:h100"] == 62
    assert nodes["n1"].name == "n1"
    assert [found[job].gpus for job in (one, two, three)] == [(0,), (1,), (1,)]
    if client.version() < (23, 11):
        assert nodes["n1"].shards is None
    else:
        assert nodes["n1"].shards == ((14, 31), (0, 31))
        assert nodes["n2"].shards == ((0, 4), (2, 4))


def test_the_cluster_at_a_glance(site: Site) -> None:
    """For everybody, not only for root; in eighty columns."""
    job = site.sbatch("--gres=mig:3g.40gb:1", "-w", "n1")
    site.wait(job, "RUNNING")
    command = [sys.executable, "-m", "slurm_mig", "status", "--cluster"]
    environ = site.cluster.environ() | {"SLURM_MIG_CONFIG": f"{site.cluster.root}/empty.toml"}
    bin_dir = site.cluster._find("scontrol").parent
    (site.cluster.root / "empty.toml").write_text(f'[slurm]\nbin = "{bin_dir}"\n')

    def shown(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def on_n1() -> tuple[list[int], list[int], int]:
        (gpus, room) = (json.loads(shown("--json"))["nodes"][0][key] for key in ("gpus", "room"))
        jobs = [holder["job_id"] for gpu in gpus for holder in gpu["jobs"]]
        return [gpu["shards_used"] for gpu in gpus], jobs, room["3g.40gb"]

    text = shown()
    assert on_n1() == ([14, 0], [job], 3)
    assert re.search(f"job {job} of (alice|{ALICE}): 3g.40gb for 0:", text)
    assert all(len(line) <= 80 for line in text.splitlines())
    data = json.loads(shown("--json"))
    assert [node["node"] for node in data["nodes"]] == ["n1", "n2"]
    assert data["nodes"][1]["room"]["4g.24gb"] == 1
    site.run("scancel", str(job))
    site.until(lambda: on_n1() == ([0, 0], [], 4), "an idle node with all its room")


#: What a user can write into a job, with every separator that a reader of Slurm's output knows.
FORGED = (
    "a|b\n1|root|n1|RUNNING|1|Unknown|\n\r\t\x1f\x1e 9 NodeName=n1 State=IDLE Gres=x "
    "\u2028;,=:'\"%s"
)


def test_what_users_write_crosses_no_separator(site: Site, client: Slurm, tmp_path: Path) -> None:
    """Account, comment, names, directory and dependency of a job; every answer is as without."""
    wild = site.cluster.work / "wild\n|1|root x"
    # One cluster serves every client.
    wild.mkdir(exist_ok=True)
    wild.chmod(0o777)
    tame = site.sbatch("--gres=mig:1g.10gb:1")
    site.wait(tame, "RUNNING")
    words = [f"--{name}={FORGED}" for name in ("account", "comment", "job-name", "wckey")]
    job = site.sbatch("--gres=mig:1g.10gb:1", f"--chdir={wild}", *words)
    site.wait(job, "RUNNING")
    same, own = client.job(tame), client.job(job)
    assert same is not None
    assert own == replace(same, job_id=job, reference=str(job))
    assert client.live_jobs("n1") == {tame, job}
    shares = client.shares()
    assert sorted((item.job_id, item.node) for item in shares) == [(tame, "n1"), (job, "n1")]
    # A number where this process is to find the name.
    assert {item.user for item in shares} in ({"alice"}, {str(ALICE)})
    assert shares[0].gres == shares[1].gres
    assert client.state(str(job)) == "RUNNING"
    assert [node.name for node in client.nodes()] == ["n1", "n2"]
    if client.gpus(tame, "n1") is not None:
        assert client.gpus(job, "n1") == client.gpus(tame, "n1")


@pytest.mark.parametrize("text", ["gpu:1\n7 x", "gpu:h100\n:1", "gpu:\u2028:1", "gpu:a|b:1"])
def test_a_gres_is_none_of_those_texts(site: Site, text: str) -> None:
    """Squeue prints it, and `job` reads it there: Slurm knows each name and each type."""
    for option in ("gres", "gpus-per-node", "gpus"):
        words = f"--{option}={text if option == 'gres' else text.removeprefix('gpu:')}"
        done = site.cluster.try_run("sbatch", words, "--wrap", "true", uid=ALICE)
        assert done.returncode != 0, words


def test_an_admin_comment_is_read_to_the_letter(site: Site, client: Slurm) -> None:
    """5,000 characters, lines and blanks; written back it is the same."""
    job = site.sbatch("--hold", "--gres=mig:1g.10gb:1")
    text = '"q" two  blanks\n|line\n' + "\u00e4" * 5000
    for _ in range(2):
        client.set_admin_comment(str(job), text)
        assert client.admin_comment(str(job)) == text
        text = client.admin_comment(str(job)) + " slurm-mig:n1=MIG-x"
    with pytest.raises(SlurmFault, match="stays as it is"):
        client.set_admin_comment(str(job), "x" * 65000)
        client.admin_comment(str(job))
    client.cancel(str(job))


def test_a_drain_reason_with_lines_in_it(site: Site, client: Slurm) -> None:
    """A health check's; it hides no node and forges none."""
    site.run(
        "scontrol", "update", "nodename=n1", "state=drain", "reason=x\nNodeName=n3 State=IDLE y"
    )
    try:
        facts = client.node("n1")
        assert "DRAIN" in facts.state
        assert facts.reason.startswith("x")
        assert [node.name for node in client.nodes()] == ["n1", "n2"]
    finally:
        site.run("scontrol", "update", "nodename=n1", "state=undrain")
