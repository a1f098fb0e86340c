"""What a job asks of one GPU, and the two texts it travels in.

Slurm's hooks are told the GPU but not the gres. The request therefore travels
as a *stamp*: one word that job_submit.lua writes into the job's `comment`, which
Slurm hands to the Prolog (the first release wrote it into `extra` from Slurm 23.02
on; so that one is read, too):

    slurm-mig=1,3g.40gb/9/14:1,1g.10gb/19/4:2
    slurm-mig=1,3g.40gb/9/14:1,fit/3g.40gb

version, then `<profile>/<driver profile id>/<shards>:<count>` items, `-` for an id that nobody
has published: the node's driver knows the profile by its name. `fit/<type>` is how the job is
counted where the site publishes what fits (facts/packing.md#publishing). Version 2 is for slices
that one GPU does not hold: the items of each GPU, `;` between GPUs. Whoever reads only version
1 refuses it, and one GPU's slices travel as version 1. job_submit.lua alone writes it and
strips what users write, so it can be trusted. The other text is the TresPerNode of the job as
`squeue` prints it, for a job without a stamp.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import BadRequest
from slurm_mig.mig.profile import Profile
from slurm_mig.values import dataclass

if TYPE_CHECKING:
    from collections.abc import Sized

#: What a stamp starts with; also what job_submit.lua strips from users' texts.
STAMP_PREFIX: Final = "slurm-mig="
STAMP_VERSION: Final = "1"
#: The version whose stamps have several GPUs' items.
SEVERAL_VERSION: Final = "2"

#: What the word of a stamp begins with that says which `fit` gres the job holds.
COUNTED: Final = "fit/"

#: NVML creates at most 8 GPU instances on a GPU (facts/mig.md#ids).
MAX_PER_REQUEST: Final = 8

# ASCII white space only, as in Lua's %s: a no-break space must not start a word here that
# job_submit.lua did not see as one.
# Texts, not patterns: an Epilog would make these for nothing.
_STAMP: Final = r"(?:^|(?<=\s))slurm-mig=\S*"
_STAMP_AND_BLANK: Final = r"(?:^|\s)slurm-mig=\S*"
_ITEM: Final = r"([^/:,\s]+)/([0-9]{1,5}|-)/([1-9][0-9]{0,3}):([1-9][0-9]?)"
# 22.05 writes `gres:mig:..`, later releases `gres/mig:..`; a count may follow `:` or `=`.
_GRES: Final = r"gres[:/]([^:=,]+)(?:[:](.+?))?(?:[:=]([0-9]+))?"


@dataclass(frozen=True, slots=True)
class Item:
    """`count` instances of one profile.

    The stamp adds the driver's id of the GPU instance's profile and its weight in
    shards; both are None where the request comes from elsewhere.
    """

    profile: Profile
    count: int = 1
    profile_id: int | None = None
    weight: int | None = None

    @property
    def gpu_instances(self) -> int:
        """GPU instances that hold them: small compute instances share one."""
        return -(-self.count // self.profile.per_gpu_instance)

    @property
    def shards(self) -> int | None:
        """Shards a job pays for them; None where the weight is not known."""
        return None if self.weight is None else self.weight * self.gpu_instances

    def worth(self, count: int) -> int | None:
        """Shards a step asks for with `count` of them; cli_filter.lua has the same rule."""
        if self.weight is None or count == 0:
            return self.weight and 0
        return max(1, self.weight * count // self.profile.per_gpu_instance)

    def __str__(self) -> str:
        return f"{self.profile}:{self.count}"


@dataclass(frozen=True, slots=True)
class Request:
    """All instances a job wants on one GPU of this node."""

    items: tuple[Item, ...]
    #: The `fit` gres that the job holds beside it; empty where the site publishes none.
    counted: str = ""

    def __post_init__(self) -> None:
        if not self.items:
            raise BadRequest("a request names at least one profile")
        total = sum(item.gpu_instances for item in self.items)
        if any(item.count < 1 for item in self.items) or total > MAX_PER_REQUEST:
            raise BadRequest(
                f"request {self}: {total} GPU instances; a GPU holds 1 to {MAX_PER_REQUEST} of them"
            )
        names = [item.profile for item in self.items]
        if len(set(names)) != len(names):
            raise BadRequest(f"request {self}: a profile is named twice; add the counts up")

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.items)

    def stamp(self) -> str:
        """The word that carries this request; every item needs its weight."""
        counted = f",{COUNTED}{self.counted}" if self.counted else ""
        return f"{STAMP_PREFIX}{STAMP_VERSION},{self.stamped_items()}{counted}"

    def stamped_items(self) -> str:
        """The items as they stand in a stamp."""
        words = []
        for item in self.items:
            if item.weight is None:
                raise BadRequest(f"request {self}: {item.profile} has no weight to stamp")
            known = "-" if item.profile_id is None else item.profile_id
            words.append(f"{item.profile}/{known}/{item.weight}:{item.count}")
        return ",".join(words)


@dataclass(frozen=True, slots=True)
class Several:
    """What a job wants on several GPUs of this node, which it has as a whole: a part on each."""

    parts: tuple[Request, ...]

    def __post_init__(self) -> None:
        if len(self.parts) < 2:
            raise BadRequest(f"slices on several GPUs are on {len(self.parts)} GPUs here")

    def __str__(self) -> str:
        return ";".join(map(str, self.parts))

    def fill(self, gpus: Sized) -> bool:
        """Whether these are as many GPUs as there are parts."""
        return len(gpus) == len(self.parts)

    def stamp(self) -> str:
        """The word that carries it; every item needs its weight."""
        parts = (part.stamped_items() for part in self.parts)
        return f"{STAMP_PREFIX}{SEVERAL_VERSION},{';'.join(parts)}"


def from_stamp(text: str) -> Request | Several | None:
    """The request stamped into a comment or extra field; None where there is no stamp.

    `Several` where its slices are on several GPUs. Raises BadRequest for a stamp that cannot
    be read, or for more than one: a second stamp means that somebody got past job_submit.lua.
    """
    found = re.findall(_STAMP, text, re.ASCII)
    if not found:
        return None
    if len(found) > 1:
        raise BadRequest(f"{len(found)} stamps in one field: {text[:200]!r}; one is allowed")
    version, _, words = found[0].removeprefix(STAMP_PREFIX).partition(",")
    if version == STAMP_VERSION:
        return _one_gpu(words, found[0])
    if version == SEVERAL_VERSION:
        return Several(tuple(_one_gpu(part, found[0]) for part in words.split(";")))
    raise BadRequest(
        f"stamp {found[0][:80]!r} has version {version!r}, "
        f"this node reads {STAMP_VERSION} and {SEVERAL_VERSION}",
        remedy="bring slurm-mig on the controller and the nodes to one release",
    )


def _one_gpu(words: str, stamp: str) -> Request:
    told = [word for word in words.split(",") if word]
    counted = [word.removeprefix(COUNTED) for word in told if word.startswith(COUNTED)]
    items = tuple(_item(word, stamp) for word in told if not word.startswith(COUNTED))
    return Request(items, counted[-1] if counted else "")


def _item(word: str, stamp: str) -> Item:
    match = re.fullmatch(_ITEM, word, re.ASCII)
    if match is None:
        raise BadRequest(f"stamp {stamp[:80]!r}: {word!r} is not <profile>/<id>/<shards>:<count>")
    name, profile_id, weight, count = match.groups()
    known = None if profile_id == "-" else int(profile_id)
    return Item(Profile.parse(name), int(count), known, int(weight))


def without_stamp(text: str) -> str:
    """What the user wrote into a comment or extra field, to the letter.

    job_submit.lua puts its stamp behind that and one blank, which go.
    """
    return re.sub(_STAMP_AND_BLANK, "", text, flags=re.ASCII)


def from_gres(text: str) -> Request | None:
    """The request in a TresPerNode text, `gres:mig:3g.40gb:1,gres:shard:14`.

    None where the text names no mig gres. A type may carry a GPU type before the
    profile, `h100_3g.40gb`, where one profile name has two meanings in a
    cluster. Raises BadRequest for a mig gres that names no profile.
    """
    items = []
    for token in filter(None, text.strip().split(",")):
        match = re.fullmatch(_GRES, token)
        if match is None or match.group(1) != "mig":
            continue
        _, name, count = match.groups()
        if name is None:
            raise BadRequest(f"gres {token!r} names no profile; write mig:<profile>:<count>")
        items.append(Item(Profile.parse(name.rpartition("_")[2]), int(count or 1)))
    return Request(tuple(items)) if items else None


def holds_gpu(text: str) -> bool:
    """Whether a TresPerNode text asks for whole GPUs."""
    return _holds(text, "gpu")


def holds_both(text: str) -> bool:
    """Whether a TresPerNode text asks for whole GPUs and slices: slices on several GPUs."""
    return _holds(text, "gpu") and _holds(text, "mig")


def holds_shards(text: str) -> bool:
    """Whether a TresPerNode text asks for shards: then Slurm has to choose a GPU."""
    return _holds(text, "shard")


def _holds(text: str, name: str) -> bool:
    matches = (re.fullmatch(_GRES, token) for token in text.strip().split(","))
    return any(match is not None and match.group(1) == name for match in matches)
