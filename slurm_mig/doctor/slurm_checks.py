"""SM1xx: slurm.conf, and what slurmctld has loaded of it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slurm_mig.doctor.check import ERROR, NOTE, WARNING, Problem, check
from slurm_mig.doctor.facts import (
    CONS_TRES_SINCE,
    GPU_ACCOUNTING_SINCE,
    LL_SHARED_GRES_SINCE,
    SEVERAL_PROLOGS_SINCE,
)
from slurm_mig.slurm import conf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurm_mig.doctor.facts import Facts

#: Flags that make the Prolog run at allocation; all but the first imply it (slurm.conf(5)).
AT_ALLOCATION: Final = ("Alloc", "Contain", "X11", "RunInJob", "NoHold")

#: States in which a node is not used, as scontrol(1) shows them.

#: Settings whose value in force is compared with the file's.
COMPARED: Final = (
    "AcctGatherEnergyType",
    "BatchStartTimeout",
    "CliFilterPlugins",
    "EpilogTimeout",
    "GresTypes",
    "JobAcctGatherParams",
    "JobSubmitPlugins",
    "MessageTimeout",
    "PrologEpilogTimeout",
    "PrologFlags",
    "PrologTimeout",
    "ProctrackType",
    "SelectType",
    "SelectTypeParameters",
    "TaskPlugin",
    "TaskProlog",
)


@check(
    "SM101",
    ERROR,
    "PrologFlags without Alloc",
    needs=("slurm.conf",),
    page="slurm.conf(5): PrologFlags; docs/admin.md: Setting up",
)
def alloc(facts: Facts) -> Iterator[Problem]:
    """The Prolog then runs at the first step only: salloc has no slice when it starts."""
    value, seen = facts.setting("PrologFlags")
    if not conf.has_word(value, *AT_ALLOCATION):
        yield Problem(seen, f"PrologFlags={conf.with_word(value, 'Alloc')}")


@check(
    "SM102",
    ERROR,
    "PrologFlags with NoHold",
    needs=("slurm.conf",),
    page="slurm.conf(5): PrologFlags; docs/admin.md: Setting up",
)
def no_hold(facts: Facts) -> Iterator[Problem]:
    """Nobody waits for the Prolog then: a job starts before its slice is carved."""
    value, seen = facts.setting("PrologFlags")
    if conf.has_word(value, "NoHold"):
        left = conf.without_word(value, ("NoHold",))
        left = left if conf.has_word(left, *AT_ALLOCATION) else conf.with_word(left, "Alloc")
        yield Problem(seen, f"PrologFlags={left}")


@check(
    "SM103",
    ERROR,
    "PrologFlags with RunInJob",
    needs=("slurm.conf",),
    page="slurm.conf(5): PrologFlags; docs/admin.md: Setting up",
)
def run_in_job(facts: Facts) -> Iterator[Problem]:
    """Hooks then run inside the job's cgroup, with the job's limits and devices."""
    value, seen = facts.setting("PrologFlags")
    if conf.has_word(value, "RunInJob"):
        left = conf.without_word(value, ("RunInJob",))
        left = left if conf.has_word(left, *AT_ALLOCATION) else conf.with_word(left, "Alloc")
        yield Problem(seen, f"PrologFlags={left}")


@check(
    "SM104",
    WARNING,
    "PrologFlags without DeferBatch",
    needs=("slurm.conf",),
    page="slurm.conf(5): PrologFlags; docs/admin.md: Setting up",
)
def defer_batch(facts: Facts) -> Iterator[Problem]:
    """A job of several nodes starts while another of its nodes still carves."""
    value, seen = facts.setting("PrologFlags")
    if not conf.has_word(value, "DeferBatch"):
        yield Problem(seen, f"PrologFlags={conf.with_word(value, 'DeferBatch')}")


@check(
    "SM105",
    NOTE,
    "PrologFlags with Serial",
    needs=("slurm.conf",),
    page="slurm.conf(5): PrologFlags; docs/admin.md: What a hook does",
)
def serial(facts: Facts) -> Iterator[Problem]:
    """Hooks of one node wait for each other; slurm-mig locks GPU by GPU and needs no more."""
    value, seen = facts.setting("PrologFlags")
    if conf.has_word(value, "Serial"):
        yield Problem(seen, f"PrologFlags={conf.without_word(value, ('Serial',))}")


@check(
    "SM106",
    ERROR,
    "GresTypes without gpu, shard or mig",
    needs=("slurm.conf",),
    page="slurm.conf(5): GresTypes; docs/admin.md: Setting up",
)
def gres_types(facts: Facts) -> Iterator[Problem]:
    """Slurm does not know a gres that is not listed; slices cannot be asked for."""
    value, seen = facts.setting("GresTypes")
    fit = ["fit"] if any(node.count("fit") for node in facts.managed) else []
    needed = ["gpu", "shard", "mig", *fit]
    missing = [name for name in needed if not conf.has_word(value, name)]
    if missing:
        yield Problem(seen, f"GresTypes={','.join([*conf.words(value), *missing])}")


@check(
    "SM107",
    ERROR,
    "SelectType is not select/cons_tres",
    needs=("slurm.conf",),
    page="slurm.conf(5): SelectType; gres.html: Sharding",
)
def select_type(facts: Facts) -> Iterator[Problem]:
    """Only select/cons_tres gives out shards of a GPU. Unset means select/linear before 23.11."""
    value, seen = facts.setting("SelectType")
    # The default has changed; where the release is unknown an unset one is left alone.
    linear = bool(facts.version) and facts.version < CONS_TRES_SINCE
    if value.lower() != "select/cons_tres" and (value or linear):
        yield Problem(seen, "SelectType=select/cons_tres")


@check(
    "SM108",
    ERROR,
    "SelectTypeParameters with MULTIPLE_SHARING_GRES_PJ",
    needs=("slurm.conf",),
    page="slurm.conf(5): SelectTypeParameters; docs/admin.md: Setting up",
)
def multiple_sharing(facts: Facts) -> Iterator[Problem]:
    """A job's shards then spread over GPUs, and no GPU has room for its slice."""
    value, seen = facts.setting("SelectTypeParameters")
    unwanted = "MULTIPLE_SHARING_GRES_PJ"
    if conf.has_word(value, unwanted):
        yield Problem(seen, f"SelectTypeParameters={conf.without_word(value, (unwanted,))}")


@check(
    "SM109",
    WARNING,
    "SelectTypeParameters without LL_SHARED_GRES, which this release knows",
    needs=("slurm.conf", "version"),
    page="slurm.conf(5): SelectTypeParameters",
)
def least_loaded(facts: Facts) -> Iterator[Problem]:
    """Slurm then fills the first GPU before the next; jobs meet fragmentation sooner.

    Known since 23.11; an older slurmctld does not start with it.
    """
    value, seen = facts.setting("SelectTypeParameters")
    if facts.version >= LL_SHARED_GRES_SINCE and not conf.has_word(value, "LL_SHARED_GRES"):
        yield Problem(seen, f"SelectTypeParameters={conf.with_word(value, 'LL_SHARED_GRES')}")


@check(
    "SM110",
    ERROR,
    "SelectTypeParameters with LL_SHARED_GRES, which this release does not know",
    needs=("slurm.conf", "version"),
    page="slurm.conf(5): SelectTypeParameters",
)
def least_loaded_unknown(facts: Facts) -> Iterator[Problem]:
    """slurmctld does not start with a word that it does not know."""
    value, seen = facts.setting("SelectTypeParameters")
    if facts.version < LL_SHARED_GRES_SINCE and conf.has_word(value, "LL_SHARED_GRES"):
        left = conf.without_word(value, ("LL_SHARED_GRES",))
        yield Problem(seen, f"SelectTypeParameters={left}")


@check(
    "SM111",
    ERROR,
    "AcctGatherEnergyType has acct_gather_energy/gpu",
    needs=("slurm.conf",),
    page="gres.html: MIG Management",
)
def energy(facts: Facts) -> Iterator[Problem]:
    """slurmd then keeps NVML open, and no instance can be made or destroyed."""
    value, seen = facts.setting("AcctGatherEnergyType")
    if conf.has_word(value, "acct_gather_energy/gpu", "gpu"):
        left = conf.without_word(value, ("acct_gather_energy/gpu", "gpu"))
        yield Problem(seen, f"AcctGatherEnergyType={left or 'acct_gather_energy/none'}")


@check(
    "SM112",
    WARNING,
    "JobAcctGatherParams without DisableGPUAcct",
    needs=("slurm.conf",),
    page="gres.html: MIG Management; slurm.conf(5): JobAcctGatherParams",
)
def gpu_accounting(facts: Facts) -> Iterator[Problem]:
    """slurmstepd's GPU accounting keeps NVML open, and slices beside it cannot be changed.

    Slurm accounts GPUs since 23.02 and knows the word since 23.02.7.
    """
    value, seen = facts.setting("JobAcctGatherParams")
    gather = facts.setting("JobAcctGatherType")[0].lower()
    old = facts.version and facts.version < GPU_ACCOUNTING_SINCE
    if gather in ("", "jobacct_gather/none") or old or conf.has_word(value, "DisableGPUAcct"):
        return
    yield Problem(seen, f"JobAcctGatherParams={conf.with_word(value, 'DisableGPUAcct')}")


@check(
    "SM113",
    WARNING,
    "AccountingStorageTRES without gres/mig or gres/shard",
    needs=("slurm.conf",),
    page="slurm.conf(5): AccountingStorageTRES; docs/admin.md: Setting up",
)
def accounting(facts: Facts) -> Iterator[Problem]:
    """sacct, limits and QOS then know nothing of slices, nor do `TRES=` and `tres-alloc`."""
    kind = facts.setting("AccountingStorageType")[0].lower()
    value, seen = facts.setting("AccountingStorageTRES")
    if not kind.endswith("slurmdbd"):
        return
    missing = [
        name for name in ("gres/gpu", "gres/shard", "gres/mig") if not conf.has_word(value, name)
    ]
    if missing:
        yield Problem(seen, f"AccountingStorageTRES={','.join([*conf.words(value), *missing])}")


@check(
    "SM114",
    ERROR,
    "SlurmdUser is not root",
    needs=("slurm.conf",),
    page="slurm.conf(5): SlurmdUser, Prolog",
)
def slurmd_user(facts: Facts) -> Iterator[Problem]:
    """Prolog and Epilog run as SlurmdUser; only root may carve a GPU."""
    value, seen = facts.setting("SlurmdUser")
    if value and value.partition("(")[0] not in ("root", "0"):
        yield Problem(seen, "SlurmdUser=root")


@check(
    "SM115",
    ERROR,
    "an Include that cannot be read",
    needs=("slurm.conf",),
    page="slurm.conf(5): INCLUDE MODIFIERS",
)
def includes(facts: Facts) -> Iterator[Problem]:
    """Slurm does not start without it, and the doctor did not see what it says."""
    for entry in (*facts.slurm.unread, *facts.gres.unread, *facts.cgroup.unread):
        yield Problem(str(entry), f"make {entry.get('include')} readable, or take the line out")


@check(
    "SM116",
    WARNING,
    "slurmctld has loaded something else than slurm.conf says",
    needs=("slurm.conf", "slurmctld"),
    page="scontrol(1): reconfigure",
)
def not_loaded(facts: Facts) -> Iterator[Problem]:
    """What the file says holds only from the next reconfiguration or restart on."""
    for key in COMPARED:
        entry = facts.slurm.last(key)
        value = facts.live.get(key.lower())
        if entry is None or value is None or _same(entry.get(key), value):
            continue
        yield Problem(
            f"{entry}; slurmctld has {value or '(none)'}",
            "scontrol reconfigure (restart slurmctld and slurmd for GresTypes and SelectType)",
        )
    for key in ("Prolog", "Epilog"):
        entries, loaded = facts.slurm.all(key), loaded_values(facts.live, key)
        written = [entry.get(key) for entry in entries]
        if written and loaded not in (written, written[-1:]):
            has = ", ".join(loaded) or "(none)"
            yield Problem(f"{entries[-1]}; slurmctld has {has}", "scontrol reconfigure")


def loaded_values(live: Mapping[str, str], key: str) -> list[str]:
    """What slurmctld has of a setting that may be there several times (`Prolog[0]`)."""
    names = [name for name in live if name == key.lower() or name.startswith(f"{key.lower()}[")]
    return [live[name] for name in names if live[name]]


def _same(left: str, right: str) -> bool:
    """Whether two spellings of a setting say the same."""
    if left[:1].isdigit() and right[:1].isdigit():
        return conf.seconds(left) == conf.seconds(right)
    # 24.11 shows task/none and its like as nothing at all.
    written, loaded = (
        {word.lower().rpartition("/")[2] for word in conf.words(value)} - {"none"}
        for value in (left, right)
    )
    # slurmctld adds what a word implies: CR_CPU to nothing, Alloc to Contain.
    added = {word for word in loaded - written if not word.startswith(("alloc", "contain", "cr_"))}
    return written <= loaded and not added


@check(
    "SM117",
    ERROR,
    "slurmctld counts other gres for a node than slurm.conf",
    needs=("slurm.conf", "registered"),
    page="slurm.conf(5): Gres; docs/admin.md: Setting up",
)
def registered_gres(facts: Facts) -> Iterator[Problem]:
    """Jobs are placed by slurmctld's counts; a changed Gres= needs a restart of both daemons."""
    for node in facts.managed:
        found = facts.registered.get(node.name)
        if found is None:
            continue
        names = [name for name in node.gres if name.partition(":")[0] in ("gpu", "shard", "mig")]
        # scontrol leaves a count of one out where slurm.conf does.
        odd = [
            f"{name} {found.gres.get(name, 0)} for {node.gres[name]}"
            for name in names
            if found.gres.get(name, 1) != node.gres[name]
        ]
        if odd:
            yield Problem(
                f"node {node.name}, {node.entry.where}: {', '.join(odd)}",
                "restart slurmctld, then slurmd on the node",
            )


@check(
    "SM118",
    WARNING,
    "Slurm has taken a managed node out of service",
    needs=("slurm.conf", "registered"),
    page="sinfo(1): NODE STATE CODES; docs/admin.md: Who is at fault",
)
def out_of_service(facts: Facts) -> Iterator[Problem]:
    """It takes no jobs until somebody deals with the reason and resumes it."""
    for node in facts.managed:
        found = facts.registered.get(node.name)
        bad = sorted(found.out_of_service) if found else []
        if found and bad:
            yield Problem(
                f"node {node.name}: {'+'.join(bad)}: {found.reason or 'no reason'}",
                f"scontrol update nodename={node.name} state=resume, once the reason is gone",
            )


@check(
    "SM119",
    ERROR,
    "a list of hosts cannot be read",
    needs=("slurm.conf",),
    page="slurm.conf(5): NodeName",
)
def host_lists(facts: Facts) -> Iterator[Problem]:
    """Slurm does not start with it, or with other nodes; those of the line are not checked here."""
    for entry, reason in (*conf.unreadable(facts.slurm), *conf.unreadable(facts.gres)):
        yield Problem(f"{entry.where}: {reason}", "correct the list on that line")


# -- times ----------------------------------------------------------------------


@check(
    "SM121",
    ERROR,
    "the Prolog's time limit is below its worst case",
    needs=("slurm.conf", "config"),
    page="slurm.conf(5): PrologEpilogTimeout, PrologTimeout; docs/admin.md: What a hook does",
)
def prolog_timeout(facts: Facts) -> Iterator[Problem]:
    """Slurm kills the hook at work, and drains the node."""
    if facts.config:
        yield from _limit(facts, "PrologTimeout", facts.config.prolog_worst)


@check(
    "SM122",
    ERROR,
    "the Epilog's time limit is below its worst case",
    needs=("slurm.conf", "config"),
    page="slurm.conf(5): PrologEpilogTimeout, EpilogTimeout; docs/admin.md: What a hook does",
)
def epilog_timeout(facts: Facts) -> Iterator[Problem]:
    """Slurm kills the hook at work, and drains the node."""
    if facts.config:
        yield from _limit(facts, "EpilogTimeout", facts.config.epilog_worst)


def _limit(facts: Facts, key: str, worst: float) -> Iterator[Problem]:
    """The limit of its own (25.05 and later), else the one for both; unset is unlimited."""
    for name in (key, "PrologEpilogTimeout"):
        value, seen = facts.setting(name)
        limit = conf.seconds(value)
        if limit is not None:
            if limit < worst:
                yield Problem(f"{seen}; worst case {worst:g} s", f"{name}={worst:.0f}")
            return


@check(
    "SM123",
    WARNING,
    "BatchStartTimeout is below the Prolog's worst case",
    needs=("slurm.conf", "config"),
    page="slurm.conf(5): BatchStartTimeout; docs/admin.md: What a hook does",
)
def batch_start(facts: Facts) -> Iterator[Problem]:
    """A batch job whose Prolog takes longer can be taken for lost and requeued."""
    yield from _default_ten(facts, "BatchStartTimeout")


@check(
    "SM124",
    NOTE,
    "MessageTimeout is below the Prolog's worst case",
    needs=("slurm.conf", "config"),
    page="slurm.conf(5): MessageTimeout, Prolog",
)
def message_timeout(facts: Facts) -> Iterator[Problem]:
    """Such a job starts all the same, but srun says that its Prolog hangs (24.11 and later)."""
    yield from _default_ten(facts, "MessageTimeout")


def _default_ten(facts: Facts, key: str) -> Iterator[Problem]:
    """A time whose default is 10 seconds, against the Prolog's worst case."""
    value, seen = facts.setting(key)
    limit = conf.seconds(value) if value else 10.0
    if facts.config and limit is not None and limit < facts.config.prolog_worst:
        worst = facts.config.prolog_worst
        said = seen if value else f"{seen}, so 10 s"
        yield Problem(f"{said}; worst case {worst:g} s", f"{key}={worst:.0f}")


# -- hooks, as slurm.conf names them ----------------------------------------------


def _named(facts: Facts, key: str, flag: str) -> Iterator[Problem]:
    if not any(hook.key == key for hook in facts.hooks):
        yield Problem(f"{facts.slurm.path}: no {key}", f"{key}=/etc/slurm-mig/hooks/{flag}")


@check(
    "SM131",
    ERROR,
    "no Prolog",
    needs=("slurm.conf",),
    page="slurm.conf(5): Prolog; docs/admin.md: Setting up",
)
def prolog(facts: Facts) -> Iterator[Problem]:
    """Nothing is carved; the TaskProlog stops every task of a job with slices."""
    yield from _named(facts, "Prolog", "prolog")


@check(
    "SM132",
    ERROR,
    "no Epilog",
    needs=("slurm.conf",),
    page="slurm.conf(5): Epilog; docs/admin.md: Setting up",
)
def epilog(facts: Facts) -> Iterator[Problem]:
    """Slices stay after their jobs, until another hook or reconcile takes them down."""
    yield from _named(facts, "Epilog", "epilog")


@check(
    "SM133",
    ERROR,
    "no TaskProlog",
    needs=("slurm.conf",),
    page="slurm.conf(5): TaskProlog; docs/admin.md: Setting up",
)
def task_prolog(facts: Facts) -> Iterator[Problem]:
    """No task learns which slice is its own: CUDA_VISIBLE_DEVICES is Slurm's."""
    yield from _named(facts, "TaskProlog", "task_prolog")


@check(
    "SM134",
    ERROR,
    "several Prolog or Epilog lines, of which this release takes the last",
    needs=("slurm.conf", "version"),
    page="slurm.conf(5): Prolog; docs/slurm.md",
)
def several(facts: Facts) -> Iterator[Problem]:
    """Before 24.05 the lines above it are ignored in silence."""
    if facts.version >= SEVERAL_PROLOGS_SINCE:
        return
    for key in ("Prolog", "Epilog"):
        lines = facts.slurm.all(key)
        if len(lines) > 1:
            yield Problem(
                "; ".join(map(str, lines)),
                f"put links to all of them into one directory and write {key}=DIRECTORY/*",
            )


@check(
    "SM135",
    WARNING,
    "TaskProlog names a file that is not called task_prolog",
    needs=("slurm.conf",),
    page="slurm.conf(5): TaskProlog; docs/admin.md: Setting up",
)
def task_prolog_name(facts: Facts) -> Iterator[Problem]:
    """There is one TaskProlog: another script in its place must call slurm-mig's."""
    if "node" not in facts.gaps:
        return  # SM303 reads the file itself
    for hook in facts.hooks:
        if hook.key == "TaskProlog" and not hook.value.endswith("/task_prolog"):
            yield Problem(
                hook.where,
                "TaskProlog=/etc/slurm-mig/hooks/task_prolog, or run the doctor on a node: "
                "there it reads the script",
            )
