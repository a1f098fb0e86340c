"""What `slurm-mig audit` is asked for: filters as they are typed, read and checked.

A typing error in a name of hardware would have an empty answer, and look like innocence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from slurm_mig.audit.holdings import WHOLE_GPU
from slurm_mig.cli._times import parse_time
from slurm_mig.errors import BadRequest, UsageFault
from slurm_mig.mig.profile import GRAMMAR, Profile

if TYPE_CHECKING:
    from collections.abc import Callable

_HEX: Final = "0123456789abcdef"
_UUID: Final = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"

#: Digits of the largest device minor that Linux has, and some.
_MINOR_DIGITS: Final = 9


def wanted(options: dict[str, Any]) -> dict[str, Any]:
    """The filters, with times and names read; UsageFault names the one that makes no sense."""
    names = ("user", "account", "node", "gpu", "uuid", "profile")
    _check_names({f"--{name}": options[name] for name in names})
    options |= {
        name: read(options[name]) for name, read in _READ.items() if options[name] is not None
    }
    since, until, at = (options.pop(name) for name in ("since", "until", "at"))
    if at is not None:
        if since is not None or until is not None:
            raise UsageFault("--at is a time of its own: leave --since and --until out")
        instant = parse_time(at)
        return options | {"since": instant, "until": math.nextafter(instant, math.inf)}
    first, last = _span(since, until)
    return options | {"since": first, "until": last}


def given(options: dict[str, Any]) -> list[str]:
    """The filters that are there, as they are typed."""
    names = [name for name, value in options.items() if value is not None]
    return [f"--{name}".replace("job_id", "job") for name in names]


def _span(since: str | None, until: str | None) -> tuple[float | None, float | None]:
    first = None if since is None else parse_time(since)
    last = None if until is None else parse_time(until)
    if first is not None and last is not None and first > last:
        raise UsageFault(f"--since {since} is after --until {until}: nothing can be between them")
    return first, last


def _check_names(options: dict[str, str | None]) -> None:
    for option, name in options.items():
        if name == "":
            raise UsageFault(f"{option} is empty; name one, or leave it out for all")
        # A byte that is no UTF-8 stands as half a surrogate pair, which SQLite does not take.
        if name and any("\ud800" <= char <= "\udfff" for char in name):
            raise UsageFault(f"{option} {name!r} is not UTF-8")


def _gpu(text: str) -> str:
    if text.isascii() and text.isdigit() and len(text) <= _MINOR_DIGITS:
        return str(int(text))
    if (uuid := _beginning(text, "GPU-")) is not None:
        return uuid
    raise UsageFault(
        f"--gpu {text!r}: write a device minor (0), a GPU's UUID, or how it begins (GPU-5fd4f087)"
    )


def _uuid(text: str) -> str:
    for prefix in ("MIG-", "GPU-"):
        if (uuid := _beginning(text, prefix)) is not None:
            return uuid
    raise UsageFault(
        f"--uuid {text!r}: write a UUID as nvidia-smi -L prints it, or how it begins (MIG-22f4ac07)"
    )


def _beginning(text: str, prefix: str) -> str | None:
    """A UUID, or how one begins, in the driver's spelling; None for what cannot be one."""
    if text[: len(prefix)].upper() != prefix:
        return None
    rest = text[len(prefix) :].lower()
    fits = 0 < len(rest) <= len(_UUID) and all(
        char in _HEX if form == "x" else char == form
        for char, form in zip(rest, _UUID, strict=False)
    )
    return prefix + rest if fits else None


def _profile(text: str) -> str:
    if text.casefold() == WHOLE_GPU.casefold():
        return WHOLE_GPU
    try:
        return str(Profile.parse(text.lower()))
    except BadRequest:
        raise UsageFault(f"--profile {text!r}: write `{WHOLE_GPU}`, or {GRAMMAR}") from None


_READ: Final[dict[str, Callable[[str], str]]] = {"gpu": _gpu, "uuid": _uuid, "profile": _profile}
