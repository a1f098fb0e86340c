"""Where a process belongs, and whether it is certainly a left-over of a finished job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.gpu.holder import GPU, Holder, Holders, Place
from slurm_mig.mig.allocation import Owner
from slurm_mig.text import ascii_line

ALICE = Owner(7, restart=1, uid=64001, gid=64001, user="alice")

#: As the kernel shows them: cgroups(7), slurm.conf's proctrack/cgroup and proctrack/linuxproc.
V1_JOB = """\
9:name=systemd:/system.slice/slurmd.service
6:freezer:/slurm/uid_64001/job_7/step_0
5:devices:/slurm/uid_64001/job_7/step_0/task_0
4:memory:/slurm/uid_64001/job_7/step_0
1:cpu:/
"""
V1_SEVERAL_SLURMD = "6:freezer:/slurm_n1/uid_64001/job_7/step_batch\n"
V2_JOB = "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n"
V2_SEVERAL_SLURMD = "0::/system.slice/n1_slurmstepd.scope/job_7/step_extern/user/task_special\n"
HYBRID_JOB = (
    "6:freezer:/slurm/uid_64001/job_7/step_0\n1:name=systemd:/system.slice/x.service\n0::/\n"
)
HYBRID_UNIT = (
    "5:devices:/system.slice/nvidia-dcgm.service\n"
    "1:name=systemd:/system.slice/nvidia-dcgm.service\n0::/system.slice/nvidia-dcgm.service\n"
)
UNIT = "0::/system.slice/nvidia-dcgm.service\n"
LINUXPROC = "0::/system.slice/slurmd.service\n"
TEMPLATE = "0::/system.slice/system-dcgm.slice/dcgm@1.service/sub\n"
USER_UNIT = "0::/user.slice/user-64001.slice/user@64001.service/app.slice/nvidia-dcgm.service\n"
SESSION = "0::/user.slice/user-64001.slice/session-3.scope\n"
FORGED_V2 = (
    "0::/user.slice/user-64001.slice/user@64001.service/system.slice/slurmstepd.scope/job_7/x\n"
)


@pytest.mark.parametrize(
    ("text", "unit", "job", "uid"),
    [
        (V1_JOB, "slurmd.service", 7, 64001),
        (V1_SEVERAL_SLURMD, "", 7, 64001),
        (V2_JOB, "slurmstepd.scope", 7, None),
        (V2_SEVERAL_SLURMD, "n1_slurmstepd.scope", 7, None),
        (HYBRID_JOB, "x.service", 7, 64001),
        (HYBRID_UNIT, "nvidia-dcgm.service", None, None),
        (UNIT, "nvidia-dcgm.service", None, None),
        (LINUXPROC, "slurmd.service", None, None),
        (TEMPLATE, "dcgm@1.service", None, None),
        (SESSION, "session-3.scope", None, None),
        ("0::/\n", "", None, None),
        ("", "", None, None),
        ("nonsense\n7:x\n", "", None, None),
    ],
)
def test_cgroups(text: str, unit: str, job: int | None, uid: int | None) -> None:
    """Job and system unit by v1, v2 and both at once; nothing of it in doubt."""
    place = Place.parse(text)
    assert (place.unit, place.job, place.job_uid, place.doubtful) == (unit, job, uid, False)


@pytest.mark.parametrize(
    "text",
    [
        FORGED_V2,
        "0::/user.slice/job_7\n",
        "0::/system.slice/slurmstepd.scope/system\n",
        "0::/system.slice/slurmstepd.scope/job_7x\n",
        "6:freezer:/slurm/uid_64001/step_7\n",
        "6:freezer:/slurm/uid_64001/job_7\n5:devices:/slurm/uid_64001/job_8\n",
        "6:freezer:/slurm/uid_64001/job_7\n5:devices:/slurm/uid_64002/job_7\n",
        "6:freezer:/../slurm/uid_64001/job_7\n",
    ],
)
def test_what_speaks_of_a_job_in_another_way_is_in_doubt(text: str) -> None:
    """A tree of the user's own, two jobs, a form of a later Slurm: no job, and no kill."""
    place = Place.parse(text)
    assert (place.job, place.doubtful) == (None, True)


def test_a_users_unit_is_not_the_systems() -> None:
    """Below his own manager a user calls a service what he likes."""
    assert Place.parse(USER_UNIT).unit == "user@64001.service"


#: A process of the job by its cgroup, and one where Slurm keeps none.
IN_CGROUP = Holder(4242, started=9, uids=(64001,) * 4, name="python", place=Place.parse(V2_JOB))
BY_ENVIRONMENT = replace(
    IN_CGROUP, place=Place.parse(LINUXPROC), environment_job=7, environment_restart=1
)


def test_what_is_certainly_left_over() -> None:
    """By the job's cgroup, whatever its environment; or by environment where there are none."""
    assert IN_CGROUP.is_left_of(ALICE, by_environment=False)
    assert replace(IN_CGROUP, place=Place.parse(V1_JOB)).is_left_of(ALICE, by_environment=False)
    for text in (LINUXPROC, "0::/\n", "0::/system.slice/slurmd@n1.service\n", ""):
        process = replace(BY_ENVIRONMENT, place=Place.parse(text))
        assert process.is_left_of(ALICE, by_environment=True)


@pytest.mark.parametrize(
    "holder",
    [
        replace(IN_CGROUP, has=GPU),
        replace(IN_CGROUP, pid=1),
        replace(IN_CGROUP, uids=()),
        replace(IN_CGROUP, uids=(0,) * 4),
        replace(IN_CGROUP, uids=(64002,) * 4),
        replace(IN_CGROUP, uids=(64001, 0, 0, 0)),
        replace(IN_CGROUP, uids=(64001, 64001, 64002, 64001)),
        replace(IN_CGROUP, place=Place.parse(V2_JOB.replace("job_7", "job_8"))),
        replace(IN_CGROUP, place=Place.parse(V1_JOB.replace("uid_64001", "uid_64002"))),
        replace(IN_CGROUP, place=Place.parse(UNIT)),
        replace(BY_ENVIRONMENT, place=Place.parse(FORGED_V2)),
        replace(BY_ENVIRONMENT, place=Place.parse(UNIT)),
        replace(BY_ENVIRONMENT, place=Place.parse(USER_UNIT)),
        replace(BY_ENVIRONMENT, place=Place.parse(SESSION)),
        replace(BY_ENVIRONMENT, place=Place.parse(V2_JOB.replace("job_7", "job_8"))),
        replace(BY_ENVIRONMENT, place=Place.parse("1:name=systemd:/docker/abc\n")),
        replace(BY_ENVIRONMENT, environment_job=8),
        replace(BY_ENVIRONMENT, environment_job=None),
        replace(BY_ENVIRONMENT, environment_restart=0),
        replace(BY_ENVIRONMENT, uids=(64002,) * 4),
        replace(BY_ENVIRONMENT, uids=(0,) * 4),
    ],
)
def test_in_doubt_it_is_nobodys(holder: Holder) -> None:
    """Each difference alone keeps a process alive."""
    assert not holder.is_left_of(ALICE, by_environment=True)


def test_the_environment_counts_only_where_the_user_has_no_other_job() -> None:
    """And never for root or for an administrator's slice."""
    assert not BY_ENVIRONMENT.is_left_of(ALICE, by_environment=False)
    root = replace(ALICE, uid=0)
    assert not replace(IN_CGROUP, uids=(0,) * 4).is_left_of(root, by_environment=True)
    assert not IN_CGROUP.is_left_of(replace(ALICE, job_id=None), by_environment=True)


@given(
    st.builds(
        Holder,
        pid=st.integers(0, 9),
        has=st.sampled_from(["instance", "gpu"]),
        uids=st.lists(st.sampled_from([0, 64001, 64002]), max_size=4).map(tuple),
        place=st.sampled_from([Place.parse(text) for text in (V1_JOB, V2_JOB, UNIT, FORGED_V2)]),
        environment_job=st.sampled_from([None, 7, 8]),
        environment_restart=st.integers(0, 2),
    ),
    st.booleans(),
)
def test_never_root_never_another_user(holder: Holder, by_environment: bool) -> None:
    """Whatever else is true of it."""
    if holder.is_left_of(ALICE, by_environment=by_environment):
        assert set(holder.uids) == {ALICE.uid}
        assert holder.place.job in (None, 7)


def test_how_it_is_told() -> None:
    """To administrators with user, command and unit or job; to other users without."""
    told = Holder(
        812, uids=(0,) * 4, user="root", name="nv", command="nv-hostengine -n",
        place=Place.parse(UNIT),
    )  # fmt: skip
    assert str(told) == "pid 812 of root (nv-hostengine -n) of unit nvidia-dcgm.service"
    assert told.public == "pid 812 of unit nvidia-dcgm.service"
    assert str(replace(IN_CGROUP, command="")) == "pid 4242 of 64001 ([python]) of job 7"
    assert str(Holder(5)) == "pid 5, which is gone or not to be seen"
    kernel = replace(told, command="", place=Place(path="/odd/place"), has=GPU)
    assert str(kernel) == "pid 812 of root ([nv]) in /odd/place, by the GPU"


def test_the_nearest_are_told() -> None:
    """Who has only the GPU is of interest when nobody has the instance; five names are enough."""
    monitor = Holder(1, has=GPU, uids=(0,), place=Place(unit="m.service"))
    assert Holders((monitor, IN_CGROUP)).nearest == (IN_CGROUP,)
    assert Holders((monitor, IN_CGROUP)).units == {"slurmstepd.scope"}
    assert Holders((monitor,)).units == {"m.service"}
    many = Holders(tuple(Holder(pid) for pid in range(2, 10)))
    assert many.text(public=True) == "pid 2, pid 3, pid 4, pid 5, pid 6, 3 more"
    assert Holders().text() == "no process that can be found (see dmesg)"
    assert Holders(complete=False).text() == "not all processes could be looked at in time"


@given(st.text())
def test_text_is_one_printable_line(text: str) -> None:
    """Whatever a user calls his process."""
    assert all(" " <= char <= "~" for char in ascii_line(text))


def test_there_and_back() -> None:
    """As it comes from the child that looks; --json has nothing of the environment."""
    data = {**BY_ENVIRONMENT.to_dict(), "environment_job": 7, "environment_restart": 1}
    assert Holder.from_dict(data) == BY_ENVIRONMENT
    assert not [key for key in BY_ENVIRONMENT.to_dict() if key.startswith("environment")]
