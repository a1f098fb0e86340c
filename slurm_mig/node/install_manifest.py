"""Installed files: compared, written, listed, and exactly those taken away again."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from slurm_mig.errors import NodeFault
from slurm_mig.node.install_paths import PARTS, UNIT_PLACES, File, below, check_place, part_of
from slurm_mig.node.install_texts import UNIT, Places
from slurm_mig.system.replace import check_replaceable, replace_file
from slurm_mig.system.trust import read_trusted, trusted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def state(file: File, root: Path) -> str:
    """`new`, `same` or `changed`: what is there now, against what would be written."""
    path = below(root, file.path, follow=True)
    try:
        there = path.read_bytes()
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return "new"
    except OSError as problem:
        raise NodeFault(f"read {path}: {problem.strerror}") from problem
    same = there == file.text.encode("utf-8", "replace") and mode == file.mode
    return "same" if same else "changed"


def check(made: Sequence[File], root: Path) -> None:
    """NodeFault where one of them cannot stand; nothing is made."""
    for directory in sorted({below(root, file.path).parent for file in made}):
        try:
            with trusted(_standing(directory)):
                pass
        except OSError as problem:
            raise NodeFault(f"make {directory}: {problem.strerror}") from problem
    for file in made:
        if below(root, file.path, follow=True).is_dir():
            raise NodeFault(f"{below(root, file.path)} is a directory, not a file")
        # A unit that an administrator has masked is a link to /dev/null (systemctl(1), mask).
        check_replaceable(below(root, file.path))


def _standing(path: Path) -> Path:
    """The nearest directory above that exists; a link that leads nowhere counts, too."""
    while not path.exists() and not path.is_symlink() and path != path.parent:
        path = path.parent
    return path


def write(made: Sequence[File], root: Path, manifest: Path, keep: Sequence[Path] = ()) -> None:
    """Write what is not there yet, all checked before; `keep` goes into no manifest.

    Raises NodeFault, with nothing written, where one of them cannot stand.
    """
    check(made, root)
    for directory in {below(root, file.path).parent for file in made}:
        check_place(directory, ())
    every = read_manifest(manifest) | {
        str(file.path): file.digest for file in made if file.path not in keep
    }
    # First: what is written and in no manifest would never be removed.
    _write_manifest(manifest, every)
    for file in made:
        if state(file, root) != "same":
            path = below(root, file.path)
            _remove_own_rests(path)
            replace_file(path, file.text, mode=file.mode)


def _remove_own_rests(path: Path) -> None:
    """What a killed `install` left beside this very file; never anything else of a site's."""
    for rest in path.parent.glob(f".{path.name}.*"):
        pid = rest.name.rpartition(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            rest.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, str]:
    """Digests of what was installed, by path; empty where there is none."""
    try:
        # It says what root removes: whoever could write it could have anything removed.
        data = json.loads(read_trusted(path))
        return {str(Path(name)): str(digest) for name, digest in data["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as problem:
        raise NodeFault(
            f"manifest {path}: {problem}", remedy="remove it, and install again"
        ) from problem


def _write_manifest(path: Path, every: Mapping[str, str]) -> None:
    check_place(path.parent, ())
    text = json.dumps({"files": dict(sorted(every.items()))}, indent=1) + "\n"
    replace_file(path, text, mode=0o644)


def others(places: Places, python: Path, root: Path) -> list[str]:
    """What another environment's `install` or package has put in place, one line each.

    Its units would run the old code at the next boot while the hooks run the new one.
    """
    hook = below(root, places.hook_paths["Prolog"], follow=True)
    found = []
    named = re.search(r"^python='?([^'\n]+)", _text(hook), re.MULTILINE)
    if named and named[1] != str(python):
        found.append(f"the hooks were those of {named[1]} until now")
    for directory in UNIT_PLACES:
        path = directory / Path(UNIT).name
        if path.parent == places.units:
            continue
        started = re.search(
            r"^ExecStart=(\S+)", _text(below(root, path, follow=True)), re.MULTILINE
        )
        if started and started[1] != str(python):
            found.append(
                f"{path} runs {started[1]}: of units of one name those in /etc/systemd/system "
                "count; take away what you do not use (`install --uninstall --only units` of that "
                "one, or its package)"
            )
    return found


def _text(path: Path) -> str:
    """A file's beginning; empty where there is none that can be read."""
    try:
        return path.read_text("utf-8", "replace") if path.is_file() else ""
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Removal:
    """What an uninstall takes away, and what it leaves because somebody changed it."""

    gone: tuple[Path, ...]
    changed: tuple[Path, ...]


def listed(manifest: Path, parts: Collection[str] = PARTS) -> dict[str, str]:
    """The manifest's files of these PARTS: a part that nobody named is not taken away."""
    every = read_manifest(manifest)
    return {name: digest for name, digest in every.items() if part_of(Path(name)) in parts}


def removal(manifest: Path, root: Path, parts: Collection[str] = PARTS) -> Removal:
    """What `remove` would do; paths without the root."""
    gone: list[Path] = []
    changed: list[Path] = []
    for name, digest in listed(manifest, parts).items():
        path = below(root, Path(name), follow=True)
        if not path.is_file():
            continue
        same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
        (gone if same else changed).append(Path(name))
    return Removal(tuple(gone), tuple(changed))


def remove(manifest: Path, root: Path, parts: Collection[str] = PARTS) -> Removal:
    """Remove what was installed and is unchanged, then directories of ours that are empty."""
    every, mine = read_manifest(manifest), listed(manifest, parts)
    plan = removal(manifest, root, parts)
    for path in plan.gone:
        below(root, path).unlink()
        if part_of(path) == "units" and path.suffix == ".conf":
            with suppress(OSError):
                below(root, path).parent.rmdir()
    kept = {str(path) for path in plan.changed}
    left = {name: digest for name, digest in every.items() if name in kept or name not in mine}
    if left:
        _write_manifest(manifest, left)
    else:
        manifest.unlink(missing_ok=True)
    with suppress(OSError):
        manifest.parent.rmdir()
    return plan
