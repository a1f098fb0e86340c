"""docs/quickstart.md as steps: what its commands are, and what a test has to add to them."""

from __future__ import annotations

import shlex
from typing import Any

from tests.kit import pages

#: Commands of the page that are not run here, and why.
LEFT_OUT = {
    "make demo": "tests/cluster/test_demo.py runs it",
    "apt-get install": "make test has installed these packages",
}
#: What a machine without cgroups of its own cannot do: line of slurm.conf -> instead.
NO_CGROUPS = {
    "ProctrackType=proctrack/cgroup": "ProctrackType=proctrack/linuxproc",
    "TaskPlugin=task/cgroup,task/affinity": "TaskPlugin=task/none",
}
#: 22.05 sets up no cgroup unless told to; since 23.11 there is a word that says so.
NO_PLUGIN = "slurmd -V | grep -q ' 22' || echo CgroupPlugin=disabled >/etc/slurm/cgroup.conf"
#: Waits that a reader's own slowness gives: before which command, for what.
PATIENCE = {
    "sinfo": "until sinfo -h -o %T | grep -qx idle; do sleep 0.2; done",
    # squeue says R while the Prolog is still at work: the ledger has three slices of two jobs then.
    "slurm-mig status": 'until slurm-mig audit | grep -q ": .*3 active"; do sleep 0.2; done',
    # What Epilogs have put off is taken down a moment after the jobs are gone from the queue.
    "slurm-mig audit": 'until [ -z "$(squeue -h)" ] && ! slurm-mig audit | grep -qw releasing; '
    "do sleep 0.5; done",
}
#: Steps that tests/kit/machine_inside.py has done already where slurm-mig is this checkout's.
INSTALLED = ("python3 -m venv", "/opt/slurm-mig/bin/pip", "ln -s")

#: A world for `started`: slurm-mig is this checkout's.
SPEC: dict[str, Any] = {"host": "gpu01", "opt": True}


def followed() -> list[pages.Command]:
    """The page's commands that are run."""
    page = pages.TOP / "docs/quickstart.md"
    found = [command for block in pages.blocks(page) for command in block.commands]
    return [item for item in found if not item.text.startswith(tuple(LEFT_OUT))]


def script() -> list[list[str]]:
    """Those by user, with the waiting."""
    steps: list[list[str]] = []
    for command in followed():
        text = command.text
        if "cat >/etc/slurm/slurm.conf" in text:
            for there, instead in NO_CGROUPS.items():
                assert there in text
                text = text.replace(there, instead)
        if text in PATIENCE:
            steps.append(["root", f"timeout 90 sh -c {shlex.quote(PATIENCE[text])}"])
        steps.append([command.user, text])
        if text.endswith("/etc/slurm/cgroup.conf"):
            steps.append(["root", NO_PLUGIN])
    return steps


#: slurmdbd with a database of its own; alice is in account physics.
DATABASE = (
    "mariadb-install-db --no-defaults --user=root --datadir=/var/lib/db --skip-test-db >/dev/null",
    (
        "mariadbd --no-defaults --user=root --datadir=/var/lib/db --socket=/run/db.socket "
        "--skip-networking >/var/log/db.log 2>&1 & "
        "timeout 40 sh -c 'until [ -S /run/db.socket ]; do sleep 0.2; done'"
    ),
    (
        "mariadb --no-defaults --socket=/run/db.socket -e 'CREATE USER slurm@localhost IDENTIFIED "
        "VIA unix_socket; GRANT ALL ON *.* TO slurm@localhost'"
    ),
    (
        "printf '%s\\n' AuthType=auth/munge DbdHost=gpu01 SlurmUser=slurm StorageUser=slurm "
        "StorageType=accounting_storage/mysql LogFile=/var/log/slurm/slurmdbd.log "
        ">/etc/slurm/slurmdbd.conf && chmod 600 /etc/slurm/slurmdbd.conf && "
        "chown slurm: /etc/slurm/slurmdbd.conf && systemctl start munge"
    ),
    (
        "MYSQL_UNIX_PORT=/run/db.socket slurmdbd -D >/dev/null 2>&1 & "
        "timeout 40 sh -c 'until sacctmgr -n list cluster; do sleep 0.3; done' && "
        "sacctmgr -i add cluster trial && sacctmgr -i add account physics && "
        "sacctmgr -i add user alice account=physics"
    ),
)
ACCOUNTED = "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=gpu01\n"


def started(cpus: int = 16, *, database: bool = False) -> list[list[str]]:
    """The page up to a Slurm that takes jobs, on a node that says it has so many CPUs."""
    steps = [step for step in script() if not step[1].startswith(INSTALLED)]
    end = next(number for number, step in enumerate(steps) if step[1] == "slurm-mig doctor")
    more = "SlurmdParameters=config_overrides\n" + (ACCOUNTED if database else "")
    tweak = (
        rf"sed -i 's/^NodeName=gpu01 .* Gres=/NodeName=gpu01 CPUs={cpus} Gres=/' "
        f"/etc/slurm/slurm.conf && printf %s {shlex.quote(more)} >>/etc/slurm/slurm.conf"
    )
    if database:
        # With slurmdbd the fragment's line for it holds.
        tweak += " && sed -n 's/^#Acc/Acc/p' out/slurm.conf.mig >>/etc/slurm/slurm.conf"
    ready = f"timeout 40 sh -c '{PATIENCE['sinfo']}'"
    first = [["root", text] for text in (tweak, *(DATABASE if database else ()))]
    start = next(number for number, step in enumerate(steps) if "daemon-reload" in step[1])
    return [*steps[:start], *first, *steps[start:end], ["root", ready]]
