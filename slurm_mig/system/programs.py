"""Where programs are found: only in the system's own directories."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: Where sites put Slurm's commands.
SEARCH: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin")


def find_program(name: str, directory: Path | None) -> Path | None:
    """A program of Slurm's in `directory`, or where sites put them; a hook has no PATH."""
    places = [directory] if directory else [Path(place) for place in SEARCH]
    return next((place / name for place in places if (place / name).is_file()), None)
