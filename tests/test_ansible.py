"""docs/ansible.md: YAML that parses, modules that exist, commands that are ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from slurm_mig.cli import VERBS, cli

PAGE = (Path(__file__).parents[1] / "docs/ansible.md").read_text("utf-8")
BLOCKS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
TASKS: list[dict[str, Any]] = [
    task for block in BLOCKS if isinstance(block, list) for task in block
]

#: Of ansible.builtin, with the parameters that are used (docs.ansible.com, ansible.builtin).
MODULES = {
    "file": {"path", "state", "owner", "group", "mode"},
    "copy": {"src", "content", "dest", "owner", "group", "mode"},
    "apt": {"deb", "dpkg_options"},
    "pip": {"name", "virtualenv", "virtualenv_command"},
    "command": {"argv"},
    "systemd": {"name", "enabled", "state", "daemon_reload"},
}
KEYWORDS = {"name", "register", "when", "loop", "notify", "changed_when", "failed_when", "timeout"}


def test_every_block_is_yaml() -> None:
    """Variables, and lists of tasks."""
    assert len(BLOCKS) == 6
    assert len(TASKS) > 10


@pytest.mark.parametrize("task", TASKS, ids=lambda task: str(task["name"]))
def test_tasks(task: dict[str, Any]) -> None:
    """One module each, by its full name, with parameters it has."""
    (module,) = [key for key in task if key.startswith("ansible.builtin.")]
    assert set(task) - {module} <= KEYWORDS
    assert set(task[module]) <= MODULES[module.removeprefix("ansible.builtin.")]
    if "mode" in task[module]:
        # A bare number would be taken as decimal.
        assert isinstance(task[module]["mode"], str)


def argvs() -> list[list[str]]:
    found = [task.get("ansible.builtin.command", {}).get("argv", []) for task in TASKS]
    return [argv[1:] for argv in found if argv and argv[0].endswith("slurm-mig")]


@pytest.mark.parametrize("argv", argvs(), ids=" ".join)
def test_commands_are_understood(argv: list[str]) -> None:
    """Verb and options as the command line has them."""
    verb, *options = argv
    assert verb in VERBS
    command = cli.get_command(click.Context(cli), verb)
    assert command
    command.make_context(verb, list(options), resilient_parsing=True)
    known = {word for item in command.params for word in item.opts}
    assert {word for word in options if word.startswith("-")} <= known


def test_the_names_it_uses_are_shipped() -> None:
    """Units and generated files."""
    etc = Path(__file__).parents[1] / "etc"
    for name in set(re.findall(r"slurm-mig-\w+\.(?:service|timer)", PAGE)):
        assert (etc / "systemd" / name).exists(), name
    for name in set(re.findall(r"(?:job_submit|cli_filter)\.lua|\w+\.conf\.mig", PAGE)):
        assert (etc / name).exists(), name
