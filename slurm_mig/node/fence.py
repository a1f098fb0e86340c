"""What is stuck: listed, counted, and past a threshold the reason to drain the node.

The drain is our own, so that its reason names who holds the slices; and only what
it set is cleared: the reason is kept word for word, and one that reads otherwise
by now is somebody else's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from slurm_mig.mig.allocation import QUARANTINED
from slurm_mig.slurm.protocol import STUCK, drain_reason
from slurm_mig.system.replace import replace_file
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from slurm_mig.mig.allocation import Allocation
    from slurm_mig.slurm.protocol import Slurm
    from slurm_mig.state.ledger import Ledger
    from slurm_mig.state.locks import Locks
    from slurm_mig.system.elapsed import Moment

#: How the mark begins as long as the drain may not have been set.
GOING: Final = "going to be "


@dataclass(frozen=True, slots=True)
class StuckRecord:
    """A stuck record, and `since` when."""

    record: Allocation
    since: Moment

    @property
    def slices(self) -> int:
        """GPU instances of it that are stuck; 1 for a GPU whose MIG mode stays off."""
        return len({item.placement for item in self.record.present}) or 1


def stuck_records(ledger: Ledger) -> list[StuckRecord]:
    """Everything that is stuck on this node, oldest record first."""
    return [
        StuckRecord(record, ledger.first(record, QUARANTINED))
        for record in ledger.all_open()
        if record.phase == QUARANTINED
    ]


def numbers(found: Iterable[StuckRecord], now: Moment) -> list[dict[str, Any]]:
    """Stuck slices of each GPU that has some: how many, and the oldest's age in seconds."""
    gpus: dict[str, dict[str, Any]] = {}
    for item in found:
        record = item.record
        fresh = {"gpu": record.gpu_minor, "uuid": record.gpu_uuid, "slices": 0, "oldest": 0.0}
        row = gpus.setdefault(record.gpu_uuid, fresh)
        row["slices"] += item.slices
        row["oldest"] = max(row["oldest"], item.since.age(now))
    return sorted(gpus.values(), key=lambda row: row["gpu"])


class Fence:
    """Drains the node while `slices` or more are stuck for `after` seconds (0: never)."""

    def __init__(
        self,
        ledger: Ledger,
        slurm: Slurm,
        locks: Locks,
        *,
        node: str,
        mark: Path,
        slices: int,
        after: float,
    ) -> None:
        self._ledger = ledger
        self._slurm = slurm
        self._locks = locks
        self._node = node
        self._mark = mark
        self._slices = slices
        self._after = after

    @property
    def idle(self) -> bool:
        """Whether there can be nothing to do: no threshold, and no drain of ours."""
        return not self._slices and not self._mark.exists()

    def settle(self) -> str:
        """Drain, or take our drain back, as the ledger has it; says what was done, if anything.

        Raises SlurmFault when Slurm does not answer; then nothing is marked as done, and the
        next hook or reconcile tries again. LockTimeout while another process is at it, which
        looks again before it leaves: no hook waits for what slurmctld tells another one.
        """
        if self._settled(self._past()):
            return ""
        # Two hooks with different views must not have the last word in turn.
        with self._locks.hold(["drain"], "drain or resume the node", within=0, ask=True):
            done: list[str] = []
            while True:
                past = self._past()
                if not self._settled(past):
                    done.append(self._drain(past) if past else self._resume())
                # Those who came meanwhile have left it to us.
                if bool(self._past()) == bool(past):
                    return "; ".join(filter(None, done))

    def _settled(self, past: Sequence[StuckRecord]) -> bool:
        if self.idle:
            return True
        return bool(self._ours) if past else not self._mark.exists()

    @property
    def _ours(self) -> str:
        """The reason with which the node was drained for certain, else empty.

        The mark of a hook that died over it says only that it is going to be, and one that a
        power cut damaged says nothing.
        """
        try:
            text = self._mark.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return text if text.startswith(STUCK) else ""

    def _past(self) -> list[StuckRecord]:
        """What is stuck for long enough, when that is enough to drain."""
        now = self._ledger.now()
        found = [item for item in stuck_records(self._ledger) if item.since.age(now) >= self._after]
        enough = 0 < self._slices <= sum(item.slices for item in found)
        return found if enough else []

    def _drain(self, past: Sequence[StuckRecord]) -> str:
        facts = self._slurm.node(self._node)
        state = "+".join(sorted(facts.state))
        if facts.drained_for(STUCK):
            # A hook died between the drain and the mark.
            self._remember(facts.reason)
            return ""
        if facts.out_of_service:
            self._mark.unlink(missing_ok=True)
            return f"not drained for stuck slices: it is {state} already, {facts.reason!r}"
        reason = drain_reason(stuck_words(past), STUCK)
        # First of all: a drain that nothing tells to be ours would never be taken back.
        self._remember(f"{GOING}{reason}")
        self._slurm.drain(self._node, reason)
        now = self._slurm.node(self._node)
        if now.reason and not now.reason.startswith(STUCK):
            # Somebody was there in between, and it is their drain.
            self._mark.unlink(missing_ok=True)
            return f"not drained for stuck slices: it was just drained for {now.reason!r}"
        # As Slurm has it: it may have changed the text.
        self._remember(now.reason or reason)
        return f"drained: {reason}"

    def _resume(self) -> str:
        ours = self._ours
        facts = self._slurm.node(self._node)
        done = f"no longer drained by slurm-mig, but by {facts.reason!r}"
        if "DRAIN" not in facts.state:
            done = ""
        elif facts.reason == ours or (not ours and facts.reason.startswith(STUCK)):
            self._slurm.undrain(self._node)
            done = "resumed: its slices are no longer stuck"
        self._mark.unlink(missing_ok=True)
        return done

    def _remember(self, reason: str) -> None:
        replace_file(self._mark, reason, mode=0o600)


def stuck_words(past: Sequence[StuckRecord]) -> str:
    """What is stuck, and what the ledger says of each, in one line."""
    return "; ".join(f"GPU {item.record.gpu_minor} {item.record.reason}" for item in past)
