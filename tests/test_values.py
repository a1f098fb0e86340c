"""Values behave as dataclasses do, and `dataclasses` takes them for some."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig import values

if TYPE_CHECKING:
    from collections.abc import Callable


def made_by(dataclass: Callable[..., Any], field: Callable[..., Any]) -> tuple[Any, ...]:
    """The same classes by either module."""

    @dataclass(frozen=True, slots=True, order=True)
    class Place:
        start: int
        size: int = 1

        def __post_init__(self) -> None:
            if self.size < 1:
                raise ValueError

        @property
        def end(self) -> int:
            return self.start + self.size

    @dataclass(slots=True)
    class Box:
        place: Any
        words: list[str] = field(default_factory=list)

        def __str__(self) -> str:
            return "a box"

    @dataclass(frozen=True)
    class Open:
        number: int = 7

    return Place, Box, Open


OURS = made_by(values.dataclass, values.field)
THEIRS = made_by(dataclasses.dataclass, dataclasses.field)
BOTH = pytest.mark.parametrize("made", [OURS, THEIRS], ids=["ours", "theirs"])


@BOTH
def test_what_the_library_promises(made: tuple[Any, ...]) -> None:
    """One test for both: whoever changes the import changes nothing else."""
    place, box, open_ = made
    assert place(3).size == 1
    assert place(3, 2).end == place(start=3, size=2).end == 5
    assert place(3) == place(3)
    assert place(3) != place(4)
    assert place(3) != box(3)
    assert len({place(3), place(3), place(3, 2)}) == 2
    assert sorted([place(4), place(3, 2), place(3)]) == [place(3), place(3, 2), place(4)]
    assert repr(place(3)).endswith("Place(start=3, size=1)")
    assert str(box(1)) == "a box"
    first, second = box(1), box(1)
    first.words.append("a")
    assert second.words == []
    first.place = 2
    assert first.place == 2
    assert open_() == open_(7)
    with pytest.raises(TypeError):
        hash(first)
    with pytest.raises(AttributeError):
        place(3).start = 4
    with pytest.raises(AttributeError):
        del place(3).start
    with pytest.raises(AttributeError):
        first.other = 4
    with pytest.raises(TypeError):
        assert place(1) < 2
    with pytest.raises(ValueError):  # noqa: PT011  # its own
        place(1, 0)
    for wrong in (place, lambda: place(1, 2, 3), lambda: place(1, 2, size=3)):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError):
        place(1, other=2)
    match place(3, 2):
        case place(start, size):
            assert (start, size) == (3, 2)


@BOTH
def test_tools_of_both_modules_work_on_either(made: tuple[Any, ...]) -> None:
    place, box, _ = made
    filled = box(place(3), ["a"])
    plain = {"place": {"start": 3, "size": 1}, "words": ["a"]}
    for tools in (dataclasses,) if made is THEIRS else (dataclasses, values):
        assert tools.asdict(filled) == plain
        assert tools.replace(place(3), size=2) == place(3, 2)
        assert [item.name for item in tools.fields(box)] == ["place", "words"]
    first, second = dataclasses.fields(place)
    assert first.default is dataclasses.MISSING
    assert second.default == 1
    assert dataclasses.is_dataclass(place)


def test_values_travel_between_processes() -> None:
    from slurm_mig.mig.geometry import Placement

    assert pickle.loads(pickle.dumps(Placement(3, 2))) == Placement(3, 2)
