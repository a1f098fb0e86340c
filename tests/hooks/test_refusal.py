"""What becomes of a refused job, in each situation Slurm can put it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from slurm_mig.errors import BadRequest, Crowded, JobFault, NoRoom, NoSpace, SlurmFault, Unknown
from slurm_mig.hooks import refusal
from slurm_mig.hooks.refusal import (
    Refusal,
    comment_with,
    least_delay,
    postpone,
    refuse,
    retry_delay,
)
from slurm_mig.mig import allocation as phases
from slurm_mig.mig.allocation import Allocation, Owner
from slurm_mig.mig.request import from_stamp
from slurm_mig.settings import Config
from slurm_mig.slurm.protocol import JobFacts
from slurm_mig.system.detach import detach

if TYPE_CHECKING:
    from slurm_mig.slurm.protocol import Slurm

NO_ROOM = NoRoom("no placement for 3g.40gb:1", job=7)


def _record(owner: Owner, phase: str) -> Allocation:
    return Allocation(owner, "n1", "GPU-x", 0, "H100", "boot", "3g.40gb:1", phase)


class Desk:
    """Notes what is asked of Slurm; the real one answers in tests/cluster."""

    def __init__(self, facts: JobFacts | None, **answers: object) -> None:
        self.facts = facts
        self.answers = answers
        self.asked: list[tuple[object, ...]] = []

    def job(self, job_id: int) -> JobFacts | None:
        assert self.facts is None or job_id == self.facts.job_id
        return self.facts

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        def ask(*arguments: object, **options: object) -> object:
            self.asked.append((name, *arguments, *options.values()))
            answer = self.answers.get(name)
            if isinstance(answer, Exception):
                raise answer
            if isinstance(answer, list):
                return answer.pop(0)
            return answer

        return ask

    def did(self) -> list[str]:
        return [str(name) for name, *_ in self.asked if name != "comment"]


def batch(*, requeue: bool = True, reference: str = "7") -> JobFacts:
    return JobFacts(7, reference, True, requeue, "RUNNING", "")


def run(desk: Desk, fault: JobFault = NO_ROOM, earlier: int = 0, **config: object):  # type: ignore[no-untyped-def]
    slurm: Slurm = desk
    return refuse(Refusal(7, earlier, "mine", None), fault, slurm, Config(**config))  # type: ignore[arg-type]


def test_a_batch_job_is_requeued() -> None:
    """Nothing else happens to it, and its Epilog is to postpone it."""
    desk = Desk(batch())
    assert run(desk) == refusal.Outcome("requeued", retry="7")
    assert desk.did() == ["requeue"]
    assert ("comment", "7", "mine [slurm-mig: job 7: no placement for 3g.40gb:1]") in desk.asked


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT", "PENDING"])
@pytest.mark.parametrize("interactive", [False, True])
def test_a_job_that_is_ending_already(state: str, *, interactive: bool) -> None:
    """Its user cancelled it while the Prolog ran: it must not come back."""
    desk = Desk(JobFacts(7, "7", not interactive, True, state, ""))
    assert run(desk) == refusal.Outcome(f"left alone, it is {state}")
    assert desk.asked == []


@pytest.mark.parametrize("kind", [Unknown, Crowded, NoSpace])
def test_what_passes_by_itself(kind: type[JobFault]) -> None:
    """Requeued like lack of room, and held only when it comes again and again."""
    assert run(Desk(batch()), kind("x")).text == "requeued"
    assert run(Desk(batch()), kind("x"), earlier=3, max_requeues=3).text == "held"


def test_one_task_of_an_array_not_the_array() -> None:
    """Its own id would hit every running task."""
    desk = Desk(batch(reference="4_2"))
    assert run(desk).retry == "4_2"
    assert ("requeue", "4_2") in desk.asked


def test_a_component_is_requeued_through_its_leader() -> None:
    """Slurm refuses the component's own id."""
    desk = Desk(batch())
    slurm: Slurm = desk
    refuse(Refusal(7, 0, "", het_leader=5), NO_ROOM, slurm, Config())
    assert ("requeue", "5") in desk.asked


def test_no_requeue_by_either_policy() -> None:
    """Requeued once with the flag lifted and put back, or cancelled."""
    desk = Desk(batch(requeue=False))
    assert run(desk).text == "requeued"
    assert [a for a in desk.asked if a[0] != "comment"] == [
        ("allow_requeue", "7", True),
        ("requeue", "7"),
        ("allow_requeue", "7", False),
    ]
    desk = Desk(batch(requeue=False))
    assert run(desk, no_requeue="cancel").text == "cancelled"
    assert desk.did() == ["cancel"]


def test_interactive_jobs_are_told_and_cancelled() -> None:
    """In that order: after the cancel nobody listens."""
    desk = Desk(JobFacts(7, "7", False, False, "RUNNING", ""))
    assert run(desk).text == "cancelled"
    assert desk.did() == ["notify", "cancel"]
    assert ("notify", "7", "slurm-mig: job 7: no placement for 3g.40gb:1") in desk.asked


def test_what_waiting_cannot_cure_is_held() -> None:
    """A bad request would bounce for ever."""
    desk = Desk(batch())
    assert run(desk, BadRequest("bad stamp")) == refusal.Outcome("held")
    assert desk.did() == ["requeue_hold"]


def test_a_job_that_bounces_is_held() -> None:
    """After the configured number of refusals (`scontrol requeue` has no cap of its own)."""
    assert run(Desk(batch()), earlier=2, max_requeues=3).text == "requeued"
    assert run(Desk(batch()), earlier=3, max_requeues=3).text == "held"


@pytest.mark.parametrize(
    ("restart", "refused_at", "comment", "count"),
    [
        (0, (), "", 0),
        # Preempted five times, refused never: SLURM_JOB_RESTART_COUNT is 5.
        (5, (), "mine", 0),
        (5, (1, 4), "", 2),
        # The record of this very run is there already.
        (2, (0, 1, 2), "", 2),
        # What other nodes refused.
        (3, (), "mine [slurm-mig: job 7: no placement for 3g.40gb:1]", 1),
        (6, (2,), "[slurm-mig: no placement; refused 5 times] mine", 5),
        # A user who takes our words away is still refused as often here as it was.
        (6, (2, 3, 4), "", 3),
        # A first run has no past, whatever the comment says; nor has a job of the same id.
        (0, (), "[slurm-mig: no placement; refused 900 times]", 0),
    ],
)
def test_refusals_are_counted_not_restarts(
    restart: int, refused_at: tuple[int, ...], comment: str, count: int
) -> None:
    """By the records of this node, and by what the comment tells of the others."""
    own = Owner(7, restart, uid=64001)
    records = [_record(Owner(7, at, uid=64001), phases.REFUSED) for at in refused_at]
    records += [_record(Owner(7, 0, uid=64001), phases.RELEASED)]
    records += [_record(Owner(7, 0, uid=64002), phases.REFUSED)]
    assert refusal.earlier(records, own, comment) == count


def test_the_count_comes_back_from_the_comment() -> None:
    """What one node writes the next one reads."""
    text = "mine"
    for times in range(1, 4):
        text = comment_with(text, "no [x] placement", times)
        assert refusal.earlier([], Owner(7, times), text) == times
    assert text == "mine [slurm-mig: no [x) placement; refused 3 times]"


@pytest.mark.parametrize(
    "desk",
    [
        Desk(batch(), requeue=SlurmFault("Unable to contact slurm controller")),
        Desk(JobFacts(7, "7", False, False, "RUNNING", ""), cancel=SlurmFault("timed out")),
    ],
)
def test_a_silent_slurmctld_is_an_outcome(desk: Desk) -> None:
    """The TaskProlog stops the job then; the node is fine."""
    assert run(desk).text.startswith("left to the TaskProlog: ")
    assert run(desk).retry == ""


def test_an_unknown_job() -> None:
    """Cancelled meanwhile: nothing to do."""
    assert run(Desk(None)).text == "unknown to Slurm"


def test_a_comment_that_fails_keeps_nobody_from_the_queue() -> None:
    """It is a courtesy."""
    assert run(Desk(batch(), comment=SlurmFault("x"))).text == "requeued"


def test_comments() -> None:
    """The user's words stay, our earlier reason goes, stamps are job_submit.lua's business."""
    text = comment_with("mine slurm-mig=1,3g.40gb/9/14:1 [slurm-mig: old] too", "new [x] reason")
    assert text == "mine too [slurm-mig: new [x) reason]"
    assert comment_with(text, "third") == "mine too [slurm-mig: third]"
    assert from_stamp(text) is None
    assert comment_with("", "r") == "[slurm-mig: r]"


def test_white_space_of_a_comment_is_its_users() -> None:
    """It is part of what they wrote: a table, a file's text."""
    own = "  a\t b\n\n c  "
    text = comment_with(f"{own} slurm-mig=1,3g.40gb/9/14:1", "first")
    assert text == f"{own} [slurm-mig: first]"
    assert (
        comment_with(f"{text} slurm-mig=1,3g.40gb/9/14:1", "second") == f"{own} [slurm-mig: second]"
    )


@pytest.mark.parametrize(
    ("version", "restarts", "seconds"),
    [
        ((22, 5), 0, 125),
        ((22, 5), 1, 200),
        ((23, 2), 0, 100),
        ((26, 5), 1, 200),
        ((26, 5), 3, 700),
        ((26, 5), 1000, 700),
    ],
)
def test_delays(version: tuple[int, int], restarts: int, seconds: int) -> None:
    """Doubled, capped, and on 22.05 never before the credential has expired."""
    desk: Slurm = Desk(None, version=version, credential_lifetime=120)
    config = Config(retry_delay=100, retry_delay_max=700)
    assert retry_delay(restarts, least_delay(desk), config) == seconds


def test_a_short_delay_is_kept_apart_from_the_epilog() -> None:
    """Restarted within the same second, 24.11 revokes the job's credential."""
    desk: Slurm = Desk(None, version=(24, 11))
    assert retry_delay(0, least_delay(desk), Config(retry_delay=1)) == 3


def test_postponed_once_the_epilog_is_over() -> None:
    """Earlier, Slurm would overwrite it."""
    naps: list[float] = []
    desk = Desk(None, state=["COMPLETING", "COMPLETING", "PENDING"], version=(26, 5))
    slurm: Slurm = desk
    assert postpone("4_2", 0, slurm, Config(), naps.append) == (3, 120)
    assert len(naps) == 2
    assert desk.asked[-1] == ("start_after", "4_2", 120)


@pytest.mark.parametrize("state", ["", "RUNNING", "CANCELLED"])
def test_not_postponed_when_it_is_no_longer_waiting(state: str) -> None:
    """Cancelled, or started elsewhere."""
    desk = Desk(None, state=state)
    slurm: Slurm = desk
    assert postpone("7", 0, slurm, Config(), lambda _: None) is None
    assert desk.did() == ["state"]


def test_waiting_ends() -> None:
    """A job that stays completing for ever does not keep a process for ever."""
    naps: list[float] = []
    slurm: Slurm = Desk(None, state="COMPLETING")
    assert postpone("7", 0, slurm, Config(), naps.append) is None
    assert sum(naps) == refusal.PATIENCE


def test_detached_work_outlives_us_and_holds_nothing(tmp_path: Path) -> None:
    """Own session, none of our descriptors: Slurm waits for both (facts/slurm.md#failures)."""
    held = os.open(tmp_path, os.O_RDONLY)
    go = tmp_path / "go"

    def work() -> None:
        while not go.exists():
            time.sleep(0.01)
        entries = Path("/proc/self/fd")
        links = {str((entries / name).readlink()) for name in "012"}
        kept = (entries / str(held)).exists()
        facts = f"{os.getsid(0)} {links} {kept}"
        (tmp_path / "part").write_text(facts)
        (tmp_path / "part").rename(tmp_path / "facts")

    detach(work)
    go.touch()
    until = time.monotonic() + 30
    while not (tmp_path / "facts").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    session, rest = (tmp_path / "facts").read_text().split(" ", 1)
    assert int(session) != os.getsid(0)
    assert rest == "{'/dev/null'} False"
    os.close(held)


def test_detached_work_that_fails_does_not_return_into_the_hook(tmp_path: Path) -> None:
    """Two processes must not go on where one was."""
    here = os.getpid()
    detach(lambda: 1 / 0)
    assert os.getpid() == here
