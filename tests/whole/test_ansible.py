"""docs/ansible.md: YAML that parses, modules that exist, commands that are ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from slurm_mig.cli import VERBS, cli
from slurm_mig.fleet import slurm_files

PAGE = (Path(__file__).parents[2] / "docs/ansible.md").read_text("utf-8")
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
    "slurp": {"src"},
    "assert": {"that", "fail_msg"},
    "replace": {"path", "regexp", "replace"},
    "lineinfile": {"path", "line"},
}
KEYWORDS = {
    "name", "register", "when", "loop", "loop_control", "notify", "changed_when", "failed_when",
    "timeout",
}  # fmt: skip


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


def test_every_generated_file_is_rolled_out() -> None:
    """One that stays behind leaves nodes that Slurm refuses."""
    copied = [
        task["ansible.builtin.copy"].get("src", "")
        for task in TASKS
        if "ansible.builtin.copy" in task
    ]
    loops = [name for task in TASKS for name in task.get("loop", ()) if isinstance(name, str)]
    for name in slurm_files.FILES:
        assert f"slurm/{name}" in copied or name in loops, name


def test_what_changes_slurm_restarts_it() -> None:
    """A changed Gres= or gres.conf holds only then; every handler that is told exists."""
    told = [task["notify"] for task in TASKS if "notify" in task]
    assert told
    names = [task["name"] for task in TASKS]
    for handlers in told:
        assert handlers == ["Restart slurmctld", "Restart slurmd"]
        assert names.index(handlers[0]) < names.index(handlers[1])
    assert "scontrol, reconfigure" not in PAGE


SLURM_CONF = """\
NodeName=gpu1 CPUs=4 Gres=gpu:1
#NodeName=gpu[01-04] CPUs=1
NodeName=gpu[01-04] CPUs=64 gres=gpu:h100:8 State=UNKNOWN # rack 7
NodeName=gpu[01-04]x CPUs=1
NodeName=a30-[01-02] CPUs=32 Reason="to be seen" # old
NodeName=login CPUs=4
"""


def test_gres_lands_on_the_nodes_lines() -> None:
    """On those very lines, in place of an older value, and again without any change."""
    fragment = (Path(__file__).parents[2] / "etc/slurm.conf.mig").read_text()
    (variable,) = (block for block in BLOCKS if isinstance(block, dict))
    (pattern,) = re.findall(r'regex_findall\("(.*?)", multiline', variable["slurm_mig_nodes"])
    nodes = re.findall(pattern, fragment, re.MULTILINE)
    assert [hosts for hosts, _ in nodes] == ["gpu[01-04]", "a30-[01-02]"]
    (task,) = (
        task["ansible.builtin.replace"] for task in TASKS if "ansible.builtin.replace" in task
    )
    text = SLURM_CONF
    for _ in range(2):
        for hosts, gres in nodes:
            # ansible.builtin.replace: re.sub with MULTILINE.
            regexp = task["regexp"].replace("{{ item.0 | regex_escape }}", re.escape(hosts))
            replacement = task["replace"].replace("{{ item.1 }}", gres)
            text = re.sub(regexp, replacement, text, flags=re.MULTILINE)
        lines = text.splitlines()
        assert lines[2] == f"NodeName=gpu[01-04] CPUs=64 Gres={nodes[0][1]} State=UNKNOWN # rack 7"
        assert (
            lines[4] == f'NodeName=a30-[01-02] CPUs=32 Reason="to be seen" Gres={nodes[1][1]} # old'
        )
    for place in (0, 1, 3, 5):
        assert lines[place] == SLURM_CONF.splitlines()[place]


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
    etc = Path(__file__).parents[2] / "etc"
    for name in set(re.findall(r"slurm-mig-\w+\.(?:service|timer)", PAGE)):
        assert (etc / "systemd" / name).exists(), name
    for name in set(re.findall(r"(?:job_submit|cli_filter)\.lua|\w+\.conf\.mig", PAGE)):
        assert (etc / name).exists(), name
