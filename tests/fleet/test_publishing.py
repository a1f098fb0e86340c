"""Where a site publishes what fits: its counts, the lines for Slurm, and how jobs are counted."""

from __future__ import annotations

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.fleet import fleet_file, slurm_files
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.resolve import fleet_model, fleet_of
from slurm_mig.mig import catalog
from slurm_mig.mig.request import Request, from_stamp
from slurm_mig.node.publish import request_of
from tests.kit.gpus import A30, H100
from tests.kit.lua_host import VERSIONS, Host, job_submit

MODEL = fleet_model(catalog.find(H100))
FLEET = Fleet((NodeGroup("n[1-2]", (MODEL, MODEL)),), publish=True, compute_parts=("*",))
PLAIN = Fleet(FLEET.groups)
versions = pytest.mark.parametrize("version", VERSIONS)


def host(version: str, *, new: bool = True, of: Fleet = FLEET) -> Host:
    found = job_submit(version, of)
    if new:
        found.lua.execute("slurm.GRES_ALLOW_TASK_SHARING = 1")
    return found


def test_counts_of_a_node_that_nobody_has_looked_at() -> None:
    """As many as could ever run, so that they stop nothing; none where shards are exact."""
    counts = FLEET.fits(FLEET.groups[0])
    assert {key: counts[key] for key in ("3g.40gb", "3g.40gbx2", "1g.10gb", "1g.10gbx7")} == {
        "3g.40gb": 4, "3g.40gbx2": 2, "1g.10gb": 14, "1g.10gbx7": 2,
    }  # fmt: skip
    assert counts["start"] == 16
    # Whatever the others become, up to what `--off` writes, the sum can stay.
    assert counts["rest"] == 16 * (len(counts) - 1)
    assert not {"7g.80gb", "4g.40gbx2", "1c.3g.40gb"} & {*counts}
    assert PLAIN.fits(PLAIN.groups[0]) == {}


def test_every_type_is_read_back_by_the_node() -> None:
    """The node knows no fleet: what it publishes follows from the words themselves."""
    for name in FLEET.fits(FLEET.groups[0]):
        request = request_of(name)
        if name in ("start", "rest"):
            assert request is None
        else:
            assert isinstance(request, Request)
            many = request.items[0].count
            assert name == f"{request.items[0].profile}{f'x{many}' if many > 1 else ''}"
    assert str(request_of("h100_1g.10gb+gfxx2")) == "1g.10gb+gfx:2"


def test_lines_for_slurm() -> None:
    """The gres, the word that keeps jobs waiting, and a node that does it before 23.11."""
    text = slurm_files.slurm_conf(FLEET, "/hooks")
    assert "GresTypes=gpu,shard,mig,fit\n" in text
    assert "fit:3g.40gb:4" in text
    assert "#SchedulerParameters=...,extra_constraints\n" in text
    assert "#NodeName=mig-anchor NodeAddr=127.0.0.1 Port=1 State=DOWN Gres=gpu:h100:2," in text
    plain = slurm_files.slurm_conf(PLAIN, "/hooks")
    assert "fit" not in plain.replace("fits", "")
    assert "extra_constraints" not in plain


def test_the_fleet_file_switches_it_on(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "fleet.toml"
    nodes = f'[[nodes]]\nhosts = "n1"\ngpus = ["{A30}:2"]\n'
    file.write_text(f"publish = true\n{nodes}")
    assert fleet_of(fleet_file.read(file)).publish
    file.write_text(nodes)
    assert not fleet_of(fleet_file.read(file)).publish
    file.write_text(f"publish = 1\n{nodes}")
    with pytest.raises(UsageFault, match="true or false"):
        fleet_file.read(file)


@versions
@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ("mig:3g.40gb:1", ["3g.40gb", "start"]),
        ("mig:3g.40gb:2", ["3g.40gbx2", "start"]),
        ("mig:1c.3g.40gb:2", ["3g.40gb", "start"]),
        ("mig:1c.3g.40gb:4", ["3g.40gbx2", "start"]),
        ("mig:1g.10gb+me:1", ["1g.10gb+me", "start"]),
        ("mig:3g.40gb:1,gres/mig:1g.10gb:1", ["start"]),
        ("mig:7g.80gb:1", ["start"]),
        ("mig:3g.40gb:3", []),
    ],
)
def test_how_a_job_is_counted(version: str, asked: str, fits: list[str]) -> None:
    """By its own request and as a start; all of a GPU as a start; not what takes several."""
    code, job, said = host(version).submit(tres_per_node=f"gres/{asked}")
    assert (code, said) == (0, "")
    words = [word for word in job["tres_per_node"].split(",") if "fit:" in word]
    assert words == [f"gres/fit:{kind}:1" for kind in fits]
    found = from_stamp(job["comment"])
    assert getattr(found, "counted", "") == (fits[0] if fits else "")
    assert job.get("extra") == ("mig=1" if fits else None)


@versions
def test_the_users_own_expression_stays(version: str) -> None:
    """Theirs and ours, in brackets: `&` and `|` cannot stand on one level."""
    lua = host(version)
    asked = "gres/mig:3g.40gb:1"
    _, job, _ = lua.submit(tres_per_node=asked, extra="zone=a|zone=b")
    assert job["extra"] == "(zone=a|zone=b)&mig=1"
    _, again, _ = lua.submit(tres_per_node=asked, extra=job["extra"])
    assert again["extra"] == job["extra"]
    record = {"tres_per_node": job["tres_per_node"], "comment": job["comment"]}
    _, change, _ = lua.modify(record, extra="zone=b")
    assert change["extra"] == "(zone=b)&mig=1"
    _, change, _ = lua.modify(record, extra="")
    assert change["extra"] == "mig=1"
    _, change, _ = lua.modify(record, comment="mine")
    assert "extra" not in change


@versions
def test_before_23_11(version: str) -> None:
    """No expression; and a job that is pinned to a node is not counted, for it would be held."""
    lua = host(version, new=False)
    _, job, _ = lua.submit(tres_per_node="gres:mig:3g.40gb:1")
    assert job["tres_per_node"].endswith(",gres:fit:3g.40gb:1,gres:fit:start:1")
    assert "extra" not in job
    _, job, _ = lua.submit(tres_per_node="gres:mig:3g.40gb:1", req_nodes="n1")
    assert "fit" not in job["tres_per_node"]
    assert job["comment"] == "slurm-mig=1,3g.40gb/9/14:1"
    for more in ({"min_nodes": 2}, {"reservation": "r1"}):
        _, job, _ = lua.submit(tres_per_node="gres:mig:3g.40gb:1", **more)
        assert "fit" not in job["tres_per_node"]
    _, job, _ = host(version).submit(tres_per_node="gres/mig:3g.40gb:1", req_nodes="n1")
    assert "gres/fit:3g.40gb:1" in job["tres_per_node"]


@versions
def test_nobody_counts_themselves(version: str) -> None:
    """A job that held another's place would keep it from everybody."""
    for asked in ("gres/mig:3g.40gb:1,gres/fit:3g.40gb:1", "gres/fit:start:9"):
        code, _, said = host(version).submit(tres_per_node=asked)
        assert code == -1
        assert "what fits is counted by slurm-mig" in said
    code, job, _ = host(version, of=PLAIN).submit(tres_per_node="gres/fit:start:9")
    assert (code, job["tres_per_node"]) == (0, "gres/fit:start:9"), "another's gres of that name"
