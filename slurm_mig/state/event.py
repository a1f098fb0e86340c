"""An event of the ledger, and the digest that chains it to the one before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.errors import LedgerFault
from slurm_mig.values import dataclass

# Python's own: hashlib would load OpenSSL, which takes a hook longer than all its digests.
try:
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # before 3.12
    except ImportError:
        from hashlib import sha256

if TYPE_CHECKING:
    from collections.abc import Sequence


#: What an event's digest is made of, in this order.
DIGESTED: Final = ("seq", "at", "kind", "allocation", "job_id", "detail")

#: What stands for an allocation in events that concern a GPU or the ledger alone.
NO_ALLOCATION: Final = 0

#: Events that `slurm-mig archive` writes: one for each record whose earlier events go to an
#: archive while it stays, with everything that is known of it; and one for itself.
CARRIED: Final = "carried"
ARCHIVED: Final = "archived"


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the ledger's event table; `at` in seconds since the epoch, `detail` as JSON.

    In a file that was edited any of them can be anything.
    """

    seq: int
    at: float
    kind: str
    allocation: int
    job_id: int | None
    detail: str
    digest: str

    @property
    def content(self) -> tuple[object, ...]:
        """What the digest is taken of, beside the digest before."""
        return (self.seq, self.at, self.kind, self.allocation, self.job_id, self.detail)

    @property
    def facts(self) -> dict[str, Any]:
        """What `detail` tells; LedgerFault for one that nobody of ours wrote."""
        try:
            return dict(json.loads(self.detail))
        except (ValueError, TypeError):
            raise LedgerFault(
                f"event {self.seq} of the ledger is not as it was written",
                remedy="`slurm-mig audit --check` lists all that is not",
            ) from None


def digest(before: str, content: Sequence[object]) -> str:
    """SHA-256 over the previous row's digest and this row, as canonical JSON.

    A byte string, which only an edit puts there, has a digest, too: that no row has.
    """
    text = json.dumps([before, *content], separators=(",", ":"), default=_unwritten)
    return str(sha256(text.encode()).hexdigest())


def _unwritten(value: object) -> dict[str, str]:
    return {"bytes": repr(value)}
