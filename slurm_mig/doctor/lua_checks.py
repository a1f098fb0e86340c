"""SM25x: job_submit.lua and cli_filter.lua: there, loaded, ours, and of this fleet. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, WARNING, Problem, check
from slurm_mig.mig.geometry import UNKNOWN_ID
from slurm_mig.slurm import conf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.facts import Facts, LuaFile, PathFacts
    from slurm_mig.fleet.fleet import Fleet

_PAGE: Final = "docs/admin.md: Setting up"
_HEAD: Final = re.compile(r"-- (\S+), written by `slurm-mig generate` (\S+)\. Do not edit\.")
_ROW: Final = re.compile(
    r'^  \["([^"]+)"\] = \{ profile = "([^"]+)", id = (\d+|"-"), weight = (\d+), capacity = (\d+), '
    r"most = (\d+), per = (\d+), types = \{ (.*?) \} \},$",
    re.MULTILINE,
)
_TYPE: Final = re.compile(r'\["([^"]+)"\] = true')
_LOAD: Final = re.compile(r"""dofile\s*\(?\s*["']([^"']+)["']""")

#: Where the table of the fleet ends in a generated file.
_TABLE_END: Final = "local KNOWN = "

#: Profile, then id, weight, capacity, most, per, then GPU types.
Row = tuple[str | int | frozenset[str], ...]


def ours(file: LuaFile) -> PathFacts | None:
    """The generated file among those that are loaded."""
    return next((item for item in file.files if _HEAD.match(item.text)), None)


def written_by(text: str) -> str:
    """The release whose `generate` wrote the file."""
    match = _HEAD.match(text)
    return match[2] if match else ""


def rows(text: str) -> dict[str, Row]:
    """The file's table: gres name -> profile, id, weight, capacity, most, per, types."""
    return {
        name: (profile, *map(_number, numbers), frozenset(_TYPE.findall(types)))
        for name, profile, *numbers, types in _ROW.findall(text)
    }


def _number(text: str) -> int:
    return UNKNOWN_ID if text == '"-"' else int(text)


def expected_rows(fleet: Fleet) -> dict[str, Row]:
    """What the table must say for a fleet."""
    return {
        gres.name: (
            gres.profile,
            gres.profile_id,
            gres.weight,
            gres.capacity,
            gres.most,
            gres.per,
            frozenset(gres.types),
        )
        for gres in fleet.names.values()
    }


def code(text: str) -> str:
    """What follows the table: the part that is the same for every fleet."""
    return text.partition(_TABLE_END)[2].partition("\n")[2]


def loads(text: str) -> list[str]:
    """Files that a script names in dofile()."""
    return _LOAD.findall(text)


@check(
    "SM251",
    ERROR,
    "JobSubmitPlugins without lua",
    needs=("slurm.conf",),
    page=f"slurm.conf(5): JobSubmitPlugins; {_PAGE}",
)
def plugin(facts: Facts) -> Iterator[Problem]:
    """Nothing adds shards or checks a request: slices are free and jobs stop in the TaskProlog."""
    value, seen = facts.setting("JobSubmitPlugins")
    if not conf.has_word(value, "lua", "job_submit/lua"):
        yield Problem(seen, f"JobSubmitPlugins={conf.with_word(value, 'lua')}")


@check(
    "SM252",
    ERROR,
    "job_submit.lua is missing",
    needs=("job_submit.lua",),
    page=f"job_submit_plugins.html: Lua; {_PAGE}",
)
def missing(facts: Facts) -> Iterator[Problem]:
    """slurmctld does not start without it once JobSubmitPlugins names lua."""
    for item in facts.job_submit.files:
        if item.missing:
            yield Problem(f"{item.path}: {item.problem}", f"cp out/job_submit.lua {item.path}")


@check(
    "SM253",
    ERROR,
    "job_submit.lua is not slurm-mig's and does not load it",
    needs=("job_submit.lua",),
    page=_PAGE,
)
def foreign(facts: Facts) -> Iterator[Problem]:
    """Requests pass unchecked: no shards, no stamp, no refusal of what cannot work."""
    files = facts.job_submit.files
    if files and not any(item.missing for item in files) and ours(facts.job_submit) is None:
        yield Problem(
            f"{files[0].path}: no line of `slurm-mig generate` in it",
            'dofile("/etc/slurm/slurm-mig.lua") at its beginning',
        )


@check(
    "SM254",
    ERROR,
    "job_submit.lua counts with other numbers than the GPUs have",
    needs=("job_submit.lua", "slurm.conf", "fleet"),
    page=f"{_PAGE}; slurm-mig generate",
)
def table(facts: Facts) -> Iterator[Problem]:
    """Jobs pay other shards than their slices are worth, or profiles are unknown."""
    yield from _table(facts, facts.job_submit)


def _table(facts: Facts, lua: LuaFile) -> Iterator[Problem]:
    file = ours(lua)
    if file is None or facts.fleet is None:
        return
    have, want = rows(file.text), expected_rows(facts.fleet)
    differ = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
    if differ:
        first = differ[0]
        yield Problem(
            f"{file.path}: {len(differ)} of {len(want)} profiles, such as {first}: "
            f"{_row(have.get(first))}; by the GPUs {_row(want.get(first))}",
            "slurm-mig generate --node ... --out out; cp out/job_submit.lua out/cli_filter.lua "
            f"{file.path.rpartition('/')[0]}",
        )


def _row(row: Row | None) -> str:
    if row is None:
        return "not there"
    return f"id {row[1]}, weight {row[2]} of {row[3]}, at most {row[4]} on a GPU"


@check(
    "SM255",
    ERROR,
    "job_submit.lua is not of this release, or was edited",
    needs=("job_submit.lua",),
    page=f"{_PAGE}; slurm-mig generate",
)
def stale(facts: Facts) -> Iterator[Problem]:
    """Its rules and the hooks' are not made for each other."""
    yield from _stale(facts, facts.job_submit, "job_submit.lua")


@check(
    "SM256",
    ERROR,
    "job_submit.lua can be changed by others than root and SlurmUser",
    needs=("job_submit.lua",),
    page="slurm.conf(5): FILE AND DIRECTORY PERMISSIONS; docs/security.md",
)
def writable(facts: Facts) -> Iterator[Problem]:
    """Whoever can write it can take slices for nothing, or run code as SlurmUser."""
    for item in facts.job_submit.files:
        if not item.missing and item.mode & 0o022:
            yield Problem(f"{item.path}: mode {item.mode:04o}", f"chmod go-w {item.path}")


@check(
    "SM261",
    WARNING,
    "CliFilterPlugins without cli_filter/lua",
    needs=("slurm.conf",),
    page=f"slurm.conf(5): CliFilterPlugins; {_PAGE}",
)
def cli_plugin(facts: Facts) -> Iterator[Problem]:
    """Steps that ask for a part of their job have no shards: under ConstrainDevices no GPU."""
    value, seen = facts.setting("CliFilterPlugins")
    if not conf.has_word(value, "lua", "cli_filter/lua"):
        yield Problem(seen, f"CliFilterPlugins={conf.with_word(value, 'cli_filter/lua')}")


@check(
    "SM262",
    WARNING,
    "cli_filter.lua is missing",
    needs=("cli_filter.lua",),
    page=_PAGE,
)
def cli_missing(facts: Facts) -> Iterator[Problem]:
    """It is read where users submit; without it their steps ask for no shards."""
    for item in facts.cli_filter.files:
        if item.missing:
            yield Problem(f"{item.path}: {item.problem}", f"cp out/cli_filter.lua {item.path}")


@check(
    "SM263",
    WARNING,
    "cli_filter.lua is not slurm-mig's, not of this release, or was edited",
    needs=("cli_filter.lua",),
    page=f"{_PAGE}; slurm-mig generate",
)
def cli_stale(facts: Facts) -> Iterator[Problem]:
    """Requests are not completed as job_submit.lua wants them."""
    files = facts.cli_filter.files
    if files and not any(item.missing for item in files) and ours(facts.cli_filter) is None:
        yield Problem(
            f"{files[0].path}: no line of `slurm-mig generate` in it",
            "load slurm-mig's by dofile, as with job_submit.lua",
        )
    yield from _stale(facts, facts.cli_filter, "cli_filter.lua")


@check(
    "SM264",
    WARNING,
    "cli_filter.lua counts with other numbers than the GPUs have",
    needs=("cli_filter.lua", "slurm.conf", "fleet"),
    page=f"{_PAGE}; slurm-mig generate",
)
def cli_table(facts: Facts) -> Iterator[Problem]:
    """job_submit.lua refuses shards that do not equal the weight: such requests fail."""
    yield from _table(facts, facts.cli_filter)


def _stale(facts: Facts, lua: LuaFile, name: str) -> Iterator[Problem]:
    file = ours(lua)
    if file is None:
        return
    version, same = written_by(file.text), code(file.text) == facts.lua_code.get(name)
    if same and version == facts.release:
        return
    edited = " and edited since" if version == facts.release else ""
    yield Problem(
        f"{file.path}: written by slurm-mig {version}{edited}; this is {facts.release}",
        f"slurm-mig generate --node ... --out out; cp out/{name} {file.path}",
    )
