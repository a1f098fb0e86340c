"""What users can reach, tried with their rights: `slurm-mig verify` and what is behind it."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.errors import NodeFault, UsageFault
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Owner
from slurm_mig.mig.geometry import Placement
from slurm_mig.node import verify
from slurm_mig.node.verify import AccessTry, Isolation, Subject, attempt
from slurm_mig.transaction import carve, reconcile, release
from tests.kit.gpus import H100
from tests.kit.hooks import became, serve, slurm_commands, squeue
from tests.kit.transaction import ALICE as ALICES
from tests.kit.transaction import BOB as BOBS
from tests.kit.transaction import World, ask
from tests.kit.users import ALICE, BOB, as_user, cli_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kit.site import Site

pytestmark = pytest.mark.root


#: Where this checkout lies is no promise of the product's; what is promised is that it is said.
CHECKOUT = ("way to package slurm_mig", "way to Python of the hooks")


@pytest.fixture
def two(site: Site) -> Site:
    """Alice's job 7 and Bob's job 8, neighbours on one GPU."""
    serve(site, 7, ALICE)
    serve(site, 8, BOB)
    return site


def tries(site: Site, *arguments: str) -> list[dict[str, Any]]:
    """All tries, once the exit code has been compared with them."""
    done = site.cli("verify", "--json", "--hooks", str(site.root / "hooks"), *arguments)
    assert done.stdout, done.stderr
    data = json.loads(done.stdout)
    failed = [item for item in data["tries"] if item["verdict"] == "fail"]
    assert done.returncode == (27 if failed else 0), done.stderr
    assert "ConstrainDevices" in data["notes"][0]
    return [item for item in data["tries"] if item["item"] not in CHECKOUT]


def failed(site: Site, *arguments: str) -> set[str]:
    """`action item` of every failed try."""
    tried = tries(site, *arguments)
    return {f"{item['action']} {item['item']}" for item in tried if item["verdict"] == "fail"}


def node(site: Site, job: int, kind: str = "GI") -> Path:
    tried = tries(site, "--job", str(job))
    name = f"{kind} node of job {job}, "
    return Path(next(item["path"] for item in tried if item["item"].startswith(name)))


def snapshot(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything below, with what a try could have changed."""
    return {
        str(path): (status.st_mode, status.st_uid, status.st_size, status.st_ino)
        for path in sorted(root.rglob("*"))
        if (status := path.lstat())
    }


def test_a_node_where_all_is_well(two: Site) -> None:
    """Own nodes open, a neighbour's are closed, every item has its verdict; nothing is left."""
    with_wal = two.node()
    assert with_wal.ledger.all_open()
    tries(two)
    before = snapshot(two.root)
    tried = tries(two)
    assert snapshot(two.root) == before
    with_wal.close()
    assert {item["verdict"] for item in tried} == {"pass"}
    found = {(item["uid"], item["item"].split(",")[0], item["found"]) for item in tried}
    for me, mine, theirs in ((ALICE, 7, 8), (BOB, 8, 7)):
        for kind in ("GI", "CI"):
            assert (me, f"{kind} node of job {mine}", "open") in found
            assert (me, f"{kind} node of job {theirs}", "closed") in found
    assert {item["job_id"] for item in tried} == {7, 8, None}


def test_one_job(two: Site) -> None:
    """--job tries as that one's user; one that holds nothing is named with those that do."""
    assert {item["job_id"] for item in tries(two, "--job", "7")} == {7, None}
    done = two.cli("verify", "--job", "9")
    assert done.returncode == 2
    assert "job 9 holds no slice here; jobs that do: 7, 8" in done.stderr


def test_a_user_without_a_job(two: Site) -> None:
    """Everything is closed to him; nobody is who tries where no job is."""
    tried = tries(two, "--uid", "64003")
    assert {item["uid"] for item in tried} == {64003, None}
    assert "open" not in {item["found"] for item in tried}
    for job in (7, 8):
        two.epilog(job)
    assert {item["uid"] for item in tries(two)} == {65534, None}


def test_usage(site: Site) -> None:
    """Two ways to say who tries; and no root."""
    done = site.cli("verify", "--job", "7", "--uid", "5")
    assert (done.returncode, "give one of them" in done.stderr) == (2, True)
    assert site.cli("verify", "--uid", "0").returncode == 2
    site.config.chmod(0o644)
    done = cli_as(ALICE, "verify", SLURM_MIG_CONFIG=str(site.config))
    assert (done.returncode, "run it as root" in done.stderr) == (21, True)


def test_the_table(two: Site) -> None:
    """Failures first and in full, then counts; the fault names the first failure."""
    (two.run / "env").chmod(0o777)
    done = two.cli("verify", "--job", "7", "--hooks", str(two.root / "hooks"))
    assert done.returncode == 27
    lines = done.stdout.splitlines()
    assert lines[0] == "fail  run directory, env: make a file in"
    assert lines[1:3] == [f"      {two.run}/env", "      as job 7 (uid 64001): open"]
    assert lines[3].split() == ["AS", "FAILED", "PASSED", "NOT", "PROMISED"]
    assert re.fullmatch(r"job 7 \(uid 64001\) +1 +\d+ +\d+", lines[4])
    assert re.fullmatch(r"1 of \d+ tries failed; --all lists each", lines[6])
    assert "ConstrainDevices" in lines[-1]
    assert all(len(line) <= 80 for line in lines if str(two.root) not in line)
    everything = two.cli("verify", "--job", "7", "--hooks", str(two.root / "hooks"), "--all").stdout
    assert everything.startswith(lines[0])
    assert "pass  GI node of job 7, 3g.40gb@4 on GPU 0: read\n" in everything
    (said,) = done.stderr.splitlines()
    assert "make a file in" in said
    assert "docs/security.md" in said


def _open_node(site: Site) -> None:
    node(site, 8).chmod(0o444)


def _give_node(site: Site) -> None:
    os.chown(node(site, 8, "CI"), ALICE, ALICE)


def _helper(site: Site) -> None:
    access = site.machine.tree.capabilities / "gpu0/mig/gi1/access"
    access.chmod(0o644)
    access.write_text(access.read_text().replace("Modify: 0", "Modify: 1"))


def _management(site: Site) -> None:
    path = site.machine.tree.dev / "nvidia-caps/nvidia-cap1"
    os.mknod(path, 0o020444, os.makedev(121, 1))
    path.chmod(0o444)


def _management_mode(site: Site) -> None:
    access = site.machine.tree.capabilities / "mig/config"
    access.chmod(0o644)
    access.write_text(access.read_text().replace("Mode: 256", "Mode: 292"))


def _chmod(name: str, mode: int) -> Callable[[Site], None]:
    return lambda site: (site.root / name).chmod(mode)


def _lock(site: Site) -> None:
    (site.run / "locks").chmod(0o755)
    next((site.run / "locks").glob("*.lock")).chmod(0o644)


def _marks(site: Site) -> None:
    (site.run / "jobs").chmod(0o755)
    (site.run / "jobs/8.0").chmod(0o644)


def _ledger(site: Site) -> None:
    (site.root / "state").chmod(0o711)
    (site.root / "state/ledger.db").chmod(0o644)


@pytest.mark.parametrize(
    ("open_", "says"),
    [
        (_open_node, {"read GI node of job 8, 3g.40gb@0 on GPU 0"}),
        (_give_node, {"read CI node of job 8, 3g.40gb@0 on GPU 0"}),
        (_helper, {"reopen by nvidia-modprobe nodes of job 8, 3g.40gb@0 on GPU 0"}),
        (_management, {"read node of mig/config (GI and CI management)"}),
        (
            _management_mode,
            {"make open by nvidia-modprobe node of mig/config (GI and CI management)"},
        ),
        (_chmod("run/env/8.0", 0o444), {"read environment of job 8"}),
        (_chmod("run/env/8.0", 0o666), {"read environment of job 8", "write environment of job 8"}),
        (_marks, {"read mark 8.0"}),
        (_chmod("run/env", 0o777), {"make a file in run directory, env"}),
        (_chmod("run/jobs", 0o1777), {"make a file in run directory, jobs"}),
        (_chmod("run/locks", 0o755), {"list run directory, locks"}),
        (_lock, {"list run directory, locks", "read lock"}),
        (
            _chmod("hooks/epilog", 0o757),
            {"write hook epilog", "replace a part of way to hook epilog"},
        ),
        (
            _chmod("hooks", 0o757),
            {
                "make a file in directory of the hooks",
                "replace a part of way to directory of the hooks",
                *(
                    f"replace a part of way to hook {x}"
                    for x in ("prolog", "epilog", "task_prolog")
                ),
            },
        ),
    ],
)
def test_whatever_is_open_is_found(
    two: Site, open_: Callable[[Site], None], says: set[str]
) -> None:
    """Each hole alone, as Alice: exactly its items fail."""
    open_(two)
    assert failed(two, "--job", "7") == says


def test_a_hole_that_root_itself_refuses_to_work_with(two: Site) -> None:
    """A ledger or run directory that others can write to stops every command with one line."""
    for name in ("run", "state"):
        place = two.root / name
        place.chmod(0o777)
        done = two.cli("verify")
        assert done.returncode == 10
        assert f"{place} " in done.stderr
        assert "is owned by uid 0 with mode 0777" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        place.chmod(0o755 if name == "run" else 0o700)


def test_what_root_has_open_again_is_narrowed(two: Site) -> None:
    """A ledger that was made readable is closed by the next command that opens it."""
    _ledger(two)
    assert failed(two) == set()


def test_an_own_node_that_does_not_open(two: Site) -> None:
    """The job could not compute: found, too."""
    node(two, 7).chmod(0)
    assert failed(two, "--job", "7") == {"read GI node of job 7, 3g.40gb@4 on GPU 0"}


def test_other_jobs_of_one_user(site: Site) -> None:
    """Nodes belong to a user: his other job's are open to him, as docs/security.md says."""
    serve(site, 7, ALICE)
    serve(site, 8, ALICE)
    tried = tries(site, "--job", "7")
    assert {i["verdict"] for i in tried} == {"pass"}
    assert {i["found"] for i in tried if "node of job 8" in i["item"]} == {"open"}


def test_a_stuck_slice_is_closed_to_everybody(make_site: Callable[..., Site]) -> None:
    """Also to the user of the job that has ended."""
    site = make_site(H100, config="[hooks]\ndestroy_timeout = 0.2\n")
    serve(site, 7, ALICE)
    serve(site, 8, BOB)
    opened = site.node()
    (record,) = opened.ledger.open_of_job(7)
    opened.close()
    site.machine.hold(os.getpid(), record.uuids[0])
    assert "quarantined" in became(site, site.epilog(7))
    tried = tries(site, "--uid", str(ALICE))
    stuck = [item for item in tried if "node of job 7" in item["item"]]
    assert {(item["found"], item["verdict"]) for item in stuck} == {("closed", "pass")}
    assert len(stuck) == 2


def test_what_is_in_no_record_is_told_not_judged(two: Site) -> None:
    """An administrator's instance is the driver's to keep."""
    with two.machine.change(1) as board:
        made = board.create(19, Placement(6, 1), busy=False)
        board.create_compute(made, 0)
    access = two.machine.tree.capabilities / f"gpu1/mig/gi{made.gi_id}/access"
    two.machine.tree.modprobe(access)
    told = [item for item in tries(two) if "in no record" in item["item"]]
    assert {(item["verdict"], item["found"]) for item in told} == {("info", "open")}


def test_a_root_job(site: Site) -> None:
    """Nothing is closed to root; that is said instead of tried."""
    serve(site, 7, 0)
    done = site.cli("verify", "--json")
    assert "Job 7 runs as root: nothing is closed to root." in json.loads(done.stdout)["notes"]


def test_leases_are_their_users_to_write_and_roots_to_remove(site: Site) -> None:
    """Nobody else gets to them; one that would let him take something away is found."""
    serve(site, 7, ALICE, stamp="slurm-mig=1,1g.10gb/19/4:2")
    serve(site, 8, BOB)
    leases = site.run / "leases/7.0"
    for job in ("7", "8"):
        assert failed(site, "--job", job) == set()
    os.chown(leases, ALICE, ALICE)
    leases.chmod(0o700)
    assert failed(site, "--job", "7") == {"make a file in leases of job 7"}
    leases.chmod(0o755)
    (leases / "lock").chmod(0o666)
    assert failed(site, "--job", "8") == {"list leases of job 7", "write lock of leases of job 7"}


def test_leases_that_are_their_users_own(two: Site, public_tmp: Path) -> None:
    """Of an earlier release's Prolog, and where nobody may mount."""
    leases = public_tmp / "leases"
    leases.mkdir(mode=0o700)
    os.chown(leases, BOB, BOB)
    opened = two.node()
    (record,) = opened.ledger.open_of_job(8)
    opened.files.mark(record.owner, leases=str(leases))
    opened.close()
    assert failed(two, "--job", "7") == set()
    leases.chmod(0o777)
    assert failed(two, "--job", "7") == {"list leases of job 8", "make a file in leases of job 8"}


def test_a_job_that_ends_meanwhile(two: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its nodes are gone, and nothing is promised of them any more."""
    opened = two.node()
    tries = Isolation(opened, two.root / "hooks")
    (subject,) = tries.subjects(7, None)

    def late(subject: Subject, wanted: list[AccessTry]) -> list[AccessTry]:
        two.epilog(7)
        return attempt(subject, wanted)

    monkeypatch.setattr(verify, "attempt", late)
    found = tries.by(subject)
    assert {item.verdict for item in found} == {"pass", "info"}
    with pytest.raises(UsageFault, match="jobs that do: 8"):
        Isolation(opened, two.root / "hooks").subjects(7, None)
    opened.close()


def test_a_child_that_dies_is_no_success(public_tmp: Path) -> None:
    """An action that does not exist, for one."""
    with pytest.raises(NodeFault, match="trying as uid 64001 ended with 1"):
        attempt(Subject(ALICE, ALICE), [AccessTry("x", "dance", public_tmp)])


@pytest.mark.timeout(20)
def test_tries_wait_for_nothing(public_tmp: Path) -> None:
    """A FIFO in a file's place; a file where a directory should be."""
    os.mkfifo(public_tmp / "fifo", 0o666)
    (public_tmp / "fifo").chmod(0o666)
    tried = [AccessTry("x", action, public_tmp / "fifo") for action in ("read", "write", "list")]
    found = attempt(Subject(ALICE, ALICE), tried)
    assert [item.found.partition(":")[0] for item in found] == ["open"] * 3


def test_a_user_who_stops_the_child(public_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs as him, so he can: the command ends all the same, and not as a success."""
    monkeypatch.setattr(verify, "LONGEST_TRY", 0.5)
    monkeypatch.setitem(verify._TRIES, verify.READ, lambda _: os.kill(os.getpid(), signal.SIGSTOP))
    wanted = [AccessTry("x", verify.READ, public_tmp)]
    with pytest.raises(NodeFault, match=r"uid 64777 did not end within 0\.5 s"):
        attempt(Subject(64777, 64777), wanted)


def test_what_is_gone_of_a_stuck_record_has_no_nodes(two: Site) -> None:
    """Its id says so: taken for a number it would name the nodes of another GPU."""
    node = two.node()
    try:
        record = node.ledger.all_open()[0]
        found = Isolation(node, two.root / "hooks")
        assert list(found._nodes_of(record))
        assert list(found._nodes_of(record.without(record.instances))) == []
    finally:
        node.close()


def test_groups_count(public_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that this node knows has his supplementary groups; an unknown one has none."""
    (public_tmp / "f").touch()
    os.chown(public_tmp / "f", 0, 64009)
    (public_tmp / "f").chmod(0o640)
    wanted = [AccessTry("f", "read", public_tmp / "f")]
    assert attempt(Subject(ALICE, ALICE), wanted)[0].found == "closed"
    monkeypatch.setattr(verify, "_groups", lambda _: [64009])
    assert attempt(Subject(ALICE, ALICE), wanted)[0].found == "open"


def test_the_client_agrees(two: Site) -> None:
    """What verify says of a node is what a simulated CUDA process meets."""
    from slurm_mig.simulator.client import reach

    for item in tries(two):
        if item["uid"] and "node of job" in item["item"]:
            path = Path(item["path"])
            met = as_user(item["uid"], lambda path=path: _reached(reach, path))  # type: ignore[misc]
            assert met is (item["found"] == "open"), item


def _reached(reach: Callable[[Path], None], path: Path) -> bool:
    from slurm_mig.errors import NotPermitted

    try:
        reach(path)
    except NotPermitted:
        return False
    return True


# -- nodes over the life of an instance ---------------------------------------------


@pytest.fixture
def world(public_tmp: Path) -> Iterator[World]:
    made = World(public_tmp / "world", H100)
    yield made
    made.close()


def owners(world: World) -> dict[str, tuple[int, int]]:
    """Owner and mode of every capability node."""
    nodes = (world.machine.tree.dev / "nvidia-caps").glob("*")
    return {node.name: (node.stat().st_uid, stat.S_IMODE(node.stat().st_mode)) for node in nodes}


def test_nodes_go_with_their_instance(world: World) -> None:
    """As on a booted machine: whoever needs one again has nvidia-modprobe make it."""
    mine = carve.allocate(world.bench, ALICES, ask("3g.40gb"), world.gpu())
    carve.allocate(world.bench, BOBS, ask("3g.40gb"), world.gpu())
    assert owners(world) == dict.fromkeys(["nvidia-cap21", "nvidia-cap22"], (ALICE, 0o400)) | (
        dict.fromkeys(["nvidia-cap12", "nvidia-cap13"], (BOB, 0o400))
    )
    release.release(world.bench, mine, "end")
    assert owners(world) == dict.fromkeys(["nvidia-cap12", "nvidia-cap13"], (BOB, 0o400))


def test_nodes_that_were_there_before(world: World) -> None:
    """Left by nvidia-modprobe from an earlier instance: never handed on as they are."""
    caps = world.machine.tree.dev / "nvidia-caps"
    caps.mkdir()
    for minor in (21, 22):
        os.mknod(caps / f"nvidia-cap{minor}", 0o020444, os.makedev(121, minor))
    record = carve.allocate(world.bench, ALICES, ask("3g.40gb"), world.gpu())
    assert set(owners(world).values()) == {(ALICE, 0o400)}
    release.release(world.bench, record, "end")
    assert owners(world) == {}


def test_nodes_of_a_stuck_slice(world: World) -> None:
    """Taken from the ended job's user, and gone once it lets go."""
    record = carve.allocate(world.bench, ALICES, ask("3g.40gb"), world.gpu())
    world.machine.hold(os.getpid(), record.uuids[0])
    stuck = release.release(world.bench, record, "end")
    assert stuck.phase == phases.QUARANTINED
    assert set(owners(world).values()) == {(0, 0)}
    world.machine.let_go(os.getpid())
    release.release(world.bench, stuck, "again")
    assert owners(world) == {}


def test_an_administrators_nodes_are_left_alone(world: World) -> None:
    """Made by hand or adopted, in use: as the driver has them."""
    record = carve.allocate(world.bench, Owner(None), ask("3g.40gb"), world.gpu())
    for path in (world.machine.tree.capabilities / "gpu0/mig/gi2").rglob("access"):
        world.machine.tree.modprobe(path)
    world.machine.hold(os.getpid(), record.uuids[0])
    try:
        assert release.release(world.bench, record, "end").phase == phases.QUARANTINED
    finally:
        world.machine.let_go(os.getpid())
    assert set(owners(world).values()) == {(0, 0o444)}


def test_a_job_that_was_rolled_back(world: World) -> None:
    """Its nodes, made before the fault, are gone with its instance."""
    world.machine.tree.dev.joinpath("nvidia-caps").mkdir()
    (world.machine.tree.dev / "nvidia-caps/nvidia-cap22").mkdir()
    with pytest.raises(NodeFault, match="nvidia-cap22"):
        carve.allocate(world.bench, ALICES, ask("3g.40gb"), world.gpu())
    (world.machine.tree.dev / "nvidia-caps/nvidia-cap22").rmdir()
    reconcile.reconcile(world.bench, None)
    assert (owners(world), world.made()) == ({}, [])


def replaced(world: World) -> None:
    """The job's instance, destroyed by hand, and a stranger with its place and GI id."""
    with world.machine.change(0) as board:
        board.instances.clear()
    with world.machine.change(0) as board:
        gi = board.create(9, Placement(4, 4), busy=False)
        board.create_compute(gi, 1)
        board.create_compute(gi, 0)
        board.destroy_compute(gi, 0, busy=False)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("end", ["release", "reconcile"])
def test_an_instance_taken_away_by_hand(world: World, end: str, *, again: bool) -> None:
    """What was the job's user's goes, though another instance has the id by now."""
    record = carve.allocate(world.bench, ALICES, ask("3g.40gb"), world.gpu())
    if again:
        replaced(world)
    else:
        with world.machine.change(0) as board:
            board.instances.clear()
    if end == "release":
        release.release(world.bench, record, "end")
    else:
        reconcile.reconcile(world.bench, None)
    assert owners(world) == {}
    assert world.phases() == [phases.LOST]


@pytest.mark.parametrize("end", ["release", "reconcile"])
def test_anothers_nodes_under_the_same_id(world: World, end: str) -> None:
    """A stranger in our place has nodes of its own: they stay."""
    record = carve.allocate(world.bench, ALICES, ask("3g.40gb"), world.gpu())
    replaced(world)
    for path in (world.machine.tree.capabilities / "gpu0/mig/gi2").rglob("access"):
        world.machine.tree.modprobe(path)
    theirs = dict.fromkeys(["nvidia-cap21", "nvidia-cap23"], (0, 0o444))
    assert owners(world) == theirs | {"nvidia-cap22": (ALICE, 0o400)}
    if end == "release":
        release.release(world.bench, record, "end")
    else:
        reconcile.reconcile(world.bench, None)
    assert owners(world) == theirs
    assert world.made() == ["3g.40gb@4"]


def test_a_whole_gpu_as_its_largest_slice(make_site: Callable[..., Site]) -> None:
    """Closed like any other; without MIG there are no capability nodes to close."""
    site = make_site(H100, H100, config='[whole_gpus]\npolicy = "full-profile"\n')
    slurm_commands(site, squeue=squeue(7, "gres:gpu:1"))
    assert site.prolog(7, "").returncode == 0
    serve(site, 8, BOB, gpus="1")
    assert {item["verdict"] for item in tries(site)} == {"pass"}
    assert "read GI node of job 7, 7g.80gb@0 on GPU 0" in {
        f"{item['action']} {item['item']}" for item in tries(site, "--job", "8")
    }
    plain = make_site(H100)
    slurm_commands(plain, squeue=squeue(7, "gres:gpu:1"))
    assert plain.prolog(7, "").returncode == 0
    assert not (plain.machine.tree.dev / "nvidia-caps").exists()
    assert {item["verdict"] for item in tries(plain, "--job", "7")} == {"pass"}


def test_the_standard_library_is_looked_at(
    two: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os` is frozen into Python since 3.11: its file was looked for below the caller's place."""
    tried = {item["item"]: item for item in tries(two, "--job", "7")}
    library = Path(os.__file__)
    assert tried["package os"]["path"] == str(library)
    assert tried["directory of os"]["path"] == str(library.parent)
    assert tried["directory of os"]["found"] == "closed"
    fake = tmp_path / "lib/os.py"
    fake.parent.mkdir()
    fake.touch()
    fake.parent.chmod(0o777)
    monkeypatch.setattr(os, "__file__", str(fake))
    opened = two.node()
    monkeypatch.chdir(tmp_path)
    isolated = Isolation(opened, two.root / "hooks")
    ways = {item.item: item for item in isolated.by_root()}
    assert ways["way to directory of os"].verdict == "fail"
    opened.close()


@pytest.mark.parametrize("name", ["prolog", "epilog", "task_prolog"])
def test_a_hook_that_is_not_there_is_no_pass(two: Site, name: str) -> None:
    """A probe that finds nothing to probe has failed."""
    (two.root / "hooks" / name).unlink()
    assert {f"write hook {name}", f"replace a part of way to hook {name}"} <= failed(two)


def test_hooks_in_directories_of_the_site(two: Site) -> None:
    """`install --prolog-d` says in its list where they are."""
    there = two.root / "prolog.d/00-slurm-mig.sh"
    there.parent.mkdir()
    (two.root / "hooks/prolog").rename(there)
    (two.root / "hooks/.installed").write_text(json.dumps({"files": {str(there): "x"}}))
    assert failed(two) == set()
    there.chmod(0o777)
    assert "write hook prolog" in failed(two)


def test_the_way_to_what_hooks_will_make(two: Site, tmp_path: Path) -> None:
    """Who can write above a directory that is not there yet can make it first."""
    (tmp_path / "a").mkdir()
    assert verify._way_as_far_as_it_goes(tmp_path / "a/b/c") == verify.ABSENT
    (tmp_path / "a").chmod(0o777)
    assert verify._way_as_far_as_it_goes(tmp_path / "a/b/c").startswith("open: ")
