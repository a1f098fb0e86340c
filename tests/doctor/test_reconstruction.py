"""The fleet behind files: which names belong to whom is read off what the nodes count."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_mig.doctor.lua_checks import expected_rows
from slurm_mig.doctor.reconstruction import Reconstruction
from slurm_mig.fleet.fleet import Fleet
from slurm_mig.fleet.slurm_files import gres_conf
from slurm_mig.slurm import conf
from tests.kit.fleets import group
from tests.kit.gpus import A30, A100, A100_40, H100

GROUPS = st.lists(
    st.lists(st.sampled_from((H100, A100, A100_40, A30)), min_size=1, max_size=2),
    min_size=1,
    max_size=4,
)


def rebuilt(fleet: Fleet, *, backwards: bool = False) -> tuple[Fleet, list[conf.NodeLine]]:
    """What the doctor makes of the generated files; slurm.conf may have nodes in any order."""
    text = [f"NodeName={one.hosts} Gres={fleet.gres(one)}" for one in fleet.groups]
    lines = reversed(text) if backwards else text
    nodes = conf.nodes(conf.parse("slurm.conf", "\n".join(lines), lambda _: None))
    gres = conf.gres_lines(conf.parse("gres.conf", gres_conf(fleet), lambda _: None))
    found, groups = Reconstruction({}, {}).fleet(nodes, gres)
    for node in nodes:
        assert found.counts(groups[node.name]) == node.count("mig")
    return found, nodes


# Each time the doctor derives all weights anew.
@settings(deadline=None, max_examples=20)
@given(GROUPS, st.booleans())
def test_the_same_names_whatever_the_order(groups: list[list[str]], backwards: bool) -> None:
    """No finding on files that `generate` wrote (SM211 to SM213, SM254)."""
    fleet = Fleet(tuple(group(f"n{place}", *gpus) for place, gpus in enumerate(groups)))
    found, _ = rebuilt(fleet, backwards=backwards)
    assert expected_rows(found) == expected_rows(fleet)


def test_names_of_before_and_parts() -> None:
    """Kept names are counted and known, and parts only where the site sells them."""
    groups = (group("h", H100), group("b", A100_40), group("a", A100))
    fleet = Fleet(groups, keep=("h100_1g.10gb",), compute_parts=("a100_40gb",))
    found, _ = rebuilt(fleet)
    assert expected_rows(found) == expected_rows(fleet)
    assert list(found.kept) == ["h100_1g.10gb"]
    assert found.compute_parts == ("a100_40gb",)


def test_a_plain_name_that_nobody_has() -> None:
    """As the first release wrote it for models that differ."""
    groups = (group("h", H100), group("b", A100_40))
    fleet = Fleet(groups, owners={"1g.10gb": ""})
    assert expected_rows(rebuilt(fleet)[0]) == expected_rows(fleet)
