"""What a timeline shows: bands, boxes, marks, colours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from slurm_mig.audit.holdings import holdings
from slurm_mig.audit.timeline import COLOURED, OTHERS, Gpu, Picture, picture
from slurm_mig.mig.allocation import QUARANTINED
from tests.kit.audit_records import H100_SIZE, held, record, refusal, whole

if TYPE_CHECKING:
    from slurm_mig.mig.allocation import Allocation

GPUS = (Gpu("n1", "GPU-a", 0, "H100", 8), Gpu("n1", "GPU-b", 1, "H100", 8))


def draw(*records: Allocation, by: str = "user", since: float | None = None) -> Picture:
    return picture(held(*records), GPUS, by, since=since, until=None, now=3000.0)


def test_slots_and_times() -> None:
    """Each slice over its slots, cut to the span; what is held goes to the end."""
    drawn = draw(record(7, 1000, 2000, ("3g.40gb", 4)), record(8, 1500, None), since=1200)
    first, second = drawn.boxes
    assert (first.low, first.high, first.since, first.until) == (4, 8, 1200, 2000)
    assert (second.low, second.high, second.since, second.until) == (0, 4, 1500, 3000)
    assert second.held[1] is None
    assert first.lines == ("job 7 (alice, physics)", "3g.40gb@4", "MIG-1-0", "released")
    assert (drawn.since, drawn.until) == (1200, 3000)


def test_what_a_copy_does_not_tell_is_not_drawn() -> None:
    """A slice that is open in it ends with its newest event, and one that is younger is none."""
    items = holdings(record(7, 1000, None), H100_SIZE, 1700.0)
    items += holdings(record(8, 1800, None), H100_SIZE, 1700.0)
    drawn = picture(items, GPUS, "user", since=None, until=None, now=3000.0)
    assert [(box.since, box.until) for box in drawn.boxes] == [(1000, 1700)]


def test_idle_gpus_are_shown() -> None:
    """In the order of nodes and minors."""
    assert [band.minor for band in draw(record()).bands] == [0, 1]
    assert draw().boxes == []


def test_a_whole_gpu_fills_its_band() -> None:
    """Over all units."""
    (box,) = draw(whole()).boxes
    assert (box.low, box.high, box.key) == (0, 8, "alice")


def test_refusals_are_marks() -> None:
    """With their reason."""
    drawn = draw(refusal())
    assert drawn.boxes == []
    assert (drawn.marks[0].at, drawn.marks[0].lines[-1]) == (1000, "no room")


def test_parts_of_an_instance_lie_side_by_side() -> None:
    """None hides another."""
    one = record()
    part = replace(one.instances[0], profile="1c.3g.40gb")
    boxes = draw(replace(one, instances=(part, replace(part, ci_id=1, uuid="MIG-x")))).boxes
    assert [(box.low, box.high) for box in boxes] == [(0, 2), (2, 4)]


def test_colours() -> None:
    """By user or profile, most hours first; those beyond the palette share one."""
    many = [record(n, 1000, 1000 + 10 * n, user=f"u{n:02d}") for n in range(1, COLOURED + 4)]
    drawn = draw(*many)
    assert [key for key, _ in drawn.legend] == [*(f"u{n:02d}" for n in range(12, 3, -1)), OTHERS]
    assert {box.key for box in drawn.boxes} == {key for key, _ in drawn.legend}
    assert [key for key, _ in draw(record(), by="profile").legend] == ["3g.40gb"]


def test_quarantine() -> None:
    """Told apart."""
    (box,) = draw(record(7, 1000, None, phase=QUARANTINED)).boxes
    assert box.quarantined


def test_a_model_of_unknown_size() -> None:
    """As many slots as were in use; nothing is invented."""
    gpus = [Gpu("n1", "GPU-a", 0, "new", None)]
    items = held(record(7, 1, 2, ("2g.20gb", 4)))
    drawn = picture(items, gpus, "user", since=None, until=None, now=3000)
    assert drawn.bands[0].units == 6
