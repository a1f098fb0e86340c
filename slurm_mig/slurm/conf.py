"""slurm.conf, gres.conf and cgroup.conf as text -> entries. Pure.

Read as Slurm's own parser reads them (slurm.conf(5), src/common/parse_config.c):
comments first, then continuation lines; keys in any case; a value ends at white
space unless it is quoted; `Include` takes a path that is absolute or relative to
slurm.conf's directory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slurm_mig.errors import UsageFault
from slurm_mig.slurm import hostlist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: As deep as includes may nest here; Slurm itself sets no limit but the stack's.
MAX_DEPTH: Final = 16

_COMMENT: Final = re.compile(r"(?<!\\)((?:\\\\)*)#.*")
_CONTINUED: Final = re.compile(r"(?<!\\)(?:\\\\)*\\\s*$")
_PAIR: Final = re.compile(r'\s*([A-Za-z0-9_.]+)\s*[-*+/]?=\s*(?:"([^"]*)"|(\S+))(?=\s|$)')
_INCLUDE: Final = re.compile(r"include\s+(\S+)\s*$", re.IGNORECASE)
_BRACKET: Final = re.compile(r"([^\[\]]*)(\[[^\[\]]*\])(.*)")


@dataclass(frozen=True, slots=True)
class Entry:
    """One logical line: where it stands, and its `key=value` pairs, keys in lower case."""

    path: str
    line: int
    text: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The first key, which says what the line is about."""
        return self.pairs[0][0]

    def get(self, key: str, default: str = "") -> str:
        """The value of a key of this line; the last one, if it is there twice."""
        found = [value for name, value in self.pairs if name == key.lower()]
        return found[-1] if found else default

    def has(self, key: str) -> bool:
        """Whether the line names the key."""
        return any(name == key.lower() for name, _ in self.pairs)

    @property
    def where(self) -> str:
        """`path:line`."""
        return f"{self.path}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Conf:
    """A file with what it includes; `unread` are includes that could not be read."""

    path: str
    entries: tuple[Entry, ...]
    unread: tuple[Entry, ...] = ()

    def all(self, key: str) -> list[Entry]:
        """Every line whose first key this is."""
        return [entry for entry in self.entries if entry.key == key.lower()]

    def last(self, key: str) -> Entry | None:
        """The line that counts: of several the last (slurm.conf(5))."""
        found = self.all(key)
        return found[-1] if found else None


@dataclass(frozen=True, slots=True)
class NodeLine:
    """A node of slurm.conf with the line that gives it its gres."""

    name: str
    entry: Entry
    gres: dict[str, int]
    host: str = ""

    @property
    def managed(self) -> bool:
        """Whether slurm-mig serves the node: it has `mig` counts."""
        return any(name.partition(":")[0] == "mig" for name in self.gres)

    def count(self, name: str) -> dict[str, int]:
        """Counts of one gres by type; the type is empty where none is given."""
        return {
            rest: count
            for full, count in self.gres.items()
            for first, _, rest in [full.partition(":")]
            if first == name
        }


@dataclass(frozen=True, slots=True)
class GresLine:
    """A line of gres.conf; `nodes` None means every node that reads the file."""

    entry: Entry
    nodes: tuple[str, ...] | None
    name: str
    type: str
    count: int | None
    files: tuple[str, ...]

    def on(self, node: str) -> bool:
        """Whether the line is about that node."""
        return self.nodes is None or node in self.nodes

    @property
    def each(self) -> int | None:
        """How many of it every file of the line has; None where the count is not said."""
        return None if self.count is None or not self.files else self.count // len(self.files)


def parse(path: str, text: str, read: Callable[[str], str | None]) -> Conf:
    """Entries of a file and its includes; `read` gives a file's text, None where it cannot."""
    entries: list[Entry] = []
    unread: list[Entry] = []
    folder = path.rpartition("/")[0]

    def take(path: str, text: str, depth: int) -> None:
        for number, line in _logical(text):
            include = _INCLUDE.match(line)
            if include is None:
                pairs = _pairs(line)
                if pairs:
                    entries.append(Entry(path, number, line, pairs))
                continue
            name = include[1] if include[1].startswith("/") else f"{folder}/{include[1]}"
            inner = read(name) if depth < MAX_DEPTH else None
            if inner is None:
                unread.append(Entry(path, number, line, (("include", name),)))
            else:
                take(name, inner, depth + 1)

    take(path, text, 0)
    return Conf(path, tuple(entries), tuple(unread))


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each logical line that says anything."""
    held, start = "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = _COMMENT.sub(r"\1", raw)
        start = start or number
        if _CONTINUED.search(line):
            held += line.rstrip()[:-1]
            continue
        whole = (held + line).strip()
        if whole:
            yield start, whole
        held, start = "", 0
    if held.strip():
        yield start, held.strip()


def _pairs(line: str) -> tuple[tuple[str, str], ...]:
    found = [
        (key.lower(), quoted or plain)
        for key, quoted, plain in (match.groups("") for match in _PAIR.finditer(line))
    ]
    return tuple(found)


def nodes(conf: Conf) -> list[NodeLine]:
    """Every node of slurm.conf, `NodeName=DEFAULT` lines filled in; later lines win."""
    found: dict[str, NodeLine] = {}
    default: Entry | None = None
    for entry in conf.all("NodeName"):
        value = entry.get("NodeName")
        if value.upper() == "DEFAULT":
            default = entry if entry.has("Gres") else default
            continue
        source = entry if entry.has("Gres") or default is None else default
        gres = read_gres(source.get("Gres"))
        names = hosts(value)
        aliases = hosts(entry.get("NodeHostname")) or names
        for number, name in enumerate(names):
            host = aliases[number] if number < len(aliases) else aliases[-1]
            found[name] = NodeLine(name, source, gres, host)
    return list(found.values())


def hosts(text: str) -> list[str]:
    """A host list written out; empty when it cannot be read (Slurm refuses it, too)."""
    try:
        return hostlist.expand(text) if text else []
    except UsageFault:
        return []


def unreadable(conf: Conf) -> Iterator[tuple[Entry, str]]:
    """Each line with a host list that cannot be read, and why: its nodes are known to nobody."""
    for entry in conf.entries:
        for key in ("NodeName", "NodeHostname"):
            try:
                hostlist.expand(entry.get(key, "none"))
            except UsageFault as fault:
                yield entry, str(fault)


def read_gres(text: str) -> dict[str, int]:
    """`gpu:h100:2(S:0-1),mig:1g.10gb:14` as name and count; no count means one."""
    found: dict[str, int] = {}
    for word in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = word.strip().replace(":no_consume", "").split(":")
        count = number(parts[-1]) if len(parts) > 1 else None
        name = ":".join(parts if count is None else parts[:-1])
        if name:
            found[name] = found.get(name, 0) + (1 if count is None else count)
    return found


def number(text: str) -> int | None:
    """A count as Slurm writes it: digits, with K, M or G for powers of 1024."""
    match = re.fullmatch(r"(\d{1,12})([kKmMgG]?)", text)
    if match is None:
        return None
    shift = 10 * ("kmg".index(match[2].lower()) + 1) if match[2] else 0
    return int(match[1]) << shift


def gres_lines(conf: Conf) -> list[GresLine]:
    """The lines of gres.conf that name a gres."""
    found = []
    for entry in conf.entries:
        if not entry.has("Name"):
            continue
        names = entry.get("NodeName")
        found.append(
            GresLine(
                entry=entry,
                nodes=tuple(hosts(names)) if names else None,
                name=entry.get("Name").lower(),
                type=entry.get("Type"),
                count=number(entry.get("Count")),
                files=tuple(files(entry.get("File") or entry.get("MultipleFiles"))),
            )
        )
    return found


def files(text: str) -> list[str]:
    """`/dev/nvidia[0-3]` and lists of such, written out."""
    if not text:
        return []
    found: list[str] = []
    for word in re.findall(r"(?:[^\[\],]|\[[^\[\]]*\])+", text):
        match = _BRACKET.fullmatch(word)
        if match is None:
            found.append(word)
            continue
        found += [f"{match[1]}{name[1:]}{match[3]}" for name in hosts(f"n{match[2]}")]
    return found


def words(value: str) -> list[str]:
    """A list of words separated by commas, as Slurm's options are."""
    return [word.strip() for word in value.split(",") if word.strip()]


def has_word(value: str, *wanted: str) -> bool:
    """Whether one of the words stands in the list, in any case."""
    present = {word.lower() for word in words(value)}
    return any(word.lower() in present for word in wanted)


def with_word(value: str, word: str) -> str:
    """The list with that word behind it."""
    return ",".join([*words(value), word])


def without_word(value: str, unwanted: Sequence[str]) -> str:
    """The list without those words."""
    drop = {word.lower() for word in unwanted}
    return ",".join(word for word in words(value) if word.lower() not in drop)


def seconds(value: str) -> float | None:
    """Seconds of `30`, `30 sec`; None for unlimited (65534, 65535) and for no number."""
    match = re.match(r"\s*(\d+)", value)
    if match is None or int(match[1]) >= 65534:
        return None
    return float(match[1])
