"""The list of supported GPUs, read from the packaged `mig-geometry.json`.

Facts carry their confidence, and a number that nobody published is None, never
a guess. At run time the driver's own table wins; the catalogue serves where no
GPU is at hand: the simulator, the generator, `slurm-mig gpus` and `weights`. A site's own
descriptions of GPUs (`use`) are products as well, and win over the packaged ones for the
name in them: they are what the site's driver says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from slurm_mig.errors import UsageFault
from slurm_mig.mig import description
from slurm_mig.mig.geometry import UNKNOWN_ID, Engines, Geometry, GpuProfile, Placement
from slurm_mig.mig.profile import Profile


@dataclass(frozen=True, slots=True)
class Product:
    """One board of the catalogue.

    `row` is the product's entry in mig-geometry.json, unchanged: sizes in MiB,
    placements in NVML placement units, None where not found.
    """

    key: str
    row: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The names NVML reports for this board."""
        return tuple(self.row["names"])

    @property
    def architecture(self) -> str:
        """Ampere, Hopper or Blackwell; empty where only its driver's table is known."""
        return str(self.row["architecture"] or "")

    @property
    def confidence(self) -> str:
        """Where the profile table comes from."""
        return str(self.row["confidence"])

    @property
    def placement_confidence(self) -> str:
        """Where the placements come from."""
        return str(self.row["placement_confidence"])

    @property
    def slices(self) -> int | None:
        """Compute slices: 7, 4, 3 or 2; None where not published."""
        value = self.row.get("compute_slices")
        return None if value is None else int(value)

    @property
    def needs_reset(self) -> bool | None:
        """Whether switching MIG mode resets the GPU (Ampere)."""
        value = self.row.get("mig_mode_needs_reset")
        return None if value is None else bool(value)

    @property
    def known(self) -> bool:
        """Whether ids, placements and counts are known, so that it can be modelled."""
        return not self.unknown()

    def unknown(self) -> list[str]:
        """What is missing to model the board, in words; empty when nothing is."""
        if not self.names:
            return ["the name NVML reports"]
        if not self.row["profiles"]:
            return ["every profile: ids, placements and counts"]
        return [
            f"{what} of {', '.join(missing)}"
            for what, column in (
                ("profile id", "profile_id"),
                ("placements", "placements"),
                ("instance count", "max_instances"),
            )
            if (missing := [p["name"] for p in self.row["profiles"] if p.get(column) is None])
        ]

    def geometry(self) -> Geometry:
        """The board's geometry; UsageFault says which numbers are unknown."""
        if not self.known:
            raise UsageFault(
                f"{self.title} cannot be modelled: unknown {'; '.join(self.unknown())}"
            )
        return Geometry(tuple(_profile(row) for row in self.row["profiles"]))

    def counting(self) -> Geometry:
        """What weights and counts follow from: the geometry, else NVIDIA's published fractions.

        Without ids, and with each half or whole of the GPU where such a part can be: enough to
        count, and nothing to carve by. UsageFault where there are no fractions either.
        """
        rows = self.row["profiles"]
        if self.known or not self.countable:
            return self.geometry()
        units = max(row["parts_of_gpu"] for row in rows)
        return Geometry(
            tuple(
                _profile(
                    row
                    | {
                        "profile_id": UNKNOWN_ID,
                        "placements": _parts(units, row["parts_of_gpu"]),
                    }
                )
                for row in rows
            )
        )

    @property
    def countable(self) -> bool:
        """Whether weights and files for Slurm can be had."""
        rows = self.row["profiles"]
        return self.known or bool(rows and self.names and all("parts_of_gpu" in r for r in rows))

    @property
    def title(self) -> str:
        """First name, or the key for a board whose name is not known."""
        return self.names[0] if self.names else self.key


def _parts(units: int, parts: int) -> list[dict[str, int]]:
    """Places of a part of a GPU of which there are so many."""
    size = units // parts
    return [{"start": start, "size": size} for start in range(0, units, size)]


def _profile(row: dict[str, Any]) -> GpuProfile:
    return GpuProfile(
        profile_id=row["profile_id"],
        name=Profile.parse(row["name"]),
        slices=row["compute_slices"],
        placements=tuple(Placement(p["start"], p["size"]) for p in row["placements"]),
        max_instances=row["max_instances"],
        memory_mib=row["memory_mib"],
        multiprocessors=row["sm"],
        copy_engines=row["copy_engines"],
        engines=Engines(row["decoders"], row["encoders"], row["jpeg"], row["ofa"]),
    )


#: Directory of the site's descriptions; read when products are first asked for.
_described: list[Path] = []


def use(directory: Path) -> None:
    """Take the descriptions of a directory for products, too, from now on in this process."""
    _described[:] = [directory]
    own.cache_clear()
    products.cache_clear()


@cache
def own() -> tuple[Product, ...]:
    """The site's own products; UsageFault says what is wrong with a file."""
    paths = [path for directory in _described for path in description.files(directory)]
    found = tuple(from_file(path) for path in paths)
    description.clash([(item.title, path) for item, path in zip(found, paths, strict=True)])
    return found


def from_file(path: Path) -> Product:
    """The GPU that a file describes."""
    row = description.read(path)
    return Product(row["key"], row)


@cache
def products() -> tuple[Product, ...]:
    """All boards: the site's own, then the packaged ones under the names that are left to them."""
    mine = {name.casefold() for item in own() for name in item.names}
    rest = [
        (item, [name for name in item.names if name.casefold() not in mine]) for item in packaged()
    ]
    return (
        *own(),
        *(
            item if names == [*item.names] else Product(item.key, item.row | {"names": names})
            for item, names in rest
            if names or not item.names
        ),
    )


@cache
def packaged() -> tuple[Product, ...]:
    """The boards of the packaged catalogue, in its order."""
    text = resources.files("slurm_mig").joinpath("data/mig-geometry.json").read_text("utf-8")
    return tuple(Product(row["key"], row) for row in json.loads(text)["products"])


def find(name: str) -> Product:
    """A board by NVML name or catalogue key, in any case, or by a file that describes it.

    UsageFault lists the keys there are.
    """
    if name.endswith(description.ENDINGS):
        return from_file(Path(name))
    wanted = name.casefold()
    known = {word.casefold(): item for item in products() for word in (item.key, *item.names)}
    # A key means the packaged product, whole, also where the site describes a GPU of its name.
    known |= {item.key: item for item in packaged()}
    if wanted in known:
        return known[wanted]
    import difflib

    alike = [word for word in known if wanted and word.startswith(wanted)]
    alike = alike or difflib.get_close_matches(wanted, known, 5)
    close = dict.fromkeys(known[word].key for word in alike)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UsageFault(
        f"GPU {name!r} is not in the catalogue; {hint}known: "
        f"{', '.join(item.key for item in products())}",
        remedy="see `slurm-mig gpus --supported` for their names",
    )


def longer(name: str) -> list[str]:
    """Names of other boards that begin with this board's: `NVIDIA H100` is one, and seven more."""
    wanted = name.casefold()
    mine = [item for item in products() if wanted in {word.casefold() for word in item.names}]
    return [
        word
        for item in products()
        for word in item.names
        if mine and item not in mine and word.casefold().startswith(f"{wanted} ")
    ]


#: Slurm type names where the catalogue key is not one already.
_TYPES = {
    "a30-24gb": "a30",
    "h100-80gb-sxm": "h100",
    "h100-80gb-pcie": "h100_pcie",
    "h100-94gb-nvl": "h100_nvl",
    "h100-96gb-gh200": "gh200",
    "h100-64gb-sxm": "h100_64gb",
    "h20-96gb": "h20",
    "h200-141gb": "h200",
    "b200-180gb": "b200",
    "gb200-186gb": "gb200",
    "rtx-pro-6000-blackwell": "rtx_pro_6000",
}


def type_name(product: Product) -> str:
    """The Slurm GPU type a product gets unless the site names its own."""
    if "type" not in product.row:
        return _TYPES.get(product.key, product.key.replace("-", "_"))
    # A packaged product of that name has a type that the site may have in use.
    known = [item for item in packaged() if set(item.names) & set(product.names)]
    return type_name(known[0]) if known else str(product.row["type"])


def also_called(product: Product) -> list[str]:
    """Other words for a product that scripts from elsewhere use: its type here, its family."""
    name = type_name(product)
    return list(dict.fromkeys((name, name.partition("_")[0])))
