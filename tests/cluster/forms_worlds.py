"""Two private Slurms side by side: one with static MIG, one with slices carved by us.

The static one has what Slurm's own manual tells a site to do: a `gpu` type for every kind of
slice, a device file for each, no hook, no plugin. Its device files are copies of /dev/null; nothing
here opens one. Both have the same nodes, partitions, features, licences and other gres, so that a
form asks the same of both.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING, Final

from slurm_mig.fleet.bridge import Bridge, Default
from slurm_mig.sandbox import Cluster, SandboxNode
from tests.kit.gpus import A30, A100_40, H100

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from slurm_mig.fleet.fleet import Fleet

#: A site's own words, and the slice that each means; the words of forms that centres document.
WORDS: Final = {
    "a100l.1": "a100_1g.5gb",
    "mig_24gb": "a30_4g.24gb",
    "mig-1g.10gb": "h100_1g.10gb",
    "h100-40g": "h100_3g.40gb",
}

#: Static gpu type -> profile of the slice behind it.
MEANS: Final = {
    **{f"{p}": p for p in ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")},
    **{f"h100_{p}": p for p in ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "7g.80gb")},
    "1g.20gb": "1g.20gb",
    "3g.39gb": "3g.40gb",
    "nvidia_h100_80gb_hbm3_1g.10gb": "1g.10gb",
    "h100_80gb_hbm3_1g.10gb": "1g.10gb",
    "h100-2g.20gb": "2g.20gb",
    "H100-2g.20gb": "2g.20gb",
    "H100_3g.40gb": "3g.40gb",
    "a100_1g.5gb": "1g.5gb",
    "a100_2g.10gb": "2g.10gb",
    "a100_3g.20gb": "3g.20gb",
    "a30_1g.6gb": "1g.6gb",
    "a30_2g.12gb": "2g.12gb",
    **{word: slice_.partition("_")[2] for word, slice_ in WORDS.items()},
}

#: What is not whole in this fleet: the node of each gpu type of the static world, with counts.
#: One GPU layout could not hold them all; a file for each is all that Slurm asks for.
H100_TYPES: Final = {
    "1g.10gb": 14, "1g.20gb": 4, "2g.20gb": 6, "3g.40gb": 8, "4g.40gb": 4, "7g.80gb": 4,
    "h100_1g.10gb": 14, "h100_1g.20gb": 4, "h100_2g.20gb": 6, "h100_3g.40gb": 8,
    "h100_7g.80gb": 4, "3g.39gb": 2, "nvidia_h100_80gb_hbm3_1g.10gb": 7, "h100-2g.20gb": 3,
    "mig-1g.10gb": 7, "h100-40g": 2, "H100_3g.40gb": 2, "H100-2g.20gb": 3,
    "h100_80gb_hbm3_1g.10gb": 7,
}  # fmt: skip
A100_TYPES: Final = {"a100_1g.5gb": 14, "a100_2g.10gb": 6, "a100_3g.20gb": 4, "a100l.1": 7}
A30_TYPES: Final = {"a30_1g.6gb": 8, "a30_2g.12gb": 4, "mig_24gb": 2}
MIG_TYPES: Final = {"h100_1g.10gb": 7}

STATIC: Final[Mapping[str, Mapping[str, int]]] = {
    "h1": H100_TYPES,
    "h2": H100_TYPES,
    "a1": A100_TYPES,
    "t1": A30_TYPES,
    "m1": MIG_TYPES,
}

NODES: Final = (
    SandboxNode("h1", ((H100, 4),)),
    SandboxNode("h2", ((H100, 4),)),
    SandboxNode("a1", ((A100_40, 2),)),
    SandboxNode("t1", ((A30, 2),)),
    SandboxNode("m1", ((H100, 1),)),
)

#: What the site of ours says in its fleet file: its words, what a GPU is where slices alone are,
#: and the defaults for each GPU that SETTINGS gives a partition.
BRIDGE: Final = Bridge(
    words={f"gpu:{word}": slice_ for word, slice_ in WORDS.items()},
    defaults=(
        Default(partitions=("mig",), slice="h100_1g.10gb"),
        Default(features=("mig",), slice="h100_1g.10gb"),
        Default(partitions=("gpudef",), cpus=4, memory=300),
    ),
)

#: Beside the sandbox's partition `all`: one of slices alone, and one with defaults per GPU.
SETTINGS: Final = """\
SelectTypeParameters=CR_CPU_Memory
Licenses=matlab:10
PartitionName=mig Nodes=m1 DefMemPerCPU=100
PartitionName=gpudef Nodes=h1,h2 DefCpuPerGPU=4 DefMemPerGPU=300
PartitionName=plain Nodes=h1,h2 DefMemPerCPU=100
"""


class World(Cluster):
    """A cluster of these nodes with what both sites have."""

    def _slurm_conf(self, fleet: Fleet, hooks: Path) -> str:
        text = super()._slurm_conf(fleet, hooks)
        text = re.sub(r"^GresTypes=(\S+)", r"GresTypes=\1,nvme", text, flags=re.MULTILINE)
        text = text.replace(
            "CPUs=16 RealMemory=4096",
            "CPUs=16 Sockets=2 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000",
        )
        text = text.replace("PartitionName=all ", "PartitionName=all DefMemPerCPU=100 ")
        text = re.sub(r"^(NodeName=m1 .*)$", r"\1 Feature=mig", text, flags=re.MULTILINE)
        return re.sub(r"^(NodeName=.* Gres=\S+)", r"\1,nvme:100", text, flags=re.MULTILINE)

    def gpus(self, line: Mapping[str, str]) -> list[tuple[str, str]]:
        """The devices that a line of the probe names: an identity and a profile of each."""
        raise NotImplementedError


class Static(World):
    """Plain Slurm with static MIG."""

    def build(self) -> None:
        """Plain Slurm's files in place of ours."""
        super().build()
        for name in ("job_submit.lua", "cli_filter.lua"):
            (self.conf / name).unlink(missing_ok=True)
        lines = []
        for node, types in STATIC.items():
            devices = self.root / "nodes" / node / "static"
            devices.mkdir()
            number = 0
            for kind, count in types.items():
                for at in range(number, number + count):
                    # A character device is all that Slurm asks for: /dev/null's numbers.
                    os.mknod(devices / f"nvidia{at}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
                files = f"{devices}/nvidia[{number}-{number + count - 1}]"
                lines.append(f"NodeName={node} Name=gpu Type={kind} File={files}")
                number += count
            lines.append(f"NodeName={node} Name=nvme Count=100")
        (self.conf / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines, ""]))

    @staticmethod
    def _own_lines(_fleet: Fleet, _hooks: Path) -> list[str]:
        return ["GresTypes=gpu"]

    def _slurm_conf(self, fleet: Fleet, hooks: Path) -> str:
        text = super()._slurm_conf(fleet, hooks)
        for node, types in STATIC.items():
            gres = ",".join(f"gpu:{kind}:{count}" for kind, count in types.items())
            pattern = rf"^(NodeName={node} .*Gres=)\S+?(,nvme)"
            text = re.sub(pattern, rf"\g<1>{gres}\2", text, flags=re.MULTILINE)
        return text

    def gpus(self, line: Mapping[str, str]) -> list[tuple[str, str]]:
        """CUDA_VISIBLE_DEVICES has the numbers of the node's device files."""
        order = [MEANS[kind] for kind, n in STATIC[line["node"]].items() for _ in range(n)]
        numbers = [word for word in line["cvd"].split(",") if word]
        return [(f"{line['node']}/{word}", order[int(word)]) for word in numbers]


class Ours(World):
    """The same nodes with our generated files, hooks and plugins."""

    def _slurm_conf(self, fleet: Fleet, hooks: Path) -> str:
        text = super()._slurm_conf(fleet, hooks)
        gres = self.conf / "gres.conf"
        nodes = ",".join(node.name for node in self.nodes)
        gres.write_text(f"{gres.read_text()}NodeName={nodes} Name=nvme Count=100\n")
        return text

    def gpus(self, line: Mapping[str, str]) -> list[tuple[str, str]]:
        """A task sees MIG UUIDs, and their profiles beside them."""
        uuids = [word for word in line["cvd"].split(",") if word]
        profiles = [word for word in line["profiles"].split(",") if word]
        if len(profiles) != len(uuids):
            profiles = ["whole GPU" if not word.startswith("MIG-") else "?" for word in uuids]
        return list(zip(uuids, profiles, strict=True))
