"""docs/rollout.md as an administrator follows it: every command in order, every checkpoint held."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import pytest

from tests.cluster.accounted import MISSING
from tests.kit import machine, pages, quickstart

pytestmark = pytest.mark.skipif(not (pages.TOP / ".ci").exists(), reason="an sdist has no .ci/")

PAGE = pages.TOP / "docs/rollout.md"
#: Commands of the page that are not run here: tests/cluster/test_demo.py and test_quickstart.py do.
ELSEWHERE = ("make demo", *quickstart.INSTALLED)
#: Needs a database of the machine's.
ACCOUNTS = ("slurm-mig audit --accounting", "sed -n 's/^#Acc")

#: Static MIG, as something else than slurm-mig made it: in no record of the node's ledger.
STATIC = (
    (
        'sed \'$a[paths]\\nstate = "/tmp/other"\\nrun = "/run/other"\' '
        "/etc/slurm-mig/config.toml >/tmp/other.toml"
    ),
    "SLURM_MIG_CONFIG=/tmp/other.toml slurm-mig enable --gpu all",
    "SLURM_MIG_CONFIG=/tmp/other.toml slurm-mig create 3g.40gb",
)
#: What a reboot does here: slurmd ends, instances and marks are gone, and slurmd, which systemd
#: would start, says that the node was booted (-b).
REBOOT = """cat >/usr/local/sbin/trial-reboot <<END
#!/bin/sh
export PATH=$PATH
exec setsid -f sh -c 'systemctl stop slurmd slurm-mig-boot
    slurm-mig simulator reboot /srv/mig; rm -rf /run/slurm-mig
    echo SLURMD_OPTIONS=-b >>/etc/default/slurmd; systemctl start slurmd' >/dev/null 2>&1
END
chmod 755 /usr/local/sbin/trial-reboot"""

EMPTY = "slurm-mig status --brief | grep -qF '[........]'"
#: Waits that a reader's own slowness gives: section and command before which, for what.
PATIENCE = {
    (2, "squeue"): "sinfo -h -o %T | grep -qx drained",
    (7, "srun"): "sinfo -h -o %T | grep -qx reserved",
    # squeue says R while the Prolog is still at work.
    (7, "slurm-mig job"): 'slurm-mig audit | grep -q ": .*1 active"',
    (7, "slurm-mig status"): f'[ -z "$(squeue -h)" ] && {EMPTY}',
    (9, "sinfo"): f"sinfo -h -o %T | grep -qx reserved && {EMPTY}",
}
#: What a checkpoint promises: section and command -> a line that is there, one that is not.
NEVER = r"(?!)"
"""No line at all."""
PROMISED = {
    (2, "squeue"): (r" *JOBID", r".*gpu01"),
    (3, "slurm-mig install --dry-run"): (r"same ", r"new |changed "),
    (3, "slurm-mig gpus"): (r" +0 +0  NVIDIA H100.* yes", r" +[01] +[01]  NVIDIA H100.* no\b"),
    (4, "slurm-mig gpus"): (r" +0 +0  NVIDIA H100.* on", r".*after a reset"),
    (4, "slurm-mig status"): (r".*\[\.{8}\]", r".*\[.*[^.\]].*\]"),
    (5, "slurm-mig doctor"): (r"0 errors", r"ERRORS"),
    (6, "slurm-mig doctor"): (r"0 errors", r"ERRORS"),
    (6, "scontrol show"): (r" *Gres=.*mig:", NEVER),
    (6, "srun"): (r".*known: 1g.10gb", NEVER),
    (7, "srun"): (r"2g.20gb on GPU-", NEVER),
    (7, "slurm-mig job"): (r".*3g.40gb", NEVER),
    (7, "slurm-mig verify"): (r"0 of \d+ tries failed", NEVER),
    (7, "slurm-mig status"): (r".*\[\.{8}\]", r".*\[.*[^.\]].*\]"),
    (9, "sinfo"): (r"gpu\S* .* (idle|resv) ", NEVER),
    (9, "slurm-mig doctor"): (r"0 errors", r"ERRORS"),
    (9, "slurm-mig status"): (r".*\[\.{8}\]", r".*\[.*[^.\]].*\]"),
    (10, "grep"): (r"slurm_mig_info\{version=.*\} 1", NEVER),
    (11, "slurm-mig generate fleet.toml --out out --check"): (r"\+.*gpu\[02-04\]", NEVER),
    (11, "slurm-mig status"): (r"gpu01 ", r".*drain"),
}
#: Exit codes other than 0.
CODES = {(6, "srun"): 1, (11, "slurm-mig generate fleet.toml --out out --check"): 24}


@dataclass(frozen=True, slots=True)
class Step:
    """A statement of a user's; with the section that it is from, where it is one of the page's."""

    user: str
    text: str
    section: int = 0

    def among(self, table: dict[tuple[int, str], object]) -> tuple[int, str] | None:
        """The longest key that this is."""
        found = [key for key in table if key[0] == self.section and self.text.startswith(key[1])]
        return max(found, key=lambda key: len(key[1]), default=None)


def before() -> list[Step]:
    """A Slurm that has run for a while without us, on the quick start's node with static MIG."""
    page = [item.text for item in quickstart.followed()]
    (conf,) = [text for text in page if "cat >/etc/slurm/slurm.conf" in text]
    for there, instead in quickstart.NO_CGROUPS.items():
        conf = conf.replace(there, instead)
    more = "RebootProgram=/usr/local/sbin/trial-reboot\nSlurmdParameters=config_overrides\n"
    conf = conf.replace("\nEND", f"\n{more}{'' if MISSING else quickstart.ACCOUNTED}END")
    hardware = page[page.index(next(text for text in page if " simulator create " in text)) :][:3]
    node = "echo NodeName=gpu01 CPUs=16 >>/etc/slurm/slurm.conf"
    database = () if MISSING else quickstart.DATABASE
    start = "systemctl restart munge slurmctld slurmd"
    texts = (*hardware, *STATIC, REBOOT, conf, node, *database, start, quickstart.PATIENCE["sinfo"])
    return [Step("root", f"timeout 90 sh -c {shlex.quote(text)}" if "until" in text[:6] else text)
            for text in texts]  # fmt: skip


def walk() -> list[Step]:
    """The page, with the waiting and with what only this machine needs."""
    steps = before()
    for block in pages.blocks(PAGE):
        section = int(block.section.partition(".")[0])
        for command in block.commands:
            step = Step(command.user, command.text, section)
            if command.text.startswith((*ELSEWHERE, *(ACCOUNTS if MISSING else ()))):
                continue
            if key := step.among(PATIENCE):  # type: ignore[arg-type]
                wait = f"until {PATIENCE[key]}; do sleep 0.2; done"
                steps.append(Step("root", f"timeout 90 sh -c {shlex.quote(wait)}"))
            steps.append(step)
            if " /etc/slurm/" in command.text and "cgroup.conf" in command.text:
                steps.append(Step("root", quickstart.NO_PLUGIN))
            if command.text.endswith("slurm-mig-metrics.timer"):
                # Its time never comes on this machine.
                steps.append(Step("root", "systemctl start slurm-mig-metrics.service"))
    return [*steps, Step("root", "tail -n 60 /var/log/slurm/*.log /var/log/slurm*.service.log")]


@pytest.mark.root
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(machine.missing()), reason=machine.missing())
def test_every_checkpoint_holds() -> None:
    """Each command with the exit code it should have, each checkpoint with what it says."""
    steps = walk()
    spec = quickstart.SPEC | {"sessions": [[[step.user, step.text] for step in steps]]}
    results = machine.run(spec)[0]
    held = set()
    for step, result in zip(steps, results, strict=True):
        key = step.among(CODES)  # type: ignore[arg-type]
        story = f"step {step.section}: {result}\n{results[-1]['out']}"
        assert result["code"] == (CODES[key] if key else 0), story
        if key := step.among(PROMISED):  # type: ignore[arg-type]
            there, not_there = PROMISED[key]
            lines = result["out"].splitlines()
            assert any(re.match(there, line) for line in lines), story
            assert not any(re.match(not_there, line) for line in lines), story
            held.add(key)
    assert held == set(PROMISED)


def test_it_is_the_quick_start_on_a_cluster() -> None:
    """What sets up a node there does it here, in the same words."""
    setting_up = re.compile(
        "python3 -m venv|/opt/|ln |slurm-mig (install|enable|generate)|systemctl (daemon|enable)"
        "|cat >(fleet|job)"
    )
    theirs = [text.text for text in quickstart.followed() if setting_up.match(text.text)]
    ours = [item.text for block in pages.blocks(PAGE) for item in block.commands]
    assert len(theirs) == 11
    assert [text for text in theirs if text not in ours] == []
