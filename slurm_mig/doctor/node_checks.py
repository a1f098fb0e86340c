"""SM3xx and SM5xx: hooks as installed, our configuration, directories and files. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, WARNING, Problem, check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slurm_mig.doctor.facts import Facts, HookFacts, PathFacts

_NEEDS: Final = ("slurm.conf", "node")
_SETTING: Final = re.compile(r"^(python|config|run|package)=.*$", re.MULTILINE)

#: Modes that paths of ours must not exceed, by name in Facts.paths (trust.py, ledger.py, locks.py).
MODES: Final = {
    "state directory": 0o700,
    "ledger": 0o600,
    "run directory": 0o755,
    "locks directory": 0o700,
}


def _mark(key: str) -> str:
    return f"# slurm-mig {key} for slurm.conf"


def is_ours(hook: HookFacts, file: PathFacts) -> bool:
    """Whether a script is the hook that slurm-mig installs."""
    return _mark(hook.key) in file.text


def leads_to_ours(hook: HookFacts, file: PathFacts) -> bool:
    """Whether a script is ours, or a site's own that calls it."""
    name = {"Prolog": "prolog", "Epilog": "epilog"}.get(hook.key, "task_prolog")
    call = re.search(rf"^[^#\n]*slurm-mig\S*/{name}\b", file.text, re.MULTILINE)
    return is_ours(hook, file) or call is not None


@check(
    "SM301",
    ERROR,
    "a hook of slurm.conf is missing on this node",
    needs=_NEEDS,
    page="slurm.conf(5): Prolog; docs/admin.md: Setting up",
)
def missing(facts: Facts) -> Iterator[Problem]:
    """A missing Prolog or an empty directory of them drains the node with the first job."""
    for hook in facts.hooks:
        for file in hook.files:
            if file.missing:
                yield Problem(f"{hook.where}: {file.path}: {file.problem}", "slurm-mig install")
        if not hook.files:
            yield Problem(f"{hook.where}: nothing matches", "slurm-mig install")


@check(
    "SM302",
    ERROR,
    "a hook cannot be executed",
    needs=_NEEDS,
    page="prolog_epilog.html; docs/admin.md: Setting up",
)
def executable(facts: Facts) -> Iterator[Problem]:
    """Any such file that the pattern matches, a README too, fails the Prolog: the node drains."""
    for hook in facts.hooks:
        for file in hook.files:
            if not file.missing and not file.executable:
                yield Problem(
                    f"{hook.where}: {file.path} has mode {file.mode:04o}",
                    f"chmod 0755 {file.path}, or move it away",
                )


@check(
    "SM303",
    ERROR,
    "a hook of slurm.conf is another script than slurm-mig's",
    needs=_NEEDS,
    page="slurm.conf(5): Prolog, Epilog, TaskProlog; docs/admin.md: Setting up",
)
def overridden(facts: Facts) -> Iterator[Problem]:
    """There is one TaskProlog, and of hooks that nobody runs none does its work."""
    for key in ("Prolog", "Epilog", "TaskProlog"):
        hooks = [hook for hook in facts.hooks if hook.key == key]
        files = [(hook, file) for hook in hooks for file in hook.files if not file.missing]
        if files and not any(leads_to_ours(hook, file) for hook, file in files):
            shown = ", ".join(file.path for _, file in files)
            yield Problem(
                f"{hooks[-1].where}: {shown}",
                f"call /etc/slurm-mig/hooks/{key.lower().replace('taskp', 'task_p')} from it, "
                "or name it in slurm.conf",
            )


@check(
    "SM304",
    ERROR,
    "an installed hook is not of this release, or was edited",
    needs=_NEEDS,
    page="docs/admin.md: Setting up",
)
def stale(facts: Facts) -> Iterator[Problem]:
    """Scripts and program are not made for each other."""
    for hook in facts.hooks:
        for file in hook.files:
            shipped = facts.shipped.get(hook.key, "")
            if is_ours(hook, file) and _SETTING.sub("", file.text) != _SETTING.sub("", shipped):
                yield Problem(
                    f"{file.path} differs from that of slurm-mig {facts.release}",
                    reinstalled(file.path),
                )


def reinstalled(path: str) -> str:
    """The command that writes a hook anew; all three in a site's prolog.d would be run as one."""
    folder, _, name = path.rpartition("/")
    option = {"00-slurm-mig.sh": "--prolog-d", "zz-slurm-mig.sh": "--epilog-d"}.get(name, "--hooks")
    return f"slurm-mig install --only hooks {option} {folder}"


@check(
    "SM305",
    ERROR,
    "a hook can be changed by others than root",
    needs=_NEEDS,
    page="slurm.conf(5): FILE AND DIRECTORY PERMISSIONS; docs/security.md",
)
def hook_owner(facts: Facts) -> Iterator[Problem]:
    """slurmd runs it as root: who can write it, or a directory above it, is root."""
    for hook in facts.hooks:
        for file in hook.files:
            yield from _unsafe(file)


@check(
    "SM306",
    ERROR,
    "the Python of an installed hook cannot be run",
    needs=_NEEDS,
    page="docs/admin.md: Setting up",
)
def interpreter(facts: Facts) -> Iterator[Problem]:
    """Every job with a GPU fails and drains the node."""
    for hook, python in facts.pythons.items():
        if python.missing or not python.executable:
            why = python.problem or f"mode {python.mode:04o}"
            yield Problem(f"{hook}: {python.path}: {why}", "slurm-mig install, from its new place")


@check(
    "SM307",
    WARNING,
    "an installed hook reads another configuration than this one",
    needs=(*_NEEDS, "config"),
    page="docs/admin.md: Configuration",
)
def other_config(facts: Facts) -> Iterator[Problem]:
    """What the doctor and the other commands say is then not about what jobs meet."""
    for hook, path in facts.hook_configs.items():
        if facts.config and path != facts.config.path:
            yield Problem(
                f"{hook} reads {path}, the doctor {facts.config.path}",
                f"slurm-mig --config {path} doctor, or slurm-mig install",
            )


@check(
    "SM308",
    WARNING,
    "hooks and units are of two installations",
    needs=_NEEDS,
    page="docs/admin.md: Packages",
)
def two_installations(facts: Facts) -> Iterator[Problem]:
    """One of them is older, and may not know what the other writes; a removal breaks the rest."""
    used: dict[str, list[str]] = {}
    # One that is gone is SM306's and SM705's.
    for hook, python in facts.pythons.items():
        if not python.missing:
            used.setdefault(python.path, []).append(hook)
    for unit in facts.units:
        if unit.program and not unit.fault:
            used.setdefault(unit.program, []).append(unit.path)
    if len(used) > 1:
        yield Problem(
            "; ".join(f"{program} runs {', '.join(files)}" for program, files in used.items()),
            "`slurm-mig install` of the one that stays, then take the other away",
        )


@check(
    "SM309",
    WARNING,
    "the hooks' helper takes no hooks",
    needs=(*_NEEDS, "config"),
    page="docs/admin.md: A helper",
)
def deaf_helper(facts: Facts) -> Iterator[Problem]:
    """Each hook loads everything itself, as without it, after up to half a second of waiting."""
    if facts.deaf_helper:
        yield Problem(
            f"{facts.deaf_helper}: nobody answers, or for another configuration or version",
            "systemctl restart slurm-mig-warm, or remove the socket",
        )


def _unsafe(file: PathFacts) -> Iterator[Problem]:
    """Not root's, writable by others, or in a directory that is."""
    if file.missing:
        return
    if file.uid != 0:
        yield Problem(f"{file.path}: owned by uid {file.uid}", f"chown root:root {file.path}")
    elif file.mode & 0o022:
        yield Problem(f"{file.path}: mode {file.mode:04o}", f"chmod go-w {file.path}")
    elif file.unsafe_parent:
        above = file.unsafe_parent
        yield Problem(
            f"{file.path}: {above} is not root's alone to change",
            f"chown root:root {above}; chmod go-w {above}",
        )


# -- our own files ----------------------------------------------------------------


@check(
    "SM501",
    ERROR,
    "the configuration is missing or wrong",
    needs=("node",),
    page="docs/admin.md: Configuration",
)
def config(facts: Facts) -> Iterator[Problem]:
    """Every hook fails and drains the node."""
    unsafe = [*config_owner(facts)]
    # Root reads no configuration that others can change: SM502 says so.
    if facts.config_fault and not unsafe:
        yield Problem(facts.config_fault, "correct the key that it names; etc/config.toml has all")


@check(
    "SM502",
    ERROR,
    "the configuration can be changed by others than root",
    needs=("node",),
    page="docs/security.md",
)
def config_owner(facts: Facts) -> Iterator[Problem]:
    """Hooks run as root what it says."""
    if "configuration" in facts.paths:
        yield from _unsafe(facts.paths["configuration"])


@check(
    "SM503",
    ERROR,
    "a directory or file of slurm-mig's is open to others",
    needs=("node", "config"),
    page="docs/security.md; docs/admin.md: What it touches",
)
def private(facts: Facts) -> Iterator[Problem]:
    """Users could read or change records, or stall hooks through their locks."""
    for name, most in MODES.items():
        path = facts.paths.get(name)
        if path is None or path.missing:
            continue
        if path.uid == 0 and path.mode & ~most:
            yield Problem(
                f"{name} {path.path}: mode {path.mode:04o}", f"chmod {most:04o} {path.path}"
            )
        else:
            yield from _unsafe(path)


@check(
    "SM504",
    WARNING,
    "users cannot reach the directory of their steps' leases",
    needs=("node", "config"),
    page="docs/jobs.md: Tasks, steps and containers",
)
def leases(facts: Facts) -> Iterator[Problem]:
    """Used where root may not mount: a Prolog fails without it, steps that ask for a part stop."""
    path = facts.paths.get("directory of leases")
    if path is None:
        return
    if path.missing:
        yield Problem(f"{path.path}: {path.problem}", "set `leases` in the [tasks] table")
    elif not path.mode & 0o001:
        yield Problem(f"{path.path}: mode {path.mode:04o}", f"chmod o+x {path.path}")


@check(
    "SM506",
    ERROR,
    "a file system that hooks write to is full",
    needs=("node", "config"),
    page="docs/admin.md: Who is at fault",
)
def full(facts: Facts) -> Iterator[Problem]:
    """Without room for a job's files each job is refused and requeued, for the ledger it drains."""
    for name in ("state directory", "run directory", "directory of leases"):
        path = facts.paths.get(name)
        if path is not None and path.lacking:
            yield Problem(f"{name} {path.path}: {path.lacking}", f"make room: df {path.path}")


@check(
    "SM505",
    ERROR,
    "the configuration names a GPU that the driver does not show",
    needs=("node", "config", "driver"),
    page="docs/admin.md: Configuration",
)
def minors(facts: Facts) -> Iterator[Problem]:
    """Hooks that need it fail and drain the node."""
    if facts.config is None or facts.driver_faults:
        return
    here = {gpu.minor for gpu in facts.gpus}
    for key, listed in (("managed", facts.config.managed), ("order", facts.config.order)):
        gone = [str(minor) for minor in listed or () if minor not in here]
        if gone:
            yield Problem(
                f"{facts.config.path}: [gpus] {key} names {', '.join(gone)}; the driver shows "
                f"minors {', '.join(map(str, sorted(here))) or 'none'}",
                f"correct [gpus] {key}, or see dmesg if a GPU fell off the bus",
            )


@check(
    "SM507",
    ERROR,
    "the ledger cannot be used",
    needs=("machine", "config"),
    page="docs/troubleshooting.md: The ledger; docs/upgrade.md: Upgrading",
)
def ledger(facts: Facts) -> Iterator[Problem]:
    """Every hook fails and drains the node; what ended jobs had stays."""
    if facts.ledger_fault:
        cause, _, remedy = facts.ledger_fault.partition("; ")
        yield Problem(cause, remedy or "docs/troubleshooting.md, The ledger")


@check(
    "SM508",
    ERROR,
    "the ledger was set back, or is gone",
    needs=("machine", "config"),
    page="docs/audit.md: Putting a copy back",
)
def set_back(facts: Facts) -> Iterator[Problem]:
    """Every hook fails and drains the node: whose slices there are it does not say."""
    if facts.ledger_behind:
        yield Problem(
            facts.ledger_behind,
            "put back the ledger that was there, or `slurm-mig reconcile --accept-older-ledger`",
        )


@check(
    "SM509",
    WARNING,
    "the table of slots is not used",
    needs=("machine", "config"),
    page="docs/packing.md: A table for your own jobs",
)
def slot_table(facts: Facts) -> Iterator[Problem]:
    """Hooks then choose slots by `fits`: no job fails, and what was learned brings nothing."""
    if facts.config is None:
        return
    learn = "make one for this GPU model with `slurm-mig learn`, as root"
    if facts.config.table.fault:
        cause, _, remedy = facts.config.table.fault.partition("; ")
        yield Problem(f"[packing] policy: {cause}", remedy or learn)
    for name in facts.config.table.lacks:
        yield Problem(f"[packing] policy: the table has no layouts of {name}", learn)
