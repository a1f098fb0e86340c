"""MIG profile names, `2g.20gb+me` <-> `Profile`: the only place that reads them.

The grammar is NVIDIA's (MIG user guide, `nvidia-smi mig -lgip` and `-lcip`):

    [<compute slices>c.]<GPU slices>g.<memory>gb[attribute]

Names are for people. They differ between drivers for one and the same profile
(`3g.40gb` and `3g.39gb`), so tables are keyed by profile id (facts/mig.md#bugs).
"""

from __future__ import annotations

import re
from typing import Final

from slurm_mig.errors import BadRequest
from slurm_mig.values import dataclass

#: Attributes as NVIDIA prints them (NVML_GPU_INSTANCE_PROFILE_*: REV1, GFX, NO_ME, ALL_ME).
#: In the order of `nvidia-smi mig -lgip`.
ATTRIBUTES: Final = ("", "+me", "+gfx", "+me.all", "-me")

GRAMMAR: Final = "[<c>c.]<g>g.<m>gb[+me|+me.all|+gfx|-me], for example 3g.40gb or 1c.3g.40gb"

# Longest attribute first: `+me` must not match the head of `+me.all`.
_NAME: Final = (
    r"(?:([1-9][0-9]?)c\.)?([1-9][0-9]?)g\.(0|[1-9][0-9]{0,3})gb(\+me\.all|\+me|\+gfx|-me)?"
)


@dataclass(frozen=True, slots=True, order=True)
class Profile:
    """A profile as its name tells it.

    `gpu_slices` is the `g` number (1 to 99), `memory_gb` the rounded memory in
    NVIDIA's GB (0 to 9999; 0 on integrated GPUs), `attribute` one of
    `ATTRIBUTES`, and `compute_slices` the `c` number of a compute instance
    smaller than its GPU instance, or None for one that fills it.
    """

    gpu_slices: int
    memory_gb: int
    attribute: str = ""
    compute_slices: int | None = None

    def __post_init__(self) -> None:
        if self.attribute not in ATTRIBUTES:
            raise BadRequest(f"profile attribute {self.attribute!r}: allowed are {ATTRIBUTES[1:]}")
        if self.compute_slices is not None and not 0 < self.compute_slices < self.gpu_slices:
            raise BadRequest(
                f"profile {self}: a compute instance has fewer slices than its GPU instance, "
                f"or leaves the `c` part out"
            )

    def __str__(self) -> str:
        compute = "" if self.compute_slices is None else f"{self.compute_slices}c."
        return f"{compute}{self.gpu_slices}g.{self.memory_gb}gb{self.attribute}"

    @property
    def gpu_instance(self) -> Profile:
        """The profile of the GPU instance alone, without the `c` part."""
        if self.compute_slices is None:
            return self
        return Profile(self.gpu_slices, self.memory_gb, self.attribute)

    @property
    def per_gpu_instance(self) -> int:
        """How many such compute instances one GPU instance holds; 1 for one that fills it."""
        return 1 if self.compute_slices is None else self.gpu_slices // self.compute_slices

    def alike(self, other: Profile) -> bool:
        """Whether both may be one profile, as two drivers name it (3g.39gb, 3g.40gb).

        Drivers round memory differently; true neighbours differ by half (facts/mig.md#bugs).
        """
        return (self.gpu_slices, self.attribute, self.compute_slices) == (
            other.gpu_slices,
            other.attribute,
            other.compute_slices,
        ) and 8 * abs(self.memory_gb - other.memory_gb) <= max(self.memory_gb, other.memory_gb)

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Read a name exactly as NVIDIA writes it; `str()` gives it back unchanged.

        Raises BadRequest naming the text and the grammar.
        """
        match = re.fullmatch(_NAME, text)
        if match is None:
            raise BadRequest(f"profile {text[:80]!r} is not a MIG profile name; write {GRAMMAR}")
        compute, gpu, memory, attribute = match.groups()
        return cls(int(gpu), int(memory), attribute or "", int(compute) if compute else None)
