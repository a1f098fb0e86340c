"""The request in a stamp and in Slurm's own text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.errors import BadRequest
from slurm_mig.mig import request as requests
from slurm_mig.mig.profile import ATTRIBUTES, Profile
from slurm_mig.mig.request import Item, Request, Several

PROFILES = st.builds(Profile, st.integers(1, 7), st.integers(1, 300), st.sampled_from(ATTRIBUTES))


@st.composite
def stamped(draw: st.DrawFn) -> Request:
    profiles = draw(st.lists(PROFILES, min_size=1, max_size=4, unique=True))
    counts = [draw(st.integers(1, 2)) for _ in profiles]
    ids = [draw(st.integers(0, 99)) for _ in profiles]
    weights = [draw(st.integers(1, 128)) for _ in profiles]
    return Request(tuple(map(Item, profiles, counts, ids, weights)))


@given(stamped(), st.text(), st.text())
def test_a_stamp_survives_among_other_words(request: Request, before: str, after: str) -> None:
    """Whatever the user wrote around it, as long as he wrote no stamp of his own."""
    text = f"{requests.without_stamp(before)} {request.stamp()} {requests.without_stamp(after)}"
    assert requests.from_stamp(text) == request
    assert (
        requests.without_stamp(text).split() == requests.without_stamp(f"{before} {after}").split()
    )


@given(st.lists(stamped(), min_size=2, max_size=8), st.text())
def test_the_stamp_of_several_gpus(parts: list[Request], before: str) -> None:
    """A part for each GPU, in order; one word, so that it is stripped as one."""
    several = Several(tuple(parts))
    own = requests.without_stamp(before)
    text = f"{own} {several.stamp()}"
    assert requests.from_stamp(text) == several
    assert requests.without_stamp(text) == own


@given(st.text())
def test_no_text_without_the_word_has_a_stamp(text: str) -> None:
    """A request never comes out of nowhere."""
    if "slurm-mig=" not in text:
        assert requests.from_stamp(text) is None
        assert requests.without_stamp(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "xslurm-mig=1,3g.40gb/9/14:1",
        "a\u00a0slurm-mig=1,3g.40gb/9/14:1",
        "a\u2028slurm-mig=1,3g.40gb/9/14:1",
        "a\x1cslurm-mig=1,3g.40gb/9/14:1",
    ],
)
def test_only_ascii_white_space_starts_a_stamp(text: str) -> None:
    """Lua's %s is ASCII: a word that job_submit.lua did not see as a stamp is none here."""
    assert requests.from_stamp(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slurm-mig=", "version ''"),
        ("slurm-mig=3,3g.40gb/9/14:1", "version '3', this node reads 1 and 2"),
        ("slurm-mig=2,3g.40gb/9/14:1", "on 1 GPUs here"),
        ("slurm-mig=2,3g.40gb/9/14:1;", "at least one profile"),
        ("slurm-mig=2,;3g.40gb/9/14:1", "at least one profile"),
        ("slurm-mig=2,3g.40gb/9/14:1;3g.40gb/9/14", "<profile>/<id>/<shards>:<count>"),
        ("slurm-mig=2,7g.80gb/0/31:1;1g.10gb/19/4:9", "1 to 8"),
        ("slurm-mig=1,3g.40gb/9/14:2;3g.40gb/9/14:2", "<profile>/<id>/<shards>:<count>"),
        ("slurm-mig=1", "at least one profile"),
        ("slurm-mig=1,3g.40gb:1", "<profile>/<id>/<shards>:<count>"),
        ("slurm-mig=1,3g.40gb/9/14:0", "<profile>/<id>/<shards>:<count>"),
        ("slurm-mig=1,3g.40gb/9/14:01", "<profile>/<id>/<shards>:<count>"),
        ("slurm-mig=1,3g.40gb/x:1", "<profile>/<id>/<shards>:<count>"),
        ("slurm-mig=1,9q.40gb/9/14:1", "not a MIG profile"),
        ("slurm-mig=1,1g.10gb/19/4:9", "1 to 8"),
        ("slurm-mig=1,1g.10gb/19/4:1,1g.10gb/19/4:1", "twice"),
        ("slurm-mig=1,3g.40gb/9/14:1 slurm-mig=1,7g.80gb/0/31:1", "2 stamps"),
    ],
)
def test_a_broken_stamp_is_an_error_not_a_missing_one(text: str, says: str) -> None:
    """A stamp that cannot be read must not fall through to another way of asking."""
    with pytest.raises(BadRequest, match=says):
        requests.from_stamp(text)


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("gres:mig:3g.40gb:1,gres:shard:h100:14", "3g.40gb:1"),
        ("gres/mig:3g.40gb:1,gres/shard:14", "3g.40gb:1"),
        ("gres:mig:1g.10gb:2,gres:mig:3g.40gb:1,gres:shard:22", "1g.10gb:2,3g.40gb:1"),
        ("gres/mig:1g.10gb+me=1", "1g.10gb+me:1"),
        ("gres:mig:3g.40gb", "3g.40gb:1"),
        ("gres:mig:h100_3g.40gb:1", "3g.40gb:1"),
        ("gres:mig:rtx_pro_6000_1g.24gb-me:2", "1g.24gb-me:2"),
        ("  gres:mig:3g.40gb:1  ", "3g.40gb:1"),
        ("gres:gpu:2", None),
        ("gres:gpu:h100:2,gres:shard:14", None),
        ("N/A", None),
        ("", None),
    ],
)
def test_slurms_own_text(text: str, request_: str | None) -> None:
    """Both prefixes, several profiles, typed names, and jobs that are none of ours."""
    found = requests.from_gres(text)
    assert (str(found) if found else None) == request_


@pytest.mark.parametrize(
    "text", ["gres:mig:1", "gres/mig", "gres:mig:banana:1", "gres:mig:3g.40gb:9"]
)
def test_a_gres_that_names_no_profile(text: str) -> None:
    """A typeless mig is an error: nothing says which profile it would be."""
    with pytest.raises(BadRequest):
        requests.from_gres(text)


def test_a_stamp_needs_weights() -> None:
    """What squeue said has none; it is never stamped. An id may be unpublished."""
    item = Item(Profile.parse("1g.24gb"), 2, None, 1)
    assert Request((item,)).stamp() == "slurm-mig=1,1g.24gb/-/1:2"
    assert requests.from_stamp("slurm-mig=1,1g.24gb/-/1:2") == Request((item,))
    with pytest.raises(BadRequest, match="no weight"):
        Request((Item(Profile.parse("3g.40gb")),)).stamp()


def test_an_empty_request() -> None:
    """Nothing asked is not a request."""
    with pytest.raises(BadRequest):
        Request(())


@pytest.mark.parametrize(
    ("text", "gpu", "shards"),
    [
        ("gres:mig:3g.40gb:1,gres:shard:h100:14", False, True),
        ("gres/gpu:h100=1", True, False),
        ("gres:mig:3g.40gb:1", False, False),
        ("N/A", False, False),
        ("", False, False),
    ],
)
def test_what_a_text_holds(text: str, gpu: bool, shards: bool) -> None:
    """Whole GPUs and shards are told by the gres's own name."""
    assert requests.holds_gpu(text) is gpu
    assert requests.holds_shards(text) is shards
