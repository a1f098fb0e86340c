"""`slurm-mig audit` as an administrator and an auditor type it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from slurm_mig.cli import _audit_print as views
from slurm_mig.cli._times import parse_time
from slurm_mig.cli.audit import MOST_DRAWN, _draw
from slurm_mig.errors import UsageFault
from tests.kit.audit_records import held, record
from tests.kit.cli import commands, parsed, refused
from tests.kit.gpus import H100
from tests.kit.hooks import STAMP
from tests.kit.ledgers import edit
from tests.kit.site import remove_tree
from tests.kit.users import cli_as
from tests.kit.ways import later

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.site import Site

pytestmark = pytest.mark.root

#: The last event of a busy node: an Epilog that puts off has one more.
LAST = 7 + later()


@pytest.fixture
def busy(site: Site) -> Site:
    """Two slices of alice's, one of which is gone; one of bob's; a refusal."""
    assert site.prolog(7, STAMP, SLURM_JOB_ACCOUNT="physics").returncode == 0
    assert site.prolog(8, "slurm-mig=1,7g.80gb/0/31:1", SLURM_JOB_USER="bob").returncode == 0
    assert site.epilog(7).returncode == 0
    assert site.prolog(9, STAMP, gpus="1", SLURM_JOB_USER="bob").returncode == 0
    return site


def jobs(done: subprocess.CompletedProcess[str]) -> list[int]:
    return [row["job_id"] for row in parsed(done)]


def collect(site: Site, directory: Path, name: str) -> Path:
    """Copy a node's ledger as docs/audit.md says: `sqlite3 ledger.db ".backup FILE"`."""
    directory.mkdir(exist_ok=True)
    ledger = sqlite3.connect(site.root / "state/ledger.db")
    copy = sqlite3.connect(directory / name)
    ledger.backup(copy)
    copy.close()
    ledger.close()
    return directory / name


@pytest.mark.parametrize("words", [(), ("--check",), ("--totals", "user"), ("--csv",)])
def test_a_node_where_no_hook_has_run(site: Site, words: tuple[str, ...]) -> None:
    """No ledger is no innocence: said, with a code, and none is made."""
    done = site.cli("audit", *words)
    assert (done.returncode, done.stdout) == (16, "")
    assert f"no ledger at {site.root}/state/ledger.db: no hook has run here" in done.stderr
    assert not (site.root / "state").exists()


# -- questions -----------------------------------------------------------------------


def test_filters(busy: Site) -> None:
    """By whom, where, what, how it went, and when."""
    assert jobs(busy.cli("audit", "--json")) == [7, 8, 9]
    row = parsed(busy.cli("audit", "--job", "9", "--json"))[0]
    for words, expected in (
        (["--user", "bob"], [8, 9]),
        (["--account", "physics"], [7]),
        (["--node", "n1"], [7, 8, 9]),
        (["--node", "n2"], []),
        (["--gpu", "1"], [9]),
        (["--gpu", row["gpu_uuid"]], [9]),
        (["--uuid", row["uuid"]], [9]),
        (["--profile", "3g.40gb"], [7, 9]),
        (["--profile", "7g.80gb"], [8]),
        (["--outcome", "refused"], [8]),
        (["--outcome", "active", "--user", "alice"], []),
        (["--at", str(row["from"])], [9]),
        (["--at", "2000-01-01"], []),
        (["--since", str(row["from"])], [9]),
        (["--until", str(row["from"])], [7, 8]),
        (["--gpu", "01"], [9]),
        (["--gpu", row["gpu_uuid"][:13]], [9]),
        (["--gpu", row["gpu_uuid"].swapcase()], [9]),
        (["--uuid", row["uuid"][:13]], [9]),
        (["--uuid", row["uuid"].swapcase()], [9]),
        (["--uuid", row["gpu_uuid"]], [9]),
        (["--profile", "3G.40GB"], [7, 9]),
        (["--profile", "Whole gpu"], []),
    ):
        assert jobs(busy.cli("audit", "--json", *words)) == expected, words


def test_the_table(busy: Site) -> None:
    """Job, user, account, GPU, slots, ids, UUID, times, and why not."""
    lines = busy.cli("audit").stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["JOB", "USER", "GPU", "SLICE", "FROM", "TIME", "OUTCOME"]
    # What went wrong comes first, with its reason below it.
    assert re.search(r"^  8  bob .* 7g\.80gb:1 .* refused$", lines[1])
    assert lines[2].startswith("    job 8: GPU 0")
    assert re.search(r"^  7  alice +0  3g\.40gb@4  20..-..-..T\S+  0:\d\d  released$", lines[-3])
    assert lines[-2].endswith("active")
    assert lines[-1] == "3 in all: 1 refused, 1 released, 1 active"
    header, refusal, first, *_ = busy.cli("audit", "--wide").stdout.splitlines()
    assert "  MIG UUID  " in header
    assert re.search(r" refused: job 8: GPU 0", refusal)
    assert re.search(r"^  7  alice  physics +0  3g\.40gb@4 +\d+/0 +MIG-\S+  20.* released$", first)
    refused(busy.cli("audit", "--wide", "--csv"), 2, "leave it or --csv out")


def test_the_second_run_of_a_job(site: Site) -> None:
    """Is called a run; behind a dot stands a step."""
    for restart in ("0", "1"):
        site.prolog(7, STAMP, SLURM_JOB_RESTART_COUNT=restart)
        site.epilog(7, SLURM_JOB_RESTART_COUNT=restart)
    _, first, second, _ = site.cli("audit").stdout.splitlines()
    assert (first[:9], second[:9]) == ("7        ", "7 run 2  ")


def test_a_report(busy: Site, tmp_path: Path) -> None:
    """A page of one file, by the options of `audit`; what cannot be drawn is refused."""
    out = tmp_path / "week.html"
    done = busy.cli("report", str(out))
    assert (done.returncode, done.stdout) == (0, f"{out}: 2 slices, 1 refusals\n")
    assert "no placement for 7g.80gb:1" in out.read_text("utf-8")
    done = busy.cli("report", str(out), "--user", "bob")
    assert done.stdout == f"{out}: 1 slices, 1 refusals\n"
    refused(busy.cli("report", str(out), "--node", "n9"), 2, "no GPU is on record here")
    text = tmp_path / "sacct.txt"
    text.write_text(
        "Eligible|Start|AllocTRES\n"
        "2026-03-01T12:00:00|2026-03-01T12:10:00|billing=1,gres/mig:3g.40gb=1,gres/mig=1\n"
        "2026-03-01T12:00:00|Unknown|gres/mig:3g.40gb=1\n"
        "2026-03-01T12:00:00|2026-03-01T12:30:00|cpu=1\n"
    )
    assert busy.cli("report", str(out), "--sacct", str(text)).returncode == 0
    row = '<td>3g.40gb</td><td class="number">1</td><td class="number">0:10:00</td>'
    assert row in out.read_text("utf-8")
    text.write_text(
        "\ufeffAllocTRES|Start|Eligible\r\n"
        "gres/mig:3g.40gb=1|2026-03-01T12:00:00|2026-03-01T13:00:00\r\n"
        "gres/mig:3g.40gb=1|2026-03"
    )
    assert busy.cli("report", str(out), "--sacct", str(text)).returncode == 0
    assert row.replace("0:10:00", "0:00:00") in out.read_text("utf-8"), "less than nothing"
    late = busy.cli("report", str(out), "--since", "tomorrow")
    refused(late, 2, "--since is not before now")
    text.write_text("JobID|Start\n")
    refused(busy.cli("report", str(out), "--sacct", str(text)), 2, "no column Eligible")


def test_a_uuid_comes_again(site: Site) -> None:
    """A driver may name the next slice in a place like the last: said, and a time asked for."""
    for job in (7, 8):
        site.prolog(job, STAMP)
        site.epilog(job)
    first, second = parsed(site.cli("audit", "--json"))
    assert first["uuid"] == second["uuid"]
    done = site.cli("audit", "--uuid", first["uuid"])
    assert f"{first['uuid']} was held 2 times" in done.stderr
    assert "--at TIME" in done.stderr
    assert site.cli("audit", "--uuid", first["uuid"], "--at", str(first["from"])).stderr == ""


def test_totals(busy: Site) -> None:
    """Slice-hours and GPU-hours by user, account, profile, node; refusals beside them."""
    rows = {row["user"]: row for row in parsed(busy.cli("audit", "--totals", "user", "--json"))}
    assert (rows["alice"]["jobs"], rows["alice"]["refused"]) == (1, 0)
    assert (rows["bob"]["jobs"], rows["bob"]["refused"]) == (1, 1)
    bob = rows["bob"]
    assert bob["gpu_hours_compute"] == pytest.approx(bob["slice_hours"] * 3 / 7, abs=2e-4)
    assert bob["gpu_hours_memory"] == pytest.approx(bob["slice_hours"] / 2, abs=2e-4)
    for by, key in (("account", "physics"), ("profile", "3g.40gb"), ("node", "n1")):
        lines = busy.cli("audit", "--totals", by).stdout.splitlines()
        assert lines[0].startswith(by.upper())
        assert any(line.startswith(key) for line in lines[1:])
        assert all(len(line) <= 80 for line in lines)
    assert parsed(busy.cli("audit", "--totals", "user", "--until", "2000-01-01", "--json")) == []


def test_csv(busy: Site) -> None:
    """As RFC 4180 has it: the rows of --json, and CRLF at the end of each line."""
    text = busy.cli("audit", "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    truth = parsed(busy.cli("audit", "--json"))
    assert list(rows[0]) == list(truth[0])
    assert [row["uuid"] for row in rows] == [row["uuid"] or "" for row in truth]
    # The text layer of the fixture reads CRLF as one.
    assert len(text.splitlines()) == 4
    assert busy.cli("audit", "--totals", "user", "--csv").stdout.startswith("user,jobs,slices,")


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@x", "a\tb\x1b", 'q"uo,te'])
def test_a_user_is_no_formula(site: Site, name: str) -> None:
    """A spreadsheet takes it for text; quotes and commas do not tear the line."""
    site.prolog(7, STAMP, SLURM_JOB_USER=name)
    (row,) = csv.DictReader(io.StringIO(site.cli("audit", "--csv").stdout))
    told = "".join(char if char.isprintable() else "?" for char in name)
    assert row["user"] == (f"'{told}" if name[0] in "=+-@" else told)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--csv", "--json"], "--csv and --json: choose one"),
        (["--check", "--reconcile"], "--check and --accounting: choose one"),
        (["--totals", "user", "--timeline", "x.svg"], "choose one"),
        (["--totals", "phase"], "'phase' is not one of 'user', 'account', 'profile', 'node'"),
        (["--outcome", "gone"], "'gone' is not one of 'planned', 'active'"),
        (["--heads", "-"], "--heads belongs to --check"),
        (["--at", "2026", "--since", "5"], "--at is a time of its own"),
        (["--at", "soon"], "time 'soon': write 2026-03-01"),
        (["--account", ""], "--account is empty"),
        (["--profile", "\udcff"], "is not UTF-8"),
        (["--ledger", "/nowhere/*.db"], "--ledger '/nowhere/*.db' names no file"),
        (["--timeline", "x.gif"], "allowed endings are .png, .svg, .html"),
        (["--reconcile", "--user", "bob", "--job", "7"], "leave --user, --job out"),
        (["--reconcile", "--tolerance", "-1"], "is not in the range"),
        (["--reconcile", "--tolerance", "inf"], "is not in the range"),
        (["--reconcile", "--tolerance", "nan"], "--tolerance nan: write seconds from 0 to 86400"),
        (["--tolerance", "60"], "--tolerance belongs to --accounting"),
        (["--totals", "user", "--colour-by", "user"], "--colour-by belongs to --timeline"),
        (["--timeline", "x.svg", "--csv"], "--timeline draws and prints no rows: leave --csv out"),
        (["--timeline", "x.svg", "--json"], "leave --json out"),
        (
            ["--check", "--user", "bob", "--job", "7"],
            "--check looks at every event: leave --user, ",
        ),
        (["--check", "--at", "soon"], "leave --at out"),
        (["--gpu", "foo"], "--gpu 'foo': write a device minor (0), a GPU's UUID, or how it begins"),
        (["--gpu", "-1"], "--gpu '-1': write"),
        (["--gpu", "1234567890"], "--gpu '1234567890': write"),
        (["--gpu", "MIG-22f4ac07"], "--gpu 'MIG-22f4ac07': write"),
        (["--uuid", "foo"], "--uuid 'foo': write a UUID as nvidia-smi -L prints it, or how it"),
        (["--uuid", "MIG-"], "--uuid 'MIG-': write"),
        (["--uuid", "MIG-22f4ac07ad"], "--uuid 'MIG-22f4ac07ad': write"),
        (["--uuid", "GPU-5fd4f087-86f3-7a43-b711-4771313afc500"], "313afc500': write"),
        (["--profile", "foo"], "--profile 'foo': write `whole GPU`, or [<c>c.]<g>g.<m>gb"),
        (["--profile", "3g"], "--profile '3g': write"),
        (["--since", "2026"], "seconds since the epoch (1000000000 to 100000000000)"),
        (["--since", "5"], "time '5': write"),
        (["--since", "-1790000000"], "time '-1790000000': write"),
        (["--until", "1e10"], "time '1e10': write"),
        (["--until", "100000000001"], "time '100000000001': write"),
        (["--at", "1969-12-31"], "time '1969-12-31': write 2026-03-01, 2026-03-01T12:30 (years"),
        (["--at", "20261301"], "time '20261301': write"),
    ],
)
def test_mistakes(site: Site, words: list[str], says: str) -> None:
    """One line with the value and what is allowed."""
    refused(site.cli("audit", *words), 2, says)


def test_nothing_to_draw(site: Site) -> None:
    """A ledger without a record."""
    assert site.cli("reconcile", "--no-slurm").returncode == 0
    refused(site.cli("audit", "--timeline", "x.svg"), 2, "no GPU is on record here")


def test_eight_digits_are_a_date() -> None:
    """As seconds they would be a day of 1970, with nothing in it."""
    assert parse_time("20261126") == parse_time("2026-11-26") == parse_time("20261126T00")
    assert parse_time("1790000000") == 1.79e9
    assert parse_time("1790000000.25") == 1.79e9 + 0.25
    assert parse_time("1000000000") == 1e9


def test_csv_is_printed_as_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row: all of them in memory are several times the ledger."""
    seen: list[str] = []

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            seen.append(text.partition(",")[0])
            return len(text)

    def row(item: int) -> dict[str, object]:
        seen.append(f"made {item}")
        return dict.fromkeys(views._COLUMNS, item)

    monkeypatch.setattr(views, "_row", row)
    monkeypatch.setattr("sys.stdout", Out())
    with ExitStack() as stack:
        tell = views.rows(stack, iter([1, 2]), "csv", wide=False)  # type: ignore[arg-type]
        # All is read before the first line is printed.
        assert seen == ["made 1", "made 2"]
        tell()
    assert seen[2:] == ["allocation", "1", "2"]


# -- integrity --------------------------------------------------------------------------


def tamper(site: Site, statements: str, *, anew: bool = False) -> None:
    """As root may, who leaves no trigger missing; `anew` hashes the whole chain again."""
    edit(site.root / "state/ledger.db", statements, anew=anew)


def test_check(busy: Site) -> None:
    """What was looked at; what was found, as a table, JSON and CSV."""
    done = busy.cli("audit", "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"n1: {LAST} events: every event follows from the one before it\n"
    tamper(busy, "UPDATE allocation SET user = 'eve' WHERE job_id = 9")
    done = busy.cli("audit", "--check")
    assert done.returncode == 29
    assert f'owner.user is "eve", by event {LAST} it is "bob"' in done.stdout
    assert len(done.stderr.splitlines()) == 1
    (finding,) = parsed(busy.cli("audit", "--check", "--json"), 29)["findings"]
    assert (finding["kind"], finding["allocation"], finding["node"]) == ("disagrees", 3, "n1")
    (row,) = csv.DictReader(io.StringIO(busy.cli("audit", "--check", "--csv").stdout))
    assert row["kind"] == "disagrees"


def syslog(*done: subprocess.CompletedProcess[str]) -> str:
    """What the hooks wrote, as syslog has it."""
    return "".join(
        f"Nov 22 10:00:00 host slurm-mig[7]: {line.removeprefix('slurm-mig: ')}\n"
        for item in done
        for line in item.stderr.splitlines()
    )


def forget(site: Site) -> None:
    """As long as the marks of its boot are there, these tell, too."""
    (finding,) = parsed(site.cli("audit", "--check", "--json"), 29)["findings"]
    assert finding["kind"] == "set-back"
    remove_tree(site.run)


@pytest.mark.alone("an Epilog that puts off leaves the chain's head to the teardown's line")
def test_roots_edit_shows_against_syslog(site: Site, tmp_path: Path) -> None:
    """Every hook logs the chain's head; who hashes the table anew cannot call that back."""
    log = tmp_path / "log"
    log.write_text(syslog(site.prolog(7, STAMP), site.prolog(8, STAMP), site.epilog(7)))
    agree = site.cli("audit", "--check", "--heads", str(log))
    assert agree.returncode == 0
    assert "they agree with 3 heads of syslog" in agree.stdout
    assert "that text does not say which user wrote a line" in agree.stderr
    tamper(
        site, "UPDATE event SET detail = replace(detail, 'alice', 'carol') WHERE seq = 3", anew=True
    )
    tamper(site, "UPDATE allocation SET user = 'carol' WHERE job_id = 8")
    forget(site)
    assert site.cli("audit", "--check").returncode == 0
    done = site.cli("audit", "--check", "--heads", str(log), "--json")
    (finding,) = parsed(done, 29)["findings"]
    assert (finding["kind"], finding["event"]) == ("rewritten", 3)
    assert "one of the events 3 to 4 was changed since syslog had" in finding["text"]


def test_a_ledger_cut_short_shows_against_syslog(site: Site, tmp_path: Path) -> None:
    """Which the chain alone cannot show."""
    log = tmp_path / "log"
    log.write_text(syslog(site.prolog(7, STAMP), site.prolog(8, STAMP)))
    for table in (
        "event WHERE seq > 2",
        "instance WHERE allocation = 2",
        "allocation WHERE number = 2",
    ):
        tamper(site, f"DELETE FROM {table}")
    forget(site)
    assert site.cli("audit", "--check").returncode == 0
    done = site.cli("audit", "--check", "--heads", str(log))
    assert done.returncode == 29
    assert "syslog has event 4, the ledger ends with event 2" in done.stderr


@pytest.mark.alone("an Epilog that puts off leaves the chain's head to the teardown's line")
def test_heads_that_come_while_they_are_read(site: Site, tmp_path: Path) -> None:
    """The text is read to its end before the ledger is looked at: a busy node is no forgery."""
    text = tmp_path / "text"
    os.mkfifo(text)
    first = syslog(site.prolog(7, STAMP))
    with subprocess.Popen(
        [sys.executable, "-m", "slurm_mig", "audit", "--check", "--heads", str(text)],
        env={"SLURM_MIG_CONFIG": str(site.config), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as audit:  # fmt: skip
        # Opened when the command begins.
        with text.open("w") as lines:
            lines.write(first + syslog(site.epilog(7)))
        told = audit.communicate()[0]
    assert audit.returncode == 0, told
    assert "they agree with 2 heads of syslog" in told


def test_a_log_without_heads(busy: Site, tmp_path: Path) -> None:
    """Proves nothing, and is not taken for proof."""
    log = tmp_path / "log"
    words = "prolog job=7 restart=0 user=alice node=n2 ms=1 head=1:0000000000000000 x"
    log.write_text(f"Nov 22 slurm-mig[7]: {words}\n")
    refused(busy.cli("audit", "--check", "--heads", str(log)), 2, "no line of n1 with a head")


# -- many nodes ----------------------------------------------------------------------


def a_day_earlier(path: Path) -> None:
    """As if it was copied a day ago."""
    for change in (
        "event SET at = at - 86400",
        "allocation SET created = created - 86400, ended = ended - 86400",
    ):
        edit(path, f"UPDATE {change}", anew=True)


def test_an_open_record_of_a_copy_counts_as_far_as_the_copy_tells(
    busy: Site, tmp_path: Path
) -> None:
    """What came after its newest event nobody knows: it may have been released the next minute."""
    path = collect(busy, tmp_path / "all", "n1.db")
    a_day_earlier(path)
    asked = ["audit", "--ledger", str(path)]
    done = busy.cli(*asked, "--totals", "user", "--json")
    rows = {row["user"]: row for row in parsed(done)}
    assert rows["bob"]["slices"] == 1
    assert rows["bob"]["slice_hours"] < 0.1
    says = "1 open records of copied ledgers count until the newest event of their copy, the oldest"
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"slurm-mig: {says} of these at 20")
    drawn = busy.cli(*asked, "--timeline", str(tmp_path / "t.svg"))
    assert says in drawn.stderr
    # In a span before that, and of what is closed, there is nothing to say.
    last = parsed(busy.cli(*asked, "--json"))[-1]["from"]
    for words in (["--until", str(last)], ["--user", "alice"]):
        assert busy.cli(*asked, "--totals", "user", *words).stderr == ""
    assert busy.cli("audit", "--totals", "user").stderr == ""


def test_a_directory_that_may_not_be_read(busy: Site, public_tmp: Path) -> None:
    """Is named: the fleet's bill would lack its node, and nobody would see it."""
    for name in ("n1", "n2"):
        path = collect(busy, public_tmp / name, "ledger.db")
        path.chmod(0o644)
    asked = ("audit", "--json", "--ledger")
    assert cli_as(64001, *asked, f"{public_tmp}/*/ledger.db").returncode == 0
    closed = public_tmp / "n2"
    for mode, pattern in (
        (0o700, "*/ledger.db"),
        (0o700, "*/*.db"),
        (0o711, "*/*.db"),
        (0o700, "n2/*.db"),
        (0o700, "n2/ledger.db"),
    ):
        closed.chmod(mode)
        done = cli_as(64001, *asked, f"{public_tmp}/{pattern}")
        refused(done, 21, f"--ledger: read directory {closed}: Permission denied")


def test_collected_ledgers(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """One question to all; the node is a column; sums go over all."""
    here = tmp_path / "all"
    for name in ("n1", "n2"):
        site = make_site(H100)
        site.prolog(7, STAMP, SLURMD_NODENAME=name)
        site.epilog(7, SLURMD_NODENAME=name)
        collect(site, here, f"{name}.db")
    rows = parsed(site.cli("audit", "--ledger", f"{here}/*.db", "--json"))
    assert [(row["node"], row["job_id"]) for row in rows] == [("n1", 7), ("n2", 7)]
    table = site.cli("audit", "--ledger", f"{here}/*.db").stdout.splitlines()
    assert "NODE" in table[0]
    (total,) = parsed(site.cli("audit", "--ledger", f"{here}/*.db", "--totals", "user", "--json"))
    assert (total["jobs"], total["slices"]) == (1, 2)
    done = site.cli("audit", "--ledger", f"{here}/*.db", "--check")
    each = f"{4 + later()} events"
    assert done.stdout == f"n1: {each}; n2: {each}: every event follows from the one before it\n"
    # A copy of one of them counts once.
    shutil.copy2(here / "n1.db", here / "n1-again.db")
    assert len(parsed(site.cli("audit", "--ledger", f"{here}/*.db", "--json"))) == 2
    assert sorted(path.name for path in here.iterdir()) == ["n1-again.db", "n1.db", "n2.db"]


def test_an_older_copy_of_a_ledger_does_not_speak(busy: Site, tmp_path: Path) -> None:
    """A slice that was released since is neither held nor billed, whichever filter is asked."""
    here = tmp_path / "m3"
    collect(busy, here, "monday.db")
    busy.epilog(9)
    collect(busy, here, "tuesday.db")
    last = rows_of(busy)[9]["to"]
    asked = ["audit", "--ledger", f"{here}/*.db"]
    for words in (["--at", str(last + 5)], ["--since", str(last + 5)], ["--outcome", "active"]):
        done = busy.cli(*asked, *words, "--json")
        assert (parsed(done), done.stderr) == ([], "")
    (row,) = parsed(busy.cli(*asked, "--job", "9", "--json"))
    assert (row["phase"], row["to"]) == ("released", last)
    once = busy.cli("audit", "--totals", "user", "--json")
    assert parsed(busy.cli(*asked, "--totals", "user", "--json")) == parsed(once)


def test_copies_that_contradict_each_other(busy: Site, tmp_path: Path) -> None:
    """Both are whole by themselves: a finding that names both, and a line beside other answers."""
    here = tmp_path / "m3"
    forged = collect(busy, here, "a.db")
    busy.epilog(9)
    collect(busy, here, "b.db")
    edit(forged, "UPDATE event SET at = at + 1 WHERE seq = 5", anew=True)
    assert busy.cli("audit", "--ledger", str(forged), "--check").returncode == 0
    asked = ["audit", "--ledger", f"{here}/*.db"]
    (finding,) = parsed(busy.cli(*asked, "--check", "--json"), 29)["findings"]
    assert (finding["kind"], finding["node"], finding["event"]) == ("contradicts", "n1", 5)
    says = f"{here}/a.db and {here}/b.db are copies of one ledger and differ from event 5 on"
    assert finding["text"] == says
    for words in (["--json"], ["--totals", "node"]):
        done = busy.cli(*asked, *words)
        assert done.returncode == 0
        assert done.stderr == f"slurm-mig: {says}; see `slurm-mig audit --check`\n"


EDITED = [
    f"event SET at = 'foo' WHERE seq = {LAST}",
    "allocation SET user = x'ff' WHERE job_id = 9",
]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--json"],
        ["--csv"],
        ["--totals", "user"],
        ["--timeline", "/never-written.svg"],
        ["--since", "2020-01-01"],
    ],
)
@pytest.mark.parametrize("change", EDITED)
def test_an_edited_ledger_is_named(busy: Site, change: str, words: list[str]) -> None:
    """File and row in one line, whatever is asked; no half of an answer before it."""
    tamper(busy, f"UPDATE {change}")
    path = busy.root / "state/ledger.db"
    row = f"event {LAST}: at" if "at =" in change else "allocation 3"
    done = busy.cli("audit", *words)
    refused(done, 16, f"ledger {path}: {row}")
    assert "`slurm-mig audit --check` says what else differs" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_every_edit_is_printed(busy: Site, form: list[str]) -> None:
    """What is not printable, too."""
    for change in (*EDITED, "allocation SET node = x'ff'", "event SET kind = x'ff' WHERE seq = 4"):
        tamper(busy, f"UPDATE {change}")
    done = busy.cli("audit", "--check", *form)
    assert done.returncode == 29
    assert f"event {LAST} was changed: at is 'foo', which is no time" in done.stdout
    assert len(done.stderr.splitlines()) == 1


def test_triggers_that_are_gone(busy: Site) -> None:
    """A finding, although every event is as it was."""
    edit(busy.root / "state/ledger.db", "UPDATE event SET at = at", guarded=False)
    refused(busy.cli("audit", "--check"), 29, "triggers event_no_delete, event_no_update are gone")


def test_a_node_is_named_in_findings(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """And the file."""
    here = tmp_path / "all"
    for name in ("n1", "n2"):
        site = make_site(H100)
        site.prolog(7, STAMP, SLURMD_NODENAME=name)
        site.epilog(7, SLURMD_NODENAME=name)
        if name == "n2":
            tamper(site, "DELETE FROM event WHERE seq = 2")
        collect(site, here, f"{name}.db")
    done = site.cli("audit", "--ledger", f"{here}/*.db", "--check", "--json")
    (finding,) = parsed(done, 29)["findings"]
    assert (finding["node"], finding["event"]) == ("n2", 2)
    assert finding["text"] == f"{here}/n2.db: event 2 is gone"


def test_collected_ledgers_need_no_root(busy: Site, public_tmp: Path) -> None:
    """But the right to read the file."""
    busy.epilog(9)
    path = collect(busy, public_tmp / "all", "n1.db")
    path.chmod(0o600)
    refused(cli_as(64001, "audit", "--ledger", str(path)), 21, "Permission denied")
    path.chmod(0o644)
    done = cli_as(64001, "audit", "--ledger", str(path), "--json")
    assert [row["job_id"] for row in json.loads(done.stdout)] == [7, 8, 9]


def test_clocks_that_differ(make_site: Callable[..., Site], tmp_path: Path) -> None:
    """Said on stderr, beside the answer: by jobs on both nodes, and by the future."""
    here = tmp_path / "all"
    for name, ahead in (("n1", 0), ("n2", 3600)):
        site = make_site(H100)
        site.prolog(7, STAMP, SLURMD_NODENAME=name)
        site.epilog(7, SLURMD_NODENAME=name)
        tamper(site, f"UPDATE event SET at = at + {ahead}", anew=True)
        tamper(site, f"UPDATE allocation SET created = created + {ahead}, ended = ended + {ahead}")
        collect(site, here, f"{name}.db")
    done = site.cli("audit", "--ledger", f"{here}/*.db", "--json")
    assert len(parsed(done)) == 2
    apart, future = done.stderr.splitlines()
    assert re.search(r"n1 seems 3\d{3} s behind, by 1 jobs on both \(estimate\)", apart)
    assert re.search(r"clock of n2: its newest event is 3\d{3} s in the future", future)


# -- against Slurm -----------------------------------------------------------------------


def sacct(site: Site, *rows: str) -> None:
    commands(site, sacct="cat <<'END'\n" + "\n".join(rows) + "\nEND")


def rows_of(site: Site) -> dict[int, Any]:
    return {row["job_id"]: row for row in parsed(site.cli("audit", "--json"))}


def test_reconcile(busy: Site) -> None:
    """Agreement ends with 0 and says what was compared; a finding ends with 29."""
    held = rows_of(busy)
    tres = "billing=1,cpu=1,gres/mig:3g.40gb=1,gres/mig=1,gres/shard=14,node=1"
    good = [
        f"7|alice|n1|COMPLETED|{held[7]['from']:.0f}|{held[7]['to'] + 1:.0f}|{tres}",
        (
            f"8|bob|n1|REQUEUED|{held[8]['from']:.0f}|{held[8]['from'] + 1:.0f}|"
            "gres/mig:7g.80gb=1,gres/mig=1"
        ),
        f"9|bob|n1|RUNNING|{held[9]['from']:.0f}|Unknown|{tres}",
    ]
    sacct(busy, *good)
    done = busy.cli("audit", "--reconcile", SLURMD_NODENAME="n1")
    assert done.returncode == 0, done.stderr
    assert "3 records of the ledger and 3 runs of the accounting agree" in done.stdout
    assert "clock of n1" in done.stderr

    sacct(busy, good[0], good[1])
    done = busy.cli("audit", "--reconcile", SLURMD_NODENAME="n1")
    assert done.returncode == 29
    assert "unknown-job" in done.stdout
    assert "1 unknown-job" in done.stderr
    data = parsed(busy.cli("audit", "--reconcile", "--json", SLURMD_NODENAME="n1"), 29)
    assert (data["runs"], data["records"], data["nodes"]) == (2, 3, ["n1"])
    assert [(item["kind"], item["job_id"]) for item in data["findings"]] == [("unknown-job", 9)]
    out = busy.cli("audit", "--reconcile", "--csv", SLURMD_NODENAME="n1").stdout
    assert next(csv.DictReader(io.StringIO(out)))["kind"] == "unknown-job"


def test_reconcile_with_a_copy(busy: Site, tmp_path: Path) -> None:
    """It does not know what was released since: said in a line beside the finding."""
    path = collect(busy, tmp_path / "all", "n1.db")
    a_day_earlier(path)
    held = {
        row["job_id"]: row for row in parsed(busy.cli("audit", "--json", "--ledger", str(path)))
    }
    start, tres = held[9]["from"], "gres/mig:3g.40gb=1,gres/mig=1"
    sacct(busy, f"9|bob|n1|COMPLETED|{start:.0f}|{start + 3600:.0f}|{tres}")
    asked = ("audit", "--ledger", str(path), "--reconcile", "--since", str(start + 60))
    done = busy.cli(*asked)
    assert done.returncode == 29
    assert "open-after-end" in done.stdout
    says = "1 open records of copied ledgers are compared beyond the newest event of their copy"
    assert says in done.stderr
    assert says not in busy.cli("audit", "--reconcile").stderr


def test_reconcile_with_an_empty_ledger(site: Site) -> None:
    """A job that was charged on this node all the same is found."""
    import time

    now = time.time()
    sacct(site, f"7|alice|n1|COMPLETED|{now - 900:.0f}|{now - 100:.0f}|gres/mig:3g.40gb=1")
    done = site.cli("audit", "--reconcile", SLURMD_NODENAME="n1")
    assert done.returncode == 29
    assert "charged-without-slice" in done.stdout
    assert site.cli("audit", "--reconcile", SLURMD_NODENAME="n2").returncode == 0


def test_reconcile_without_answer(busy: Site) -> None:
    """Slurm's silence is no agreement."""
    commands(busy, sacct="echo 'Slurm accounting storage is disabled' >&2; exit 1")
    refused(busy.cli("audit", "--reconcile"), 20, "Slurm accounting storage is disabled")


def test_accounting_that_does_not_track_slices(busy: Site) -> None:
    """The setting is named: else every slice looks unpaid."""
    held = rows_of(busy)
    sacct(
        busy,
        *(
            f"{job}|{held[job]['user']}|n1|RUNNING|{held[job]['from']:.0f}|Unknown|cpu=1"
            for job in held
        ),
    )
    done = busy.cli("audit", "--reconcile", SLURMD_NODENAME="n1")
    assert done.returncode == 29
    assert "is AccountingStorageTRES set" in done.stderr


# -- the picture -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.svg", "t.png", "t.html"])
def test_timeline(busy: Site, tmp_path: Path, name: str) -> None:
    """As the ending says; by user or profile."""
    out = tmp_path / name
    done = busy.cli("audit", "--timeline", str(out), "--colour-by", "profile")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: 2 slices, 1 refusals\n"
    assert out.stat().st_size > 1000
    if name != "t.png":
        text = out.read_text("utf-8")
        assert "job 9 (bob)" in text
        assert "slices by profile" in text


def test_a_picture_of_too_much() -> None:
    """Is refused before minutes are spent on it, with what makes it less."""
    found = held(record()) * (MOST_DRAWN + 1)
    with pytest.raises(
        UsageFault, match=f"at most {MOST_DRAWN} .* these are {MOST_DRAWN + 1}: ask"
    ):
        _draw(Path("x.svg"), [], found, {}, "user")
