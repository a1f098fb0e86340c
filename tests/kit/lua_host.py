"""Runs the generated Lua plugins as Slurm would: same entry points, same kind of tables.

Only for what needs thousands of requests; tests/cluster asks the real slurmctld.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from slurm_mig.fleet import slurm_files
from slurm_mig.fleet.fleet import Fleet, NodeGroup
from slurm_mig.fleet.resolve import fleet_model
from slurm_mig.mig import catalog

#: Slurm is built against any of these.
VERSIONS = ("lua51", "lua53", "lua54")

_SLURM = """
slurm = { SUCCESS = 0, ERROR = -1, said = {}, logged = {} }
function slurm.log_user(fmt, ...) table.insert(slurm.said, string.format(fmt, ...)) end
function slurm.log_error(fmt, ...) table.insert(slurm.logged, string.format(fmt, ...)) end
"""


def fleet(*nodes: tuple[str, ...], parts: bool = False) -> Fleet:
    groups = [
        NodeGroup(f"n{place}", tuple(fleet_model(catalog.find(name)) for name in gpus))
        for place, gpus in enumerate(nodes)
    ]
    return Fleet(tuple(groups), compute_parts=("*",) if parts else ())


class Host:
    """A Lua state with one plugin loaded."""

    def __init__(self, version: str, text: str) -> None:
        self.lua = import_module(f"lupa.{version}").LuaRuntime(unpack_returned_tuples=True)
        self.lua.execute(_SLURM)
        self.lua.execute(text)

    def call(self, name: str, *tables: dict[str, Any]) -> tuple[int, list[dict[str, Any]], str]:
        """Call an entry point; returns its code, the tables as changed, and what users read."""
        g = self.lua.globals()
        arguments = [self.lua.table_from(table, recursive=True) for table in tables]
        g.slurm.said = self.lua.table()
        code = g[name](*arguments, *([None] * (4 - len(arguments))))
        said = " ".join(g.slurm.said.values())
        return code, [dict(item.items()) for item in arguments], said

    def submit(self, **job: Any) -> tuple[int, dict[str, Any], str]:
        job.setdefault("shared", 65534)
        code, (after,), said = self.call("slurm_job_submit", job)
        return code, after, said

    def submit_to(self, partitions: dict[str, Any], **job: Any) -> tuple[int, dict[str, Any], str]:
        job.setdefault("shared", 65534)
        code, (after, _), said = self.call("slurm_job_submit", job, partitions)
        return code, after, said

    def modify_in(
        self, partitions: dict[str, Any], record: dict[str, Any], **change: Any
    ) -> tuple[int, dict[str, Any], str]:
        code, (after, *_), said = self.call("slurm_job_modify", change, record, partitions)
        return code, after, said

    def modify(self, record: dict[str, Any], **change: Any) -> tuple[int, dict[str, Any], str]:
        code, (after, _), said = self.call("slurm_job_modify", change, record)
        return code, after, said


def job_submit(version: str, of: Fleet) -> Host:
    return Host(version, slurm_files.lua(of, "job_submit.lua"))


def cli_filter(version: str, of: Fleet) -> Host:
    return Host(version, slurm_files.lua(of, "cli_filter.lua"))
