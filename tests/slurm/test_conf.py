"""Slurm's files as Slurm reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_mig.slurm import conf

FILES = {
    "/etc/slurm/nodes.conf": "NodeName=n[1-2] Gres=gpu:h100:2 # two\nInclude /abs/more.conf\n",
    "/abs/more.conf": "TaskProlog=/x\nInclude gone.conf\n",
}


def parse(text: str) -> conf.Conf:
    return conf.parse("/etc/slurm/slurm.conf", text, FILES.get)


def test_keys_in_any_case_and_the_last_line_wins() -> None:
    """slurm.conf(5): contents are case insensitive; a later value replaces an earlier one."""
    made = parse("prologFLAGS = Alloc\n  PrologFlags=Contain\n")
    last = made.last("PROLOGFLAGS")
    assert last is not None
    assert (last.get("prologflags"), last.line) == ("Contain", 2)
    assert len(made.all("PrologFlags")) == 2
    assert str(last) == "/etc/slurm/slurm.conf:2: PrologFlags=Contain"


def test_comments_and_continued_lines() -> None:
    """A comment ends a line before its continuation is looked for; an escaped # is none."""
    made = parse("# A=1\nA=1 # B=2 \\\nC=3 \\\n  D=4\nE=a\\#b\n\n")
    assert [(entry.line, entry.pairs) for entry in made.entries] == [
        (2, (("a", "1"),)),
        (3, (("c", "3"), ("d", "4"))),
        (5, (("e", "a\\#b"),)),
    ]


def test_quoted_values_and_operators() -> None:
    """A value ends at white space unless it is quoted."""
    (entry,) = parse('NodeName=n1 Reason="not now" Features+=a,b Odd').entries
    assert entry.pairs == (("nodename", "n1"), ("reason", "not now"), ("features", "a,b"))


def test_includes() -> None:
    """Relative to slurm.conf's directory, nested, and named when they cannot be read."""
    made = parse("include nodes.conf\nInclude=no\n")
    assert [entry.key for entry in made.entries] == ["nodename", "taskprolog", "include"]
    (gone,) = made.unread
    assert (gone.where, gone.get("include")) == ("/abs/more.conf:2", "/etc/slurm/gone.conf")


def test_an_include_of_itself_ends() -> None:
    """A circle is an include that cannot be read."""
    made = conf.parse("/s/a.conf", "Include a.conf\nA=1\n", lambda _: "Include a.conf\nA=1\n")
    assert made.unread
    assert len(made.all("A")) == conf.MAX_DEPTH + 1


def test_nodes_and_their_defaults() -> None:
    """NodeName=DEFAULT holds for the lines below it."""
    made = parse(
        "NodeName=n0 Gres=gpu:1\nNodeName=DEFAULT Gres=mig:1g.10gb:7,shard:h100:31\n"
        "NodeName=n[1-2] NodeHostname=h[1-2]\nNodeName=n3 Gres=gpu:a30:2(S:0-1)\n"
    )
    found = {node.name: node for node in conf.nodes(made)}
    assert found["n0"].gres == {"gpu": 1}
    assert (found["n2"].host, found["n2"].managed) == ("h2", True)
    assert found["n2"].count("mig") == {"1g.10gb": 7}
    assert found["n2"].count("shard") == {"h100": 31}
    assert found["n3"].count("gpu") == {"a30": 2}
    assert not found["n3"].managed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu", {"gpu": 1}),
        ("gpu:2", {"gpu": 2}),
        ("gpu:h100", {"gpu:h100": 1}),
        ("gpu:h100:2,gpu:h100:2", {"gpu:h100": 4}),
        ("shard:1K", {"shard": 1024}),
        ("tmpfs:no_consume:4M", {"tmpfs": 4 << 20}),
        ("mig:1g.10gb+me:2", {"mig:1g.10gb+me": 2}),
        ("", {}),
    ],
)
def test_gres(text: str, found: dict[str, int]) -> None:
    """As slurm.conf(5) lets a site write them."""
    assert conf.read_gres(text) == found


def test_lines_of_gres_conf() -> None:
    """Lines with and without nodes, files with ranges, counts."""
    made = parse(
        "AutoDetect=off\nName=gpu Type=h100 File=/dev/nvidia[0-1],/dev/nvidia3\n"
        "NodeName=n[1-2] Name=shard Count=62 File=/dev/nvidia[0-1]\n"
    )
    gpu, shard = conf.gres_lines(made)
    assert gpu.files == ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia3")
    assert (gpu.on("any"), gpu.each) == (True, None)
    assert (shard.on("n2"), shard.on("n3"), shard.each) == (True, False, 31)


def test_what_cannot_be_read_is_not_guessed() -> None:
    """A host list that Slurm refuses names nobody; a count that is none is no count."""
    assert conf.hosts("n[1-") == []
    assert conf.number("many") is None
    assert conf.seconds("UNLIMITED") is None
    assert conf.seconds("65534") is None
    assert conf.seconds("30 sec") == 30


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    """The doctor looks at files that somebody broke."""
    made = parse(text)
    conf.nodes(made)
    conf.gres_lines(made)
    for entry in made.entries:
        assert entry.key == entry.pairs[0][0] == entry.key.lower()


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,8}", fullmatch=True).map(str.lower),
        st.from_regex(r"[a-z0-9,/.:=]{1,12}", fullmatch=True),
        min_size=1,
        max_size=5,
    )
)
def test_pairs_come_back_as_written(pairs: dict[str, str]) -> None:
    """Whatever the case of the keys and the blanks between."""
    text = "   ".join(f"{key.upper()} = {value}" for key, value in pairs.items())
    (entry,) = parse(text).entries
    assert dict(entry.pairs) == pairs
