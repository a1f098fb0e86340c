"""What fits on this node, told to Slurm: it then starts what has a slot, and lets the rest wait.

A published total is what is in use here, by the jobs whose marks say that they hold it, plus the
starts that foresight says would succeed; 0 where none would (facts/packing.md#publishing). It is
written in step with Prolog and Epilog, and at every look: a registration of slurmd, `scontrol
reconfigure` and a restart of slurmctld put the counts of slurm.conf back. All that goes wrong here
leaves counts that are too high or old, so a job may be refused; nobody is held, no hook fails.

    <run>/published     what was written last, and what the next one needs to know
    <state>/publish-off the site has switched it off here
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import NodeFault, SlurmFault
from slurm_mig.mig.profile import Profile
from slurm_mig.mig.request import Item, Request
from slurm_mig.node import watch
from slurm_mig.node.gate import alone, look_later
from slurm_mig.node.outlook import Outlook, Strangers, rule_of, strangers
from slurm_mig.node.watch import REST, START
from slurm_mig.packing.foresight import (
    ChoiceRule,
    Foresight,
    GpuState,
    NodeState,
    RequestKind,
    foresee,
)
from slurm_mig.packing.states import CLOSED
from slurm_mig.slurm.commands import CommandClient
from slurm_mig.slurm.conf import number
from slurm_mig.system.replace import replace_file
from slurm_mig.system.trust import private_directory, read_own
from slurm_mig.values import asdict, dataclass, field, fields, replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from slurm_mig.node.node import Node
    from slurm_mig.slurm.protocol import NodeFacts, Pending, Slurm

#: Seconds that a hook waits for slurmctld, and for which hooks do without after it was silent.
PATIENCE: Final = 3.0
SILENT: Final = 30.0

#: Updates within so many seconds that a node sends at once; what comes later is sent together.
BURST, WITHIN = 30, 6.0

#: Seconds for which a kind of job that was here counts as one that may come, and the updates after
#: which those that were here are taken for all that come.
USUAL: Final = 6 * 3600.0
LEARNING: Final = 20

#: First release whose slurmctld reads expressions about a node's Extra (slurm.conf(5)).
EXTRA_SINCE: Final = (23, 11)

_FIT: Final = re.compile(r"(?:^|,)fit:([^:,]+):(\w+)")
#: What a look says where Slurm's counts are those of an earlier slurm.conf.mig.
NO_REST: Final = (
    "nothing is published: this node's Gres has no fit:rest, and Slurm would drain it at a "
    "registration; take over slurm.conf.mig as `slurm-mig generate` writes it now"
)

_TYPE: Final = re.compile(r"(.+?gb(?:[+-][a-z.]+)?)(?:x([2-8]))?")


@dataclass(frozen=True, slots=True)
class Published:
    """What was written last, by which rule, and what hooks need not find out each time.

    `wrote` are totals by type of `fit`, none where nobody knows what Slurm has. `looked` is when
    Slurm was last read, `silent` until when it is left in peace; `writes` are times of the last
    updates. `planned`: what is in use is published where nothing more would succeed, too. `held` is
    Slurm's index of a GPU that is kept for who waits long, -1 for none, and
    `large` what that one waits for; `turn` is this node's number among those that publish, and how
    many they are. `seen` is when jobs of each type were here last, `updates` how many there were
    in this boot.
    """

    wrote: dict[str, int] = field(default_factory=dict)
    rule: str = ChoiceRule.PACK.value
    foreign: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    looked: float = 0.0
    silent: float = 0.0
    writes: tuple[float, ...] = ()
    held: int = -1
    large: str = ""
    turn: tuple[int, int] = (0, 0)
    planned: bool = False
    seen: dict[str, float] = field(default_factory=dict)
    updates: int = 0


class Publisher:
    """This node's counts of what fits."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._path = node.config.run / "published"
        self._off = node.config.state / "publish-off"
        config = node.config
        patience = min(PATIENCE, config.slurm_timeout)
        self._slurm = CommandClient(config.slurm_bin, patience, node.tell)

    @property
    def known(self) -> bool:
        """Whether this node publishes, as far as was seen in this boot."""
        return self._path.exists() and not self.off

    @property
    def off(self) -> bool:
        """Whether the site has switched it off here."""
        return self._off.exists()

    def last(self) -> Published:
        """What was written last; nothing where that cannot be read."""
        names = {item.name for item in fields(Published)}
        with suppress(NodeFault, ValueError, TypeError):
            told: dict[str, Any] = json.loads(read_own(self._path) or "{}")
            return Published(**{key: value for key, value in told.items() if key in names})
        return Published()

    def _save(self, state: Published) -> None:
        replace_file(self._path, json.dumps(asdict(state)), mode=0o600)

    # -- when ----------------------------------------------------------------

    def in_step(self, *, again: bool = False) -> str:
        """What a hook does when it has changed something; a sentence where Slurm was not told.

        `again`: read what Slurm has, too, whatever was written last.
        """
        private_directory(self._node.config.run, 0o755)
        # An Epilog that left it to the next one would return before that one has told Slurm.
        with alone(self._lock, wait=True):
            return "" if self.off else self._in_step(time.time(), again=again)

    @property
    def _lock(self) -> Path:
        return self._node.config.run / "publish.lock"

    def _in_step(self, now: float, *, again: bool) -> str:
        state = self.last()
        if now < state.silent:
            return ""
        try:
            if not state.looked:
                self._look(now)
                return ""
            if state.wrote and not again and self.totals(state, state.wrote) == state.wrote:
                return ""
            if len([at for at in state.writes if at > now - WITHIN]) >= BURST:
                look_later(self._node, 1.0)
                return ""
            self._write(state, self._slurm.node(self._node.name).gres_text, now)
        except SlurmFault as fault:
            self._save(replace(state, wrote={}, silent=now + SILENT))
            return f"what fits was not published: {fault.cause}"
        return ""

    def look(self, now: float | None = None) -> list[str]:
        """Read what Slurm has, and write what is so; a line on each thing that was done.

        SlurmFault when slurmctld does not answer.
        """
        if self.off:
            return self._stop_nothing()
        private_directory(self._node.config.run, 0o755)
        with alone(self._lock) as mine:
            return self._look(time.time() if now is None else now) if mine else []

    def _look(self, now: float) -> list[str]:
        slurm = self._node.slurm
        facts = slurm.node(self._node.name)
        there = counts_in(facts.gres_text)
        if REST not in there:
            return self._nothing(there)
        before, settings = self.last(), self._slurm.configuration()
        state = replace(
            before,
            rule=rule_of(settings.get("selecttypeparameters", "")).value,
            foreign=strangers(self._node),
            silent=0.0,
            looked=now,
            wrote=there,
            # For what is in use Slurm preempts, for what is 0 it does not.
            planned=settings.get("preempttype", "") not in {"", "preempt/none"},
        )
        done = give_extra(slurm, facts.name, facts.extra)
        state, more = self._for_others(state, facts, now)
        written = self._write(state, facts.gres_text, now)
        return [*done, *more, *written]

    def _for_others(
        self, state: Published, facts: NodeFacts, now: float
    ) -> tuple[Published, list[str]]:
        """This node's turn for the cluster, and a GPU for who waits long here."""
        slurm, after = self._node.slurm, self._node.config.hold_back
        mine = watch.has_turn(state.turn, now)
        pending = slurm.pending() if mine or after else []
        done: list[str] = []
        if mine:
            nodes = slurm.nodes()
            state = replace(state, turn=watch.turn_of(nodes, facts.name))
            for other in nodes:
                if other.name != facts.name:
                    done += give_extra(slurm, other.name, other.extra)
            done += watch.let_go(slurm, pending)
        held, large = -1, ""
        if after:
            long = watch.who_waits_long(pending, facts, state.turn, now, after)
            held, large = self._keep(state, long)
        if held != state.held:
            word = f"GPU index {held} is kept for a job that waits for {large}"
            done.append(word if held >= 0 else "no GPU is kept for anybody any more")
        return replace(state, held=held, large=large), done

    def _keep(self, state: Published, long: Sequence[Pending]) -> tuple[int, str]:
        """The GPU to keep for the first of these that has no room here, and what that wants."""
        outlook = Outlook(self._node, Strangers(state.foreign))
        gpus = outlook.gpus()
        free = self._foreseen(outlook, replace(state, held=-1), state.wrote).counts
        empty = any(gpu.state == 0 and not gpu.used for gpu in gpus)
        for job in long:
            kind = watch.wants(job)
            room = empty if kind == watch.WHOLE else free.get(kind)
            if room is not None and not room:
                return watch.gpu_to_keep(gpus, state.held), kind
        return -1, ""

    def _write(self, state: Published, text: str, now: float) -> list[str]:
        """Put the totals into what Slurm has of this node's gres, and change nothing else of it."""
        there = counts_in(text)
        if REST not in there:
            # What was written last is an earlier release's, and no look has come since.
            return self._nothing(there)
        totals = self.totals(state, there)
        fresh = with_fits(text, totals)
        writes = tuple(at for at in state.writes if at > now - WITHIN)
        changed = totals != there
        if changed:
            # Who dies now, or hears no answer, leaves nobody in the belief to know what Slurm has.
            self._save(replace(state, wrote={}))
            self._slurm.set_gres(self._node.name, fresh)
            writes += (now,)
        here = {mark.fit: now for mark in self._node.files.marks() if mark.fit}
        usual = {kind: at for kind, at in state.seen.items() if at > now - USUAL}
        seen = {**usual, **here}
        updates = state.updates + changed
        state = replace(state, wrote=totals, looked=now, writes=writes, seen=seen, updates=updates)
        self._save(state)
        return [f"published {_shown(there, totals)}"] if changed else []

    def _nothing(self, there: Mapping[str, int]) -> list[str]:
        """Publish nothing: Slurm counts no `fit` here, or none that may change."""
        self._path.unlink(missing_ok=True)
        return [NO_REST] if there else []

    # -- what ----------------------------------------------------------------

    def totals(self, state: Published, words: Mapping[str, int]) -> dict[str, int]:
        """In use and foreseen for each of these types; one that means nothing here stays."""
        outlook = Outlook(self._node, Strangers(state.foreign))
        seen = self._foreseen(outlook, state, words)
        here = outlook.jobs()
        holds = [mark.fit for mark in self._node.files.marks() if mark.fit and mark.job in here]
        # Where nothing would succeed, nothing: who waits for what is in use has a reservation, and
        # all behind it wait for that, too; who waits for what is not there is in nobody's way.
        totals = {
            kind: holds.count(kind) + count if count or state.planned else 0
            for kind, count in seen.counts.items()
        }
        totals[START] = len(holds) + seen.starts
        return balanced({kind: totals.get(kind, count) for kind, count in words.items()}, words)

    def _foreseen(self, outlook: Outlook, state: Published, words: Mapping[str, int]) -> Foresight:
        """Starts that would succeed, of each type; of others than `large` without the kept GPU.

        While an Epilog has not returned, Slurm counts its job: what succeeds with and without it.
        """
        gpus = outlook.gpus()
        kinds = self._kinds(outlook, words)
        row = self._in_rows(state, [*kinds, *outlook.whole_kinds()])
        rule, ahead = ChoiceRule(state.rule), self._node.config.ahead
        counts = foresee(gpus, kinds, rule, 1).counts
        if 0 <= state.held < len(gpus):
            counts |= self._held_back(gpus, kinds, state, rule)
        starts = foresee(gpus, row, rule, ahead).starts
        if outlook.ending:
            before = NodeState(outlook.gpus(ending=True), rule)
            for kind in kinds:
                counts[kind.name] = before.before_refused(kind, counts[kind.name])
            starts = min(starts, foresee(before.gpus, row, rule, starts).starts)
        return Foresight(counts, starts)

    def _in_rows(self, state: Published, every: list[RequestKind]) -> list[RequestKind]:
        """Kinds of which starts may follow one another.

        In a row with what has not come for hours less would succeed, and all others wait for it.
        """
        if state.updates < LEARNING:
            return every
        return [kind for kind in every if kind.name in state.seen or not kind.counted]

    def _held_back(
        self, gpus: list[GpuState], kinds: list[RequestKind], state: Published, rule: ChoiceRule
    ) -> dict[str, int]:
        """Counts of the others while a GPU is kept: Slurm's pick of it counts as a refusal."""
        kept = [
            gpu._replace(state=CLOSED) if index == state.held else gpu
            for index, gpu in enumerate(gpus)
        ]
        others = [kind for kind in kinds if kind.name != state.large]
        return foresee(kept, others, rule, 1).counts

    def _kinds(self, outlook: Outlook, words: Mapping[str, int]) -> list[RequestKind]:
        found = []
        for word in words:
            request = request_of(word)
            shards = outlook.shards(request) if request is not None else None
            if request is not None and shards is not None:
                found.append(RequestKind(word, request, shards, outlook.types_of(word)))
        return found

    # -- off and on ------------------------------------------------------------

    def switch(self, *, on: bool) -> list[str]:
        """Publish from now on, or no more: then counts that stop nothing are written once."""
        if on:
            self._off.unlink(missing_ok=True)
            return self.look()
        private_directory(self._off.parent, 0o700)
        replace_file(self._off, "", mode=0o600)
        done = self._stop_nothing()
        self._path.unlink(missing_ok=True)
        return done

    def _stop_nothing(self) -> list[str]:
        """Write counts that stop nothing, if there are others; also where `--off` died half-way."""
        slurm, most = self._node.slurm, 8 * len(self._node.order)
        private_directory(self._node.config.run, 0o755)
        # A hook that had begun before would lower them again.
        with alone(self._lock, wait=True):
            text = slurm.node(self._node.name).gres_text
            there = counts_in(text)
            if REST not in there or not any(n < most for k, n in there.items() if k != REST):
                return []
            high = balanced(dict.fromkeys(there, most), there)
            slurm.set_gres(self._node.name, with_fits(text, high))
        return [f"nothing is published any more, every count is {most}"]


def request_of(word: str) -> Request | None:
    """The request that a type of `fit` counts; None for `start` and for what is none of ours."""
    match = _TYPE.fullmatch(word.rpartition("_")[2])
    if match is None:
        return None
    return Request((Item(Profile.parse(match[1]), int(match[2] or 1)),))


def counts_in(text: str) -> dict[str, int]:
    """The counts of `fit` in a node's gres, by type."""
    return {kind: number(count) or 0 for kind, count in _FIT.findall(text)}


def balanced(totals: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    """These counts, with the sum that those before had: `rest` takes the difference."""
    others = sum(count for kind, count in totals.items() if kind != REST)
    return {**totals, REST: sum(before.values()) - others}


def with_fits(text: str, totals: Mapping[str, int]) -> str:
    """A node's gres with these totals of `fit`, all else as it was."""

    def word(token: str) -> str:
        name, _, kind = token.rpartition(":")[0].partition(":")
        return f"fit:{kind}:{totals[kind]}" if name == "fit" and kind in totals else token

    return ",".join(map(word, text.split(",")))


def _shown(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    return ", ".join(
        f"{kind}: {before[kind]} -> {count}"
        for kind, count in after.items()
        if before[kind] != count and kind != REST
    )


def give_extra(slurm: Slurm, node: str, extra: str) -> list[str]:
    """Have `mig` in a node's Extra: jobs that wait would be held while one node lacks it."""
    if slurm.version() < EXTRA_SINCE:
        return []
    try:
        told = json.loads(extra or "{}")
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return [f"Extra of {node} is no JSON object, so jobs may be held: {extra[:80]}"]
    if told.get("mig") == 1:
        return []
    slurm.set_extra(node, json.dumps({**told, "mig": 1}, separators=(",", ":")))
    return [f'{node} has "mig":1 in its Extra']
