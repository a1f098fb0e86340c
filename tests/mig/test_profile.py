"""Profile names are read and printed exactly as NVIDIA writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.errors import BadRequest
from slurm_mig.mig import catalog
from slurm_mig.mig.profile import ATTRIBUTES, Profile


@pytest.mark.parametrize(
    ("text", "profile"),
    [
        ("1g.10gb", Profile(1, 10)),
        ("1g.10gb+me", Profile(1, 10, "+me")),
        ("2g.12gb+me", Profile(2, 12, "+me")),
        ("1g.24gb+gfx", Profile(1, 24, "+gfx")),
        ("1g.24gb+me.all", Profile(1, 24, "+me.all")),
        ("1g.24gb-me", Profile(1, 24, "-me")),
        ("1c.3g.20gb", Profile(3, 20, "", 1)),
        ("7g.141gb", Profile(7, 141)),
        ("1g.0gb+gfx", Profile(1, 0, "+gfx")),
    ],
)
def test_nvidias_spellings(text: str, profile: Profile) -> None:
    """Every spelling NVIDIA uses is understood and given back unchanged."""
    assert Profile.parse(text) == profile
    assert str(profile) == text


@given(
    st.builds(
        Profile,
        st.integers(2, 99),
        st.integers(0, 9999),
        st.sampled_from(ATTRIBUTES),
        st.none() | st.just(1),
    )
)
def test_printing_and_parsing_are_inverse(profile: Profile) -> None:
    """Whatever can be said can be read back."""
    assert Profile.parse(str(profile)) == profile


@given(st.text(max_size=20))
def test_what_is_read_prints_as_it_was(text: str) -> None:
    """No text is accepted that is not exactly a name: no case, space or zero is forgiven."""
    try:
        profile = Profile.parse(text)
    except BadRequest:
        return
    assert str(profile) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "3g", "3g.40", "3g.40GB", "3G.40gb", "03g.40gb", "3g.040gb", " 3g.40gb", "3g.40gb ",
        "3g.40gb\n", "3g.40gb+ME", "3g.40gb+me+gfx", "3g.40gb+", "mig-3g.40gb", "-3g.40gb",
        "0g.10gb", "٣g.40gb", "3g.40gb;rm", "3c.3g.40gb", "4c.3g.40gb", "0c.3g.40gb", "c.3g.40gb",
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_name(text: str) -> None:
    """A bad name is quoted, with the grammar beside it."""
    with pytest.raises(BadRequest) as caught:
        Profile.parse(text)
    assert "gb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_gpu_instance_of_a_part() -> None:
    """A compute instance's profile knows the GPU instance it is cut from."""
    assert str(Profile.parse("1c.3g.20gb").gpu_instance) == "3g.20gb"
    assert Profile.parse("3g.20gb").gpu_instance == Profile.parse("3g.20gb")


def test_the_whole_catalogue_is_readable() -> None:
    """Every profile name of every supported product parses and prints."""
    names = [row["name"] for item in catalog.products() for row in item.row["profiles"]]
    assert len(names) > 100
    assert [str(Profile.parse(name)) for name in names] == names
