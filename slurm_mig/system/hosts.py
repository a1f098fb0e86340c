"""Whether a name or an address is this machine's. Two clusters, or two clones, share names."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

#: A port that nothing is sent to: connecting a datagram socket only chooses a route.
_DISCARD: Final = 9


def name() -> str:
    """This host's short name."""
    import socket

    return socket.gethostname().partition(".")[0]


def is_here(host: str, address: str) -> bool:
    """Whether Slurm's NodeHostName or NodeAddr of a node is this machine's (slurm.conf(5)).

    False also where neither says anything: nothing was proven then.
    """
    if host and host.lower().partition(".")[0] == name().lower():
        return True
    return any(_is_local(item) for text in dict.fromkeys((address, host)) for item in _found(text))


def _found(text: str) -> list[tuple[socket.AddressFamily, str]]:
    import socket

    if not text:
        return []
    # An unknown name is no proof; neither is one that no name server answers for.
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(text, _DISCARD, type=socket.SOCK_DGRAM)
        return [(family, str(item[0])) for family, *_, item in found]
    return []


def _is_local(where: tuple[socket.AddressFamily, str]) -> bool:
    """The kernel reaches its own addresses from themselves; to bind one proves less (ip(7))."""
    import socket

    family, address = where
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, _DISCARD))
        return bool(probe.getsockname()[0] == address)
    return False
