"""Slurm's host lists: what they name, and what is none."""

from __future__ import annotations

import pytest

from slurm_mig.errors import UsageFault
from slurm_mig.slurm.hostlist import expand


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", ["n1"]),
        ("n1,gpu-2.site", ["n1", "gpu-2.site"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[09-11,7]", ["n09", "n10", "n11", "n7"]),
        ("n_1,m[3],n[001-2]", ["n_1", "m3", "n001", "n002"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_what_a_list_names(text: str, hosts: list[str]) -> None:
    """As `scontrol show hostnames` prints it."""
    assert expand(text) == hosts


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "n1,", ",n1", "n 1", "n1;rm", "n[1-", "n1]", "n[]", "n[3-1]", "n[1-2", "n[[1]]",
        "n[1,,2]", "n[a-b]", "n[-1]", "-n1", "n1\nn2", "n[1-2][", "n[1-2]-ib", "n[²]", "n=1", "n*",
        "n[0-999999999]", "n[0-300]m[0-300]", "n[1-9999999999]",
    ],
)  # fmt: skip
def test_what_is_no_list(text: str) -> None:
    """Named, with what is allowed, on one line."""
    with pytest.raises(UsageFault) as caught:
        expand(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
