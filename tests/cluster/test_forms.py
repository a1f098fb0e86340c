"""What users type beside a second Slurm with static MIG, whose answers are the right ones.

`make forms` does the same for every form on every release, and prints the table.
"""

from __future__ import annotations

import re

import pytest

from tests.cluster import forms
from tests.cluster.forms_excused import EXCUSES
from tests.cluster.forms_list import every

#: Groups of forms that have to be equal here; all of them are in `make forms`.
GROUPS = ("option",)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", GROUPS)
def test_every_option_beside_a_slice(group: str) -> None:
    """Devices, CPUs, memory and counts of every task, exit, reason: as static MIG gives them."""
    asked = [form for form in every() if form.group == group]
    version, static, ours = forms.side_by_side(asked)
    rows = forms.judged(version, static, ours)
    assert len(rows) == len(asked) > 50
    ran = [row for row in rows if row["static"].startswith("runs")]
    assert len(ran) > len(rows) / 2, "static MIG itself gave hardly anything: the harness is broken"
    differing = [forms.show(row) for row in rows if row["verdict"] == "DIFFERS"]
    assert not differing, "\n".join([f"Slurm {version}", *differing])


def test_excuses_are_for_forms_that_exist() -> None:
    """A reason that no form needs any longer would hide the next difference."""
    names = [form.name for form in every()]
    unused = [
        excuse.form for excuse in EXCUSES if not any(re.search(excuse.form, name) for name in names)
    ]
    assert unused == []
    assert len(names) == len(set(names)) > 300
