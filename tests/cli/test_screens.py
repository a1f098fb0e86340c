"""What a terminal of 80 columns shows; colour there and nowhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from slurm_mig.cli import _cluster, _print
from slurm_mig.errors import UsageFault
from slurm_mig.fleet.overview import GpuView, NodeView
from slurm_mig.slurm.protocol import JobOnNode
from tests.kit.gpus import A30, H100
from tests.kit.hooks import STAMP

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site


def on_a_terminal(site: Site, *words: str, columns: int = 80, **environ: str) -> str:
    """What a command writes to a terminal."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    running = subprocess.Popen(
        [sys.executable, "-m", "slurm_mig", *words],
        env={"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin", "TERM": "xterm"}
        | environ,
        stdin=subprocess.DEVNULL,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    text = b""
    # The end of what was written there is an error (pty(7)).
    with suppress(OSError):
        while more := os.read(ours, 65536):
            text += more
    os.close(ours)
    running.wait(30)
    return text.decode().replace("\r\n", "\n")


@pytest.mark.root
def test_a_line_a_gpu(make_site: Callable[..., Site]) -> None:
    """Who has which slots, what fits, and the worst that can be said."""
    site = make_site(H100, H100, A30)
    site.prolog(7, STAMP)
    site.prolog(8, "slurm-mig=1,7g.80gb/0/31:1", gpus="1")
    lines = site.cli("status", "--brief").stdout.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["0", "H100", "80GB", "HBM3", "[....3333]", "7", "4g.40gb", "in", "use"],
        ["1", "H100", "80GB", "HBM3", "[77777777]", "8", "nothing", "full"],
        ["2", "A30", "[....]", "-", "4g.24gb", "free"],
    ]
    # Colour is for a terminal, and for one whose user wants it.
    shown = on_a_terminal(site, "status", "--brief")
    assert "\x1b[32mfree" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines() == lines
    assert on_a_terminal(site, "status", "--brief", NO_COLOR="1").splitlines() == lines
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.root
@pytest.mark.parametrize("words", [["gpus"], ["status"], ["-h"], ["simulator", "show", "-h"]])
def test_eighty_columns(site: Site, words: list[str]) -> None:
    """Nothing is wider; -h is help everywhere."""
    done = site.cli(*words)
    assert done.returncode == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.root
def test_forty_columns(site: Site) -> None:
    """Sentences are folded to a narrow terminal, ids stay whole; that Slurm is away is a line."""
    shown = on_a_terminal(site, "status", columns=40, NO_COLOR="1")
    fits = shown[shown.index("  fits now:") :].partition("\n\n")[0]
    assert all(len(line) <= 40 for line in fits.splitlines())
    assert "7g.80gb x1" in fits
    told = on_a_terminal(site, "job", "7", columns=40, NO_COLOR="1").splitlines()
    assert told[0] == "job 7: Slurm does not answer"
    assert len([line for line in told if line.startswith("slurm-mig:")]) == 1
    assert len(told[-1]) < 200


def test_long_names_are_cut_as_slurm_cuts_them() -> None:
    """What may be cut, as far as need be, and with a plus."""
    columns = _print.Columns(("JOB", "USER", "WHAT"), cut=("USER",))
    row = ("7", "u" * 70, "w" * 30)
    columns.learn(row)
    columns.fit()
    assert columns.line(row) == f"  7  {'u' * 42}+  {'w' * 30}"


def test_what_takes_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, from the first second on; then the line is gone again."""
    said: list[bytes] = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.write", lambda _, text: said.append(text))
    with _print.working("asking Slurm"):
        pass
    assert said == [b""]
    with _print.working("asking Slurm"):
        time.sleep(1.1)
    assert said[1:] == [b"\rasking Slurm: 1 s ", b"\r\x1b[K"]


def node(name: str, *jobs: JobOnNode, state: str = "IDLE", used: int = 0) -> NodeView:
    gpus = (GpuView(0, "h100", (used, 31), jobs), GpuView(1, "h100", (0, 31), ()))
    room = {"1g.10gb": 7 - used // 4, "7g.80gb": 1}
    return NodeView(name, frozenset({state}), "", gpus, (), room)


def job(user: str, **gres: int) -> JobOnNode:
    return JobOnNode(
        7, 1, user, "n1", None, {k.replace("__", ":"): v for k, v in gres.items()}, (0,)
    )


VIEWS = [
    node("n1", job("alice", mig__3g=1), used=14),
    node("n2", job("bob", gpu__h100=1)),
    node("n3", state="DRAIN"),
]


def test_hundreds_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, a GPU that a job has as a whole among them."""
    _cluster._print_lines(VIEWS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["n1", "4.", "1", "7g.80gb", "h100", "idle"],
        ["n2", "#.", "1", "7g.80gb", "h100", "idle"],
        ["n3", "..", "0", "-", "h100", "drain"],
    ]
    assert lines[4] == "3 nodes, 1 of them take no jobs"
    long = [node(f"{'n' * 40}{number}") for number in range(2)]
    _cluster._print_lines(long)
    shown = capsys.readouterr().out.split()
    assert [view.name for view in long] == [word for word in shown if word[:2] == "nn"]
    assert "taken as a whole" in "\n".join(_cluster._lines(VIEWS[1]))
    assert "job 7 run 2 of bob" in "\n".join(_cluster._lines(VIEWS[1]))


def test_filters() -> None:
    """By name, state, user and room."""

    def names(**only: str) -> list[str]:
        return [view.name for view in _cluster.Chosen(**only).among(VIEWS)]

    assert names(nodes="n[1-2]") == ["n1", "n2"]
    assert names(state="drain") == ["n3"]
    assert names(state="drained") == ["n3"]
    assert names(state="draining") == names(state="down") == []
    with pytest.raises(UsageFault, match="--state drian: .*did you mean drain"):
        names(state="drian")
    with pytest.raises(UsageFault, match="--state is empty"):
        names(state="")
    assert names(user="bob") == ["n2"]
    assert names(fits="7g.80gb") == ["n1", "n2"]
    with pytest.raises(UsageFault, match="did you mean 7g.80gb"):
        names(fits="7g.80g")
    with pytest.raises(UsageFault, match="n9 is no node with slices"):
        names(nodes="n9")
