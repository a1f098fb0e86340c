"""What lies beside this node's ledger, for `audit --check`: marks tell of events it has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_mig.audit.findings import AuditFinding
from slurm_mig.cli._node import open_node
from slurm_mig.transaction.evidence import REMEDY, lacking

if TYPE_CHECKING:
    from slurm_mig.audit.archive import Archive


def beside(archive: Archive, last: int) -> list[AuditFinding]:
    """A finding where this boot's marks have events that the node's ledger has not.

    Of a copy nothing lies beside it. `last` is the number of its last event.
    """
    if not archive.live:
        return []
    with open_node(look=True) as node:
        # The ledger as it is now: hooks have gone on since the archive was looked at.
        text = lacking(node.ledger, node.files)
    return [AuditFinding("set-back", f"{text}; {REMEDY}", event=last + 1)] if text else []
